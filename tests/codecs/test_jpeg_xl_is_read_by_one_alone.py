"""Danger: JPEG XL that only the library that wrote it can read, or reads as it was.

libjxl writes and reads here; jxl-oxide reads what it wrote. There is no other writer to be had, so
that what others might write is not tried.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest

from hounsfield.codecs.coders import CODERS
from hounsfield.codecs.pixels import PixelFormat, from_native, samples
from support.frames import made_frame, real_frames
from support.jxl_oxide import decoded_by_jxl_oxide

LOSSLESS, RECOMPRESSED, LOSSY = (f"1.2.840.10008.1.2.4.{number}" for number in (110, 111, 112))
SHAPES = [
    PixelFormat(*side, number, *bits, photometric="RGB" if number == 3 else "MONOCHROME2")
    for side, number, bits in itertools.product(
        [(1, 1), (13, 17), (64, 63), (270, 300)], [1, 3], [(8, 6), (8, 8), (16, 10), (16, 12), (16, 16)]
    )
]
#: The inverse transform and the upsampling of chrominance may be rounded otherwise.
TOLERANCE = 3

pytestmark = pytest.mark.peer("node", "jxl-oxide-wasm")


@pytest.mark.parametrize("uid", [LOSSLESS, LOSSY])
def test_what_is_written_is_read_by_jxl_oxide_bit_for_bit(uid: str) -> None:
    written = []
    for seed, pixels in enumerate(SHAPES):
        array = samples(from_native(made_frame(pixels, seed), pixels), pixels)
        written.append((CODERS[uid].encode(array, pixels), pixels.bits_stored, array))
    read = decoded_by_jxl_oxide([(frame, bits) for frame, bits, _ in written])
    for pixels, (_, _, array), theirs in zip(SHAPES, written, read, strict=True):
        assert np.array_equal(theirs, array), pixels


def test_real_frames_are_read_by_jxl_oxide_bit_for_bit() -> None:
    written = []
    for frame in real_frames():
        pixels = frame.pixels
        native = frame.transfer_syntax_uid in {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
        if not native or pixels.signed or pixels.bits_allocated not in (8, 16):
            continue
        if len(frame.data) > 1 << 20 or len(frame.data) != pixels.frame_bytes or frame.number > 1:
            continue
        plain = replace(pixels, planar=False)
        array = samples(from_native(frame.data, pixels), pixels)
        written.append((CODERS[LOSSLESS].encode(array, plain), pixels.bits_stored, array, frame.name))
    read = decoded_by_jxl_oxide([(frame, bits) for frame, bits, _, _ in written])
    for (_, _, array, name), theirs in zip(written, read, strict=True):
        assert np.array_equal(theirs, array), name
    assert len(written) > 10


def test_what_lost_something_is_read_as_jxl_oxide_reads_it() -> None:
    """JPEG recompression and lossy JPEG XL, as others store them: the same picture in both readers."""
    generator = np.random.default_rng(5)
    y, x = np.mgrid[0:96, 0:120]
    grey = (np.sin(x / 11) * 60 + np.cos(y / 13) * 60 + 128 + generator.normal(0, 2, x.shape)).astype(
        np.uint8
    )
    colour = np.stack([grey, grey[::-1], 255 - grey], axis=-1)
    cases = []
    for array in (grey, colour):
        pixels = PixelFormat(96, 120, 1 if array.ndim == 2 else 3, 8, 8)
        jpeg = imagecodecs.jpeg8_encode(array, level=90)
        cases.append((RECOMPRESSED, imagecodecs.jpegxl_encode_jpeg(jpeg), pixels))
        cases.append((LOSSY, imagecodecs.jpegxl_encode(array, distance=1.0), pixels))
    theirs = decoded_by_jxl_oxide([(frame, 8) for _, frame, _ in cases])
    for (uid, frame, pixels), other in zip(cases, theirs, strict=True):
        ours = CODERS[uid].decode(frame, pixels)
        assert np.abs(ours.astype(int) - other).max() <= TOLERANCE, uid
