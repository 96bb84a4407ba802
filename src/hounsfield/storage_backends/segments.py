"""The segment log: sealed records, appended in groups, each group durable by one write and one sync.

Cost of a group of n objects of 512 KiB: n passes of AES-GCM from the caller's buffers into one
page-aligned arena (no other copy in this process), one write of whole blocks (which a disk takes from
the arena itself), one sync. Layout:
:mod:`~hounsfield.storage_backends.segment_format`; the rules: docs/segment-format.md.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.api import (
    BlobReads,
    BlobStore,
    BlobWriter,
    Buffer,
    HasCopies,
    KnowsWriters,
    MakesDurable,
    NonBlockingReads,
    ReadsAhead,
    SpaceReserve,
    WritesBlocks,
)
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    OtherCopyAwayError,
    PoisonedError,
    SealError,
    ShortReadError,
    StorageError,
    UnreadableError,
)
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.object_store import StoreAwayError
from hounsfield.storage_backends.sealing import RecordSeal, open_short_part
from hounsfield.storage_backends.segment_format import SEGMENT_NAME, PartRef, RecordRef
from hounsfield.storage_backends.segment_scan import Damage, DamageReason, ScannedRecord, SegmentScan

__all__ = [
    "Damage",
    "DamageReason",
    "PartRef",
    "RecordIn",
    "RecordRef",
    "ScannedRecord",
    "SegmentLimits",
    "SegmentLog",
]

HUGE_PAGE_BYTES = 2 << 20
_WRONG_BYTES = (SealError, ShortReadError)  # of this copy: another one may be right


@dataclass(frozen=True, slots=True)
class SegmentLimits:
    """Every limit of a segment log. The chunk size is not one of them: it belongs to the format."""

    segment_bytes: int = 1 << 30
    """A segment that would grow past it is closed and another started. Large enough that a petabyte is
    a million files and keys, small enough to compact or copy one in seconds. One group larger than
    this makes one larger segment."""

    record_bytes: int = 1 << 40
    """Sealed bytes of one record; DICOM's largest whole-slide objects stay below 100 GB."""

    parts: int = 1 << 20
    """Parts of one record: a million frames cost 8 MiB of part table, read at once when scanned."""

    row_bytes: int = 16 << 20
    """Part 0 of one record: scans hold it in memory; a row is a few kilobytes."""

    arena_bytes: int = 16 << 20
    """Ciphertext held before it is written, and kept for the next group. A group of 8 CT slices needs
    4 MiB and is one write; more goes out in slices of this size, still with one sync. 16 MiB leaves
    a worker that takes in a 4 GB object most of the 64 MB it may grow by."""

    nonblocking_bytes: int = 4 << 20
    """The largest part that ``try_open_part`` opens on the caller's thread: about half a millisecond."""


@runtime_checkable
class KnowsLengths(Protocol):
    """Parts that are made one by one when they are sealed, and whose lengths are known before."""

    @property
    def lengths(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class RecordIn:
    """A record to append: its kind, and its parts in plaintext, the small row first.

    ``record_id``: of a record that is moved, so that it stays the same object; b"" for a new, random one.
    """

    kind: int
    parts: Sequence[Buffer]
    record_id: bytes = b""


class SegmentLog:
    """The sealed records below one prefix of a blob store.

    Appending is serialised by a lock; reading is free of locks. Several processes may hold logs over
    the same prefix: each appends only to segments of its own making, and all can read all.
    """

    def __init__(
        self,
        blobs: BlobStore,
        keyring: Keyring,
        *,
        prefix: str = "segments/",
        purpose: str = "segment",
        limits: SegmentLimits | None = None,
    ) -> None:
        self._blobs = blobs
        self._keyring = keyring
        self._prefix = prefix
        self._purpose = purpose
        self._limits = limits or SegmentLimits()
        self._lock = threading.Lock()
        self._writer: BlobWriter | None = None
        self._segment = b""
        self._segment_key = b""
        self._arena = _arena(0)
        self._block = 1  # of the present writer
        self._reading = _ReadBuffer()
        # Asked once: isinstance with a protocol costs more than a cached read.
        self._reserve = blobs if isinstance(blobs, SpaceReserve) else None
        self._nonblocking = blobs if isinstance(blobs, NonBlockingReads) else None
        self._copies = blobs if isinstance(blobs, HasCopies) else None
        self.damaged: Callable[[bytes], None] | None = None
        """Told a segment's id when something of it did not open, and another copy of it did."""
        self._closed = False
        self._started: list[bytes] = []
        self._counts = {"segments_started": 0, "groups": 0, "records": 0, "bytes": 0, "failures": 0}

    # -- appending

    def append(self, records: Sequence[RecordIn], *, uses_reserve: bool = False) -> list[RecordRef]:
        """Seal and store ``records``; every one is durable when this returns. Blocking.

        One gather write (several past ``arena_bytes``) and one sync for all of them. ``uses_reserve``:
        for what frees space in the end (a deletion's tombstones, what compaction moves).
        ``StoreFullError`` before anything is written when space is short; ``ValueError`` when a record
        is past a limit. After any other failure the segment takes nothing more, none of ``records``
        counts as stored, and the next append starts a new segment with a new key.
        """
        if not records:
            return []
        lengths = [self._checked_lengths(record) for record in records]
        sizes = [layout.record_length(part_lengths) for part_lengths in lengths]
        if max(sizes) > self._limits.record_bytes:
            raise ValueError(f"a record has at most {self._limits.record_bytes} bytes, sealed")
        total = sum(sizes)
        with self._lock:
            if self._closed:
                raise PoisonedError("the segment log is closed")
            if self._reserve is not None and not uses_reserve:
                self._reserve.require_space(total)
            try:
                refs = self._append(records, lengths, sizes)
            except BaseException:
                self._abandon()
                self._counts["failures"] += 1
                raise
            self._counts["groups"] += 1
            self._counts["records"] += len(records)
            self._counts["bytes"] += total
            return refs

    def _append(
        self, records: Sequence[RecordIn], lengths: list[tuple[int, ...]], sizes: list[int]
    ) -> list[RecordRef]:
        total = sum(sizes)
        writer = self._writer_for(total)
        arena = self._arena_for(total, max(map(len, lengths)))
        used = 0
        offset = writer.size or layout.HEADER_BYTES
        random = os.urandom(layout.ID_BYTES * len(records))
        refs = []

        def room(length: int) -> memoryview:
            nonlocal used
            if used + length > len(arena):
                # Whole pages only: then file and arena stay aligned to each other.
                rest = used % layout.PADDING_BYTES
                writer.append([arena[: used - rest]])
                arena[:rest] = arena[used - rest : used]
                used = rest
            used += length
            return arena[used - length : used]

        if not writer.size:
            room(layout.HEADER_BYTES)[:] = layout.pack_header(self._segment)
        for index, (record, part_lengths) in enumerate(zip(records, lengths, strict=True)):
            record_id = record.record_id or random[layout.ID_BYTES * index : layout.ID_BYTES * (index + 1)]
            framing = layout.pack_framing(record_id, record.kind, part_lengths)
            room(len(framing))[:] = framing
            seal = RecordSeal(self._segment_key, self._segment, record_id, record.kind, len(part_lengths))
            for number, part in enumerate(record.parts):
                part_seal = seal.part(number)
                plain = memoryview(part).cast("B")
                if len(plain) != part_lengths[number]:
                    raise ValueError("a part changed its length while it was being stored")
                for chunk, start, length, last in layout.chunks(len(plain)):
                    into = room(length + layout.TAG_BYTES)
                    part_seal.seal(chunk, last, plain[start : start + length], into)
            refs.append(RecordRef(self._segment, record_id, offset, part_lengths, record.kind))
            offset += sizes[index]
        # Padding here, not in the writer's sync, makes the whole group one write.
        if padding := -offset % self._block:
            room(padding)[:] = bytes(padding)
        writer.append([arena[:used]])
        writer.sync()
        return refs

    def _checked_lengths(self, record: RecordIn) -> tuple[int, ...]:
        parts = record.parts
        # The type of nearly every record is asked first: isinstance with a protocol takes 20 µs.
        lengths: tuple[int, ...] = (
            tuple(len(part) if type(part) is bytes else memoryview(part).nbytes for part in parts)
            if type(parts) is tuple or not isinstance(parts, KnowsLengths)
            else parts.lengths
        )
        limits = self._limits
        if not 1 <= len(lengths) <= limits.parts:
            raise ValueError(f"a record has 1 to {limits.parts} parts, not {len(lengths)}")
        if lengths[0] > limits.row_bytes:
            raise ValueError(f"the row of a record has at most {limits.row_bytes} bytes, not {lengths[0]}")
        if not 0 <= record.kind < 1 << 32:
            raise ValueError("the kind of a record is an unsigned 32-bit number")
        if len(record.record_id) not in {0, layout.ID_BYTES}:
            raise ValueError(f"the id of a record has {layout.ID_BYTES} bytes")
        return lengths

    def _writer_for(self, length: int) -> BlobWriter:
        writer = self._writer
        length += -length % self._block
        if writer is not None and writer.size + length > self._limits.segment_bytes:
            writer.close()
            writer = self._writer = None
        if writer is None:
            segment = os.urandom(layout.ID_BYTES)
            # The key is durable before a byte that needs it exists.
            self._segment_key = self._keyring.create_key(self._purpose, segment.hex())
            self._segment = segment
            self._started.append(segment)
            writer = self._writer = self._blobs.create(self._name(segment))
            self._block = writer.block if isinstance(writer, WritesBlocks) else 1
            self._counts["segments_started"] += 1
        return writer

    def _arena_for(self, total: int, parts: int) -> memoryview:
        wanted = min(layout.HEADER_BYTES + total, self._limits.arena_bytes)
        wanted = max(wanted, layout.CHUNK_BYTES + layout.TAG_BYTES, layout.HEAD_BYTES + 8 * parts)
        wanted += layout.PADDING_BYTES  # what a flush leaves behind, or the padding
        if len(self._arena) < wanted:
            self._arena = _arena(wanted)
        return self._arena

    def _abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    # -- reading

    def open_part(self, part: PartRef, into: bytearray | memoryview | None = None) -> memoryview:
        """The plaintext of a part, in a fresh buffer (or in ``into``, of exactly its length).

        ``SealError`` when it does not open, ``ShortReadError``/``BlobNotFoundError`` when its bytes are
        not there, ``KeyringError`` when its segment's key is not.
        """
        plain = memoryview(bytearray(part.length) if into is None else into).cast("B")
        if len(plain) != part.length:
            raise ValueError(f"the buffer has {len(plain)} bytes and the part {part.length}")
        self._open_anywhere(part, tuple(layout.chunks(part.length)), plain)
        return plain

    def open_whole(self, part: PartRef) -> bytes | memoryview:
        """As :meth:`open_part`, in one step for short parts such as headers."""
        if part.length > layout.CHUNK_BYTES:
            return self.open_part(part)
        key = self._keyring.key(self._purpose, part.segment.hex())
        try:
            sealed = self._blobs.read(self._name(part.segment), part.offset, part.length + layout.TAG_BYTES)
            return open_short_part(
                key, part.segment, part.record_id, part.kind, part.part, part.part_count, sealed
            )
        except _WRONG_BYTES:
            if self._copies is None:
                raise
            return self.open_part(part)

    def read_ahead(self, parts: Iterable[PartRef]) -> None:
        """Have the disk bring these parts, which will be opened soon: their waits become one. Never fails."""
        if not isinstance(self._blobs, ReadsAhead):
            return
        wanted: dict[bytes, list[tuple[int, int]]] = {}
        for part in parts:
            wanted.setdefault(part.segment, []).append((part.offset, layout.sealed_length(part.length)))
        for segment, ranges in wanted.items():
            self._blobs.read_ahead(self._name(segment), sorted(ranges))

    def is_near(self, segment: bytes) -> bool:
        """Whether reading a segment waits for a local disk at most, not for another tier."""
        return self._copies is None or self._copies.is_near(self._name(segment))

    def is_in_memory(self, part: PartRef) -> bool:
        """Whether a part's end, and so most likely all of it, can be read without waiting. A guess, made in a
        microsecond or two; False also where the store cannot tell, or the part is not there."""
        if self._nonblocking is None or not part.length:
            return False
        last = part.offset + layout.sealed_length(part.length) - 1
        try:
            return self._nonblocking.try_read_into(self._name(part.segment), last, bytearray(1))
        except (BlobNotFoundError, UnreadableError):
            return False

    def try_open_part(self, part: PartRef, into: memoryview | None = None) -> memoryview | None:
        """The plaintext when all of it is in memory already and opens within about half a
        millisecond; otherwise None, and the caller opens it in a thread.

        ``into``: as of :meth:`open_part`.
        """
        if part.length > self._limits.nonblocking_bytes or self._nonblocking is None:
            return None
        if self._keyring.cached_key(self._purpose, part.segment.hex()) is None:
            return None  # the segment's key has to be read first
        plain = memoryview(bytearray(part.length)) if into is None else into
        if len(plain) != part.length:
            raise ValueError(f"the buffer has {len(plain)} bytes and the part {part.length}")
        opened = self._open(part, layout.chunks(part.length), plain, without_waiting=self._nonblocking)
        return plain if opened else None

    def open_parts(self, parts: Sequence[PartRef], into: memoryview, *, wait: bool) -> bool:
        """Open parts of one record that lie one behind the other into ``into``, likewise: with one key, and
        with as few reads as they fit into the buffer for what is sealed. Errors as :meth:`open_part`.

        False when a disk would have to be waited for, and the caller does not want to.
        """
        first = parts[0]
        segment = first.segment.hex()
        if not wait and (
            self._nonblocking is None or self._keyring.cached_key(self._purpose, segment) is None
        ):
            return False
        nonblocking = None if wait else self._nonblocking
        key = self._keyring.key(self._purpose, segment)
        record = RecordSeal(key, first.segment, first.record_id, first.kind, first.part_count)
        name, scratch = self._name(first.segment), self._reading.view
        at = 0
        for run in layout.runs(parts, len(scratch)):
            if run[0].length > layout.CHUNK_BYTES:
                room = into[at : at + run[0].length]
                if not self._open(run[0], layout.chunks(len(room)), room, without_waiting=nonblocking):
                    return False
                at += len(room)
                continue
            start = run[0].offset
            sealed = scratch[: run[-1].offset + layout.sealed_length(run[-1].length) - start]
            if nonblocking is None:
                self._blobs.read_into(name, start, sealed)
            elif not nonblocking.try_read_into(name, start, sealed):
                return False
            for part in run:
                begin, length = part.offset - start, part.length
                one = sealed[begin : begin + length + layout.TAG_BYTES]
                record.part(part.part).open(0, True, one, into[at : at + length])
                at += length
        return True

    def open_range(self, part: PartRef, start: int, length: int) -> memoryview:
        """``length`` plaintext bytes of a part from ``start``; reads and opens only their chunks."""
        if start < 0 or length < 0 or start + length > part.length:
            raise ValueError(f"bytes {start} to {start + length} of a part that has {part.length}")
        if not length:
            return memoryview(b"")
        first, last = start // layout.CHUNK_BYTES, (start + length - 1) // layout.CHUNK_BYTES
        wanted = [chunk for chunk in layout.chunks(part.length) if first <= chunk[0] <= last]
        plain = memoryview(bytearray(sum(chunk[2] for chunk in wanted)))
        self._open_anywhere(part, wanted, plain)
        skip = start - first * layout.CHUNK_BYTES
        return plain[skip : skip + length]

    def _open_anywhere(self, part: PartRef, wanted: Sequence[layout.Chunk], plain: memoryview) -> None:
        """Open chunks of a part into ``plain``, from another copy when they do not open.

        ``OtherCopyAwayError`` when one that may be right cannot be reached now.
        """
        try:
            self._open(part, wanted, plain)
        except (*_WRONG_BYTES, BlobNotFoundError):
            if self._copies is None:
                raise
            away: StoreAwayError | None = None
            copies = 0
            for copy in self._copies.copies(self._name(part.segment)):
                copies += 1
                try:
                    self._open(part, wanted, plain, blobs=copy)
                except StoreAwayError as error:
                    away = error
                except StorageError:
                    continue
                else:
                    self._doubt(part.segment)
                    return
            if copies:
                self._doubt(part.segment)
            if away is not None:
                raise OtherCopyAwayError(f"this copy does not open, and another is away: {away}") from away
            raise

    def _doubt(self, segment: bytes) -> None:
        if self.damaged is not None:
            self.damaged(segment)

    def _open(
        self,
        part: PartRef,
        wanted: Iterable[layout.Chunk],
        plain: memoryview,
        *,
        without_waiting: NonBlockingReads | None = None,
        blobs: BlobReads | None = None,
    ) -> bool:
        """Open consecutive chunks of a part into ``plain``; False when it may not wait and would have to."""
        name = self._name(part.segment)
        key = self._keyring.key(self._purpose, part.segment.hex())
        seal = RecordSeal(key, part.segment, part.record_id, part.kind, part.part_count).part(part.part)
        scratch = self._reading.view
        filled = 0
        for chunk, start, length, last in wanted:
            sealed = scratch[: length + layout.TAG_BYTES]
            offset = part.offset + start + chunk * layout.TAG_BYTES
            if without_waiting is None:
                (blobs or self._blobs).read_into(name, offset, sealed)
            elif not without_waiting.try_read_into(name, offset, sealed):
                return False
            seal.open(chunk, last, sealed, plain[filled : filled + length])
            filled += length
        return True

    def verify(self, record: RecordRef) -> None:
        """Read all of a record again, framing included; ``SealError`` unless every byte is as sealed."""
        framing = layout.pack_framing(record.record_id, record.kind, record.part_lengths)
        if self._blobs.read(self._name(record.segment), record.offset, len(framing)) != framing:
            raise SealError(
                f"the framing of record {record.record_id.hex()} was changed; restore it from another copy"
            )
        scratch = self._reading.plain
        for part in record.parts():
            for chunk in layout.chunks(part.length):
                self._open(part, (chunk,), scratch[: chunk[2]])

    # -- one segment for one purpose, and none

    def start_anew(self, segment: bytes | None = None) -> bool:
        """Have the next append start another segment (only when the present one is ``segment``); whether so.

        Then the present one is not being written any more: others may catch up with it, or compact it.
        """
        with self._lock:
            if self._writer is None or segment not in {None, self._segment}:
                return False
            self._abandon()
            return True

    def alone(self, *, arena_bytes: int) -> SegmentLog:
        """A log below the same prefix that appends to one segment of its own, of any length."""
        limits = replace(self._limits, segment_bytes=1 << 62, arena_bytes=arena_bytes)
        return SegmentLog(
            self._blobs, self._keyring, prefix=self._prefix, purpose=self._purpose, limits=limits
        )

    @property
    def own_segments(self) -> tuple[bytes, ...]:
        """The segments that this log started, oldest first."""
        return tuple(self._started)

    def remove(self, segment: bytes) -> None:
        """Delete a segment that nothing refers to, then destroy its key. Idempotent; durable on return.

        In this order, so that a crash between the two leaves no blob that could not be told from damage.
        """
        with contextlib.suppress(BlobNotFoundError):
            self._blobs.delete(self._name(segment))
        self._keyring.destroy_key(self._purpose, segment.hex())

    def over(self, blobs: BlobStore) -> SegmentLog:
        """The same segments, read from another store that has them: a copy, or another way to the bytes."""
        return SegmentLog(
            blobs, self._keyring, prefix=self._prefix, purpose=self._purpose, limits=self._limits
        )

    # -- finding

    def segment_ids(self) -> list[bytes]:
        """Every segment below the prefix, by name."""
        found = (name[len(self._prefix) :] for name in self._blobs.names(self._prefix))
        return [bytes.fromhex(name) for name in found if SEGMENT_NAME.fullmatch(name)]

    def size(self, segment: bytes) -> int:
        """Stored bytes of a segment."""
        return self._blobs.size(self._name(segment))

    def is_being_written(self, segment: bytes) -> bool:
        """Whether a live process may still append to a segment. Where the store cannot tell, nobody may."""
        return isinstance(self._blobs, KnowsWriters) and self._blobs.is_being_written(self._name(segment))

    def make_durable(self, segment: bytes) -> None:
        """Return when what can be read of a segment survives a power cut: its writer may have died before
        its sync. ``PoisonedError`` when the disk refuses."""
        if isinstance(self._blobs, MakesDurable):
            self._blobs.make_durable(self._name(segment))

    def key_of(self, segment: bytes) -> bytes:
        """The key that all of a segment is sealed with."""
        return self._keyring.key(self._purpose, segment.hex())

    def stretches(self, segment: bytes, start: int, stop: int) -> Iterator[bytes]:
        """The stored bytes of a segment, framing and all, from ``start`` to ``stop``."""
        name = self._name(segment)
        for at in range(start, stop, layout.CHUNK_BYTES):
            yield self._blobs.read(name, at, min(layout.CHUNK_BYTES, stop - at))

    def is_blank(self, segment: bytes, start: int, stop: int) -> bool:
        """Whether a stretch of a segment's blob, framing and all, is nothing but zeros."""
        return not any(map(any, self.stretches(segment, start, stop)))

    def scan(self, segment: bytes, *, start: int | None = None) -> Iterator[ScannedRecord | Damage]:
        """Every record of a segment from offset ``start`` on, without any index; pixel parts are not read.

        What cannot be read costs itself only: it is yielded as :class:`Damage` and the scan goes on at
        the next record. That a row opens does not prove the other parts: see :meth:`verify`.
        """
        key = self._keyring.key(self._purpose, segment.hex())
        return SegmentScan(self._blobs, self._name(segment), segment, key).records(start)

    def statistics(self) -> dict[str, int]:
        return dict(self._counts)

    def close(self) -> None:
        """Append nothing more. Reading goes on as long as the blob store is open."""
        with self._lock:
            self._closed = True
            self._abandon()

    def _name(self, segment: bytes) -> str:
        return self._prefix + segment.hex()


def _arena(length: int) -> memoryview:
    """Memory of at least ``length`` that begins on a page, as direct writes need it; given back with its last
    view. A large one is of huge pages where the system has them: a direct write pins each page that it
    is handed, and half a mebibyte in one instead of 129 takes the kernel a third of the time less."""
    if not length:
        return memoryview(b"")
    huge = length >= HUGE_PAGE_BYTES // 4
    if huge:
        length += -length % HUGE_PAGE_BYTES
    arena = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them: pages of the usual size
            arena.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(arena)


class _ReadBuffer(threading.local):
    """Scratch of each thread: one sealed chunk, one opened."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(layout.CHUNK_BYTES + layout.TAG_BYTES))
        self._plain: memoryview | None = None

    @property
    def plain(self) -> memoryview:
        if self._plain is None:
            self._plain = memoryview(bytearray(layout.CHUNK_BYTES))
        return self._plain
