"""Walking a segment record by record, past whatever is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.api import BlobStore
from hounsfield.storage_backends.errors import SealError, UnreadableError
from hounsfield.storage_backends.sealing import RecordSeal, open_short_part
from hounsfield.storage_backends.segment_format import RecordHead, RecordRef

__all__ = ["Damage", "DamageReason", "ScannedRecord", "SegmentScan"]

_GLANCE_BYTES = 4096  # head, part table and row of most records in one read
_SEARCH_BYTES = 1 << 20
_SHORT_BYTES = 64 << 10  # records up to this follow each other so closely that reading all is quicker
_WINDOW_BYTES = 1 << 20


class DamageReason(StrEnum):
    """What is wrong with a stretch of a segment."""

    TORN_TAIL = "torn tail"  # the blob ends inside it: an append that was never acknowledged, or a cut blob
    HEADER = "header damaged"  # one or both copies; the records are not touched by it
    FRAMING = "framing damaged"  # no record begins here; skipped to the next marker
    PART_TABLE = "part table damaged"
    ROW = "row does not open"


class ScannedRecord(NamedTuple):
    """A record whose framing is whole and whose row opened."""

    ref: RecordRef
    kind: int
    row: bytes
    length: int
    """Stored bytes of the whole record: what ``ref.length`` is, without adding it up again."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a segment that is not a record that opens."""

    offset: int
    length: int
    reason: DamageReason
    record_id: bytes | None = None
    """When the framing still tells; not authenticated."""


class SegmentScan:
    """One walk over one segment; see ``SegmentLog.scan``."""

    def __init__(self, blobs: BlobStore, name: str, segment: bytes, segment_key: bytes) -> None:
        self._blobs = blobs
        self._name = name
        self._segment = segment
        self._segment_key = segment_key
        self._size = blobs.size(name)  # what is appended later is not part of this walk
        self._window_at = 0
        self._window = b""
        self._short = False  # whether the last record was

    def records(self, start: int | None) -> Iterator[ScannedRecord | Damage]:
        """Records and damage in the order of the segment, from offset ``start`` or the beginning."""
        if start is None:
            start = layout.HEADER_BYTES
            if self._size < start:
                if self._size:
                    yield Damage(0, self._size, DamageReason.TORN_TAIL)
                return
            yield from _header_damage(self._read(0, start), self._segment)
        offset = start
        while offset < self._size:
            found = self._at(offset)
            if isinstance(found, int):
                offset += found
                continue
            yield found
            offset += found.length

    def _at(self, offset: int) -> ScannedRecord | Damage | int:
        """What begins at ``offset``; of padding only its length."""
        rest = self._size - offset
        glance = self._glance(offset, min(_GLANCE_BYTES, rest))
        head = layout.parse_head(glance)
        if head is not None and head.length <= rest:
            self._short = head.length <= _SHORT_BYTES
            return self._record(offset, head, glance)
        if head is None and (padding := layout.padding_length(offset, glance)):
            return padding
        # The blob ends inside a record, or no record begins here: the next marker is what counts.
        following = self._find_marker(offset + 1)
        if head is not None:
            reason = DamageReason.TORN_TAIL
        else:
            torn = following is None and _may_be_torn_head(glance)
            reason = DamageReason.TORN_TAIL if torn else DamageReason.FRAMING
        end = self._size if following is None else following
        return Damage(offset, end - offset, reason, head.record_id if head else None)

    def _record(self, offset: int, head: RecordHead, glance: bytes) -> ScannedRecord | Damage:
        at = layout.HEAD_BYTES + head.table_bytes
        table = glance if at <= len(glance) else self._read(offset, at)
        lengths = layout.parse_table(head, table[layout.HEAD_BYTES : at])
        if lengths is None:
            return Damage(offset, head.length, DamageReason.PART_TABLE, head.record_id)
        end = at + layout.sealed_length(lengths[0])
        sealed = glance[at:end] if end <= len(glance) else self._read(offset + at, end - at)
        try:
            row = self._row(head, lengths[0], sealed)
        except SealError:
            return Damage(offset, head.length, DamageReason.ROW, head.record_id)
        ref = RecordRef(self._segment, head.record_id, offset, lengths, head.kind)
        return ScannedRecord(ref, head.kind, row, head.length)

    def _row(self, head: RecordHead, length: int, sealed: bytes) -> bytes:
        key, segment = self._segment_key, self._segment
        if length <= layout.CHUNK_BYTES:
            return open_short_part(key, segment, head.record_id, head.kind, 0, head.part_count, sealed)
        seal = RecordSeal(key, segment, head.record_id, head.kind, head.part_count).part(0)
        row = memoryview(bytearray(length))
        for number, start, size, last in layout.chunks(length):
            at = start + number * layout.TAG_BYTES
            seal.open(number, last, sealed[at : at + size + layout.TAG_BYTES], row[start : start + size])
        return bytes(row)

    def _glance(self, offset: int, length: int) -> bytes:
        """Stored bytes, out of a larger read when records are short: a disk takes 100 µs for any."""
        start = offset - self._window_at
        if start < 0 or start + length > len(self._window):
            wanted = _WINDOW_BYTES if self._short else length
            self._window_at, start = offset, 0
            self._window = self._read(offset, min(max(wanted, length), self._size - offset))
        return self._window[start : start + length]

    def _read(self, offset: int, length: int) -> bytes:
        """Stored bytes; zeros for blocks that the disk does not give back, so that only these are damage."""
        try:
            return self._blobs.read(self._name, offset, length)
        except UnreadableError:
            pass
        found = bytearray()
        while len(found) < length:
            at = offset + len(found)
            piece = min(layout.PADDING_BYTES - at % layout.PADDING_BYTES, length - len(found))
            try:
                found += self._blobs.read(self._name, at, piece)
            except UnreadableError:
                found += bytes(piece)
        return bytes(found)

    def _find_marker(self, offset: int) -> int | None:
        while offset < self._size:
            window = self._read(offset, min(_SEARCH_BYTES, self._size - offset))
            found = window.find(layout.MARKER)
            if found >= 0:
                return offset + found
            if offset + len(window) >= self._size:
                return None
            offset += len(window) - len(layout.MARKER) + 1
        return None


def _header_damage(header: bytes, segment: bytes) -> Iterator[Damage]:
    for start in (0, layout.HEADER_COPY_BYTES):
        copy = header[start : start + layout.HEADER_COPY_BYTES]
        if layout.parse_header(copy) != segment:
            yield Damage(start, len(copy), DamageReason.HEADER)


def _may_be_torn_head(rest: bytes) -> bool:
    return len(rest) < layout.HEAD_BYTES and rest[: len(layout.MARKER)] == layout.MARKER[: len(rest)]
