"""A picture a few rows at a time, where a step needs many bytes for each pixel.

What a frame is compressed to says nothing of its size: a kilobyte may be 36 million pixels, of which a step
in floating point would hold a gigabyte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

BAND_PIXELS_MAX: Final = 1 << 20
"""Pixels that go through a step at once: 8 MB as float64, more than what starting over for each costs."""


def in_bands(
    step: Callable[[NDArray[Any]], NDArray[Any]], array: NDArray[Any], columns: int | None = None
) -> NDArray[Any]:
    """``step`` of all rows, a few at a time; it does the same to each pixel wherever that is.

    ``columns``: of what the step gives, when that is wider than ``array``.
    """
    rows = len(array)
    at_once = max(1, BAND_PIXELS_MAX // max(1, columns or array.shape[1]))
    if rows <= at_once:
        return step(array)
    first = step(array[:at_once])
    out = np.empty((rows, *first.shape[1:]), first.dtype)
    out[:at_once] = first
    for start in range(at_once, rows, at_once):
        out[start : start + at_once] = step(array[start : start + at_once])
    return out
