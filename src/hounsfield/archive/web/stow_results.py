"""The fates of one STOW-RS request's parts, and the answer made of them (PS3.18 10.5.3, I.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from hounsfield.archive.dicom.problems import CUT_SHORT
from hounsfield.archive.dicom.xml import model_to_xml
from hounsfield.archive.engine.types import COERCED, Outcome, StoreResult
from hounsfield.archive.index.catalog import Place
from hounsfield.archive.web.described import Form
from hounsfield.archive.web.problems import RETRY_AFTER_SECONDS, Header, row_of
from hounsfield.archive.web.responses import BuffersResponse
from hounsfield.archive.web.urls import instance_url, study_url

OUT_OF_RESOURCES: Final = 0xA700
"""No room for it, or larger than is taken."""
DOES_NOT_MATCH: Final = 0xA900
"""Data set does not match: bulk data is missing, or is not what the metadata describes."""
CANNOT_UNDERSTAND: Final = 0xC000
"""PS3.18 Table I.2-2, as in PS3.4 B.2.3: not a DICOM object, or not one that can be read."""
OTHER_STUDY: Final = 0xA901
"""The A9xx family, data set does not match: the object belongs to another study than the path says."""

#: Warning reasons (PS3.18 Table I.2-1) of what was kept, but not as its sender may think. Total.
WARNINGS: Final[dict[Outcome, int | None]] = {
    Outcome.STORED: None,
    Outcome.DUPLICATE: None,
    Outcome.CONFLICT: 0xB000,
    Outcome.QUARANTINED: 0xB007,
}
WARNING_CUT: Final = 0xB007
"""Data set does not match SOP class: it was stored as it came, and bytes of it are missing."""

WARNING_COERCED: Final = 0xB000
"""Coercion of data elements: attributes of it are shown otherwise than they were sent."""


@dataclass(slots=True)
class PartResult:
    """One part's fate; ``result`` is None when it was not stored."""

    result: StoreResult | None = None
    failure_reason: int = 0
    sop_class_uid: str = ""
    sop_uid: str = ""
    retry: bool = False
    status: int = 409

    def fail(self, error: Exception) -> None:
        """It cannot be stored, for this reason."""
        row = row_of(error)
        self.failure_reason = row.failure_reason if row is not None else CANNOT_UNDERSTAND
        self.retry = bool(getattr(error, "retry", False))
        self.status = row.status if row is not None else 409


def store_response(
    results: Sequence[PartResult],
    shown: Mapping[Place, Place | None],
    base: str,
    study_uid: str | None,
    form: Form,
) -> BuffersResponse:
    """PS3.18 10.5.3: 200 if all is well, 202 if some is, 409 if nothing was, 503 when it may be soon.

    The answer is one object: also in XML it is no multipart message. ``shown`` says where what was received
    with such UIDs is found: a URL of what is out of sight would lead nowhere (it may be empty, Table I.1-2).
    """
    referenced: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    studies: dict[str, None] = {}
    warned = False
    for one in results:
        if one.result is None:
            reason = {"00081197": _value("US", one.failure_reason)}
            if one.sop_uid:
                failed.append({**_sop(one.sop_class_uid, one.sop_uid), **reason})
            else:
                others.append(reason)
            continue
        result = one.result
        item = _sop(result.sop_class_uid, result.sop_instance_uid)
        warning = WARNINGS[result.outcome]
        if warning is None and not CUT_SHORT.isdisjoint(result.warnings):
            warning = WARNING_CUT
        if warning is None and COERCED in result.warnings:
            warning = WARNING_COERCED
        if warning is not None:
            warned = True
            item["00081196"] = _value("US", warning)
        if result.outcome is not Outcome.QUARANTINED:
            received = Place(result.study_uid, result.series_uid, result.sop_instance_uid)
            place = shown.get(received, received)
            item["00081190"] = {"vr": "UR"}
            if place is not None:
                studies[place.study_uid] = None
                item["00081190"] = _value("UR", instance_url(base, *place))
        referenced.append(item)
    body: dict[str, Any] = {}
    retrieve = study_uid if study_uid in studies else next(iter(studies)) if len(studies) == 1 else None
    if retrieve is not None:
        body["00081190"] = _value("UR", study_url(base, retrieve))
    else:
        body["00081190"] = {"vr": "UR"}
    for key, items in (("00081198", failed), ("00081199", referenced), ("0008119A", others)):
        if items:
            body[key] = {"vr": "SQ", "Value": items}
    headers: list[Header] = []
    lost = len(failed) + len(others)
    if not lost:
        status = 202 if warned else 200
    elif referenced:
        status = 202
    elif all(one.retry for one in results):
        status = 503
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
    elif all(one.status == 413 for one in results):
        status = 413
    else:
        status = 409
    encoded = model_to_xml(body) if form.is_xml else msgspec.json.encode(body)
    return BuffersResponse(status, [(b"content-type", form.media_type.encode("ascii")), *headers], (encoded,))


def _sop(class_uid: str, uid: str) -> dict[str, Any]:
    return {"00081150": _value("UI", class_uid), "00081155": _value("UI", uid)}


def _value(vr: str, value: object) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]} if value != "" else {"vr": vr}
