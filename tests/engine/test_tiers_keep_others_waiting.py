"""What cannot be done now, or needs not be done any more, is in the way of what can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from engine.test_tiers_lose_what_they_move import LIMITS, NEVER, Place, applied, rule
from hounsfield.archive.engine import tier_returns
from hounsfield.archive.engine.types import Outcome
from hounsfield.archive.index import locations
from support.archives import ct_slice, store


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, limits=replace(LIMITS, recall_when_opened=False))


async def test_what_cannot_be_brought_back_does_not_hold_up_what_can(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tier_returns, "RECALLS_AT_ONCE", 2)
    place.rules = (
        rule("move", "cold", match={"PatientID": "P-1"}),
        rule("move", "second", match={"PatientID": "P-2"}, name="s"),
    )
    async with place.open() as engine:
        for patient in ("P-1", "P-1", "P-1", "P-2"):
            await place.send(engine, 1, patient_id=patient)
        await applied(engine)
    (place.root / "cold").rename(place.root / "gone")
    place.limits = replace(place.limits, plan_s=NEVER)
    place.rules = ()
    async with place.open() as engine:
        for _, result in place.sent.values():
            assert await engine.tiering.recall(result.study_uid) == 1
        await engine.tiering.leading.run(engine.tiering.step)
        assert engine.tiering.figures.recalled_series == 1
        failures = engine.tiering.figures.failures
        await engine.tiering.leading.run(engine.tiering.step)
        assert engine.tiering.figures.failures == failures  # not again and again
        (place.root / "gone").rename(place.root / "cold")
        monkeypatch.setattr(tier_returns, "RECALL_AGAIN_S", 0.0)
        engine.tiering._returns.put_off.clear()
        await engine.tiering.leading.run(engine.tiering.step)
        assert engine.tiering.figures.recalled_series == 4


async def test_another_version_of_an_object_follows_it(place: Place) -> None:
    async with place.open() as engine:
        await place.send(engine, 2)
        await applied(engine)
        (_, first), *_ = place.sent.values()
        uids = {"study_uid": first.study_uid, "series_uid": first.series_uid}
        other = ct_slice(**uids, sop_uid=first.sop_instance_uid)
        assert (await store(engine, other, ExplicitVRLittleEndian)).outcome is Outcome.CONFLICT
        await applied(engine)
        named = place.named(engine.stores)
        for _, rows in locations.walk(engine.stores.store, engine.stores.catalog):
            assert all(named[one.location.segment.hex()] == {"cold"} for one in rows if one.location)


async def test_what_is_no_segment_is_left_alone(place: Place) -> None:
    place.limits = replace(place.limits, sweep_s=0.0)
    async with place.open() as engine:
        await place.send(engine, 1)
        for folder in ("data/segments", "cold/packs", "cold/packs/ab", "cold/keys/segment"):
            (place.root / folder).mkdir(parents=True, exist_ok=True)
            (place.root / folder / "notes").write_text("somebody's")
        await applied(engine)
        await applied(engine)
        assert engine.tiering.figures.series == 1
    assert len(list(place.root.rglob("notes"))) == 4


async def test_the_lower_mark_ends_what_the_upper_one_began(place: Place) -> None:
    """Each series is a tenth of the disk."""
    place.rules = (rule(fill_above=0.8, fill_until=0.6),)
    async with place.open() as engine:
        for _ in range(9):
            await place.send(engine, 1)
        figures = engine.tiering.figures
        engine.tiering.hot_fill = lambda *_: 0.9 - 0.1 * figures.series  # type: ignore[method-assign]
        await applied(engine)
        assert figures.series == 3
        await applied(engine)
        assert figures.series == 3


async def test_what_compaction_is_about_to_free_counts_as_free(place: Place) -> None:
    """A series leaves its old place when that is compacted; until then its bytes are there twice or once."""
    place.rules = (rule(fill_above=0.8, fill_until=0.6),)
    async with place.open() as engine:
        for _ in range(9):
            await place.send(engine, 1, pixels=bytes(1 << 17))
        size = sum(map(engine.stores.log.size, engine.stores.log.segment_ids()))
        engine.tiering.hot_fill = lambda free=0: 0.9 * (1 - free / size)  # type: ignore[method-assign]
        await applied(engine)
        assert engine.tiering.figures.series in {3, 4}
