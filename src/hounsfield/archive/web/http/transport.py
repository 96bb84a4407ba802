"""Bytes in and out of one peer: over a plain socket (one ``sendmsg`` for head and body), or over any trio
stream.

Timeouts of writing live here because only here is it known that the peer's window is shut: a write that does
not block costs no timer. Reading has none: what a slow read means depends on who reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Sequence

import trio

from .errors import ClientGoneError
from .limits import HttpLimits
from .records import Counters

Buffer = bytes | bytearray | memoryview

UNYIELDED_BYTES_MAX = 1024 * 1024
"""A peer faster than us never blocks: after so many bytes the other tasks get a turn."""

_READ_COST = UNYIELDED_BYTES_MAX // 4
"""A read counts for at least so much: a peer whose next request is always there gets a few, then waits."""

_GATHER_MAX = 512
"""Buffers in one ``sendmsg``: Linux refuses more than 1,024 (IOV_MAX)."""

_STREAM_PIECE = 64 * 1024
"""Written to a stream at once: progress, and so the stall timer, is seen piece by piece."""
_JOIN_BELOW = 16 * 1024
"""Two small writes on a stream are two TLS records and two segments: copying so little is cheaper."""


class SocketTransport:
    """A connected, non-blocking TCP (or Unix) socket, used raw: trio's wrapper costs a checkpoint each
    call."""

    __slots__ = ("_counters", "_limits", "_sock", "_unyielded", "torn")

    def __init__(self, sock: socket.socket, limits: HttpLimits, counters: Counters) -> None:
        self._sock = sock
        self._limits = limits
        self._counters = counters
        self._unyielded = 0
        self.torn = False
        """Whether a message was cut in the middle: nothing sensible can follow it."""

    def receive_nowait(self, size: int) -> bytes | None:
        """What has arrived, ``b""`` at the end; ``None`` when nothing has, or others must have a turn."""
        if self._unyielded > UNYIELDED_BYTES_MAX:
            return None
        try:
            data = self._sock.recv(size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            return self._receive_error(error)
        self._counters.bytes_in += len(data)
        self._unyielded += max(len(data), _READ_COST)
        return data

    def _receive_error(self, error: OSError) -> bytes | None:  # noqa: ARG002 - TLS looks at it
        """A reset is an end like any other to a reader."""
        return b""

    def has_data(self) -> bool:
        """Whether bytes have arrived that nobody has read."""
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    async def receive(self, size: int) -> bytes:
        """Wait for bytes: at most ``size`` of them, ``b""`` when the peer closed or reset."""
        while True:
            self._unyielded = 0
            try:
                await trio.lowlevel.wait_readable(self._sock)
            except (OSError, trio.ClosedResourceError):
                return b""
            data = self.receive_nowait(size)
            if data is not None:
                return data

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Give all of ``buffers`` to the kernel, in one call when it takes them. They may be reused on
        return.

        Raises :class:`ClientGoneError` when the peer is gone or does not read for ``write_stall_s``.
        """
        try:
            sent = self._sock.sendmsg(buffers if len(buffers) <= _GATHER_MAX else buffers[:_GATHER_MAX])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.torn = True
            raise ClientGoneError("the peer closed the connection") from error
        self._counters.bytes_out += sent
        total = 0
        for buffer in buffers:
            total += len(buffer)
        if sent == total:
            self._unyielded += sent
            if self._unyielded > UNYIELDED_BYTES_MAX:
                self._unyielded = 0
                await trio.lowlevel.checkpoint()
            return
        await self._send_rest(buffers, sent)

    async def _send_rest(self, buffers: Sequence[Buffer], sent: int) -> None:
        self.torn = True
        self._unyielded = 0
        pacer = WritePacer(self._limits)
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        index, offset = 0, sent
        while True:
            while index < len(views) and offset >= len(views[index]):
                offset -= len(views[index])
                index += 1
            if index == len(views):
                break
            await self._wait_writable(pacer)
            try:
                done = self._sock.sendmsg([views[index][offset:], *views[index + 1 : index + _GATHER_MAX]])
            except (BlockingIOError, InterruptedError):
                done = 0
            except OSError as error:
                raise ClientGoneError("the peer closed the connection") from error
            self._counters.bytes_out += done
            pacer.sent(done)
            offset += done
            sent += done
        self.torn = False

    async def _wait_writable(self, pacer: WritePacer) -> None:
        self._unyielded = 0
        untaken = untaken_bytes(self._sock)
        while True:
            with trio.CancelScope(deadline=pacer.deadline()) as scope:
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                except trio.ClosedResourceError as error:
                    raise ClientGoneError("the connection is closed") from error
            pacer.waited()
            if not scope.cancelled_caught:
                return
            # Not writable before a third of the kernel's buffer is free: what the peer takes of it counts.
            before, untaken = untaken, untaken_bytes(self._sock)
            if untaken >= before:
                self._counters.timed_out += 1
                raise ClientGoneError("the peer does not read, or too slowly")
            pacer.sent(before - untaken)

    async def send_eof(self) -> None:
        """Say that nothing more comes; the peer may still send."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Close at once, with a reset: unsent bytes are thrown away and the peer sees that it is an error."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close; the kernel still delivers what was sent. Idempotent."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def aclose(self) -> None:
        """:meth:`close`, for symmetry with streams."""
        self.close()


class StreamTransport:
    """Any trio stream: TLS, or memory in the tests. Same promises as :class:`SocketTransport`."""

    __slots__ = ("_counters", "_limits", "_stream", "torn")

    def __init__(self, stream: trio.abc.Stream, limits: HttpLimits, counters: Counters) -> None:
        self._stream = stream
        self._limits = limits
        self._counters = counters
        self.torn = False

    def receive_nowait(self, size: int) -> bytes | None:  # noqa: ARG002 - the transports' common shape
        """Always ``None``: a stream can only be awaited."""
        return None

    def has_data(self) -> bool:
        """Always false: nobody can tell without reading."""
        return False

    async def receive(self, size: int) -> bytes:
        """Wait for bytes: at most ``size``, ``b""`` when the peer closed or broke the connection."""
        try:
            data = bytes(await self._stream.receive_some(size))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""
        self._counters.bytes_in += len(data)
        return data

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Write all of ``buffers``; small neighbours leave together. Raises :class:`ClientGoneError`."""
        self.torn = True
        pacer = WritePacer(self._limits)
        small: list[Buffer] = []
        size = 0
        for buffer in buffers:
            if size + len(buffer) <= _JOIN_BELOW:
                small.append(buffer)
                size += len(buffer)
                continue
            if small:
                await self._send_piece(b"".join(small), pacer)
                small, size = [], 0
            view = memoryview(buffer).cast("B")
            for at in range(0, len(view), _STREAM_PIECE):
                await self._send_piece(view[at : at + _STREAM_PIECE], pacer)
        if small:
            await self._send_piece(b"".join(small), pacer)
        self.torn = False

    async def _send_piece(self, piece: bytes | memoryview, pacer: WritePacer) -> None:
        with trio.CancelScope(deadline=pacer.deadline()) as scope:
            try:
                await self._stream.send_all(piece)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ClientGoneError("the peer closed the connection") from error
        if scope.cancelled_caught:
            self._counters.timed_out += 1
            raise ClientGoneError("the peer does not read, or too slowly")
        pacer.waited()
        pacer.sent(len(piece))
        self._counters.bytes_out += len(piece)

    async def send_eof(self) -> None:
        """Say that nothing more comes, where the stream can."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close in good order, in bounded time."""
        with trio.move_on_after(self._limits.linger_s, shield=True):
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.aclose()
            return
        await self.aclose_forcefully()

    async def aclose_forcefully(self) -> None:
        """Close at once, telling the peer nothing."""
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)


Transport = SocketTransport | StreamTransport


def untaken_bytes(sock: socket.socket) -> int:
    """Bytes that the kernel holds for a TCP peer: not sent, or not acknowledged; 0 when it does not say."""
    counted = bytearray(4)
    try:
        fcntl.ioctl(sock, termios.TIOCOUTQ, counted)  # SIOCOUTQ of tcp(7)
    except OSError:
        return 0
    return int.from_bytes(counted, sys.byteorder)


class WritePacer:
    """How long one response's next write may wait: ``write_stall_s``, and on the whole ``write_rate_min``."""

    __slots__ = ("_limits", "_sent", "_since", "_waited")

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._waited = 0.0
        self._sent = 0
        self._since = 0.0

    def deadline(self) -> float:
        """When to give up on the write that starts now."""
        limits = self._limits
        self._since = now = trio.current_time()
        allowed = limits.rate_grace_s + self._sent / limits.write_rate_min - self._waited
        return now + min(limits.write_stall_s, allowed)

    def waited(self) -> None:
        """The wait that :meth:`deadline` began is over."""
        self._waited += trio.current_time() - self._since

    def sent(self, count: int) -> None:
        """``count`` bytes went out."""
        self._sent += count
