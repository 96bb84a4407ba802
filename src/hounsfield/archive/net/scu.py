"""Calling others: one association as the requestor, and what can be asked on it (PS3.7 9.1, 10.1, PS3.8 7).

    async with associate(remote, contexts) as association:
        response = await association.store(context, sop_instance_uid, pieces)
        async with aclosing(association.request(context, CFindRequest(...), identifier)) as responses:
            async for response, identifier in responses: ...

Leaving the block in good order releases the association; leaving it with an exception aborts it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from hounsfield.archive.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from hounsfield.archive.net.errors import (
    NetError,
    NoAcceptedContextError,
    RejectedError,
)
from hounsfield.archive.net.incoming import Reports, Storage
from hounsfield.archive.net.remote import Offer, RemoteEntity, ScuLimits, connect
from hounsfield.archive.net.requests import Answer, Requests, is_pending
from hounsfield.archive.net.sop_classes import VERIFICATION
from hounsfield.archive.net.transport import SocketTransport, StreamTransport
from hounsfield.archive.net.turns import Turns
from hounsfield.archive.wire import (
    Abort,
    AcceptedContext,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    AsynchronousOperations,
    Buffer,
    CCancelRequest,
    CEchoRequest,
    CEchoResponse,
    CFindRequest,
    CFindResponse,
    CGetRequest,
    CGetResponse,
    CMoveRequest,
    CMoveResponse,
    Command,
    CStoreRequest,
    CStoreResponse,
    NActionRequest,
    NActionResponse,
    NCreateRequest,
    NCreateResponse,
    NEventReportRequest,
    NEventReportResponse,
    NSetRequest,
    NSetResponse,
    PresentationContext,
    RejectReason,
    RejectSource,
    ReleaseReply,
    ReleaseRequest,
    RoleSelection,
    State,
    TransportClosed,
    UserInformation,
)
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN

__all__ = [
    "VERIFICATION_CONTEXT",
    "Offer",
    "RemoteEntity",
    "RequestorAssociation",
    "ScuLimits",
    "associate",
]

VERIFICATION_CONTEXT = PresentationContext(
    1, VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN.uid, EXPLICIT_VR_LITTLE_ENDIAN.uid)
)

_RECEIVE_PDU_BYTES = 64 * 1024  # we only receive responses
_RECEIVE_PDU_BYTES_STORAGE = 256 * 1024  # objects too; past it nothing gets faster

_RESPONSES: Mapping[type[Command], type[Command]] = {
    CEchoRequest: CEchoResponse,
    CStoreRequest: CStoreResponse,
    CFindRequest: CFindResponse,
    CMoveRequest: CMoveResponse,
    CGetRequest: CGetResponse,
    NActionRequest: NActionResponse,
    NCreateRequest: NCreateResponse,
    NSetRequest: NSetResponse,
    NEventReportRequest: NEventReportResponse,
}

LongRequest = CFindRequest | CMoveRequest | CGetRequest


class RequestorAssociation:
    """An established association. Several tasks may use it: up to ``window`` operations are outstanding at
    once, further ones wait for their turn.
    """

    def __init__(
        self,
        remote: RemoteEntity,
        transport: SocketTransport | StreamTransport,
        limits: ScuLimits,
        *,
        storage: Storage | None = None,
        reports: Reports | None = None,
    ) -> None:
        self._remote = remote
        self._limits = limits
        self._pdu_bytes = _RECEIVE_PDU_BYTES if storage is None else _RECEIVE_PDU_BYTES_STORAGE
        self._requests = Requests(remote, transport, limits, self._pdu_bytes, storage, reports)
        self._association = self._requests.association
        self._window = Turns()
        self._window_size = 1

    @property
    def contexts(self) -> Mapping[int, AcceptedContext]:
        """The accepted presentation contexts by id."""
        return self._association.contexts

    @property
    def accept(self) -> AssociateAccept | None:
        """What the peer answered to the request."""
        return self._association.accept

    @property
    def window(self) -> int:
        """How many operations may be outstanding: what was offered, or what the peer agreed to if less."""
        return self._window_size

    @property
    def extended(self) -> Mapping[str, bytes]:
        """What the peer agreed to, by SOP class (PS3.7 D.3.3.5)."""
        accept = self.accept
        return {item.sop_class_uid: item.information for item in accept.user.extended} if accept else {}

    @property
    def roles(self) -> Mapping[str, RoleSelection]:
        """The roles that the peer granted, by SOP class (PS3.7 D.3.3.4)."""
        accept = self.accept
        return {role.sop_class_uid: role for role in accept.user.roles} if accept else {}

    @property
    def usable(self) -> bool:
        """Whether messages can still be exchanged: no operation ended it, and nobody aborted it."""
        return self._requests.usable

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

    # ------------------------------------------------------------ operations

    def next_message_id(self) -> int:
        """A message id for the next request."""
        return self._requests.next_message_id()

    async def echo(self) -> CEchoResponse:
        """C-ECHO (PS3.7 9.1.5). Raises NetError."""
        context = self.context_for(VERIFICATION)
        response, _ = await self.ask(context, CEchoRequest(self.next_message_id()))
        assert isinstance(response, CEchoResponse)
        return response

    async def store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        pieces: AsyncIterator[tuple[Buffer, bool]],
        *,
        sop_class_uid: str = "",
        move_originator: tuple[str, int] | None = None,
    ) -> CStoreResponse:
        """C-STORE one data set, given in ``pieces`` (bytes, whether they are the last). Raises NetError.

        ``move_originator``: whose C-MOVE this is for, and its message id (PS3.7 9.1.1.1.6). Whatever
        ``pieces`` raises comes through; if a part of the object was sent by then, the association is not
        ``usable``.
        """
        begun = await self.begin_store(
            context, sop_instance_uid, pieces, sop_class_uid=sop_class_uid, move_originator=move_originator
        )
        return await begun.response()

    async def begin_store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        dataset: Buffer | AsyncIterator[tuple[Buffer, bool]],
        *,
        sop_class_uid: str = "",
        move_originator: tuple[str, int] | None = None,
    ) -> _StoreAnswer:
        """As :meth:`store`, to the moment when all of it is sent. ``dataset``: whole, or pieces.

        The answer is to be waited for, or given up: until then it has a place in the window.
        """
        originator, originator_id = move_originator or (None, None)
        await self._window.take()
        requests = self._requests
        message_id = 0
        try:
            # the first piece before the line is ours: it may take its time
            first = await anext(dataset) if isinstance(dataset, AsyncIterator) else (dataset, True)
            message_id = self.next_message_id()
            request = CStoreRequest(
                message_id,
                sop_class_uid or context.abstract_syntax,
                sop_instance_uid,
                move_originator_ae=originator,
                move_originator_message_id=originator_id,
            )
            requests.begin(message_id, CStoreResponse)
            await requests.send_object(context.context_id, request, first, dataset)
        except BaseException:
            requests.abandon(message_id)
            self._window.give_back()
            raise
        return _StoreAnswer(requests, self._window, message_id)

    async def ask(
        self, context: AcceptedContext, command: Command, dataset: Buffer = b""
    ) -> tuple[Command, bytes]:
        """One request that has one response, and that response's data set (N-ACTION …). Raises NetError."""
        async with self._window:
            requests = self._requests
            message_id: int = command.message_id  # type: ignore[union-attr]
            requests.begin(message_id, _RESPONSES[type(command)])
            try:
                await requests.send_message(context.context_id, command, (dataset,) if dataset else ())
                answer = await requests.answer(message_id)
            except BaseException:
                requests.abandon(message_id)
                raise
            requests.end(message_id)
        return answer

    async def request(
        self, context: AcceptedContext, command: LongRequest, identifier: Buffer
    ) -> AsyncGenerator[Answer, None]:
        """The responses to a C-FIND, C-MOVE or C-GET and their identifiers, the final one last.

        Raises NetError. Who leaves before the final one closes the generator (``contextlib.aclosing``):
        the request is cancelled then, and what still comes of it is dropped.
        """
        async with self._window:
            requests = self._requests
            message_id = command.message_id
            requests.begin(message_id, _RESPONSES[type(command)])
            final = sent = False
            try:
                await requests.send_message(context.context_id, command, (identifier,))
                sent = True
                while not final:
                    answer = await requests.answer(message_id)
                    final = not is_pending(answer[0])
                    yield answer
            finally:
                if final or not sent:
                    requests.end(message_id)
                else:
                    requests.abandon(message_id)
                    if requests.usable:
                        with trio.move_on_after(self._limits.release_s, shield=True), suppress(NetError):
                            await self.cancel(context, message_id)

    async def cancel(self, context: AcceptedContext, message_id: int) -> None:
        """C-CANCEL (PS3.7 9.3.2.3): the request's responses go on to its final one. Raises NetError."""
        await self._requests.send_message(context.context_id, CCancelRequest(message_id))

    async def report(
        self, context: AcceptedContext, request: NEventReportRequest, dataset: Buffer
    ) -> NEventReportResponse:
        """N-EVENT-REPORT (PS3.7 10.1.1). Raises NetError."""
        response, _ = await self.ask(context, request, dataset)
        assert isinstance(response, NEventReportResponse)
        return response

    async def hear_until(self, condition: Callable[[], bool]) -> None:
        """Serve the peer's own requests until ``condition`` holds. Raises NetError when it goes before.

        As long as it takes: the caller bounds it.
        """
        await self._requests.until(condition)

    # ------------------------------------------------------------ beginning and end

    async def begin(self, contexts: Sequence[PresentationContext], offer: Offer) -> None:
        """Propose ``contexts`` and wait for the answer. Raises RejectedError and other NetErrors."""
        remote = self._remote
        asynchronous = AsynchronousOperations(offer.window, 1) if offer.window != 1 else None
        request = AssociateRequest(
            called_ae=remote.called_ae,
            calling_ae=remote.calling_ae,
            contexts=tuple(contexts),
            user=UserInformation(
                max_pdu_length=self._pdu_bytes,
                implementation_class_uid=IMPLEMENTATION_CLASS_UID,
                implementation_version=IMPLEMENTATION_VERSION_NAME,
                asynchronous_operations=asynchronous,
                roles=offer.roles,
                extended=offer.extended,
                identity=remote.identity,
            ),
        )
        await self._requests.send(self._association.send(request))
        event = await self._requests.event(self._limits.associate_s, "answer to the association request")
        if isinstance(event, AssociateReject):
            raise RejectedError(
                f"{remote} refuses the association: {_rejection(event, remote.identity is not None)}",
                result=event.result,
                source=event.source,
                reason=event.reason,
            )
        if not isinstance(event, AssociateAccept):
            await self._requests.over(event)
        agreed = event.user.asynchronous_operations
        if asynchronous is not None and agreed is not None:
            # 0 is "any number"; a peer that agrees to more than was asked for is held to what was asked
            self._window_size = min(agreed.invoked_max or offer.window, offer.window)
            self._window = Turns(self._window_size)

    async def release(self) -> None:
        """Say that we are done, and wait a little for the answer. Never raises for the peer's faults."""
        association, requests = self._association, self._requests
        with suppress(NetError):
            if requests.outstanding:  # an operation was cancelled: its end comes first (PS3.8 7.2)
                with trio.move_on_after(self._limits.release_s):
                    await requests.until(lambda: not requests.outstanding)
            if association.state is not State.ESTABLISHED:
                return
            if requests.outstanding:
                await self.abort()
                return
            await requests.send(association.send(ReleaseRequest()))
            while not association.should_close:
                event = await requests.event(self._limits.release_s, "answer to the release")
                if isinstance(event, ReleaseRequest) and association.release_reply_due:
                    # a collision: we requested, we answer
                    await requests.send(association.send(ReleaseReply()))
                elif isinstance(event, TransportClosed | Abort):
                    return

    async def abort(self) -> None:
        """Say that it is over, without waiting."""
        if self._association.state in (State.IDLE, State.AWAITING_CLOSE):
            return
        with suppress(NetError), trio.move_on_after(1.0, shield=True):
            await self._requests.send(self._association.send(Abort()))

    def close(self) -> None:
        """Forget what was not here whole."""
        self._requests.close()


class _StoreAnswer:
    """The answer to a C-STORE, which is still to come."""

    __slots__ = ("_message_id", "_outstanding", "_requests", "_window")

    def __init__(self, requests: Requests, window: Turns, message_id: int) -> None:
        self._requests = requests
        self._window = window
        self._message_id = message_id
        self._outstanding = True

    async def response(self) -> CStoreResponse:
        """Wait for it, once. Raises NetError."""
        try:
            response, _ = await self._requests.answer(self._message_id)
        except BaseException:
            self.give_up()
            raise
        self._requests.end(self._message_id)
        self._outstanding = False
        self._window.give_back()
        assert isinstance(response, CStoreResponse)
        return response

    def give_up(self) -> None:
        """Nobody waits for it any more. Idempotent."""
        if self._outstanding:
            self._outstanding = False
            self._requests.abandon(self._message_id)
            self._window.give_back()


@asynccontextmanager
async def associate(
    remote: RemoteEntity,
    contexts: Sequence[PresentationContext],
    limits: ScuLimits | None = None,
    offer: Offer | None = None,
    *,
    storage: Storage | None = None,
    reports: Reports | None = None,
) -> AsyncIterator[RequestorAssociation]:
    """An association with ``remote``. Raises ConnectError, TlsError, RejectedError and other NetErrors.

    ``storage`` takes the objects that the peer sends for a C-GET, ``reports`` its N-EVENT-REPORTs.
    """
    limits = limits or ScuLimits()
    transport = await connect(remote, limits)
    association = RequestorAssociation(remote, transport, limits, storage=storage, reports=reports)
    try:
        await association.begin(contexts, offer or Offer())
        yield association
        await association.release()
    except BaseException:
        await association.abort()
        raise
    finally:
        association.close()
        with trio.CancelScope(shield=True):
            await transport.aclose()


_NO_REASON = "it gives no reason"
_REJECTIONS: dict[tuple[int, int], str] = {
    (RejectSource.SERVICE_USER, RejectReason.NO_REASON): _NO_REASON,
    (RejectSource.PROVIDER_ACSE, RejectReason.ACSE_NO_REASON): _NO_REASON,
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


def _rejection(reject: AssociateReject, identity: bool) -> str:
    words = _REJECTIONS.get((reject.source, reject.reason), f"source {reject.source}, reason {reject.reason}")
    if identity and words == _NO_REASON:  # as PS3.7 D.3.3.7 has it
        words += "; it may not take our user, or the passcode or token"
    return f"{words} ({'transient' if reject.result == 2 else 'permanent'})"
