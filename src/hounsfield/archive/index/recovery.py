"""The logs are the archive, the index is a view of them: catching up after a crash, and building it anew.

*Catching up* replays the tail of every segment that was not closed in order: records that are durable
but, because their worker died, not indexed. *Reindexing* fills an empty index from all segments and the
ledger. Both go the way of every other record (:class:`~hounsfield.archive.index.indexing.Indexer`),
so doing either twice changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import structs

from hounsfield.archive.index.catalog import Stored
from hounsfield.archive.index.contents import given_up_bytes
from hounsfield.archive.index.deletion import announce_tombstones
from hounsfield.archive.index.far_packs import FarPacks
from hounsfield.archive.index.indexing import Indexer, Outcome, progress_batch
from hounsfield.archive.index.journal import Journal, Pending
from hounsfield.archive.index.object_rows import ObjectRows
from hounsfield.archive.index.packs import HOT, PackRow, pack_of, packs_among, plan_pack
from hounsfield.archive.index.rejections_in_force import FACT_REJECTION, announce_rejections, expired_at
from hounsfield.archive.index.remaining import settle_order
from hounsfield.archive.index.rescan import rescanned
from hounsfield.archive.index.rows import (
    RECORD_KIND_OBJECT,
    Location,
    SegmentRow,
    decode,
)
from hounsfield.archive.index.tables import META, SEGMENT
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.errors import KeyringError, PoisonedError, SealError, StorageError
from hounsfield.storage_backends.segment_scan import Damage, DamageReason, ScannedRecord

_FAR = "a pack in another tier does not open"
TORN = DamageReason.TORN_TAIL.value
GROUP_RECORDS = (
    256  # indexed in one transaction: large enough to share its sync, small enough to hold no lock long
)
REINDEX_GROUP_RECORDS = 1024  # nobody else waits for the lock then
_UNSETTLED = b"recovery/unsettled"  # in META while an index is filled anew
TAIL_RECORDS = 4096  # as many as one group may have where no padding tells groups apart


@dataclass(slots=True)
class RecoveryReport:
    """What a recovery found. ``damage`` counts stretches by reason; a torn tail was never acknowledged."""

    segments: int = 0
    records: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    facts: int = 0
    deleted: int = 0  # records met that were deleted
    damage: dict[str, int] = field(default_factory=dict)
    unreadable_segments: int = 0
    far_packs: int = 0  # indexed by what other tiers list and their contents say
    given_up: int = 0  # large objects that were never received whole; their segments were removed
    given_up_bytes: int = 0

    def saw(self, damage: Damage) -> None:
        self.damage[damage.reason.value] = self.damage.get(damage.reason.value, 0) + 1

    @property
    def damaged(self) -> int:
        """Stretches that are damage, not just an append that a crash cut short."""
        return sum(n for reason, n in self.damage.items() if reason != TORN)


def catch_up(
    indexer: Indexer,
    journal: Journal,
    is_being_written: Callable[[bytes], bool],
    *,
    at_start: bool,
    far: FarPacks | None = None,
) -> RecoveryReport:
    """Index what dead workers made durable and did not index; then mark their segments closed.

    Segments that a live worker writes to (``is_being_written``) are left alone. The ledger is replayed only
    ``at_start``, while nobody else commits: a fact in it may be in the middle of its commit. ``far``: what
    the tiers list, of which what the index does not know is indexed, too.
    """
    report = RecoveryReport()
    pending = journal.pending(report.saw) if at_start else Pending([], [])
    with indexer.store.snapshot() as snapshot:
        known = {key: decode(SegmentRow, value) for key, value in snapshot.scan(SEGMENT)}
    _announce(indexer, journal, pending, index_is_empty=not known)
    segments = indexer.log.segment_ids()
    if at_start and not known and len(segments) > 1:
        note_unsettled(indexer)  # the index was lost: it is filled anew
    if far is not None and far.packs.keys() - known.keys():
        note_unsettled(indexer)
    packs: dict[bytes, PackRow] = {}
    if at_start and is_unsettled(indexer):
        packs = _packs_first(indexer, segments, report, far, known)
        _index_far(indexer, packs, segments, report, far)
    for segment in segments:
        row = known.get(segment)
        if (row is not None and row.closed) or is_being_written(segment):
            continue
        if not at_start and not indexer.log.size(segment):
            continue  # just created, and its writer may be about to lock it
        report.segments += 1
        try:
            # Its writer may have died before its sync. What the index names must not go with the next power
            # cut, and senders who try again will be told that it is held.
            indexer.log.make_durable(segment)
            if row is None and (given_up := given_up_bytes(indexer.log, segment)):
                indexer.log.remove(segment)
                report.given_up += 1
                report.given_up_bytes += given_up
                continue
            end = _index_segment(indexer, segment, row.indexed_to if row else None, report, verify=True)
        except (KeyringError, PoisonedError):
            report.unreadable_segments += 1  # stays open: it is looked at again when key or disk are back
            continue
        indexer.store.commit(_done(segment, end, packs))
    report.facts = journal.replay(pending)
    indexer.expired = {}
    if at_start:
        _settle(indexer)
    return report


def catch_up_segment(indexer: Indexer, segment: bytes) -> RecoveryReport:
    """Index what one segment, to which nobody writes, holds and the index has not; then it is closed.

    Raises as reading it does.
    """
    report = RecoveryReport(segments=1)
    with indexer.store.snapshot() as snapshot:
        held = snapshot.get(SEGMENT, segment)
    row = None if held is None else decode(SegmentRow, held)
    if row is None or not row.closed:
        indexer.log.make_durable(segment)
        end = _index_segment(indexer, segment, row.indexed_to if row else None, report, verify=True)
        indexer.store.commit(progress_batch({segment: end}, closed=True))
    return report


def reindex(
    indexer: Indexer,
    journal: Journal,
    progress: Callable[[int, int], None],
    *,
    rescan: bool = False,
    far: FarPacks | None = None,
) -> RecoveryReport:
    """Fill an empty index from every segment, then every fact. ``progress(done, segments)``.

    ``rescan``: attributes are told anew from the objects' headers, not taken from their records' rows.
    ``far``: packs that lie in other tiers, which are indexed by their contents.
    """
    report = RecoveryReport()
    pending = journal.pending(report.saw)
    _announce(indexer, journal, pending, index_is_empty=True)
    segments = indexer.log.segment_ids()
    if not rescan:  # what records carry is not what they were told to say
        note_unsettled(indexer)
    packs = _packs_first(indexer, segments, report, far)
    _index_far(indexer, packs, segments, report, far, rescan=rescan, progress=progress)
    for done, segment in enumerate(segments):
        progress(done, len(segments))
        report.segments += 1
        try:
            indexer.log.make_durable(segment)
            if given_up_bytes(indexer.log, segment):
                continue  # not marked as known: the next start removes it
            end = indexer.log.size(segment)
            stored = _stored(indexer, segment, None, report, verify=False, rescan=rescan)
            for group in _groups(stored, REINDEX_GROUP_RECORDS):
                _index(indexer, group, report)
        except (KeyringError, PoisonedError):
            report.unreadable_segments += 1
            continue
        indexer.store.commit(_done(segment, end, packs))
    report.facts = journal.replay(pending)
    indexer.expired = {}
    _settle(indexer)
    progress(len(segments), len(segments))
    return report


def _announce(indexer: Indexer, journal: Journal, pending: Pending, *, index_is_empty: bool) -> None:
    """Before anything is indexed: what was deleted or rejected stays out, also of an older index."""
    announce_tombstones(indexer.store, (event for _, event, _ in pending.facts))
    facts = [event for _, event, _ in pending.facts]
    announce_rejections(indexer, facts, index_is_empty=index_is_empty)
    with indexer.store.snapshot() as snapshot:
        known = journal.state(snapshot, FACT_REJECTION)
        indexer.expired = expired_at(
            [*known, *(one.body["body"] for one in facts if one.kind == FACT_REJECTION)]
        )


def note_unsettled(indexer: Indexer) -> None:
    """Note that segments are read in any order, so that also who goes on after a kill settles who speaks."""
    batch = Batch(uses_reserve=True)
    batch.put(META, _UNSETTLED, b"1")
    indexer.store.commit(batch)


def is_unsettled(indexer: Indexer) -> bool:
    """Whether an index that was lost is being filled, and is not yet all that it was."""
    with indexer.store.snapshot() as snapshot:
        return snapshot.get(META, _UNSETTLED) is not None


def _packs_first(
    indexer: Indexer,
    segments: list[bytes],
    report: RecoveryReport,
    far: FarPacks | None,
    known: Container[bytes] = (),
) -> dict[bytes, PackRow]:
    """The packs among the segments of an index that is filled anew, moved to the front, and the far ones.

    A record that is in a pack and at the place that it was gathered from is the pack's, as it was. A pack
    whose row does not name the hot tier lies elsewhere: it is taken out of ``segments``.
    """
    packs = packs_among(indexer.log, indexer.catalog, segments)
    if far is not None:
        wanted = [segment for segment in far.packs if segment not in known]
        for segment, found in far.read(wanted, indexer.catalog):
            if isinstance(found, KeyringError):
                report.unreadable_segments += 1
            elif isinstance(found, StorageError):
                report.damage[_FAR] = report.damage.get(_FAR, 0) + 1
            elif segment not in packs:
                packs[segment] = found.row
            elif packs[segment].digest == found.row.digest:
                copies = {**found.row.copies, **packs[segment].copies}
                packs[segment] = structs.replace(packs[segment], copies=copies)
    packs = dict(sorted(packs.items(), key=lambda one: (-one[1].made_ns, one[0])))
    here = [segment for segment, row in packs.items() if HOT in row.copies]
    segments[:] = [*here, *(segment for segment in segments if segment not in packs)]
    return packs


def _index_far(
    indexer: Indexer,
    packs: Mapping[bytes, PackRow],
    segments: list[bytes],
    report: RecoveryReport,
    far: FarPacks | None,
    *,
    rescan: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Index, by their contents, the packs that only lie elsewhere; those made last come first."""
    elsewhere = [segment for segment, row in packs.items() if HOT not in row.copies]
    if far is None or not elsewhere:
        return
    for done, (segment, found) in enumerate(far.read(elsewhere, indexer.catalog)):
        progress(done, len(elsewhere) + len(segments))
        if isinstance(found, StorageError):
            report.damage[_FAR] = report.damage.get(_FAR, 0) + 1
            continue
        with indexer.store.snapshot() as snapshot:
            is_known = pack_of(snapshot, segment) is not None
        if not is_known:  # first of all: a record in it is found by this
            batch = Batch(uses_reserve=True)
            plan_pack(batch, segment, packs[segment])
            indexer.store.commit(batch)
        stored = _objects(indexer, ObjectRows(), found.records, report, verify=False, rescan=rescan)
        for group in _groups(stored, REINDEX_GROUP_RECORDS):
            _index(indexer, group, report)
        indexer.store.commit(progress_batch({segment: packs[segment].size}, closed=True))
        report.far_packs += 1


def _done(segment: bytes, end: int, packs: Mapping[bytes, PackRow]) -> Batch:
    """The batch that says that a segment is in the index, and that it is a pack when it is one."""
    batch = progress_batch({segment: end}, closed=True)
    if segment in packs:
        plan_pack(batch, segment, packs[segment])
    return batch


def _settle(indexer: Indexer) -> None:
    """Have studies say what the first received of their objects say, where that was noted to be open."""
    if not is_unsettled(indexer):
        return
    settle_order(indexer)
    batch = Batch(uses_reserve=True)
    batch.delete(META, _UNSETTLED)
    indexer.store.commit(batch)


def _index_segment(
    indexer: Indexer, segment: bytes, start: int | None, report: RecoveryReport, *, verify: bool
) -> int:
    """Index the records of one segment from ``start``; return how far it was read.

    ``verify`` opens every part of each record first; without, only of those that a crash may have torn.
    """
    end = indexer.log.size(segment)
    for group in _groups(_stored(indexer, segment, start, report, verify=verify), GROUP_RECORDS):
        _index(indexer, group, report)
    return end


def _index(indexer: Indexer, group: list[Stored], report: RecoveryReport) -> None:
    deleted: set[int] = set()
    for i, outcome in enumerate(indexer.add(group, uses_reserve=True, deleted=deleted)):
        if i in deleted:
            report.deleted += 1
        else:
            report.outcomes[outcome] += 1


def _stored(
    indexer: Indexer,
    segment: bytes,
    start: int | None,
    report: RecoveryReport,
    *,
    verify: bool,
    rescan: bool = False,
) -> Iterator[Stored]:
    """The objects of a segment. Those of its last group are whole: they are opened, or left out.

    After a power cut a record's row can be whole and its frames holes, but only in the group that was never
    synced: a writer syncs one group before it writes the next. Padding ends a group; where a file system has
    none, a group has no more than so many records.
    """
    rows = ObjectRows()
    tail: deque[ScannedRecord] = deque()
    end: int | None = None
    for record in indexer.log.scan(segment, start=start):
        if isinstance(record, Damage):
            report.saw(record)
            end = record.offset + record.length
            continue
        if end is not None and record.ref.offset != end:
            yield from _objects(indexer, rows, tail, report, verify=verify, rescan=rescan)
            tail.clear()
        elif len(tail) == TAIL_RECORDS:
            yield from _objects(indexer, rows, [tail.popleft()], report, verify=verify, rescan=rescan)
        tail.append(record)
        end = record.ref.offset + record.length
    yield from _objects(indexer, rows, tail, report, verify=True, rescan=rescan)


def _objects(
    indexer: Indexer,
    rows: ObjectRows,
    records: Iterable[ScannedRecord],
    report: RecoveryReport,
    *,
    verify: bool,
    rescan: bool,
) -> Iterator[Stored]:
    for record in records:
        if record.kind != RECORD_KIND_OBJECT:
            continue
        report.records += 1
        try:
            if verify:
                indexer.log.verify(record.ref)
            row = rows.decode(record.row)
            if rescan:
                row = rescanned(row, indexer.log.open_part(record.ref.part(1)))
        except SealError:
            report.damage[TORN] = report.damage.get(TORN, 0) + 1
            continue
        except msgspec.MsgspecError:
            report.damage["row is not ours"] = report.damage.get("row is not ours", 0) + 1
            continue
        yield Stored(row, Location.of(record.ref, row.stream))


def _groups(stored: Iterator[Stored], records: int) -> Iterator[list[Stored]]:
    """Groups in which no two objects share all their UIDs: the second must see the first."""
    group: list[Stored] = []
    keys: set[tuple[str, str, str]] = set()
    for one in stored:
        key = (one.row.study_uid, one.row.series_uid, one.row.sop_uid)
        if len(group) == records or (key in keys and not one.row.quarantine):
            yield group
            group, keys = [], set()
        group.append(one)
        keys.add(key)
    if group:
        yield group
