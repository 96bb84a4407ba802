"""Taking turns, at no cost as long as nobody else wants one.

trio's own locks let other tasks run at every acquisition. On an association where each object takes two turns
that is two rounds of the event loop, and two looks at the kernel, for nothing.
"""

from __future__ import annotations

import trio

__all__ = ["Turns"]


class Turns:
    """So many at once; others wait, first come first served. ``async with turns:``."""

    __slots__ = ("_semaphore", "_size")

    def __init__(self, size: int = 1) -> None:
        self._semaphore = trio.Semaphore(size)
        self._size = size

    async def __aenter__(self) -> None:
        await self.take()

    async def __aexit__(self, *_: object) -> None:
        self.give_back()

    async def take(self) -> None:
        """Wait for a turn, and have it until it is given back."""
        try:
            self._semaphore.acquire_nowait()
        except trio.WouldBlock:
            await self._semaphore.acquire()

    def give_back(self) -> None:
        """One turn is over."""
        self._semaphore.release()

    def taken(self) -> bool:
        """Whether any turn is under way."""
        return self._semaphore.value < self._size
