"""What the engine counts reaches the scoreboard, and so every scrape, as what it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from hounsfield.archive.app.engine_options import engine_options
from hounsfield.archive.app.metrics import prometheus_text
from hounsfield.archive.app.sampling import Sampler
from hounsfield.archive.app.scoreboard import METRICS, Scoreboard
from hounsfield.archive.config import Config
from hounsfield.archive.config.sections import Rendered
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.rendered import RenderedLimits
from hounsfield.archive.engine.types import Source
from hounsfield.archive.rendering.errors import BadParameterError
from hounsfield.archive.rendering.request import Rendering, Viewport
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


async def test_pictures_drawn_kept_and_refused(tmp_path: Path) -> None:
    descriptor, board = Scoreboard.create(1)
    with stores_in(tmp_path) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            row = Scoreboard(descriptor, worker=0)
            sampler = Sampler(row)
            sampler.add_engine(engine)
            uids = {name: generate_uid() for name in ("study_uid", "series_uid", "sop_uid")}
            await store(engine, ct_slice(change=smooth, **uids), ExplicitVRLittleEndian)
            (one,) = await engine.instances(*uids.values())
            (subject,) = await engine.rendered.subjects(one)
            data = await engine.rendered.file(subject, [1], Rendering())
            for _ in range(2):
                assert await engine.rendered.file(subject, [1], Rendering()) == data
            outside = Rendering(viewport=Viewport(8, 8, left=64))
            with pytest.raises(BadParameterError):
                await engine.rendered.file(subject, [1], outside)
            sampler.sample()
            row.close()
    told = {metric.key: board.total(metric.key) for metric in METRICS if metric.name.startswith("rendered")}
    text = prometheus_text(board).decode()
    board.close()
    os.close(descriptor)
    microseconds = told.pop("rendered_work_seconds_total")
    assert told == {
        "rendered_files_total.drawn": 1,
        "rendered_files_total.kept": 2,
        "rendered_files_total.shared": 0,
        "rendered_bytes_total": len(data),
        "rendered_refused_total": 1,
        "rendered_kept_bytes": len(data),
    }
    assert 0 < microseconds < 60e6
    (line,) = (
        line for line in text.splitlines() if line.startswith("hounsfield_rendered_work_seconds_total ")
    )
    assert float(line.split()[1]) == pytest.approx(microseconds * 1e-6)


def test_a_key_for_pictures_reaches_their_limits() -> None:
    """Every limit of RenderedLimits has a key; memory is the archive's, shared by its workers."""
    section = Rendered(
        files_bytes_max=30,
        descriptions_bytes_max=60,
        film_frames_max=7,
        film_bytes_max=9 << 20,
        films_bytes_max=8 << 20,
        films_wait_seconds=2.5,
        at_once_max=5,
        video_bytes_max=11,
        video_seconds_max=3.5,
    )
    limits = engine_options(Config(rendered=section), workers=3).rendered
    assert limits == RenderedLimits(10, 20, 7, 9 << 20, 5, 11, 3.5, 8 << 20, 2.5)
    defaults = engine_options(Config(), workers=2).rendered
    assert defaults == RenderedLimits()
