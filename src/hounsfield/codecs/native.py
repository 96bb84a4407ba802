"""Frames that are plain cells, and cells that zlib made smaller: no library but numpy."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.errors import CorruptFrameError, UnsupportedPixelsError
from hounsfield.codecs.pixels import Buffer, PixelFormat, Pixels, from_native, to_native

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred("numpy")

#: Two pixels share their chrominance: Y1 Y2 Cb Cr (PS3.3 C.7.6.3.1.2).
_HALF_CHROMA = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})


def decode_little_endian(frame: Buffer, pixels: PixelFormat) -> Pixels:
    return _decoded(frame, pixels, little_endian=True)


def decode_fragment(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """Encapsulated Uncompressed: the cells in a fragment, behind which there may be a byte of padding."""
    length = _single_bit_bytes(pixels) if pixels.bits_allocated == 1 else pixels.frame_bytes
    if length % 2 and len(frame) == length + 1:
        frame = memoryview(frame)[:length]
    return _decoded(frame, pixels, little_endian=True)


def decode_big_endian(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """Cells of 8 bits, and of one, in words of 16 (VR OW) are swapped in pairs (PS3.5 8.1.2)."""
    if pixels.bits_allocated <= 8 and pixels.in_words:
        if len(frame) % 2:
            raise UnsupportedPixelsError("bytes in words of 16 bits, and an odd number of them in a frame")
        frame = np.frombuffer(frame, ">u2").astype("<u2").view(np.uint8).data
    return _decoded(frame, pixels, little_endian=False)


def encode_little_endian(array: Pixels, pixels: PixelFormat) -> bytes:
    """Every bit of the cells, by plane where the format says so."""
    return bytes(to_native(array, pixels))


def decode_deflated_frame(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """Deflated Image Frame Compression: one raw deflate stream a frame (PS3.5 A.4.13)."""
    length = _single_bit_bytes(pixels) if pixels.bits_allocated == 1 else pixels.frame_bytes
    if pixels.bits_allocated != 1:
        pixels.check()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(frame, length + 1)
    except zlib.error as error:
        raise CorruptFrameError("the frame does not inflate") from error
    if length + 1 == len(plain) and length % 2:
        plain = plain[:-1]
    return _decoded(plain, pixels, little_endian=True)


def _decoded(frame: Buffer, pixels: PixelFormat, *, little_endian: bool) -> Pixels:
    if pixels.bits_allocated == 1:
        return _single_bits(frame, pixels)
    if (
        pixels.photometric in _HALF_CHROMA
        and pixels.samples == 3
        and len(frame) * 3 == pixels.frame_bytes * 2
    ):
        return _full_chroma(frame, pixels, little_endian=little_endian)
    return from_native(frame, pixels, little_endian=little_endian)


def _single_bit_bytes(pixels: PixelFormat) -> int:
    return -(-pixels.rows * pixels.columns * pixels.samples // 8)


def _single_bits(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """Cells of one bit, the first in the lowest (PS3.5 8.1.1), as bytes that are 0 or 1."""
    shape = pixels.shape
    PixelFormat(*shape, 8, 1).check()
    if len(frame) != _single_bit_bytes(pixels):
        raise CorruptFrameError(
            f"a frame of {len(frame)} bytes where the shape has {_single_bit_bytes(pixels)}"
        )
    bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")
    return bits[: pixels.rows * pixels.columns * pixels.samples].reshape(shape)


def _full_chroma(frame: Buffer, pixels: PixelFormat, *, little_endian: bool) -> Pixels:
    pixels.check()
    if pixels.columns % 2:
        raise UnsupportedPixelsError("an odd number of columns that share their chrominance in pairs")
    words = np.frombuffer(frame, pixels.dtype.newbyteorder("<" if little_endian else ">"))
    pairs = words.reshape(pixels.rows, pixels.columns // 2, 4)
    out = np.empty(pixels.shape, pixels.dtype)
    out[:, 0::2, 0], out[:, 1::2, 0] = pairs[:, :, 0], pairs[:, :, 1]
    for first in (0, 1):
        out[:, first::2, 1:] = pairs[:, :, 2:]
    return out
