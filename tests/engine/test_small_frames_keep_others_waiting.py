"""An object of very many frames of a few bytes is not opened while everybody else waits for it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.records import FRAMES_NOWAIT_MAX
from hounsfield.storage_backends.segments import SegmentLog
from support.archives import ct_slice, store, stores_in


@pytest.mark.parametrize("frames", [FRAMES_NOWAIT_MAX, 3000])
async def test_a_megabyte_of_single_bytes_stops_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    def change(data: Dataset) -> None:
        data.Rows = data.Columns = 1
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.NumberOfFrames = 7, frames

    data = ct_slice(change=change, pixels=bytes(frames + frames % 2))
    opened_here: list[int] = []
    open_parts = SegmentLog.open_parts

    def counted(self: SegmentLog, parts: Any, *rest: Any, **more: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            opened_here.append(len(parts))
        return open_parts(self, parts, *rest, **more)

    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            result = await store(engine, data, ExplicitVRLittleEndian)
            found = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
            monkeypatch.setattr(SegmentLog, "open_parts", counted)
            sent = b""
            async for pieces in engine.datasets(found, lambda _: b""):
                sent += b"".join(map(bytes, pieces))
            assert sent == data
    assert sum(opened_here) <= FRAMES_NOWAIT_MAX + 2  # header and trailer besides
