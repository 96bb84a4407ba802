"""Service class providers: what is done with each command on an accepted context (PS3.7 9.1, PS3.4 A, B).

A provider gets a :class:`Link` to the association, and must take the whole data set of its command, if there
is one, before it responds. One that cannot use the data set takes it all the same and says why not, so that
the association, and the objects that are to follow on it, survive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Protocol, TypeAlias

import structlog

from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.types import Source, StoreResult
from hounsfield.archive.net.sop_classes import VERIFICATION
from hounsfield.archive.net.statuses import StoreAnswer, answer_of, answer_to_error
from hounsfield.archive.wire import (
    AcceptedContext,
    Buffer,
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
    DatasetFragment,
    NActionRequest,
    NActionResponse,
    NCreateRequest,
    NCreateResponse,
    NDeleteRequest,
    NDeleteResponse,
    NEventReportRequest,
    NEventReportResponse,
    NGetRequest,
    NGetResponse,
    NSetRequest,
    NSetResponse,
    RemoteProtocolError,
    Status,
)

__all__ = [
    "Counters",
    "Link",
    "ObjectSession",
    "ObjectSink",
    "Provider",
    "StoreProvider",
    "discard_dataset",
    "echo",
    "refuse",
    "response_to",
]

log = structlog.get_logger(__name__)


class ObjectSession(Protocol):
    """Receives one object: the part of an ingest session that is used here."""

    async def write(self, data: Buffer, /) -> None:
        """Copy ``data`` to the object's end."""

    async def commit(self) -> StoreResult:
        """Return once the object is durable."""

    def abandon(self) -> None:
        """Forget the object."""


class ObjectSink(Protocol):
    """Where objects go: the engine, or a test's stand-in."""

    def begin(
        self, *, transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str, source: Source
    ) -> ObjectSession:
        """A session for one object."""


class Counters:
    """What providers count on one association, and a listener on all that are over."""

    __slots__ = (
        "associations_aborted",
        "associations_accepted",
        "associations_refused",
        "associations_released",
        "associations_timed_out",
        "bytes_in",
        "bytes_out",
        "connections_failed",
        "connections_total",
        "echoes",
        "objects_abandoned",
        "objects_failed",
        "objects_received",
        "objects_warned",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def add(self, others: Counters) -> None:
        """Add what others counted."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(others, name))

    associations_aborted: int
    associations_accepted: int
    associations_refused: int
    associations_released: int
    associations_timed_out: int
    bytes_in: int
    bytes_out: int
    connections_failed: int
    connections_total: int
    echoes: int
    objects_abandoned: int
    objects_failed: int
    objects_received: int
    objects_warned: int


class Link(Protocol):
    """An association, as a provider sees it."""

    source: Source
    counters: Counters
    stores: bool
    """Whether the peer may store."""
    overlapping: bool
    """Whether objects may become durable while others are received: a window was negotiated."""

    async def next_fragment(self) -> DatasetFragment:
        """The next bytes of the data set of the command in hand; its view lives until the next call."""

    async def respond(self, context_id: int, response: Command) -> None:
        """Send a response without a data set."""

    async def overlap(self, context_id: int, work: Callable[[], Awaitable[Command]]) -> None:
        """Have ``work`` done beside what follows, and its response sent. Waits for room in the window."""


Provider: TypeAlias = Callable[[Link, AcceptedContext, Any], Awaitable[None]]


async def discard_dataset(link: Link, command: Command) -> None:
    """Take the command's data set, if there is one, and forget it."""
    if command.has_dataset:
        while not (await link.next_fragment()).last:
            pass


async def echo(link: Link, context: AcceptedContext, request: CEchoRequest) -> None:
    """C-ECHO: we are here (PS3.7 9.1.5). On whatever context: some devices ask on the one they have."""
    await discard_dataset(link, request)
    link.counters.echoes += 1
    await link.respond(
        context.context_id,
        CEchoResponse(request.message_id, Status.SUCCESS, request.affected_sop_class_uid or VERIFICATION),
    )


class StoreProvider:
    """C-STORE: keeps the bytes as they come, answers when they are durable (PS3.4 B, PS3.7 9.1.1)."""

    def __init__(self, sink: ObjectSink, not_for: Collection[str] = ()) -> None:
        """``not_for``: abstract syntaxes of other services, on whose contexts nothing is stored."""
        self._sink = sink
        self._not_for = frozenset({VERIFICATION, *not_for})

    async def __call__(self, link: Link, context: AcceptedContext, request: CStoreRequest) -> None:
        if context.abstract_syntax in self._not_for or not link.stores:
            await discard_dataset(link, request)
            answer = _NOT_HERE if link.stores else _NOT_ALLOWED
            await link.respond(context.context_id, _conclude(link, request, answer))
            return
        session: ObjectSession | None = None
        failure: StoreAnswer | None = None
        received = False
        try:
            try:
                session = self._sink.begin(
                    transfer_syntax_uid=context.transfer_syntax,
                    sop_class_uid=request.affected_sop_class_uid,
                    sop_instance_uid=request.affected_sop_instance_uid,
                    source=link.source,
                )
            except EngineError as error:
                failure = answer_to_error(error)
            while True:
                fragment = await link.next_fragment()
                if session is not None and fragment.data:
                    try:
                        await session.write(fragment.data)
                    except EngineError as error:
                        failure = answer_to_error(error)
                        session.abandon()
                        session = None
                if fragment.last:
                    break
            received = True
        finally:
            if not received:
                if session is not None:
                    session.abandon()
                link.counters.objects_abandoned += 1
        if session is None:
            assert failure is not None
            await link.respond(context.context_id, _conclude(link, request, failure))
        elif link.overlapping:
            try:
                await link.overlap(context.context_id, partial(_commit, link, request, session))
            except BaseException:  # ended while it waited for room: nothing was begun
                session.abandon()
                link.counters.objects_abandoned += 1
                raise
        else:
            await link.respond(context.context_id, await _commit(link, request, session))


async def _commit(link: Link, request: CStoreRequest, session: ObjectSession) -> CStoreResponse:
    """Make an object durable that was received whole; the response."""
    committed = False
    try:
        try:
            answer = answer_of(await session.commit())
        except EngineError as error:
            answer = answer_to_error(error)
            log.warning("an object was not stored", error_type=type(error).__name__, error=str(error))
        committed = True
    finally:
        session.abandon()
        if not committed:
            link.counters.objects_abandoned += 1
    return _conclude(link, request, answer)


_NOT_HERE = StoreAnswer(Status.SOP_CLASS_NOT_SUPPORTED, "nothing is stored on this presentation context")
_NOT_ALLOWED = StoreAnswer(Status.NOT_AUTHORIZED, "this AE title may not store here")


def _conclude(link: Link, request: CStoreRequest, answer: StoreAnswer) -> CStoreResponse:
    """Count what became of an object; the response that tells it."""
    counters = link.counters
    if answer.status is Status.SUCCESS:
        counters.objects_received += 1
    elif answer.status & 0xF000 == 0xB000:
        counters.objects_received += 1
        counters.objects_warned += 1
    else:
        counters.objects_failed += 1
    return CStoreResponse(
        request.message_id,
        answer.status,
        request.affected_sop_class_uid,
        request.affected_sop_instance_uid,
        error_comment=answer.comment,
    )


# request → the class of its response, for what nobody here provides
_RESPONSES: Mapping[type[Command], type[Command]] = {
    CEchoRequest: CEchoResponse,
    CStoreRequest: CStoreResponse,
    CFindRequest: CFindResponse,
    CGetRequest: CGetResponse,
    CMoveRequest: CMoveResponse,
    NEventReportRequest: NEventReportResponse,
    NGetRequest: NGetResponse,
    NSetRequest: NSetResponse,
    NActionRequest: NActionResponse,
    NCreateRequest: NCreateResponse,
    NDeleteRequest: NDeleteResponse,
}
_FIELDS = {cls: frozenset(field.name for field in dataclasses.fields(cls)) for cls in _RESPONSES.values()}


def response_to(request: Command, status: int, comment: str | None = None) -> Command:
    """A response without a data set to any request but a C-CANCEL; it says which SOP it is about.

    RemoteProtocolError for what is no request: a response that we never asked for.
    """
    cls = _RESPONSES.get(type(request))
    if cls is None:
        raise RemoteProtocolError(f"{type(request).__name__} without a request of ours")
    names = _FIELDS[cls]
    words: dict[str, Any] = {
        name: value
        for name in ("affected_sop_class_uid", "affected_sop_instance_uid")
        if name in names
        and (value := getattr(request, name, None) or getattr(request, _requested(name), None))
    }
    if comment is not None and "error_comment" in names:
        words["error_comment"] = comment
    make: Any = cls
    response: Command = make(request.message_id, status, **words)  # type: ignore[union-attr]
    return response


async def refuse(link: Link, context: AcceptedContext, request: Command) -> None:
    """Answer a command that has no provider: unrecognized operation (PS3.7 C.5.23)."""
    response = response_to(request, Status.UNRECOGNIZED_OPERATION)
    await discard_dataset(link, request)
    await link.respond(context.context_id, response)


def _requested(name: str) -> str:
    return name.replace("affected", "requested")
