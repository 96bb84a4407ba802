"""Messages are done twice, answered before they are durable, forgotten, or taken though not for us."""

from __future__ import annotations

import base64
from typing import Any

import hl7
import pytest
import trio
import trio.testing
from msgspec import structs

from hounsfield.archive.plugins import EngineError
from hounsfield.ris_plugin.errors import NotNowError
from hounsfield.ris_plugin.hl7.desk import dismiss, letters, replay, try_file
from hounsfield.ris_plugin.hl7.keeping import settle_all, tidy
from hounsfield.ris_plugin.hl7.mllp import Framer, Limits, MllpError, TooLong, framed, serve
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.messages import LETTER, RECEIVED
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.patients import PATIENT
from hounsfield.ris_plugin.settings import Hl7Listener
from ris.conftest import Desk
from ris.counter import Counter
from ris.hl7_desk import Interface, obr, orc, pid

NAMES = ("DOE", "JANE", "P1", "19700101")


def count(desk: Desk, kind: Any) -> int:
    return desk.look(lambda view: len(list(view.every(kind))))


def error_of(answer: bytes) -> tuple[str, str, str]:
    """MSA-1, ERR-3 and ERR-2."""
    parsed = hl7.parse(answer.decode())
    err = parsed.segment("ERR")
    return str(parsed.segment("MSA")[1]), str(err[3]).split("^")[0], str(err[2])


def test_the_same_message_is_done_once_and_answered_in_the_same_bytes(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    message = interface.message("ORM^O01", pid(), orc("NW"), obr(), at="20261122120000")
    first = interface.raw(message)
    desk.now_ns += NS
    assert interface.raw(message) == first
    later = message.replace(b"|20261122120000|", b"|20261122120500|")  # sent again, with another MSH-7
    assert interface.raw(later) == first
    assert (count(desk, ORDER), count(desk, PATIENT), count(desk, RECEIVED)) == (1, 1, 1)


def test_another_message_under_a_used_id_is_refused_and_kept(desk: Desk) -> None:
    interface = Interface(desk)
    assert interface.send("ADT^A04", pid("P1"), control="7") == "AA"
    (answer,) = interface.raw(interface.message("ADT^A04", pid("P2"), control="7"))
    assert error_of(answer) == ("AR", "205", "MSH^1^10")
    assert count(desk, LETTER) == 1
    assert Interface(desk).send("ADT^A04", pid("P2"), control="7", sender="LAB") == "AA"
    lenient = Interface(desk, Hl7Listener(issuer="HOSP", reused_ids=True))
    assert lenient.send("ADT^A04", pid("P3"), control="7") == "AA"


def test_nothing_is_acknowledged_that_could_not_be_kept(desk: Desk) -> None:
    interface = Interface(desk)
    message = interface.message("ADT^A04", pid())
    interface.records.fails = EngineError("the disk is full")
    (answer,) = interface.raw(message)
    assert error_of(answer)[0] == "AR"
    enhanced = interface.message("ADT^A04", pid(), modes="AL|AL")
    assert [error_of(one)[0] for one in interface.raw(enhanced)] == ["CE"]
    interface.records.fails = None
    assert b"MSA|AA|" in interface.raw(message)[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ((b"ADT^A04", b"MDM^T02"), ("AR", "200", "MSH^1^9")),
        ((b"ADT^A04", b"ADT^A99"), ("AR", "201", "MSH^1^9")),
        ((b"|P|2.5.1", b"|T|2.5.1"), ("AR", "202", "MSH^1^11")),
        ((b"|P|2.5.1", b"|P|3.0"), ("AR", "203", "MSH^1^12")),
        ((b"|C1|", b"||"), ("AR", "101", "MSH^1^10")),
        ((b"P1^^^HOSP^MR", b""), ("AE", "101", "PID^1^3")),
        ((b"|19700101|", b"|19701301|"), ("AE", "102", "PID^1^7")),
        ((b"\rPID|", b"\rP|"), ("AE", "102", "")),
    ],
)
def test_what_is_wrong_is_said_by_code_and_place_and_names_nobody(
    desk: Desk, change: tuple[bytes, bytes], expected: tuple[str, str, str]
) -> None:
    interface = Interface(desk)
    message = interface.message("ADT^A04", pid()).replace(*change)
    (answer,) = interface.raw(message)
    assert error_of(answer) == expected
    assert not any(name.encode() in answer for name in NAMES)
    assert count(desk, LETTER) == (expected[0] == "AE")
    assert count(desk, PATIENT) == 0


def test_an_error_is_said_as_older_versions_do(desk: Desk) -> None:
    interface = Interface(desk)
    (answer,) = interface.raw(interface.message("ADT^A04", pid("")).replace(b"2.5.1", b"2.3.1"))
    assert b"\rERR|PID^1^3^101&Required field missing&HL70357\r" in answer
    assert b"|2.3.1" in answer


@pytest.mark.parametrize(
    ("modes", "good", "bad"),
    [
        ("|", ["AA"], ["AE"]),
        ("AL|NE", ["CA"], ["CA"]),
        ("AL|AL", ["CA", "AA"], ["CA", "AE"]),
        ("NE|AL", ["AA"], ["AE"]),
        ("ER|ER", [], ["AE"]),
        ("SU|SU", ["CA", "AA"], ["CA"]),
        ("NE|NE", [], []),
        ("Y|Y", ["CA", "AA"], ["CA", "AE"]),
    ],
)
def test_senders_are_acknowledged_as_they_ask(
    desk: Desk, modes: str, good: list[str], bad: list[str]
) -> None:
    interface = Interface(desk)

    def codes(number: str) -> list[str]:
        answers = interface.raw(interface.message("ADT^A04", pid(number), modes=modes))
        return [str(hl7.parse(one.decode()).segment("MSA")[1]) for one in answers]

    assert codes("P1") == good
    assert codes("") == bad


def test_who_is_refused_and_waits_for_an_answer_gets_one(desk: Desk) -> None:
    interface = Interface(desk)
    expected = {
        "|": ["AR"], "AL|AL": ["CR"], "AL|": ["CR"], "ER|ER": ["CR"], "|AL": ["AR"], "NE|AL": ["AR"],
        "NE|ER": ["AR"], "SU|AL": ["AR"], "NE|SU": [], "SU|SU": [], "NE|NE": [],
    }  # fmt: skip
    answered = {
        modes: [error_of(one)[0] for one in interface.raw(interface.message("MDM^T02", pid(), modes=modes))]
        for modes in expected
    }
    assert answered == expected


def test_answers_of_others_and_noise_get_no_answer_that_would_go_on_for_ever(desk: Desk) -> None:
    interface = Interface(desk)
    assert interface.raw(interface.message("ACK^A01", "MSA|AA|1")) == []
    (answer,) = interface.raw(b"GET / HTTP/1.1")
    assert b"MSA|AR||" in answer
    (answer,) = interface.raw(TooLong(interface.message("ADT^A04", pid())[:100]))
    assert b"MSA|AR|C2|messages have at most" in answer


async def test_a_letter_is_replayed_when_what_it_needs_is_there_or_closed_by_its_sender(desk: Desk) -> None:
    interface = Interface(desk)
    answer = interface.receiver.answer
    first = interface.message("ORM^O01", pid(), orc("NW", "O1"), obr("O1"))
    second = interface.message("ORM^O01", pid(), orc("NW", "O2"), obr("O2"))
    for message in (first, first, second):
        desk.now_ns += NS
        assert b"MSA|AE|" in await answer(message)
    listed = await letters(interface.ris)
    assert [(one["attempts"], one["kind"]) for one in listed] == [(2, "ORM^O01"), (1, "ORM^O01")]
    receivers = {"hl7": interface.receiver}
    (failed, _) = await replay(interface.ris, receivers)
    assert "catalog" in failed["error"]
    desk.procedure()
    assert b"MSA|AA|" in await answer(first)  # its sender sent it again
    (done,) = await replay(interface.ris, receivers, actor="admin")
    assert done["done"] == ["a patient is brought up to date", "an order is placed"]
    assert await letters(interface.ris) == []
    assert {one["by"] for one in await letters(interface.ris, "replayed")} == {"HIS^HOSP", "admin"}
    assert count(desk, ORDER) == 2
    with pytest.raises(NotNowError):
        await replay(interface.ris, receivers, listed[1]["letter"])


async def test_letters_are_replayed_and_dismissed_over_http_by_who_runs_the_system(desk: Desk) -> None:
    desk.settings = structs.replace(desk.settings, hl7_listeners=(Hl7Listener(issuer="HOSP"),))
    interface, counter = Interface(desk), Counter(desk)
    order = interface.message("ORM^O01", pid(), orc("NW"), obr())
    await interface.receiver.answer(order)
    await interface.receiver.answer(interface.message("ADT^A04", pid("")))
    first, second = (await counter.get("administrator", "/letters"))["items"]
    if first["kind"] != "ORM^O01":
        first, second = second, first
    of = f"/letters/{first['id']}/replay"
    await counter.post("clerk", of, status=403)
    wrong = await counter.post("administrator", of, status=422)  # the catalog has no such procedure
    assert "catalog" in wrong["detail"]
    desk.procedure()
    assert "an order is placed" in (await counter.post("administrator", of))["done"]
    await counter.post("administrator", of, status=409)
    await counter.post("administrator", f"/letters/{second['id']}/dismiss", status=204)
    assert (await counter.get("administrator", "/letters"))["items"] == []
    await counter.post("administrator", f"/letters/{'0' * 32}/replay", status=404)
    await counter.post("administrator", f"/messages/{'0' * 32}/send-again", status=404)


async def test_a_letter_that_is_dismissed_is_no_longer_open(desk: Desk) -> None:
    interface = Interface(desk)
    assert b"MSA|AE|" in await interface.receiver.answer(interface.message("ADT^A04", pid("")))
    (letter,) = await letters(interface.ris)
    await dismiss(interface.ris, letter["letter"], actor="admin")
    assert await letters(interface.ris) == []
    (shown,) = await letters(interface.ris, letter=letter["letter"])
    assert "PID|1||" in shown["text"]
    assert shown["by"] == "admin"


async def test_trying_a_file_changes_nothing_and_says_what_would_be_done(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    good = interface.message("ORM^O01", pid(), orc("NW"), obr(), orc("CA", "O9"))
    bad = interface.message("ORM^O01", pid(), orc("NW"), obr(code="NIX"))
    files = [good + bad, (good + bad).replace(b"\r", b"\r\n"), framed(good) + framed(bad)]
    for content in files:
        data = base64.b64encode(content).decode()
        one, other = await try_file({"hl7": interface.receiver}, data)
        assert one["done"] == [
            "a patient is registered", "an order is placed", "it waits for what it speaks of",
        ]  # fmt: skip
        assert one["events"] == ["ris.patient-changed", "ris.order-placed"]
        assert (one["answer"], other["answer"], other["place"]) == ("AA", "AE", "OBR-4")
    for kind in (PATIENT, ORDER, LETTER, RECEIVED):
        assert count(desk, kind) == 0


async def test_what_waits_is_applied_by_the_leader_when_the_worker_died_before(desk: Desk) -> None:
    desk.procedure()
    interface = Interface(desk)
    interface.receiver.settle = lambda keys: trio.lowlevel.checkpoint()  # type: ignore[method-assign, assignment]
    for message in (
        interface.message("ORM^O01", pid(), orc("CA")),
        interface.message("ORM^O01", pid(), orc("NW"), obr()),
    ):
        assert b"MSA|AA|" in await interface.receiver.answer(message)
    del interface.receiver.settle  # type: ignore[method-assign]
    states = lambda: [one.state for _, one in desk.look(lambda view: list(view.every(ORDER)))]  # noqa: E731
    assert states() == ["accepted"]
    await settle_all(interface.ris, {"hl7": interface.receiver})
    assert states() == ["cancelled"]
    assert count(desk, LETTER) == 0


def test_ids_are_forgotten_after_months_and_open_letters_are_not(desk: Desk) -> None:
    interface = Interface(desk)
    interface.send("ADT^A04", pid())
    interface.send("ADT^A04", pid(""))
    desk.now_ns += 91 * 24 * 3600 * NS
    assert desk.commit(lambda change: tidy(interface.ris, change)) is False
    assert (count(desk, RECEIVED), count(desk, LETTER)) == (0, 1)


# ---------------------------------------------------------------- connections


async def test_messages_of_a_connection_are_answered_one_by_one_and_silence_ends_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    limits = Limits(idle_s=100.0, message_s=10.0)
    asked: list[Any] = []

    async def answer(message: bytes | TooLong) -> bytes:
        asked.append(message)
        await trio.sleep(1)
        return framed(b"ACK")

    ended: list[str] = []

    async def run() -> None:
        ended.append(await serve(ours, answer, limits))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await theirs.send_all(framed(b"MSH|1") + b"\n\r\n" + framed(b"MSH|2"))
        framer = Framer(100)
        got: list[Any] = []
        while len(got) < 2:
            got += framer.feed(await theirs.receive_some())
        assert asked == [b"MSH|1", b"MSH|2"]
        await theirs.send_all(b"\x0bMSH|half")
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(10.0)
    assert ended == ["a message that had begun did not end in 10 s"]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"x" * 100_000, "what comes is no HL7 over MLLP"),
        (b"", "nothing came for 100 s"),
        (framed(b"MSH|taken") + framed(b"MSH|not taken"), "an answer was not taken in 5 s"),
    ],
    ids=["noise", "silence", "no reader"],
)
async def test_a_connection_that_we_end_is_ended_for_a_reason(
    autojump_clock: trio.testing.MockClock, sent: bytes, why: str
) -> None:
    theirs_out, ours_in = trio.testing.memory_stream_one_way_pair()
    ours_out, _theirs_in = trio.testing.lockstep_stream_one_way_pair()  # nobody reads

    async def answer(_: bytes | TooLong) -> bytes:
        return framed(b"ACK")

    if sent:
        await theirs_out.send_all(sent)
    limits = Limits(idle_s=100.0, send_s=5.0)
    assert await serve(trio.StapledStream(ours_out, ours_in), answer, limits) == why


async def test_who_sends_too_much_is_told_and_what_comes_after_it_is_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    asked: list[bytes | TooLong] = []

    async def answer(message: bytes | TooLong) -> bytes:
        asked.append(message)
        return framed(b"NO" if isinstance(message, TooLong) else b"YES")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, ours, answer, Limits(message_bytes_max=10_000, message_s=60.0))
        await theirs.send_all(b"\x0bMSH|" + b"x" * 20_000)
        assert await theirs.receive_some() == framed(b"NO")
        for _ in range(100):
            await theirs.send_all(b"y" * 10_000)
        await theirs.send_all(b"\x1c\r" + framed(b"MSH|next"))
        assert await theirs.receive_some() == framed(b"YES")
        assert asked[1:] == [b"MSH|next"]
        await theirs.send_all(b"\x0bMSH|" + b"x" * 20_000)  # and no end
        assert await theirs.receive_some() == framed(b"NO")
    assert trio.current_time() == pytest.approx(60.0)
    with pytest.raises(MllpError):
        list(Framer(1 << 20).feed(b"x" * 100_000))
