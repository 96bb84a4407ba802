"""The values that rendering needs, read out of an encoded data set where they lie.

Nothing is decoded before it is asked for: an object of ten thousand frames has half a million elements, and a
rendered frame needs twenty of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from struct import Struct
from typing import Final

from hounsfield.archive.dicom.deflated import plain_header
from hounsfield.archive.dicom.dictionary import SIGNED_IF_PIXELS_ARE
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.text import (
    CHARACTER_SET_VRS,
    DEFAULT_CHARACTER_SET,
    CharacterSet,
    character_set,
    decode,
    trim,
)
from hounsfield.archive.dicom.walk import Budget, elements, items, looks_implicit
from hounsfield.codecs.registry import lookup

Buffer = bytes | bytearray | memoryview

_SPECIFIC_CHARACTER_SET: Final = 0x00080005
_PIXEL_REPRESENTATION: Final = 0x00280103
_NUMBERS: Final = {
    "US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "UV": "Q", "SV": "q", "OW": "H",
}  # fmt: skip
#: Values of one element that are read as numbers: a displayed polygon has some hundred, a position three.
NUMBERS_MAX: Final = 4096


class Elements:
    """One data set or item: tag → value. Missing and unreadable values are empty, never an error."""

    def __init__(  # noqa: PLR0917
        self,
        data: Buffer,
        start: int,
        end: int,
        implicit: bool,
        little: bool,
        parent: Elements | None = None,
    ) -> None:
        self._data, self._implicit, self.little_endian = data, implicit, little
        self._budget: Budget = parent._budget if parent is not None else Budget()
        self._places: dict[int, tuple[str, int, int]] = {}
        for tag, vr, offset, length, _ in elements(data, start, end, implicit, little, self._budget):
            if tag in PIXEL_TAGS:
                self._places[tag] = (vr, offset, 0)
                break
            self._places.setdefault(tag, (vr, offset, length))
        self._parent = parent
        self._items: dict[int, list[tuple[int, int, bool]]] = {}

    @classmethod
    def of_header(cls, head: Buffer, transfer_syntax_uid: str) -> Elements:
        """Those of a data set in front of its pixel data. Of a deflated one, ``head`` is all of it."""
        syntax = lookup(transfer_syntax_uid)
        head = plain_header(head, syntax)
        implicit = looks_implicit(head, 0, len(head), syntax.implicit_vr)
        return cls(head, 0, len(head), implicit, syntax.little_endian)

    @property
    def bytes_held(self) -> int:
        """Of memory, by the encoded data set."""
        return len(self._data)

    def __contains__(self, tag: int) -> bool:
        return tag in self._places

    @property
    def tags(self) -> Iterator[int]:
        return iter(self._places)

    def vr(self, tag: int) -> str:
        return self._places[tag][0]

    def raw(self, tag: int) -> memoryview:
        """The value's bytes as encoded; none when it is missing."""
        place = self._places.get(tag)
        if place is None:
            return memoryview(b"")
        return memoryview(self._data)[place[1] : place[1] + place[2]]

    @cached_property
    def _character_set(self) -> CharacterSet:
        if _SPECIFIC_CHARACTER_SET in self._places:
            return character_set(bytes(self.raw(_SPECIFIC_CHARACTER_SET)[:256]))
        return self._parent._character_set if self._parent is not None else DEFAULT_CHARACTER_SET

    def text(self, tag: int) -> str:
        """The value as text, its padding taken off; of several values, all with backslashes between."""
        if tag not in self._places:
            return ""
        vr = self.vr(tag)
        charset = self._character_set if vr in CHARACTER_SET_VRS else DEFAULT_CHARACTER_SET
        return trim(decode(bytes(self.raw(tag)), charset)[0], vr)

    def word(self, tag: int) -> str:
        """The first of its values, in capitals, for coded strings."""
        return self.text(tag).split("\\")[0].strip(" \0").upper()

    def numbers(self, tag: int) -> list[float]:
        """The values as numbers, without those that are none."""
        if tag not in self._places:
            return []
        vr = self.vr(tag)
        if vr in ("US", "SS", "OW") and tag in SIGNED_IF_PIXELS_ARE and self._implicit:
            vr = "SS" if self.pixels_signed else "US"
        code = _NUMBERS.get(vr)
        found: list[float] = []
        if code is not None:
            raw = self.raw(tag)
            word = Struct(f"{'<' if self.little_endian else '>'}{code}")
            count = min(len(raw) // word.size, NUMBERS_MAX)
            found = [float(value) for (value,) in word.iter_unpack(raw[: count * word.size])]
        else:
            for part in self.text(tag).split("\\")[:NUMBERS_MAX]:
                try:
                    found.append(float(part))
                except ValueError:
                    continue
        return [value for value in found if math.isfinite(value)]

    def number(self, tag: int) -> float | None:
        """The first of its values as a number."""
        return next(iter(self.numbers(tag)), None)

    def integer(self, tag: int, default: int = 0) -> int:
        value = self.number(tag)
        return default if value is None else int(value)

    @property
    def pixels_signed(self) -> bool:
        """Whether pixels, and so the values that are given in their words, are signed."""
        if _PIXEL_REPRESENTATION in self._places:
            return bool(self.integer(_PIXEL_REPRESENTATION))
        return self._parent.pixels_signed if self._parent is not None else False

    def item_count(self, tag: int) -> int:
        return len(self._item_places(tag))

    def item(self, tag: int, number: int = 0) -> Elements | None:
        """Item ``number``, from 0, of a sequence."""
        places = self._item_places(tag)
        if not 0 <= number < len(places):
            return None
        start, end, implicit = places[number]
        return Elements(self._data, start, end, implicit, self.little_endian, self)

    def items(self, tag: int) -> Iterator[Elements]:
        for number in range(self.item_count(tag)):
            found = self.item(tag, number)
            if found is not None:
                yield found

    def _item_places(self, tag: int) -> list[tuple[int, int, bool]]:
        known = self._items.get(tag)
        if known is None:
            place = self._places.get(tag)
            known = []
            if place is not None and place[0] in ("SQ", "UN"):
                start, end = place[1], place[1] + place[2]
                # A sequence of unknown VR is in implicit VR little endian (PS3.5 6.2.2, note 2).
                implicit = self._implicit or place[0] == "UN"
                known = list(items(self._data, start, end, implicit, self.little_endian, self._budget))
            self._items[tag] = known
        return known
