"""Cells that lie unusually: single bits in big-endian words, odd frames in fragments, halved chrominance."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as PilImage
from pydicom import Dataset
from pydicom.encaps import encapsulate

from support.archives import ct_slice, store

ROOT = "1.2.840.10008.1.2"
EXPLICIT, BIG_ENDIAN, ENCAPSULATED = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.1.98"
OCTETS = "application/octet-stream"


async def kept(archive, data: bytes, syntax: str, piece: int = 65536) -> str:
    result = await store(archive.engine, data, syntax, piece=piece)
    url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    return f"{url}/instances/{result.sop_instance_uid}"


def packed(bits: np.ndarray) -> bytes:
    data = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    return data + bytes(len(data) % 2)


def binary(bits: np.ndarray, vr: str) -> bytes:
    """A big-endian object of single bits, in bytes or in words."""
    return binary_of(packed(bits), bits.shape, vr)


def binary_of(cells: bytes, shape: tuple[int, int, int], vr: str) -> bytes:
    frames, rows, columns = shape

    def change(data: Dataset) -> None:
        data.Rows, data.Columns, data.NumberOfFrames = rows, columns, frames
        data.BitsAllocated, data.BitsStored, data.HighBit = 1, 1, 0
        data.PixelData = np.frombuffer(cells, "<u2").astype(">u2").tobytes() if vr == "OW" else cells
        data["PixelData"].VR = vr

    return ct_slice(change=change, syntax=BIG_ENDIAN)


@pytest.mark.parametrize("vr", ["OW", "OB"])
@pytest.mark.parametrize(("frames", "rows", "columns"), [(9, 7, 13), (5, 16, 16), (3, 4, 12), (1, 5, 5)])
async def test_single_bits_in_big_endian_words_are_mixed_up(
    archive, vr: str, frames: int, rows: int, columns: int
) -> None:
    bits = np.random.default_rng(rows).integers(0, 2, (frames, rows, columns)).astype(np.uint8)
    url = await kept(archive, binary(bits, vr), BIG_ENDIAN)
    async with archive.client() as client:
        for number in range(1, frames + 1):
            frame = await client.get(f"{url}/frames/{number}", headers={"Accept": OCTETS})
            one = bits[number - 1]
            assert frame.content == packed(one)[: -(-one.size // 8)], number
            drawn = await client.get(f"{url}/frames/{number}/rendered", headers={"Accept": "image/png"})
            assert np.array_equal(np.asarray(PilImage.open(io.BytesIO(drawn.content))), 255 * one), number
        whole = await client.get(f"{url}/pixeldata", headers={"Accept": OCTETS})
        assert whole.content == packed(bits)
        several = await client.get(
            f"{url}/frames/1,{frames}", headers={"Accept": f'multipart/related; type="{OCTETS}"'}
        )
        assert packed(bits[-1])[: -(-rows * columns // 8)] in several.content
        other = await client.get(url, headers={"Accept": f"application/dicom; transfer-syntax={EXPLICIT}"})
    found = pydicom.dcmread(io.BytesIO(other.content))
    assert found.PixelData == packed(bits)
    assert np.array_equal(found.pixel_array.reshape(bits.shape), bits)


async def test_single_bits_of_a_large_object_are_mixed_up(archive) -> None:
    frames, rows, columns = 35, 2047, 4093
    size = rows * columns
    cells = np.random.default_rng(1).bytes(frames * size // 16 * 2 + 2)
    assert len(cells) > 32 << 20
    url = await kept(archive, binary_of(cells, (frames, rows, columns), "OW"), BIG_ENDIAN, 1 << 20)
    async with archive.client() as client:
        for number in (1, 2, 17, frames):
            frame = await client.get(f"{url}/frames/{number}", headers={"Accept": OCTETS})
            start = (number - 1) * size
            held = np.frombuffer(cells[start // 8 : (start + size + 7) // 8], np.uint8)
            bits = np.unpackbits(held, bitorder="little")[start % 8 : start % 8 + size]
            assert frame.content == packed(bits)[: -(-size // 8)], number


@pytest.mark.peer("dcmdump")
async def test_dcmtk_turns_the_words_round_otherwise(archive, tmp_path: Path) -> None:
    bits = np.random.default_rng(3).integers(0, 2, (9, 7, 13)).astype(np.uint8)
    big, little = tmp_path / "big.dcm", tmp_path / "little.dcm"
    url = await kept(archive, binary(bits, "OW"), BIG_ENDIAN)
    async with archive.client() as client:
        stored = await client.get(url, headers={"Accept": "application/dicom; transfer-syntax=*"})
        other = await client.get(url, headers={"Accept": f"application/dicom; transfer-syntax={EXPLICIT}"})
    big.write_bytes(stored.content)
    subprocess.run(["dcmconv", "+te", str(big), str(little)], capture_output=True, check=True)
    ours = pydicom.dcmread(io.BytesIO(other.content))
    assert pydicom.dcmread(little).PixelData == ours.PixelData


@pytest.mark.parametrize(("rows", "columns", "bits"), [(7, 7, 8), (7, 7, 16), (8, 8, 8), (3, 3, 1)])
async def test_the_padding_of_a_fragment_is_taken_for_cells(
    archive, rows: int, columns: int, bits: int
) -> None:
    cells = np.random.default_rng(bits).integers(0, 2 if bits == 1 else 200, (3, rows, columns))
    frames = [
        np.packbits(one.reshape(-1).astype("u1"), bitorder="little").tobytes()
        if bits == 1
        else one.astype(f"<u{bits // 8}").tobytes()
        for one in cells
    ]

    def change(data: Dataset) -> None:
        data.Rows, data.Columns, data.NumberOfFrames = rows, columns, 3
        data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
        data.WindowCenter, data.WindowWidth, data.VOILUTFunction = 100, 200, "LINEAR_EXACT"
        data.PixelData = encapsulate([one + bytes(len(one) % 2) for one in frames])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True

    url = await kept(archive, ct_slice(change=change, syntax=f"{ROOT}.4.80"), ENCAPSULATED)
    async with archive.client() as client:
        for number, (one, plain) in enumerate(zip(cells, frames, strict=True), start=1):
            frame = await client.get(
                f"{url}/frames/{number}", headers={"Accept": f"{OCTETS}; transfer-syntax={EXPLICIT}"}
            )
            assert frame.content == plain
            drawn = await client.get(f"{url}/frames/{number}/rendered", headers={"Accept": "image/png"})
            grey = np.asarray(PilImage.open(io.BytesIO(drawn.content))).astype(int)
            assert np.abs(grey - one * 255 / 200).max() <= 1
        other = await client.get(url, headers={"Accept": f"application/dicom; transfer-syntax={EXPLICIT}"})
    found = pydicom.dcmread(io.BytesIO(other.content))
    assert np.array_equal(found.pixel_array, cells)


async def test_colours_get_a_photometric_interpretation_that_there_is_not(archive) -> None:
    """YBR_PARTIAL_422, retired: its chrominance in full has no name, so it is shown and not transcoded."""

    def change(data: Dataset) -> None:
        data.Rows = data.Columns = 8
        data.SamplesPerPixel, data.PhotometricInterpretation = 3, "YBR_PARTIAL_422"
        data.PlanarConfiguration = 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7

    url = await kept(archive, ct_slice(change=change, pixels=bytes([100] * 128)), EXPLICIT)
    async with archive.client() as client:
        for suffix in (".4.80", ".5", ".4.201", ".4.90", ".4.70", ".4.110", ".4.50"):
            accept = f"application/dicom; transfer-syntax={ROOT}{suffix}"
            answer = await client.get(url, headers={"Accept": accept})
            assert (answer.status_code, "YBR_PARTIAL" in answer.text) == (406, True), answer.text
        implicit = await client.get(url, headers={"Accept": f"application/dicom; transfer-syntax={ROOT}"})
        assert pydicom.dcmread(io.BytesIO(implicit.content)).PhotometricInterpretation == "YBR_PARTIAL_422"
        drawn = await client.get(f"{url}/rendered", headers={"Accept": "image/png"})
        assert drawn.status_code == 200
