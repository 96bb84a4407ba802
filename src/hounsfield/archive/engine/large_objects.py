"""Objects too long to be gathered: stored piece by piece while they come in, in a few megabytes of memory.

::

    session.write ─▸ block being filled ─▸ block in hand ─▸ thread: look at it, seal it, write and sync it
                     (receiving goes on)    (waits for the thread: this is the back-pressure)

Each object has a segment of its own (:mod:`hounsfield.storage_backends.segment_stream`) and a task that owns
its blocks and its segment, so that a sender that vanishes leaves nothing behind: the task finishes the call
it is in, removes the segment, destroys its key, gives the memory back. The object exists once the last
record is durable and the index knows it. What a crash leaves before that, the next start removes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import structlog
import trio

from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.dicom.incremental import IncrementalLimits, IncrementalScan, StreamScanned
from hounsfield.archive.engine.budget import ByteBudget
from hounsfield.archive.engine.buffers import Block, BufferPool, Gathering
from hounsfield.archive.engine.errors import ClosedError, EngineError, OutOfResourcesError, StorageFailedError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.group_commit import result_of
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.index.catalog import Stored
from hounsfield.archive.index.contents import same_stretches
from hounsfield.archive.index.indexing import IndexContentionError, Indexer, progress_batch
from hounsfield.archive.index.rows import (
    RECORD_KIND_OBJECT,
    RECORD_KIND_PIECE,
    InstanceRow,
    Location,
    ObjectRow,
    StreamRow,
    encode,
)
from hounsfield.archive.index.tables import SPARE
from hounsfield.archive.index.use import forget_segment
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Batch, Buffer
from hounsfield.storage_backends.errors import StorageError, StoreFullError
from hounsfield.storage_backends.segment_stream import SegmentStream
from hounsfield.storage_backends.segments import RecordIn

__all__ = ["LargeLimits", "LargeObject", "LargeObjects", "stream_row"]

#: What a header may hold for a while beyond the budget; usual ones are some kilobytes.
UNPAID_BYTES_MAX = 1 << 20

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LargeLimits:
    """What one large object takes while it comes in.

    ``piece_bytes``: written and synced at once. 4 MiB keeps a disk busy, and three of them (one that fills,
    one that waits, one sealed) are what an object holds. It is recorded with each object.
    """

    piece_bytes: int = 4 << 20
    scan: IncrementalLimits = field(default_factory=IncrementalLimits)

    @property
    def memory_bytes(self) -> int:
        """What is taken from the budget for one object, beside what its header needs."""
        return 3 * self.piece_bytes


RowMaker = Callable[[StreamScanned], ObjectRow]


class LargeObjects:
    """One worker's large objects that are coming in. ``run`` must be running in a nursery."""

    def __init__(
        self, indexer: Indexer, gate: Gate, pool: BufferPool, budget: ByteBudget, limits: LargeLimits
    ) -> None:
        self.indexer = indexer
        self.gate = gate
        self.pool = pool
        self.budget = budget
        self.limits = limits
        self.open: set[LargeObject] = set()
        self._nursery: trio.Nursery | None = None
        self._closing = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store what is handed over, until closed. Shielded: what was begun is ended before this ends."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await self._closing.wait()
                self._nursery = None
                for one in list(self.open):
                    one.abandon()

    def close(self) -> None:
        """Take nothing new; objects not yet complete are given up, those being finished are finished."""
        self._closing.set()

    async def begin(self, transfer_syntax_uid: str, make_row: RowMaker) -> LargeObject:
        """An object that goes on coming in. ``ClosedError``, ``OutOfResourcesError``."""
        memory = self.limits.memory_bytes
        await self.budget.take(memory)
        if self._nursery is None:
            self.budget.give_back(memory)
            raise ClosedError("the archive is draining; send to it again when it is back")
        one = LargeObject(self, transfer_syntax_uid, make_row, memory)
        self.open.add(one)
        self._nursery.start_soon(one.run)
        return one


class LargeObject:
    """One object while it comes in. ``write``, then ``commit``; ``abandon`` at any time, in any state."""

    def __init__(
        self, owner: LargeObjects, transfer_syntax_uid: str, make_row: RowMaker, memory: int
    ) -> None:
        self._owner = owner
        self._transfer_syntax_uid = transfer_syntax_uid
        self._make_row = make_row
        self._memory = memory  # taken from the budget
        self._piece_bytes = owner.limits.piece_bytes
        self._scan = IncrementalScan(lookup(transfer_syntax_uid), owner.limits.scan)
        self._stream = SegmentStream(
            owner.indexer.log, kind=RECORD_KIND_PIECE, piece_bytes=owner.limits.piece_bytes
        )
        self._block: Block | None = None  # being filled
        self._view = memoryview(b"")
        self._filled = 0
        self._in_hand: memoryview | None = None  # full, and not yet with the thread
        self._in_hand_block: Block | None = None
        self._gathered: Gathering | None = None  # what came before the object was known to be large
        self._gathered_memory = 0
        self._busy = False
        self._finishing = False
        self._abandoned = False
        self._keep = False
        self._ended = False
        self._failure: EngineError | None = None
        self._result: StoreResult | None = None
        self._changed = trio.lowlevel.ParkingLot()
        self.data_bytes = 0

    # ------------------------------------------------------------ the sender's side

    async def take_over(self, gathered: Gathering, memory: int) -> None:
        """Begin with what was gathered, which is this object's from here on, with the budget it holds."""
        self._gathered, self._gathered_memory = gathered, memory
        contents = gathered.contents()
        whole = len(contents) - len(contents) % self._piece_bytes
        for start in range(0, whole, self._piece_bytes):
            self.data_bytes += self._piece_bytes
            await self._hand_over(contents[start : start + self._piece_bytes], None)
        await self.write(contents[whole:])
        while self._busy and self._failure is None:
            await self._changed.park()
        contents.release()
        self._release_gathered()

    async def write(self, data: Buffer) -> None:
        """Copy ``data`` to the object's end; waits for the disk when it is behind. Raises ``EngineError``."""
        view = memoryview(data).cast("B")
        while view:
            if self._failure is not None:
                raise self._failure
            if self._block is None:
                self._block = self._owner.pool.take(self._piece_bytes)
                self._view, self._filled = memoryview(self._block), 0
            taken = min(self._piece_bytes - self._filled, len(view))
            self._view[self._filled : self._filled + taken] = view[:taken]
            self._filled += taken
            self.data_bytes += taken
            view = view[taken:]
            if self._filled == self._piece_bytes:
                await self._hand_over_block()

    async def commit(self) -> StoreResult:
        """Return once the object is durable and indexed. Not cancelled once begun. Raises ``EngineError``."""
        with trio.CancelScope(shield=True):
            if self._block is not None and self._failure is None:
                await self._hand_over_block()
            self._finishing = True
            self._changed.unpark_all()
            while not self._ended:
                await self._changed.park()
        if self._failure is not None:
            raise self._failure
        if self._result is None:
            raise ClosedError("this object was abandoned")
        return self._result

    def abandon(self) -> None:
        """Forget the object, unless it is being finished: its task removes what is stored of it."""
        if not self._finishing:
            self._abandoned = True
            self._failure = self._failure or ClosedError("this object was abandoned")
            self._changed.unpark_all()

    async def _hand_over_block(self) -> None:
        block, self._block = self._block, None
        view, self._view = self._view, memoryview(b"")
        await self._hand_over(view[: self._filled], block)

    async def _hand_over(self, piece: memoryview, block: Block | None) -> None:
        """Give a piece to the task and wait until it has begun with it."""
        self._in_hand, self._in_hand_block = piece, block
        self._changed.unpark_all()
        while self._in_hand is not None:
            if self._failure is not None:
                raise self._failure
            await self._changed.park()

    # ------------------------------------------------------------ the task's side

    async def run(self) -> None:
        """Store what is handed over, in order, until the object is finished or given up."""
        try:
            await self._store_all()
        except Exception as error:  # noqa: BLE001  whatever it is: this object fails, and no other
            self._failure = _failure_of(error)
        finally:
            if self._result is None and self._failure is None:
                self._failure = ClosedError("this object was abandoned")
            self._release_blocks()
            try:
                if self._result is None:
                    await self._owner.gate.stream(self._give_up)
            except Exception as error:  # noqa: BLE001  the next start removes it
                log.warning("a large object was not removed", error_type=type(error).__name__)
            finally:
                self._owner.budget.give_back(self._memory)
                self._owner.open.discard(self)
                self._ended = True
                self._changed.unpark_all()

    async def _store_all(self) -> None:
        gate = self._owner.gate
        while not self._abandoned:
            if self._in_hand is not None:
                piece, block = self._in_hand, self._in_hand_block
                self._in_hand = self._in_hand_block = None
                self._busy = True
                self._changed.unpark_all()
                try:
                    await gate.stream(self._store, piece)
                finally:
                    self._busy = False
                    piece.release()
                    if block is not None:
                        self._owner.pool.give_back(block)
                    self._changed.unpark_all()
                await self._pay_for_header()
            elif self._finishing:
                self._result = await gate.stream(self._finish)
                return
            else:
                await self._changed.park()

    async def _pay_for_header(self) -> None:
        """Take from the budget what the scan has come to hold. It waits only for much, and never for memory
        that this very object gives back when it gets on."""
        budget = self._owner.budget
        more = self._owner.limits.memory_bytes + self._scan.held_bytes - self._memory
        if more <= 0:
            return
        if not budget.take_nowait(more):
            if more <= UNPAID_BYTES_MAX or self._gathered is not None:
                return  # after the next piece
            await budget.take(more)
        self._memory += more

    def _release_blocks(self) -> None:
        pool = self._owner.pool
        self._view.release()
        if self._in_hand is not None:
            self._in_hand.release()
        for block in (self._block, self._in_hand_block):
            if block is not None:
                pool.give_back(block)
        self._block = self._in_hand = self._in_hand_block = None
        self._release_gathered()

    def _release_gathered(self) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered is not None:
            gathered.release()
            self._owner.budget.give_back(self._gathered_memory)

    # ------------------------------------------------------------ on a thread

    def _store(self, piece: memoryview) -> None:
        self._scan.feed(piece)
        self._stream.append(piece)

    def _give_up(self) -> None:
        if self._keep:
            self._stream.close()
        else:
            self._stream.discard()

    def _finish(self) -> StoreResult:
        """Write the object's record and index it; of one that is held already, remove all."""
        indexer = self._owner.indexer
        found = self._scan.finish()
        row = self._make_row(found)
        row = msgspec.structs.replace(row, stream=stream_row(found, self._piece_bytes))
        unlike: set[bytes] = set()
        with indexer.store.snapshot() as snapshot:
            held = indexer.held(snapshot, row)
        for one in held:  # outside of the snapshot: comparing gigabytes takes seconds
            if self._is(one):
                self._stream.discard()
                return result_of(row, Outcome.DUPLICATE)
            unlike.add(one.location.record_id)
        parts = (encode(row), found.header, self._stream.table, _frame_table(found, row.stream))
        ref = self._stream.finish(RecordIn(RECORD_KIND_OBJECT, parts))
        stored = Stored(row, Location.of(ref, row.stream), frozenset(unlike))
        try:
            (outcome,) = indexer.add([stored])
        except Exception:
            self._keep = self._is_indexed(stored)  # the index may have come further than its answer
            raise
        if outcome is Outcome.DUPLICATE:  # another sender of the same was first, just now
            self._stream.discard()
            self._forget(stored)
            return result_of(row, outcome)
        try:
            end = {ref.segment: ref.offset + ref.length}
            indexer.store.commit(progress_batch(end, closed=True))
        except StorageError as error:  # the next start looks at the segment once more
            log.info("a finished segment was not marked as such", error_type=type(error).__name__)
        self._stream.close()
        return result_of(row, outcome)

    def _forget(self, stored: Stored) -> None:
        """Take out of the index that there was a further record of an object."""
        indexer, place = self._owner.indexer, stored.location
        batch = Batch(uses_reserve=True)
        forget_segment(batch, place.segment)
        with indexer.store.snapshot() as snapshot:
            for one in indexer.held(snapshot, stored.row):
                batch.delete(SPARE, one.location.record_id + place.record_id + place.segment)
        try:
            indexer.store.commit(batch)
        except StorageError as error:  # it says of nothing that it is dead
            log.info("a removed segment was not forgotten", error_type=type(error).__name__)

    def _is(self, held: InstanceRow) -> bool:
        """Whether ``held`` has the bytes that were received. A damaged one has not: both are kept."""
        indexer = self._owner.indexer
        if held.transfer_syntax_uid != self._transfer_syntax_uid:
            return False
        try:
            if indexer.data_set_bytes(held.location, held.stored_as) != self._stream.data_bytes:
                return False
            return same_stretches(
                indexer.data_set(held.location, held.stored_as), self._stream.reader().stretches()
            )
        except (StorageError, CodecError):
            return False

    def _is_indexed(self, stored: Stored) -> bool:
        """Whether the index knows the record, or cannot say that it does not."""
        indexer = self._owner.indexer
        try:
            with indexer.store.snapshot() as snapshot:
                held = indexer.held(snapshot, stored.row)
        except Exception:  # noqa: BLE001
            return True
        return any(one.location.record_id == stored.location.record_id for one in held)


def stream_row(found: StreamScanned, piece_bytes: int) -> StreamRow:
    """What the object's row says of its stream."""
    scanned, size = found.scanned, found.data_bytes
    if scanned.layout is Layout.HEADER_ONLY:
        return StreamRow(size, piece_bytes, size, size, 0)
    cuts = scanned.cuts
    frames = len(cuts) - 3
    first = cuts[2] - cuts[1]
    equal = cuts[1:-1] == list(range(cuts[1], cuts[1] + first * frames + 1, first)) if first else frames == 1
    return StreamRow(size, piece_bytes, cuts[1], cuts[-2], frames, first if equal else -1)


def _frame_table(found: StreamScanned, stream: StreamRow | None) -> bytes:
    """Where each frame begins, and where the last one ends: 8 bytes each. Nothing when arithmetic tells."""
    if stream is None or stream.frame_bytes >= 0 or not stream.frames:
        return b""
    places = found.scanned.cuts[1:-1]
    return struct.pack(f"<{len(places)}Q", *places)


def _failure_of(error: Exception) -> EngineError:
    failure: EngineError
    if isinstance(error, EngineError):
        return error
    if isinstance(error, StoreFullError):
        failure = OutOfResourcesError(
            "the disk is full up to its reserve: free space or add a tier, then send again"
        )
    elif isinstance(error, (StorageError, OSError, ValueError, IndexContentionError)):
        failure = StorageFailedError(f"storing failed ({type(error).__name__}); not acknowledged, send again")
    else:
        failure = StorageFailedError(
            f"storing failed, which is a defect ({type(error).__name__}); not acknowledged, send again"
        )
    failure.__cause__ = error
    return failure
