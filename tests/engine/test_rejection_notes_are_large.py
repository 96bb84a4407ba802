"""Notes that name very much cost what they name, and are not followed beyond limits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.dicom.rejection import NoteLimits
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.errors import RefusedError
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import tables
from hounsfield.archive.index.deletion import Target
from support.archives import ct_slice, store, stores_in
from support.rejection import SAFETY, note


def studies(count: int) -> dict[str, dict[str, list[str]]]:
    """So many studies of one instance."""
    return {f"1.2.9.{i}": {f"1.2.9.{i}.1": [f"1.2.9.{i}.1.1"]} for i in range(1, count + 1)}


def overlay_bytes(stores: Stores) -> int:
    with stores.store.snapshot() as snapshot:
        return sum(len(sealed) for _, sealed in snapshot.scan(tables.CORRECTION))


async def test_a_note_of_many_studies_costs_what_it_names(tmp_path: Path) -> None:
    taken = {}
    for count in (100, 400):
        with stores_in(tmp_path / str(count)) as stores:
            async with open_engine(stores, EngineOptions(), owner="test") as engine:
                named = studies(count)
                (study, ((series, (sop,)),)) = next((k, tuple(v.items())) for k, v in reversed(named.items()))
                sent = ct_slice(study_uid=study, series_uid=series, sop_uid=sop)
                await store(engine, sent, ExplicitVRLittleEndian)
                await store(engine, note(named, SAFETY), ExplicitVRLittleEndian)
                taken[count] = overlay_bytes(stores)
                (made,) = await engine.rejecting.all()
                assert (made["named"], made["hidden"], len(made["studies"])) == (count + 1, 2, count)
                # Each study has its own part, and takes it away.
                late = ct_slice(study_uid="1.2.9.7", series_uid="1.2.9.7.1", sop_uid="1.2.9.7.1.1")
                await store(engine, late, ExplicitVRLittleEndian)
                assert (await engine.rejecting.all())[0]["hidden"] == 3
                await engine.rejecting.undo(made["id"], actor="tester", reason="mistaken")
                assert overlay_bytes(stores) == 0
                assert len(await engine.instances(study)) == 1
                assert len(await engine.instances("1.2.9.7")) == 1
    assert taken[400] < 5 * taken[100]


@pytest.mark.parametrize(
    "limits", [NoteLimits(studies_max=3), NoteLimits(instances_max=3), NoteLimits(bytes_max=500)]
)
async def test_a_note_beyond_a_limit_is_kept_and_told(
    tmp_path: Path, limits: NoteLimits, caplog: pytest.LogCaptureFixture
) -> None:
    options = EngineOptions(rejection_limits=limits)
    named = studies(4)
    with stores_in(tmp_path / "archive", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            sent = ct_slice(study_uid="1.2.9.1", series_uid="1.2.9.1.1", sop_uid="1.2.9.1.1.1")
            await store(engine, sent, ExplicitVRLittleEndian)
            await store(engine, note(named, SAFETY, sop_uid="1.2.8"), ExplicitVRLittleEndian)
            assert {one.row.sop_uid for one in await engine.instances("1.2.9.1")} == {"1.2.9.1.1.1", "1.2.8"}
            (told,) = await engine.rejecting.all()
            assert (told["id"], told["note"], told["in_force"]) == (None, "1.2.8", False)
            assert "more than" in told["not_followed"]
            assert told["not_followed"] in caplog.text
            assert "1.2.8" not in caplog.text
            with pytest.raises(RefusedError, match=r"cannot be followed: it .* more than"):
                await engine.rejecting.follow("1.2.8", actor="tester")
            if limits.bytes_max > 500:  # what is just within is followed
                await store(engine, note(studies(3), SAFETY, sop_uid="1.2.7"), ExplicitVRLittleEndian)
                followed, _ = await engine.rejecting.all()
                assert (followed["note"], followed["hidden"]) == ("1.2.7", 2)
                await engine.rejecting.undo(followed["id"], actor="tester", reason="mistaken")
    # With larger limits it is followed when somebody says so, and not told any more.
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await engine.rejecting.follow("1.2.8", actor="tester")
            assert not any(one["not_followed"] for one in await engine.rejecting.all())


async def test_a_note_beyond_a_limit_that_is_deleted_is_told_no_more(tmp_path: Path) -> None:
    options = EngineOptions(rejection_limits=NoteLimits(studies_max=3))
    with stores_in(tmp_path / "archive", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            await store(engine, note(studies(4), SAFETY), ExplicitVRLittleEndian)
            await store(engine, note(studies(4), "113000"), ExplicitVRLittleEndian)  # no rejection note
            assert len(await engine.rejecting.all()) == 1
            await engine.deleting.delete(Target("1.2.9.1"), reason="over", actor="tester")
            assert await engine.rejecting.all() == []


async def test_many_notes_of_one_study_are_replayed_as_so_many_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as so many times all that the study has: each would take what it names out of it, one by one."""
    opened: dict[int, int] = {}
    for count in (15, 60):
        directory = tmp_path / str(count)
        with stores_in(directory) as stores:
            async with open_engine(stores, EngineOptions(), owner="test") as engine:
                sops = [f"1.2.9.1.1.{n}" for n in range(count)]
                for sop in sops:
                    sent = ct_slice(study_uid="1.2.9.1", series_uid="1.2.9.1.1", sop_uid=sop)
                    await store(engine, sent, ExplicitVRLittleEndian)
                for sop in sops:
                    await store(
                        engine, note({"1.2.9.1": {"1.2.9.1.1": [sop]}}, SAFETY), ExplicitVRLittleEndian
                    )
        shutil.rmtree(directory / "index")
        with stores_in(directory) as stores:
            times = 0
            open_row = stores.catalog.open_row

            def counted(*given: Any, open_row: Any = open_row) -> Any:
                nonlocal times
                times += 1
                return open_row(*given)

            monkeypatch.setattr(stores.catalog, "open_row", counted)
            stores.reindex(lambda _done, _all: None)
            opened[count] = times
            with stores.store.snapshot() as snapshot:
                assert stores.catalog.study(snapshot, "1.2.9.1") is None
                assert len(stores.rejections.all(snapshot)) == count
    assert opened[60] < 5 * opened[15]
