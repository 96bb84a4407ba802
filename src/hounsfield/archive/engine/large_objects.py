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

import structlog
import trio

from hounsfield.archive.engine.budget import ByteBudget
from hounsfield.archive.engine.buffers import Block, BufferPool, Gathering
from hounsfield.archive.engine.errors import ClosedError, EngineError, OutOfResourcesError, StorageFailedError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.large_storing import LargeLimits, LargeStoring, RowMaker
from hounsfield.archive.engine.types import StoreResult
from hounsfield.archive.index.indexing import IndexContentionError, Indexer
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import StorageError, StoreFullError

__all__ = ["LargeLimits", "LargeObject", "LargeObjects"]

#: What a header may hold for a while beyond the budget; usual ones are some kilobytes.
UNPAID_BYTES_MAX = 1 << 20

log = structlog.get_logger(__name__)


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
        self._memory = memory  # taken from the budget
        self._piece_bytes = owner.limits.piece_bytes
        self._storing = LargeStoring(owner.indexer, owner.limits, transfer_syntax_uid, make_row)
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
                    await self._owner.gate.stream(self._storing.give_up)
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
                    await gate.stream(self._storing.store, piece)
                finally:
                    self._busy = False
                    piece.release()
                    if block is not None:
                        self._owner.pool.give_back(block)
                    self._changed.unpark_all()
                await self._pay_for_header()
            elif self._finishing:
                self._result = await gate.stream(self._storing.finish)
                return
            else:
                await self._changed.park()

    async def _pay_for_header(self) -> None:
        """Take from the budget what the scan has come to hold. It waits only for much, and never for memory
        that this very object gives back when it gets on."""
        budget = self._owner.budget
        more = self._owner.limits.memory_bytes + self._storing.held_bytes - self._memory
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
