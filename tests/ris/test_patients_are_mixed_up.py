"""One patient is taken for another, merged into himself, or is not what he was when a merge is taken back."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from hounsfield.archive.engine.stores import Stores
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError, NotNowError, RisError, UnknownError
from hounsfield.ris_plugin.patients import (
    by_identifier,
    change_identifier,
    family,
    merge,
    of_patient,
    register,
    register_provisional,
    resolve,
    search,
    unmerge,
    update,
    upsert,
)
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.patients import PATIENT, Identifier, Patient
from ris.conftest import CLERK, INTERFACE, REFERRER, Desk


def said(number: str, name: str, **fields: Any) -> Patient:
    return Patient(identifiers=(Identifier(value=number, issuer="HOSP"),), name=name, **fields)


def names(desk: Desk, **wanted: Any) -> list[str]:
    return [patient.name for _, patient in desk.look(search, **wanted)]


def test_the_same_number_of_two_issuers_is_two_patients(desk: Desk) -> None:
    first = desk.patient("4711", "DOE^JANE")
    other = Patient(identifiers=(Identifier(value="4711", issuer="OTHER"),), name="ROE^RICHARD")
    second = desk.do(register, CLERK, other)
    assert first != second
    assert desk.look(by_identifier, "4711", "OTHER")[0] == second
    with pytest.raises(NotNowError, match="registered already"):
        desk.do(register, CLERK, said("4711", "ELSE^SOMEBODY"))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"name": "doe"}, ["DOE^JANE", "Döe^John"]),
        ({"name": "j do"}, ["DOE^JANE", "Döe^John"]),
        ({"name": "doe, jane"}, ["DOE^JANE"]),
        ({"name": "DOE", "birth_day": "19800101"}, ["Döe^John"]),
        ({"name": "やまだ"}, ["Yamada^Tarou=山田^太郎=やまだ^たろう"]),
        ({"name": "wolfeschlegelsteinhausen"}, ["Wolfeschlegelsteinhausenberger^Hubert"]),
        ({"name": "wolfeschlegelsteinhausenx"}, []),
        ({"number": "P2"}, ["Döe^John"]),
        ({"number": "P"}, []),
    ],
)
def test_search_finds_who_is_meant_and_nobody_else(
    desk: Desk, wanted: dict[str, str], found: list[str]
) -> None:
    desk.patient("P1", "DOE^JANE")
    desk.patient("P2", "Döe^John", birth_day="19800101", sex="M")
    desk.patient("P3", "Yamada^Tarou=山田^太郎=やまだ^たろう")
    desk.patient("P4", "Wolfeschlegelsteinhausenberger^Hubert")
    assert names(desk, **wanted) == found
    with pytest.raises(InvalidError):
        desk.look(search)


def test_what_an_older_event_says_does_not_undo_a_newer_one(desk: Desk) -> None:
    patient = desk.do(upsert, INTERFACE, said("1", "NEW^NAME"), sender="HIS", event_ns=20)
    desk.do(upsert, INTERFACE, said("1", "OLD^NAME"), sender="HIS", event_ns=10)
    assert desk.look(resolve, patient)[1].name == "NEW^NAME"
    assert names(desk, name="old") == []


def test_a_renumbered_patient_is_found_by_the_new_number_only(desk: Desk) -> None:
    patient = desk.patient("1")
    old, new = Identifier(value="1", issuer="HOSP"), Identifier(value="2", issuer="HOSP")
    desk.do(change_identifier, INTERFACE, patient, old=old, new=new)
    desk.do(change_identifier, INTERFACE, patient, old=old, new=new)  # said twice
    assert desk.look(by_identifier, "1", "HOSP") is None
    assert desk.look(by_identifier, "2", "HOSP")[0] == patient
    desk.patient("3")
    with pytest.raises(NotNowError, match="merge"):
        desk.do(change_identifier, INTERFACE, patient, old=new, new=Identifier(value="3", issuer="HOSP"))


def test_merges_never_close_a_ring_and_lead_to_the_last_survivor(desk: Desk) -> None:
    one, two, three = (desk.patient(number, f"N{number}^X") for number in "123")
    with pytest.raises(NotNowError, match="into itself"):
        desk.do(merge, CLERK, survivor=one, merged=one)
    desk.do(merge, CLERK, survivor=two, merged=one)
    first = desk.do(merge, CLERK, survivor=three, merged=two)
    for ring in (one, two):
        with pytest.raises(NotNowError, match="into itself"):
            desk.do(merge, CLERK, survivor=ring, merged=three)
    assert {desk.look(resolve, each)[0] for each in (one, two, three)} == {three}
    assert desk.look(by_identifier, "1", "HOSP")[0] == three
    assert desk.look(search, number="1")[0][0] == three
    assert names(desk, name="n1") == []
    desk.do(unmerge, CLERK, first, "a mistake")
    assert desk.look(resolve, one)[0] == two
    with pytest.raises(NotNowError, match="already"):
        desk.do(unmerge, CLERK, first)
    with pytest.raises(NotNowError, match="merged into another"):
        desk.do(update, CLERK, one, name="ELSE^X")
    with pytest.raises(UnknownError):
        desk.do(merge, CLERK, survivor=one, merged="00" * 16)
    with pytest.raises(ForbiddenError):
        desk.do(merge, REFERRER, survivor=one, merged=three)


def test_orders_follow_a_merge_and_come_back_with_those_that_came_meanwhile(desk: Desk) -> None:
    desk.procedure()
    one, two = desk.patient("1"), desk.patient("2")
    before = desk.order(one)
    made = desk.do(merge, CLERK, survivor=two, merged=one)
    meanwhile = desk.order(one)  # a sender that has not heard of it
    of_two = desk.order(two)
    owned = [each for each, _ in desk.look(of_patient, ORDER, one)]
    assert sorted(owned) == sorted([before, meanwhile, of_two])
    desk.do(unmerge, CLERK, made)
    assert {each for each, _ in desk.look(of_patient, ORDER, one)} == {before, meanwhile}
    assert {each for each, _ in desk.look(of_patient, ORDER, two)} == {of_two}


def test_an_unknown_emergency_becomes_who_it_is(desk: Desk) -> None:
    desk.procedure()
    somebody = desk.do(register_provisional, CLERK, issuer="HOSP", sex="M")
    order = desk.order(somebody)
    jane = desk.patient("1")
    desk.do(merge, CLERK, survivor=jane, merged=somebody, reason="identified")
    assert [each for each, _ in desk.look(of_patient, ORDER, jane)] == [order]


# ---------------------------------------------------------------- any order of several senders' messages

Said = tuple[str, int, str, str]  # what, when, of whom, and into whom or which name
NUMBERS = ("1", "2", "3")


@st.composite
def stories(draw: st.DrawFn) -> dict[str, list[Said]]:
    """What each of three senders says, its own events in their order."""
    story: dict[str, list[Said]] = {}
    for sender in ("ADT", "LAB", "PAS"):
        said: list[Said] = []
        moment = 0
        for _ in range(draw(st.integers(0, 3))):
            moment += draw(st.integers(0, 2))
            what = draw(st.sampled_from(("update", "update", "merge")))
            whom = draw(st.sampled_from(NUMBERS))
            other = (
                draw(st.sampled_from([n for n in NUMBERS if n != whom])) if what == "merge" else f"N{moment}"
            )
            said.append((what, moment, whom, other))
        story[sender] = said
    return story


def interleavings(story: dict[str, list[Said]], most: int) -> list[list[tuple[str, Said]]]:
    labels = [sender for sender, said in story.items() for _ in said]
    orders = dict.fromkeys(itertools.islice(itertools.permutations(labels), 5000))
    found = []
    for labels_in_order in itertools.islice(orders, 0, None, max(1, len(orders) // most)):
        left = {sender: iter(said) for sender, said in story.items()}
        found.append([(sender, next(left[sender])) for sender in labels_in_order])
    return found


@given(stories())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_interleaving_ends_in_the_same_patients(
    shared_stores: Stores, story: dict[str, list[Said]]
) -> None:
    desk = Desk(shared_stores)
    ends = []
    for number, messages in enumerate(interleavings(story, 6)):
        issuer = f"H{id(story)}-{number}"

        def patient(value: str, name: str, issuer: str = issuer) -> Patient:
            return Patient(identifiers=(Identifier(value=value, issuer=issuer),), name=name)

        ids = {n: desk.do(upsert, INTERFACE, patient(n, ""), sender="", event_ns=-1) for n in NUMBERS}
        for sender, (what, moment, whom, other) in messages:
            if what == "update":
                desk.do(upsert, INTERFACE, patient(whom, f"{other}^{sender}"), sender=sender, event_ns=moment)
            else:
                with suppress(RisError):  # a ring: see below
                    desk.do(
                        merge,
                        INTERFACE,
                        survivor=ids[other],
                        merged=ids[whom],
                        sender=sender,
                        event_ns=moment + 1,
                    )
        by_id = {record: n for n, record in ids.items()}
        with desk.view() as view:
            end = {}
            for n, record in ids.items():
                held = view.get(PATIENT, record)
                assert held is not None
                held = structs.replace(held, identifiers=(), merged_into=by_id.get(held.merged_into, ""))
                end[n] = (held, sorted(by_id[one] for one in family(view, resolve(view, record)[0])))
        ends.append(end)
    merges = [said for of in story.values() for said in of if said[0] == "merge"]
    if len({whom for _, _, whom, _ in merges} & {other for _, _, _, other in merges}) == 0:
        # Merges that could close a ring are refused or not by which came first: somebody has to look.
        assert all(end == ends[0] for end in ends)
