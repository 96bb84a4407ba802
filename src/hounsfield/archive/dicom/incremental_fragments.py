"""Encapsulated pixel data (PS3.5 A.4) passes by: the places of its items are kept, and a little of each."""

from __future__ import annotations

from array import array
from typing import Final

from hounsfield.archive.dicom.cuts import Fragments, Sighted, looks_like_image
from hounsfield.archive.dicom.dictionary import ITEM, SEQUENCE_END, UNDEFINED
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.walk import IMPLICIT_HEAD

_ITEM_HEADER_BYTES: Final = 8
_SNIFFED_BYTES: Final = 12  # of a fragment's beginning tell whether a compressed image begins there
_FRAGMENT_BYTES: Final = 100  # a place in an array, then in lists while the cuts are made
_TABLE_BYTES: Final = 64 * 1024  # an offset table up to this is kept, however few frames may be
_NO_TABLE: Final = b"\1\0\0\0"  # one that is no table, for one that was too long to be kept


class PassingFragments:
    """``take`` all bytes of the value, its sequence delimiter included, until ``end`` is known."""

    def __init__(self, little: bool, frames_max: int) -> None:
        self._little = little
        self._frames_max = frames_max
        self._starts: array[int] = array("Q")
        self._begins_image = bytearray()
        self._table = bytearray()  # the offset table item, its header first
        self._table_whole = True
        self._carry = bytearray()  # an item header, or a fragment's first bytes
        self._in_item = False
        self._left = 0  # bytes of the item that are to come
        self.end: int | None = None
        """Where in the stream the last item ends."""
        self.delimiter = b""
        """The sequence delimiter as received."""
        self.problem: Problem | None = None
        """Why nothing can be read on from there."""

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that this holds, and will hold while the cuts are made, about."""
        return 3 * len(self._table) + _FRAGMENT_BYTES * len(self._starts)

    def take(self, view: memoryview, at: int) -> int:
        """Consume some of the bytes that begin at ``at`` in the stream, at least one: how many."""
        if not self._in_item:
            taken = min(_ITEM_HEADER_BYTES - len(self._carry), len(view))
            self._carry += view[:taken]
            if len(self._carry) == _ITEM_HEADER_BYTES:
                self._item(at + taken - _ITEM_HEADER_BYTES)
            return taken
        taken = min(self._left, len(view))
        piece = view[:taken]
        self._left -= taken
        if len(self._starts) == 1:
            if self._table_whole:
                self._table += piece
        elif len(self._carry) < _SNIFFED_BYTES:
            self._carry += piece[: _SNIFFED_BYTES - len(self._carry)]
        if not self._left:
            self._end_item()
        return taken

    def cut_short(self, at: int) -> None:
        """The stream is over at ``at``, and there was no delimiter."""
        if self._in_item:
            self._end_item()
            self.problem, self.end = Problem.TRUNCATED, at
        else:
            self.problem = Problem.TRUNCATED if self._carry else Problem.NO_SEQUENCE_END
            self.end = at - len(self._carry)

    def sighted(self) -> Sighted:
        """What the cuts are made of, at the end."""
        assert self.end is not None
        table = bytes(self._table[_ITEM_HEADER_BYTES:]) if self._table_whole else _NO_TABLE
        return Sighted(Fragments(list(self._starts), self.end), table, self._begins_image)

    def table_item(self, length: int) -> bytes:
        """The first bytes of the offset table's item, its header included; none when it was not kept."""
        return bytes(self._table[: max(0, length)]) if self._table_whole else b""

    def _item(self, at: int) -> None:
        """An item header is there whole, at ``at`` in the stream."""
        group, number, length = IMPLICIT_HEAD[self._little].unpack_from(self._carry)
        tag = group << 16 | number
        if tag == SEQUENCE_END:
            self.end, self.delimiter = at, bytes(self._carry)
        elif tag != ITEM or length == UNDEFINED:
            self.end, self.problem = at, Problem.BAD_SEQUENCE
        elif len(self._starts) >= self._frames_max:
            self.end, self.problem = at, Problem.TOO_MANY_FRAMES
        else:
            self._begin_item(at, length)

    def _begin_item(self, at: int, length: int) -> None:
        self._starts.append(at)
        if len(self._starts) == 1:
            self._table += self._carry
            self._table_whole = length <= max(4 * self._frames_max, _TABLE_BYTES)
        self._carry.clear()
        self._in_item = True
        self._left = length
        if not length:
            self._end_item()

    def _end_item(self) -> None:
        if len(self._starts) > 1:
            self._begins_image.append(looks_like_image(bytes(self._carry)))
        self._carry.clear()
        self._in_item = False
