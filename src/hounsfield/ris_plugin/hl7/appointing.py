"""SIU^S12 to S17 and S26: what a scheduler says of appointments (HL7 v2.5.1 10.3; IHE RAD-TF 2:4.48)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.errors import InvalidError, UnknownError
from hounsfield.ris_plugin.hl7 import placers_schedule
from hounsfield.ris_plugin.hl7.acks import MissingError
from hounsfield.ris_plugin.hl7.messages import Segment
from hounsfield.ris_plugin.hl7.ordering import AWAITS_ORDER, Waits, find_order
from hounsfield.ris_plugin.hl7.saying import Saying
from hounsfield.ris_plugin.orders import get
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.catalog import RESOURCE
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.schedule import APPOINTMENT

__all__ = ["TRIGGERS", "Appointed", "apply_appointment", "appointed"]

TRIGGERS: Final = {
    "S12": "book", "S13": "move", "S14": "move",
    "S15": "cancel", "S16": "cancel", "S17": "cancel", "S26": "miss",
}  # fmt: skip
"""Discontinued and deleted appointments are cancelled ones here."""
AWAITS_APPOINTMENT: Final = "appointment"


@dataclass(frozen=True, slots=True)
class Appointed:
    """What is said of an appointment. ``number``: the scheduler's, with who gave it."""

    action: str
    number: str
    orders: tuple[tuple[tuple[str, str], tuple[str, str]], ...]
    codes: tuple[str, ...]
    from_ns: int
    resources: tuple[str, ...]
    people: tuple[str, ...]
    why: str

    @property
    def key(self) -> str:
        """By what others wait for it."""
        return f"{AWAITS_APPOINTMENT}\0{self.number}"


def appointed(saying: Saying) -> Appointed:
    """Read an SIU. MissingError, InvalidError."""
    sch = saying.message.first("SCH")
    if sch is None:
        raise MissingError("the message has no SCH", "SCH-1")
    number, issuer = saying.entity(sch, 1) if sch.get(1) else saying.entity(sch, 2)
    if not number:
        raise MissingError("neither SCH-1 nor SCH-2 numbers the appointment", "SCH-1")
    count = max(sch.repetitions(26), sch.repetitions(27))
    named = tuple((saying.entity(sch, 26, rep=rep), saying.entity(sch, 27, rep=rep)) for rep in range(count))
    tq1, ais = saying.message.first("TQ1"), saying.message.first("AIS")
    found: list[tuple[Segment | None, int, int]] = [(sch, 11, 4), (tq1, 7, 1), (ais, 4, 1)]
    start = next(
        (
            one.moment(at, saying.zone, part)
            for one, at, part in found
            if one is not None and one.get(at, part)
        ),
        0,
    )
    return Appointed(
        action=TRIGGERS[saying.message.header.kind.partition("^")[2]],
        number=f"{number}^{issuer}".rstrip("^"),
        orders=tuple(one for one in named if one[0][0] or one[1][0]),
        codes=tuple(one.get(3) for one in saying.message.all("AIS") if one.get(3)),
        from_ns=start,
        resources=tuple(
            one.get(3) for name in ("AIL", "AIG") for one in saying.message.all(name) if one.get(3)
        ),
        people=tuple(one.get(3) for one in saying.message.all("AIP") if one.get(3)),
        why=sch.get(6, 2) or sch.get(6) or sch.get(7, 2) or sch.get(7),
    )


def apply_appointment(change: Change, saying: Saying, one: Appointed, patient: str) -> None:
    """Do what is said. Waits when it speaks of an order or an appointment that is not known."""
    known = change.first(APPOINTMENT, "placer", one.number)
    from_ns = one.from_ns or (known[1].from_ns if known is not None and one.action == "move" else 0)
    if one.action in {"book", "move"} and not from_ns:
        raise MissingError("the message does not say when the appointment is", "SCH-11")
    if known is not None:
        _require_theirs(change, known[1].patient, patient, "SCH-1")
    order_ids = []
    for placer, filler in one.orders:
        order_id = find_order(change, placer, filler)
        if order_id is None:
            if not placer[0]:
                raise UnknownError("no order has the filler's number that SCH-27 says")
            raise Waits(f"{AWAITS_ORDER}\0{placer[1]}\0{placer[0]}")
        _require_theirs(change, get(change, order_id).patient, patient, "SCH-26")
        order_ids.append(order_id)
    if not order_ids and known is None:
        if one.action in {"cancel", "miss"}:
            raise Waits(one.key)
        order_ids = [_only_order(change, one, patient)]
    placers_schedule.take(
        change, saying.actor, saying.zone, one.action,
        placer_number=one.number, orders=order_ids, event_ns=saying.event_ns, sender=saying.sender,
        from_ns=from_ns, resources=_resources(change, one), why=one.why,
    )  # fmt: skip
    if known is None:
        saying.made.append(one.key)
    saying.done.append(f"an appointment: {one.action}")


def _require_theirs(view: View, whose: str, patient: str, place: str) -> None:
    if resolve(view, whose)[0] != resolve(view, patient)[0]:
        raise InvalidError(f"what {place} names is another patient's than PID-3", "PID-3")


def _only_order(view: View, one: Appointed, patient: str) -> str:
    """Of a scheduler that names no order: the patient's only one of that procedure that has no time yet."""
    found = [
        order_id
        for order_id, order in view.find(ORDER, "patient", patient)
        if order.state == "accepted" and order.procedure.value in one.codes
    ]
    if len(found) != 1:
        raise MissingError("the message names no order, and not exactly one of the patient's fits", "SCH-26")
    return found[0]


def _resources(view: View, one: Appointed) -> list[str]:
    """Ids of what is named. A place that is not known is refused: the patient was told another one."""
    ids = []
    for code in one.resources:
        found = view.first(RESOURCE, "code", code)
        if found is None:
            raise InvalidError("a place or device of the message is not in the catalog", "resources")
        ids.append(found[0])
    for code in one.people:
        person = view.first(RESOURCE, "code", code)
        if person is not None:
            ids.append(person[0])
    return ids
