"""Legal holds: studies and patients of which nothing may be deleted, by whomever, until the hold ends.

A hold is a fact (kind ``hold``): who set it, why, since when, until when. It ends on its day or when it is
released; the released one stays listed. Facts follow one another, so of a hold and a deletion of the same
study one is first: the deletion is refused, or the hold is set on what is left.

Whatever removes objects (deletion, the end of a retention period, later also the last copy in a tier) asks
:meth:`Holds.on_study` with the snapshot that it plans with.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from msgspec import structs

from hounsfield.archive.dicom.attributes import uid_is_usable
from hounsfield.archive.index.correcting import FACT_KIND, row_of
from hounsfield.archive.index.corrections import Group, View, is_hidden, patient_of, target_key
from hounsfield.archive.index.rows import Attributes, CorrectionRow, Event, ObjectRow, PatientRow, StudyRow
from hounsfield.archive.index.tables import PATIENT
from hounsfield.archive.index.versions import FLAG_CONFLICT

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
    number: int = 0  # of the fact that set it; 0: an earlier release did

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

    def was_set_under(self, taken_back: CorrectionRow) -> bool:
        """Whether a correction that is not in force any more was when this hold was set.

        Facts follow one another, so their numbers say it, whatever clocks do. What an earlier release wrote
        has none.
        """
        row = taken_back
        made_before = row.number < self.number if self.number else row.at_ns <= self.since_ns
        if self.number and row.reverted_number:
            return made_before and self.number < row.reverted_number
        return made_before and self.since_ns <= row.reverted_ns


class _Named:
    """Holds by what they name."""

    def __init__(self, holds: Iterable[Hold], catalog: Catalog) -> None:
        self.studies: dict[str, list[str]] = {}
        self.patients: dict[bytes, list[str]] = {}
        for hold in holds:
            if hold.study_uid:
                self.studies.setdefault(hold.study_uid, []).append(hold.hold_id)
            else:
                key = catalog.patient_key(patient_attributes(hold.patient_id, hold.issuer), "")
                self.patients.setdefault(key, []).append(hold.hold_id)

    def on(self, studies: Iterable[str], patients: Iterable[bytes]) -> set[str]:
        """The ids of those on any of these."""
        found = {hold for uid in studies for hold in self.studies.get(uid, ())}
        return found | self.on_patients(patients)

    def on_patients(self, keys: Iterable[bytes]) -> set[str]:
        return {hold for key in keys for hold in self.patients.get(key, ())}


class Holds:
    """The holds in force, as one snapshot has them.

    What is on hold is asked of the way that objects took: a hold on any study, or patient, on it holds them.
    A hold holds what was there when it was set, also when the correction that had brought it there is taken
    back; so each hold is asked with the corrections that were in force then, besides those that are now.
    """

    def __init__(
        self, holds: Iterable[Hold], catalog: Catalog, taken_back: Sequence[CorrectionRow] = ()
    ) -> None:
        """``taken_back``: the corrections that are not in force any more."""
        by_corrections: dict[tuple[int, ...], list[Hold]] = {}
        for hold in holds:
            then = tuple(row.number for row in taken_back if hold.was_set_under(row))
            by_corrections.setdefault(then, []).append(hold)
            if then:
                by_corrections.setdefault((), []).append(hold)
        self._now = _Named(by_corrections.pop((), ()), catalog)
        rows = {row.number: row for row in taken_back}
        self._earlier = [
            (_Named(some, catalog), [rows[number] for number in then])
            for then, some in by_corrections.items()
        ]
        self._seen: tuple[Snapshot, list[tuple[_Named, View]]] | None = None

    @classmethod
    def load(cls, snapshot: Snapshot, journal: Journal, catalog: Catalog, now_ns: int) -> Holds:
        """Those in force at ``now_ns``."""
        held = [hold for hold in all_holds(snapshot, journal) if hold.in_force(now_ns)]
        corrections = map(row_of, journal.state(snapshot, FACT_KIND)) if held else ()
        return cls(held, catalog, [row for row in corrections if row.reverted_ns])

    def on(self, study: StudyRow, patient_keys: Iterable[bytes] = ()) -> list[str]:
        """The ids of the holds on a study; ``patient_keys``: further patients that it was filed under."""
        studies = (study.uid, *(received.study_uid for received in study.received))
        return sorted(self._now.on(studies, (study.patient_key, *patient_keys)))

    @property
    def on_patients(self) -> bool:
        """Whether there is any on a patient."""
        return bool(self._now.patients)

    def on_object(self, study_uid: str, patient_key: bytes) -> list[str]:
        """The ids of the holds on an object that is in no study, by the study and patient that it names."""
        return sorted(self._now.on((study_uid,), (patient_key,)))

    def on_study(self, snapshot: Snapshot, catalog: Catalog, study_uid: str) -> list[str]:
        """The ids of the holds on a study: on all that it, or parts of it, were on their way here, too."""
        study = catalog.study(snapshot, study_uid)
        if study is None:
            return sorted(self._now.on((study_uid,), ()))
        keys = [catalog.patient_key(one.attributes, one.study_uid) for one in study.received]
        found = set(self.on(study, keys))
        if study.received:
            view = View(catalog, snapshot)
            groups: dict[Group, Attributes] = {
                (one.study_uid, one.path): one.attributes for one in study.received
            }
            if is_hidden(study_uid):  # also by where its objects would be, had nothing rejected them
                ways = _groups(snapshot, catalog, view, study)
                for last in {view.stops(way)[-1] for way in ways}:
                    found.update(self.on_study(snapshot, catalog, last))
                groups |= ways
            found |= _on_groups(self._now, view, catalog, groups)
        for named, view in self._views(snapshot, catalog):
            found |= _on_groups(named, view, catalog, _groups(snapshot, catalog, view, study))
        return sorted(found)

    def on_record(self, snapshot: Snapshot, catalog: Catalog, said: ObjectRow) -> list[str]:
        """The ids of the holds on the patient whom a record names, or whom corrections make of that one."""
        found = self._now.on_patients([catalog.patient_key(said.study, said.study_uid)])
        now = catalog.view(snapshot)
        for named, view in [(self._now, now), *self._views(snapshot, catalog)]:
            if view is not None:
                path = view.route_unless_rejected(said.study_uid, said.series_uid, said.sop_uid).path
                found |= named.on_patients(_patients(view, catalog, (said.study_uid, path), said.study))
        return sorted(found)

    def _views(self, snapshot: Snapshot, catalog: Catalog) -> list[tuple[_Named, View]]:
        """The holds that were set under other corrections than those in force, each with these; made once."""
        if self._seen is None or self._seen[0] is not snapshot:
            made = [(named, _view_with(snapshot, catalog, rows)) for named, rows in self._earlier]
            self._seen = (snapshot, made)
        return self._seen[1]


def _view_with(snapshot: Snapshot, catalog: Catalog, rows: Iterable[CorrectionRow]) -> View:
    """The corrections in force, and ``rows``, which were taken back."""
    view = View(catalog, snapshot)
    replaced: dict[bytes, tuple[CorrectionRow, ...]] = {}
    for row in rows:
        key = target_key(catalog, row)
        before = replaced.get(key, view.of(key))
        again = structs.replace(row, reverted_ns=0)
        replaced[key] = tuple(sorted((*before, again), key=lambda one: one.number))
    return View(catalog, snapshot, replaced)


def _on_groups(named: _Named, view: View, catalog: Catalog, groups: Mapping[Group, Attributes]) -> set[str]:
    """The ids of the holds on what objects that came in these ways were on them."""
    found: set[str] = set()
    for group, attributes in groups.items():
        found |= named.on(view.stops(group), _patients(view, catalog, group, attributes))
    return found


def _groups(snapshot: Snapshot, catalog: Catalog, view: View, study: StudyRow) -> dict[Group, Attributes]:
    """In which ways the objects of a study come if nothing rejects them, and what they bring."""
    brought: dict[str, Attributes] = {}
    for group in study.received:
        known = brought.get(group.study_uid, {})
        brought[group.study_uid] = max(known, group.attributes, key=len)
    found: dict[Group, Attributes] = {}
    for key, series in catalog.series_of(snapshot, catalog.study_id(study.uid)):
        for row in catalog.instances_of(snapshot, key):
            rows = [row]
            if FLAG_CONFLICT in row.flags:
                rows += catalog.versions(snapshot, catalog.instance_key(study.uid, series.uid, row.sop_uid))
            for one in rows:
                received = one.received or (study.uid, series.uid)
                path = view.route_unless_rejected(*received, row.sop_uid).path
                found[received[0], path] = brought.get(received[0]) or study.attributes
    return found


def _patients(view: View, catalog: Catalog, group: Group, attributes: Attributes) -> Iterator[bytes]:
    """The keys of the patients whom corrections make, one after the other, of who such attributes name."""
    chain = view.chain(group, attributes)
    yield catalog.patient_key(chain.attributes, group[0])
    known = {PATIENT_ID: attributes.get(PATIENT_ID, "")}
    known[ISSUER_OF_PATIENT_ID] = attributes.get(ISSUER_OF_PATIENT_ID, "")
    for step in chain.steps:
        known |= {tag: step.values[tag] or "" for tag in known if tag in step.values}
        for patient in (patient_of(known), step.correction.to_patient):
            if patient[0]:
                yield catalog.patient_key(patient_attributes(*patient), "")


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
    hold = replace(hold, hold_id=secrets.token_hex(HOLD_ID_BYTES))
    made: list[Hold] = []

    def plan(snapshot: Snapshot, batch: Batch) -> Event:
        made.append(replace(hold, number=journal.facts(snapshot) + 1))
        event = Event(FACT_HOLD, hold.since_ns, {"name": hold.hold_id, "body": made[-1].body()}, fact=True)
        journal.put_state(batch, event)
        return event

    journal.commit_planned_fact(plan)
    return made[-1]


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
