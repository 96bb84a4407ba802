"""Danger: a clock that is put back, or one that is ahead, keeps what people say from being done."""

from __future__ import annotations

from pathlib import Path

import trio

from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin.hl7.mllp import framed
from hounsfield.ris_plugin.hl7.sending import Sender
from hounsfield.ris_plugin.orders import change_order, get
from hounsfield.ris_plugin.patients import merge, resolve, update, upsert
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.messages import MESSAGE, SENT, Message
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from hounsfield.ris_plugin.settings import Hl7Destination, RisSettings
from ris.conftest import CLERK, INTERFACE, NOON_NS, Desk
from ris.following import department

AHEAD_NS = NOON_NS + 300 * NS
"""What the hospital's clock says while ours says noon."""


def test_what_a_person_says_of_an_order_counts_though_the_senders_clock_is_ahead(desk: Desk) -> None:
    desk.procedure()
    order = desk.order(desk.patient())
    desk.do(change_order, INTERFACE, order, event_ns=AHEAD_NS, sender="HIS", reason="theirs")
    desk.do(change_order, CLERK, order, reason="ours")
    assert desk.look(get, order).reason == "ours"
    desk.do(change_order, INTERFACE, order, event_ns=AHEAD_NS, sender="HIS", reason="theirs")
    assert desk.look(get, order).reason == "ours"  # what was said before, and comes again
    desk.do(change_order, INTERFACE, order, event_ns=AHEAD_NS + NS, sender="HIS", reason="later")
    assert desk.look(get, order).reason == "later"


def test_what_a_person_says_of_a_patient_counts_though_the_senders_clock_is_ahead(desk: Desk) -> None:
    def say(event_ns: int, name: str) -> str:
        patient = Patient(identifiers=(Identifier(value="1", issuer="HOSP"),), name=name)
        return desk.do(upsert, INTERFACE, patient, sender="ZIS", event_ns=event_ns, says=("name",))

    who = say(AHEAD_NS, "THEIRS^NAME")
    desk.do(update, CLERK, who, name="OURS^NAME")
    say(AHEAD_NS, "THEIRS^NAME")
    assert desk.look(resolve, who)[1].name == "OURS^NAME"
    say(AHEAD_NS + NS, "LATER^NAME")
    assert desk.look(resolve, who)[1].name == "LATER^NAME"


def test_a_person_merges_otherwise_though_the_senders_clock_is_ahead(desk: Desk) -> None:
    one, wrong, right = (desk.patient(number=str(number)) for number in (1, 2, 3))
    desk.do(merge, INTERFACE, survivor=wrong, merged=one, sender="HIS", event_ns=AHEAD_NS)
    desk.do(merge, CLERK, survivor=right, merged=one, reason="seen at the desk")
    assert desk.look(resolve, one)[0] == right


async def test_a_message_that_waits_for_a_moment_hours_ahead_is_sent_now(tmp_path: Path) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        async for _ in stream:
            await stream.send_all(framed(b"MSH|^~\\&|||||||ACK|1|P|2.5.1\rMSA|AA|1\r"))

    (listener, *_) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    to = Hl7Destination(name="epr", host="127.0.0.1", port=port)
    async with department(tmp_path / "data", settings=RisSettings(hl7_destinations=(to,))) as made:

        def wait_for_hours(change: Change) -> None:
            one = Message(
                destination="epr", number=1, control_id="1", kind="ORM^O01", body=b"MSH|", attempts=1,
                next_ns=change.now_ns + 5 * 3600 * NS,
            )  # fmt: skip
            change.put(MESSAGE, change.new_id(), one)

        await made.commit(wait_for_hours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            nursery.start_soon(Sender(made.ris, to).run)
            with trio.fail_after(20):
                while not made.look(lambda view: view.ids(MESSAGE, SENT, "epr")):
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
