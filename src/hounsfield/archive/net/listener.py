"""The DICOM listener: inherited listening sockets in, associations out, and an orderly end.

Several processes accept from the same sockets: accepting is non-blocking, and losing the race for a
connection is nothing.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
import trio

from hounsfield.archive.errors import where
from hounsfield.archive.net.certificates import PeerCertificate
from hounsfield.archive.net.connection import Connection
from hounsfield.archive.net.handshakes import Handshake
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.pending import PendingConnections
from hounsfield.archive.net.policy import ListenerPolicy, RemoteAe
from hounsfield.archive.net.providers import Counters, ObjectSink, Provider, StoreProvider, echo
from hounsfield.archive.net.records import CallRecord, ListenerObserver, ListenerStatistics
from hounsfield.archive.net.services import Identify, Service
from hounsfield.archive.net.tls import why_no_tls
from hounsfield.archive.net.transport import SocketTransport, StreamTransport
from hounsfield.archive.wire import CEchoRequest, Command, CStoreRequest, WireLimits

__all__ = ["Endpoint", "Listener"]

log = structlog.get_logger(__name__)

AcceptDelay = Callable[[], float]
"""Asked before each accept: how many seconds to leave the connection to another worker; 0 takes it now."""

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_PAUSE_S = 0.1
"""After EMFILE and its kin: long enough for something to close, short against a device's patience."""
_LISTENER_GONE = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)


@dataclass(slots=True)
class Endpoint:
    """One listening socket (the caller's to close) and who may call there. ``policy`` may be replaced."""

    sock: socket.socket
    policy: ListenerPolicy
    tls: ssl.SSLContext | None = None


class Listener:
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
        self.endpoints = tuple(endpoints)
        self.limits = limits or NetLimits()
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
        self._accept_delay = accept_delay
        self._connections: set[Connection] = set()
        self._pending = PendingConnections(self.limits.pending_connections_max)
        self._handshakes: set[Handshake] = set()
        self._associations = 0
        self._open = 0
        self._draining = trio.Event()
        self._changed = trio.Event()

    # ------------------------------------------------------------ life

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept until :meth:`drain`, then return when the last connection is done. Cancelling cuts them."""
        async with trio.open_nursery() as connections, trio.open_nursery() as acceptors:
            for endpoint in self.endpoints:
                endpoint.sock.setblocking(False)
                acceptors.start_soon(self._accept, endpoint, connections)
            task_status.started()
            await self._draining.wait()
            acceptors.cancel_scope.cancel()

    async def drain(self) -> None:
        """Stop accepting; let what is under way on each association finish; return when all are gone.

        Associations between two messages are aborted at once. Messages are bounded by their limits, long
        operations only by the caller, who cancels ``serve`` when it has waited enough. Idempotent.
        """
        self._draining.set()
        for handshake in list(self._handshakes):
            handshake.end("the archive is shutting down")
        for connection in list(self._connections):
            connection.drain()
        while self._open:
            await self._changed.wait()

    @property
    def draining(self) -> bool:
        """Whether the end has begun."""
        return self._draining.is_set()

    def statistics(self) -> ListenerStatistics:
        """The figures of this moment."""
        sums = Counters()
        sums.add(self.counters)
        for connection in self._connections:
            self._count(sums, connection)
        totals: dict[str, Any] = {name: getattr(sums, name) for name in Counters.__slots__}
        return ListenerStatistics(connections_open=self._open, associations_open=self._associations, **totals)

    @staticmethod
    def _count(sums: Counters, connection: Connection) -> None:
        sums.add(connection.counters)
        sums.bytes_in += connection.bytes_in
        sums.bytes_out += connection.bytes_out

    # ------------------------------------------------------------ what connections report

    def request_came(self, connection: Connection) -> None:
        """The connection is not pending any more."""
        self._pending.discard(connection)

    def refused(self, connection: Connection) -> None:
        """It has its answer, and is pending until it is closed."""
        self._pending.add(connection)

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

    # ------------------------------------------------------------ accepting

    async def _accept(self, endpoint: Endpoint, connections: trio.Nursery) -> None:
        listening, delay = endpoint.sock, self._accept_delay
        while True:
            await trio.lowlevel.wait_readable(listening)
            if delay is not None and (seconds := delay()) > 0:
                await trio.sleep(seconds)
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                continue  # another worker was faster, or the peer thought better of it
            except OSError as error:
                if error.errno in _LISTENER_GONE:
                    raise
                log.warning("accepting pauses", error=errno.errorcode.get(error.errno or 0, "?"))
                self._pending.cut_one("evicted: out of descriptors or memory")
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            sock.setblocking(False)
            self.counters.connections_total += 1
            self._open += 1
            self.observer.connection_opened()
            connections.start_soon(self._serve_socket, endpoint, sock)

    async def _serve_socket(self, endpoint: Endpoint, sock: socket.socket) -> None:
        began = trio.current_time()
        try:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                address = str(sock.getpeername()[0]).removeprefix("::ffff:")
            except OSError:  # gone before we looked
                self.counters.connections_failed += 1
                return
            transport: SocketTransport | StreamTransport
            certificate: PeerCertificate | None = None
            if endpoint.tls is None:
                transport = SocketTransport(sock, self.limits.unyielded_bytes_max)
            else:
                stream = await self._handshake(sock, endpoint.tls, address, began)
                if stream is None:
                    return
                transport = StreamTransport(stream)
                shown = stream.getpeercert(binary_form=True)
                certificate = PeerCertificate.of(shown) if shown else None
            await self._run(Connection(self, endpoint, transport, address, certificate, began=began))
        except Exception as error:  # noqa: BLE001 - one connection's surprise is not the others' end
            log.error("a connection failed", **where(error))
        finally:
            sock.close()
            self._open -= 1
            self.observer.connection_closed()
            self._changed.set()
            self._changed = trio.Event()

    async def _run(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._pending.add(connection)
        if self.draining:
            connection.drain()
        try:
            await connection.run()
        finally:
            self._pending.discard(connection)
            self._connections.discard(connection)
            self._count(self.counters, connection)

    async def _handshake(
        self, sock: socket.socket, context: ssl.SSLContext, address: str, began: float
    ) -> trio.SSLStream[trio.SocketStream] | None:
        stream = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(sock)), context, server_side=True
        )
        under_way = Handshake(address, began + self.limits.artim_s)
        self._handshakes.add(under_way)
        self._pending.add(under_way)
        if self.draining:
            under_way.end("the archive is shutting down")
        failed = False
        try:
            with under_way.scope:
                try:
                    await stream.do_handshake()
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    failed = True
                    self._note_no_tls(address, why_no_tls(error))
                    await self._send_alert(stream)
                else:
                    return stream
            if not failed:
                self._note_no_tls(address, under_way.because or "too slow")
        finally:
            self._handshakes.discard(under_way)
            self._pending.discard(under_way)
        await trio.aclose_forcefully(stream)
        return None

    def _note_no_tls(self, address: str, reason: str) -> None:
        self.counters.connections_failed += 1
        log.info("a TLS handshake failed", address=address, reason=reason or "the peer closed the connection")
        if reason:
            record = CallRecord(time.time(), address, "", "", "refused", f"no TLS: {reason}")
            self.observer.handshake_failed(record)

    async def _send_alert(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        """Send the alert that says why (RFC 8446 6.2), which trio leaves where it is, and wait a little for
        the peer to close: closing first would reset the connection, and its log would not have the reason.
        """
        alert = stream._outgoing.read()  # trio has no other way to it
        below, left = stream.transport_stream, self.limits.linger_bytes_max
        with (
            trio.move_on_after(self.limits.linger_s),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            if alert:
                await below.send_all(alert)
                await below.send_eof()
                while left > 0 and (data := await below.receive_some(16 * 1024)):
                    left -= len(data)


def _fitting(wire: WireLimits, limits: NetLimits) -> WireLimits:
    """A receive buffer of two announced PDUs at least: a fast sender is then read in few calls."""
    return replace(wire, receive_buffer_bytes=max(wire.receive_buffer_bytes, 2 * limits.pdu_bytes_max))
