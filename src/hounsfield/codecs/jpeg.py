"""What a JPEG says of its three components (ISO 10918-1 B, JFIF, Adobe's APP14)."""

from __future__ import annotations

from typing import Final

_APP0, _APP14, _SOS, _EOI = 0xE0, 0xEE, 0xDA, 0xD9
_START_OF_FRAME: Final = frozenset(
    {*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
)
_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD8)})


def components_are_rgb(data: bytes, photometric: str) -> bool:
    """Whether three components are red, green and blue, and not YCbCr.

    Adobe's marker says so, or component identifiers that are the letters do; JFIF says YCbCr. Else
    Photometric Interpretation is right, which writers get wrong more often than their libraries the markers.
    """
    pos = 2
    jfif = False
    while pos + 4 <= len(data):
        if data[pos] != 0xFF:
            break
        marker = data[pos + 1]
        if marker == 0xFF:
            pos += 1
            continue
        if marker in _WITHOUT_LENGTH:
            pos += 2
            continue
        if marker in {_SOS, _EOI}:
            break
        length = int.from_bytes(data[pos + 2 : pos + 4], "big")
        segment = data[pos + 4 : pos + 2 + length]
        if marker == _APP14 and segment.startswith(b"Adobe") and len(segment) >= 12:
            return segment[11] == 0
        if marker == _APP0 and segment.startswith(b"JFIF\0"):
            jfif = True
        if marker in _START_OF_FRAME and not jfif and len(segment) >= 15 and segment[5] == 3:
            identifiers = bytes((segment[6], segment[9], segment[12]))
            if identifiers in {b"RGB", b"rgb"}:
                return True
        pos += 2 + length
    return not jfif and photometric == "RGB"
