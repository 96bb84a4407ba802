"""Buffers that stay mapped: a fresh half megabyte costs 128 page faults, a used one costs none.

Small ones are byte arrays. Large ones are anonymous maps: they grow without being copied (the kernel moves
their pages), take memory only as they are filled, and go back to the system the moment they are let go.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import TypeAlias

from hounsfield.storage_backends.api import Buffer

SMALLEST_BYTES = 64 * 1024
MAPPED_BYTES_MIN = 1 << 20
POOLED_BYTES_MAX = 64 << 20  # what the pool keeps when nobody uses it: 64 associations of CT, a megabyte each
POOLED_BLOCK_BYTES_MAX = 4 << 20  # a larger one is too rare to be worth keeping, and too large
EXPECTED_BYTES_MAX = 1 << 20  # how much the size of the last object may foretell: one X-ray among CT slices

Block: TypeAlias = bytearray | mmap.mmap


class BufferPool:
    """Blocks by size (powers of two), handed out dirty. One event loop's; not thread-safe."""

    def __init__(self, pooled_bytes_max: int = POOLED_BYTES_MAX) -> None:
        self._free: dict[int, list[Block]] = {}
        self._pooled = 0
        self._pooled_bytes_max = pooled_bytes_max

    @property
    def pooled_bytes(self) -> int:
        """Bytes that are kept for the next user."""
        return self._pooled

    @staticmethod
    def size_for(at_least: int) -> int:
        """The size of the block that :meth:`take` gives."""
        return max(SMALLEST_BYTES, 1 << (at_least - 1).bit_length()) if at_least > 1 else SMALLEST_BYTES

    def take(self, at_least: int) -> Block:
        """A block of at least that many bytes, holding whatever it held."""
        size = self.size_for(at_least)
        free = self._free.get(size)
        if free:
            self._pooled -= size
            return free.pop()
        if size < MAPPED_BYTES_MIN:
            return bytearray(size)
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def grown(self, block: Block, at_least: int, used: int) -> Block:
        """A larger block that begins with the ``used`` bytes of ``block``, which has to have no views."""
        if isinstance(block, mmap.mmap):
            with contextlib.suppress(BufferError):  # somebody forgot one: copied instead
                block.resize(self.size_for(at_least))
                return block
        larger = self.take(at_least)
        with memoryview(larger) as view:
            view[:used] = memoryview(block)[:used]
        self.give_back(block)
        return larger

    def give_back(self, block: Block) -> None:
        """Keep the block for the next one, or let it go; its views must not be used any more."""
        size = len(block)
        if not size:
            return
        if size <= POOLED_BLOCK_BYTES_MAX and self._pooled + size <= self._pooled_bytes_max:
            self._pooled += size
            self._free.setdefault(size, []).append(block)
        elif isinstance(block, mmap.mmap):
            with contextlib.suppress(BufferError):  # a view is left somewhere: it goes with the view
                block.close()


class Gathering:
    """One object's bytes as they arrive, in one contiguous block."""

    __slots__ = ("_block", "_expected_bytes", "_pool", "_view", "length")

    def __init__(self, pool: BufferPool, expected_bytes: int = 0) -> None:
        self._pool = pool
        self._block: Block = bytearray()
        self._view = memoryview(self._block)
        self._expected_bytes = min(expected_bytes, EXPECTED_BYTES_MAX)
        self.length = 0

    def capacity_for(self, more: int) -> int:
        """Bytes of memory that holding ``more`` bytes beside those that are here takes."""
        end = self.length + more
        if end <= len(self._view):
            return len(self._view)
        return self._pool.size_for(end if self._view else max(end, self._expected_bytes))

    def append(self, data: Buffer) -> None:
        """Copy ``data`` to the end; the caller's buffer is free again on return."""
        end = self.length + len(data)
        if end > len(self._view):
            self._grow(self.capacity_for(len(data)))
        self._view[self.length : end] = data
        self.length = end

    def _grow(self, at_least: int) -> None:
        had = bool(self._view)
        self._view.release()
        self._block = (
            self._pool.grown(self._block, at_least, self.length) if had else self._pool.take(at_least)
        )
        self._view = memoryview(self._block)

    def contents(self) -> memoryview:
        """What arrived so far; valid until more is appended or the block is released."""
        return self._view[: self.length]

    def release(self) -> None:
        """Give the block back to the pool. Idempotent."""
        self._view.release()
        block, self._block = self._block, bytearray()
        self._view = memoryview(self._block)
        self.length = 0
        self._pool.give_back(block)
