"""The byte layout of a segment, and nothing else: no files, no keys. docs/segment-format.md is normative.

    segment   header copy (4096) │ header copy (4096) │ record │ record │ … │ padding │ record │ …

    padding   zeros to the next multiple of 4096; behind a record, where its writer synced
    header copy (4096)                              all integers little-endian
      0   8  magic  89 48 46 53 45 47 0D 0A  ("\\x89HFSEG\\r\\n")
      8   4  version = 1
     12   4  zero
     16  16  segment id
     32 4060 zero
   4092   4  CRC-32 of bytes 0 … 4091

    record
      0   8  marker  F1 9D 48 46 52 45 43 0E
      8  16  record id, random
     24   4  kind
     28   4  part count N, at least 1
     32   8  record length L, this head included
     40   4  CRC-32 of the part table
     44   4  CRC-32 of bytes 0 … 43
     48  8N  part table: plaintext length of each part
  48+8N   …  sealed parts, in order, back to back, to L

    sealed part     chunk │ … │ last chunk     (an empty part is one empty chunk)
    chunk           ciphertext (1 MiB; the last: the rest) │ tag (16)

The checksums find accidents and let a scan go on behind them; only the seals can be trusted.
"""

from __future__ import annotations

import hmac
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import FormatError

__all__ = [
    "CHUNK_BYTES",
    "HEADER_BYTES",
    "HEADER_COPY_BYTES",
    "HEAD_BYTES",
    "ID_BYTES",
    "MARKER",
    "PADDING_BYTES",
    "PARTS_MAX",
    "SEGMENT_NAME",
    "TAG_BYTES",
    "VERSION",
    "Chunk",
    "PartRef",
    "RecordHead",
    "RecordRef",
    "associated_data",
    "chunks",
    "framing_length",
    "nonce",
    "pack_framing",
    "pack_header",
    "padding_length",
    "parse_head",
    "parse_header",
    "parse_table",
    "record_key",
    "record_length",
    "sealed_length",
]

VERSION = 1
SEGMENT_NAME = re.compile(r"[0-9a-f]{32}")
"""What a segment's blob is called: its id."""
MAGIC = b"\x89HFSEG\r\n"
MARKER = b"\xf1\x9dHFREC\x0e"
ID_BYTES = 16
TAG_BYTES = 16
HEADER_COPY_BYTES = 4096  # each copy fills a physical sector of its own: one bad sector leaves the other
HEADER_BYTES = 2 * HEADER_COPY_BYTES
PADDING_BYTES = 4096  # a writer may fill up to a multiple of this; larger blocks would hide whole records
PARTS_MAX = 1 << 24  # bounds what a reader allocates for a part table (128 MiB) whoever wrote it
CHUNK_BYTES = 1 << 20  # a 512 KiB slice is one seal; a range of a whole-slide frame opens little too much

_HEADER = struct.Struct("<8sII16s")
_HEAD = struct.Struct("<8s16sIIQI")
_CRC = struct.Struct("<I")
_TABLE_ENTRY_BYTES = 8
HEAD_BYTES = _HEAD.size + _CRC.size  # 48

_KEY_INFO = b"hounsfield/segment/1/record\0"
_BOUND = struct.Struct("<12s16s16sIII")
_BOUND_LABEL = b"HFSEGMENT/1\0"


# ---------------------------------------------------------------- where things are


class PartRef(NamedTuple):
    """All that is needed to open one part without reading anything else."""

    segment: bytes
    record_id: bytes
    part: int
    part_count: int
    offset: int
    """Of the part's first sealed byte, in the segment's blob."""
    length: int
    """In plaintext bytes."""
    kind: int
    """Of the record; it is bound into the seal."""


class RecordRef(NamedTuple):
    """Where a record is and how its parts lie in it."""

    segment: bytes
    record_id: bytes
    offset: int
    """Of the record's first byte (its marker), in the segment's blob."""
    part_lengths: tuple[int, ...]
    """Plaintext length of each part; part 0 is the row."""
    kind: int

    @property
    def length(self) -> int:
        """Bytes of the whole record as stored."""
        return record_length(self.part_lengths)

    def part(self, number: int) -> PartRef:
        """Part ``number`` (from 0). Walks the lengths before it; use :meth:`parts` for all of them."""
        if not 0 <= number < len(self.part_lengths):
            raise IndexError(f"a record of {len(self.part_lengths)} parts has no part {number}")
        offset = self._body_start() + sum(map(sealed_length, self.part_lengths[:number]))
        return self._part(number, offset)

    def parts(self) -> Iterator[PartRef]:
        """Every part, in order, in one walk."""
        offset = self._body_start()
        for number, length in enumerate(self.part_lengths):
            yield self._part(number, offset)
            offset += sealed_length(length)

    def _part(self, number: int, offset: int) -> PartRef:
        count = len(self.part_lengths)
        return PartRef(
            self.segment, self.record_id, number, count, offset, self.part_lengths[number], self.kind
        )

    def _body_start(self) -> int:
        return self.offset + framing_length(len(self.part_lengths))


def framing_length(part_count: int) -> int:
    """Bytes of a record before its first sealed byte: head and part table."""
    return HEAD_BYTES + _TABLE_ENTRY_BYTES * part_count


def sealed_length(length: int) -> int:
    """Stored bytes of a part of ``length`` plaintext bytes."""
    if length <= CHUNK_BYTES:
        return length + TAG_BYTES
    return length + TAG_BYTES * -(-length // CHUNK_BYTES)


def record_length(part_lengths: Sequence[int]) -> int:
    """Stored bytes of a whole record."""
    return framing_length(len(part_lengths)) + sum(map(sealed_length, part_lengths))


Chunk: TypeAlias = tuple[int, int, int, bool]
"""Number, plaintext offset, plaintext length, whether it is the last."""


def chunks(length: int) -> Iterable[Chunk]:
    """The chunks of a part of ``length`` plaintext bytes."""
    if length <= CHUNK_BYTES:
        return ((0, 0, length, True),)
    last = (length - 1) // CHUNK_BYTES
    return (
        (number, number * CHUNK_BYTES, min(CHUNK_BYTES, length - number * CHUNK_BYTES), number == last)
        for number in range(last + 1)
    )


def runs(parts: Sequence[PartRef], sealed_bytes_max: int) -> Iterator[list[PartRef]]:
    """Consecutive parts in runs that are so long at most as they are stored; longer ones alone."""
    run: list[PartRef] = []
    for part in parts:
        end = part.offset + sealed_length(part.length)
        if run and end - run[0].offset > sealed_bytes_max:
            yield run
            run = []
        run.append(part)
    if run:
        yield run


# ---------------------------------------------------------------- the segment header


def pack_header(segment: bytes) -> bytes:
    """Both copies."""
    copy = _HEADER.pack(MAGIC, VERSION, 0, segment).ljust(HEADER_COPY_BYTES - _CRC.size, b"\0")
    copy += _CRC.pack(zlib.crc32(copy))
    return copy * 2


def parse_header(data: Buffer) -> bytes | None:
    """The segment id in the first copy that is whole; None when neither is (the records still open)."""
    for start in (0, HEADER_COPY_BYTES):
        copy = memoryview(data)[start : start + HEADER_COPY_BYTES]
        if len(copy) < HEADER_COPY_BYTES:
            continue
        (crc,) = _CRC.unpack_from(copy, HEADER_COPY_BYTES - _CRC.size)
        magic, version, _, segment = _HEADER.unpack_from(copy)
        if magic != MAGIC or crc != zlib.crc32(copy[: -_CRC.size]):
            continue
        if version != VERSION:
            raise FormatError(f"segment {segment.hex()} is of format {version}; this release knows {VERSION}")
        return bytes(segment)
    return None


# ---------------------------------------------------------------- the record framing


class RecordHead(NamedTuple):
    """What the first 48 bytes of a record say."""

    record_id: bytes
    kind: int
    part_count: int
    length: int
    table_crc: int

    @property
    def table_bytes(self) -> int:
        return _TABLE_ENTRY_BYTES * self.part_count


def pack_framing(record_id: bytes, kind: int, part_lengths: Sequence[int]) -> bytes:
    """Head and part table of a record."""
    table = struct.pack(f"<{len(part_lengths)}Q", *part_lengths)
    length = record_length(part_lengths)
    head = _HEAD.pack(MARKER, record_id, kind, len(part_lengths), length, zlib.crc32(table))
    return head + _CRC.pack(zlib.crc32(head)) + table


def parse_head(data: Buffer) -> RecordHead | None:
    """The head in the first 48 bytes of ``data``, or None when they are not one that is whole."""
    if len(data) < HEAD_BYTES:
        return None
    marker, record_id, kind, part_count, length, table_crc = _HEAD.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _HEAD.size)
    if marker != MARKER or crc != zlib.crc32(memoryview(data)[: _HEAD.size]):
        return None
    head = RecordHead(record_id, kind, part_count, length, table_crc)
    if not 1 <= part_count <= PARTS_MAX or length < HEAD_BYTES + head.table_bytes + TAG_BYTES * part_count:
        return None
    return head


def parse_table(head: RecordHead, data: Buffer) -> tuple[int, ...] | None:
    """The part lengths in ``data``, or None when they do not agree with ``head``."""
    if len(data) != head.table_bytes or zlib.crc32(data) != head.table_crc:
        return None
    lengths = struct.unpack(f"<{head.part_count}Q", data)
    if record_length(lengths) != head.length:
        return None
    return lengths


def padding_length(offset: int, data: Buffer) -> int:
    """How many bytes from ``offset`` on are padding, ``data`` being what the segment holds there; 0 when
    they are not all zeros up to the next multiple of 4096 (or to the end of ``data``, when it is shorter)."""
    length = min(-offset % PADDING_BYTES, len(data))
    return length if bytes(data[:length]).count(0) == length else 0


# ---------------------------------------------------------------- what the seals are made with


def record_key(segment_key: bytes, record_id: bytes) -> bytes:
    """HKDF-Expand (RFC 5869 2.3) with SHA-256: one block is all of the 32 bytes."""
    return hmac.digest(segment_key, _KEY_INFO + record_id + b"\x01", "sha256")


def nonce(part: int, chunk: int, last: bool) -> bytes:
    """part (4, big-endian) ‖ chunk counter (7, big-endian) ‖ last flag (1): once per record key."""
    return part.to_bytes(4, "big") + chunk.to_bytes(7, "big") + (b"\x01" if last else b"\x00")


def associated_data(segment: bytes, record_id: bytes, *, kind: int, part: int, part_count: int) -> bytes:
    """label (12) ‖ segment id (16) ‖ record id (16) ‖ kind, part, part count (4 each, little-endian)."""
    return _BOUND.pack(_BOUND_LABEL, segment, record_id, kind, part, part_count)
