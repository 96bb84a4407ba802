"""Wherever an image is cut off, the scan says that bytes are missing; of a whole one it says nothing."""

from __future__ import annotations

import io

import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite

from hounsfield.archive.dicom.incremental import IncrementalScan
from hounsfield.archive.dicom.problems import CUT_SHORT
from hounsfield.archive.dicom.scan import scan
from hounsfield.codecs.registry import TransferSyntax, lookup

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
JPEG_LS, MPEG = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.102"
FRAMES = 4


def image(syntax: TransferSyntax, *, table: bool = True) -> Dataset:
    data = Dataset()
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.2"
    data.SOPInstanceUID = "1.2.3.4"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = 4, 4, 8, 8, 7
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.NumberOfFrames = FRAMES
    if not syntax.encapsulated:
        data.PixelData = bytes(range(16)) * FRAMES
    else:
        count = 1 if syntax.is_video else FRAMES
        frames = [b"\xff\xd8\xff\xf7" + bytes([number]) * 20 for number in range(count)]
        data.PixelData = encapsulate(frames, has_bot=table)
        data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    return data


def encoded(uid: str, *, table: bool = True) -> bytes:
    syntax = lookup(uid)
    out = io.BytesIO()
    dcmwrite(
        out,
        image(syntax, table=table),
        implicit_vr=syntax.implicit_vr,
        little_endian=syntax.little_endian,
        force_encoding=True,
    )
    return out.getvalue()


def streamed(data: bytes, syntax: TransferSyntax) -> tuple[str, ...]:
    scanning = IncrementalScan(syntax)
    for start in range(0, len(data), 7):
        scanning.feed(memoryview(data)[start : start + 7])
    return scanning.finish().scanned.problems


CASES = [
    (EXPLICIT, True), (IMPLICIT, True), (BIG, True), (JPEG_LS, True), (JPEG_LS, False), (MPEG, True),
]  # fmt: skip


@pytest.mark.parametrize(("uid", "table"), CASES)
def test_a_whole_image_lacks_nothing(uid: str, table: bool) -> None:
    data = encoded(uid, table=table)
    assert CUT_SHORT.isdisjoint(scan(data, lookup(uid)).problems)
    assert CUT_SHORT.isdisjoint(scan(data + bytes(6), lookup(uid)).problems)  # padding is none of it


@pytest.mark.parametrize(("uid", "table"), CASES)
def test_every_cut_behind_the_description_of_the_pixels_is_noticed(uid: str, table: bool) -> None:
    data = encoded(uid, table=table)
    syntax = lookup(uid)
    order = "little" if syntax.little_endian else "big"
    described = data.index((0x28).to_bytes(2, order) + (0x0103).to_bytes(2, order))  # Pixel Representation
    for problems in (lambda cut: scan(cut, syntax).problems, lambda cut: streamed(cut, syntax)):
        ends = range(described, len(data))
        assert [end for end in ends if CUT_SHORT.isdisjoint(problems(data[:end]))] == []


def test_a_last_fragment_that_is_missing_is_noticed_though_the_sequence_ends() -> None:
    data = encoded(JPEG_LS)
    end = data[-8:]
    last = data.rindex(b"\xfe\xff\x00\xe0")
    assert not CUT_SHORT.isdisjoint(scan(data[:last] + end, lookup(JPEG_LS)).problems)


def test_an_image_whose_pixels_are_elsewhere_lacks_nothing() -> None:
    data = image(lookup(EXPLICIT))
    del data.PixelData
    data.PixelDataProviderURL = "https://example.org/x"
    out = io.BytesIO()
    dcmwrite(out, data, implicit_vr=False, little_endian=True, force_encoding=True)
    assert CUT_SHORT.isdisjoint(scan(out.getvalue(), lookup(EXPLICIT)).problems)
