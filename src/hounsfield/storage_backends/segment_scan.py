"""Walking a segment record by record, past whatever is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.api import BlobStore
from hounsfield.storage_backends.errors import SealError
from hounsfield.storage_backends.sealing import RecordSeal
from hounsfield.storage_backends.segment_format import RecordHead, RecordRef

__all__ = ["Damage", "DamageReason", "ScannedRecord", "scan_segment"]

_GLANCE_BYTES = 4096  # head, part table and row of most records in one read
_SEARCH_BYTES = 1 << 20


class DamageReason(str, Enum):
    """What is wrong with a stretch of a segment."""

    TORN_TAIL = "torn tail"  # the blob ends inside it: an append that was never acknowledged, or a cut blob
    HEADER = "header damaged"  # one or both copies; the records are not touched by it
    FRAMING = "framing damaged"  # no record begins here; skipped to the next marker
    PART_TABLE = "part table damaged"
    ROW = "row does not open"


@dataclass(frozen=True, slots=True)
class ScannedRecord:
    """A record whose framing is whole and whose row opened."""

    ref: RecordRef
    kind: int
    row: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a segment that is not a record that opens."""

    offset: int
    length: int
    reason: DamageReason
    record_id: bytes | None = None
    """When the framing still tells; not authenticated."""


def scan_segment(
    blobs: BlobStore, name: str, segment: bytes, segment_key: bytes, start: int | None
) -> Iterator[ScannedRecord | Damage]:
    """Yield records and damage in the order of the segment; see ``SegmentLog.scan``."""
    size = blobs.size(name)
    if start is None:
        start = layout.HEADER_BYTES
        if size < layout.HEADER_BYTES:
            if size:
                yield Damage(0, size, DamageReason.TORN_TAIL)
            return
        yield from _header_damage(blobs.read(name, 0, layout.HEADER_BYTES), segment)
    offset = start
    while offset < size:
        glance = blobs.read(name, offset, min(_GLANCE_BYTES, size - offset))
        head = layout.parse_head(glance)
        if head is None:
            following = _find_marker(blobs, name, offset + 1, size)
            torn = following is None and _may_be_torn_head(glance)
            reason = DamageReason.TORN_TAIL if torn else DamageReason.FRAMING
            yield Damage(offset, (following or size) - offset, reason)
            offset = following or size
        elif offset + head.length > size:
            # Only the last append can be cut short, but a damaged file may hold records behind.
            following = _find_marker(blobs, name, offset + 1, size)
            yield Damage(offset, (following or size) - offset, DamageReason.TORN_TAIL, head.record_id)
            offset = following or size
        else:
            yield _record(blobs, name, segment, segment_key, offset, head, glance)
            offset += head.length


def _record(
    blobs: BlobStore,
    name: str,
    segment: bytes,
    segment_key: bytes,
    offset: int,
    head: RecordHead,
    glance: bytes,
) -> ScannedRecord | Damage:
    def stored(start: int, length: int) -> bytes:
        if start + length <= len(glance):
            return glance[start : start + length]
        return blobs.read(name, offset + start, length)

    lengths = layout.parse_table(head, stored(layout.HEAD_BYTES, head.table_bytes))
    if lengths is None:
        return Damage(offset, head.length, DamageReason.PART_TABLE, head.record_id)
    ref = RecordRef(segment, head.record_id, offset, lengths, head.kind)
    seal = RecordSeal(segment_key, segment, head.record_id, head.kind, head.part_count)
    bound_to = seal.bound_to(0)
    row = bytearray(lengths[0])
    at = layout.HEAD_BYTES + head.table_bytes
    try:
        for number, start, length, last in layout.chunks(lengths[0]):
            sealed = stored(at, length + layout.TAG_BYTES)
            seal.open_chunk(0, number, last, bound_to, sealed, memoryview(row)[start : start + length])
            at += length + layout.TAG_BYTES
    except SealError:
        return Damage(offset, head.length, DamageReason.ROW, head.record_id)
    return ScannedRecord(ref, head.kind, bytes(row))


def _header_damage(header: bytes, segment: bytes) -> Iterator[Damage]:
    for start in (0, layout.HEADER_COPY_BYTES):
        copy = header[start : start + layout.HEADER_COPY_BYTES]
        if layout.parse_header(copy) != segment:
            yield Damage(start, len(copy), DamageReason.HEADER)


def _may_be_torn_head(rest: bytes) -> bool:
    return len(rest) < layout.HEAD_BYTES and rest[: len(layout.MARKER)] == layout.MARKER[: len(rest)]


def _find_marker(blobs: BlobStore, name: str, offset: int, size: int) -> int | None:
    while offset < size:
        window = blobs.read(name, offset, min(_SEARCH_BYTES, size - offset))
        found = window.find(layout.MARKER)
        if found >= 0:
            return offset + found
        if offset + len(window) >= size:
            return None
        offset += len(window) - len(layout.MARKER) + 1
    return None
