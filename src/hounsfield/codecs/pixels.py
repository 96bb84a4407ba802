"""Pixel cells as arrays, and back as bytes (PS3.5 8.1, PS3.3 C.7.6.3).

One form is what every coder takes and gives: an array of shape ``(rows, columns, samples)``, colour by pixel,
in the machine's byte order, of unsigned or signed integers that are ``bits_allocated`` wide. What a data set
calls planar configuration and byte order is applied at the edges, by the two functions here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.errors import CorruptFrameError, DisagreeingError, UnsupportedPixelsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

Pixels: TypeAlias = "NDArray[Any]"
Buffer: TypeAlias = bytes | bytearray | memoryview

WORD_BITS: Final = (8, 16, 32, 64)
#: Pixels of one frame that are decoded at once: a slide's tile has 10^6, the largest mammogram 3 · 10^7.
FRAME_PIXELS_MAX: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """What the image pixel attributes say about the cells of one frame."""

    rows: int
    columns: int
    samples: int = 1
    bits_allocated: int = 16
    bits_stored: int = 16
    signed: bool = False
    #: Planar Configuration 1: all red, then all green, then all blue.
    planar: bool = False
    #: Native cells of 8 bits stand in words of 16 (VR OW), which matters in big endian only.
    in_words: bool = False
    #: Photometric Interpretation. Of a frame to decode it decides what the three components of a JPEG are, of
    #: pixels to encode whether a colour transform may be made; "" when nobody said.
    photometric: str = ""
    #: The highest bit that belongs to the sample; None: the lowest ``bits_stored`` bits are the sample.
    high_bit: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.rows, self.columns, self.samples

    @property
    def dtype(self) -> np.dtype[Any]:
        """The word of one sample, in the machine's byte order."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def at_the_bottom(self) -> bool:
        """Whether samples stand in the lowest bits of their words, as today they do (PS3.5 8.1.1)."""
        return self.high_bit is None or self.high_bit == self.bits_stored - 1

    @property
    def frame_bytes(self) -> int:
        """Bytes of one native frame."""
        return self.bits // 8

    @property
    def bits(self) -> int:
        """Bits of one native frame."""
        return self.rows * self.columns * self.samples * self.bits_allocated

    def check(self) -> None:
        """``UnsupportedPixelsError`` unless cells are whole words and there is a sane number of them."""
        if self.bits_allocated not in WORD_BITS:
            raise UnsupportedPixelsError(f"pixel cells of {self.bits_allocated} bits are not whole words")
        if not 1 <= self.bits_stored <= self.bits_allocated:
            raise UnsupportedPixelsError(f"{self.bits_stored} bits stored of {self.bits_allocated} allocated")
        if min(self.shape) < 1 or self.rows * self.columns * self.samples > FRAME_PIXELS_MAX:
            raise UnsupportedPixelsError("a frame without pixels, or with more than one decodes at once")


#: Three components that decoders give as red, green and blue, whatever was coded (PS3.5 8.2.1, 8.2.4).
_JPEG_DCT: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 111, 112))
_COLOUR_TRANSFORMS: Final = frozenset({"YBR_RCT", "YBR_ICT", "XYB"})
#: Native cells with halved chrominance are decoded with it in full (PS3.3 C.7.6.3.1.2).
_WITH_FULL_CHROMA: Final = {"YBR_FULL_422": "YBR_FULL", "YBR_PARTIAL_422": "YBR_PARTIAL"}


#: No Photometric Interpretation: what is decoded so can be shown, and be written in no transfer syntax.
NAMELESS: Final = frozenset({"YBR_PARTIAL"})


def decoded_format(transfer_syntax_uid: str, pixels: PixelFormat) -> PixelFormat:
    """What the decoded samples of a frame are: colour by pixel, whole words, transforms of colour undone.

    Cells of one bit are bytes here, which no object has: what leaves are :func:`packed_bits`.
    """
    photometric = pixels.photometric
    if pixels.samples == 3:
        if transfer_syntax_uid in _JPEG_DCT or photometric in _COLOUR_TRANSFORMS:
            photometric = "RGB"
        else:
            photometric = _WITH_FULL_CHROMA.get(photometric, photometric)
    single = pixels.bits_allocated == 1
    return replace(
        pixels,
        planar=False,
        in_words=False,
        photometric=photometric,
        bits_allocated=8 if single else pixels.bits_allocated,
        high_bit=None if single else pixels.high_bit,
    )


def native_bytes(transfer_syntax_uid: str, pixels: PixelFormat, frames: int = 1) -> int:
    """Bytes of so many frames, decoded, as native pixel data has them: packed where cells are one bit."""
    if pixels.bits_allocated == 1:  # frames follow each other without alignment (PS3.5 8.1.1)
        return -(-pixels.bits * frames // 8)
    return decoded_format(transfer_syntax_uid, pixels).frame_bytes * frames


def packed_bits(cells: Buffer) -> bytes:
    """Cells of one bit, decoded to bytes of 0 and 1, as native pixel data has them (PS3.5 8.1.1).

    The first is the lowest bit; unused high bits of the last byte are zero.
    """
    return np.packbits(np.frombuffer(cells, np.uint8), bitorder="little").tobytes()


def from_native(frame: Buffer, pixels: PixelFormat, *, little_endian: bool = True) -> Pixels:
    """The cells of one native frame, every bit of them. A view where that can be.

    ``CorruptFrameError`` when the length is not the shape's.
    """
    pixels.check()
    if len(frame) != pixels.frame_bytes:
        raise CorruptFrameError(f"a frame of {len(frame)} bytes where the shape has {pixels.frame_bytes}")
    words = np.frombuffer(frame, pixels.dtype.newbyteorder("<" if little_endian else ">"))
    if not words.dtype.isnative:
        words = words.astype(pixels.dtype)
    if pixels.planar and pixels.samples > 1:
        return words.reshape(pixels.samples, pixels.rows, pixels.columns).transpose(1, 2, 0)
    return words.reshape(pixels.shape)


def to_native(array: Pixels, pixels: PixelFormat, *, little_endian: bool = True) -> memoryview:
    """The bytes of one native frame; the inverse of :func:`from_native`."""
    if pixels.planar and pixels.samples > 1:
        array = array.transpose(2, 0, 1)
    ordered = np.ascontiguousarray(array, pixels.dtype.newbyteorder("<" if little_endian else ">"))
    return ordered.reshape(-1).view(np.uint8).data


def same_bytes(one: Buffer, other: Buffer) -> bool:
    """Whether two buffers hold the same bytes. Comparing memoryviews would take 50 times as long."""
    if len(one) != len(other):
        return False
    return np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))


def in_words(decoded: Pixels, pixels: PixelFormat) -> Pixels:
    """What a decoder gave, in the shape and the words that the attributes announce.

    Codestreams often say unsigned where the attributes say signed: the bits are the attributes' then, and the
    sign is extended. ``DisagreeingError`` when shape or range do not fit.
    """
    if decoded.ndim == 2:
        decoded = decoded[:, :, np.newaxis]
    if decoded.shape != pixels.shape:
        raise DisagreeingError(f"a frame of shape {decoded.shape} where the attributes say {pixels.shape}")
    if decoded.dtype.kind not in "iu":
        raise DisagreeingError(f"a frame of {decoded.dtype} where integers are due")
    if decoded.dtype == pixels.dtype and decoded.dtype.kind == "i":
        return decoded
    low, high = int(decoded.min()), int(decoded.max())
    limits = np.iinfo(pixels.dtype)
    bits = pixels.bits_stored if pixels.at_the_bottom else pixels.bits_allocated
    if not pixels.signed:
        half = 1 << (bits - 1)
        if low < 0 and -half <= low and high < half:  # a codestream that says signed: the bits are the same
            same: Pixels = decoded.astype(pixels.dtype) & pixels.dtype.type(2 * half - 1)
            return same
        if low < 0 or high > limits.max:
            raise DisagreeingError("a frame with values beyond its word")
        return decoded.astype(pixels.dtype, copy=False)
    if low < 0 or decoded.dtype.kind == "i":
        if low < limits.min or high > limits.max:
            raise DisagreeingError("a frame with values beyond its word")
        return decoded.astype(pixels.dtype)
    if high >= 1 << pixels.bits_allocated:
        raise DisagreeingError("a frame with values beyond its word")
    words = decoded.astype(f"u{pixels.bits_allocated // 8}").view(pixels.dtype)
    if high >= 1 << bits:
        return words  # the sign was extended before it was coded
    return _sign_extended(words, pixels) if pixels.at_the_bottom else words


def at_high_bit(array: Pixels, pixels: PixelFormat, precision: int | None) -> Pixels:
    """Decoded words as the attributes speak of them: with the sample at High Bit.

    A codestream whose precision is Bits Stored has the samples alone, in the lowest bits.
    """
    high = pixels.high_bit
    if precision is None or high is None or precision > pixels.bits_stored or pixels.at_the_bottom:
        return array
    if not pixels.bits_stored <= high < pixels.bits_allocated:
        return array
    moved: Pixels = np.left_shift(array, high + 1 - pixels.bits_stored)
    return moved


def significant(array: Pixels, pixels: PixelFormat) -> Pixels | None:
    """The values without what the bits above High Bit hold, or None when those hold something of their own.

    Unused high bits are zero or copies of the sign (PS3.5 8.1.1); in old objects they are an overlay.
    """
    spare = pixels.bits_allocated - pixels.bits_stored
    if not spare:
        return array
    extended = _sign_extended(array, pixels)
    zeroed = array & array.dtype.type((1 << pixels.bits_stored) - 1)
    if np.array_equal(array, extended) or np.array_equal(array, zeroed):
        return extended
    return None


def samples(array: Pixels, pixels: PixelFormat) -> Pixels:
    """The sample values alone: moved to the lowest bits, without what stands above them, sign extended."""
    if not pixels.at_the_bottom and pixels.high_bit is not None:
        array = np.right_shift(array, max(0, pixels.high_bit + 1 - pixels.bits_stored))
    return _sign_extended(array, pixels) if pixels.bits_stored < 8 * array.dtype.itemsize else array


def _sign_extended(words: Pixels, pixels: PixelFormat) -> Pixels:
    spare = 8 * words.dtype.itemsize - pixels.bits_stored
    shifted: Pixels = np.left_shift(words, spare)
    return np.right_shift(shifted, spare, out=shifted)
