"""What expired and was sent again is there twice when that is undone, which is no conflict."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.correction_requests import CorrectionPlanner, Request
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import questionable
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.questionable import Kind, Questionable
from hounsfield.archive.index.rows import InstanceRow
from support.archives import ct_slice, store, stores_in
from support.rejection import EXPIRED, note

STUDY, SERIES, SOP = "1.2.40", "1.2.40.1", "1.2.40.1.1"
NOTE = "1.2.9.7"


def sent(pixels: int = 1, **more: Any) -> bytes:
    return ct_slice(study_uid=STUDY, series_uid=SERIES, sop_uid=SOP, pixels=bytes([pixels]) * 512, **more)


def send(stores: Stores, *data: bytes) -> None:
    async def run() -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for one in data:
                await store(engine, one, ExplicitVRLittleEndian)

    trio.run(run)


def undo(stores: Stores) -> None:
    with stores.store.snapshot() as snapshot:
        (number,) = [row.number for row in stores.rejections.all(snapshot) if not row.reverted_ns]
    stores.rejections.undo(number, actor="t", reason="r", at_ns=time.time_ns())


def conflicts(stores: Stores) -> list[Questionable]:
    found, _ = questionable.page(stores.store, stores.catalog, [], Kind.CONFLICT)
    return found


def rows(stores: Stores, study: str = STUDY) -> list[InstanceRow]:
    """What is there under the object's UIDs, the one that is served first."""
    with stores.store.snapshot() as snapshot:
        served = stores.catalog.instance(snapshot, study, SERIES, SOP)
        if served is None:
            return []
        key = stores.catalog.instance_key(study, SERIES, SOP)
        others = sorted(stores.catalog.versions(snapshot, key), key=lambda row: row.received_ns)
        return [served, *others]


def said(stores: Stores) -> list[tuple[bytes, tuple[str, ...]]]:
    return [(row.location.record_id, row.flags) for row in rows(stores)]


def reindexed(directory: Path) -> None:
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _all: None)


@pytest.mark.parametrize("duplicates", ["keep-first", "newest-current"])
def test_the_same_bytes_are_no_conflict(tmp_path: Path, duplicates: str) -> None:
    directory, options = tmp_path / "data", EngineOptions(duplicates=duplicates)
    with stores_in(directory, options) as stores:
        send(stores, sent(), note({STUDY: {SERIES: [SOP]}}, EXPIRED, sop_uid=NOTE), sent())
        undo(stores)
        assert conflicts(stores) == []
        before = said(stores)
        assert len(before) == 2
    shutil.rmtree(directory / "index")
    with stores_in(directory, options) as stores:
        stores.reindex(lambda _done, _all: None)
        assert said(stores) == before
        assert conflicts(stores) == []


@pytest.mark.parametrize("lost", [False, True], ids=["in use", "after a reindex"])
def test_what_came_after_the_note_is_shown_when_it_is_followed_again(tmp_path: Path, lost: bool) -> None:
    """What is sent again after it expired is wanted, whatever happened to the index meanwhile."""
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        send(stores, sent(), note({STUDY: {SERIES: [SOP]}}, EXPIRED, sop_uid=NOTE), sent())
        (again,) = rows(stores)
        undo(stores)
    if lost:
        reindexed(directory)
    with stores_in(directory) as stores:
        stores.rejections.follow(NOTE, actor="t")
        assert said(stores) == [(again.location.record_id, ())]
    reindexed(directory)
    with stores_in(directory) as stores:
        assert said(stores) == [(again.location.record_id, ())]


def test_other_content_is_a_conflict_and_the_same_bytes_are_not(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        send(stores, sent(), note({STUDY: {SERIES: [SOP]}}, EXPIRED, sop_uid=NOTE), sent(), sent(2))
        undo(stores)
        first, again, other = rows(stores)
        assert [one.record_id for one in conflicts(stores)] == [other.location.record_id]
    reindexed(directory)
    with stores_in(directory) as stores:
        assert [one.record_id for one in conflicts(stores)] == [other.location.record_id]
        target = Target(STUDY, SERIES, (SOP,), version=first.location.record_id)
        stores.deletions.delete(target, reason="r", actor="t", now_ns=time.time_ns())
        assert [row.location for row in rows(stores)] == [again.location, other.location]
        assert [one.record_id for one in conflicts(stores)] == [other.location.record_id]


def test_beside_other_content_alone_it_is_a_conflict(tmp_path: Path) -> None:
    """The one of which it was the same is deleted."""
    options = EngineOptions(duplicates="newest-current")
    with stores_in(tmp_path / "data", options) as stores:
        send(stores, sent(), note({STUDY: {SERIES: [SOP]}}, EXPIRED, sop_uid=NOTE), sent(), sent(2))
        undo(stores)
        _, first, again = rows(stores)
        assert len(conflicts(stores)) == 1
        target = Target(STUDY, SERIES, (SOP,), version=again.location.record_id)
        stores.deletions.delete(target, reason="r", actor="t", now_ns=time.time_ns())
        assert [one.record_id for one in conflicts(stores)] == [first.location.record_id]


def test_flags_stand_as_they_came(tmp_path: Path) -> None:
    """Whatever moved an object about: as a reindex has them."""
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        send(stores, sent()[:-100], sent(2)[:-50])
        request = Request(
            kind="move-series", actor="t", reason="wrong", study=STUDY, series=(SERIES,), to_study="1.2.41"
        )
        planner = CorrectionPlanner(stores.catalog, stores.corrections)
        stores.corrections.make(lambda snapshot, number: planner.plan(snapshot, number, request, number))
        before = [row.flags for row in rows(stores, "1.2.41")]
        assert [len(flags) for flags in before] == [3, 3]
        served = rows(stores, "1.2.41")[0]
        for row in rows(stores, "1.2.41")[1:]:
            target = Target("1.2.41", SERIES, (SOP,), version=row.location.record_id)
            stores.deletions.delete(target, reason="r", actor="t", now_ns=time.time_ns())
        alone = [row.flags for row in rows(stores, "1.2.41")]
        assert alone == [served.flags[:2]]
    reindexed(directory)
    with stores_in(directory) as stores:
        assert [row.flags for row in rows(stores, "1.2.41")] == alone
