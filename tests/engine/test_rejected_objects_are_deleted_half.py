"""Deleting what a rejection hides: nothing of it, or what happened is said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import HeldError, NotFoundError
from hounsfield.archive.index.deletion import DeletionReport, Target
from support.archives import ct_slice, store, stores_in
from support.rejection import EXPIRED, note

STUDIES = [f"1.2.3.{i}" for i in range(1, 5)]
NAMED = {study: {f"{study}.1": [f"{study}.1.1"]} for study in STUDIES}


@asynccontextmanager
async def rejected(directory: Path) -> AsyncIterator[tuple[Engine, int]]:
    """An archive in which a note has hidden four studies, and the number of the rejection."""
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for study, ((series, (sop,)),) in ((uid, named.items()) for uid, named in NAMED.items()):
                sent = ct_slice(study_uid=study, series_uid=series, sop_uid=sop, patient_id=f"P{study}")
                await store(engine, sent, ExplicitVRLittleEndian)
            await store(engine, note(NAMED, EXPIRED), ExplicitVRLittleEndian)
            (made,) = await engine.rejecting.all()
            assert made["hidden"] == 5
            yield engine, made["id"]


async def hidden(engine: Engine) -> int:
    return (await engine.rejecting.all())[0]["hidden"]


@pytest.mark.parametrize("held", [*({"study_uid": uid} for uid in STUDIES), {"patient_id": "P1.2.3.3"}])
async def test_a_hold_on_one_study_keeps_all(tmp_path: Path, held: dict[str, str]) -> None:
    async with rejected(tmp_path / "archive") as (engine, number):
        hold = await engine.deleting.hold(**held, by="tester", why="court")
        with pytest.raises(HeldError, match=rf"{hold.hold_id}.*nothing was deleted"):
            await engine.rejecting.delete(number, actor="tester", reason="over")
        assert await hidden(engine) == 5
        await engine.deleting.release(hold.hold_id, by="tester", why="settled")
        reports = await engine.rejecting.delete(number, actor="tester", reason="over")
        assert (len(reports), sum(one.records for one in reports), await hidden(engine)) == (4, 5, 0)


class Interrupted:
    """Does something after the first deletion."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch, then: Any) -> None:
        self._delete, self._then = engine.deleting.delete, then
        monkeypatch.setattr(engine.deleting, "delete", self)

    async def __call__(self, target: Target, **more: Any) -> DeletionReport:
        report = await self._delete(target, **more)
        then, self._then = self._then, None
        if then is not None:
            await then()
        return report


async def test_a_hold_that_comes_between_is_told_with_what_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rejected(tmp_path / "archive") as (engine, number):

        async def hold() -> None:
            for study in STUDIES:
                await engine.deleting.hold(study_uid=study, by="tester", why="court")

        Interrupted(engine, monkeypatch, hold)
        with pytest.raises(HeldError) as failed:
            await engine.rejecting.delete(number, actor="tester", reason="over")
        left = await hidden(engine)
        assert f"{5 - left} objects of 1 of 4 studies are deleted for good, the rest is left" in str(
            failed.value
        )
        assert "nothing was deleted" not in str(failed.value)
        assert 0 < left < 5


async def test_what_is_brought_back_meanwhile_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rejected(tmp_path / "archive") as (engine, number):

        async def undo() -> None:
            await engine.rejecting.undo(number, actor="tester", reason="mistaken")

        Interrupted(engine, monkeypatch, undo)
        (report,) = await engine.rejecting.delete(number, actor="tester", reason="over")
        kept = 0
        for study in STUDIES:
            try:
                kept += len(await engine.instances(study))
            except NotFoundError:
                continue
        assert kept + report.records == 5
