"""Services of plugins over DIMSE: C-FIND with answers that stream, N-CREATE, N-SET and N-GET.

A plugin sees requests with their whole data sets, and gives encoded data sets; what is a message, a pending
response, a C-CANCEL or the end of an association is seen to here. One that raises what it did not mean to
fails its request and no other, and the log says where, never what.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Final

import structlog

from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.net.services import LongProvider, Operation, Service
from hounsfield.archive.plugins import (
    Answer,
    Answers,
    Caller,
    DimseRefusedError,
    DimseService,
    Perform,
    Request,
)
from hounsfield.archive.wire import (
    AcceptedContext,
    CFindRequest,
    CFindResponse,
    Command,
    NCreateRequest,
    NCreateResponse,
    NGetRequest,
    NGetResponse,
    NSetRequest,
    NSetResponse,
    Status,
)

__all__ = ["plugin_service"]

log = structlog.get_logger(__name__)

ANSWERS_AT_ONCE: Final = 64
"""Sent in one write: between two of them a C-CANCEL is heeded."""
ANSWERS_WAIT_S: Final = 0.1
"""Those that come slowly go out after so long, with the next one."""
_COMMENT_CHARS_MAX: Final = 64  # VR LO
_ATTRIBUTES_MAX: Final = 64
_TRY_AGAIN: Final = "not at the moment; ask again later"


def plugin_service(service: DimseService) -> Service:
    """What the listener is given."""
    providers: dict[type[Command], LongProvider] = {}
    if service.find is not None:
        providers[CFindRequest] = _Find(service, service.find)
    for kind, perform in (
        (NCreateRequest, service.create),
        (NSetRequest, service.set),
        (NGetRequest, service.get),
    ):
        if perform is not None:
            providers[kind] = _Performing(service, perform)
    return Service(
        service.name, service.sop_classes, providers, transfer_syntaxes=tuple(service.transfer_syntaxes)
    )


def _request(operation: Operation, context: AcceptedContext, request: Any, data: bytes) -> Request:
    peer = operation.peer
    return Request(
        Caller(peer.calling_ae, peer.called_ae, peer.address, peer.identity),
        _sop_class(request) or context.abstract_syntax,
        getattr(request, "affected_sop_instance_uid", None)
        or getattr(request, "requested_sop_instance_uid", None)
        or "",
        context.transfer_syntax,
        data,
        lambda: operation.cancelled,
        getattr(request, "attribute_identifiers", None) or (),
    )


def _sop_class(request: Any) -> str:
    names = ("affected_sop_class_uid", "requested_sop_class_uid")
    return next((uid for name in names if (uid := getattr(request, name, ""))), "")


def _comment(text: str) -> str | None:
    return text.encode("ascii", "replace").decode()[:_COMMENT_CHARS_MAX] or None


class _Find:
    """C-FIND (PS3.7 9.1.2)."""

    def __init__(self, service: DimseService, answers: Answers) -> None:
        self._service = service
        self._answers = answers

    async def __call__(
        self, operation: Operation, context: AcceptedContext, request: CFindRequest, data: bytes
    ) -> None:
        if _sop_class(request) not in self._service.sop_classes:
            final = Answer(Status.DATASET_DOES_NOT_MATCH_SOP_CLASS, comment="another SOP class was agreed on")
            await operation.respond(_found(request, context, final))
            return
        answers = self._answers(_request(operation, context, request, data))
        sending = _Sending(operation, request, context)
        try:
            final = await self._send(sending, answers, operation)
        except DimseRefusedError as error:
            final = error.answer
        except EngineError as error:
            log.warning("a query failed", what=self._service.name, error_type=type(error).__name__)
            status = Status.OUT_OF_RESOURCES if error.retry else Status.CANNOT_UNDERSTAND
            final = Answer(status, comment=_TRY_AGAIN if error.retry else "")
        finally:
            if isinstance(answers, AsyncGenerator):
                await answers.aclose()
        await sending.end(final)

    async def _send(
        self, sending: _Sending, answers: AsyncIterator[bytes | Answer], operation: Operation
    ) -> Answer:
        async for answer in answers:
            if operation.cancelled:
                sending.forget()
                break
            await sending.take(answer)
        return Answer(Status.CANCEL if operation.cancelled else Status.SUCCESS)


class _Sending:
    """Pending responses, some dozens in a write; those of a write are of one status."""

    def __init__(self, operation: Operation, request: CFindRequest, context: AcceptedContext) -> None:
        self._operation = operation
        self._request = request
        self._context = context
        self._status: int = Status.PENDING
        self._waiting: list[bytes] = []
        self._since = 0.0

    async def take(self, answer: bytes | Answer) -> None:
        status: int = Status.PENDING
        if isinstance(answer, Answer):
            status, answer = answer.status, answer.dataset
            if status not in {Status.PENDING, Status.PENDING_OPTIONAL_KEYS_NOT_SUPPORTED}:
                raise ValueError(
                    f"an answer that is followed by others has status FF00 or FF01, not {status:04X}"
                )
        if self._waiting and status != self._status:
            await self._flush()
        if not self._waiting:
            self._status, self._since = status, time.monotonic()
        self._waiting.append(answer)
        if len(self._waiting) >= ANSWERS_AT_ONCE or time.monotonic() - self._since > ANSWERS_WAIT_S:
            await self._flush()

    def forget(self) -> None:
        """Say no more of what waits."""
        self._waiting = []

    async def end(self, final: Answer) -> None:
        await self._operation.answer(
            self._pending(), self._waiting, _found(self._request, self._context, final)
        )

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        await self._operation.answer(self._pending(), waiting)

    def _pending(self) -> CFindResponse:
        return CFindResponse(
            self._request.message_id, self._status, self._context.abstract_syntax, has_dataset=True
        )


def _found(request: CFindRequest, context: AcceptedContext, final: Answer) -> CFindResponse:
    return CFindResponse(
        request.message_id,
        final.status,
        context.abstract_syntax,
        offending_elements=final.attributes[:_ATTRIBUTES_MAX] or None,
        error_comment=_comment(final.comment),
    )


class _Performing:
    """N-CREATE, N-SET, N-GET (PS3.7 10.1.2, 10.1.3, 10.1.5)."""

    def __init__(self, service: DimseService, perform: Perform) -> None:
        self._service = service
        self._perform = perform

    async def __call__(
        self, operation: Operation, context: AcceptedContext, request: Any, data: bytes
    ) -> None:
        asked = _request(operation, context, request, data)
        if asked.sop_class_uid not in self._service.sop_classes:
            answer = Answer(Status.NO_SUCH_SOP_CLASS)
        else:
            try:
                answer = await self._perform(asked)
            except DimseRefusedError as error:
                answer = error.answer
            except EngineError as error:
                log.warning("a request failed", what=self._service.name, error_type=type(error).__name__)
                status = Status.RESOURCE_LIMITATION if error.retry else Status.PROCESSING_FAILURE
                answer = Answer(status, comment=_TRY_AGAIN if error.retry else "")
        await operation.respond(_response(request, asked, answer), answer.dataset or None)


_RESPONSES: Final[Mapping[type[Command], Any]] = {
    NCreateRequest: NCreateResponse,
    NSetRequest: NSetResponse,
    NGetRequest: NGetResponse,
}


def _response(request: Any, asked: Request, answer: Answer) -> Command:
    attributes: Sequence[int] = answer.attributes[:_ATTRIBUTES_MAX]
    response: Command = _RESPONSES[type(request)](
        request.message_id,
        answer.status,
        asked.sop_class_uid,
        answer.sop_instance_uid or asked.sop_instance_uid or None,
        attribute_identifiers=tuple(attributes) or None,
        error_id=answer.error_id,
        error_comment=_comment(answer.comment),
        has_dataset=bool(answer.dataset),
    )
    return response
