"""Bytes in and out of one peer: over a plain socket used raw, or over any trio stream (TLS).

There is no scope for each wait. A transport has one :class:`Deadline`, the cancel scope of the whole
connection, which is moved before something may block and moved away after it; what does not block costs
no timer at all.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import trio

from hounsfield.archive.net.errors import ConnectionLostError, PeerGoneError, TlsError
from hounsfield.archive.net.tls import why_no_tls
from hounsfield.archive.wire import Buffer

__all__ = ["Deadline", "SocketTransport", "StreamTransport", "Transport"]

_STREAM_READ_BYTES = 64 * 1024  # TLS records are 16 KiB: more than a few at once is not to be had
_PEEKED_BYTES = 1024  # the response to a C-STORE, with two UIDs and a comment, is half of that at most
_STREAM_WRITE_BYTES = 64 * 1024  # what is joined for one write, and what a slow peer must take in time


class Deadline:
    """The time at which whatever the connection waits for is given up."""

    __slots__ = ("scope",)

    def __init__(self, scope: trio.CancelScope) -> None:
        self.scope = scope

    def at(self, time: float) -> None:
        """What blocks from here on ends at ``time`` (of trio's clock)."""
        self.scope.deadline = time

    def off(self) -> None:
        """What blocks from here on may take as long as it likes."""
        self.scope.deadline = math.inf


class Transport(Protocol):
    """The two ways to a peer have this in common."""

    bytes_in: int
    bytes_out: int

    def receive_nowait(self, view: memoryview) -> int:
        """Receive what is there into ``view``; 0 at the end, -1 when nothing is there yet."""

    def peek_nowait(self) -> bytes:
        """The first bytes of what is there, without taking them: a short message whole."""

    def take_peeked(self, count: int) -> None:
        """Drop bytes that were peeked at."""

    async def receive(self, view: memoryview) -> int:
        """Wait until something is received into ``view``; its length, 0 when the peer closed or vanished."""

    def send_nowait(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """Send what can be sent without waiting; what is left. Raises PeerGoneError."""

    async def send_some(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """Wait until the peer takes some of ``buffers``; what is left. Raises PeerGoneError."""

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Give all of ``buffers`` to the peer. Raises PeerGoneError."""

    async def aclose(self) -> None:
        """Close at once. Idempotent."""


def acknowledge_at_once(sock: socket.socket | trio.socket.SocketType) -> None:
    """Have the kernel acknowledge what came, and what comes next, without waiting for more.

    Most toolkits leave Nagle's algorithm on and write a message in two pieces: the second waits for the
    acknowledgement of the first, which the kernel holds back for 40 ms in the hope of an answer to put it on.
    That is 40 ms for each object. The kernel forgets it again: it is said before each wait.
    """
    with suppress(OSError):  # not TCP, or gone: whoever reads finds out
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class SocketTransport:
    """A connected, non-blocking TCP socket, which is this transport's to close."""

    __slots__ = ("_sock", "_unyielded", "_unyielded_max", "bytes_in", "bytes_out")

    def __init__(self, sock: socket.socket, unyielded_bytes_max: int) -> None:
        self._sock = sock
        self._unyielded = 0
        self._unyielded_max = unyielded_bytes_max
        self.bytes_in = self.bytes_out = 0

    def receive_nowait(self, view: memoryview) -> int:
        try:
            count = self._sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return -1
        except OSError:  # reset, timed out by keep-alive, closed: the peer is gone
            return 0
        self.bytes_in += count
        self._unyielded += count
        return count

    def peek_nowait(self) -> bytes:
        try:
            return self._sock.recv(_PEEKED_BYTES, socket.MSG_PEEK)
        except OSError:  # nothing is there, or the peer is gone: whoever reads finds out
            return b""

    def take_peeked(self, count: int) -> None:
        self.bytes_in += len(self._sock.recv(count))

    async def receive(self, view: memoryview) -> int:
        while True:
            try:
                acknowledge_at_once(self._sock)
                await trio.lowlevel.wait_readable(self._sock)
            except (OSError, ValueError, trio.ClosedResourceError):
                return 0
            self._unyielded = 0
            count = self.receive_nowait(view)
            if count >= 0:
                return count

    async def breathe(self) -> None:
        """Let other tasks run, if this connection has kept the loop to itself for long."""
        if self._unyielded > self._unyielded_max:
            self._unyielded = 0
            await trio.lowlevel.checkpoint()

    def send_nowait(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        try:
            sent = self._sock.sendmsg(buffers)
        except (BlockingIOError, InterruptedError):
            return buffers
        except OSError as error:
            raise PeerGoneError("the peer closed the connection") from error
        self.bytes_out += sent
        for index, buffer in enumerate(buffers):
            if sent < len(buffer):
                return [memoryview(buffer)[sent:], *buffers[index + 1 :]]
            sent -= len(buffer)
        return ()

    async def send_some(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        try:
            await trio.lowlevel.wait_writable(self._sock)
        except (OSError, ValueError, trio.ClosedResourceError) as error:
            raise PeerGoneError("the connection is closed") from error
        return self.send_nowait(buffers)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        buffers = self.send_nowait(buffers)
        while buffers:
            buffers = await self.send_some(buffers)

    async def aclose(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


class StreamTransport:
    """Any trio stream, which is this transport's to close.

    ``called`` is whom we called over it with TLS. In TLS 1.3 the other side judges our certificate when the
    handshake is over for us, so :meth:`receive` may raise TlsError (its alert came in place of an answer) or
    ConnectionLostError (it hung up, and the alert with it).
    """

    __slots__ = ("_called", "_sock", "_stream", "bytes_in", "bytes_out")

    def __init__(self, stream: trio.abc.Stream, called: str = "") -> None:
        self._stream = stream
        self._called = called
        below = getattr(stream, "transport_stream", None)
        self._sock = below.socket if isinstance(below, trio.SocketStream) else None
        self.bytes_in = self.bytes_out = 0

    def receive_nowait(self, view: memoryview) -> int:  # noqa: ARG002 - the transports' common shape
        return -1

    def peek_nowait(self) -> bytes:
        return b""

    def take_peeked(self, count: int) -> None:
        """Never: there is nothing to peek at."""

    async def receive(self, view: memoryview) -> int:
        if self._sock is not None:
            acknowledge_at_once(self._sock)
        try:
            data = await self._stream.receive_some(min(len(view), _STREAM_READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if self._called and "alert" in (why := why_no_tls(error)):
                raise TlsError(f"{self._called} ended TLS: {why}") from error
            data = b""
        if self._called and not data and not self.bytes_in:
            raise ConnectionLostError(
                f"{self._called} closed the connection after the TLS handshake: perhaps it does not accept "
                "our certificate"
            )
        view[: len(data)] = data
        self.bytes_in += len(data)
        return len(data)

    async def breathe(self) -> None:
        """Streams have checkpoints of their own."""

    def send_nowait(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        return buffers

    async def send_some(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """As for a socket. A response's few small buffers leave in one record, a long one in several."""
        taken: list[memoryview] = []
        rest: list[Buffer] = []
        room = _STREAM_WRITE_BYTES
        for buffer in buffers:
            view = memoryview(buffer)
            if room:
                taken.append(view[:room])
            if len(view) > room:
                rest.append(view[room:])
            room = max(0, room - len(view))
        data = taken[0] if len(taken) == 1 else b"".join(taken)
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerGoneError("the peer closed the connection") from error
        self.bytes_out += len(data)
        return rest

    async def send(self, buffers: Sequence[Buffer]) -> None:
        while buffers:
            buffers = await self.send_some(buffers)

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)
