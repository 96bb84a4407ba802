"""Danger: a byte of a received object is lost, doubled or given to the wrong frame."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels.utils import get_expected_length
from pydicom.sequence import Sequence

from hounsfield.archive.dicom.cuts import FrameError, Layout, frame_bytes, undivided_frame
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.scan import scan
from hounsfield.codecs.registry import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax,
    lookup,
)

ENCODINGS = [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN]
JPEG = lookup("1.2.840.10008.1.2.4.50")


def encode(ds: Dataset, syntax: TransferSyntax) -> bytes:
    out = DicomBytesIO()
    out.is_implicit_VR = syntax.implicit_vr
    out.is_little_endian = syntax.little_endian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dataset(out, ds)
    return out.getvalue()


# Real files


def test_slices_of_every_real_file_are_exactly_its_bytes(sample: Any) -> None:
    scanned = scan(sample.data, sample.syntax)
    assert b"".join(scanned.slices(sample.data)) == sample.data
    assert scanned.cuts == sorted(scanned.cuts)
    if scanned.layout is Layout.HEADER_ONLY:
        assert len(scanned.cuts) == 2
    elif scanned.layout.has_frames:
        assert len(scanned.cuts) == scanned.frame_count + 3
    else:
        assert len(scanned.cuts) == 4


KEPT_WHOLE = {
    "MR_truncated.dcm",  # the last row is missing
    "liver.dcm", "liver_expb.dcm", "liver_1frame.dcm", "liver_expb_1frame.dcm", "liver_nonbyte_aligned.dcm",
    "nested_priv_SQ.dcm", "meta_missing_tsyntax.dcm",  # no rows or columns
}  # fmt: skip


def test_frames_of_every_real_file_are_the_ones_pydicom_gives(sample: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(sample.path, force=True)
    if "PixelData" not in ds or not ds.PixelData or sample.syntax.deflated:
        return
    scanned = scan(sample.data, sample.syntax)
    if sample.path.name == "badVR.dcm":
        return  # pydicom does not read its NumberOfFrames, "1A"
    frames = int(ds.get("NumberOfFrames") or 1)
    if not scanned.layout.has_frames:
        assert sample.path.name in KEPT_WHOLE
        return
    pieces = scanned.slices(sample.data)[1:-1]
    assert len(pieces) == frames == scanned.frame_count
    if scanned.layout is Layout.NATIVE:
        length = get_expected_length(ds) // frames
        for number, piece in enumerate(pieces):
            assert frame_bytes(piece, scanned.layout) == ds.PixelData[number * length : (number + 1) * length]
    else:
        for number, piece in enumerate(pieces):
            expected = get_frame(ds.PixelData, number, number_of_frames=frames)
            assert frame_bytes(piece, scanned.layout) == expected


def test_element_table_of_every_real_file_is_pydicoms(sample: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(sample.path, force=True)
    scanned = scan(sample.data, sample.syntax)
    if Problem.NO_SEQUENCE_END in scanned.problems:
        return  # pydicom gives up on the whole file
    assert set(scanned.elements) == {int(tag) for tag in ds._dict if tag.group != 2}


# Data sets made at random


def _values() -> st.SearchStrategy[tuple[int, str, Any]]:
    text = st.text("ABCxyz 019^", min_size=0, max_size=24)
    blob = st.binary(max_size=64).map(lambda b: b + b"\0" * (len(b) % 2))
    words = st.binary(max_size=16).map(lambda b: (b * 8)[: len(b) * 8])

    def numbers(low: int, high: int) -> st.SearchStrategy[Any]:
        return st.lists(st.integers(low, high), min_size=1, max_size=3).map(
            lambda v: v[0] if len(v) == 1 else v
        )

    return st.one_of(
        text.map(lambda v: (0x00080060, "CS", v.upper()[:16])),
        text.map(lambda v: (0x00081030, "LO", v)),
        text.map(lambda v: (0x00100010, "PN", v)),
        text.map(lambda v: (0x00104000, "LT", v)),
        text.map(lambda v: (0x00080104, "LO", v)),
        text.map(lambda v: (0x00091010, "UT", v)),
        text.map(lambda v: (0x00091011, "UC", v)),
        text.map(lambda v: (0x00091012, "UR", v.strip())),
        st.just((0x00020010 + 0x00060000 + 8, "UI", "1.2.3.4")),
        st.just((0x00080020, "DA", "20240131")),
        st.just((0x00080030, "TM", "101112.5")),
        st.just((0x0008002A, "DT", "20240131101112")),
        st.just((0x00101010, "AS", "040Y")),
        st.just((0x00200013, "IS", "-12")),
        st.just((0x00181041, "DS", "1.5")),
        st.just((0x00080054, "AE", "HERE")),
        st.just((0x00080005, "CS", "ISO_IR 100")),
        st.just((0x00280009, "AT", 0x00181063)),
        numbers(0, 0xFFFF).map(lambda v: (0x00280010, "US", v)),
        numbers(-0x8000, 0x7FFF).map(lambda v: (0x00091020, "SS", v)),
        numbers(0, 0xFFFFFFFF).map(lambda v: (0x00091021, "UL", v)),
        numbers(-0x80000000, 0x7FFFFFFF).map(lambda v: (0x00091022, "SL", v)),
        numbers(0, (1 << 64) - 1).map(lambda v: (0x00091023, "UV", v)),
        numbers(-(1 << 63), (1 << 63) - 1).map(lambda v: (0x00091024, "SV", v)),
        st.floats(width=32, allow_nan=False).map(lambda v: (0x00091025, "FL", v)),
        st.floats(allow_nan=False).map(lambda v: (0x00091026, "FD", v)),
        blob.map(lambda v: (0x00091027, "OB", v)),
        blob.map(lambda v: (0x00091028, "UN", v)),
        words.map(lambda v: (0x00091029, "OW", v)),
        words.map(lambda v: (0x0009102A, "OF", v)),
        words.map(lambda v: (0x0009102B, "OD", v)),
        words.map(lambda v: (0x0009102C, "OL", v)),
        words.map(lambda v: (0x0009102D, "OV", v)),
        blob.map(lambda v: (0xFFFCFFFC, "OB", v)),
    )


@st.composite
def datasets(draw: st.DrawFn, depth: int = 0) -> Dataset:
    ds = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag, vr, value in draw(st.lists(_values(), max_size=8)):
            ds.add(DataElement(tag, vr, value))
        if depth < 3:
            for tag in draw(
                st.lists(st.sampled_from([0x00081140, 0x00400275, 0x52009230]), max_size=2, unique=True)
            ):
                items = draw(st.lists(datasets(depth + 1), max_size=3))
                sequence = Sequence(items)
                element = DataElement(tag, "SQ", sequence)
                element.is_undefined_length = draw(st.booleans())
                for item in items:
                    item.is_undefined_length_sequence_item = draw(st.booleans())
                ds.add(element)
    return ds


@st.composite
def datasets_with_pixels(draw: st.DrawFn) -> tuple[Dataset, list[bytes] | None]:
    ds = draw(datasets())
    for tag in (0xFFFCFFFC, 0x00280010):
        if tag in ds:
            del ds[tag]
    kind = draw(st.sampled_from(["none", "native", "encapsulated"]))
    if kind == "none":
        return ds, None
    frames = draw(st.integers(1, 4))
    ds.Rows, ds.Columns, ds.SamplesPerPixel = draw(st.integers(1, 5)), draw(st.integers(1, 5)), 1
    ds.BitsAllocated, ds.NumberOfFrames, ds.PhotometricInterpretation = 8, frames, "MONOCHROME2"
    if kind == "native":
        length = ds.Rows * ds.Columns
        parts = [draw(st.binary(min_size=length, max_size=length)) for _ in range(frames)]
        pixels = b"".join(parts)
        ds.add(DataElement(0x7FE00010, "OW", pixels + b"\0" * (len(pixels) % 2)))
    else:
        parts = [b"\xff\xd8\xff" + draw(st.binary(max_size=40)) for _ in range(frames)]
        parts = [part + b"\0" * (len(part) % 2) for part in parts]
        pixels = encapsulate(parts, fragments_per_frame=1, has_bot=draw(st.booleans()))
        ds.add(DataElement(0x7FE00010, "OB", pixels))
        ds["PixelData"].is_undefined_length = True
    if draw(st.booleans()):
        ds.add(DataElement(0xFFFCFFFC, "OB", bytes(draw(st.integers(0, 20)) * 2)))
    return ds, parts


@settings(max_examples=80, deadline=None)
@given(datasets_with_pixels(), st.sampled_from(ENCODINGS))
def test_random_data_sets_are_cut_exactly(
    made: tuple[Dataset, list[bytes] | None], syntax: TransferSyntax
) -> None:
    ds, parts = made
    if "PixelData" in ds and ds["PixelData"].is_undefined_length and syntax is not EXPLICIT_VR_LITTLE_ENDIAN:
        syntax = JPEG
    raw = encode(ds, syntax)
    scanned = scan(raw, syntax)
    pieces = scanned.slices(raw)
    assert b"".join(pieces) == raw
    if parts is None:
        assert scanned.layout is Layout.HEADER_ONLY
    else:
        assert [bytes(frame_bytes(piece, scanned.layout)) for piece in pieces[1:-1]] == parts
    assert not set(scanned.problems) - {Problem.EMPTY, Problem.UNEXPECTEDLY_ENCAPSULATED}


@settings(max_examples=80, deadline=None)
@given(datasets(), st.sampled_from(ENCODINGS))
def test_random_data_sets_have_the_elements_that_pydicom_reads(ds: Dataset, syntax: TransferSyntax) -> None:
    raw = encode(ds, syntax)
    scanned = scan(raw, syntax)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pydicom.dcmread(io.BytesIO(_part10(raw, syntax)), force=True)
    assert set(scanned.elements) == {int(tag) for tag in read._dict if tag.group != 2}
    for tag, (vr, at, length) in scanned.elements.items():
        element = read.get_item(tag)
        if vr == "SQ" or tag in scanned.undefined or tag == 0x00080005:
            continue
        assert raw[at : at + length] == (element.value or b"")
        if not syntax.implicit_vr:
            assert vr == element.VR


def _part10(raw: bytes, syntax: TransferSyntax) -> bytes:
    from hounsfield.archive.dicom.part10 import file_header

    return file_header(syntax.uid, "1.2", "1.3") + raw


# Shapes that have gone wrong elsewhere


def image(rows: int = 2, columns: int = 2, bits: int = 8, frames: int = 1, **more: Any) -> Dataset:
    ds = Dataset()
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.SamplesPerPixel = rows, columns, bits, 1
    ds.NumberOfFrames = frames
    ds.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    return ds


def fragments(*values: bytes, table: bytes = b"", end: bool = True) -> bytes:
    out = struct.pack("<HHL", 0xFFFE, 0xE000, len(table)) + table
    for value in values:
        out += struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value
    return out + (struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) if end else b"")


def encapsulated(ds: Dataset, body: bytes, after: bytes = b"") -> bytes:
    return encode(ds, EXPLICIT_VR_LITTLE_ENDIAN) + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + body + after


def frames_of(raw: bytes, syntax: TransferSyntax = JPEG) -> tuple[Any, list[bytes]]:
    scanned = scan(raw, syntax)
    pieces = scanned.slices(raw)
    assert b"".join(pieces) == raw
    return scanned, [bytes(frame_bytes(piece, scanned.layout)) for piece in pieces[1:-1]]


A, B, C = b"\xff\xd8\xffA", b"\xff\xd8\xffBBB", b"CCCC"


@pytest.mark.parametrize(
    ("frames", "values", "table", "layout", "expected", "problem"),
    [
        (2, [A, B], b"", Layout.ENCAPSULATED, [A, B], None),
        (2, [A, B], struct.pack("<LL", 0, 12), Layout.ENCAPSULATED, [A, B], None),
        (2, [A, B], struct.pack("<LL", 0, 99), Layout.ENCAPSULATED, [A, B], Problem.BAD_OFFSET_TABLE),
        (1, [A, C], b"", Layout.ENCAPSULATED, [A + C], None),
        (2, [A, C, B], b"", Layout.ENCAPSULATED, [A + C, B], None),
        (2, [A, C, B], struct.pack("<LL", 0, 24), Layout.ENCAPSULATED, [A + C, B], None),
        (2, [C, C, C], struct.pack("<LL", 0, 12), Layout.ENCAPSULATED, [C, C + C], None),
        (
            2,
            [C, C, C],
            struct.pack("<LL", 0, 13),
            Layout.UNDIVIDED_ENCAPSULATED,
            [C * 3],
            Problem.BAD_OFFSET_TABLE,
        ),
        (
            2,
            [C, C, C],
            struct.pack("<LL", 12, 0),
            Layout.UNDIVIDED_ENCAPSULATED,
            [C * 3],
            Problem.BAD_OFFSET_TABLE,
        ),
        (2, [C, C, C], b"", Layout.UNDIVIDED_ENCAPSULATED, [C * 3], Problem.FRAMES_NOT_SEPARABLE),
        (5, [A, B], b"", Layout.UNDIVIDED_ENCAPSULATED, [A + B], Problem.FRAMES_NOT_SEPARABLE),
        (2, [], b"", Layout.UNDIVIDED_ENCAPSULATED, [b""], Problem.PIXELS_TOO_SHORT),
    ],
)
def test_fragments_become_frames(
    frames: int,
    values: list[bytes],
    table: bytes,
    layout: Layout,
    expected: list[bytes],
    problem: Problem | None,
) -> None:
    scanned, got = frames_of(encapsulated(image(frames=frames), fragments(*values, table=table)))
    assert scanned.layout is layout
    assert got == expected
    assert (problem in scanned.problems) if problem else not scanned.problems


def test_extended_offset_table_beyond_four_gigabytes_is_believed_only_when_it_agrees() -> None:
    for offsets, good in (((0, 24), True), ((0, 1 << 40), False)):
        ds = image(frames=2)
        ds.add(DataElement(0x7FE00001, "OV", struct.pack("<QQ", *offsets)))
        ds.add(DataElement(0x7FE00002, "OV", struct.pack("<QQ", 8, 8)))
        scanned, got = frames_of(encapsulated(ds, fragments(C, C, C)))
        assert (got == [C + C, C]) is good
        assert (Problem.BAD_OFFSET_TABLE in scanned.problems) is not good


def test_elements_after_the_pixels_stay_in_the_trailer() -> None:
    after = encode(_comment(), EXPLICIT_VR_LITTLE_ENDIAN)
    raw = encapsulated(image(frames=2), fragments(A, B), after)
    scanned, _ = frames_of(raw)
    assert bytes(scanned.slices(raw)[-1]).endswith(after)
    assert scanned.elements[0xFFFCFFFC][2] == 4


def _comment() -> Dataset:
    ds = Dataset()
    ds.add(DataElement(0xFFFCFFFC, "OB", b"\1\2\3\4"))
    return ds


def test_odd_frames_do_not_swallow_the_padding_byte() -> None:
    ds = image(3, 3, frames=1)
    ds.add(DataElement(0x7FE00010, "OB", bytes(range(9)) + b"\0"))
    raw = encode(ds, EXPLICIT_VR_LITTLE_ENDIAN)
    scanned, got = frames_of(raw, EXPLICIT_VR_LITTLE_ENDIAN)
    assert got == [bytes(range(9))]
    assert bytes(scanned.slices(raw)[-1]) == b"\0"
    assert scanned.problems == ()


def test_frames_of_single_bits_are_cut_only_on_bytes() -> None:
    ds = image(4, 4, bits=1, frames=2)
    ds.add(DataElement(0x7FE00010, "OB", b"\x01\x02\x03\x04"))
    _, got = frames_of(encode(ds, EXPLICIT_VR_LITTLE_ENDIAN), EXPLICIT_VR_LITTLE_ENDIAN)
    assert got == [b"\x01\x02", b"\x03\x04"]

    ds = image(1, 3, bits=1, frames=3)
    ds.add(DataElement(0x7FE00010, "OB", bytes([0b01_101_011, 0b1])))
    scanned, got = frames_of(encode(ds, EXPLICIT_VR_LITTLE_ENDIAN), EXPLICIT_VR_LITTLE_ENDIAN)
    assert scanned.layout is Layout.UNDIVIDED_NATIVE
    assert scanned.frame_count == 3
    assert [undivided_frame(got[0], scanned.layout, scanned.shape, n) for n in (1, 2, 3)] == [
        b"\3",
        b"\5",
        b"\5",
    ]
    with pytest.raises(FrameError):
        undivided_frame(got[0], scanned.layout, scanned.shape, 6)


@pytest.mark.parametrize(("stored", "length"), [(4 * 2 * 2, 8), (4 * 3 * 2, 12)])
def test_subsampled_colour_is_cut_by_what_is_there(stored: int, length: int) -> None:
    ds = image(2, 2, frames=2, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL_422")
    ds.add(DataElement(0x7FE00010, "OB", bytes(range(stored))))
    _, got = frames_of(encode(ds, EXPLICIT_VR_LITTLE_ENDIAN), EXPLICIT_VR_LITTLE_ENDIAN)
    assert [len(frame) for frame in got] == [length, length]


@pytest.mark.parametrize(("tag", "vr", "size"), [(0x7FE00008, "OF", 4), (0x7FE00009, "OD", 8)])
def test_float_pixels_are_pixels(tag: int, vr: str, size: int) -> None:
    ds = image(2, 2, bits=size * 8, frames=2)
    ds.add(DataElement(tag, vr, bytes(8 * size)))
    scanned, got = frames_of(encode(ds, EXPLICIT_VR_LITTLE_ENDIAN), EXPLICIT_VR_LITTLE_ENDIAN)
    assert scanned.pixels.tag == tag
    assert [len(frame) for frame in got] == [4 * size, 4 * size]


def test_one_fragment_is_given_without_a_copy() -> None:
    raw = encapsulated(image(), fragments(A))
    scanned = scan(raw, JPEG)
    frame = frame_bytes(scanned.slices(raw)[1], scanned.layout)
    assert isinstance(frame, memoryview)
    assert frame.obj is raw


def test_a_deflated_data_set_is_one_slice_and_its_elements_are_found() -> None:
    ds = image(frames=2)
    ds.add(DataElement(0x7FE00010, "OB", bytes(8)))
    plain = encode(ds, EXPLICIT_VR_LITTLE_ENDIAN)
    packer = zlib.compressobj(wbits=-15)
    raw = packer.compress(plain) + packer.flush()
    scanned = scan(raw, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
    assert scanned.cuts == [0, len(raw)]
    assert scanned.layout is Layout.HEADER_ONLY
    assert scanned.inflated == plain
    assert scanned.value(raw, 0x00280008) == b"2 "
    assert scanned.problems == ()


def test_video_is_one_stream() -> None:
    raw = encapsulated(image(frames=30), fragments(b"\0\0\0\x18ftypmp42"))
    scanned, got = frames_of(raw, lookup("1.2.840.10008.1.2.4.102"))
    assert scanned.layout is Layout.UNDIVIDED_ENCAPSULATED
    assert got == [b"\0\0\0\x18ftypmp42"]
    assert scanned.problems == ()
