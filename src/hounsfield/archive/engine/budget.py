"""Bytes in flight are budgeted: past the budget sockets stop being read, and nobody runs out of memory."""

from __future__ import annotations

from typing import Final

import trio

from hounsfield.archive.engine.errors import OutOfResourcesError

_SAID: Final = (
    "the memory budget for objects in flight stayed used up: send again later, "
    "with fewer associations, or raise ingest.memory_bytes_max"
)


class ByteBudget:
    """A number of bytes that sessions take from and give back.

    A session that holds bytes may wait for more while every other does the same; therefore waiting
    is bounded (``wait_s_max``, then an error that says ``said``), and the one whose wait ends first
    gives up what it holds (its sender is told "out of resources" and sends again), so that the others
    go on.
    """

    def __init__(self, bytes_max: int, wait_s_max: float, said: str = _SAID) -> None:
        self._said = said
        self._free = bytes_max
        self._bytes_max = bytes_max
        self._wait_s_max = wait_s_max
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def in_flight(self) -> int:
        return self._bytes_max - self._free

    def take_nowait(self, count: int) -> bool:
        """Take ``count`` bytes if they are there."""
        if count > self._free:
            return False
        self._free -= count
        return True

    async def take(self, count: int) -> None:
        """Take ``count`` bytes, waiting for others to give theirs back, or ``OutOfResourcesError``."""
        if self.take_nowait(count):
            return
        with trio.move_on_after(self._wait_s_max):
            while not self.take_nowait(count):
                await self._waiting.park()
            return
        raise OutOfResourcesError(self._said)

    def give_back(self, count: int) -> None:
        self._free += count
        self._waiting.unpark_all()
