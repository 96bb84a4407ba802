"""Pixels as encoders want them: the significant bits alone where nothing else is there, else whole words."""

from __future__ import annotations

from typing import NamedTuple

from hounsfield.codecs.errors import UnsupportedPixelsError
from hounsfield.codecs.pixels import PixelFormat, Pixels, significant


class Coded(NamedTuple):
    """``array``: contiguous, (rows, columns) or (rows, columns, 3). ``bits``: their precision."""

    array: Pixels
    bits: int


def plain_words(
    array: Pixels, pixels: PixelFormat, *, unsigned: bool = False, sign_extended: bool = False
) -> Coded:
    """What an encoder of at most 16 bits and of one or three samples takes.

    Bits above the sample that mean nothing (PS3.5 8.1.1) are left out, so that the codestream's precision is
    Bits Stored; those that hold something are coded with the rest of the word. ``unsigned``: of signed
    samples the bits of two's complement, for codecs that have no sign; ``sign_extended``: all of the word's,
    for encoders whose precision is the word's. ``UnsupportedPixelsError``.
    """
    pixels.check()
    if pixels.bits_allocated not in (8, 16):
        raise UnsupportedPixelsError(f"samples of {pixels.bits_allocated} bits; 8 and 16 are coded")
    if pixels.samples not in (1, 3):
        raise UnsupportedPixelsError(f"{pixels.samples} samples per pixel; 1 and 3 are coded")
    values = significant(array, pixels) if pixels.at_the_bottom else None
    bits = pixels.bits_allocated if values is None else pixels.bits_stored
    words = array if values is None else values
    if unsigned and pixels.signed:
        words = words.view(f"u{pixels.bits_allocated // 8}")
        if not sign_extended:
            words = words & words.dtype.type((1 << bits) - 1)
    if bits <= 8 and words.dtype.itemsize > 1 and not (sign_extended and pixels.signed):
        words = words.astype(f"{words.dtype.kind}1")
    if pixels.samples == 1:
        words = words[:, :, 0]
    # Copied always: libraries look at strides, and numpy takes odd ones for contiguous where a side is 1.
    return Coded(words.copy(order="C"), bits)
