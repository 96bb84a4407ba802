"""The upper layer's state machine: one literal table, and nothing else that moves state.

Theory of operation
===================
PS3.8 9.2 describes the DICOM upper layer as thirteen states (``Sta1``–``Sta13``), nineteen events
and twenty-eight actions. This module is that description as data, with the standard's numbers and names.

*What is a trigger.* Our :class:`Trigger` is the standard's event; ours are called triggers because
"event" is what :class:`~hounsfield.archive.wire.association.Association` gives to its caller. A
trigger comes from one of four places: a PDU from the peer (3, 4, 6, 10, 12, 13, 16; 19 for one that
is not valid), a request by our own side (1, 7, 8, 9, 11, 14, 15), the transport (2, 5, 17), ARTIM (18).

*What happens.* ``TRANSITIONS[trigger][state]`` names an action. An empty cell is, for triggers of our
own side, a programming error (``LocalProtocolError``, and nothing changes); for the peer's
triggers no cell is empty in any state in which bytes can arrive. The action's row in ``ACTIONS`` says
what to do and which state is next:

``next``       the next state; ``otherwise`` the other one, of the two actions that have two (below)
``deliver``    the caller is told (the standard's "issue … primitive")
``send``       a PDU goes out: the one our side asked for, or one the machine makes itself
``artim``      the timer is started (again) or stopped
``close``      the caller must close the transport connection

*Two actions choose.* AE-6: an A-ASSOCIATE-RQ that the provider can serve goes to the user (Sta3);
one that it cannot (protocol version, limits) is rejected at once (Sta13). AR-8: release requests have crossed
on the wire; the side that requested the *association* answers first (Sta9), the other waits (Sta10).

*ARTIM.* The "association request/reject/release timer" bounds the two times in which a connection exists
and no association does: before the request comes (Sta2) and after the last PDU went (Sta13). We have no
clock: ``artim_running`` says that it runs, ``artim_starts`` counts starts so that a restart is seen, and
the caller says ``artim_expired()``.

*After an error* the peer's bytes cannot be trusted to be framed: AA-1, AA-7 and AA-8 leave us in
Sta13, deaf: everything that still arrives is discarded until the transport closes or ARTIM
expires. (The standard would have AA-7 answer every further bad PDU with another A-ABORT. One is enough;
answering a flood is not.)

*The transport.* An acceptor's association begins when a connection exists (trigger 5, in the
constructor). A requestor's caller connects first and then sends the A-ASSOCIATE-RQ: triggers 1 and 2
follow each other at once and Sta4 is passed through.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Literal

__all__ = [
    "ACTIONS",
    "EFFECTS",
    "STATE_MEANINGS",
    "TRANSITIONS",
    "Action",
    "Effect",
    "Role",
    "State",
    "Trigger",
]


class Role(Enum):
    """Who asked for the association."""

    REQUESTOR = "requestor"
    ACCEPTOR = "acceptor"


class State(IntEnum):
    """PS3.8 9.2.1, Tables 9-1 to 9-5; the value is the standard's number."""

    IDLE = 1
    AWAITING_ASSOCIATE_RQ = 2
    AWAITING_LOCAL_ASSOCIATE = 3
    AWAITING_TRANSPORT = 4
    AWAITING_ASSOCIATE_REPLY = 5
    ESTABLISHED = 6
    AWAITING_RELEASE_RP = 7
    AWAITING_LOCAL_RELEASE = 8
    COLLISION_REQUESTOR_LOCAL = 9
    COLLISION_ACCEPTOR_REMOTE = 10
    COLLISION_REQUESTOR_REMOTE = 11
    COLLISION_ACCEPTOR_LOCAL = 12
    AWAITING_CLOSE = 13


STATE_MEANINGS: dict[State, str] = {
    State.IDLE: "no association",
    State.AWAITING_ASSOCIATE_RQ: "connection open, awaiting A-ASSOCIATE-RQ",
    State.AWAITING_LOCAL_ASSOCIATE: "awaiting our answer to the request",
    State.AWAITING_TRANSPORT: "awaiting the transport connection",
    State.AWAITING_ASSOCIATE_REPLY: "awaiting A-ASSOCIATE-AC or -RJ",
    State.ESTABLISHED: "association established, ready for data",
    State.AWAITING_RELEASE_RP: "we asked to release, awaiting A-RELEASE-RP",
    State.AWAITING_LOCAL_RELEASE: "peer asked to release, awaiting our answer",
    State.COLLISION_REQUESTOR_LOCAL: "release collision, requestor: awaiting our answer",
    State.COLLISION_ACCEPTOR_REMOTE: "release collision, acceptor: awaiting A-RELEASE-RP",
    State.COLLISION_REQUESTOR_REMOTE: "release collision, requestor: awaiting A-RELEASE-RP",
    State.COLLISION_ACCEPTOR_LOCAL: "release collision, acceptor: awaiting our answer",
    State.AWAITING_CLOSE: "awaiting close of the transport connection",
}


class Trigger(IntEnum):
    """The standard's events 1–19 (PS3.8 Table 9-10, left column)."""

    LOCAL_ASSOCIATE_REQUEST = 1
    TRANSPORT_CONNECTED = 2
    ASSOCIATE_AC = 3
    ASSOCIATE_RJ = 4
    TRANSPORT_ACCEPTED = 5
    ASSOCIATE_RQ = 6
    LOCAL_ACCEPT = 7
    LOCAL_REJECT = 8
    LOCAL_DATA = 9
    P_DATA_TF = 10
    LOCAL_RELEASE_REQUEST = 11
    RELEASE_RQ = 12
    RELEASE_RP = 13
    LOCAL_RELEASE_REPLY = 14
    LOCAL_ABORT = 15
    ABORT = 16
    TRANSPORT_CLOSED = 17
    ARTIM_EXPIRED = 18
    INVALID_PDU = 19


class Action(Enum):
    """PS3.8 Tables 9-6 to 9-9."""

    AE_1 = "AE-1"
    AE_2 = "AE-2"
    AE_3 = "AE-3"
    AE_4 = "AE-4"
    AE_5 = "AE-5"
    AE_6 = "AE-6"
    AE_7 = "AE-7"
    AE_8 = "AE-8"
    DT_1 = "DT-1"
    DT_2 = "DT-2"
    AR_1 = "AR-1"
    AR_2 = "AR-2"
    AR_3 = "AR-3"
    AR_4 = "AR-4"
    AR_5 = "AR-5"
    AR_6 = "AR-6"
    AR_7 = "AR-7"
    AR_8 = "AR-8"
    AR_9 = "AR-9"
    AR_10 = "AR-10"
    AA_1 = "AA-1"
    AA_2 = "AA-2"
    AA_3 = "AA-3"
    AA_4 = "AA-4"
    AA_5 = "AA-5"
    AA_6 = "AA-6"
    AA_7 = "AA-7"
    AA_8 = "AA-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What an action does; an action that stays in its state names it all the same."""

    next: State
    otherwise: State | None = None
    deliver: bool = False
    send: Literal["ours", "abort as user", "abort as provider"] | None = None
    artim: Literal["start", "stop"] | None = None
    close: bool = False
    text: str
    otherwise_artim: Literal["start", "stop"] | None = None

    @property
    def aborts(self) -> bool:
        """Whether the machine itself sends an A-ABORT."""
        return self.send in ("abort as user", "abort as provider")


_S = State

ACTIONS: dict[Action, Effect] = {
    # association establishment (PS3.8 Table 9-6)
    Action.AE_1: Effect(next=_S.AWAITING_TRANSPORT, text="ask for a transport connection"),
    Action.AE_2: Effect(next=_S.AWAITING_ASSOCIATE_REPLY, send="ours", text="send A-ASSOCIATE-RQ"),
    Action.AE_3: Effect(next=_S.ESTABLISHED, deliver=True, text="deliver the acceptance"),
    Action.AE_4: Effect(next=_S.IDLE, deliver=True, close=True, text="deliver the rejection, close"),
    Action.AE_5: Effect(
        next=_S.AWAITING_ASSOCIATE_RQ, artim="start", text="connection accepted, start ARTIM"
    ),
    Action.AE_6: Effect(
        next=_S.AWAITING_LOCAL_ASSOCIATE,
        otherwise=_S.AWAITING_CLOSE,
        deliver=True,
        artim="stop",
        otherwise_artim="start",
        text="stop ARTIM, deliver the request; if it cannot be served: send A-ASSOCIATE-RJ, start ARTIM",
    ),
    Action.AE_7: Effect(next=_S.ESTABLISHED, send="ours", text="send A-ASSOCIATE-AC"),
    Action.AE_8: Effect(
        next=_S.AWAITING_CLOSE, send="ours", artim="start", text="send A-ASSOCIATE-RJ, start ARTIM"
    ),
    # data transfer (Table 9-7)
    Action.DT_1: Effect(next=_S.ESTABLISHED, send="ours", text="send P-DATA-TF"),
    Action.DT_2: Effect(next=_S.ESTABLISHED, deliver=True, text="deliver the data"),
    # release (Table 9-8)
    Action.AR_1: Effect(next=_S.AWAITING_RELEASE_RP, send="ours", text="send A-RELEASE-RQ"),
    Action.AR_2: Effect(next=_S.AWAITING_LOCAL_RELEASE, deliver=True, text="deliver the release request"),
    Action.AR_3: Effect(next=_S.IDLE, deliver=True, close=True, text="deliver the release reply, close"),
    Action.AR_4: Effect(
        next=_S.AWAITING_CLOSE, send="ours", artim="start", text="send A-RELEASE-RP, start ARTIM"
    ),
    Action.AR_5: Effect(next=_S.IDLE, artim="stop", text="stop ARTIM"),
    Action.AR_6: Effect(next=_S.AWAITING_RELEASE_RP, deliver=True, text="deliver the data"),
    Action.AR_7: Effect(next=_S.AWAITING_LOCAL_RELEASE, send="ours", text="send P-DATA-TF"),
    Action.AR_8: Effect(
        next=_S.COLLISION_REQUESTOR_LOCAL,
        otherwise=_S.COLLISION_ACCEPTOR_REMOTE,
        deliver=True,
        text="release collision: deliver the release request; requestor Sta9, acceptor Sta10",
    ),
    Action.AR_9: Effect(next=_S.COLLISION_REQUESTOR_REMOTE, send="ours", text="send A-RELEASE-RP"),
    Action.AR_10: Effect(next=_S.COLLISION_ACCEPTOR_LOCAL, deliver=True, text="deliver the release reply"),
    # abort (Table 9-9)
    Action.AA_1: Effect(
        next=_S.AWAITING_CLOSE,
        send="abort as user",
        artim="start",
        text="send A-ABORT (source: user), start or restart ARTIM",
    ),
    Action.AA_2: Effect(next=_S.IDLE, artim="stop", close=True, text="stop ARTIM, close"),
    Action.AA_3: Effect(next=_S.IDLE, deliver=True, close=True, text="deliver the abort, close"),
    Action.AA_4: Effect(next=_S.IDLE, deliver=True, text="deliver the provider's abort"),
    Action.AA_5: Effect(next=_S.IDLE, artim="stop", text="stop ARTIM"),
    Action.AA_6: Effect(next=_S.AWAITING_CLOSE, text="ignore the PDU"),
    Action.AA_7: Effect(next=_S.AWAITING_CLOSE, send="abort as provider", text="send A-ABORT"),
    Action.AA_8: Effect(
        next=_S.AWAITING_CLOSE,
        deliver=True,
        send="abort as provider",
        artim="start",
        text="send A-ABORT (source: provider), deliver the provider's abort, start ARTIM",
    ),
}

_A = Action

# PS3.8 Table 9-10. Rows are triggers, columns the numbers of the states.
_TABLE: dict[Trigger, dict[int, Action]] = {
    Trigger.LOCAL_ASSOCIATE_REQUEST: {1: _A.AE_1},
    Trigger.TRANSPORT_CONNECTED: {4: _A.AE_2},
    Trigger.ASSOCIATE_AC: {
        2: _A.AA_1, 3: _A.AA_8, 5: _A.AE_3, 6: _A.AA_8, 7: _A.AA_8, 8: _A.AA_8,
        9: _A.AA_8, 10: _A.AA_8, 11: _A.AA_8, 12: _A.AA_8, 13: _A.AA_6,
    },
    Trigger.ASSOCIATE_RJ: {
        2: _A.AA_1, 3: _A.AA_8, 5: _A.AE_4, 6: _A.AA_8, 7: _A.AA_8, 8: _A.AA_8,
        9: _A.AA_8, 10: _A.AA_8, 11: _A.AA_8, 12: _A.AA_8, 13: _A.AA_6,
    },
    Trigger.TRANSPORT_ACCEPTED: {1: _A.AE_5},
    Trigger.ASSOCIATE_RQ: {
        2: _A.AE_6, 3: _A.AA_8, 5: _A.AA_8, 6: _A.AA_8, 7: _A.AA_8, 8: _A.AA_8,
        9: _A.AA_8, 10: _A.AA_8, 11: _A.AA_8, 12: _A.AA_8, 13: _A.AA_7,
    },
    Trigger.LOCAL_ACCEPT: {3: _A.AE_7},
    Trigger.LOCAL_REJECT: {3: _A.AE_8},
    Trigger.LOCAL_DATA: {6: _A.DT_1, 8: _A.AR_7},
    Trigger.P_DATA_TF: {
        2: _A.AA_1, 3: _A.AA_8, 5: _A.AA_8, 6: _A.DT_2, 7: _A.AR_6, 8: _A.AA_8,
        9: _A.AA_8, 10: _A.AA_8, 11: _A.AA_8, 12: _A.AA_8, 13: _A.AA_6,
    },
    Trigger.LOCAL_RELEASE_REQUEST: {6: _A.AR_1},
    Trigger.RELEASE_RQ: {
        2: _A.AA_1, 3: _A.AA_8, 5: _A.AA_8, 6: _A.AR_2, 7: _A.AR_8, 8: _A.AA_8,
        9: _A.AA_8, 10: _A.AA_8, 11: _A.AA_8, 12: _A.AA_8, 13: _A.AA_6,
    },
    Trigger.RELEASE_RP: {
        2: _A.AA_1, 3: _A.AA_8, 5: _A.AA_8, 6: _A.AA_8, 7: _A.AR_3, 8: _A.AA_8,
        9: _A.AA_8, 10: _A.AR_10, 11: _A.AR_3, 12: _A.AA_8, 13: _A.AA_6,
    },
    Trigger.LOCAL_RELEASE_REPLY: {8: _A.AR_4, 9: _A.AR_9, 12: _A.AR_4},
    Trigger.LOCAL_ABORT: {
        3: _A.AA_1, 4: _A.AA_2, 5: _A.AA_1, 6: _A.AA_1, 7: _A.AA_1, 8: _A.AA_1,
        9: _A.AA_1, 10: _A.AA_1, 11: _A.AA_1, 12: _A.AA_1,
    },
    Trigger.ABORT: {
        2: _A.AA_2, 3: _A.AA_3, 5: _A.AA_3, 6: _A.AA_3, 7: _A.AA_3, 8: _A.AA_3,
        9: _A.AA_3, 10: _A.AA_3, 11: _A.AA_3, 12: _A.AA_3, 13: _A.AA_2,
    },
    Trigger.TRANSPORT_CLOSED: {
        2: _A.AA_5, 3: _A.AA_4, 4: _A.AA_4, 5: _A.AA_4, 6: _A.AA_4, 7: _A.AA_4, 8: _A.AA_4,
        9: _A.AA_4, 10: _A.AA_4, 11: _A.AA_4, 12: _A.AA_4, 13: _A.AR_5,
    },
    Trigger.ARTIM_EXPIRED: {2: _A.AA_2, 13: _A.AA_2},
    Trigger.INVALID_PDU: {
        2: _A.AA_1, 3: _A.AA_8, 5: _A.AA_8, 6: _A.AA_8, 7: _A.AA_8, 8: _A.AA_8,
        9: _A.AA_8, 10: _A.AA_8, 11: _A.AA_8, 12: _A.AA_8, 13: _A.AA_7,
    },
}  # fmt: skip

TRANSITIONS: dict[tuple[Trigger, State], Action] = {
    (trigger, State(number)): action for trigger, row in _TABLE.items() for number, action in row.items()
}
"""What to do when ``trigger`` happens in ``state``; a missing pair is not permitted."""

EFFECTS: dict[tuple[Trigger, State], Effect] = {key: ACTIONS[action] for key, action in TRANSITIONS.items()}
"""``TRANSITIONS`` and ``ACTIONS`` in one look-up: it happens for every PDU."""
