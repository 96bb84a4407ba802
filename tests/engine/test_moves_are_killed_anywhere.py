"""The leader's process dies at any step: nothing is lost or left, and the next one finishes the work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from engine.test_histories_end_otherwise_in_tiers import (
    TieredHistory,
    TieredPlace,
    compacted,
    limits,
    require_sound,
    settle,
)
from engine.test_tiers_lose_what_they_move import NOW, applied, rule
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.tiers import _Claimed
from hounsfield.archive.index.deletion import Target
from hounsfield.storage_backends.lmdb_store import LmdbStore
from support import killed_steps
from support.killed_steps import Killed, killed_at

MORE = ((_Claimed, "put"), (_Claimed, "delete"), (LmdbStore, "commit_planned"))
EVERY = int(os.environ.get("HOUNSFIELD_KILL_EVERY", "13"))
"""Steps between two at which the process dies: all of them take minutes."""


async def fill(place: TieredPlace, engine: Engine) -> None:
    """Series in two tiers; then something comes for one, something of it is deleted, and a third comes."""
    series = await place.send(engine, 3)
    await place.send(engine, 1, pixels=bytes(range(256)) * 100)
    place.rules = (rule("move", "cold", "second"),)
    (_, first), *_ = place.sent.values()
    await applied(engine)
    await place.send(engine, 2, study_uid=first.study_uid, series_uid=series)
    target = Target(first.study_uid, series, (first.sop_instance_uid,))
    await engine.deleting.delete(target, reason="test", actor="tester")
    del place.sent[first.sop_instance_uid]
    await place.send(engine, 2)


async def work(engine: Engine) -> None:
    """All that leaders do: erasing, encoding anew, moving, dropping, sweeping, compacting."""
    await applied(engine)
    await compacted(engine)
    await applied(engine)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_nothing_is_lost_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(killed_steps, "STEPS", (*killed_steps.STEPS, *MORE))
    made = TieredPlace(tmp_path / "made", plan=NOW)
    with made.stores() as stores:
        TieredHistory(0, made).with_engine(stores, lambda engine: fill(made, engine))
    step, finished = 1 + EVERY // 2 * after, False
    while not finished:
        place = TieredPlace(tmp_path / f"{step}", plan=NOW)
        shutil.copytree(made.root, place.root, dirs_exist_ok=True)
        place.sent = dict(made.sent)
        history = TieredHistory(0, place)
        place.rules = (rule("move", "second", compress="zstd"),)
        place.limits = limits(tidy_s=0.0, erase_s=0.0, sweep_s=0.0)
        with place.stores() as stores, killed_at(step, monkeypatch, after=after) as seen:
            try:
                history.with_engine(stores, work)
            except BaseException as error:
                assert _is_only_a_kill(error), error
        finished = len(seen) < step
        with place.stores() as stores:
            history.with_engine(stores, place.require_all)
            require_sound(stores)
            settle(stores, history)
            history.with_engine(stores, place.require_all)
        shutil.rmtree(place.root)
        step += EVERY
    assert step > 60


def _is_only_a_kill(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_only_a_kill, error.exceptions))
    return isinstance(error, Killed)
