"""A desk sees an appointment on another day, on another room, of somebody else, or not at all."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

import pytest

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin.catalog import put_resource
from hounsfield.ris_plugin.errors import UnknownError
from hounsfield.ris_plugin.patients import merge
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import Closure, Hours, Resource
from hounsfield.ris_plugin.records.schedule import LONG_NS
from hounsfield.ris_plugin.schedule.day_sheets import Column, Sheet, day, displaced, week
from hounsfield.ris_plugin.schedule.scheduling import act, book, propose
from ris.conftest import ADMINISTRATOR, CLERK, TECHNOLOGIST, Desk

ZONE = ZoneInfo("Europe/Berlin")
WEEK = tuple(Hours(weekday=day, from_min=8 * 60, to_min=16 * 60) for day in range(5))
MONDAY = date(2026, 11, 23)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZONE).timestamp()) * NS


def column(sheet: Sheet, code: str) -> Column:
    (found,) = [one for one in sheet.columns if one.code == code]
    return found


@pytest.fixture
def rooms(desk: Desk) -> Desk:
    closed = Closure(from_ns=at("2026-11-23T15:00"), to_ns=at("2026-11-23T17:00"), why="service")
    for one in (
        Resource(code="CT1", kind="device", modality="CT", hours=WEEK, closures=(closed,)),
        Resource(code="ANNE", kind="person", name="ANNE^T"),
        Resource(code="ROOM", kind="room"),
    ):
        desk.do(put_resource, ADMINISTRATOR, one)
    desk.procedure(resources=(("CT1",), ("ANNE",)))
    desk.procedure("NIGHT", duration_min=12 * 60, resources=(("ROOM",),))
    desk.procedure("PHONE")
    return desk


def test_a_day_has_what_stands_on_it_whoever_the_patient_is_now(rooms: Desk) -> None:
    jane, twice = rooms.patient("P1", alerts=("latex",)), rooms.patient("P2", "DOE^J")
    order = rooms.order(twice, priority="STAT")
    one = rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at("2026-11-23T09:00"), note="late")
    rooms.do(merge, CLERK, survivor=jane, merged=twice, reason="one person")
    sheet = rooms.look(day, ZONE, MONDAY)
    assert (sheet.day, sheet.from_ns, sheet.to_ns) == (
        "2026-11-23", at("2026-11-23T00:00"), at("2026-11-24T00:00"),
    )  # fmt: skip
    assert [each.code for each in sheet.columns] == ["CT1", "ANNE", "ROOM"]
    ct = column(sheet, "CT1")
    assert ct.open == ((at("2026-11-23T08:00"), at("2026-11-23T15:00")),)
    assert [each.why for each in ct.closures] == ["service"]
    (entry,) = ct.entries
    assert entry == column(sheet, "ANNE").entries[0]
    assert (entry.appointment, entry.state, entry.note) == (one, "booked", "late")
    assert (entry.patient, entry.patient_name, entry.patient_number) == (jane, "DOE^JANE", "P1")
    assert (entry.alerts, entry.resources) == (("latex",), ("CT1", "ANNE"))
    (line,) = entry.orders
    assert (line.order, line.procedure, line.priority, line.state) == (order, "Cthead", "STAT", "scheduled")
    assert column(sheet, "ROOM").entries == ()
    assert [each.code for each in rooms.look(day, ZONE, MONDAY, ["ANNE"]).columns] == ["ANNE"]
    with pytest.raises(UnknownError):
        rooms.look(day, ZONE, MONDAY, ["NOBODY"])


def test_what_was_missed_or_done_stays_and_what_was_cancelled_goes(rooms: Desk) -> None:
    patient = rooms.patient()
    made = [
        rooms.do(book, CLERK, ZONE, orders=[rooms.order(patient)], from_ns=at(f"2026-11-23T{hour}:00"))
        for hour in ("13", "09", "10", "11", "12")
    ]
    for appointment, action in zip(made[1:], ("miss", "fulfil", "cancel", "arrive"), strict=True):
        rooms.do(act, TECHNOLOGIST if action != "cancel" else CLERK, appointment, action, why="x")
    rooms.do(propose, CLERK, orders=[rooms.order(patient)])
    for codes in ((), ("CT1",)):
        shown = column(rooms.look(day, ZONE, MONDAY, codes), "CT1").entries
        assert [one.state for one in shown] == ["no-show", "fulfilled", "arrived", "booked"]


def test_days_are_those_of_the_clocks_and_nights_stand_on_both(rooms: Desk) -> None:
    patient = rooms.patient()
    night = rooms.do(
        book, CLERK, ZONE, orders=[rooms.order(patient, "NIGHT")], from_ns=at("2026-11-23T20:00")
    )
    phone = rooms.do(
        book, CLERK, ZONE, orders=[rooms.order(patient, "PHONE")], from_ns=at("2026-11-25T00:00")
    )
    late = rooms.do(book, CLERK, ZONE, orders=[rooms.order(patient, "PHONE")], from_ns=at("2026-11-25T23:45"))
    assert LONG_NS < 12 * 3600 * NS
    sheets = rooms.look(week, ZONE, date(2026, 11, 26))
    assert [sheet.day for sheet in sheets] == [f"2026-11-{number}" for number in range(23, 30)]
    where = {
        (sheet.day[-2:], one.code, entry.appointment)
        for sheet in sheets
        for one in sheet.columns
        for entry in one.entries
    }
    assert where == {
        ("23", "ROOM", night), ("24", "ROOM", night), ("25", "", phone), ("25", "", late), ("26", "", late),
    }  # fmt: skip
    (tuesday,) = column(rooms.look(day, ZONE, date(2026, 11, 24), ["ROOM"]), "ROOM").entries
    assert tuesday.appointment == night
    long = rooms.look(week, ZONE, date(2026, 10, 25))[6]
    assert long.to_ns - long.from_ns == 25 * 3600 * NS


def test_who_works_here_no_more_is_shown_while_something_stands_on_him(rooms: Desk) -> None:
    rooms.do(book, CLERK, ZONE, orders=[rooms.order(rooms.patient())], from_ns=at("2026-11-23T09:00"))
    rooms.do(put_resource, ADMINISTRATOR, Resource(code="ANNE", kind="person", active=False))
    assert len(column(rooms.look(day, ZONE, MONDAY), "ANNE").entries) == 1
    assert "ANNE" not in {one.code for one in rooms.look(day, ZONE, date(2026, 11, 24)).columns}


def test_a_day_costs_what_stands_on_it(rooms: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the days before it: an appointment, its patient and its order are read, once."""
    for number in range(22, 25):
        for hour in (9, 10):
            order = rooms.order(rooms.patient(f"P{number}{hour}"), "PHONE")
            rooms.do(book, CLERK, ZONE, orders=[order], from_ns=at(f"2026-11-{number}T{hour:02}:00"))
    read = []
    whole = View.get
    monkeypatch.setattr(View, "get", lambda *given: read.append(given[1].name) or whole(*given))
    rooms.look(day, ZONE, MONDAY)
    assert sorted(read) == ["appointment"] * 2 + ["order"] * 2 + ["patient"] * 2
    read.clear()
    rooms.look(day, ZONE, MONDAY, ["CT1"])
    assert read == ["resource"]  # by its code


def test_who_stands_where_it_is_closed_now_is_found(rooms: Desk) -> None:
    patient = rooms.patient()
    made = {
        start: rooms.do(book, CLERK, ZONE, orders=[rooms.order(patient)], from_ns=at(f"2026-11-{start}"))
        for start in ("23T08:00", "23T10:00", "24T10:00", "25T15:30")
    }
    assert rooms.look(displaced, ZONE, from_ns=rooms.now_ns) == []
    shorter = tuple(Hours(weekday=day, from_min=8 * 60, to_min=15 * 60) for day in range(5))
    closed = Closure(from_ns=at("2026-11-24T00:00"), to_ns=at("2026-11-25T00:00"), why="flood")
    changed = Resource(code="CT1", kind="device", modality="CT", hours=shorter, closures=(closed,))
    rooms.do(put_resource, ADMINISTRATOR, changed)
    found = rooms.look(displaced, ZONE, from_ns=rooms.now_ns)
    assert [(key, codes) for key, _, codes in found] == [
        (made["24T10:00"], ("CT1",)), (made["25T15:30"], ("CT1",)),
    ]  # fmt: skip
    tuesday = rooms.look(day, ZONE, date(2026, 11, 24))
    assert column(tuesday, "CT1").displaced == (column(tuesday, "CT1").entries[0].number,)
    assert column(tuesday, "ANNE").displaced == ()
    rooms.do(put_resource, ADMINISTRATOR, Resource(code="ANNE", kind="person", active=False))
    found = rooms.look(displaced, ZONE, from_ns=at("2026-11-23T09:00"))
    assert [sorted(codes) for _, _, codes in found] == [["ANNE"], ["ANNE", "CT1"], ["ANNE", "CT1"]]
    rooms.do(act, CLERK, made["23T10:00"], "cancel", why="closed")
    assert len(rooms.look(displaced, ZONE, from_ns=at("2026-11-23T09:00"))) == 2
