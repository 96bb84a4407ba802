"""What goes out is HL7 to ourselves alone: hl7apy, which knows the standard's structures, reads it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message

from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.hl7 import placers
from hounsfield.ris_plugin.hl7.telling import consumer
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.messages import MESSAGE
from hounsfield.ris_plugin.records.reports import Section
from hounsfield.ris_plugin.schedule import scheduling
from hounsfield.ris_plugin.settings import Hl7Destination, RisSettings
from ris.conftest import CLERK, INTERFACE, NOON_NS, RADIOLOGIST, Desk
from ris.following import Department, department
from ris.hl7_desk import Interface, pid
from ris.test_messages_do_not_go_out import an_order


def read(body: bytes) -> Any:
    """A message, or what the standard says against it."""
    message = parse_message(body.decode(), validation_level=VALIDATION_LEVEL.STRICT, find_groups=True)
    assert message.validate()
    return message


async def a_day(made: Department) -> None:
    """An order is held and released, booked and moved; it is read, and what was written changes."""
    order = await an_order(
        made, placer_number="O1", reason="cough|x", priority="STAT", requester="JUNG^ADA",
        requester_code="A1", clinical_information="two\nlines ^ & ~ \\ ü", group_number="G1",
        wanted_ns=NOON_NS,
    )  # fmt: skip
    later = 2_000_000_000 * NS
    await made.do(placers.hold, INTERFACE, order, at=(later, "HIS"), why="no bed")
    await made.do(placers.release, INTERFACE, order, at=(later + 1, "HIS"))
    booked = await made.do(scheduling.book, CLERK, made.ris.zone, orders=[order], from_ns=NOON_NS)
    await made.do(scheduling.move, CLERK, made.ris.zone, booked, from_ns=NOON_NS + 3600 * NS)
    await made.do(orders.change_order, INTERFACE, order, priority="ROUTINE")
    await made.do(scheduling.act, CLERK, booked, "cancel", why="the scanner is broken")
    report = await made.do(reporting.ready, RADIOLOGIST, [order])
    settings = made.ris.settings
    text = [
        Section(name="findings", text="Line one\nA|B & C ^ ~ \\ ü"),
        Section(name="impression", text="None"),
    ]
    await made.do(reporting.assign, RADIOLOGIST, settings, report)
    await made.do(reporting.draft, RADIOLOGIST, settings, report, text)
    await made.do(reporting.put_forward, RADIOLOGIST, report)
    await made.do(reporting.assign, RADIOLOGIST, settings, report)
    await made.do(reporting.sign, RADIOLOGIST, report, priors=[])
    better = [Section(name="impression", text="Some.")]
    await made.do(reporting.correct, RADIOLOGIST, report, better, reason="overlooked")
    await made.do(reporting.addend, RADIOLOGIST, report, [Section(name="findings", text="Compared.")])
    await made.do(orders.act, INTERFACE, order, "cancel", why="not now")


async def test_what_becomes_of_orders_appointments_and_reports(tmp_path: Path) -> None:
    to = Hl7Destination(name="epr", host="127.0.0.1", port=1, application="EPR", sends=("ORU", "OMG", "SIU"))
    async with department(
        tmp_path / "a", settings=RisSettings(hl7_destinations=(to,), facility="RAD")
    ) as made:
        await a_day(made)
        await made.catch_up(consumer(made.ris))
        held = made.look(lambda view: [one.body for _, one in view.find(MESSAGE, "waiting", "epr")])
    told = [read(body) for body in held]
    kinds = [one.msh.msh_9.to_er7() for one in told]
    assert kinds == [
        *["OMG^O19^OMG_O19"] * 4, "SIU^S12^SIU_S12", "SIU^S13^SIU_S12", "OMG^O19^OMG_O19",
        "SIU^S15^SIU_S12", "OMG^O19^OMG_O19", *["ORU^R01^ORU_R01"] * 4, "OMG^O19^OMG_O19",
    ]  # fmt: skip

    def commons(one: Any) -> Iterator[tuple[str, str]]:
        for order in one.omg_o19_order:
            yield order.orc.orc_1.value, order.orc.orc_5.value

    status = [pair for one in told if "OMG" in one.msh.msh_9.to_er7() for pair in commons(one)]
    assert status == [
        ("OK", "IP"), ("OH", "HD"), ("OE", "IP"), ("SC", "SC"), ("XX", "SC"), ("SC", "IP"), ("OC", "CA"),
    ]  # fmt: skip

    first = told[0]
    assert first.omg_o19_patient.pid.pid_3.cx_1.value == "P1"
    assert first.omg_o19_patient.pid.pid_3.cx_4.to_er7() == "HOSP"
    order = first.omg_o19_order
    assert (order.orc.orc_2.ei_1.value, order.orc.orc_2.ei_2.value) == ("O1", "HIS")
    assert order.orc.orc_4.ei_1.value == "G1"
    assert order.obr.obr_18.value == order.obr.obr_3.ei_1.value

    reports = [one for one in told if "ORU" in one.msh.msh_9.to_er7()]
    observed = [one.oru_r01_patient_result.oru_r01_order_observation for one in reports]
    assert [one.obr.obr_25.value for one in observed] == ["P", "F", "C", "C"]
    assert [one.orc.orc_5.value for one in observed] == ["IP", "CM", "CM", "CM"]
    for one in observed:
        results = [each.obx for each in one.oru_r01_observation]
        assert [each.obx_1.value for each in results] == [str(at) for at in range(1, len(results) + 1)]
        assert {each.obx_11.value for each in results} == {one.obr.obr_25.value}
        assert results[-1].obx_3.ce_1.value == "113014"
        assert one.obr.obr_2.ei_1.value == "O1"
    text = observed[1].oru_r01_observation[0].obx
    assert (text.obx_2.value, text.obx_3.ce_1.value) == ("FT", "59776-5")
    shown = text.obx_5.to_er7().replace("\\E\\.br\\E\\", "\\.br\\")  # which it knows no line end of
    assert shown == "Line one\\.br\\A\\F\\B \\T\\ C \\S\\ \\R\\ \\E\\ ü"
    assert observed[1].obr.obr_32.to_er7() == "radiologist&READ&ERIN"


def test_acknowledgements_of_every_version(desk: Desk) -> None:
    interface = Interface(desk)
    for version, modes in product(("2.3.1", "2.4", "2.5.1", "2.6", "2.7"), ("|", "AL|AL")):
        for number in ("P1", ""):
            message = interface.message("ADT^A04", pid(number), modes=modes)
            answers = interface.raw(message.replace(b"|2.5.1|", f"|{version}|".encode()))
            assert len(answers) == (1 if modes == "|" else 2)
            for one in answers:
                answer = read(one)
                assert answer.msa.msa_2.value == f"C{interface.sent}"
                assert answer.version == version
