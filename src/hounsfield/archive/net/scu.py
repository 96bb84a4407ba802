"""Calling others: one association as the requestor, with C-ECHO and C-STORE (PS3.7 9.1, PS3.8 7).

    async with associate(remote, contexts) as association:
        response = await association.store(context_id, request, pieces)

Leaving the block in good order releases the association; leaving it with an exception aborts it.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import trio

from hounsfield.archive.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from hounsfield.archive.net.errors import (
    AbortedError,
    ConnectError,
    ConnectionLostError,
    NetError,
    NoAcceptedContextError,
    PeerGoneError,
    RejectedError,
    TimedOutError,
    TlsError,
)
from hounsfield.archive.net.negotiation import VERIFICATION
from hounsfield.archive.net.transport import SocketTransport, StreamTransport
from hounsfield.archive.wire import (
    NEED_DATA,
    Abort,
    AcceptedContext,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    Association,
    Buffer,
    CEchoRequest,
    CEchoResponse,
    CommandReceived,
    CStoreRequest,
    CStoreResponse,
    DataFragment,
    Event,
    MessageReader,
    MessageWriter,
    PresentationContext,
    RejectReason,
    RejectSource,
    ReleaseReply,
    ReleaseRequest,
    RemoteProtocolError,
    Role,
    State,
    TransportClosed,
    UserInformation,
    WireLimits,
)
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN

__all__ = [
    "VERIFICATION_CONTEXT",
    "RemoteEntity",
    "RequestorAssociation",
    "ScuLimits",
    "associate",
]

VERIFICATION_CONTEXT = PresentationContext(
    1, VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN.uid, EXPLICIT_VR_LITTLE_ENDIAN.uid)
)

_UNYIELDED_BYTES_MAX = 1 << 20
_RECEIVE_PDU_BYTES_MAX = 64 * 1024  # we only receive responses

Response = TypeVar("Response", CEchoResponse, CStoreResponse)


@dataclass(frozen=True, slots=True)
class RemoteEntity:
    """Whom we call, and as whom. ``tls``: the context to speak TLS with, None for plain DICOM."""

    host: str
    port: int
    called_ae: str = "ANY-SCP"
    calling_ae: str = "HOUNSFIELD"
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.called_ae}@{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScuLimits:
    """How long a peer may take, in seconds."""

    connect_s: float = 10.0
    """For the TCP connection, and the TLS handshake."""
    associate_s: float = 30.0
    """For the answer to an A-ASSOCIATE-RQ."""
    response_s: float = 60.0
    """For the response to a request; archives that store on tape are slow."""
    write_s: float = 60.0
    """For taking a megabyte of what we send."""
    release_s: float = 5.0
    """For the answer to an A-RELEASE-RQ; all that mattered was answered before."""


class RequestorAssociation:
    """An established association. Its user is one task; see the module's text."""

    def __init__(
        self, remote: RemoteEntity, transport: SocketTransport | StreamTransport, limits: ScuLimits
    ) -> None:
        self._remote = remote
        self._transport = transport
        self._limits = limits
        wire_limits = WireLimits(receive_buffer_bytes=2 * _RECEIVE_PDU_BYTES_MAX)
        self._association = Association(Role.REQUESTOR, wire_limits)
        self._reader = MessageReader(wire_limits)
        self._writer = MessageWriter(self._association)
        self._message_id = 0

    @property
    def contexts(self) -> Mapping[int, AcceptedContext]:
        """The accepted presentation contexts by id."""
        return self._association.contexts

    @property
    def accept(self) -> AssociateAccept | None:
        """What the peer answered to the request."""
        return self._association.accept

    def context_for(self, abstract_syntax: str, transfer_syntax: str = "") -> AcceptedContext:
        """The accepted context for a SOP class (in that transfer syntax). Raises NoAcceptedContextError."""
        for context in self._association.contexts.values():
            if context.abstract_syntax == abstract_syntax and transfer_syntax in {
                "",
                context.transfer_syntax,
            }:
                return context
        raise NoAcceptedContextError(
            f"{self._remote} accepts no presentation context for SOP class {abstract_syntax}"
            + (f" in transfer syntax {transfer_syntax}" if transfer_syntax else "")
        )

    async def echo(self) -> CEchoResponse:
        """C-ECHO (PS3.7 9.1.5). Raises NetError."""
        context = self.context_for(VERIFICATION)
        request = CEchoRequest(self._next_message_id())
        await self._send(self._writer.command(context.context_id, request))
        return await self._response(CEchoResponse, request.message_id)

    async def store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        pieces: AsyncIterator[tuple[Buffer, bool]],
        *,
        sop_class_uid: str = "",
    ) -> CStoreResponse:
        """C-STORE one data set, given in ``pieces`` (bytes, whether they are the last). Raises NetError.

        Whatever ``pieces`` raises comes through; the association cannot be used any more then.
        """
        request = CStoreRequest(
            self._next_message_id(), sop_class_uid or context.abstract_syntax, sop_instance_uid
        )
        # the command waits for the first piece: a small object goes out in one write
        pending = self._writer.command(context.context_id, request)
        async for data, last in pieces:
            for batch in self._writer.dataset(context.context_id, data, last=last):
                await self._send([*pending, *batch])
                pending = []
        return await self._response(CStoreResponse, request.message_id)

    # ------------------------------------------------------------ beginning and end

    async def begin(self, contexts: Sequence[PresentationContext]) -> None:
        """Propose ``contexts`` and wait for the answer. Raises RejectedError and other NetErrors."""
        remote = self._remote
        request = AssociateRequest(
            called_ae=remote.called_ae,
            calling_ae=remote.calling_ae,
            contexts=tuple(contexts),
            user=UserInformation(
                max_pdu_length=_RECEIVE_PDU_BYTES_MAX,
                implementation_class_uid=IMPLEMENTATION_CLASS_UID,
                implementation_version=IMPLEMENTATION_VERSION_NAME,
            ),
        )
        await self._send(self._association.send(request))
        event = await self._event(self._limits.associate_s, "answer to the association request")
        if isinstance(event, AssociateReject):
            raise RejectedError(
                f"{remote} refuses the association: {_rejection(event)}",
                result=event.result,
                source=event.source,
                reason=event.reason,
            )
        if not isinstance(event, AssociateAccept):
            self._over(event)

    async def release(self) -> None:
        """Say that we are done, and wait a little for the answer. Never raises for the peer's faults."""
        association = self._association
        with suppress(NetError):
            await self._send(association.send(ReleaseRequest()))
            while not association.should_close:
                event = await self._event(self._limits.release_s, "answer to the release")
                if isinstance(event, ReleaseRequest) and association.release_reply_due:
                    await self._send(association.send(ReleaseReply()))  # a collision: we requested, we answer
                elif isinstance(event, TransportClosed | Abort):
                    return

    async def abort(self) -> None:
        """Say that it is over, without waiting."""
        if self._association.state in (State.IDLE, State.AWAITING_CLOSE):
            return
        with suppress(NetError), trio.move_on_after(1.0, shield=True):
            await self._transport.send(self._association.send(Abort()))

    # ------------------------------------------------------------ bytes

    def _next_message_id(self) -> int:
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id

    async def _send(self, buffers: Sequence[Buffer]) -> None:
        with trio.move_on_after(self._limits.write_s) as scope:
            try:
                await self._transport.send(buffers)
            except PeerGoneError as error:
                raise await self._why_gone() from error
        if scope.cancelled_caught:
            raise TimedOutError(f"{self._remote} does not take what is sent; check its disk and its log")

    async def _why_gone(self) -> NetError:
        """The connection broke under a write: perhaps the peer said why before."""
        with trio.move_on_after(1.0):
            try:
                event = await self._next_event()
            except NetError as error:
                return error
            if isinstance(event, Abort):
                return AbortedError(f"{self._remote} aborted the association")
        return ConnectionLostError(f"{self._remote} closed the connection")

    async def _response(self, cls: type[Response], message_id: int) -> Response:
        while True:
            event = await self._event(self._limits.response_s, "response")
            if not isinstance(event, DataFragment):
                self._over(event)
            try:
                message = self._reader.receive(event)
            except RemoteProtocolError as error:
                await self._broke_protocol(error)
            if not isinstance(message, CommandReceived):
                continue
            command = message.command
            if not isinstance(command, cls) or command.message_id_responded_to != message_id:
                await self._broke_protocol(
                    RemoteProtocolError(f"{type(command).__name__} in place of the response")
                )
            return command

    async def _event(self, seconds: float, what: str) -> Event:
        with trio.move_on_after(seconds):
            return await self._next_event()
        raise TimedOutError(f"no {what} from {self._remote} within {seconds:g} s")

    async def _next_event(self) -> Event:
        association = self._association
        while True:
            try:
                event = association.next_event()
            except RemoteProtocolError as error:
                await self._broke_protocol(error)
            if event is not NEED_DATA:
                return event
            view = association.receive_buffer()
            count = self._transport.receive_nowait(view)
            association.received(count if count >= 0 else await self._transport.receive(view))

    async def _broke_protocol(self, error: RemoteProtocolError) -> NoReturn:
        words = self._association.answer(error)
        with suppress(PeerGoneError), trio.move_on_after(1.0):
            await self._transport.send(words)
        raise AbortedError(f"{self._remote} broke the protocol: {error}") from error

    def _over(self, event: Event) -> NoReturn:
        if isinstance(event, Abort):
            raise AbortedError(f"{self._remote} aborted the association")
        if isinstance(event, ReleaseRequest):
            raise ConnectionLostError(f"{self._remote} released the association while a response was due")
        raise ConnectionLostError(f"{self._remote} closed the connection")


@asynccontextmanager
async def associate(
    remote: RemoteEntity, contexts: Sequence[PresentationContext], limits: ScuLimits | None = None
) -> AsyncIterator[RequestorAssociation]:
    """An association with ``remote``. Raises ConnectError, TlsError, RejectedError and other NetErrors."""
    limits = limits or ScuLimits()
    transport = await _connect(remote, limits)
    association = RequestorAssociation(remote, transport, limits)
    try:
        await association.begin(contexts)
        yield association
        await association.release()
    except BaseException:
        await association.abort()
        raise
    finally:
        with trio.CancelScope(shield=True):
            await transport.aclose()


async def _connect(remote: RemoteEntity, limits: ScuLimits) -> SocketTransport | StreamTransport:
    with trio.move_on_after(limits.connect_s):
        try:
            stream = await trio.open_tcp_stream(remote.host, remote.port)
        except OSError as error:
            raise ConnectError(f"cannot reach {remote}: {_why(error)}") from error
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
            raise TlsError(f"no TLS with {remote}: {error.__cause__ or error}") from error
        return StreamTransport(secure)
    raise ConnectError(f"cannot reach {remote}: no answer within {limits.connect_s:g} s")


def _why(error: OSError) -> str:
    """In words: trio wraps what each address said."""
    if isinstance(error, socket.gaierror):
        return "no such host"
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(cause)


_REJECTIONS: dict[tuple[int, int], str] = {
    (RejectSource.SERVICE_USER, RejectReason.APPLICATION_CONTEXT_NOT_SUPPORTED): (
        "application context not supported"
    ),
    (RejectSource.SERVICE_USER, RejectReason.CALLING_AE_NOT_RECOGNIZED): (
        "it does not know our AE title, or not from this address"
    ),
    (RejectSource.SERVICE_USER, RejectReason.CALLED_AE_NOT_RECOGNIZED): "it has another AE title",
    (
        RejectSource.PROVIDER_ACSE,
        RejectReason.PROTOCOL_VERSION_NOT_SUPPORTED,
    ): "protocol version not supported",
    (RejectSource.PROVIDER_PRESENTATION, RejectReason.TEMPORARY_CONGESTION): "temporary congestion",
    (RejectSource.PROVIDER_PRESENTATION, RejectReason.LOCAL_LIMIT_EXCEEDED): "it has too many associations",
}


def _rejection(reject: AssociateReject) -> str:
    words = _REJECTIONS.get((reject.source, reject.reason), f"source {reject.source}, reason {reject.reason}")
    return f"{words} ({'transient' if reject.result == 2 else 'permanent'})"
