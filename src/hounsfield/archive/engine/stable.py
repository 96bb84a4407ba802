"""A study to which nothing was added for a while is *stable*: consumers may act on it as a whole.

A journal consumer like any other: it reads stored events with a cursor of its own and, when a study
has been quiet, appends a ``study-stable`` event. Its cursor never passes the first event of a study
that is still open, so a successor (the work is held by a lease) finds everything that is pending.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import trio

from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.index import leases
from hounsfield.archive.index.indexing import EVENT_CONFLICT, EVENT_STORED
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rows import Event
from hounsfield.archive.index.sealed import RowSealer
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import StoreFullError

EVENT_STABLE = "study-stable"
CONSUMER = "study-stable"
EVENTS_PER_READ = 1000
LEASE_S = 10.0
RENEW_S = 3.0
_NS = 1_000_000_000


@dataclass(slots=True)
class _OpenStudy:
    first_sequence: int
    quiet_since: float  # trio's clock


class StableStudies:
    """Watches the journal; run it in every worker, the lease lets one of them work."""

    def __init__(
        self,
        store: KeyValueStore,
        journal: Journal,
        sealer: RowSealer,
        gate: Gate,
        *,
        owner: str,
        quiet_s: float,
    ) -> None:
        self._store = store
        self._journal = journal
        self._sealer = sealer
        self._gate = gate
        self._owner = owner
        self._quiet_s = quiet_s
        self._open: dict[str, _OpenStudy] = {}
        self._read_to = 0
        self._leading = False

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                await self._gate.read(self._step, trio.current_time())
                await trio.sleep(min(RENEW_S, self._quiet_s))
        finally:
            if self._leading:
                with trio.CancelScope(shield=True):
                    await self._gate.read(leases.give_up, self._store, CONSUMER, self._owner)

    def _step(self, now: float) -> None:
        if not leases.hold(self._store, CONSUMER, self._owner, time.time_ns(), int(LEASE_S * _NS)):
            self._leading = False
            return
        if not self._leading:
            self._leading = True
            self._open.clear()
            with self._store.snapshot() as snapshot:
                self._read_to = self._journal.cursor(snapshot, CONSUMER)
        while self._read(now):
            pass
        self._announce(now)

    def _read(self, now: float) -> bool:
        with self._store.snapshot() as snapshot:
            events = self._journal.read(snapshot, self._read_to, EVENTS_PER_READ)
        for sequence, event in events:
            self._read_to = sequence
            if event.kind in {EVENT_STORED, EVENT_CONFLICT}:
                study = self._open.setdefault(event.body["study"], _OpenStudy(sequence, now))
                study.quiet_since = now
        return len(events) == EVENTS_PER_READ

    def _announce(self, now: float) -> None:
        quiet = {uid for uid, study in self._open.items() if now - study.quiet_since >= self._quiet_s}
        if not quiet:
            return
        self._sealer.prepare(len(quiet))
        batch = Batch()
        for uid in quiet:
            self._journal.append(batch, Event(EVENT_STABLE, time.time_ns(), {"study": uid}))
        still_open = [study.first_sequence for uid, study in self._open.items() if uid not in quiet]
        self._journal.move_cursor(batch, CONSUMER, min(still_open, default=self._read_to + 1) - 1)
        try:
            self._store.commit(batch)
        except StoreFullError:
            return  # announced when there is room again
        for uid in quiet:
            del self._open[uid]
