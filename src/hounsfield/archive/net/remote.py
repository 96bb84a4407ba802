"""Whom we call, as whom, what we propose to it, and how long it may take."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass

import trio

from hounsfield.archive.net.errors import ConnectError, TlsError
from hounsfield.archive.net.tls import why_no_tls
from hounsfield.archive.net.transport import SocketTransport, StreamTransport
from hounsfield.archive.wire import ExtendedNegotiation, RoleSelection, UserIdentity

__all__ = ["Offer", "RemoteEntity", "ScuLimits", "connect"]

_MIB = 1024 * 1024
_UNYIELDED_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteEntity:
    """Whom we call, and as whom. ``tls``: the context to speak TLS with, None for plain DICOM."""

    host: str
    port: int
    called_ae: str = "ANY-SCP"
    calling_ae: str = "HOUNSFIELD"
    tls: ssl.SSLContext | None = None
    identity: UserIdentity | None = None
    """Who our user is, for peers that want to know (PS3.7 D.3.3.7)."""
    associations: int = 0
    """That one C-MOVE may open to it at once; 0: it says nothing."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.called_ae}@{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What is proposed beside the presentation contexts (PS3.7 D.3.3)."""

    window: int = 1
    """Operations of ours that may be outstanding at once; the peer may agree to fewer (PS3.7 D.3.3.3)."""
    roles: tuple[RoleSelection, ...] = ()
    """For C-GET: the storage classes of which we are the SCP (PS3.7 D.3.3.4)."""
    extended: tuple[ExtendedNegotiation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScuLimits:
    """How long a peer may take, in seconds, and how much it may answer."""

    connect_s: float = 10.0
    """For the TCP connection, and the TLS handshake."""
    associate_s: float = 30.0
    """For the answer to an A-ASSOCIATE-RQ."""
    response_s: float = 60.0
    """For the next sign of life while a response is due; archives that store on tape are slow."""
    write_s: float = 60.0
    """For taking a megabyte of what we send."""
    release_s: float = 5.0
    """For the answer to an A-RELEASE-RQ; all that mattered was answered before."""
    identifier_bytes_max: int = 16 * _MIB
    """The data set of one response or report, held whole: 200,000 UIDs of instances that failed."""


async def connect(remote: RemoteEntity, limits: ScuLimits) -> SocketTransport | StreamTransport:
    """A connection to ``remote``, with TLS up if it is wanted. Raises ConnectError, TlsError."""
    with trio.move_on_after(limits.connect_s):
        try:
            stream = await trio.open_tcp_stream(remote.host, remote.port)
        except OSError as error:
            raise ConnectError(f"cannot reach {remote}: {_why(error)}") from error
        except ValueError as error:  # of no form that a name may have (RFC 1035 2.3.4); UnicodeError is one
            raise ConnectError(f"cannot reach {remote}: no such host") from error
        with suppress(OSError):
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if remote.tls is None:
            # trio's socket wrapper is left behind: its duplicate-free descriptor is ours from here on
            raw = socket.socket(fileno=stream.socket.detach())
            raw.setblocking(False)
            return SocketTransport(raw, _UNYIELDED_BYTES_MAX)
        secure = trio.SSLStream(stream, remote.tls, server_hostname=remote.host)
        try:
            await secure.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            await trio.aclose_forcefully(secure)
            raise TlsError(
                f"no TLS with {remote}: {why_no_tls(error) or error.__cause__ or error}"
            ) from error
        return StreamTransport(secure, str(remote))
    raise ConnectError(f"cannot reach {remote}: no answer within {limits.connect_s:g} s")


def _why(error: OSError) -> str:
    """In words: trio wraps what each address said."""
    if isinstance(error, socket.gaierror):
        return "no such host"
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(cause)
