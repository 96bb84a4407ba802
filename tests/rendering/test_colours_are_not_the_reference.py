"""Colour images and palettes beside what pydicom and DCMTK make of the same files."""

from __future__ import annotations

import subprocess
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_color_lut, convert_color_space, pixel_array

from hounsfield.archive.rendering.color import to_rgb, ybr_full_to_rgb, ybr_partial_to_rgb
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.archive.rendering.image import Image
from hounsfield.archive.rendering.lut import lut_from
from hounsfield.archive.rendering.pipeline import Cells, picture_of
from hounsfield.archive.rendering.request import Rendering
from support.archives import encode
from support.rendering import cells_of, image_of, paths

PALETTES = (
    "OBXXXX1A.dcm", "OBXXXX1A_expb.dcm", "gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm",
    "examples_palette.dcm",
)  # fmt: skip
YBR = ("SC_ybr_full_uncompressed.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_ybr_color.dcm")
RGB = (
    "SC_rgb.dcm",
    "SC_rgb_expb.dcm",
    "SC_rgb_16bit.dcm",
    "SC_rgb_small_odd.dcm",
    "US1_UNCI.dcm",
    "color-pl.dcm",
)
UNCHANGED = Rendering(overlays=False)


def ppm(path: Path) -> np.ndarray:
    done = subprocess.run(["dcm2pnm", "+op", str(path)], capture_output=True, check=True, timeout=60)
    head, _, rest = done.stdout.partition(b"\n255\n")
    columns, rows = map(int, head.split(b"\n")[-1].split())
    return np.frombuffer(rest, np.uint8).reshape(rows, columns, 3)


@cache
def shown(name: str) -> np.ndarray:
    path, image = image_of(name)
    return picture_of(image, 1, cells_of(path, image), UNCHANGED)


@pytest.mark.parametrize("name", PALETTES)
def test_a_palette_is_not_pydicoms(name: str) -> None:
    path, _ = image_of(name)
    dataset = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = apply_color_lut(pixel_array(dataset, index=0, raw=True), dataset)
    if theirs.max() > 255:
        theirs = theirs >> (16 - 8)
    assert np.array_equal(shown(name), theirs)


@pytest.mark.parametrize("name", YBR)
def test_ybr_is_not_pydicoms(name: str) -> None:
    path, image = image_of(name)
    cells = cells_of(path, image).array
    theirs = convert_color_space(cells, "YBR_FULL", "RGB")
    assert np.abs(to_rgb(cells, image.photometric, 8).astype(int) - theirs).max() <= 1


def test_all_of_ybr_is_not_what_was_defined() -> None:
    ybr = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3), axis=-1).reshape(1, -1, 3)
    theirs = convert_color_space(ybr, "YBR_FULL", "RGB")
    assert np.abs(ybr_full_to_rgb(ybr).astype(int) - theirs).max() <= 1
    black_white_red = np.array([[[16, 128, 128], [235, 128, 128], [81, 90, 240]]], np.uint8)
    assert ybr_partial_to_rgb(black_white_red).tolist() == [[[0, 0, 0], [255, 255, 255], [254, 0, 0]]]


@pytest.mark.peer("dcm2pnm")
@pytest.mark.parametrize("name", [*RGB, *YBR[:1]])
def test_rgb_is_not_dcmtks(name: str) -> None:
    path, image = image_of(name)
    ours = shown(name)
    theirs = ppm(path)
    # DCMTK scales 16 bits to 8 by multiplying; we take the upper byte.
    assert np.abs(ours.astype(int) - theirs).max() <= (0 if image.photometric == "RGB" else 2)


def segmented(words: list[int], count: int, bits: int = 16) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [count, 0, bits])
        setattr(
            dataset, f"Segmented{colour}PaletteColorLookupTableData",
            np.array(words, "<u2" if bits == 16 else "u1").tobytes(),
        )  # fmt: skip
    dataset.PixelRepresentation = 0
    return dataset


def entries(dataset: pydicom.Dataset) -> list[int]:
    uid = "1.2.840.10008.1.2.1"
    found = Elements.of_header(encode(dataset, uid), uid)
    return lut_from(found, 0x00281101, 0x00281201, 0x00281221).table.tolist()


def test_segments_are_unrolled_wrongly() -> None:
    # Two entries as they are, a slope of four, then the slope again, by reference to its place.
    words = [0, 2, 1000, 2000, 1, 4, 4000, 2, 1, 8, 0]
    assert entries(segmented(words, 10)) == [1000, 2000, 2500, 3000, 3500, 4000, 4000, 4000, 4000, 4000]
    octets = [0, 2, 10, 20, 1, 4, 40, 2, 1, 4, 0, 0, 0]
    assert entries(segmented([*octets, 0], 10, 8)) == [10, 20, 25, 30, 35, 40, 40, 40, 40, 40]


def test_segments_are_not_pydicoms() -> None:
    words = [0, 3, 5, 100, 60000, 1, 100, 3, 1, 40, 65535, 0, 1, 7]
    dataset = segmented(words, 144)
    found = entries(dataset)  # which gives the data set a transfer syntax
    theirs = apply_color_lut(np.arange(144, dtype=np.uint16).reshape(12, 12), dataset)
    assert np.abs(np.array(found).reshape(12, 12) - theirs[..., 0].astype(int)).max() <= 1  # of a half


@pytest.mark.parametrize(
    "words",
    [[1, 4, 9], [0, 9, 1], [0, 1, 5, 2, 1, 500, 0], [0, 1, 5, 9, 1, 1], [0, 1, 5, 2, 1, 6, 0]],
    ids=str,
)
def test_a_damaged_palette_hangs_or_crashes(words: list[int]) -> None:
    with pytest.raises(NotRenderableError):
        entries(segmented(words, 200))


@pytest.mark.peer("dcm2pnm")
def test_overlays_are_not_dcmtks() -> None:
    path, image = image_of("MR-SIEMENS-DICOM-WithOverlays.dcm")
    cells = cells_of(path, image)
    bare, covered = (picture_of(image, 1, cells, Rendering(overlays=on)) for on in (False, True))
    done = [
        subprocess.run(["dcm2pnm", "+op", *how, str(path)], capture_output=True, check=True).stdout
        for how in (["--no-overlays", "+Wi", "1"], ["+Wi", "1"])
    ]
    theirs = [np.frombuffer(data, np.uint8)[-bare.size :].reshape(bare.shape) for data in done]
    assert (bare != covered).any()
    assert np.array_equal(covered == 255, (theirs[1] == 255) | (bare == 255))


def test_an_overlay_in_unused_bits_is_lost() -> None:
    _, image = image_of("MR_small.dcm")
    dataset = pydicom.dcmread(image_of("MR_small.dcm")[0])
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    base = 0x60000000
    for element, vr, value in (
        (0x10, "US", image.format.rows), (0x11, "US", image.format.columns), (0x40, "CS", "G"),
        (0x50, "SS", [1, 1]), (0x100, "US", 16), (0x102, "US", 15),
    ):  # fmt: skip
        dataset.add_new(base | element, vr, value)
    uid = "1.2.840.10008.1.2.1"
    image = Image(Elements.of_header(encode(dataset, uid), uid))
    array = np.full((image.format.rows, image.format.columns, 1), 7, np.uint16)
    array[3, 5] |= 0x8000
    picture = picture_of(image, 1, Cells(array, "MONOCHROME2", as_stored=True), Rendering())
    assert np.argwhere(picture == 255).tolist() == [[3, 5]]


@pytest.mark.parametrize(("photometric", "samples"), [("ARGB", 4), ("CMYK", 4), ("HSV", 3), ("RGB", 4)])
def test_retired_colours_are_guessed_or_refused_without_a_reason(photometric: str, samples: int) -> None:
    dataset = pydicom.dcmread(paths()["SC_rgb.dcm"])
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = photometric, samples
    uid = "1.2.840.10008.1.2.1"
    expected = f"{photometric} is retired" if photometric != "RGB" else "4 samples a pixel"
    with pytest.raises(NotRenderableError, match=expected):
        Image(Elements.of_header(encode(dataset, uid), uid))


@pytest.mark.parametrize("index", [0, 1])
def test_supplemental_colours_are_grey_or_grey_is_coloured(index: int) -> None:
    """Values from 1,024 on have pydicom's colours; those below are as if there were no palette."""
    path, image = image_of("eCT_Supplemental.dcm")
    cells = cells_of(path, image, index)
    stored = cells.array[:, :, 0]
    ours = picture_of(image, index + 1, cells, UNCHANGED)
    dataset = pydicom.dcmread(path)
    coloured = stored >= 1024
    assert coloured.any()
    assert not coloured.all()
    del dataset.PixelPresentation
    theirs = apply_color_lut(stored, dataset)
    assert np.array_equal(ours[coloured], (theirs >> 8).astype(np.uint8)[coloured])
    uid = "1.2.840.10008.1.2.1"
    bare = Image(Elements.of_header(encode(dataset, uid), uid))
    grey = picture_of(bare, index + 1, cells, UNCHANGED)
    assert grey.ndim == 2
    assert np.array_equal(ours[~coloured], np.repeat(grey[~coloured][:, np.newaxis], 3, axis=1))


def test_supplemental_colours_stretch_the_range() -> None:
    """When nothing says what to show, grey reaches from the lowest to the highest grey value."""
    path, _ = image_of("eCT_Supplemental.dcm")
    dataset = pydicom.dcmread(path)
    for groups in (dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence):
        for item in groups:
            if "FrameVOILUTSequence" in item:
                del item.FrameVOILUTSequence
    uid = "1.2.840.10008.1.2.1"
    image = Image(Elements.of_header(encode(dataset, uid), uid))
    cells = cells_of(path, image)
    stored = cells.array[:, :, 0].astype(float)
    below = stored < 1024
    picture = picture_of(image, 1, cells, UNCHANGED)
    top = stored[below].max()
    assert np.abs(picture[..., 0][below] - stored[below] * 255 / top).max() <= 1
