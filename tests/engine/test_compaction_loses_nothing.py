"""Compaction gives the disk back and makes deleted bytes unreadable, and costs no object."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.rewriting import RewriteLimits, Rewriter
from hounsfield.storage_backends.errors import KeyringError, StoreFullError
from hounsfield.storage_backends.lmdb_store import LmdbLimits
from hounsfield.storage_backends.local_blobs import LocalBlobLimits, LocalBlobs
from hounsfield.storage_backends.local_writer import LocalBlobWriter
from hounsfield.storage_backends.segment_scan import ScannedRecord, SegmentScan
from support.archives import ct_slice, store, stored_bytes, stores_in
from support.contents import contents

WHY = {"reason": "test", "actor": "tester", "now_ns": 1}
SMALL = RewriteLimits(group_bytes=1 << 20, group_records=3)


async def send(engine: Engine, data: bytes) -> StoreResult:
    return await store(engine, data, ExplicitVRLittleEndian)


def located(stores: Stores) -> dict[str, Any]:
    """The contents, without where records lie and what is dead there."""
    found = contents(stores)
    for table in ("instance", "version", "quarantine"):
        for row in found[table].values():
            location = row.pop("location")
            row["record"] = location.record_id
    return {name: rows for name, rows in found.items() if name not in {"use", "spare", "tombstone"}}


def keys_of_objects(stores: Stores) -> set[str]:
    """The ids of the segment keys that are not the ledger's."""
    return set(stores.keyring.key_ids("segment")) - {one.hex() for one in stores.ledger.segment_ids()}


async def test_what_stays_moves_and_the_old_segment_and_its_key_are_gone(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    study, series, sop = generate_uid(), generate_uid(), generate_uid()

    def spoil(data) -> None:  # type: ignore[no-untyped-def]
        del data.StudyInstanceUID

    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            sent = {}
            for number in range(10):
                data = ct_slice(study_uid=study, series_uid=series, number=number)
                sent[(await send(engine, data)).sop_instance_uid] = data
            for _ in range(2):  # versions move, too
                result = await send(engine, ct_slice(study_uid=study, series_uid=series, sop_uid=sop))
            assert (await send(engine, ct_slice(change=spoil))).outcome is Outcome.QUARANTINED
            gone = [await send(engine, ct_slice()) for _ in range(10)]
            for one in gone:
                stores.deletions.delete(Target(one.study_uid), **WHY)
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
        (segment,) = stores.log.segment_ids()
        old = (directory / "segments" / segment.hex()).read_bytes()
        before = located(stores)
        report = Rewriter(stores.indexer, SMALL).rewrite_segment(segment)
        assert (report.moved, report.dropped, report.removed) == (13, 10, True)
        assert report.freed_bytes > 10 * 512
        assert located(stores) == before
        (new,) = stores.log.segment_ids()
        assert new != segment
        assert keys_of_objects(stores) == {new.hex()}
        with pytest.raises(KeyringError):
            stores.keyring.key("segment", segment.hex())
        assert not contents(stores)["use"]
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for found in await engine.instances(study):
                if found.row.sop_uid in sent:
                    data = b"".join([bytes(piece) async for piece in engine.dataset(found)])
                    assert data == sent[found.row.sop_uid]
            assert await stored_bytes(engine, result)
    # The old bytes, from a disk that kept them, open with none of the keys that are left.
    (directory / "segments" / new.hex()).rename(tmp_path / "new")
    (directory / "segments" / new.hex()).write_bytes(old)
    with stores_in(directory) as stores:
        opened = [one for one in stores.log.scan(new) if hasattr(one, "row")]
        assert not opened
    (tmp_path / "new").rename(directory / "segments" / new.hex())
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        assert stores.reindex(lambda _done, _total: None).damaged == 0
        assert located(stores) == before


async def test_a_segment_of_which_nothing_is_needed_is_not_copied(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            result = await send(engine, ct_slice())
            stores.deletions.delete(Target(result.study_uid), **WHY)
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
        (segment,) = stores.log.segment_ids()
        report = Rewriter(stores.indexer).rewrite_segment(segment)
        assert (report.moved, report.dropped, report.removed, report.new_segments) == (0, 1, True, ())
        assert stores.log.segment_ids() == []
        assert keys_of_objects(stores) == set()


async def test_compacting_works_on_a_full_disk(tmp_path: Path) -> None:
    """The store refuses new objects, and what compaction writes comes out of the reserve."""
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            kept, gone = await send(engine, ct_slice()), await send(engine, ct_slice())
    full = EngineOptions(
        index=LmdbLimits(reserve_bytes=1 << 39), blobs=LocalBlobLimits(reserve_bytes=1 << 50)
    )
    with stores_in(directory, full) as stores:
        stores.catch_up(at_start=True)
        async with open_engine(stores, full, owner="test") as engine:
            with pytest.raises(EngineError):
                await send(engine, ct_slice())
            await engine.delete(Target(gone.study_uid), reason="test", actor="test")
            (segment,) = await engine.compaction.due(everything=True)
            assert (await engine.compaction.rewrite(segment, throttled=False)).moved == 1
            assert await engine.compaction.finish() == 1
            assert await stored_bytes(engine, kept)
        assert segment not in stores.log.segment_ids()


async def test_a_disk_that_is_full_to_the_last_byte_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            kept, gone = await send(engine, ct_slice()), await send(engine, ct_slice())
            await engine.delete(Target(gone.study_uid), reason="test", actor="test")
            (segment,) = await engine.compaction.due(everything=True)

            def full(*_: object) -> None:
                raise StoreFullError("the disk is full")

            with monkeypatch.context() as patch:
                patch.setattr(LocalBlobWriter, "append", full)
                report = await engine.compaction.rewrite(segment, throttled=False)
            assert report.kept_because == "the disk is full"
            assert stores.log.segment_ids() == [segment]
            assert keys_of_objects(stores) == {segment.hex()}
            assert (await engine.compaction.rewrite(segment, throttled=False)).moved == 1
            assert await stored_bytes(engine, kept)


async def test_after_everything_was_deleted_no_key_opens_anything(tmp_path: Path) -> None:
    """Crypto-shredding: every file that there was, kept aside, against every key that is left."""
    directory, aside = tmp_path / "data", tmp_path / "aside"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for _ in range(3):
                results = [await send(engine, ct_slice()) for _ in range(3)]
                stores.log.start_anew()
            shutil.copytree(directory / "segments", aside)
            keys = {path.read_bytes() for path in (directory / "keys").rglob("*.key")}
            for row in contents(stores)["study"].values():
                await engine.delete(Target(row["uid"]), reason="test", actor="test")
            for segment in await engine.compaction.due(everything=True):
                await engine.compaction.rewrite(segment, throttled=False)
            assert await engine.compaction.finish() == 3
            assert results
            emptied = await engine.compaction.rewrite(
                bytes.fromhex(next(aside.iterdir()).name), throttled=False
            )
            assert (emptied.moved, emptied.kept_because) == (
                0,
                "",
            )  # whoever found it due before comes too late
    assert not list((directory / "segments").iterdir())
    left = {path.read_bytes() for path in (directory / "keys").rglob("*") if path.is_file()}
    assert len(keys & left) == len(keys) - 3
    with stores_in(directory) as stores:
        for old in aside.iterdir():
            with pytest.raises(KeyringError):
                stores.keyring.key("segment", old.name)
            for purpose in ("segment", "token", "index"):
                for key_id in stores.keyring.key_ids(purpose):
                    key = stores.keyring.key(purpose, key_id)
                    scan = SegmentScan(LocalBlobs(aside), old.name, bytes.fromhex(old.name), key)
                    assert not [one for one in scan.records(None) if isinstance(one, ScannedRecord)]
