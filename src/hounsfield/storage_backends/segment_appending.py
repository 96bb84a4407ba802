"""Appending to segments: records are sealed into one arena, written with one write, durable with one sync.

Cost of a group of n objects of 512 KiB: n passes of AES-GCM from the caller's buffers into one
page-aligned arena (no other copy in this process), one write of whole blocks (which a disk takes from
the arena itself), one sync. After a failure the segment takes nothing more, and none of the group is stored.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.api import BlobStore, BlobWriter, Buffer, SpaceReserve, WritesBlocks
from hounsfield.storage_backends.errors import PoisonedError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.sealing import RecordSeal
from hounsfield.storage_backends.segment_format import RecordRef

__all__ = ["RecordIn", "SegmentAppender", "SegmentLimits"]

HUGE_PAGE_BYTES = 2 << 20


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


class SegmentAppender:
    """Appends to segments of its own making, one after the other. Serialised by a lock."""

    def __init__(
        self, blobs: BlobStore, keyring: Keyring, *, prefix: str, purpose: str, limits: SegmentLimits
    ) -> None:
        self._blobs = blobs
        self._keyring = keyring
        self._prefix = prefix
        self._purpose = purpose
        self._limits = limits
        self._lock = threading.Lock()
        self._writer: BlobWriter | None = None
        self._segment = b""
        self._segment_key = b""
        self._arena = _arena(0)
        self._block = 1  # of the present writer
        # Asked once: isinstance with a protocol costs more than a cached read.
        self._reserve = blobs if isinstance(blobs, SpaceReserve) else None
        self._closed = False
        self._started: list[bytes] = []
        self._counts = {"segments_started": 0, "groups": 0, "records": 0, "bytes": 0, "failures": 0}

    def append(self, records: Sequence[RecordIn], *, uses_reserve: bool) -> list[RecordRef]:
        """As of ``SegmentLog.append``."""
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
            writer = self._writer = self._blobs.create(self._prefix + segment.hex())
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

    @property
    def own_segments(self) -> tuple[bytes, ...]:
        """The segments that were started here, oldest first."""
        return tuple(self._started)

    def start_anew(self, segment: bytes | None) -> bool:
        """As of ``SegmentLog.start_anew``."""
        with self._lock:
            if self._writer is None or segment not in {None, self._segment}:
                return False
            self._abandon()
            return True

    def statistics(self) -> dict[str, int]:
        return dict(self._counts)

    def close(self) -> None:
        """Append nothing more."""
        with self._lock:
            self._closed = True
            self._abandon()


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
