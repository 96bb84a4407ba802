"""One association as a machine without I/O: bytes in, events out; events in, buffers out (PS3.8 9).

    association = Association(Role.ACCEPTOR)
    while not association.should_close:
        try:
            event = association.next_event()
        except RemoteProtocolError as error:
            sock.sendmsg(association.answer(error))      # then wait for the close, or for ARTIM
            continue
        if event is NEED_DATA:
            association.received(sock.recv_into(association.receive_buffer()))
        elif isinstance(event, TransportClosed):
            break
        else:
            ...          # a DataFragment goes to a MessageReader; answers are sendmsg(association.send(...))

While ``artim_running``, whoever has a clock calls ``artim_expired`` when it has run for too long.
The theory is in :mod:`hounsfield.archive.wire.states`. Not thread-safe: an association has an owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from struct import Struct
from types import MappingProxyType
from typing import Final, Literal, NoReturn, TypeAlias

from hounsfield.archive.wire import negotiation, pdu_reader
from hounsfield.archive.wire.errors import (
    InvalidPduError,
    LocalProtocolError,
    RefusedRequestError,
    RemoteProtocolError,
)
from hounsfield.archive.wire.limits import WireLimits
from hounsfield.archive.wire.machine import Machine
from hounsfield.archive.wire.negotiation import AcceptedContext
from hounsfield.archive.wire.pdu_writer import PDV_OVERHEAD, write_pdu
from hounsfield.archive.wire.pdus import (
    Abort,
    AbortReason,
    AbortSource,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    Buffer,
    DataFragment,
    Event,
    Pdu,
    PduType,
    ReleaseReply,
    ReleaseRequest,
    TransportClosed,
)
from hounsfield.archive.wire.receive_buffer import ReceiveBuffer
from hounsfield.archive.wire.states import Role, State, Trigger

__all__ = ["NEED_DATA", "Association", "NeedData"]


class NeedData(Enum):
    """The type of :data:`NEED_DATA`."""

    NEED_DATA = "NEED_DATA"


NEED_DATA: Final = NeedData.NEED_DATA
"""What ``next_event`` returns when more bytes must be received first."""

NextEvent: TypeAlias = Event | Literal[NeedData.NEED_DATA]

_PDU_HEADER = Struct(">BxI")
_PDV_HEADER = Struct(">IBB")
_SMALL_PDU_BYTES = 4  # reject, release and abort say all they have to say in four bytes

_TRIGGERS: dict[int, Trigger] = {
    PduType.ASSOCIATE_RQ: Trigger.ASSOCIATE_RQ,
    PduType.ASSOCIATE_AC: Trigger.ASSOCIATE_AC,
    PduType.ASSOCIATE_RJ: Trigger.ASSOCIATE_RJ,
    PduType.P_DATA_TF: Trigger.P_DATA_TF,
    PduType.RELEASE_RQ: Trigger.RELEASE_RQ,
    PduType.RELEASE_RP: Trigger.RELEASE_RP,
    PduType.ABORT: Trigger.ABORT,
}
_LOCAL_TRIGGERS: dict[type[Pdu], Trigger] = {
    AssociateRequest: Trigger.LOCAL_ASSOCIATE_REQUEST,
    AssociateAccept: Trigger.LOCAL_ACCEPT,
    AssociateReject: Trigger.LOCAL_REJECT,
    DataFragment: Trigger.LOCAL_DATA,
    ReleaseRequest: Trigger.LOCAL_RELEASE_REQUEST,
    ReleaseReply: Trigger.LOCAL_RELEASE_REPLY,
    Abort: Trigger.LOCAL_ABORT,
}


class Association:
    """One association, from the open connection to its end."""

    def __init__(self, role: Role, limits: WireLimits | None = None) -> None:
        """The connection exists: an acceptor awaits the request (ARTIM runs), a requestor sends it next."""
        self._role = role
        self._limits = limits if limits is not None else WireLimits()
        self._incoming = ReceiveBuffer(
            max(self._limits.receive_buffer_bytes, self._limits.associate_bytes_max + _PDU_HEADER.size),
            self._limits.receive_buffer_bytes_first,
        )
        self._machine = Machine()
        self._closed = False
        self._cut_off = False
        # where in a P-DATA-TF the next byte lies: payload left in the PDU, then in the PDV
        self._pdu_left = self._pdv_left = 0
        self._pdv_context = 0
        self._pdv_is_command = self._pdv_last = False
        self._out: list[Buffer] = []
        self._request: AssociateRequest | None = None
        self._accept: AssociateAccept | None = None
        self._contexts: dict[int, AcceptedContext] = {}
        self._receive_max = 0
        self._send_max = self._limits.peer_pdu_bytes_default
        if role is Role.ACCEPTOR:
            self._machine.fire(Trigger.TRANSPORT_ACCEPTED)

    # ------------------------------------------------------------ what it is

    @property
    def role(self) -> Role:
        return self._role

    @property
    def limits(self) -> WireLimits:
        return self._limits

    @property
    def state(self) -> State:
        """PS3.8's state; its value is the standard's number."""
        return self._machine.state

    @property
    def artim_running(self) -> bool:
        """Whether the ARTIM timer runs: if it does so for too long, call ``artim_expired``."""
        return self._machine.artim_running

    @property
    def artim_starts(self) -> int:
        """How often the timer was started: a change means a full period from now."""
        return self._machine.artim_starts

    @property
    def should_close(self) -> bool:
        """Whether the transport connection must be closed now (once ``data_to_send`` is written)."""
        return self._machine.should_close

    @property
    def request(self) -> AssociateRequest | None:
        """The A-ASSOCIATE-RQ that was received or sent."""
        return self._request

    @property
    def accept(self) -> AssociateAccept | None:
        """The A-ASSOCIATE-AC that was sent or received."""
        return self._accept

    @property
    def contexts(self) -> Mapping[int, AcceptedContext]:
        """The accepted presentation contexts by id; empty before the association is established."""
        return MappingProxyType(self._contexts)

    @property
    def send_pdu_bytes_max(self) -> int:
        """The longest P-DATA-TF (its length field) to send: the peer's maximum, within our own ceiling."""
        return self._send_max

    @property
    def release_reply_due(self) -> bool:
        """Whether a ReleaseReply is ours to send now (Sta8, 9, 12). In Sta10 the peer's comes first."""
        return self._machine.permits(Trigger.LOCAL_RELEASE_REPLY)

    # ------------------------------------------------------------ bytes in

    def receive_buffer(self) -> memoryview:
        """Where to receive into, never empty; then say ``received(n)``. Earlier fragments' views end here.

        Raises ``LocalProtocolError`` when it is full because events were not taken.
        """
        if self._machine.deaf:
            self._incoming.clear()
        return self._incoming.space()

    def received(self, count: int) -> None:
        """``count`` bytes are in the receive buffer; 0 means that the peer closed the connection."""
        if self._closed:
            raise LocalProtocolError("received after the connection was closed")
        self._incoming.filled(count)
        self._closed = not count

    def receive_data(self, data: Buffer) -> None:
        """Receive ``data`` by copying, however long it is; ``b""`` means that the peer closed."""
        if self._closed:
            raise LocalProtocolError("received after the connection was closed")
        if not data:
            self._closed = True
        elif not self._machine.deaf:
            self._incoming.append(data)

    @property
    def between_pdus(self) -> bool:
        """Whether P-DATA-TF PDUs may come, and nothing of one was received that was not taken."""
        incoming = self._incoming
        established = self._machine.state is State.ESTABLISHED
        return established and not self._pdu_left and incoming.start == incoming.end

    # ------------------------------------------------------------ events out

    def next_event(self) -> NextEvent:
        """The next thing that happened, ``NEED_DATA``, or, at the end and ever after, ``TransportClosed``.

        Raises ``RemoteProtocolError`` once, when the peer broke the protocol or a limit: write
        ``data_to_send()`` and close; what still arrives is ignored.
        """
        machine, incoming = self._machine, self._incoming
        while not machine.deaf and machine.state is not State.IDLE:
            available = incoming.end - incoming.start
            if self._pdv_left:
                if not available:
                    break
                return self._fragment(available)
            if self._pdu_left:
                if available < PDV_OVERHEAD:
                    break
                if self._begin_pdv():
                    return DataFragment(self._pdv_context, self._pdv_is_command, self._pdv_last, b"")
                continue
            if available < _PDU_HEADER.size:
                break
            event = self._next_pdu(available)
            if event is NEED_DATA:
                break
            if event is not None:
                return event
        if not self._closed:
            return NEED_DATA
        if machine.state is not State.IDLE:
            self._cut_off = machine.fire(Trigger.TRANSPORT_CLOSED).deliver
            machine.should_close = True
        return TransportClosed(orderly=not self._cut_off)

    def _fragment(self, available: int) -> DataFragment:
        count = min(available, self._pdv_left)
        incoming = self._incoming
        start = incoming.start
        incoming.start = start + count
        self._pdv_left -= count
        self._pdu_left -= count
        return DataFragment(
            self._pdv_context,
            self._pdv_is_command,
            self._pdv_last and not self._pdv_left,
            incoming.readable[start : start + count],
        )

    def _begin_pdv(self) -> bool:
        """Read a PDV header; True when it is empty, which is an event of its own: whoever counts sees it."""
        incoming = self._incoming
        length, context_id, control = _PDV_HEADER.unpack_from(incoming.data, incoming.start)
        if not 2 <= length <= self._pdu_left - 4:
            self._fail(
                Trigger.INVALID_PDU,
                f"a PDV of {length} bytes in a P-DATA-TF that has {self._pdu_left - 4} left for it",
            )
        if context_id not in self._contexts:
            self._fail(
                Trigger.INVALID_PDU, f"a PDV for presentation context {context_id}, which was not accepted"
            )
        incoming.start += PDV_OVERHEAD
        self._pdu_left -= PDV_OVERHEAD
        self._pdv_left = length - 2
        if 0 < self._pdu_left - self._pdv_left < PDV_OVERHEAD:
            self._fail(Trigger.INVALID_PDU, "a P-DATA-TF has bytes left over after its last PDV")
        self._pdv_context = context_id
        self._pdv_is_command = bool(control & 1)
        self._pdv_last = bool(control & 2)
        return not self._pdv_left

    def _next_pdu(self, available: int) -> NextEvent | None:
        """Begin the PDU whose header is there; None when it gives no event of its own."""
        incoming = self._incoming
        pdu_type, length = _PDU_HEADER.unpack_from(incoming.data, incoming.start)
        trigger = _TRIGGERS.get(pdu_type)
        if trigger is Trigger.P_DATA_TF:
            self._begin_data(length)
            return None
        if trigger is None:
            self._fail(Trigger.INVALID_PDU, f"PDU type {pdu_type:02X}H", AbortReason.UNRECOGNIZED_PDU)
        if trigger in (Trigger.ASSOCIATE_RQ, Trigger.ASSOCIATE_AC):
            if length > self._limits.associate_bytes_max:
                self._fail(
                    Trigger.INVALID_PDU,
                    f"{trigger.name} of {length} bytes (limit {self._limits.associate_bytes_max})",
                )
        elif length != _SMALL_PDU_BYTES:
            self._fail(Trigger.INVALID_PDU, f"{trigger.name} of {length} bytes, must be {_SMALL_PDU_BYTES}")
        effect = self._machine.effect(trigger)
        if effect.aborts:
            # not permitted in this state: no need to wait for the rest of it
            self._unexpected(trigger)
        whole = _PDU_HEADER.size + length
        if available < whole:
            return NEED_DATA
        body = bytes(incoming.readable[incoming.start + _PDU_HEADER.size : incoming.start + whole])
        incoming.start += whole
        return self._deliver(trigger, body)

    def _begin_data(self, length: int) -> None:
        machine = self._machine
        effect = machine.effect(Trigger.P_DATA_TF)
        if effect.aborts:
            self._unexpected(Trigger.P_DATA_TF)
        if not effect.deliver:
            machine.apply(effect)
            machine.deaf = True  # Sta13: ignored, and so is everything that could still come
            return
        if not PDV_OVERHEAD <= length <= self._receive_max:
            self._fail(
                Trigger.INVALID_PDU,
                f"P_DATA_TF of {length} bytes, must be {PDV_OVERHEAD} to {self._receive_max}",
            )
        machine.apply(effect)
        self._incoming.start += _PDU_HEADER.size
        self._pdu_left = length

    def _deliver(self, trigger: Trigger, body: bytes) -> Event | None:
        try:
            event = self._read(trigger, body)
        except InvalidPduError as error:
            self._fail(Trigger.INVALID_PDU, str(error), AbortReason(error.abort.reason))
        except RefusedRequestError as error:
            self._refuse(error)
        otherwise = trigger is Trigger.RELEASE_RQ and self._role is Role.ACCEPTOR
        effect = self._machine.fire(trigger, otherwise=otherwise)
        if isinstance(event, AssociateRequest):
            self._request = event
        elif isinstance(event, AssociateAccept):
            self._establish(event, ours=False)
        return event if effect.deliver else None

    def _read(self, trigger: Trigger, body: bytes) -> Event:
        if trigger is Trigger.ASSOCIATE_RQ:
            return pdu_reader.read_associate_request(body, self._limits)
        if trigger is Trigger.ASSOCIATE_AC:
            accept = pdu_reader.read_associate_accept(body, self._limits)
            assert self._request is not None
            negotiation.check_answers(self._request, accept)
            return accept
        if trigger is Trigger.ASSOCIATE_RJ:
            return pdu_reader.read_associate_reject(body)
        if trigger is Trigger.ABORT:
            return pdu_reader.read_abort(body)
        pdu_reader.read_empty(body, trigger.name)
        return ReleaseRequest() if trigger is Trigger.RELEASE_RQ else ReleaseReply()

    # ------------------------------------------------------------ events in, buffers out

    def send(self, event: Pdu) -> list[Buffer]:
        """Change state for ``event`` and return what to write, in order, in one ``sendmsg``.

        Includes whatever ``data_to_send`` holds. Raises ``LocalProtocolError`` when the state does not permit
        it or the PDU cannot be written; nothing has changed then.
        """
        if isinstance(event, DataFragment):
            return self._send_data(event)
        trigger = _LOCAL_TRIGGERS[type(event)]
        if trigger is not Trigger.LOCAL_ASSOCIATE_REQUEST:
            self._machine.effect(trigger)  # raises before anything is encoded
        elif self._role is Role.ACCEPTOR:
            raise LocalProtocolError("an acceptor does not send an A-ASSOCIATE-RQ")
        if isinstance(event, AssociateAccept):
            self._check_our_answers(event)
        encoded = write_pdu(event)
        effect = self._machine.fire(trigger)
        if trigger is Trigger.LOCAL_ASSOCIATE_REQUEST:
            effect = self._machine.fire(Trigger.TRANSPORT_CONNECTED)
        if isinstance(event, AssociateRequest):
            self._request = event
        elif isinstance(event, AssociateAccept):
            self._establish(event, ours=True)
        elif isinstance(event, Abort | AssociateReject):
            self._machine.deaf = True
        if effect.send is not None:
            self._out.append(encoded)
        return self.data_to_send()

    def _send_data(self, event: DataFragment) -> list[Buffer]:
        if event.context_id not in self._contexts:
            raise LocalProtocolError(f"presentation context {event.context_id} was not accepted")
        if len(event.data) + PDV_OVERHEAD > self._send_max:
            raise LocalProtocolError(
                f"a fragment of {len(event.data)} bytes; the peer takes {self._send_max - PDV_OVERHEAD}"
            )
        self.begin_sending_data()
        self._out.append(write_pdu(event))
        return self.data_to_send()

    def begin_sending_data(self) -> None:
        """Say that P-DATA-TF PDUs follow; ``LocalProtocolError`` unless the state permits it (Sta6, Sta8)."""
        self._machine.fire(Trigger.LOCAL_DATA)

    def data_to_send(self) -> list[Buffer]:
        """Take what the machine itself has to say (the A-ABORT or A-ASSOCIATE-RJ after an error)."""
        out, self._out = self._out, []
        return out

    def answer(self, error: RemoteProtocolError) -> list[Buffer]:
        """What to write after ``error``, raised by this association or by a reader of its messages."""
        if not self._machine.deaf and self._machine.permits(Trigger.LOCAL_ABORT):
            reply = error.reply if isinstance(error.reply, Abort) else Abort()
            return self.send(reply)
        return self.data_to_send()

    def artim_expired(self) -> None:
        """The ARTIM timer has run out: the association is over, ``should_close`` (PS3.8 event 18)."""
        if not self._machine.artim_running:
            raise LocalProtocolError("the ARTIM timer does not run")
        self._machine.fire(Trigger.ARTIM_EXPIRED)

    def _check_our_answers(self, accept: AssociateAccept) -> None:
        assert self._request is not None
        try:
            negotiation.check_answers(self._request, accept)
        except InvalidPduError as error:
            raise LocalProtocolError(str(error)) from None

    # ------------------------------------------------------------ failures, and agreement

    def _fail(
        self, trigger: Trigger, message: str, reason: AbortReason = AbortReason.INVALID_PARAMETER
    ) -> NoReturn:
        """The peer broke the protocol: queue the A-ABORT that the table wants, go deaf, raise."""
        # AA-1 aborts as the user, who has no reasons to give (PS3.8 Table 9-26)
        effect = self._machine.fire(trigger)
        assert effect.aborts
        reply = Abort() if effect.send == "abort as user" else Abort(AbortSource.SERVICE_PROVIDER, reason)
        self._out.append(write_pdu(reply))
        self._machine.deaf = True
        raise RemoteProtocolError(message, reply)

    def _unexpected(self, trigger: Trigger) -> NoReturn:
        state = self._machine.state.value
        self._fail(trigger, f"{trigger.name} in Sta{state}", AbortReason.UNEXPECTED_PDU)

    def _refuse(self, error: RefusedRequestError) -> NoReturn:
        """AE-6's other branch: the provider itself rejects the request."""
        self._machine.fire(Trigger.ASSOCIATE_RQ, otherwise=True)
        self._out.append(write_pdu(error.reject))
        self._machine.deaf = True
        raise RemoteProtocolError(str(error), error.reject) from None

    def _establish(self, accept: AssociateAccept, *, ours: bool) -> None:
        request = self._request
        assert request is not None
        self._accept = accept
        self._contexts = negotiation.agreed_contexts(request, accept)
        mine, theirs = (accept, request) if ours else (request, accept)
        self._receive_max = negotiation.receive_max(mine.user, self._limits)
        self._send_max = negotiation.send_max(theirs.user, self._limits)
