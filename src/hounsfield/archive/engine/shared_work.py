"""Work that several ask for at once is done once, and what it gave is kept as long as there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(slots=True)
class SharedFigures:
    """How often something was there, was waited for because another was at it, and had to be made."""

    found: int = 0
    shared: int = 0
    made: int = 0
    bytes_held: int = 0


class _Flight(Generic[Value]):
    """One piece of work under way."""

    __slots__ = ("done", "error", "value")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.value: Value | None = None
        self.error: Exception | None = None


class SharedWork(Generic[Key, Value]):
    """A cache of so many bytes, the least recently used going first, with one maker for each key.

    One event loop's. What fails is not kept: who waited gets the error, who comes later tries again.
    When the one who makes it is cancelled, one of those who wait makes it.
    """

    def __init__(self, bytes_max: int, size_of: Callable[[Value], int]) -> None:
        self.bytes_max = bytes_max
        self.figures = SharedFigures()
        self._size_of = size_of
        self._held: OrderedDict[Key, Value] = OrderedDict()
        self._flights: dict[Key, _Flight[Value]] = {}

    def found(self, key: Key) -> Value | None:
        """What is held, None when it has to be made."""
        value = self._held.get(key)
        if value is not None:
            self._held.move_to_end(key)
            self.figures.found += 1
        return value

    def forget_oldest(self, wanted: Callable[[Value], bool]) -> bool:
        """Let go of what was used longest ago of what is ``wanted``; whether there was any."""
        for key, value in self._held.items():
            if wanted(value):
                self.figures.bytes_held -= self._size_of(value)
                del self._held[key]
                return True
        return False

    async def get(self, key: Key, make: Callable[[], Awaitable[Value]]) -> Value:
        """What is held, or what ``make`` gives; called once for all who ask meanwhile."""
        while True:
            value = self.found(key)
            if value is not None:
                return value
            flight = self._flights.get(key)
            if flight is None:
                return await self._made(key, make)
            self.figures.shared += 1
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error
            if flight.value is not None:
                return flight.value

    async def _made(self, key: Key, make: Callable[[], Awaitable[Value]]) -> Value:
        flight = self._flights[key] = _Flight[Value]()
        try:
            value = await make()
        except Exception as error:
            flight.error = error
            raise
        else:
            flight.value = value
            self.figures.made += 1
            self._keep(key, value)
            return value
        finally:
            del self._flights[key]
            flight.done.set()

    def _keep(self, key: Key, value: Value) -> None:
        size = self._size_of(value)
        if size > self.bytes_max:
            return
        figures = self.figures
        figures.bytes_held += size
        self._held[key] = value
        while figures.bytes_held > self.bytes_max:
            _, oldest = self._held.popitem(last=False)
            figures.bytes_held -= self._size_of(oldest)
