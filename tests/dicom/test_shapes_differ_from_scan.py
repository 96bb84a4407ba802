"""What a shape says of a data set must be what the walk says, or nothing at all."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hounsfield.archive.dicom.attributes import extract
from hounsfield.archive.dicom.part10 import Part10Error, split
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.dicom.shapes import CHANGING_MAX, Shape
from hounsfield.codecs.registry import lookup

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]


def encoded(dataset: Dataset, syntax: str) -> memoryview:
    raw = DicomBytesIO()
    raw.is_implicit_VR = syntax == ImplicitVRLittleEndian
    raw.is_little_endian = syntax != ExplicitVRBigEndian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dataset(raw, dataset)
    return memoryview(raw.getvalue())


def slice_of(number: int, **values: object) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPInstanceUID = f"1.2.3.{number}"
    dataset.StudyDate = "20240131"
    dataset.Modality = "CT"
    dataset.PatientName = "Mühle^Jörg"
    dataset.PatientID = "P1"
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = "1.2.3.4"
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = f"1.2.{number * 7}"
    dataset.ReferencedImageSequence = [reference]
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = [-123.5, 20.25, number * 0.625 - 200]
    dataset.SliceLocation = str(number * 0.625)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = 8
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    dataset.WindowCenter = number
    dataset.add_new(0x7FE00010, "OW", bytes([number % 256]) * 128)
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def the_walk(data: memoryview, syntax: str):
    walked = scan(data, lookup(syntax))
    return walked, extract(walked, data)


class Memory:
    """Uses shapes as the engine does, and compares every answer with the walk's."""

    def __init__(self, syntax: str) -> None:
        self.syntax = syntax
        self.shape: Shape | None = None
        self.hits = 0

    def check(self, data: memoryview) -> bool:
        walked, found = the_walk(data, self.syntax)
        known = self.shape.read(data) if self.shape is not None else None
        if known is not None:
            self.hits += 1
            assert (known[0].study, known[0].series, known[0].instance) == (
                found.study, found.series, found.instance,
            )  # fmt: skip
            assert known[0].problems == found.problems
            assert list(known[1]) == list(walked.cuts)
            return True
        learnt = Shape.of(walked, found, data, self.shape)
        if learnt is not None:
            self.shape = learnt
        return False


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_series_is_walked_twice_and_then_known(syntax: str) -> None:
    memory = Memory(syntax)
    # Numbers grow by digits on the way: every length changes, and with it every later offset.
    for number in [1, 2, *range(3, 400, 7), 1000, 10_000]:
        memory.check(encoded(slice_of(number), syntax))
    assert memory.hits >= 56


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "values",
    [
        {"SpecificCharacterSet": "ISO_IR 192"},
        {"Rows": 4},
        {"BitsAllocated": 8},
        {"NumberOfFrames": 2},
        {"SOPInstanceUID": "not a uid"},
        {"SOPInstanceUID": ""},
        {"PatientName": "Yamada^Tarou=山田^太郎"},
        {"PatientComments": "x" * 5000},
        {"StudyDescription": "new here"},
        {"PixelData": b"\0" * 126},
        {"PixelData": b"\0" * 256},
    ],
)
def test_what_decides_or_is_odd_is_walked_or_read_right(syntax: str, values: dict[str, object]) -> None:
    memory = Memory(syntax)
    for number in (1, 2, 3):
        memory.check(encoded(slice_of(number), syntax))
    for number in (4, 5, 6):
        memory.check(encoded(slice_of(number, **values), syntax))
    memory.check(encoded(slice_of(7), syntax))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_any_changed_byte_is_seen(seed: int, changes: int) -> None:
    chance = random.Random(seed)
    syntax = chance.choice(SYNTAXES)
    memory = Memory(syntax)
    for number in (1, 2, 300):
        memory.check(encoded(slice_of(number), syntax))
    for _ in range(20):
        data = bytearray(encoded(slice_of(chance.randrange(1000)), syntax))
        for _ in range(changes):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        memory.check(memoryview(bytes(data)))


def test_every_native_file_is_known_when_it_comes_again() -> None:
    known = 0
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        found = _data_set(path)
        if found is None or len(found[0]) > 1 << 20:
            continue
        data, syntax = found
        memory = Memory(syntax)
        memory.check(data)
        known += memory.check(data)
        chance = random.Random(len(data))
        for _ in range(10):
            changed = bytearray(data)
            changed[chance.randrange(min(len(changed), 3000))] ^= 1 << chance.randrange(8)
            memory.check(memoryview(bytes(changed)))
    assert known >= 15


def _data_set(path: Path) -> tuple[memoryview, str] | None:
    data = path.read_bytes()
    try:
        part = split(data)
    except Part10Error:
        return None
    return memoryview(data[part.offset :]), part.transfer_syntax_uid


def test_too_many_changing_elements_are_walked() -> None:
    memory = Memory(ExplicitVRLittleEndian)
    for number in range(5):
        dataset = slice_of(number)
        for element in range(CHANGING_MAX + 10):
            dataset.add_new(0x00091000 + element, "LO", f"{number}")
        dataset.add_new(0x00090010, "LO", "OURS")
        memory.check(encoded(dataset, ExplicitVRLittleEndian))
    assert memory.hits == 0
