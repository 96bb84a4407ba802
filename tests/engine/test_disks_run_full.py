"""A disk runs full while series move, the data directory's or that of a tier: on small disks of their own."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from engine.test_tiers_lose_what_they_move import LIMITS, NEVER, Place, applied, rule
from hounsfield.archive.engine import tiers
from hounsfield.archive.engine.engine import Engine, EngineOptions
from hounsfield.archive.engine.errors import OutOfResourcesError
from hounsfield.archive.engine.tiers import TierOptions
from hounsfield.storage_backends.directory_store import DirectoryLimits, DirectoryStore
from hounsfield.storage_backends.lmdb_store import LmdbLimits
from hounsfield.storage_backends.local_blobs import LocalBlobLimits

MIB = 1 << 20
RESERVE = 4 * MIB
Disk = Callable[[Path, str], None]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Makes a directory a disk, or changes the one that it is; gone at the end."""
    with ExitStack() as stack:

        def mount(where: Path, options: str) -> None:
            known = where.is_mount()
            where.mkdir(parents=True, exist_ok=True)
            words = ["-o", f"remount,{options}"] if known else ["-t", "tmpfs", "-o", options, "none"]
            done = subprocess.run(["mount", *words, where], check=False, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
            if not known:
                stack.callback(subprocess.run, ["umount", "-l", where], check=True)

        yield mount


@pytest.fixture(autouse=True)
def to_the_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory as a tier keeps nothing free, so that its disk says itself that it is full."""

    def opened(of: TierOptions) -> DirectoryStore:
        assert isinstance(of.place, Path)
        return DirectoryStore(of.place, DirectoryLimits(reserve_bytes=0))

    monkeypatch.setattr(tiers, "open_place", opened)


@dataclass
class SmallPlace(Place):
    @property
    def options(self) -> EngineOptions:
        of = super().options
        return replace(
            of,
            index=LmdbLimits(map_bytes=1 << 30, reserve_bytes=RESERVE // 2),
            blobs=LocalBlobLimits(reserve_bytes=RESERVE),
            ingest=replace(of.ingest, stream_bytes_min=1 << 30),
        )


async def filled(place: Place, engine: Engine, most: int = 100) -> int:
    """Series are sent until the disk is full; how many it has."""
    for number in range(most):
        try:
            await place.send(engine, 1, pixels=random.Random(number).randbytes(MIB))
        except OutOfResourcesError:
            return number
    return most


async def compacted(engine: Engine) -> None:
    for segment in await engine.compaction.due(everything=True):
        await engine.compaction.rewrite(segment, throttled=False)
    await engine.compaction.finish()


def warnings(logged: list[dict[str, object]]) -> list[dict[str, object]]:
    return [entry for entry in logged if entry["log_level"] == "warning"]


@pytest.mark.parametrize("full", ["size=8m", "size=64m,nr_inodes=30"])
async def test_both_disks_run_full_and_moves_go_on_when_there_is_room(
    tmp_path: Path, disk: Disk, full: str
) -> None:
    """The one at a mark of fill, and up to its reserve; the other to the last byte, or to its last file."""
    for where, size in (("data", "size=20m"), ("cold", full)):
        disk(tmp_path / where, size)
    limits = replace(LIMITS, recall_when_opened=False, remove_after_s=0.0, check_s=NEVER)
    place = SmallPlace(tmp_path, (rule(fill_above=0.5, fill_until=0.2),), limits)
    async with place.open() as engine:
        sent = await filled(place, engine)
        assert 10 < sent < 20
        figures = engine.tiering.figures
        with capture_logs() as logged:
            await applied(engine)
        moved = figures.series
        assert 0 < moved < sent
        (said,) = warnings(logged)
        assert said["tier"] == "cold"
        assert "free some space" in str(said["error"])
        await place.require_all(engine)
        with capture_logs() as logged:
            await applied(engine)  # as full as before: nothing is used up by trying
        assert figures.series == moved
        assert len(warnings(logged)) == 1
        assert not list((tmp_path / "cold" / ".incoming").iterdir())
        disk(tmp_path / "cold", "size=128m,nr_inodes=0")
        await applied(engine)
        assert figures.series == sent
        await compacted(engine)
        assert engine.tiering.hot_fill() < 0.5
        assert await filled(place, engine, 2) == 2
        await place.require_all(engine)
        assert all(len(tiers) == 1 for tiers in place.named(engine.stores).values())


async def test_a_series_larger_than_the_room_that_is_left_goes_bit_by_bit(tmp_path: Path, disk: Disk) -> None:
    """And neither packing nor compaction takes the last byte from those who store."""
    disk(tmp_path / "data", "size=20m")
    place = SmallPlace(tmp_path, limits=replace(LIMITS, check_s=NEVER, recall_when_opened=False))
    async with place.open() as engine:
        series = await place.send(engine, 14, pixels=random.Random(1).randbytes(MIB))
        assert await filled(place, engine, 2) < 2
        least = []
        room = engine.tiering._moves._room
        engine.tiering._moves.gatherer._room = lambda: least.append(room()) or least[-1]  # type: ignore
        await applied(engine)
        assert min(least) > -RESERVE // 8  # the other half of the reserve is not theirs
        packs = [name for name, tiers in place.named(engine.stores).items() if tiers == {"cold"}]
        assert len(packs) > 3  # of which one alone would have been too large
        assert engine.tiering.figures.failures == 0
        assert not list(engine.tiering.planned(engine.tiering.now()))
        await compacted(engine)
        assert engine.tiering.hot_fill() < 0.3
        await place.require_all(engine)
        # It comes back as far as there is room, and says so.
        await filled(place, engine)
        (_, one), *_ = (result for result in place.sent.values() if result[1].series_uid == series)
        assert await engine.tiering.recall(one.study_uid) == 1
        with capture_logs() as logged:
            await engine.tiering.leading.run(engine.tiering.step)
        (said,) = warnings(logged)
        assert (said["tier"], said["count"]) == ("hot", 1)
        assert "kept" in str(said["error"])
        await place.require_all(engine)
