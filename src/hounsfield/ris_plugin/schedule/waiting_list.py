"""Who waits for a time, or an earlier one, and what could be offered when one becomes free.

Nobody is moved without being asked: an event ``slot-freed`` tells that a time is free, :func:`offers` who of
those that wait could have it, who has waited longest first, and :func:`accept` gives it to who says yes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from zoneinfo import ZoneInfo

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.errors import NotNowError, RisError
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, Appointment
from hounsfield.ris_plugin.schedule.free_time import Needs, Slot
from hounsfield.ris_plugin.schedule.gaps import why_not
from hounsfield.ris_plugin.schedule.scheduling import book, get, move, needs_of, orders_of

__all__ = ["Offer", "accept", "offers", "offers_in"]

LOOKED_AT_MAX: Final = 1000
"""Of those who wait, the longest first: with more of them somebody is found before."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A time that somebody who waits could have. ``now_ns``: when that one's time is now, 0 for none."""

    appointment: str
    patient: str
    since_ns: int
    now_ns: int
    from_ns: int
    to_ns: int
    resources: tuple[str, ...]


def offers(
    view: View, zone: ZoneInfo, appointment_id: str, *, after_ns: int = 0, limit: int = 10
) -> list[Offer]:
    """Who waits longest and could have the time that an appointment had when it was cancelled or missed."""
    one = get(view, appointment_id)
    return offers_in(
        view, zone, from_ns=one.from_ns, to_ns=one.to_ns, resources=[held.resource for held in one.holds],
        after_ns=after_ns, limit=limit,
    )  # fmt: skip


def offers_in(
    view: View,
    zone: ZoneInfo,
    *,
    from_ns: int,
    to_ns: int,
    resources: Sequence[str],
    after_ns: int = 0,
    limit: int = 10,
) -> list[Offer]:
    """Who waits longest and could have a time that became free, as ``slot-freed`` tells it.

    What is offered uses one of the ``resources`` then, is free altogether, and begins at ``after_ns`` or
    later; for who has a time, it is an earlier one. A procedure that needs nothing needs no freed time.
    """
    found: list[Offer] = []
    freed = frozenset(resources)
    for appointment_id, one in view.find(APPOINTMENT, "waiting", "", limit=LOOKED_AT_MAX):
        fitting = _fitting(
            view, zone, appointment_id, one, when=(from_ns, to_ns), freed=freed, after_ns=after_ns
        )
        slot = next(fitting, None)
        if slot is not None:
            found.append(
                Offer(
                    appointment=appointment_id,
                    patient=one.patient,
                    since_ns=one.waiting_since_ns,
                    now_ns=one.from_ns if one.state == "booked" else 0,
                    from_ns=slot.from_ns,
                    to_ns=slot.to_ns,
                    resources=slot.resources,
                )
            )
            if len(found) == limit:
                break
    return found


def _fitting(
    view: View,
    zone: ZoneInfo,
    appointment_id: str,
    one: Appointment,
    *,
    when: tuple[int, int],
    freed: frozenset[str],
    after_ns: int,
) -> Iterator[Slot]:
    """Times for one who waits: those that begin in what became free, then those that run into it."""
    begin, end = when
    try:
        wanted = orders_of(view, one.orders)
        procedures = needs_of(view, [order for _, order in wanted])
        needs = Needs(view, zone, procedures, without=appointment_id, patient=one.patient)
    except RisError:  # an order is held, a question open, a device retired: nothing to offer now
        return
    if not freed & needs.resources.keys():
        return
    earliest = max(after_ns, one.wanted_from_ns)
    latest = one.wanted_to_ns or end + needs.length_ns
    if one.state == "booked":
        latest = min(latest, one.from_ns + needs.length_ns - 1)
    for low, high in ((begin, end), (begin - needs.length_ns, begin)):
        low, high = max(low, earliest, 0), min(high + needs.length_ns, latest)  # noqa: PLW2901
        if low >= high:
            continue
        for slot in needs.slots(low, high, limit=50, wanted=sorted(freed)):
            held = needs.holds(slot.resources, slot.from_ns)
            moved = structs.replace(one, from_ns=slot.from_ns, to_ns=slot.to_ns)
            if any(
                each.resource in freed and each.from_ns < end and begin < each.to_ns for each in held
            ) and not why_not(view, appointment_id, moved):
                yield slot


def accept(
    change: Change,
    actor: Actor,
    zone: ZoneInfo,
    appointment_id: str,
    *,
    from_ns: int,
    resources: Sequence[str] = (),
) -> None:
    """Give who waits a time that was offered. NotNowError when somebody else has it meanwhile."""
    one = get(change, appointment_id)
    if one.state == "proposed":
        book(change, actor, zone, orders=one.orders, from_ns=from_ns, resources=resources)
    elif one.waiting_since_ns and one.state == "booked":
        move(change, actor, zone, appointment_id, from_ns=from_ns, resources=resources)
    else:
        raise NotNowError(f"the appointment is {one.state} and waits for no other time")
