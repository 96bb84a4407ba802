"""A commit in one worker wakes the others: one eventfd per worker, inherited by all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import trio


class Wakeups:
    """This worker's bell (``fds[worker]``) and everybody else's. :meth:`wait` needs :meth:`run` running."""

    def __init__(self, fds: Sequence[int], worker: int) -> None:
        self._own = fds[worker]
        self._others = tuple(fd for number, fd in enumerate(fds) if number != worker)
        self._rung = trio.Event()
        self._wanted = trio.Event()
        self._waiting = 0
        self.generation = 0

    @staticmethod
    def create(workers: int) -> list[int]:
        """A bell for each worker, as file descriptors that the caller owns."""
        return [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(workers)]

    def notify_others(self) -> None:
        """Ring every other worker's bell. Never blocks; rings that nobody has heard yet are one ring."""
        for fd in self._others:
            with contextlib.suppress(BlockingIOError):  # 2^64 - 2 unheard rings: it is ringing
                os.eventfd_write(fd, 1)

    def notify_self(self) -> None:
        """Wake this worker's own waiters."""
        self.generation += 1
        self._rung.set()
        self._rung = trio.Event()

    async def wait(self, seen: int | None = None) -> int:
        """Return the generation after the next ring; at once when it is already past ``seen``.

        Pass the last returned number back, so that a ring between two waits is not missed.
        """
        if seen is None or seen == self.generation:
            self._waiting += 1
            self._wanted.set()
            try:
                await self._rung.wait()
            finally:
                self._waiting -= 1
        else:
            await trio.lowlevel.checkpoint()
        return self.generation

    async def run(self) -> None:
        """Hear the bell and wake every waiter, until cancelled. One task per worker.

        While nobody waits the bell is not heard either: a ring then costs the worker nothing, and is
        still there for the next who waits.
        """
        while True:
            if not self._waiting:
                self._wanted = trio.Event()
                await self._wanted.wait()
                continue
            await trio.lowlevel.wait_readable(self._own)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._own)
                self.notify_self()
