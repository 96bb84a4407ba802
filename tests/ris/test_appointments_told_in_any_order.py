"""What other systems say of an appointment comes late, twice or crosswise, and ends in another one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.engine.stores import Stores
from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.catalog import put_resource
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError, NotNowError
from hounsfield.ris_plugin.hl7.placers_schedule import take
from hounsfield.ris_plugin.records.catalog import RESOURCE, Resource
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, HOLDING
from hounsfield.ris_plugin.schedule import steps
from hounsfield.ris_plugin.schedule.scheduling import act, book, get, move
from ris.conftest import CLERK, INTERFACE, MODALITY, NOON_NS, Desk
from ris.hl7_desk import Interface, obr, orc, pid

ZONE = ZoneInfo("Europe/Berlin")
HOUR_NS = 3600 * 1_000_000_000
STATES = {"book": "booked", "move": "booked", "cancel": "cancelled", "miss": "no-show"}


class Said(NamedTuple):
    """What a sender says of an appointment as of a moment."""

    sender: str
    event_ns: int
    action: str
    start_ns: int


_said = st.tuples(st.integers(1, 6), st.sampled_from(sorted(STATES)), st.integers(0, 3))
_of_one = st.lists(_said, min_size=1, max_size=4)


@st.composite
def told(draw: st.DrawFn) -> tuple[list[list[Said]], list[list[int]]]:
    """What two or three senders say, each in its order, and three ways in which it may come."""
    senders = []
    for name in ("HIS", "LAB", "RIS2")[: draw(st.integers(2, 3))]:
        events = sorted(draw(_of_one), key=lambda one: one[0])
        senders.append(
            [
                Said(name, NOON_NS + moment, action, NOON_NS + (24 + start) * HOUR_NS)
                for moment, action, start in events
            ]
        )
    turns = [index for index, events in enumerate(senders) for _ in events]
    return senders, [draw(st.permutations(turns)) for _ in range(3)]


@given(told())
@settings(max_examples=60, deadline=None)
def test_every_way_that_keeps_each_senders_order_ends_alike(
    shared_stores: Stores, given: tuple[list[list[Said]], list[list[int]]]
) -> None:
    senders, ways = given
    newest = max(
        (one.event_ns, one.sender, index, one) for events in senders for index, one in enumerate(events)
    )[3]
    for turns in ways:
        queues = [iter(events) for events in senders]
        came = [next(queues[turn]) for turn in turns]
        ended = outcome(Desk(shared_stores), came)
        state = STATES[newest.action]
        assert ended["state"] == state
        assert ended["as_of"] == (newest.event_ns, newest.sender)
        start = newest.start_ns if state == "booked" else 0
        assert ended["steps"] == ([start] if start else [])
        assert ended["holds"] == ([(start, start + HOUR_NS)] if start else [])
        assert ended["order"] == ("scheduled" if start else "accepted")


def outcome(desk: Desk, came: Sequence[Said]) -> dict[str, object]:
    """What there is in the end, in a department of its own."""
    mark = uuid.uuid4().hex
    from ris.conftest import ADMINISTRATOR

    room = desk.do(put_resource, ADMINISTRATOR, Resource(code=mark, kind="room"))
    desk.procedure(mark, duration_min=60, resources=((mark,),))
    order = desk.order(desk.patient(mark), mark)
    found = {
        desk.do(
            take, INTERFACE, ZONE, one.action, placer_number=mark, orders=[order], event_ns=one.event_ns,
            sender=one.sender, from_ns=one.start_ns,
        )
        for one in came
    }  # fmt: skip
    (appointment_id,) = found
    one = desk.look(get, appointment_id)
    with desk.view() as view:
        held = [each for _, each in view.find(APPOINTMENT, "holds", room) if each.state in HOLDING]
        assert view.ids(APPOINTMENT, "placer", mark) == [appointment_id]
    return {
        "state": one.state,
        "as_of": (one.as_of_ns, one.as_of_from),
        "steps": [step.from_ns for _, step in desk.look(steps.of_order, order)],
        "holds": [(hold.from_ns, hold.to_ns) for each in held for hold in each.holds],
        "order": desk.look(orders.get, order).state,
    }


def test_what_the_desk_did_since_holds(desk: Desk) -> None:
    """A cancellation from before the desk moved it comes after it: the patient has been told the new time."""
    desk.procedure()
    order = desk.order(desk.patient())
    one = desk.do(
        take, INTERFACE, ZONE, "book", placer_number="1", orders=[order], event_ns=NOON_NS - 2,
        sender="HIS", from_ns=NOON_NS + HOUR_NS,
    )  # fmt: skip
    desk.do(move, CLERK, ZONE, one, from_ns=NOON_NS + 2 * HOUR_NS)
    late = {"placer_number": "1", "orders": [order], "event_ns": NOON_NS - 1, "sender": "HIS"}
    assert desk.do(take, INTERFACE, ZONE, "cancel", **late) == one
    assert (
        desk.do(act, INTERFACE, one, "cancel", why="x", event_ns=NOON_NS - 1, sender="HIS").state == "booked"
    )
    desk.do(move, INTERFACE, ZONE, one, from_ns=NOON_NS + HOUR_NS, event_ns=NOON_NS - 1, sender="HIS")
    found = desk.look(get, one)
    assert (found.state, found.from_ns) == ("booked", NOON_NS + 2 * HOUR_NS)


def test_the_same_message_again_changes_nothing(desk: Desk) -> None:
    desk.procedure()
    order = desk.order(desk.patient())
    said = {
        "placer_number": "1", "orders": [order], "event_ns": NOON_NS, "sender": "HIS",
        "from_ns": NOON_NS + HOUR_NS,
    }  # fmt: skip
    for action in ("book", "book", "cancel", "cancel"):
        before = len(desk.said())
        one = desk.do(take, INTERFACE, ZONE, action, **said)
    assert len(desk.said()) == before
    assert desk.look(get, one).state == "cancelled"


def test_what_an_engine_tells_us_again_of_ours_is_told_to_nobody(desk: Desk) -> None:
    """Two systems that tell each other would not end."""
    scanner = Resource(code="CT1", name="CT 1", kind="device", modality="CT")
    desk.commit(lambda change: change.put(RESOURCE, change.new_id(), scanner))
    desk.procedure("CTX", resources=(("CT1",),))
    interface = Interface(desk)
    interface.send("ORM^O01", pid(), orc("NW"), obr(code="CTX"))
    said = ["SCH|S1^SCHED||||||||30|min|^^30^20261124100000|||||||||||||||O1^HIS", pid(), "AIG|1||CT1"]
    assert interface.send("SIU^S12", *said) == "AA"
    before = len(desk.said())
    assert interface.send("SIU^S12", *said, at="20261122120001") == "AA"
    assert interface.send("SIU^S13", *said, at="20261122120002") == "AA"
    # A change of something else that says no time leaves it.
    assert interface.send("SIU^S14", "SCH|S1^SCHED", pid(), at="20261122120003") == "AA"
    assert not [event.kind for event in desk.said()[before:] if "appointment" in event.kind]


def test_another_placers_number_is_another_appointment(desk: Desk) -> None:
    desk.procedure()
    mine, other = (desk.order(desk.patient(number)) for number in ("P1", "P2"))
    said = {"placer_number": "1", "event_ns": NOON_NS, "sender": "HIS", "from_ns": NOON_NS + HOUR_NS}
    first = desk.do(take, INTERFACE, ZONE, "book", orders=[mine], **said)
    assert desk.do(take, INTERFACE, ZONE, "book", orders=[other], **said) != first


def test_what_cannot_be_is_refused(desk: Desk) -> None:
    desk.procedure()
    order = desk.order(desk.patient())
    said = {"event_ns": NOON_NS, "sender": "HIS", "from_ns": NOON_NS + HOUR_NS, "orders": [order]}
    with pytest.raises(InvalidError):
        desk.do(take, INTERFACE, ZONE, "book", placer_number="", **said)
    with pytest.raises(InvalidError):
        desk.do(take, INTERFACE, ZONE, "arrive", placer_number="1", **said)
    with pytest.raises(ForbiddenError):
        desk.do(take, MODALITY, ZONE, "cancel", placer_number="1", **said)
    # An appointment that the desk has given is not another one's to have twice.
    desk.do(book, CLERK, ZONE, orders=[order], from_ns=NOON_NS + HOUR_NS)
    with pytest.raises(NotNowError, match="already"):
        desk.do(take, INTERFACE, ZONE, "book", placer_number="1", **said)
