"""The DICOM listener of one worker: its policy and limits from config.toml, its figures on the scoreboard."""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from hounsfield.archive.app.ae_registry import AeRegistry, remote_ae
from hounsfield.archive.app.boot import ChannelClosed
from hounsfield.archive.app.resources import Resources
from hounsfield.archive.app.scoreboard import Scoreboard
from hounsfield.archive.config import Config, DicomListener, is_loopback
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.listener import Endpoint, Listener
from hounsfield.archive.net.policy import ListenerPolicy, RemoteAe, networks
from hounsfield.archive.net.records import CallRecord, ListenerObserver
from hounsfield.archive.net.tls import server_context

# Calls waiting to be told to the supervisor; past it the newest are dropped, the counters still count them.
CALLS_WAITING_MAX = 256


class BoardObserver(ListenerObserver):
    """Counts on the scoreboard, so that limits hold for the archive; passes calls on for ``ae recent``."""

    def __init__(self, board: Scoreboard) -> None:
        super().__init__()
        self._board = board
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
        self._board.table_cell("associations_from", address).add()

    def association_closed(self, address: str) -> None:
        self._open_cell.add(-1)
        self._board.table_cell("associations_from", address).add(-1)

    def associations_open(self) -> int:
        return self._open_cell.total()

    def associations_from(self, address: str) -> int:
        return self._board.table_cell("associations_from", address).total()

    def association_aborted(self) -> None:
        self._aborted.add()

    def called(self, call: CallRecord) -> None:
        self._board.add(f"associations_total.{'accepted' if call.outcome == 'accepted' else 'refused'}")
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
    """The listener, and what changes in it when the configuration is loaded anew."""

    def __init__(self, resources: Resources, engine: Engine) -> None:
        config, board = resources.config, resources.board
        self.registry = AeRegistry(
            engine, remote_aes(config), partial(resources.tell_supervisor, {"type": "aes-changed"})
        )
        self._observer = BoardObserver(board)
        self._tell = resources.tell_supervisor
        self._entries: list[DicomListener] = []
        endpoints = []
        for fd, sock in resources.listeners:
            if fd.kind == "dicom":
                entry = config.dicom.listeners[fd.index]
                self._entries.append(entry)
                endpoints.append(Endpoint(sock, policy(config, entry), _tls(entry)))
        self.listener = Listener(
            engine,
            endpoints,
            limits=net_limits(config, resources.boot.workers),
            observer=self._observer,
            accept_delay=board.accept_delay,
        )

    async def report(self) -> None:
        """Pass calls on to the supervisor, until cancelled."""
        await self._observer.tell(self._tell)

    async def load(self, config: Config) -> None:
        """Use the lists of ``config``, and the AEs added since, for the next call; open associations stay."""
        self.registry.configure(remote_aes(config))
        await self.registry.refresh()
        self.listener.aes = self.registry.known
        for endpoint, entry in zip(self.listener.endpoints, self._entries, strict=True):
            endpoint.policy = policy(config, entry)

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
        }


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


def _tls(entry: DicomListener) -> ssl.SSLContext | None:
    if not entry.tls:
        return None
    client_ca = Path(entry.tls_client_ca) if entry.tls_client_ca else None
    return server_context(Path(entry.tls_certificate), Path(entry.tls_key), client_ca=client_ca)
