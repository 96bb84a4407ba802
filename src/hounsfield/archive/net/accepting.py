"""What our listeners do alike, whatever is spoken there: accept, shake hands, and end in good order.

Several processes accept from the same sockets: accepting is non-blocking, and losing the race for a
connection is nothing.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import structlog
import trio

from hounsfield.archive.net.pending import PendingConnections
from hounsfield.archive.net.tls import why_no_tls

__all__ = ["AcceptDelay", "Accepting", "Handshake", "address_of"]

log = structlog.get_logger(__name__)

AcceptDelay = Callable[[], float]
"""Asked before each accept: how many seconds to leave the connection to another worker; 0 takes it now."""

_ACCEPT_PAUSE_S = 0.1
"""After EMFILE and its kin: long enough for something to close, short against a device's patience."""
_LISTENER_GONE = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
_STOPPING = "the archive is shutting down"


class Place(Protocol):
    """Where is listened."""

    sock: socket.socket
    """The caller's to close."""


class Conversation(Protocol):
    """With one peer."""

    def drain(self) -> None:
        """End as soon as nothing is under way."""


P = TypeVar("P", bound=Place)
C = TypeVar("C", bound=Conversation)


class Accepting(ABC, Generic[P, C]):
    """Accepts at ``endpoints`` and serves who comes, in a task each. ``serve`` once.

    ``pending_max``: connections that are held while they are nobody's conversation, handshakes among them.
    After a last word it is waited ``linger_s`` for the peer to close, and so much is read meanwhile.
    """

    def __init__(
        self,
        endpoints: Sequence[P],
        *,
        pending_max: int,
        linger_s: float,
        linger_bytes_max: int,
        accept_delay: AcceptDelay | None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.pending = PendingConnections(pending_max)
        self.conversations: set[C] = set()
        self.open = 0
        """Connections, whatever has become of them."""
        self._linger_s = linger_s
        self._linger_bytes_max = linger_bytes_max
        self._accept_delay = accept_delay
        self._handshakes: set[Handshake] = set()
        self._draining = trio.Event()
        self._changed = trio.Event()

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
        """Stop accepting; let what is under way with each peer finish; return when all are gone. Idempotent.

        What may take for ever is bounded by the caller, who cancels ``serve`` when it has waited enough.
        """
        self._draining.set()
        for handshake in list(self._handshakes):
            handshake.end(_STOPPING)
        for conversation in list(self.conversations):
            conversation.drain()
        while self.open:
            await self._changed.wait()

    @property
    def draining(self) -> bool:
        """Whether the end has begun."""
        return self._draining.is_set()

    # ------------------------------------------------------------ what each listener says

    @abstractmethod
    def opened(self, endpoint: P) -> int:
        """Somebody connected; how many connections there are now, as far as this listener counts them."""

    @abstractmethod
    def closed(self, endpoint: P) -> None:
        """One connection less."""

    @abstractmethod
    async def converse(self, endpoint: P, sock: socket.socket, count: int) -> None:
        """Serve one connection to its end; ``count`` is what :meth:`opened` said. The socket closes then."""

    @abstractmethod
    def no_tls(self, endpoint: P, address: str, reason: str) -> None:
        """A handshake failed; ``reason`` is "" when the peer only closed the connection."""

    # ------------------------------------------------------------ what each listener uses

    @contextlib.contextmanager
    def until_drained(self, conversation: C) -> Iterator[None]:
        """While the block runs, :meth:`drain` ends ``conversation``."""
        self.conversations.add(conversation)
        if self.draining:
            conversation.drain()
        try:
            yield
        finally:
            self.conversations.discard(conversation)

    async def shake_hands(
        self, endpoint: P, stream: trio.SSLStream[trio.SocketStream], address: str, deadline: float
    ) -> bool:
        """Whether there is TLS with this peer now. Else it gets the alert that says why (RFC 8446 6.2)."""
        handshake = Handshake(address, deadline)
        self._handshakes.add(handshake)
        self.pending.add(handshake)
        if self.draining:
            handshake.end(_STOPPING)
        failed = False
        try:
            with handshake.scope:
                try:
                    await stream.do_handshake()
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    failed = True
                    self.no_tls(endpoint, address, why_no_tls(error))
                    alert = stream._outgoing.read()  # trio leaves it there, and has no other way to it
                    await self.say_goodbye(stream.transport_stream, alert)
                else:
                    return True
            if not failed:
                self.no_tls(endpoint, address, handshake.because or "too slow")
        finally:
            self._handshakes.discard(handshake)
            self.pending.discard(handshake)
        return False

    async def say_goodbye(
        self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], last: bytes = b""
    ) -> None:
        """Send ``last``, end the stream, and wait a little for the peer to close.

        Closing first, with bytes unread, would reset the connection, and take our last words back.
        """
        left = self._linger_bytes_max
        with (
            trio.move_on_after(self._linger_s),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            if isinstance(stream, trio.SSLStream):
                await stream.aclose()
                return
            if last:
                await stream.send_all(last)
            await stream.send_eof()
            while left > 0 and (data := await stream.receive_some(16 * 1024)):
                left -= len(data)

    # ------------------------------------------------------------ accepting

    async def _accept(self, endpoint: P, connections: trio.Nursery) -> None:
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
                self.pending.cut_one("evicted: out of descriptors or memory")
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            sock.setblocking(False)
            self.open += 1
            connections.start_soon(self._connection, endpoint, sock, self.opened(endpoint))

    async def _connection(self, endpoint: P, sock: socket.socket, count: int) -> None:
        try:
            await self.converse(endpoint, sock, count)
        finally:
            sock.close()
            self.open -= 1
            self.closed(endpoint)
            self._changed.set()
            self._changed = trio.Event()


class Handshake:
    """A TLS handshake under way, which can be cut."""

    def __init__(self, address: str, deadline: float) -> None:
        self.address = address
        self.because = ""
        self.scope = trio.CancelScope(deadline=deadline)

    def end(self, because: str) -> None:
        """Cut it, now; ``because`` is for the log."""
        self.because = self.because or because
        self.scope.cancel()


def address_of(sock: socket.socket) -> str | None:
    """The address of a peer that has just connected, None when it is gone already. Sets the usual options."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return str(sock.getpeername()[0]).removeprefix("::ffff:")
    except OSError:
        return None
