"""Turns at something scarce: whoever wants many of them does not keep the others waiting."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio


class FairTurns:
    """So many turns at once, of them so many for one who asks; who waited longest for any goes first.

    One event loop's.
    """

    def __init__(self, total: int, each_max: int) -> None:
        self._free = total
        self._total = total
        self._each_max = each_max
        self._held: Counter[Hashable] = Counter()
        self._waiting: OrderedDict[Hashable, deque[trio.Event]] = OrderedDict()

    @property
    def borrowed_tokens(self) -> int:
        """Turns that somebody has."""
        return self._total - self._free

    @asynccontextmanager
    async def of(self, one: Hashable) -> AsyncIterator[None]:
        """A turn of ``one``, when there is one for it."""
        await self._take(one)
        try:
            yield
        finally:
            self._give_back(one)

    async def _take(self, one: Hashable) -> None:
        if self._free and self._held[one] < self._each_max:
            self._free -= 1
            self._held[one] += 1
            return
        turn = trio.Event()
        self._waiting.setdefault(one, deque()).append(turn)
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():  # it was given, and is not used
                self._give_back(one)
            else:
                self._waiting[one].remove(turn)
                if not self._waiting[one]:
                    del self._waiting[one]
            raise

    def _give_back(self, one: Hashable) -> None:
        self._free += 1
        self._held[one] -= 1
        if not self._held[one]:
            del self._held[one]
        for other, turns in self._waiting.items():
            if self._held[other] < self._each_max:
                turn = turns.popleft()
                del self._waiting[other]
                if turns:  # behind the others, until its next one
                    self._waiting[other] = turns
                self._free -= 1
                self._held[other] += 1
                turn.set()
                return
