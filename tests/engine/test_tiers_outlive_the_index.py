"""An index that is lost, or older than the tiers are, comes back without what lies there, or with more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.test_checks_overlook_tiers import said
from engine.test_tiers_lose_what_they_move import Place, applied, rule
from hounsfield.archive.engine.engine import Engine, Stores
from hounsfield.archive.index import locations
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.far_packs import TierAwayError
from hounsfield.archive.index.rows import InstanceRow
from support.archives import stores_in
from support.contents import contents


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.limits = replace(place.limits, recall_when_opened=False)
    return place


async def filled(place: Place) -> None:
    """Series in both tiers, in cold and here, and only here; one object of the first is deleted."""
    place.rules = (rule("move", "cold", "second"),)
    async with place.open() as engine:
        await place.send(engine, 3)
        await place.send(engine, 1, pixels=bytes(range(256)) * 4096 * 2)
        await applied(engine)
        await place.send(engine, 2)
        await also_in_cold(engine)
        await place.send(engine, 2)
        await deleted(place, engine)


async def also_in_cold(engine: Engine) -> None:
    """What is in no pack comes into one, of which cold has a copy, too."""
    tiering = engine.tiering
    for task in list(tiering.planned(tiering.now())):
        for segment in tiering._gatherer.gather(task.series_key, quiet_before_ns=1 << 62).packs:
            tiering.copying.copy(segment, "cold")


async def deleted(place: Place, engine: Engine) -> None:
    """The first object that was sent is deleted."""
    sop, (_, result) = next(iter(place.sent.items()))
    target = Target(result.study_uid, result.series_uid, (sop,))
    await engine.delete(target, reason="test", actor="tester")
    del place.sent[sop]


def lose_index(place: Place) -> None:
    shutil.rmtree(place.root / "data" / "index")


async def check(place: Place) -> None:
    async with place.open() as engine:
        assert engine.stores is not None
        await place.require_all(engine)
        listed = {row.sop_uid for row in rows(engine.stores)}
        assert listed == set(place.sent)


def rows(stores: Stores) -> Iterator[InstanceRow]:
    for _, page in locations.walk(stores.store, stores.catalog):
        yield from (one.row for one in page if isinstance(one.row, InstanceRow))


@pytest.mark.parametrize("how", ["reindex", "start", "rescan"])
async def test_a_lost_index_is_made_from_what_the_tiers_list(place: Place, how: str) -> None:
    await filled(place)
    async with place.open() as engine:
        named = place.named(engine.stores)
        before = contents(engine.stores)
    assert {frozenset(tiers) for tiers in named.values()} >= {frozenset({"cold", "second"})}
    lose_index(place)
    if how != "start":
        with stores_in(place.root / "data", place.options) as stores:
            stores.reindex(lambda *_: None, rescan=how == "rescan", far=stores.far_packs())
    await check(place)
    with place.stores() as stores:
        assert place.named(stores) == named
        assert contents(stores) == before
    assert said(place) == {}


async def test_a_tier_that_is_away_or_unmarked_stops_it_unless_told(place: Place) -> None:
    await filled(place)
    lose_index(place)
    (place.root / "cold").rename(place.root / "gone")
    for _ in range(2):  # away, then an empty mount point
        with stores_in(place.root / "data", place.options) as stores:
            with pytest.raises(TierAwayError, match="--without-tier cold"):
                stores.reindex(lambda *_: None, far=stores.far_packs())
            with pytest.raises(TierAwayError):
                stores.catch_up(at_start=True)
        (place.root / "cold").mkdir(exist_ok=True)
    assert not list((place.root / "cold").iterdir())
    with stores_in(place.root / "data", place.options) as stores:
        stores.reindex(lambda *_: None, far=stores.far_packs(without=["cold"]))
    await check(place)  # what was in cold is in second, too, or here
