"""Danger: bytes from the network make the scanner raise, hang, or use memory without bound."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hounsfield.archive.dicom.attributes import extract
from hounsfield.archive.dicom.bulk import find_bulk
from hounsfield.archive.dicom.cuts import Layout, frame_bytes
from hounsfield.archive.dicom.json import to_json
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.scan import ScanLimits, Scanned, scan
from hounsfield.codecs.registry import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax,
    lookup,
)

SYNTAXES = [
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    lookup("1.2.840.10008.1.2.4.90"),
    lookup("1.2.3.4"),
]


def everything(data: bytes, syntax: TransferSyntax) -> Scanned:
    """Whatever an archive does with received bytes; the slices must add up however bad they are."""
    scanned = scan(data, syntax)
    slices = scanned.slices(data)
    assert b"".join(slices) == data
    for piece in slices[1:-1]:
        frame_bytes(piece, scanned.layout)
    extract(scanned, data)
    json.loads(to_json(slices[0], slices[-1] if len(slices) > 1 else b"", syntax))
    find_bulk(slices[0], b"", syntax, "00081140/1/00081150")
    return scanned


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(SYNTAXES))
@example(b"\x08\0\5\0CS\xff\xff", EXPLICIT_VR_LITTLE_ENDIAN)
@example(b"\x08\0\5\0UT\0\0", EXPLICIT_VR_LITTLE_ENDIAN)
def test_noise_never_raises(data: bytes, syntax: TransferSyntax) -> None:
    everything(data, syntax)


_TOKENS = [
    b"\xfe\xff\x00\xe0",
    b"\xfe\xff\x0d\xe0",
    b"\xfe\xff\xdd\xe0",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x40\x00\x75\x02SQ\0\0",
    b"\xe0\x7f\x10\x00OB\0\0",
    b"\xe0\x7f\x10\x00OW\0\0",
    b"\x08\0\x60\0CS\x02\0CT",
    b"\x28\0\x10\0US\x02\0\1\0",
    b"\x28\0\x11\0US\x02\0\1\0",
    b"\x28\0\0\1US\x02\0\x08\0",
    b"\x28\0\x08\0IS\x02\x002 ",
    b"\x09\0\x10\x10UN\0\0",
    b"\x10\0\x10\0PN\x04\0A^B=",
    b"\x08\0\x05\0CS\x0a\0ISO_IR 192",
    b"\x08\0\0\0\0\0",
    b"\x02\0\0\0",
    b"\x08\0\0\0",
    b"ZZ\0\0",
    b"\xe0\x7f\x01\x00OV\0\0\x10\0\0\0",
    b"\xfc\xff\xfc\xffOB\0\0",
]


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(_TOKENS), max_size=24), st.sampled_from(SYNTAXES))
def test_well_formed_pieces_in_any_order_never_raise(tokens: list[bytes], syntax: TransferSyntax) -> None:
    everything(b"".join(tokens), syntax)


def test_a_file_cut_at_every_byte_of_its_header_is_kept_and_flagged(ct: Any) -> None:
    data = bytes(ct.data)
    end = scan(data, ct.syntax).cuts[1] + 64
    for length in range(0, end, 7):
        scanned = everything(data[:length], ct.syntax)
        if scanned.problems == ():
            # Cut exactly between two elements.
            assert sum(1 for _, at, size in scanned.elements.values() if at + size == length) == 1


def test_every_kind_of_file_cut_and_scratched_never_raises(samples: list[Any]) -> None:
    chosen = {sample.syntax.uid: sample for sample in samples if len(sample.data) < 200_000}
    assert len(chosen) > 10
    for seed, sample in enumerate(chosen.values()):
        data = bytes(sample.data)
        for step in range(40):
            where = (seed * 7919 + step * 104729) % len(data)
            everything(data[:where], sample.syntax)
            scratched = bytearray(data)
            scratched[where % min(len(data), 2048)] ^= 1 << (step % 8)
            everything(bytes(scratched), sample.syntax)


def nested(depth: int, *, implicit: bool = False) -> bytes:
    head = b"\x40\0\x75\2" + (b"" if implicit else b"SQ\0\0") + b"\xff\xff\xff\xff"
    return (head + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * depth


@pytest.mark.parametrize("implicit", [False, True])
def test_depth_is_limited(implicit: bool) -> None:
    syntax = IMPLICIT_VR_LITTLE_ENDIAN if implicit else EXPLICIT_VR_LITTLE_ENDIAN
    scanned = everything(nested(50_000, implicit=implicit), syntax)
    assert Problem.TOO_DEEP in scanned.problems


def test_elements_are_limited() -> None:
    limits = ScanLimits(elements_max=10)
    data = b"".join(struct.pack("<HH2sH", 9, n, b"CS", 0) for n in range(100))
    scanned = scan(data, EXPLICIT_VR_LITTLE_ENDIAN, limits)
    assert len(scanned.elements) == 10
    assert Problem.TOO_MANY_ELEMENTS in scanned.problems
    assert scanned.cuts == [0, len(data)]


def test_nested_elements_are_limited() -> None:
    limits = ScanLimits(nested_elements_max=10)
    items = b"\xfe\xff\0\xe0\0\0\0\0" * 100
    data = b"\x40\0\x75\2SQ\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert Problem.TOO_MANY_ELEMENTS in scan(data, EXPLICIT_VR_LITTLE_ENDIAN, limits).problems
    assert scan(data, EXPLICIT_VR_LITTLE_ENDIAN).problems == ()
    element = b"\xfe\xff\0\xe0\xff\xff\xff\xff" + b"\x08\0\x60\0CS\0\0" * 100 + b"\xfe\xff\x0d\xe0\0\0\0\0"
    data = b"\x40\0\x75\2SQ\0\0\xff\xff\xff\xff" + element + b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert Problem.TOO_MANY_ELEMENTS in scan(data, EXPLICIT_VR_LITTLE_ENDIAN, limits).problems


def pixels(frames: int, rows: int = 1) -> bytes:
    text = str(frames).encode()
    text += b" " * (len(text) % 2)
    return (
        struct.pack("<HH2sH", 0x28, 8, b"IS", len(text)) + text
        + struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, rows) + struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 1)
        + struct.pack("<HH2sHH", 0x28, 0x100, b"US", 2, 8)
    )  # fmt: skip


def test_frames_are_limited() -> None:
    limits = ScanLimits(frames_max=4)
    data = pixels(5) + b"\xe0\x7f\x10\0OB\0\0" + struct.pack("<L", 6) + bytes(6)
    assert scan(data, EXPLICIT_VR_LITTLE_ENDIAN).frame_count == 5
    assert Problem.TOO_MANY_FRAMES in scan(data, EXPLICIT_VR_LITTLE_ENDIAN, limits).problems
    items = b"\xfe\xff\0\xe0\0\0\0\0" * 6
    data = pixels(5) + b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert scan(data, SYNTAXES[4]).frame_count == 5
    assert Problem.TOO_MANY_FRAMES in scan(data, SYNTAXES[4], limits).problems


def test_a_lie_about_the_number_of_frames_costs_nothing() -> None:
    data = pixels(999_999) + b"\xe0\x7f\x10\0OB\0\0" + struct.pack("<L", 6) + bytes(6)
    scanned = everything(data, EXPLICIT_VR_LITTLE_ENDIAN)
    assert scanned.layout is Layout.UNDIVIDED_NATIVE
    assert len(scanned.cuts) == 4
    assert Problem.PIXELS_TOO_SHORT in scanned.problems


def test_a_deflate_bomb_is_inflated_only_to_the_limit() -> None:
    packer = zlib.compressobj(9, wbits=-15)
    bomb = packer.compress(pixels(1) + bytes(50_000_000)) + packer.flush()
    limits = ScanLimits(inflated_bytes_max=100_000)
    scanned = scan(bomb, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, limits)
    assert scanned.inflated is not None
    assert len(scanned.inflated) == 100_000
    assert Problem.INFLATES_TOO_FAR in scanned.problems
    assert 0x00280008 in scanned.elements


def test_a_damaged_deflate_stream_gives_what_comes_before_the_damage() -> None:
    packer = zlib.compressobj(wbits=-15)
    plain = (
        pixels(1)
        + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 20_000)
        + bytes(range(256)) * 78
        + bytes(32)
    )
    whole = packer.compress(plain) + packer.flush()
    scanned = everything(whole[:-20], DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
    assert Problem.TRUNCATED in scanned.problems
    assert 0x00280008 in scanned.elements
    assert Problem.BAD_DEFLATE in everything(b"\xff" * 100, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN).problems


def test_implicit_elements_in_an_explicit_data_set_are_read() -> None:
    data = (
        b"\x08\0\x60\0CS\x02\0CT"
        + struct.pack("<HHL", 9, 0x1010, 4) + b"abcd"
        + b"\x10\0\x20\0LO\x02\0ID"
    )  # fmt: skip
    scanned = everything(data, EXPLICIT_VR_LITTLE_ENDIAN)
    assert scanned.value(data, 0x00091010) == b"abcd"
    assert scanned.value(data, 0x00100020) == b"ID"
    assert Problem.UNEXPECTED_VR_ENCODING in scanned.problems


@pytest.mark.parametrize("claimed", [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
def test_a_data_set_in_the_other_encoding_is_read_as_it_is(claimed: TransferSyntax) -> None:
    if claimed.implicit_vr:
        data = b"\x08\0\x60\0CS\x02\0CT" + b"\x10\0\x20\0LO\x02\0ID"
    else:
        data = struct.pack("<HHL", 8, 0x60, 2) + b"CT" + struct.pack("<HHL", 0x10, 0x20, 2) + b"ID"
    scanned = everything(data, claimed)
    assert scanned.implicit_vr is not claimed.implicit_vr
    assert scanned.value(data, 0x00100020) == b"ID"
    assert Problem.UNEXPECTED_VR_ENCODING in scanned.problems


def test_a_vr_of_the_future_has_a_long_length() -> None:
    data = b"\x09\0\x10\x10XX\0\0\x04\0\0\0abcd" + b"\x10\0\x20\0LO\x02\0ID"
    scanned = everything(data, EXPLICIT_VR_LITTLE_ENDIAN)
    assert scanned.elements[0x00091010] == ("XX", 12, 4)
    assert scanned.value(data, 0x00100020) == b"ID"
    assert scanned.problems == (Problem.UNKNOWN_VR,)
    empty = b"\x09\0\x10\x10??\0\0".replace(b"??", b"XX") + b"\x10\0\x20\0LO\x02\0ID"
    assert everything(empty, EXPLICIT_VR_LITTLE_ENDIAN).value(empty, 0x00100020) == b"ID"


def test_zeros_after_the_end_are_kept_and_named() -> None:
    data = b"\x08\0\x60\0CS\x02\0CT" + bytes(30)
    scanned = everything(data, EXPLICIT_VR_LITTLE_ENDIAN)
    assert set(scanned.elements) == {0x00080060}
    assert scanned.problems == (Problem.TRAILING_BYTES,)


def test_a_stray_delimiter_does_not_end_the_data_set() -> None:
    data = b"\x08\0\x60\0CS\x02\0CT" + b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\x10\0\x20\0LO\x02\0ID"
    scanned = everything(data, EXPLICIT_VR_LITTLE_ENDIAN)
    assert scanned.value(data, 0x00100020) == b"ID"
    assert scanned.problems == (Problem.MISPLACED_DELIMITER,)


def test_duplicate_elements_are_named() -> None:
    data = b"\x08\0\x60\0CS\x02\0CT" * 2
    assert everything(data, EXPLICIT_VR_LITTLE_ENDIAN).problems == (Problem.DUPLICATE_ELEMENT,)


def test_nothing_at_all() -> None:
    scanned = everything(b"", EXPLICIT_VR_LITTLE_ENDIAN)
    assert scanned.cuts == [0, 0]
    assert scanned.problems == (Problem.EMPTY,)


def test_numbers_written_as_text_are_not_multiplied() -> None:
    data = (
        pixels(1).replace(b"US\x02\0\x08\0", b"LO\x02\0xy")
        + struct.pack("<HH2sH", 0x28, 0x2, b"CS", 2) + b"ab"
        + b"\xe0\x7f\x10\0OB\0\0" + struct.pack("<L", 2) + b"\1\0" + b"\x88\x88\x10\0LO\x02\0AB"
    )  # fmt: skip
    everything(data, EXPLICIT_VR_LITTLE_ENDIAN)
