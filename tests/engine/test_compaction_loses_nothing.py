"""Compaction gives the disk back and makes deleted bytes unreadable, and costs no object."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.engine.engine import Engine, EngineOptions, Stores, open_engine
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.rewriting import RewriteLimits, Rewriter
from hounsfield.storage_backends.errors import KeyringError
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
