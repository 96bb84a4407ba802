"""Monochrome: stored values → modality → VOI → presentation → bytes (PS3.4 N.2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from hounsfield.archive.rendering.bands import in_bands
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.lut import Lut, lut_of
from hounsfield.archive.rendering.voi import Range, Voi
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

_MODALITY_LUT_SEQUENCE: Final = 0x00283000
_RESCALE_INTERCEPT, _RESCALE_SLOPE = 0x00281052, 0x00281053
_RANGE_MAX: Final = 1e300
"""Where the ends of a range are cut, so that their difference is a number too."""
TABLES_KEPT: Final = 64
"""Tables from stored values to grey, 64 KiB each: every slice of a series has the same."""


@dataclass(frozen=True, slots=True)
class Rescale:
    """Stored values times ``slope`` plus ``intercept`` (PS3.3 C.11.1.1.2)."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        if self.slope == 1 and self.intercept == 0:
            return values
        scaled: NDArray[Any] = values * self.slope + self.intercept
        return scaled


Modality: TypeAlias = Rescale | Lut


def modality_of(found: Elements) -> Modality | None:
    """The modality transformation that a data set or item says; None when it says none."""
    item = found.item(_MODALITY_LUT_SEQUENCE)
    if item is not None:
        return lut_of(item)
    slope, intercept = found.number(_RESCALE_SLOPE), found.number(_RESCALE_INTERCEPT)
    if slope is None and intercept is None:
        return None
    # A slope of 0 makes every pixel the same: such files mean 1.
    return Rescale(slope or 1.0, intercept or 0.0)


@dataclass(frozen=True, slots=True)
class Padding:
    """Stored values that are no measurement (PS3.3 C.7.5.1.1.2)."""

    low: float
    high: float

    def mask(self, stored: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = (stored >= self.low) & (stored <= self.high)
        return found


@dataclass(frozen=True, slots=True)
class GreyTransform:
    """All that happens between stored values and grey. ``voi`` None: the data's own range.

    ``presentation``: a Presentation LUT, over grey from 0 to its length.
    """

    modality: Modality = Rescale()
    voi: Voi | None = None
    inverse: bool = False
    padding: Padding | None = None
    presentation: Lut | None = None

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Bytes of grey, of stored values. ``voi`` must be there."""
        assert self.voi is not None
        shown = self.modality(values)
        grey = self.voi(shown)
        if isinstance(self.voi, Lut):
            grey = grey / self.voi.top
        if self.presentation is not None:
            size = len(self.presentation.table)
            grey = self.presentation(self.presentation.first + grey * (size - 1)) / self.presentation.top
        if self.inverse:
            grey = 1 - grey
        out: NDArray[Any] = np.rint(grey * 255).astype(np.uint8)
        if self.padding is not None:
            out[self.padding.mask(values)] = 0
        return out


def data_range(stored: NDArray[Any], modality: Modality, padding: Padding | None) -> Range:
    """The range of the values that are measurements."""
    if stored.dtype.kind == "f":
        stored = stored[np.isfinite(stored)].astype(np.float64)
    if padding is not None:
        stored = stored[~padding.mask(stored)]
    if not stored.size:
        return Range(0, 0)
    with np.errstate(over="ignore"):
        ends = modality(np.array([stored.min(), stored.max()]).astype(np.float64))
    if isinstance(modality, Lut):  # a table may go up and down
        ends = modality(stored)
    return Range(max(float(ends.min()), -_RANGE_MAX), min(float(ends.max()), _RANGE_MAX))


@dataclass(frozen=True, slots=True)
class Word:
    """Where a value stands: ``spare`` bits of its word are none of it, ``shift`` of them below it."""

    spare: int = 0
    shift: int = 0

    def values(self, cells: NDArray[Any]) -> NDArray[Any]:
        """The values alone, the sign extended."""
        if not self.spare:
            return cells
        shifted = np.left_shift(cells, cells.dtype.type(self.spare - self.shift))
        cleaned: NDArray[Any] = np.right_shift(shifted, cells.dtype.type(self.spare), out=shifted)
        return cleaned


WHOLE: Final = Word()


def grey(stored: NDArray[Any], transform: GreyTransform, word: Word = WHOLE) -> NDArray[Any]:
    """Bytes of grey of one frame; of integers of up to 16 bits by one table, which is kept.

    Floating point numbers that are none, and infinite ones, are black: nothing was measured there.
    """
    if stored.dtype.kind == "f":
        return in_bands(lambda part: _finite(part, transform), stored)
    if stored.dtype.itemsize > 2:
        return in_bands(lambda part: transform(word.values(part)), stored)
    table = _table(stored.dtype.str, transform, word)
    index = stored if stored.dtype.kind == "u" else stored.view(f"u{stored.dtype.itemsize}")
    return in_bands(table.take, index)  # its index is eight bytes for each pixel


def _finite(stored: NDArray[Any], transform: GreyTransform) -> NDArray[Any]:
    finite = np.isfinite(stored)
    with np.errstate(over="ignore"):
        shown = transform(np.where(finite, stored, 0).astype(np.float64))
    shown[~finite] = 0
    return shown


@lru_cache(maxsize=TABLES_KEPT)
def _table(dtype: str, transform: GreyTransform, word: Word) -> NDArray[Any]:
    """The grey of every word."""
    kind = np.dtype(dtype)
    words = np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}")
    return transform(word.values(words.view(kind)))
