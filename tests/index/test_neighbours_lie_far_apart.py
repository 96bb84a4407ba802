"""What a device sends one after the other must not touch a page of the index each, anywhere in gigabytes."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.tables import PLACE_KEY_BYTES
from support.archives import stores_in

SLICES = 300
RANDOM = random.Random(7)

#: As devices number the slices of a series: a counter below its UID, a counter below the device's own UID.
NUMBERINGS = {
    "below the series": [f"1.2.840.113619.2.55.3.2831868886.151.{n}" for n in range(1, SLICES + 1)],
    "below the device": [f"1.3.12.2.1107.5.1.4.50025.{3 * 10**28 + 123 + n}" for n in range(SLICES)],
}  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with stores_in(Path(tmp_path_factory.mktemp("places")) / "data") as opened:
        yield opened


def strangers() -> list[str]:
    """UIDs of ten thousand other objects, of many devices."""
    families = [f"1.2.826.0.1.3680043.{RANDOM.randrange(10_000)}.{n}" for n in range(1000)]
    return [f"{RANDOM.choice(families)}.{RANDOM.randrange(10**9)}" for _ in range(9000)] + [
        f"2.25.{uuid.UUID(int=RANDOM.getrandbits(128)).int}" for _ in range(1000)
    ]


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_a_series_lies_side_by_side(stores: Stores, numbering: str) -> None:
    """Between its first and its last key there is hardly anybody else's."""
    key = stores.catalog.place_key
    own = sorted(key("instance", uid) for uid in NUMBERINGS[numbering])
    others = [key("instance", uid) for uid in strangers()]
    between = [one for one in others if own[0] < one < own[-1]]
    assert len(between) < 10  # of ten thousand, nearly all of whom lie between two hashes


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_a_hundred_in_a_row_are_neighbours_among_those_of_their_device(
    stores: Stores, numbering: str
) -> None:
    """Also where a device has given a hundred thousand UIDs its next slices touch few places among them."""
    uids = NUMBERINGS[numbering]
    family = uids[0].rpartition(".")[0]
    others = {f"{family}.{RANDOM.randrange(10**9, 10**10)}" for _ in range(100_000)}
    keys = sorted((stores.catalog.place_key("instance", uid), uid in set(uids)) for uid in {*others, *uids})
    stretches = sum(1 for (_, one), (_, other) in pairwise(keys) if other and not one)
    assert stretches <= SLICES // 10  # three when no runs met; keys at random would make 300


def test_uids_keep_keys_of_their_own(stores: Stores) -> None:
    uids = [
        *{*strangers()},
        *(uid for each in NUMBERINGS.values() for uid in each),
        "1",
        "2",
        "12",
        "1.2",
        "123",
    ]
    keys = {stores.catalog.place_key(level, uid) for level in ("series", "instance") for uid in uids}
    assert len(keys) == 2 * len(uids)
    assert {len(key) for key in keys} == {PLACE_KEY_BYTES}
