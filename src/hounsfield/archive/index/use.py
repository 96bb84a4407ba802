"""How much of each segment is dead: stored bytes that no row of the catalog needs any more.

Counted in the commit that makes them dead, each record of each segment once, and counted again by a
reindex; compaction goes by it. What is not counted: headers, padding, and what never was a whole record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import structs

from hounsfield.archive.index.rows import Location, UseRow, decode, encode
from hounsfield.archive.index.tables import SCRUB, SEGMENT, USE
from hounsfield.storage_backends.api import Batch, Snapshot
from hounsfield.storage_backends.segment_format import framing_length, record_length, sealed_length
from hounsfield.storage_backends.segment_stream import piece_lengths

SEGMENT_ID_BYTES = 16


class DeadRecords:
    """Records that one batch makes dead, by segment."""

    def __init__(self) -> None:
        self._found: dict[bytes, tuple[int, int]] = {}

    def add(self, segment: bytes, length: int) -> None:
        """One record of ``length`` stored bytes."""
        count, total = self._found.get(segment, (0, 0))
        self._found[segment] = count + 1, total + length

    @property
    def bytes(self) -> int:
        """Stored bytes of all of them."""
        return sum(total for _, total in self._found.values())

    def plan(self, snapshot: Snapshot, batch: Batch, now_ns: int) -> None:
        """Have ``batch`` count them."""
        for segment, (count, total) in self._found.items():
            old = use_of(snapshot, batch, segment)
            new = structs.replace(
                old,
                dead_bytes=old.dead_bytes + total,
                dead_records=old.dead_records + count,
                since_ns=old.since_ns or now_ns,
                changed_ns=now_ns,
            )
            batch.put(USE, segment, encode(new))


def use_of(snapshot: Snapshot, batch: Batch, segment: bytes) -> UseRow:
    """A segment's row, which ``batch`` now requires to be what it is, so that it can be changed."""
    held = snapshot.get(USE, segment)
    batch.require(USE, segment, held)
    return UseRow() if held is None else decode(UseRow, held)


def uses(snapshot: Snapshot) -> Iterator[tuple[bytes, UseRow]]:
    """Every segment of which something is dead."""
    for segment, held in snapshot.scan(USE):
        yield segment, decode(UseRow, held)


def forget_segment(batch: Batch, segment: bytes) -> None:
    """Have ``batch`` forget a segment that is gone."""
    batch.delete(USE, segment)
    batch.delete(SEGMENT, segment)
    batch.delete(SCRUB, segment)


def stored_bytes(location: Location) -> int | None:
    """Stored bytes of an object, pieces included; None when only the record itself tells."""
    stream = location.stream
    if stream is not None:
        pieces = map(record_length, piece_lengths(stream.data_bytes, stream.piece_bytes))
        return location.ref().length + sum(pieces)
    if location.frame_bytes >= 0 and location.frames:
        fixed = location.row_bytes, location.header_bytes, location.trailer_bytes
        return (
            framing_length(location.frames + 3)
            + sum(map(sealed_length, fixed))
            + location.frames * sealed_length(location.frame_bytes)
        )
    return location.ref().length if location.has_table else None


def with_segments(tombstone: bytes, segments: Iterable[bytes]) -> bytes:
    """A tombstone's value that also names ``segments``: those where the record was met, and counted."""
    size = SEGMENT_ID_BYTES
    held = {tombstone[start : start + size] for start in range(0, len(tombstone), size)}
    return tombstone + b"".join(sorted(set(segments) - held))
