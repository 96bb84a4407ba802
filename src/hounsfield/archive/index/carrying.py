"""Records are carried to other segments: sealed anew, written, synced, read back, before a row points there.

Shared by rewriting (compaction) and gathering (packs). Records keep their ids: what is in two segments is one
object. An object in pieces gets a segment of its own. Only what :class:`Carrier` returns is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import structs

from hounsfield.archive.index.catalog import Stored
from hounsfield.archive.index.contents import open_pieces
from hounsfield.archive.index.rows import RECORD_KIND_PIECE, Location, ObjectRow
from hounsfield.archive.index.use import stored_bytes
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_format import RecordRef
from hounsfield.storage_backends.segment_stream import OneSegment, SegmentStream, arena_bytes_for
from hounsfield.storage_backends.segments import SegmentLog

Pace = Callable[[int], None]
"""Called before so many bytes are read or written: waits as long as the throttle wants, or raises to stop."""


class StoppedError(Exception):
    """Raised by a pace: stop here. Nothing is lost, and what was begun is begun again."""


def counts_once(pace: Pace, passes: float) -> Pace:
    """A pace for work that goes ``passes`` times over each byte: all of them together count it once."""
    left = 0.0

    def shared(length: int) -> None:
        nonlocal left
        left += length / passes
        counted = int(left)
        left -= counted
        pace(counted)

    return shared


@dataclass(frozen=True, slots=True)
class RewriteLimits:
    """How much is done at a time."""

    group_bytes: int = 8 << 20
    """Copied with one write and one sync; also what a throttle is asked for at once. The arena for it is
    memory of the process that compacts."""

    group_records: int = 256
    """Looked up in one snapshot and switched in one commit: about 3 ms during which others wait."""


class Carried(NamedTuple):
    """A record that is at its new place."""

    row: ObjectRow
    """Enough of what it carries to find the index's row of it: no attributes."""
    location: Location
    length: int
    """Stored bytes, pieces included."""
    left: int
    """As many as were stored where it comes from."""


class _Waiting(NamedTuple):
    record: RecordIn
    row: ObjectRow
    length: int
    left: int


class Carrier:
    """Writes records into new segments. Blocking, one thread at a time."""

    def __init__(
        self,
        log: SegmentLog,
        limits: RewriteLimits,
        *,
        open_segment: Callable[[int], OneSegment] | None = None,
        uses_reserve: bool = True,
    ) -> None:
        """``open_segment``: makes what writes a segment, given the bytes of its arena; else a log alone does.

        ``uses_reserve``: as of ``SegmentLog.append``.
        """
        self._log = log
        self._limits = limits
        self._uses_reserve = uses_reserve
        self._open = open_segment or (lambda arena_bytes: log.alone(arena_bytes=arena_bytes))
        self._own = self._open(limits.group_bytes)
        self._streams: list[OneSegment] = []
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0

    @property
    def writers(self) -> list[OneSegment]:
        """What wrote each of the new segments, so far."""
        return [writer for writer in (self._own, *self._streams) if writer.own_segments]

    @property
    def segments(self) -> tuple[bytes, ...]:
        """The new segments, so far."""
        return tuple(segment for writer in self.writers for segment in writer.own_segments)

    def add(self, record: RecordIn, row: ObjectRow, left: int, pace: Pace) -> list[Carried]:
        """Take a record along, which has its id; those that are durable now.

        ``row`` is what the record carries now, ``left`` how long it is where it comes from.
        """
        length = RecordRef(b"", b"", 0, _lengths(record), record.kind).length
        self._waiting.append(_Waiting(record, without_attributes(row), length, left))
        self._waiting_bytes += length
        return self.flush(pace) if self._waiting_bytes >= self._limits.group_bytes else []

    def flush(self, pace: Pace) -> list[Carried]:
        """Write and read back what waits."""
        if not self._waiting:
            return []
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        pace(sum(one.left for one in waiting))  # what shrinks counts as what it was
        refs = self._own.append([one.record for one in waiting], uses_reserve=self._uses_reserve)
        carried = []
        for ref, one in zip(refs, waiting, strict=True):
            self._log.verify(ref)
            carried.append(Carried(one.row, Location.of(ref, None), ref.length, one.left))
        return carried

    def add_stream(self, ref: RecordRef, stored: Stored, pace: Pace) -> Carried:
        """An object in pieces: pieces of a new segment, and its record with their new table.

        When it does not open, or is gone, nothing of it is left behind, and what reading raises is raised.
        """
        location, row = stored.location, stored.row
        assert location.stream is not None
        piece_bytes = location.stream.piece_bytes
        writer = self._open(arena_bytes_for(piece_bytes))
        stream = SegmentStream(
            self._log, kind=RECORD_KIND_PIECE, piece_bytes=piece_bytes, uses_reserve=self._uses_reserve,
            into=writer,
        )  # fmt: skip
        try:
            for stretch in open_pieces(self._log, location).stretches():
                pace(2 * len(stretch))
                stream.append(stretch)
            parts = [self._log.open_part(part) for part in ref.parts()]
            moved = stream.finish(RecordIn(
                ref.kind, (parts[0], parts[1], stream.table, *parts[3:]), ref.record_id
            ))  # fmt: skip
            for stretch in stream.reader().stretches():
                pace(len(stretch))
            self._log.verify(moved)
        except BaseException:
            stream.discard()
            raise
        self._streams.append(writer)
        length = self._log.size(moved.segment)
        return Carried(
            without_attributes(row),
            Location.of(moved, row.stream),
            length,
            stored_bytes(location) or ref.length,
        )

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
        for writer in (self._own, *self._streams):
            writer.close()


class UnopenedParts(Sequence[Buffer]):
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


def _lengths(record: RecordIn) -> tuple[int, ...]:
    parts = record.parts
    return parts.lengths if isinstance(parts, UnopenedParts) else tuple(map(len, parts))


def without_attributes(row: ObjectRow) -> ObjectRow:
    """What tells where an object is filed, for the many that are carried at a time."""
    return structs.replace(row, study={}, series={}, instance={}, problems=(), coerced=None)
