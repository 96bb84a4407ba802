"""Whether what is on the screen is the picture that a data set holds."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

Grey = NDArray[np.float64]
_LOSSY_STEPS_MAX = 2  # two JPEG decoders may differ in rounding, and in how they turn YCbCr into RGB
_GRID = 48  # both are averaged down to this many cells a side: text over the picture then counts for little


def screen(png: bytes) -> Grey:
    """A screenshot's brightness."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=np.float64)


def picture(dataset: pydicom.FileDataset, number: int = 1) -> Grey:
    """Frame ``number`` as a monitor shows it: pydicom decodes, applies the LUTs, and inverts MONOCHROME1."""
    pixels = values(dataset, number)
    if pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float64)
    grey = np.asarray(apply_voi_lut(pixels, dataset), dtype=np.float64)
    return -grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def values(dataset: pydicom.FileDataset, number: int = 1) -> NDArray[Any]:
    """Frame ``number`` as pydicom decodes it: colours as RGB, grey after the modality LUT."""
    pixels = pixel_array(dataset, index=number - 1)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return (apply_color_lut(pixels, dataset) >> 8).astype(np.uint8)
    return pixels if pixels.ndim == 3 else apply_modality_lut(pixels, dataset)


def assert_values(read: NDArray[Any], dataset: pydicom.FileDataset, number: int, exact: bool) -> None:
    """What a viewer has read of frame ``number`` is what pydicom reads; nearly, unless ``exact``."""
    wanted = values(dataset, number).ravel()
    assert read.shape == wanted.shape
    if wanted.dtype.kind == "f":  # after a modality LUT: viewers calculate in 32 bits
        np.testing.assert_allclose(read, wanted, rtol=1e-6, atol=1e-3)
    else:
        difference = np.abs(read.astype(np.int64) - wanted.astype(np.int64)).max()
        assert difference <= (0 if exact else _LOSSY_STEPS_MAX)


def shape_on_screen(dataset: pydicom.FileDataset) -> tuple[float, float]:
    """Height and width that the picture has in the patient or on the detector, in any unit."""
    spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing") or (1.0, 1.0)
    return dataset.Rows * float(spacing[0]), dataset.Columns * float(spacing[1])


def fitted(shown: Grey, shape: tuple[float, float]) -> Grey:
    """The part of a viewport where a picture of this shape is, fitted into its middle."""
    height, width = shown.shape
    scale = min(height / shape[0], width / shape[1])
    rows, columns = shape[0] * scale, shape[1] * scale
    top, left = (height - rows) / 2, (width - columns) / 2
    return shown[round(top) : round(top + rows), round(left) : round(left + columns)]


def likeness(one: Grey, other: Grey) -> float:
    """Pearson's correlation of two pictures of the same thing: 1 when alike, 0 when one is uniform."""
    first, second = _cells(one), _cells(other)
    if first.std() < 1e-6 or second.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def _cells(grey: Grey) -> Grey:
    image = Image.fromarray(grey.astype(np.float32))
    return np.asarray(image.resize((_GRID, _GRID), Image.Resampling.BOX), dtype=np.float64)


class Volume:
    """A series as a block of voxels in the patient: what a plane through it shows (PS3.3 C.7.6.2.1.1)."""

    def __init__(self, slices: list[pydicom.FileDataset]) -> None:
        across, down = np.split(np.asarray(slices[0].ImageOrientationPatient, dtype=np.float64), 2)
        normal = np.cross(across, down)
        places = [np.asarray(each.ImagePositionPatient, dtype=np.float64) for each in slices]
        ordered = sorted(range(len(slices)), key=lambda number: normal @ places[number])
        self._voxels = np.stack([slices[number].pixel_array for number in ordered]).astype(np.float64)
        first, last = places[ordered[0]], places[ordered[-1]]
        rows, columns = (float(each) for each in slices[0].PixelSpacing)
        step = (last - first) / (len(ordered) - 1)
        self._origin = first
        self._to_index = np.linalg.inv(np.column_stack([step, down * rows, across * columns]))

    def plane(self, corner: Any, right: Any, below: Any, shape: tuple[int, int]) -> Grey:
        """What lies in a plane: ``corner`` top left in mm, ``right`` and ``below`` the other corners."""
        corner, right, below = (np.asarray(each, dtype=np.float64) for each in (corner, right, below))
        down, across = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float64)
        down, across = (down + 0.5) / shape[0], (across + 0.5) / shape[1]
        points = corner + across[..., None] * (right - corner) + down[..., None] * (below - corner)
        index = (points - self._origin) @ self._to_index.T
        return self._between(index)

    def _between(self, index: NDArray[np.float64]) -> Grey:
        limits = np.asarray(self._voxels.shape) - 1
        inside = np.all((index >= -0.5) & (index <= limits + 0.5), axis=-1)
        index = np.clip(index, 0, limits)
        low = np.minimum(index.astype(int), np.maximum(limits - 1, 0))
        part = index - low
        total = np.zeros(index.shape[:-1])
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, part, 1 - part), axis=-1)
            k, j, i = np.moveaxis(np.minimum(low + corner, limits), -1, 0)
            total += weight * self._voxels[k, j, i]
        return np.where(inside, total, self._voxels.min())
