"""What senders write beside the standard is refused, mixed up, or ends the listener."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import hl7
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.engine.engine import Stores
from hounsfield.ris_plugin.hl7.mapping import load
from hounsfield.ris_plugin.hl7.messages import several
from hounsfield.ris_plugin.hl7.mllp import Framer, MllpError, TooLong, framed
from hounsfield.ris_plugin.records.messages import LETTER, RECEIVED
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import PATIENT
from hounsfield.ris_plugin.settings import Hl7Listener
from ris.conftest import Desk
from ris.hl7_desk import Interface, obr, orc, pid


def codes(answers: list[bytes]) -> list[tuple[str, str]]:
    """MSA-1 and MSA-2 of each acknowledgement."""
    return [
        (str(line.split("|")[1]), str(line.split("|")[2]))
        for one in answers
        for line in one.decode().split("\r")
        if line.startswith("MSA")
    ]


def order_of(desk: Desk, number: str) -> Order:
    with desk.view() as view:
        found = view.first(ORDER, "placer", f"HIS\0{number}")
    assert found is not None
    return found[1]


def count(desk: Desk, number: str) -> int:
    with desk.view() as view:
        return len(view.ids(PATIENT, "number", number))


# ---------------------------------------------------------------- several in one


def test_messages_of_one_block_are_taken_one_by_one(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    first = interface.message("ORM^O01", pid("P1"), orc("NW", "O1"), obr("O1"))
    second = interface.message("ORM^O01", pid("P2", "ROE^BOB"), orc("NW", "O2"), obr("O2"))
    both = first + second.replace(b"\r", b"\r\n")
    answers = interface.raw(both)
    assert codes(answers) == [("AA", "C1"), ("AA", "C2")]
    assert len(answers) == 2
    assert order_of(desk, "O1").patient != order_of(desk, "O2").patient
    assert interface.raw(both) == answers


@pytest.mark.parametrize("envelope", [("FHS", "BHS"), ("BHS",)])
def test_a_batch_is_answered_by_one(desk: Desk, envelope: tuple[str, ...]) -> None:
    interface = Interface(desk)
    parts = [interface.message("ADT^A04", pid("P1")), interface.message("ADT^A04", pid("")),
             interface.message("ADT^A04", pid("P3"))]  # fmt: skip
    head = "".join(f"{name}|^~\\&|HIS|HOSP|||20261122||||B7\r" for name in envelope).encode()
    tail = b"BTS|3\r" + (b"FTS|1\r" if len(envelope) == 2 else b"")
    (answer,) = interface.raw(head + b"".join(parts) + tail)
    lines = answer.decode().rstrip("\r").split("\r")
    assert [line[:3] for line in lines if line[:3] not in {"MSH", "MSA", "ERR"}] == [
        *envelope, "BTS", *(("FTS",) if len(envelope) == 2 else ())
    ]  # fmt: skip
    assert lines[0].split("|")[11] == "B7"
    assert codes([answer]) == [("AA", "C1"), ("AE", "C2"), ("AA", "C3")]
    assert "BTS|3" in lines
    assert (count(desk, "P1"), count(desk, "P3")) == (1, 1)


def test_a_text_that_speaks_of_headers_is_no_second_message(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    message = interface.message("ORM^O01", pid(), orc("NW"), obr(), "NTE|1||MSH|", "NTE|2||see MSH|x")
    assert codes(interface.raw(message)) == [("AA", "C1")]
    assert several(message) == [message]


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("between", ["\n", "\x0b", "\\.br\\"])
def test_lines_of_a_text_are_lines_and_no_segments(desk: Desk, between: str) -> None:
    desk.procedure()
    interface = Interface(desk)
    note = f"NTE|1||first line{between}second line{between}MRI|"
    message = interface.message("ORM^O01", pid(), orc("NW"), obr(), note.replace("MRI|", "PS"), "NTE|2||end")
    (framer,) = Framer(1 << 20).feed(framed(message))
    assert isinstance(framer, bytes)
    assert codes(interface.raw(framer)) == [("AA", "C1")]
    assert order_of(desk, "O1").clinical_information == "first line\nsecond line\nPS\nend"


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\r", "\r"])
def test_segments_end_as_the_header_does(desk: Desk, ends: str) -> None:
    desk.procedure()
    interface = Interface(desk)
    message = interface.message("ORM^O01", pid(), orc("NW"), obr(info="cough")).decode().replace("\r", ends)
    assert codes(interface.raw(message.encode())) == [("AA", "C1")]
    assert order_of(desk, "O1").clinical_information == "cough"


def test_a_tab_in_text_is_no_new_beginning_and_a_new_beginning_is_one() -> None:
    found = list(Framer(1000).feed(b"\x0bMSH|broken\x0b\r\nMSH|one\x0btwo\x1c\r"))
    assert found == [b"\r\nMSH|one\x0btwo"]
    assert list(Framer(1000).feed(b"MSH|no start\x0btab\x1c\r")) == [b"MSH|no start\x0btab"]


# ---------------------------------------------------------------- headers


def test_old_versions_leave_the_trigger_to_evn(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    old = interface.message("ADT", "EVN|A04|20261122", pid("P1")).replace(b"|2.5.1", b"|2.1")
    assert codes(interface.raw(old)) == [("AA", "C1")]
    order = interface.message("ORM", pid("P1"), orc("NW"), obr()).replace(b"|2.5.1", b"|2.2")
    assert codes(interface.raw(order)) == [("AA", "C2")]
    assert codes(interface.raw(interface.message("ADT", "EVN|A99|20261122", pid()))) == [("AR", "C3")]
    assert codes(interface.raw(interface.message("ADT", pid()))) == [("AR", "C4")]


def test_senders_without_a_name_are_told_apart_by_their_listener(desk: Desk) -> None:
    for name, number in (("one", "P1"), ("two", "P2")):
        interface = Interface(desk, listener=Hl7Listener(name=name, issuer="HOSP"))
        message = interface.message("ADT^A04", pid(number)).replace(b"|HIS|HOSP|", b"|||")
        assert codes(interface.raw(message)) == [("AA", "C1")]
        assert codes(interface.raw(message)) == [("AA", "C1")]
        assert codes(interface.raw(message.replace(b"DOE", b"ROE"))) == [("AR", "C1")]
    with desk.view() as view:
        assert len(view.ids(RECEIVED, "at", "")) == 2


def test_rules_for_the_header_decide_what_a_message_is(desk: Desk, tmp_path: Path) -> None:
    rules = tmp_path / "his.toml"
    rules.write_text(
        '[[rule]]\nmap = "MSH-9.2"\nvalues = { A99 = "A04" }\n[[rule]]\nset = "MSH-11"\nvalue = "P"\n'
        '[[rule]]\nset = "MSH-3"\nvalue = "NAMED"\n'
    )
    interface = Interface(desk, mapping=load(str(rules)))
    message = interface.message("ADT^A99", pid()).replace(b"|P|2.5.1", b"|X|2.5.1")
    (answer,) = interface.raw(message)
    assert codes([answer]) == [("AA", "C1")]
    assert str(hl7.parse(answer.decode()).segment("MSH")[5]) == "HIS"
    assert interface.raw(message) == [answer]
    with desk.view() as view:
        assert view.first(RECEIVED, "control-id", "NAMED^HOSP\0C1") is not None
    # A letter is closed by who it came from, too.
    wrong = interface.message("ADT^A99", pid(""), sender="LATE", control="L1")
    assert codes(interface.raw(wrong)) == [("AE", "L1")]
    with desk.view() as view:
        assert len(view.ids(LETTER, "message", "NAMED^HOSP\0L1")) == 1


# ---------------------------------------------------------------- anything


@pytest.fixture(scope="module")
def interface(shared_stores: Stores) -> Iterator[Interface]:
    desk = Desk(shared_stores)
    desk.procedure()
    yield Interface(desk, listener=Hl7Listener(issuer="HOSP", reused_ids=True))


MESSAGES = (
    ("ADT^A01", ["EVN|A01|20261122", pid(), "PV1|1|I|W^1|||||||||||||||||V1", "OBX|1|NM|3141-9^W||70|kg"]),
    ("ADT^A40", ["EVN|A40|20261122", pid("P2"), "MRG|P1^^^HOSP^MR~X"]),
    ("ORM^O01", [pid(), orc("NW"), obr(), "TQ1|1||||||20261122||S", "NTE|1||a\\.br\\b", "DG1|1||J18^x^I10"]),
    ("OMI^O23", [pid(), orc("CA"), obr(), "IPC|A1^X|R1|1.2.3^X|S1"]),
    ("SIU^S12", ["SCH|S1^X||||||||30|min|^^30^20261124100000|||||||||||||||O1^HIS", pid(), "AIS|1||CTHEAD"]),
)
EXAMPLES = int(os.environ.get("ODD_MESSAGES", "60"))
ODD = [b"|", b"^", b"~", b"\\", b"&", b"\r", b"\n", b"\x0b", b"\x1c", b"\0", b"\xff\xfe", b'""', b"\\X0D\\",
       b"MSH|", b"PID|", b"\rMSH|^~\\&|", b"\rORC|", b"9" * 40, b"\xc3", b"ORC|CA|\r", b"BHS|"]  # fmt: skip


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_any_bytes_are_answered_or_said_to_be_no_hl7(interface: Interface, data: st.DataObject) -> None:
    kind, segments = data.draw(st.sampled_from(MESSAGES))
    sent = framed(interface.message(kind, *segments, control="C1"))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(sent)))
        cut = data.draw(st.integers(0, 12))
        put = data.draw(st.one_of(st.sampled_from(ODD), st.binary(max_size=4)))
        sent = sent[:at] + put + sent[at + cut :]
    if data.draw(st.booleans()):
        sent = data.draw(st.binary(max_size=60)) + sent
    framer = Framer(data.draw(st.sampled_from([200, 1 << 20])))
    step = data.draw(st.integers(1, len(sent)))
    try:
        for begin in range(0, len(sent), step):
            for one in framer.feed(sent[begin : begin + step]):
                answers = interface.raw(one)
                assert all(re.match(rb"(MSH|FHS|BHS)\|\^~\\&\|HOUNSFIELD\|", each) for each in answers)
                is_answer = b"ACK" in one[:99] if isinstance(one, bytes) else False
                assert answers or is_answer or b"MSH" in (one.beginning if isinstance(one, TooLong) else one)
    except MllpError as error:
        assert "no HL7" in str(error)
    with interface.desk.view() as view:
        assert not [
            one for _, one in view.find(LETTER, "state", "open", limit=100_000) if "a defect" in one.error
        ]
