"""What the top level of objects of one series has in common, learnt from them; the rest is encoded.

Consecutive slices differ in a dozen of their hundred and fifty elements. Stretches that were the same bytes
in every object so far are compared in one go, and what they were encoded to is taken as it is. Any
difference means: this object is encoded element by element, and one knows better for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from struct import Struct
from typing import Final, Literal, NamedTuple

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.dictionary import LONG_VRS, SHORT_VRS, UNDEFINED
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.text import CharacterSet
from hounsfield.archive.dicom.walk import BadSequenceError, Budget, skip_sequence

#: Objects in a row of which none was like those before it, until nothing more is tried.
UNLIKE_MAX: Final = 8
_PIXEL_REPRESENTATION: Final = 0x00280103
_TAG: Final = {True: Struct("<HH"), False: Struct(">HH")}


class Met(NamedTuple):
    """An element that was encoded one by one, and the circumstances in force before it."""

    tag: int
    end: int
    fragments: int
    links: int
    charset: CharacterSet
    signed: bool
    is_un: bool


class _Same(NamedTuple):
    raw: bytes
    text: bytes


class _Other(NamedTuple):
    tag: int
    charset: CharacterSet
    signed: bool
    last: bool


#: Encodes the element at [start, end): start, end, character set, whether pixels are signed, where it goes.
Encode = Callable[[int, int, CharacterSet, bool, list[bytes]], object]


class Likeness:
    """The objects of one byte order and VR encoding that one writer has met."""

    def __init__(self, implicit: bool, little: bool) -> None:
        self._implicit = implicit
        self._little = little
        self._tags: tuple[int, ...] = ()
        self._raws: list[bytes] = []
        self._differ: set[int] = set()
        self._stretches: list[_Same | _Other] = []
        self._unlike = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether objects have nothing in common: learning would only cost."""
        return self._unlike > UNLIKE_MAX

    def write(self, data: bytes, encode: Encode) -> list[bytes] | None:
        """The encoded stretches of one object, in order; None when it is not like those before it."""
        if not self._stretches:
            return None
        out = self._written(data, encode)
        self._unlike = 0 if out is not None else self._unlike + 1
        return out

    def _written(self, data: bytes, encode: Encode) -> list[bytes] | None:
        out: list[bytes] = []
        at = 0
        for stretch in self._stretches:
            if isinstance(stretch, _Same):
                if not data.startswith(stretch.raw, at):
                    return None
                if stretch.text:
                    out.append(stretch.text)
                at += len(stretch.raw)
                continue
            if not self._is(data, at, stretch.tag):
                return None
            end = self._end(data, at)
            if end is None and stretch.last and stretch.tag in PIXEL_TAGS:
                end = len(data)  # the header was cut off behind it
            if end is None or (stretch.last and end != len(data)):
                return None
            encode(at, end, stretch.charset, stretch.signed, out)
            at = end
        return out if at == len(data) else None

    def learn(self, data: bytes, met: Sequence[Met], fragments: Sequence[bytes]) -> None:
        """See an object that was encoded one by one: ``fragments`` are its elements', ``met`` says which."""
        self._stretches = []
        tags = tuple(one.tag for one in met)
        ends = [0, *(one.end for one in met)]
        if not met or ends[-1] != len(data) or any(a >= b for a, b in pairwise(tags)):
            self._unlike += 1
            return
        raws = [data[start:end] for start, end in pairwise(ends)]
        counts = [*(one.fragments for one in met), len(fragments)]
        links = [one.links for one in met[1:]]
        if tags != self._tags:
            self._unlike += 1
            self._tags, self._raws, self._differ = tags, raws, set()
            return
        self._differ |= {i for i, raw in enumerate(raws) if raw != self._raws[i]}
        self._raws = raws
        # What holds a link is another text in another object.
        linked = {i for i, one in enumerate(met) if i == len(met) - 1 or links[i] != one.links}
        if any(_changes_others(met[i]) for i in self._differ):
            self._unlike += 1
            return
        for i, one in enumerate(met):
            if i in self._differ or i in linked:
                if one.is_un:
                    self._stretches = []  # what it is depends on the private creators before it
                    self._unlike += 1
                    return
                self._stretches.append(_Other(one.tag, one.charset, one.signed, i == len(met) - 1))
                continue
            text = b"".join(fragments[counts[i] : counts[i + 1]])
            last = self._stretches[-1] if self._stretches else None
            if isinstance(last, _Same):
                joined = b",".join(part for part in (last.text, text) if part)
                self._stretches[-1] = _Same(last.raw + raws[i], joined)
            else:
                self._stretches.append(_Same(raws[i], text))

    def _is(self, data: bytes, at: int, tag: int) -> bool:
        if at + 8 > len(data):
            return False
        group, number = _TAG[self._little].unpack_from(data, at)
        return bool(group << 16 | number == tag)

    def _end(self, data: bytes, at: int) -> int | None:
        """Where the element at ``at`` ends; None when that takes a closer look."""
        order: Literal["little", "big"] = "little" if self._little else "big"
        if self._implicit:
            value, length = at + 8, int.from_bytes(data[at + 4 : at + 8], order)
        else:
            letters = data[at + 4 : at + 6]
            if letters in SHORT_VRS:
                value, length = at + 8, int.from_bytes(data[at + 6 : at + 8], order)
            elif letters in LONG_VRS and letters != b"UN":
                value, length = at + 12, int.from_bytes(data[at + 8 : at + 12], order)
            else:
                return None
        if length == UNDEFINED:
            try:
                return skip_sequence(data, value, len(data), self._implicit, self._little, Budget())
            except BadSequenceError:
                return None
        return value + length if value + length <= len(data) else None


def _changes_others(one: Met) -> bool:
    """Whether what follows is read by it: a character set, the pixels' sign, a private creator."""
    is_creator = bool(one.tag & 0x10000) and 0x10 <= one.tag & 0xFFFF <= 0xFF
    return is_creator or one.tag in (SPECIFIC_CHARACTER_SET, _PIXEL_REPRESENTATION)
