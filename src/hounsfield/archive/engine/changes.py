"""The change feed: what of the journal others may follow, by a cursor of their own, at least once.

Told are the changes of studies, by UID; never names, never what a fact says of people. The journal is read in
bounded pages, and who waits at its end is woken by this worker's commits and looks now and then for others'.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

import msgspec
import trio

from hounsfield.archive.engine.errors import GoneError, RefusedError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.stable import EVENT_STABLE
from hounsfield.archive.index.correcting import EVENT_CORRECTED
from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.deletion import EVENT_DELETED
from hounsfield.archive.index.epochs import (
    EPOCH_BYTES,
    Epoch,
    UnknownEpochError,
    current_epoch,
    go_on_from,
)
from hounsfield.archive.index.indexing import EVENT_CONFLICT, EVENT_QUARANTINED, EVENT_STORED
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rejections import EVENT_REJECTED, EVENT_RESTORED
from hounsfield.archive.index.rows import Event
from hounsfield.archive.index.tables import JOURNAL
from hounsfield.storage_backends.api import KeyValueStore

#: Kinds of events that are told, and what of them besides kind and time.
TOLD: Final[dict[str, tuple[str, ...]]] = {
    EVENT_STORED: ("study", "instances"),
    EVENT_CONFLICT: ("study", "instances"),
    EVENT_DELETED: ("study", "instances"),
    EVENT_CORRECTED: ("study", "correction"),
    EVENT_REJECTED: ("study", "rejection"),
    EVENT_RESTORED: ("study", "rejection"),
    EVENT_STABLE: ("study",),
    EVENT_QUARANTINED: (),
}
EVENTS_PER_READ: Final = 32  # a thousand instances each at most: some ten megabytes while they are looked at
EVENTS_LOOKED_AT_MAX: Final = 4096  # for one page; most of a journal is told, facts are not
PAGE_BYTES_MAX: Final = 1 << 20
LOOK_S: Final = 1.0  # while it waits: other workers' commits, and what is appended without telling
SETTLE_S: Final = 0.1  # after a commit: under load many follow, and are told together
_NS: Final = 1_000_000_000
_CURSOR: Final = re.compile(rf"([0-9a-f]{{{2 * EPOCH_BYTES}}})-([0-9]{{1,19}})", re.ASCII)


Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the journal: after an event. ``str`` is what others keep of it."""

    epoch_id: bytes
    sequence: int

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises ``RefusedError``."""
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise RefusedError("this is no cursor of the change feed: give one that an answer had")
        return cls(bytes.fromhex(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.epoch_id.hex()}-{self.sequence}"


@dataclass(frozen=True, slots=True)
class Change:
    """One event that is told: where one goes on after it, and itself as a JSON object."""

    cursor: Cursor
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ChangePage:
    """Events in order, where to go on, and whether there is more now. ``again``: some were told before."""

    changes: tuple[Change, ...]
    next: Cursor
    more: bool
    again: bool = False


class Changes:
    """Reads the journal for others. Any task may call it."""

    def __init__(
        self, store: KeyValueStore, journal: Journal, gate: Gate, on_commit: Callable[[], None]
    ) -> None:
        self._store = store
        self._journal = journal
        self._gate = gate
        self._on_commit = on_commit
        self._loop: tuple[trio.lowlevel.TrioToken, int] | None = None  # and its thread
        self._rung = trio.Event()
        self._wanted = trio.Event()
        self.waiting = 0  # feeds at the end of the journal
        self._reading = trio.Lock()
        self._last: tuple[tuple[Cursor, int], ChangePage] | None = None

    def committed(self) -> None:
        """This worker has committed: wake who waits, and tell whom the engine's owner named."""
        self.ring()
        self._on_commit()

    def ring(self) -> None:
        """Somebody may have committed. From any thread: corrections and moves commit on threads of theirs."""
        if self._loop is None:
            return  # nobody has ever waited
        token, thread = self._loop
        if threading.get_ident() != thread:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self.ring, idempotent=True)
            return
        self._rung.set()
        self._rung = trio.Event()

    async def hear(self, wait: Callable[[int | None], Awaitable[int]]) -> None:
        """Ring when others commit, as ``wait`` says, while somebody waits for it; a bell that rings for each
        of hundreds of objects is heard every :data:`SETTLE_S`. Until cancelled."""
        generation: int | None = None
        while True:
            while not self.waiting:
                self._wanted = trio.Event()
                await self._wanted.wait()
            generation = await wait(generation)
            self.ring()
            await trio.sleep(SETTLE_S)

    async def start(self) -> Cursor:
        """Before the first event there is."""
        return await self._gate.read(self._place, 0)

    async def end(self) -> Cursor:
        """After the last event there is."""
        return await self._gate.read(self._place, None)

    async def read(self, cursor: Cursor, limit: int) -> ChangePage:
        """At most ``limit`` events after ``cursor``. ``GoneError`` when it is of another journal.

        A page may have no event and yet ``more``: what it passed is not told.
        """
        wanted = (cursor, limit)
        async with self._reading:  # who waits at the end reads the same page: it is made once
            if self._last is not None and self._last[0] == wanted:
                return self._last[1]
            page = await self._gate.read(self._read, cursor, limit)
            if page.changes:  # what follows a place does not change while this process lives
                self._last = (wanted, page)
            return page

    async def wait(self, cursor: Cursor, seconds: float) -> bool:
        """Whether, within so many seconds, there was anything after ``cursor``."""
        self._loop = trio.lowlevel.current_trio_token(), threading.get_ident()
        self.waiting += 1
        self._wanted.set()
        try:
            with trio.move_on_after(seconds):
                while True:
                    rung = self._rung
                    if (await self.end()).sequence > cursor.sequence:
                        return True
                    with trio.move_on_after(LOOK_S):
                        await rung.wait()
                    await trio.sleep(SETTLE_S)
        finally:
            self.waiting -= 1
        return False

    def _place(self, sequence: int | None) -> Cursor:
        with self._store.snapshot() as snapshot:
            return Cursor(
                current_epoch(snapshot).epoch_id, snapshot.last(JOURNAL) if sequence is None else sequence
            )

    def _read(self, cursor: Cursor, limit: int) -> ChangePage:
        page = events_after(
            self._store, self._journal, cursor, limit, _told, size=lambda change: len(change.body)
        )
        return ChangePage(tuple(page.events), page.next, page.more, page.again)


@dataclass(frozen=True, slots=True)
class EventPage(Generic[Told]):
    """As :class:`ChangePage`, of anything that is told."""

    events: list[Told]
    next: Cursor
    more: bool
    again: bool


def events_after(
    store: KeyValueStore,
    journal: Journal,
    cursor: Cursor,
    limit: int,
    told: Callable[[Epoch, int, Event], Told | None],
    *,
    size: Callable[[Told], int],
) -> EventPage[Told]:
    """What ``told`` makes of at most ``limit`` events after ``cursor``: of some thousands that are looked at,
    and until they are ``PAGE_BYTES_MAX`` by ``size``. Blocking. ``GoneError``."""
    found: list[Told] = []
    bytes_told = 0
    with store.snapshot() as snapshot:
        epoch = current_epoch(snapshot)
        try:
            after = go_on_from(snapshot, cursor.epoch_id, cursor.sequence)
        except UnknownEpochError as error:
            raise GoneError(
                "this cursor is of a journal that was made anew since, or of another archive: read from "
                "the beginning, and take what is told there for the truth"
            ) from error
        again = after < cursor.sequence
        looked_at = 0
        while looked_at < EVENTS_LOOKED_AT_MAX and len(found) < limit and bytes_told < PAGE_BYTES_MAX:
            events = journal.read(snapshot, after, EVENTS_PER_READ)
            for sequence, event in events:
                looked_at += 1
                after = sequence
                one = told(epoch, sequence, event)
                if one is not None:
                    found.append(one)
                    bytes_told += size(one)
                    if len(found) >= limit or bytes_told >= PAGE_BYTES_MAX:
                        break
            if len(events) < EVENTS_PER_READ:
                break
        more = snapshot.last(JOURNAL) > after
    return EventPage(found, Cursor(epoch.epoch_id, after), more, again)


def change_of(event: Event) -> dict[str, Any] | None:
    """What is told of an event besides kind and time, None when nothing is told of it at all."""
    names = TOLD.get(event.kind)
    if names is None or event.fact or ("study" in names and not event.body.get("study")):
        return None  # the last: what was deleted had been in quarantine
    if is_hidden(event.body.get("study", "")):
        return None  # what was deleted had been rejected
    return {name: _instances(event.body) if name == "instances" else event.body[name] for name in names}


def _told(epoch: Epoch, sequence: int, event: Event) -> Change | None:
    """What is told of an event, None for nothing at all."""
    told = change_of(event)
    if told is None:
        return None
    cursor = Cursor(epoch.epoch_id, sequence)
    at = datetime.fromtimestamp(event.at_ns // _NS, UTC).isoformat().replace("+00:00", "Z")
    body = {"cursor": str(cursor), "kind": event.kind, "at": at, **told}
    return Change(cursor, event.kind, msgspec.json.encode(body))


def _instances(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """By UID; several records of one are one instance. Which records is nobody's business."""
    members = dict.fromkeys((member[0], member[1]) for member in body["instances"])
    return [{"series": series, "instance": instance} for series, instance in members]
