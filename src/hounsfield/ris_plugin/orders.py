"""Orders: placed, accepted and protocolled, scheduled, done; held, rejected, cancelled, replaced.

One order is one requested procedure. It gets its accession number and Study Instance UID when it is placed,
so that whatever is told of it later (the worklist, a report) names the same study (IHE RAD-TF 2:4.4.4.1.2.2).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from msgspec import structs

from hounsfield.archive.dicom.attributes import uid_is_usable
from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.errors import InvalidError, NotNowError, UnknownError
from hounsfield.ris_plugin.moments import at_last, newest
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.catalog import PERSON, PROCEDURE, Procedure
from hounsfield.ris_plugin.records.orders import ORDER, Asked, Order, Protocol, Question
from hounsfield.ris_plugin.records.schedule import APPOINTMENT
from hounsfield.ris_plugin.settings import RisSettings
from hounsfield.ris_plugin.states import SAME, Machine, Transition

__all__ = [
    "MACHINE",
    "PRIORITIES",
    "NewOrder",
    "accept",
    "act",
    "answer",
    "change_order",
    "get",
    "images_began",
    "images_ended",
    "late",
    "lost_its_time",
    "open_questions",
    "place",
    "release",
    "replace",
]

_PLACERS: Final = (Role.REFERRER, Role.CLERK, Role.RADIOLOGIST, Role.INTERFACE)
_DESK: Final = (Role.CLERK, Role.RADIOLOGIST)
_ROOM: Final = (Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.MODALITY, Role.SYSTEM)
_EARLY: Final = ("placed", "accepted", "scheduled", "held")

MACHINE: Final = Machine(
    "order",
    (
        "placed", "accepted", "scheduled", "in-progress", "completed",
        "held", "rejected", "cancelled", "replaced",
    ),
    (
        Transition(
            "accept", ("placed",), "accepted",
            (Role.RADIOLOGIST, Role.TRAINEE, Role.CLERK, Role.TECHNOLOGIST),
        ),
        Transition("reject", ("placed", "accepted", "held"), "rejected", (Role.RADIOLOGIST, Role.CLERK)),
        Transition("hold", ("placed", "accepted", "scheduled"), "held", (*_PLACERS,)),
        Transition("release", ("held",), "placed", (*_PLACERS,)),
        Transition("schedule", ("accepted", "scheduled"), "scheduled", (*_DESK, Role.INTERFACE)),
        Transition("unschedule", ("scheduled",), "accepted", (*_DESK, Role.INTERFACE)),
        Transition("cancel", _EARLY, "cancelled", (*_PLACERS,)),
        Transition("replace", _EARLY, "replaced", (*_PLACERS,)),
        Transition("change", _EARLY, SAME, (*_PLACERS,)),
        # What was under way when it was cancelled is noted all the same, so that any order ends alike.
        Transition("change", ("cancelled", "replaced"), SAME, (Role.INTERFACE,)),
        # What was accepted before it was held is so again.
        Transition("resume", ("held",), "accepted", (*_PLACERS,)),
        Transition("supersede", (*_EARLY, "cancelled"), "replaced", (Role.INTERFACE,)),
        Transition("begin", ("placed", "accepted", "scheduled", "held"), "in-progress", _ROOM),
        Transition("begin-again", ("completed", "in-progress"), "in-progress", _ROOM),
        Transition("complete", ("in-progress",), "completed", _ROOM),
        Transition("abandon", ("in-progress",), "accepted", _ROOM),
        # What was performed was another patient's, or for another order: this one is still to be done.
        Transition("abandon", ("completed",), "accepted", (Role.SYSTEM,)),
        Transition("restore", ("in-progress", "completed", "accepted"), "scheduled", (Role.SYSTEM,)),
    ),
)  # fmt: skip
"""Acceptance and protocol are a radiologist's or a delegate's; a placer cancels only before the start."""

SAID: Final = {
    "accept": "order-accepted",
    "reject": "order-rejected",
    "hold": "order-held",
    "release": "order-released",
    "resume": "order-released",
    "supersede": "order-replaced",
    "schedule": "order-scheduled",
    "unschedule": "order-unscheduled",
    "cancel": "order-cancelled",
    "replace": "order-replaced",
    "change": "order-changed",
    "begin": "order-started",
    "begin-again": "order-started",
    "complete": "order-completed",
    "abandon": "order-abandoned",
    "restore": "order-scheduled",
}

PRIORITIES: Final = ("STAT", "HIGH", "ROUTINE", "MEDIUM", "LOW")
"""PS3.3 C.4.12, (0040,1003)."""
URGENT: Final = frozenset({"STAT", "HIGH"})
LOOKED_AT_MAX: Final = 5000
"""Of a state, those first that have not changed for longest: more without a time are nobody's to overlook."""
_TIMELESS: Final = ("placed", "accepted", "held")
ACCESSION_CHARACTERS_MAX: Final = 16  # VR SH
WHY_NEEDED: Final = frozenset({"hold", "reject", "cancel"})
_DROPPING: Final = frozenset({"hold", "reject", "cancel", "replace"})
"""What takes an order from the worklist, and its appointment with it."""


class NewOrder(Asked, frozen=True, kw_only=True):
    """What is asked for. ``procedure``: a code of the catalog. Accession and study: only where the placer
    gives them; else they are made."""

    procedure: str
    scheme: str = ""
    accession: str = ""
    study_uid: str = ""
    answers: tuple[Question, ...] = ()


# ---------------------------------------------------------------- finding


def get(view: View, order_id: str) -> Order:
    """The order. UnknownError."""
    order = view.get(ORDER, order_id)
    if order is None:
        raise UnknownError("there is no such order")
    return order


def late(view: View, settings: RisSettings, now_ns: int, limit: int = 100) -> list[tuple[str, int, Order]]:
    """Orders that have no time and wait too long, each with since when, the urgent and oldest first.

    That is counted from when they were placed, or are wanted, to ``orders_late_seconds`` or, of urgent ones,
    ``urgent_orders_late_seconds``. Who is on the waiting list waits for a time, and is not overlooked.
    """
    found: list[tuple[str, int, Order]] = []
    for state in _TIMELESS:
        for order_id, one in view.find(ORDER, "state", state, limit=LOOKED_AT_MAX):
            since_ns = max(one.placed_ns, one.wanted_ns)
            allowed = (
                settings.urgent_orders_late_seconds
                if one.priority in URGENT
                else settings.orders_late_seconds
            )
            if since_ns + allowed * NS < now_ns and not _waits(view, order_id):
                found.append((order_id, since_ns, one))
    found.sort(key=lambda each: (PRIORITIES.index(each[2].priority), each[1], each[0]))
    return found[:limit]


def _waits(view: View, order_id: str) -> bool:
    appointments = view.find(APPOINTMENT, "order", order_id)
    return any(one.state == "proposed" for _, one in appointments)


def open_questions(order: Order) -> list[str]:
    """The safety questions that nobody has answered, and those whose answer forbids it."""
    return [one.name for one in order.questions if not one.answer or one.blocks]


# ---------------------------------------------------------------- placing


def place(
    change: Change,
    actor: Actor,
    settings: RisSettings,
    new: NewOrder,
    *,
    event_ns: int = 0,
    sender: str = "",
    says: Collection[str] | None = None,
) -> str:
    """Place an order; its id. ``says``: of what the placer spoke, all when None.

    InvalidError for a procedure that is not offered, UnknownError for a patient
    that there is not, TakenError when another order has its accession number or study."""
    actor.require(*_PLACERS, what="placing an order")
    resolve(change, new.patient)
    procedure = _procedure(change, new.procedure, new.scheme)
    if new.priority not in PRIORITIES:
        raise InvalidError(f"a priority is one of {', '.join(PRIORITIES)}", "priority")
    if procedure.laterality and new.laterality not in ("L", "R", "B"):
        raise InvalidError("this procedure needs a side: L, R or B", "laterality")
    if new.study_uid and not uid_is_usable(new.study_uid):
        raise InvalidError("a Study Instance UID has digits and dots, at most 64 (PS3.5 9.1)", "study_uid")
    known = {one.name: one for one in new.answers}
    accession = new.accession or next_accession(change, settings)
    _check_accession(accession)
    at = (event_ns or change.now_ns, sender or actor.person)
    order = Order(
        accession=accession,
        study_uid=new.study_uid or new_uid(settings),
        procedure=procedure.code,
        # What needs no protocol is accepted as it is.
        state=MACHINE.initial if procedure.needs_protocol else "accepted",
        modality=procedure.modality,
        body_part=procedure.body_part,
        questions=tuple(known.get(name, Question(name=name)) for name in procedure.questions),
        as_of_ns=at[0],
        as_of_from=at[1],
        changed_ns=change.now_ns,
        said=newest((), dict.fromkeys(_CHANGEABLE if says is None else says), at)[1],
        requested_procedure_id=accession,
        **(_taken(new) | {"placed_ns": new.placed_ns or change.now_ns}),
    )
    order_id = change.new_id()
    change.put(ORDER, order_id, order)
    say(change, "order-placed", actor, order_id, order)
    return order_id


_TAKEN: Final = Asked.__struct_fields__
_CHANGEABLE: Final = frozenset(_TAKEN) - {"patient", "replaces", "placed_ns", "source"}


def _taken(new: NewOrder) -> dict[str, Any]:
    return {name: getattr(new, name) for name in _TAKEN}


def next_accession(change: Change, settings: RisSettings) -> str:
    """An accession number that no order has: the next one, in the department's format."""
    year = datetime.fromtimestamp(change.now_ns / 1e9, ZoneInfo(settings.time_zone)).year
    while True:
        number = change.count("accession")
        accession = settings.accession_format.format(year=year, year2=year % 100, number=number)
        if change.first(ORDER, "accession", accession) is None:
            return accession


def new_uid(settings: RisSettings) -> str:
    """A UID that nobody has (PS3.5 B.2), below our root if there is one."""
    number = uuid.uuid4().int
    if settings.uid_root == "2.25":
        return f"2.25.{number}"
    return f"{settings.uid_root}.{number}"[:64].rstrip(".")


def _procedure(view: View, value: str, scheme: str) -> Procedure:
    found = list(view.find(PROCEDURE, "value", value, limit=8))
    for _, one in found:
        if one.active and (not scheme or one.code.scheme == scheme):
            return one
    raise InvalidError("the catalog has no active procedure of this code", "procedure")


def _check_accession(accession: str) -> None:
    if not accession.strip() or len(accession) > ACCESSION_CHARACTERS_MAX or "\\" in accession:
        raise InvalidError("an accession number has 1 to 16 characters and no backslash (VR SH)", "accession")


# ---------------------------------------------------------------- acting


def act(change: Change, actor: Actor, order_id: str, action: str, *, why: str = "") -> Order:
    """Take an order through an action of the table; the order then. To hold, reject or cancel needs a why."""
    order = get(change, order_id)
    state = MACHINE.after(order.state, action, actor)
    if action in WHY_NEEDED and not why.strip():
        raise InvalidError(f"say why: to {action} an order needs a reason", "why")
    changed = structs.replace(order, state=state, why=why.strip() or order.why, changed_ns=change.now_ns)
    change.put(ORDER, order_id, changed)
    say(change, SAID[action], actor, order_id, changed)
    if action in _DROPPING:
        from hounsfield.ris_plugin.schedule.scheduling import dropped  # which is made of orders

        dropped(change, actor, order_id)
    return changed


def release(change: Change, actor: Actor, order_id: str) -> Order:
    """Go on with an order that was held: it is to be scheduled, if it was accepted before, or needs no
    protocol; else to be accepted."""
    order = get(change, order_id)
    found = change.first(PROCEDURE, "code", f"{order.procedure.scheme}\0{order.procedure.value}")
    accepted = order.protocol is not None or (found is not None and not found[1].needs_protocol)
    return act(change, actor, order_id, "resume" if accepted else "release")


def accept(
    change: Change,
    actor: Actor,
    order_id: str,
    *,
    text: str = "",
    codes: Sequence[Code] = (),
    contrast: str = "",
) -> Order:
    """Accept an order, with the protocol by which it is to be done. A procedure that needs one is accepted by
    a radiologist, or by somebody who deputises for one."""
    order = get(change, order_id)
    found = change.first(PROCEDURE, "code", f"{order.procedure.scheme}\0{order.procedure.value}")
    needs = found is not None and found[1].needs_protocol
    if needs:
        if not text.strip() and not codes:
            raise InvalidError("this procedure needs a protocol: say how it is to be done", "text")
        if not _deputises(change, actor):
            actor.require(Role.RADIOLOGIST, Role.TRAINEE, what="protocolling an order")
    if text.strip() or codes or contrast:
        protocol = Protocol(
            text=text.strip(), by=actor.person, at_ns=change.now_ns, codes=tuple(codes), contrast=contrast
        )
        change.put(ORDER, order_id, structs.replace(order, protocol=protocol))
    return act(change, actor, order_id, "accept")


def _deputises(view: View, actor: Actor) -> bool:
    """Whether a radiologist has named the actor to protocol in his place."""
    found = view.first(PERSON, "code", actor.person)
    for code in found[1].deputises_for if found is not None and found[1].active else ():
        chief = view.first(PERSON, "code", code)
        if chief is not None and chief[1].active and Role.RADIOLOGIST in chief[1].roles:
            return True
    return False


def answer(
    change: Change, actor: Actor, order_id: str, name: str, text: str, *, blocks: bool = False, note: str = ""
) -> Order:
    """Answer a safety question, before the start. ``blocks``: so answered it must not be scheduled; a
    radiologist may answer it again. What a person answers so of an order that has its time already holds it:
    nobody is examined because he was asked too late."""
    actor.require(Role.REFERRER, Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.INTERFACE,
                  what="answering a safety question")  # fmt: skip
    order = get(change, order_id)
    if order.state not in _EARLY:
        raise NotNowError(f"the order is {order.state}; safety questions are answered before the start")
    if not text.strip():
        raise InvalidError("the answer is empty", "answer")
    before = next((one for one in order.questions if one.name == name), None)
    if before is None:
        raise UnknownError("the order has no such question")
    if before.blocks and not actor.may((Role.RADIOLOGIST,)):
        actor.require(Role.RADIOLOGIST, what="answering what forbids the examination")
    answered = Question(
        name=name,
        answer=text.strip(),
        note=note,
        blocks=blocks,
        answered_by=actor.person,
        answered_ns=change.now_ns,
    )
    questions = tuple(answered if one.name == name else one for one in order.questions)
    changed = structs.replace(order, questions=questions, changed_ns=change.now_ns)
    change.put(ORDER, order_id, changed)
    say(change, "order-answered", actor, order_id, changed)
    if blocks and order.state == "scheduled" and not actor.may((Role.INTERFACE,)):
        # That follows from the answer, whatever else who gave it may do.
        desk = Actor(actor.person, frozenset({Role.CLERK}))
        return act(change, desk, order_id, "hold", why=f"the answer to {name} forbids it")
    return changed


def change_order(
    change: Change, actor: Actor, order_id: str, *, event_ns: int = 0, sender: str = "", **fields: Any
) -> Order:
    """Change what an order says, before the start. Of what several say of it, the newest event counts."""
    order = get(change, order_id)
    MACHINE.after(order.state, "change", actor)
    unknown = fields.keys() - _CHANGEABLE
    if unknown:
        raise InvalidError("of an order this cannot be changed", min(unknown))
    if fields.get("priority", order.priority) not in PRIORITIES:
        raise InvalidError(f"a priority is one of {', '.join(PRIORITIES)}", "priority")
    at = (event_ns or at_last(order.said, change.now_ns), sender or actor.person)
    taken, said = newest(order.said, fields, at)
    as_of = max(at, (order.as_of_ns, order.as_of_from))
    changed = structs.replace(order, **taken, said=said, as_of_ns=as_of[0], as_of_from=as_of[1])
    if changed != order:
        differs = any(getattr(order, name) != value for name, value in taken.items())
        changed = structs.replace(changed, changed_ns=change.now_ns) if differs else changed
        change.put(ORDER, order_id, changed)
        if differs:
            say(change, "order-changed", actor, order_id, changed, state=changed.state)
    return changed


def replace(
    change: Change,
    actor: Actor,
    settings: RisSettings,
    order_id: str,
    new: NewOrder,
    *,
    event_ns: int = 0,
    sender: str = "",
) -> str:
    """Replace an order by another one (HL7 v2 ORC-1 RP); the new one's id."""
    replaced = act(change, actor, order_id, "replace", why="replaced")
    new_id = place(
        change, actor, settings, structs.replace(new, replaces=order_id), event_ns=event_ns, sender=sender
    )
    change.put(ORDER, order_id, structs.replace(replaced, replaced_by=new_id))
    return new_id


def lost_its_time(change: Change, actor: Actor, order_id: str) -> None:
    """An order's appointment was cancelled or missed, by whoever may do that: it is to be scheduled again."""
    order = get(change, order_id)
    if order.state == "scheduled":
        lost = structs.replace(order, state="accepted", changed_ns=change.now_ns)
        change.put(ORDER, order_id, lost)
        say(change, SAID["unschedule"], actor, order_id, lost)


def images_began(change: Change, actor: Actor, order_id: str) -> None:
    """A modality has begun (MPPS in progress). Also what was cancelled meanwhile is then under way: the
    patient lies there; somebody is told by the event."""
    order = get(change, order_id)
    if order.state == "in-progress":
        return
    if order.state in ("rejected", "cancelled", "replaced"):
        change.put(ORDER, order_id, structs.replace(order, state="in-progress", changed_ns=change.now_ns))
        say(change, "order-started", actor, order_id, order, although=order.state)
        return
    act(change, actor, order_id, "begin-again" if order.state == "completed" else "begin")


def images_ended(change: Change, actor: Actor, order_id: str, *, completed: bool) -> None:
    """A modality has ended its last step: completed, or discontinued with nothing done."""
    if get(change, order_id).state == "in-progress":
        act(change, actor, order_id, "complete" if completed else "abandon")


def say(change: Change, event: str, actor: Actor, order_id: str, order: Order, **more: Any) -> None:
    """Tell of an order in the journal."""
    change.say(
        event,
        {
            "order": order_id,
            "patient": order.patient,
            "study": order.study_uid,
            "actor": actor.person,
            **more,
        },
    )
