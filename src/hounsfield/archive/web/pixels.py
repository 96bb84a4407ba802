"""Pixel cells as application/octet-stream has them: least significant byte first (PS3.18 8.7.3.3.2)."""

from __future__ import annotations

from typing import Final

from hounsfield.archive.dicom.byte_order import swapped
from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.web.accept import Delivery
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

PIXEL_DATA: Final = 0x7FE00010
_BITS_ALLOCATED: Final = 0x00280100


def is_big_endian(transfer_syntax_uid: str) -> bool:
    """Whether native pixel cells of this transfer syntax have their most significant byte first."""
    syntax = lookup(transfer_syntax_uid)
    return not syntax.encapsulated and (not syntax.little_endian or syntax.big_endian_pixels)


async def little_endian(engine: Engine, one: Instance, data: Buffer) -> Buffer:
    """A frame's big-endian cells, turned round; single bits that were lifted out of others are in order."""
    if Layout(one.row.layout) is Layout.UNDIVIDED_NATIVE and _bits_allocated(one) == 1:
        return data
    return swapped(data, await word_bytes(engine, one))


async def word_bytes(engine: Engine, one: Instance) -> int:
    """Of how many bytes the words are whose byte order is an instance's."""
    bits = _bits_allocated(one)
    if bits <= 8:
        # Bytes, and bits, in 16-bit words (OW) are swapped as words are; in OB they are in order (PS3.5 7.3,
        # 8.2).
        # The header ends with the pixel data element's own: tag, VR, two reserved bytes, length.
        header = await engine.header(one)
        bits = 16 if bytes(header.head[-8:-6]) == b"OW" else 8
    return max(bits // 8, 1)


async def pixel_tag(engine: Engine, one: Instance) -> int:
    """The tag of the element that is an instance's pixel data: floats have their own (PS3.3 C.7.6.24, 25)."""
    if _bits_allocated(one) < 32 or lookup(one.row.transfer_syntax_uid).encapsulated:
        return PIXEL_DATA
    head = bytes((await engine.header(one)).head[-12:])
    for tag in PIXEL_TAGS:
        for order in ("little", "big"):
            raw = (tag >> 16).to_bytes(2, order) + (tag & 0xFFFF).to_bytes(2, order)
            if raw in (head[:4], head[4:8]):  # with a VR behind it, or without one
                return tag
    return PIXEL_DATA


def _bits_allocated(one: Instance) -> int:
    try:
        return int(one.row.attributes.get(_BITS_ALLOCATED, "") or 0)
    except ValueError:
        return 0


def content_type(delivery: Delivery) -> bytes:
    """The Content-Type of one part: always with the transfer syntax, for clients that read only parts."""
    syntax = delivery.transfer_syntax
    if not syntax.replace(".", "").isdigit():  # a stored object can say anything; a header line cannot
        return delivery.media_type.encode("ascii")
    return f"{delivery.media_type}; transfer-syntax={syntax}".encode("ascii")


def multipart_type(media_type: str, boundary: bytes) -> bytes:
    """The Content-Type of a multipart answer (RFC 2387)."""
    return f'multipart/related; type="{media_type}"; boundary={boundary.decode("ascii")}'.encode("ascii")
