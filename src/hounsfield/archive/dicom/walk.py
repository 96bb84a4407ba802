"""Element by element through encoded bytes, nested ones included.

For readers that want the values, not the cuts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

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
from hounsfield.archive.dicom.problems import Problem

Buffer = bytes | bytearray | memoryview
#: Tag, VR, value offset, value length (delimiters not counted), whether the length was undefined.
Found = tuple[int, str, int, int, bool]

#: The head of an element by byte order, little or not: tag, VR and 16-bit length, or tag and 32-bit length.
EXPLICIT_HEAD: Final = {True: Struct("<HH2sH"), False: Struct(">HH2sH")}
IMPLICIT_HEAD: Final = {True: Struct("<HHL"), False: Struct(">HHL")}
LENGTH32: Final = {True: Struct("<L"), False: Struct(">L")}

#: Recursion limit of everything that reads nested sequences; real data sets stay below 10.
DEPTH_MAX: Final = 32
#: Elements and items inside sequences of undefined length: a 10,000-frame enhanced object has about 600,000.
NESTED_ELEMENTS_MAX: Final = 4_000_000


class BadSequenceError(ValueError):
    """Nested bytes that are no sequence of items, or too many of them."""

    retry = False

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.value)
        self.problem = problem


@dataclass(slots=True)
class Budget:
    """What one walk may still spend inside sequences of undefined length, and what it met there."""

    elements_left: int = NESTED_ELEMENTS_MAX
    depth_max: int = DEPTH_MAX
    #: A delimiter was forgotten or is one too many.
    misplaced_delimiter: bool = False
    #: Where sequences (by offset) and items (by its complement) end, for readers that come back to the inner
    #: ones: without it, what is nested n deep is walked n times.
    ends: dict[int, int] | None = None


def elements(  # noqa: PLR0917
    data: Buffer, pos: int, end: int, implicit: bool, little: bool, budget: Budget | None = None
) -> Iterator[Found]:
    """The elements of one data set or item at [pos, end), in order.

    Stops at its end, at a delimiter or at damage.
    """
    unpack = EXPLICIT_HEAD[little].unpack_from
    unpack_implicit = IMPLICIT_HEAD[little].unpack_from
    unpack32 = LENGTH32[little].unpack_from
    short, long, known = SHORT_VRS.get, LONG_VRS.get, VR_OF.get
    last = end - 8
    vr: str | None
    while pos <= last:
        if implicit:
            group, number, length = unpack_implicit(data, pos)
            tag = group << 16 | number
            if group == 0xFFFE:
                return
            vr = known(tag) or vr_of(tag)
            value = pos + 8
        else:
            group, number, letters, length = unpack(data, pos)
            tag = group << 16 | number
            vr = short(letters)
            if vr is not None:
                value = pos + 8
                if value + length > end:
                    length = max(end - value, 0)
                yield tag, vr, value, length, False
                pos = value + length
                continue
            if group == 0xFFFE:
                return
            vr = long(letters)
            if vr is not None:
                if pos + 12 > end:
                    return
                value = pos + 12
                length = unpack32(data, pos + 8)[0]
            else:
                vr, value, length = odd_header(data, pos, end, little)
        if length == UNDEFINED:
            try:
                after = skip_sequence(data, value, end, implicit, little, budget)
            except BadSequenceError:
                # Damage, or pixel data whose fragments are elsewhere because the header was cut off before
                # them.
                yield tag, vr, value, end - value, True
                return
            yield tag, vr, value, after - 8 - value, True
            pos = after
            continue
        if value + length > end:
            length = max(end - value, 0)
        yield tag, vr, value, length, False
        pos = value + length


def odd_header(data: Buffer, pos: int, end: int, little: bool) -> tuple[str, int, int]:
    """VR, value offset and length of an element in an explicit VR data set whose VR is none that we know.

    Two capitals are a VR of the future: 32-bit length behind two zero bytes (PS3.5 7.1.2), unless what
    follows shows an empty value. Anything else is an element in implicit VR, which some writers mix in.
    """
    letters = bytes(data[pos + 4 : pos + 6])
    group, number, length = IMPLICIT_HEAD[little].unpack_from(data, pos)
    tag = group << 16 | number
    if not is_letters(letters):
        return vr_of(tag), pos + 8, length
    name = letters.decode("ascii")
    length16 = int.from_bytes(data[pos + 6 : pos + 8], "little" if little else "big")
    if length16 or pos + 12 > end:
        return name, pos + 8, length16
    if pos + 16 <= end:
        next_group, next_number, next_letters, _ = EXPLICIT_HEAD[little].unpack_from(data, pos + 8)
        if (next_letters in SHORT_VRS or next_letters in LONG_VRS) and (next_group << 16 | next_number) > tag:
            return name, pos + 8, 0
    return name, pos + 12, LENGTH32[little].unpack_from(data, pos + 8)[0]


def items(  # noqa: PLR0917
    data: Buffer, pos: int, end: int, implicit: bool, little: bool, budget: Budget | None = None
) -> Iterator[tuple[int, int, bool]]:
    """The items of a sequence whose value is [pos, end): start, end, and whether it is in implicit VR."""
    unpack = IMPLICIT_HEAD[little].unpack_from
    while pos + 8 <= end:
        group, number, length = unpack(data, pos)
        if group << 16 | number != ITEM:
            return
        pos += 8
        item_implicit = implicit or looks_implicit(data, pos, end, implicit)
        if length == UNDEFINED:
            try:
                after = skip_item(data, pos, end, implicit, little, budget)
            except BadSequenceError:
                # Damage inside: what is there is still this item's.
                yield pos, end, item_implicit
                return
            closed = bytes(data[after - 8 : after - 4]) in (b"\xfe\xff\x0d\xe0", b"\xff\xfe\xe0\x0d")
            yield pos, after - 8 if closed else after, item_implicit
            pos = after
        else:
            yield pos, min(pos + length, end), item_implicit
            pos += length


def skip_sequence(  # noqa: PLR0917
    data: Buffer,
    pos: int,
    end: int,
    implicit: bool,
    little: bool,
    budget: Budget | None = None,
    depth: int = 1,
) -> int:
    """The offset after the delimiter of a sequence of undefined length whose first item is at ``pos``.

    BadSequenceError when there is none, with the problem to flag.
    """
    budget = budget or Budget()
    if depth > budget.depth_max:
        raise BadSequenceError(Problem.TOO_DEEP)
    start, ends = pos, budget.ends
    if ends is not None and start in ends:
        return ends[start]
    unpack = IMPLICIT_HEAD[little].unpack_from
    while pos + 8 <= end:
        group, number, length = unpack(data, pos)
        tag = group << 16 | number
        pos += 8
        if tag == SEQUENCE_END:
            if ends is not None:
                ends[start] = pos
            return pos
        if tag != ITEM:
            raise BadSequenceError(Problem.BAD_SEQUENCE)
        budget.elements_left -= 1
        if budget.elements_left < 0:
            raise BadSequenceError(Problem.TOO_MANY_ELEMENTS)
        if length == UNDEFINED:
            pos = skip_item(data, pos, end, implicit, little, budget, depth)
        else:
            pos += length
    raise BadSequenceError(Problem.TRUNCATED)


def skip_item(  # noqa: PLR0917
    data: Buffer,
    pos: int,
    end: int,
    implicit: bool,
    little: bool,
    budget: Budget | None = None,
    depth: int = 1,
) -> int:
    """The offset after the delimiter of an item of undefined length whose first element is at ``pos``.

    BadSequenceError when there is none.
    """
    budget = budget or Budget()
    start, ends = pos, budget.ends
    if ends is not None and ~start in ends:
        return ends[~start]
    implicit = implicit or looks_implicit(data, pos, end, implicit)
    unpack = EXPLICIT_HEAD[little].unpack_from
    unpack_implicit = IMPLICIT_HEAD[little].unpack_from
    unpack32 = LENGTH32[little].unpack_from
    left = budget.elements_left
    while pos + 8 <= end:
        left -= 1
        if left < 0:
            raise BadSequenceError(Problem.TOO_MANY_ELEMENTS)
        group, number, letters, length = unpack(data, pos)
        if group == 0xFFFE:
            budget.elements_left = left
            tag = group << 16 | number
            if tag == ITEM_END:
                if ends is not None:
                    ends[~start] = pos + 8
                return pos + 8
            if tag == SEQUENCE_END:
                # The item's own delimiter was forgotten: leave this one for the sequence.
                budget.misplaced_delimiter = True
                return pos
            raise BadSequenceError(Problem.BAD_SEQUENCE)
        if not implicit and letters in SHORT_VRS:
            pos += 8 + length
            continue
        if implicit:
            value = pos + 8
            length = unpack_implicit(data, pos)[2]
        elif letters in LONG_VRS and pos + 12 <= end:
            value = pos + 12
            length = unpack32(data, pos + 8)[0]
        else:
            _, value, length = odd_header(data, pos, end, little)
        if length == UNDEFINED:
            budget.elements_left = left
            pos = skip_sequence(data, value, end, implicit, little, budget, depth + 1)
            left = budget.elements_left
        else:
            pos = value + length
    raise BadSequenceError(Problem.TRUNCATED)


def is_letters(letters: bytes) -> bool:
    """Two capitals, as every VR is."""
    return len(letters) == 2 and 0x41 <= letters[0] <= 0x5A and 0x41 <= letters[1] <= 0x5A


def looks_implicit(data: Buffer, pos: int, end: int, assumed: bool) -> bool:
    """Whether the element at ``pos`` is in implicit VR.

    Writers switch without saying so, in whole files and in items.

    An explicit VR is two capitals; in implicit VR the same two bytes are half a length, which would be beyond
    16,000.
    """
    if pos + 8 > end:
        return assumed
    head = bytes(data[pos : pos + 6])
    letters = head[4:]
    if head[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return assumed
    if assumed:
        return not (letters in SHORT_VRS or letters in LONG_VRS)
    return not is_letters(letters)
