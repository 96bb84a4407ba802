"""The data set of a large object, which lies in pieces; and whether two data sets are the same one."""

from __future__ import annotations

from collections.abc import Iterable

from hounsfield.archive.index.rows import RECORD_KIND_PIECE, Location
from hounsfield.codecs.pixels import same_bytes
from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.segment_scan import Damage, DamageReason
from hounsfield.storage_backends.segment_stream import PieceReader
from hounsfield.storage_backends.segments import SegmentLog

#: Parts of a large object's record: row, header, piece table, frame table.
HEADER_PART, PIECES_PART, FRAMES_PART = 1, 2, 3


def open_pieces(log: SegmentLog, location: Location) -> PieceReader:
    """A reader of a large object's data set. Reads its piece table; raises as ``SegmentLog.open_part``."""
    stream = location.stream
    if stream is None:
        raise ValueError("this object does not lie in pieces")
    return PieceReader(
        log,
        location.segment,
        log.open_part(location.ref().part(PIECES_PART)),
        kind=RECORD_KIND_PIECE,
        piece_bytes=stream.piece_bytes,
        data_bytes=stream.data_bytes,
    )


def same_stretches(one: Iterable[Buffer], other: Iterable[Buffer]) -> bool:
    """Whether two sequences of buffers are the same bytes, however they are divided. Two are held at once."""
    mine, its = iter(one), iter(other)
    left = right = memoryview(b"")
    while True:
        left, right = left or _next(mine), right or _next(its)
        if not left or not right:
            return not left and not right
        length = min(len(left), len(right))
        if not same_bytes(left[:length], right[:length]):
            return False
        left, right = left[length:], right[length:]


def _next(buffers: Iterable[Buffer]) -> memoryview:
    """The next buffer that is not empty; an empty one at the end."""
    for buffer in buffers:
        if len(buffer):
            return memoryview(buffer).cast("B")
    return memoryview(b"")


def given_up_bytes(log: SegmentLog, segment: bytes) -> int:
    """How long a segment is that holds pieces of an object that was never finished; 0 when it is another.

    Only for a segment that nobody writes any more. Behind the pieces there may be what a crash leaves of an
    append: a torn tail, or zeros. Anything else may be the damaged record of an object that was finished:
    such a segment is kept, for people to look at. Reads one record of most segments.
    """
    pieces = 0
    size = log.size(segment)
    for record in log.scan(segment):
        if isinstance(record, Damage):
            if record.offset < layout.HEADER_BYTES and record.offset + record.length <= layout.HEADER_BYTES:
                continue  # a copy of the header: the records are not touched by it
            end = record.offset + record.length
            torn = record.reason is DamageReason.TORN_TAIL or (
                record.reason is DamageReason.FRAMING and log.is_blank(segment, record.offset, end)
            )
            if not torn or end < size:
                return 0
        elif record.kind != RECORD_KIND_PIECE:
            return 0
        else:
            pieces += 1
    return size if pieces else 0
