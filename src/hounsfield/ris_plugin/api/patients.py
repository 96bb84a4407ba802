"""Patients over the API: search, register, change, merge, take a merge back, and what there was."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import patients
from hounsfield.ris_plugin.api import sight
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Limit, Nothing, page_of
from hounsfield.ris_plugin.api.models import changes_of, given, item, model, new_of, row_of
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import MERGE, PATIENT, Identifier, Merge, Patient
from hounsfield.ris_plugin.records.reports import REPORT
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, Appointment

__all__ = ["ENDPOINTS"]

TAG: Final = "Patients"
PatientItem: Final[Any] = item(Patient)
MergeItem: Final[Any] = item(Merge)
NewPatient: Final[Any] = new_of(Patient, "former", "state", "merged_into", "provisional")
PatientChanges: Final[Any] = changes_of(
    Patient,
    "name", "other_names", "birth_day", "sex", "address", "phones", "language", "weight_kg", "size_m",
    "insurances", "allergies", "contacts", "alerts", "pregnancy", "visit", "confidential", "provisional",
    "died_ns",
)  # fmt: skip


class Search(Nothing, frozen=True, kw_only=True):
    """``name``: beginnings of its words, in any order."""

    name: str = ""
    number: str = ""
    birth_day: str = ""
    limit: Limit = 50


class Provisional(Nothing, frozen=True, kw_only=True):
    """An emergency of whom nobody knows the name yet."""

    sex: str = ""
    note: str = ""


class Renumbering(Nothing, frozen=True, kw_only=True):
    """One number in place of another."""

    old: model(Identifier)  # type: ignore[valid-type]
    new: model(Identifier)  # type: ignore[valid-type]


class NewMerge(Nothing, frozen=True, kw_only=True):
    """That two are one: what belongs to ``merged`` is shown as the survivor's."""

    survivor: str
    merged: str
    reason: str


class Undo(Nothing, frozen=True, kw_only=True):
    """Why it is taken back."""

    reason: str


class ReportLine(msgspec.Struct, frozen=True, kw_only=True):
    """A report in a patient's history, without its text."""

    id: str
    number: str
    state: str
    study_uid: str
    accession: str
    modality: str
    body_part: str


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of a patient, and of those that were merged into it, by when it was."""

    orders: tuple[item(Order), ...]  # type: ignore[valid-type]
    appointments: tuple[item(Appointment), ...]  # type: ignore[valid-type]
    reports: tuple[ReportLine, ...]
    merges: tuple[item(Merge), ...]  # type: ignore[valid-type]


def search(view: View, ask: Ask) -> Any:
    """Patients that match. A referrer, who places orders, has to know the number and the day of birth."""
    q: Search = ask.query
    if sight.sees_all(ask.actor):
        found = patients.search(view, name=q.name, number=q.number, birth_day=q.birth_day, limit=q.limit)
    else:
        if not q.number or not q.birth_day:
            raise ForbiddenError("who refers finds a patient by number and day of birth together")
        found = patients.search(view, number=q.number, birth_day=q.birth_day, limit=q.limit)
        # Also that nobody was found: who tries day after day for a number is seen to do so.
        ask.noted += [("referrer-searched", key) for key, _ in found] or [("referrer-searched", "")]
        found = [
            (key, Patient(identifiers=one.identifiers, name=one.name, birth_day=one.birth_day, sex=one.sex))
            for key, one in found
        ]
    items = tuple(ask.item(view, PATIENT, key, one) for key, one in found)
    return page_of(PatientItem)(items=items)


def register(change: Change, ask: Ask) -> Any:
    """A new patient; without an identifier it gets our next number."""
    patient = row_of(ask.body, ask.ris.zone)
    patient_id = patients.register(change, ask.actor, patient, issuer=ask.ris.settings.issuer)
    return get_of(change, ask, patient_id)


def register_provisional(change: Change, ask: Ask) -> Any:
    """A patient under a number of the moment."""
    patient_id = patients.register_provisional(
        change, ask.actor, issuer=ask.ris.settings.issuer, sex=ask.body.sex, note=ask.body.note
    )
    return get_of(change, ask, patient_id)


def get_of(view: View, ask: Ask, patient_id: str) -> Any:
    """A patient's record."""
    return ask.item(view, PATIENT, *ask.open(view, patient_id))


def get(view: View, ask: Ask) -> Any:
    """The patient, or whom it was merged into."""
    return get_of(view, ask, sight.patient(view, ask.actor, ask.path["patient"])[0])


def change_patient(change: Change, ask: Ask) -> Any:
    """Change what is given."""
    fields = given(ask.body, ask.ris.zone)
    if not fields:
        raise InvalidError("nothing is changed")
    patients.update(change, ask.actor, ask.path["patient"], **fields)
    return get_of(change, ask, ask.path["patient"])


def renumber(change: Change, ask: Ask) -> Any:
    """Give a patient another number."""
    zone = ask.ris.zone
    patients.change_identifier(
        change, ask.actor, ask.path["patient"], old=row_of(ask.body.old, zone), new=row_of(ask.body.new, zone)
    )
    return get_of(change, ask, ask.path["patient"])


def history(view: View, ask: Ask) -> Any:
    """What there is of a patient."""
    patient_id, _ = ask.open(view, sight.patient(view, ask.actor, ask.path["patient"])[0])
    everything = sight.sees_all(ask.actor)
    orders = [
        (key, one)
        for key, one in patients.of_patient(view, ORDER, patient_id)
        if everything or sight.is_own(ask.actor, one)
    ]
    own = {key for key, _ in orders}
    people = patients.family(view, patient_id)
    return History(
        orders=tuple(ask.item(view, ORDER, key, one) for key, one in orders),
        appointments=tuple(
            ask.item(view, APPOINTMENT, key, one)
            for key, one in patients.of_patient(view, APPOINTMENT, patient_id)
            if everything or (one.orders and own.issuperset(one.orders))
        ),
        reports=tuple(
            ReportLine(
                id=key,
                **{name: getattr(one, name) for name in ReportLine.__struct_fields__ if name != "id"},
            )
            for key, one in patients.of_patient(view, REPORT, patient_id)
            if everything or (one.versions and not own.isdisjoint(one.orders))
        ),
        merges=tuple(
            ask.item(view, MERGE, key, made)
            for person in people
            for key, made in view.find(MERGE, "survivor", person)
            if everything
        ),
    )


def merge(change: Change, ask: Ask) -> Any:
    """Make two records one person."""
    body: NewMerge = ask.body
    merge_id = patients.merge(
        change, ask.actor, survivor=body.survivor, merged=body.merged, reason=body.reason
    )
    made = change.get(MERGE, merge_id)
    assert made is not None
    return ask.item(change, MERGE, merge_id, made)


def unmerge(change: Change, ask: Ask) -> None:
    """Take a merge back."""
    patients.unmerge(change, ask.actor, ask.path["merge"], ask.body.reason)


ENDPOINTS: Final = (
    Endpoint(
        "SearchPatients", "GET", "/patients", TAG,
        "Patients by the beginnings of their names, by a number or a day of birth",
        search, page_of(PatientItem), Search, roles=sight.ANYBODY,
    ),
    Endpoint(
        "RegisterPatient", "POST", "/patients", TAG, "Register a patient",
        register, PatientItem, body=NewPatient, status=201,
    ),
    Endpoint(
        "RegisterProvisionalPatient", "POST", "/patients/provisional", TAG,
        "Register an emergency of whom nobody knows the name yet",
        register_provisional, PatientItem, body=Provisional, status=201, location="/patients",
    ),
    Endpoint(
        "GetPatient", "GET", "/patients/{patient}", TAG, "A patient, or whom it was merged into",
        get, PatientItem, roles=sight.ANYBODY,
    ),
    Endpoint(
        "ChangePatient", "PATCH", "/patients/{patient}", TAG, "Change some of what is known of a patient",
        change_patient, PatientItem, body=PatientChanges, kind=PATIENT, must_match=True,
    ),
    Endpoint(
        "RenumberPatient", "POST", "/patients/{patient}/identifier", TAG,
        "Give a patient another number in place of one",
        renumber, PatientItem, body=Renumbering, kind=PATIENT,
    ),
    Endpoint(
        "GetPatientHistory", "GET", "/patients/{patient}/history", TAG,
        "Orders, appointments, reports and merges of a patient",
        history, History, roles=sight.ANYBODY,
    ),
    Endpoint(
        "MergePatients", "POST", "/merges", TAG, "Say that two records are one person",
        merge, MergeItem, body=NewMerge, status=201,
    ),
    Endpoint(
        "UnmergePatients", "POST", "/merges/{merge}/undo", TAG, "Take a merge back exactly",
        unmerge, body=Undo, kind=MERGE,
    ),
)  # fmt: skip
