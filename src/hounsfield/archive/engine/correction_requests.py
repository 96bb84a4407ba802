"""What is asked for becomes a correction: checked against what is shown now, and told what it must remember.

Blocking; each function here is a plan that :class:`~hounsfield.archive.index.correcting.Corrections` may run
several times. Texts of errors name no values: they may be logged.
"""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from hounsfield.archive.dicom.attributes import (
    STUDY_INSTANCE_UID,
    STUDY_LEVEL,
    VALUE_BYTES_MAX,
    uid_is_valid,
)
from hounsfield.archive.dicom.dictionary import KEYWORD_OF, vr_of
from hounsfield.archive.dicom.text import PROSE_VRS, trim
from hounsfield.archive.index import corrections as overlay
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.correcting import CorrectionError, Corrections
from hounsfield.archive.index.corrections import (
    DEMOGRAPHICS,
    ISSUER,
    MERGE,
    MOVE_SERIES,
    MOVE_STUDY,
    PATIENT_ID,
    SET_PATIENT,
    SET_STUDY,
    SPLIT,
    PatientRef,
    View,
    host_of,
    patient_of,
)
from hounsfield.archive.index.named_patients import names_others
from hounsfield.archive.index.rows import Attributes, CorrectionRow, StudyRow
from hounsfield.archive.index.tables import INSTANCE, STUDY_ID_BYTES
from hounsfield.storage_backends.api import Snapshot

INSTANCES_MAX = 10_000  # of one split: they are looked through whenever an object of their study comes
REASON_CHARACTERS_MAX = 1024

_LENGTHS = {"LO": 64, "SH": 16, "PN": 64, "CS": 16, "DS": 16, "LT": VALUE_BYTES_MAX // 4, "UI": 64}
_PATTERNS = {
    "AS": re.compile(r"\d{3}[DWMY]", re.ASCII),
    "CS": re.compile(r"[A-Z0-9_ ]{1,16}", re.ASCII),
    "DS": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", re.ASCII),
}
_SEVERAL = frozenset({0x00101000, 0x00101001, 0x00081060, 0x00081080, 0x00081048})  # may have several values


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants corrected; see :mod:`hounsfield.archive.index.corrections` for the kinds.

    ``values`` are texts by tag, "" empties. ``series`` and ``instances`` are UIDs; for a split one or the
    other. ``even_if_unknown``: for patients of whom nothing is here yet.
    """

    kind: str
    actor: str
    reason: str
    patient: PatientRef = ("", "")
    study: str = ""
    series: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()
    to_patient: PatientRef = ("", "")
    to_study: str = ""
    values: Mapping[int, str] = field(default_factory=dict)
    even_if_unknown: bool = False


class CorrectionPlanner:
    """Makes a correction of one request."""

    def __init__(self, catalog: Catalog, corrections: Corrections) -> None:
        self._catalog = catalog
        self._corrections = corrections
        self._plans = {
            SET_PATIENT: self._set_patient,
            SET_STUDY: self._set_study,
            MERGE: self._merge,
            MOVE_STUDY: self._move_study,
            MOVE_SERIES: self._move_series,
            SPLIT: self._split,
        }
        self._new_uids: dict[str, str] = {}

    def plan(self, snapshot: Snapshot, number: int, request: Request, at_ns: int) -> CorrectionRow:
        """The correction that a request asks for. CorrectionError when it cannot be."""
        if not request.reason.strip() or len(request.reason) > REASON_CHARACTERS_MAX:
            raise CorrectionError("say why: a correction needs a reason, of at most 1024 characters")
        view = View(self._catalog, snapshot)
        return self._plans[request.kind](
            snapshot,
            view,
            request,
            CorrectionRow(
                number=number,
                kind=request.kind,
                at_ns=at_ns,
                actor=request.actor,
                reason=request.reason.strip(),
                patient=request.patient if request.kind in overlay.OF_PATIENT else ("", ""),
                study="" if request.kind in overlay.OF_PATIENT else request.study,
                values=checked(request.values),
            ),
        )

    # ------------------------------------------------------------ attributes

    def _set_patient(
        self, snapshot: Snapshot, view: View, request: Request, row: CorrectionRow
    ) -> CorrectionRow:
        self._known_patient(snapshot, request.patient, request.even_if_unknown)
        if not row.values or not row.values.keys() <= DEMOGRAPHICS:
            raise CorrectionError(f"of a patient these can be set: {_names(DEMOGRAPHICS)}")
        new = patient_of({PATIENT_ID: request.patient[0], ISSUER: request.patient[1], **row.values})
        if not new[0]:
            raise CorrectionError("a patient's id cannot be emptied; empty it in one study")
        if new != request.patient and self._has_studies(snapshot, new):
            raise CorrectionError("there is a patient with that id already: use `fix merge`")
        self._not_merged(view, request.patient)
        return row

    def _set_study(
        self, snapshot: Snapshot, view: View, request: Request, row: CorrectionRow
    ) -> CorrectionRow:
        del view
        self._study(snapshot, request.study)
        allowed = STUDY_LEVEL.keys() - {STUDY_INSTANCE_UID}
        if not row.values or not row.values.keys() <= allowed:
            raise CorrectionError(f"of a study these can be set: {_names(allowed)}")
        return row

    # ------------------------------------------------------------ patients

    def _merge(self, snapshot: Snapshot, view: View, request: Request, row: CorrectionRow) -> CorrectionRow:
        source, target = request.patient, request.to_patient
        if source == target:
            raise CorrectionError("a patient cannot be merged into itself")
        self._known_patient(snapshot, source, request.even_if_unknown)
        self._not_merged(view, source)
        return self._to_patient(snapshot, view, request, row)

    def _move_study(
        self, snapshot: Snapshot, view: View, request: Request, row: CorrectionRow
    ) -> CorrectionRow:
        study = self._study(snapshot, request.study)
        if patient_of(study.attributes) == request.to_patient and not names_others(study):
            raise CorrectionError("the study is that patient's already")
        return self._to_patient(snapshot, view, request, row)

    def _to_patient(
        self, snapshot: Snapshot, view: View, request: Request, row: CorrectionRow
    ) -> CorrectionRow:
        """``row`` with what the patient is who gets the studies."""
        target = request.to_patient
        self._not_merged(view, target)
        if not row.values.keys() <= DEMOGRAPHICS - {PATIENT_ID, ISSUER}:
            raise CorrectionError(f"of a patient these can be told: {_names(DEMOGRAPHICS)}")
        values: Attributes = {}
        found = self._demographics(snapshot, view, target)
        if found is not None:
            values = {tag: found.get(tag, "") for tag in sorted(DEMOGRAPHICS)}
        else:
            self._known_patient(snapshot, target, request.even_if_unknown or bool(row.values))
        values |= {**row.values, PATIENT_ID: target[0], ISSUER: target[1]}
        return _with(row, to_patient=target, values=values)

    def _demographics(self, snapshot: Snapshot, view: View, patient: PatientRef) -> Attributes | None:
        """Who the patient is by the newest study; without what was set for the patient, which is added."""
        for study_id in self._corrections.studies_of(snapshot, patient):
            study = self._catalog.study_by_id(snapshot, study_id)
            if study is None:
                continue
            if not study.received:
                return study.attributes
            groups = {(one.study_uid, one.path): one.attributes for one in study.received}
            host = host_of(study.uid, groups)

            def is_for_patient(one: CorrectionRow) -> bool:
                return one.kind == SET_PATIENT and one.patient == patient

            bare = view.chain(host, groups[host], is_for_patient).attributes
            return bare if patient_of(bare) == patient else study.attributes
        return None

    # ------------------------------------------------------------ studies

    def _move_series(
        self, snapshot: Snapshot, view: View, request: Request, row: CorrectionRow
    ) -> CorrectionRow:
        del view
        study = self._study(snapshot, request.study)
        if not request.series:
            raise CorrectionError("say which series is to be moved")
        for uid in request.series:
            self._series(snapshot, study, uid)
        return self._to_study(snapshot, request, _with(row, series={uid: uid for uid in request.series}))

    def _split(self, snapshot: Snapshot, view: View, request: Request, row: CorrectionRow) -> CorrectionRow:
        del view
        study = self._study(snapshot, request.study)
        if bool(request.series) == bool(request.instances):
            raise CorrectionError("say which series go, or which instances, not both")
        if len(request.instances) > INSTANCES_MAX:
            raise CorrectionError(f"at most {INSTANCES_MAX} instances can be split off at once; split series")
        series = {uid: uid for uid in request.series}
        for uid in request.series:
            self._series(snapshot, study, uid)
        for sop_uid in request.instances:
            source = self._series_of(snapshot, study, sop_uid)
            series.setdefault(source, self._new_uid(source))
        return self._to_study(
            snapshot, request, _with(row, series=series, instances=tuple(dict.fromkeys(request.instances)))
        )

    def _to_study(self, snapshot: Snapshot, request: Request, row: CorrectionRow) -> CorrectionRow:
        """``row`` with the study that gets the objects, and what is shown of it now."""
        if not row.values.keys() <= STUDY_LEVEL.keys() - {STUDY_INSTANCE_UID}:
            raise CorrectionError(f"of a study these can be set: {_names(STUDY_LEVEL.keys())}")
        uid = request.to_study or self._new_uid("")
        if uid == request.study:
            raise CorrectionError("they are in that study already")
        target = self._catalog.study(snapshot, uid)
        if target is None:
            if not uid_is_valid(uid):
                raise CorrectionError("the new study's UID is no UID: digits and dots, at most 64")
            return _with(row, to_study=uid)
        if row.values:
            raise CorrectionError("that study exists: its attributes hold; correct them with `fix study`")
        values = {tag: target.attributes.get(tag, "") for tag in sorted(STUDY_LEVEL)}
        del values[STUDY_INSTANCE_UID]
        return _with(row, to_study=uid, values=values)

    def _new_uid(self, what: str) -> str:
        """A UID of our own (PS3.5 B.2), the same however often the request is planned."""
        return self._new_uids.setdefault(what, f"2.25.{secrets.randbits(128)}")

    # ------------------------------------------------------------ what there is

    def _study(self, snapshot: Snapshot, uid: str) -> StudyRow:
        row = self._catalog.study(snapshot, uid)
        if row is None:
            raise CorrectionError("there is no such study in this archive")
        return row

    def _series(self, snapshot: Snapshot, study: StudyRow, uid: str) -> None:
        key = self._catalog.series_key(study.uid, uid)
        if self._catalog.series_by_key(snapshot, key) is None:
            raise CorrectionError("there is no such series in this study")

    def _series_of(self, snapshot: Snapshot, study: StudyRow, sop_uid: str) -> str:
        study_id = self._catalog.study_id(study.uid)
        for key in self._catalog.places(snapshot, "instance", sop_uid):
            instance = key + self._catalog.sop_hash(sop_uid)
            if key[:STUDY_ID_BYTES] == study_id and snapshot.get(INSTANCE, instance) is not None:
                series = self._catalog.series_by_key(snapshot, key)
                if series is not None:
                    return series.uid
        raise CorrectionError("there is no such instance in this study")

    def _has_studies(self, snapshot: Snapshot, patient: PatientRef) -> bool:
        return next(iter(self._corrections.studies_of(snapshot, patient)), None) is not None

    def _known_patient(self, snapshot: Snapshot, patient: PatientRef, anyway: bool) -> None:
        if not patient[0]:
            raise CorrectionError("a patient is named by an id; correct studies without one by themselves")
        if not anyway and not self._has_studies(snapshot, patient):
            raise CorrectionError(
                "nothing of this patient is here; check id and issuer, or say that it is meant even so"
            )

    def _not_merged(self, view: View, patient: PatientRef) -> None:
        for row in reversed(view.of_patient(patient)):
            if row.kind == MERGE:
                raise CorrectionError(
                    f"this patient was merged into another by correction {row.number}: "
                    "take that one, or take the merge back"
                )


def _with(row: CorrectionRow, **changes: object) -> CorrectionRow:
    from msgspec import structs

    return structs.replace(row, **changes)


def _names(tags: object) -> str:
    return ", ".join(sorted(KEYWORD_OF[tag] for tag in tags))  # type: ignore[attr-defined]


def checked(values: Mapping[int, str]) -> Attributes:
    """``values`` as they will stand in data sets. CorrectionError for one that its VR does not allow."""
    return {tag: _checked(tag, text) for tag, text in sorted(values.items())}


def _checked(tag: int, text: str) -> str:
    vr, name = vr_of(tag), KEYWORD_OF.get(tag, f"{tag:08X}")
    text = trim(text, vr)
    if not text:
        return ""
    allowed = "\r\n\f" if vr in PROSE_VRS else ""
    if any((not c.isprintable() and c not in allowed) or "\ud800" <= c <= "\udfff" for c in text):
        raise CorrectionError(f"{name}: control characters cannot stand in it")
    values = [text] if vr in PROSE_VRS else text.split("\\")
    if len(values) > 1 and tag not in _SEVERAL:
        raise CorrectionError(f"{name} has one value; a backslash cannot stand in it")
    for value in values:
        if not _is_sound(vr, value):
            raise CorrectionError(f"{name}: this is no value of VR {vr} (PS3.5 6.2)")
    return text


def _is_sound(vr: str, value: str) -> bool:
    if vr == "PN":
        groups = value.split("=")
        return len(groups) <= 3 and all(len(group) <= 64 and group.count("^") <= 4 for group in groups)
    if vr == "DA":
        try:
            return len(value) == 8 and bool(datetime.date.fromisoformat(value))
        except ValueError:
            return False
    if vr == "UI":
        return uid_is_valid(value)
    pattern = _PATTERNS.get(vr)
    return (pattern is None or bool(pattern.fullmatch(value))) and len(value) <= _LENGTHS.get(vr, 64)
