"""Images that come: each study that the archive tells of is looked at, matched to its order and tracked.

The archive is asked once for a study however many of its objects came meanwhile: one row, which says whose it
is and how many objects there are. Which ones is asked only when that may be all that a modality has made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Final

from hounsfield.archive.plugins import Change, Event
from hounsfield.ris_plugin import orders as ordering
from hounsfield.ris_plugin import tracking
from hounsfield.ris_plugin.acquisition import reconciling
from hounsfield.ris_plugin.acquisition.matching import Arrived
from hounsfield.ris_plugin.acquisition.performed_orders import WRONG_ENTRY
from hounsfield.ris_plugin.actors import SYSTEM, Actor, Role
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import NotNowError
from hounsfield.ris_plugin.following import Consumer, Heeded
from hounsfield.ris_plugin.patients import family, resolve
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.patients import PATIENT
from hounsfield.ris_plugin.records.performed import MISMATCH, PERFORMED, Named
from hounsfield.ris_plugin.schedule import scheduling, steps

__all__ = ["consumers", "look_at"]

CAME: Final = frozenset({"instances-stored", "conflict-kept", "instances-restored"})
WENT: Final = frozenset({"instances-deleted", "instances-rejected", "corrected"})
SAID: Final = frozenset({"performed-created", "performed-updated", "performed-ended"})
ANEW: Final = WENT | {"performed-ended"}
"""After these it is not known which objects that a modality made are here."""
STABLE: Final = "study-stable"
PAUSE_SECONDS: Final = 0.5
"""Between two looks at what comes: an object takes milliseconds, and a study a minute or more."""
PAGE: Final = 2000
"""Objects of one answer: some fifty milliseconds of a thread that others wait for."""
OTHERS_MAX: Final = 100
"""Patients in one study: more is a device that gives all its studies one UID."""
NOT_IMAGES: Final = frozenset({"SR", "PR", "KO", "DOC", "SEG", "RTSTRUCT", "AU", "REG", "OT"})
WITHOUT_WORD: Final = Actor(SYSTEM.person, frozenset({Role.SYSTEM, Role.MODALITY}))
"""Who does what a modality would say, of one that says nothing."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What the archive has of a study. ``uids``: of its objects, None when nobody asked."""

    study: Arrived | None
    count: int = 0
    uids: frozenset[str] | None = None
    quiet: bool | None = None
    images: int | None = None
    rejected: bool = False


def consumers(ris: Ris) -> list[Consumer]:
    """Who follows what comes in."""
    rules = {"issuer": ris.settings.issuer, "prior_days": ris.settings.prior_days}
    return [
        Consumer(
            "images",
            CAME | WENT | SAID | {STABLE, "study-mismatched"},
            partial(_came, rules),
            partial(look_at, ris),
            together=lambda event: str(event.body.get("study", "")),
            since_begun=True,
            pause_seconds=PAUSE_SECONDS,
        ),
        Consumer("images-fit", _MAY_FIT, partial(_may_fit, rules), together=_of_patient),
        Consumer("images-not-expected", _NOT_DONE, _not_expected),
        Consumer(
            "images-begun", {"images-stored", "images-verified", "study-matched"}, _performed_without_word
        ),
        Consumer("wrong-entries", {"performed-ended"}, _wrong_entry),
        Consumer("reports", _READ.keys(), _reported),
    ]


# ---------------------------------------------------------------- looking


async def look_at(ris: Ris, event: Heeded) -> Looked | None:
    """What the archive has of the study of an event; None when there is nothing to look at."""
    study_uid = str(event.body.get("study", ""))
    if not study_uid or _is_told_by_us(event) or _is_of_before(ris, event, study_uid):
        return None
    asked = {"StudyInstanceUID": study_uid}
    found = await ris.archive.search("study", asked, limit=1)
    if not found:
        return Looked(None)
    row = found[0]
    count = int(row.get("NumberOfStudyRelatedInstances") or 0)
    quiet = _quiet(event)
    with ris.reading() as view:
        tracked = tracking.of_study(view, study_uid)
        was_quiet = tracked is not None and tracked[1].quiet
        wants = tracking.needs_uids(
            view, study_uid, count, quiet=quiet if quiet is not None else was_quiet
        ) or (bool(event.kinds & ANEW) and tracked is not None and tracked[1].expected > 0)
    begun = tracked is not None and tracked[1].state in ("read", "reported")
    images = None
    if wants or quiet or (begun and tracked is not None and tracked[1].stored != count):
        images = await _images(ris, asked)
    uids: set[str] = set()
    while wants:
        page = await ris.archive.search("instance", asked, limit=PAGE, offset=len(uids))
        uids.update(one["SOPInstanceUID"] for one in page)
        wants = len(page) == PAGE
    study = replace(arrived_of(ris, row), others=await _others(ris, study_uid))
    rejected = "instances-rejected" in event.kinds
    return Looked(study, count, frozenset(uids) or None, quiet, images, rejected)


async def _images(ris: Ris, asked: Mapping[str, str]) -> int:
    """How many objects of a study are images: not what readers made of them, and we of their reports."""
    series = await ris.archive.search("series", asked, limit=PAGE)
    of = [one for one in series if one.get("Modality", "") not in NOT_IMAGES]
    return sum(int(one.get("NumberOfSeriesRelatedInstances") or 0) for one in of)


async def _others(ris: Ris, study_uid: str) -> tuple[Named, ...]:
    """Whom the objects of a study name, where they do not agree."""
    return tuple(
        Named(
            patient_id=one.get("PatientID", ""),
            issuer=one.get("IssuerOfPatientID", ""),
            name=one.get("PatientName", ""),
            birth_day=one.get("PatientBirthDate", ""),
            sex=one.get("PatientSex", ""),
        )
        for one in await ris.archive.patients_named(study_uid)
    )[:OTHERS_MAX]


def _is_of_before(ris: Ris, event: Heeded, study_uid: str) -> bool:
    """Whether a study that came before there was a RIS is only said to be quiet: an index that was made anew
    has that be said again, now, of all there are."""
    if event.kinds != {STABLE}:
        return False
    with ris.reading() as view:
        return tracking.of_study(view, study_uid) is None and reconciling.mismatch_of(view, study_uid) is None


def _is_told_by_us(event: Heeded) -> bool:
    """Whether a mismatch was told by whoever looked at the study just then."""
    told = (event, *event.earlier)
    return all(
        one.kind == "study-mismatched" and one.body.get("why") not in reconciling.DOUBTED for one in told
    )


def _quiet(event: Heeded) -> bool | None:
    """Whether nothing came for a while; None when the events say nothing of it."""
    for one in (event, *reversed(event.earlier)):
        if one.kind == STABLE:
            return True
        if one.kind in CAME:
            return False
    return None


def arrived_of(ris: Ris, row: Mapping[str, str]) -> Arrived:
    """A study as the archive shows it."""
    modalities = [one for one in row.get("ModalitiesInStudy", "").split("\\") if one]
    images = [one for one in modalities if one not in NOT_IMAGES] or modalities
    return Arrived(
        study_uid=row["StudyInstanceUID"],
        patient_id=row.get("PatientID", ""),
        issuer=row.get("IssuerOfPatientID", ""),
        name=row.get("PatientName", ""),
        birth_day=row.get("PatientBirthDate", ""),
        sex=row.get("PatientSex", ""),
        accession=row.get("AccessionNumber", ""),
        modality=images[0] if images else "",
        description=row.get("StudyDescription", ""),
        study_ns=_moment(ris, row.get("StudyDate", ""), row.get("StudyTime", "")),
    )


def _moment(ris: Ris, day: str, time: str) -> int:
    try:
        digits = time.partition(".")[0].ljust(6, "0")
        return int(datetime.strptime(day + digits, "%Y%m%d%H%M%S").replace(tzinfo=ris.zone).timestamp()) * NS
    except ValueError:
        return 0


# ---------------------------------------------------------------- acting


def _came(rules: Mapping[str, Any], change: Change, event: Heeded, looked: Looked | None) -> None:
    if looked is None:
        return
    study_uid = event.body["study"]
    if looked.study is None:
        reconciling.gone(change, study_uid)
        if tracking.of_study(change, study_uid) is not None:
            tracking.stored(change, study_uid, (), quiet=None)
        return
    order = reconciling.arrived(change, looked.study, **rules)
    tracking.stored(
        change,
        study_uid,
        looked.uids,
        count=looked.count,
        quiet=looked.quiet,
        modality=looked.study.modality,
        order=order,
        images=looked.images,
        rejected=looked.rejected,
    )


_MAY_FIT: Final = frozenset(
    {"order-placed", "order-changed", "patient-changed", "patients-merged", "patients-unmerged"}
)


def _of_patient(event: Event) -> str:
    """An order mostly comes with its patient, in one message."""
    return str(event.body.get("patient") or event.cursor)


def _may_fit(rules: Mapping[str, Any], change: Change, event: Heeded) -> None:
    """An order or a patient came after the images, or changed: what did not fit may now."""
    if not change.ids(MISMATCH, "state", "open", limit=1):
        return
    bodies = [one.body for one in (*event.earlier, event)]
    for order_id in dict.fromkeys(body["order"] for body in bodies if "order" in body):
        order = change.get(ORDER, order_id)
        if order is not None:
            reconciling.look_again(change, study=order.study_uid, accession=order.accession, **rules)
    names = ("patient", "survivor", "merged")
    for one in dict.fromkeys(body[name] for body in bodies for name in names if body.get(name)):
        who, _ = resolve(change, one)
        for relative in family(change, who):
            numbers = _numbers(change, relative)
            for number in numbers:
                reconciling.look_again(change, number=number, **rules)


_NOT_DONE: Final = frozenset(
    {"order-cancelled", "order-rejected", "order-replaced", "order-held", "order-unscheduled"}
)


def _not_expected(change: Change, event: Event) -> None:
    order = change.get(ORDER, event.body["order"])
    if order is not None and order.state not in ("scheduled", "in-progress", "completed"):
        tracking.expect_no_more(change, event.body["order"])


def _numbers(change: Change, patient_id: str) -> list[str]:
    patient = change.get(PATIENT, patient_id)
    if patient is None:
        return []
    return list(dict.fromkeys(one.value for one in (*patient.identifiers, *patient.former)))


def _performed_without_word(change: Change, event: Event) -> None:
    """Images of a modality that reports nothing: its step has begun with the first, and is done when nothing
    more comes. What a modality reports of it later goes on from there."""
    study_uid = event.body["study"]
    found = tracking.of_study(change, study_uid)
    if found is None or not found[1].order or tracking.in_doubt(change, study_uid):
        return
    order_id, tracked = found[1].order, found[1]
    order = change.get(ORDER, order_id)
    said = change.first(PERFORMED, "study", study_uid) or change.first(PERFORMED, "order", order_id)
    if order is None or said is not None or order.state == "completed" or not tracked.stored:
        return
    ordering.images_began(change, WITHOUT_WORD, order_id)
    of_order = steps.of_order(change, order_id)
    for step_id, step in of_order:
        if step.state in ("scheduled", "arrived", "ready"):
            steps.act(change, WITHOUT_WORD, step_id, "start")
    if tracked.state == "stored":
        return
    for step_id, _ in of_order:
        if steps.get(change, step_id).state == "started":
            steps.act(change, WITHOUT_WORD, step_id, "complete")
    ordering.images_ended(change, WITHOUT_WORD, order_id, completed=True)
    scheduling.fulfilled(change, WITHOUT_WORD, order_id)


def _wrong_entry(change: Change, event: Event) -> None:
    """A technologist chose the wrong entry of the worklist and said so (IHE RAD-TF 1:3.4.5): somebody has to
    say whose the images are that came with it."""
    performed = change.get(PERFORMED, event.body["performed"])
    reason = performed.discontinued_for if performed is not None else None
    if performed is None or reason is None or reason.value != WRONG_ENTRY:
        return
    if tracking.of_study(change, performed.study_uid) is not None:
        try:
            reconciling.doubt(change, SYSTEM, performed.study_uid, why="wrong-worklist-entry")
        except NotNowError:
            return  # somebody has decided, or read it, already


_READ: Final = {
    "report-assigned": False,
    "report-preliminary": False,
    "report-signed": True,
    "report-corrected": True,
    "report-addended": True,
}


def _reported(change: Change, event: Event) -> None:
    if reporting.of_study(change, event.body["study"]) is not None:  # else it was withdrawn meanwhile
        tracking.reported(change, event.body["study"], final=_READ[event.kind])
