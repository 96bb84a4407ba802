"""Moves are faster than ``tiering.bytes_per_second``, or much slower, for it counts something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trio
from pydicom import Dataset

from engine.test_tiers_lose_what_they_move import Place, applied, rule
from hounsfield.archive.engine import led_work
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.led_work import CREDIT_S, LedWork
from hounsfield.archive.index.carrying import Pace, counts_once
from hounsfield.archive.index.tables import ALL_TABLES
from hounsfield.storage_backends.memory_store import MemoryStore

SLICE = bytes(range(256)) * 1024  # 256 KiB, beside which framing is little


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """What the throttle was told of since this was asked last."""
    told = 0
    make = engine.tiering.leading.pace

    def counting(*, throttled: bool = True) -> Pace:
        pace = make(throttled=throttled)

        def count(length: int) -> None:
            nonlocal told
            told += length
            pace(length)

        return count

    def taken() -> int:
        nonlocal told
        now, told = told, 0
        return now

    monkeypatch.setattr(engine.tiering.leading, "pace", counting)
    return taken


@pytest.mark.parametrize("tiers", [("cold",), ("cold", "second"), ("hot", "cold")])
@pytest.mark.parametrize("large", [False, True])
async def test_a_byte_that_moves_counts_once_wherever_it_goes(
    place: Place, monkeypatch: pytest.MonkeyPatch, tiers: tuple[str, ...], large: bool
) -> None:
    place.rules = (rule("move", *tiers),)
    async with place.open() as engine:
        taken = counted(engine, monkeypatch)
        # One of more than 1 MiB is stored in pieces.
        await place.send(engine, 1 if large else 4, pixels=8 * SLICE if large else SLICE)
        await applied(engine)
        figures = engine.tiering.figures
        assert figures.copied_bytes > figures.gathered_bytes * len({*tiers} - {"hot"})
        assert taken() == pytest.approx(figures.gathered_bytes, rel=0.03)


async def test_a_pack_that_moves_on_counts_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.open() as engine:
        await place.send(engine, 4, pixels=SLICE)
        await applied(engine)
        moved = engine.tiering.figures.copied_bytes
    place.rules = (rule("move", "second"),)
    async with place.open() as engine:
        taken = counted(engine, monkeypatch)
        await applied(engine)
        assert taken() == pytest.approx(moved, rel=0.01)
        assert engine.tiering.figures.copied_bytes == moved


async def test_what_shrinks_counts_as_what_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.rules = (rule("move", "cold", compress="zstd"),)
    smooth = np.add.outer(np.arange(256), np.arange(256)).astype("<u2").tobytes()

    def larger(data: Dataset) -> None:
        data.Rows = data.Columns = 256

    async with place.open() as engine:
        taken = counted(engine, monkeypatch)
        await place.send(engine, 8, pixels=smooth, change=larger)  # type: ignore[arg-type]
        await applied(engine)
        figures = engine.tiering.figures
        assert figures.packed_bytes < figures.gathered_bytes / 2
        assert taken() == pytest.approx(figures.gathered_bytes, rel=0.03)


async def test_a_plan_says_how_long_it_takes(place: Place) -> None:
    place.rules = (rule("move", "cold", "second"),)
    async with place.open() as engine:
        await place.send(engine, 4, pixels=SLICE)
        tasks = list(engine.tiering.planned(engine.tiering.now()))
        await applied(engine)
        assert [task.moved_bytes for task in tasks] == [engine.tiering.figures.gathered_bytes]


def test_passes_add_up_to_every_byte() -> None:
    told: list[int] = []
    pace = counts_once(told.append, 5)
    for length in (1, 2, 3, 1000, 1, 3) * 5:
        pace(length)
    assert sum(told) == pytest.approx(1010, abs=1)


# ---------------------------------------------------------------- the throttle


class _Clock:
    """Seconds that pass when somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.waited += seconds


async def test_an_hour_in_which_nothing_moved_is_not_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(led_work.time, "monotonic", clock.monotonic)
    leading = LedWork(
        MemoryStore(ALL_TABLES), "l", owner="o", bytes_per_second=1000, busy="", wait=clock.wait
    )

    def work() -> None:
        pace = leading.pace()
        for _ in range(10):
            pace(1000)
        assert clock.waited == pytest.approx(10, abs=0.01)
        clock.now += 0.1  # a disk that was slow for a moment
        pace(1000)
        assert clock.waited == pytest.approx(10.9, abs=0.01)
        clock.now += 20.0  # a bucket that was away
        for _ in range(10):
            pace(1000)
        assert clock.waited == pytest.approx(20.9 - CREDIT_S, abs=0.01)

    with trio.fail_after(60):
        await leading.run(work)
