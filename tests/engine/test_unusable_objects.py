"""No object is refused for its metadata: what cannot be filed is kept in quarantine and said so."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.types import Outcome
from support.archives import ct_slice, store, stores_in


def without_study(data: Dataset) -> None:
    del data.StudyInstanceUID


def without_sop(data: Dataset) -> None:
    del data.SOPInstanceUID


def with_words_for_a_uid(data: Dataset) -> None:
    data["SeriesInstanceUID"]._value = "not a uid"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_study, "missing-study-instance-uid"),
        (without_sop, "missing-sop-instance-uid"),
        (with_words_for_a_uid, "invalid-series-instance-uid"),
    ],
)
async def test_an_object_without_a_usable_uid_is_quarantined(tmp_path: Path, change, reason: str) -> None:
    data = ct_slice(change=change)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            result = await store(engine, data, ExplicitVRLittleEndian)
            assert result.outcome is Outcome.QUARANTINED
            assert reason in result.warnings
        with stores.store.snapshot() as snapshot:
            (row,) = stores.catalog.quarantined(snapshot)
        assert row.reason == reason
        ref = stores.indexer.objects.ref_of(row.location)
        kept = b"".join(bytes(stores.log.open_part(part)) for part in list(ref.parts())[1:])
        assert kept == data


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"GARBAGE" * 100, bytes(range(256)) * 20])
async def test_nonsense_is_kept(tmp_path: Path, data: bytes) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.QUARANTINED


async def test_two_quarantined_objects_in_one_group_are_both_kept(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with (
            open_engine(stores, EngineOptions(), owner="test") as engine,
            trio.open_nursery() as nursery,
        ):
            for _ in range(4):
                nursery.start_soon(store, engine, ct_slice(change=without_sop), ExplicitVRLittleEndian)
        with stores.store.snapshot() as snapshot:
            assert len(list(stores.catalog.quarantined(snapshot))) == 4


async def test_truncated_objects_are_stored_and_flagged(tmp_path: Path) -> None:
    whole = ct_slice()
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            result = await store(engine, whole[:-100], ExplicitVRLittleEndian)
            assert result.outcome is Outcome.STORED
            assert "truncated" in result.warnings
