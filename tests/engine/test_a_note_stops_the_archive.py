"""A rejection note that cannot be followed, whatever the reason, is put aside: nothing else waits for it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.correction_requests import CorrectionPlanner, Request
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.errors import RefusedError
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import tables
from support.archives import ct_slice, store, stores_in
from support.rejection import SAFETY, note

S, T = "1.2.826.1", "1.2.826.2"
SERIES, SOP = "1.2.826.1.1", "1.2.826.1.1.1"
OTHER = ("1.2.826.3", "1.2.826.3.1", "1.2.826.3.1.1")
BAD, GOOD = "1.2.9.1", "1.2.9.2"


async def send(stores: Stores, *sent: bytes) -> None:
    async with open_engine(stores, EngineOptions(), owner="test") as engine:
        for data in sent:
            await store(engine, data, ExplicitVRLittleEndian)


def move(stores: Stores, study: str, to_study: str) -> None:
    request = Request(
        kind="move-series", actor="t", reason="wrong", study=study, series=(SERIES,), to_study=to_study
    )
    planner = CorrectionPlanner(stores.catalog, stores.corrections)
    stores.corrections.make(lambda snapshot, number: planner.plan(snapshot, number, request, number))


def shown(stores: Stores) -> set[str]:
    with stores.store.snapshot() as snapshot:
        return {uid for uid in (SOP, OTHER[2]) if stores.catalog.places(snapshot, "instance", uid)}


def fill(stores: Stores) -> None:
    trio.run(
        send,
        stores,
        ct_slice(study_uid=S, series_uid=SERIES, sop_uid=SOP),
        ct_slice(study_uid=OTHER[0], series_uid=OTHER[1], sop_uid=OTHER[2]),
    )


@pytest.mark.parametrize("named", [S, T])
def test_a_series_moved_there_and_back_is_rejected(tmp_path: Path, named: str) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        fill(stores)
        move(stores, S, T)
        move(stores, T, S)
        trio.run(send, stores, note({named: {SERIES: [SOP]}}, SAFETY))
        assert shown(stores) == {OTHER[2]}
        trio.run(send, stores, ct_slice(study_uid=T, series_uid=SERIES, sop_uid=SOP))  # its way is the same
        assert shown(stores) == {OTHER[2]}
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
        assert shown(stores) == {OTHER[2]}
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _all: None)
        assert shown(stores) == {OTHER[2]}


class _Names:
    """Cannot say what one note means, as a defect of ours would have it."""

    def __init__(self, names: Any) -> None:
        self._meant = names.meant

    def meant(self, snapshot: Any, content: Any, waiting: Any) -> Any:
        if waiting.sop_uid == BAD:
            raise KeyError(f"{waiting.sop_uid} of Muster^Erika")
        return self._meant(snapshot, content, waiting)


def break_names(stores: Stores) -> None:
    stores.rejections._names = _Names(stores.rejections._names)  # type: ignore[assignment]


def listed(stores: Stores) -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]]:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            return await engine.rejecting.all()

    return trio.run(ask)


def test_a_note_that_cannot_be_followed_is_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "data"
    bad, good = (
        note({S: {SERIES: [SOP]}}, SAFETY, sop_uid=BAD),
        note({OTHER[0]: {OTHER[1]: [OTHER[2]]}}, SAFETY, sop_uid=GOOD),
    )
    with stores_in(directory) as stores:
        fill(stores)
        break_names(stores)
        with caplog.at_level(logging.WARNING):
            trio.run(send, stores, bad, good)  # acknowledged, both
        assert shown(stores) == {SOP}
        aside = [one for one in listed(stores) if one["not_followed"]]
        assert [(one["note"], one["code"], one["id"]) for one in aside] == [(BAD, SAFETY, None)]
        assert "KeyError" in aside[0]["not_followed"] and "reject apply" in aside[0]["not_followed"]
        told = f"{caplog.text}{aside[0]['not_followed']}"
        assert "KeyError" in told
        assert "Muster" not in told and f"{BAD} of" not in told
        with stores.store.snapshot() as snapshot:
            assert not list(snapshot.scan(tables.META, prefix=b"rejecting/"))
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        break_names(stores)
        stores.reindex(lambda _done, _all: None)
        assert shown(stores) == {SOP}
        assert [one["note"] for one in listed(stores) if one["not_followed"]] == [BAD]
        with pytest.RaisesGroup(
            pytest.RaisesExc(RefusedError, match="KeyError"), allow_unwrapped=True, flatten_subgroups=True
        ):
            trio.run(apply, stores)
    with stores_in(directory) as stores:  # another release
        trio.run(apply, stores)
        assert shown(stores) == set()
        assert not [one for one in listed(stores) if one["not_followed"]]


async def apply(stores: Stores) -> None:
    async with open_engine(stores, EngineOptions(), owner="test") as engine:
        await engine.rejecting.follow(BAD, actor="t")


def test_whoever_sends_a_note_is_answered_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stores_in(tmp_path / "data") as stores:
        fill(stores)
        rejection = note({S: {SERIES: [SOP]}}, SAFETY, sop_uid=GOOD)
        with monkeypatch.context() as patch:

            def broken() -> int:
                raise RuntimeError("as it happens")

            patch.setattr(stores.rejections, "resume", broken)
            trio.run(send, stores, rejection)
            assert shown(stores) == {SOP, OTHER[2]}
        stores.catch_up(at_start=True)
        assert shown(stores) == {OTHER[2]}
