"""Messages of several senders, late and out of order, end in other records than the same messages in time."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.plugins import View
from hounsfield.ris_plugin.records.catalog import PROCEDURE
from hounsfield.ris_plugin.records.messages import LETTER
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.patients import PATIENT
from hounsfield.ris_plugin.records.schedule import APPOINTMENT
from ris.conftest import Desk
from ris.hl7_desk import Interface, obr, orc, pid

RUNS = itertools.count()


class Said(NamedTuple):
    """One message: ``what`` of ``whom`` with a ``word``, by ``sender`` as of ``at``."""

    sender: str
    at: int
    what: str
    whom: str
    word: str


ORDERS = {"O1": "P1", "O2": "P2", "O3": "P1", "O4": "P3"}
_of_patient = st.tuples(st.just("A08"), st.sampled_from(["P1", "P2", "P3"]))
_of_merges = st.tuples(st.sampled_from(["A40", "A47"]), st.sampled_from(["P2>P1", "P3>P1", "P3>P2"]))
_of_orders = st.tuples(
    st.sampled_from(["NW", "NW", "XO", "CA", "HD", "RL"]), st.sampled_from(["O1", "O2", "O3"])
)
_of_both = st.tuples(st.just("RP"), st.just("O1"))
_of_times = st.tuples(st.sampled_from(["NW", "XO", "S12", "S13", "S15", "S26"]), st.just("O4"))
_saying = st.one_of(_of_patient, _of_merges, _of_orders, _of_orders, _of_both, _of_times)


@st.composite
def _spoken(draw: st.DrawFn) -> list[list[Said]]:
    """What each sender says, in its order; its clock does not go back."""
    senders = []
    for sender in ("HIS", "LAB", "WARD"):
        said, at = [], 0
        for what, whom in draw(st.lists(_saying, min_size=1, max_size=5)):
            at += draw(st.integers(0, 2))
            said.append(Said(sender, at, what, whom, draw(st.sampled_from(["", "x", "y"]))))
        senders.append(said)
    return senders


def _interleaved(senders: list[list[Said]], choices: list[int]) -> list[Said]:
    left = [list(one) for one in senders]
    found = []
    for choice in itertools.cycle(choices):
        rest = [one for one in left if one]
        if not rest:
            return found
        found.append(rest[choice % len(rest)].pop(0))
    raise AssertionError


def _tell(interface: Interface, one: Said, run: str) -> str:
    control = f"{interface.sent}{run}"
    how: dict[str, Any] = {"sender": one.sender, "at": f"202611221200{one.at:02}", "control": control}

    def who(number: str, name: str = "") -> str:
        return pid(f"{number}-{run}", name, birth="19700101" if one.word == "x" else "", sex="")

    if one.what == "A08":
        return interface.send("ADT^A08", who(one.whom, f"{one.word or 'Z'}^{one.sender}"), **how)
    if one.what in {"A40", "A47"}:
        merged, survivor = one.whom.split(">")
        return interface.send(f"ADT^{one.what}", who(survivor), f"MRG|{merged}-{run}^^^HOSP", **how)
    patient = who(ORDERS[one.whom])
    number = f"{one.whom}-{run}"
    if one.what.startswith("S"):
        sch = f"SCH|A-{run}^SCHED|||||{one.word}|||||^^^2026120110{one.at:02}" + "|" * 15 + f"{number}^HIS"
        return interface.send(f"SIU^{one.what}", sch, patient, **how)
    group = [orc(one.what, number, why=one.word), obr(number, reason=one.word, info=one.word and one.sender)]
    if one.what == "RP":
        group += [orc("RO", f"O3-{run}"), obr(f"O3-{run}")]
    elif one.what in {"CA", "HD", "RL"}:
        group.pop()
    return interface.send("ORM^O01", patient, *group, **how)


def _records(view: View, run: str) -> list[Any]:
    """What there is of a run, without what is given at random or by the clock on the wall."""
    numbers = {key: one.identifiers[0].value for key, one in view.every(PATIENT)}
    placers = {key: one.placer_number for key, one in view.every(ORDER)}
    found: list[Any] = []
    for _, patient in view.every(PATIENT):
        if patient.identifiers[0].value.endswith(run):
            found.append(structs.replace(patient, merged_into=numbers.get(patient.merged_into, "")))
    for _, order in view.every(ORDER):
        if order.placer_number.endswith(run):
            same = structs.replace(
                order, patient=numbers[order.patient], accession="", study_uid="", requested_procedure_id="",
                placed_ns=0, changed_ns=0, source="",
                replaced_by=placers.get(order.replaced_by, ""), replaces=placers.get(order.replaces, ""),
            )  # fmt: skip
            found.append(same)
    for _, one in view.every(APPOINTMENT):
        if one.placer_number.partition("^")[0].endswith(run):
            found.append((one.state, one.from_ns if one.state == "booked" else 0))
    found += [
        (one.state, one.kind, one.sender, one.awaits)
        for _, one in view.every(LETTER)
        if f"-{run}^".encode() in one.body
    ]
    return sorted(str(one).replace(run, "RUN") for one in found)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    senders=_spoken(),
    first=st.lists(st.integers(0, 2), min_size=1),
    second=st.lists(st.integers(0, 2), min_size=1),
)
def test_any_interleaving_that_keeps_each_senders_order_ends_in_the_same_records(
    shared_stores: Stores, senders: list[list[Said]], first: list[int], second: list[int]
) -> None:
    desk = Desk(shared_stores)
    with desk.view() as view:
        offered = view.first(PROCEDURE, "value", "CTHEAD") is not None
    if not offered:
        desk.procedure()
    ends = []
    for choices in (first, second):
        run = f"R{next(RUNS)}R"
        interface = Interface(desk)
        for one in _interleaved(senders, choices):
            assert _tell(interface, one, run) == "AA"
        ends.append(desk.look(_records, run))
    assert ends[0] == ends[1]
