"""Films that are made at once: what they hold together is bounded, and none holds what it does not need."""

from __future__ import annotations

import gc
import io
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
import trio
from PIL import Image as PilImage
from pydicom import Dataset

from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import OutOfResourcesError
from hounsfield.archive.engine.rendered import RenderedLimits, Subject
from hounsfield.archive.rendering.errors import BadParameterError, NotRenderableError
from hounsfield.archive.rendering.film import FRAME_BYTES, film_bytes_max, film_of
from hounsfield.archive.rendering.pipeline import Cells, FilmDrawing
from hounsfield.archive.rendering.request import GIF, MP4, PNG, Rendering, Viewport
from support.archives import ct_slice, store, stores_in

UID = "1.2.840.10008.1.2.1"
FRAMES, SIDE = 12, 64
SMALL = Rendering(GIF, viewport=Viewport(16, 16))
#: Of a film of small pictures: two bytes for each pixel, heads, and a frame of 16 bits.
HELD = FRAMES * (2 * 16 * 16 + FRAME_BYTES) + 2 * SIDE * SIDE


async def cine(engine: Engine, level: int = 0) -> Subject:
    """An object of frames that get brighter, without a window."""

    def change(data: Dataset) -> None:
        data.Rows = data.Columns = SIDE
        data.NumberOfFrames, data.BitsStored, data.HighBit, data.PixelRepresentation = FRAMES, 16, 15, 0
        data.RescaleIntercept, data.RescaleSlope = 0, 1
        for name in ("WindowCenter", "WindowWidth", "PixelPaddingValue", "SmallestImagePixelValue"):
            if name in data:
                delattr(data, name)

    cells = np.empty((FRAMES, SIDE, SIDE), "<u2")
    cells[:] = level + 100 * np.arange(FRAMES)[:, None, None]
    result = await store(engine, ct_slice(change=change, pixels=cells.tobytes()), UID)
    (one,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
    (subject,) = await engine.rendered.subjects(one)
    assert len(subject.frames) == FRAMES
    return subject


def assert_only_the_cache_holds(engine: Engine) -> None:
    """Room is taken by films that may be asked for again; it is theirs as long as nobody else wants it."""
    rendered = engine.rendered
    gc.collect()
    while rendered._files.forget_oldest(lambda value: isinstance(value, memoryview)):
        pass
    assert rendered.films.in_flight == 0


class Watched:
    """The frames that films were given and still hold, and the films that are being drawn."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = self.held_max = self.read = 0
        rendered = engine.rendered
        read = rendered._cells

        async def cells(subject: Subject, number: int) -> Cells:
            found = await read(subject, number)
            array = found.array.copy()
            self.read += 1
            self.held += 1
            self.held_max = max(self.held_max, self.held)
            weakref.finalize(array, self._gone)
            return Cells(array, found.photometric, found.as_stored)

        monkeypatch.setattr(rendered, "_cells", cells)

    def _gone(self) -> None:
        self.held -= 1


async def test_a_film_holds_all_its_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            subject = await cine(engine)
            watched = Watched(engine, monkeypatch)
            for asked in (SMALL, Rendering(GIF)):
                data = bytes(await engine.rendered.file(subject, subject.frames, asked))
                # The one that is drawn, and the next one while that is let go.
                assert 1 <= watched.held_max <= 2
                with PilImage.open(io.BytesIO(data)) as film:
                    assert film.n_frames == FRAMES
                    levels = []
                    for n in range(FRAMES):
                        film.seek(n)
                        levels.append(float(np.asarray(film.convert("L")).mean()))
                # One range for all: from black to white.
                assert np.abs(np.array(levels) - np.linspace(0, 255, FRAMES)).max() <= 1
            assert watched.read == 2 * 2 * FRAMES
            assert watched.held == 0
            assert_only_the_cache_holds(engine)


async def test_films_at_once_hold_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight are asked for where there is room for two: all are made, two at a time."""
    limits = RenderedLimits(films_bytes_max=2 * HELD + 100, films_wait_s_max=300.0, at_once_max=8)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(rendered=limits), owner="test") as engine:
            subjects = [await cine(engine, level) for level in range(8)]
            watched = Watched(engine, monkeypatch)
            counted = []
            draw = FilmDrawing.draw

            def noted(film: FilmDrawing, number: int, cells: Cells) -> None:
                counted.append(engine.rendered.films.in_flight)
                draw(film, number, cells)

            monkeypatch.setattr(FilmDrawing, "draw", noted)
            made: list[bytes] = []

            async def ask(subject: Subject) -> None:
                made.append(bytes(await engine.rendered.file(subject, subject.frames, SMALL)))

            async with trio.open_nursery() as nursery:
                for subject in subjects:
                    nursery.start_soon(ask, subject)
            assert len(made) == 8
            assert len(counted) == 8 * FRAMES
            assert HELD < max(counted) <= limits.films_bytes_max
            assert watched.held_max <= 2 * 2
            assert_only_the_cache_holds(engine)


async def test_a_film_waits_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told to come back, a picture is not; a film that is broken off gives its room back."""
    limits = RenderedLimits(films_bytes_max=HELD, films_wait_s_max=0.0)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(rendered=limits), owner="test") as engine:
            subject, other = await cine(engine), await cine(engine, 5)
            rendered = engine.rendered
            read, reached = rendered._cells, trio.Event()

            async def never(subject: Subject, number: int) -> Cells:
                if number == 3:
                    reached.set()
                    await trio.sleep_forever()
                return await read(subject, number)

            monkeypatch.setattr(rendered, "_cells", never)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rendered.file, subject, subject.frames, SMALL)
                await reached.wait()
                assert rendered.films.in_flight == HELD
                with pytest.raises(OutOfResourcesError, match="ask again later"):
                    await rendered.file(other, other.frames, SMALL)
                assert await rendered.file(other, [1], Rendering(PNG))
                nursery.cancel_scope.cancel()
            assert rendered.films.in_flight == 0
            monkeypatch.undo()
            assert await rendered.file(other, other.frames, SMALL)


@pytest.mark.parametrize("kind", [GIF, MP4])
async def test_a_viewport_makes_a_film_of_any_size(tmp_path: Path, kind: str) -> None:
    """What is stored is small: it is refused for what would be drawn, before anything is read."""
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            subject = await cine(engine)
            with pytest.raises(NotRenderableError, match="too many frames"):
                await engine.rendered.file(
                    subject, subject.frames, Rendering(kind, viewport=Viewport(8192, 8192))
                )
            with pytest.raises(BadParameterError):
                await engine.rendered.file(
                    subject, subject.frames, Rendering(kind, viewport=Viewport(9, 9, SIDE, 0))
                )
            assert engine.rendered.films.in_flight == 0


async def test_decoded_frames_keep_more_than_themselves(tmp_path: Path) -> None:
    """Frames of a large object are a quarter of the chunks that are opened for them: those are let go of."""
    side, frames = 512, 140

    def change(data: Dataset) -> None:
        data.Rows = data.Columns = side
        data.NumberOfFrames, data.BitsAllocated, data.BitsStored, data.HighBit = frames, 8, 8, 7

    cells = np.empty((frames, side, side), np.uint8)
    cells[:] = np.arange(frames, dtype=np.uint8)[:, None, None]
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            whole = ct_slice(change=change, pixels=cells.tobytes())
            result = await store(engine, whole, UID, piece=1 << 20)
            (one,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
            assert one.row.location.stream is not None
            for number in range(1, 13):
                kept = (await engine.decoding.decoded(one, number)).pixels
                assert kept.min() == kept.max() == number - 1
                owner = kept
                while isinstance(owner, np.ndarray):
                    owner = owner.base
                owner = owner.obj if isinstance(owner, memoryview) else owner
                assert len(owner) <= 2 * kept.nbytes
            assert engine.decoding.figures.bytes_held == 12 * side * side


async def noise(engine: Engine, frames: int, side: int, samples: int = 1) -> Subject:
    """What no encoder makes smaller."""

    def change(data: Dataset) -> None:
        data.Rows = data.Columns = side
        data.NumberOfFrames, data.BitsAllocated, data.BitsStored, data.HighBit = frames, 8, 8, 7
        if samples == 3:
            data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0

    cells = np.random.default_rng(frames + side).integers(0, 256, frames * side * side * samples, np.uint8)
    result = await store(engine, ct_slice(change=change, pixels=cells.tobytes()), UID, piece=1 << 20)
    (one,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
    (subject,) = await engine.rendered.subjects(one)
    return subject


@pytest.mark.parametrize("samples", [1, 3])
def test_a_film_of_noise_takes_more_than_it_counts(samples: int) -> None:
    """The encoder's output too is within two bytes for each pixel, and there is one copy of it."""
    frames, side = 40, 256
    chance = np.random.default_rng(5)
    shape = (side, side, 3) if samples == 3 else (side, side)
    pictures = [chance.integers(0, 256, shape, np.uint8) for _ in range(3)]
    counted = film_bytes_max(GIF, frames, side * side)
    film_of(GIF, 0.1, 90).add(pictures[0])  # with what is imported at first
    tracemalloc.start()
    try:
        film = film_of(GIF, 0.1, 90)
        for number in range(frames):
            film.add(pictures[number % 3])
        data = film.finish()
        film.close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(data) > side * side * frames
    # And the picture that is being drawn.
    assert peak < counted + 8 * side * side
    with PilImage.open(io.BytesIO(data)) as shown:
        assert shown.n_frames == frames
        for number in (0, 1, frames - 1) if samples == 1 else ():
            shown.seek(number)
            assert np.array_equal(np.asarray(shown.convert("L")), pictures[number % 3])


def test_only_what_changes_is_in_a_film() -> None:
    """A spot that moves, a picture that stays, and one of which all is new; and as many as there were."""
    blank = np.zeros((40, 50), np.uint8)
    pictures = [blank.copy() for _ in range(5)]
    pictures[1][3:6, 7:11] = 200
    pictures[2][:] = pictures[1]
    pictures[3][30, 49] = 255
    pictures[4][:] = 77
    for colours in (False, True):
        film = film_of(GIF, 0.2, 90)
        for picture in pictures:
            film.add(np.repeat(picture[:, :, None], 3, axis=2) if colours else picture)
        with PilImage.open(io.BytesIO(film.finish())) as shown:
            assert shown.n_frames == 5
            for number, picture in enumerate(pictures):
                shown.seek(number)
                assert shown.info["duration"] == 200
                assert np.array_equal(np.asarray(shown.convert("L")), picture)


async def test_a_film_is_forgotten_before_it_is_sent(tmp_path: Path) -> None:
    """Who holds what was made has its room, in the cache or not; another waits, or is told to come back."""
    frames, side = 8, 100
    room = frames * (2 * side * side + FRAME_BYTES) + side * side
    for cache in (0, 64 << 20):
        limits = RenderedLimits(films_bytes_max=room, films_wait_s_max=0.0, cache_bytes_max=cache)
        with stores_in(tmp_path / f"data{cache}") as stores:
            async with open_engine(stores, EngineOptions(rendered=limits), owner="test") as engine:
                subject = await noise(engine, frames, side)
                rendered = engine.rendered
                first = await rendered.file(subject, subject.frames, Rendering(GIF))
                assert rendered.films.in_flight == len(first) > frames * side * side
                with pytest.raises(OutOfResourcesError, match="ask again later"):
                    await rendered.file(subject, subject.frames, Rendering(GIF, quality=50))
                view = first[1000:]
                assert await rendered.file(subject, [1], Rendering(PNG))
                del first, view
                # What is only kept for who may ask again makes room.
                other = await rendered.file(subject, subject.frames, Rendering(GIF, quality=50))
                assert rendered.films.in_flight == len(other)
                del other
                assert_only_the_cache_holds(engine)
