"""All text of an encoded data set in UTF-8 (ISO_IR 192), nested and private text included.

Only values that are not plain ASCII change, and the lengths around them. Text is what has one of the VRs
that Specific Character Set governs (PS3.5 6.1.2.2): as written, else by PS3.6 or a known private creator.
Private elements of unknown VR are bytes and stay as they are. Group lengths inside what changes are left
out (PS3.5 7.2).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.dictionary import LONG_VRS, UNDEFINED, vr_among
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.text import (
    CHARACTER_SET_VRS,
    DEFAULT_CHARACTER_SET,
    CharacterSet,
    character_set,
    decode,
)
from hounsfield.archive.dicom.walk import DEPTH_MAX, LENGTH32, elements, items

UTF_8: Final = b"ISO_IR 192"

_SHORT_LENGTH_MAX: Final = 0xFFFE
_LENGTH16: Final = {True: Struct("<H"), False: Struct(">H")}
_SEQUENCE_END: Final = {True: b"\xfe\xff\xdd\xe0" + bytes(4), False: b"\xff\xfe\xe0\xdd" + bytes(4)}
_ITEM: Final = {True: b"\xfe\xff\x00\xe0", False: b"\xff\xfe\xe0\x00"}


def in_utf8(
    data: bytes,
    start: int,
    end: int,
    *,
    implicit: bool,
    little: bool,
    charset: CharacterSet = DEFAULT_CHARACTER_SET,
    top: bool = False,
    depth: int = 0,
) -> tuple[bytes, bool]:
    """The elements of [start, end) with their text in UTF-8, and whether anything changed.

    ``charset`` is in force until (0008,0005) says otherwise. At the ``top`` pixel data is not looked into.
    """
    pieces: list[bytes] = []
    copied = pos = start
    changed = False
    creators: dict[int, str] = {}
    lengths: list[tuple[int, int]] = []
    for tag, written, at, length, undefined in elements(data, start, end, implicit, little):
        begin, pos = pos, min(at + length + (8 if undefined else 0), end)
        if tag & 0x10000 and 0x10 <= tag & 0xFFFF <= 0xFF and length <= 64:
            creators[tag & 0xFFFF00FF] = data[at : at + length].decode("latin-1").strip(" \0")
        if not tag & 0xFFFF:
            lengths.append((begin, pos))
            continue
        if top and tag in PIXEL_TAGS:
            continue
        vr = _vr(tag, written, creators, implicit, undefined)
        new: bytes | None = None
        if tag == SPECIFIC_CHARACTER_SET:
            charset = character_set(data[at : at + min(length, 256)])
            new = UTF_8
        elif vr == "SQ" and length and depth < DEPTH_MAX:
            inner = implicit or (written == "UN" and not undefined)
            sequence, differs = _sequence(data, at, at + length, inner, little, charset, depth)
            if differs:
                new = sequence
        elif vr in CHARACTER_SET_VRS and length:
            raw = data[at : at + length]
            if not raw.isascii() or b"\x1b" in raw or charset.codec == "shift_jis":
                new = _even(decode(raw, charset)[0])
        if new is None or new == data[at : at + length]:
            continue
        changed = True
        pieces += (
            data[copied:begin],
            _header(data, begin, at, written, len(new), undefined, implicit, little),
        )
        pieces.append(new)
        if undefined:
            pieces.append(_SEQUENCE_END[little])
        copied = pos
    if not changed:
        return data[start:end], False
    pieces.append(data[copied:end])
    whole = b"".join(pieces)
    return (_without_lengths(whole, implicit, little) if lengths else whole), True


def _vr(tag: int, written: str, creators: dict[int, str], implicit: bool, undefined: bool) -> str:
    """What an element really is: UN and implicit private elements as dictionaries know them."""
    if undefined:
        return "SQ"
    if written != "UN":
        return written
    found = vr_among(tag, creators)
    return "UN" if found == "SQ" and tag & 0x10000 and not implicit else found


def _sequence(  # noqa: PLR0917
    data: bytes, at: int, end: int, implicit: bool, little: bool, charset: CharacterSet, depth: int
) -> tuple[bytes, bool]:
    pieces: list[bytes] = []
    copied = at
    changed = False
    for start, stop, item_implicit in items(data, at, end, implicit, little):
        item, differs = in_utf8(
            data, start, stop, implicit=item_implicit, little=little, charset=charset, depth=depth + 1
        )
        if not differs:
            continue
        changed = True
        undefined = data[start - 4 : start] == b"\xff\xff\xff\xff"
        length = UNDEFINED if undefined else len(item)
        pieces += (data[copied : start - 8], _ITEM[little], LENGTH32[little].pack(length), item)
        copied = stop
    pieces.append(data[copied:end])
    return b"".join(pieces), changed


def _header(  # noqa: PLR0917
    data: bytes, begin: int, at: int, written: str, length: int, undefined: bool, implicit: bool, little: bool
) -> bytes:
    """An element's tag and VR as they were, with a new length."""
    if undefined:
        return data[begin:at]
    letters = data[begin + 4 : begin + 6]
    if at - begin == 12 and not implicit:
        return data[begin : at - 4] + LENGTH32[little].pack(length)
    if letters == written.encode() and not implicit and letters not in LONG_VRS:
        if length <= _SHORT_LENGTH_MAX:
            return data[begin : at - 2] + _LENGTH16[little].pack(length)
        # PS3.5 6.2.2: a value too long for its VR's length field is UN.
        return data[begin : begin + 4] + b"UN" + bytes(2) + LENGTH32[little].pack(length)
    return data[begin : at - 4] + LENGTH32[little].pack(length)


def _even(text: str) -> bytes:
    raw = text.encode("utf-8")
    if not len(raw) % 2:
        return raw
    return raw[:-1] if raw.endswith(b" ") else raw + b" "


def _without_lengths(data: bytes, implicit: bool, little: bool) -> bytes:
    pieces: list[bytes] = []
    copied = pos = 0
    for tag, _, at, length, undefined in elements(data, 0, len(data), implicit, little):
        begin, pos = pos, min(at + length + (8 if undefined else 0), len(data))
        if not tag & 0xFFFF:
            pieces.append(data[copied:begin])
            copied = pos
    return b"".join([*pieces, data[copied:]])
