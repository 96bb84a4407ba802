"""How many store requests are open at once, over all workers: past it they wait, then come back later.

A request that waits is not read, so its sender is held back by TCP (or by the missing "100 Continue"). Who
has waited long enough is answered 503 with Retry-After (PS3.18 10.5.3.1: out of resources).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

import trio

from hounsfield.archive.engine.errors import OutOfResourcesError

_LOOK_S: Final = 0.05  # another worker's uploads end without telling us


class SharedCount(Protocol):
    """A number that every worker adds to, and whose sum every worker sees."""

    def add(self, amount: int = 1, /) -> None:
        """Add to this worker's share."""

    def total(self) -> int:
        """All workers' shares together."""


class OwnCount:
    """A :class:`SharedCount` of one worker alone."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, amount: int = 1, /) -> None:
        self._count += amount

    def total(self) -> int:
        return self._count


class Uploads:
    """Counts open uploads in, and out."""

    def __init__(self, uploads_max: int, wait_s_max: float, count: SharedCount | None = None) -> None:
        self._max = uploads_max
        self._wait_s_max = wait_s_max
        self._count = count or OwnCount()
        self._left = trio.lowlevel.ParkingLot()

    @property
    def open(self) -> int:
        """Uploads that are open now, over all workers."""
        return self._count.total()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """While one upload is open. ``OutOfResourcesError`` when there was no room for it in time."""
        entered = False
        with trio.move_on_after(self._wait_s_max):
            while not (entered := self._enter()):
                with trio.move_on_after(_LOOK_S):
                    await self._left.park()
        if not entered:
            raise OutOfResourcesError(
                f"{self._max} uploads are open already: send again later, with fewer at once, or raise "
                "http.uploads_max"
            )
        try:
            yield
        finally:
            self._count.add(-1)
            self._left.unpark()

    def _enter(self) -> bool:
        # First in, then look: two workers that enter at once may both go out again, never both stay.
        self._count.add(1)
        if self._count.total() <= self._max:
            return True
        self._count.add(-1)
        return False
