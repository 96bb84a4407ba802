"""What a message says of one patient is done to another one."""

from __future__ import annotations

from collections.abc import Iterable

import hl7
import pytest

from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import PATIENT, Patient
from hounsfield.ris_plugin.records.schedule import APPOINTMENT
from ris.conftest import Desk
from ris.hl7_desk import Interface, obr, orc, pid


def whose(desk: Desk, number: str) -> Patient:
    with desk.view() as view:
        (found,) = (one for _, one in view.find(PATIENT, "number", number))
        return found


def order_of(desk: Desk, number: str) -> Order | None:
    with desk.view() as view:
        found = view.first(ORDER, "placer", f"HIS\0{number}")
        return None if found is None else found[1]


def code_of(answers: Iterable[bytes]) -> str:
    (answer,) = answers
    return str(hl7.parse(answer.decode()).segment("MSA")[1])


def siu(trigger: str, number: str, patient: str, order: str = "", at: str = "20261124100000") -> list[str]:
    return [
        f"SIU^{trigger}",
        f"SCH|{number}^SCHED||||||||30|min|^^30^{at}||||||||||||||Booked|{order}",
        patient,
    ]


def test_orders_of_two_patients_in_one_message_are_not_the_first_ones(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    both = [pid("P1"), orc("NW", "O1"), obr("O1"), pid("P2", "ROE^BOB"), orc("NW", "O2"), obr("O2")]
    assert interface.send("ORM^O01", *both) == "AE"
    assert interface.send("SIU^S12", *siu("S12", "S1", pid("P1"), "O1^HIS")[1:], pid("P2")) == "AE"
    assert interface.send("ADT^A08", pid("P1"), pid("P2")) == "AE"
    assert order_of(desk, "O2") is None


def test_an_appointment_is_not_given_to_whom_it_does_not_name(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    interface.send("ORM^O01", pid("P1"), orc("NW", "O1"), obr("O1"))
    assert interface.send(*siu("S12", "S1", pid("P2", "ROE^BOB"), "O1^HIS")) == "AE"
    held = order_of(desk, "O1")
    assert held is not None and held.state == "accepted"
    assert interface.send(*siu("S12", "S1", pid("P1"), "O1^HIS")) == "AA"
    for trigger in ("S13", "S15", "S26"):
        assert interface.send(*siu(trigger, "S1", pid("P2", "ROE^BOB"))) == "AE"
    with desk.view() as view:
        found = view.first(APPOINTMENT, "placer", "S1^SCHED")
    assert found is not None and found[1].state == "booked"
    # Of whom was merged into him it is said too.
    interface.send("ADT^A40", pid("P2", "ROE^BOB"), "MRG|P1^^^HOSP^MR")
    assert interface.send(*siu("S15", "S1", pid("P2", "ROE^BOB"), at="")) == "AA"


def test_a_number_that_two_share_does_not_make_them_one(desk: Desk) -> None:
    """An insurance number of the mother's, with the messages of her child."""
    interface = Interface(desk)
    mother = "PID|1||P1^^^HOSP^MR~777^^^SSA^SS||DOE^ANN||19900101|F"
    child = "PID|1||P2^^^HOSP^MR~777^^^SSA^SS||DOE^BOY||20261122|M"
    assert interface.send("ADT^A04", mother) == "AA"
    assert interface.send("ADT^A01", child) == "AA"
    assert interface.send("ADT^A08", child, at="20261122130000") == "AA"
    assert (whose(desk, "P1").name, whose(desk, "P2").name) == ("DOE^ANN", "DOE^BOY")
    assert [one.value for one in whose(desk, "P2").identifiers] == ["P2"]
    # One who is known by that number alone is still the same person.
    assert interface.send("ADT^A31", "PID|1||777^^^SSA^SS||DOE^ANNA", at="20261122140000") == "AA"
    assert whose(desk, "P1").name == "DOE^ANNA"
    assert interface.send("ADT^A08", "PID|1||X9^^^OTHER^MR~777^^^SSA^SS||DOE^ANNA") == "AA"
    assert [one.value for one in whose(desk, "X9").identifiers] == ["P1", "X9", "777"]


def test_who_survives_a_merge_goes_by_the_number_that_survives(desk: Desk) -> None:
    interface = Interface(desk)
    interface.send("ADT^A04", "PID|1||P1^^^HOSP^MR~777^^^SSA^SS||DOE^ANN||19900101|F")
    survivor = "PID|1||P2^^^HOSP^MR~777^^^SSA^SS||DOE^ANN||19900101|F"
    assert interface.send("ADT^A40", survivor, "MRG|P1^^^HOSP^MR") == "AA"
    assert whose(desk, "P1").state == "merged"
    assert [one.value for one in whose(desk, "P2").identifiers] == ["P2"]


@pytest.mark.parametrize("number", ["9" * 65, "P\\E\\1", "P\\X07\\1"], ids=["long", "backslash", "control"])
def test_a_number_that_no_worklist_could_show_is_refused(desk: Desk, number: str) -> None:
    interface = Interface(desk)
    (answer,) = interface.raw(interface.message("ADT^A04", pid(number)))
    assert b"MSA|AE|" in answer and b"ERR||PID^1^3|102^" in answer
    # A second one that is longer is not shown.
    assert interface.send("ADT^A04", f"PID|1||P7^^^HOSP^MR~{'7' * 90}^^^CARD^XX||DOE^ANN") == "AA"


def test_another_fillers_number_is_not_ours(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    interface.send("ORM^O01", pid("P1"), orc("NW", "O1"), obr("O1"))
    first = order_of(desk, "O1")
    assert first is not None
    theirs = f"{first.accession}^LAB"
    second = ("ORC|NW|O2^HIS|" + theirs, f"OBR|1|O2^HIS|{theirs}|CTHEAD^CTHEAD^99H")
    assert interface.send("ORM^O01", pid("P1"), *second) == "AA"
    found = order_of(desk, "O2")
    assert found is not None and found.accession != first.accession


@pytest.mark.parametrize("control", ["CA", "XO"])
def test_orders_are_still_found_by_our_number(desk: Desk, control: str) -> None:
    desk.procedure()
    interface = Interface(desk)
    interface.send("ORM^O01", pid("P1"), orc("NW", "O1"), obr("O1"))
    ours = order_of(desk, "O1")
    assert ours is not None
    assert interface.send("ORM^O01", pid("P1"), f"ORC|{control}||{ours.accession}^HOUNSFIELD") == "AA"
