"""What a rejection note means by a name: what comes there on its way, and nothing else, whatever was moved.

Series go to and fro between studies; the way back from a name must end, and regard the order of the moves.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.catalog import Place
from hounsfield.archive.index.corrections import View, study_key
from hounsfield.archive.index.rejected_names import moves_by_study, origins
from hounsfield.archive.index.rows import CorrectionRow
from support.archives import stores_in

STUDIES, SERIES, SOPS = "STUV", ("A", "B", "C"), ("1", "2")


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with stores_in(tmp_path / "data") as opened:
        yield opened


def move(number: int, old: str, new: str, instances: tuple[str, ...] = (), **series: str) -> CorrectionRow:
    return CorrectionRow(
        number=number, kind="split" if instances else "move-series", at_ns=number, actor="t", reason="r",
        study=old, to_study=new, series=series or {"A": "A"}, instances=instances,
    )  # fmt: skip


def found(stores: Stores, rows: list[CorrectionRow], place: Place) -> tuple[set[Place], set[Place]]:
    """The origins that are found, and those that there are."""
    keys: dict[bytes, tuple[CorrectionRow, ...]] = {study_key(stores.catalog, name): () for name in STUDIES}
    for row in rows:
        key = study_key(stores.catalog, row.study)
        keys[key] = (*keys[key], row)
    with stores.store.snapshot() as snapshot:
        view = View(stores.catalog, snapshot, keys)
        all_places = (Place(*one) for one in product(STUDIES, SERIES, SOPS))
        there = {one for one in all_places if one[2] == place[2] and place[:2] in view.way(*one)}
        return {*origins(view, moves_by_study(rows), place), place}, {*there, place}


def test_there_and_back_ends(stores: Stores) -> None:
    rows = [move(1, "S", "T"), move(2, "T", "S")]
    assert found(stores, rows, Place("S", "A", "1")) == ({Place("S", "A", "1"), Place("T", "A", "1")},) * 2
    assert found(stores, rows, Place("T", "A", "1")) == ({Place("S", "A", "1"), Place("T", "A", "1")},) * 2


def test_what_came_after_the_next_move_is_not_meant(stores: Stores) -> None:
    """S went on to T before R was put where S had been: R's objects are shown as S, and not as T."""
    rows = [move(1, "S", "T"), move(2, "U", "S")]
    assert found(stores, rows, Place("T", "A", "1"))[0] == {Place("T", "A", "1"), Place("S", "A", "1")}


def test_what_was_received_as_the_place_between_may_go_elsewhere(stores: Stores) -> None:
    """The objects of S itself left it before those of U came, which are the ones that went on to T."""
    rows = [move(1, "S", "V"), move(2, "U", "S"), move(3, "S", "T")]
    assert found(stores, rows, Place("T", "A", "1"))[0] == {Place("T", "A", "1"), Place("U", "A", "1")}


def test_to_and_fro_a_thousand_times_is_soon_told(stores: Stores) -> None:
    """Ways back are not followed one by one: there are 2 to the power of 500 of them."""
    rows = [move(number, "ST"[number % 2], "TS"[number % 2]) for number in range(1, 1200)]
    assert found(stores, rows, Place("S", "A", "1"))[0] == {Place("S", "A", "1"), Place("T", "A", "1")}


def test_any_moves(stores: Stores) -> None:
    for seed in range(150):
        source = random.Random(seed)
        rows = []
        for number in range(1, source.randint(2, 9)):
            old, new = source.sample(STUDIES, 2)
            series = {one: source.choice(SERIES) for one in source.sample(SERIES, source.randint(1, 2))}
            rows.append(move(number, old, new, source.choice(((), (), ("1",))), **series))
        for one in product(STUDIES, SERIES, SOPS):
            got, there = found(stores, rows, Place(*one))
            assert got == there, (seed, rows)
