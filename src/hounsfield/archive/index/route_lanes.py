"""How far each route has come at each destination, durably; and what was set aside on the way.

A *lane* is one route to one destination. It follows the journal with a cursor that names single objects:
everything up to an event, so many objects of the next one, and the few after that which were done out of
order. The cursor is moved after each object that the destination has acknowledged, in one small commit, and
only by who knows the row as it is: a leader that was succeeded cannot move it.

A cursor means nothing in a journal that was made anew (``reindex``), and says too little in an older copy of
the index (``restore``). So *marks* are facts: of each lane a moment: whatever was received before it is done
with. The index notes which mark it has seen; one that finds another in the ledger reads what its journal
has, and leaves out what had been received before (docs/decisions/0022).

What cannot be sent for good is set aside: facts too, since nothing else knows of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import structs

from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rows import Event, decode, encode
from hounsfield.archive.index.tables import JOURNAL, META
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot
from hounsfield.storage_backends.errors import PreconditionError

FACT_MARK: Final = "routing-mark"
FACT_ASIDE: Final = "routing-set-aside"
FACT_PAUSED: Final = "routing-paused"

_LANE: Final = b"routing/lane/"
_MARK: Final = b"routing/mark"
_ASKED: Final = b"routing/asked"
_STATUS: Final = b"routing/status"
_ID_BYTES: Final = 6
_MARK_BYTES: Final = 8

Position = tuple[int, int]
"""An object of the journal: its event's number, and which of that event's objects it is."""


class LaneTakenError(Exception):
    """Somebody else moved this lane's cursor: read it again."""

    retry = True


class LaneKey(NamedTuple):
    """A route and a destination's title."""

    route: str
    to: str

    @property
    def name(self) -> str:
        return f"{self.route}\0{self.to}"


class LaneRow(msgspec.Struct, array_like=True, frozen=True):
    """A lane's cursor: every event up to ``sequence``, ``member`` objects of the next one, and ``beyond``.

    In events up to ``skip_to`` (of a journal that was made anew, or is an older one) what was received
    before ``through_ns`` is done with as well. ``edition`` grows when the cursor was moved from outside.
    """

    sequence: int
    member: int = 0
    beyond: tuple[Position, ...] = ()
    sent: int = 0
    passed_over: int = 0
    set_aside: int = 0
    skip_to: int = 0
    through_ns: int = 0
    edition: int = 0


class Aside(msgspec.Struct, frozen=True):
    """An object that was set aside. ``reason`` names nobody. ``again``: it is to be sent again."""

    study: str
    series: str
    instance: str
    record: bytes
    received_ns: int
    reason: str
    status: int | None = None
    again: bool = False


class AsideEntry(NamedTuple):
    """Objects of one lane that were set aside together."""

    entry_id: str
    key: LaneKey
    at_ns: int
    objects: tuple[Aside, ...]


class RouteLanes:
    """The lanes of one archive. Blocking; any number of threads and processes."""

    def __init__(self, store: KeyValueStore, journal: Journal) -> None:
        self.store = store
        self._journal = journal

    # ------------------------------------------------------------ cursors

    def rows(self, snapshot: Snapshot) -> dict[LaneKey, LaneRow]:
        """Every lane that there ever was."""
        return {
            _key_of(key): decode(LaneRow, held) for key, held in snapshot.scan(META, prefix=_LANE)
        }  # plain: titles, names and numbers

    def begin(self, keys: Iterable[LaneKey], now_ns: int) -> None:
        """Have a cursor for each: where it was, or, of a new one, at the journal's end.

        Also finds out whether the journal is another one than that of the last mark, and notes in the cursors
        what is done with. Before anything is sent, and before anything is received that is to be sent.
        """
        wanted = list(keys)
        with self.store.snapshot() as snapshot:
            if not self._beginnings(snapshot, wanted):
                return

        def plan(snapshot: Snapshot, batch: Batch) -> Event:
            through = dict(self._marks(snapshot)[1])
            for key, row in self._beginnings(snapshot, wanted).items():
                _require(batch, snapshot, key)
                batch.put(META, _lane(key), encode(row))
                through.setdefault(key, now_ns)
            return self._marked(snapshot, batch, through, now_ns)

        self._journal.commit_planned_fact(plan)

    def _beginnings(self, snapshot: Snapshot, wanted: Iterable[LaneKey]) -> dict[LaneKey, LaneRow]:
        rows = self.rows(snapshot)
        mark, through = self._marks(snapshot)
        is_seen = snapshot.get(META, _MARK) == mark
        last = snapshot.last(JOURNAL)
        begun: dict[LaneKey, LaneRow] = {}
        for key in dict.fromkeys((*wanted, *rows)):
            row, done_ns = rows.get(key), through.get(key)
            if row is None:
                begun[key] = (
                    LaneRow(last) if done_ns is None else LaneRow(0, skip_to=last, through_ns=done_ns)
                )
            elif not is_seen and done_ns is not None:
                begun[key] = structs.replace(
                    row,
                    skip_to=last,
                    through_ns=max(done_ns, row.through_ns),
                    edition=row.edition + 1,
                )
        return begun

    def move(self, key: LaneKey, held: LaneRow, row: LaneRow) -> None:
        """Make ``row`` the cursor, which is ``held``. LaneTakenError when it is not; StoreFullError."""
        batch = Batch(uses_reserve=True)  # one small row, or what was sent would be sent again
        batch.require(META, _lane(key), encode(held))
        batch.put(META, _lane(key), encode(row))
        try:
            self.store.commit(batch)
        except PreconditionError as error:
            raise LaneTakenError(f"the route {key.route} to {key.to} is led by another process") from error

    def leap(self, keys: Collection[LaneKey], now_ns: int) -> None:
        """Move cursors to the journal's end: what waits there is not sent, nor after a reindex."""
        for key in keys:
            while True:
                with self.store.snapshot() as snapshot:
                    held = self.rows(snapshot).get(key)
                    last = snapshot.last(JOURNAL)
                if held is None:
                    break
                row = structs.replace(
                    held, sequence=last, member=0, beyond=(), skip_to=0, edition=held.edition + 1
                )
                try:
                    self.move(key, held, row)
                except LaneTakenError:
                    continue  # an object was sent meanwhile
                break
        self.mark(dict.fromkeys(keys, now_ns), now_ns)
        self.ask()

    # ------------------------------------------------------------ marks

    def mark(self, through: Mapping[LaneKey, int], now_ns: int) -> None:
        """Note durably, outside the index too, that whatever was received before a moment is done with."""

        def plan(snapshot: Snapshot, batch: Batch) -> Event:
            known = dict(self._marks(snapshot)[1])
            for key, at_ns in through.items():
                known[key] = max(known.get(key, 0), at_ns)
            return self._marked(snapshot, batch, known, now_ns)

        self._journal.commit_planned_fact(plan)

    def marks(self, snapshot: Snapshot) -> Mapping[LaneKey, int]:
        """Of each lane a moment: what was received before it is known to be done with."""
        return self._marks(snapshot)[1]

    def _marks(self, snapshot: Snapshot) -> tuple[bytes | None, dict[LaneKey, int]]:
        body = self._journal.state_of(snapshot, FACT_MARK, "")
        if body is None:
            return None, {}
        return body["mark"], {LaneKey(route, to): at_ns for route, to, at_ns in body["lanes"]}

    def _marked(self, snapshot: Snapshot, batch: Batch, through: Mapping[LaneKey, int], now_ns: int) -> Event:
        mark = os.urandom(_MARK_BYTES)
        lanes = [[key.route, key.to, at_ns] for key, at_ns in sorted(through.items())]
        event = Event(FACT_MARK, now_ns, {"name": "", "body": {"mark": mark, "lanes": lanes}}, fact=True)
        batch.put(META, _MARK, mark)
        batch.uses_reserve = True  # a start on a full disk may need it
        self._journal.apply_fact(snapshot, batch, event)
        return event

    # ------------------------------------------------------------ what was set aside

    def set_aside(
        self, key: LaneKey, held: LaneRow, row: LaneRow, objects: tuple[Aside, ...], now_ns: int
    ) -> None:
        """Set objects aside and move the cursor past them, in one commit. LaneTakenError as :meth:`move`."""
        entry = AsideEntry(os.urandom(_ID_BYTES).hex(), key, now_ns, objects)

        def plan(snapshot: Snapshot, batch: Batch) -> Event:
            if snapshot.get(META, _lane(key)) != encode(held):
                raise LaneTakenError(f"the route {key.route} to {key.to} is led by another process")
            _require(batch, snapshot, key)
            batch.put(META, _lane(key), encode(row))
            batch.uses_reserve = True
            event = _aside_event(entry, now_ns)
            self._journal.apply_fact(snapshot, batch, event)
            return event

        self._journal.commit_planned_fact(plan)

    def aside(self, snapshot: Snapshot) -> list[AsideEntry]:
        """Everything that was set aside, oldest first."""
        found = [_entry_of(body) for body in self._journal.state(snapshot, FACT_ASIDE)]
        return sorted(found, key=lambda entry: (entry.at_ns, entry.entry_id))

    def change_aside(
        self, entry_id: str, change: Callable[[AsideEntry], AsideEntry | None], now_ns: int
    ) -> bool:
        """Have an entry be what ``change`` makes of it (None: no more); whether there is one. May be called
        several times."""

        class _NoEntryError(Exception):
            pass

        def plan(snapshot: Snapshot, batch: Batch) -> Event:
            body = self._journal.state_of(snapshot, FACT_ASIDE, entry_id)
            if body is None:
                raise _NoEntryError
            entry = change(_entry_of(body))
            if entry is None or not entry.objects:
                gone = {"name": entry_id, "body": None}
                event = Event(FACT_ASIDE, now_ns, gone, fact=True)
            else:
                event = _aside_event(entry, now_ns)
            batch.uses_reserve = True  # it was sent: on a full disk it would be sent again and again
            self._journal.apply_fact(snapshot, batch, event)
            return event

        try:
            self._journal.commit_planned_fact(plan)
        except _NoEntryError:
            return False
        return True

    # ------------------------------------------------------------ what administrators ask for

    def send_again(self, entry_ids: Iterable[str], now_ns: int = 0) -> int:
        """Have the objects of entries be sent again; how many there are."""

        def again(entry: AsideEntry) -> AsideEntry:
            return entry._replace(objects=tuple(structs.replace(one, again=True) for one in entry.objects))

        return self._changed(entry_ids, again, now_ns)

    def leave_out(self, entry_ids: Iterable[str], now_ns: int = 0) -> int:
        """Forget what was set aside in entries: it is not sent; how many objects there were."""
        return self._changed(entry_ids, lambda _: None, now_ns)

    def _changed(
        self, entry_ids: Iterable[str], change: Callable[[AsideEntry], AsideEntry | None], now_ns: int
    ) -> int:
        count = 0
        for entry_id in entry_ids:
            with self.store.snapshot() as snapshot:
                body = self._journal.state_of(snapshot, FACT_ASIDE, entry_id)
            if body is not None and self.change_aside(entry_id, change, now_ns):
                count += len(body["objects"])
        self.ask()
        return count

    def pause(self, key: LaneKey, paused: bool, now_ns: int) -> None:
        """Have nothing be sent on a lane until it is resumed; what is to be sent waits."""
        body = {"route": key.route, "to": key.to, "at_ns": now_ns} if paused else None
        self._journal.commit_fact(FACT_PAUSED, key.name, body, now_ns)
        self.ask()

    def paused(self, snapshot: Snapshot) -> frozenset[LaneKey]:
        """The lanes that are paused."""
        return frozenset(
            LaneKey(body["route"], body["to"]) for body in self._journal.state(snapshot, FACT_PAUSED)
        )

    def ask(self) -> None:
        """Have whoever leads look at once: something was paused, resumed, tried again or left out."""
        batch = Batch(uses_reserve=True)
        batch.put(META, _ASKED, os.urandom(8))
        self.store.commit(batch)

    def asked(self, snapshot: Snapshot) -> bytes | None:
        """Changes whenever somebody asked."""
        return snapshot.get(META, _ASKED)

    # ------------------------------------------------------------ what is told of the work

    def tell(self, status: bytes) -> None:
        """Keep what the leader says of itself, for every process to read."""
        batch = Batch(uses_reserve=True)
        batch.put(META, _STATUS, status)
        self.store.commit(batch)

    def told(self, snapshot: Snapshot) -> bytes | None:
        """What the leader said last."""
        return snapshot.get(META, _STATUS)


def _lane(key: LaneKey) -> bytes:
    return _LANE + key.name.encode()


def _key_of(key: bytes) -> LaneKey:
    route, _, to = key[len(_LANE) :].decode().partition("\0")
    return LaneKey(route, to)


def _require(batch: Batch, snapshot: Snapshot, key: LaneKey) -> None:
    batch.require(META, _lane(key), snapshot.get(META, _lane(key)))


def _aside_event(entry: AsideEntry, now_ns: int) -> Event:
    body: dict[str, Any] = {
        "id": entry.entry_id,
        "route": entry.key.route,
        "to": entry.key.to,
        "at_ns": entry.at_ns,
        "objects": [structs.asdict(one) for one in entry.objects],
    }
    return Event(FACT_ASIDE, now_ns, {"name": entry.entry_id, "body": body}, fact=True)


def _entry_of(body: Mapping[str, Any]) -> AsideEntry:
    objects = tuple(msgspec.convert(one, Aside) for one in body["objects"])
    key = LaneKey(body["route"], body["to"])
    return AsideEntry(body["id"], key, body["at_ns"], objects)
