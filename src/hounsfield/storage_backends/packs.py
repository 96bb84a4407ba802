"""Packs: segments that end with a list of what is in them, and with a digest of all their bytes.

    record │ record │ … │ contents │ end │ padding

A pack is written once, by one writer, as a segment like any other (:class:`PackWriter`); then it is a blob
that proves itself wherever a copy of it lies: two ranged reads tell what is in it (:func:`read_end`,
:func:`read_contents`), and one pass over its bytes that none of them changed (:class:`PackCheck`), without an
index. Layout: docs/segment-format.md, "Packs".
"""

from __future__ import annotations

import hmac
import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from typing import NamedTuple

import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.api import BlobReads, Buffer
from hounsfield.storage_backends.errors import FormatError, PoisonedError, SealError
from hounsfield.storage_backends.sealing import RecordSeal, open_short_part
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_format import RecordRef
from hounsfield.storage_backends.segment_scan import ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog

__all__ = [
    "END_WINDOW_BYTES",
    "KIND_CONTENTS",
    "KIND_END",
    "Contents",
    "Entry",
    "PackCheck",
    "PackEnd",
    "PackWriter",
    "checked",
    "contents_row",
    "end_of",
    "read_contents",
    "read_end",
]

KIND_CONTENTS = 5
KIND_END = 6
END_WINDOW_BYTES = 8192  # from a pack's last bytes: padding, of 4095 bytes at most, and the end before it

_KEY_INFO = b"hounsfield/pack/1/digest\0"
_NONCE = bytes(12)  # the key is of one pack, which is written once
_END = Struct("<QQQ16s")
_END_RECORD_BYTES = layout.record_length((_END.size,))
_ENTRY = Struct("<16sIIQ")
_LENGTH_BYTES = 8
_CONTENTS_PARTS = 2
_ZSTD_LEVEL = 3
_MARKER = re.compile(re.escape(layout.MARKER))


class PackEnd(NamedTuple):
    """What the end of a pack says."""

    contents_at: int
    """Where the record of the contents begins."""
    end_at: int
    """Where the end itself begins: what is before it, the digest is of."""
    objects: int
    digest: bytes
    """A keyed one: see :class:`_Digest`."""


class _Digest:
    """The digest of a pack: GMAC (NIST SP 800-38D) with AES-256 and a key of the pack's own.

    Keyed, since whoever proves a pack has its key, and there is nothing faster: 20 GB/s where BLAKE2b and
    SHA-256 do 1 to 2. Bytes that are moved to another tier go through it four times.
    """

    def __init__(self, key: bytes) -> None:
        """``key``: the segment's."""
        own = hmac.digest(key, _KEY_INFO + b"\x01", "sha256")  # HKDF-Expand, as of records
        self._mac = Cipher(AES256(own), GCM(_NONCE)).encryptor()

    def update(self, data: Buffer) -> None:
        """The next bytes; outside the interpreter's lock."""
        self._mac.authenticate_additional_data(data)

    def finish(self) -> bytes:
        """There are no more."""
        self._mac.finalize()
        return self._mac.tag


class Entry(NamedTuple):
    """One record of a pack, as its contents list it."""

    ref: RecordRef
    row: bytes
    """Its part 0."""


class Contents(NamedTuple):
    """What a pack's contents say: ``row`` is of whoever made the pack."""

    row: bytes
    entries: Iterator[Entry]


# ---------------------------------------------------------------- writing


class PackWriter:
    """Writes one pack. Blocking, one thread at a time; as a ``SegmentLog`` of one segment, until the end.

    What is not finished is a segment like any other that a crash left. After a failure only :meth:`close`.
    """

    def __init__(self, log: SegmentLog, *, arena_bytes: int) -> None:
        """Nothing exists before the first record; ``arena_bytes``: see ``SegmentLimits``."""
        self._log = log
        self._own = log.alone(arena_bytes=arena_bytes)
        self._packing = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
        self._packed: list[bytes] = []
        self._finished = False

    @property
    def own_segments(self) -> tuple[bytes, ...]:
        """The segment that this is, once there is one."""
        return self._own.own_segments

    def append(self, records: Sequence[RecordIn], *, uses_reserve: bool = False) -> list[RecordRef]:
        """Store the next records, durably; raises as ``SegmentLog.append`` does."""
        refs = self._append(records, uses_reserve)
        for record, ref in zip(records, refs, strict=True):
            self._packed.append(self._packing.compress(_entry(ref)))
            self._packed.append(self._packing.compress(bytes(record.parts[0])))
        return refs

    def finish(
        self,
        row: bytes,
        objects: int,
        *,
        uses_reserve: bool = False,
        pace: Callable[[int], None] = lambda _: None,
    ) -> PackEnd:
        """Store contents and end, durably: all that was written is read back for the digest.

        ``pace`` is called with the length of each stretch that is read. Nothing can be appended after it. The
        segment stays open, so that nobody takes it for one that a crash left, until :meth:`close`.
        """
        self._require_open()
        entries = b"".join((*self._packed, self._packing.flush()))
        (contents,) = self._append([RecordIn(KIND_CONTENTS, (row, entries))], uses_reserve)
        end_at = self._log.size(contents.segment)
        digest = _Digest(self._log.key_of(contents.segment))
        for stretch in self._log.stretches(contents.segment, 0, end_at):
            digest.update(stretch)
            pace(len(stretch))
        end = PackEnd(contents.offset, end_at, objects, digest.finish())
        (ref,) = self._append([RecordIn(KIND_END, (_END.pack(*end),))], uses_reserve)
        self._finished = True
        if ref.offset != end_at:
            raise PoisonedError("the end of a pack is not where it says; the pack is given up")
        return end

    def _append(self, records: Sequence[RecordIn], uses_reserve: bool) -> list[RecordRef]:
        self._require_open()
        try:
            refs = self._own.append(records, uses_reserve=uses_reserve)
        except BaseException:
            self._finished = True
            raise
        if len(self.own_segments) > 1:
            self._finished = True
            raise PoisonedError("the segment was given up in the middle")
        return refs

    def _require_open(self) -> None:
        if self._finished:
            raise PoisonedError("this pack takes nothing more")

    def close(self) -> None:
        """Write nothing more. What was synced stays."""
        self._finished = True
        self._own.close()


def _entry(ref: RecordRef) -> bytes:
    """What the contents say of a record, before its row."""
    lengths = b"".join(length.to_bytes(_LENGTH_BYTES, "little") for length in ref.part_lengths)
    return _ENTRY.pack(ref.record_id, ref.kind, len(ref.part_lengths), ref.offset) + lengths


# ---------------------------------------------------------------- reading


def read_end(source: BlobReads, name: str, segment: bytes, key: bytes) -> PackEnd:
    """The end of the pack that is blob ``name``, in one ranged read.

    ``FormatError`` when there is none: it is no pack, or not all of it, or its end is damaged. Else as the
    source's reading.
    """
    size = source.size(name)
    start = max(0, size - END_WINDOW_BYTES)
    found = _find_end(source.read(name, start, size - start), start, segment, key)
    if found is None:
        raise FormatError(f"segment {segment.hex()} is no pack, or its end is damaged")
    return found


def end_of(log: SegmentLog, segment: bytes) -> PackEnd | None:
    """The end of a log's segment; None when that is no pack, or its end is damaged. Raises as a scan does."""
    start = max(layout.HEADER_BYTES, log.size(segment) - END_WINDOW_BYTES)
    found = next(iter(deque(log.scan(segment, start=start), maxlen=1)), None)
    if not isinstance(found, ScannedRecord) or found.kind != KIND_END or len(found.row) != _END.size:
        return None
    end = PackEnd(*_END.unpack(found.row))
    return end if layout.HEADER_BYTES <= end.contents_at < end.end_at == found.ref.offset else None


def contents_row(log: SegmentLog, segment: bytes, end: PackEnd) -> bytes | None:
    """What the contents of a log's pack say of all of it; None when that does not open."""
    found = next(log.scan(segment, start=end.contents_at), None)
    return found.row if isinstance(found, ScannedRecord) and found.kind == KIND_CONTENTS else None


def read_contents(source: BlobReads, name: str, segment: bytes, key: bytes, end: PackEnd) -> Contents:
    """What is in the pack, in one ranged read; ``end`` is what :func:`read_end` gave.

    The entries are unpacked as they are asked for. ``SealError`` and ``FormatError`` when the contents are
    damaged; else as the source's reading.
    """
    data = memoryview(source.read(name, end.contents_at, end.end_at - end.contents_at))
    head = layout.parse_head(data)
    table_end = layout.framing_length(_CONTENTS_PARTS)
    if head is None or head.kind != KIND_CONTENTS or head.part_count != _CONTENTS_PARTS:
        raise FormatError(f"the contents of pack {segment.hex()} are damaged")
    lengths = layout.parse_table(head, data[layout.HEAD_BYTES : table_end])
    if lengths is None or head.length > len(data):
        raise FormatError(f"the contents of pack {segment.hex()} are damaged")
    ref = RecordRef(segment, head.record_id, end.contents_at, lengths, head.kind)
    seal = RecordSeal(key, segment, ref.record_id, ref.kind, _CONTENTS_PARTS)
    plain: list[bytearray] = []
    for part in ref.parts():
        into = bytearray(part.length)
        at, part_seal = part.offset - end.contents_at, seal.part(part.part)
        for number, start, length, last in layout.chunks(part.length):
            place = at + start + number * layout.TAG_BYTES
            sealed = data[place : place + length + layout.TAG_BYTES]
            part_seal.open(number, last, sealed, memoryview(into)[start : start + length])
        plain.append(into)
    return Contents(bytes(plain[0]), _entries(segment, plain[1]))


def _entries(segment: bytes, packed: bytearray) -> Iterator[Entry]:
    """The entries in the second part of a pack's contents."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as plain:

            def take(length: int) -> bytes:
                data = plain.read(length)
                if len(data) != length:
                    raise FormatError(f"the contents of pack {segment.hex()} end in the middle of an entry")
                return data

            while first := plain.read(_ENTRY.size):
                record_id, kind, count, offset = _ENTRY.unpack(first + take(_ENTRY.size - len(first)))
                if not 1 <= count <= layout.PARTS_MAX:
                    raise FormatError(f"the contents of pack {segment.hex()} list a record of {count} parts")
                table = take(_LENGTH_BYTES * count)
                lengths = tuple(
                    int.from_bytes(table[at : at + _LENGTH_BYTES], "little")
                    for at in range(0, len(table), _LENGTH_BYTES)
                )
                yield Entry(RecordRef(segment, record_id, offset, lengths, kind), take(lengths[0]))
    except zstandard.ZstdError as error:
        raise FormatError(f"the contents of pack {segment.hex()} do not inflate") from error


def _find_end(window: bytes, start: int, segment: bytes, key: bytes) -> PackEnd | None:
    """The end in a pack's last bytes, which begin at ``start``; None when it is not there, or damaged."""
    for found in reversed([match.start() for match in _MARKER.finditer(window)]):
        record = window[found : found + _END_RECORD_BYTES]
        head = layout.parse_head(record)
        if head is None or (head.kind, head.part_count, head.length) != (KIND_END, 1, _END_RECORD_BYTES):
            continue
        sealed = record[layout.framing_length(1) :]
        behind = window[found + _END_RECORD_BYTES :]
        if len(sealed) != layout.sealed_length(_END.size) or any(behind):
            continue
        if layout.parse_table(head, record[layout.HEAD_BYTES : layout.framing_length(1)]) != (_END.size,):
            continue
        try:
            plain = open_short_part(key, segment, head.record_id, KIND_END, 0, 1, sealed)
        except SealError:
            continue
        end = PackEnd(*_END.unpack(plain))
        whole = end.end_at == start + found and len(behind) < layout.PADDING_BYTES
        return end if whole and layout.HEADER_BYTES <= end.contents_at < end.end_at else None
    return None


# ---------------------------------------------------------------- proving


class PackCheck:
    """Proves a pack from its bytes alone, as they go by: each must be as it was written.

    For one pass from the first byte to the last; it holds 8192 bytes.
    """

    def __init__(self, segment: bytes, key: bytes) -> None:
        """``key``: the segment's, from the keyring."""
        self._segment = segment
        self._key = key
        self._digest = _Digest(key)
        self._hashed = 0
        self._tail = b""

    def update(self, piece: Buffer) -> None:
        """The next bytes."""
        view = memoryview(piece).cast("B")
        if len(view) < END_WINDOW_BYTES:
            view = memoryview(self._tail + view)
        elif self._tail:
            self._take(memoryview(self._tail))
        kept = max(0, len(view) - END_WINDOW_BYTES)
        self._take(view[:kept])
        self._tail = bytes(view[kept:])

    def _take(self, view: memoryview) -> None:
        self._digest.update(view)
        self._hashed += len(view)

    def finish(self) -> PackEnd:
        """There are no more. ``SealError`` unless they are all of the pack that was written, unchanged."""
        end = _find_end(self._tail, self._hashed, self._segment, self._key)
        if end is not None:
            self._digest.update(self._tail[: end.end_at - self._hashed])
        if end is None or not hmac.compare_digest(self._digest.finish(), end.digest):
            raise SealError(
                f"pack {self._segment.hex()} is damaged: bytes were changed or are missing; "
                "restore it from another copy"
            )
        return end


def checked(pieces: Iterable[Buffer], segment: bytes, key: bytes) -> PackEnd:
    """Prove a pack from its bytes, as :class:`PackCheck` does."""
    check = PackCheck(segment, key)
    for piece in pieces:
        check.update(piece)
    return check.finish()
