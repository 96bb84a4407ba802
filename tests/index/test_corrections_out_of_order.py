"""Corrections speak of what was shown when they were made: each is applied after those before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.corrections import (
    IDENTITY_BESIDES,
    ISSUER,
    PATIENT_ID,
    View,
    host_of,
    patient_key,
    study_key,
)
from hounsfield.archive.index.rows import CorrectionRow, InstanceRow, Location, ReceivedRow, StudyRow
from support.archives import stores_in

NAME, BIRTH, STUDY, SERIES, COMMENTS = 0x00100010, 0x00100030, 0x0020000D, 0x0020000E, 0x00104000
A, B, C = ("A", ""), ("B", ""), ("C", "")


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with stores_in(tmp_path / "data") as opened:
        yield opened


def row(number: int, kind: str, **what: Any) -> CorrectionRow:
    return CorrectionRow(number=number, kind=kind, at_ns=number, actor="t", reason="r", **what)


def view(stores: Stores, *rows: CorrectionRow) -> View:
    """A view of just these corrections."""
    keys: dict[bytes, tuple[CorrectionRow, ...]] = {}
    for one in rows:
        of_patient = one.kind in {"set-patient", "merge"}
        key = patient_key(stores.catalog, one.patient) if of_patient else study_key(stores.catalog, one.study)
        keys[key] = tuple(sorted((*keys.get(key, ()), one), key=lambda each: each.number))
    with stores.store.snapshot() as snapshot:
        made = View(stores.catalog, snapshot, keys)
        for name in "STUV":
            made.of_study(name)
        for patient in (A, B, C, ("A2", "")):
            made.of_patient(patient)
        return made


def move(number: int, old: str, new: str, **what: Any) -> CorrectionRow:
    return row(number, "move-series", study=old, to_study=new, series={"R": "R"}, **what)


def shown(made: View, **attributes: str) -> tuple[dict[int, str], list[int]]:
    tags = {"name": NAME, "birth": BIRTH, "id": PATIENT_ID, "issuer": ISSUER}
    chain = made.chain(("S", ()), {tags[key]: text for key, text in attributes.items()})
    return chain.attributes, [step.correction.number for step in chain.steps]


def test_a_move_takes_what_is_there_then_and_not_what_comes_there_by_a_later_one(stores: Stores) -> None:
    made = view(stores, move(1, "T", "U"), move(2, "S", "T"))
    assert made.route("T", "R", "I", 0) == ("U", "R", (1,))
    assert made.route("S", "R", "I", 0) == ("T", "R", (2,))
    made = view(stores, move(1, "S", "T"), move(2, "T", "U"))
    assert made.route("S", "R", "I", 0) == ("U", "R", (1, 2))


def test_there_and_back_ends(stores: Stores) -> None:
    made = view(stores, move(1, "S", "T"), move(2, "T", "S"), move(3, "S", "T"))
    assert made.route("S", "R", "I", 0) == ("T", "R", (1, 2, 3))
    assert made.route("T", "R", "I", 0) == ("T", "R", (2, 3))


def test_a_split_takes_only_what_it_names(stores: Stores) -> None:
    split = row(1, "split", study="S", to_study="T", series={"R": "N"}, instances=("I",))
    made = view(stores, split, row(2, "move-series", study="T", to_study="U", series={"N": "N"}))
    assert made.route("S", "R", "I", 0) == ("U", "N", (1, 2))
    assert made.route("S", "R", "J", 0) == ("S", "R", ())
    assert made.route("S", "Q", "I", 0) == ("S", "Q", ())


def test_a_patient_is_whoever_the_corrections_before_made_of_it(stores: Stores) -> None:
    rename = row(1, "set-patient", patient=A, values={PATIENT_ID: "A2"})
    late = row(2, "set-patient", patient=A, values={NAME: "never"})
    then = row(3, "set-patient", patient=("A2", ""), values={NAME: "Neu"})
    assert shown(view(stores, rename, late, then), id="A", name="Alt") == (
        {PATIENT_ID: "A2", NAME: "Neu"},
        [1, 3],
    )
    assert shown(view(stores, late, then), id="A", name="Alt") == ({PATIENT_ID: "A", NAME: "never"}, [2])


def test_merges_follow_one_another_and_sets_in_force_are_added(stores: Stores) -> None:
    set_b = row(1, "set-patient", patient=B, values={NAME: "Berg^Bob"})
    first = row(
        2, "merge", patient=A, to_patient=B, values={PATIENT_ID: "B", ISSUER: "", NAME: "Berg^Bo", BIRTH: ""}
    )
    second = row(3, "merge", patient=B, to_patient=C, values={PATIENT_ID: "C", ISSUER: "", NAME: "Cro^Cy"})
    got, numbers = shown(view(stores, set_b, first), id="A", name="Alt", birth="19700101", issuer="")
    assert (got, numbers) == ({PATIENT_ID: "B", NAME: "Berg^Bob", BIRTH: ""}, [2, 1])
    got, _ = shown(view(stores, first), id="A", name="Alt", birth="19700101", issuer="")
    assert got[NAME] == "Berg^Bo"  # the set was taken back: not in the merged studies either
    got, numbers = shown(view(stores, set_b, first, second), id="A", name="Alt")
    assert (got[PATIENT_ID], got[NAME], numbers) == ("C", "Cro^Cy", [2, 1, 3])


def test_a_study_with_objects_of_its_own_is_host_and_its_guests_are_delivered_as_it_is(
    stores: Stores,
) -> None:
    assert host_of("T", {("S", (1,)): {1: "s"}, ("T", ()): {1: "t"}}) == ("T", ())
    assert host_of("T", {("S", (4,)): {1: "s"}, ("T", (2, 3)): {1: "t"}}) == ("T", (2, 3))
    assert host_of("T", {("S", (4,)): {1: "s"}, ("T", ()): {}}) == ("S", (4,))  # only a further version
    made = view(stores, move(1, "S", "T"))
    study = StudyRow(
        uid="T", attributes={STUDY: "T", NAME: "Berg^Bo", PATIENT_ID: "B"}, series=2, instances=2,
        modalities=(), sop_classes=(), patient_key=b"", tokenizer=2, received_ns=0, changed_ns=0,
        received=(
            ReceivedRow("S", (1,), {NAME: "Alt", PATIENT_ID: "A", COMMENTS: "deaf"}),
            ReceivedRow("T", (), {NAME: "Berg^Bo", PATIENT_ID: "B"}),
        ),
        corrections=(1,),
    )  # fmt: skip
    location = Location(b"s" * 16, b"r" * 16, 0, 0, 0, 0, 0)
    guest = InstanceRow("I", "", "", location, 0, {}, 0, received=("S", "R"))
    (step,) = made.steps(study, "R", guest)
    assert (step.values[STUDY], step.values[SERIES], step.values[NAME]) == ("T", "R", "Berg^Bo")
    assert step.values[COMMENTS] is None
    assert step.values[BIRTH] == ""  # required, and not known of the host
    assert all(step.values[tag] is None for tag in IDENTITY_BESIDES)
    assert made.steps(study, "R", InstanceRow("J", "", "", location, 0, {}, 0)) == []
