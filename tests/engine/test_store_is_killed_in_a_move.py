"""A bucket's server is killed in the middle of moves, and started again: nothing is lost or left over."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from engine.test_tiers_lose_what_they_move import Place, applied
from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.archive.engine.tiers import TierOptions
from hounsfield.storage_backends.s3_store import S3Options
from support.s3_servers import Weed

pytestmark = pytest.mark.peer("weed")

KILLS = int(os.environ.get("TIER_STORE_KILLS", "1"))  # each takes the store some 20 s to come back


@dataclass
class Bucket(Place):
    """A place whose cold tier is a bucket."""

    bucket: S3Options | None = None

    @property
    def options(self) -> EngineOptions:
        assert self.bucket is not None
        options = super().options
        tiers = (TierOptions("cold", self.bucket, retry_s=1.0),)
        return replace(options, tiering=replace(options.tiering, tiers=tiers))


@pytest.fixture
def weed() -> Iterator[Weed]:
    weed = Weed()
    weed.server.make_bucket()
    yield weed
    weed.end()


async def test_the_store_is_killed_in_a_move(weed: Weed, tmp_path: Path) -> None:
    chance = random.Random(4)
    place = Bucket(tmp_path, bucket=weed.server.options("tier"))
    place.limits = replace(place.limits, recall_when_opened=False, sweep_s=0.0)
    async with place.open() as engine:
        for _ in range(KILLS):
            for _ in range(4):
                await place.send(engine, 2, pixels=chance.randbytes(2_000_000))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(applied, engine)
                await trio.sleep(chance.random() * 0.3)
                weed.kill()
            await trio.to_thread.run_sync(weed.start)
        with trio.fail_after(60):
            while {frozenset(tiers) for tiers in place.named(engine.stores).values()} != {
                frozenset({"cold"})
            }:
                await applied(engine)
        await applied(engine)
        await place.require_all(engine)
        named = set(place.named(engine.stores))
        tier = engine.stores.tiers.by_name["cold"]
        listed = [name.rpartition("/")[2] for name in tier.store.names("packs/")]
        keys = [Path(name).stem for name in tier.store.names("keys/segment/")]
        assert sorted(listed) == sorted(keys) == sorted(named)
