"""Encapsulated pixel data as it is written here: each frame in one fragment, behind an offset table.

Where the lengths of all frames are known before the first is sent, the Basic Offset Table says where each
begins (PS3.5 A.4); where that takes more than 32 bits, it is empty and the Extended Offset Table, before
the pixel data, says so (PS3.3 C.7.6.3.1.8). Where they are not known there is neither: both stand before
the frames, and frames of one fragment each can be told apart without (PS3.5 A.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from struct import pack
from typing import Final, NamedTuple

EXTENDED_OFFSETS: Final = 0x7FE00001
EXTENDED_LENGTHS: Final = 0x7FE00002
#: The pixel data element's tag, VR and undefined length.
PIXEL_DATA_HEAD: Final = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0" + bytes(4)
#: PS3.5 A.4: offsets in the Basic Offset Table are of 32 bits.
BASIC_OFFSET_MAX: Final = 0xFFFFFFFF
_ITEM: Final = b"\xfe\xff\x00\xe0"
_ITEM_HEAD_BYTES: Final = 8


class OffsetTables(NamedTuple):
    """``basic``: the first item of the pixel data. ``extended``: elements before it, as VR and value."""

    basic: bytes
    extended: dict[int, tuple[str, bytes]]


def offset_tables(lengths: Sequence[int] | None) -> OffsetTables:
    """Where frames of these lengths in bytes begin; None: not known."""
    if lengths is None:
        return OffsetTables(item_head(0), {})
    padded = [length + length % 2 for length in lengths]
    offsets = list(accumulate((_ITEM_HEAD_BYTES + length for length in padded[:-1]), initial=0))
    count = len(padded)
    if offsets[-1] <= BASIC_OFFSET_MAX:
        return OffsetTables(item_head(4 * count) + pack(f"<{count}L", *offsets), {})
    # Lengths are those of the fragments, a byte of padding counted, as other libraries write and read them.
    extended = {
        EXTENDED_OFFSETS: ("OV", pack(f"<{count}Q", *offsets)),
        EXTENDED_LENGTHS: ("OV", pack(f"<{count}Q", *padded)),
    }
    return OffsetTables(item_head(0), extended)


def item_head(length: int) -> bytes:
    """What stands before a fragment or offset table of ``length`` bytes, one more where that is odd."""
    return _ITEM + (length + length % 2).to_bytes(4, "little")
