"""A room, a device or a person is in two places; a patient comes when nobody is there; a time is lost."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.catalog import procedure, put_resource
from hounsfield.ris_plugin.errors import InvalidError, NotNowError
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import Hours, Resource
from hounsfield.ris_plugin.records.schedule import STEP
from hounsfield.ris_plugin.schedule import steps
from hounsfield.ris_plugin.schedule.scheduling import Slot, act, book, free, get, move, propose, waiting
from ris.conftest import ADMINISTRATOR, CLERK, REFERRER, TECHNOLOGIST, Desk

ZONE = ZoneInfo("Europe/Berlin")
WEEK = tuple(Hours(weekday=day, from_min=8 * 60, to_min=16 * 60) for day in range(5))


def at(text: str) -> int:
    """A moment as the department's clocks show it."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZONE).timestamp()) * NS


@pytest.fixture
def rooms(desk: Desk) -> Desk:
    for one in (
        Resource(code="CT1", kind="device", modality="CT", ae_title="CT1", hours=WEEK, buffer_min=5),
        Resource(code="CT2", kind="device", modality="CT", ae_title="CT2", hours=WEEK),
        Resource(
            code="ANNE",
            kind="person",
            name="ANNE^T",
            hours=WEEK,
            breaks=tuple(Hours(weekday=day, from_min=12 * 60, to_min=13 * 60) for day in range(5)),
        ),
    ):
        desk.do(put_resource, ADMINISTRATOR, one)
    desk.procedure(resources=(("CT1",), ("ANNE",)), cleaning_min=5)
    desk.procedure("CTANY", resources=(("#device:CT",),), preparation_min=10)
    return desk


def slots(desk: Desk, code: str, start: str, end: str, limit: int = 3) -> list[Slot]:
    with desk.view() as view:
        found = procedure(view, code)
        assert found is not None
        return free(view, ZONE, [found[1]], from_ns=at(start), to_ns=at(end), limit=limit)


def clock(moment_ns: int) -> str:
    return datetime.fromtimestamp(moment_ns / NS, UTC).astimezone(ZONE).strftime("%a %H:%M")


def test_the_first_free_time_is_where_all_of_it_is_free(rooms: Desk) -> None:
    patient = rooms.patient()
    first = rooms.do(book, CLERK, ZONE, orders=[rooms.order(patient)], from_ns=at("2026-11-23T08:00"))
    # 30 minutes, 5 of cleaning and 5 of the device's own
    found = slots(rooms, "CTHEAD", "2026-11-22T00:00", "2026-11-25T00:00", limit=60)
    assert [clock(one.from_ns) for one in found[:2]] == ["Mon 08:40", "Mon 08:45"]
    taken = {clock(one.from_ns) for one in found}
    assert "Mon 11:30" in taken
    assert not taken & {"Mon 11:35", "Mon 12:00", "Mon 12:55"}  # Anne's break
    assert "Mon 13:00" in taken
    rooms.do(act, CLERK, first, "cancel", why="ill")
    assert clock(slots(rooms, "CTHEAD", "2026-11-22T00:00", "2026-11-25T00:00")[0].from_ns) == "Mon 08:00"


def test_a_resource_is_never_held_twice(rooms: Desk) -> None:
    rooms.do(book, CLERK, ZONE, orders=[rooms.order(rooms.patient())], from_ns=at("2026-11-23T09:00"))
    patient = rooms.patient("P2", "ROE^R")
    for start in ("08:35", "08:55", "09:00", "09:25", "09:35"):
        with pytest.raises(NotNowError, match="not everything is free"):
            rooms.do(book, CLERK, ZONE, orders=[rooms.order(patient)], from_ns=at(f"2026-11-23T{start}"))
    with pytest.raises(NotNowError, match="CT1 is not free"):
        rooms.do(
            book,
            CLERK,
            ZONE,
            orders=[rooms.order(patient, "CTANY")],
            from_ns=at("2026-11-23T09:00"),
            resources=["CT1"],
        )
    other = rooms.do(
        book, CLERK, ZONE, orders=[rooms.order(patient, "CTANY")], from_ns=at("2026-11-23T09:00")
    )
    with rooms.view() as view:
        (step,) = view.find(STEP, "appointment", other)
    assert step[1].ae_titles == ("CT2",)


@pytest.mark.parametrize(
    "start", ["2026-11-22T10:00", "2026-11-23T07:55", "2026-11-23T15:45", "2026-11-23T11:45"]
)
def test_nobody_is_booked_when_it_is_closed(rooms: Desk, start: str) -> None:
    order = rooms.order(rooms.patient())
    with pytest.raises(NotNowError):
        rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at(start))
    assert rooms.look(orders.get, order).state == "accepted"
    with rooms.view() as view:
        assert view.ids(STEP, "order", order) == []


def test_hours_are_what_clocks_show_when_they_change(rooms: Desk) -> None:
    """Berlin's clocks went back on 2026-10-25, and go forward on 2027-03-28: eight is eight."""
    for start in ("2026-10-24T00:00", "2027-03-27T00:00"):
        (first,) = slots(rooms, "CTHEAD", start, start[:8] + "31T00:00", limit=1)
        assert clock(first.from_ns) == "Mon 08:00"


def test_an_order_is_not_scheduled_before_its_safety_questions_are_answered(rooms: Desk) -> None:
    rooms.procedure("CTKM", resources=(("CT1",),), questions=("contrast-allergy",))
    order = rooms.order(rooms.patient(), "CTKM")
    start = at("2026-11-23T09:00")
    with pytest.raises(NotNowError, match="contrast-allergy"):
        rooms.do(book, CLERK, ZONE, orders=[order], from_ns=start)
    rooms.do(orders.answer, CLERK, order, "contrast-allergy", "none")
    rooms.do(book, CLERK, ZONE, orders=[order], from_ns=start)
    with pytest.raises(NotNowError, match="already"):
        rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-23T11:00"))


def test_a_move_frees_what_it_held_and_takes_the_steps_along(rooms: Desk) -> None:
    patient = rooms.patient()
    order = rooms.order(patient)
    one = rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-23T09:00"))
    rooms.do(move, CLERK, ZONE, one, from_ns=at("2026-11-23T09:10"))  # beside its own old time
    (step,) = [each for _, each in rooms.look(steps.of_order, order)]
    assert clock(step.from_ns) == "Mon 09:10"
    rooms.do(book, CLERK, ZONE, orders=[rooms.order(patient)], from_ns=at("2026-11-23T08:15"))
    with pytest.raises(NotNowError):
        rooms.do(move, CLERK, ZONE, one, from_ns=at("2026-11-23T08:20"))
    assert clock(rooms.look(get, one).from_ns) == "Mon 09:10"


def test_a_patient_who_did_not_come_leaves_the_room_and_can_come_again(rooms: Desk) -> None:
    order = rooms.order(rooms.patient())
    one = rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-23T09:00"))
    rooms.do(act, TECHNOLOGIST, one, "miss")
    assert rooms.look(steps.of_order, order) == []
    rooms.do(book, CLERK, ZONE, orders=[rooms.order(rooms.patient("P2"))], from_ns=at("2026-11-23T09:00"))
    with pytest.raises(NotNowError):
        rooms.do(move, CLERK, ZONE, one, from_ns=at("2026-11-23T09:00"))
    assert rooms.look(orders.get, order).state == "accepted"
    rooms.do(move, CLERK, ZONE, one, from_ns=at("2026-11-23T14:00"))
    assert [each.state for _, each in rooms.look(steps.of_order, order)] == ["scheduled"]


def test_who_waits_is_not_forgotten_and_gets_the_same_appointment(rooms: Desk) -> None:
    order = rooms.order(rooms.patient())
    one = rooms.do(propose, CLERK, orders=[order])
    assert [key for key, _ in rooms.look(waiting)] == [one]
    assert rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-23T09:00")) == one
    assert rooms.look(waiting) == []


def test_orders_of_two_patients_are_not_one_appointment(rooms: Desk) -> None:
    mixed = [rooms.order(rooms.patient("P1")), rooms.order(rooms.patient("P2"))]
    for wrong in (mixed, [], [mixed[0], mixed[0]]):
        with pytest.raises(InvalidError):
            rooms.do(book, CLERK, ZONE, orders=wrong, from_ns=at("2026-11-23T09:00"))


@pytest.mark.parametrize("action", ["cancel", "hold"])
def test_what_is_not_to_be_done_leaves_the_worklist_and_the_room(rooms: Desk, action: str) -> None:
    order = rooms.order(rooms.patient())
    one = rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-23T09:00"))
    rooms.do(orders.act, REFERRER, order, action, why="no need")
    with rooms.view() as view:
        assert view.ids(STEP, "worklist", "") == []
    assert rooms.look(get, one).state == "cancelled"
    rooms.do(book, CLERK, ZONE, orders=[rooms.order(rooms.patient("P2"))], from_ns=at("2026-11-23T09:00"))


def test_one_of_two_orders_is_cancelled_and_the_other_one_keeps_its_time(rooms: Desk) -> None:
    patient = rooms.patient()
    both = [rooms.order(patient), rooms.order(patient, "CTANY")]
    one = rooms.do(book, CLERK, ZONE, orders=both, from_ns=at("2026-11-23T09:00"))
    rooms.do(orders.act, REFERRER, both[0], "cancel", why="no need")
    assert rooms.look(get, one).orders == (both[1],)
    assert rooms.look(steps.of_order, both[0]) == []
    rooms.do(move, CLERK, ZONE, one, from_ns=at("2026-11-23T10:00"))
    (step,) = [each for _, each in rooms.look(steps.of_order, both[1])]
    assert clock(step.from_ns) == "Mon 10:00"


def test_a_step_is_on_the_worklist_of_its_own_device(rooms: Desk) -> None:
    rooms.do(put_resource, ADMINISTRATOR, Resource(code="MR1", kind="device", modality="MR", ae_title="MR1"))
    rooms.procedure("MRHEAD", "MR", resources=(("MR1",),))
    patient = rooms.patient()
    both = [rooms.order(patient), rooms.order(patient, "MRHEAD")]
    rooms.do(book, CLERK, ZONE, orders=both, from_ns=at("2026-11-23T09:00"))
    assert [each.ae_titles for one in both for _, each in rooms.look(steps.of_order, one)] == [
        ("CT1",),
        ("MR1",),
    ]


def test_a_cancelled_time_is_not_taken_up_beside_another_one(rooms: Desk) -> None:
    order = rooms.order(rooms.patient())
    first = rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-23T09:00"))
    rooms.do(act, CLERK, first, "cancel", why="ill")
    second = rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-24T09:00"))
    assert second != first
    with pytest.raises(NotNowError, match="another appointment"):
        rooms.do(move, CLERK, ZONE, first, from_ns=at("2026-11-25T09:00"))
    rooms.do(act, CLERK, second, "cancel", why="ill again")
    rooms.do(move, CLERK, ZONE, first, from_ns=at("2026-11-25T09:00"))
    assert [clock(step.from_ns) for _, step in rooms.look(steps.of_order, order)] == ["Wed 09:00"]
    assert rooms.look(get, first).state == "booked"
