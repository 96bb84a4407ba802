"""Rewriting a segment: what is needed of it moves to a new segment with a new key, and the old one goes.

That is how deleted bytes leave the disk and become unreadable everywhere (compaction), how a segment gets
another key (re-keying), and how what still opens is brought out of a damaged one. Records keep their ids:
what moves is the same object at another place. In this order, each step durable before the next:

1. what the segment holds and the index has not heard of is indexed, so that nothing is dropped unseen;
2. the records that rows point at are opened, sealed again with the new key, written, synced, read back;
3. the rows are switched, each only if nobody changed it meanwhile; with the last ones, in the same commit,
   the new segment counts as indexed and the old one as *emptied*;
4. the index is synced; then the old blob is deleted and its key destroyed; then they are forgotten.

Killed before the last commit of 3, the new segment is a stranger: the next start meets its records as
further copies of what is there and counts them as dead, and compaction removes them. Killed later, the old
segment is emptied, and :meth:`Rewriter.remove_emptied` goes on. A record in two segments is one object.

An old segment of which something does not open, or of which a stretch cannot be read, keeps its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
from msgspec import structs

from hounsfield.archive.index.carrying import (
    Carried,
    Carrier,
    Pace,
    RewriteLimits,
    StoppedError,
    UnopenedParts,
)
from hounsfield.archive.index.catalog import Stored
from hounsfield.archive.index.indexing import Indexer, progress_batch
from hounsfield.archive.index.packs import HOT, pack_of
from hounsfield.archive.index.recovery import catch_up_segment
from hounsfield.archive.index.rows import (
    RECORD_KIND_OBJECT,
    InstanceRow,
    Location,
    ObjectRow,
    QuarantineRow,
    decode,
    encode,
)
from hounsfield.archive.index.switching import Switching
from hounsfield.archive.index.tables import INSTANCE, QUARANTINE, SPARE, USE, VERSION
from hounsfield.archive.index.use import use_of, uses
from hounsfield.storage_backends.api import Batch, Snapshot, Table
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    KeyringError,
    SealError,
    ShortReadError,
)
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_format import RecordRef
from hounsfield.storage_backends.segment_scan import Damage, DamageReason, ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog


@dataclass(slots=True)
class RewriteReport:
    """What became of one segment. ``removed``: its blob and key are gone. Bytes are stored bytes."""

    segment: bytes
    size: int = 0
    moved: int = 0
    moved_bytes: int = 0
    dropped: int = 0
    damaged: int = 0
    new_segments: tuple[bytes, ...] = ()
    removed: bool = False
    kept_because: str = ""

    @property
    def freed_bytes(self) -> int:
        """What the disk gets back."""
        return self.size - self.moved_bytes if self.removed else 0


@dataclass(slots=True)
class _Walk:
    """What a walk over a segment met."""

    torn: bool = False
    unreadable: int = 0  # stretches that may hide a record
    damaged: int = 0  # records that rows point at and that do not open
    dropped: int = 0
    moved: list[Carried] = field(default_factory=list)


class Rewriter:
    """Rewrites segments that nobody writes to. Blocking; one thread at a time, under a lease."""

    def __init__(
        self,
        indexer: Indexer,
        limits: RewriteLimits | None = None,
        *,
        clock: Callable[[], int] = time.time_ns,
        leaves_packs: bool = False,
    ) -> None:
        """``leaves_packs``: they are emptied only, and whoever asks every tier for leftovers of them removes
        them (:class:`~hounsfield.archive.index.remains.Remains`)."""
        self._indexer = indexer
        self._clock = clock
        self._leaves_packs = leaves_packs
        self._log: SegmentLog = indexer.log
        self._limits = limits or RewriteLimits()
        self._rows = Switching(indexer, clock)
        self._switching = False

    def rewrite_segment(
        self, segment: bytes, *, pace: Pace = lambda _: None, remove: bool = True, packs: bool = False
    ) -> RewriteReport:
        """Move what is needed of ``segment`` to a new one with a new key; then delete it and destroy its key.

        Every record that a row points at is at its new place, durable and read back, when this returns; what
        was deleted is nowhere. Nothing is copied when nothing is needed. ``remove`` False: only emptied, and
        somebody calls :meth:`remove_emptied` a little later, which readers notice less. ``packs``: also of a
        pack, what is needed goes to a segment that is none; see ``Gatherer.renew`` first. The report's
        ``kept_because`` says why a segment could not go: it is being written, it lacks its key, it is a pack
        of which something is needed (see :mod:`~hounsfield.archive.index.gathering`) or which other tiers
        have, too, or something of it is damaged (then what opens was moved all the same). May be stopped and
        killed anywhere; calling it again goes on.

        Raises what a failing disk raises, and what ``pace`` does.
        """
        report = RewriteReport(segment)
        try:
            if self._log.is_being_written(segment):
                report.kept_because = "it is being written"
                return report
            report.size = self._log.size(segment)
            if not packs and self._is_needed_pack(segment):
                report.kept_because = "it is a pack, and something of it is needed"
                return report
            catch_up_segment(self._indexer, segment)
        except BlobNotFoundError:
            report.kept_because = "it is not there"
            return report
        except KeyringError:
            report.kept_because = "its key is missing"
            return report
        copy = Carrier(self._log, self._limits)
        self._switching = False
        try:
            try:
                walk = self._walk(segment, copy, pace)
            except KeyringError:
                copy.give_up(remove=True)
                report.kept_because = "its key is missing"
                return report
            if walk.torn and not walk.unreadable and self._points_at(segment, walk.moved):
                walk.unreadable += 1  # a tear that a row points into is damage
            report.damaged = walk.damaged + walk.unreadable
            report.dropped, report.moved = walk.dropped, len(walk.moved)
            report.new_segments = copy.segments
            report.moved_bytes = sum(map(self._log.size, copy.segments))
            if report.damaged:
                report.kept_because = "something of it is damaged"
            self._switch(segment, walk, copy.segments, is_emptied=not report.damaged)
        except BaseException:
            copy.give_up(remove=not self._switching)
            raise
        copy.close()
        if not report.damaged and remove:
            report.removed = self._remove(segment)
            if not report.removed:
                report.kept_because = "other tiers have copies of it, which go first"
        return report

    def remove_emptied(self, *, before_ns: int | None = None) -> int:
        """Remove every segment that was emptied (before a moment); how many. Also after a crash.

        A pack stays as long as other tiers have copies of it: nobody would know of them any more.
        """
        with self._indexer.store.snapshot() as snapshot:
            found = [
                segment
                for segment, use in uses(snapshot)
                if use.emptied and (before_ns is None or use.changed_ns < before_ns)
            ]
        return sum(map(self._remove, found))

    def _remove(self, segment: bytes) -> bool:
        with self._indexer.store.snapshot() as snapshot:
            pack = pack_of(snapshot, segment)
        if pack is not None and (self._leaves_packs or set(pack.copies) - {HOT}):
            return False
        self._indexer.store.sync()  # or a power cut could bring back rows that point at what is gone
        self._log.remove(segment)
        self._rows.forget(segment)
        return True

    def _is_needed_pack(self, segment: bytes) -> bool:
        """Whether it is a pack of which not all is dead."""
        with self._indexer.store.snapshot() as snapshot:
            pack = pack_of(snapshot, segment)
            return pack is not None and use_of(snapshot, Batch(), segment).dead_records < pack.objects

    # ------------------------------------------------------------ reading the old segment

    def _walk(self, segment: bytes, copy: Carrier, pace: Pace) -> _Walk:
        walk = _Walk()
        group: list[ScannedRecord] = []
        for record in self._log.scan(segment):
            if isinstance(record, Damage):
                if record.reason is DamageReason.TORN_TAIL:
                    walk.torn = True
                elif record.reason is not DamageReason.HEADER:
                    walk.unreadable += 1
            elif record.kind == RECORD_KIND_OBJECT:
                group.append(record)
                if len(group) == self._limits.group_records:
                    self._take(group, walk, copy, pace)
                    group = []
        self._take(group, walk, copy, pace)
        walk.moved += copy.flush(pace)
        return walk

    def _take(self, group: Sequence[ScannedRecord], walk: _Walk, copy: Carrier, pace: Pace) -> None:
        """Copy those of a group that rows point at."""
        stored: list[tuple[ScannedRecord, Stored]] = []
        for record in group:
            try:
                row = decode(ObjectRow, record.row)
                stored.append((record, Stored(row, Location.of(record.ref, row.stream))))
            except (msgspec.MsgspecError, ValueError):
                walk.unreadable += 1
        with self._indexer.store.snapshot() as snapshot:
            live = [(record, one) for record, one in stored if self._is_live(snapshot, record.ref, one.row)]
        walk.dropped += len(stored) - len(live)
        for record, one in live:
            try:
                walk.moved += self._carry(record, one, copy, pace)
            except (SealError, ShortReadError):
                walk.damaged += 1

    def _carry(self, record: ScannedRecord, stored: Stored, copy: Carrier, pace: Pace) -> list[Carried]:
        ref = record.ref
        if stored.location.stream is not None:
            return [copy.add_stream(ref, stored, pace)]
        pace(ref.length)
        self._log.verify(ref)
        unopened = RecordIn(record.kind, UnopenedParts(self._log, ref), ref.record_id)
        return copy.add(unopened, stored.row, ref.length, pace)

    def _is_live(self, snapshot: Snapshot, ref: RecordRef, row: ObjectRow) -> bool:
        live = self._rows.find(snapshot, row, ref.record_id)
        place = None if live is None else live.row.location
        return place is not None and (place.segment, place.offset) == (ref.segment, ref.offset)

    def _points_at(self, segment: bytes, moved: Iterable[Carried]) -> bool:
        """Whether any row points at a record of the segment that was not met. Looks at every row there is."""
        known = {one.location.record_id for one in moved}
        catalog = self._indexer.catalog
        tables: tuple[tuple[Table, type[InstanceRow | QuarantineRow]], ...] = (
            (INSTANCE, InstanceRow),
            (VERSION, InstanceRow),
            (QUARANTINE, QuarantineRow),
        )
        for table, kind in tables:
            after: bytes | None = None
            while True:
                with self._indexer.store.snapshot() as snapshot:
                    rows = list(snapshot.scan(table, after=after, limit=2000))
                    for key, held in rows:
                        location: Location = catalog.open_row(table, key, held, kind).location
                        if location.segment == segment and location.record_id not in known:
                            return True
                if not rows:
                    break
                after = rows[-1][0]
        return False

    # ------------------------------------------------------------ switching rows

    def _switch(
        self, segment: bytes, walk: _Walk, new_segments: tuple[bytes, ...], *, is_emptied: bool
    ) -> None:
        self._switching = True
        size = self._limits.group_records
        groups = [walk.moved[start : start + size] for start in range(0, len(walk.moved), size)] or [[]]
        for group in groups[:-1]:
            self._rows.commit(partial(self._switched, segment=segment, group=group), size)

        def last(snapshot: Snapshot) -> Batch:
            batch = self._switched(snapshot, segment=segment, group=groups[-1])
            for new in new_segments:
                done = progress_batch({new: self._log.size(new)}, closed=True)
                batch.puts += done.puts
            use = use_of(snapshot, batch, segment)
            pack = pack_of(snapshot, segment)
            if pack is not None and is_emptied:  # also of what was moved out of it: whoever has copies asks
                use = structs.replace(use, dead_records=max(use.dead_records, pack.objects))
            batch.put(USE, segment, encode(structs.replace(
                use, emptied=is_emptied, damaged=walk.damaged + walk.unreadable, changed_ns=self._clock()
            )))  # fmt: skip
            if is_emptied:
                for key, _ in snapshot.scan(SPARE):
                    if key[32:] == segment:
                        batch.delete(SPARE, key)
            return batch

        self._rows.commit(last, size)

    def _switched(self, snapshot: Snapshot, *, segment: bytes, group: Sequence[Carried]) -> Batch:
        batch = Batch(uses_reserve=True)
        self._rows.plan(snapshot, batch, group, leaving=segment)
        return batch


__all__ = ["Pace", "RewriteLimits", "RewriteReport", "Rewriter", "StoppedError"]
