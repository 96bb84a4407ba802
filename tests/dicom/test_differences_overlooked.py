"""Danger: two data sets are called the same and one says something that the other does not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.dicom.same_elements import NotComparableError, read, same_elements
from support.nonsense import Parts, Uids, element, nested

UIDS = Uids("1.2.3", "1.2.3.1", "1.2.3.1.1")
ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END, SEQUENCE_END = (struct.pack("<HHL", 0xFFFE, tag, 0) for tag in (0xE00D, 0xE0DD))


def data_set() -> bytes:
    """Every kind of element, no pixels: numbers, text, bytes, private ones, sequences of both lengths."""
    inside = element(0x00080100, "SH", b"T-1 ") + element(0x00080104, "LO", "Füße".encode())
    known = struct.pack("<HHL", 0xFFFE, 0xE000, len(inside)) + inside
    parts = Parts(UIDS).without(0x7FE00010)
    parts.set(0x00081140, "SQ", ITEM + inside + ITEM_END + SEQUENCE_END, length=0xFFFFFFFF)
    parts.set(0x00081115, "SQ", known)
    parts.set(0x00189345, "FD", struct.pack("<d", 3.25))
    parts.set(0x00281201, "OW", b"\1\2\3\4")
    parts.set(0x00291010, "UN", b"\1\2\3\4")
    parts.set(0x00400A30, "DS", b"1.5 ")
    return parts.bytes()


def same(one: bytes, other: bytes) -> bool:
    """Whether they say the same; what cannot be compared does not."""
    try:
        mine, its = (
            read(each, b"", implicit=False, little=True, native_bytes=0).elements for each in (one, other)
        )
    except NotComparableError:
        return False
    return same_elements(mine, its)


def test_every_flipped_bit_is_seen() -> None:
    """But for what says nothing: padding, reserved bytes, lengths of delimiters, whether a VR is OB or OW.

    And the VR of Specific Character Set, which is compared by what it means for the text.
    """
    data = data_set()
    assert same(data, data)
    unseen = {
        at
        for at in range(len(data))
        for bit in range(8)
        if {data[at], data[at] ^ 1 << bit} != set(b" \0")
        and same(data, data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
    }
    long_vrs = [at for at in range(len(data)) if data[at : at + 2] in {b"SQ", b"OW", b"UN"}]
    nothing = {at + n for at in long_vrs for n in (2, 3)}
    nothing |= {at + 1 for at in long_vrs if data[at : at + 2] == b"OW"}
    nothing |= {4, 5}
    for delimiter in (ITEM_END, SEQUENCE_END):
        nothing |= {data.index(delimiter) + n for n in (4, 5, 6, 7)}
    assert unseen <= nothing


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_anything_cut_or_put_in_is_seen(data: st.DataObject) -> None:
    whole = data_set()
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start, len(whole)))
    put = data.draw(st.binary(max_size=12))
    changed = whole[:start] + put + whole[end:]
    if changed != whole and same(whole, changed):
        stripped = [text.replace(b" ", b"").replace(b"\0", b"") for text in (whole, changed)]
        assert stripped[0] == stripped[1]


@pytest.mark.parametrize(
    "data",
    [
        data_set()[:-3],
        data_set() + b"\0",
        data_set() + element(0x00080005, "CS", b"ISO_IR 192"),  # out of order
        data_set() + element(0x00400A30, "DS", b"1.5 "),  # twice
        data_set() + element(0x00400A40, "ZZ", b"abcd"),
        data_set() + element(0x00400A40, "UN", b"abcd", length=0xFFFFFFFF),
        data_set() + element(0x00400A40, "LO", b"abcd", length=60),
        element(0x00081140, "SQ", b"junkjunk"),
        element(0x00081140, "SQ", ITEM, length=0xFFFFFFFF),
        nested(40),
        element(0x00000002, "UI", b"1.2 "),
    ],
)
def test_what_is_odd_is_not_compared(data: bytes) -> None:
    with pytest.raises(NotComparableError):
        read(data, b"", implicit=False, little=True, native_bytes=0)


@pytest.mark.parametrize(
    ("trailer", "native_bytes", "sound"),
    [
        (b"", 128, True),
        (b"\0", 127, True),  # a padding byte
        (element(0xFFFCFFFC, "OB", b"\0\0"), 128, True),
        (b"\0\0", 126, False),  # more than padding
        (b"", 130, False),
        (element(0x00100010, "PN", b"A "), 128, False),
        (b"\0", 128, False),
    ],
)
def test_what_stands_behind_the_pixels(trailer: bytes, native_bytes: int, sound: bool) -> None:
    header = Parts(UIDS).bytes()[:-128]
    if sound:
        found = read(header, trailer, implicit=False, little=True, native_bytes=native_bytes)
        assert found.pixels is not None
        assert found.pixels.length == 128
    else:
        with pytest.raises(NotComparableError):
            read(header, trailer, implicit=False, little=True, native_bytes=native_bytes)
