"""Legal holds: studies and patients of which nothing may be deleted, by whomever, until the hold ends.

A hold is a fact (kind ``hold``): who set it, why, since when, until when. It ends on its day or when it is
released; the released one stays listed. Facts follow one another, so of a hold and a deletion of the same
study one is first: the deletion is refused, or the hold is set on what is left.

Whatever removes objects (deletion, the end of a retention period, later also the last copy in a tier) asks
:meth:`Holds.on` with the snapshot that it plans with.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hounsfield.archive.dicom.attributes import uid_is_usable
from hounsfield.archive.index.corrections import Group, Route, View, is_hidden
from hounsfield.archive.index.rows import Attributes, Event, ObjectRow, PatientRow, StudyRow
from hounsfield.archive.index.tables import PATIENT

if TYPE_CHECKING:
    from hounsfield.archive.index.catalog import Catalog
    from hounsfield.archive.index.journal import Journal
    from hounsfield.storage_backends.api import Batch, Snapshot

FACT_HOLD = "hold"
PATIENT_ID = 0x00100020
ISSUER_OF_PATIENT_ID = 0x00100021
HOLD_ID_BYTES = 4  # typed by people; a clash is refused, not overwritten


class HoldError(Exception):
    """A hold cannot be set or released as asked; the text says why."""

    retry = False


class OnHoldError(Exception):
    """What should be deleted is on legal hold: release the holds first, if you may."""

    retry = False

    def __init__(self, holds: Iterable[str]) -> None:
        self.holds = tuple(holds)
        super().__init__(
            f"on legal hold ({', '.join(self.holds)}): nothing was deleted; "
            "`hounsfield hold list` says who set it and why"
        )


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold: on a study (``study_uid``), or on a patient (id and issuer)."""

    hold_id: str
    study_uid: str
    patient_id: str
    issuer: str
    by: str
    why: str
    since_ns: int
    until_ns: int = 0  # 0: until it is released
    released_ns: int = 0
    released_by: str = ""
    released_why: str = ""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Hold:
        """From a fact's body; what a later release added is left out."""
        return cls(**{name: body[name] for name in cls.__slots__ if name in body})

    def body(self) -> dict[str, Any]:
        """As a fact keeps it."""
        return {name: getattr(self, name) for name in self.__slots__}

    def in_force(self, now_ns: int) -> bool:
        """Whether it holds now."""
        return not self.released_ns and (not self.until_ns or now_ns < self.until_ns)


class Holds:
    """The holds in force, as one snapshot has them."""

    def __init__(self, holds: Iterable[Hold], catalog: Catalog) -> None:
        self._studies: dict[str, list[str]] = {}
        self._patients: dict[bytes, list[str]] = {}
        for hold in holds:
            if hold.study_uid:
                self._studies.setdefault(hold.study_uid, []).append(hold.hold_id)
            else:
                key = catalog.patient_key(patient_attributes(hold.patient_id, hold.issuer), "")
                self._patients.setdefault(key, []).append(hold.hold_id)

    @classmethod
    def load(cls, snapshot: Snapshot, journal: Journal, catalog: Catalog, now_ns: int) -> Holds:
        """Those in force at ``now_ns``."""
        return cls((hold for hold in all_holds(snapshot, journal) if hold.in_force(now_ns)), catalog)

    def on(self, study: StudyRow, patient_keys: Iterable[bytes] = ()) -> list[str]:
        """The ids of the holds on a study; ``patient_keys``: further patients that it was filed under."""
        found = set(self._studies.get(study.uid, ()))
        for received in study.received:
            found.update(self._studies.get(received.study_uid, ()))
        for key in (study.patient_key, *patient_keys):
            found.update(self._patients.get(key, ()))
        return sorted(found)

    @property
    def on_patients(self) -> bool:
        """Whether there is any on a patient."""
        return bool(self._patients)

    def on_object(self, study_uid: str, patient_key: bytes) -> list[str]:
        """The ids of the holds on an object that is in no study, by the study and patient that it names."""
        return sorted({*self._studies.get(study_uid, ()), *self._patients.get(patient_key, ())})

    def on_study(self, snapshot: Snapshot, catalog: Catalog, study_uid: str) -> list[str]:
        """The ids of the holds on a study, also on those that it, or parts of it, were before corrections."""
        study = catalog.study(snapshot, study_uid)
        if study is None:
            return sorted(self._studies.get(study_uid, ()))
        keys = [catalog.patient_key(one.attributes, one.study_uid) for one in study.received]
        found: set[str] = set()
        if study.received:
            view = View(catalog, snapshot)
            groups: dict[Group, Attributes] = {
                (one.study_uid, one.path): one.attributes for one in study.received
            }
            if is_hidden(study_uid):  # also by where its objects would be, had nothing rejected them
                for route, received in _unless_rejected(snapshot, catalog, view, study):
                    of_study = (group for group in study.received if group.study_uid == received)
                    groups[received, route.path] = max(
                        (one.attributes for one in of_study), key=len, default=study.attributes
                    )
                    found.update(self.on_study(snapshot, catalog, route.study_uid))
            for group, attributes in groups.items():
                keys += _patients(view, catalog, group, attributes)
        return sorted({*found, *self.on(study, keys)})

    def on_record(self, snapshot: Snapshot, catalog: Catalog, said: ObjectRow) -> list[str]:
        """The ids of the holds on the patient whom a record names, or whom corrections make of that one."""
        keys = [catalog.patient_key(said.study, said.study_uid)]
        view = catalog.view(snapshot)
        if view is not None:
            route = view.route_unless_rejected(said.study_uid, said.series_uid, said.sop_uid)
            keys += _patients(view, catalog, (said.study_uid, route.path), said.study)
        return sorted({hold for key in keys for hold in self._patients.get(key, ())})


def _patients(view: View, catalog: Catalog, group: Group, attributes: Attributes) -> Iterator[bytes]:
    """The keys of the patients whom corrections make, one after the other, of who such attributes name."""
    chain = view.chain(group, attributes)
    yield catalog.patient_key(chain.attributes, group[0])
    for step in chain.steps:
        patient_id, issuer = step.correction.to_patient
        if patient_id:
            yield catalog.patient_key(patient_attributes(patient_id, issuer), "")


def _unless_rejected(
    snapshot: Snapshot, catalog: Catalog, view: View, study: StudyRow
) -> set[tuple[Route, str]]:
    """Where the objects of a hidden study would be filed, each with the study that it was received as."""
    routes: set[tuple[Route, str]] = set()
    for key, series in catalog.series_of(snapshot, catalog.study_id(study.uid)):
        for row in catalog.instances_of(snapshot, key):
            study_uid, series_uid = row.received or (study.uid, series.uid)
            route = view.route_unless_rejected(study_uid, series_uid, row.sop_uid)
            routes.add((route._replace(series_uid=""), study_uid))
    return routes


def all_holds(snapshot: Snapshot, journal: Journal) -> list[Hold]:
    """Every hold ever set, oldest first."""
    return sorted(map(Hold.of, journal.state(snapshot, FACT_HOLD)), key=lambda hold: hold.since_ns)


def patient_attributes(patient_id: str, issuer: str) -> dict[int, str]:
    """Who a patient is, as attributes."""
    return {PATIENT_ID: patient_id, ISSUER_OF_PATIENT_ID: issuer}


def add_hold(journal: Journal, hold: Hold) -> Hold:
    """Set a hold; the hold with the id that it got. Raises HoldError for one on nothing or on no one."""
    # As stored values are read: a blank that was copied along would hold nothing, and say nothing.
    named = {name: getattr(hold, name).strip(" \0\t\r\n") for name in ("study_uid", "patient_id", "issuer")}
    hold = Hold.of({**hold.body(), **named})
    if bool(hold.study_uid) == bool(hold.patient_id):
        raise HoldError("a hold is on a study or on a patient: name one of them")
    if hold.study_uid and not uid_is_usable(hold.study_uid):
        raise HoldError("this is no Study Instance UID: digits and dots, at most 64; nothing is held by it")
    if not hold.why.strip():
        raise HoldError("a hold needs a reason")
    if hold.until_ns and hold.until_ns <= hold.since_ns:
        raise HoldError("the day on which the hold ends is over already")
    hold = Hold.of({**hold.body(), "hold_id": secrets.token_hex(HOLD_ID_BYTES)})
    journal.commit_fact(FACT_HOLD, hold.hold_id, hold.body(), hold.since_ns)
    return hold


def studies_held(snapshot: Snapshot, catalog: Catalog, hold: Hold) -> int:
    """How many of the studies that are here now a hold is on; of a patient, those filed under that id and
    issuer."""
    if hold.study_uid:
        return int(catalog.study(snapshot, hold.study_uid) is not None)
    key = catalog.patient_key(patient_attributes(hold.patient_id, hold.issuer), "")
    held = snapshot.get(PATIENT, key)
    return 0 if held is None else catalog.open_row(PATIENT, key, held, PatientRow).studies


def release_hold(journal: Journal, hold_id: str, *, by: str, why: str, now_ns: int) -> Hold:
    """End a hold; the hold as it is kept. Raises HoldError when there is none in force."""
    if not why.strip():
        raise HoldError("releasing a hold needs a reason")
    released: list[Hold] = []

    def plan(snapshot: Snapshot, batch: Batch) -> Event:
        held = [hold for hold in all_holds(snapshot, journal) if hold.hold_id == hold_id]
        if not held or not held[0].in_force(now_ns):
            raise HoldError(f"no hold {hold_id} is in force; `hounsfield hold list` shows those that are")
        change = {"released_ns": now_ns, "released_by": by, "released_why": why}
        released.append(Hold.of({**held[0].body(), **change}))
        event = Event(FACT_HOLD, now_ns, {"name": hold_id, "body": released[-1].body()}, fact=True)
        journal.put_state(batch, event)
        return event

    journal.commit_planned_fact(plan)
    return released[-1]
