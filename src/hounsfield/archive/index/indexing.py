"""Durable records enter the index: the same way after a write, after a crash and in a full reindex.

Records are planned study by study against one snapshot and committed together with their journal
events. A plan requires what it read to be still so; when another process changed a study first,
that study alone is planned again, this time under the store's lock: two workers that fill one study
would otherwise starve each other. Indexing a record twice changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from hounsfield.archive.dicom.rejection import KEY_OBJECT_SELECTION
from hounsfield.archive.index.catalog import Catalog, Place, Stored
from hounsfield.archive.index.corrections import is_hidden, uid_before_hiding
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.patients import Patients
from hounsfield.archive.index.rows import (
    Event,
    InstanceRow,
    Location,
    ObjectRow,
    SegmentRow,
    SpareRow,
    encode,
)
from hounsfield.archive.index.sealed import RowSealer
from hounsfield.archive.index.stored_objects import OUT_OF_REACH, VANISHED, StoredObjects
from hounsfield.archive.index.tables import INSTANCE, QUARANTINE, SEGMENT, SPARE, TOMBSTONE
from hounsfield.archive.index.use import DeadRecords, with_segments
from hounsfield.archive.index.waiting_notes import leave_waiting
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot
from hounsfield.storage_backends.errors import PreconditionError
from hounsfield.storage_backends.segments import SegmentLog

SEALS_PER_OBJECT = (
    8  # rows one object can touch: instance, series, study, patient, version, event, spare, note
)

EVENT_STORED = "instances-stored"
EVENT_CONFLICT = "conflict-kept"
EVENT_QUARANTINED = "object-quarantined"
EVENT_HIDDEN = "rejected-stored"  # came after a rejection that names it: nothing of it is shown


class Outcome(Enum):
    """What became of an object that was received whole. In each case it is durable."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # the very same object was here already
    CONFLICT = "conflict"  # other content under the same UIDs: both are kept, one is served
    QUARANTINED = "quarantined"  # kept, listed in quarantine: it lacks a usable UID


class IndexContentionError(Exception):
    """Objects found no place in the index in any attempt: not acknowledged, they may be sent again."""


class _Received(NamedTuple):
    """An object that is being added."""

    transfer_syntax_uid: str
    stored_as: str
    location: Location

    @classmethod
    def of(cls, stored: Stored) -> _Received:
        return cls(stored.row.transfer_syntax_uid, stored.row.stored_as, stored.location)


_Plan = tuple[Batch, list[tuple[int, "Outcome"]]]


class Indexer:
    """Adds durable records to the catalog. Blocking; any number of threads and processes at once."""

    def __init__(
        self,
        *,
        log: SegmentLog,
        store: KeyValueStore,
        sealer: RowSealer,
        catalog: Catalog,
        journal: Journal,
        newest_current: bool = False,
    ) -> None:
        self.log = log
        self.objects = StoredObjects(log)
        self.store = store
        self.catalog = catalog
        self._sealer = sealer
        self._journal = journal
        self.newest_current = newest_current
        #: In a recovery: when what was received before expired, by SOP Instance UID, wherever it was named.
        self.expired: Mapping[str, Sequence[int]] = {}

    def prepare(self, objects: int) -> None:
        """Reserve the seals that adding ``objects`` may need."""
        self._sealer.prepare(SEALS_PER_OBJECT * objects)

    def add(
        self,
        stored: Sequence[Stored],
        progress: Batch | None = None,
        *,
        uses_reserve: bool = False,
        deleted: set[int] | None = None,
    ) -> list[Outcome]:
        """Index ``stored``, no two of which share all their UIDs; one outcome for each, in order.

        ``progress`` is committed along, in the first transaction. ``uses_reserve``: also on a full disk, for
        what is durable already. ``deleted``: recovery gives an empty set; records that were deleted are not
        indexed again, and their positions are in it. Nothing that is received just now can be one.
        """
        self.prepare(len(stored))
        outcomes: list[Outcome | None] = [None] * len(stored)
        plans: list[_Plan] = []
        for attempt in range(len(stored) + 2):
            if attempt == 0:
                try:
                    with self.store.snapshot() as snapshot:
                        plans = self._plan(snapshot, stored, outcomes, deleted)
                except VANISHED:
                    continue  # compaction was first: what is compared with is read at its new place
                batches = _batches(plans, uses_reserve)
                if progress is not None and batches:
                    batches.append(progress)
                results = self.store.commit_many(batches) if batches else []
            else:
                # Others were first. Planned under the store's own lock nobody can be first again.
                def planned(snapshot: Snapshot) -> list[Batch]:
                    nonlocal plans
                    plans = self._plan(snapshot, stored, outcomes, deleted)
                    return _batches(plans, uses_reserve)

                results = self.store.commit_planned(planned)
            for (_, members), result in zip(plans, results, strict=False):
                if isinstance(result, PreconditionError):
                    continue
                if isinstance(result, Exception):
                    raise result
                for i, outcome in members:
                    outcomes[i] = outcome
            done = [outcome for outcome in outcomes if outcome is not None]
            if len(done) == len(stored):
                return done
        raise IndexContentionError("plans of one group kept colliding; this is a defect, send again")

    def held(self, snapshot: Snapshot, row: ObjectRow) -> list[InstanceRow]:
        """What is kept where the object belongs: the instance that is served first, then other versions."""
        if row.quarantine:
            return []
        place = self.catalog.place_of(snapshot, row)
        served = self.catalog.instance(snapshot, *place)
        if served is None:
            return []
        return [served, *self.catalog.versions(snapshot, self.catalog.instance_key(*place))]

    def _same(self, held: InstanceRow, stored: Stored, *, in_recovery: bool) -> bool:
        """Whether a record that is here and one that is added hold the same bytes as received.

        An index that is older than a compaction names segments that are gone; until all others are read it is
        not known where their records went. Then both are kept: a start must not fail for it.
        """
        if held.location.record_id in stored.unlike:
            return False
        if not in_recovery and not self.log.is_near(held.location.segment):
            return False  # others wait for this commit; whoever could wait has compared them
        try:
            return self.objects.are_alike(held, _Received.of(stored))
        except (*VANISHED, *OUT_OF_REACH):
            if in_recovery:
                return False
            raise

    def _stays(self, snapshot: Snapshot, held: InstanceRow, place: Place, received_ns: int) -> bool:
        """Whether a row belongs where it is, and what was received at that moment with it.

        In a recovery a rejection may be known that is to be replayed, and takes it away: what was sent again
        since is no copy of it. Nor is it where moves that are to be replayed may take both to what it names.
        """
        first, last = sorted((held.received_ns, received_ns))
        if any(first < before_ns <= last for before_ns in self.expired.get(held.sop_uid, ())):
            return False
        view = self.catalog.view(snapshot)
        if view is None:
            return True
        received = held.received or place[:2]
        return view.route(*received, held.sop_uid, held.received_ns)[:2] == place[:2]

    def _plan(
        self,
        snapshot: Snapshot,
        objects: Sequence[Stored],
        outcomes: list[Outcome | None],
        deleted: set[int] | None,
    ) -> list[_Plan]:
        """One batch for each study, conflict and quarantined object, with what it means for whom.

        What needs no commit (it is indexed already) gets its outcome at once.
        """
        plans: list[_Plan] = []
        needless = _Needless(self)
        by_study: dict[str, list[tuple[int, Place]]] = {}
        places: set[Place] = set()
        for i, stored in enumerate(objects):
            if outcomes[i] is not None:
                continue
            row = stored.row
            if deleted is not None and needless.was_deleted(snapshot, i, stored):
                deleted.add(i)
                continue
            if row.quarantine:
                if snapshot.get(QUARANTINE, stored.location.record_id) is not None:
                    outcomes[i] = Outcome.QUARANTINED
                    continue
                batch = self.catalog.plan_quarantine(stored)
                place = Place(row.study_uid, row.series_uid, row.sop_uid)
                self._journal.append(batch, _event(EVENT_QUARANTINED, row.study_uid, [(place, stored)]))
                plans.append((batch, [(i, Outcome.QUARANTINED)]))
                continue
            place = self.catalog.place_of(snapshot, row)
            if place in places:
                continue  # corrections put two of a group into one place: the second must see the first
            places.add(place)
            held = self.held(snapshot, row)
            if not held:
                by_study.setdefault(place.study_uid, []).append((i, place))
                continue
            record_id = stored.location.record_id
            same = [one for one in held if one.location.record_id == record_id]
            alike = (
                []
                if same
                else [one for one in held if self._same(one, stored, in_recovery=deleted is not None)]
            )
            same = same or [one for one in alike if self._stays(snapshot, one, place, row.received_ns)][:1]
            if same:
                needless.is_another(snapshot, i, stored, place, same[0])
            else:
                batch = self.catalog.plan_version(
                    snapshot, place, stored, newest_current=self.newest_current, again=bool(alike)
                )
                self._leave_waiting(batch, [stored])
                self._journal.append(batch, _event(EVENT_CONFLICT, place.study_uid, [(place, stored)]))
                plans.append((batch, [(i, Outcome.CONFLICT)]))
        patients: Patients = {}
        for study_uid, members in by_study.items():
            group = [(place, objects[i]) for i, place in members]
            batch = self.catalog.plan_study(snapshot, group, patients)
            self._leave_waiting(batch, [stored for _, stored in group])
            self._journal.append(batch, _event(EVENT_STORED, study_uid, group))
            plans.append((batch, [(i, Outcome.STORED) for i, _ in members]))
        if deleted is not None:
            for batch, of in plans:
                for i, _ in of:  # one that is deleted meanwhile must not come in after that
                    batch.require(TOMBSTONE, objects[i].location.record_id, None)
        needless.finish(snapshot, plans, outcomes)
        return plans

    def _leave_waiting(self, batch: Batch, objects: Iterable[Stored]) -> None:
        """Have ``batch`` say of those that may be rejection notes that somebody must look at them.

        Also of those that a rejection hides: what they name is rejected, too.
        """
        for stored in objects:
            if stored.row.sop_class_uid == KEY_OBJECT_SELECTION:
                leave_waiting(batch, self._sealer, stored)


class _Needless:
    """Records of a plan that no row will need: deleted ones, and further ones of objects that are there.

    Each is counted as dead, once in each segment; and a further record is remembered, so that who deletes the
    object deletes that too. Without, a reindex would bring it back.
    """

    def __init__(self, indexer: Indexer) -> None:
        self._indexer = indexer
        self._batch = Batch()
        self._dead = DeadRecords()
        self._members: list[tuple[int, Outcome]] = []
        self._nothing_to_do: list[int] = []
        self._any_was_deleted: bool | None = None  # of the whole archive, as the plan's snapshot has it

    def was_deleted(self, snapshot: Snapshot, i: int, stored: Stored) -> bool:
        """Whether the record is one that was deleted."""
        if self._any_was_deleted is None:
            self._any_was_deleted = any(True for _ in snapshot.scan(TOMBSTONE, limit=1))
        if not self._any_was_deleted:
            return False
        location = stored.location
        held = snapshot.get(TOMBSTONE, location.record_id)
        if held is None:
            return False
        named = with_segments(held, [location.segment])
        if named == held:
            self._nothing_to_do.append(i)
            return True
        self._batch.require(TOMBSTONE, location.record_id, held)
        self._batch.put(TOMBSTONE, location.record_id, named)
        self._count(i, location)
        return True

    def is_another(self, snapshot: Snapshot, i: int, stored: Stored, place: Place, same: InstanceRow) -> None:
        """The object is there as ``same``: the same record (maybe in another segment), or another one."""
        location = stored.location
        key = same.location.record_id + location.record_id + location.segment
        if (location.record_id, location.segment) == (same.location.record_id, same.location.segment) or (
            snapshot.get(SPARE, key) is not None
        ):
            self._nothing_to_do.append(i)
            return
        catalog, received_ns = self._indexer.catalog, stored.row.received_ns
        instance = catalog.instance_key(*place)
        if received_ns < same.received_ns and location.record_id != same.location.record_id:
            newest_current = self._indexer.newest_current
            catalog.note_earlier(snapshot, self._batch, place, same, received_ns, newest_current)
        self._batch.require(INSTANCE, instance, snapshot.get(INSTANCE, instance))
        self._batch.require(SPARE, key, None)
        self._batch.put(SPARE, key, encode(SpareRow(self._count(i, location))))

    def _count(self, i: int, location: Location) -> int:
        length = self._indexer.objects.stored_bytes(location)
        self._dead.add(location.segment, length)
        self._members.append((i, Outcome.DUPLICATE))
        return length

    def finish(self, snapshot: Snapshot, plans: list[_Plan], outcomes: list[Outcome | None]) -> None:
        """Add the batch that counts them; what needs none has its outcome."""
        for i in self._nothing_to_do:
            outcomes[i] = Outcome.DUPLICATE
        if self._members:
            self._dead.plan(snapshot, self._batch, time.time_ns())
            plans.append((self._batch, self._members))


def _batches(plans: Sequence[_Plan], uses_reserve: bool) -> list[Batch]:
    for batch, _ in plans:
        batch.uses_reserve = uses_reserve
    return [batch for batch, _ in plans]


def progress_batch(indexed_to: dict[bytes, int], *, closed: bool = False) -> Batch:
    """Say that records of these segments that begin before the offset are in the index."""
    batch = Batch(uses_reserve=True)  # one small row; without it a full archive could not start
    for segment, offset in indexed_to.items():
        batch.put(SEGMENT, segment, encode(SegmentRow(indexed_to=offset, closed=closed)))
    return batch


def _event(kind: str, study_uid: str, group: Sequence[tuple[Place, Stored]]) -> Event:
    members = [[place.series_uid, place.sop_uid, s.location.record_id] for place, s in group]
    kind = EVENT_HIDDEN if is_hidden(study_uid) else kind
    body = {"study": uid_before_hiding(study_uid), "instances": members}
    return Event(kind, group[0][1].row.received_ns, body)
