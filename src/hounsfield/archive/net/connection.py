"""One peer's connection to the listener, from the first byte to the last: one task, one association.

::

    PENDING ──A-ASSOCIATE-RQ──▸ IDLE ◂──response── BUSY        what a drain does:  PENDING, IDLE: abort now
       └─ ARTIM                  └─ idle_s ──command──▸ └─ dimse_s       others: finish, then as IDLE
                                 ANSWERING ◂─long operation─ BUSY

The bytes of an object pass through here as views into the association's receive buffer; per object there are
a few receptions, one commit and one write. One cancel scope per connection bounds every wait. What takes
longer runs in tasks beside (:mod:`~hounsfield.archive.net.operation`); only this one reads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, NoReturn

import structlog
import trio

from hounsfield.archive.engine.types import Source
from hounsfield.archive.errors import alone, where
from hounsfield.archive.net.admission import Admission
from hounsfield.archive.net.agreement import peer_of, terms_for
from hounsfield.archive.net.certificates import PeerCertificate
from hounsfield.archive.net.errors import PeerGoneError
from hounsfield.archive.net.negotiation import negotiate
from hounsfield.archive.net.operation import Operations
from hounsfield.archive.net.policy import Refusal
from hounsfield.archive.net.providers import Counters
from hounsfield.archive.net.records import CallRecord, EndRecord
from hounsfield.archive.net.sending import MessageSender
from hounsfield.archive.net.services import Identified
from hounsfield.archive.net.transport import Deadline, SocketTransport, StreamTransport
from hounsfield.archive.wire import (
    NEED_DATA,
    Abort,
    AcceptedContext,
    AssociateRequest,
    Association,
    Buffer,
    Command,
    CommandReceived,
    DataFragment,
    DatasetFragment,
    Event,
    MessageReader,
    ReleaseReply,
    ReleaseRequest,
    RemoteProtocolError,
    Role,
    State,
    TransportClosed,
    lone_command,
)

if TYPE_CHECKING:
    from hounsfield.archive.net.listener import Endpoint, Listener

__all__ = ["Connection", "Phase"]

log = structlog.get_logger(__name__)

_UNREAD = memoryview(bytearray(64 * 1024))
"""Where all connections receive what is thrown away."""


class Phase(Enum):
    """What the connection is doing, which says how long it may wait and what a drain does to it."""

    PENDING = "no association yet"
    IDLE = "between two messages"
    BUSY = "within a message"
    ANSWERING = "between two messages, while the peer waits for answers"
    ENDING = "after the last word"


class _Ended(Exception):  # noqa: N818 - an event: the association is over, everything was said
    """Everything was said: it ended in good order, or it says why not."""


class Connection:
    """See the module's text. ``run`` once; ``drain`` and ``end`` from any task of the same loop."""

    def __init__(
        self,
        listener: Listener,
        endpoint: Endpoint,
        transport: SocketTransport | StreamTransport,
        address: str,
        certificate: PeerCertificate | None = None,
        *,
        began: float | None = None,
    ) -> None:
        """``began``: when it was accepted, by trio's clock; now, when nothing came before this."""
        self.address = address
        self.phase = Phase.PENDING
        self.source = Source("dimse", address=address)
        self.counters = Counters()
        self._listener = listener
        self._endpoint = endpoint
        self._admission = Admission(listener, endpoint, address, certificate)
        self._call: CallRecord | None = None
        self._limits = listener.limits
        self._transport = transport
        self._association = Association(Role.ACCEPTOR, listener.wire_limits)
        self._reader = MessageReader(listener.wire_limits)
        self._sender = MessageSender(self._association, transport, self._limits.write_s, self.end)
        self._operations: Operations
        self._scope = trio.CancelScope()
        self._deadline = Deadline(self._scope)
        self._linger = trio.CancelScope()
        self._began = trio.current_time() if began is None else began
        self._unyielded = 0
        self._message_began = 0.0
        self._message_bytes_before = 0
        self.contexts: Mapping[int, AcceptedContext] = {}
        self.stores = True
        self.overlapping = False
        self._receiving = False
        self._draining = False
        self._ended_because = ""

    # ------------------------------------------------------------ from outside

    @property
    def bytes_in(self) -> int:
        """Received so far."""
        return self._transport.bytes_in

    @property
    def bytes_out(self) -> int:
        """Sent so far."""
        return self._transport.bytes_out

    def drain(self) -> None:
        """End as soon as nothing is under way."""
        self._draining = True
        if self.phase in (Phase.PENDING, Phase.IDLE):
            self.end("the archive is shutting down")

    def end(self, because: str, *, too_slow: bool = False) -> None:
        """Abort, now; ``because`` is for the log."""
        if not self._ended_because:
            self._ended_because = because
            self.counters.associations_timed_out += too_slow and self._admission.open
        if self.phase is Phase.ENDING:
            self._linger.cancel()  # everything was said
        else:
            self._scope.cancel()

    # ------------------------------------------------------------ the whole of it

    async def run(self) -> None:
        """Serve the peer until it or we end it. The transport is closed then."""
        last_words: list[Buffer] = []
        because = ""
        try:
            with self._scope:
                try:
                    await self._converse()
                except _Ended as ended:
                    because = str(ended)
                except RemoteProtocolError as error:
                    because = str(error)
                    last_words = self._association.answer(error)
                except PeerGoneError as error:
                    because = str(error)
                except Exception as error:  # noqa: BLE001 - a defect ends this association and no other
                    log.error("an association failed", **where(alone(error)))
                    because = "a fault of ours"
                    last_words = self._abort_words()
            if self._scope.cancelled_caught:
                because = because or self._ended_because or self._timed_out()
                last_words = self._abort_words()
            if because:
                self._note_broken(because)
            self.phase = Phase.ENDING
            if last_words:
                await self._say_last(last_words)
        finally:
            self._admission.close()
            with trio.CancelScope(shield=True):
                await self._transport.aclose()

    async def _converse(self) -> None:
        request = await self._next_event()
        if isinstance(request, TransportClosed):
            self.counters.connections_failed += 1
            raise _Ended
        if not isinstance(request, AssociateRequest):
            raise _Ended  # an abort: whoever it was thought better of it
        self._listener.request_came(self)
        self.source = Source(
            "dimse",
            calling_ae=_printable(request.calling_ae),
            called_ae=_printable(request.called_ae),
            address=self.address,
        )
        admission = self._admission
        who = await admission.judge(request, draining=self._draining)
        refusal = who if isinstance(who, Refusal) else None
        self._call = CallRecord(
            time.time(),
            self.address,
            self.source.calling_ae,
            self.source.called_ae,
            "refused" if refusal else "accepted",
            refusal.reason if refusal else "",
            who.name if isinstance(who, Identified) else "",
            admission.certificate.subject if admission.certificate else "",
        )
        self._listener.called(self._call)
        if refusal is not None:
            admission.close()  # it takes no one's place while it lingers
            self.phase = Phase.ENDING
            self._listener.refused(self)
            await self._say_last(self._association.send(refusal.reject))
            raise _Ended
        identified = who if isinstance(who, Identified) else None
        asked = request.user.identity
        response = identified.response if identified and asked and asked.response_requested else None
        terms = terms_for(admission.ae, self._endpoint.policy, self._listener.services, self._limits)
        self.stores = terms.storage
        accept = negotiate(request, terms, response)
        await self._sender.raw(self._association.send(accept))
        self.contexts = self._association.contexts
        peer = peer_of(self.source, accept, admission.ae, identified)
        self.overlapping = peer.asynchronous[0] > 1
        self._operations = Operations(self, self._sender, peer, self._listener.provided, self._limits)
        await self._operations.around(self._serve)
        self.phase = Phase.ENDING
        self.counters.associations_released += 1
        await self._say_last(self._association.send(ReleaseReply()))
        self._log_end("released")

    async def _serve(self) -> None:
        """Messages, until the peer asks for the release."""
        reader, providers, operations = self._reader, self._listener.providers, self._operations
        while True:
            self.phase = Phase.ANSWERING if operations.outstanding else Phase.IDLE
            last = self._draining
            event = await self._next_event()
            if isinstance(event, DataFragment):
                if last and not operations.outstanding:
                    await self._end_drained()
                message = reader.receive(event)
                while message is None:
                    self._begin_message()
                    fragment = await self._next_event()
                    if not isinstance(fragment, DataFragment):
                        self._end_within_message(fragment)
                    message = reader.receive(fragment)
                assert isinstance(message, CommandReceived)
                self._begin_message()
                context, command = self.contexts[message.context_id], message.command
                if last and operations.begins_something(command):
                    await operations.finished()
                    await self._end_drained()
                provider = providers.get(type(command))
                if provider is not None:
                    await provider(self, context, command)
                else:
                    await operations.take(context, command)
            elif isinstance(event, ReleaseRequest):
                if operations.unanswered:
                    raise RemoteProtocolError("a release request while an operation is under way")
                return
            else:
                self._end_early(event)

    async def _end_drained(self) -> NoReturn:
        """What was under way is answered; a peer who goes on would hold us for ever."""
        self.end("the archive is shutting down")
        await trio.lowlevel.checkpoint_if_cancelled()
        raise AssertionError("the connection's scope is cancelled")

    def _begin_message(self) -> None:
        if self.phase is not Phase.BUSY:
            self.phase = Phase.BUSY
            self._message_began = trio.current_time()
            self._message_bytes_before = self._transport.bytes_in

    def _end_early(self, event: Event) -> NoReturn:
        """The association ends without a release: the peer's abort, or its disappearance."""
        raise _Ended("aborted by the peer" if isinstance(event, Abort) else "the peer closed the connection")

    def _end_within_message(self, event: Event) -> NoReturn:
        if isinstance(event, ReleaseRequest):
            raise RemoteProtocolError("a release request within a message")
        self._end_early(event)

    def settled(self) -> None:
        """No answer of ours is due any more: from now on the peer may be silent only so long."""
        if self.phase is Phase.ANSWERING:
            self.phase = Phase.IDLE
            if self._receiving:
                self._deadline.at(self._patience())

    # ------------------------------------------------------------ what providers use (Link)

    async def next_fragment(self) -> DatasetFragment:
        """The next bytes of the data set under way."""
        event = await self._next_event()
        if not isinstance(event, DataFragment):
            self._end_within_message(event)
        fragment = self._reader.receive(event)
        assert isinstance(fragment, DatasetFragment)
        return fragment

    def response_nowait(self, message_id: int, expected: type[Command]) -> Command | None:
        """The response to a request of ours, if it is here and nothing else is; None leaves it to the reader.

        Who sends many objects is spared the event loop's round for each. Only while the reader waits for
        the first byte of a message, and for what is one PDU: whatever is odd about it, the reader finds out.
        """
        association = self._association
        if not self._receiving or self.phase is Phase.BUSY or not association.between_pdus:
            return None
        came = self._transport.peek_nowait()
        found = lone_command(came)
        if found is None or found[0] not in self.contexts:
            return None
        command = found[1]
        if type(command) is not expected or getattr(command, "message_id_responded_to", None) != message_id:
            return None
        self._transport.take_peeked(len(came))
        return command

    async def respond(self, context_id: int, response: Command) -> None:
        """Send a response, in one write."""
        await self._sender.command(context_id, response)

    async def overlap(self, context_id: int, work: Callable[[], Awaitable[Command]]) -> None:
        """Have ``work`` done beside what follows, and its response sent."""
        await self._operations.overlap(context_id, work)

    # ------------------------------------------------------------ bytes

    async def _next_event(self) -> Event:
        association, transport = self._association, self._transport
        begun = False
        while True:
            event = association.next_event()
            if event is not NEED_DATA:
                self._unyielded += 1
                if self._unyielded > self._limits.unyielded_fragments_max:
                    self._unyielded = 0
                    await trio.lowlevel.checkpoint()
                return event
            if begun and (self.phase is Phase.IDLE or self.phase is Phase.ANSWERING):
                self._begin_message()  # a part of a PDU is here: the rest has to follow
            view = association.receive_buffer()
            count = transport.receive_nowait(view)
            if count < 0:
                self._receiving = True
                self._deadline.at(self._patience())
                count = await transport.receive(view)
                self._unyielded = 0
                self._deadline.off()
                self._receiving = False
            else:
                await transport.breathe()
            association.received(count)
            begun = count > 0

    def _patience(self) -> float:
        """Until when the peer may be silent now."""
        limits = self._limits
        if self.phase is Phase.BUSY:
            received = self._transport.bytes_in - self._message_bytes_before
            slowest = self._message_began + limits.dimse_s + received / limits.receive_rate_min
            return min(trio.current_time() + limits.dimse_s, slowest)
        if self.phase is Phase.ANSWERING:
            return math.inf
        if self.phase is Phase.PENDING:
            return self._began + limits.artim_s
        return trio.current_time() + (limits.drain_release_s if self._draining else limits.idle_s)

    async def _say_last(self, buffers: list[Buffer]) -> None:
        """Send the last PDU, and wait a little for the peer to close: that is its part (PS3.8 9.2.3).

        Closing first would reset the connection when bytes are unread, and even an orderly end that comes
        together with the PDU makes some requestors miss the PDU.
        """
        transport = self._transport
        left = self._limits.linger_bytes_max
        self._linger.deadline = trio.current_time() + self._limits.linger_s
        with self._linger:
            try:
                await transport.send(buffers)
            except PeerGoneError:
                return
            while left > 0:
                count = await transport.receive(_UNREAD)
                if count <= 0:
                    return
                left -= count

    # ------------------------------------------------------------ endings

    def _abort_words(self) -> list[Buffer]:
        association = self._association
        if association.state in (State.IDLE, State.AWAITING_CLOSE):
            return association.data_to_send()
        if association.state is State.AWAITING_ASSOCIATE_RQ:
            association.artim_expired()  # PS3.8 AA-2: close, there is nobody to say it to
            return []
        return association.send(Abort())  # our wish, not the protocol's: the user's (PS3.8 AA-1)

    def _timed_out(self) -> str:
        if self._admission.open:
            self.counters.associations_timed_out += 1
        if self._draining:
            return "the archive is shutting down"
        return f"too slow ({self.phase.value})"

    def _note_broken(self, because: str) -> None:
        if self._association.accept is not None:
            self.counters.associations_aborted += 1
            self._listener.observer.association_aborted()
            self._log_end(because)
        elif not self._admission.open:
            self.counters.connections_failed += 1
            log.info("a connection came to nothing", address=self.address, reason=because)

    def _log_end(self, reason: str) -> None:
        seconds = trio.current_time() - self._began
        log.info(
            "association ended",
            reason=reason,
            address=self.address,
            calling_ae=self.source.calling_ae,
            bytes=self._transport.bytes_in,
            seconds=round(seconds, 3),
        )
        if self._call is not None:
            self._listener.observer.ended(
                EndRecord(
                    self._call,
                    time.time(),
                    reason,
                    seconds,
                    self.counters.objects_received,
                    self.counters.objects_failed,
                    self._transport.bytes_in,
                    self._transport.bytes_out,
                )
            )


def _printable(title: str) -> str:
    """A title as a stranger sent it, safe in a log and on a terminal."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in title.strip())
