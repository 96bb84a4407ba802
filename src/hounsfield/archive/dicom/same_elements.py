"""Whether two encoded data sets say the same, whatever transfer syntax each is written in.

A data set is read into elements, strictly: whatever is odd about it (a VR that is none, a length beyond its
end, tags out of order, nesting past a limit) makes it *not comparable*, because then nobody can prove that
nothing would be lost. What legitimately differs with the syntax is not a difference (PS3.5 7.1, 7.5, 7.9,
6.1.2, A.1, A.2):

* implicit and explicit VR, byte order, defined and undefined lengths of sequences and items;
* group lengths, the extended offset table, Data Set Trailing Padding that is left out;
* padding at the end of a value, and the character set when the text is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from hounsfield.archive.dicom.byte_order import WORD_BYTES, swapped
from hounsfield.archive.dicom.dictionary import (
    ITEM,
    ITEM_END,
    LONG_VRS,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
    VR_OF,
    vr_of,
)
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.text import (
    CHARACTER_SET_VRS,
    DEFAULT_CHARACTER_SET,
    CharacterSet,
    character_set,
    decode,
    trim,
)
from hounsfield.archive.dicom.walk import EXPLICIT_HEAD, IMPLICIT_HEAD, LENGTH32

Buffer = bytes | bytearray | memoryview

#: Elements of one data set, nested ones included: an enhanced object of 1,000 frames has about 60,000.
ELEMENTS_MAX: Final = 200_000
DEPTH_MAX: Final = 32
SPECIFIC_CHARACTER_SET: Final = 0x00080005
_TRAILING_PADDING: Final = 0xFFFCFFFC
_OFFSET_TABLES: Final = frozenset({0x7FE00001, 0x7FE00002})

_TEXT: Final = frozenset({
    "AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT",
})  # fmt: skip
#: Pairs that say the same of the same bytes.
_ALIKE: Final = frozenset({frozenset({"OB", "OW"})})


class NotComparableError(ValueError):
    """The bytes are too odd, or too many, to prove anything about them."""

    retry = False


@dataclass(frozen=True, slots=True)
class Element:
    """One element: its VR (of implicit VR the dictionary's), and its value or its items."""

    vr: str
    value: bytes
    items: tuple[Elements, ...] | None = None


@dataclass(frozen=True, slots=True)
class Elements:
    """A data set or an item: its elements by tag, and how it was written."""

    implicit: bool
    little: bool
    by_tag: dict[int, Element]

    def number(self, tag: int) -> int | None:
        """The first value of an unsigned short, None when there is none."""
        found = self.by_tag.get(tag)
        if found is None or len(found.value) < 2 or found.items is not None:
            return None
        return int.from_bytes(found.value[:2], "little" if self.little else "big")

    def text(self, tag: int) -> str:
        """The value of an attribute in the default repertoire, "" when there is none."""
        found = self.by_tag.get(tag)
        return "" if found is None else found.value.decode("latin-1").strip(" \0")


@dataclass(frozen=True, slots=True)
class PixelElement:
    """The head of the pixel data element: its tag, VR, and length as written (None: undefined)."""

    tag: int
    vr: str
    length: int | None


@dataclass(slots=True)
class _Reader:
    data: memoryview
    little: bool
    left: int = ELEMENTS_MAX
    pixels: PixelElement | None = None
    pixels_at: int = 0

    def data_set(self, pos: int, end: int, implicit: bool) -> tuple[dict[int, Element], int]:
        """The top level's elements; stops behind the head of the pixel data, where its value would begin."""
        found, pos = self._elements(pos, end, implicit, 0, until_item_end=False)
        return found, pos

    def _elements(
        self, pos: int, end: int, implicit: bool, depth: int, *, until_item_end: bool
    ) -> tuple[dict[int, Element], int]:
        found: dict[int, Element] = {}
        data, before = self.data, -1
        while pos < end:
            self.left -= 1
            if pos + 8 > end or self.left < 0:
                raise NotComparableError("a data set that is cut off, or has too many elements")
            group, number, letters, length = EXPLICIT_HEAD[self.little].unpack_from(data, pos)
            tag = group << 16 | number
            if tag == ITEM_END and until_item_end:
                return found, pos + 8
            if tag <= before or group in (0, 0xFFFE):
                raise NotComparableError("elements out of order")
            before = tag
            if implicit:
                vr, value, length = VR_OF.get(tag) or vr_of(tag), pos + 8, self._length32(pos + 4)
            elif letters in SHORT_VRS:
                vr, value = SHORT_VRS[letters], pos + 8
            elif letters in LONG_VRS and pos + 12 <= end:
                vr, value, length = LONG_VRS[letters], pos + 12, self._length32(pos + 8)
            else:
                raise NotComparableError("an element without a VR that is one")
            if depth == 0 and tag in PIXEL_TAGS:
                self.pixels = PixelElement(tag, vr, None if length == UNDEFINED else length)
                return found, value
            if length == UNDEFINED:
                # In an unknown element of undefined length all is implicit VR little endian (PS3.5 6.2.2).
                inside = implicit or vr == "UN"
                if (not inside and vr != "SQ") or (vr == "UN" and not self.little):
                    raise NotComparableError("an undefined length where none may be")
                items, pos = self._items(value, end, inside, depth + 1, until_sequence_end=True)
                found[tag] = Element("SQ", b"", items)
                continue
            pos = value + length
            if pos > end:
                raise NotComparableError("a value that is cut off")
            if vr == "SQ":
                items, _ = self._items(value, pos, implicit, depth + 1, until_sequence_end=False)
                found[tag] = Element("SQ", b"", items)
            else:
                found[tag] = Element(vr, bytes(data[value:pos]))
        if until_item_end:
            raise NotComparableError("an item without an end")
        return found, pos

    def _items(
        self, pos: int, end: int, implicit: bool, depth: int, *, until_sequence_end: bool
    ) -> tuple[tuple[Elements, ...], int]:
        if depth > DEPTH_MAX:
            raise NotComparableError("sequences nested too deep")
        items: list[Elements] = []
        while pos < end:
            self.left -= 1
            if pos + 8 > end or self.left < 0:
                raise NotComparableError("a sequence that is cut off, or has too many items")
            group, number, length = IMPLICIT_HEAD[self.little].unpack_from(self.data, pos)
            tag = group << 16 | number
            pos += 8
            if tag == SEQUENCE_END and until_sequence_end:
                return tuple(items), pos
            if tag != ITEM:
                raise NotComparableError("something else than an item in a sequence")
            if length == UNDEFINED:
                found, pos = self._elements(pos, end, implicit, depth, until_item_end=True)
            else:
                if pos + length > end:
                    raise NotComparableError("an item that is cut off")
                found, pos = self._elements(pos, pos + length, implicit, depth, until_item_end=False)
            items.append(Elements(implicit, self.little, found))
        if until_sequence_end:
            raise NotComparableError("a sequence without an end")
        return tuple(items), pos

    def _length32(self, at: int) -> int:
        length: int = LENGTH32[self.little].unpack_from(self.data, at)[0]
        return length


@dataclass(frozen=True, slots=True)
class DataSet:
    """A whole data set but for the value of its pixel data."""

    elements: Elements
    pixels: PixelElement | None
    trailing: Elements = field(default_factory=lambda: Elements(False, True, {}))


def read(header: Buffer, trailer: Buffer, *, implicit: bool, little: bool, native_bytes: int) -> DataSet:
    """The elements before the pixel data (``header`` ends with its head) and after it.

    ``native_bytes``: of the pixel data's value, what the frames take; one more byte is padding.
    ``NotComparableError``.
    """
    reader = _Reader(memoryview(header), little)
    found, end = reader.data_set(0, len(header), implicit)
    elements = Elements(implicit, little, found)
    pixels = reader.pixels
    if pixels is None:
        if len(trailer):
            raise NotComparableError("bytes behind the data set")
        return DataSet(elements, None)
    if pixels.length is None:
        # What is left of the header is the offset table, which the fragments make redundant.
        if bytes(trailer[:8]) != IMPLICIT_HEAD[little].pack(SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0):
            raise NotComparableError("pixel data without an end")
        start = 8
    else:
        start = pixels.length - native_bytes
        if end != len(header) or start not in (0, 1) or len(trailer) < start:
            raise NotComparableError("pixel data of another length than its shape")
    after = _Reader(memoryview(trailer), little, reader.left)
    behind, _ = after.data_set(start, len(trailer), implicit)
    if after.pixels is not None or any(tag <= pixels.tag for tag in behind):
        raise NotComparableError("elements out of order")
    return DataSet(elements, pixels, Elements(implicit, little, behind))


def same_elements(one: Elements, other: Elements, ignoring: frozenset[int] = frozenset()) -> bool:
    """Whether two data sets hold the same elements with the same values. ``ignoring``: at the top level."""
    return _same(one, other, DEFAULT_CHARACTER_SET, DEFAULT_CHARACTER_SET, ignoring)


def _same(
    one: Elements, other: Elements, charset: CharacterSet, its: CharacterSet, ignoring: frozenset[int]
) -> bool:
    charset, its = _character_set(one, charset), _character_set(other, its)
    mine, theirs = _compared(one, ignoring), _compared(other, ignoring)
    # Padding has no significance (PS3.10 7.2): it may be left out, but not be another.
    if mine - {_TRAILING_PADDING} != theirs - {_TRAILING_PADDING}:
        return False
    mine &= theirs
    return all(_same_value(one, other, tag, charset, its) for tag in mine)


def _compared(elements: Elements, ignoring: frozenset[int]) -> set[int]:
    left_out = ignoring | _OFFSET_TABLES
    return {
        tag
        for tag in elements.by_tag
        if tag & 0xFFFF and tag != SPECIFIC_CHARACTER_SET and tag not in left_out
    }


def _character_set(elements: Elements, outer: CharacterSet) -> CharacterSet:
    found = elements.by_tag.get(SPECIFIC_CHARACTER_SET)
    return outer if found is None else character_set(found.value)


def _same_value(one: Elements, other: Elements, tag: int, charset: CharacterSet, its: CharacterSet) -> bool:
    mine, theirs = one.by_tag[tag], other.by_tag[tag]
    if mine.items is not None or theirs.items is not None:
        items, others = _items_of(mine, one), _items_of(theirs, other)
        if items is None or others is None or len(items) != len(others):
            return False
        return all(_same(a, b, charset, its, frozenset()) for a, b in zip(items, others, strict=True))
    vr = _common_vr(mine.vr, theirs.vr, one.implicit, other.implicit)
    if vr is None:
        return False
    raw, their_raw = _little(mine, one.little), _little(theirs, other.little)
    if raw is None or their_raw is None:
        return False
    if vr in _TEXT:
        raw, their_raw = raw.rstrip(b" \0"), their_raw.rstrip(b" \0")
    if charset == its or vr not in CHARACTER_SET_VRS:
        return raw == their_raw
    if not (charset.known and its.known):
        return False
    text, sound = decode(raw, charset)
    their_text, their_sound = decode(their_raw, its)
    return sound and their_sound and trim(text, vr) == trim(their_text, vr)


def _common_vr(mine: str, theirs: str, mine_implicit: bool, theirs_implicit: bool) -> str | None:
    """The VR to compare by: the one that was written, if only one was; None when two that were disagree."""
    if mine == theirs:
        return mine
    if mine == "UN" or (mine_implicit and theirs != "UN"):
        return theirs
    if theirs == "UN" or theirs_implicit:
        return mine
    return mine if frozenset({mine, theirs}) in _ALIKE else None


def _little(element: Element, little: bool) -> bytes | None:
    """The value in little endian; None when it is not made of whole numbers."""
    unit = 1 if little else WORD_BYTES.get(element.vr, 1)
    if len(element.value) % unit:
        return None
    return bytes(swapped(element.value, unit))


def _items_of(element: Element, of: Elements) -> tuple[Elements, ...] | None:
    """The items, also of a sequence that was written as bytes of an unknown VR (PS3.5 6.2.2)."""
    if element.items is not None:
        return element.items
    if element.vr != "UN" or not of.little:
        return None
    try:
        reader = _Reader(memoryview(element.value), True)
        return reader._items(0, len(element.value), True, 1, until_sequence_end=False)[0]
    except NotComparableError:
        return None
