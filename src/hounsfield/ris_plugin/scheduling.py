"""Appointments: the first free time at which everything that is needed is free, held for one patient.

An appointment holds resources (rooms, devices, people) from before it, while one prepares, to after it, while
one cleans. No two hold one at the same time: that is looked up in the transaction that books, and no other
transaction comes between. Hours are the department's, in its time zone, also where clocks change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import orders as ordering
from hounsfield.ris_plugin import steps, tracking
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.catalog import candidates, procedure_of, resource
from hounsfield.ris_plugin.errors import InvalidError, NotNowError, UnknownError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.base import NS, seconds
from hounsfield.ris_plugin.records.catalog import RESOURCE, Hours, Procedure, Resource
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, HOLDING, STEP, Appointment, Held
from hounsfield.ris_plugin.states import SAME, Machine, Transition

__all__ = ["MACHINE", "Slot", "act", "book", "free", "get", "move", "propose", "waiting"]

_DESK: Final = (Role.CLERK, Role.RADIOLOGIST, Role.INTERFACE)
_FRONT: Final = (Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.INTERFACE)

MACHINE: Final = Machine(
    "appointment",
    ("proposed", "booked", "arrived", "fulfilled", "cancelled", "no-show"),
    (
        Transition("book", ("proposed",), "booked", _DESK),
        Transition("move", ("booked", "no-show"), "booked", _DESK),
        Transition("arrive", ("booked",), "arrived", _FRONT),
        Transition("leave", ("arrived",), "booked", _FRONT),
        Transition("fulfil", ("booked", "arrived"), "fulfilled", (*_FRONT, Role.MODALITY)),
        Transition("cancel", ("proposed", "booked", "arrived"), "cancelled", (*_DESK, Role.REFERRER)),
        Transition("miss", ("booked",), "no-show", _FRONT),
        Transition("wait", ("proposed", "booked"), SAME, _DESK),
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

MINUTE_NS: Final = 60 * NS
GRID_MIN: Final = 5
"""Appointments that are looked for begin at full five minutes, as people write them down."""
HOLD_NS_MAX: Final = 48 * 60 * MINUTE_NS
"""The longest that an appointment holds anything: preparing, a day, cleaning. So far back one has to look."""
SEARCH_DAYS_MAX: Final = 370
SLOTS_MAX: Final = 200
WHY_NEEDED: Final = frozenset({"cancel"})


@dataclass(frozen=True, slots=True)
class Slot:
    """A time at which everything is free. ``resources``: ids, one of each group that is needed."""

    from_ns: int
    to_ns: int
    resources: tuple[str, ...]


# ---------------------------------------------------------------- what is free


def free(
    view: View, zone: ZoneInfo, needs: Sequence[Procedure], *, from_ns: int, to_ns: int, limit: int = 10
) -> list[Slot]:
    """The first times in a stretch at which ``needs`` can be done one after another, at most ``limit``.

    Looked for across all resources that would do. InvalidError for a stretch of more than a year.
    """
    if to_ns - from_ns > SEARCH_DAYS_MAX * 1440 * MINUTE_NS:
        raise InvalidError(f"look for a time within {SEARCH_DAYS_MAX} days", "to_ns")
    plan = _Plan(view, zone, needs, from_ns, to_ns)
    grid = GRID_MIN * MINUTE_NS
    start = -(-from_ns // grid) * grid
    found: list[Slot] = []
    while start + plan.length_ns <= to_ns and len(found) < min(limit, SLOTS_MAX):
        chosen = plan.chosen_at(start)
        if chosen is not None:
            found.append(Slot(start, start + plan.length_ns, chosen))
            start += grid
        else:
            start = max(start + grid, -(-plan.next_chance(start) // grid) * grid)
    return found


class _Plan:
    """What is needed, by whom it is held meanwhile, and when it is open."""

    def __init__(
        self,
        view: View,
        zone: ZoneInfo,
        needs: Sequence[Procedure],
        from_ns: int,
        to_ns: int,
        *,
        without: str = "",
    ) -> None:
        self._zone = zone
        self.length_ns = sum(one.duration_min for one in needs) * MINUTE_NS
        self._before_ns = max((one.preparation_min for one in needs), default=0) * MINUTE_NS
        self._after_ns = max((one.cleaning_min for one in needs), default=0) * MINUTE_NS
        groups = dict.fromkeys(group for one in needs for group in one.resources)
        self.groups = [list(candidates(view, group)) for group in groups]
        self.resources: dict[str, Resource] = {key: one for group in self.groups for key, one in group}
        self._held = {
            key: sorted(_held(view, key, from_ns - HOLD_NS_MAX, to_ns + HOLD_NS_MAX, without))
            for key in self.resources
        }
        for group, of in zip(groups, self.groups, strict=True):
            if not of:
                raise NotNowError(f"nothing active is {' or '.join(group)}: the catalog needs it for this")

    def hold(self, key: str, start_ns: int) -> Held:
        """What an appointment at a time holds of a resource."""
        one = self.resources[key]
        return Held(
            resource=key,
            from_ns=start_ns - self._before_ns,
            to_ns=start_ns + self.length_ns + self._after_ns + one.buffer_min * MINUTE_NS,
        )

    def is_free(self, key: str, start_ns: int) -> bool:
        """Whether a resource is open, and nobody's, for an appointment at a time."""
        one, hold = self.resources[key], self.hold(key, start_ns)
        if any(begin < hold.to_ns and hold.from_ns < end for begin, end in self._held[key]):
            return False
        if any(each.from_ns < hold.to_ns and hold.from_ns < each.to_ns for each in one.closures):
            return False
        return _is_open(one, self._zone, start_ns, start_ns + self.length_ns)

    def chosen_at(self, start_ns: int, wanted: Sequence[str] = ()) -> tuple[str, ...] | None:
        """One free resource of each group, no one twice; those that are ``wanted`` where they do."""
        ways = [
            [
                key
                for key, _ in sorted(group, key=lambda one: one[0] not in wanted)
                if self.is_free(key, start_ns)
            ]
            for group in self.groups
        ]
        return next(_distinct(ways, ()), None)

    def next_chance(self, start_ns: int) -> int:
        """A later time before which nothing changes: when what is held ends, or it opens."""
        later = [
            end + self._before_ns
            for held in self._held.values()
            for begin, end in held
            if begin - self._after_ns < start_ns + self.length_ns + DAY_NS
            and end > start_ns - self._before_ns
        ]
        later = [one for one in later if one > start_ns]
        if any(_opens_in(one, self._zone, start_ns) for one in self.resources.values()):
            return start_ns
        return min([*later, _midnight_after(self._zone, start_ns)])


DAY_NS: Final = 1440 * MINUTE_NS


def _distinct(ways: Sequence[Sequence[str]], taken: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if len(taken) == len(ways):
        yield taken
        return
    for key in ways[len(taken)]:
        if key not in taken:
            yield from _distinct(ways, (*taken, key))


def _held(view: View, key: str, from_ns: int, to_ns: int, without: str = "") -> Iterator[tuple[int, int]]:
    for appointment_id, one in view.find(
        APPOINTMENT, "holds", key, at_least=seconds(from_ns), at_most=seconds(to_ns)
    ):
        if appointment_id != without:
            yield from ((held.from_ns, held.to_ns) for held in one.holds if held.resource == key)


def _is_open(one: Resource, zone: ZoneInfo, from_ns: int, to_ns: int) -> bool:
    """Whether all of a stretch lies in opening hours, and none of it in a break."""
    if one.hours and not _covered(_stretches(one.hours, zone, from_ns, to_ns), from_ns, to_ns):
        return False
    return not any(
        begin < to_ns and from_ns < end for begin, end in _stretches(one.breaks, zone, from_ns, to_ns)
    )


def _covered(stretches: list[tuple[int, int]], from_ns: int, to_ns: int) -> bool:
    reached = from_ns
    for begin, end in sorted(stretches):
        if begin > reached:
            return False
        reached = max(reached, end)
        if reached >= to_ns:
            return True
    return False


def _stretches(hours: Sequence[Hours], zone: ZoneInfo, from_ns: int, to_ns: int) -> list[tuple[int, int]]:
    """The stretches of weekly hours on the days that a stretch touches."""
    if not hours:
        return []
    day = _local(zone, from_ns).date()
    last = _local(zone, to_ns).date()
    found = []
    while day <= last:
        midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
        found += [
            (_at(midnight, one.from_min), _at(midnight, one.to_min))
            for one in hours
            if one.weekday == day.weekday()
        ]
        day += timedelta(days=1)
    return found


def _opens_in(one: Resource, zone: ZoneInfo, start_ns: int) -> bool:
    """Whether it is open some time on the day of a moment, from then on."""
    midnight = _midnight_after(zone, start_ns)
    return not one.hours or any(
        end > start_ns for _, end in _stretches(one.hours, zone, start_ns, midnight - 1)
    )


def _at(midnight: datetime, minutes: int) -> int:
    """A time of day as clocks show it, also on days when they change."""
    wall = midnight.replace(tzinfo=None) + timedelta(minutes=minutes)
    return int(wall.replace(tzinfo=midnight.tzinfo).timestamp()) * NS


def _midnight_after(zone: ZoneInfo, moment_ns: int) -> int:
    day = _local(zone, moment_ns).date() + timedelta(days=1)
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * NS


def _local(zone: ZoneInfo, moment_ns: int) -> datetime:
    return datetime.fromtimestamp(moment_ns / NS, UTC).astimezone(zone)


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
    event_ns: int = 0,
    sender: str = "",
) -> str:
    """Book a time for orders of one patient; its id. NotNowError when something is not free, not
    open, not accepted, or a safety question is not answered. ``resources``: ids or codes that are wanted.

    The orders' steps are on the worklist then.
    """
    actor.require(*_DESK, what="booking")
    wanted = _wanted_orders(change, orders)
    plan = _plan_of(change, zone, wanted, from_ns)
    chosen = _choose(change, plan, from_ns, resources)
    for order_id, _ in wanted:
        held_by = next(
            (one for _, one in change.find(APPOINTMENT, "order", order_id) if one.state in HOLDING), None
        )
        if held_by is not None:
            raise NotNowError("one of the orders has an appointment already: move that one")
    appointment_id = change.new_id()
    waits = next(
        ((key, one) for order_id, _ in wanted for key, one in change.find(APPOINTMENT, "order", order_id)
         if one.state == "proposed"),
        None,
    )  # fmt: skip
    if waits is not None:
        appointment_id = waits[0]
    appointment = Appointment(
        number=waits[1].number if waits is not None else f"A{change.count('appointment'):08}",
        patient=wanted[0][1].patient,
        orders=tuple(order_id for order_id, _ in wanted),
        state="booked",
        from_ns=from_ns,
        to_ns=from_ns + plan.length_ns,
        holds=tuple(plan.hold(key, from_ns) for key in chosen),
        placer_number=placer_number,
        note=note,
        as_of_ns=event_ns or change.now_ns,
        as_of_from=sender or actor.person,
    )
    change.put(APPOINTMENT, appointment_id, appointment)
    begin = from_ns
    for order_id, order in wanted:
        ordering.act(change, actor, order_id, "schedule")
        tracking.expect(change, order_id, order)
        procedure = procedure_of(change, order.procedure.value, order.procedure.scheme)
        end = begin + procedure.duration_min * MINUTE_NS
        steps.make(
            change,
            actor,
            order_id,
            order,
            procedure,
            appointment=appointment_id,
            from_ns=begin,
            to_ns=end,
            resources=[plan.resources[key] for key in chosen],
        )
        begin = end
    _say(change, "appointment-booked", actor, appointment_id, appointment)
    return appointment_id


def propose(change: Change, actor: Actor, *, orders: Sequence[str], note: str = "") -> str:
    """Put orders on the waiting list: an appointment without a time yet; its id."""
    actor.require(*_DESK, what="booking")
    wanted = _wanted_orders(change, orders, ready=False)
    for order_id, _ in wanted:
        if any(one.state in (*HOLDING, "proposed") for _, one in change.find(APPOINTMENT, "order", order_id)):
            raise NotNowError("one of the orders has an appointment, or waits for one, already")
    appointment_id = change.new_id()
    appointment = Appointment(
        number=f"A{change.count('appointment'):08}",
        patient=wanted[0][1].patient,
        orders=tuple(order_id for order_id, _ in wanted),
        state="proposed",
        note=note,
        waiting_since_ns=change.now_ns,
        as_of_ns=change.now_ns,
        as_of_from=actor.person,
    )
    change.put(APPOINTMENT, appointment_id, appointment)
    _say(change, "appointment-waiting", actor, appointment_id, appointment)
    return appointment_id


def move(
    change: Change,
    actor: Actor,
    zone: ZoneInfo,
    appointment_id: str,
    *,
    from_ns: int,
    resources: Sequence[str] = (),
    event_ns: int = 0,
    sender: str = "",
) -> None:
    """Give an appointment another time, or other resources. NotNowError as :func:`book`; then it stays."""
    appointment = get(change, appointment_id)
    state = MACHINE.after(appointment.state, "move", actor)
    missed = appointment.state == "no-show"
    as_of = (event_ns or change.now_ns, sender or actor.person)
    if as_of < (appointment.as_of_ns, appointment.as_of_from):
        return
    wanted = _wanted_orders(change, appointment.orders)
    plan = _plan_of(change, zone, wanted, from_ns, without=appointment_id)
    before = [held.resource for held in appointment.holds]
    chosen = _choose(change, plan, from_ns, resources, or_of=before)
    moved = structs.replace(
        appointment,
        state=state,
        from_ns=from_ns,
        to_ns=from_ns + plan.length_ns,
        holds=tuple(plan.hold(key, from_ns) for key in chosen),
        waiting_since_ns=0,
        as_of_ns=as_of[0],
        as_of_from=as_of[1],
    )
    change.put(APPOINTMENT, appointment_id, moved)
    begin = from_ns
    used = [plan.resources[key] for key in chosen]
    for order_id, order in wanted:
        procedure = procedure_of(change, order.procedure.value, order.procedure.scheme)
        end = begin + procedure.duration_min * MINUTE_NS
        if missed:
            ordering.act(change, actor, order_id, "schedule")
            steps.make(
                change, actor, order_id, order, procedure,
                appointment=appointment_id, from_ns=begin, to_ns=end, resources=used,
            )  # fmt: skip
        else:
            for step_id, _ in steps.of_order(change, order_id):
                steps.move(change, actor, step_id, from_ns=begin, to_ns=end, resources=used)
        begin = end
    _say(change, "appointment-moved", actor, appointment_id, moved)


def act(change: Change, actor: Actor, appointment_id: str, action: str, *, why: str = "") -> Appointment:
    """Arrive, leave, fulfil, cancel, miss or wait; what it is then. Steps and orders go along."""
    appointment = get(change, appointment_id)
    if action not in SAID:
        raise InvalidError(f"an appointment is not taken through {action!r} so", "action")
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
    change.put(APPOINTMENT, appointment_id, changed)
    _say(change, SAID[action], actor, appointment_id, changed)
    for order_id in appointment.orders:
        _along(change, actor, order_id, action)
    return changed


def _along(change: Change, actor: Actor, order_id: str, action: str) -> None:
    """What becomes of an order and its steps with its appointment."""
    if action in ("arrive", "leave"):
        for step_id, step in steps.of_order(change, order_id):
            if step.state in {"arrive": ("scheduled",), "leave": ("arrived", "ready")}[action]:
                steps.act(change, actor, step_id, action)
    elif action in ("cancel", "miss"):
        steps.withdraw(change, actor, order_id)
        ordering.lost_its_time(change, actor, order_id)


def _wanted_orders(change: Change, orders: Sequence[str], *, ready: bool = True) -> list[tuple[str, Order]]:
    if not orders or len(set(orders)) != len(orders):
        raise InvalidError("an appointment is for one order or several different ones", "orders")
    wanted = [(order_id, ordering.get(change, order_id)) for order_id in orders]
    if len({resolve(change, order.patient)[0] for _, order in wanted}) != 1:
        raise InvalidError("the orders are not one patient's", "orders")
    for _, order in wanted if ready else ():
        if order.state not in ("accepted", "scheduled"):
            raise NotNowError(f"an order is {order.state}; it has to be accepted before it is scheduled")
        missing = ordering.open_questions(order)
        if missing:
            raise NotNowError(f"safety questions are open, or forbid it: {', '.join(missing)}")
    return wanted


def _plan_of(
    change: Change, zone: ZoneInfo, wanted: Sequence[tuple[str, Order]], from_ns: int, *, without: str = ""
) -> _Plan:
    needs = [procedure_of(change, order.procedure.value, order.procedure.scheme) for _, order in wanted]
    length = sum(one.duration_min for one in needs) * MINUTE_NS
    return _Plan(change, zone, needs, from_ns, from_ns + length, without=without)


def _choose(
    change: Change, plan: _Plan, from_ns: int, resources: Sequence[str], *, or_of: Sequence[str] = ()
) -> tuple[str, ...]:
    ids = [key if change.get(RESOURCE, key) is not None else resource(change, key)[0] for key in resources]
    for key in ids:
        if key not in plan.resources:
            raise InvalidError("a resource that was named is not one that this procedure needs", "resources")
        if not plan.is_free(key, from_ns):
            raise NotNowError(f"{plan.resources[key].code} is not free then, or not open")
    chosen = plan.chosen_at(from_ns, ids or or_of)
    if chosen is None or not set(ids) <= set(chosen):
        codes = sorted({one.code for one in plan.resources.values()})
        raise NotNowError(f"not everything is free then, or open, of: {', '.join(codes)}")
    return chosen


def _say(change: Change, event: str, actor: Actor, appointment_id: str, appointment: Appointment) -> None:
    body: Mapping[str, Any] = {
        "appointment": appointment_id,
        "orders": list(appointment.orders),
        "patient": appointment.patient,
        "actor": actor.person,
    }
    change.say(event, body)


def steps_of(view: View, appointment_id: str) -> list[str]:
    """The ids of an appointment's steps."""
    return view.ids(STEP, "appointment", appointment_id)


def fulfilled(change: Change, actor: Actor, order_id: str) -> None:
    """An order was performed: so was its appointment, when all of its orders are done."""
    for appointment_id, one in list(change.find(APPOINTMENT, "order", order_id)):
        if one.state in HOLDING:
            states = [ordering.get(change, each).state for each in one.orders]
            if all(state in ("completed", "cancelled", "rejected", "replaced") for state in states):
                act(change, actor, appointment_id, "fulfil")
