"""The server: listening sockets in, connections out, and an orderly end.

Several processes may call :meth:`HttpServer.serve` on the same inherited listening socket: accepting is non-
blocking, and losing the race for a connection is nothing.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import structlog
import trio

from .asgi import AsgiApp, PeerInfo, lifespan
from .connection import Connection
from .errors import without_values
from .limits import HttpLimits
from .records import Counters, HttpStatistics, OnRequest
from .responses import problem_response
from .tls import peer_info
from .tls_transport import TlsTransport, handshake
from .transport import SocketTransport, StreamTransport

AcceptGate = Callable[[], float]
"""Asked before each accept: how many seconds to leave the connection to another worker; 0 takes it now."""

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_PAUSE_S = 0.1
"""After EMFILE and its kin: long enough for something to close, short against a client's patience."""
_LISTENER_GONE = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)

log = structlog.get_logger(__name__)


class HttpServer:
    """Serves one ASGI 3 application over HTTP/1.1 and WebSocket. One per loop; ``serve`` may be called
    once."""

    def __init__(
        self,
        app: AsgiApp,
        limits: HttpLimits | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        accept_gate: AcceptGate | None = None,
        on_request: OnRequest | None = None,
        root_path: str = "",
    ) -> None:
        self.app = app
        self.limits = limits or HttpLimits()
        self.on_request = on_request
        self.counters = Counters()
        self.draining = False
        self._ssl_context = ssl_context
        self._accept_gate = accept_gate
        self._root_path = root_path
        self._state: dict[str, Any] = {}
        self._connections: set[Connection] = set()
        self._open = 0
        self._drain = trio.Event()
        self._changed = trio.Event()

    def statistics(self) -> HttpStatistics:
        """The counters of this moment."""
        counters = {name: getattr(self.counters, name) for name in Counters.__slots__}
        return HttpStatistics(
            connections_open=self._open,
            connections_idle=sum(connection.idle for connection in self._connections),
            **counters,
        )

    def drain(self) -> None:
        """Stop accepting, close idle connections, let requests in flight finish; ``serve`` returns after
        that.

        What is not done after ``grace_s`` is cancelled. Idempotent; callable from a signal's task.
        """
        if self.draining:
            return
        self.draining = True
        self._drain.set()
        for connection in list(self._connections):
            connection.close_if_idle()

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener | socket.socket],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the application's lifespan and serve ``listeners`` until :meth:`drain`, or cancellation (at
        once).

        The listening sockets stay open: they belong to the caller (and perhaps to other processes too).
        Raises :class:`~.errors.LifespanError` when the application does not start.
        """
        socks = [_raw_listener(listener) for listener in listeners]
        async with (
            lifespan(self.app, self.limits.lifespan_s) as self._state,
            trio.open_nursery() as connections,
        ):
            async with trio.open_nursery() as acceptors:
                for sock in socks:
                    acceptors.start_soon(self._accept, sock, connections)
                task_status.started()
                await self._drain.wait()
                acceptors.cancel_scope.cancel()
            await self._finish(connections)

    async def serve_stream(self, stream: trio.abc.Stream, *, client: tuple[str, int] | None = None) -> None:
        """Serve one stream until it ends: tests, and transports that are not sockets. No lifespan."""
        self._open += 1
        try:
            transport = StreamTransport(stream, self.limits, self.counters)
            await self._run(Connection(self, transport, PeerInfo(client=client, state=self._state)))
        finally:
            self._close_slot()

    async def _finish(self, connections: trio.Nursery) -> None:
        """Let the connections end, for ``grace_s`` at most."""
        with trio.move_on_after(self.limits.grace_s) as grace:
            for connection in list(self._connections):
                if connection.websocket is not None:
                    connections.start_soon(connection.websocket.go_away)
            while self._open:
                await self._changed.wait()
        if grace.cancelled_caught:
            log.warning("drain: the grace time ended with connections open", connections=self._open)
        connections.cancel_scope.cancel()

    # -- accepting

    async def _accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        gate = self._accept_gate
        paused = False
        while True:
            await trio.lowlevel.wait_readable(listener)
            if gate is not None and (delay := gate()) > 0:
                await trio.sleep(delay)
            full = self._open >= self.limits.connections_max and not await self._make_room()
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                continue  # another worker was faster, or the peer thought better of it
            except OSError as error:
                if error.errno in _LISTENER_GONE:
                    raise
                if error.errno in _OUT_OF_RESOURCES:
                    self.counters.accept_pauses += 1
                    if not paused:
                        log.error("accepting pauses: out of descriptors or memory", errno=error.errno)
                    paused = True
                    self._evict_idle()
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            paused = False
            sock.setblocking(False)
            self.counters.connections_total += 1
            if full:
                self._refuse(sock)
                continue
            self._open += 1
            connections.start_soon(self._serve_socket, sock)

    async def _make_room(self) -> bool:
        """Wait ``refuse_after_s`` for a slot, having asked the longest idle connection to go."""
        self._evict_idle()
        with trio.move_on_after(self.limits.refuse_after_s):
            while self._open >= self.limits.connections_max:
                await self._changed.wait()
        return self._open < self.limits.connections_max

    def _evict_idle(self) -> None:
        idle = [connection for connection in self._connections if connection.idle]
        if idle:
            min(idle, key=lambda connection: connection.idle_since).close_if_idle()

    def _refuse(self, sock: socket.socket) -> None:
        self.counters.refused += 1
        with contextlib.closing(sock), contextlib.suppress(OSError):
            if self._ssl_context is None:
                wait = (b"retry-after", b"2")
                sock.send(problem_response(503, "the server is full", close=True, headers=[wait]))
                sock.recv(64 * 1024)  # closing with bytes unread sends a reset, which overtakes the answer

    async def _serve_socket(self, sock: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client, server = _address(sock.getpeername), _address(sock.getsockname)
            if self._ssl_context is None:
                transport = SocketTransport(sock, self.limits, self.counters)
                peer = PeerInfo(client=client, server=server, state=self._state, root_path=self._root_path)
                await self._run(Connection(self, transport, peer))
            else:
                await self._serve_tls(sock, self._ssl_context, client, server)
        except Exception as error:  # noqa: BLE001 - see below
            # One connection's surprise is not the others' end.
            self.counters.app_errors += 1
            log.error("a connection failed", **without_values(error))
        finally:
            sock.close()
            self._close_slot()

    async def _serve_tls(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        client: tuple[str, int] | None,
        server: tuple[str, int | None] | None,
    ) -> None:
        tls: ssl.SSLSocket | None = None
        with trio.move_on_after(self.limits.tls_handshake_s) as scope:
            try:
                tls = await handshake(sock, context)
            except OSError:
                self.counters.parse_errors += 1
                return
        if tls is None or scope.cancelled_caught:
            self.counters.timed_out += 1
            return
        peer = PeerInfo(
            client=client, server=server, tls=peer_info(tls), state=self._state, root_path=self._root_path
        )
        await self._run(Connection(self, TlsTransport(tls, self.limits, self.counters), peer))

    async def _run(self, connection: Connection) -> None:
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def _close_slot(self) -> None:
        self._open -= 1
        self._changed.set()
        self._changed = trio.Event()


def _raw_listener(listener: trio.SocketListener | socket.socket) -> socket.socket:
    """The stdlib socket of a listener, non-blocking. Of trio's, a duplicate that shares its queue."""
    if isinstance(listener, trio.SocketListener):
        raw = socket.fromfd(listener.socket.fileno(), listener.socket.family, listener.socket.type)
    else:
        raw = listener
    raw.setblocking(False)
    return raw


def _address(get: Callable[[], Any]) -> Any:
    """Host and port of an address, ``None`` for what has none (Unix sockets, a peer already gone)."""
    try:
        address = get()
    except OSError:
        return None
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None
