"""Somebody changes config.toml: a tier has another name, another's place, or is not named any more."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from engine.test_tiers_lose_what_they_move import LIMITS, NEVER, Place, applied, rule, tidied
from hounsfield.archive.app.fsck import strays
from hounsfield.archive.engine.engine import Engine, EngineOptions
from hounsfield.archive.engine.tier_oversight import TierOversight
from hounsfield.archive.engine.tiers import TierOptions
from hounsfield.archive.index.deletion import Target
from hounsfield.storage_backends.tier_holder import TIER_HOLDER


@dataclass
class Renaming(Place):
    """A place whose tiers can be called otherwise: name → directory."""

    tiers: dict[str, str] = field(default_factory=lambda: {"cold": "cold", "second": "second"})

    @property
    def options(self) -> EngineOptions:
        options = super().options
        tiers = tuple(TierOptions(name, self.root / folder) for name, folder in self.tiers.items())
        return replace(options, tiering=replace(options.tiering, tiers=tiers))


@pytest.fixture
def place(tmp_path: Path) -> Renaming:
    limits = replace(LIMITS, sweep_s=0.0, tidy_s=0.0, remove_after_s=0.0, recall_when_opened=False)
    return Renaming(tmp_path, limits=limits)


async def moved(place: Renaming, *tiers: str) -> set[str]:
    """Send a series to tiers; what lies in the first."""
    place.rules = (rule("move", *tiers),)
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        assert all(named == set(tiers) for named in place.named(engine.stores).values())
    return place.packs(tiers[0])


@pytest.mark.parametrize("tiers", [{"archive": "cold"}, {"cold": "second", "second": "cold"}])
async def test_a_tier_under_another_name_is_not_emptied(place: Renaming, tiers: dict[str, str]) -> None:
    await moved(place, "cold", "second")
    before = place.packs("cold"), place.packs("second")
    names, place.tiers = place.tiers, tiers
    place.rules = (rule("move", next(iter(tiers))),)
    async with place.open() as engine:
        for _ in range(3):
            await applied(engine)
    assert place.packs("cold") >= before[0]
    assert place.packs("second") >= before[1]
    place.tiers = names
    place.rules = (rule(),)
    async with place.open() as engine:
        await place.require_all(engine)
        await applied(engine)
        await place.require_all(engine)


async def test_two_tiers_at_one_place_are_one(place: Renaming) -> None:
    await moved(place, "cold")
    place.tiers = {"cold": "cold", "other": "cold"}
    for rules in ((rule("move", "cold", "other"),), (rule("move", "other"),), (rule("move", "cold"),)):
        place.rules = rules
        async with place.open() as engine:
            await applied(engine)
            assert all(named == {"cold"} for named in place.named(engine.stores).values())
            await place.require_all(engine)


async def test_a_tier_that_is_not_configured_any_more_counts_for_nothing(place: Renaming) -> None:
    """Its copies are neither the others that must be there, nor something to be dropped."""
    await moved(place, "hot", "second")
    del place.tiers["second"]
    place.rules = (rule("move", "cold"),)
    async with place.open() as engine:
        await applied(engine)
        await tidied(engine)
        assert all(named >= {"cold"} for named in place.named(engine.stores).values())
        await place.require_all(engine)
    for path in (place.root / "second" / "packs").glob("*/*"):
        path.unlink()
    async with place.open() as engine:
        await place.require_all(engine)


async def test_what_only_a_forgotten_tier_has_is_waited_for(place: Renaming) -> None:
    await moved(place, "second")
    del place.tiers["second"]
    place.rules = (rule("move", "cold"),)
    place.limits = replace(place.limits, recalled_bytes_max=1, plan_s=NEVER)
    async with place.open() as engine:
        for _ in range(3):
            await applied(engine)
        assert engine.tiering.figures.failures
        assert all(named == {"second"} for named in place.named(engine.stores).values())
    place.tiers["second"] = "second"
    async with place.open() as engine:
        await applied(engine)
        assert all(named == {"cold"} for named in place.named(engine.stores).values())
        await place.require_all(engine)


async def test_what_is_not_there_any_more_is_no_copy(place: Renaming) -> None:
    """Somebody emptied the disk: what is still here does not go for it."""
    before = await moved(place, "hot", "cold")
    for name in place.packs("cold"):
        (place.root / "cold" / "packs" / name[:2] / name).unlink()
    place.rules = (rule("move", "cold"),)
    async with place.open() as engine:
        await applied(engine)
        await applied(engine)
        assert place.packs("cold") == set(place.named(engine.stores))
        await place.require_all(engine)
    assert before


def twin_of(place: Renaming) -> Renaming:
    """The same archive on another machine, as of now: its backup, restored, or its disk, copied."""
    root = place.root / "twin"
    shutil.copytree(place.root / "data", root / "data")
    shutil.copy(place.root / "data.key", root / "data.key")
    (root / "data" / TIER_HOLDER).unlink()  # which is in no backup
    return replace(place, root=root, tiers={"cold": str(place.root / "cold")})


@pytest.mark.parametrize("taken", [False, True])
async def test_a_twin_reads_a_tier_and_changes_nothing_there(
    place: Renaming, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """What the archive moved since its backup is no rest of a killed move, when that is tried elsewhere."""
    monkeypatch.setattr("hounsfield.archive.engine.tiers.HELD_S", -1.0)
    await moved(place, "cold")
    place.rules = (rule("move", "hot"),)
    async with place.open() as engine:
        await applied(engine)
    assert not list(strays(place.root / "data"))
    twin = twin_of(place)
    place.rules = twin.rules = (rule(),)
    async with place.open() as engine:
        await applied(engine)
        (segment,) = place.packs("cold")
        async with twin.open() as other:
            assert twin.named(other.stores) == {segment: {"hot"}}
            if taken:
                await TierOversight(other).take("cold")
            await applied(other)
            assert place.packs("cold") == {segment}
            assert ("tier take cold" in trouble(other)) != taken
            await twin.require_all(other)
        await place.require_all(engine)
        assert ("tier take cold" in trouble(engine)) == taken
        await engine.delete(Target(next(iter(place.sent.values()))[1].study_uid), reason="x", actor="tester")
        await tidied(engine)
        assert (segment in place.packs("cold")) == taken


def trouble(engine: Engine) -> str:
    return engine.tiering.standing.look().tiers["cold"].trouble


async def test_what_is_pinned_is_not_sent_away_to_make_room(place: Renaming) -> None:
    await moved(place, "cold")
    place.rules = (rule("pin"),)
    place.limits = replace(place.limits, recalled_bytes_max=1)
    async with place.open() as engine:
        await applied(engine)
        copied = engine.tiering.figures.copied_bytes
        await applied(engine)
        assert engine.tiering.figures.copied_bytes == copied > 0
        assert all(named == {"hot", "cold"} for named in place.named(engine.stores).values())


async def test_what_could_not_be_dropped_goes_with_the_pack(place: Renaming) -> None:
    """A copy that was given up while its tier was away is erased with what is deleted."""
    await moved(place, "hot", "cold")
    place.rules = (rule("move", "hot"),)
    place.limits = replace(place.limits, sweep_s=NEVER)
    (place.root / "cold").rename(place.root / "gone")
    async with place.open() as engine:
        await applied(engine)
        assert all(named == {"hot"} for named in place.named(engine.stores).values())
    (place.root / "gone").rename(place.root / "cold")
    async with place.open() as engine:
        assert place.packs("cold")
        (_, result), *_ = place.sent.values()
        await engine.delete(Target(result.study_uid), reason="test", actor="tester")
        for segment in await engine.compaction.due(everything=True):
            await engine.compaction.rewrite(segment, throttled=False)
        await engine.compaction.finish()
        await tidied(engine)
        assert not place.named(engine.stores)
        assert not place.packs("cold")
        assert not list((place.root / "cold" / "keys" / "segment").iterdir())
