"""Bits of a word that are none of the sample: never shown, unless they are an overlay."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image as PilImage
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import generate_uid

from hounsfield.archive.dicom.part10 import split
from support.archives import ct_slice, store

ROOT = "1.2.840.10008.1.2"
EXPLICIT, JPEG_LS = f"{ROOT}.1", f"{ROOT}.4.80"
ROWS, COLUMNS = 24, 30
WINDOW = "window=100,1500"
GDCMCONV = str(Path(sys.executable).parent / "gdcmconv")
#: Bits stored, High Bit, signed, something else in the other bits.
KINDS = [(12, 11, 1, 0), (12, 15, 0, 0), (12, 15, 1, 0), (12, 13, 1, 1), (12, 11, 0, 1), (12, 11, 1, 1)]
#: Our own, DCMTK's and GDCM's.
LOSSLESS = [f"{ROOT}{suffix}" for suffix in (".5", ".4.70", ".4.80", ".4.90", ".4.110", ".4.201")]
TOOLS = [
    ["dcmcrle"], ["dcmcjpls"], ["dcmcjpeg", "+e1"],
    *([GDCMCONV, kind] for kind in ("--rle", "--jpegls", "--j2k", "--jpeg")),
]  # fmt: skip


def object_of(stored: int, high: int, signed: int, other: int, overlay: int = 0) -> tuple[bytes, np.ndarray]:
    """A native data set, and the values of its pixels. ``overlay``: a bit position."""
    rng = np.random.default_rng(stored + 100 * high + signed)
    low = -(1 << stored - 1) if signed else 0
    values = rng.integers(low, low + (1 << stored), (ROWS, COLUMNS))
    mask = ((1 << stored) - 1) << (high + 1 - stored)
    words = (values << (high + 1 - stored)) & mask
    if other:
        words |= rng.integers(0, 1 << 16, words.shape) & ~mask & 0xFFFF

    def change(data: Dataset) -> None:
        data.Rows, data.Columns = ROWS, COLUMNS
        data.BitsStored, data.HighBit, data.PixelRepresentation = stored, high, signed
        if overlay:
            data.add_new(0x60000010, "US", ROWS)
            data.add_new(0x60000011, "US", COLUMNS)
            data.add_new(0x60000040, "CS", "G")
            data.add_new(0x60000050, "SS", [1, 1])
            data.add_new(0x60000100, "US", 16)
            data.add_new(0x60000102, "US", overlay)

    return ct_slice(change=change, pixels=words.astype("<u2").tobytes()), values


async def url_of(archive, data: bytes, syntax: str) -> str:
    result = await store(archive.engine, data, syntax)
    url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    return f"{url}/instances/{result.sop_instance_uid}"


async def put(archive, data: Dataset) -> str:
    """An object of its own."""
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    syntax, out = data.file_meta.TransferSyntaxUID, io.BytesIO()
    if syntax.endswith(".110"):
        data.file_meta.TransferSyntaxUID = JPEG_LS  # pydicom does not know JPEG XL; only the data set is kept
    data.save_as(out, enforce_file_format=True)
    result = await store(archive.engine, out.getvalue()[split(out.getvalue()).offset :], syntax)
    url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    return f"{url}/instances/{result.sop_instance_uid}"


async def drawn(client, url: str, query: str = WINDOW) -> np.ndarray:
    answer = await client.get(f"{url}/rendered?{query}", headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    return np.asarray(PilImage.open(io.BytesIO(answer.content))).astype(int)


async def fetched(client, url: str, syntax: str) -> Dataset:
    answer = await client.get(url, headers={"Accept": f"application/dicom; transfer-syntax={syntax}"})
    assert answer.status_code == 200, answer.text
    return pydicom.dcmread(io.BytesIO(answer.content))


def windowed(values: np.ndarray, center: float = 100, width: float = 1500) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1."""
    return np.rint(np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255).astype(int)


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_our_own_transcodes_are_drawn_otherwise(archive, kind: tuple[int, int, int, int]) -> None:
    data, values = object_of(*kind)
    url = await url_of(archive, data, EXPLICIT)
    async with archive.client() as client:
        native = await drawn(client, url)
        assert np.abs(native - windowed(values)).max() <= 1
        for syntax in LOSSLESS:
            if syntax.endswith(".110") and kind[2]:
                continue  # JPEG XL has no signed samples
            again = await put(archive, await fetched(client, url, syntax))
            assert np.array_equal(await drawn(client, again), native), syntax
            assert np.array_equal(await drawn(client, f"{again}/frames/1"), native), syntax


@pytest.mark.peer("dcm2pnm")
@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_what_others_compressed_is_drawn_otherwise(
    archive, tmp_path: Path, kind: tuple[int, int, int, int]
) -> None:
    data, values = object_of(*kind)
    plain, coded, grey = (str(tmp_path / name) for name in ("plain.dcm", "coded.dcm", "grey.pgm"))
    url = await url_of(archive, data, EXPLICIT)
    async with archive.client() as client:
        (await fetched(client, url, EXPLICIT)).save_as(plain, enforce_file_format=True)
        compared = 0
        for tool in TOOLS:
            if tool[0] == GDCMCONV and kind[1] != 11:
                continue  # it moves High Bit, and not all of the words
            if subprocess.run([*tool, plain, coded], capture_output=True, check=False).returncode:
                continue  # some refuse some of these
            again = await drawn(client, await put(archive, pydicom.dcmread(coded)))
            assert np.abs(again - windowed(values)).max() <= 1, tool
            # DCMTK cuts fractions off where we round.
            how = ["dcmj2pnm", "+op", "+Ww", "100", "1500", coded, grey]
            if subprocess.run(how, capture_output=True, check=False).returncode:
                continue  # JPEG 2000, and some that GDCM writes
            assert np.abs(again - np.asarray(PilImage.open(grey)).astype(int)).max() <= 1, tool
            compared += 1
    assert compared >= 2


async def test_a_codestream_of_the_samples_alone_is_shifted(archive) -> None:
    """High Bit 15 of 12 bits stored, and a codestream of 12 bits: those are the values."""
    values = np.random.default_rng(1).integers(0, 4096, (ROWS, COLUMNS)).astype("u2")

    def change(data: Dataset) -> None:
        data.Rows, data.Columns, data.BitsStored, data.HighBit = ROWS, COLUMNS, 12, 15
        coded = imagecodecs.jpeg2k_encode(values, reversible=True, codecformat="J2K", bitspersample=12)
        data.PixelData = encapsulate([coded])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True

    url = await url_of(archive, ct_slice(change=change, syntax=f"{ROOT}.4.90"), f"{ROOT}.4.90")
    async with archive.client() as client:
        assert np.abs(await drawn(client, url) - windowed(values)).max() <= 1
        native = await fetched(client, url, EXPLICIT)
        again = await put(archive, await fetched(client, url, JPEG_LS))
        assert np.array_equal(await drawn(client, again), await drawn(client, url))
    assert native.HighBit == 15
    assert np.array_equal(np.frombuffer(native.PixelData, "<u2") >> 4, values.reshape(-1))


@pytest.mark.parametrize("signed", [0, 1])
async def test_an_overlay_in_unused_bits_is_lost_by_compression(archive, signed: int) -> None:
    data, values = object_of(12, 11, signed, 1, overlay=13)
    bare, _ = object_of(12, 11, signed, 0, overlay=13)
    words = np.frombuffer(data[-2 * values.size :], "<u2").reshape(values.shape)
    expected = np.where(words >> 13 & 1, 255, windowed(values))
    url, unmarked = await url_of(archive, data, EXPLICIT), await url_of(archive, bare, EXPLICIT)
    async with archive.client() as client:
        assert np.abs(await drawn(client, url) - expected).max() <= 1
        for syntax in LOSSLESS:
            if syntax.endswith(".110") and signed:
                continue
            again = await put(archive, await fetched(client, url, syntax))
            assert np.abs(await drawn(client, again) - expected).max() <= 1, syntax
            # The sign, repeated in unused bits, is no overlay.
            other = await put(archive, await fetched(client, unmarked, syntax))
            assert np.abs(await drawn(client, other) - windowed(values)).max() <= 1, syntax


@pytest.mark.peer("dcm2pnm")
@pytest.mark.parametrize(("high", "other"), [(15, 0), (11, 0), (11, 1), (13, 1)])
@pytest.mark.parametrize("planar", [0, 1])
async def test_colours_stand_elsewhere_in_their_words(
    archive, tmp_path: Path, high: int, other: int, planar: int
) -> None:
    rng = np.random.default_rng(high)
    values = rng.integers(0, 4096, (ROWS, COLUMNS, 3))
    mask = 0xFFF << (high - 11)
    words = values << (high - 11)
    if other:
        words |= rng.integers(0, 1 << 16, words.shape) & ~mask & 0xFFFF
    cells = (words.transpose(2, 0, 1) if planar else words).astype("<u2")

    def change(data: Dataset) -> None:
        data.Rows, data.Columns, data.SamplesPerPixel = ROWS, COLUMNS, 3
        data.PhotometricInterpretation, data.PlanarConfiguration = "RGB", planar
        data.BitsStored, data.HighBit = 12, high

    url = await url_of(archive, ct_slice(change=change, pixels=cells.tobytes()), EXPLICIT)
    async with archive.client() as client:
        ours = await drawn(client, url, "")
        assert np.abs(ours - values * 255 / 4095).max() <= 1
        for syntax in (f"{ROOT}.5", JPEG_LS, f"{ROOT}.4.90"):
            again = await put(archive, await fetched(client, url, syntax))
            assert np.array_equal(await drawn(client, again, ""), ours), syntax
        (await fetched(client, url, EXPLICIT)).save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    how = ["dcmj2pnm", "+on", str(tmp_path / "plain.dcm"), str(tmp_path / "plain.png")]
    subprocess.run(how, capture_output=True, check=True)
    dcmtk = np.asarray(PilImage.open(tmp_path / "plain.png")).astype(int)
    assert np.abs(ours - dcmtk).max() <= 1
