"""Cutting, flipping and scaling what is shown (PS3.18 8.3.5.1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.errors import BadParameterError
from hounsfield.archive.rendering.request import VIEWPORT_MAX, Viewport
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image as PilImage
else:
    np, PilImage = deferred("numpy"), deferred("PIL.Image")

PIXEL_ASPECT_MAX: Final = 100.0
"""How many times as high as wide, or as wide as high, a pixel can be: what says more is damage."""


def aspect_of(sizes: Sequence[float]) -> float | None:
    """Height over width of a pixel, from those two; None when they are none that a pixel has."""
    if len(sizes) != 2 or min(sizes) <= 0:
        return None
    aspect = sizes[0] / sizes[1]
    return aspect if 1 / PIXEL_ASPECT_MAX <= aspect <= PIXEL_ASPECT_MAX else None


def shown(picture: NDArray[Any], viewport: Viewport, pixel_aspect: float = 1.0) -> NDArray[Any]:
    """The part that is asked for, scaled to fit. ``BadParameterError`` when there is no such part.

    Pixels that are not square (``pixel_aspect``, height over width) become square.
    """
    rows, columns = picture.shape[:2]
    rows, columns = size_of(rows, columns, viewport, pixel_aspect)
    return resized(cut(picture, viewport), (columns, rows))


def size_of(rows: int, columns: int, viewport: Viewport, pixel_aspect: float = 1.0) -> tuple[int, int]:
    """Rows and columns that :func:`shown` gives of a picture of that size, and its errors."""
    left, top, right, bottom = _part(rows, columns, viewport.in_pixels(rows, columns))
    if viewport.width is None and viewport.height is None:
        return bottom - top, right - left
    height, width = (bottom - top) * pixel_aspect, float(right - left)
    scales = []
    if viewport.width is not None:
        scales.append(viewport.width / width)
    if viewport.height is not None:
        scales.append(viewport.height / height)
    scale = min(scales)
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    if max(size) > VIEWPORT_MAX:
        raise BadParameterError(f"a side of the picture would have more than {VIEWPORT_MAX} pixels")
    return size


def cut(picture: NDArray[Any], viewport: Viewport) -> NDArray[Any]:
    """The source region, flipped when its width or height is negative.

    What of it reaches beyond the image is left out: the standard does not say what would be shown there.
    """
    rows, columns = picture.shape[:2]
    viewport = viewport.in_pixels(rows, columns)
    left, top, right, bottom = _part(rows, columns, viewport)
    part = picture[top:bottom, left:right]
    if (viewport.source_width or 0) < 0:
        part = part[:, ::-1]
    if (viewport.source_height or 0) < 0:
        part = part[::-1]
    return part


def _part(rows: int, columns: int, viewport: Viewport) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what a viewport in pixels shows, the ends exclusive."""
    if viewport.left >= columns or viewport.top >= rows:
        raise BadParameterError("the viewport's source region is outside the image")
    width = columns - viewport.left if viewport.source_width is None else viewport.source_width
    height = rows - viewport.top if viewport.source_height is None else viewport.source_height
    left, top = int(viewport.left), int(viewport.top)
    right = min(max(round(viewport.left + abs(width)), left + 1), columns)
    bottom = min(max(round(viewport.top + abs(height)), top + 1), rows)
    return left, top, right, bottom


def resized(picture: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A picture of (width, height) pixels: the mean of what falls together, or what lies between."""
    if size == (picture.shape[1], picture.shape[0]):
        return picture
    image = PilImage.fromarray(np.ascontiguousarray(picture))
    smaller = size[0] < picture.shape[1] or size[1] < picture.shape[0]
    kind = PilImage.Resampling.LANCZOS if smaller else PilImage.Resampling.BILINEAR
    return np.asarray(image.resize(size, kind, reducing_gap=2.0))
