"""Data sets opened whole, one after the other, into the same memory.

For those who send one object at a time and wait for an answer to each: what was opened is still in the
processor's cache when it is sent, and no memory is asked for per object. Longer objects, and those that are
made anew, come in pieces (:meth:`~hounsfield.archive.engine.retrieve.Retrieve.dataset`).
"""

from __future__ import annotations

from typing import Final

from hounsfield.archive.engine.buffers import POOLED_BLOCK_BYTES_MAX, Block, BufferPool
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.retrieve import Retrieve
from hounsfield.archive.engine.types import Instance

WHOLE_BYTES_MAX: Final = POOLED_BLOCK_BYTES_MAX
"""Longer ones come in pieces: blocks beyond are not kept for the next."""
AT_ONCE_BYTES_MAX: Final = 1 << 20
"""Opened on the event loop when no disk has to be waited for: a third of a millisecond. Beyond, a thread
costs less than the others' waiting."""


class Opening:
    """One reader's memory. :meth:`close` it when done."""

    def __init__(self, retrieve: Retrieve, gate: Gate, pool: BufferPool) -> None:
        self._retrieve = retrieve
        self._gate = gate
        self._pool = pool
        self._block: Block | None = None
        self.waited = False
        """Whether the last one had to be waited for: those that follow may be worth being announced."""

    async def open(self, instance: Instance) -> memoryview | None:
        """The data set as it is delivered, valid until the next call; None when it comes in pieces only.

        Raises what reading raises: ``DamagedError``, ``NotFoundError``.
        """
        self.waited = False
        length = self._retrieve.whole_bytes(instance)
        if length is None or length > WHOLE_BYTES_MAX:
            return None
        into = memoryview(self._room(length))[:length]
        if length <= AT_ONCE_BYTES_MAX and self._retrieve.whole_into(instance, into, wait=False):
            return into
        self.waited = True
        opened = await self._gate.read(self._in_time, instance, into)
        return into if opened else None

    def close(self) -> None:
        """Give the memory back."""
        block, self._block = self._block, None
        if block is not None:
            self._pool.give_back(block)

    def _in_time(self, instance: Instance, into: memoryview) -> bool:
        return self._retrieve.whole_into(instance, into, wait=True)

    def _room(self, length: int) -> Block:
        block = self._block
        if block is None or len(block) < length:
            self.close()
            block = self._block = self._pool.take(length)
        return block
