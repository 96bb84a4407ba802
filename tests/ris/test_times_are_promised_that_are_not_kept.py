"""A patient is wanted in two places at once; what was discontinued cannot be done another day; a day's list
has another day's appointments, or not all of its own."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.catalog import procedure, put_person, put_resource
from hounsfield.ris_plugin.errors import NotNowError
from hounsfield.ris_plugin.patients import merge
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import Person, Resource
from hounsfield.ris_plugin.schedule import steps, waiting_list
from hounsfield.ris_plugin.schedule.scheduling import act, book, free, get, move, propose
from ris.conftest import ADMINISTRATOR, CLERK, INTERFACE, RADIOLOGIST, TECHNOLOGIST, Desk, actor
from ris.counter import Counter

ZONE = ZoneInfo("Europe/Vienna")
MINUTE = 60 * NS


def at(text: str, zone: ZoneInfo = ZONE) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()) * NS


@pytest.fixture
def rooms(desk: Desk) -> Desk:
    for code in ("CT1", "MR1"):
        one = Resource(code=code, kind="device", modality=code[:2], ae_title=code)
        desk.do(put_resource, ADMINISTRATOR, one)
    desk.procedure(resources=(("CT1",),))
    desk.procedure("MRHEAD", "MR", resources=(("MR1",),))
    return desk


def test_a_patient_is_in_one_place_at_a_time_also_under_another_number(rooms: Desk) -> None:
    old, new = rooms.patient("OLD"), rooms.patient("NEW")
    first = rooms.do(book, CLERK, ZONE, orders=[rooms.order(old)], from_ns=at("2026-11-24T10:00"))
    rooms.do(merge, CLERK, survivor=new, merged=old, reason="the same")
    other = rooms.order(new, "MRHEAD")
    for start in ("09:31", "10:00", "10:29"):
        with pytest.raises(NotNowError, match="the patient has another appointment then, A0"):
            rooms.do(book, CLERK, ZONE, orders=[other], from_ns=at(f"2026-11-24T{start}"))
    second = rooms.do(book, CLERK, ZONE, orders=[other], from_ns=at("2026-11-24T10:30"))
    with pytest.raises(NotNowError, match="the patient has another appointment"):
        rooms.do(move, CLERK, ZONE, first, from_ns=at("2026-11-24T10:15"))
    rooms.do(move, CLERK, ZONE, first, from_ns=at("2026-11-24T09:50"))  # its own old time is not in its way
    rooms.do(act, CLERK, second, "cancel", why="not today")
    with rooms.view() as view:
        found = procedure(view, "MRHEAD")
        assert found is not None
        between = {"from_ns": at("2026-11-24T09:30"), "to_ns": at("2026-11-24T11:00")}
        anybody = free(view, ZONE, [found[1]], **between)
        this_one = free(view, ZONE, [found[1]], patient=new, **between)
    assert anybody[0].from_ns == at("2026-11-24T09:30")
    assert this_one[0].from_ns == at("2026-11-24T10:20")
    # Another system knows what it schedules.
    rooms.do(book, INTERFACE, ZONE, orders=[other], from_ns=at("2026-11-24T10:00"), event_ns=1)


def test_who_waits_is_not_offered_a_time_at_which_he_is_elsewhere(rooms: Desk) -> None:
    patient, another = rooms.patient(), rooms.patient("P2", "ROE^R")
    rooms.do(book, CLERK, ZONE, orders=[rooms.order(patient, "MRHEAD")], from_ns=at("2026-11-24T10:00"))
    rooms.do(propose, CLERK, orders=[rooms.order(patient)])
    freed = rooms.do(book, CLERK, ZONE, orders=[rooms.order(another)], from_ns=at("2026-11-24T10:15"))
    rooms.do(act, CLERK, freed, "cancel", why="ill")
    with rooms.view() as view:
        (offer,) = waiting_list.offers(view, ZONE, freed)
    assert offer.from_ns == at("2026-11-24T10:30")


def test_what_was_discontinued_is_done_another_day(rooms: Desk) -> None:
    order = rooms.order(rooms.patient())
    appointment = rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-24T10:00"))
    ((step, _),) = rooms.look(steps.of_order, order)
    rooms.do(steps.act, TECHNOLOGIST, step, "start")
    rooms.do(orders.images_began, TECHNOLOGIST, order)
    rooms.do(steps.act, TECHNOLOGIST, step, "discontinue")
    rooms.do(orders.images_ended, TECHNOLOGIST, order, completed=False)
    with pytest.raises(NotNowError, match="move that one"):
        rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-25T10:00"))
    rooms.do(move, CLERK, ZONE, appointment, from_ns=at("2026-11-25T10:00"))
    assert rooms.look(orders.get, order).state == "scheduled"
    found = [(one.state, one.from_ns) for _, one in rooms.look(steps.of_order, order)]
    assert found == [("discontinued", at("2026-11-24T10:00")), ("scheduled", at("2026-11-25T10:00"))]


def test_an_order_whose_appointment_is_over_is_on_the_worklist_once(rooms: Desk) -> None:
    order = rooms.order(rooms.patient())
    over = rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-24T10:00"))
    rooms.do(act, CLERK, over, "fulfil")
    rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-25T10:00"))
    assert [one.from_ns for _, one in rooms.look(steps.of_order, order)] == [at("2026-11-25T10:00")]


def test_an_answer_that_forbids_it_takes_it_from_the_worklist(rooms: Desk) -> None:
    rooms.procedure("CTPELVIS", resources=(("CT1",),), questions=("pregnancy",))
    order = rooms.order(rooms.patient(), "CTPELVIS")
    rooms.do(orders.answer, CLERK, order, "pregnancy", "no")
    appointment = rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-24T10:00"))
    rooms.do(act, CLERK, appointment, "arrive")
    rooms.do(orders.answer, TECHNOLOGIST, order, "pregnancy", "perhaps", blocks=True)
    assert rooms.look(orders.get, order).state == "held"
    assert rooms.look(steps.of_order, order) == []
    assert rooms.look(get, appointment).state == "cancelled"
    rooms.do(orders.answer, RADIOLOGIST, order, "pregnancy", "test negative")
    assert rooms.do(orders.release, CLERK, order).state == "accepted"
    rooms.do(move, CLERK, ZONE, appointment, from_ns=at("2026-11-24T10:00"))
    assert [one.state for _, one in rooms.look(steps.of_order, order)] == ["scheduled"]


def test_what_was_accepted_before_it_was_held_is_so_after(rooms: Desk) -> None:
    rooms.procedure("CTPE", needs_protocol=True)
    patient = rooms.patient()
    plain, protocolled, not_yet = (rooms.order(patient, code) for code in ("CTHEAD", "CTPE", "CTPE"))
    rooms.do(orders.accept, RADIOLOGIST, protocolled, text="60 ml")
    for order, then in ((plain, "accepted"), (protocolled, "accepted"), (not_yet, "placed")):
        rooms.do(orders.act, CLERK, order, "hold", why="ask the ward")
        assert rooms.do(orders.release, CLERK, order).state == then


@pytest.mark.parametrize("role", ["technologist", "clerk"])
def test_whom_a_radiologist_named_protocols_in_his_place(desk: Desk, role: str) -> None:
    desk.procedure(needs_protocol=True)
    desk.do(put_person, ADMINISTRATOR, Person(code="chief", roles=("radiologist",)))
    desk.do(put_person, ADMINISTRATOR, Person(code="a", roles=(role,), deputises_for=("chief",)))
    order = desk.order(desk.patient())
    assert desk.do(orders.accept, actor(role, person="a"), order, text="native").state == "accepted"


@pytest.mark.parametrize(
    ("zone", "day", "after"),
    [
        ("Europe/Vienna", "2027-03-28", "2027-03-29"),  # 23 hours
        ("Europe/Vienna", "2026-10-25", "2026-10-26"),  # 25 hours
        ("America/New_York", "2026-11-01", "2026-11-02"),
        ("Australia/Lord_Howe", "2027-04-04", "2027-04-05"),  # 24.5 hours
        ("Asia/Kolkata", "2026-11-24", "2026-11-25"),
        ("Pacific/Kiritimati", "2026-12-31", "2027-01-01"),
        ("Pacific/Apia", "2026-11-24", "2026-11-25"),
    ],
)
async def test_a_day_is_as_long_as_clocks_have_it(rooms: Desk, zone: str, day: str, after: str) -> None:
    from msgspec import structs

    rooms.settings = structs.replace(rooms.settings, time_zone=zone)
    counter = Counter(rooms)
    here, patient = ZoneInfo(zone), rooms.patient()
    made = []
    for text in (f"{day}T00:00", f"{day}T23:30", f"{after}T00:15"):
        order = rooms.order(patient)
        made.append(rooms.do(book, CLERK, here, orders=[order], from_ns=at(text, here)))
    listed = await counter.get("clerk", "/appointments", since=f"{day}T00:00:00")
    assert [one["id"] for one in listed["items"]] == made[:2]
    on_ct1 = await counter.get("clerk", "/appointments", since=f"{day}T00:00:00", resource="CT1")
    assert on_ct1["items"] == listed["items"]
    assert [
        one["from"][:10]
        for one in (await counter.get("clerk", "/worklist", since=f"{day}T00:00:00"))["items"]
    ] == [
        day,
        day,
    ]


async def test_a_rooms_list_has_what_was_done_missed_and_cancelled_there(rooms: Desk) -> None:
    counter = Counter(rooms)
    patient = rooms.patient()
    made = {}
    for hour, action in enumerate(("fulfil", "miss", "cancel", "arrive"), 9):
        start = at(f"2026-11-24T{hour:02}:00")
        made[action] = rooms.do(book, CLERK, ZONE, orders=[rooms.order(patient)], from_ns=start)
        rooms.do(act, CLERK, made[action], action, why="so")
    for state, action in (("fulfilled", "fulfil"), ("no-show", "miss"), ("cancelled", "cancel")):
        for more in ({}, {"resource": "CT1"}):
            found = await counter.get(
                "clerk", "/appointments", since="2026-11-24T00:00:00", state=state, **more
            )
            assert [one["id"] for one in found["items"]] == [made[action]], (state, more)
    found = await counter.get("clerk", "/appointments", since="2026-11-24T00:00:00", resource="CT1")
    assert [one["state"] for one in found["items"]] == ["fulfilled", "no-show", "arrived"]
    assert (await counter.get("clerk", "/appointments", since="2026-11-24T00:00:00", resource="MR1"))[
        "items"
    ] == []
