"""Deletion: objects leave the catalog in one commit, and never come back by themselves.

A deletion is a fact (kind ``deletion``) that names the *records* it deletes, not UIDs: an object that is
sent again is a new record and is stored. The commit that removes the rows, counts, postings and places
also writes a *tombstone* for each record, so that neither catching up nor a reindex takes it in again, and
counts its bytes as dead in its segment (:mod:`~hounsfield.archive.index.use`), where compaction finds them.

However large a study is, it goes in one commit: readers see all of it or nothing. The fact is one record of
the ledger, in parts of a bounded size; the journal gets one ``instances-deleted`` event for at most a
thousand instances each. Planning reads beside everybody else, the commit itself is what others wait for.

A deletion is refused when anything of it is on legal hold (:mod:`~hounsfield.archive.index.holds`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.draft import StudyDraft
from hounsfield.archive.index.holds import ISSUER_OF_PATIENT_ID, PATIENT_ID, Holds, OnHoldError
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.merged_attributes import FLAG_DEMOGRAPHICS
from hounsfield.archive.index.remaining import Carried
from hounsfield.archive.index.rows import Event, InstanceRow, Location, QuarantineRow
from hounsfield.archive.index.series_draft import Removed
from hounsfield.archive.index.tables import INSTANCE, QUARANTINE, SPARE, TOMBSTONE, VERSION
from hounsfield.archive.index.use import DeadRecords, with_segments
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot

FACT_DELETION = "deletion"
EVENT_DELETED = "instances-deleted"
EVENT_INSTANCES_MAX = 1000  # of one event: a consumer reads a thousand events at a time into memory
DELETION_ID_BYTES = 8
_OTHER_PATIENTS = frozenset(f"{FLAG_DEMOGRAPHICS}:{tag:08X}" for tag in (PATIENT_ID, ISSUER_OF_PATIENT_ID))


class NothingToDeleteError(LookupError):
    """There is no such study, series, instance, version or quarantined object."""

    retry = False


@dataclass(frozen=True, slots=True)
class Target:
    """What to delete: a study, one of its series, instances of that series, one record of an instance
    (``version``), or a quarantined object (``quarantined``), the last two by record id."""

    study_uid: str = ""
    series_uid: str = ""
    sop_uids: tuple[str, ...] = ()
    version: bytes = b""
    quarantined: bytes = b""

    def __post_init__(self) -> None:
        for name in ("study_uid", "series_uid"):  # plain text: subclasses do not encode
            object.__setattr__(self, name, str(getattr(self, name)))
        object.__setattr__(self, "sop_uids", tuple(map(str, self.sop_uids)))
        if bool(self.study_uid) == bool(self.quarantined):
            raise ValueError("delete something of a study, or a quarantined object")
        if (self.series_uid and not self.study_uid) or (self.sop_uids and not self.series_uid):
            raise ValueError("instances are named with their series, and a series with its study")
        if self.version and len(self.sop_uids) != 1:
            raise ValueError("a version is one of one instance")

    @property
    def level(self) -> str:
        """What it is, in a word."""
        if self.quarantined:
            return "quarantined"
        if self.version:
            return "version"
        return "instances" if self.sop_uids else "series" if self.series_uid else "study"


@dataclass(frozen=True, slots=True)
class DeletionReport:
    """What a deletion takes (or would take). ``stored_bytes`` come back to the disk by compaction."""

    level: str
    deletion_id: str
    studies: int
    series: int
    instances: int
    versions: int
    quarantined: int
    records: int
    stored_bytes: int
    holds: tuple[str, ...] = ()


@dataclass(slots=True)
class _Found:
    """What one snapshot has of a target."""

    records: list[tuple[str, str, bytes]] = field(default_factory=list)  # series, SOP UID, record id
    places: dict[bytes, dict[bytes, int]] = field(
        default_factory=dict
    )  # record id → segment → bytes to count
    dead: DeadRecords = field(default_factory=DeadRecords)
    studies: int = 0
    series: int = 0
    instances: int = 0
    versions: int = 0
    quarantined: int = 0

    def report(self, target: Target, deletion_id: str, holds: Sequence[str] = ()) -> DeletionReport:
        return DeletionReport(
            target.level, deletion_id, self.studies, self.series, self.instances, self.versions,
            self.quarantined, len(self.records), self.dead.bytes, tuple(holds),
        )  # fmt: skip


class Deletions:
    """Deletes, and replays deletions. Blocking; any number of threads and processes at once."""

    def __init__(self, indexer: Indexer, journal: Journal, *, newest_current: bool = False) -> None:
        self._indexer = indexer
        self.catalog: Catalog = indexer.catalog
        self._journal = journal
        self._newest_current = newest_current
        journal.on_fact(FACT_DELETION, self._apply)

    def look(self, target: Target, *, now_ns: int) -> DeletionReport:
        """What deleting ``target`` would take, and the holds that forbid it. Changes nothing."""
        carried = Carried(self._indexer)
        with self._indexer.store.snapshot() as snapshot:
            found = self._plan(snapshot, Batch(), target, now_ns, carried=carried)
            return found.report(target, "", self._holds(snapshot, target, now_ns, carried))

    def holds(self, targets: Iterable[Target], *, now_ns: int) -> list[str]:
        """The holds that forbid deleting any of ``targets``, sorted. Changes nothing."""
        carried = Carried(self._indexer)
        with self._indexer.store.snapshot() as snapshot:
            holds = Holds.load(snapshot, self._journal, self.catalog, now_ns)
            return sorted({one for target in targets for one in self._held(snapshot, holds, target, carried)})

    def delete(
        self,
        target: Target,
        *,
        reason: str,
        actor: str,
        now_ns: int,
        only_if: Callable[[Snapshot], bool] = lambda _: True,
    ) -> DeletionReport:
        """Delete ``target``: durable, and gone for every reader, when this returns.

        Raises ``NothingToDeleteError``, also unless ``only_if`` says so of what the deletion is made of;
        ``OnHoldError``, or what a failing store raises; then nothing of it has happened.
        """
        deletion_id = secrets.token_hex(DELETION_ID_BYTES)
        carried = Carried(self._indexer)  # read once, however often it is planned
        made: list[_Found] = []

        def plan(snapshot: Snapshot, batch: Batch) -> Event:
            holds = self._holds(snapshot, target, now_ns, carried)
            if holds:
                raise OnHoldError(holds)
            if not only_if(snapshot):
                raise NothingToDeleteError("this is not to be deleted any more")
            found = self._plan(snapshot, batch, target, now_ns, carried=carried)
            made.append(found)
            body = {
                "level": target.level,
                "study": target.study_uid,
                "series": target.series_uid,
                "reason": reason,
                "actor": actor,
                "studies": found.studies,
                "instances": found.instances,
                "versions": found.versions,
                "bytes": found.dead.bytes,
            }
            fact = {"name": deletion_id, "body": body, "records": found.records}
            return Event(FACT_DELETION, now_ns, fact, fact=True)

        self._journal.commit_planned_fact(plan)
        return made[-1].report(target, deletion_id)

    # ------------------------------------------------------------ planning

    def _holds(self, snapshot: Snapshot, target: Target, now_ns: int, carried: Carried) -> list[str]:
        holds = Holds.load(snapshot, self._journal, self.catalog, now_ns)
        return self._held(snapshot, holds, target, carried)

    def _held(self, snapshot: Snapshot, holds: Holds, target: Target, carried: Carried) -> list[str]:
        """The holds on what ``target`` is a part of; an object in quarantine says itself of what."""
        if target.study_uid:
            found = set(holds.on_study(snapshot, self.catalog, target.study_uid))
            if holds.on_patients:
                for location in self._of_others(snapshot, target.study_uid):
                    said = carried.row(location)
                    if said is not None:
                        found.update(holds.on_record(snapshot, self.catalog, said))
            return sorted(found)
        held = snapshot.get(QUARANTINE, target.quarantined)
        if held is None:
            return []
        row = self.catalog.open_row(QUARANTINE, target.quarantined, held, QuarantineRow)
        said = carried.row(row.location)
        if said is None:  # it does not open: nobody can say whose it is
            return []
        named = holds.on_object(said.study_uid, self.catalog.patient_key(said.study, said.study_uid))
        return sorted({*named, *holds.on_study(snapshot, self.catalog, said.study_uid)})

    def _of_others(self, snapshot: Snapshot, study_uid: str) -> Iterator[Location]:
        """The records of a study that may name another patient than it does: versions, and where objects of
        the study disagree on the patient, all."""
        study_id = self.catalog.study_id(study_uid)
        study = self.catalog.study_by_id(snapshot, study_id)
        if study is None:
            return
        tables = [VERSION]
        if any(flag in _OTHER_PATIENTS for flag in study.flags):
            tables.append(INSTANCE)
        for table in tables:
            for key, sealed in snapshot.scan(table, prefix=study_id):
                yield self.catalog.open_row(table, key, sealed, InstanceRow).location

    def _plan(
        self, snapshot: Snapshot, batch: Batch, target: Target, now_ns: int, *, carried: Carried
    ) -> _Found:
        batch.uses_reserve = True  # it frees space in the end
        found = _Found()
        if target.quarantined:
            self._take_quarantined(snapshot, batch, target.quarantined, found, carried)
        else:
            draft = StudyDraft(self.catalog, snapshot, target.study_uid)
            if draft.old is None:
                raise NothingToDeleteError("no such study in this archive")
            self._take(snapshot, batch, (draft, self._removed(draft, target)), found, carried)
            carried.settle(draft)
            found.studies = int(draft.old.instances == found.instances)
            _absorb(batch, draft.finish(now_ns))
        self._bury(snapshot, batch, found, now_ns)
        self._announce(batch, target.study_uid, found.records, now_ns)
        return found

    def _removed(self, draft: StudyDraft, target: Target) -> list[Removed]:
        if not target.series_uid:
            return draft.remove_all()
        if not target.sop_uids:
            removed = draft.remove_series(target.series_uid)
            if not removed:
                raise NothingToDeleteError("no such series in this study")
            return removed
        found = []
        for sop_uid in dict.fromkeys(target.sop_uids):
            records = frozenset([target.version]) if target.version else None
            one = draft.remove(target.series_uid, sop_uid, records, newest_current=self._newest_current)
            if one is None:
                what = "version of this instance" if target.version else "instance in this series"
                raise NothingToDeleteError(f"no such {what}; nothing was deleted")
            found.append(one)
        return found

    def _take(
        self,
        snapshot: Snapshot,
        batch: Batch,
        taken: tuple[StudyDraft, Sequence[Removed]],
        found: _Found,
        carried: Carried,
    ) -> None:
        """Note every record of what a draft takes out, further ones of the same objects included."""
        draft, removed = taken
        has_spares = any(True for _ in snapshot.scan(SPARE, limit=1))
        whole: dict[str, int] = {}
        for one in removed:
            for row in one.rows:
                self._note(found, one.series_uid, one.sop_uid, row, carried)
                if has_spares:
                    self._take_spares(snapshot, batch, one, row, found)
            stays = one.sop_uid in draft.series(one.series_uid).added
            found.instances += not stays
            found.versions += len(one.rows) - (not stays)
            whole[one.series_uid] = whole.get(one.series_uid, 0) + (not stays)
        found.series = sum(not draft.series(uid).instances for uid in whole)

    def _note(self, found: _Found, series_uid: str, sop_uid: str, row: InstanceRow, carried: Carried) -> None:
        location = row.location
        found.records.append((series_uid, sop_uid, location.record_id))
        places = found.places.setdefault(location.record_id, {})
        places[location.segment] = carried.stored_bytes(location)

    def _take_spares(
        self, snapshot: Snapshot, batch: Batch, one: Removed, row: InstanceRow, found: _Found
    ) -> None:
        record_id = row.location.record_id
        for key, held in snapshot.scan(SPARE, prefix=record_id):
            other, segment = key[16:32], key[32:]  # counted as dead when it was found
            if other != record_id:
                found.records.append((one.series_uid, one.sop_uid, other))
            found.places.setdefault(other, {}).setdefault(segment, 0)
            batch.require(SPARE, key, held)
            batch.delete(SPARE, key)

    def _take_quarantined(
        self, snapshot: Snapshot, batch: Batch, record_id: bytes, found: _Found, carried: Carried
    ) -> None:
        held = snapshot.get(QUARANTINE, record_id)
        if held is None:
            raise NothingToDeleteError("no such object in quarantine")
        row = self.catalog.open_row(QUARANTINE, record_id, held, QuarantineRow)
        batch.require(QUARANTINE, record_id, held)
        batch.delete(QUARANTINE, record_id)
        found.quarantined = 1
        found.records.append(("", "", record_id))
        found.places[record_id] = {row.location.segment: carried.stored_bytes(row.location)}

    def _bury(self, snapshot: Snapshot, batch: Batch, found: _Found, now_ns: int) -> None:
        for _, _, record_id in found.records:
            held = snapshot.get(TOMBSTONE, record_id) or b""
            for segment, length in found.places[record_id].items():
                named = with_segments(held, [segment])
                if named != held and length:  # or catching up has met it, and counted it
                    found.dead.add(segment, length)
                held = named
            batch.put(TOMBSTONE, record_id, held)
        found.dead.plan(snapshot, batch, now_ns)

    def _announce(
        self, batch: Batch, study_uid: str, records: Sequence[tuple[str, str, bytes]], now_ns: int
    ) -> None:
        for start in range(0, len(records), EVENT_INSTANCES_MAX):
            members = records[start : start + EVENT_INSTANCES_MAX]
            event = Event(EVENT_DELETED, now_ns, {"study": study_uid, "instances": members})
            self._journal.append(batch, event)

    # ------------------------------------------------------------ replaying

    def _apply(self, snapshot: Snapshot, batch: Batch, event: Event) -> None:
        """Delete again what a fact names and this index still has."""
        batch.uses_reserve = True
        body: Mapping[str, Any] = event.body["body"]
        by_instance: dict[tuple[str, str], set[bytes]] = {}
        records = _records(event)
        for series_uid, sop_uid, record_id in records:
            by_instance.setdefault((series_uid, sop_uid), set()).add(record_id)
        carried, found = Carried(self._indexer), _Found()
        if body["study"]:
            draft = StudyDraft(self.catalog, snapshot, body["study"])
            removed = []
            for (series_uid, sop_uid), ids in by_instance.items():
                one = draft.remove(series_uid, sop_uid, frozenset(ids), newest_current=self._newest_current)
                if one is not None:
                    removed.append(one)
            if removed:
                self._take(snapshot, batch, (draft, removed), found, carried)
                carried.settle(draft)
                _absorb(batch, draft.finish(event.at_ns))
        else:
            for _, _, record_id in records:
                if snapshot.get(QUARANTINE, record_id) is not None:
                    self._take_quarantined(snapshot, batch, record_id, found, carried)
        self._bury(snapshot, batch, found, event.at_ns)
        self._announce(batch, body["study"], found.records, event.at_ns)
        for _, _, record_id in records:
            if record_id not in found.places and snapshot.get(TOMBSTONE, record_id) is None:
                batch.put(TOMBSTONE, record_id, b"")


def _records(event: Event) -> list[tuple[str, str, bytes]]:
    return [(series, sop, record_id) for series, sop, record_id in event.body["records"]]


def _absorb(batch: Batch, other: Batch) -> None:
    """Have ``batch`` do what ``other`` does, too."""
    batch.preconditions += other.preconditions
    batch.puts += other.puts
    batch.deletes += other.deletes
    batch.adds += other.adds
    batch.removes += other.removes
    batch.appends += other.appends
    batch.before_commit += other.before_commit


def announce_tombstones(store: KeyValueStore, facts: Iterable[Event]) -> int:
    """Write tombstones for deletions that are to be replayed, so that what they deleted stays out.

    For an index that is behind the ledger: an empty one, or one restored from a backup. How many.
    """
    count = 0
    for event in facts:
        if event.kind != FACT_DELETION:
            continue
        ids = [record_id for _, _, record_id in _records(event)]
        for start in range(0, len(ids), EVENT_INSTANCES_MAX):
            some = ids[start : start + EVENT_INSTANCES_MAX]
            batch = Batch(uses_reserve=True)
            with store.snapshot() as snapshot:
                held = snapshot.get_many(TOMBSTONE, some)
            for record_id, known in zip(some, held, strict=True):
                if known is None:
                    batch.put(TOMBSTONE, record_id, b"")
            store.commit(batch)
        count += len(ids)
    return count
