"""Danger: a damaged frame takes a server, a neighbour's request or a process too many with it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import trio
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from engine import fuzz_decoders
from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.archive.engine.errors import NotTranscodableError
from hounsfield.archive.engine.types import Instance
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.pixels import PixelFormat
from support.archives import ct_slice
from support.transcoded import archive, stored

CASES = 25 * len(fuzz_decoders.COMPRESSED)
SECONDS_MAX = 20.0  # on a machine that has other things to do, fewer cases
HTJ2K = fuzz_decoders.HTJ2K


def test_every_compressed_syntax_has_sound_frames_to_damage() -> None:
    assert len(fuzz_decoders.COMPRESSED) == 18
    for uid in fuzz_decoders.COMPRESSED:
        assert len(fuzz_decoders.samples_of(uid)) >= 2, uid


def test_a_damaged_frame_of_any_syntax_costs_that_frame_alone() -> None:
    figures, isolation = fuzz_decoders.run(range(CASES), SECONDS_MAX)
    for uid in fuzz_decoders.COMPRESSED:
        assert figures.decoded[uid] + figures.refused[uid] > 0, uid
    assert sum(figures.decoded.values()) > 10
    assert sum(figures.refused.values()) > 10
    assert isolation.started == 1 + isolation.failed  # each that was ended was replaced, none besides
    assert not isolation.processes


def image(frames: list[bytes], pixels: PixelFormat) -> Callable[[Dataset], None]:
    def change(data: Dataset) -> None:
        data.Rows, data.Columns, data.SamplesPerPixel = pixels.shape
        data.BitsAllocated, data.BitsStored = pixels.bits_allocated, pixels.bits_stored
        data.HighBit, data.PixelRepresentation = pixels.bits_stored - 1, int(pixels.signed)
        data.PhotometricInterpretation = pixels.photometric
        if pixels.samples > 1:
            data.PlanarConfiguration = 0
        data.NumberOfFrames = len(frames)
        data.PixelData = encapsulate(frames)

    return change


async def test_sound_objects_are_served_while_broken_ones_are_asked_for(tmp_path: Path) -> None:
    """All at once, through one engine: as pixels and in another syntax, frame by frame."""
    generator = random.Random(11)
    limits = fuzz_decoders.LIMITS
    failed: list[str] = []
    async with archive(tmp_path, EngineOptions(isolation=limits)) as engine:
        sound = await stored(engine, ct_slice(), ExplicitVRLittleEndian)
        before = (await engine.decoded(sound, 1)).pixels.tobytes()
        broken = []
        for uid in fuzz_decoders.COMPRESSED:
            sample = fuzz_decoders.samples_of(uid)[-1]
            frames = [sample.frame, *(fuzz_decoders.damaged(sample.frame, generator) for _ in range(2))]
            # All are written as RLE is, and pydicom does not know each.
            data_set = ct_slice(change=image(frames, sample.pixels), syntax=RLELossless)
            broken.append(await stored(engine, data_set, uid))

        async def ask(instance: Instance, number: int) -> None:
            try:
                decoded = await engine.decoded(instance, number)
                assert decoded.pixels.shape[:2] == (decoded.format.rows, decoded.format.columns)
                await engine.transcoded_frame(instance, number, HTJ2K)
            except (CodecError, NotTranscodableError) as error:
                failed.append(type(error).__name__)
                assert number > 1, instance.row.transfer_syntax_uid

        async with trio.open_nursery() as nursery:
            for instance in broken:
                for number in (1, 2, 3):
                    nursery.start_soon(ask, instance, number)
            for _ in range(20):
                assert (await engine.decoded(sound, 1)).pixels.tobytes() == before
                assert await engine.transcoded_frame(sound, 1, HTJ2K)
                assert len(engine.isolation.processes) <= limits.processes_max
                await trio.sleep(0)
        assert failed
