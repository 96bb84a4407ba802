"""An order is done although it must not be, twice under one number, or by whom it is not to do."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from hounsfield.archive.plugins import TakenError
from hounsfield.ris_plugin import orders, states
from hounsfield.ris_plugin.actors import ROLES, Actor
from hounsfield.ris_plugin.api.figures import figures
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError, NotNowError, RisError, UnknownError
from hounsfield.ris_plugin.orders import (
    MACHINE,
    NewOrder,
    accept,
    act,
    answer,
    change_order,
    images_began,
    images_ended,
    open_questions,
    place,
    replace,
)
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import PERSON, Person
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.schedule import scheduling
from hounsfield.ris_plugin.settings import RisSettings
from ris.conftest import CLERK, INTERFACE, MODALITY, RADIOLOGIST, REFERRER, TECHNOLOGIST, TRAINEE, Desk, actor
from ris.counter import Counter


def held(desk: Desk, order: str) -> Order:
    return desk.look(orders.get, order)


def test_every_order_has_a_number_and_a_study_of_its_own(desk: Desk) -> None:
    desk.procedure()
    patient = desk.patient()
    made = [held(desk, desk.order(patient)) for _ in range(3)]
    assert [one.accession for one in made] == ["2026000001", "2026000002", "2026000003"]
    assert len({one.study_uid for one in made}) == 3
    given = held(desk, desk.order(patient, accession="2026000004", study_uid="1.2.3"))
    assert (given.accession, given.study_uid) == ("2026000004", "1.2.3")
    assert held(desk, desk.order(patient)).accession == "2026000005"
    for again in ({"accession": "2026000004"}, {"study_uid": "1.2.3"}):
        with pytest.raises(TakenError):
            desk.order(patient, **again)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"procedure": "NONE"}, InvalidError),
        ({"priority": "SOON"}, InvalidError),
        ({"accession": "x" * 17}, InvalidError),
        ({"accession": "a\\b"}, InvalidError),
        ({"patient": "00" * 16}, UnknownError),
        ({"procedure": "SIDED"}, InvalidError),
    ],
)
def test_an_order_that_cannot_be_is_not_placed(
    desk: Desk, fields: dict[str, str], error: type[RisError]
) -> None:
    desk.procedure()
    desk.procedure("SIDED", laterality=True)
    asked = NewOrder(**{"patient": desk.patient(), "procedure": "CTHEAD", **fields})
    with pytest.raises(error):
        desk.do(place, REFERRER, desk.settings, asked)
    with desk.view() as view:
        assert list(view.every(ORDER)) == []


def test_a_procedure_that_needs_a_protocol_is_accepted_with_one_by_a_radiologist(desk: Desk) -> None:
    desk.procedure(needs_protocol=True)
    order = desk.order(desk.patient())
    with pytest.raises(NotNowError):
        desk.do(act, CLERK, order, "schedule")
    with pytest.raises(InvalidError, match="protocol"):
        desk.do(accept, RADIOLOGIST, order)
    for nobody in (CLERK, REFERRER, TECHNOLOGIST):
        with pytest.raises(ForbiddenError):
            desk.do(accept, nobody, order, text="native")
    desk.do(accept, TRAINEE, order, text="native")
    protocol = held(desk, order).protocol
    assert protocol is not None
    assert (protocol.text, protocol.by) == ("native", "trainee")


def test_a_delegate_protocols_only_for_a_radiologist_who_named_him(desk: Desk) -> None:
    desk.procedure(needs_protocol=True)
    order = desk.order(desk.patient())

    def people(change: object, *chief_roles: str) -> None:
        for person in (
            Person(code="clerk", roles=("clerk",), deputises_for=("chief",)),
            Person(code="chief", roles=chief_roles),
        ):
            known = change.first(PERSON, "code", person.code)  # type: ignore[attr-defined]
            change.put(PERSON, known[0] if known else change.new_id(), person)  # type: ignore[attr-defined]

    desk.commit(lambda change: people(change, "technologist"))
    with pytest.raises(ForbiddenError):
        desk.do(accept, CLERK, order, text="native")
    desk.commit(lambda change: people(change, "radiologist"))
    desk.do(accept, CLERK, order, text="native")
    assert held(desk, order).state == "accepted"


def test_safety_questions_stay_open_until_answered_and_only_a_radiologist_lifts_a_ban(desk: Desk) -> None:
    desk.procedure(questions=("pregnancy", "implants"))
    order = desk.order(desk.patient())
    assert open_questions(held(desk, order)) == ["pregnancy", "implants"]
    desk.do(answer, CLERK, order, "pregnancy", "no")
    desk.do(answer, CLERK, order, "implants", "pacemaker", blocks=True)
    assert open_questions(held(desk, order)) == ["implants"]
    with pytest.raises(ForbiddenError):
        desk.do(answer, CLERK, order, "implants", "none")
    desk.do(answer, RADIOLOGIST, order, "implants", "pacemaker, approved for 1.5 T")
    assert open_questions(held(desk, order)) == []
    with pytest.raises(UnknownError):
        desk.do(answer, CLERK, order, "contrast-allergy", "no")


def test_a_placer_cancels_only_before_the_start(desk: Desk) -> None:
    desk.procedure()
    patient = desk.patient()
    early, late = desk.order(patient), desk.order(patient)
    with pytest.raises(InvalidError, match="why"):
        desk.do(act, REFERRER, early, "cancel")
    desk.do(act, REFERRER, early, "cancel", why="recovered")
    desk.do(images_began, MODALITY, late)
    with pytest.raises(NotNowError):
        desk.do(act, REFERRER, late, "cancel", why="recovered")
    desk.do(images_ended, MODALITY, late, completed=True)
    assert held(desk, late).state == "completed"


def test_images_of_a_cancelled_order_are_not_lost(desk: Desk) -> None:
    desk.procedure()
    order = desk.order(desk.patient())
    desk.do(act, REFERRER, order, "cancel", why="recovered")
    desk.do(images_began, MODALITY, order)
    assert held(desk, order).state == "in-progress"
    assert desk.said()[-1].body["although"] == "cancelled"


def test_a_discontinued_order_can_be_scheduled_again(desk: Desk) -> None:
    desk.procedure()
    order = desk.order(desk.patient())
    desk.do(images_began, MODALITY, order)
    desk.do(images_ended, MODALITY, order, completed=False)
    assert desk.do(act, CLERK, order, "schedule").state == "scheduled"


def test_a_replaced_order_leads_to_the_new_one(desk: Desk) -> None:
    desk.procedure()
    patient = desk.patient()
    old = desk.order(patient)
    new = desk.do(replace, REFERRER, desk.settings, old, NewOrder(patient=patient, procedure="CTHEAD"))
    assert (held(desk, old).state, held(desk, old).replaced_by) == ("replaced", new)
    assert held(desk, new).replaces == old
    with pytest.raises(NotNowError):
        desk.do(act, REFERRER, old, "cancel", why="x")


def test_what_an_older_event_says_of_an_order_does_not_undo_a_newer_one(desk: Desk) -> None:
    desk.procedure()
    order = desk.order(desk.patient())
    now = desk.now_ns
    desk.do(change_order, INTERFACE, order, event_ns=now + 20, sender="HIS", reason="newer")
    desk.do(change_order, INTERFACE, order, event_ns=now + 10, sender="HIS", reason="older")
    assert held(desk, order).reason == "newer"
    with pytest.raises(InvalidError):
        desk.do(change_order, INTERFACE, order, accession="1")


@pytest.mark.parametrize("role", sorted(ROLES))
def test_the_table_is_what_each_role_may_do_and_nothing_else(desk: Desk, role: str) -> None:
    desk.procedure()
    patient = desk.patient()
    who: Actor = actor(role)
    for state in MACHINE.states:
        for action in dict.fromkeys(row.action for row in MACHINE.table):
            order = desk.order(patient)
            desk.commit(
                lambda change, order=order, state=state: change.put(
                    ORDER, order, _in(change.get(ORDER, order), state)
                )
            )
            row = next((r for r in MACHINE.table if r.action == action and state in r.before), None)
            if row is not None and role in row.roles:
                after = desk.do(act, who, order, action, why="because").state
                assert after == (state if row.after == states.SAME else row.after)
            else:
                with pytest.raises(ForbiddenError if row is not None else NotNowError):
                    desk.do(act, who, order, action, why="because")
                assert held(desk, order).state == state


def _in(order: Order | None, state: str) -> Order:
    from msgspec import structs

    assert order is not None
    return structs.replace(order, state=state)


def test_accession_formats_that_are_too_long_are_refused(desk: Desk) -> None:
    desk.procedure()
    settings = RisSettings(accession_format="{year}-{number:014}")
    with pytest.raises(InvalidError):
        desk.do(place, REFERRER, settings, NewOrder(patient=desk.patient(), procedure="CTHEAD"))


def test_the_pictures_in_the_documents_are_the_tables(root_directory: Path) -> None:
    """docs/ris-states.md has a diagram for each machine; `python -m ris.pictures` writes it."""
    from ris.pictures import document

    assert (root_directory / "docs" / "ris-states.md").read_text(encoding="utf-8") == document()


async def test_an_order_without_a_time_is_not_overlooked(desk: Desk) -> None:
    counter = Counter(desk)
    desk.procedure()
    desk.procedure("CTPE", needs_protocol=True)
    patient, day = desk.patient(), 86_400 * NS
    routine, urgent = desk.order(patient), desk.order(patient, "CTPE", priority="STAT")
    far = desk.order(patient, wanted_ns=desk.now_ns + 30 * day)
    waits, held, booked = (desk.order(patient) for _ in range(3))
    desk.do(scheduling.propose, CLERK, orders=[waits])
    desk.do(act, CLERK, held, "hold", why="ask")
    desk.do(scheduling.book, CLERK, ZoneInfo("UTC"), orders=[booked], from_ns=desk.now_ns)

    async def late() -> list[str]:
        return [one["id"] for one in (await counter.get("clerk", "/late-orders"))["items"]]

    assert await late() == []
    desk.now_ns += 3601 * NS
    assert await late() == [urgent]
    desk.now_ns += 2 * day
    assert await late() == [urgent, *sorted((routine, held))]
    assert {one.name: one.samples[0].value for one in figures(counter.ris)}["hounsfield_ris_orders_late"] == 3
    desk.now_ns += 30 * day
    assert (await late())[-1] == far
    desk.do(act, CLERK, urgent, "cancel", why="went home")
    assert urgent not in await late()
