"""TLS straight on a non-blocking socket: OpenSSL encrypts each record into the kernel.

trio's ``SSLStream`` goes through memory buffers and costs three times the processor time for a large body.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Sequence

import trio

from .errors import ClientGoneError
from .limits import HttpLimits
from .records import Counters
from .transport import UNYIELDED_BYTES_MAX, Buffer, SocketTransport, WritePacer

_JOIN_BELOW = 16 * 1024
"""One TLS record: small neighbours, such as a head and its JSON, leave in one."""


async def handshake(sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Take over a connected, non-blocking socket as TLS server. Raises ``OSError``; give it a time limit."""
    tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    try:
        while True:
            try:
                tls.do_handshake()
                return tls
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(tls)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(tls)
    except BaseException:
        tls.close()
        raise


class TlsTransport(SocketTransport):
    """The promises of :class:`SocketTransport` over TLS; bodies are read by OpenSSL where they lie."""

    __slots__ = ("_tls",)

    def __init__(self, tls: ssl.SSLSocket, limits: HttpLimits, counters: Counters) -> None:
        super().__init__(tls, limits, counters)
        self._tls = tls

    def _receive_error(self, error: OSError) -> bytes | None:
        return None if isinstance(error, (ssl.SSLWantReadError, ssl.SSLWantWriteError)) else b""

    def has_data(self) -> bool:
        """Whether a decrypted record waits; the socket's own buffer cannot be looked into."""
        return self._tls.pending() > 0

    async def receive(self, size: int) -> bytes:
        """As for sockets; a record that OpenSSL holds already makes no socket readable."""
        if self._tls.pending():
            self._unyielded = 0
            await trio.lowlevel.checkpoint()
            data = self.receive_nowait(size)
            if data is not None:
                return data
        return await super().receive(size)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Encrypt and write all of ``buffers``; they may be reused then. Raises :class:`ClientGoneError`."""
        self.torn = True
        pacer: WritePacer | None = None
        for view in _joined(buffers):
            at = 0
            while at < len(view):
                try:
                    sent = self._tls.send(view[at:])
                except ssl.SSLWantWriteError:
                    pacer = pacer or WritePacer(self._limits)
                    await self._wait_writable(pacer)
                    continue
                except OSError as error:
                    raise ClientGoneError("the peer closed the connection") from error
                at += sent
                self._counters.bytes_out += sent
                if pacer is not None:
                    pacer.sent(sent)
                self._unyielded += sent
                if self._unyielded > UNYIELDED_BYTES_MAX:
                    self._unyielded = 0
                    await trio.lowlevel.checkpoint()
        self.torn = False

    async def send_eof(self) -> None:
        """Say that nothing more comes (close_notify)."""
        self._notify()

    def abort(self) -> None:
        """As for sockets, and without close_notify: a body that was cut must not look whole."""
        self.torn = True
        super().abort()

    def close(self) -> None:
        """Say so, and close."""
        if not self.torn:
            self._notify()
        super().close()

    def _notify(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()


def _joined(buffers: Sequence[Buffer]) -> list[memoryview]:
    out: list[memoryview] = []
    small: list[Buffer] = []
    size = 0
    for buffer in buffers:
        if size + len(buffer) > _JOIN_BELOW and small:
            out.append(memoryview(b"".join(small)))
            small, size = [], 0
        if len(buffer) > _JOIN_BELOW:
            out.append(memoryview(buffer))
        else:
            small.append(buffer)
            size += len(buffer)
    if small:
        out.append(memoryview(b"".join(small)))
    return out
