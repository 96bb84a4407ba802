"""What is under way on one association while it goes on being read: long operations, and commits.

::

    reader ── C-FIND, C-GET, C-MOVE, N-… ──▸ a task each ── responses, requests of ours ──▸ sender
       ├──── C-CANCEL, responses to those ──▸ the task that they are for
       └──── C-STORE, with a window agreed ─▸ a task each: commit, response

The reader is the connection's task; it alone starts tasks here. Past the agreed window it waits for room,
and so does the socket. When it ends, whatever the reason, long operations are cancelled, while objects
that were received whole still become durable.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog
import trio

from hounsfield.archive.errors import where
from hounsfield.archive.net.errors import NoAcceptedContextError, PeerGoneError
from hounsfield.archive.net.providers import discard_dataset, refuse, response_to
from hounsfield.archive.net.requests_of_ours import Awaited, RequestsOfOurs
from hounsfield.archive.net.sending import MessageSender, Pieces
from hounsfield.archive.net.services import Begin, Whole
from hounsfield.archive.wire import (
    AcceptedContext,
    Buffer,
    CCancelRequest,
    CFindRequest,
    CGetRequest,
    CMoveRequest,
    Command,
    CStoreRequest,
    CStoreResponse,
    LocalProtocolError,
    NEventReportRequest,
    NEventReportResponse,
    Priority,
    Status,
)

if TYPE_CHECKING:
    from hounsfield.archive.net.connection import Connection
    from hounsfield.archive.net.limits import NetLimits
    from hounsfield.archive.net.services import LongProvider, Peer

__all__ = ["Operations"]

log = structlog.get_logger(__name__)

_UNYIELDED_S = 0.001
_PENDING = (Status.PENDING, Status.PENDING_OPTIONAL_KEYS_NOT_SUPPORTED)

# What a request is told whose data set is longer than we hold (PS3.4 C.4.1.1.4, C.4.2.1.5, C.4.3.1.4).
_TOO_LONG: Mapping[type[Command], Status] = {
    CFindRequest: Status.OUT_OF_RESOURCES,
    CMoveRequest: Status.OUT_OF_RESOURCES_MATCHES,
    CGetRequest: Status.OUT_OF_RESOURCES_MATCHES,
}
# What it is told when its provider fails in a way that nobody foresaw.
_FAILED: Mapping[type[Command], Status] = dict.fromkeys(
    (CFindRequest, CMoveRequest, CGetRequest), Status.CANNOT_UNDERSTAND
)


class Operations:
    """See the module's text. One for each association; :meth:`around` for as long as it lasts."""

    def __init__(
        self,
        connection: Connection,
        sender: MessageSender,
        peer: Peer,
        provided: Mapping[tuple[str, type[Command]], LongProvider],
        limits: NetLimits,
    ) -> None:
        """``provided``: what is performed, by abstract syntax and class of the request."""
        self.connection = connection
        self.sender = sender
        self.peer = peer
        self.outstanding = 0
        """Operations of the peer's whose last response is not sent."""
        self._unanswered = 0  # of those, whose last response is not even being sent
        self._provided = provided
        self._limits = limits
        self._window = peer.asynchronous[0]
        self._tasks = 0
        self._held = 0  # bytes of data sets of requests that are not answered
        self._long: dict[int, _Running] = {}
        self.ours = RequestsOfOurs(connection, peer.asynchronous[1], limits.dimse_s)
        self._yielded = 0.0
        self._changed = trio.lowlevel.ParkingLot()
        self._performers: trio.Nursery
        self._commits: trio.Nursery

    @property
    def unanswered(self) -> bool:
        """Whether the peer asked something to which no last response is on its way."""
        return self._unanswered > 0

    async def around(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run ``serve``, which reads the association, until it ends; then end what is under way."""
        ending: Exception | None = None
        async with trio.open_nursery() as self._commits, trio.open_nursery() as self._performers:
            try:
                await serve()
            except Exception as error:  # noqa: BLE001 - raised below, when nothing is under way any more
                ending = error
            self._performers.cancel_scope.cancel()
        if ending is not None:
            raise ending

    async def finished(self) -> None:
        """Wait until no operation of the peer's is outstanding."""
        while self.outstanding:
            await self._changed.park()

    # ------------------------------------------------------------ what the reader hands over

    @staticmethod
    def begins_something(command: Command) -> bool:
        """Whether it is a request of the peer's, other than to stop another."""
        return not hasattr(command, "message_id_responded_to")

    async def take(self, context: AcceptedContext, command: Command) -> None:
        """Deal with any message but C-ECHO and C-STORE requests, whose data set is still to be read.

        Raises RemoteProtocolError for a response to nothing.
        """
        if isinstance(command, CCancelRequest):
            await discard_dataset(self.connection, command)
            running = self._long.get(command.message_id_responded_to)
            if running is not None:
                running.cancelled = True
        elif not self.begins_something(command):
            await self.ours.take_response(command)
        else:
            provider = self._provided.get((context.abstract_syntax, type(command)))
            if provider is None:
                await refuse(self.connection, context, command)
            else:
                await self._begin(provider, context, command)

    async def _begin(self, provider: LongProvider, context: AcceptedContext, request: Any) -> None:
        identifier = await self._identifier(request)
        status: Status | None = None
        comment = None
        if identifier is None:
            status = _TOO_LONG.get(type(request), Status.RESOURCE_LIMITATION)
            comment = "the data sets of these requests are longer than is taken here"
        elif request.message_id in self._long:
            status = Status.DUPLICATE_INVOCATION
        elif self._tasks - len(self._long) >= self._limits.operations_invoked_max:
            status = _TOO_LONG.get(type(request), Status.RESOURCE_LIMITATION)
            comment = "too many operations of this association are still at work"
        if identifier is None or status is not None:
            await self.connection.respond(context.context_id, response_to(request, status or 0, comment))
            return
        await self._room()
        begin: Begin | None = getattr(provider, "begin", None)
        if begin is not None:
            begun = begin(self.peer, context, request, identifier)
            if isinstance(begun, Whole):
                await self._answer_whole(context.context_id, begun)
                return
            provider = begun
        running = _Running(self, context, request, len(identifier))
        self._held += running.held
        self._long[request.message_id] = running
        self._begun()
        self._tasks += 1
        self._performers.start_soon(self._perform, running, provider, identifier)

    async def _answer_whole(self, context_id: int, whole: Whole) -> None:
        """Answer a request whose answer is here: without a task, and without another round of the loop."""
        self.outstanding += 1
        try:
            await self.sender.answers(context_id, whole.pending, whole.identifiers, whole.final)
        finally:
            self._ended()
        now = time.monotonic()
        if now - self._yielded > _UNYIELDED_S:  # who asks without end leaves others their time
            await trio.lowlevel.checkpoint()
            self._yielded = time.monotonic()

    async def _identifier(self, request: Command) -> bytes | None:
        """The whole data set of ``request``; None when it is too long, and was let go."""
        if not request.has_dataset:
            return b""
        gathered = bytearray()
        whole, most = True, self._limits.identifier_bytes_max - self._held
        while True:
            fragment = await self.connection.next_fragment()
            if whole and len(gathered) + len(fragment.data) > most:
                whole = False
                gathered.clear()
            if whole:
                gathered += fragment.data
            if fragment.last:
                return bytes(gathered) if whole else None

    # ------------------------------------------------------------ tasks

    async def _perform(self, running: _Running, provider: LongProvider, identifier: bytes) -> None:
        try:
            await provider(running, running.context, running.request, identifier)
            if not running.answered:
                raise LocalProtocolError("a provider ended without a last response")
        except PeerGoneError:
            await self._fail(running)  # another peer than this one, or there is nobody to tell
        except Exception as error:  # noqa: BLE001 - a defect fails this operation and no other
            log.error("an operation failed", command=type(running.request).__name__, **where(error))
            await self._fail(running)
        finally:
            self._tasks -= 1
            running.end()

    @staticmethod
    async def _fail(running: _Running) -> None:
        if running.answered:
            return
        status = _FAILED.get(type(running.request), Status.PROCESSING_FAILURE)
        with suppress(PeerGoneError):
            await running.respond(response_to(running.request, status, "a fault of the archive; see its log"))

    async def overlap(self, context_id: int, work: Callable[[], Awaitable[Command]]) -> None:
        """Have ``work`` done in a task of its own, and its response sent. Raises before it, or never."""
        await self._room()
        self._begun()
        self._commits.start_soon(self._overlapped, context_id, work)

    async def _overlapped(self, context_id: int, work: Callable[[], Awaitable[Command]]) -> None:
        unanswered = True
        try:
            response = await work()
            unanswered = False
            self._unanswered -= 1
            await self.sender.command(context_id, response)
        except PeerGoneError:
            pass
        finally:
            self._unanswered -= unanswered
            self._ended()

    async def _room(self) -> None:
        while self.outstanding >= self._window:
            await self._changed.park()

    def _begun(self) -> None:
        self.outstanding += 1
        self._unanswered += 1

    def answering(self) -> None:
        """The last response of a long operation is about to be sent."""
        self._unanswered -= 1

    def _ended(self) -> None:
        self.outstanding -= 1
        self._changed.unpark_all()
        if not self.outstanding:
            self.connection.settled()

    def answered(self, running: _Running) -> None:
        """A long operation of the peer's is over; its task may still have something to do."""
        if self._long.pop(running.request.message_id, None) is not None:
            self._held -= running.held
            self._ended()


class _Running:
    """One long operation: what :class:`~hounsfield.archive.net.services.Operation` promises."""

    def __init__(
        self, operations: Operations, context: AcceptedContext, request: Any, identifier_bytes: int
    ) -> None:
        self.context = context
        self.request = request
        self.held = identifier_bytes
        self.peer = operations.peer
        self.counters = operations.connection.counters
        self.cancelled = False
        self.answered = False
        self._operations = operations
        self._breathed = 0.0

    @property
    def contexts(self) -> Mapping[int, AcceptedContext]:
        return self._operations.connection.contexts

    async def respond(self, response: Command, identifier: Buffer | None = None) -> None:
        context_id = self.context.context_id
        if getattr(response, "status", None) in _PENDING:
            self._check()
            await self._send(context_id, response, identifier)
            await self._breathe()
        else:
            with self._last():
                await self._send(context_id, response, identifier)

    async def answer(
        self, pending: Command, identifiers: Sequence[Buffer], final: Command | None = None
    ) -> None:
        context_id, sender = self.context.context_id, self._operations.sender
        if final is None:
            self._check()
            await sender.answers(context_id, pending, identifiers, None)
            await self._breathe()
        else:
            with self._last():
                await sender.answers(context_id, pending, identifiers, final)

    def _check(self) -> None:
        if self.answered:
            raise LocalProtocolError("a request has one last response")

    @contextmanager
    def _last(self) -> Iterator[None]:
        """Around the sending of the last response."""
        self._check()
        self.answered = True
        self._operations.answering()
        try:
            yield
        finally:
            self._operations.answered(self)

    async def _breathe(self) -> None:
        """Answers that the kernel takes at once never block: let the reader see a C-CANCEL now and then."""
        now = time.monotonic()
        if now - self._breathed > _UNYIELDED_S:
            self._breathed = now
            await trio.lowlevel.checkpoint()

    async def _send(self, context_id: int, response: Command, identifier: Buffer | None) -> None:
        if identifier is None:
            await self._operations.sender.command(context_id, response)
        else:
            await self._operations.sender.message(context_id, response, identifier)

    async def store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        pieces: Pieces,
        *,
        sop_class_uid: str = "",
        move_originator: tuple[str, int] | None = None,
    ) -> CStoreResponse:
        begun = await self.begin_store(
            context, sop_instance_uid, pieces, sop_class_uid=sop_class_uid, move_originator=move_originator
        )
        return await begun.response()

    async def begin_store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        dataset: Buffer | Pieces,
        *,
        sop_class_uid: str = "",
        move_originator: tuple[str, int] | None = None,
    ) -> Awaited[CStoreResponse]:
        if context.abstract_syntax not in self.peer.scp_of:
            raise NoAcceptedContextError(
                f"the peer did not take the SCP role for SOP class {context.abstract_syntax}"
            )
        title, number = move_originator or (None, None)
        sender = self._operations.sender

        async def send(message_id: int) -> None:
            request = CStoreRequest(
                message_id,
                sop_class_uid or context.abstract_syntax,
                sop_instance_uid,
                getattr(self.request, "priority", Priority.MEDIUM),
                title,
                number,
            )
            if isinstance(dataset, AsyncIterator):
                await sender.stream(context.context_id, request, dataset)
            else:
                await sender.message(context.context_id, request, dataset)

        return await self._operations.ours.begin(CStoreResponse, send)

    async def report(
        self, context: AcceptedContext, request: NEventReportRequest, dataset: Buffer
    ) -> NEventReportResponse:
        sender = self._operations.sender

        async def send(message_id: int) -> None:
            numbered = replace(request, message_id=message_id, has_dataset=bool(dataset))
            if dataset:
                await sender.message(context.context_id, numbered, dataset)
            else:
                await sender.command(context.context_id, numbered)

        return await self._operations.ours.ask(NEventReportResponse, send)

    def end(self) -> None:
        """Its task is over: nothing of it is outstanding, answered or not."""
        if not self.answered:
            self.answered = True
            self._operations.answering()
        self._operations.answered(self)
