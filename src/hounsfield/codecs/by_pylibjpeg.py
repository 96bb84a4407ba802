"""Coders of pylibjpeg: its OpenJPEG binding (JPEG 2000 and HTJ2K) and its RLE. Both keep the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.errors import CorruptFrameError, UnsupportedPixelsError
from hounsfield.codecs.pixels import Buffer, PixelFormat, Pixels, in_words
from hounsfield.codecs.to_code import plain_words

if TYPE_CHECKING:
    import numpy as np
    from openjpeg import utils as openjpeg_utils
    from rle import rle
else:
    np = deferred("numpy")
    openjpeg_utils = deferred("openjpeg.utils")
    rle = deferred("rle.rle")

OPENJPEG: Final = "pylibjpeg-openjpeg"
RLE: Final = "pylibjpeg-rle"
_RGB, _GREY, _ANY = 1, 2, 0


def decode_jpeg_2000(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """Part 1 and Part 15."""
    pixels.check()
    try:
        decoded: Pixels = openjpeg_utils.decode(bytes(frame))
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # RuntimeError, ValueError and more
        raise CorruptFrameError(f"openjpeg failed ({type(error).__name__})") from error
    return in_words(decoded, pixels)


def encode_jpeg_2000(array: Pixels, pixels: PixelFormat) -> bytes:
    """Reversible; RGB goes through the reversible colour transform (PS3.5 8.2.4)."""
    words = plain_words(array, pixels)
    rgb = pixels.samples == 3 and pixels.photometric in {"RGB", ""}
    try:
        coded: bytes = openjpeg_utils.encode_array(
            words.array, bits_stored=words.bits, use_mct=rgb,
            photometric_interpretation=_RGB if rgb else _GREY if pixels.samples == 1 else _ANY,
        )  # fmt: skip
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise CorruptFrameError(f"openjpeg failed ({type(error).__name__})") from error
    return coded


def decode_rle(frame: Buffer, pixels: PixelFormat) -> Pixels:
    """RLE Lossless (PS3.5 G)."""
    pixels.check()
    try:
        plain = rle.decode_frame(bytes(frame), pixels.rows * pixels.columns, pixels.bits_allocated, "<")
    except (MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise CorruptFrameError(f"rle failed ({type(error).__name__})") from error
    if len(plain) != pixels.frame_bytes:
        raise CorruptFrameError(f"{len(plain)} bytes where the shape has {pixels.frame_bytes}")
    planes = np.frombuffer(plain, pixels.dtype.newbyteorder("<"))
    planes = planes.reshape(pixels.samples, pixels.rows, pixels.columns)
    return planes.transpose(1, 2, 0).astype(pixels.dtype)


def encode_rle(array: Pixels, pixels: PixelFormat) -> bytes:
    """RLE Lossless of whole words, every bit of them (PS3.5 G): at most 15 segments."""
    pixels.check()
    if pixels.samples * pixels.bits_allocated // 8 > 15:
        raise UnsupportedPixelsError("RLE has at most 15 segments, one for each byte of a pixel")
    plain = np.ascontiguousarray(array, pixels.dtype.newbyteorder("<")).tobytes()
    try:
        coded: bytes = rle.encode_frame(
            plain, pixels.rows, pixels.columns, pixels.samples, pixels.bits_allocated, "<"
        )
    except (MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise CorruptFrameError(f"rle failed ({type(error).__name__})") from error
    return coded
