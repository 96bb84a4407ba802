"""Coders of imagecodecs: libjpeg-turbo, CharLS, OpenJPEG, OpenJPH, libjxl and its own RLE and lossless JPEG.

Every function here gives the garbage in a codestream to a C library: of untrusted bytes that is done in a
process of its own (:mod:`hounsfield.codecs.decoding_process`). The library is imported when first needed: an
archive that compares and compresses nothing never loads it. It lets go of the GIL while it works.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from hounsfield.codecs.codestreams import components_are_rgb
from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.errors import CorruptFrameError, UnsupportedPixelsError
from hounsfield.codecs.pixels import Buffer, PixelFormat, Pixels, in_words
from hounsfield.codecs.to_code import Coded, plain_words

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred("numpy")

NAME: Final = "imagecodecs"
#: JPEG XL: the fastest lossless mode; see docs/decisions/0012.
JPEG_XL_EFFORT: Final = 1
#: JPEG baseline: chrominance halved, differences that nobody sees at a display's eight bits; see 0017.
JPEG_QUALITY: Final = 90
#: A tile-part for each resolution, so that a viewer can fetch the coarse ones first.
HTJ2K_TILE_PARTS: Final = 1


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


# ---------------------------------------------------------------- decoding


def decode_rle(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """RLE Lossless (PS3.5 G): one PackBits segment for each byte of each sample, the highest byte first."""
    pixels.check()
    words = np.dtype(f"<u{pixels.bits_allocated // 8}")
    plain = _called("dicomrle_decode", bytes(frame), dtype=words)
    if len(plain) != pixels.frame_bytes:
        raise CorruptFrameError(f"{len(plain)} bytes where the shape has {pixels.frame_bytes}")
    planes = np.frombuffer(plain, words).reshape(pixels.samples, pixels.rows, pixels.columns)
    return planes.transpose(1, 2, 0).astype(words.newbyteorder("=")).view(pixels.dtype)


def decode_jpeg(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """JPEG baseline, extended (8 and 12 bits) and lossless; lossy colour as RGB, lossless as it was coded."""
    pixels.check()
    data = bytes(frame)
    if pixels.samples == 3:
        coded = "RGB" if components_are_rgb(data, pixels.photometric) else "YCBCR"
        decoded = _called("jpeg8_decode", data, colorspace=coded, outcolorspace="RGB")
    else:
        decoded = _called("jpeg8_decode", data)
    return in_words(decoded, pixels)


def decode_jpeg_lossless(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """JPEG process 14 with any predictor (ISO 10918-1 H), of up to 16 bits."""
    pixels.check()
    return in_words(_called("jpegsof3_decode", bytes(frame)), pixels)


def decode_jpeg_lossless_turbo(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """As :func:`decode_jpeg_lossless`, by libjpeg-turbo; components as they are."""
    pixels.check()
    options = {"colorspace": "RGB", "outcolorspace": "RGB"} if pixels.samples == 3 else {}
    return in_words(_called("jpeg8_decode", bytes(frame), **options), pixels)


def decode_jpeg_ls(frame: Buffer, pixels: PixelFormat) -> Pixels:
    pixels.check()
    return in_words(_called("jpegls_decode", bytes(frame)), pixels)


def decode_jpeg_2000(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """Part 1 and, since OpenJPEG knows it, Part 15 (HTJ2K)."""
    pixels.check()
    return in_words(_called("jpeg2k_decode", bytes(frame), numthreads=1), pixels)


def decode_htj2k(frame: Buffer, pixels: PixelFormat) -> Pixels:
    pixels.check()
    return in_words(_called("htj2k_decode", frame), pixels)


def decode_jpeg_xl(frame: Buffer, pixels: PixelFormat) -> Pixels:
    pixels.check()
    return in_words(_called("jpegxl_decode", frame, keeporientation=True, numthreads=1), pixels)


# ---------------------------------------------------------------- encoding


def encode_jpeg_baseline(array: Pixels, pixels: PixelFormat) -> bytes:
    """JPEG process 1: eight unsigned bits; RGB becomes YCbCr with half the chrominance (PS3.5 8.2.1)."""
    if pixels.bits_allocated != 8 or pixels.bits_stored != 8 or pixels.signed:
        raise UnsupportedPixelsError("JPEG baseline has 8 unsigned bits a sample")
    if pixels.photometric.startswith("PALETTE"):
        raise UnsupportedPixelsError("numbers of colours in a table mean nothing when they are almost right")
    words = plain_words(array, pixels)
    if words.array.ndim == 2:
        coded: bytes = _called("jpeg8_encode", words.array, level=JPEG_QUALITY)
    elif pixels.photometric in {"RGB", ""}:
        coded = _called(
            "jpeg8_encode", words.array, level=JPEG_QUALITY,
            colorspace="RGB", outcolorspace="YCBCR", subsampling="422",
        )  # fmt: skip
    elif pixels.photometric == "YBR_FULL":
        coded = _called(
            "jpeg8_encode", words.array, level=JPEG_QUALITY,
            colorspace="YCBCR", outcolorspace="YCBCR", subsampling="422",
        )  # fmt: skip
    else:
        raise UnsupportedPixelsError("colour that is neither RGB nor YBR_FULL")
    return coded


def encode_jpeg_lossless(array: Pixels, pixels: PixelFormat) -> bytes:
    """JPEG process 14, selection value 1; components as they are."""
    words = plain_words(array, pixels, unsigned=True)
    options = {"colorspace": "RGB", "outcolorspace": "RGB"} if pixels.samples == 3 else {}
    coded: bytes = _called(
        "jpeg8_encode", words.array, lossless=True, predictor=1, bitspersample=_precision(words), **options
    )
    return coded


def encode_jpeg_ls(array: Pixels, pixels: PixelFormat) -> bytes:
    """NEAR = 0; components as they are. The precision in the codestream is the word's."""
    words = plain_words(array, pixels, unsigned=True, sign_extended=True)
    coded: bytes = _called("jpegls_encode", words.array)
    return coded


def encode_jpeg_2000(array: Pixels, pixels: PixelFormat) -> bytes:
    """Reversible; RGB goes through the reversible colour transform (PS3.5 8.2.4)."""
    words = plain_words(array, pixels)
    coded: bytes = _called(
        "jpeg2k_encode", words.array, reversible=True, codecformat="J2K", bitspersample=words.bits,
        mct=pixels.photometric in {"RGB", ""} and pixels.samples == 3, numthreads=1,
    )  # fmt: skip
    return coded


def encode_htj2k(array: Pixels, pixels: PixelFormat) -> bytes:
    """Reversible, at most 16 bits a sample; RGB goes through the reversible colour transform."""
    words = plain_words(array, pixels)
    if pixels.samples == 3:
        rgb = pixels.photometric in {"RGB", ""}
        coded: bytes = _called("htj2k_encode", words.array, reversible=True, rgb=rgb)
    else:
        coded = _called("htj2k_encode", words.array, reversible=True)
    return coded


def encode_htj2k_rpcl(array: Pixels, pixels: PixelFormat) -> bytes:
    """As :func:`encode_htj2k`, with tile-part lengths: what .202 asks of a codestream (PS3.5 A.4.4)."""
    words = plain_words(array, pixels)
    options = {"rgb": pixels.photometric in {"RGB", ""}} if pixels.samples == 3 else {}
    coded: bytes = _called(
        "htj2k_encode", words.array, reversible=True, tlm=True, tilepart=HTJ2K_TILE_PARTS, **options
    )
    return coded


def encode_jpeg_xl(array: Pixels, pixels: PixelFormat) -> bytes:
    """Lossless, unsigned samples of 8 or 16 bits."""
    if pixels.signed:
        raise UnsupportedPixelsError("JPEG XL has no signed samples")
    words = plain_words(array, pixels)
    coded: bytes = _called(
        "jpegxl_encode", words.array, lossless=True, effort=JPEG_XL_EFFORT, bitspersample=words.bits,
        numthreads=1,
    )  # fmt: skip
    return coded


def _precision(words: Coded) -> int:
    return max(2, words.bits)
