"""A segment for one thing only, that is too long to be held: written piece by piece, read from anywhere.

    piece record │ piece record │ … │ the record that says what the pieces are

Each piece is a record of two parts: its number (8 bytes, little-endian), and its bytes, all pieces but the
last equally many. Each is synced before the next is written, so that nothing large is ever waiting for a
disk. The last record, whose making is the caller's, holds the *piece table* in one of its parts: for each
piece its record id (16) and its offset in the segment (8, little-endian). Until that record is durable
there is nothing: pieces alone are an upload that was given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Protocol

from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import FormatError, PoisonedError
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_format import PartRef, RecordRef
from hounsfield.storage_backends.segments import SegmentLog

__all__ = [
    "TABLE_ENTRY_BYTES",
    "OneSegment",
    "PieceReader",
    "SegmentStream",
    "arena_bytes_for",
    "piece_lengths",
]

PIECE_ROW_BYTES = 8
TABLE_ENTRY_BYTES = layout.ID_BYTES + 8
_PARTS = 2
_ENTRY = Struct("<16sQ")
_SLACK_BYTES = 4 * layout.PADDING_BYTES  # header, framing, tags and padding of one piece's write


def piece_lengths(data_bytes: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """The part lengths of each piece's record."""
    for start in range(0, data_bytes, piece_bytes):
        yield PIECE_ROW_BYTES, min(piece_bytes, data_bytes - start)


class OneSegment(Protocol):
    """What writes one segment: a log for it alone, or a pack."""

    @property
    def own_segments(self) -> tuple[bytes, ...]: ...
    def append(self, records: Sequence[RecordIn], *, uses_reserve: bool = False) -> list[RecordRef]: ...
    def close(self) -> None: ...


def arena_bytes_for(piece_bytes: int) -> int:
    """The arena in which one piece is sealed and written at once."""
    return layout.sealed_length(piece_bytes) + _SLACK_BYTES


class SegmentStream:
    """Writes one segment of its own. Blocking, one thread at a time; after a failure only ``discard``."""

    def __init__(
        self,
        log: SegmentLog,
        *,
        kind: int,
        piece_bytes: int,
        uses_reserve: bool = False,
        into: OneSegment | None = None,
    ) -> None:
        """Nothing exists before the first piece. ``kind`` is that of the pieces' records; ``uses_reserve`` as
        of ``SegmentLog.append``; ``into``: what writes the segment, in which is nothing yet."""
        self._log = log
        self._own = into or log.alone(arena_bytes=arena_bytes_for(piece_bytes))
        self._kind = kind
        self._piece_bytes = piece_bytes
        self._uses_reserve = uses_reserve
        self._table: list[RecordRef] = []
        self._ended = False
        self.data_bytes = 0

    @property
    def segment(self) -> bytes:
        """The segment's id, b"" before the first piece."""
        return self._table[0].segment if self._table else b""

    @property
    def table(self) -> bytes:
        """The piece table."""
        return b"".join(_ENTRY.pack(ref.record_id, ref.offset) for ref in self._table)

    def append(self, piece: Buffer) -> None:
        """Store the next piece, durably: ``piece_bytes`` long, only the last one may be shorter.

        Raises as ``SegmentLog.append`` does.
        """
        length = memoryview(piece).nbytes
        if not 0 < length <= self._piece_bytes or self.data_bytes % self._piece_bytes:
            raise ValueError("every piece but the last has the same length")
        number = len(self._table).to_bytes(PIECE_ROW_BYTES, "little")
        self._table.append(self._append(RecordIn(self._kind, (number, piece))))
        self.data_bytes += length

    def finish(self, record: RecordIn) -> RecordRef:
        """Store the record that says what the pieces are, durably. The stream stays open until ``close``."""
        ref = self._append(record)
        self._ended = True
        return ref

    def _append(self, record: RecordIn) -> RecordRef:
        if self._ended:
            raise PoisonedError("this segment takes nothing more")
        try:
            (ref,) = self._own.append([record], uses_reserve=self._uses_reserve)
        except BaseException:
            self._ended = True
            raise
        if self._table and ref.segment != self._table[0].segment:
            self._ended = True
            raise PoisonedError("the segment was given up in the middle")
        return ref

    def reader(self) -> PieceReader:
        """Reads what is stored so far."""
        return PieceReader(
            self._log, self.segment, self.table,
            kind=self._kind, piece_bytes=self._piece_bytes, data_bytes=self.data_bytes,
        )  # fmt: skip

    def close(self) -> None:
        """Write nothing more. What was synced stays."""
        self._ended = True
        self._own.close()

    def discard(self) -> None:
        """Remove the segment and destroy its key: there never was such a thing. Idempotent."""
        self._ended = True
        started = self._own.own_segments
        for segment in started:
            self._log.remove(segment)
        self._own.close()  # only now: while it is locked nobody takes it for one that a crash left


class PieceReader:
    """Reads any stretch of what was stored in pieces. Any number of threads at once."""

    def __init__(
        self,
        log: SegmentLog,
        segment: bytes,
        table: Buffer,
        *,
        kind: int,
        piece_bytes: int,
        data_bytes: int,
    ) -> None:
        """``table`` as :class:`SegmentStream` makes it; ``FormatError`` when it is not that long."""
        self._log = log
        self._segment = segment
        self._table = bytes(table)
        self._kind = kind
        self._piece_bytes = piece_bytes
        self.data_bytes = data_bytes
        if len(self._table) != -(-data_bytes // piece_bytes) * TABLE_ENTRY_BYTES:
            raise FormatError("a piece table is not as long as its pieces are many")

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that this reader takes, about."""
        return len(self._table) + 256

    def read(self, start: int, length: int) -> memoryview:
        """``length`` bytes from ``start``; only the chunks that hold them are read and opened.

        ``ValueError`` when there are none such; else as ``SegmentLog.open_part``.
        """
        if start < 0 or length < 0 or start + length > self.data_bytes:
            raise ValueError(f"bytes {start} to {start + length} of {self.data_bytes}")
        if not length:
            return memoryview(b"")
        first, offset = divmod(start, self._piece_bytes)
        if offset + length <= self._piece_bytes:
            return self._log.open_range(self._part(first), offset, length)
        whole = memoryview(bytearray(length))
        filled = 0
        for stretch in self.stretches(start, start + length):
            whole[filled : filled + len(stretch)] = stretch
            filled += len(stretch)
        return whole

    def stretches(self, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """The bytes from ``start`` to ``stop``, at most a piece at a time."""
        stop = self.data_bytes if stop is None else stop
        while start < stop:
            number, offset = divmod(start, self._piece_bytes)
            length = min(self._piece_bytes - offset, stop - start)
            yield self._log.open_range(self._part(number), offset, length)
            start += length

    def _part(self, number: int) -> PartRef:
        record_id, at = _ENTRY.unpack_from(self._table, number * TABLE_ENTRY_BYTES)
        length = min(self._piece_bytes, self.data_bytes - number * self._piece_bytes)
        offset = at + layout.framing_length(_PARTS) + layout.sealed_length(PIECE_ROW_BYTES)
        return PartRef(self._segment, record_id, 1, _PARTS, offset, length, self._kind)
