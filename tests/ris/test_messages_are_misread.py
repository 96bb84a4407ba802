"""Messages as real senders write them are taken for something else."""

from __future__ import annotations

import re
from datetime import UTC
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import hl7
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hounsfield.archive.errors import ConfigError
from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.hl7.checking import check
from hounsfield.ris_plugin.hl7.encoding import (
    Separators,
    day,
    decoded,
    escaped,
    moment,
    moment_text,
    unescaped,
)
from hounsfield.ris_plugin.hl7.mapping import load
from hounsfield.ris_plugin.hl7.messages import NotHl7Error, read
from hounsfield.ris_plugin.hl7.mllp import Framer, framed
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import PROCEDURE
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import PATIENT, Patient
from hounsfield.ris_plugin.records.schedule import APPOINTMENT
from hounsfield.ris_plugin.settings import Hl7Destination, Hl7Listener, RisSettings
from ris.conftest import Desk
from ris.hl7_desk import Interface, obr, orc, pid

HEAD = b"MSH|^~\\&|HIS|HOSP|R|R|20261122120000||ADT^A04|1|P|2.5.1||||||"
USUAL = Separators("|^~\\&")


# ---------------------------------------------------------------- framing


@given(
    messages=st.lists(
        st.binary(min_size=1, max_size=40).map(lambda b: b"MSH|" + re.sub(rb"[\x0b\x1c]", b"", b))
    ),
    between=st.sampled_from([b"", b"\r", b"\n", b"\r\n\r\n", b"\0", b"noise"]),
    missing=st.booleans(),
    cuts=st.lists(st.integers(1, 9), min_size=1),
)
def test_messages_are_found_however_they_are_cut_and_whatever_is_between(
    messages: list[bytes], between: bytes, missing: bool, cuts: list[int]
) -> None:
    sent = b"".join(between + framed(one)[: -1 if missing else None] for one in messages)
    framer = Framer(1 << 20)
    found: list[Any] = []
    at = 0
    while at < len(sent):
        cut = cuts[at % len(cuts)]
        found += framer.feed(sent[at : at + cut])
        at += cut
    assert found == messages
    assert not framer.inside


def test_a_message_that_broke_off_and_began_again_is_one() -> None:
    framer = Framer(1000)
    assert list(framer.feed(b"\x0bMSH|half" + framed(b"MSH|whole"))) == [b"MSH|whole"]
    assert list(framer.feed(b"MSH|no start block\x1c\r")) == [b"MSH|no start block"]


# ---------------------------------------------------------------- characters


@pytest.mark.parametrize(
    ("declared", "codec", "name"),
    [
        ("8859/1", "latin_1", "Müller"),
        ("8859/2", "iso8859_2", "Dvořák"),
        ("8859/5", "iso8859_5", "Люкceмбypг"),
        ("UNICODE UTF-8", "utf_8", "山田"),
        ("UNICODE", "utf_8", "山田"),
        ("GB 18030-2000", "gb18030", "王小东"),
        ("ASCII~ISO IR87", "iso2022_jp", "山田"),
        ("", "utf_8", "Müller"),
        ("", "cp1252", "Müller"),
        ("ASCII", "cp1252", "Müller"),
        ("UNICODE UTF-8", "cp1252", "Müller"),
    ],
)
def test_names_are_read_in_the_character_set_that_was_declared_or_meant(
    declared: str, codec: str, name: str
) -> None:
    body = HEAD + declared.encode() + f"\rPID|1||1||{name}^X\r".encode(codec)
    (one,) = read(body).all("PID")
    assert one.get(5) == name


@pytest.mark.parametrize(
    ("declared", "codec", "name"),
    [
        ("8859-2", "iso8859_2", "Őř"), ("ISO-8859-2", "iso8859_2", "Őř"), ("ISO_IR 101", "iso8859_2", "Őř"),
        ("windows-1250", "cp1250", "Őř"), ("GB 18030", "gb18030", "王"), ("ISO IR149", "euc_kr", "홍"),
        ("8859/16", "iso8859_16", "Ż"), ("8859/11", "iso8859_11", "ก"), ("UTF8", "utf_8", "Ő王"),
        ("8859/1~8859/5", "iso8859_5", "Ж"), ("~ISO IR87", "iso2022_jp", "山"), ("no such set", "utf_8", "Ő"),
    ],
)  # fmt: skip
def test_character_sets_are_known_by_what_senders_call_them(declared: str, codec: str, name: str) -> None:
    message = HEAD.decode() + f"{declared}\rPID|||1||{name}^A"
    assert read(message.encode(codec)).segments[1].get(5) == name


def test_what_declares_nothing_is_read_as_the_listener_says() -> None:
    assert decoded(HEAD + "\rПетров".encode("iso8859_5"), "8859/5")[0].endswith("Петров")
    assert decoded("MSH|^~\\&|山".encode("utf_16"))[0] == "MSH|^~\\&|山"


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("a\\F\\b\\S\\c\\T\\d\\R\\e\\E\\f", "a|b^c&d~e\\f"),
        ("line\\.br\\line", "line\nline"),
        ("\\X48616C6C6F\\ \\XC3A4\\ \\XE4\\", "Hallo ä ä"),
        ("\\H\\bold\\N\\", "bold"),
        ("\\.sp2\\x\\.in4\\y", "\n\nxy"),
        ("C:\\temp\\new|", "C:\\temp\\new|"),
        ("alone\\", "alone\\"),
        ("\\C2842\\x", "x"),
    ],
)
def test_escapes_are_what_they_stand_for_and_a_backslash_is_one(sent: str, meant: str) -> None:
    assert unescaped(sent, USUAL) == meant


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_text_comes_back_from_how_it_is_sent(text: str) -> None:
    assert unescaped(escaped(text), USUAL) == text
    assert not set(escaped(text)) & set("|^~&\r")


# ---------------------------------------------------------------- moments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20260701120000", "20260701120000+0200"),
        ("20260101120000", "20260101120000+0100"),
        ("20260701120000.1234-0500", "20260701190000+0200"),
        ("202607011200+0000", "20260701140000+0200"),
        ("20260701", "20260701000000+0200"),
        ("2026", "20260101000000+0100"),
        ("20261231235960", "20270101000000+0100"),
        ("", ""),
    ],
)
def test_moments_are_the_departments_unless_they_say_their_offset(text: str, expected: str) -> None:
    zone = ZoneInfo("Europe/Vienna")
    assert moment_text(moment(text, zone), zone) == expected


@pytest.mark.parametrize(
    "text", ["20261301", "2026-01-01", "today", "20260101250000", "202", "20260101+9900x"]
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="PID-29"):
        moment(text, UTC, "PID-29")


@pytest.mark.parametrize("text", ["1970", "197001", "19700000", "19700100", "00000000", "00000101"])
def test_a_day_that_is_not_wholly_known_is_none(text: str) -> None:
    assert day(text) == ""


# ---------------------------------------------------------------- parsing


@given(
    st.lists(st.lists(st.text("ab^~&\\ \"'é", max_size=6), min_size=1, max_size=5), min_size=1, max_size=4)
)
def test_fields_are_what_the_hl7_library_finds(segments: list[list[str]]) -> None:
    text = HEAD.decode() + "\r" + "\r".join("|".join(["ZZ1", *fields]) for fields in segments)
    theirs = hl7.parse(text)
    ours = read(text.encode())
    assert len(ours.segments) == len(theirs)
    for number, segment in enumerate(ours.segments):
        for field in range(len(theirs[number])):
            assert segment.says(field) == bool(_leaves(theirs[number][field]))
            assert segment.field(field) == theirs[number][field]
            assert segment.repetitions(field) == len(theirs[number][field])
            for rep in range(len(theirs[number][field])):
                assert segment.raw(field, rep=rep) == _first(theirs[number][field][rep])


def _leaves(part: Any) -> str:
    return part if isinstance(part, str) else "".join(map(_leaves, part))


def _first(part: Any) -> str:
    return part if isinstance(part, str) else _first(part[0])


def test_a_segment_of_its_name_alone_and_separators_that_are_none() -> None:
    message = read(HEAD + b"\rPID\rPV1|")
    assert [one.name for one in message.segments] == ["MSH", "PID", "PV1"]
    assert [(one.get(1), one.says(3), one.repetitions(3)) for one in message.segments[1:]] == [
        ("", False, 0)
    ] * 2
    with pytest.raises(InvalidError, match="MSH-2"):
        read(HEAD.replace(b"^~\\&", b"^^\\&") + b"\rPID|1")


def test_odd_separators_line_ends_and_z_segments_are_understood() -> None:
    body = b"\xef\xbb\xbfMSH#*~\\&#HIS#HOSP###20261122120000##ADT*A04#1#P#2.3\n\n"
    body += b"PID#1##77***HOSP##DOE*JANE\nZAB#x*y#z\n"
    message = read(body)
    assert message.header.kind == "ADT^A04"
    assert [one.name for one in message.segments] == ["MSH", "PID", "ZAB"]
    zab = message.first("ZAB")
    assert zab is not None
    assert (zab.get(1, 2), zab.get(2), zab.get(9)) == ("y", "z", "")
    assert message.body == body
    for wrong in (b"", b"PID|1", b"MSH", b"MSHX^~\\&|"):
        with pytest.raises(NotHl7Error):
            read(wrong)


# ---------------------------------------------------------------- what is meant


def patients(desk: Desk) -> list[Patient]:
    return [one for _, one in desk.look(lambda view: list(view.every(PATIENT)))]


def orders(desk: Desk) -> list[Order]:
    found = [one for _, one in desk.look(lambda view: list(view.every(ORDER)))]
    return sorted(found, key=lambda one: one.placer_number)


def test_registration_is_taken_over_whole(desk: Desk) -> None:
    sent = Interface(desk).send(
        "ADT^A04^ADT_A01",
        "EVN|A04|20261122115900+0100",
        "PID|1||99^^^SSA^SS~4711^^^HOSP^MR~12^^^LAB^PI||Yamada^Tarou^^^Dr^^L^A~山田^太郎^^^^^L^I~Old^Name^^^^^M"
        "||19620228000000|M|Alias^An||Street 1^^Town^^1010||555-1~^NET^Internet^a@b.c|555-2|de",
        "PD1||||||||||||Y",
        "NK1|1|Roe^Rita|SPO^spouse|Street 2|555-9",
        "PV1|1|E|ER^1^2^HOSP||||D1^Attend^Ann|R1^Refer^Rob|||||||||||V77^^^HOSP|||||||||||||||||||||||||20261122110000",
        "OBX|1|NM|29463-7^Body Weight^LN||72.5|kg",
        "OBX|2|NM|^Body Height||180|cm",
        "OBX|3|CE|82810-3^Pregnancy status^LN||LA26683-5^Not pregnant^LN",
        "AL1|1|DA|^IODINE|SV|hives~shock",
        "IN1|1|PLAN^Basic|C1|Company|||||||20260101|20271231||||||||||||||||||||||||POL1",
        "ZPI|kept",
    )
    assert sent == "AA"
    (one,) = patients(desk)
    assert [(each.value, each.issuer) for each in one.identifiers] == [
        ("4711", "HOSP"), ("12", "LAB"), ("99", "SSA"),
    ]  # fmt: skip
    assert one.name == "Yamada^Tarou^^Dr=山田^太郎"
    assert one.other_names == ("Old^Name", "Alias^An")
    assert (one.birth_day, one.sex, one.language, one.confidential) == ("19620228", "M", "de", True)
    assert one.address == "Street 1 Town 1010"
    assert one.phones == ("555-1", "NET", "555-2") or "555-1" in one.phones
    assert (one.weight_kg, one.size_m, one.pregnancy) == (72.5, 1.8, 1)
    assert (one.visit.number, one.visit.patient_class, one.visit.attending) == ("V77", "E", "Attend^Ann")
    assert one.contacts[0].name == "Roe^Rita"
    assert (one.allergies[0].substance, one.allergies[0].reaction) == ("IODINE", "hives; shock")
    assert (one.insurances[0].plan, one.insurances[0].policy_number) == ("Basic", "POL1")
    assert one.as_of_ns == moment("20261122105900", UTC)


@pytest.mark.parametrize("kind", ["ADT^A31", "ADT^A08", "ORM^O01"])
def test_a_visit_of_which_nothing_is_said_stays(desk: Desk, kind: str) -> None:
    """PV1 has to be there, and says N, not applicable, or nothing."""
    desk.procedure()
    interface = Interface(desk)
    interface.send("ADT^A01", pid(), "PV1|1|I|WARD^1|||||||||||||||||V1^^^HOSP")
    order = () if kind.startswith("ADT") else (orc("NW"), obr())
    assert interface.send(kind, pid(), "PV1|1|N", *order, at="20261122130000") == "AA"
    assert interface.send(kind, pid(), "PV1|1", *order, at="20261122140000") == "AA"
    with desk.view() as view:
        ((_, one),) = view.find(PATIENT, "number", "P1")
    assert (one.visit.patient_class, one.visit.location) == ("I", "WARD 1")


def test_urgent_orders_are_urgent_and_others_are_not(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    meant = {
        "S": "STAT", "STAT": "STAT", "EMERGENCY": "STAT", "URGENT": "HIGH", "A": "HIGH", "TM30": "HIGH",
        "T": "HIGH", "PRN": "LOW", "R": "ROUTINE", "SCHEDULED": "ROUTINE", "ELECTIVE": "ROUTINE",
        "PLANNED": "ROUTINE", "low": "LOW",
    }  # fmt: skip
    found = {}
    for said in meant:
        old = [orc("NW", f"A{said}"), f"OBR|1|A{said}^HIS||CTHEAD|{said}"]
        new = [orc("NW", f"B{said}"), obr(f"B{said}"), f"TQ1|1||||||||{said}"]
        assert interface.send("ORM^O01", pid(), *old, *new) == "AA"
        with desk.view() as view:
            placed = [view.first(ORDER, "placer", f"HIS\0{kind}{said}") for kind in "AB"]
        found[said] = {one[1].priority for one in placed if one is not None}
    assert found == {said: {each} for said, each in meant.items()}


def test_a_clock_that_is_years_ahead_does_not_silence_what_is_said_later(desk: Desk) -> None:
    interface = Interface(desk)
    assert interface.send("ADT^A08", "EVN|A08|20991122110000", pid(name="FUTURE^F")) == "AA"
    desk.now_ns += 60 * NS
    assert interface.send("ADT^A08", "EVN|A08|20261122120030", pid(name="NOW^N")) == "AA"
    # Some hours are another time zone, and are kept as they are said.
    assert interface.send("ADT^A08", "EVN|A08|20261122180000", pid(name="ZONE^Z")) == "AA"
    assert interface.send("ADT^A08", "EVN|A08|20261122170000", pid(name="BEFORE^B")) == "AA"
    with desk.view() as view:
        ((_, one),) = view.find(PATIENT, "number", "P1")
    assert one.name == "ZONE^Z"


def test_an_order_brings_its_study_and_number_as_its_sender_says_them(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk, listener=Hl7Listener(issuer="HOSP", accession_in="OBR-18"))
    given = f"OBR|1|O1^HIS||CTHEAD{'|' * 14}ACC7"
    assert interface.send("ORM^O01", pid(), orc("NW"), given, "ZDS|1.2.3.4^100^HIS^DICOM") == "AA"
    with desk.view() as view:
        found = view.first(ORDER, "placer", "HIS\0O1")
    assert found is not None and (found[1].accession, found[1].study_uid) == ("ACC7", "1.2.3.4")
    # A UID that is none would go to modalities.
    answer = interface.raw(interface.message("OMI^O23", pid(), orc("NW", "O2"), obr("O2"), "IPC|A2||no UID"))
    assert b"ERR||IPC^1^3|102^" in answer[0]


def test_two_quotes_remove_a_value_and_nothing_leaves_it(desk: Desk) -> None:
    interface = Interface(desk)
    interface.send("ADT^A04", "PID|1||1^^^HOSP||A^B||19700101|F|||Street||555", at="20261122120000")
    interface.send("ADT^A08", 'PID|1||1^^^HOSP||A^C||||||""', at="20261122120100")
    (one,) = patients(desk)
    assert (one.name, one.birth_day, one.sex, one.address, one.phones) == (
        "A^C",
        "19700101",
        "F",
        "",
        ("555",),
    )


def test_a_cancelled_admission_takes_the_visit_and_a_cancelled_discharge_gives_it_back(desk: Desk) -> None:
    interface = Interface(desk)
    visit = "PV1|1|I|W1||||||||||||||||V1" + "|" * 25 + "20261122100000|"
    interface.send("ADT^A03", pid(), visit + "20261122110000", at="20261122120000")
    assert patients(desk)[0].visit.discharged_ns
    interface.send("ADT^A13", pid(), visit, at="20261122120100")
    assert (patients(desk)[0].visit.number, patients(desk)[0].visit.discharged_ns) == ("V1", 0)
    interface.send("ADT^A11", pid(), visit, at="20261122120200")
    assert patients(desk)[0].visit.number == ""


def test_a_merge_and_a_new_number_lead_to_the_survivor_whoever_was_known(desk: Desk) -> None:
    from hounsfield.ris_plugin.patients import by_identifier

    interface = Interface(desk)
    assert interface.send("ADT^A40", pid("NEW"), "MRG|OLD^^^HOSP", at="20261122120000") == "AA"
    assert interface.send("ADT^A47", pid("NEWER"), "MRG|NEW^^^HOSP", at="20261122120100") == "AA"
    assert interface.send("ADT^A08", pid("OLD", "LATE^X"), at="20261122110000") == "AA"
    found = {number: desk.look(by_identifier, number, "HOSP")[0] for number in ("OLD", "NEW", "NEWER")}
    assert len(set(found.values())) == 1
    assert interface.send("ADT^A40", pid("OLD"), "MRG|OLD^^^HOSP") == "AE"
    assert interface.send("ADT^A40", pid("OLD")) == "AE"


def test_several_orders_of_a_message_come_with_what_is_said_of_each(desk: Desk) -> None:
    desk.procedure(questions=("pregnancy", "implants"))
    desk.procedure("MRKNEE", "MR", laterality=True)
    sent = Interface(desk).send(
        "OMG^O19^OMG_O19", pid(), "PV1|1|O||||||R1^Refer^Rob|||||||||||V1^^^HOSP",
        "ORC|NW|O1^HIS|||||||20261122113000|||D1^Order^Olga^^^Dr|WARD 7|555|||||||||||||||",
        "TQ1|1||||||20261124080000|20261125080000|S",
        obr("O1", reason="K1^cough", info="since May"), "NTE|1||walks~slowly", "DG1|1||J20^Bronchitis^I10",
        "OBX|1|CE|X^Pregnancy^L||N^no", "OBX|2|CE|Y^Implants^L||Y^pacemaker",
        "OBR|2|O2^HIS||X^x^OTHER^MRKNEE^Knee^99H|||||||||||^^^^L|||||||||||||||",
    )  # fmt: skip
    assert sent == "AA"
    head, knee = orders(desk)
    assert (head.procedure.value, knee.procedure.value, knee.laterality) == ("CTHEAD", "MRKNEE", "L")
    assert head.priority == "STAT"
    assert head.wanted_ns == moment("20261124080000", UTC)
    assert head.placed_ns == moment("20261122113000", UTC)
    assert (head.requester, head.requester_code, head.referring) == ("Order^Olga^^Dr", "D1", "Refer^Rob")
    assert (head.reason, head.reason_codes[0].value) == ("cough", "J20")
    assert head.clinical_information == "since May\nwalks\nslowly"
    assert [(one.name, one.answer, one.blocks) for one in head.questions] == [
        ("pregnancy", "no", False), ("implants", "pacemaker", True),
    ]  # fmt: skip
    assert (head.visit_number, head.visit_issuer) == ("V1", "HOSP")


def test_an_imaging_order_brings_its_accession_number_and_study(desk: Desk) -> None:
    desk.procedure()
    ipc = "IPC|ACC7|RP1|1.2.3.4|SPS1|CT"
    assert Interface(desk).send("OMI^O23", pid(), orc("NW"), "TQ1|1", obr(), ipc) == "AA"
    (one,) = orders(desk)
    assert (one.accession, one.study_uid) == ("ACC7", "1.2.3.4")


def test_a_replacement_is_placed_and_what_it_replaces_points_to_it(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    interface.send("ORM^O01", pid(), orc("NW"), obr())
    assert interface.send("ORM^O01", pid(), orc("RP"), obr(), orc("RO", "O2"), obr("O2")) == "AA"
    old, new = orders(desk)
    assert (old.state, new.state) == ("replaced", "accepted")
    assert desk.look(lambda view: view.get(ORDER, old.replaced_by)) == new


def test_a_placer_does_not_end_what_has_begun_nor_order_for_another(desk: Desk) -> None:
    from hounsfield.ris_plugin.orders import images_began
    from ris.conftest import MODALITY

    desk.procedure()
    desk.procedure("OTHER")
    interface = Interface(desk)
    interface.send("ORM^O01", pid(), orc("NW"), obr())
    assert interface.send("ORM^O01", pid("P2"), orc("XO"), obr()) == "AE"
    assert interface.send("ORM^O01", pid(), orc("XO"), obr(code="OTHER")) == "AE"
    ((order_id, _),) = desk.look(lambda view: list(view.every(ORDER)))
    desk.do(images_began, MODALITY, order_id)
    assert interface.send("ORM^O01", pid(), orc("CA")) == "AE"
    assert interface.send("ORM^O01", pid(), orc("HD")) == "AE"
    assert orders(desk)[0].state == "in-progress"


def test_appointments_of_a_scheduler_are_booked_moved_and_cancelled(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    interface.send("ORM^O01", pid(), orc("NW"), obr())

    def sch(start: str) -> str:
        return f"SCH|A1^SCHED||||||why||||^^^{start}" + "|" * 15 + "O1^HIS"

    def held() -> list[tuple[str, int]]:
        found = desk.look(lambda view: list(view.every(APPOINTMENT)))
        return [(one.state, one.from_ns // NS) for _, one in found]

    nine, ten = (moment(f"202611230{hour}0000", UTC) // NS for hour in "78")
    for trigger, start, minute, state in (
        ("S12", "20261123070000", "00", ("booked", nine)),
        ("S13", "20261123080000", "01", ("booked", ten)),
        ("S26", "20261123080000", "02", ("no-show", ten)),
        ("S15", "20261123080000", "03", ("cancelled", ten)),
    ):
        answer = interface.send(f"SIU^{trigger}", sch(start), pid(), "RGS|1", at=f"2026112212{minute}00")
        assert (answer, held()) == ("AA", [state])
    assert interface.send("SIU^S12", sch("").replace("A1^", "A2^"), pid()) == "AE"
    unknown = [sch("20261123070000").replace("A1^", "A3^"), pid(), "RGS|1", "AIL|1||NOWHERE"]
    assert interface.send("SIU^S12", *unknown) == "AE"


# ---------------------------------------------------------------- mappings


RULES = """
[[rule]]
when = { "MSH-3" = ["OLD", "HIS"], "PID-8" = "W" }
set = "PID-8"
value = "F"

[[rule]]
map = "OBR-4.1"
values = { "K1" = "CTHEAD" }

[[rule]]
copy = "ZBR-2.3"
to = "OBR-31.2"

[[rule]]
set = "PID-3[2].4"
value = "LAB"
"""


def test_rules_put_right_what_a_sender_says_otherwise(desk: Desk, tmp_path: Path) -> None:
    desk.procedure()
    (tmp_path / "rules.toml").write_text(RULES)
    interface = Interface(desk, mapping=load(str(tmp_path / "rules.toml")))
    words = ["PID|1||1^^^HOSP~2||A^B|||W", "ZBR|1|a^b^first", orc("NW"), obr(code="K1", reason="x")]
    more = ["ZBR|1|a^b^second", orc("NW", "O2"), obr("O2", code="K1", reason="y")]
    assert interface.send("ORM^O01", *words, *more) == "AA"
    (patient,) = patients(desk)
    assert (patient.sex, patient.identifiers[1].issuer) == ("F", "LAB")
    assert [one.reason for one in orders(desk)] == ["first", "second"]
    assert desk.look(lambda view: view.first(PROCEDURE, "value", "K1")) is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("x = 1", "nothing else"),
        ("[[rule]]\nset = 'PID'\nvalue = ''", "no path"),
        ("[[rule]]\nset = 'PID-3'", "value"),
        ("[[rule]]\nset = 'PID-3'\nvalue = ''\n[[rule]]\nset = 'MSH-2'\nvalue = ''", "rule 2: MSH-1"),
        ("[[rule]]\nmap = 'PID-3'\ncopy = 'PID-4'", "one of"),
        ("[[rule]]\nmap = 'PID-3'\nvalue = 'x'", "no word"),
        ("[[rule", "cannot be read"),
    ],
)
def test_a_wrong_rule_is_said_by_its_number(tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(wrong)):
        load(str(tmp_path / "rules.toml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (RisSettings(hl7_listeners=(Hl7Listener(character_set="KLINGON"),)), "table 0211"),
        (RisSettings(hl7_listeners=(Hl7Listener(processing=("X",)),)), "P, T, D"),
        (RisSettings(hl7_listeners=(Hl7Listener(accession_in="OBR"),)), "no path like"),
        (RisSettings(hl7_listeners=(Hl7Listener(mapping="/nowhere.toml"),)), "cannot be read"),
        (
            RisSettings(hl7_destinations=(Hl7Destination(name="a", host="h", port=1, sends=("ADT",)),)),
            "not sent",
        ),
        (
            RisSettings(hl7_destinations=(Hl7Destination(name="a", host="h", port=1, character_set="X"),)),
            "0211",
        ),
    ],
)
def test_interfaces_that_cannot_be_are_said_before_anything_runs(settings: RisSettings, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        check(settings)
