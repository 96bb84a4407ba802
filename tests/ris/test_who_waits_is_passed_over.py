"""A time becomes free and nobody is asked, or the wrong one; a series is booked in part."""

from __future__ import annotations

import itertools
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.catalog import procedure, put_resource
from hounsfield.ris_plugin.errors import InvalidError, NotNowError
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import Hours, Procedure, Resource
from hounsfield.ris_plugin.records.schedule import APPOINTMENT
from hounsfield.ris_plugin.schedule.free_time import Needs
from hounsfield.ris_plugin.schedule.gaps import of_series
from hounsfield.ris_plugin.schedule.scheduling import act, book, get, move, propose, waiting
from hounsfield.ris_plugin.schedule.series import Part, book_series, follow_ups, free_series
from hounsfield.ris_plugin.schedule.waiting_list import Offer, accept, offers, offers_in
from ris.conftest import ADMINISTRATOR, CLERK, INTERFACE, REFERRER, TECHNOLOGIST, Desk

ZONE = ZoneInfo("Europe/Berlin")
WEEK = tuple(Hours(weekday=day, from_min=8 * 60, to_min=10 * 60) for day in range(5))
HOUR_NS = 3600 * NS
DAY_NS = 24 * HOUR_NS


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZONE).timestamp()) * NS


@pytest.fixture
def full(desk: Desk) -> Desk:
    """A CT that is open from 8 to 10 on weekdays; Monday is booked from 8 to 9."""
    desk.do(put_resource, ADMINISTRATOR, Resource(code="CT1", kind="device", modality="CT", hours=WEEK))
    desk.do(put_resource, ADMINISTRATOR, Resource(code="MR1", kind="device", modality="MR"))
    desk.procedure(duration_min=60, resources=(("CT1",),))
    desk.procedure("SHORT", duration_min=30, resources=(("CT1",),))
    desk.procedure("LONG", duration_min=120, resources=(("CT1",),))
    desk.procedure("MR", "MR", duration_min=30, resources=(("MR1",),))
    return desk


def wait(desk: Desk, number: str, procedure: str = "CTHEAD", **more: int) -> str:
    desk.now_ns += NS
    return desk.do(propose, CLERK, orders=[desk.order(desk.patient(number), procedure)], **more)


def names(found: list[Offer]) -> list[str]:
    return [one.appointment for one in found]


def test_who_waits_longest_and_fits_is_offered_what_became_free(full: Desk) -> None:
    gone = full.do(book, CLERK, ZONE, orders=[full.order(full.patient())], from_ns=at("2026-11-23T08:00"))
    late = full.do(book, CLERK, ZONE, orders=[full.order(full.patient("P2"))], from_ns=at("2026-11-25T08:00"))
    first = wait(full, "W1")
    other_room = wait(full, "W2", "MR")
    short = wait(full, "W3", "SHORT")
    after = wait(full, "W4", wanted_from_ns=at("2026-11-23T08:30"))
    not_then = wait(full, "W5", wanted_from_ns=at("2026-11-24T00:00"))
    before = wait(full, "W6", wanted_to_ns=at("2026-11-23T08:30"))
    long = wait(full, "W7", "LONG")
    held = wait(full, "W8")
    full.do(orders.act, REFERRER, full.look(get, held).orders[0], "hold", why="ill")
    full.do(act, CLERK, late, "wait")  # has a time, and wants an earlier one
    # Nothing is free but from 9 to 10, which is no part of it.
    assert full.do(act, CLERK, gone, "cancel", why="ill").state == "cancelled"
    found = full.look(offers, ZONE, gone)
    assert names(found) == [first, short, after, long, late]
    assert {other_room, not_then, before, held}.isdisjoint(names(found))
    by_name = {one.appointment: one for one in found}
    assert by_name[first].from_ns == at("2026-11-23T08:00")
    assert by_name[after].from_ns == at("2026-11-23T08:30")
    assert by_name[long].from_ns == at("2026-11-23T08:00")
    assert (by_name[late].now_ns, by_name[late].from_ns) == (at("2026-11-25T08:00"), at("2026-11-23T08:00"))
    assert names(full.look(offers, ZONE, gone, limit=1)) == [first]
    # Of what is over by then nobody is offered anything: the long one would have to begin at eight.
    rest = full.look(offers, ZONE, gone, after_ns=at("2026-11-23T08:35"))
    assert names(rest) == [first, short, after, late]
    assert {one.from_ns for one in rest} == {at("2026-11-23T08:35")}
    # One says yes, and then the others have what is left.
    full.do(accept, CLERK, ZONE, first, from_ns=by_name[first].from_ns)
    assert full.look(get, first).state == "booked"
    with pytest.raises(NotNowError):
        full.do(accept, CLERK, ZONE, short, from_ns=by_name[short].from_ns)
    assert full.look(offers, ZONE, gone) == []
    with pytest.raises(NotNowError, match="waits for no other"):
        full.do(accept, CLERK, ZONE, first, from_ns=at("2026-11-24T08:00"))


def test_who_wants_an_earlier_time_is_not_offered_a_later_one(full: Desk) -> None:
    mine = full.do(book, CLERK, ZONE, orders=[full.order(full.patient())], from_ns=at("2026-11-24T08:00"))
    full.do(act, CLERK, mine, "wait")
    for start, earlier in (
        ("2026-11-25T08:00", False),
        ("2026-11-24T09:00", False),
        ("2026-11-23T08:00", True),
    ):
        other = full.order(full.patient(start))
        gone = full.do(book, CLERK, ZONE, orders=[other], from_ns=at(start))
        full.do(act, CLERK, gone, "cancel", why="ill")
        assert names(full.look(offers, ZONE, gone)) == ([mine] if earlier else [])
    full.do(accept, CLERK, ZONE, mine, from_ns=at("2026-11-23T08:00"))
    assert full.look(waiting) == []


def test_what_is_free_beside_it_is_used_with_it(full: Desk) -> None:
    """From 9 to 10 it was free already: two hours fit when 8 to 9 becomes free, and when 9 to 10 does."""
    for start in ("2026-11-23T08:00", "2026-11-24T09:00"):
        gone = full.do(book, CLERK, ZONE, orders=[full.order(full.patient(start))], from_ns=at(start))
        long = wait(full, f"W{start}", "LONG")
        full.do(act, TECHNOLOGIST, gone, "miss")
        (offer,) = [one for one in full.look(offers, ZONE, gone) if one.appointment == long]
        assert offer.from_ns == at(start[:10] + "T08:00")
        full.do(act, CLERK, long, "cancel", why="done")


def test_a_freed_time_is_told_once_and_only_while_it_is_to_come(full: Desk) -> None:
    def freed() -> list[tuple[int, int]]:
        told = [one.body for one in full.said() if one.kind == "ris.slot-freed"]
        return [(one["from_ns"], one["to_ns"]) for one in told]

    start = at("2026-11-23T08:00")
    one = full.do(book, CLERK, ZONE, orders=[full.order(full.patient())], from_ns=start)
    full.do(move, CLERK, ZONE, one, from_ns=start)  # nowhere
    assert freed() == []
    full.do(move, CLERK, ZONE, one, from_ns=start + HOUR_NS)
    assert freed() == [(start, start + HOUR_NS)]
    (told,) = [each.body for each in full.said() if each.kind == "ris.slot-freed"]
    waits = wait(full, "W1")
    with full.view() as view:
        found = offers_in(
            view, ZONE, from_ns=told["from_ns"], to_ns=told["to_ns"], resources=told["resources"]
        )
    assert names(found) == [waits]
    full.now_ns = start + 3 * HOUR_NS
    full.do(act, CLERK, one, "cancel", why="over")
    full.do(act, CLERK, waits, "cancel", why="had no time")
    assert len(freed()) == 1


def test_a_follow_up_waits_until_it_is_due(full: Desk) -> None:
    start = at("2026-11-23T08:00")
    first = full.do(book, CLERK, ZONE, orders=[full.order(full.patient())], from_ns=start)
    again = full.order(full.patient("P1b"))
    with pytest.raises(InvalidError, match="another patient"):
        full.do(propose, CLERK, orders=[again], follows=first)
    patient = full.look(get, first).patient
    due = full.order(patient, wanted_ns=start + 7 * DAY_NS, wanted_until_ns=start + 9 * DAY_NS)
    follow = full.do(propose, CLERK, orders=[due], follows=first)
    assert [key for key, _ in full.look(follow_ups, first)] == [follow]
    one = full.look(get, follow)
    assert (one.wanted_from_ns, one.wanted_to_ns) == (start + 7 * DAY_NS, start + 9 * DAY_NS)
    with full.view() as view:
        for day, fits in ((1, False), (7, True), (14, False)):
            room = view.first(APPOINTMENT, "number", "A00000001")
            assert room is not None
            found = offers_in(
                view, ZONE, from_ns=start + day * DAY_NS, to_ns=start + day * DAY_NS + HOUR_NS,
                resources=[held.resource for held in room[1].holds],
            )  # fmt: skip
            assert bool(found) == fits
    assert full.do(book, CLERK, ZONE, orders=[due], from_ns=start + 8 * DAY_NS) == follow
    assert full.look(get, follow).follows == first
    assert full.look(waiting) == []


# ---------------------------------------------------------------- series


def test_a_series_is_booked_as_a_whole_or_not_at_all(full: Desk) -> None:
    patient = full.patient()
    mine = [full.order(patient) for _ in range(3)]
    days = [at(f"2026-11-{day}T08:00") for day in (23, 24, 25)]
    full.do(book, CLERK, ZONE, orders=[full.order(full.patient("P2"))], from_ns=days[2])
    parts = [Part((order,), day) for order, day in zip(mine, days, strict=True)]
    with pytest.raises(NotNowError):
        full.do(book_series, CLERK, ZONE, parts)
    assert {full.look(orders.get, one).state for one in mine} == {"accepted"}
    parts[2] = Part((mine[2],), days[2] + HOUR_NS)
    made = full.do(book_series, CLERK, ZONE, list(reversed(parts)))
    number = full.look(get, made[0]).number
    assert [key for key, _ in full.look(of_series, number)] == made
    strange = [Part((full.order(full.patient(f"S{day}")),), day + 7 * DAY_NS) for day in days]
    with pytest.raises(InvalidError, match="one patient"):
        full.do(book_series, CLERK, ZONE, strange)
    with pytest.raises(InvalidError):
        full.do(book_series, CLERK, ZONE, strange[:1])


def test_appointments_of_a_series_stay_as_far_apart_as_they_were_booked(full: Desk) -> None:
    patient = full.patient()
    days = [at(f"2026-11-{day}T08:00") for day in (23, 24, 25)]
    parts = [Part((full.order(patient, "MR"),), day) for day in days]
    with pytest.raises(InvalidError, match=r"A0.* begins 24 hours to 30 hours after A0"):
        full.do(book_series, CLERK, ZONE, parts, gap_minutes_min=24 * 60, gap_minutes_max=30 * 60)
    gaps = {"gap_minutes_min": 20 * 60, "gap_minutes_max": 25 * 60}
    made = full.do(book_series, CLERK, ZONE, parts, **gaps)
    for part, start in ((1, days[1] + 2 * HOUR_NS), (1, days[2] + HOUR_NS), (2, days[2] + 3 * HOUR_NS)):
        with pytest.raises(NotNowError, match="begins 20 hours to 25 hours"):
            full.do(move, CLERK, ZONE, made[part], from_ns=start)
    full.do(move, CLERK, ZONE, made[1], from_ns=days[1] + HOUR_NS)
    # The one between is gone: what is left is as far from one another as two that follow.
    full.do(act, CLERK, made[1], "cancel", why="enough")
    with pytest.raises(NotNowError, match="in its series"):
        full.do(move, CLERK, ZONE, made[2], from_ns=days[2] + HOUR_NS)
    # Another system decides about its own; a desk takes it out of the series, and then it is free.
    full.do(move, INTERFACE, ZONE, made[2], from_ns=days[2] + HOUR_NS, event_ns=full.now_ns + 1)
    full.do(move, CLERK, ZONE, made[2], from_ns=days[2] + 6 * HOUR_NS, apart=True)
    assert full.look(get, made[2]).series == ""


def test_nobody_is_offered_what_his_series_does_not_let_him_have(full: Desk) -> None:
    days = [at(f"2026-11-{day}T12:00") for day in (23, 24)]
    other = full.do(
        book, CLERK, ZONE, orders=[full.order(full.patient("B1"), "MR")], from_ns=days[0] - 3 * HOUR_NS
    )
    patient = full.patient()
    made = full.do(
        book_series, CLERK, ZONE, [Part((full.order(patient, "MR"),), day) for day in days],
        gap_minutes_min=20 * 60, gap_minutes_max=24 * 60,
    )  # fmt: skip
    full.do(act, CLERK, made[0], "wait")
    full.do(act, CLERK, other, "cancel", why="ill")
    assert full.look(offers, ZONE, other) == []
    full.do(act, CLERK, made[1], "cancel", why="one is enough")
    assert [one.appointment for one in full.look(offers, ZONE, other)] == [made[0]]


def test_the_first_series_that_fits_is_found(full: Desk) -> None:
    """Against trying all: two parts a day or two apart, the third one at most three hours after."""
    busy = [("2026-11-23T08:30", "SHORT"), ("2026-11-24T08:00", "CTHEAD"), ("2026-11-25T09:00", "CTHEAD")]
    for index, (start, code) in enumerate(busy):
        order = full.order(full.patient(f"B{index}"), code)
        full.do(book, CLERK, ZONE, orders=[order], from_ns=at(start))
    begin, end = at("2026-11-23T00:00"), at("2026-11-28T00:00")
    low, high = 20 * HOUR_NS, 48 * HOUR_NS
    with full.view() as view:
        procedures = [full_procedure(view, code) for code in ("CTHEAD", "SHORT")]
        found = free_series(
            view, ZONE, [[one] for one in procedures], from_ns=begin, to_ns=end, gap_minutes_min=20 * 60,
            gap_minutes_max=48 * 60, limit=200,
        )  # fmt: skip
        each = [Needs(view, ZONE, [one]).slots(begin, end, limit=200) for one in procedures]
    ways = [(a.from_ns, b.from_ns) for a, b in itertools.product(*each) if low <= b.from_ns - a.to_ns <= high]
    first_of = {a: min(b for other, b in ways if other == a) for a, _ in ways}
    assert [(a.from_ns, b.from_ns) for a, b in found] == sorted(first_of.items())
    assert found


def full_procedure(view: View, code: str) -> Procedure:
    held = procedure(view, code)
    assert held is not None
    return held[1]
