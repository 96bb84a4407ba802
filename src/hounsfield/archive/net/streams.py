"""Listeners of plugins: inherited sockets in, streams out, with the care that DICOM listeners take.

Who may connect is a list of networks; how many, a number for all workers; a TLS handshake has its time, and
of those that are under way the oldest of the busiest address makes room. When the archive stops, nobody is
accepted any more, and streams end for who reads them: what came whole is answered, and what had not is sent
again by its sender.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from socket import socket
from typing import Protocol

import structlog
import trio

from hounsfield.archive.errors import alone, where
from hounsfield.archive.net.accepting import AcceptDelay, Accepting, address_of
from hounsfield.archive.net.policy import Network, within
from hounsfield.archive.plugins import Serve, StreamPeer

__all__ = ["StreamEndpoint", "StreamLimits", "StreamObserver", "StreamServer"]

log = structlog.get_logger(__name__)


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


class StreamServer(Accepting[StreamEndpoint, "_UntilDrained"]):
    """One worker's part of all listeners of plugins; see :class:`Accepting`."""

    def __init__(
        self,
        endpoints: list[StreamEndpoint],
        observer: StreamObserver,
        *,
        limits: StreamLimits | None = None,
        accept_delay: AcceptDelay | None = None,
    ) -> None:
        self._limits = limits or StreamLimits()
        super().__init__(
            endpoints,
            pending_max=self._limits.handshakes_max,
            linger_s=self._limits.linger_s,
            linger_bytes_max=self._limits.linger_bytes_max,
            accept_delay=accept_delay,
        )
        self._observer = observer
        self.refused = 0

    def opened(self, endpoint: StreamEndpoint) -> int:
        """See :class:`Accepting`."""
        return self._observer.opened(endpoint.name)

    def closed(self, endpoint: StreamEndpoint) -> None:
        """See :class:`Accepting`."""
        self._observer.closed(endpoint.name)

    def no_tls(self, endpoint: StreamEndpoint, address: str, reason: str) -> None:
        """See :class:`Accepting`."""
        reason = reason or "the peer closed the connection"
        log.info("a TLS handshake failed", what=endpoint.name, address=address, reason=reason)

    async def converse(self, endpoint: StreamEndpoint, sock: socket, count: int) -> None:
        """See :class:`Accepting`."""
        try:
            address = address_of(sock)
            if address is not None and self._admits(endpoint, address, count):
                await self._serve(endpoint, sock, address)
        except Exception as error:  # noqa: BLE001 - one connection's surprise is not the others' end
            only = alone(error)
            if isinstance(only, trio.BrokenResourceError | trio.ClosedResourceError):
                log.info("a connection broke off", what=endpoint.name)
            else:
                log.error("a connection failed", what=endpoint.name, **where(only))

    def _admits(self, endpoint: StreamEndpoint, address: str, count: int) -> bool:
        if endpoint.sources and not within(address, endpoint.sources):
            reason = "source address not allowed"
        elif count > endpoint.connections_max:
            reason = f"more than {endpoint.connections_max} connections"
        else:
            return True
        self.refused += 1
        log.warning("a connection was refused", what=endpoint.name, address=address, reason=reason)
        return False

    async def _serve(self, endpoint: StreamEndpoint, sock: socket, address: str) -> None:
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        try:
            if endpoint.tls is not None:
                stream = trio.SSLStream(stream, endpoint.tls, server_side=True)
                deadline = trio.current_time() + self._limits.handshake_s
                if not await self.shake_hands(endpoint, stream, address, deadline):
                    return
            served = _UntilDrained(stream)
            with self.until_drained(served):
                await endpoint.serve(served, StreamPeer(address, endpoint.name.partition(".")[2]))
            await self.say_goodbye(stream)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)


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
