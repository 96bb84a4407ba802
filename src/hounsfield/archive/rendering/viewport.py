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
    left, top, right, bottom = part_of(rows, columns, viewport)
    part = picture[top:bottom, left:right]
    flipped_across, flipped_down = flips_of(viewport)
    if flipped_across:
        part = part[:, ::-1]
    return part[::-1] if flipped_down else part


def part_of(rows: int, columns: int, viewport: Viewport) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what a viewport shows of a picture of that size, the ends exclusive.

    ``BadParameterError`` when there is no such part.
    """
    return _part(rows, columns, viewport.in_pixels(rows, columns))


def flips_of(viewport: Viewport) -> tuple[bool, bool]:
    """Whether what is shown is turned round from left to right, and upside down."""
    return (viewport.source_width or 0) < 0, (viewport.source_height or 0) < 0


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


def pasted(
    picture: NDArray[Any],
    at: tuple[int, int],
    part: tuple[int, int, int, int],
    flips: tuple[bool, bool],
    size: tuple[int, int],
) -> NDArray[Any]:
    """Part of a larger, black area in which a picture lies, scaled to ``size`` (rows, columns).

    ``at``: where the picture begins in the area, across and down; ``part``: left, top, right, bottom in the
    area; ``flips``: whether the part is turned round, across and down. The area itself is never made.
    """
    rows, columns = picture.shape[:2]
    bounds = []
    for begin, length, start, end, flipped, shown_length in (
        (at[0], columns, part[0], part[2], flips[0], size[1]),
        (at[1], rows, part[1], part[3], flips[1], size[0]),
    ):
        first, last = max(begin, start), min(begin + length, end)
        scale = shown_length / (end - start)
        low, high = (first - start) * scale, (last - start) * scale
        if flipped:
            low, high = shown_length - high, shown_length - low
        low = min(round(low), shown_length - 1)
        bounds.append((first - begin, last - begin, low, min(max(round(high), low + 1), shown_length)))
    (left, right, across, across_end), (top, bottom, down, down_end) = bounds
    if right <= left or bottom <= top:
        return np.zeros((*size, *picture.shape[2:]), np.uint8)
    piece = picture[top:bottom, left:right]
    piece = piece[:, ::-1] if flips[0] else piece
    piece = resized(piece[::-1] if flips[1] else piece, (across_end - across, down_end - down))
    if piece.shape[:2] == size:
        return piece
    out = np.zeros((*size, *picture.shape[2:]), np.uint8)
    out[down:down_end, across:across_end] = piece
    return out
