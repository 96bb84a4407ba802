"""What goes in comes out, bit for bit; frames are the frames that another library reads."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.errors import ClosedError, NotFoundError, NotSeparableError
from hounsfield.archive.engine.types import Outcome
from support.archives import TEST_SOURCE, ct_slice, sample_files, store, stored_bytes, stores_in


async def test_every_sample_file_comes_back_as_it_was(tmp_path: Path) -> None:
    stored = 0
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for sample in sample_files():
                result = await store(engine, sample.data, sample.transfer_syntax_uid)
                if result.outcome is Outcome.STORED:
                    stored += 1
                    assert await stored_bytes(engine, result) == sample.data, sample.path.name
            statistics = engine.statistics()
    assert stored > 50
    assert statistics.objects_failed == 0
    assert statistics.bytes_in_flight == 0


async def test_frames_are_those_that_pydicom_reads(tmp_path: Path) -> None:
    compared = 0
    for sample in sample_files():
        data = pydicom.dcmread(sample.path, force=True)
        if "PixelData" not in data or not getattr(data, "file_meta", None):
            continue
        with stores_in(tmp_path / sample.path.name) as stores:
            async with open_engine(stores, EngineOptions(), owner="test") as engine:
                result = await store(engine, sample.data, sample.transfer_syntax_uid)
                if result.outcome is not Outcome.STORED or result.warnings:
                    continue
                frames = int(data.get("NumberOfFrames") or 1)
                uids = (result.study_uid, result.series_uid, result.sop_instance_uid)
                for number in {1, frames}:
                    try:
                        got = await engine.frame(*uids, number)
                    except NotSeparableError:
                        break
                    if data.file_meta.TransferSyntaxUID.is_encapsulated:
                        wanted = pydicom.encaps.get_frame(data.PixelData, number - 1, number_of_frames=frames)
                    elif data.BitsAllocated == 1:
                        break
                    else:
                        size = pydicom.pixels.utils.get_expected_length(data) // frames
                        wanted = data.PixelData[size * (number - 1) : size * number]
                    assert bytes(got.data) == wanted, (sample.path.name, number)
                    compared += 1
                with pytest.raises((NotFoundError, NotSeparableError)):
                    await engine.frame(*uids, frames + 1)
    assert compared > 60


async def test_an_abandoned_object_leaves_nothing(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            await session.write(ct_slice()[:400])
            assert engine.statistics().bytes_in_flight == 65536  # the memory that holds it
            session.abandon()
            session.abandon()
            assert engine.statistics().bytes_in_flight == 0
            with pytest.raises(ClosedError):
                await session.write(b"more")
        assert stores.log.segment_ids() == []


async def test_a_draining_engine_takes_nothing_new_and_finishes_what_it_has(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            data = ct_slice()
            session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            await session.write(data)
            result = await session.commit()
            engine.close()
            with pytest.raises(ClosedError):
                engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            assert await stored_bytes(engine, result) == data
