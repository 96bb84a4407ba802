"""Lossless decoders and encoders, each one call into a library, each in and out of one form of pixels.

Every function here gives the garbage in a codestream to a C library: of untrusted bytes that is done in a
process of its own (:mod:`hounsfield.codecs.decoding_process`). The libraries are imported when first needed:
an archive that compares and compresses nothing never loads them.
"""

from __future__ import annotations

import zlib
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.errors import CorruptFrameError, UnsupportedPixelsError
from hounsfield.codecs.pixels import Buffer, PixelFormat, Pixels, from_native, in_words

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred("numpy")

#: JPEG XL: the fastest lossless mode; see docs/decisions/0012.
JPEG_XL_EFFORT = 1


@cache
def imagecodecs() -> ModuleType:
    """The library, loaded once (0.2 s, 30 MB)."""
    import imagecodecs as library

    module: ModuleType = library
    return module


def _called(name: str, data: Any, **options: Any) -> Any:
    """One call of the library; whatever it raises on bad bytes is a ``CorruptFrameError``."""
    try:
        return getattr(imagecodecs(), name)(data, **options)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # each library has an exception class of its own, and some have none
        raise CorruptFrameError(f"{name} failed ({type(error).__name__})") from error


def decode_little_endian(frame: Buffer, pixels: PixelFormat) -> Pixels:
    return from_native(frame, pixels)


def decode_big_endian(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """Cells of 8 bits in words of 16 (VR OW) are swapped in pairs (PS3.5 8.1.2)."""
    if pixels.bits_allocated == 8 and pixels.in_words:
        if len(frame) % 2:
            raise UnsupportedPixelsError("8-bit cells in words of 16, and an odd number of them")
        frame = np.frombuffer(frame, ">u2").astype("<u2").view(np.uint8).data
    return from_native(frame, pixels, little_endian=False)


def decode_deflated_frame(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """Deflated Image Frame Compression: one raw deflate stream a frame (PS3.5 A.4.13)."""
    pixels.check()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(frame, pixels.frame_bytes + 1)
    except zlib.error as error:
        raise CorruptFrameError("the frame does not inflate") from error
    if pixels.frame_bytes + 1 == len(plain) and pixels.frame_bytes % 2:
        plain = plain[:-1]
    return from_native(plain, pixels)


def decode_rle(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """RLE Lossless (PS3.5 G): one PackBits segment for each byte of each sample, the highest byte first."""
    pixels.check()
    words = np.dtype(f"<u{pixels.bits_allocated // 8}")
    plain = _called("dicomrle_decode", bytes(frame), dtype=words)
    if len(plain) != pixels.frame_bytes:
        raise CorruptFrameError(f"{len(plain)} bytes where the shape has {pixels.frame_bytes}")
    planes = np.frombuffer(plain, words).reshape(pixels.samples, pixels.rows, pixels.columns)
    return planes.transpose(1, 2, 0).astype(words.newbyteorder("=")).view(pixels.dtype)


def decode_jpeg_lossless(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """JPEG process 14 with any predictor (ISO 10918-1 H)."""
    pixels.check()
    return in_words(_called("jpegsof3_decode", bytes(frame)), pixels)


def decode_jpeg_ls(frame: Buffer, pixels: PixelFormat) -> Pixels:
    pixels.check()
    return in_words(_called("jpegls_decode", bytes(frame)), pixels)


def decode_jpeg_2000(frame: Buffer, pixels: PixelFormat) -> Pixels:
    pixels.check()
    return in_words(_called("jpeg2k_decode", bytes(frame), numthreads=1), pixels)


def decode_htj2k(frame: Buffer, pixels: PixelFormat) -> Pixels:
    pixels.check()
    return in_words(_called("htj2k_decode", frame), pixels)


def encode_htj2k(array: Pixels, pixels: PixelFormat) -> bytes:
    """Reversible, at most 16 bits a sample; colour goes through the reversible colour transform."""
    _words_of_16(pixels)
    if pixels.samples == 3:
        array = np.ascontiguousarray(array)
        coded: bytes = _called("htj2k_encode", array, reversible=True, rgb=True)
    else:
        coded = _called("htj2k_encode", np.ascontiguousarray(array[:, :, 0]), reversible=True)
    return coded


def decode_jpeg_xl(frame: Buffer, pixels: PixelFormat) -> Pixels:
    pixels.check()
    return in_words(_called("jpegxl_decode", frame, keeporientation=True, numthreads=1), pixels)


def encode_jpeg_xl(array: Pixels, pixels: PixelFormat) -> bytes:
    """Lossless, unsigned samples of 8 or 16 bits."""
    _words_of_16(pixels)
    if pixels.signed:
        raise UnsupportedPixelsError("JPEG XL has no signed samples")
    plain = np.ascontiguousarray(array if pixels.samples == 3 else array[:, :, 0])
    coded: bytes = _called("jpegxl_encode", plain, lossless=True, effort=JPEG_XL_EFFORT, numthreads=1)
    return coded


def _words_of_16(pixels: PixelFormat) -> None:
    pixels.check()
    if pixels.bits_allocated not in (8, 16):
        raise UnsupportedPixelsError(f"samples of {pixels.bits_allocated} bits; 8 and 16 are coded")
    if pixels.samples not in (1, 3):
        raise UnsupportedPixelsError(f"{pixels.samples} samples per pixel; 1 and 3 are coded")
