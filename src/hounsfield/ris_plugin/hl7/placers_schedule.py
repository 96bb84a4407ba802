"""Appointments that another system has given: what it says of them, in whichever order it comes (HL7 v2 10).

Of what several senders say about one appointment the last *event* counts, not the last arrival; at the same
moment the sender whose name sorts later. So every interleaving that keeps each sender's order ends in the
same appointment, unless somebody else took the time meanwhile: two never have one room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from zoneinfo import ZoneInfo

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, Appointment
from hounsfield.ris_plugin.schedule.scheduling import DESK, SAID, act, book, get, move, orders_of, say

__all__ = ["take"]

ENDS: Final = {"cancel": "cancelled", "miss": "no-show"}


def take(
    change: Change,
    actor: Actor,
    zone: ZoneInfo,
    action: str,
    *,
    placer_number: str,
    orders: Sequence[str],
    event_ns: int,
    sender: str,
    from_ns: int = 0,
    resources: Sequence[str] = (),
    why: str = "",
    note: str = "",
) -> str:
    """Take what another system says of the appointment that it calls ``placer_number``; its id.

    ``action``: book or move (both say when it is), cancel, or miss. What comes first makes the appointment,
    a cancellation too, so that an older booking that comes after it does not bring it back: in whichever
    order several senders' events come, what is newest holds. NotNowError when it cannot be then.
    """
    if not placer_number:
        raise InvalidError("the appointment has no number of the placer's", "placer_number")
    if action not in ("book", "move", "cancel", "miss"):
        raise InvalidError(f"of an appointment nobody says {action!r} so", "action")
    actor.require(*DESK, what="booking")
    found = _of_placer(change, placer_number, orders)
    if found is None:
        return _begin(
            change, actor, zone, action, placer_number=placer_number, orders=orders, from_ns=from_ns,
            resources=resources, why=why, note=note, event_ns=event_ns, sender=sender,
        )  # fmt: skip
    appointment_id, known = found
    if (event_ns, sender) < (known.as_of_ns, known.as_of_from):
        return appointment_id
    if action in ("book", "move"):
        held = {one.resource for one in known.holds}
        # Said again, as by an engine that tells what we told it: nothing moves, and nobody is told.
        if not (known.state == "booked" and known.from_ns == from_ns and held.issuperset(resources)):
            move(
                change, actor, zone, appointment_id, from_ns=from_ns, resources=resources,
                event_ns=event_ns, sender=sender,
            )  # fmt: skip
    elif known.state != ENDS[action]:
        act(change, actor, appointment_id, action, why=why or "the placer says so",
            event_ns=event_ns, sender=sender)  # fmt: skip
    last = get(change, appointment_id)
    newest = structs.replace(last, as_of_ns=event_ns, as_of_from=sender)
    if newest != last:
        change.put(APPOINTMENT, appointment_id, newest)
    return appointment_id


def _begin(
    change: Change,
    actor: Actor,
    zone: ZoneInfo,
    action: str,
    *,
    placer_number: str,
    orders: Sequence[str],
    from_ns: int,
    resources: Sequence[str],
    why: str,
    note: str,
    event_ns: int,
    sender: str,
) -> str:
    """The first that is heard of an appointment."""
    if action in ("book", "move"):
        return book(
            change, actor, zone, orders=orders, from_ns=from_ns, resources=resources, note=note,
            placer_number=placer_number, event_ns=event_ns, sender=sender,
        )  # fmt: skip
    wanted = orders_of(change, orders, ready=False)
    appointment_id = change.new_id()
    appointment = Appointment(
        number=f"A{change.count('appointment'):08}",
        patient=wanted[0][1].patient,
        orders=tuple(orders),
        state=ENDS[action],
        from_ns=from_ns,
        placer_number=placer_number,
        reason=why,
        note=note,
        as_of_ns=event_ns,
        as_of_from=sender,
    )
    change.put(APPOINTMENT, appointment_id, appointment)
    say(change, SAID[action], actor, appointment_id, appointment)
    return appointment_id


def _of_placer(view: View, placer_number: str, orders: Sequence[str]) -> tuple[str, Appointment] | None:
    """The appointment that a placer calls so, and that is for one of the orders: several placers count."""
    for key, one in view.find(APPOINTMENT, "placer", placer_number):
        if not orders or set(one.orders) & set(orders):
            return key, one
    return None
