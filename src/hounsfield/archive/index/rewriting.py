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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import structs

from hounsfield.archive.index.catalog import Stored
from hounsfield.archive.index.contents import open_pieces
from hounsfield.archive.index.indexing import Indexer, progress_batch
from hounsfield.archive.index.journal import COMMIT_ATTEMPTS_MAX
from hounsfield.archive.index.recovery import catch_up_segment
from hounsfield.archive.index.rows import (
    RECORD_KIND_OBJECT,
    RECORD_KIND_PIECE,
    InstanceRow,
    Location,
    ObjectRow,
    QuarantineRow,
    decode,
    encode,
)
from hounsfield.archive.index.tables import INSTANCE, QUARANTINE, SPARE, TOMBSTONE, USE, VERSION
from hounsfield.archive.index.use import DeadRecords, forget_segment, use_of, uses, with_segments
from hounsfield.storage_backends.api import Batch, Buffer, Snapshot, Table
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    KeyringError,
    PreconditionError,
    SealError,
    ShortReadError,
)
from hounsfield.storage_backends.segment_stream import SegmentStream
from hounsfield.storage_backends.segments import (
    Damage,
    DamageReason,
    RecordIn,
    RecordRef,
    ScannedRecord,
    SegmentLog,
)

ATTEMPTS_BESIDE_OTHERS = 3  # then rows are switched under the store's lock

Pace = Callable[[int], None]
"""Called before so many bytes are read or written: waits as long as the throttle wants, or raises to stop."""


class StoppedError(Exception):
    """Raised by a pace: stop here. Nothing is lost, and what was begun is begun again."""


@dataclass(frozen=True, slots=True)
class RewriteLimits:
    """How much is done at a time."""

    group_bytes: int = 8 << 20
    """Copied with one write and one sync; also what a throttle is asked for at once. The arena for it is
    memory of the process that compacts."""

    group_records: int = 256
    """Looked up in one snapshot and switched in one commit: about 3 ms during which others wait."""


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


class _Live(NamedTuple):
    """A row that points into a segment."""

    table: Table
    key: bytes
    held: bytes
    row: InstanceRow | QuarantineRow


@dataclass(slots=True)
class _Moved:
    """A record that was copied: what it carries, where it is now, and how long it is there."""

    row: ObjectRow
    location: Location
    length: int


@dataclass(slots=True)
class _Walk:
    """What a walk over a segment met."""

    torn: bool = False
    unreadable: int = 0  # stretches that may hide a record
    damaged: int = 0  # records that rows point at and that do not open
    dropped: int = 0
    pieces: int = 0
    moved: list[_Moved] = field(default_factory=list)


class Rewriter:
    """Rewrites segments that nobody writes to. Blocking; one thread at a time, under a lease."""

    def __init__(
        self,
        indexer: Indexer,
        limits: RewriteLimits | None = None,
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._indexer = indexer
        self._clock = clock
        self._log: SegmentLog = indexer.log
        self._limits = limits or RewriteLimits()
        self._switching = False

    def rewrite_segment(
        self, segment: bytes, *, pace: Pace = lambda _: None, remove: bool = True
    ) -> RewriteReport:
        """Move what is needed of ``segment`` to a new one with a new key; then delete it and destroy its key.

        Every record that a row points at is at its new place, durable and read back, when this returns; what
        was deleted is nowhere. Nothing is copied when nothing is needed. ``remove`` False: only emptied, and
        somebody calls :meth:`remove_emptied` a little later, which readers notice less. The report's
        ``kept_because`` says why a segment could not go: it is being written, it lacks its key, or something
        of it is damaged (then what opens was moved all the same). May be stopped and killed anywhere; calling
        it again goes on.

        Raises what a failing disk raises, and what ``pace`` does.
        """
        report = RewriteReport(segment)
        try:
            if self._log.is_being_written(segment):
                report.kept_because = "it is being written"
                return report
            report.size = self._log.size(segment)
            catch_up_segment(self._indexer, segment)
        except BlobNotFoundError:
            report.kept_because = "it is not there"
            return report
        except KeyringError:
            report.kept_because = "its key is missing"
            return report
        copy = _Copy(self._log, self._limits)
        self._switching = False
        try:
            walk = self._walk(segment, copy, pace)
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
            self._remove(segment)
            report.removed = True
        return report

    def remove_emptied(self, *, before_ns: int | None = None) -> int:
        """Remove every segment that was emptied (before a moment); how many. Also after a crash."""
        with self._indexer.store.snapshot() as snapshot:
            found = [
                segment
                for segment, use in uses(snapshot)
                if use.emptied and (before_ns is None or use.changed_ns < before_ns)
            ]
        for segment in found:
            self._remove(segment)
        return len(found)

    def _remove(self, segment: bytes) -> None:
        self._indexer.store.sync()  # or a power cut could bring back rows that point at what is gone
        self._log.remove(segment)
        batch = Batch(uses_reserve=True)
        forget_segment(batch, segment)
        self._indexer.store.commit(batch)

    # ------------------------------------------------------------ reading the old segment

    def _walk(self, segment: bytes, copy: _Copy, pace: Pace) -> _Walk:
        walk = _Walk()
        group: list[ScannedRecord] = []
        for record in self._log.scan(segment):
            if isinstance(record, Damage):
                if record.reason is DamageReason.TORN_TAIL:
                    walk.torn = True
                elif record.reason is not DamageReason.HEADER:
                    walk.unreadable += 1
            elif record.kind == RECORD_KIND_PIECE:
                walk.pieces += 1
            elif record.kind == RECORD_KIND_OBJECT:
                group.append(record)
                if len(group) == self._limits.group_records:
                    self._take(group, walk, copy, pace)
                    group = []
        self._take(group, walk, copy, pace)
        walk.moved += copy.flush(pace)
        return walk

    def _take(self, group: Sequence[ScannedRecord], walk: _Walk, copy: _Copy, pace: Pace) -> None:
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
                walk.moved += copy.add(record, one, pace)
            except (SealError, ShortReadError):
                walk.damaged += 1

    def _is_live(self, snapshot: Snapshot, ref: RecordRef, row: ObjectRow) -> bool:
        live = self._find(snapshot, row, ref.record_id, ref.segment)
        return live is not None and live.row.location.offset == ref.offset

    def _find(self, snapshot: Snapshot, row: ObjectRow, record_id: bytes, segment: bytes) -> _Live | None:
        """The row that points at this record in this segment."""
        catalog = self._indexer.catalog
        found: list[tuple[Table, bytes, type[InstanceRow | QuarantineRow]]] = []
        if row.quarantine:
            found.append((QUARANTINE, record_id, QuarantineRow))
        else:
            key = catalog.instance_key(*catalog.place_of(snapshot, row))
            found += [(INSTANCE, key, InstanceRow), (VERSION, key + record_id, InstanceRow)]
        for table, key, kind in found:
            held = snapshot.get(table, key)
            if held is None:
                continue
            opened = catalog.open_row(table, key, held, kind)
            location: Location = opened.location
            if location.record_id == record_id:
                return _Live(table, key, held, opened) if location.segment == segment else None
        return None

    def _points_at(self, segment: bytes, moved: Iterable[_Moved]) -> bool:
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
            self._commit(partial(self._switched, segment=segment, group=group))

        def last(snapshot: Snapshot) -> Batch:
            batch = self._switched(snapshot, segment=segment, group=groups[-1])
            for new in new_segments:
                done = progress_batch({new: self._log.size(new)}, closed=True)
                batch.puts += done.puts
            use = use_of(snapshot, batch, segment)
            batch.put(USE, segment, encode(structs.replace(
                use, emptied=is_emptied, damaged=walk.damaged + walk.unreadable, changed_ns=self._clock()
            )))  # fmt: skip
            if is_emptied:
                for key, _ in snapshot.scan(SPARE):
                    if key[32:] == segment:
                        batch.delete(SPARE, key)
            return batch

        self._commit(last)

    def _switched(self, snapshot: Snapshot, *, segment: bytes, group: Sequence[_Moved]) -> Batch:
        """The batch that has rows point at the new place, and counts what nobody needs any more as dead."""
        catalog = self._indexer.catalog
        batch = Batch(uses_reserve=True)
        dead = DeadRecords()
        for one in group:
            location = one.location
            live = self._find(snapshot, one.row, location.record_id, segment)
            if live is not None:
                batch.require(live.table, live.key, live.held)
                catalog.put_row(batch, live.table, live.key, structs.replace(live.row, location=location))
                continue
            held = snapshot.get(TOMBSTONE, location.record_id)
            if held is not None:  # deleted since it was copied
                named = with_segments(held, [location.segment])
                batch.require(TOMBSTONE, location.record_id, held)
                batch.put(TOMBSTONE, location.record_id, named)
                if named == held:
                    continue
            dead.add(location.segment, one.length)
        dead.plan(snapshot, batch, self._clock())
        return batch

    def _commit(self, plan: Callable[[Snapshot], Batch]) -> None:
        store = self._indexer.store
        for attempt in range(COMMIT_ATTEMPTS_MAX):
            self._indexer.prepare(self._limits.group_records)
            try:
                if attempt < ATTEMPTS_BESIDE_OTHERS:
                    with store.snapshot() as snapshot:
                        batch = plan(snapshot)
                    store.commit(batch)
                else:
                    (result,) = store.commit_planned(lambda snapshot: [plan(snapshot)])
                    if isinstance(result, Exception):
                        raise result
            except PreconditionError:
                continue
            return
        raise RuntimeError("rows could not be switched between other commits; this is a defect")


class _Copy:
    """Records on their way into new segments; those in pieces into one of their own each."""

    def __init__(self, log: SegmentLog, limits: RewriteLimits) -> None:
        self._log = log
        self._limits = limits
        self._own = log.alone(arena_bytes=limits.group_bytes)
        self._streams: list[SegmentStream] = []
        self._waiting: list[tuple[ScannedRecord, Stored]] = []
        self._waiting_bytes = 0

    @property
    def segments(self) -> tuple[bytes, ...]:
        """The new segments, so far."""
        return (*self._own.own_segments, *(stream.segment for stream in self._streams if stream.segment))

    def add(self, record: ScannedRecord, stored: Stored, pace: Pace) -> list[_Moved]:
        """Take a record along; those that are durable now. ``SealError`` when it does not open."""
        if stored.location.stream is not None:
            return [self._add_stream(record, stored, pace)]
        pace(record.ref.length)
        self._log.verify(record.ref)
        self._waiting.append((record, stored))
        self._waiting_bytes += record.ref.length
        full = self._waiting_bytes >= self._limits.group_bytes
        return self.flush(pace) if full else []

    def flush(self, pace: Pace) -> list[_Moved]:
        """Write and read back what waits."""
        if not self._waiting:
            return []
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        pace(sum(record.ref.length for record, _ in waiting))
        refs = self._own.append(
            [
                RecordIn(record.kind, _Parts(self._log, record.ref), record.ref.record_id)
                for record, _ in waiting
            ],
            uses_reserve=True,
        )
        return [self._moved(ref, stored) for ref, (_, stored) in zip(refs, waiting, strict=True)]

    def _moved(self, ref: RecordRef, stored: Stored) -> _Moved:
        self._log.verify(ref)
        return _Moved(stored.row, Location.of(ref, stored.row.stream), ref.length)

    def _add_stream(self, record: ScannedRecord, stored: Stored, pace: Pace) -> _Moved:
        """An object in pieces: pieces of a new segment, and its record with their new table."""
        location, row = stored.location, stored.row
        assert location.stream is not None
        stream = SegmentStream(
            self._log, kind=RECORD_KIND_PIECE, piece_bytes=location.stream.piece_bytes, uses_reserve=True
        )
        self._streams.append(stream)
        for stretch in open_pieces(self._log, location).stretches():
            pace(2 * len(stretch))
            stream.append(stretch)
        parts = [self._log.open_part(part) for part in record.ref.parts()]
        ref = stream.finish(RecordIn(
            record.kind, (parts[0], parts[1], stream.table, *parts[3:]), record.ref.record_id
        ))  # fmt: skip
        for stretch in stream.reader().stretches():
            pace(len(stretch))
        return _Moved(row, Location.of(ref, row.stream), self._log.size(ref.segment))

    def give_up(self, *, remove: bool) -> None:
        """Write nothing more; ``remove`` what was written, as long as no row can point at it."""
        try:
            if remove:
                for segment in self.segments:  # while it is locked nobody takes it for a dead process's
                    self._log.remove(segment)
        finally:
            self.close()

    def close(self) -> None:
        """Write nothing more. Until now nobody else took the new segments for a dead process's."""
        self._own.close()
        for stream in self._streams:
            stream.close()


class _Parts(Sequence[Buffer]):
    """A record's parts, each opened when it is its turn: of a long record one part is in memory at a time."""

    def __init__(self, log: SegmentLog, ref: RecordRef) -> None:
        self._log = log
        self._ref = ref

    def __len__(self) -> int:
        return len(self._ref.part_lengths)

    def __getitem__(self, index: int) -> Buffer:  # type: ignore[override]
        return self._log.open_part(self._ref.part(index))

    def __iter__(self) -> Iterator[Buffer]:
        return (self._log.open_part(part) for part in self._ref.parts())

    @property
    def lengths(self) -> tuple[int, ...]:
        """Plaintext bytes of each, without opening any."""
        return self._ref.part_lengths


__all__ = ["Pace", "RewriteLimits", "RewriteReport", "Rewriter", "StoppedError"]
