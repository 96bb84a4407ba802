"""Routing in one worker: its routes from config.toml, what the command line asks of them, their figures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from hounsfield.archive.app.resources import Resources
from hounsfield.archive.app.route_options import routes_of
from hounsfield.archive.config import Config
from hounsfield.archive.config.sections import RouteEntry
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.route_queue import Lane, Route, RoutingLimits
from hounsfield.archive.engine.route_reading import RouteReading
from hounsfield.archive.engine.routing import Routing
from hounsfield.archive.errors import HounsfieldError
from hounsfield.archive.index.route_lanes import AsideEntry, LaneKey, LaneRow, RouteLanes
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.net.routing import RouteWays

SHOWN_MAX: Final = 1000  # objects of a queue that are listed at once
_NS: Final = 1_000_000_000


class RouteError(HounsfieldError):
    """What is asked of a route cannot be done; the text says what there is."""


class RouteOperations:
    """The operations of ``hounsfield routes``, with a server running or without."""

    def __init__(self, engine: Engine, config: Config, *, running: bool) -> None:
        self._engine = engine
        self._running = running
        self._rows = RouteLanes(engine.stores.store, engine.stores.journal)
        self.routes: list[Route] = []
        self.use(config)

    def use(self, config: Config) -> None:
        """Know the routes of ``config`` from now on. ConfigError."""
        self.routes = routes_of(config)

    def table(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Every operation by the name it is asked for with."""
        return {
            "routes-list": self.configured,
            "routes-status": self.status,
            "routes-queue": self.queue,
            "routes-retry": self.retry,
            "routes-skip": self.skip,
            "routes-pause": self.pause,
        }

    async def configured(self) -> list[dict[str, Any]]:
        """The configured routes."""
        return [
            {
                "name": route.name,
                "to": list(route.to),
                "when": "stable" if route.stable else "received",
                "transfer_syntaxes": list(route.transfer_syntaxes),
                "associations": route.associations,
                "priority": route.priority,
                "hours": "" if route.hours is None else "-".join(f"{at:%H:%M}" for at in route.hours),
            }
            for route in self.routes
        ]

    async def status(self, route: str = "", to: str = "") -> list[dict[str, Any]]:
        """How far each route is at each destination."""
        return await self._engine.read(self._status, route, to)

    def told(self) -> list[dict[str, Any]]:
        """As :meth:`status`, as far as the leader has told it: nothing is read for it."""
        return self._status("", "", count=False)

    async def queue(self, route: str = "", to: str = "", limit: int = 100) -> dict[str, Any]:
        """What waits on each lane, the first ones; and what was set aside."""
        return await self._engine.read(self._queue, route, to, min(limit, SHOWN_MAX))

    async def retry(self, route: str = "", to: str = "", entry: str = "") -> dict[str, int]:
        """Send again what was set aside, and try destinations that are being left alone at once."""
        return await self._engine.read(self._retry, route, to, entry)

    async def skip(
        self, route: str = "", to: str = "", entry: str = "", queued: bool = False
    ) -> dict[str, int]:
        """Forget what was set aside; ``queued``: what waits, instead."""
        return await self._engine.read(self._skip, route, to, entry, queued)

    async def pause(self, route: str, to: str = "", paused: bool = True) -> dict[str, int]:
        """Send nothing on a route until it is resumed."""
        return await self._engine.read(self._pause, route, to, paused)

    # ------------------------------------------------------------ on threads

    def _configured(self) -> dict[LaneKey, Route]:
        return {LaneKey(route.name, to): route for route in self.routes for to in route.to}

    def _chosen(self, rows: dict[LaneKey, LaneRow], route: str, to: str) -> list[LaneKey]:
        keys = [key for key in dict.fromkeys((*self._configured(), *rows)) if key.route == route or not route]
        keys = [key for key in keys if key.to == to or not to]
        if not keys and (route or to):
            there = ", ".join(sorted({key.route for key in (*self._configured(), *rows)})) or "none"
            raise RouteError(f"no such route or destination; routes that are known: {there}")
        return keys

    def _status(self, route: str, to: str, count: bool = True) -> list[dict[str, Any]]:
        configured = self._configured()
        with self._rows.store.snapshot() as snapshot:
            rows = self._rows.rows(snapshot)
            paused = self._rows.paused(snapshot)
            aside = self._rows.aside(snapshot)
            told = json.loads(self._rows.told(snapshot) or b"{}") if self._running else {}
        lanes = {LaneKey(one["route"], one["to"]): one for one in told.get("lanes", ())}
        destinations = told.get("destinations", {})
        found = []
        for key in self._chosen(rows, route, to):
            row = rows.get(key) or LaneRow(0)
            lane = lanes.get(key)
            if lane is None:
                lane = self._counted(configured.get(key) if count else None, key, rows.get(key))
            state = destinations.get(key.to, {}) if key in lanes else {}
            found.append(
                {
                    "route": key.route,
                    "to": key.to,
                    "configured": key in configured,
                    "paused": key in paused,
                    "queued": lane["queued"],
                    "more": lane["more"],
                    "oldest_ns": lane["oldest_ns"],
                    "sent": row.sent,
                    "passed_over": row.passed_over,
                    "set_aside": sum(len(entry.objects) for entry in aside if entry.key == key),
                    "doing": state.get("doing", ""),
                    "error": state.get("error", ""),
                    "failures": state.get("failures", 0),
                    "retry_at": state.get("retry_at"),
                    "associations": state.get("associations", 0),
                }
            )
        return found

    def _lane(self, route: Route | None, key: LaneKey, row: LaneRow | None, limit: int) -> Lane | None:
        """A lane that has read the journal so far; None when it never began or is not configured."""
        if row is None or route is None:
            return None
        lane = Lane(key, route, row, RoutingLimits(waiting_max=limit))
        reading = RouteReading(self._engine.stores, self._engine.records)
        while lane.is_hungry:
            before = lane.want.read_to
            reading.read([lane.want])
            lane.take_found()
            if lane.want.read_to == before:
                break
        return lane

    def _counted(self, route: Route | None, key: LaneKey, row: LaneRow | None) -> dict[str, Any]:
        lane = self._lane(route, key, row, RoutingLimits().waiting_max)
        if lane is None:
            return {"queued": 0, "more": False, "oldest_ns": None}
        return {"queued": lane.queued, "more": not lane.is_hungry, "oldest_ns": lane.oldest_ns}

    def _queue(self, route: str, to: str, limit: int) -> dict[str, Any]:
        configured = self._configured()
        with self._rows.store.snapshot() as snapshot:
            rows = self._rows.rows(snapshot)
            aside = self._rows.aside(snapshot)
        keys = self._chosen(rows, route, to)
        waiting: list[dict[str, Any]] = []
        for key in keys:
            lane = self._lane(configured.get(key), key, rows.get(key), limit)
            waiting.extend(
                {
                    "route": key.route,
                    "to": key.to,
                    "study": one.study_uid,
                    "series": one.series_uid,
                    "instance": one.sop_uid,
                    "received_ns": one.received_ns,
                }
                for one in (() if lane is None else list(lane.waiting)[:limit])
            )
        set_aside = [
            {
                "id": entry.entry_id,
                "route": entry.key.route,
                "to": entry.key.to,
                "at_ns": entry.at_ns,
                "study": one.study,
                "series": one.series,
                "instance": one.instance,
                "reason": one.reason,
                "status": one.status,
                "again": one.again,
            }
            for entry in aside
            if entry.key in keys
            for one in entry.objects
        ]
        return {"waiting": waiting, "set_aside": set_aside}

    def _entries(self, route: str, to: str, entry_id: str) -> list[AsideEntry]:
        with self._rows.store.snapshot() as snapshot:
            rows = self._rows.rows(snapshot)
            keys = self._chosen(rows, route, to)
            found = [
                entry
                for entry in self._rows.aside(snapshot)
                if entry.key in keys and entry_id in {"", entry.entry_id}
            ]
        if entry_id and not found:
            raise RouteError(f"nothing was set aside as {entry_id}; `hounsfield routes queue` lists what was")
        return found

    def _retry(self, route: str, to: str, entry_id: str) -> dict[str, int]:
        entries = self._entries(route, to, entry_id)
        return {"objects": self._rows.send_again((one.entry_id for one in entries), time.time_ns())}

    def _skip(self, route: str, to: str, entry_id: str, queued: bool) -> dict[str, int]:
        if not queued:
            entries = self._entries(route, to, entry_id)
            return {"objects": self._rows.leave_out((one.entry_id for one in entries), time.time_ns())}
        with self._rows.store.snapshot() as snapshot:
            rows = self._rows.rows(snapshot)
        keys = self._chosen(rows, route, to)
        self._rows.leap(keys, time.time_ns())
        return {"lanes": len(keys)}

    def _pause(self, route: str, to: str, paused: bool) -> dict[str, int]:
        with self._rows.store.snapshot() as snapshot:
            rows = self._rows.rows(snapshot)
        keys = self._chosen(rows, route, to)
        for key in keys:
            self._rows.pause(key, paused, time.time_ns())
        return {"lanes": len(keys)}


class RoutingService:
    """What one worker does of routing."""

    def __init__(self, resources: Resources, engine: Engine, destinations: Destinations) -> None:
        owner = f"worker {resources.boot.worker} {os.getpid()}"
        ways = RouteWays(engine, destinations)
        self._routing = Routing(engine.stores, engine.records, engine.gate, engine.changes, ways.open, owner)
        self._operations = RouteOperations(engine, resources.config, running=True)
        self._loaded: tuple[RouteEntry, ...] | None = None
        self.run = self._routing.run
        self.drain = self._routing.drain
        self.operations = self._operations.table

    async def load(self, config: Config) -> None:
        """Send as ``config`` says from now on. ConfigError."""
        if config.routes == self._loaded:
            self._routing.try_now()  # an AE may have been added or changed
            return
        self._operations.use(config)
        await self._routing.configure(self._operations.routes)
        self._loaded = config.routes

    def metrics(self) -> Iterator[Metric]:
        """Figures by route and destination, for the whole archive."""
        if not self._operations.routes:
            return
        lanes = self._operations.told()
        labels = ["route", "to"]
        now_ns = time.time_ns()
        queued = GaugeMetricFamily(
            "hounsfield_routing_queued",
            "Objects that wait to be sent (in memory; more may follow)",
            labels=labels,
        )
        oldest = GaugeMetricFamily(
            "hounsfield_routing_oldest_seconds", "Age of the oldest object that waits", labels=labels
        )
        aside = GaugeMetricFamily(
            "hounsfield_routing_set_aside", "Objects that were refused and wait for a decision", labels=labels
        )
        failing = GaugeMetricFamily(
            "hounsfield_routing_failing", "1 while the destination takes nothing", labels=labels
        )
        sent = CounterMetricFamily("hounsfield_routing_sent", "Objects that were sent", labels=labels)
        for one in lanes:
            values = [one["route"], one["to"]]
            queued.add_metric(values, one["queued"])
            age_ns = 0 if one["oldest_ns"] is None else max(0, now_ns - one["oldest_ns"])
            oldest.add_metric(values, age_ns / _NS)
            aside.add_metric(values, one["set_aside"])
            failing.add_metric(values, int(one["failures"] > 0))
            sent.add_metric(values, one["sent"])
        yield from (queued, oldest, aside, failing, sent)
