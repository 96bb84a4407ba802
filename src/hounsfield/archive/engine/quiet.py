"""What became quiet is prepared: a journal consumer with a cursor of its own, one worker's at a time.

Like :mod:`~hounsfield.archive.engine.stable`, but with a pause of its own and nothing to announce: it
calls a function for each study that changed and then did not for a while. Being called twice, or for a
study that is gone, must be harmless.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import trio

from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.stable import EVENT_STABLE
from hounsfield.archive.index import leases
from hounsfield.archive.index.journal import Journal
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import StorageError

EVENTS_PER_READ = 1000
LEASE_S = 30.0
RENEW_S = 3.0
OPEN_STUDIES_MAX = 10_000
"""Studies that are waited for at the same time: past it the one that waits longest is not waited for. A
megabyte or two; an import of whole archives brings more."""
_NS = 1_000_000_000


@dataclass(slots=True)
class _OpenStudy:
    first_sequence: int
    quiet_since: float  # trio's clock


class QuietStudies:
    """Watches the journal; run it in every worker, the lease lets one of them work."""

    def __init__(
        self,
        store: KeyValueStore,
        journal: Journal,
        gate: Gate,
        *,
        name: str,
        owner: str,
        quiet_s: float,
        act: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._journal = journal
        self._gate = gate
        self._name = name
        self._owner = owner
        self._quiet_s = quiet_s
        self._act = act
        self._open: dict[str, _OpenStudy] = {}
        self._read_to = 0
        self._cursor = 0
        self._leading = False

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                await self.step(trio.current_time())
                await trio.sleep(min(RENEW_S, self._quiet_s))
        finally:
            if self._leading:
                with trio.CancelScope(shield=True):
                    await self._gate.read(leases.give_up, self._store, self._name, self._owner)

    async def step(self, now: float) -> None:
        """Read what is new, and act on the studies that are quiet at ``now`` (trio's clock)."""
        if not await self._gate.read(self._read_events, now):
            return
        for study_uid in self._quiet(now):
            # What fails now is made when it is asked for; nothing waits for it here.
            with suppress(EngineError, StorageError):
                await self._act(study_uid)
            self._open.pop(study_uid, None)
            if not await self._gate.read(self._hold):
                self._leading = False
                return
        await self._gate.read(self._move_cursor)

    def _hold(self) -> bool:
        return leases.hold(self._store, self._name, self._owner, time.time_ns(), int(LEASE_S * _NS))

    def _read_events(self, now: float) -> bool:
        if not self._hold():
            self._leading = False
            return False
        if not self._leading:
            self._leading = True
            self._open.clear()
            with self._store.snapshot() as snapshot:
                self._read_to = self._cursor = self._journal.cursor(snapshot, self._name)
        while len(self._open) < OPEN_STUDIES_MAX:
            with self._store.snapshot() as snapshot:
                events = self._journal.read(snapshot, self._read_to, EVENTS_PER_READ)
            for sequence, event in events:
                self._read_to = sequence
                study_uid = event.body.get("study")
                if event.kind != EVENT_STABLE and isinstance(study_uid, str):
                    study = self._open.setdefault(study_uid, _OpenStudy(sequence, now))
                    study.quiet_since = now
            if len(events) < EVENTS_PER_READ:
                break
        return True

    def _quiet(self, now: float) -> list[str]:
        crowded = len(self._open) >= OPEN_STUDIES_MAX
        return [
            uid for uid, study in self._open.items() if crowded or now - study.quiet_since >= self._quiet_s
        ]

    def _move_cursor(self) -> None:
        done = min((study.first_sequence for study in self._open.values()), default=self._read_to + 1) - 1
        if done <= self._cursor:
            return
        batch = Batch()
        self._journal.move_cursor(batch, self._name, done)
        self._store.commit(batch)
        self._cursor = done
