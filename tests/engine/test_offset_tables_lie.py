"""Danger: a table says that a frame begins where another does, or is left over from an encapsulation before.

Others read what is written: pydicom goes by the tables, DCMTK and GDCM past them.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate_extended, generate_frames, get_frame, parse_basic_offsets
from pydicom.uid import (
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from hounsfield.archive.dicom.encapsulation import (
    BASIC_OFFSET_MAX,
    EXTENDED_LENGTHS,
    EXTENDED_OFFSETS,
    PIXEL_DATA_HEAD,
    SEQUENCE_END,
    item_head,
    offset_tables,
)
from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.archive.engine.transcoding import TranscodingLimits
from support.archives import ct_slice, encode
from support.transcoded import archive, file_named, given, part10, stored, stored_file

JPEG_XL = "1.2.840.10008.1.2.4.110"
#: A reader of DCMTK's where it has one, and whether GDCM reads the transfer syntax.
READERS = {
    RLELossless: (["dcmdrle"], True),
    JPEGLosslessSV1: (["dcmdjpeg"], True),
    JPEGLSLossless: (["dcmdjpls"], True),
    JPEG2000Lossless: (None, True),
    HTJ2KLossless: (None, False),
    JPEG_XL: (None, False),
}
FRAMES = 7
GIB = 1 << 30


def offsets_agree(dataset: Dataset, frames: int) -> list[bytes]:
    """The frames as the basic offset table says, which are the ones found by going through the fragments."""
    value = dataset.PixelData
    offsets = parse_basic_offsets(value)
    assert len(offsets) == frames
    assert offsets[0] == 0
    gone_through = list(generate_frames(item_head(0) + value[8 + 4 * frames :], number_of_frames=frames))
    by_table = [get_frame(value, number) for number in range(frames)]
    assert by_table == gone_through
    for number, (one, other) in enumerate(pairwise(offsets)):
        assert other - one == 8 + len(by_table[number])
    assert "ExtendedOffsetTable" not in dataset
    assert "ExtendedOffsetTableLengths" not in dataset
    return by_table


def read_by_gdcm(path: Path) -> bytes:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    found: bytes = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    return found


def volume(data: Dataset) -> None:
    """Frames whose encoded lengths differ, some of them odd."""
    rng = np.random.default_rng(7)
    data.Rows, data.Columns, data.NumberOfFrames = 31, 33, FRAMES
    noise = [rng.integers(0, 2 << n, (31, 33)) for n in range(FRAMES)]
    data.PixelData = np.stack(noise).astype("<u2").tobytes() + bytes(FRAMES * 31 * 33 * 2 % 2)


@pytest.mark.parametrize("uid", READERS)
async def test_a_table_says_where_frames_begin(tmp_path: Path, uid: str) -> None:
    async with archive(tmp_path) as engine:
        instance = await stored(engine, ct_slice(change=volume), ExplicitVRLittleEndian)
        file, dataset = await given(engine, instance, uid)
        lengths = [
            len(await engine.transcoded_frame(instance, number, uid)) for number in range(1, FRAMES + 1)
        ]
        plain = b"".join([bytes(await engine.decoding.frame(instance, n + 1)) for n in range(FRAMES)])
    frames = offsets_agree(dataset, FRAMES)
    assert [len(frame) for frame in frames] == [length + length % 2 for length in lengths]
    assert len(set(lengths)) > 3
    command, by_gdcm = READERS[uid]
    path = tmp_path / "coded.dcm"
    path.write_bytes(file)
    listed = subprocess.run(["dcmdump", "-s", "+P", "7fe0,0010", str(path)], capture_output=True, text=True)
    assert (listed.returncode, listed.stderr) == (0, "")
    if command:
        subprocess.run([*command, str(path), str(tmp_path / "plain.dcm")], check=True, capture_output=True)
        assert pydicom.dcmread(tmp_path / "plain.dcm").PixelData == plain
    if by_gdcm:
        assert read_by_gdcm(path) == plain


async def test_one_frame_begins_at_the_beginning(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        instance = await stored_file(engine, file_named("MR_small_RLE.dcm"))
        _, dataset = await given(engine, instance, JPEGLSLossless)
    assert parse_basic_offsets(dataset.PixelData) == [0]


async def test_what_is_too_large_to_be_waited_for_has_an_empty_table(tmp_path: Path) -> None:
    """Its frames are sent as they are made; one fragment each, they are told apart without a table."""
    limit = 4000
    options = EngineOptions(transcoding=TranscodingLimits(offset_table_bytes_max=limit))
    async with archive(tmp_path, options) as engine:
        small = await stored_file(engine, file_named("MR_small_RLE.dcm"))
        _, one = await given(engine, small, RLELossless)
        instance = await stored(engine, ct_slice(change=volume), ExplicitVRLittleEndian)
        made_before_the_header = 0
        pieces: list[bytes] = []
        async for piece in engine.transcoded(instance, HTJ2KLossless):
            made_before_the_header = made_before_the_header or engine.transcoding.figures.made
            pieces.append(bytes(piece))
        dataset = pydicom.dcmread(io.BytesIO(part10(b"".join(pieces), HTJ2KLossless)))
    assert parse_basic_offsets(dataset.PixelData) == []
    assert one.PixelData
    frames = list(generate_frames(dataset.PixelData, number_of_frames=FRAMES))
    assert len(frames) == FRAMES
    assert sum(map(len, frames)) > limit
    assert made_before_the_header < FRAMES


async def test_what_loses_something_has_a_table_whatever_its_size(tmp_path: Path) -> None:
    """Its frames were encoded for the ratio in the header, so their lengths are known."""
    options = EngineOptions(transcoding=TranscodingLimits(cache_bytes_max=0, offset_table_bytes_max=0))

    def film(data: Dataset) -> None:
        rng = np.random.default_rng(3)
        data.Rows, data.Columns, data.NumberOfFrames = 40, 40, FRAMES
        data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
        pictures = [rng.integers(0, 9 + 30 * n, (40, 40)) for n in range(FRAMES)]
        data.PixelData = np.stack(pictures).astype("u1").tobytes()

    async with archive(tmp_path, options) as engine:
        instance = await stored(engine, ct_slice(change=film), ExplicitVRLittleEndian)
        file, dataset = await given(engine, instance, JPEGBaseline8Bit)
    frames = offsets_agree(dataset, FRAMES)
    assert float(dataset.LossyImageCompressionRatio) == pytest.approx(
        40 * 40 * FRAMES / sum(map(len, frames)), rel=0.01
    )
    (tmp_path / "coded.dcm").write_bytes(file)
    subprocess.run(["dcmdjpeg", str(tmp_path / "coded.dcm"), str(tmp_path / "plain.dcm")], check=True)


async def test_tables_of_the_encapsulation_before_are_written_anew(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(file_named("SC_rgb_rle_2frame.dcm"))
    frames = list(generate_frames(dataset.PixelData, number_of_frames=2))
    value, offsets, lengths = encapsulate_extended(frames)
    dataset.PixelData = value
    dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    dataset.add_new(0x7FE00003, "UV", len(value))
    async with archive(tmp_path) as engine:
        instance = await stored(engine, encode(dataset, RLELossless), RLELossless)
        before = b"".join([(await engine.decoded(instance, n)).pixels.tobytes() for n in (1, 2)])
        for uid in (JPEGLosslessSV1, JPEG2000Lossless, HTJ2KLossless):
            file, coded = await given(engine, instance, uid)
            assert len(offsets_agree(coded, 2)) == 2
            assert 0x7FE00003 not in coded
            if uid == JPEGLosslessSV1:
                (tmp_path / "coded.dcm").write_bytes(file)
                assert read_by_gdcm(tmp_path / "coded.dcm") == before
        for uid in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            _, plain = await given(engine, instance, uid)
            assert not any(tag in plain for tag in (0x7FE00001, 0x7FE00002, 0x7FE00003))
        _, same = await given(engine, instance, RLELossless)
        assert (same.ExtendedOffsetTable, same.ExtendedOffsetTableLengths) == (offsets, lengths)
        assert get_frame(same.PixelData, 1, extended_offsets=(offsets, lengths)) == frames[1]


def test_offsets_past_32_bits_are_in_the_extended_table(tmp_path: Path) -> None:
    """A file with holes, as it would be written: pydicom finds the last frame by it, DCMTK all of them."""
    lengths = [3 * GIB, 2 * GIB - 1, 11]
    tables = offset_tables(lengths)
    assert parse_basic_offsets(tables.basic) == []
    dataset = Dataset()
    dataset.NumberOfFrames = len(lengths)
    head = part10(encode(dataset, ExplicitVRLittleEndian), HTJ2KLossless)
    path = tmp_path / "large.dcm"
    with path.open("wb") as file:
        file.write(head)
        for tag, (vr, value) in tables.extended.items():
            file.write(element(tag, vr, value, implicit=False, little=True))
        file.write(PIXEL_DATA_HEAD)
        start = file.tell()
        file.write(tables.basic)
        for length in lengths:
            file.write(item_head(length))
            file.seek(length - 3, os.SEEK_CUR)
            file.write(b"end" + bytes(length % 2))
        file.write(SEQUENCE_END)
    read = pydicom.dcmread(path, defer_size=1024, stop_before_pixels=True)
    extended = (read[EXTENDED_OFFSETS].value, read[EXTENDED_LENGTHS].value)
    assert struct.unpack("<3Q", extended[1]) == (3 * GIB, 2 * GIB, 12)
    with path.open("rb") as file:
        file.seek(start)
        assert get_frame(file, 2, extended_offsets=extended) == bytes(8) + b"end\0"
    listed = subprocess.run(["dcmdump", "-M", str(path)], capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    items = [line.partition("#")[2].split(",")[0] for line in listed.stdout.splitlines() if " pi " in line]
    assert list(map(int, items)) == [0, 3 * GIB, 2 * GIB, 12]


def test_the_basic_table_reaches_as_far_as_its_32_bits() -> None:
    """The last frame may begin at 2^32 - 2, and be of any length."""
    last = offset_tables([BASIC_OFFSET_MAX - 9, 9 * GIB])
    assert not last.extended
    assert parse_basic_offsets(last.basic) == [0, BASIC_OFFSET_MAX - 1]
    assert set(offset_tables([BASIC_OFFSET_MAX - 8, 1]).extended) == {EXTENDED_OFFSETS, EXTENDED_LENGTHS}
