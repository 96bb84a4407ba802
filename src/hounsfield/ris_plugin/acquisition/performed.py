"""Performed procedure steps, as modalities report them: begun by N-CREATE, changed by N-SETs, ended for good.

PS3.4 F.7.2: a step is created IN PROGRESS, and COMPLETED or DISCONTINUED is final. What it says of the
scheduled steps that it performs (one, several grouped, none) moves those and their orders along; what it says
of its series is what the archive is then expected to have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from msgspec import structs
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import tracking
from hounsfield.ris_plugin.acquisition.matching import who_has
from hounsfield.ris_plugin.acquisition.performed_orders import begun, ended
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.errors import RisError
from hounsfield.ris_plugin.patients import owner, resolve
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.performed import PERFORMED, Dose, Performed, PerformedSeries
from hounsfield.ris_plugin.records.schedule import STEP, Step
from hounsfield.ris_plugin.schedule import steps
from hounsfield.ris_plugin.states import SAME, Machine, Transition

__all__ = ["MACHINE", "MppsError", "create", "get", "series_of", "update"]

MACHINE: Final = Machine(
    "performed step",
    ("in-progress", "completed", "discontinued"),
    (
        Transition("update", ("in-progress",), SAME, (Role.MODALITY,)),
        Transition("complete", ("in-progress",), "completed", (Role.MODALITY, Role.TECHNOLOGIST)),
        Transition("discontinue", ("in-progress",), "discontinued", (Role.MODALITY, Role.TECHNOLOGIST)),
    ),
)
STATUS: Final = {"IN PROGRESS": "in-progress", "COMPLETED": "completed", "DISCONTINUED": "discontinued"}
"""(0040,0252), PS3.3 C.4.14."""

PROCESSING_FAILURE, DUPLICATE, NO_SUCH_INSTANCE = 0x0110, 0x0111, 0x0112  # PS3.7 C
INVALID_VALUE, MISSING_ATTRIBUTE, MISSING_VALUE = 0x0106, 0x0120, 0x0121
RESOURCE_LIMITATION = 0x0213
FINAL_ERROR_ID: Final = 0xA710
"""PS3.4 F.7.2.2.2: the performed procedure step object may no longer be updated."""

SERIES_MAX: Final = 10_000
INSTANCES_MAX: Final = 50_000
"""A record has at most some megabytes."""
INSTANCES_IN_DATASET_MAX: Final = 10_000
"""Of a step with more, the references are kept once: by UID in ``series``, and not in ``dataset`` too."""
_REFERENCES: Final = ("ReferencedImageSequence", "ReferencedNonImageCompositeSOPInstanceSequence")

_DOSES: Final = (
    "TotalTimeOfFluoroscopy", "TotalNumberOfExposures", "DistanceSourceToDetector",
    "DistanceSourceToEntrance", "EntranceDose", "EntranceDoseInmGy", "ExposedArea",
    "ImageAndFluoroscopyAreaDoseProduct",
)  # fmt: skip
_NOT_BY_SET: Final = frozenset({
    "ScheduledStepAttributesSequence", "PatientName", "PatientID", "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence", "PatientBirthDate", "PatientSex", "ReferencedPatientSequence",
    "AdmissionID", "IssuerOfAdmissionIDSequence", "PerformedProcedureStepID", "PerformedStationAETitle",
    "PerformedStationName", "PerformedLocation", "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime", "Modality", "StudyID",
})  # fmt: skip
"""Given by N-CREATE, not to be changed (PS3.4 Table F.7.2-1). Who says the same again is heard."""


class MppsError(RisError):
    """A request that the standard refuses: ``code`` is the DIMSE status, ``tags`` the attributes at fault."""

    status = 409

    def __init__(
        self, code: int, message: str, *, tags: Sequence[int] = (), error_id: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.tags = tuple(tags)
        self.error_id = error_id


# ---------------------------------------------------------------- finding


def get(view: View, sop_uid: str) -> tuple[str, Performed]:
    """The performed step of a SOP Instance UID. MppsError (no such instance)."""
    found = view.first(PERFORMED, "sop", sop_uid)
    if found is None:
        raise MppsError(NO_SUCH_INSTANCE, "there is no such performed procedure step: N-CREATE comes first")
    return found


def dataset(performed: Performed) -> Dataset:
    """All that is known of a performed step."""
    return Dataset.from_json(performed.dataset.decode())


# ---------------------------------------------------------------- N-CREATE, N-SET


def create(
    change: Change,
    actor: Actor,
    zone: ZoneInfo,
    sop_uid: str,
    said: Dataset,
    *,
    issuer: str = "",
    series: Sequence[PerformedSeries] | None = None,
) -> str:
    """Begin a performed step (N-CREATE); its record's id. MppsError.

    Attributes of type 1 are asked for (Table F.7.2-1); devices that leave out empty ones of type 2 are heard
    all the same. ``issuer``: of patients' ids that name none. ``series``: what :func:`series_of` makes of it,
    for who has asked before others wait for it.
    """
    if change.first(PERFORMED, "sop", sop_uid) is not None:
        raise MppsError(DUPLICATE, "there is such a performed procedure step already")
    _require(said, "PerformedProcedureStepStatus", "PerformedProcedureStepID", "PerformedStationAETitle",
             "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "Modality",
             "ScheduledStepAttributesSequence")  # fmt: skip
    for item in said.ScheduledStepAttributesSequence:
        _require(item, "StudyInstanceUID")
    if said.PerformedProcedureStepStatus != "IN PROGRESS":
        raise MppsError(
            INVALID_VALUE, "a performed step begins IN PROGRESS", tags=[_tag("PerformedProcedureStepStatus")]
        )
    who = _who(change, said, issuer)
    scheduled = [one for one in _scheduled(change, said, who) if _is_theirs(change, one[1].order, who)]
    named = (*(step.order for _, step in scheduled), *_orders_of(change, said))
    orders = tuple(dict.fromkeys(one for one in named if one and _is_theirs(change, one, who)))
    of_these = {step.order for _, step in scheduled}
    scheduled += [one for order in orders if order not in of_these for one in steps.of_order(change, order)]
    patient = _patient(change, said, orders, issuer)
    performed = Performed(
        sop_uid=sop_uid,
        state=MACHINE.initial,
        dataset=b"",
        number=str(said.PerformedProcedureStepID),
        station_ae=str(said.PerformedStationAETitle),
        modality=str(said.Modality),
        study_uid=_study(said),
        patient=patient,
        steps=tuple(step_id for step_id, _ in scheduled),
        orders=orders,
        started_ns=_moment(said, "PerformedProcedureStepStart", zone) or change.now_ns,
    )
    performed_id = change.new_id()
    performed = _with(performed, said, said, series)
    change.put(PERFORMED, performed_id, performed)
    begun(change, actor, performed_id, scheduled, orders)
    tracking.performed(change, performed_id, performed)
    _say(change, "performed-created", actor, performed_id, performed)
    return performed_id


def update(
    change: Change,
    actor: Actor,
    zone: ZoneInfo,
    sop_uid: str,
    said: Dataset,
    *,
    series: Sequence[PerformedSeries] | None = None,
) -> str:
    """Change a performed step, or end it (N-SET); its record's id. MppsError. ``series``: as for create."""
    performed_id, performed = get(change, sop_uid)
    if MACHINE.is_final(performed.state):
        raise MppsError(
            PROCESSING_FAILURE,
            "the performed procedure step may no longer be updated",
            error_id=FINAL_ERROR_ID,
        )
    known = dataset(performed)
    wrong = [element.tag for element in said if element.keyword in _NOT_BY_SET and not _same(element, known)]
    if wrong:
        raise MppsError(INVALID_VALUE, "what N-CREATE said of this cannot be changed", tags=wrong)
    state = performed.state
    if "PerformedProcedureStepStatus" in said:
        state = STATUS.get(str(said.PerformedProcedureStepStatus), "")
        if not state:
            raise MppsError(
                INVALID_VALUE,
                "a status is IN PROGRESS, COMPLETED or DISCONTINUED",
                tags=[_tag("PerformedProcedureStepStatus")],
            )
    known.update(said)
    changed = _with(performed, said, known, series)
    if state != "in-progress":
        _require(known, "PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime")
        if state == "completed" and not changed.series:
            _require(known, "PerformedSeriesSequence")
        action = "complete" if state == "completed" else "discontinue"
        MACHINE.after(performed.state, action, actor)
        changed = structs.replace(
            changed, state=state, ended_ns=_moment(known, "PerformedProcedureStepEnd", zone) or change.now_ns
        )
    change.put(PERFORMED, performed_id, changed)
    if state != "in-progress":
        ended(change, actor, performed_id, changed, done=state == "completed")
    tracking.performed(change, performed_id, changed)
    event = "performed-updated" if state == "in-progress" else "performed-ended"
    _say(change, event, actor, performed_id, changed)
    return performed_id


# ---------------------------------------------------------------- what is said


def _same(element: DataElement, known: Dataset) -> bool:
    """Whether a request says of an attribute what is known of it; nothing, of what nothing is known of."""
    if element.tag not in known:
        return bool(element.is_empty)
    said, held = (Dataset({element.tag: of}) for of in (element, known[element.tag]))
    return bool(said.to_json() == held.to_json())


def _with(
    performed: Performed, said: Dataset, known: Dataset, read: Sequence[PerformedSeries] | None
) -> Performed:
    """``performed`` with what a request says; ``known``: all attributes as they are then."""
    series = performed.series
    if "PerformedSeriesSequence" in said:
        series = tuple(series_of(said) if read is None else read)
    reason = performed.discontinued_for
    for item in known.get("PerformedProcedureStepDiscontinuationReasonCodeSequence") or ():
        reason = _code(item)
    return structs.replace(
        performed,
        dataset=_without_references(known, series).to_json().encode(),
        series=series,
        doses=tuple(
            Dose(name=name, value=float(known[name].value))
            for name in _DOSES
            if name in known and known[name].value not in (None, "") and known[name].VM == 1
        ),
        discontinued_for=reason,
    )


def _without_references(known: Dataset, series: Sequence[PerformedSeries]) -> Dataset:
    """``known`` as it is kept: without the references of a step that has very many."""
    if sum(len(one.instances) for one in series) <= INSTANCES_IN_DATASET_MAX:
        return known
    kept = Dataset(known)
    kept.PerformedSeriesSequence = [
        Dataset({element.tag: element for element in item if element.keyword not in _REFERENCES})
        for item in known.get("PerformedSeriesSequence") or ()
    ]
    return kept


def series_of(said: Dataset) -> Iterator[PerformedSeries]:
    """The series that a request names, with their objects: 70 ms for ten thousand. MppsError."""
    items = said.get("PerformedSeriesSequence") or ()
    if len(items) > SERIES_MAX:
        raise MppsError(
            RESOURCE_LIMITATION, f"more than {SERIES_MAX} series", tags=[_tag("PerformedSeriesSequence")]
        )
    count = 0
    for item in items:
        _require(item, "SeriesInstanceUID")
        uid = str(item.SeriesInstanceUID)
        instances = tuple(
            str(one.ReferencedSOPInstanceUID)
            for name in _REFERENCES
            for one in item.get(name) or ()
            if "ReferencedSOPInstanceUID" in one
        )
        count += len(instances)
        if count > INSTANCES_MAX:
            raise MppsError(
                RESOURCE_LIMITATION,
                f"more than {INSTANCES_MAX} objects",
                tags=[_tag("ReferencedImageSequence")],
            )
        yield PerformedSeries(
            uid=uid,
            instances=instances,
            description=str(item.get("SeriesDescription", "") or ""),
            protocol=str(item.get("ProtocolName", "") or ""),
        )


def _scheduled(view: View, said: Dataset, who: str) -> Iterator[tuple[str, Step]]:
    """The scheduled steps that are performed: by their number, else all of the order that is named."""
    seen: set[str] = set()
    for item in said.ScheduledStepAttributesSequence or ():
        number = str(item.get("ScheduledProcedureStepID", "") or "")
        accession = str(item.get("AccessionNumber", "") or "")
        study_uid = str(item.get("StudyInstanceUID", "") or "")
        found = view.first(STEP, "number", number) if number else None
        if found is not None and not (
            study_uid in ("", found[1].study_uid)
            or (accession and accession == found[1].accession)
            or (who and resolve(view, found[1].patient)[0] == who)  # in a study of the modality's own
        ):
            found = None  # a number of another system's worklist
        if found is not None:
            named = [found]
        else:
            named = []
            for lookup, text in (("accession", accession), ("study", study_uid)):
                if text and not named:  # an accession number may have been typed wrong
                    named = [one for one in view.find(STEP, lookup, text) if one[1].state != "withdrawn"]
        for step_id, step in named:
            if step_id not in seen:
                seen.add(step_id)
                yield step_id, step


def _orders_of(view: View, said: Dataset) -> Iterator[str]:
    """Orders that are named by accession number or study although no step of them was scheduled."""
    for item in said.ScheduledStepAttributesSequence or ():
        accession = str(item.get("AccessionNumber", "") or "")
        study_uid = str(item.get("StudyInstanceUID", "") or "")
        found = view.first(ORDER, "accession", accession) if accession else None
        found = found or (view.first(ORDER, "study", study_uid) if study_uid else None)
        if found is not None:
            yield found[0]
        elif study_uid and not tracking.in_doubt(view, study_uid):
            tracked = tracking.of_study(view, study_uid)  # its images were here first, and are somebody's
            yield tracked[1].order if tracked is not None else ""


def _who(view: View, said: Dataset, issuer: str) -> str:
    """Whom the modality names, as who that is now; "" for nobody that we know."""
    number = str(said.get("PatientID", "") or "").strip()
    found = who_has(view, number, str(said.get("IssuerOfPatientID", "") or ""), issuer)
    return "" if found is None else found[0]


def _is_theirs(view: View, order_id: str, who: str) -> bool:
    """Whether an order is of whom the modality names. Another patient's order is not under way, whatever
    accession number was typed: it would be done, and its patient forgotten."""
    order = view.get(ORDER, order_id) if who and order_id else None
    return order is None or resolve(view, order.patient)[0] == who


def _patient(view: View, said: Dataset, orders: Sequence[str], issuer: str) -> str:
    number = str(said.get("PatientID", "") or "").strip()
    named = owner(view, number, str(said.get("IssuerOfPatientID", "") or "") or issuer) if number else None
    if named is not None:
        return named
    for order_id in orders:
        order = view.get(ORDER, order_id)
        if order is not None:
            return resolve(view, order.patient)[0]
    return ""


def _study(said: Dataset) -> str:
    for item in said.ScheduledStepAttributesSequence or ():
        uid = str(item.get("StudyInstanceUID", "") or "")
        if uid:
            return uid
    return ""


def _require(said: Dataset, *names: str) -> None:
    missing = [_tag(name) for name in names if name not in said]
    if missing:
        raise MppsError(
            MISSING_ATTRIBUTE, "an attribute is missing that is needed (PS3.4 F.7.2-1)", tags=missing
        )
    empty = [_tag(name) for name in names if said[name].is_empty]
    if empty:
        raise MppsError(MISSING_VALUE, "an attribute that is needed is empty (PS3.4 F.7.2-1)", tags=empty)


def _moment(said: Dataset, name: str, zone: ZoneInfo) -> int:
    """The moment of a date and a time in the department's time zone; 0 for none that can be read."""
    day, time = str(said.get(f"{name}Date", "") or ""), str(said.get(f"{name}Time", "") or "")
    digits = time.partition(".")[0].ljust(6, "0")
    try:
        moment = datetime.strptime(day + digits, "%Y%m%d%H%M%S").replace(tzinfo=zone)
    except ValueError:
        return 0
    return int(moment.timestamp()) * NS


def _code(item: Dataset) -> Code:
    return Code(
        value=str(item.get("CodeValue", "") or ""),
        scheme=str(item.get("CodingSchemeDesignator", "") or ""),
        meaning=str(item.get("CodeMeaning", "") or ""),
    )


def _tag(name: str) -> int:
    tag = tag_for_keyword(name)
    assert tag is not None
    return tag


def _say(change: Change, event: str, actor: Actor, performed_id: str, performed: Performed) -> None:
    change.say(
        event,
        {
            "performed": performed_id,
            "study": performed.study_uid,
            "orders": list(performed.orders),
            "state": performed.state,
            "actor": actor.person,
        },
    )
