"""Buffers that stay mapped: a fresh half megabyte costs 128 page faults, a used one costs none."""

from __future__ import annotations

from hounsfield.storage_backends.api import Buffer

SMALLEST_BYTES = 64 * 1024
POOLED_BYTES_MAX = (
    64 * 1024 * 1024
)  # what the pool keeps when nobody uses it: eight associations of CT, twice


class BufferPool:
    """Byte arrays by size (powers of two), handed out dirty. One event loop's; not thread-safe."""

    def __init__(self, pooled_bytes_max: int = POOLED_BYTES_MAX) -> None:
        self._free: dict[int, list[bytearray]] = {}
        self._pooled = 0
        self._pooled_bytes_max = pooled_bytes_max

    @staticmethod
    def size_for(at_least: int) -> int:
        """The size of the buffer that :meth:`take` gives."""
        return max(SMALLEST_BYTES, 1 << (at_least - 1).bit_length()) if at_least > 1 else SMALLEST_BYTES

    def take(self, at_least: int) -> bytearray:
        """A buffer of at least that many bytes, holding whatever it held."""
        size = self.size_for(at_least)
        free = self._free.get(size)
        if free:
            self._pooled -= size
            return free.pop()
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Keep the buffer for the next one; its views must not be read any more."""
        if self._pooled + len(buffer) <= self._pooled_bytes_max:
            self._pooled += len(buffer)
            self._free.setdefault(len(buffer), []).append(buffer)


class Gathering:
    """One object's bytes as they arrive, in one contiguous buffer."""

    __slots__ = ("_buffer", "_expected_bytes", "_pool", "_view", "length")

    def __init__(self, pool: BufferPool, expected_bytes: int = 0) -> None:
        self._pool = pool
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        self._expected_bytes = expected_bytes
        self.length = 0

    def capacity_for(self, more: int) -> int:
        """Bytes of memory that holding ``more`` bytes beside those that are here takes."""
        end = self.length + more
        if end <= len(self._buffer):
            return len(self._buffer)
        return self._pool.size_for(end if self._buffer else max(end, self._expected_bytes))

    def append(self, data: Buffer) -> None:
        """Copy ``data`` to the end; the caller's buffer is free again on return."""
        end = self.length + len(data)
        if end > len(self._buffer):
            self._grow(self.capacity_for(len(data)))
        self._view[self.length : end] = data
        self.length = end

    def _grow(self, at_least: int) -> None:
        larger = self._pool.take(at_least)
        view = memoryview(larger)
        view[: self.length] = self._view[: self.length]
        if self._buffer:
            self._pool.give_back(self._buffer)
        self._buffer, self._view = larger, view

    def contents(self) -> memoryview:
        """What arrived so far; valid until more is appended or the buffer is released."""
        return self._view[: self.length]

    def release(self) -> None:
        """Give the buffer back to the pool. Idempotent."""
        if self._buffer:
            self._pool.give_back(self._buffer)
            self._buffer = bytearray()
            self._view = memoryview(self._buffer)
            self.length = 0
