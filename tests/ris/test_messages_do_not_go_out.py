"""Messages to others are left out, go out under two names or out of order, or all stop for a wrong one."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hl7
import pytest
import trio
from msgspec import structs

from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.hl7 import placers
from hounsfield.ris_plugin.hl7.desk import queue, send_again
from hounsfield.ris_plugin.hl7.keeping import tidy
from hounsfield.ris_plugin.hl7.mllp import Framer, framed
from hounsfield.ris_plugin.hl7.sending import REFUSALS_MAX, Sender
from hounsfield.ris_plugin.hl7.telling import consumer
from hounsfield.ris_plugin.patients import register
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import Code
from hounsfield.ris_plugin.records.catalog import PERSON, PROCEDURE, Person, Procedure
from hounsfield.ris_plugin.records.messages import CURSOR, MESSAGE, Message
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from hounsfield.ris_plugin.records.reports import Section
from hounsfield.ris_plugin.schedule import scheduling
from hounsfield.ris_plugin.settings import Hl7Destination, RisSettings
from ris.conftest import CLERK, INTERFACE, RADIOLOGIST, REFERRER
from ris.following import Department, department
from support.pki import Authority


def said(message: hl7.Message, name: str, number: int) -> str:
    """A field of the first segment of a name, as it stands there."""
    return str(message.segment(name)[number])


@dataclass
class Other:
    """A receiver: what it was sent, and what it answers; None closes the connection instead."""

    replies: list[str | None] = field(default_factory=list)
    got: list[hl7.Message] = field(default_factory=list)
    port: int = 0
    strays: bool = False
    words: list[bytes] = field(default_factory=list)
    """What it answers instead, below MSH."""

    async def serve(self, stream: trio.abc.Stream) -> None:
        framer = Framer(1 << 20)
        with suppress(trio.BrokenResourceError):  # a stranger
            while data := await stream.receive_some():
                for one in framer.feed(data):
                    assert isinstance(one, bytes)
                    message = hl7.parse(one.decode())
                    self.got.append(message)
                    head = "MSH|^~\\&|O||H||20261122||ACK|1|P|2.5.1\r"
                    if self.words:
                        for each in self.words:
                            text = each.replace(b"{id}", said(message, "MSH", 10).encode())
                            await stream.send_all(framed(head.encode() + text) if text else b"")
                        continue
                    code = self.replies.pop(0) if self.replies else "AA"
                    if code is None:
                        await trio.aclose_forcefully(stream)
                        return
                    answer = framed(f"{head}MSA|{code}|{said(message, 'MSH', 10)}|so\r".encode())
                    stray = framed(f"{head}MSA|AA|another\r".encode()) if self.strays else b""
                    await stream.send_all(stray + answer)

    @property
    def ids(self) -> list[str]:
        return [said(one, "MSH", 10) for one in self.got]


@asynccontextmanager
async def told(
    directory: Path, *replies: str | None, context: ssl.SSLContext | None = None, **words: Any
) -> AsyncIterator[tuple[Department, Other]]:
    """A department that tells a receiver."""
    other = Other(list(replies))
    async with trio.open_nursery() as nursery:
        (listener, *_) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        other.port = listener.socket.getsockname()[1]
        shown: Any = (
            listener if context is None else trio.SSLListener(listener, context, https_compatible=True)
        )
        nursery.start_soon(trio.serve_listeners, other.serve, [shown])
        to = Hl7Destination(name="epr", host="127.0.0.1", port=other.port, application="EPR", **words)
        settings = RisSettings(hl7_destinations=(to,), hl7_retry_seconds=0.001, facility="RAD")
        async with department(directory, settings=settings) as made:
            yield made, other
        nursery.cancel_scope.cancel()


async def sent(made: Department, until: Callable[[], bool]) -> None:
    """Make messages of what happened and send them until it is so."""
    await made.catch_up(consumer(made.ris))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Sender(made.ris, made.ris.settings.hl7_destinations[0]).run)
        with trio.fail_after(20):
            while not until():
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()


async def an_order(made: Department, **fields: Any) -> str:
    def plan(change: Any) -> str:
        if change.first(PROCEDURE, "value", "CTHEAD") is None:
            code = Code(value="CTHEAD", scheme="99H", meaning="CT of the head")
            change.put(PROCEDURE, change.new_id(), Procedure(code=code, modality="CT", needs_protocol=False))
            change.put(PERSON, change.new_id(), Person(code="radiologist", name="READ^ERIN"))
        number = f"P{change.count('test patients')}"
        patient = Patient(identifiers=(Identifier(value=number, issuer="HOSP"),), name="Döe^Jane|X", sex="F")
        who = register(change, CLERK, patient)
        new = orders.NewOrder(patient=who, procedure="CTHEAD", placer_issuer="HIS", **fields)
        return orders.place(change, REFERRER, made.ris.settings, new)

    return await made.commit(plan)


def waiting(made: Department, state: str = "waiting") -> list[Message]:
    return [one for _, one in made.look(lambda view: list(view.find(MESSAGE, state, "epr")))]


async def test_what_happens_is_told_once_and_in_order_in_words_that_others_know(tmp_path: Path) -> None:
    async with told(tmp_path / "a") as (made, other):
        order = await an_order(made, placer_number="O1", reason="cough")
        at = (2_000_000_000 * 10**9, "HIS")
        await made.do(placers.hold, INTERFACE, order, at=at, why="no bed")
        await made.do(placers.release, INTERFACE, order, at=(at[0] + 1, "HIS"))
        booked = await made.do(
            scheduling.book, CLERK, made.ris.zone, orders=[order], from_ns=1_795_348_800 * 10**9
        )
        await made.do(scheduling.act, CLERK, booked, "cancel", why="broken")
        await made.do(orders.act, INTERFACE, order, "cancel", why="not now")
        await sent(made, lambda: len(other.got) >= 8)
        await sent(made, lambda: True)  # nothing more comes of it
    kinds = [said(one, "MSH", 9) for one in other.got]
    assert kinds == [
        "ORM^O01^ORM_O01", "ORM^O01^ORM_O01", "ORM^O01^ORM_O01", "ORM^O01^ORM_O01",
        "SIU^S12^SIU_S12", "SIU^S15^SIU_S12", "ORM^O01^ORM_O01", "ORM^O01^ORM_O01",
    ]  # fmt: skip
    controls = [
        (said(one, "ORC", 1), said(one, "ORC", 5)) for one in other.got if "ORM" in said(one, "MSH", 9)
    ]
    assert controls == [("OK", "IP"), ("OH", "HD"), ("OE", "IP"), ("SC", "SC"), ("SC", "IP"), ("OC", "CA")]
    first, booking = other.got[0], other.got[4]
    assert said(first, "PID", 3) == "P1^^^HOSP^MR"
    assert said(first, "PID", 5) == "Döe^Jane\\F\\X^^^^^L"
    assert said(first, "ORC", 2) == "O1^HIS"
    assert said(first, "OBR", 31) == "^cough"
    assert said(first, "MSH", 18) == "UNICODE UTF-8"
    assert said(booking, "SCH", 25) == "Booked"
    assert said(booking, "AIS", 4) == "20261122120000+0000"
    assert len(set(other.ids)) == len(other.ids)


async def test_a_report_goes_out_as_preliminary_final_and_corrected(tmp_path: Path) -> None:
    async with told(tmp_path / "a", sends=("ORU",)) as (made, other):
        order = await an_order(made)
        report = await made.do(reporting.ready, RADIOLOGIST, [order])
        settings = made.ris.settings
        await made.do(reporting.assign, RADIOLOGIST, settings, report)
        text = [Section(name="findings", text="Line one\nA|B & C"), Section(name="impression", text="None.")]
        await made.do(reporting.draft, RADIOLOGIST, settings, report, text)
        await made.do(reporting.put_forward, RADIOLOGIST, report)
        await made.do(reporting.assign, RADIOLOGIST, settings, report)
        await made.do(reporting.sign, RADIOLOGIST, report, priors=[])
        better = [Section(name="impression", text="Some.")]
        await made.do(reporting.correct, RADIOLOGIST, report, better, reason="overlooked")
        added = [Section(name="findings", text="Compared.")]
        await made.do(reporting.addend, RADIOLOGIST, report, added)
        await sent(made, lambda: len(other.got) == 4)
    assert [said(one, "OBR", 25) for one in other.got] == ["P", "F", "C", "C"]
    found = [[(str(obx[3]), str(obx[5]), str(obx[11])) for obx in one.segments("OBX")] for one in other.got]
    assert found[1][0] == ("59776-5^Procedure findings^LN", "Line one\\.br\\A\\F\\B \\T\\ C", "F")
    assert found[2][0] == ("19005-8^Radiology impression^LN", "Some.", "C")
    # An addendum takes the place of what was sent before, and so has it.
    assert found[3][:2] == [found[2][0], ("55107-7^Addendum^LN", "Findings: Compared.", "C")]
    assert found[0][-1][0] == "113014^DICOM Study^DCM"
    assert found[0][-1][1] == str(other.got[0].segments("OBX")[-1][5])
    assert said(other.got[1], "OBR", 32) == "radiologist&READ&ERIN"


async def test_who_cannot_be_asked_now_is_asked_again_under_the_same_id_before_anything_else(
    tmp_path: Path,
) -> None:
    async with told(tmp_path / "a", None, "AR", "CE", None) as (made, other):
        await an_order(made, placer_number="O1")
        await an_order(made, placer_number="O2")
        await sent(made, lambda: len(waiting(made, "sent")) == 2)
    assert [said(one, "ORC", 2) for one in other.got[-2:]] == ["O1^HIS", "O2^HIS"]
    assert len(set(other.ids)) == 2
    assert other.ids == [other.ids[0]] * (len(other.ids) - 1) + [other.ids[-1]]


async def test_what_a_receiver_calls_wrong_does_not_hold_up_the_rest_and_can_be_sent_again(
    tmp_path: Path,
) -> None:
    async with told(tmp_path / "a", "AE", "AA", *["AR"] * REFUSALS_MAX) as (made, other):
        for number in ("O1", "O2", "O3", "O4"):
            await an_order(made, placer_number=number)
        await sent(made, lambda: len(waiting(made, "dead")) == 2 and len(waiting(made, "sent")) == 2)
        listed = await queue(made.ris)
        assert [(one["state"], one["number"], one["error"]) for one in listed] == [
            ("dead", 1, "AE so"), ("dead", 3, "AR so"),
        ]  # fmt: skip
        assert any(event.kind == "ris.hl7-dead" for event in await made.events())
        await send_again(made.ris, listed[0]["message"])
        await sent(made, lambda: len(waiting(made, "sent")) == 3)
        assert other.ids[-1] == other.ids[0]


async def test_answers_to_something_else_are_passed_over(tmp_path: Path) -> None:
    async with told(tmp_path / "a") as (made, other):
        other.strays = True
        await an_order(made, placer_number="O1")
        await an_order(made, placer_number="O2")
        await sent(made, lambda: len(waiting(made, "sent")) == 2)
        assert len(other.got) == 2


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([b""], "does not answer in time"),
        ([b"MSA|AA|\r"], "another message in MSA-2, or none"),
        ([b"MSA|AA|another\r", b"MSA|AA|\r"], "another message in MSA-2, or none"),
        ([b"ERR|^^^207\r"], "another message in MSA-2, or none"),
        ([b"MSA|AR|{id}\rERR||MSH^1^9|207^Come again^HL70357|E\r"], "AR Come again"),
        ([b"MSA|ZZ|{id}\r"], "ZZ"),
    ],
)
async def test_what_is_no_acknowledgement_of_a_message_takes_it_for_nothing_and_says_so(
    tmp_path: Path, answers: list[bytes], why: str
) -> None:
    async with told(tmp_path / "a", answer_seconds=0.2) as (made, other):
        other.words = answers
        await an_order(made, placer_number="O1")
        await sent(made, lambda: why in waiting(made)[0].error)
        other.words = [b"MSA|AA|{id}\r"]
        await sent(made, lambda: bool(waiting(made, "sent")))
    assert len(set(other.ids)) == 1


async def test_a_connection_that_ends_within_an_answer_or_has_more_after_it_is_made_anew(
    tmp_path: Path,
) -> None:
    async with told(tmp_path / "a", answer_seconds=0.2) as (made, other):
        other.words = [b"MSA|AA|{id}\r\x1c\rnoise\x0bMSH|half\x1c\r\x0bno end"]
        for number in ("O1", "O2"):
            await an_order(made, placer_number=number)
        await sent(made, lambda: len(waiting(made, "sent")) == 2)
        other.words = [b"MSA|A\x1c"]
        await an_order(made, placer_number="O3")
        await sent(made, lambda: bool(waiting(made)[0].error))
        other.words = []
        await sent(made, lambda: len(waiting(made, "sent")) == 3)


async def test_an_event_that_is_told_again_makes_no_second_message(tmp_path: Path) -> None:
    async with told(tmp_path / "a") as (made, other):
        await an_order(made)
        await sent(made, lambda: len(other.got) == 1)

        def forget(change: Any) -> None:
            for record_id, one in list(change.find(CURSOR, "name", "hl7")):
                change.put(CURSOR, record_id, structs.replace(one, cursor=""))

        await made.commit(forget)
        await made.catch_up(consumer(made.ris))
        assert waiting(made) == []
        assert len(waiting(made, "sent")) == 1


async def test_what_was_sent_long_ago_is_forgotten_and_what_waits_is_not(tmp_path: Path) -> None:
    async with told(tmp_path / "a") as (made, _other):
        settings = structs.replace(made.ris.settings, hl7_keep_days=1)
        ris = structs_replace(made.ris, settings=settings)

        def put(change: Any) -> None:
            for number, (state, moment) in enumerate(
                [("sent", 1), ("sent", change.now_ns), ("waiting", 0)], 1
            ):
                one = Message(
                    destination="epr", number=number, control_id=str(number), kind="ORM^O01", body=b"x",
                    state=state, sent_ns=moment,
                )  # fmt: skip
                change.put(MESSAGE, change.new_id(), one)

        await made.commit(put)
        await made.commit(lambda change: tidy(ris, change))
        assert [one.number for one in waiting(made, "sent")] == [2]
        assert [one.number for one in waiting(made)] == [3]


@pytest.mark.parametrize("known", [True, False], ids=["the right one", "a stranger"])
async def test_tls_is_spoken_with_whom_the_authority_knows_and_shows_our_certificate(
    tmp_path: Path, known: bool
) -> None:
    authority = Authority(tmp_path / "pki")
    theirs, ours = authority.sign("EPR"), authority.sign("RIS")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.pem))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(theirs.pem, theirs.key)
    words = {
        "tls": True,
        "tls_ca": str(authority.pem if known else Authority(tmp_path / "other").pem),
        "tls_certificate": str(ours.pem),
        "tls_key": str(ours.key),
    }
    async with told(tmp_path / "a", context=context, **words) as (made, other):
        await an_order(made)
        await sent(made, lambda: bool(waiting(made, "sent") if known else waiting(made)[0].error))
        assert len(other.got) == known
        if not known:
            assert waiting(made)[0].error.startswith("TLS: ")


def structs_replace(ris: Any, **fields: Any) -> Any:
    """Another RIS on the same archive."""
    return type(ris)(ris.archive, fields["settings"])
