"""Work that one process of an archive does for all: every worker runs it, and a lease lets one of them."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import trio

from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.index import leases
from hounsfield.storage_backends.api import KeyValueStore

RENEW_S = 3.0
"""A lease that is held is renewed this often, so every lease is to last several times as long."""
_NS = 1_000_000_000


class Leadership:
    """One worker's part in the race for a lease. ``async with`` gives it up at the end, if it is held."""

    def __init__(self, store: KeyValueStore, gate: Gate, name: str, *, owner: str, lease_s: float) -> None:
        """A leader that falls silent is succeeded after ``lease_s``."""
        self._store = store
        self._gate = gate
        self._name = name
        self._owner = owner
        self._lease_s = lease_s
        self._renewed = 0.0  # trio's clock
        self.held = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.held:
            with trio.CancelScope(shield=True):
                await self._gate.read(leases.give_up, self._store, self._name, self._owner)

    async def lead(self) -> bool:
        """Whether the lease is held: taken if it is free, renewed when that is due. Call it between steps."""
        now = trio.current_time()
        if not self.held or now - self._renewed >= RENEW_S:
            self._renewed = now
            try:
                self.held = await self._gate.read(
                    leases.hold,
                    self._store,
                    self._name,
                    self._owner,
                    time.time_ns(),
                    int(self._lease_s * _NS),
                )
            except Exception:
                self.held = False  # who cannot renew it does not know: ask again before the next step
                raise
        return self.held
