"""The DICOM listener: inherited listening sockets in, associations out, and an orderly end."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
import trio

from hounsfield.archive.errors import where
from hounsfield.archive.net.accepting import AcceptDelay, Accepting, address_of
from hounsfield.archive.net.certificates import PeerCertificate
from hounsfield.archive.net.connection import Connection
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.policy import ListenerPolicy, RemoteAe
from hounsfield.archive.net.providers import Counters, ObjectSink, Provider, StoreProvider, echo
from hounsfield.archive.net.records import CallRecord, ListenerObserver, ListenerStatistics
from hounsfield.archive.net.services import Identify, Service
from hounsfield.archive.net.transport import SocketTransport, StreamTransport
from hounsfield.archive.wire import CEchoRequest, Command, CStoreRequest, WireLimits

__all__ = ["Endpoint", "Listener"]

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Endpoint:
    """One listening socket (the caller's to close) and who may call there. ``policy`` may be replaced."""

    sock: socket.socket
    policy: ListenerPolicy
    tls: ssl.SSLContext | None = None


class Listener(Accepting[Endpoint, Connection]):
    """Accepts associations at ``endpoints``, stores what comes, and performs ``services``.

    One per worker; ``serve`` once.
    """

    def __init__(
        self,
        sink: ObjectSink,
        endpoints: Sequence[Endpoint],
        *,
        limits: NetLimits | None = None,
        wire_limits: WireLimits | None = None,
        aes: Mapping[str, RemoteAe] | None = None,
        services: Sequence[Service] = (),
        identify: Identify | None = None,
        observer: ListenerObserver | None = None,
        accept_delay: AcceptDelay | None = None,
    ) -> None:
        self.limits = limits or NetLimits()
        super().__init__(
            endpoints,
            pending_max=self.limits.pending_connections_max,
            linger_s=self.limits.linger_s,
            linger_bytes_max=self.limits.linger_bytes_max,
            accept_delay=accept_delay,
        )
        self.wire_limits = _fitting(wire_limits or WireLimits(), self.limits)
        self.aes: Mapping[str, RemoteAe] = aes or {}
        """Known application entities by title; may be replaced at any time."""
        self.services = tuple(services)
        self.provided = {
            (abstract_syntax, request): provider
            for service in services
            for abstract_syntax in service.abstract_syntaxes
            for request, provider in service.providers.items()
        }
        """What performs a request in a task of its own, by abstract syntax and class of the request."""
        self.identify = identify
        """Who a caller is; without it, identities are neither verified nor answered."""
        self.observer = observer or ListenerObserver()
        self.counters = Counters()
        self.providers: dict[type[Command], Provider] = {
            CEchoRequest: echo,
            CStoreRequest: StoreProvider(sink, not_for={syntax for syntax, _ in self.provided}),
        }
        self._associations = 0

    # ------------------------------------------------------------ figures

    def statistics(self) -> ListenerStatistics:
        """The figures of this moment."""
        sums = Counters()
        sums.add(self.counters)
        for connection in self.conversations:
            self._count(sums, connection)
        totals: dict[str, Any] = {name: getattr(sums, name) for name in Counters.__slots__}
        return ListenerStatistics(connections_open=self.open, associations_open=self._associations, **totals)

    @staticmethod
    def _count(sums: Counters, connection: Connection) -> None:
        sums.add(connection.counters)
        sums.bytes_in += connection.bytes_in
        sums.bytes_out += connection.bytes_out

    # ------------------------------------------------------------ what connections report

    def request_came(self, connection: Connection) -> None:
        """The connection is not pending any more."""
        self.pending.discard(connection)

    def refused(self, connection: Connection) -> None:
        """It has its answer, and is pending until it is closed."""
        self.pending.add(connection)

    def association_opened(self, address: str) -> None:
        """An association is about to be judged: it counts from here on."""
        self._associations += 1
        self.observer.association_opened(address)

    def association_closed(self, address: str) -> None:
        """It is over, or was refused."""
        self._associations -= 1
        self.observer.association_closed(address)

    def called(self, call: CallRecord) -> None:
        """An association request was answered."""
        if call.outcome == "accepted":
            self.counters.associations_accepted += 1
        else:
            self.counters.associations_refused += 1
        log.info(
            "association accepted" if call.outcome == "accepted" else "association refused",
            address=call.address,
            calling_ae=call.calling_ae,
            called_ae=call.called_ae,
            reason=call.reason or None,
        )
        self.observer.called(call)

    # ------------------------------------------------------------ connections

    def opened(self, endpoint: Endpoint) -> int:  # noqa: ARG002 - one figure for all of them
        """See :class:`Accepting`."""
        self.counters.connections_total += 1
        self.observer.connection_opened()
        return self.open

    def closed(self, endpoint: Endpoint) -> None:  # noqa: ARG002
        """See :class:`Accepting`."""
        self.observer.connection_closed()

    def no_tls(self, endpoint: Endpoint, address: str, reason: str) -> None:  # noqa: ARG002
        """See :class:`Accepting`."""
        self.counters.connections_failed += 1
        log.info("a TLS handshake failed", address=address, reason=reason or "the peer closed the connection")
        if reason:
            record = CallRecord(time.time(), address, "", "", "refused", f"no TLS: {reason}")
            self.observer.handshake_failed(record)

    async def converse(self, endpoint: Endpoint, sock: socket.socket, count: int) -> None:  # noqa: ARG002
        """See :class:`Accepting`."""
        began = trio.current_time()
        try:
            address = address_of(sock)
            if address is None:  # gone before we looked
                self.counters.connections_failed += 1
                return
            transport: SocketTransport | StreamTransport
            certificate: PeerCertificate | None = None
            if endpoint.tls is None:
                transport = SocketTransport(sock, self.limits.unyielded_bytes_max)
            else:
                stream = trio.SSLStream(
                    trio.SocketStream(trio.socket.from_stdlib_socket(sock)), endpoint.tls, server_side=True
                )
                if not await self.shake_hands(endpoint, stream, address, began + self.limits.artim_s):
                    await trio.aclose_forcefully(stream)
                    return
                transport = StreamTransport(stream)
                shown = stream.getpeercert(binary_form=True)
                certificate = PeerCertificate.of(shown) if shown else None
            await self._run(Connection(self, endpoint, transport, address, certificate, began=began))
        except Exception as error:  # noqa: BLE001 - one connection's surprise is not the others' end
            log.error("a connection failed", **where(error))

    async def _run(self, connection: Connection) -> None:
        self.pending.add(connection)
        with self.until_drained(connection):
            try:
                await connection.run()
            finally:
                self.pending.discard(connection)
                self._count(self.counters, connection)


def _fitting(wire: WireLimits, limits: NetLimits) -> WireLimits:
    """A receive buffer of two announced PDUs at least: a fast sender is then read in few calls."""
    return replace(wire, receive_buffer_bytes=max(wire.receive_buffer_bytes, 2 * limits.pdu_bytes_max))
