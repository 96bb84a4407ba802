"""What a correction filed in another series lies on in the old one's pack: planned for ever, never brought
back, and what was deleted beside it never erased."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from engine.test_tiers_lose_what_they_move import LIMITS, NEVER, NOW, Place, applied, rule, tidied
from hounsfield.archive.engine.correction_requests import Request
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.demand import Pin, pin

OTHER = "2.25.777"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """In which nothing is done before a test has it done."""
    limits = replace(LIMITS, check_s=NEVER, recall_when_opened=False, remove_after_s=0.0, erase_s=0.0)
    return Place(tmp_path, limits=limits)


async def split(place: Place, engine: Engine, *, all_of_it: bool = False) -> list[str]:
    """A series of four is packed and goes to the cold tier; then half of it is filed in another study."""
    await place.send(engine)
    await applied(engine)
    sops = list(place.sent)[: 4 if all_of_it else 2]
    (_, one), *_ = place.sent.values()
    asked = Request(
        kind="split", actor="tester", reason="other patient", study=one.study_uid,
        instances=tuple(sops), to_study=OTHER,
    )  # fmt: skip
    await engine.correcting.make(asked)
    return sops


async def require_frames(place: Place, engine: Engine) -> None:
    """The frame of every object is what was sent, wherever it is filed now."""
    seen = set()
    studies = {OTHER, *(result.study_uid for _, result in place.sent.values())}
    for study in studies:
        found: list[Instance] = []
        with suppress(NotFoundError):
            found = await engine.instances(study)
        for one in found:
            frame = await engine.frame(one.study_uid, one.series_uid, one.row.sop_uid, 1)
            data, _ = place.sent[one.row.sop_uid]
            assert bytes(frame.data) in data
            seen.add(one.row.sop_uid)
    assert seen == set(place.sent)


async def test_a_plan_that_was_carried_out_is_empty(place: Place) -> None:
    async with place.open() as engine:
        await split(place, engine)
    place.rules = (rule(compress="zstd", match={"not": {"StudyInstanceUID": OTHER}}),)
    async with place.open() as engine:
        await applied(engine)
        assert engine.tiering.figures.gathered_objects == 2  # what is left of it
        await applied(engine)
        assert not list(engine.tiering.planned(engine.tiering.now()))
        assert engine.tiering.figures.gathered_objects == 2
        await require_frames(place, engine)


async def test_what_is_deleted_beside_it_is_erased(place: Place) -> None:
    async with place.open() as engine:
        await split(place, engine)
        (segment,) = place.named(engine.stores)
    place.rules = ()
    async with place.open() as engine:
        sop = list(place.sent)[3]
        _, result = place.sent.pop(sop)
        target = Target(result.study_uid, result.series_uid, (sop,))
        await engine.delete(target, reason="test", actor="tester")
        await tidied(engine)
        await tidied(engine)
        assert segment not in place.named(engine.stores)
        assert segment not in place.packs("cold")
        assert segment not in engine.stores.keyring.key_ids("segment")
        assert len(place.named(engine.stores)) == 2  # one of each series
        await require_frames(place, engine)


@pytest.mark.parametrize("all_of_it", [True, False])
async def test_it_is_brought_back(place: Place, all_of_it: bool) -> None:
    async with place.open() as engine:
        await split(place, engine, all_of_it=all_of_it)
        series = {one.series_uid for one in await engine.instances(OTHER)}
        assert len(series) == 1
        key = engine.stores.catalog.series_key(OTHER, *series)
        assert engine.tiering._returns.ask([key], "opened") == 1
        assert await engine.tiering.recall(OTHER) == 1
        await engine.tiering.leading.run(engine.tiering.step)
        assert set.union(*place.named(engine.stores).values()) == {"cold", "hot"}
        assert await engine.tiering.recall(OTHER) == 0
        await require_frames(place, engine)


async def test_a_pin_holds_it_whatever_becomes_of_the_old_series(place: Place) -> None:
    place.plan = replace(NOW, recalled_s=NEVER)
    async with place.open() as engine:
        await split(place, engine)
        pin(engine.stores.journal, Pin(OTHER, "tester", "board", 1))
        await applied(engine)
        assert not list(engine.tiering.planned(engine.tiering.now()))
        assert sorted(map(sorted, place.named(engine.stores).values())) == [["cold"], ["hot"]]
        await require_frames(place, engine)
