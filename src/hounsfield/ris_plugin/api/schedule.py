"""The schedule over the API: free times, appointments, who waits, and the day of a room."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import msgspec

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.api import sight
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Limit, Nothing, Why, page_of
from hounsfield.ris_plugin.api.models import item, moment
from hounsfield.ris_plugin.catalog import procedure, procedure_of, resource
from hounsfield.ris_plugin.errors import InvalidError, UnknownError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.base import NS, seconds
from hounsfield.ris_plugin.records.catalog import RESOURCE
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, SHOWN, Appointment
from hounsfield.ris_plugin.schedule import scheduling

__all__ = ["ENDPOINTS"]

TAG: Final = "Schedule"
MORE: Final = ("patient_name", "patient_number", "birth_day", "actions")
AppointmentItem: Final[Any] = item(Appointment, *MORE)
DAYS_AHEAD: Final = 30
"""How far a free time is looked for when nothing is said."""
DAY_NS: Final = 86_400 * NS
APPOINTMENTS_MAX: Final = 500


class Looking(Nothing, frozen=True, kw_only=True):
    """For orders (ids, separated by commas), or a procedure by its code. Times without an offset are the
    department's."""

    orders: str = ""
    procedure: str = ""
    since: datetime | None = None
    until: datetime | None = None
    limit: Limit = 10


class FreeTime(msgspec.Struct, frozen=True, kw_only=True, rename={"begin": "from", "end": "to"}):
    """A time at which everything is free. ``resources``: codes, one of each group that is needed."""

    begin: datetime | None
    end: datetime | None
    resources: tuple[str, ...]


class Booking(Nothing, frozen=True, kw_only=True, rename={"begin": "from"}):
    """A time for orders of one patient. ``resources``: codes of those that are wanted; the rest is chosen."""

    orders: tuple[str, ...]
    begin: datetime
    resources: tuple[str, ...] = ()
    note: str = ""


class Waiting(Nothing, frozen=True, kw_only=True):
    """Orders of one patient that wait for a time, within one that is ``wanted`` if that is said. ``follows``:
    the id of the appointment that it is to follow up."""

    orders: tuple[str, ...]
    note: str = ""
    wanted: datetime | None = None
    wanted_until: datetime | None = None
    follows: str = ""


class Moving(Nothing, frozen=True, kw_only=True, rename={"begin": "from"}):
    """Another time, or other resources. ``apart``: it leaves its series."""

    begin: datetime
    resources: tuple[str, ...] = ()
    apart: bool = False


class Day(Nothing, frozen=True, kw_only=True):
    """Appointments that begin in a stretch of time: today when none is given, a day when it has no end.
    ``resource``: a code. ``state``: all but what was cancelled, when none is given. Or the one of a
    ``number``, whenever it is."""

    since: datetime | None = None
    until: datetime | None = None
    resource: str = ""
    state: str = ""
    number: str = ""


class Few(Nothing, frozen=True, kw_only=True):
    """How many."""

    limit: Limit = 50


def shown(view: View, ask: Ask, appointment_id: str, one: Appointment) -> Any:
    """An appointment with whose it is; resources by their codes."""
    _, patient = resolve(view, one.patient)
    held = tuple(msgspec.structs.replace(each, resource=_code(view, each.resource)) for each in one.holds)
    return ask.item(
        view,
        APPOINTMENT,
        appointment_id,
        msgspec.structs.replace(one, holds=held),
        patient_name=patient.name,
        patient_number=patient.identifiers[0].value,
        birth_day=patient.birth_day,
        actions=tuple(scheduling.MACHINE.possible(one.state, ask.actor)),
    )


def _code(view: View, resource_id: str) -> str:
    held = view.get(RESOURCE, resource_id)
    return held.code if held is not None else resource_id


def _now(view: View, ask: Ask, appointment_id: str) -> Any:
    appointment = scheduling.get(view, appointment_id)
    ask.open(view, appointment.patient)
    return shown(view, ask, appointment_id, appointment)


def slots(view: View, ask: Ask) -> Any:
    """The first free times."""
    q: Looking = ask.query
    if q.orders:
        wanted = [orders.get(view, one.strip()) for one in q.orders.split(",")]
        patient = wanted[0].patient
        needs = [procedure_of(view, one.procedure.value, one.procedure.scheme) for one in wanted]
    elif q.procedure:
        found = procedure(view, q.procedure)
        if found is None:
            raise UnknownError("the catalog has no active procedure of this code")
        needs, patient = [found[1]], ""
    else:
        raise InvalidError("say for which orders, or for which procedure", "orders")
    since = ask.ns(q.since) or ask.now_ns
    until = ask.ns(q.until) or since + DAYS_AHEAD * DAY_NS
    if until <= since:
        raise InvalidError("it ends after it begins", "until")
    free = scheduling.free(
        view, ask.ris.zone, needs, from_ns=since, to_ns=until, limit=q.limit, patient=patient
    )
    return page_of(FreeTime)(items=tuple(free_time(view, ask, slot) for slot in free))


def free_time(view: View, ask: Ask, slot: scheduling.Slot) -> FreeTime:
    """A free time, with the codes of what is free then."""
    return FreeTime(
        begin=moment(slot.from_ns, ask.ris.zone),
        end=moment(slot.to_ns, ask.ris.zone),
        resources=tuple(_code(view, one) for one in slot.resources),
    )


def listed(view: View, ask: Ask) -> Any:
    """The appointments of a stretch of time, by when they begin."""
    q: Day = ask.query
    if q.state and q.state not in scheduling.MACHINE.states:
        raise InvalidError(f"a state is one of {', '.join(scheduling.MACHINE.states)}", "state")
    if q.number:
        one = view.find(APPOINTMENT, "number", q.number, limit=1)
        return page_of(AppointmentItem)(items=tuple(shown(view, ask, *each) for each in one))
    since, until = ask.stretch(q.since, q.until)
    states = (q.state,) if q.state else SHOWN
    key = resource(view, q.resource)[0] if q.resource else ""
    # What was cancelled stands on no resource any more: it is looked for among all of its state.
    standing = bool(key) and all(state in SHOWN for state in states)
    found: dict[str, Appointment] = {}
    for lookup, text in [("stands", key)] if standing else [("state", state) for state in states]:
        each = view.find(
            APPOINTMENT, lookup, text,
            at_least=seconds(since), at_most=seconds(until - 1), limit=None if key else APPOINTMENTS_MAX,
        )  # fmt: skip
        found |= {
            one: held
            for one, held in each
            if held.state in states and (not key or any(part.resource == key for part in held.holds))
        }
    ordered = sorted(found.items(), key=lambda each: (each[1].from_ns, each[0]))[:APPOINTMENTS_MAX]
    return page_of(AppointmentItem)(items=tuple(shown(view, ask, *each) for each in ordered))


def waiting(view: View, ask: Ask) -> Any:
    """Who waits for a time, or an earlier one."""
    found = scheduling.waiting(view, ask.query.limit)
    return page_of(AppointmentItem)(items=tuple(shown(view, ask, *each) for each in found))


def book(change: Change, ask: Ask) -> Any:
    """Book a time."""
    body: Booking = ask.body
    appointment_id = scheduling.book(
        change, ask.actor, ask.ris.zone,
        orders=body.orders, from_ns=ask.ns(body.begin), resources=body.resources, note=body.note,
    )  # fmt: skip
    return _now(change, ask, appointment_id)


def propose(change: Change, ask: Ask) -> Any:
    """Put orders on the waiting list."""
    body: Waiting = ask.body
    appointment_id = scheduling.propose(
        change, ask.actor, orders=body.orders, note=body.note,
        wanted_from_ns=ask.ns(body.wanted), wanted_to_ns=ask.ns(body.wanted_until), follows=body.follows,
    )  # fmt: skip
    return _now(change, ask, appointment_id)


def get(view: View, ask: Ask) -> Any:
    """An appointment."""
    appointment_id = ask.path["appointment"]
    sight.appointment(view, ask.actor, appointment_id)
    return _now(view, ask, appointment_id)


def move(change: Change, ask: Ask) -> Any:
    """Move an appointment."""
    appointment_id = ask.path["appointment"]
    scheduling.move(
        change, ask.actor, ask.ris.zone, appointment_id,
        from_ns=ask.ns(ask.body.begin), resources=ask.body.resources, apart=ask.body.apart,
    )  # fmt: skip
    return _now(change, ask, appointment_id)


def _acting(action: str) -> Callable[[Change, Ask], Any]:
    def act(change: Change, ask: Ask) -> Any:
        appointment_id = ask.path["appointment"]
        held = sight.appointment(change, ask.actor, appointment_id)
        sight.may_change(ask.actor, *(orders.get(change, one) for one in held.orders))
        scheduling.act(change, ask.actor, appointment_id, action, why=ask.body.why)
        return _now(change, ask, appointment_id)

    return act


def _action(name: str, action: str, summary: str, roles: tuple[str, ...] = sight.DEPARTMENT) -> Endpoint:
    return Endpoint(
        name, "POST", f"/appointments/{{appointment}}/{action}", TAG, summary, _acting(action),
        AppointmentItem, body=Why, kind=APPOINTMENT, roles=roles,
    )  # fmt: skip


ENDPOINTS: Final = (
    Endpoint(
        "FindFreeTimes", "GET", "/slots", TAG, "The first times at which everything that is needed is free",
        slots, page_of(FreeTime), Looking,
    ),
    Endpoint(
        "ListAppointments", "GET", "/appointments", TAG,
        "The appointments of a day, or another stretch of time",
        listed, page_of(AppointmentItem), Day,
    ),
    Endpoint(
        "BookAppointment", "POST", "/appointments", TAG, "Book a time for orders of one patient",
        book, AppointmentItem, body=Booking, status=201,
    ),
    Endpoint(
        "GetAppointment", "GET", "/appointments/{appointment}", TAG, "An appointment",
        get, AppointmentItem, roles=sight.ANYBODY,
    ),
    Endpoint(
        "MoveAppointment", "POST", "/appointments/{appointment}/move", TAG,
        "Give an appointment another time, or other resources",
        move, AppointmentItem, body=Moving, kind=APPOINTMENT,
    ),
    _action("PatientArrived", "arrive", "The patient is here"),
    _action("PatientLeft", "leave", "The patient has left again, or never came in"),
    _action("FulfilAppointment", "fulfil", "It is done"),
    _action("CancelAppointment", "cancel", "Cancel an appointment, and say why", sight.ANYBODY),
    _action("PatientDidNotCome", "miss", "The patient did not come"),
    _action("WaitForEarlier", "wait", "Put it on the waiting list for an earlier time"),
    Endpoint(
        "ListWaiting", "GET", "/waiting", TAG,
        "Who waits for a time, or an earlier one, those first who have waited longest",
        waiting, page_of(AppointmentItem), Few,
    ),
    Endpoint(
        "WaitForTime", "POST", "/waiting", TAG, "Put orders on the waiting list",
        propose, AppointmentItem, body=Waiting, status=201, location="/appointments",
    ),
)  # fmt: skip
