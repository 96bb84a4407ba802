"""The DICOM listener of one worker: its policy and limits from config.toml, its figures on the scoreboard."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import trio

from hounsfield.archive.app.ae_registry import AeRegistry, remote_ae
from hounsfield.archive.app.auditing import AssociationAudit
from hounsfield.archive.app.boot import ChannelClosed
from hounsfield.archive.app.certificates import (
    check_files,
    client_tls,
    days_left,
    listener_context,
    running_out,
)
from hounsfield.archive.app.dicom_services import DicomServices
from hounsfield.archive.app.identities import Identities, IdentityLimits, token_verifier
from hounsfield.archive.app.lean_structlog import structlog
from hounsfield.archive.app.plugins import service_names
from hounsfield.archive.app.resources import Resources
from hounsfield.archive.app.scoreboard import Cell, Scoreboard
from hounsfield.archive.config import Config, DicomListener, is_loopback
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.errors import ConfigError, HounsfieldError
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.listener import Endpoint, Listener
from hounsfield.archive.net.policy import ListenerPolicy, RemoteAe, networks
from hounsfield.archive.net.records import CallRecord, EndRecord, ListenerObserver
from hounsfield.archive.net.services import Service
from hounsfield.archive.net.sop_classes import VERIFICATION, StorageRule, is_storage

# Calls waiting to be told to the supervisor; past it the newest are dropped, the counters still count them.
CALLS_WAITING_MAX = 256
CERTIFICATES_LOOK_S = 86_400.0


class BoardObserver(ListenerObserver):
    """Counts on the scoreboard, so that limits hold for the archive; passes calls on for ``ae recent`` and
    to the journal.
    """

    def __init__(self, board: Scoreboard, audit: AssociationAudit) -> None:
        super().__init__()
        self._board = board
        self._audit = audit
        self._open_cell = board.cell("associations")
        self._connections = board.cell("worker_connections")
        self._aborted = board.cell("associations_total.aborted")
        self._calls, self._told = trio.open_memory_channel[CallRecord](CALLS_WAITING_MAX)

    def connection_opened(self) -> None:
        self._connections.add()

    def connection_closed(self) -> None:
        self._connections.add(-1)

    def association_opened(self, address: str) -> None:
        self._open_cell.add()
        for cell in self._cells_of("associations_from", address):
            cell.add()

    def association_closed(self, address: str) -> None:
        self._open_cell.add(-1)
        for cell in self._cells_of("associations_from", address):
            cell.add(-1)

    def associations_open(self) -> int:
        return self._open_cell.total()

    def associations_from(self, address: str) -> int:
        return min(cell.total() for cell in self._cells_of("associations_from", address))

    def entity_opened(self, title: str) -> None:
        for cell in self._cells_of("associations_of", title):
            cell.add()

    def entity_closed(self, title: str) -> None:
        for cell in self._cells_of("associations_of", title):
            cell.add(-1)

    def associations_of(self, title: str) -> int:
        return min(cell.total() for cell in self._cells_of("associations_of", title))

    def _cells_of(self, table: str, name: str) -> tuple[Cell, Cell]:
        """Two, since another name may share one of them: not both."""
        return self._board.table_cell(table, name), self._board.table_cell(table, f"{name}\0")

    def association_aborted(self) -> None:
        self._aborted.add()

    def ended(self, end: EndRecord) -> None:
        self._audit.ended(end)

    def called(self, call: CallRecord) -> None:
        self._board.add(f"associations_total.{'accepted' if call.outcome == 'accepted' else 'refused'}")
        self._pass_on(call)

    def handshake_failed(self, call: CallRecord) -> None:
        self._pass_on(call)

    def _pass_on(self, call: CallRecord) -> None:
        self._audit.called(call)
        try:
            self._calls.send_nowait(call)
        except trio.WouldBlock:
            return

    async def tell(self, supervisor: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Pass calls on until cancelled."""
        async for call in self._told:
            message = {
                "type": "peer",
                "calling_ae": call.calling_ae,
                "called_ae": call.called_ae,
                "address": call.address,
                "outcome": call.outcome,
                "reason": call.reason,
            }
            try:
                await supervisor(message)
            except ChannelClosed:
                return


class DicomService:
    """The listener and its services, and what changes in them when the configuration is loaded anew."""

    def __init__(self, resources: Resources, engine: Engine, more: Sequence[Service] = ()) -> None:
        """``more``: services of plugins."""
        config, board = resources.config, resources.board
        changed = partial(resources.tell_supervisor, {"type": "aes-changed"})
        self.registry = AeRegistry(engine, remote_aes(config), changed, service_names(config))
        self.identities = Identities(engine, changed, IdentityLimits.of_one(resources.boot.workers))
        self.destinations = Destinations(
            lambda: self.registry.known, ae_title=config.archive.ae_title, tls=client_tls(config)
        )
        self._services = DicomServices(resources, engine, self.destinations)
        check_classes(self._services.services, more)
        self.audit = AssociationAudit(
            engine.associations,
            enabled=config.dicom.association_events,
            dropped=board.cell("association_events_dropped_total").add,
        )
        self._board = board
        self._config = config
        self._is_first = resources.boot.worker == 0
        self._observer = BoardObserver(board, self.audit)
        self._tell = resources.tell_supervisor
        self._entries: list[DicomListener] = []
        endpoints = []
        for fd, sock in resources.listeners:
            if fd.kind == "dicom":
                entry = config.dicom.listeners[fd.index]
                self._entries.append(entry)
                endpoints.append(Endpoint(sock, policy(config, entry), listener_context(entry)))
        self.listener = Listener(
            engine,
            endpoints,
            limits=net_limits(config, resources.boot.workers),
            observer=self._observer,
            accept_delay=board.accept_delay,
            services=(*self._services.services, *more),
            identify=self.identities.identify,
        )

    def background(self) -> list[Callable[[], Awaitable[None]]]:
        """What runs beside the listener, until cancelled."""
        return [
            self._report,
            self.audit.run,
            self._watch_certificates,
            *self._services.background(),
        ]

    def operations(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """For the command line."""
        return {
            **self.registry.operations(),
            **self.identities.operations(),
            **self.audit.operations(),
        }

    async def _report(self) -> None:
        """Pass calls on to the supervisor."""
        await self._observer.tell(self._tell)

    async def start(self) -> None:
        """Read what the archive knows of AEs and users, and the keys. Raises HounsfieldError."""
        await self._load_lists(self._config)
        self.identities.use(self._config.identity, token_verifier(self._config))

    async def load(self, config: Config) -> None:
        """Use what ``config`` says, the AEs and users added since, and certificates and keys as their files
        are now, for the next call; open associations stay. Files that cannot be used leave the former in use.
        """
        await self._load_lists(config)
        self._board.add("lists_loaded_total")
        try:
            check_files(config, map(remote_ae, config.aes))
            verifier = token_verifier(config)
            contexts = [listener_context(entry) for entry in self._entries]
        except HounsfieldError as error:
            structlog.get_logger().error("certificates and keys were not loaded anew", error=str(error))
            return
        self.identities.use(config.identity, verifier)
        self.destinations.load(ae_title=config.archive.ae_title, tls=client_tls(config))
        for endpoint, context in zip(self.listener.endpoints, contexts, strict=True):
            endpoint.tls = context

    async def _load_lists(self, config: Config) -> None:
        self._config = config
        self.registry.configure(remote_aes(config))
        await self.registry.refresh()
        await self.identities.refresh()
        self.listener.aes = self.registry.known
        self.audit.enabled = config.dicom.association_events
        self._services.load(config)
        for endpoint, entry in zip(self.listener.endpoints, self._entries, strict=True):
            endpoint.policy = policy(config, entry)

    async def _watch_certificates(self) -> None:
        """One worker says in time that a certificate ends, to the log and on the scoreboard."""
        while self._is_first:
            found = await trio.to_thread.run_sync(days_left, self._config)
            self._board.set("tls_certificate_days", int(found[0][0]) if found else 0)
            for line in running_out(self._config):
                structlog.get_logger().warning("a certificate ends", announcement=line)
            await trio.sleep(CERTIFICATES_LOOK_S)

    def figures(self) -> Mapping[str, int]:
        """For the scoreboard."""
        now = self.listener.statistics()
        return {
            "dimse_echoes_total": now.echoes,
            "dimse_objects_total": now.objects_received,
            "dimse_objects_failed_total": now.objects_failed,
            "dimse_objects_abandoned_total": now.objects_abandoned,
            "dimse_bytes_total.in": now.bytes_in,
            "dimse_bytes_total.out": now.bytes_out,
            **self._services.figures(),
        }


def check_classes(own: Iterable[Service], more: Iterable[Service]) -> None:
    """Raise ConfigError when a plugin provides a SOP class that is the archive's."""
    taken = {uid for service in own for uid in service.abstract_syntaxes} | {VERIFICATION}
    for service in more:
        for uid in service.abstract_syntaxes:
            if uid in taken or is_storage(uid, StorageRule.EVERY_OBJECT):
                raise ConfigError(f"a plugin's service {service.name} is for {uid}, the archive's own")


def policy(config: Config, entry: DicomListener) -> ListenerPolicy:
    """Who may call at one listener. Only on loopback do empty lists mean anybody."""
    dicom = config.dicom
    return ListenerPolicy(
        ae_title=config.archive.ae_title,
        check_called_title=dicom.check_called_title,
        called_titles=frozenset(dicom.called_titles),
        calling_titles=frozenset(dicom.calling_titles),
        sources=networks(dicom.sources),
        open=is_loopback(entry.host),
        identity_required=entry.identity_required,
        coerces=bool(config.coercions),
    )


def net_limits(config: Config, workers: int) -> NetLimits:
    """The listener's limits. Those on associations are the archive's: the observer adds up all workers."""
    dicom, default = config.dicom, NetLimits()
    return NetLimits(
        pdu_bytes_max=dicom.pdu_bytes_max,
        associations_max=dicom.associations_max,
        associations_per_address_max=dicom.associations_per_address_max,
        pending_connections_max=math.ceil(default.pending_connections_max / workers),
        artim_s=dicom.artim_seconds,
        idle_s=dicom.idle_seconds,
        dimse_s=dicom.dimse_seconds,
    )


def remote_aes(config: Config) -> Iterable[RemoteAe]:
    """The AEs of config.toml as the network layer knows them."""
    return tuple(map(remote_ae, config.aes))
