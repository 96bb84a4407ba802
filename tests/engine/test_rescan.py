"""A reindex that reads every header again finds what an older release did not extract, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.dicom.attributes import Extracted, extract
from hounsfield.archive.engine import receiving
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.rows import InstanceRow, SeriesRow, StudyRow
from hounsfield.archive.index.tables import INSTANCE, SERIES, STUDY
from support.archives import ct_slice, sample_files, store, stores_in

STUDY_DESCRIPTION = 0x00081030


def rows(stores: Stores) -> list[tuple[bytes, object]]:
    kinds: Mapping[object, type] = {STUDY: StudyRow, SERIES: SeriesRow, INSTANCE: InstanceRow}
    with stores.store.snapshot() as snapshot:
        return [
            (key, msgspec.to_builtins(stores.catalog.open_row(table, key, sealed, kind)))  # type: ignore[arg-type, type-var]
            for table, kind in kinds.items()
            for key, sealed in snapshot.scan(table)  # type: ignore[arg-type]
        ]


def reindexed(directory: Path, *, rescan: bool) -> list[tuple[bytes, object]]:
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        report = stores.reindex(lambda *_: None, rescan=rescan)
        assert not report.damaged
        return rows(stores)


async def test_headers_say_the_same_as_rows_for_every_real_file(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for file in sample_files():
                await store(engine, file.data, file.transfer_syntax_uid)
    by_rows = reindexed(directory, rescan=False)
    assert len(by_rows) > 100
    assert reindexed(directory, rescan=True) == by_rows


async def test_what_an_older_release_did_not_extract_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(*arguments: object) -> Extracted:
        found = extract(*arguments)  # type: ignore[arg-type]
        del found.study[STUDY_DESCRIPTION]
        return found

    directory = tmp_path / "data"
    monkeypatch.setattr(receiving, "extract", older)
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await store(engine, ct_slice(), ExplicitVRLittleEndian)
    for rescan in (False, True, False):
        (study, *_) = reindexed(directory, rescan=rescan)
        assert ("Thorax nativ" in str(study)) == rescan
