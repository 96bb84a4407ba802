"""Consumers of the journal that wait until a study is *quiet*: until nothing has happened to it for a while.

Each reads with a cursor of its own and calls a function for every study that changed and then did not for so
long. Its cursor never passes the first event of a study that is still open, so a successor (the work is held
by a lease) finds everything that is pending.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
import trio
from msgspec import structs

from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.leadership import RENEW_S, Leadership
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rows import Event
from hounsfield.archive.index.sealed import RowSealer
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import StorageError, StoreFullError

EVENTS_PER_READ = 1000


@dataclass(frozen=True, slots=True)
class Consumer:
    """What is done with quiet studies, and when."""

    name: str
    """Of its cursor and its lease."""

    quiet_s: float

    heeds: Callable[[str], bool]
    """Whether events of a kind keep the study that they name from being quiet."""

    act: Callable[[str], Awaitable[Event | None]]
    """Called with the UID of each quiet study. What it returns is appended to the journal in the commit that
    moves the cursor past the study, with ``since`` in its body: no event of the study that it is about comes
    before that number. Being called twice, or for a study that is gone, must be harmless."""

    lease_s: float = 30.0
    """Longer than ``act`` usually takes."""

    open_studies_max: int | None = 10_000
    """Studies that are waited for at the same time: when there are as many, none of them is waited for any
    longer. A megabyte or two; an import of whole archives brings more. None where acting early is wrong."""


@dataclass(slots=True)
class _OpenStudy:
    first_sequence: int
    quiet_since: float  # trio's clock


class QuietStudies:
    """Watches the journal for one consumer; run it in every worker, the lease lets one of them work."""

    def __init__(
        self,
        store: KeyValueStore,
        journal: Journal,
        sealer: RowSealer,
        gate: Gate,
        consumer: Consumer,
        *,
        owner: str,
    ) -> None:
        self._store = store
        self._journal = journal
        self._sealer = sealer
        self._gate = gate
        self._consumer = consumer
        self._leadership = Leadership(store, gate, consumer.name, owner=owner, lease_s=consumer.lease_s)
        self._open: dict[str, _OpenStudy] = {}
        self._read_to = 0
        self._cursor = 0

    async def run(self) -> None:
        """Work until cancelled."""
        async with self._leadership:
            while True:
                try:
                    await self.step(trio.current_time())
                except (StorageError, OSError) as error:  # a disk that fails for a while ends no worker
                    self._leadership.held = False  # what is open is read anew from the cursor
                    structlog.get_logger().warning(
                        "studies that are quiet are looked at later",
                        what=self._consumer.name,
                        error=type(error).__name__,
                    )
                await trio.sleep(min(RENEW_S, self._consumer.quiet_s))

    async def step(self, now: float) -> None:
        """Read what is new, and act on the studies that are quiet at ``now`` (trio's clock)."""
        led_before = self._leadership.held
        if not await self._leadership.lead():
            return
        await self._gate.read(self._read, now, not led_before)
        done: dict[str, Event | None] = {}
        for study_uid in self._quiet(now):
            done[study_uid] = None
            # What fails now is made when it is asked for; nothing waits for it here.
            with suppress(EngineError, StorageError):
                done[study_uid] = await self._consumer.act(study_uid)
            if not await self._leadership.lead():
                return
        await self._gate.read(self._commit, done)

    def _read(self, now: float, from_cursor: bool) -> None:
        if from_cursor:
            self._open.clear()
            with self._store.snapshot() as snapshot:
                self._read_to = self._cursor = self._journal.cursor(snapshot, self._consumer.name)
        while not self._is_crowded:
            with self._store.snapshot() as snapshot:
                events = self._journal.read(snapshot, self._read_to, EVENTS_PER_READ)
            for sequence, event in events:
                self._read_to = sequence
                study_uid = event.body.get("study")
                if self._consumer.heeds(event.kind) and isinstance(study_uid, str):
                    study = self._open.setdefault(study_uid, _OpenStudy(sequence, now))
                    study.quiet_since = now
            if len(events) < EVENTS_PER_READ:
                return

    @property
    def _is_crowded(self) -> bool:
        most = self._consumer.open_studies_max
        return most is not None and len(self._open) >= most

    def _quiet(self, now: float) -> list[str]:
        everyone, quiet_s = self._is_crowded, self._consumer.quiet_s
        return [uid for uid, study in self._open.items() if everyone or now - study.quiet_since >= quiet_s]

    def _commit(self, done: dict[str, Event | None]) -> None:
        """Move the cursor past what is done, and append what is to be said of it."""
        waiting = (study.first_sequence for uid, study in self._open.items() if uid not in done)
        cursor = min(waiting, default=self._read_to + 1) - 1
        said = [
            structs.replace(event, body={**event.body, "since": self._open[uid].first_sequence})
            for uid, event in done.items()
            if event is not None
        ]
        if cursor > self._cursor or said:
            try:
                self._say(said, cursor)
            except StoreFullError:
                return  # once more when there is room again
            self._cursor = cursor
        for uid in done:
            del self._open[uid]

    def _say(self, events: Sequence[Event], cursor: int) -> None:
        self._sealer.prepare(len(events))
        batch = Batch()
        for event in events:
            self._journal.append(batch, event)
        self._journal.move_cursor(batch, self._consumer.name, cursor)
        self._store.commit(batch)
