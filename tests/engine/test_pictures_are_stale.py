"""Rendered answers are kept: never past a correction or a deletion, never for an object that is not whole."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.uid import generate_uid

from hounsfield.archive.engine.corrections import Request
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.rendered import RenderedLimits
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.archive.rendering.request import GIF, JPEG, Rendering
from support.archives import ct_slice, encode, store, stores_in
from support.rendering import paths

UID = "1.2.840.10008.1.2.1"
NAMED = Rendering(JPEG, annotations=frozenset({"patient"}))


async def drawn(engine: Engine, asked: Rendering, *uids: str) -> bytes:
    (one,) = await engine.instances(*uids)
    (subject,) = await engine.rendered.subjects(one)
    return await engine.rendered.file(subject, [1], asked)


async def test_a_corrected_name_is_still_in_the_picture(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            data = pydicom.dcmread(paths()["CT_small.dcm"])
            result = await store(engine, encode(data, UID), UID)
            ids = (result.study_uid, result.series_uid, result.sop_instance_uid)
            before, bare = await drawn(engine, NAMED, *ids), await drawn(engine, Rendering(), *ids)
            wanted = Request(
                kind="set-study",
                actor="test",
                reason="test",
                study=ids[0],
                values={0x00100010: "Somebody^Else"},
            )
            await engine.correcting.make(wanted)
            assert await drawn(engine, NAMED, *ids) != before
            assert await drawn(engine, Rendering(), *ids) == bare


async def test_a_deleted_image_is_still_shown(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            result = await store(engine, ct_slice(), UID)
            ids = (result.study_uid, result.series_uid, result.sop_instance_uid)
            assert await drawn(engine, Rendering(), *ids)
            await engine.delete(Target(result.study_uid), reason="test", actor="test")
            with pytest.raises(NotFoundError):
                await drawn(engine, Rendering(), *ids)


async def test_the_memory_of_answers_grows(tmp_path: Path) -> None:
    limits = RenderedLimits(cache_bytes_max=20_000, descriptions_bytes_max=4_000)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(rendered=limits), owner="test") as engine:
            study, series = generate_uid(), generate_uid()
            for n in range(30):
                result = await store(engine, ct_slice(study_uid=study, series_uid=series, number=n), UID)
                await drawn(engine, Rendering(), study, series, result.sop_instance_uid)
            assert engine.rendered.figures.made == 30
            assert 0 < engine.rendered.figures.bytes_held <= limits.cache_bytes_max


async def test_a_long_film_takes_all_memory(tmp_path: Path) -> None:
    data = pydicom.dcmread(paths()["emri_small.dcm"])
    for limits in (RenderedLimits(animation_frames_max=9), RenderedLimits(animation_bytes_max=10 * 64 * 64)):
        directory = tmp_path / str(limits.animation_frames_max)
        with stores_in(directory) as stores:
            options = EngineOptions(rendered=limits)
            async with open_engine(stores, options, owner="test") as engine:
                result = await store(engine, encode(data, UID), UID)
                (one,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
                (subject,) = await engine.rendered.subjects(one)
                with pytest.raises(NotRenderableError):
                    await engine.rendered.file(subject, subject.frames, Rendering(GIF))
                assert await engine.rendered.file(subject, [1, 2], Rendering(GIF))
                with pytest.raises(NotFoundError):
                    await engine.rendered.file(subject, [11], Rendering())


async def test_a_large_object_is_not_shown(tmp_path: Path) -> None:
    """One that was stored in pieces: its header is kept otherwise."""
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            rows = 4600

            def change(data: pydicom.Dataset) -> None:
                data.Rows = data.Columns = rows
                data.WindowCenter, data.WindowWidth = 2000, 4000

            whole = ct_slice(change=change, pixels=bytes(rows * rows * 2))
            result = await store(engine, whole, UID, piece=1 << 20)
            ids = (result.study_uid, result.series_uid, result.sop_instance_uid)
            (one,) = await engine.instances(*ids)
            assert one.row.location.stream is not None
            assert await drawn(engine, Rendering(), *ids)
