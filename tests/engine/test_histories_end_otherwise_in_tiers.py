"""Whatever was done to objects while they went from tier to tier: each is there once and as it was sent, and
nothing of what is gone stays anywhere.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from engine.test_histories_end_otherwise import History, Uids, compared, shown
from engine.test_tiers_lose_what_they_move import LIMITS, NEVER, NOW, Place, applied, rule
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.large_storing import LargeLimits
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.tier_rules import TierRule
from hounsfield.archive.index import locations
from hounsfield.archive.index.checking import Archive, Finding, Severity, check_all
from hounsfield.archive.index.checking_logs import CHECKS
from hounsfield.archive.index.gathering import Gatherer, GatherLimits
from hounsfield.archive.index.tables import QUARANTINE, SPARE
from hounsfield.archive.index.use import uses
from support.archives import ct_slice, store

STEPS, PHASES = 48, 3
RULES: tuple[tuple[TierRule, ...], ...] = (
    (rule(),),
    (rule(compress="zstd"),),
    (rule(compress="htj2k"),),
    (rule("move", "cold", "second"),),
    (rule("move", "second"),),
    (rule("copy", "second"),),
    (rule("move", "hot", "cold", compress="jpegxl"),),
    (rule("pin"),),
    (rule("recompress", compress="zstd"),),
)
SMALL = GatherLimits(group_bytes=1 << 14, group_records=3, pack_bytes=20_000)


class TieredPlace(Place):
    @property
    def options(self) -> EngineOptions:
        ingest = IngestLimits(stream_bytes_min=20_000, large=LargeLimits(piece_bytes=10_000))
        return replace(super().options, ingest=ingest)


class TieredHistory(History):
    """A history of an archive that has tiers."""

    def __init__(self, seed: int, place: Place) -> None:
        super().__init__(seed)
        self.place = place

    def _object(self, uids: Uids, version: int) -> bytes:
        if (uids, version) not in self.sent:
            study, series, sop = uids
            frames = self.source.choice((1, 1, 2, 6))
            pictures = np.add.outer(np.arange(48) * 20, np.arange(48) * 15)
            noise = np.random.default_rng(self.source.randrange(1 << 32)).integers(0, 3, (frames, 48, 48))
            pixels = (pictures + noise).astype("<u2").tobytes()

            def change(data: Dataset) -> None:
                data.Rows = data.Columns = 48
                data.NumberOfFrames = frames

            self.sent[uids, version] = ct_slice(
                study_uid=study, series_uid=series, sop_uid=sop, patient_id=f"P{study[-1]}", pixels=pixels,
                change=change,
            )  # fmt: skip
        return self.sent[uids, version]

    def with_engine(self, stores: Stores, act: Callable[[Engine], Awaitable[object]]) -> None:
        async def run() -> None:
            async with open_engine(stores, self.place.options, owner="test") as engine:
                engine.tiering._moves.gatherer = Gatherer(stores.indexer, SMALL, clock=engine.tiering.now)
                await act(engine)

        trio.run(run)

    def _send(self, stores: Stores, data: bytes) -> None:
        self.with_engine(stores, lambda engine: store(engine, data, ExplicitVRLittleEndian))

    def tier_step(self, stores: Stores) -> None:
        source, place = self.source, self.place
        match source.choice(["rules"] * 5 + ["recall"] * 2 + ["compact", "away"]):
            case "rules":
                place.rules = source.choice(RULES)
                place.limits = limits(
                    tidy_s=source.choice((0.0, NEVER)), erase_s=source.choice((0.0, NEVER)),
                    sweep_s=source.choice((0.0, NEVER)), recalled_bytes_max=source.choice((0, 1)),
                )  # fmt: skip
                self.with_engine(stores, applied)
            case "recall":
                studies = sorted({uids[0] for uids in self.model.visible()})
                if studies:
                    study = source.choice(studies)
                    self.with_engine(stores, lambda engine: recalled(engine, study))
            case "away":
                gone = source.choice(("cold", "second"))
                place.rules = source.choice(RULES)
                (place.root / gone).rename(place.root / "gone")
                self.with_engine(stores, applied)
                (place.root / "gone").rename(place.root / gone)
            case "compact":
                self.with_engine(stores, compacted)


def limits(**more: float) -> object:
    return replace(LIMITS, remove_after_s=0.0, recall_when_opened=False, **more)


async def recalled(engine: Engine, study: str) -> None:
    await engine.tiering.recall(study)
    await engine.tiering.leading.run(engine.tiering.step)


async def compacted(engine: Engine) -> None:
    for segment in await engine.compaction.due(everything=True):
        await engine.compaction.rewrite(segment, throttled=False)
    await engine.compaction.finish()


def require_as_sent(stores: Stores, history: TieredHistory) -> None:
    """What a reader finds is what was sent, byte for byte."""
    sent = set(history.sent.values())
    with stores.store.snapshot() as snapshot:
        for uids in history.model.visible():
            study, series, sop = uids
            rows = stores.catalog.instances_of(snapshot, stores.catalog.series_key(study, series))
            (row,) = [row for row in rows if row.sop_uid == sop]
            assert b"".join(map(bytes, stores.indexer.objects.data_set(row.location, row.stored_as))) in sent


def require_sound(stores: Stores, *, at_rest: bool = False) -> None:
    """Nothing is wrong; ``at_rest``: nothing is left over, either."""
    archive = Archive(
        stores.store, stores.keyring, stores.catalog, stores.sealer, stores.hashes, stores.journal,
        stores.log, stores.ledger, stores.tiers.by_name,
    )  # fmt: skip
    found = check_all(archive, CHECKS)
    # A key can be left of a segment that never came to be; it opens nothing.
    passing = {"a key seals nothing that is here"} if at_rest else {one.what for one in found if is_note(one)}
    assert [one for one in found if one.what not in passing] == []


def is_note(one: Finding) -> bool:
    return one.severity is Severity.NOTE


def settle(stores: Stores, history: TieredHistory) -> None:
    """Have everything cold, all that is dead removed, and look that nothing else is anywhere."""
    place = history.place
    place.rules = (rule(),)
    place.limits = limits(tidy_s=0.0, erase_s=0.0, sweep_s=0.0)

    async def work(engine: Engine) -> None:
        for _ in range(4):
            await applied(engine)
            await compacted(engine)
        assert engine.tiering.figures.failures == 0
        assert list(engine.tiering.planned(engine.tiering.now())) == []

    history.with_engine(stores, work)
    named = place.named(stores)
    for _, rows in locations.walk(stores.store, stores.catalog):  # versions, too
        assert {one.location.segment.hex() for one in rows if one.table != QUARANTINE} <= set(named)
    assert all(tiers == {"cold"} for tiers in named.values())
    assert place.packs("cold") == set(named)
    assert not place.packs("second")
    assert place.packs("hot").isdisjoint(named)
    keys = {path.stem for path in (place.root / "cold" / "keys" / "segment").iterdir()}
    assert keys == set(named)
    assert not list((place.root / "second").glob("keys/segment/*"))
    with stores.store.snapshot() as snapshot:
        assert not list(uses(snapshot))
        assert not list(snapshot.scan(SPARE))
    require_sound(stores, at_rest=True)


@pytest.mark.parametrize("seed", range(3))
def test_each_is_there_once_and_as_it_was_sent(tmp_path: Path, seed: int) -> None:
    """Also after a restart, and when the index is lost wherever everything lies then."""
    place = TieredPlace(tmp_path, plan=NOW)
    history = TieredHistory(seed, place)
    source = random.Random(seed)
    for phase in range(PHASES):
        with place.stores() as stores:
            for _ in range(STEPS // PHASES):
                if source.random() < 0.5:
                    history.step(stores)
                else:
                    history.tier_step(stores)
                assert shown(stores) == history.model.visible()
                require_as_sent(stores, history)
            require_sound(stores)
            if phase == PHASES - 1:
                settle(stores, history)
            before, named = compared(stores), place.named(stores)
        if phase != 0:
            shutil.rmtree(place.root / "data" / "index")
        with place.stores() as stores:
            assert shown(stores) == history.model.visible()
            assert compared(stores) == before
            require_as_sent(stores, history)
    with place.stores() as stores:
        assert place.named(stores) == named
        settle(stores, history)
        require_as_sent(stores, history)
