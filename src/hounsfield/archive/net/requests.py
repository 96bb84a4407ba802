"""DIMSE on an association that we requested: what we ask, what comes back, and what the peer asks of us.

There is no task that reads all the time. Of the tasks that wait for something, one reads, and hands to the
others what is theirs; when it has what it waited for, another takes over. So a peer is read exactly
while somebody wants to hear from it, and an error is raised where somebody waits.

Messages are sent whole, one after the other (PS3.8 Annex E); operations may be outstanding up to the agreed
window (PS3.7 D.3.3.3). While a C-GET runs the peer sends C-STORE requests on the same association;
:class:`Storage` takes the objects. N-EVENT-REPORT requests go to the ``reports`` function.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import trio

from hounsfield.archive.net.errors import (
    AbortedError,
    BrokeProtocolError,
    ConnectionLostError,
    GivenUpError,
    NetError,
    PeerGoneError,
    TimedOutError,
)
from hounsfield.archive.net.incoming import IncomingObject, Reports, Storage
from hounsfield.archive.net.remote import RemoteEntity, ScuLimits
from hounsfield.archive.net.transport import SocketTransport, StreamTransport
from hounsfield.archive.net.turns import Turns
from hounsfield.archive.wire import (
    NEED_DATA,
    Abort,
    Association,
    Buffer,
    CCancelRequest,
    Command,
    CommandReceived,
    CStoreRequest,
    CStoreResponse,
    DataFragment,
    DatasetFragment,
    Event,
    LocalProtocolError,
    MessageReader,
    MessageWriter,
    NEventReportRequest,
    NEventReportResponse,
    ReleaseReply,
    ReleaseRequest,
    RemoteProtocolError,
    Role,
    State,
    Status,
    WireLimits,
)
from hounsfield.archive.wire.commands import BY_CLASS, BY_COMMAND_FIELD

__all__ = ["NAMES_ANOTHER", "Answer", "Requests", "is_pending", "names_another"]

NAMES_ANOTHER = "the response names another SOP instance"
"""Why an object failed, when its response :func:`names_another`."""

_RESPONSE = 0x8000  # the bit that makes a command field a response's (PS3.7 E.1)
_ABANDONED_MAX = 64  # operations given up and not ended yet; a peer that ends none is not worth waiting for

Answer: TypeAlias = tuple[Command, bytes]
"""A response, and its data set, ``b""`` without one."""


@dataclass(slots=True)
class _Operation:
    """A request of ours that is under way."""

    expected: type[Command]
    answers: deque[Answer]


class _Collected:
    """A data set that is held whole until it is complete."""

    def __init__(self, context_id: int, command: Command) -> None:
        self.context_id = context_id
        self.command = command
        self.data = bytearray()


@dataclass(slots=True)
class _Stored:
    """An object on its way into :class:`Storage`."""

    context_id: int
    request: CStoreRequest
    object: IncomingObject


class Requests:
    """See the module's text. Any number of tasks may call; a cancelled one that was within a message ends it
    for all, with GivenUpError.
    """

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        remote: RemoteEntity,
        transport: SocketTransport | StreamTransport,
        limits: ScuLimits,
        receive_pdu_bytes: int,
        storage: Storage | None,
        reports: Reports | None,
    ) -> None:
        self._remote = remote
        self._transport = transport
        self._limits = limits
        self._storage = storage
        self._reports = reports
        wire_limits = WireLimits(receive_buffer_bytes=2 * receive_pdu_bytes)
        self.association = Association(Role.REQUESTOR, wire_limits)
        self.writer = MessageWriter(self.association)
        self._reader = MessageReader(wire_limits)
        self._message_id = 0
        self._operations: dict[int, _Operation] = {}
        self._abandoned: set[int] = set()
        self._sending = Turns()
        self._reading = False
        self._listening = trio.CancelScope()
        self._within = False
        self._waiting = trio.lowlevel.ParkingLot()
        self._receiving: _Collected | _Stored | None = None
        self._failure: NetError | None = None

    # ------------------------------------------------------------ operations

    def next_message_id(self) -> int:
        """A message id that no operation under way has."""
        while True:
            self._message_id = self._message_id % 0xFFFF + 1
            if self._message_id not in self._operations and self._message_id not in self._abandoned:
                return self._message_id

    def begin(self, message_id: int, expected: type[Command]) -> None:
        """Responses of class ``expected`` to this message are waited for from here on."""
        self._operations[message_id] = _Operation(expected, deque())

    def end(self, message_id: int) -> None:
        """Its last response was taken, or it was never sent."""
        self._operations.pop(message_id, None)

    def abandon(self, message_id: int) -> None:
        """Nobody waits for it any more; responses that still come are dropped."""
        if self._operations.pop(message_id, None) is not None and len(self._abandoned) < _ABANDONED_MAX:
            self._abandoned.add(message_id)

    @property
    def outstanding(self) -> bool:
        """Whether the peer still owes an answer to something that was abandoned."""
        return bool(self._abandoned)

    @property
    def usable(self) -> bool:
        """Whether messages can still be exchanged."""
        return self._failure is None

    async def answer(self, message_id: int) -> Answer:
        """The next response to that message. Raises NetError."""
        answers = self._operations[message_id].answers
        while not answers:
            if not await self._hear_nowait():
                await self._hear(self._limits.response_s)
        return answers.popleft()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read, with all the patience the caller has, until ``condition`` holds. Raises NetError."""
        while not condition():
            await self._hear(None)

    # ------------------------------------------------------------ sending

    async def send_message(self, context_id: int, command: Command, dataset: Iterable[Buffer] = ()) -> None:
        """One whole message. Raises NetError."""
        async with self._sending:
            self._raise_if_failed()
            with self._whole_or_over():
                if not command.has_dataset:
                    await self.send(self.writer.command(context_id, command))
                    return
                for batch in self.writer.message(context_id, command, dataset):
                    await self.send(batch)

    async def send_object(
        self,
        context_id: int,
        command: Command,
        first: tuple[Buffer, bool],
        pieces: Any,
    ) -> None:
        """One message whose data set is ``first`` and what ``pieces`` (an async iterator) has after it."""
        async with self._sending:
            self._raise_if_failed()
            with self._whole_or_over():
                # the command waits for the first piece: a small object goes out in one write
                pending = self.writer.command(context_id, command)
                data, last = first
                while True:
                    for batch in self.writer.dataset(context_id, data, last=last):
                        await self.send([*pending, *batch])
                        pending = []
                    if last:
                        return
                    data, last = await anext(pieces)

    def _whole_or_over(self) -> _WholeOrOver:
        return _WholeOrOver(self)

    def fail(self, error: BaseException) -> None:
        """The association is of no use any more, to anybody who waits."""
        if self._failure is None:
            self._failure = (
                error
                if isinstance(error, NetError)
                else GivenUpError(f"the association with {self._remote} was given up within a message")
            )
        self._listening.cancel()  # who reads waits for what will not come
        self._waiting.unpark_all()

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise copy.copy(self._failure)  # several tasks raise it: each has a traceback of its own

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Write ``buffers``. Raises NetError; what the peer said before it hung up, if it said anything."""
        try:
            buffers = self._transport.send_nowait(buffers)
            if not buffers:  # no timer for what the kernel takes at once
                return
            with trio.move_on_after(self._limits.write_s) as scope:
                await self._transport.send(buffers)
        except PeerGoneError as error:
            raise await self._why_gone() from error
        if scope.cancelled_caught:
            raise TimedOutError(f"{self._remote} does not take what is sent; check its disk and its log")

    async def _why_gone(self) -> NetError:
        """The connection broke under a write: perhaps the peer said why before."""
        if self._reading:  # another task hears it
            return ConnectionLostError(f"{self._remote} closed the connection")
        with trio.move_on_after(1.0):
            while True:
                try:
                    event = await self._next_event()
                except NetError as error:
                    return error
                if isinstance(event, Abort):
                    return AbortedError(f"{self._remote} aborted the association")
                if not isinstance(event, DataFragment):
                    break
        return ConnectionLostError(f"{self._remote} closed the connection")

    # ------------------------------------------------------------ receiving

    async def _hear(self, seconds: float | None) -> None:
        """Something happens: read one event, or wait while another task does."""
        self._raise_if_failed()
        if self._reading:
            await self._waiting.park()
            return
        self._reading = True
        self._listening = trio.CancelScope()
        try:
            event: Event | None = None
            with self._listening:
                event = await (self._next_event() if seconds is None else self.event(seconds, "response"))
            if event is None:  # another operation ended the association meanwhile
                self._raise_if_failed()
                return
            self._within = True
            await self._take(event)
            self._within = False
        except BaseException as error:
            # cancelled while nothing was in hand: the others go on
            if self._within or not isinstance(error, trio.Cancelled):
                self.fail(error)
            raise
        finally:
            self._reading = False
            self._waiting.unpark_all()

    async def _hear_nowait(self) -> bool:
        """As :meth:`_hear`, what is here already, if anything is: no timer, no round of the event loop."""
        if self._reading or self._failure is not None:
            return False
        association = self.association
        self._reading = self._within = True
        try:
            event = association.next_event()
            if event is NEED_DATA:
                count = self._transport.receive_nowait(association.receive_buffer())
                if count < 0:
                    self._within = False
                    return False
                association.received(count)
                event = association.next_event()
            if event is not NEED_DATA:
                await self._take(event)
            self._within = False
        except RemoteProtocolError as error:
            try:
                await self._broke_protocol(error)
            except BaseException as broken:
                self.fail(broken)
                raise
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            self._reading = False
            self._waiting.unpark_all()
        return True

    async def event(self, seconds: float, what: str) -> Event:
        """The next event. Raises TimedOutError naming ``what``, and other NetErrors."""
        with trio.move_on_after(seconds):
            return await self._next_event()
        raise TimedOutError(f"no {what} from {self._remote} within {seconds:g} s")

    async def _next_event(self) -> Event:
        association = self.association
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

    async def _take(self, event: Event) -> None:
        if not isinstance(event, DataFragment):
            await self.over(event)
        try:
            message = self._reader.receive(event)
        except RemoteProtocolError as error:
            await self._broke_protocol(error)
        if isinstance(message, CommandReceived):
            await self._command(message)
        elif isinstance(message, DatasetFragment):
            await self._fragment(message)

    async def _command(self, message: CommandReceived) -> None:
        command = message.command
        if isinstance(command, CCancelRequest):
            return  # late, or for nothing: PS3.7 9.3.2.3 knows no answer
        if isinstance(command, CStoreRequest) and self._storage is not None:
            context = self.association.contexts[message.context_id]
            taker = self._storage.begin(context, command)
            self._receiving = _Stored(message.context_id, command, taker)
            return
        responded_to = getattr(command, "message_id_responded_to", None)
        if responded_to is not None:
            operation = self._operations.get(responded_to)
            wrong = operation is None and responded_to not in self._abandoned
            if wrong or (operation is not None and not isinstance(command, operation.expected)):
                await self._broke_protocol(
                    RemoteProtocolError(f"{type(command).__name__} in place of the response")
                )
        if command.has_dataset:
            self._receiving = _Collected(message.context_id, command)
        else:
            await self._whole(message.context_id, command, b"")

    async def _fragment(self, fragment: DatasetFragment) -> None:
        receiving = self._receiving
        if isinstance(receiving, _Collected):
            receiving.data += fragment.data
            if len(receiving.data) > self._limits.identifier_bytes_max:
                await self._broke_protocol(
                    RemoteProtocolError(f"a data set over {self._limits.identifier_bytes_max} bytes")
                )
            if fragment.last:
                self._receiving = None
                await self._whole(receiving.context_id, receiving.command, bytes(receiving.data))
            return
        assert receiving is not None
        if fragment.data:
            await receiving.object.write(fragment.data)
        if fragment.last:
            request = receiving.request
            status, comment = await receiving.object.commit()
            self._receiving = None
            response = CStoreResponse(
                request.message_id,
                status,
                request.affected_sop_class_uid,
                request.affected_sop_instance_uid,
                error_comment=comment or None,
            )
            await self.send_message(receiving.context_id, response)

    async def _whole(self, context_id: int, command: Command, dataset: bytes) -> None:
        """A message is complete: a response goes to who asked, a request gets its answer."""
        responded_to = getattr(command, "message_id_responded_to", None)
        if responded_to is None:
            await self._asked(context_id, command, dataset)
            return
        operation = self._operations.get(responded_to)
        if operation is not None:
            operation.answers.append((command, dataset))
        elif not is_pending(command):
            self._abandoned.discard(responded_to)

    async def _asked(self, context_id: int, request: Any, dataset: bytes) -> None:
        """Answer a request of the peer's that is not a C-STORE of a C-GET."""
        if isinstance(request, NEventReportRequest) and self._reports is not None:
            response: Command = NEventReportResponse(
                request.message_id,
                self._reports(self.association.contexts[context_id], request, dataset),
                request.affected_sop_class_uid,
                request.affected_sop_instance_uid,
                request.event_type_id,
            )
        else:
            make: Any = BY_COMMAND_FIELD[BY_CLASS[type(request)].command_field | _RESPONSE].cls
            response = make(request.message_id, Status.UNRECOGNIZED_OPERATION)
        await self.send_message(context_id, response)

    # ------------------------------------------------------------ endings

    def close(self) -> None:
        """An object that is not here whole is forgotten."""
        receiving, self._receiving = self._receiving, None
        if isinstance(receiving, _Stored):
            receiving.object.abandon()

    async def _broke_protocol(self, error: RemoteProtocolError) -> NoReturn:
        await self._last_words(self.association.answer(error))
        raise BrokeProtocolError(f"{self._remote} broke the protocol: {error}") from error

    async def _last_words(self, words: Sequence[Buffer]) -> None:
        """Write ``words``, unless somebody is within a message: the peer will see the end all the same."""
        if self._sending.taken():
            return
        async with self._sending:
            with suppress(PeerGoneError), trio.move_on_after(1.0):
                await self._transport.send(words)

    async def over(self, event: Event) -> NoReturn:
        """The association ended while something was due. Raises NetError."""
        if isinstance(event, Abort):
            raise AbortedError(f"{self._remote} aborted the association")
        if isinstance(event, ReleaseRequest):
            await self._last_words(self.association.send(ReleaseReply()))
            raise ConnectionLostError(f"{self._remote} released the association while a response was due")
        raise ConnectionLostError(f"{self._remote} closed the connection")


class _WholeOrOver:
    """A message of which only a part went out makes the association useless."""

    __slots__ = ("_requests",)

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            return
        requests = self._requests
        if isinstance(error, LocalProtocolError) and requests.association.state is not State.ESTABLISHED:
            # Another task heard the end of it while this one was within its message.
            requests.fail(ConnectionLostError(f"{requests._remote} closed the connection"))
            requests._raise_if_failed()
        requests.fail(error)


def names_another(response: CStoreResponse, sop_instance_uid: str) -> bool:
    """Whether a C-STORE response speaks of an instance other than the one that was sent.

    PS3.7 9.1.1.1.4: it may leave the UID out and may not say another. What does says nothing of ours: it may
    be late, for an object before, or of a peer that files objects under UIDs of its own.
    """
    named = response.affected_sop_instance_uid
    return bool(named) and named != sop_instance_uid


def is_pending(response: Command) -> bool:
    """Whether more responses follow this one (PS3.7 C.1.4)."""
    status: int = getattr(response, "status", 0)
    return status & 0xFF00 == Status.PENDING
