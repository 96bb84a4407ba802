"""Which transfer syntax a compressed image is of, by its own headers: for senders that say ``image/jpeg``.

A media type names a family (PS3.18 Table 8.7.3-5); whether an image lost something, and by which process it
was made, stands in the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_ROOT: Final = "1.2.840.10008.1.2.4"
_JP2_SIGNATURE: Final = b"\0\0\0\x0cjP  \r\n\x87\n"
_CODESTREAM: Final = b"jp2c"
_SOC: Final = b"\xff\x4f\xff\x51"
_BARE_MARKERS: Final = frozenset({0x01, *range(0xD0, 0xD8)})
_BASELINE, _EXTENDED, _PROGRESSIVE, _LOSSLESS, _LS = 0xC0, 0xC1, 0xC2, 0xC3, 0xF7
_SOS, _COD, _CAP = 0xDA, 0x52, 0x50
#: The transfer syntax of a media type when nothing else tells.
_DEFAULTS: Final[dict[str, str]] = {
    "image/jxl": f"{_ROOT}.110",
    "image/dicom-rle": "1.2.840.10008.1.2.5",
    "video/mpeg": f"{_ROOT}.100",
    "video/mp4": f"{_ROOT}.102",
    "video/h265": f"{_ROOT}.107",
}


def transfer_syntax_of(media_type: str, image: bytes) -> str | None:
    """The UID of the transfer syntax that ``image``, of this media type, is in; None when nothing tells."""
    tell = _TELL.get(media_type)
    return _DEFAULTS.get(media_type) if tell is None else tell(image)


def without_container(image: bytes) -> bytes:
    """A JPEG 2000 image without the JP2 file around it, which data sets do not have (PS3.5 8.2.4)."""
    if not image.startswith(_JP2_SIGNATURE):
        return image
    at = 0
    while at + 8 <= len(image):
        length, kind = int.from_bytes(image[at : at + 4], "big"), image[at + 4 : at + 8]
        head = 8
        if length == 1:
            length, head = int.from_bytes(image[at + 8 : at + 16], "big"), 16
        if kind == _CODESTREAM:
            return image[at + head : at + length] if length else image[at + head :]
        if length < head:
            return image
        at += length
    return image


def _segments(image: bytes) -> dict[int, bytes]:
    """The first segment of each marker, up to the first scan (JPEG) or tile (JPEG 2000)."""
    found: dict[int, bytes] = {}
    at = 2
    while at + 4 <= len(image) and image[at] == 0xFF:
        marker = image[at + 1]
        if marker == 0xFF or marker in _BARE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(image[at + 2 : at + 4], "big")
        if length < 2 or marker == 0x90:  # a tile's part
            break
        found.setdefault(marker, image[at + 4 : at + 2 + length])
        if marker == _SOS:
            break
        at += 2 + length
    return found


def _jpeg(image: bytes) -> str | None:
    if not image.startswith(b"\xff\xd8"):
        return None
    found = _segments(image)
    scan = found.get(_SOS, b"")
    if _LS in found:  # SOS: … NEAR, ILV, point transform (ISO 14495-1 C.2.3)
        return f"{_ROOT}.{80 if len(scan) >= 3 and scan[-3] == 0 else 81}"
    if _LOSSLESS in found:  # SOS: … the predictor in place of the spectral selection (ISO 10918-1 B.2.3)
        return f"{_ROOT}.{70 if len(scan) >= 3 and scan[-3] == 1 else 57}"
    for marker, process in ((_BASELINE, 50), (_EXTENDED, 51), (_PROGRESSIVE, 55)):
        if marker in found:
            return f"{_ROOT}.{process}"
    return None


def _jpeg_2000(image: bytes) -> str | None:
    image = without_container(image)
    found = _segments(image) if image.startswith(_SOC) else {}
    style = found.get(_COD, b"")
    if len(style) < 10:
        return None
    is_reversible = style[9] == 1  # ISO 15444-1 A.6.1: the 5-3 transformation
    if _CAP in found:  # HTJ2K (ISO 15444-15)
        return f"{_ROOT}.{201 if is_reversible else 203}"
    return f"{_ROOT}.{90 if is_reversible else 91}"


_TELL: Final[dict[str, Callable[[bytes], str | None]]] = {
    "image/jpeg": _jpeg,
    "image/jls": _jpeg,
    "image/jp2": _jpeg_2000,
    "image/jphc": _jpeg_2000,
}
