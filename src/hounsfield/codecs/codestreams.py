"""What a codestream says of itself before it is decoded: its size, and what its three components are.

JPEG and JPEG-LS (ISO 10918-1 B, 14495-1 C, JFIF, Adobe's APP14) and the beginning of JPEG 2000 (15444-1 A.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hounsfield.codecs.errors import DisagreeingError
from hounsfield.codecs.pixels import PixelFormat

_APP0, _APP14, _SOS, _EOI, _JPEG_LS = 0xE0, 0xEE, 0xDA, 0xD9, 0xF7
_START_OF_FRAME: Final = frozenset(
    {_JPEG_LS, *range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
)
_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_2000: Final = b"\xff\x4f\xff\x51"  # SOC, then SIZ


def check_size(data: bytes, pixels: PixelFormat) -> None:
    """``DisagreeingError`` when a codestream says of itself to be of another size than the attributes say.

    Asked before decoding: an image that is said to be enormous takes a decoder minutes, and all memory.
    """
    said: tuple[int, int] | None = None
    if data.startswith(_JPEG_2000) and len(data) >= 24:
        right, bottom, left, top = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
        said = bottom - top, right - left
    elif data.startswith(b"\xff\xd8"):
        for marker, segment in _segments(data):
            if marker in _START_OF_FRAME and len(segment) >= 6:
                said = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
                break
    if said is not None and said != (pixels.rows, pixels.columns) and said[0]:  # 0 lines: said at the end
        raise DisagreeingError("a codestream of another size than the attributes say")


def precision_of(data: bytes) -> int | None:
    """Bits of a sample as JPEG, JPEG-LS and JPEG 2000 say it of themselves; None when these bytes do not."""
    if data.startswith(_JPEG_2000):
        return (data[42] & 0x7F) + 1 if len(data) > 42 else None
    if data.startswith(b"\xff\xd8"):
        for marker, segment in _segments(data):
            if marker in _START_OF_FRAME and segment:
                return segment[0]
    return None


def components_are_rgb(data: bytes, photometric: str) -> bool:
    """Whether three components are red, green and blue, and not YCbCr.

    Adobe's marker says so, or component identifiers that are the letters do; JFIF says YCbCr. Else
    Photometric Interpretation is right, which writers get wrong more often than their libraries the markers.
    """
    jfif = False
    for marker, segment in _segments(data):
        if marker == _APP14 and segment.startswith(b"Adobe") and len(segment) >= 12:
            return segment[11] == 0
        if marker == _APP0 and segment.startswith(b"JFIF\0"):
            jfif = True
        if marker in _START_OF_FRAME and not jfif and len(segment) >= 15 and segment[5] == 3:
            identifiers = bytes((segment[6], segment[9], segment[12]))
            if identifiers in {b"RGB", b"rgb"}:
                return True
    return not jfif and photometric == "RGB"


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker segments up to the first scan."""
    pos = 2
    while pos + 4 <= len(data) and data[pos] == 0xFF:
        marker = data[pos + 1]
        if marker == 0xFF:
            pos += 1
        elif marker in _WITHOUT_LENGTH:
            pos += 2
        elif marker in {_SOS, _EOI}:
            return
        else:
            length = int.from_bytes(data[pos + 2 : pos + 4], "big")
            yield marker, data[pos + 4 : pos + 2 + length]
            pos += 2 + max(2, length)
