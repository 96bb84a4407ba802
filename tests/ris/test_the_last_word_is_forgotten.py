"""Of what several say of one field the last event is not what counts."""

from __future__ import annotations

import itertools

from hounsfield.ris_plugin.moments import NEVER, last_word, newest
from hounsfield.ris_plugin.orders import change_order, get
from hounsfield.ris_plugin.patients import resolve, upsert
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from ris.conftest import INTERFACE, NOON_NS, Desk


def test_any_order_of_what_was_said_ends_in_the_same_words() -> None:
    words = [
        ({"name": "A", "sex": "F"}, (1, "HIS")),
        ({"name": "B"}, (2, "HIS")),
        ({"name": "C", "phone": "1"}, (2, "LAB")),
        ({"sex": "M"}, (0, "LAB")),
    ]
    ends = set()
    for order in itertools.permutations(words):
        record: dict[str, str] = {}
        said = ()
        for fields, at in order:
            taken, said = newest(said, fields, at)
            record |= taken
        ends.add((tuple(sorted(record.items())), said))
    assert [end[0] for end in ends] == [(("name", "C"), ("phone", "1"), ("sex", "F"))]
    assert last_word(said, "name") == (2, "LAB")
    assert last_word(said, "address") == NEVER


def test_a_message_that_leaves_a_field_out_does_not_take_an_older_one_from_the_patient(desk: Desk) -> None:
    def say(event_ns: int, says: tuple[str, ...], **fields: object) -> str:
        patient = Patient(identifiers=(Identifier(value="1", issuer="HOSP"),), **fields)
        return desk.do(upsert, INTERFACE, patient, sender="HIS", event_ns=event_ns, says=says)

    say(20, ("name",), name="NEW^NAME")
    who = say(10, ("name", "weight_kg"), name="OLD^NAME", weight_kg=70.0)
    patient = desk.look(resolve, who)[1]
    assert (patient.name, patient.weight_kg, patient.as_of_ns) == ("NEW^NAME", 70.0, 20)
    say(30, ("weight_kg",))  # said to be removed
    assert desk.look(resolve, who)[1].weight_kg == 0.0


def test_a_late_change_of_an_order_still_tells_what_the_newer_one_left_out(desk: Desk) -> None:
    desk.procedure()
    order = desk.order(desk.patient())
    desk.do(change_order, INTERFACE, order, event_ns=NOON_NS + 2 * NS, sender="HIS", reason="newer")
    desk.do(
        change_order, INTERFACE, order, event_ns=NOON_NS + NS, sender="HIS", reason="older", transport="CART"
    )
    found = desk.look(get, order)
    assert (found.reason, found.transport, found.as_of_ns) == ("newer", "CART", NOON_NS + 2 * NS)
