"""Appointments: a time at which everything that is needed is held for one patient.

An appointment holds resources (rooms, devices, people) from before it, while one prepares, to after it, while
one cleans. No two hold one at the same time: that is looked up in the transaction that books, and no other
transaction comes between. What is free is looked for in :mod:`hounsfield.ris_plugin.schedule.free_time`.

Of what several say about an appointment the newest event counts, as of a patient:
:mod:`hounsfield.ris_plugin.hl7.placers_schedule`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final
from zoneinfo import ZoneInfo

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import orders as ordering
from hounsfield.ris_plugin import tracking
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.catalog import procedure_of, resource
from hounsfield.ris_plugin.errors import InvalidError, NotNowError, UnknownError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.catalog import RESOURCE, Procedure
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, HOLDING, Appointment
from hounsfield.ris_plugin.schedule import steps
from hounsfield.ris_plugin.schedule.free_time import Needs, Slot, free
from hounsfield.ris_plugin.schedule.gaps import why_not
from hounsfield.ris_plugin.states import SAME, Machine, Transition

__all__ = [
    "MACHINE", "Slot", "act", "book", "dropped", "free", "fulfilled", "get", "move", "needs_of", "propose",
    "waiting",
]  # fmt: skip

DESK: Final = (Role.CLERK, Role.RADIOLOGIST, Role.INTERFACE)
_FRONT: Final = (Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.INTERFACE)

MACHINE: Final = Machine(
    "appointment",
    ("proposed", "booked", "arrived", "fulfilled", "cancelled", "no-show"),
    (
        Transition("book", ("proposed",), "booked", DESK),
        Transition("move", ("booked", "no-show", "cancelled"), "booked", DESK),
        Transition("arrive", ("booked",), "arrived", _FRONT),
        Transition("leave", ("arrived",), "booked", _FRONT),
        Transition("fulfil", ("booked", "arrived"), "fulfilled", (*_FRONT, Role.MODALITY)),
        Transition(
            "cancel", ("proposed", "booked", "arrived", "no-show"), "cancelled", (*DESK, Role.REFERRER)
        ),
        Transition("miss", ("booked", "cancelled"), "no-show", _FRONT),
        Transition("wait", ("proposed", "booked"), SAME, DESK),
    ),
)

SAID: Final = {
    "arrive": "appointment-arrived",
    "leave": "appointment-left",
    "fulfil": "appointment-fulfilled",
    "cancel": "appointment-cancelled",
    "miss": "appointment-missed",
    "wait": "appointment-waiting",
}

WHY_NEEDED: Final = frozenset({"cancel"})
FREEING: Final = frozenset({"cancel", "miss"})


# ---------------------------------------------------------------- finding


def get(view: View, appointment_id: str) -> Appointment:
    """The appointment. UnknownError."""
    one = view.get(APPOINTMENT, appointment_id)
    if one is None:
        raise UnknownError("there is no such appointment")
    return one


def waiting(view: View, limit: int = 100) -> list[tuple[str, Appointment]]:
    """Who waits for a time, or an earlier one, those first who have waited longest."""
    return list(view.find(APPOINTMENT, "waiting", "", limit=limit))


def needs_of(view: View, wanted: Sequence[Order]) -> list[Procedure]:
    """What orders need that are done one after another."""
    return [procedure_of(view, one.procedure.value, one.procedure.scheme) for one in wanted]


# ---------------------------------------------------------------- booking


def book(
    change: Change,
    actor: Actor,
    zone: ZoneInfo,
    *,
    orders: Sequence[str],
    from_ns: int,
    resources: Sequence[str] = (),
    placer_number: str = "",
    note: str = "",
    series: str = "",
    event_ns: int = 0,
    sender: str = "",
) -> str:
    """Book a time for orders of one patient, done one after another; its id. NotNowError when something is
    not free, not open, not accepted, or a safety question is not answered. ``resources``: ids or codes that
    are wanted.

    The orders' steps are on the worklist then. Who was on the waiting list gets the appointment that waits.
    """
    actor.require(*DESK, what="booking")
    wanted = orders_of(change, orders)
    patient = _who(actor, wanted)
    needs = Needs(change, zone, needs_of(change, [order for _, order in wanted]), patient=patient)
    waits: tuple[str, Appointment] | None = None
    for order_id, _ in wanted:
        for key, one in change.find(APPOINTMENT, "order", order_id):
            if one.state in HOLDING:
                raise NotNowError("one of the orders has an appointment already: move that one")
            if one.state == "proposed":
                if set(one.orders) - set(orders):
                    raise NotNowError(
                        "one of the orders waits for a time together with others: book them all"
                    )
                if waits is not None and waits[0] != key:
                    raise NotNowError(
                        "the orders wait for times of their own: take one from the waiting list"
                    )
                waits = key, one
    chosen = _choose(change, needs, from_ns, resources)
    proposed = waits[1] if waits is not None else None
    appointment_id = waits[0] if waits is not None else change.new_id()
    number = proposed.number if proposed is not None else f"A{change.count('appointment'):08}"
    appointment = Appointment(
        number=number,
        patient=wanted[0][1].patient,
        orders=tuple(order_id for order_id, _ in wanted),
        state="booked",
        from_ns=from_ns,
        to_ns=from_ns + needs.length_ns,
        holds=needs.holds(chosen, from_ns),
        placer_number=placer_number or (proposed.placer_number if proposed is not None else ""),
        note=note or (proposed.note if proposed is not None else ""),
        wanted_from_ns=proposed.wanted_from_ns if proposed is not None else 0,
        wanted_to_ns=proposed.wanted_to_ns if proposed is not None else 0,
        series=series or (proposed.series if proposed is not None else ""),
        follows=proposed.follows if proposed is not None else "",
        as_of_ns=event_ns or change.now_ns,
        as_of_from=sender or actor.person,
    )
    change.put(APPOINTMENT, appointment_id, appointment)
    _schedule(change, actor, appointment_id, wanted, needs, chosen=chosen, from_ns=from_ns)
    say(change, "appointment-booked", actor, appointment_id, appointment)
    return appointment_id


def propose(
    change: Change,
    actor: Actor,
    *,
    orders: Sequence[str],
    note: str = "",
    wanted_from_ns: int = 0,
    wanted_to_ns: int = 0,
    follows: str = "",
) -> str:
    """Put orders on the waiting list: an appointment without a time yet; its id.

    ``wanted_from_ns`` and ``wanted_to_ns``: it is wanted within these; 0: as the orders say, else whenever.
    ``follows``: the appointment that it is to follow up.
    """
    actor.require(*DESK, what="booking")
    wanted = orders_of(change, orders, ready=False)
    wanted_from_ns = wanted_from_ns or max(one.wanted_ns for _, one in wanted)
    ends = [one.wanted_until_ns for _, one in wanted if one.wanted_until_ns > wanted_from_ns]
    wanted_to_ns = wanted_to_ns or min(ends, default=0)
    for order_id, _ in wanted:
        if any(one.state in (*HOLDING, "proposed") for _, one in change.find(APPOINTMENT, "order", order_id)):
            raise NotNowError("one of the orders has an appointment, or waits for one, already")
    if follows:
        before = get(change, follows)
        if resolve(change, before.patient)[0] != resolve(change, wanted[0][1].patient)[0]:
            raise InvalidError("what is followed up is another patient's", "follows")
        wanted_from_ns = max(wanted_from_ns, before.to_ns)
    if wanted_to_ns and wanted_to_ns <= wanted_from_ns:
        raise InvalidError("what is wanted ends after it begins", "wanted_to_ns")
    appointment_id = change.new_id()
    appointment = Appointment(
        number=f"A{change.count('appointment'):08}",
        patient=wanted[0][1].patient,
        orders=tuple(order_id for order_id, _ in wanted),
        state="proposed",
        note=note,
        waiting_since_ns=change.now_ns,
        wanted_from_ns=wanted_from_ns,
        wanted_to_ns=wanted_to_ns,
        follows=follows,
        as_of_ns=change.now_ns,
        as_of_from=actor.person,
    )
    change.put(APPOINTMENT, appointment_id, appointment)
    say(change, "appointment-waiting", actor, appointment_id, appointment)
    return appointment_id


def move(
    change: Change,
    actor: Actor,
    zone: ZoneInfo,
    appointment_id: str,
    *,
    from_ns: int,
    resources: Sequence[str] = (),
    apart: bool = False,
    event_ns: int = 0,
    sender: str = "",
) -> None:
    """Give an appointment another time, or other resources; one that was cancelled or missed takes place
    after all. NotNowError as :func:`book`, and when it would be too near to others of its series, or too far
    from them; ``apart``: it leaves the series. Then it stays. An event older than what is known changes
    nothing.
    """
    appointment = get(change, appointment_id)
    as_of = (event_ns or change.now_ns, sender or actor.person)
    if event_ns and as_of < (appointment.as_of_ns, appointment.as_of_from):
        return
    state = MACHINE.after(appointment.state, "move", actor)
    lost = appointment.state not in HOLDING
    wanted = orders_of(change, appointment.orders)
    for order_id, _ in wanted if lost else ():
        others = change.find(APPOINTMENT, "order", order_id)
        if any(key != appointment_id and one.state in (*HOLDING, "proposed") for key, one in others):
            raise NotNowError("one of the orders has another appointment meanwhile: move that one")
    procedures = needs_of(change, [order for _, order in wanted])
    needs = Needs(change, zone, procedures, without=appointment_id, patient=_who(actor, wanted))
    before = [held.resource for held in appointment.holds]
    chosen = _choose(change, needs, from_ns, resources, or_of=before)
    moved = structs.replace(
        appointment,
        state=state,
        from_ns=from_ns,
        to_ns=from_ns + needs.length_ns,
        holds=needs.holds(chosen, from_ns),
        waiting_since_ns=0,
        as_of_ns=as_of[0],
        as_of_from=as_of[1],
    )
    if apart:
        moved = structs.replace(moved, series="", gap_minutes_min=0, gap_minutes_max=0)
    wrong = "" if actor.may((Role.INTERFACE,)) else why_not(change, appointment_id, moved)
    if wrong:
        raise NotNowError(f"{wrong}; take it out of the series (apart) to have it then all the same")
    change.put(APPOINTMENT, appointment_id, moved)
    if lost:
        _schedule(change, actor, appointment_id, wanted, needs, chosen=chosen, from_ns=from_ns)
    else:
        for index, (order_id, _) in enumerate(wanted):
            begin, end = _times(needs, index, from_ns)
            for step_id, step in steps.of_order(change, order_id):
                if step.state in steps.EARLY:
                    used = needs.used_by(chosen, index)
                    steps.move(change, actor, step_id, from_ns=begin, to_ns=end, resources=used)
        # What was discontinued is done anew then.
        again = {order_id for order_id, order in wanted if order.state == "accepted"}
        _schedule(change, actor, appointment_id, wanted, needs, chosen=chosen, from_ns=from_ns, only=again)
    say(change, "appointment-moved", actor, appointment_id, moved)
    if not lost and (moved.from_ns, moved.holds) != (appointment.from_ns, appointment.holds):
        _say_freed(change, actor, appointment_id, appointment)


def act(
    change: Change,
    actor: Actor,
    appointment_id: str,
    action: str,
    *,
    why: str = "",
    event_ns: int = 0,
    sender: str = "",
) -> Appointment:
    """Arrive, leave, fulfil, cancel, miss or wait; what it is then. Steps and orders go along. An event older
    than what is known changes nothing."""
    appointment = get(change, appointment_id)
    if action not in SAID:
        raise InvalidError(f"an appointment is not taken through {action!r} so", "action")
    as_of = (event_ns or change.now_ns, sender or actor.person)
    if event_ns and as_of < (appointment.as_of_ns, appointment.as_of_from):
        return appointment
    state = MACHINE.after(appointment.state, action, actor)
    if action in WHY_NEEDED and not why.strip():
        raise InvalidError(f"say why: to {action} an appointment needs a reason", "why")
    since = change.now_ns if action == "wait" else (0 if state not in ("proposed", "booked") else None)
    changed = structs.replace(
        appointment,
        state=state,
        reason=why.strip() or appointment.reason,
        waiting_since_ns=appointment.waiting_since_ns if since is None else since,
    )
    if action != "wait":  # which says nothing of its time
        changed = structs.replace(changed, as_of_ns=as_of[0], as_of_from=as_of[1])
    change.put(APPOINTMENT, appointment_id, changed)
    say(change, SAID[action], actor, appointment_id, changed)
    for order_id in appointment.orders:
        _along(change, actor, order_id, action)
    if action in FREEING and appointment.state in HOLDING:
        _say_freed(change, actor, appointment_id, appointment)
    return changed


def dropped(change: Change, actor: Actor, order_id: str) -> None:
    """An order will not be done, or not now: it leaves the worklist and its appointment, which is cancelled
    when it was for this order alone."""
    steps.withdraw(change, actor, order_id)
    for appointment_id, one in list(change.find(APPOINTMENT, "order", order_id)):
        if one.state not in (*HOLDING, "proposed"):
            continue
        rest = tuple(each for each in one.orders if each != order_id)
        if rest:
            changed = structs.replace(one, orders=rest)
            change.put(APPOINTMENT, appointment_id, changed)
            say(change, "appointment-changed", actor, appointment_id, changed)
        else:
            state = ordering.get(change, order_id).state
            act(change, actor, appointment_id, "cancel", why=f"the order is {state}")


def _along(change: Change, actor: Actor, order_id: str, action: str) -> None:
    """What becomes of an order and its steps with its appointment."""
    if action in ("arrive", "leave"):
        for step_id, step in steps.of_order(change, order_id):
            if step.state in {"arrive": ("scheduled",), "leave": ("arrived", "ready")}[action]:
                steps.act(change, actor, step_id, action)
    elif action in FREEING:
        steps.withdraw(change, actor, order_id)
        ordering.lost_its_time(change, actor, order_id)


def _schedule(
    change: Change,
    actor: Actor,
    appointment_id: str,
    wanted: Sequence[tuple[str, Order]],
    needs: Needs,
    *,
    chosen: Sequence[str],
    from_ns: int,
    only: Collection[str] | None = None,
) -> None:
    """Schedule the orders of an appointment, with their steps; ``only`` some of them."""
    procedures = needs_of(change, [order for _, order in wanted])
    for index, (order_id, order) in enumerate(wanted):
        if only is not None and order_id not in only:
            continue
        begin, end = _times(needs, index, from_ns)
        ordering.act(change, actor, order_id, "schedule")
        steps.withdraw(change, actor, order_id)  # of an appointment that is over, though nothing was done
        tracking.expect(change, order_id, order)
        steps.make(
            change,
            actor,
            order_id,
            order,
            procedures[index],
            appointment=appointment_id,
            from_ns=begin,
            to_ns=end,
            resources=needs.used_by(chosen, index),
        )


def _times(needs: Needs, index: int, from_ns: int) -> tuple[int, int]:
    """When one of several procedures is done."""
    ends = [*needs.begins_ns[1:], needs.length_ns]
    return from_ns + needs.begins_ns[index], from_ns + ends[index]


def orders_of(view: View, orders: Sequence[str], *, ready: bool = True) -> list[tuple[str, Order]]:
    """The orders of one appointment. InvalidError when they are not one patient's, NotNowError when one that
    has to be is not ``ready`` to be scheduled."""
    if not orders or len(set(orders)) != len(orders):
        raise InvalidError("an appointment is for one order or several different ones", "orders")
    wanted = [(order_id, ordering.get(view, order_id)) for order_id in orders]
    if len({resolve(view, order.patient)[0] for _, order in wanted}) != 1:
        raise InvalidError("the orders are not one patient's", "orders")
    for _, order in wanted if ready else ():
        if order.state not in ("accepted", "scheduled"):
            raise NotNowError(f"an order is {order.state}; it has to be accepted before it is scheduled")
        missing = ordering.open_questions(order)
        if missing:
            raise NotNowError(f"safety questions are open, or forbid it: {', '.join(missing)}")
    return wanted


def _who(actor: Actor, wanted: Sequence[tuple[str, Order]]) -> str:
    """Whose other appointments count: what another system has scheduled is that one's to know."""
    return "" if actor.may((Role.INTERFACE,)) else wanted[0][1].patient


def _choose(
    change: Change, needs: Needs, from_ns: int, resources: Sequence[str], *, or_of: Sequence[str] = ()
) -> tuple[str, ...]:
    for one in needs.elsewhere(from_ns):
        raise NotNowError(f"the patient has another appointment then, {one.number}")
    ids = [key if change.get(RESOURCE, key) is not None else resource(change, key)[0] for key in resources]
    for key in ids:
        if key not in needs.resources:
            raise InvalidError("a resource that was named is not one that this procedure needs", "resources")
        if not needs.is_free(key, from_ns):
            raise NotNowError(f"{needs.resources[key].code} is not free then, or not open")
    chosen = needs.chosen_at(from_ns, ids or or_of)
    if chosen is None or not set(ids) <= set(chosen):
        codes = sorted({one.code for one in needs.resources.values()})
        raise NotNowError(f"not everything is free then, or open, of: {', '.join(codes)}")
    return chosen


def say(
    change: Change, event: str, actor: Actor, appointment_id: str, appointment: Appointment, **more: Any
) -> None:
    """Tell of an appointment in the journal."""
    change.say(
        event,
        {
            "appointment": appointment_id,
            "orders": list(appointment.orders),
            "patient": appointment.patient,
            "actor": actor.person,
            **more,
        },
    )


def _say_freed(change: Change, actor: Actor, appointment_id: str, before: Appointment) -> None:
    """A time that somebody else could have, unless it is over: see ``waiting_list.offers``."""
    if before.to_ns > change.now_ns:
        say(
            change, "slot-freed", actor, appointment_id, before, from_ns=before.from_ns, to_ns=before.to_ns,
            resources=sorted({held.resource for held in before.holds}),
        )  # fmt: skip


def fulfilled(change: Change, actor: Actor, order_id: str) -> None:
    """An order was performed: so was its appointment, when all of its orders are done."""
    for appointment_id, one in list(change.find(APPOINTMENT, "order", order_id)):
        if one.state in HOLDING:
            states = [ordering.get(change, each).state for each in one.orders]
            if all(state in ("completed", "cancelled", "rejected", "replaced") for state in states):
                act(change, actor, appointment_id, "fulfil")
