"""Danger: a file is taken for something that it is not, its data set is cut in the wrong place.

Or it is all read.
"""

from __future__ import annotations

import io
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.dicom.attributes import uid_is_valid
from hounsfield.archive.dicom.part10 import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    META_BYTES_MAX,
    Part10Error,
    file_header,
    read_prefix,
    split,
)


def test_what_is_written_is_read_back() -> None:
    header = file_header("1.2.840.10008.1.2.4.90", "1.2.840.10008.5.1.4.1.1.2", "1.2.3", source_ae="HERE")
    file = split(header + b"\x08\0\x60\0CS\x02\0CT")
    assert file.offset == len(header)
    assert file.transfer_syntax_uid == "1.2.840.10008.1.2.4.90"
    assert file.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    assert file.sop_instance_uid == "1.2.3"
    assert file.text(0x00020016) == "HERE"
    assert file.has_preamble
    assert not file.guessed


def test_pydicom_reads_the_meta_information_that_is_written() -> None:
    header = file_header("1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4")
    ds = pydicom.dcmread(io.BytesIO(header + b"\x08\0\x60\0CS\x02\0CT"))
    assert ds.file_meta.FileMetaInformationGroupLength == len(header) - 128 - 4 - 12
    assert ds.file_meta.FileMetaInformationVersion == b"\0\1"
    assert ds.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert ds.file_meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert ds.Modality == "CT"


def test_our_own_names_are_within_the_standards_limits() -> None:
    assert uid_is_valid(IMPLEMENTATION_CLASS_UID)
    assert int(IMPLEMENTATION_CLASS_UID.removeprefix("2.25.")) < 1 << 128
    assert len(IMPLEMENTATION_VERSION_NAME) <= 16


def test_every_real_file_is_split_where_pydicom_splits_it(sample: Any) -> None:
    with pydicom.config.disable_value_validation():
        ds = pydicom.dcmread(sample.path, force=True)
    uid = ds.file_meta.get("TransferSyntaxUID")
    if uid is not None:
        assert sample.file.transfer_syntax_uid == uid
    assert sample.file.sop_instance_uid == ds.file_meta.get("MediaStorageSOPInstanceUID", "")
    with sample.path.open("rb") as file:
        prefix = read_prefix(file)
        assert prefix.offset == sample.file.offset == file.tell()
        assert prefix.transfer_syntax_uid == sample.file.transfer_syntax_uid


class Counting(io.BytesIO):
    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        got = super().read(size)
        self.taken += len(got)
        return got


def test_a_huge_file_is_read_by_its_prefix_only() -> None:
    header = file_header("1.2.840.10008.1.2.1", "1.2", "1.3")
    file = Counting(header + b"\x08\0\x60\0CS\x02\0CT" + bytes(5_000_000))
    assert read_prefix(file).offset == len(header)
    assert file.tell() == len(header)
    assert file.taken <= 8192


def test_long_private_meta_information_is_read_and_endless_is_not() -> None:
    header = file_header("1.2.840.10008.1.2.1", "1.2", "1.3")
    private = b"\2\0\2\1OB\0\0" + (60_000).to_bytes(4, "little") + bytes(60_000)
    data = header + private + b"\x08\0\x60\0CS\x02\0CT"
    file = Counting(data)
    assert read_prefix(file).offset == len(header) + len(private)
    endless = Counting(header + b"\2\0\2\1OB\0\0\xff\xff\xff\x7f" + bytes(3 * META_BYTES_MAX))
    read_prefix(endless)
    assert endless.taken <= 4 * META_BYTES_MAX


@pytest.mark.parametrize(
    ("data", "uid"),
    [
        (b"\x08\0\x60\0CS\x02\0CT", "1.2.840.10008.1.2.1"),
        (b"\0\x08\0\x60CS\0\x02CT", "1.2.840.10008.1.2.2"),
        (b"\x08\0\x60\0\x02\0\0\0CT", "1.2.840.10008.1.2"),
        (bytes(128) + b"DICM" + b"\x08\0\x60\0CS\x02\0CT", "1.2.840.10008.1.2.1"),
        (b"\2\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0\x08\0\x60\0CS\x02\0CT", "1.2.840.10008.1.2.1"),
    ],
)
def test_files_without_preamble_or_meta_information(data: bytes, uid: str) -> None:
    assert split(data).transfer_syntax_uid == uid


@pytest.mark.parametrize(
    "data", [b"", b"abc", b"%PDF-1.7 and so on", b"\x89PNG\r\n\x1a\n" + bytes(300), bytes(500)]
)
def test_other_files_are_no_dicom_files(data: bytes) -> None:
    with pytest.raises(Part10Error, match="not a DICOM file"):
        split(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_noise_is_a_file_or_a_part10_error(noise: bytes, preamble: bool) -> None:
    data = bytes(128) + b"DICM" + noise if preamble else noise
    try:
        file = split(data)
    except Part10Error:
        return
    assert 0 <= file.offset <= len(data)
