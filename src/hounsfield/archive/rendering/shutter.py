"""Display shutters: what is outside of them is covered (PS3.3 C.7.6.11, C.7.6.15)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hounsfield.archive.rendering.bands import in_bands
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.overlays import overlays_of
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image as PilImage
    from PIL import ImageDraw as PilDraw
else:
    np, PilImage, PilDraw = deferred("numpy"), deferred("PIL.Image"), deferred("PIL.ImageDraw")

_SHAPE, _VALUE = 0x00181600, 0x00181622
_LEFT, _RIGHT, _UPPER, _LOWER = 0x00181602, 0x00181604, 0x00181606, 0x00181608
_CENTER, _RADIUS, _VERTICES, _OVERLAY_GROUP = 0x00181610, 0x00181612, 0x00181620, 0x00181623


def shuttered(picture: NDArray[Any], found: Elements) -> NDArray[Any]:
    """The picture, covered where any of the shutters of a data set covers it."""
    shapes = {shape.strip().upper() for shape in found.text(_SHAPE).split("\\")} - {""}
    if not shapes:
        return picture
    rows, columns = picture.shape[:2]
    open_ = np.ones((rows, columns), bool)
    row, column = np.arange(1, rows + 1)[:, np.newaxis], np.arange(1, columns + 1)[np.newaxis, :]
    if "RECTANGULAR" in shapes:
        open_ &= (column >= found.integer(_LEFT)) & (column <= found.integer(_RIGHT, columns))
        open_ &= (row >= found.integer(_UPPER)) & (row <= found.integer(_LOWER, rows))
    center, radius = found.numbers(_CENTER), found.number(_RADIUS)
    if "CIRCULAR" in shapes and len(center) == 2 and radius is not None:
        across = (column - center[1]) ** 2
        open_ &= in_bands(lambda rows: (rows - center[0]) ** 2 + across <= radius * radius, row, columns)
    vertices = found.numbers(_VERTICES)
    if "POLYGONAL" in shapes and len(vertices) >= 6:
        polygon = PilImage.new("L", (columns, rows))
        corners = list(zip(vertices[1::2], vertices[::2], strict=False))
        PilDraw.Draw(polygon).polygon([(x - 1, y - 1) for x, y in corners], fill=1, outline=1)
        open_ &= np.asarray(polygon) != 0
    if "BITMAP" in shapes:
        group = found.integer(_OVERLAY_GROUP)
        for overlay in overlays_of(found):
            mask = overlay.mask(1, picture.shape, None) if overlay.group == group else None
            if mask is not None:
                open_ &= ~mask
    covered = picture.copy()
    covered[~open_] = found.integer(_VALUE) >> 8  # a P-value of 16 bits
    return covered
