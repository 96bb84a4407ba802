"""Routing: one process of the archive sends on what comes in, as rules say; see docs/decisions/0022.

Every worker runs it, a lease lets one of them lead. The leader reads the journal for all lanes, gives each
destination a task of its own, and tells now and then, for every process to read, how far it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import structlog
import trio

from hounsfield.archive.engine.changes import Changes, Cursor
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.leadership import RENEW_S, Leadership
from hounsfield.archive.engine.records import Records
from hounsfield.archive.engine.route_queue import Again, Lane, Route, RoutingLimits
from hounsfield.archive.engine.route_reading import RouteReading, Want
from hounsfield.archive.engine.route_sending import Destination
from hounsfield.archive.engine.route_ways import OpenWay
from hounsfield.archive.engine.stable import EVENT_STABLE
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.errors import alone, where
from hounsfield.archive.index.route_lanes import LaneKey, LaneRow, LaneTakenError, RouteLanes
from hounsfield.storage_backends.errors import StorageError

log = structlog.get_logger(__name__)

LOOK_S: Final = 1.0  # for what others commit, what was asked for, and what is to be told
AGAIN_S: Final = 5.0  # after a fault
GRACE_S: Final = 5.0
"""For what is on its way when a term ends; what has not arrived by then is sent again."""


class Routing:
    """One worker's part in routing. Any task may call it."""

    def __init__(  # noqa: PLR0917
        self,
        stores: Stores,
        records: Records,
        gate: Gate,
        changes: Changes,
        open_way: OpenWay,
        owner: str,
        limits: RoutingLimits | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.rows = RouteLanes(stores.store, stores.journal)
        self._stores = stores
        self._records = records
        self._gate = gate
        self._changes = changes
        self._open_way = open_way
        self._owner = owner
        self._limits = limits or RoutingLimits()
        self._now_ns = now_ns
        self._routes: tuple[Route, ...] = ()
        self._changed = trio.Event()
        self._closing = False
        self._ended = trio.Event()
        self._leading: _Leading | None = None

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes as they are configured."""
        return self._routes

    def keys(self) -> list[LaneKey]:
        """The lanes of the configured routes."""
        return [LaneKey(route.name, to) for route in self._routes for to in route.to]

    async def configure(self, routes: Sequence[Route]) -> None:
        """Use these routes from now on. What a new one sends begins with what is received after this."""
        self._routes = tuple(routes)
        if routes:
            await self._gate.read(self.rows.begin, self.keys(), self._now_ns())
        self._changed.set()
        self._changed = trio.Event()

    def try_now(self) -> None:
        """Call those who are being left alone at once: what is known of them may have changed."""
        if self._leading is not None:
            self._leading.try_now()

    async def drain(self) -> None:
        """Begin nothing more. What is on its way may arrive, for a moment."""
        self._closing = True
        self._changed.set()
        await self._ended.wait()

    async def run(self) -> None:
        """Work until cancelled or drained. No fault of routing's ends it, or what else its process does."""
        try:
            await self._run()
        finally:
            self._ended.set()

    async def _run(self) -> None:
        while not self._closing:
            changed = self._changed
            if not self._routes:
                await changed.wait()
                continue
            limits = self._limits
            try:
                async with Leadership(
                    self._stores.store, self._gate, "routing", owner=self._owner, lease_s=limits.lease_s
                ) as leadership:
                    while not self._closing and changed is self._changed:
                        if await leadership.lead():
                            await self._lead(leadership, changed)
                        else:
                            await trio.sleep(RENEW_S)
            except* LaneTakenError:
                pass  # somebody moved a cursor: what is to be sent is read anew
            except* Exception as group:  # noqa: BLE001
                error = alone(group)
                log.error("routing stopped for a moment", **where(error))
                with trio.move_on_after(AGAIN_S):
                    await changed.wait()

    # ------------------------------------------------------------ leading

    async def _lead(self, leadership: Leadership, changed: trio.Event) -> None:
        """Lead until the lease is lost, the routes change, or it is to end."""
        leading = self._leading = _Leading(self, await self._gate.read(self._lanes))
        async with trio.open_nursery() as nursery:
            for destination in leading.destinations:
                nursery.start_soon(destination.run)
            while changed is self._changed and not self._closing and await leadership.lead():
                await leading.step()
                with trio.move_on_after(LOOK_S):
                    await self._more(leading, changed)
            leading.close()
            grace = GRACE_S if leadership.held else 0.0
            nursery.cancel_scope.deadline = trio.current_time() + grace
        await leading.mark(always=True)

    async def _more(self, leading: _Leading, changed: trio.Event) -> None:
        """Return when there is more to read than was, or something changed."""
        if leading.has_more:
            await trio.lowlevel.checkpoint()
            return
        if not leading.is_hungry:
            await changed.wait()
            return
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                cursor = Cursor(b"", leading.read_to)
                while not await self._changes.wait(cursor, 60.0):
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(follow)
            await changed.wait()
            nursery.cancel_scope.cancel()

    def _lanes(self) -> list[Lane]:
        with self._stores.store.snapshot() as snapshot:
            rows = self.rows.rows(snapshot)
            entries = self.rows.aside(snapshot)
        lanes = []
        for route in self._routes:
            for to in route.to:
                key = LaneKey(route.name, to)
                lane = Lane(key, route, rows[key], self._limits)
                if lane.row.skip_to:
                    lane.aside = frozenset(
                        one.record for entry in entries if entry.key == key for one in entry.objects
                    )
                lanes.append(lane)
        return lanes

    def make(self, to: str, lanes: Sequence[Lane], reading: RouteReading) -> Destination:
        """The task for one destination."""
        return Destination(
            to, lanes, self.rows, reading, self._gate, self._open_way, self._limits, self._now_ns
        )

    def reading(self) -> RouteReading:
        """A reader of the journal."""
        return RouteReading(self._stores, self._records)


class _Leading:
    """One term of a leader."""

    def __init__(self, routing: Routing, lanes: list[Lane]) -> None:
        self._routing = routing
        self._rows = routing.rows
        self._gate = routing._gate
        self._limits = routing._limits
        self._lanes = lanes
        self._reading = routing.reading()
        by_destination: dict[str, list[Lane]] = {}
        for lane in lanes:
            by_destination.setdefault(lane.key.to, []).append(lane)
        self.destinations = [routing.make(to, of, self._reading) for to, of in by_destination.items()]
        self._asked: bytes | None = b"never"
        self._told = b""
        self._marked = trio.current_time()
        self._kept = trio.current_time()

    @property
    def read_to(self) -> int:
        """How far the journal was read for those that could take more."""
        return max((lane.want.read_to for lane in self._lanes), default=0)

    @property
    def is_hungry(self) -> bool:
        """Whether somebody may take more."""
        return any(lane.is_hungry for lane in self._lanes)

    @property
    def has_more(self) -> bool:
        """Whether somebody may take more, and the journal has it."""
        return any(lane.is_hungry and lane.more for lane in self._lanes)

    async def step(self) -> None:
        """Read on, hear what was asked, keep and tell how far it is."""
        await self._hear()
        await self._read()
        now = trio.current_time()
        if now - self._kept >= LOOK_S:
            self._kept = now
            for destination in self.destinations:
                await destination.note()
                for lane in destination.lanes:
                    # Where nothing matches, the journal is not read again from where it was.
                    if lane.want.read_to - lane.row.sequence > 1000 and not lane.busy:
                        await destination.commit(lane)
                    if lane.route.hours is not None:
                        destination.ring()
            try:
                await self._tell()
                await self.mark()
            except (StorageError, OSError) as error:  # a full disk: what is being sent goes on
                log.warning("how far routing is cannot be noted", error_type=type(error).__name__)

    async def _read(self) -> None:
        hungry = [lane for lane in self._lanes if lane.is_hungry]
        if not hungry:
            return
        more, at_ns, announced_ns = await self._gate.read(self._read_for, [lane.want for lane in hungry])
        furthest = max(lane.want.read_to for lane in hungry)
        for lane in hungry:
            lane.more = more or lane.want.read_to < furthest
            if not lane.more:
                lane.caught_up_ns = min(at_ns, announced_ns) if lane.route.stable else at_ns
            lane.take_found()
        for destination in self.destinations:
            if any(lane.head() is not None for lane in destination.lanes):
                destination.ring()

    def _read_for(self, wants: Sequence[Want]) -> tuple[bool, int, int]:
        """Whether there is more; when it was read, and what was announced by then: both before it is."""
        at_ns = self._routing._now_ns()
        announced_ns = self._announced_ns(at_ns) if any(want.stable for want in wants) else at_ns
        return self._reading.read(wants), at_ns, announced_ns

    async def _hear(self) -> None:
        """Do what was asked for since the last look."""
        for destination in self.destinations:
            destination.look()
        heard = await self._gate.read(self._look, self._asked)
        if heard is None:
            return
        self._asked, paused, rows, again = heard
        for lane in self._lanes:
            if rows.get(lane.key) != lane.row and rows[lane.key].edition != lane.row.edition:
                raise LaneTakenError("a cursor was moved on purpose")
            lane.paused = lane.key in paused
        for destination in self.destinations:
            destination.take_again(again)
            destination.try_now()

    def _look(
        self, asked: bytes | None
    ) -> tuple[bytes | None, frozenset[LaneKey], dict[LaneKey, LaneRow], list[Again]] | None:
        rows = self._rows
        with rows.store.snapshot() as snapshot:
            now = rows.asked(snapshot)
            if now == asked:
                return None
            again = [
                Again(entry.key, entry.entry_id, one)
                for entry in rows.aside(snapshot)
                for one in entry.objects
                if one.again
            ]
            return now, rows.paused(snapshot), rows.rows(snapshot), again

    # ------------------------------------------------------------ telling

    async def _tell(self) -> None:
        told = msgspec.json.encode(self._status())
        if told != self._told:
            await self._gate.read(self._rows.tell, told)
            self._told = told

    def _status(self) -> dict[str, Any]:
        now = trio.current_time()
        wall = time.time()
        destinations = {}
        for one in self.destinations:
            state = one.state
            left = max(0.0, state.retry_at - now)
            destinations[one.to] = {
                "doing": state.doing,
                "error": state.error,
                "failures": state.failures,
                "retry_at": round(wall + left) if left else None,
                "associations": state.ways,
                "bytes_sent": state.bytes_sent,
            }
        lanes = [
            {
                "route": lane.key.route,
                "to": lane.key.to,
                "queued": lane.queued,
                "more": not lane.is_hungry,
                "oldest_ns": lane.oldest_ns,
                "read_to": lane.want.read_to,
            }
            for lane in self._lanes
        ]
        return {"owner": self._routing._owner, "destinations": destinations, "lanes": lanes}

    async def mark(self, *, always: bool = False) -> None:
        """Note in the ledger, now and then, until when everything is done with."""
        now = trio.current_time()
        worked = any(lane.done_since_mark for lane in self._lanes)
        due = self._limits.mark_s if worked else self._limits.mark_idle_s
        if now - self._marked < due and not (always and worked):
            return
        self._marked = now
        with trio.CancelScope(shield=True):
            unmarked = {lane.key for lane in self._lanes if lane.done_since_mark}
            for lane in self._lanes:
                lane.done_since_mark = False
            marked: dict[LaneKey, int] = {}
            try:
                marked = await self._gate.read(self._mark)
            finally:
                for lane in self._lanes:
                    lane.done_since_mark |= lane.key in unmarked and not marked.get(lane.key)

    def _mark(self) -> dict[LaneKey, int]:
        through = {lane.key: lane.through_ns() for lane in self._lanes}
        self._rows.mark(through, self._routing._now_ns())
        return through

    def _announced_ns(self, now_ns: int) -> int:
        """Studies of which something was received after this may not have been announced as stable yet."""
        journal = self._routing._stores.journal
        with self._rows.store.snapshot() as snapshot:
            cursor = journal.cursor(snapshot, EVENT_STABLE)
            following = journal.read(snapshot, cursor, 1)
        return min(now_ns, following[0][1].at_ns) if following else now_ns

    def try_now(self) -> None:
        """Call those who are being left alone at once."""
        for destination in self.destinations:
            destination.try_now()

    def close(self) -> None:
        """Have the destinations end when what is on its way has arrived."""
        for destination in self.destinations:
            destination.closing = True
            destination.try_now()
