"""What plugins run in one worker: their parts begun, led, begun again after a failure, and ended."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from hounsfield.archive.app.certificates import stream_context
from hounsfield.archive.app.lean_structlog import structlog
from hounsfield.archive.app.logs import describe
from hounsfield.archive.app.plugin_archive import PluginArchive
from hounsfield.archive.app.plugin_terms import TERM, Term
from hounsfield.archive.app.plugins import OWN_SERVICES, Configured, configured_plugins
from hounsfield.archive.app.resources import Resources
from hounsfield.archive.app.scoreboard import Cell, Scoreboard
from hounsfield.archive.config import Config
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.leadership import RENEW_S, Leadership
from hounsfield.archive.errors import HounsfieldError, where
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.net.plugin_services import plugin_service
from hounsfield.archive.net.policy import networks
from hounsfield.archive.net.services import Service
from hounsfield.archive.net.streams import StreamEndpoint, StreamServer
from hounsfield.archive.plugins import Listen, Parts, Plugin
from hounsfield.storage_backends.errors import StorageError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from starlette.routing import BaseRoute

__all__ = ["LEASE_S", "PluginError", "PluginHost", "started"]

LEASE_S: Final = 15.0
"""Of leading parts: a leader that hangs is succeeded after this long, one whose process ended much sooner."""
LOOK_S: Final = 1.0
"""Between two looks whether the lease is free."""
PAUSE_S: Final = 1.0
"""Until a part that failed is begun again; doubled each time it fails within :data:`STEADY_S`."""
PAUSE_S_MAX: Final = 60.0
STEADY_S: Final = 60.0

Run = Callable[[], Awaitable[None]]


class PluginError(HounsfieldError):
    """A plugin could not start."""


async def started(
    configured: Configured, engine: Engine, *, ae_title: str, destinations: Callable[[], Destinations]
) -> Parts:
    """The parts of a plugin. Raises PluginError."""
    plugin, settings = configured
    archive = PluginArchive(engine, plugin.name, ae_title=ae_title, destinations=destinations)
    try:
        parts = await plugin.start(archive, settings)
        _check(plugin, settings, parts)
    except PluginError:
        raise
    except Exception as error:
        keys = describe(error)
        why = keys.get("error") or f"{keys['error_type']} at {keys.get('where', 'an unknown place')}"
        raise PluginError(f"the plugin {plugin.name} could not start: {why}") from error
    return parts


def _check(plugin: Plugin, settings: Any, parts: Parts) -> None:
    for service in parts.services:
        if service.name not in plugin.services or service.name in OWN_SERVICES:
            raise PluginError(
                f"the plugin {plugin.name} provides {service.name!r}, which is not one of its services"
            )
    for listen in plugin.listens(settings):
        if listen.name not in parts.streams:
            raise PluginError(f"the plugin {plugin.name} serves nobody at its listener {listen.name}")


class PluginHost:
    """The plugins of one worker. :meth:`start` first; what follows is what they have."""

    def __init__(self, resources: Resources, engine: Engine) -> None:
        self._resources = resources
        self._engine = engine
        self._owner = f"worker {resources.boot.worker} {os.getpid()}"
        self._parts: dict[str, Parts] = {}
        self._endpoints: list[tuple[Listen, StreamEndpoint]] = []
        self._streams: StreamServer | None = None
        self._destinations: Destinations | None = None

    async def start(self) -> None:
        """Begin every configured plugin. Raises PluginError, ConfigError."""
        config = self._resources.config
        listening: dict[str, Listen] = {}
        for configured in configured_plugins(config):
            plugin, settings = configured
            self._parts[plugin.name] = await started(
                configured,
                self._engine,
                ae_title=config.archive.ae_title,
                destinations=self._get_destinations,
            )
            listening |= {f"{plugin.name}.{listen.name}": listen for listen in plugin.listens(settings)}
        _check_services(self._parts)
        self._listen(listening)

    def use(self, destinations: Destinations) -> None:
        """Whom plugins can call."""
        self._destinations = destinations

    def _get_destinations(self) -> Destinations:
        if self._destinations is None:
            raise PluginError("nobody can be called before the archive is up")
        return self._destinations

    def _listen(self, listening: Mapping[str, Listen]) -> None:
        board = self._resources.board
        for fd, sock in self._resources.listeners:
            listen = listening.get(fd.kind)
            if listen is None:
                continue
            plugin, _, name = fd.kind.partition(".")
            endpoint = StreamEndpoint(
                fd.kind,
                sock,
                self._parts[plugin].streams[name],
                networks(listen.sources),
                listen.connections_max,
                stream_context(listen),
            )
            self._endpoints.append((listen, endpoint))
        if self._endpoints:
            self._streams = StreamServer(
                [endpoint for _, endpoint in self._endpoints],
                _BoardCounts(board),
                accept_delay=board.accept_delay,
            )

    # ------------------------------------------------------------ what they have

    def services(self) -> list[Service]:
        """For the DICOM listener."""
        return [plugin_service(service) for parts in self._parts.values() for service in parts.services]

    def routes(self) -> dict[str, Sequence[BaseRoute]]:
        """By the plugin below whose name they lie."""
        return {name: parts.routes for name, parts in self._parts.items() if parts.routes}

    def operations(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """For the command line, as ``PLUGIN.OPERATION``."""
        return {
            f"{name}.{operation}": perform
            for name, parts in self._parts.items()
            for operation, perform in parts.operations.items()
        }

    def listeners(self) -> list[Callable[..., Awaitable[None]]]:
        """What serves; each reports when it accepts."""
        return [] if self._streams is None else [self._streams.serve]

    def drains(self) -> list[Run]:
        """What stops accepting, and returns when the last connection is done."""
        return [] if self._streams is None else [self._streams.drain]

    def background(self) -> list[Run]:
        """What runs until cancelled."""
        found: list[Run] = []
        for name, parts in self._parts.items():
            found += [partial(_kept_running, name, run) for run in parts.background]
            found += [partial(self._lead, name, part, run) for part, run in parts.leading.items()]
        return found

    def metrics(self) -> Iterator[Metric]:
        """For ``/metrics`` of whichever worker is asked."""
        for name, parts in self._parts.items():
            try:
                yield from list(parts.metrics())
            except Exception as error:  # noqa: BLE001 - the others' figures are still to be seen
                structlog.get_logger().error("a plugin's figures failed", what=name, **where(error))

    def load(self, config: Config) -> None:
        """Read the certificates of listeners anew. Files that cannot be used leave the former in use."""
        del config  # [plugins] does not change while the server runs
        for listen, endpoint in self._endpoints:
            try:
                endpoint.tls = stream_context(listen)
            except HounsfieldError as error:
                structlog.get_logger().error(
                    "certificates and keys were not loaded anew", what=endpoint.name, error=str(error)
                )

    # ------------------------------------------------------------ leading

    async def _lead(self, plugin: str, part: str, run: Run) -> None:
        stores, gate = self._engine.stores, self._engine.gate
        name = f"plugin {plugin} {part}"
        leadership = Leadership(stores.store, gate, name, owner=self._owner, lease_s=LEASE_S)
        async with leadership:
            while True:
                if await _leads(leadership):
                    term = Term(stores.store, name, self._owner)
                    await _while_leading(leadership, partial(_in, term, f"{plugin} {part}", run))
                await trio.sleep(LOOK_S)


async def _leads(leadership: Leadership) -> bool:
    """Whether the lease is held; not to be told is not to hold it."""
    try:
        return await leadership.lead()
    except (StorageError, OSError) as error:  # a full disk ends no worker
        structlog.get_logger().error("a lease cannot be renewed", **where(error))
        return False


async def _while_leading(leadership: Leadership, run: Run) -> None:
    """Run it until the lease is lost."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        while await _leads(leadership):  # noqa: ASYNC110 - nothing tells who loses a lease
            await trio.sleep(RENEW_S / 2)
        nursery.cancel_scope.cancel()


async def _in(term: Term, name: str, run: Run) -> None:
    """Run it in a term, which whatever it begins carries with it."""
    TERM.set(term)  # of this task, and those that it begins
    await _kept_running(name, run)


async def _kept_running(name: str, run: Run) -> None:
    """Run it; again, after a pause, when it fails. What it raises ends no worker."""
    pause = PAUSE_S
    while True:
        began = trio.current_time()
        try:
            await run()
        except Exception as error:  # noqa: BLE001 - a defect of a plugin ends nothing else
            log = structlog.get_logger()
            log.error(
                "a part of a plugin failed; it begins again",
                what=name,
                delay_seconds=pause,
                **describe(error),
            )
        else:
            return
        steady = trio.current_time() - began >= STEADY_S
        await trio.sleep(pause)
        pause = PAUSE_S if steady else min(pause * 2, PAUSE_S_MAX)


def _check_services(parts: Mapping[str, Parts]) -> None:
    """Raise PluginError when two provide one thing."""
    names: Iterable[str] = [service.name for one in parts.values() for service in one.services]
    classes = [uid for one in parts.values() for service in one.services for uid in service.sop_classes]
    for found in (list(names), classes):
        for one in found:
            if found.count(one) > 1:
                raise PluginError(f"{one} is provided by more than one service of the plugins")


class _BoardCounts:
    """Connections, on the scoreboard: limits hold for the archive."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._connections = board.cell("worker_connections")

    def opened(self, listener: str) -> int:
        self._connections.add()
        cells = self._cells_of(listener)
        for cell in cells:
            cell.add()
        return min(cell.total() for cell in cells)

    def closed(self, listener: str) -> None:
        self._connections.add(-1)
        for cell in self._cells_of(listener):
            cell.add(-1)

    def _cells_of(self, name: str) -> tuple[Cell, Cell]:
        """Two, since another name may share one of them: not both."""
        return (
            self._board.table_cell("plugin_connections", name),
            self._board.table_cell("plugin_connections", f"{name}\0"),
        )
