"""The first free time is overlooked, or one is told that is none."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.catalog import put_resource
from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.catalog import Closure, Hours, Procedure, Resource
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, Appointment, Held
from hounsfield.ris_plugin.schedule import free_time
from hounsfield.ris_plugin.schedule.free_time import HOLD_NS_MAX, Needs, free
from ris.conftest import ADMINISTRATOR, Desk

ZONE = ZoneInfo("Europe/Berlin")
MINUTE = 60 * NS
DAYS = [date(2026, 10, 24), date(2027, 3, 26), date(2026, 12, 4)]
"""Clocks go back on 2026-10-25 and forward on 2027-03-28."""


# ---------------------------------------------------------------- the naive model


@dataclass
class Model:
    """Looks at every minute of every resource for every five minutes there are."""

    resources: list[Resource]
    held: dict[str, list[tuple[int, int]]]
    first: int
    """Minutes since 1970."""
    last: int

    def __post_init__(self) -> None:
        margin = 3 * 1440
        self.start = self.first - margin
        minutes = range(self.start, self.last + margin)
        walls = [datetime.fromtimestamp(one * 60, UTC).astimezone(ZONE) for one in minutes]
        times = [(wall.weekday(), wall.hour * 60 + wall.minute) for wall in walls]
        self.open: dict[str, list[bool]] = {}
        self.busy: dict[str, list[bool]] = {}
        for one in self.resources:
            self.open[one.code] = [
                (not one.hours or _in(one.hours, weekday, minute)) and not _in(one.breaks, weekday, minute)
                for weekday, minute in times
            ]
            gone = [(each.from_ns, each.to_ns) for each in one.closures]
            gone += self.held.get(one.code, [])
            busy = [False] * len(times)
            for begin, end in gone:
                low, high = begin // MINUTE - self.start, end // MINUTE - self.start
                for each in range(max(0, low), min(len(busy), high)):
                    busy[each] = True
            self.busy[one.code] = busy

    def free(self, groups: Sequence[Sequence[str]], one: Procedure, limit: int) -> list[tuple[int, set[str]]]:
        """The first beginnings, and which resources are free then."""
        found = []
        for start in range(-(-self.first // 5) * 5, self.last - one.duration_min + 1, 5):
            able = {each.code for each in self.resources if self.fits(each, one, start - self.start)}
            ways = itertools.product(*[[code for code in group if code in able] for group in groups])
            if any(len(set(way)) == len(way) for way in ways):
                found.append((start, able))
                if len(found) == limit:
                    break
        return found

    def fits(self, resource: Resource, one: Procedure, start: int) -> bool:
        end = start + one.duration_min
        held_to = end + one.cleaning_min + resource.buffer_min
        return all(self.open[resource.code][start:end]) and not any(
            self.busy[resource.code][start - one.preparation_min : held_to]
        )


def _in(hours: Sequence[Hours], weekday: int, minute: int) -> bool:
    return any(one.weekday == weekday and one.from_min <= minute < one.to_min for one in hours)


# ---------------------------------------------------------------- random departments

# Which two o'clock is meant when there are two is told by clocks, not by a model of minutes.
_minutes = st.one_of(st.sampled_from([0, 480, 720, 1440]), st.integers(0, 1440)).filter(
    lambda one: not 120 < one < 180
)
_hours = st.builds(
    lambda weekday, ends: Hours(weekday=weekday, from_min=min(ends), to_min=max(ends)),
    st.integers(0, 6),
    st.tuples(_minutes, _minutes).filter(lambda ends: ends[0] != ends[1]),
)
_weeks = st.sampled_from(
    [
        (),
        tuple(Hours(weekday=day, from_min=0, to_min=1440) for day in range(7)),
        tuple(Hours(weekday=day, from_min=480, to_min=960) for day in range(5)),
    ]
)
_halves = st.integers(-60, 180).map(lambda one: one * 30)
_stretch = st.one_of(
    st.tuples(st.integers(-2000, 6000), st.integers(1, 700)),
    st.tuples(_halves, st.sampled_from([30, 60, 600])),  # so that gaps are just long enough
)


@st.composite
def departments(draw: st.DrawFn) -> tuple[list[Resource], dict[str, list[tuple[int, int]]], date]:
    day = draw(st.sampled_from(DAYS))
    zero = int(datetime(day.year, day.month, day.day, tzinfo=ZONE).timestamp()) * NS
    resources, held = [], {}
    for index in range(draw(st.integers(1, 4))):
        code = f"R{index}"
        hours = draw(st.one_of(_weeks, st.lists(_hours, max_size=8).map(tuple)))
        closures = tuple(
            Closure(from_ns=zero + begin * MINUTE, to_ns=zero + (begin + length) * MINUTE)
            for begin, length in draw(st.lists(_stretch, max_size=2))
        )
        resources.append(
            Resource(
                code=code,
                kind="device",
                modality=draw(st.sampled_from(["CT", "MR"])),
                hours=hours,
                breaks=tuple(draw(st.lists(_hours, max_size=2))),
                closures=closures,
                buffer_min=draw(st.sampled_from([0, 0, 5, 7])),
            )
        )
        held[code] = [
            (zero + begin * MINUTE, zero + (begin + length) * MINUTE)
            for begin, length in draw(st.lists(_stretch, max_size=6))
        ]
    return resources, held, day


@st.composite
def procedures(draw: st.DrawFn) -> Procedure:
    names = st.sampled_from([("R0",), ("R0", "R1"), ("R1", "R0", "R2"), ("#device:",), ("#device:CT",)])
    return Procedure(
        code=Code(value="X"),
        modality="CT",
        duration_min=draw(st.sampled_from([5, 17, 30, 60, 240, 1440])),
        preparation_min=draw(st.sampled_from([0, 0, 10, 45])),
        cleaning_min=draw(st.sampled_from([0, 0, 5, 33])),
        resources=tuple(draw(st.lists(names, max_size=3))),
    )


@given(department=departments(), one=procedures(), days=st.integers(1, 3), limit=st.integers(1, 40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_just_the_first_free_times_are_found(
    shared_stores: Stores,
    department: tuple[list[Resource], dict[str, list[tuple[int, int]]], date],
    one: Procedure,
    days: int,
    limit: int,
) -> None:
    resources, held, day = department
    desk = Desk(shared_stores)
    mark = uuid.uuid4().hex[:8]
    codes = {each.code: f"{mark}-{each.code}" for each in resources}
    ids = {}
    for each in resources:
        new = Resource(**{**_fields(each), "code": codes[each.code]})
        ids[each.code] = desk.do(put_resource, ADMINISTRATOR, new)
        for begin, end in held[each.code]:
            desk.commit(lambda change, key=ids[each.code], b=begin, e=end: change.put(
                APPOINTMENT, change.new_id(),
                Appointment(
                    number=uuid.uuid4().hex, patient="x", orders=(), state="booked", from_ns=b, to_ns=e,
                    holds=(Held(resource=key, from_ns=b, to_ns=e),),
                ),
            ))  # fmt: skip
    groups = []
    for names in one.resources:
        group: list[str] = []
        for name in names:
            if name.startswith("#"):
                group += [each.code for each in resources if name in ("#device:", f"#device:{each.modality}")]
            elif name in codes:
                group.append(name)
        groups.append(group)
    needed = Procedure(
        **{**_fields(one), "resources": tuple(tuple(codes[name] for name in group) for group in groups)}
    )
    start = datetime(day.year, day.month, day.day, 1, 3, tzinfo=ZONE)
    first = int(start.timestamp()) // 60
    last = first + days * 1440
    if not all(groups):
        return
    model = Model(resources, held, first, last)
    expected = model.free(groups, one, limit)
    with desk.view() as view:
        found = free(view, ZONE, [needed], from_ns=first * MINUTE, to_ns=last * MINUTE, limit=limit)
    assert [slot.from_ns // MINUTE for slot in found] == [begin for begin, _ in expected]
    back = {key: code for code, key in ids.items()}
    for slot, (_, able) in zip(found, expected, strict=True):
        chosen = [back[key] for key in slot.resources]
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= able
        assert all(code in group for code, group in zip(chosen, groups, strict=True))


def _fields(one: Resource | Procedure) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


# ---------------------------------------------------------------- by hand


def test_a_gap_that_is_just_long_enough_is_one(desk: Desk) -> None:
    """Thirty minutes between two, and a day that is open for thirty minutes (1970-01-01 was a Thursday)."""
    hours = tuple(Hours(weekday=day, from_min=60, to_min=90) for day in (4, 5))
    ct = desk.do(put_resource, ADMINISTRATOR, Resource(code="CT1", kind="device"))
    desk.do(put_resource, ADMINISTRATOR, Resource(code="SHORT", kind="device", hours=hours))
    for begin, end in ((0, 60), (90, 600)):
        held = Held(resource=ct, from_ns=begin * MINUTE, to_ns=end * MINUTE)
        busy = Appointment(number=str(begin), patient="x", orders=(), state="booked", holds=(held,))
        desk.commit(lambda change, busy=busy: change.put(APPOINTMENT, change.new_id(), busy))
    between = desk.procedure("BETWEEN", resources=(("CT1",),))
    short = desk.procedure("SHORT", resources=(("SHORT",),))
    utc = ZoneInfo("UTC")
    with desk.view() as view:
        found = free(view, utc, [between], from_ns=0, to_ns=610 * MINUTE)
        assert [one.from_ns // MINUTE for one in found] == [60]
        found = free(view, utc, [short], from_ns=0, to_ns=4 * 1440 * MINUTE)
        assert [one.from_ns // MINUTE for one in found] == [1440 + 60, 2 * 1440 + 60]


def test_procedures_done_one_after_another_hold_each_what_they_need(desk: Desk) -> None:
    """A CT and then an MR: the CT is free for others while the patient lies in the MR."""
    for code, modality in (("CT1", "CT"), ("MR1", "MR")):
        desk.do(put_resource, ADMINISTRATOR, Resource(code=code, kind="device", modality=modality))
    ct = desk.procedure("CT", duration_min=20, cleaning_min=5, resources=(("CT1",),))
    mr = desk.procedure("MR", duration_min=40, preparation_min=10, resources=(("MR1",),))
    with desk.view() as view:
        needs = Needs(view, ZONE, [ct, mr])
        (slot,) = needs.slots(0, 60 * MINUTE, limit=5)
        holds = {
            needs.resources[held.resource].code: (held.from_ns // MINUTE, held.to_ns // MINUTE)
            for held in needs.holds(slot.resources, slot.from_ns)
        }
        assert holds == {"CT1": (0, 25), "MR1": (10, 60)}
        assert [one.code for one in needs.used_by(slot.resources, 1)] == ["MR1"]


def test_two_of_a_kind_are_two(desk: Desk) -> None:
    for code in ("ANNE", "BOB"):
        desk.do(put_resource, ADMINISTRATOR, Resource(code=code, kind="person"))
    both = desk.procedure(resources=(("#person:",), ("#person:",)))
    three = desk.procedure("OTHER", resources=(("#person:",),) * 3)
    with desk.view() as view:
        (slot,) = free(view, ZONE, [both], from_ns=0, to_ns=30 * MINUTE)
        assert len(set(slot.resources)) == 2
        assert free(view, ZONE, [three], from_ns=0, to_ns=600 * MINUTE) == []


def test_many_of_whom_none_will_do_are_answered_at_once(desk: Desk) -> None:
    """Eleven people for twelve tasks: who tries all ways does not come back."""
    for index in range(11):
        desk.do(put_resource, ADMINISTRATOR, Resource(code=f"P{index:02}", kind="person"))
    crowd = desk.procedure(resources=(("#person:",),) * 12)
    with desk.view() as view:
        assert free(view, ZONE, [crowd], from_ns=0, to_ns=600 * MINUTE) == []


def test_what_holds_longer_than_one_looks_back_is_refused(desk: Desk) -> None:
    desk.do(put_resource, ADMINISTRATOR, Resource(code="CT1", kind="device"))
    day = desk.procedure(duration_min=1440, resources=(("CT1",),))
    assert HOLD_NS_MAX == 2 * 1440 * MINUTE
    with desk.view() as view:
        Needs(view, ZONE, [day, day])
        with pytest.raises(InvalidError, match="two days"):
            Needs(view, ZONE, [day, day, day])
        with pytest.raises(InvalidError, match="370 days"):
            free(view, ZONE, [day], from_ns=0, to_ns=371 * 1440 * MINUTE)


def test_a_search_reads_what_lies_before_what_it_finds(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A year with a month that is closed: neither its days nor what is booked in summer is looked at."""
    hours = tuple(Hours(weekday=day, from_min=480, to_min=960) for day in range(5))
    zero = int(datetime(2027, 1, 4, tzinfo=ZONE).timestamp()) * NS
    day = 1440 * MINUTE
    closed = Closure(from_ns=zero, to_ns=zero + 30 * day)
    ct = desk.do(
        put_resource, ADMINISTRATOR, Resource(code="CT1", kind="device", hours=hours, closures=(closed,))
    )

    def fill(change: Change) -> None:
        for index in range(300):
            begin = zero + (31 + index) * day + 8 * 60 * MINUTE
            held = Held(resource=ct, from_ns=begin, to_ns=begin + 60 * MINUTE)
            one = Appointment(number=str(index), patient="x", orders=(), state="booked", holds=(held,))
            change.put(APPOINTMENT, change.new_id(), one)

    desk.commit(fill)
    needed = desk.procedure(resources=(("CT1",),))
    read, asked = [], []
    get, distinct = View.get, free_time._distinct
    monkeypatch.setattr(View, "get", lambda *given: read.append(given[1].name) or get(*given))
    monkeypatch.setattr(free_time, "_distinct", lambda ways: asked.append(ways) or distinct(ways))
    with desk.view() as view:
        found = free(view, ZONE, [needed], from_ns=zero, to_ns=zero + 365 * day, limit=3)
    assert found[0].from_ns == zero + 30 * day + 8 * 60 * MINUTE
    assert read.count("appointment") < 40
    assert len(asked) < 20


def test_a_search_that_finds_nothing_reads_only_what_is_scarce_and_that_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One CT that is full, and two technologists, who do much beside it."""
    hours = tuple(Hours(weekday=day, from_min=480, to_min=960) for day in range(7))
    ct, ann, bob = (
        desk.do(put_resource, ADMINISTRATOR, Resource(code=code, kind=kind, hours=hours))
        for code, kind in (("CT1", "device"), ("ANN", "person"), ("BOB", "person"))
    )
    zero = int(datetime(2027, 1, 4, tzinfo=ZONE).timestamp()) * NS

    def fill(change: Change) -> None:
        for index in range(80):
            begin = zero + index * 1440 * MINUTE + 480 * MINUTE
            for number, keys in ((f"C{index}", (ct, ann)), (f"B{index}", (bob,))):
                held = tuple(Held(resource=key, from_ns=begin, to_ns=begin + 480 * MINUTE) for key in keys)
                one = Appointment(number=number, patient="x", orders=(), state="booked", holds=held)
                change.put(APPOINTMENT, change.new_id(), one)

    desk.commit(fill)
    full = desk.procedure(resources=(("#person:",), ("CT1",)))
    pair = desk.procedure("PAIR", resources=(("ANN",), ("CT1",)))
    read = []
    get = View.get
    monkeypatch.setattr(View, "get", lambda *given: read.append(given[1].name) or get(*given))
    for needed in (full, pair):
        read.clear()
        with desk.view() as view:
            assert free(view, ZONE, [needed], from_ns=zero, to_ns=zero + 80 * 1440 * MINUTE) == []
        assert 80 <= read.count("appointment") <= 83, needed.code.value
