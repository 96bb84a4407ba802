"""The danger: a state machine that moves where PS3.8 Table 9-10 does not let it."""

from __future__ import annotations

import pytest
from pynetdicom.fsm import TRANSITION_TABLE
from wire_strategies import ACCEPT, REQUEST, encode, established, events, in_state, wire

from hounsfield.archive.wire import (
    NEED_DATA,
    Abort,
    AbortReason,
    AbortSource,
    AssociateReject,
    Association,
    DataFragment,
    LocalProtocolError,
    Pdu,
    ReleaseReply,
    ReleaseRequest,
    RemoteProtocolError,
    Role,
    State,
    TransportClosed,
)
from hounsfield.archive.wire.states import ACTIONS, STATE_MEANINGS, TRANSITIONS, Action, Trigger

DATA = DataFragment(3, False, False, b"abcd")
REACHABLE = [state for state in State if state is not State.AWAITING_TRANSPORT]

RECEIVED: dict[Trigger, bytes] = {
    Trigger.ASSOCIATE_AC: encode(ACCEPT),
    Trigger.ASSOCIATE_RJ: encode(AssociateReject()),
    Trigger.ASSOCIATE_RQ: encode(REQUEST),
    Trigger.P_DATA_TF: encode(DATA),
    Trigger.RELEASE_RQ: encode(ReleaseRequest()),
    Trigger.RELEASE_RP: encode(ReleaseReply()),
    Trigger.ABORT: encode(Abort()),
    Trigger.INVALID_PDU: b"\x00\x00\x00\x00\x00\x00",
}
SENT: dict[Trigger, Pdu] = {
    Trigger.LOCAL_ASSOCIATE_REQUEST: REQUEST,
    Trigger.LOCAL_ACCEPT: ACCEPT,
    Trigger.LOCAL_REJECT: AssociateReject(),
    Trigger.LOCAL_DATA: DATA,
    Trigger.LOCAL_RELEASE_REQUEST: ReleaseRequest(),
    Trigger.LOCAL_RELEASE_REPLY: ReleaseReply(),
    Trigger.LOCAL_ABORT: Abort(),
}


def test_the_table_is_the_one_pynetdicom_copied_from_the_standard() -> None:
    theirs = {
        (Trigger(int(event[3:])), State(int(state[3:]))): Action(action)
        for (event, state), action in TRANSITION_TABLE.items()
    }
    assert theirs == TRANSITIONS


def test_every_action_is_used_and_every_state_is_explained() -> None:
    assert set(TRANSITIONS.values()) == set(Action) == set(ACTIONS)
    assert set(STATE_MEANINGS) == set(State)
    assert [state.value for state in State] == list(range(1, 14))


def _expected(trigger: Trigger, state: State, role: Role) -> State:
    effect = ACTIONS[TRANSITIONS[trigger, state]]
    if TRANSITIONS[trigger, state] is Action.AR_8 and role is Role.ACCEPTOR:
        assert effect.otherwise is not None
        return effect.otherwise
    return effect.next


@pytest.mark.parametrize("trigger", RECEIVED, ids=lambda trigger: trigger.name)
@pytest.mark.parametrize("state", REACHABLE, ids=lambda state: f"Sta{state.value}")
@pytest.mark.parametrize("role", Role, ids=lambda role: role.value)
def test_every_pdu_in_every_state(trigger: Trigger, state: State, role: Role) -> None:
    association = in_state(state, role)
    starts = association.artim_starts
    association.receive_data(RECEIVED[trigger])
    if (trigger, state) not in TRANSITIONS:
        assert state is State.IDLE
        assert association.next_event() is NEED_DATA
        assert association.state is state
        return
    action = TRANSITIONS[trigger, state]
    effect = ACTIONS[action]
    if effect.aborts:
        with pytest.raises(RemoteProtocolError) as caught:
            association.next_event()
        if action is Action.AA_1:
            assert caught.value.reply == Abort(AbortSource.SERVICE_USER, 0)
        elif trigger is Trigger.INVALID_PDU:
            assert caught.value.reply == Abort(AbortSource.SERVICE_PROVIDER, AbortReason.UNRECOGNIZED_PDU)
        else:
            assert caught.value.reply == Abort(AbortSource.SERVICE_PROVIDER, AbortReason.UNEXPECTED_PDU)
        assert wire(association.data_to_send()) == encode(caught.value.reply)
        assert association.data_to_send() == []
        association.receive_data(RECEIVED[Trigger.ASSOCIATE_RQ] * 3)  # deaf from now on
        assert association.next_event() is NEED_DATA
    else:
        assert bool(events(association)) is effect.deliver
        assert association.data_to_send() == []
    assert association.state is _expected(trigger, state, association.role)
    assert association.should_close is effect.close
    assert association.artim_starts - starts == (effect.artim == "start")


@pytest.mark.parametrize("trigger", SENT, ids=lambda trigger: trigger.name)
@pytest.mark.parametrize("state", REACHABLE, ids=lambda state: f"Sta{state.value}")
def test_every_request_of_ours_in_every_state(trigger: Trigger, state: State) -> None:
    association = in_state(state)
    starts = association.artim_starts
    if (trigger, state) not in TRANSITIONS:
        with pytest.raises(LocalProtocolError):
            association.send(SENT[trigger])
        assert association.state is state
        assert association.artim_starts == starts
        assert association.data_to_send() == []
        return
    effect = ACTIONS[TRANSITIONS[trigger, state]]
    assert wire(association.send(SENT[trigger])) == encode(SENT[trigger])
    expected = effect.next
    if expected is State.AWAITING_TRANSPORT:  # passed through: the transport exists already
        expected = State.AWAITING_ASSOCIATE_REPLY
    assert association.state is expected
    assert association.artim_starts - starts == (effect.artim == "start")


@pytest.mark.parametrize("state", REACHABLE, ids=lambda state: f"Sta{state.value}")
def test_the_transport_closes_in_every_state(state: State) -> None:
    association = in_state(state)
    association.receive_data(b"")
    cut_off = (Trigger.TRANSPORT_CLOSED, state) in TRANSITIONS and ACTIONS[
        TRANSITIONS[Trigger.TRANSPORT_CLOSED, state]
    ].deliver
    assert association.next_event() == TransportClosed(orderly=not cut_off)
    assert association.next_event() == TransportClosed(orderly=not cut_off)
    assert association.state is State.IDLE
    assert not association.artim_running
    with pytest.raises(LocalProtocolError):
        association.receive_data(b"more")


@pytest.mark.parametrize("state", REACHABLE, ids=lambda state: f"Sta{state.value}")
def test_artim_runs_and_expires_only_where_no_association_exists(state: State) -> None:
    association = in_state(state)
    assert association.artim_running is (state in (State.AWAITING_ASSOCIATE_RQ, State.AWAITING_CLOSE))
    if association.artim_running:
        association.artim_expired()
        assert association.should_close
        assert association.state is State.IDLE
    else:
        with pytest.raises(LocalProtocolError):
            association.artim_expired()


def _exchange(sender: Association, receiver: Association, pdu: Pdu) -> None:
    receiver.receive_data(wire(sender.send(pdu)))


def test_release_collision_ends_on_both_sides() -> None:
    """PS3.8 9.2.3, Sta9 to Sta12: the acceptor must wait for the requestor's reply."""
    requestor, acceptor = established(Role.REQUESTOR), established(Role.ACCEPTOR)
    to_acceptor, to_requestor = wire(requestor.send(ReleaseRequest())), wire(acceptor.send(ReleaseRequest()))
    requestor.receive_data(to_requestor)
    acceptor.receive_data(to_acceptor)
    assert requestor.next_event() == acceptor.next_event() == ReleaseRequest()
    assert (requestor.state, acceptor.state) == (9, 10)
    assert requestor.release_reply_due
    assert not acceptor.release_reply_due
    _exchange(requestor, acceptor, ReleaseReply())
    assert acceptor.next_event() == ReleaseReply()
    assert (requestor.state, acceptor.state) == (11, 12)
    assert acceptor.release_reply_due
    _exchange(acceptor, requestor, ReleaseReply())
    assert requestor.next_event() == ReleaseReply()
    assert requestor.should_close
    acceptor.receive_data(b"")
    assert acceptor.next_event() == TransportClosed(orderly=True)
    assert requestor.state is acceptor.state is State.IDLE


def test_data_may_still_arrive_after_our_release_request() -> None:
    association = in_state(State.AWAITING_RELEASE_RP)
    association.receive_data(encode(DATA) + encode(ReleaseReply()))
    assert events(association) == [DATA, ReleaseReply()]
    assert association.should_close


def test_a_requestor_that_has_not_asked_listens_to_nobody() -> None:
    association = Association(Role.REQUESTOR)
    association.receive_data(encode(ACCEPT))
    assert association.next_event() is NEED_DATA
    association.receive_data(b"")
    assert association.next_event() == TransportClosed(orderly=True)


def test_an_acceptor_does_not_ask() -> None:
    association = Association(Role.ACCEPTOR)
    with pytest.raises(LocalProtocolError):
        association.send(REQUEST)
    assert association.state is State.AWAITING_ASSOCIATE_RQ
