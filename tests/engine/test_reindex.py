"""The logs are the archive: an index built anew from segments and ledger answers as the old one did."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.types import FoundRow
from hounsfield.storage_backends.api import Batch, CommitResult
from support.archives import ct_slice, sample_files, store, stored_bytes, stores_in


async def everything(engine: Engine) -> list[FoundRow]:
    rows = (await engine.search(parse_qido(Level.INSTANCE, [("limit", "10000")]))).rows
    return sorted(rows, key=lambda row: (row.study[0x0020000D], row.instance[0x00080018]))  # type: ignore[index]


async def test_a_lost_index_is_rebuilt(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    uids = {"study_uid": generate_uid(), "series_uid": generate_uid(), "sop_uid": generate_uid()}
    first, second = ct_slice(**uids), ct_slice(**uids)
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for sample in sample_files():
                await store(engine, sample.data, sample.transfer_syntax_uid)
            result = await store(engine, first, ExplicitVRLittleEndian)
            await store(engine, second, ExplicitVRLittleEndian)
            await engine.commit_fact("ae", "SCANNER1", {"title": "SCANNER1", "host": "10.0.0.1"}, 1)
            await engine.commit_fact("ae", "GONE", {"title": "GONE"}, 2)
            await engine.commit_fact("ae", "GONE", None, 3)
            before = await everything(engine)
            state = await engine.state("ae")
            with stores.store.snapshot() as snapshot:
                quarantined = len(list(stores.catalog.quarantined(snapshot)))
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        steps: list[tuple[int, int]] = []
        report = stores.reindex(lambda done, total: steps.append((done, total)))
        assert report.damaged == 0
        assert report.facts == 3
        assert steps[-1][0] == steps[-1][1] > 0
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert await everything(engine) == before
            assert await engine.state("ae") == state == [{"title": "SCANNER1", "host": "10.0.0.1"}]
            assert await stored_bytes(engine, result) == first
            with stores.store.snapshot() as snapshot:
                assert len(list(stores.catalog.quarantined(snapshot))) == quarantined
            # Facts that follow come after those replayed, also in the next rebuild.
            await engine.commit_fact("ae", "SCANNER1", None, 4)
    with stores_in(directory) as stores:
        assert stores.catch_up(at_start=True).facts == 0
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _total: None)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert await engine.state("ae") == []


@pytest.mark.parametrize(("policy", "served"), [("keep-first", 0), ("newest-current", -1)])
async def test_the_version_served_does_not_depend_on_the_order_of_segments(
    tmp_path: Path, policy: str, served: int
) -> None:
    directory, options = tmp_path / "data", EngineOptions(duplicates=policy)
    uids = {"study_uid": generate_uid(), "series_uid": generate_uid(), "sop_uid": generate_uid()}
    sent = [ct_slice(**uids) for _ in range(8)]
    for data in sent:  # one segment each, and their names are random
        with stores_in(directory, options) as stores:
            async with open_engine(stores, options, owner="test") as engine:
                result = await store(engine, data, ExplicitVRLittleEndian)
                assert (served == 0 and data is not sent[0]) or await stored_bytes(engine, result) == data
    shutil.rmtree(directory / "index")
    with stores_in(directory, options) as stores:
        stores.reindex(lambda _done, _total: None)
        async with open_engine(stores, options, owner="test") as engine:
            assert await stored_bytes(engine, result) == sent[served]


async def test_indexing_twice_changes_nothing(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for _ in range(5):
                await store(engine, ct_slice(), ExplicitVRLittleEndian)
            before = await everything(engine)
        stores.reindex(lambda _done, _total: None)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert await everything(engine) == before


async def test_a_fact_in_the_ledger_that_the_index_missed_is_applied_at_start(tmp_path: Path) -> None:
    from hounsfield.archive.index.rows import RECORD_KIND_FACT, Event, encode
    from hounsfield.storage_backends.segment_appending import RecordIn

    with stores_in(tmp_path / "data") as stores:
        stores.journal.commit_fact("ae", "ONE", {"title": "ONE"}, 1)
        event = Event("ae", 2, {"name": "TWO", "body": {"title": "TWO"}}, fact=True)
        stores.ledger.append([RecordIn(RECORD_KIND_FACT, ((2).to_bytes(8, "big") + encode(event),))])
    with stores_in(tmp_path / "data") as stores:
        assert stores.catch_up(at_start=True).facts == 1
        with stores.store.snapshot() as snapshot:
            assert {body["title"] for body in stores.journal.state(snapshot, "ae")} == {"ONE", "TWO"}
        assert stores.catch_up(at_start=True).facts == 0


async def test_a_fact_whose_commit_failed_is_never_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger is written before the commit: when the commit then fails, the caller is told "no"."""
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        stores.journal.commit_fact("ae", "ONE", {"title": "ONE"}, 1)
        commit = stores.store.commit

        def fail(batch: Batch) -> CommitResult:
            def refuse(_: CommitResult) -> None:
                raise OSError("the disk is gone")

            batch.before_commit.append(refuse)
            return commit(batch)

        with monkeypatch.context() as patch:
            patch.setattr(stores.store, "commit", fail)
            with pytest.raises(OSError, match="the disk is gone"):
                stores.journal.commit_fact("ae", "TWO", {"title": "TWO"}, 2)
        stores.journal.commit_fact("ae", "THREE", {"title": "THREE"}, 3)
        with stores.store.snapshot() as snapshot:
            live = {body["title"] for body in stores.journal.state(snapshot, "ae")}
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _total: None)
        with stores.store.snapshot() as snapshot:
            assert (
                {body["title"] for body in stores.journal.state(snapshot, "ae")} == live == {"ONE", "THREE"}
            )
