"""Consumers of the journal: each reacts to events of some kinds, in order, each event once.

Something happens (an order is cancelled, objects are stored), the journal tells it, and a *consumer* does
what follows. What it does and how far it is are written in the same transaction, so a crash in between, or
two workers that both think they lead, act on nothing twice and leave nothing out::

    def act(change: Change, event: Event) -> None:      # a plain function, as all actions of the RIS
        withdraw(change, SYSTEM, event.body["order"])

    parts = Parts(leading=leading(ris, Consumer("withdrawing", {"order-cancelled"}, act)))

``kinds``: events of the RIS by the names they are said under ("order-cancelled"), the archive's as its
change feed has them ("instances-stored", "study-stable", "corrected" …), those of other plugins with
their plugin's name ("notes.noted"). ``event.body`` has ids and no more: look at the records as they are
*now*, since the event may be hours old when the archive was down.

Who needs the archive or the network first gives ``prepare``: it is awaited before the transaction, and what
it returns is handed to ``act(change, event, data)``. A crash may come between the two, so ``prepare`` is
done again: whatever it changes elsewhere has to be the same when done twice.

``together``: events of one page for which it returns the same text are acted on once, with the last of them;
``event.earlier`` has the others. A study that comes in as a thousand events is then looked at some dozens of
times. Such a consumer has to be one that looks how things are, since after a failure in the middle of a page
it may act once more.

When the index was made anew (``hounsfield reindex``), or power failed, events are told again from the
beginning or from shortly before; consumers hence do what is right when it is done already. For what must not
go out twice, :func:`identity` names an event, the same name whenever it is told. With ``since_begun`` a
consumer passes over what was told before it was first started, the last :data:`BEFORE_NS` excepted. Only
where the journal is read from its beginning are moments compared (``event.again``): whatever the clock does,
what happens from then on is acted on.

An event that cannot be acted on does not stop those after it. One whose ``prepare`` fails with an error that
says that a retry helps is tried :data:`TRIES` times, with pauses; then, and what fails otherwise at once, it
is set aside (:class:`~hounsfield.ris_plugin.records.messages.Aside`), logged, counted in
``hounsfield_ris_events_aside``, and can be acted on again: :func:`act_again`. When the archive can keep
nothing (a full disk), the consumer stays where it is until it can, also when ``prepare`` finds that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
import structlog
import trio
from msgspec import structs

from hounsfield.archive.errors import is_ours, where
from hounsfield.archive.plugins import Change, EngineError, Event, GoneError, View
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import NotNowError, UnknownError
from hounsfield.ris_plugin.records.messages import ASIDE, CURSOR, Aside, Cursor

__all__ = ["Consumer", "Heeded", "act_again", "asides", "dismiss", "follow", "identity", "leading"]

TRIES: Final = 5
PAUSE_SECONDS: Final = 1.0
"""Before the second try, doubled for each one after it."""
PAUSE_SECONDS_MAX: Final = 60.0
PASSED_MAX: Final = 10_000
"""Events that are passed over until that is written down: they are read again after a crash."""
BEFORE_NS: Final = 600 * 1_000_000_000
"""Before the first start: nobody knows what came between the server's and its own."""
OWN: Final = "ris."


@dataclass(frozen=True, slots=True)
class Heeded(Event):
    """An event that a consumer is handed. ``earlier``: those that it is acted on together with. ``again``:
    the journal is read from its beginning, so that it may have been acted on long ago."""

    earlier: tuple[Event, ...] = ()
    again: bool = False

    @property
    def kinds(self) -> frozenset[str]:
        """Its kind, and those of the earlier ones."""
        return frozenset({self.kind, *(one.kind for one in self.earlier)})


@dataclass(frozen=True, slots=True)
class Consumer:
    """Who follows the journal; see the module. ``name`` is for ever: what was acted on is kept under it."""

    name: str
    kinds: Collection[str]
    act: Callable[..., None]
    """``act(change, event)``, or with ``prepare`` ``act(change, event, data)``."""
    prepare: Callable[[Heeded], Awaitable[Any]] | None = None
    together: Callable[[Event], str] | None = None
    since_begun: bool = False
    pause_seconds: float = 0.0
    """After each page that was acted on: what comes meanwhile is acted on together."""


def leading(ris: Ris, *consumers: Consumer) -> dict[str, Callable[[], Awaitable[None]]]:
    """The consumers as one leading part: in one worker, until another one succeeds it. They share what is
    read, and no more: each is at a place of its own."""
    for one in consumers:
        if ris.journal.consumers.setdefault(one.name, one) is not one:
            raise ValueError(f"two consumers of the journal are called {one.name}")
    more = f" and {len(consumers) - 1} more" if len(consumers) > 1 else ""
    return {f"following {consumers[0].name}{more}": partial(_follow_all, ris, consumers)}


async def _follow_all(ris: Ris, consumers: Sequence[Consumer]) -> None:
    async with trio.open_nursery() as nursery:
        for one in consumers:
            nursery.start_soon(follow, ris, one)


async def follow(ris: Ris, consumer: Consumer) -> None:
    """Act on every event that there is and that comes. Until cancelled; EngineError when nothing is kept."""
    await _Following(ris, consumer).run()


def identity(event: Event) -> str:
    """A name for an event, the same whenever it is told, after a reindex too: 32 hexadecimal digits."""
    said = msgspec.msgpack.encode((event.kind, event.at_ns, dict(event.body)), order="deterministic")
    return hashlib.sha256(said).hexdigest()[:32]


# ---------------------------------------------------------------- what was set aside


def asides(view: View, limit: int = 100) -> list[tuple[str, Aside]]:
    """What could not be acted on, the oldest first."""
    return list(view.find(ASIDE, "state", "open", limit=limit))


async def act_again(ris: Ris, actor: Actor, aside_id: str) -> None:
    """Act on what was set aside. Raises what acting on it raises; then it stays there."""
    actor.require(Role.ADMINISTRATOR, what="acting on an event again")
    with ris.reading() as view:
        aside = _open_aside(view, aside_id)
    consumer: Consumer | None = ris.journal.consumers.get(aside.consumer)
    if consumer is None:
        raise UnknownError("nobody of that name follows the journal any more: dismiss it")
    kind, at_ns, body = msgspec.msgpack.decode(aside.event)
    event = Heeded("", kind, at_ns, body)
    data = await _prepared(consumer, event)

    def plan(change: Change) -> None:
        held = _open_aside(change, aside_id)
        consumer.act(change, event, *data)
        done = structs.replace(held, state="done", by=actor.person, attempts=held.attempts + 1)
        change.put(ASIDE, aside_id, done)

    await ris.commit(plan)


def dismiss(change: Change, actor: Actor, aside_id: str) -> None:
    """Say that what was set aside need not be acted on."""
    actor.require(Role.ADMINISTRATOR, what="dismissing an event")
    held = _open_aside(change, aside_id)
    change.put(ASIDE, aside_id, structs.replace(held, state="dismissed", by=actor.person))


def _open_aside(view: View, aside_id: str) -> Aside:
    held = view.get(ASIDE, aside_id)
    if held is None:
        raise UnknownError("no such event was set aside")
    if held.state != "open":
        raise NotNowError(f"the event is {held.state} already")
    return held


# ---------------------------------------------------------------- following


class _OvertakenError(Exception):
    """Somebody else acted under this name meanwhile."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """An event to be acted on, with what was prepared for it, or why that failed."""

    event: Heeded
    data: tuple[Any, ...] = ()
    error: Exception | None = None


class _Following:
    """One consumer on its way. ``_kept``: its place as it is written down."""

    def __init__(self, ris: Ris, consumer: Consumer) -> None:
        self._ris = ris
        self._consumer = consumer
        self._kept = Cursor(name=consumer.name)
        self._cursor = ""
        self._is_fresh = False  # whether the place was written down since this began
        self._passed = 0
        self._is_retold = False
        self._end = ""  # of the journal, once the page before it was read

    async def run(self) -> None:
        await self._begin()
        while True:
            try:
                page = await self._ris.journal.after(self._cursor)
            except GoneError:
                self._log("the journal was made anew: what was acted on is told again")
                self._cursor, self._is_retold = "", True
                continue
            self._end = "" if page.more else page.next
            heeded = self._heeded(page.events)
            self._passed += len(page.events) + 1
            try:
                if heeded:
                    await self._act(heeded, page.next)
                elif page.next != self._kept.cursor and (
                    not self._is_fresh or self._passed >= PASSED_MAX or (self._is_retold and self._end)
                ):
                    await self._commit([], page.next)
            except _OvertakenError:
                await self._begin()
                continue
            self._cursor = page.next
            if heeded and self._consumer.pause_seconds:
                await trio.sleep(self._consumer.pause_seconds)
            if not page.more:
                await self._ris.journal.wait(self._cursor)

    async def _begin(self) -> None:
        """Go on from where it is written that one is; who was never here notes when that was."""

        def plan(change: Change) -> Cursor:
            found = change.first(CURSOR, "name", self._consumer.name)
            if found is not None:
                return found[1]
            begun = Cursor(name=self._consumer.name, begun_ns=change.now_ns, is_retold=True)
            change.put(CURSOR, change.new_id(), begun)
            return begun

        self._kept = await self._ris.commit(plan)
        self._cursor, self._is_retold = self._kept.cursor, self._kept.is_retold
        self._is_fresh = False

    def _heeded(self, events: Sequence[Event]) -> list[Heeded]:
        """Those of a page that are the consumer's, put together."""
        consumer = self._consumer
        groups: dict[str, list[Event]] = {}
        since_ns = self._kept.begun_ns - BEFORE_NS if consumer.since_begun and self._is_retold else 0
        for event in events:
            kind = event.kind.removeprefix(OWN)
            if kind not in consumer.kinds or event.at_ns < since_ns:
                continue
            told = Event(event.cursor, kind, event.at_ns, event.body)
            key = event.cursor if consumer.together is None else consumer.together(told)
            groups[key] = [*groups.pop(key, ()), told]  # in the order of the last of each
        return [
            Heeded(last.cursor, last.kind, last.at_ns, last.body, tuple(earlier), self._is_retold)
            for *earlier, last in groups.values()
        ]

    async def _act(self, events: Sequence[Heeded], then: str) -> None:
        """Act on a page: in one transaction, or where that fails in one for each."""
        units = [await self._unit(event) for event in events]
        if not any(unit.error for unit in units):
            try:
                await self._commit(units, then)
            except (EngineError, _OvertakenError):
                raise
            except Exception as raised:  # noqa: BLE001 - which of them it was is seen when they are alone
                self._log("a page of events is acted on one by one", **where(raised))
            else:
                return
        for unit in units:
            # Before the end of those that stand for several events, earlier ones of later units are not done.
            reached = self._kept.cursor if self._consumer.together is not None else unit.event.cursor
            place = then if unit is units[-1] else reached
            error = unit.error
            if error is None:
                try:
                    await self._commit([unit], place)
                except (EngineError, _OvertakenError):
                    raise
                except Exception as raised:  # noqa: BLE001 - a defect, or a rule that forbids it
                    error = raised
            if error is not None:
                await self._set_aside(unit.event, error, place)

    async def _unit(self, event: Heeded) -> _Unit:
        attempt = 0
        while True:
            try:
                return _Unit(event, await _prepared(self._consumer, event))
            except Exception as error:  # noqa: BLE001 - what it asks for may fail in any way
                attempt += 1
                helps = getattr(error, "retry", False)
                # What keeps the archive from keeping anything is no fault of the event's.
                if not helps or (attempt >= TRIES and not isinstance(error, EngineError)):
                    return _Unit(event, error=error)
                if attempt == TRIES:
                    self._log("an event waits until the archive can do what it asks for", **where(error))
            await trio.sleep(min(PAUSE_SECONDS * 2 ** (attempt - 1), PAUSE_SECONDS_MAX))

    async def _commit(self, units: Sequence[_Unit], place: str) -> None:
        """Act, and write down the place, in one transaction."""

        def plan(change: Change) -> Cursor:
            for unit in units:
                self._consumer.act(change, unit.event, *unit.data)
            return self._move(change, place)

        self._kept = await self._ris.commit(plan)
        self._is_fresh, self._passed, self._is_retold = True, 0, self._kept.is_retold

    async def _set_aside(self, event: Heeded, error: Exception, place: str) -> None:
        text = str(error) if is_ours(error) else " at ".join(where(error).values())

        def plan(change: Change) -> Cursor:
            aside = Aside(
                consumer=self._consumer.name,
                event=msgspec.msgpack.encode((event.kind, event.at_ns, dict(event.body))),
                kind=event.kind,
                at_ns=change.now_ns,
                error=text,
            )
            change.put(ASIDE, change.new_id(), aside)
            return self._move(change, place)

        self._kept = await self._ris.commit(plan)
        self._is_retold = self._kept.is_retold
        self._log("an event was set aside", kind=event.kind, error=text)

    def _move(self, change: Change, place: str) -> Cursor:
        """Write down the place. _OvertakenError when it is not where this one left it."""
        found = change.first(CURSOR, "name", self._consumer.name)
        if found is None or found[1] != self._kept:
            raise _OvertakenError
        moved = structs.replace(self._kept, cursor=place, is_retold=self._is_retold and place != self._end)
        change.put(CURSOR, found[0], moved)
        return moved

    def _log(self, text: str, **keys: str) -> None:
        structlog.get_logger().warning(text, what=f"ris {self._consumer.name}", **keys)


async def _prepared(consumer: Consumer, event: Heeded) -> tuple[Any, ...]:
    return () if consumer.prepare is None else (await consumer.prepare(event),)
