"""Listeners of plugins: inherited sockets in, streams out, with the care that DICOM listeners take.

Who may connect is a list of networks; how many, a number for all workers; a TLS handshake has its time, and
of those that are under way the oldest of the busiest address makes room. When the archive stops, nobody is
accepted any more, and streams end for who reads them: what came whole is answered, and what had not is sent
again by its sender.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from socket import IPPROTO_TCP, SO_KEEPALIVE, SOL_SOCKET, TCP_NODELAY, socket
from typing import Final, Protocol

import structlog
import trio

from hounsfield.archive.errors import alone, where
from hounsfield.archive.net.handshakes import Handshake
from hounsfield.archive.net.pending import PendingConnections
from hounsfield.archive.net.policy import Network, within
from hounsfield.archive.net.tls import why_no_tls
from hounsfield.archive.plugins import Serve, StreamPeer

__all__ = ["StreamEndpoint", "StreamLimits", "StreamObserver", "StreamServer"]

log = structlog.get_logger(__name__)

_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Times in seconds."""

    handshake_s: float = 10.0
    """Of TLS: some round trips, over a line to another hospital too."""
    handshakes_max: int = 64
    """Under way at once, of one worker: each costs a millisecond of computing, once it goes on."""
    linger_s: float = 1.0
    """After our last word, for it to arrive: closing at once may take it back."""
    linger_bytes_max: int = 1 << 20


class StreamObserver(Protocol):
    """Counts connections for all workers."""

    def opened(self, listener: str) -> int:
        """One more at this listener; how many there are now."""

    def closed(self, listener: str) -> None:
        """One less."""


@dataclass(slots=True)
class StreamEndpoint:
    """One listening socket (the caller's to close), who may connect, and what serves them."""

    name: str
    sock: socket
    serve: Serve
    sources: tuple[Network, ...] = ()
    """Empty: anybody, which is for loopback."""
    connections_max: int = 100
    tls: ssl.SSLContext | None = None


class StreamServer:
    """One worker's part of all listeners of plugins. ``serve`` once."""

    def __init__(
        self,
        endpoints: list[StreamEndpoint],
        observer: StreamObserver,
        *,
        limits: StreamLimits | None = None,
        accept_delay: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.endpoints = endpoints
        self._observer = observer
        self._limits = limits or StreamLimits()
        self._accept_delay = accept_delay
        self._pending = PendingConnections(self._limits.handshakes_max)
        self._draining = trio.Event()
        self._streams: set[_UntilDrained] = set()
        self._handshakes: set[Handshake] = set()
        self._open = 0
        self._changed = trio.Event()
        self.refused = 0

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
        """Stop accepting and end what is read; return when all connections are done. Idempotent."""
        self._draining.set()
        for handshake in list(self._handshakes):
            handshake.end("the archive is shutting down")
        for stream in list(self._streams):
            stream.drain()
        while self._open:
            await self._changed.wait()

    async def _accept(self, endpoint: StreamEndpoint, connections: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(endpoint.sock)
            if (seconds := self._accept_delay()) > 0:
                await trio.sleep(seconds)
            try:
                sock, _ = endpoint.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                continue  # another worker was faster, or the peer thought better of it
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                log.warning("accepting pauses", error=errno.errorcode.get(error.errno or 0, "?"))
                self._pending.cut_one("evicted: out of descriptors or memory")
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            sock.setblocking(False)
            self._open += 1
            count = self._observer.opened(endpoint.name)
            connections.start_soon(self._connection, endpoint, sock, count)

    async def _connection(self, endpoint: StreamEndpoint, sock: socket, count: int) -> None:
        try:
            address = self._admitted(endpoint, sock, count)
            if address is not None:
                await self._serve(endpoint, sock, address)
        except Exception as error:  # noqa: BLE001 - one connection's surprise is not the others' end
            only = alone(error)
            if isinstance(only, trio.BrokenResourceError | trio.ClosedResourceError):
                log.info("a connection broke off", what=endpoint.name)
            else:
                log.error("a connection failed", what=endpoint.name, **where(only))
        finally:
            sock.close()
            self._open -= 1
            self._observer.closed(endpoint.name)
            self._changed.set()
            self._changed = trio.Event()

    def _admitted(self, endpoint: StreamEndpoint, sock: socket, count: int) -> str | None:
        """The peer's address, None when it is not served."""
        try:
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            sock.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
            address = str(sock.getpeername()[0]).removeprefix("::ffff:")
        except OSError:  # gone before we looked
            return None
        reason = ""
        if endpoint.sources and not within(address, endpoint.sources):
            reason = "source address not allowed"
        elif count > endpoint.connections_max:
            reason = f"more than {endpoint.connections_max} connections"
        if reason:
            self.refused += 1
            log.warning("a connection was refused", what=endpoint.name, address=address, reason=reason)
            return None
        return address

    async def _serve(self, endpoint: StreamEndpoint, sock: socket, address: str) -> None:
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        try:
            if endpoint.tls is not None:
                stream = trio.SSLStream(stream, endpoint.tls, server_side=True)
                if not await self._shake_hands(endpoint, stream, address):
                    return
            served = _UntilDrained(stream)
            self._streams.add(served)
            if self._draining.is_set():
                served.drain()
            try:
                await endpoint.serve(served, StreamPeer(address, endpoint.name.partition(".")[2]))
            finally:
                self._streams.discard(served)
            await self._say_goodbye(stream)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _shake_hands(
        self, endpoint: StreamEndpoint, stream: trio.SSLStream[trio.SocketStream], address: str
    ) -> bool:
        under_way = Handshake(address, trio.current_time() + self._limits.handshake_s)
        self._handshakes.add(under_way)
        self._pending.add(under_way)
        if self._draining.is_set():
            under_way.end("the archive is shutting down")
        reason = ""
        try:
            with under_way.scope:
                try:
                    await stream.do_handshake()
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    reason = why_no_tls(error) or "the peer closed the connection"
                else:
                    return True
        finally:
            self._handshakes.discard(under_way)
            self._pending.discard(under_way)
        log.info(
            "a TLS handshake failed",
            what=endpoint.name,
            address=address,
            reason=reason or under_way.because or "too slow",
        )
        return False

    async def _say_goodbye(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        """Let our last words arrive: closing with bytes unread resets the connection."""
        left = self._limits.linger_bytes_max
        with (
            trio.move_on_after(self._limits.linger_s),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            if isinstance(stream, trio.SSLStream):
                await stream.aclose()
                return
            await stream.send_eof()
            while left > 0 and (data := await stream.receive_some(16 * 1024)):
                left -= len(data)


class _UntilDrained(trio.abc.Stream):
    """A stream of which no more is read once the archive stops; what is said still goes out."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._drained = False
        self._reading: trio.CancelScope | None = None

    def drain(self) -> None:
        self._drained = True
        if self._reading is not None:
            self._reading.cancel()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._drained:
            await trio.lowlevel.checkpoint()
            return b""
        scope = self._reading = trio.CancelScope()
        try:
            with scope:
                return await self._stream.receive_some(max_bytes)
            return b""
        finally:
            self._reading = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
