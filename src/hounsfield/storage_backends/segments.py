"""The segment log: sealed records below one prefix, found, read, checked and removed; and appended to.

A part, or a stretch of one, is opened at once when it is in memory, or after waiting; from another copy when
one does not open. How groups become durable: :mod:`~hounsfield.storage_backends.segment_appending`. Layout:
:mod:`~hounsfield.storage_backends.segment_format`; the rules: docs/segment-format.md.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.api import (
    BlobReads,
    BlobStore,
    HasCopies,
    KnowsWriters,
    MakesDurable,
    NonBlockingReads,
    ReadsAhead,
)
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    OtherCopyAwayError,
    SealError,
    ShortReadError,
    StorageError,
    UnreadableError,
)
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.object_store import StoreAwayError
from hounsfield.storage_backends.sealing import RecordSeal, open_short_part
from hounsfield.storage_backends.segment_appending import RecordIn, SegmentAppender, SegmentLimits
from hounsfield.storage_backends.segment_format import SEGMENT_NAME, PartRef, RecordRef
from hounsfield.storage_backends.segment_scan import Damage, ScannedRecord, SegmentScan

__all__ = ["SegmentLog"]

_WRONG_BYTES = (SealError, ShortReadError)  # of this copy: another one may be right


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
        self._appender = SegmentAppender(blobs, keyring, prefix=prefix, purpose=purpose, limits=self._limits)
        self._reading = _ReadBuffer()
        # Asked once: isinstance with a protocol costs more than a cached read.
        self._nonblocking = blobs if isinstance(blobs, NonBlockingReads) else None
        self._copies = blobs if isinstance(blobs, HasCopies) else None
        self.damaged: Callable[[bytes], None] | None = None
        """Told a segment's id when something of it did not open, and another copy of it did."""

    # -- appending

    def append(self, records: Sequence[RecordIn], *, uses_reserve: bool = False) -> list[RecordRef]:
        """Seal and store ``records``; every one is durable when this returns. Blocking.

        One gather write (several past ``arena_bytes``) and one sync for all of them. ``uses_reserve``:
        for what frees space in the end (a deletion's tombstones, what compaction moves).
        ``StoreFullError`` before anything is written when space is short; ``ValueError`` when a record
        is past a limit. After any other failure the segment takes nothing more, none of ``records``
        counts as stored, and the next append starts a new segment with a new key.
        """
        return self._appender.append(records, uses_reserve=uses_reserve)

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
        return self._appender.start_anew(segment)

    def alone(self, *, arena_bytes: int) -> SegmentLog:
        """A log below the same prefix that appends to one segment of its own, of any length."""
        limits = replace(self._limits, segment_bytes=1 << 62, arena_bytes=arena_bytes)
        return SegmentLog(
            self._blobs, self._keyring, prefix=self._prefix, purpose=self._purpose, limits=limits
        )

    @property
    def own_segments(self) -> tuple[bytes, ...]:
        """The segments that this log started, oldest first."""
        return self._appender.own_segments

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
        return self._appender.statistics()

    def close(self) -> None:
        """Append nothing more. Reading goes on as long as the blob store is open."""
        self._appender.close()

    def _name(self, segment: bytes) -> str:
        return self._prefix + segment.hex()


class _ReadBuffer(threading.local):
    """Scratch of each thread: one sealed chunk, one opened. Only pages that are used are memory."""

    def __init__(self) -> None:
        self.view = _untouched(layout.CHUNK_BYTES + layout.TAG_BYTES)
        self.plain = _untouched(layout.CHUNK_BYTES)


def _untouched(length: int) -> memoryview:
    """Zeros that are made when they are looked at: zeroing a megabyte takes longer than most reads."""
    return memoryview(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
