"""An import changes what it should not, half of it, or says of a mistake neither where nor what."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.ris_plugin.catalog import person, procedure, put_person, put_procedure, put_resource, resource
from hounsfield.ris_plugin.cli.files import text_of
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError, StaleError
from hounsfield.ris_plugin.importing import File, Plan, entries_of, parse, parts, plan, put, to_csv, to_yaml
from hounsfield.ris_plugin.importing.fields import SECTIONS, items_of, joined
from hounsfield.ris_plugin.importing.hours import closure_text, hours_text, read_closure, read_hours
from hounsfield.ris_plugin.importing.planning import CHANGES_MAX
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.catalog import PERSON, Closure, Hours, Person, Procedure, Resource
from hounsfield.ris_plugin.schedule.free_time import Calendar
from ris.conftest import ADMINISTRATOR, CLERK, Desk
from ris.following import department

ZONE = ZoneInfo("Europe/Vienna")
CALENDAR = Calendar(ZONE)
EXAMPLE = Path(__file__).parents[2] / "docs" / "ris-example.yaml"
CSVS = ("resources", "people", "procedures", "macros")


def planned(desk: Desk, *texts: str, name: str = "ris.yaml") -> Plan:
    with desk.view() as view:
        return plan(view, ADMINISTRATOR, ZONE, parse([File(name, text) for text in texts]))


def done(desk: Desk, text: str, name: str = "ris.yaml") -> Plan:
    found = planned(desk, text, name=name)
    assert found.problems == []
    for batch in found.batches():
        desk.do(put, ADMINISTRATOR, batch)
    return found


def problems(desk: Desk, text: str, name: str = "ris.yaml") -> list[str]:
    found = planned(desk, text, name=name)
    assert found.items == []
    return [str(one) for one in found.problems]


def everything(desk: Desk) -> dict[str, list[Any]]:
    with desk.view() as view:
        return {
            name: sorted((one for _, one in view.every(of.kind)), key=repr) for name, of in SECTIONS.items()
        }


# ---------------------------------------------------------------- there and back


def test_the_example_is_imported_and_nothing_changes_the_second_time(desk: Desk) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    first = done(desk, text)
    assert str(first) == "add 15, change 0, leave 0"
    assert str(planned(desk, text)) == "add 0, change 0, leave 15"
    with desk.view() as view:
        found = procedure(view, "MRHEAD")
        assert found is not None
        assert found[1].resources == (("MR1",), ("R014",), ("TA",))
        assert found[1].steps[1] == Code(value="MRHEAD-C", meaning="MR head with contrast", scheme="99DEPT")
        _, us = resource(view, "US1")
        assert hours_text(us.hours).startswith("Mon 08:00-12:00 13:00-16:00, Tue 13:00-18:00, Wed 08:00")
        closed = {one.why for one in resource(view, "CT1")[1].closures}
        assert closed == {"mains switched off"}
        assert {one.why for one in resource(view, "TA")[1].closures} > {"Christmas", "Christmas Eve"}


@pytest.mark.parametrize("form", ["yaml", "csv"])
def test_what_is_exported_is_imported_as_the_same(desk: Desk, tmp_path: Path, form: str) -> None:
    done(desk, EXAMPLE.read_text(encoding="utf-8"))
    odd = Resource(
        code="NO; 1",
        kind="room",
        name="null",
        location='with "quotes", commas\nand lines',
        hours=(Hours(weekday=6, from_min=1, to_min=1439), Hours(weekday=0, from_min=0, to_min=1)),
        closures=(
            Closure(from_ns=1_795_348_800 * NS + 7, to_ns=1_795_348_900 * NS, why="a; b"),
            Closure(from_ns=0, to_ns=NS),
        ),
    )
    desk.do(put_resource, ADMINISTRATOR, odd)
    desk.do(put_person, ADMINISTRATOR, Person(code="0815", name="NULL^TRUE", roles=("clerk",), active=False))
    odd_procedure = Procedure(
        code=Code(value="1e3", scheme="L", meaning="~"), modality="US", resources=(("NO; 1", "#room:"),)
    )
    desk.do(put_procedure, ADMINISTRATOR, odd_procedure)
    with desk.view() as view:
        files = (
            [File("all.yaml", to_yaml(entries_of(view, ZONE)))]
            if form == "yaml"
            else [File(f"{name}.csv", to_csv(view, ZONE, name)) for name in CSVS]
        )
    before = everything(desk)
    with desk.view() as view:
        again = plan(view, ADMINISTRATOR, ZONE, parse(files))
    assert (again.problems, again.added, again.changed) == ([], {}, {})
    # Into an empty one: all of it, and just so.
    from support.archives import stores_in

    with stores_in(tmp_path / "other") as stores:
        other = Desk(stores)
        with other.view() as view:
            into = plan(view, ADMINISTRATOR, ZONE, parse(files))
        assert into.problems == []
        for batch in into.batches():
            other.do(put, ADMINISTRATOR, batch)
        after = everything(other)
    for name in CSVS if form == "csv" else SECTIONS:
        assert after[name] == before[name]


_week = st.sets(st.tuples(st.integers(0, 6), st.integers(0, 1440), st.integers(0, 1440)), max_size=12)


@given(_week)
@settings(max_examples=150, deadline=None)
def test_hours_are_written_as_they_are_read(week: set[tuple[int, int, int]]) -> None:
    found: list[Hours] = []
    for day, begin, end in sorted(week):
        if begin < end and not any(
            one.weekday == day and begin < one.to_min and one.from_min < end for one in found
        ):
            found.append(Hours(weekday=day, from_min=begin, to_min=end))
    hours = tuple(found)
    assert read_hours(hours_text(hours)) == hours


@given(
    st.one_of(st.integers(0, 4_000_000_000), st.integers(0, 700_000).map(lambda one: one * 3600)),
    st.one_of(st.integers(1, 10**7), st.integers(1, 20).map(lambda one: one * 86400)),
    st.integers(0, 3),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20),
)
@settings(max_examples=150, deadline=None)
def test_closures_are_written_as_they_are_read(start: int, length: int, part: int, why: str) -> None:
    closure = Closure(from_ns=start * NS + part, to_ns=(start + length) * NS + part, why=why.strip())
    text = closure_text(closure, CALENDAR)
    assert read_closure(text, CALENDAR) == closure


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\\\r\n")).map(str.strip).filter(bool))
)
@settings(max_examples=100, deadline=None)
def test_lists_in_a_cell_are_written_as_they_are_read(items: list[str]) -> None:
    assert items_of(joined(items)) == items


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Mon-Fri 08:00-16:00, Sat 09-12", "Mon-Fri 08:00-16:00, Sat 09:00-12:00"),
        (
            "mo - fr 8 – 12, 13.30 bis 16; Samstag: 9 to 12",
            "Mon-Fri 08:00-12:00 13:30-16:00, Sat 09:00-12:00",
        ),
        ("Mon, Wed and Fri 8-9", "Mon 08:00-09:00, Wed 08:00-09:00, Fri 08:00-09:00"),
        ("weekdays 7-19 weekend 24h", "Mon-Fri 07:00-19:00, Sat-Sun 00:00-24:00"),
        ("Sat-Mon 10-11", "Mon 10:00-11:00, Sat-Sun 10:00-11:00"),
        ("Sun 22-06", "Mon 00:00-06:00, Sun 22:00-24:00"),
        ("daily 20-24", "Mon-Sun 20:00-24:00"),
        ("always", "always"),
    ],
)
def test_hours_are_read_as_people_write_them(text: str, same: str) -> None:
    assert hours_text(read_hours(text)) == same


@pytest.mark.parametrize(
    "text",
    ["8-16", "Mon", "Mon-Fri 8", "Mon 8-8", "Mon 25-26", "Mon 8:70-9", "Mon 8-12, 11-13", "Someday 8-12",
     "Mon-Tue-Wed 8-9", "closed", "Mon 08:00-16:00 Tue"],
)  # fmt: skip
def test_hours_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_hours(text)


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("2026-12-25", "2026-12-25 00:00", "2026-12-26 00:00"),
        ("2026-10-25 clocks", "2026-10-25 00:00", "2026-10-26 00:00"),
        ("2026-12-24..2026-12-26 x", "2026-12-24 00:00", "2026-12-27 00:00"),
        ("2026-12-24 12:00-18:00", "2026-12-24 12:00", "2026-12-24 18:00"),
        ("2026-12-24 12:00..2026-12-25", "2026-12-24 12:00", "2026-12-26 00:00"),
    ],
)
def test_closures_are_local_days_and_times(text: str, begin: str, end: str) -> None:
    one = read_closure(text, CALENDAR)
    found = [CALENDAR.local(moment).strftime("%Y-%m-%d %H:%M") for moment in (one.from_ns, one.to_ns)]
    assert found == [begin, end]


@pytest.mark.parametrize(
    "text",
    ["Christmas", "2026-02-30", "2026-12-24 12:00", "2026-12-26..2026-12-24", "2026-12-24 12:00-25:00", ""],
)
def test_closures_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_closure(text, CALENDAR)


# ---------------------------------------------------------------- what is wrong


def test_every_mistake_is_told_with_its_line_and_field_and_nothing_is_changed(desk: Desk) -> None:
    text = """\
devices:
  - code: CT1
    modality: CT
    hours: Mon-Fri 8
  - code: CT2
    buffer_min: five
    hour: Mon 8-9
  - kind: device
  - code: CT1
    ae_title: SEVENTEEN CHARACTERS
people:
  - code: weiss
    roles: [radiolgist]
procedures:
  - code: CTHEAD
    modality: CT
    resources: [CT1 or CT9]
    duration_min: 0
templates:
  - name: T
    sections:
      - name: findings
        txt: x
closures:
  - {date: 2026-12-25, resources: MR9}
holiday:
  - 2026-12-25
"""
    found = problems(desk, text)
    for part in (
        "ris.yaml:4: hours: '8' is no day and no time",
        "ris.yaml:6: buffer_min: 'five' is no whole number",
        "ris.yaml:7: hour: no such field; is it hours?",
        "ris.yaml:8: an entry needs code",
        "ris.yaml:13: roles: no role 'radiolgist'",
        "ris.yaml:18: duration_min: a procedure takes 1 to",
        "ris.yaml:20: sections[0]: Object contains unknown field `txt`",
        "ris.yaml:25: resources: there is no 'MR9'",
        "ris.yaml: holiday: no such section; there are",
    ):
        assert any(one.startswith(part) for one in found), (part, found)
    assert everything(desk) == {name: [] for name in SECTIONS}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("devices: [a, b", "ris.yaml:2: no YAML"),
        ("devices:\n  - code: A\n    code: B\n", "ris.yaml:3: 'code' stands there twice"),
        ("a: &x [1]\nb: *x\n", "ris.yaml:2: references"),
        ("[" * 100_000, "ris.yaml:1: nested more than 16 deep"),
        ("devices:\n  code: CT1\n", "ris.yaml:2: devices: a section is a list: - before each entry"),
        ("- code: CT1\n", "ris.yaml:1: a file is a map of sections"),
        ("devices:\n\t- code: CT1\n", "ris.yaml:2: no YAML"),
        ("macros:\n - {name: x, text: a .x b}\n", "ris.yaml:2: text: the macro .x names itself"),
        ("macros:\n - {name: x, text: a, owner: weiss}\n", "ris.yaml:2: owner: somebody's own"),
        ("devices:\n - {code: C, name: [a, b]}\n", "ris.yaml:2: name: this is a text"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(desk: Desk, text: str, what: str) -> None:
    (found,) = problems(desk, text)
    assert found.startswith(what)


def test_a_table_says_the_line_of_a_row(desk: Desk) -> None:
    text = (
        '\N{BYTE ORDER MARK}code;name;roles\nweiss;"WEISS^\nCLARA";radiologist\nadler;ADLER;trainee;x\n\n'
        "novak;N;cleric\n"
    )
    assert problems(desk, text, "people.csv") == [
        "people.csv:4: 4 cells for 3 columns",
        f"people.csv:6: roles: {problems(desk, 'people: [{code: n, roles: cleric}]')[0].split(': ', 2)[2]}",
    ]
    assert problems(desk, "code,code\na,b\n", "people.csv") == [
        "people.csv:1: the first line names the columns; twice: code"
    ]
    assert problems(desk, 'code,name\na,"b\n', "people.csv")[0].startswith("people.csv:2: no CSV")
    assert problems(desk, "name\nx\n", "templates.csv") == ["templates.csv: templates come as YAML"]


@pytest.mark.parametrize(
    "text",
    [
        '\N{BYTE ORDER MARK}code;name;roles;;\r\nmüller;MÜLLER^JÖRG;"radiologist; clerk";;\r\n;;;;\r\n\r\n',
        'sep=;\r\nCode;Name;Roles\r\nmüller;MÜLLER^JÖRG;"radiologist; clerk"\r\n',
        "code\tname\troles\rmüller\tMÜLLER^JÖRG\tradiologist; clerk\r",
        "\r\ncode,name,roles\r\nmüller,MÜLLER^JÖRG,radiologist;clerk",
    ],
)
def test_tables_are_read_as_spreadsheets_write_them(desk: Desk, text: str) -> None:
    (item,) = done(desk, text, "people.csv").items
    assert item.new == Person(code="müller", name="MÜLLER^JÖRG", roles=("radiologist", "clerk"))


def test_a_cell_below_no_name_is_not_dropped(desk: Desk) -> None:
    found = problems(desk, "code;name;\na;A;\nb;B;radiologist\n", "people.csv")
    assert found == ["people.csv:3: the first line names the columns; a column has no name"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_files_are_read_in_the_encoding_that_they_are_in(encoding: str) -> None:
    text = "code;name\nmüller;MÜLLER^JÖRG\n"
    said = encoding if encoding == "cp1252" else ""
    assert text_of(text.encode(encoding), said) == text


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("code\nmüller\n".encode("cp1252"), "line 2 is no UTF-8; save it as UTF-8"),
        ("code\n".encode("utf-16-le"), "it has zero bytes: is it UTF-16"),
    ],
)
def test_a_file_in_an_unknown_encoding_is_not_guessed_at(data: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        text_of(data)


def test_what_no_modality_and_no_deputy_can_be_is_refused(desk: Desk) -> None:
    text = """\
people:
  - {code: a, deputises_for: [nobody]}
  - {code: b, deputises_for: [c]}
  - {code: c, deputises_for: [b]}
  - {code: d, deputises_for: [d]}
devices:
  - {code: D1, modality: ct}
procedures:
  - {code: P1, modality: Computertomographie, body_part: HEAD}
  - {code: P2, modality: CT, body_part: Schädel}
  - {code: P3-OF-A-LONGER-NAME, modality: CT}
  - {cod: P4, modality: CT}
"""
    found = problems(desk, text)
    assert [one.split(": ")[:2] for one in found] == [
        ["ris.yaml:2", "deputises_for"], ["ris.yaml:5", "deputises_for"], ["ris.yaml:7", "modality"],
        ["ris.yaml:9", "modality"], ["ris.yaml:10", "body_part"], ["ris.yaml:11", "code"],
        ["ris.yaml:12", "an entry needs code; is 'cod' it?"],
    ]  # fmt: skip
    whole = "people: [{code: b, deputises_for: [c]}, {code: c, deputises_for: [b]}]\n"
    assert len(done(desk, whole).items) == 2
    with pytest.raises(InvalidError, match="there is no person 'x'"):
        desk.do(put_person, ADMINISTRATOR, Person(code="e", deputises_for=("x",)))


# ---------------------------------------------------------------- what is left alone


def test_what_a_file_does_not_say_stays(desk: Desk) -> None:
    done(
        desk,
        "devices: [{code: CT1, modality: CT, ae_title: CT1, hours: Mon 8-9, buffer_min: 5}, {code: CT2}]",
    )
    done(desk, "code,hours\nCT1,Tue 9-10\n", "hours.csv")
    _, one = desk.look(resource, "CT1")
    assert (one.kind, one.ae_title, one.buffer_min, hours_text(one.hours)) == (
        "device",
        "CT1",
        5,
        "Tue 09:00-10:00",
    )
    # An empty cell empties; what cannot be empty is told.
    done(desk, "code,ae_title\nCT1,\n", "devices.csv")
    assert desk.look(resource, "CT1")[1].ae_title == ""
    assert problems(desk, "code,kind\nCT1,\n", "resources.csv") == [
        "resources.csv:2: kind: this cannot be empty"
    ]
    assert desk.look(resource, "CT2")[1].active


def test_codes_are_texts(desk: Desk) -> None:
    """Not a false, an octal, a number of minutes or nothing, as YAML 1.1 would have it."""
    done(desk, "people: [{code: NO}, {code: 0815}, {code: 12:30}, {code: 1e3}, {code: 'null'}]")
    with desk.view() as view:
        assert {one.code for _, one in view.every(PERSON)} == {"NO", "0815", "12:30", "1e3", "null"}


def test_only_administrators_import(desk: Desk) -> None:
    with desk.view() as view, pytest.raises(ForbiddenError):
        plan(view, CLERK, ZONE, parse([]))
    with pytest.raises(ForbiddenError):
        desk.do(put, CLERK, [])


def test_what_somebody_changed_meanwhile_is_not_overwritten(desk: Desk) -> None:
    done(desk, "people: [{code: weiss, phone: 1}]")
    late = planned(desk, "people: [{code: adler}, {code: weiss, name: W}]")
    done(desk, "people: [{code: weiss, phone: 2}]")
    with pytest.raises(StaleError):
        desk.do(put, ADMINISTRATOR, late.items)
    assert desk.look(person, "adler") is None
    found = desk.look(person, "weiss")
    assert found is not None
    assert (found[1].phone, found[1].name) == ("2", "")


def test_thousands_are_put_in_bounded_pieces_and_gone_on_with_when_cut_off(desk: Desk) -> None:
    count = 2 * CHANGES_MAX + 1
    text = "code,name,roles\n" + "".join(f"r{index},NAME^{index},referrer\n" for index in range(count))
    first, *rest = planned(desk, text, name="people.csv").batches()
    assert [len(one) for one in (first, *rest)] == [CHANGES_MAX, CHANGES_MAX, 1]
    desk.do(put, ADMINISTRATOR, first)  # and here it is cut off
    assert str(done(desk, text, "people.csv")) == f"add {count - CHANGES_MAX}, change 0, leave {CHANGES_MAX}"
    assert str(planned(desk, text, name="people.csv")) == f"add 0, change 0, leave {count}"


async def test_operations_show_what_they_would_do_and_do_it(tmp_path: Path) -> None:
    async with department(tmp_path) as there:
        operations = parts(there.ris).operations
        files = [{"name": "x.yaml", "text": EXAMPLE.read_text(encoding="utf-8")}]
        dry = await operations["import"](files=files, dry_run=True)
        assert (dry["would"], dry["done"]) == ("add 15, change 0, leave 0", 0)
        assert there.look(person, "weiss") is None
        real = await operations["import"](files=files, user="root")
        assert (real["done"], real["problems"]) == (15, [])
        assert {"section": "people", "add": 5, "change": 0, "leave": 0} in real["sections"]
        again = await operations["export"]()
        wrong = [{"name": "y.yaml", "text": again["text"] + "\nroom:\n- code: X\n"}]
        refused = await operations["import"](files=wrong)
        assert refused["done"] == 0
        assert [one["field"] for one in refused["problems"]] == ["room"]
        table = await operations["export"](sections=["people"], form="csv")
        assert table["text"].startswith("code,name,roles")
        for bad in ({"form": "xml"}, {"form": "csv"}, {"form": "csv", "sections": ["templates"]}):
            with pytest.raises(InvalidError):
                await operations["export"](**bad)
