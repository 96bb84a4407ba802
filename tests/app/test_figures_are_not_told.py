"""What the engine counts reaches the scoreboard, and so every scrape, as what it is."""

from __future__ import annotations

import os
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from hounsfield.archive.app.sampling import Sampler
from hounsfield.archive.app.scoreboard import Scoreboard
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.types import Source
from support.archives import ct_slice, stores_in

WATCHED = (
    "objects_total.stored", "objects_total.duplicate", "objects_total.conflict",
    "objects_compared_total.same", "objects_compared_total.other",
    "compression_objects_total.smaller", "compression_objects_total.as_received",
    "compression_bytes_total.received", "compression_bytes_total.stored",
)  # fmt: skip
CT = "1.2.840.10008.5.1.4.1.1.2"


async def store(engine: Engine, data: bytes, syntax: str) -> None:
    session = engine.begin(
        transfer_syntax_uid=syntax, sop_class_uid=CT, sop_instance_uid="", source=Source("import")
    )
    await session.write(data)
    await session.commit()


def smooth(data: Dataset) -> None:
    """Pixels that shrink, and enough of them to be worth it."""
    data.Rows = data.Columns = 64
    data.PixelData = bytes(number // 256 % 4 for number in range(64 * 64 * 2))


async def test_compressed_compared_and_prepared(tmp_path: Path) -> None:
    descriptor, board = Scoreboard.create(1)
    options = EngineOptions(compression="zstd")
    uids = {name: generate_uid() for name in ("study_uid", "series_uid", "sop_uid")}

    def other(data: Dataset) -> None:
        smooth(data)
        data.PatientComments = "something else"

    with stores_in(tmp_path, options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            row = Scoreboard(descriptor, worker=0)
            sampler = Sampler(row)
            sampler.add_engine(engine)
            await store(engine, ct_slice(change=smooth, **uids), ExplicitVRLittleEndian)
            for change in (smooth, other):  # the same in another syntax, and something else in it
                data = ct_slice(change=change, syntax=ImplicitVRLittleEndian, **uids)
                await store(engine, data, ImplicitVRLittleEndian)
            sampler.sample()
            row.close()
    told = {key: board.total(key) for key in WATCHED}
    board.close()
    os.close(descriptor)
    received, kept = told.pop("compression_bytes_total.received"), told.pop("compression_bytes_total.stored")
    assert told == {
        "objects_total.stored": 1,
        "objects_total.duplicate": 1,
        "objects_total.conflict": 1,
        "objects_compared_total.same": 1,
        "objects_compared_total.other": 1,
        "compression_objects_total.smaller": 3,
        "compression_objects_total.as_received": 0,
    }
    assert 0 < kept < received == 3 * 64 * 64 * 2
