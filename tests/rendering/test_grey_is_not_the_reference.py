"""Monochrome images beside what DCMTK and pydicom make of the same files."""

from __future__ import annotations

import math
import subprocess
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from hounsfield.archive.dicom.part10 import split
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.grey import GreyTransform, Rescale, grey
from hounsfield.archive.rendering.image import Image
from hounsfield.archive.rendering.lut import Lut, lut_of
from hounsfield.archive.rendering.pipeline import Cells, picture_of
from hounsfield.archive.rendering.request import Rendering
from hounsfield.archive.rendering.voi import Function, Window
from hounsfield.codecs.registry import lookup
from support.archives import encode
from support.rendering import MONOCHROME_FILES, cells_of, image_of, paths

#: DCMTK cuts the fraction of a grey level off where we round to the nearest.
DCMTK_TOLERANCE = 1


def dcmtk(path: Path, *options: str) -> np.ndarray:
    """What dcm2pnm writes, as bytes of grey."""
    done = subprocess.run(
        ["dcm2pnm", "+op", "--no-overlays", *options, str(path)], capture_output=True, check=True, timeout=60
    )
    magic, size, top, rest = done.stdout.split(b"\n", 3)
    while size.startswith(b"#"):
        size, top, rest = top, *rest.split(b"\n", 1)
    columns, rows = map(int, size.split())
    assert (magic, top) == (b"P5", b"255")
    return np.frombuffer(rest, np.uint8)[: rows * columns].reshape(rows, columns)


@cache
def shown(name: str, asked: Rendering) -> np.ndarray:
    path, image = image_of(name)
    return picture_of(image, 1, cells_of(path, image), asked)


def measured(name: str) -> np.ndarray:
    """Where there is no padding, which DCMTK windows as if it were measured, and we show black."""
    path, image = image_of(name)
    cells = cells_of(path, image).array[:, :, 0]
    if image.padding is None:
        return np.ones(cells.shape, bool)
    found: np.ndarray = ~image.padding.mask(image.word.values(cells))
    assert found.any()
    return found


WINDOWS = [(40.0, 400.0), (500.0, 1000.0), (100.0, 1.0), (-20.5, 33.3)]


@pytest.mark.peer("dcm2pnm")
@pytest.mark.parametrize("name", MONOCHROME_FILES)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_window_is_not_dcmtks(name: str, window: tuple[float, float]) -> None:
    path, image = image_of(name)
    theirs = dcmtk(path, "+Ww", str(window[0]), str(window[1]))
    ours = shown(name, Rendering(window=Window(*window), overlays=False))
    assert ours.shape == theirs.shape
    fractions = image.modality(1) != Rescale() and getattr(image.modality(1), "slope", 1.0) % 1
    # DCMTK also cuts the fraction of a rescaled value off.
    tolerance = DCMTK_TOLERANCE + (math.ceil(255 / max(window[1] - 1, 1)) if fractions else 0)
    assert np.abs(ours.astype(int) - theirs)[measured(name)].max() <= tolerance


@pytest.mark.peer("dcm2pnm")
@pytest.mark.parametrize("name", MONOCHROME_FILES)
def test_a_sigmoid_window_is_not_dcmtks(name: str) -> None:
    path, _ = image_of(name)
    theirs = dcmtk(path, "+Wfs", "+Ww", "300", "700")
    ours = shown(name, Rendering(window=Window(300, 700, Function.SIGMOID), overlays=False))
    assert np.abs(ours.astype(int) - theirs)[measured(name)].max() <= DCMTK_TOLERANCE


@pytest.mark.parametrize("name", MONOCHROME_FILES)
@pytest.mark.parametrize("function", list(Function))
def test_a_window_is_not_pydicoms(name: str, function: Function) -> None:
    path, image = image_of(name)
    dataset = pydicom.dcmread(path)
    cells = cells_of(path, image)
    window = Window(321.5, 765.25, function)
    dataset.WindowCenter, dataset.WindowWidth = window.center, window.width
    dataset.VOILUTFunction = function.value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = apply_modality_lut(image.word.values(cells.array[:, :, 0]), dataset)
        theirs = apply_windowing(values, dataset)
    low, high = _output_range(dataset, image)
    theirs = (theirs - low) / (high - low) * 255
    ours = shown(name, Rendering(window=window, overlays=False)).astype(float)
    if image.inverse:
        theirs = 255 - theirs
    measured = np.ones(ours.shape, bool)
    if image.padding is not None:
        measured = ~image.padding.mask(image.word.values(cells.array[:, :, 0]))
    assert np.abs(ours - theirs)[measured].max() <= 0.51


def _output_range(dataset: pydicom.Dataset, image: Image) -> tuple[float, float]:
    """The range that pydicom gives windowed values: of the stored bits, rescaled, or of the modality LUT."""
    if "ModalityLUTSequence" in dataset:
        return 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits = image.format.bits_stored
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if image.format.signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return low * slope + intercept, high * slope + intercept


def test_a_voi_lut_is_not_pydicoms() -> None:
    path = paths()["vlut_04.dcm"]
    dataset = pydicom.dcmread(path)
    raw = path.read_bytes()
    found = split(raw)
    elements = Elements.of_header(raw[found.offset :], found.transfer_syntax_uid)
    item = dataset.VOILUTSequence[0]
    (ours,) = (entry for entry in elements.items(0x00283010))
    lut = lut_of(ours)
    first = int(item.LUTDescriptor[1])
    values = np.arange(first - 5, first + len(lut.table) + 5)
    dataset.PixelRepresentation = 1
    assert np.array_equal(lut(values), apply_voi_lut(values, dataset))


@pytest.mark.peer("dcm2pnm")
@pytest.mark.parametrize("name", MONOCHROME_FILES)
def test_nothing_said_is_not_the_range_that_dcmtk_finds(name: str, tmp_path: Path) -> None:
    path, image = image_of(name)
    if image.format.bits_stored <= 8:  # shown as they are
        by_hand = (0, 255)
    elif image.padding is not None:  # DCMTK would count it
        values = image.word.values(cells_of(path, image).array[:, :, 0])[measured(name)]
        values = apply_modality_lut(values, pydicom.dcmread(path))
        by_hand = (values.min(), values.max())
    else:
        by_hand = None
    dataset = pydicom.dcmread(path)
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTSequence"):
        if keyword in dataset:
            del dataset[keyword]
    bare = tmp_path / "bare.dcm"
    dataset.save_as(bare)
    raw = bare.read_bytes()
    found = split(raw)
    bare_image = Image(Elements.of_header(raw[found.offset :], found.transfer_syntax_uid))
    ours = picture_of(bare_image, 1, cells_of(bare, bare_image), Rendering(overlays=False))
    if by_hand is None:
        theirs = dcmtk(bare, "+Wm")
    else:
        low, high = by_hand
        theirs = dcmtk(bare, "+Ww", str((low + high + 1) / 2), str(high - low + 1))
    assert np.abs(ours.astype(int) - theirs)[measured(name)].max() <= DCMTK_TOLERANCE


def test_the_same_table_serves_signed_words_wrongly() -> None:
    stored = np.arange(-(1 << 15), 1 << 15, dtype=np.int16).reshape(256, 256)
    for voi in (Window(40, 400), Window(-3000, 12345.6, Function.SIGMOID), Lut(-100, 12, np.arange(4096))):
        transform = GreyTransform(Rescale(0.7, -11), voi)
        assert np.array_equal(grey(stored, transform), transform(stored))


def test_padding_is_measured() -> None:
    path = paths()["CT_small.dcm"]
    dataset = pydicom.dcmread(path)
    dataset.pop("WindowCenter", None), dataset.pop("WindowWidth", None)
    array = dataset.pixel_array.copy()
    array[:20] = -2000
    dataset.PixelData, dataset.PixelPaddingValue = array.tobytes(), -2000
    image = _image(dataset)
    pixels = Cells(array[:, :, np.newaxis], "MONOCHROME2", as_stored=True)
    ours = picture_of(image, 1, pixels, Rendering())
    assert (ours[:20] == 0).all()
    assert (ours[20:].min(), ours[20:].max()) == (0, 255)


def _image(dataset: pydicom.Dataset) -> Image:
    uid = str(dataset.file_meta.TransferSyntaxUID)
    return Image(Elements.of_header(encode(dataset, uid), uid))


def test_high_bits_are_read_as_the_value() -> None:
    dataset = pydicom.dcmread(paths()["CT_small.dcm"])
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 10, 12, 1
    image = _image(dataset)
    value = np.arange(-512, 512, dtype=np.int16)
    cells = ((value & 0x3FF) << 3) | np.int16(-0x2000) | 5
    assert np.array_equal(image.word.values(cells), value)
    assert lookup(str(dataset.file_meta.TransferSyntaxUID)).encapsulated is False
