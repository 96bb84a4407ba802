"""Long blocking work that one process does for all: on a thread, under a lease, no faster than it may.

What it moves goes through a *pace*, called before so many bytes are read or written. The pace waits as the
throttle wants, renews the lease, and raises when the task was cancelled or another process has taken over:
then the work stops where nothing is lost. What goes over its bytes several times tells a pace that
:func:`~hounsfield.archive.index.carrying.counts_once`, so that the throttle means bytes that were moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import trio

from hounsfield.archive.engine.errors import BusyError
from hounsfield.archive.index import leases
from hounsfield.archive.index.carrying import Pace, StoppedError
from hounsfield.storage_backends.api import KeyValueStore

__all__ = ["CREDIT_S", "LEASE_S", "LedWork"]

LEASE_S = 30.0
RENEW_S = 5.0
WAIT_S = 0.5  # a throttle that waits notices so soon that it is to stop
CREDIT_S = 0.25  # so much of a delay is made good at full speed; what a store was away for is not
_NS = 1_000_000_000

Result = TypeVar("Result")


class LedWork:
    """Work of one name, of which one process of an archive does one piece at a time."""

    def __init__(
        self,
        store: KeyValueStore,
        lease: str,
        *,
        owner: str,
        bytes_per_second: int,
        busy: str,
        clock: Callable[[], int] = time.time_ns,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """``bytes_per_second``: 0 for as fast as it goes. ``busy``: what is said while another one works."""
        self._store = store
        self._lease = lease
        self._owner = owner
        self.bytes_per_second = bytes_per_second
        self._busy = busy
        self._clock = clock
        self.wait = wait
        self._thread = trio.CapacityLimiter(1)

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` on a thread, with the lease; ``BusyError`` while another process has it.

        Cancelled, it stops where it asks its pace next.
        """

        def led() -> Result:
            if not self._hold():
                raise BusyError(self._busy)
            try:
                return work()
            finally:
                leases.give_up(self._store, self._lease, self._owner)

        return await trio.to_thread.run_sync(led, limiter=self._thread)

    def pace(self, *, throttled: bool = True) -> Pace:
        """A pace for what runs now. It raises ``StoppedError`` when the lease is lost, ``trio.Cancelled``."""
        renewed = at = time.monotonic()
        owed = 0.0  # bytes that are to be waited for, as of ``at``; below 0: a delay to be made good

        def pace(length: int) -> None:
            nonlocal renewed, at, owed
            left = length
            while True:
                trio.from_thread.check_cancelled()
                now = time.monotonic()
                if now - renewed >= RENEW_S:
                    if not self._hold():
                        raise StoppedError("another process has taken over")
                    renewed = now
                rate = self.bytes_per_second if throttled else 0
                owed = left + max(owed - rate * (now - at), -rate * CREDIT_S)
                at, left = now, 0
                if not rate:
                    owed = 0.0
                if owed <= 0:
                    return
                self.wait(min(owed / rate, WAIT_S))

        return pace

    def _hold(self) -> bool:
        return leases.hold(self._store, self._lease, self._owner, self._clock(), int(LEASE_S * _NS))
