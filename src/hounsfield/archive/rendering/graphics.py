"""Graphics and text that a presentation state puts on an image (PS3.3 C.10.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.lettering import BUILT_IN, Lettering, size_for
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image as PilImage
    from PIL import ImageDraw as PilDraw
else:
    np, PilImage = deferred("numpy"), deferred("PIL.Image")
    PilDraw = deferred("PIL.ImageDraw")

_ANNOTATIONS, _TEXTS, _GRAPHICS = 0x00700001, 0x00700008, 0x00700009
_BOX_UNITS, _ANCHOR_UNITS, _GRAPHIC_UNITS = 0x00700003, 0x00700004, 0x00700005
_TEXT, _BOX_TOP_LEFT, _ANCHOR = 0x00700006, 0x00700010, 0x00700014
_DATA, _TYPE, _FILLED = 0x00700022, 0x00700023, 0x00700024

DRAWINGS_MAX: Final = 2000
"""Of one image; what is beyond is not drawn: nobody would see the image below."""

TEXT_LINES_MAX, TEXT_MAX = 256, 1024
"""Lines of one text, and letters of a line; what is beyond is outside of any picture."""

COORDINATE_MAX: Final = 100_000
"""Pixels outside of a picture up to which something is drawn: what begins farther away is damage."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A shape, or text. ``pixels``: its points are in the image, else shares of the area that is shown."""

    kind: str
    points: tuple[Point, ...]
    pixels: bool
    filled: bool = False
    text: str = ""


def drawings_of(found: Elements, wanted: Callable[[Elements], bool]) -> Iterator[Drawing]:
    """What the items that are ``wanted`` draw, in order."""
    left = DRAWINGS_MAX
    for item in found.items(_ANNOTATIONS):
        if not wanted(item):
            continue
        for graphic in item.items(_GRAPHICS):
            points = _points(graphic.numbers(_DATA))
            left -= 1
            if points and left >= 0:
                pixels = graphic.word(_GRAPHIC_UNITS) == "PIXEL"
                yield Drawing(graphic.word(_TYPE), points, pixels, filled=graphic.word(_FILLED) == "Y")
        for text in item.items(_TEXTS):
            box = _BOX_TOP_LEFT in text
            points = _points(text.numbers(_BOX_TOP_LEFT if box else _ANCHOR))
            left -= 1
            if points and left >= 0:
                pixels = text.word(_BOX_UNITS if box else _ANCHOR_UNITS) == "PIXEL"
                yield Drawing("TEXT", points[:1], pixels, text=text.text(_TEXT))


def _points(numbers: list[float]) -> tuple[Point, ...]:
    return tuple(zip(numbers[::2], numbers[1::2], strict=False))


def drawn(
    picture: NDArray[Any],
    drawings: Iterable[Drawing],
    place: Callable[[float, float], Point],
    lettering: Lettering = BUILT_IN,
    place_share: Callable[[float, float], Point] | None = None,
) -> NDArray[Any]:
    """The picture with the drawings in white.

    ``place`` says where a point of the image is in it, ``place_share`` one in shares of the displayed area;
    None: that is all of the picture.
    """
    image = PilImage.fromarray(np.ascontiguousarray(picture))
    pen = PilDraw.Draw(image)
    height, width = picture.shape[:2]
    share = place_share or (lambda x, y: (x * width, y * height))
    white, black = (255, 0) if image.mode == "L" else ((255,) * 3, (0,) * 3)
    size = size_for(*picture.shape[:2])
    line = max(1, min(height, width) // 400)
    for one in drawings:
        # A point between pixels, which PIL counts from their middles.
        points = [
            (x - 0.5, y - 0.5) for x, y in (place(*at) if one.pixels else share(*at) for at in one.points)
        ]
        if any(abs(value) > COORDINATE_MAX for point in points for value in point):
            continue
        fill = white if one.filled else None
        if one.kind == "TEXT":
            x, y = points[0]
            for n, text in enumerate(one.text.splitlines()[:TEXT_LINES_MAX]):
                lettering.write(pen, (x, y + n * (size * 5 // 4)), text[:TEXT_MAX], size, white, black, 1)
        elif one.kind == "POINT":
            (x, y), r = points[0], line + 1
            pen.ellipse((x - r, y - r, x + r, y + r), fill=white)
        elif one.kind in ("POLYLINE", "INTERPOLATED") and len(points) > 1:
            if one.filled and len(points) > 2:
                pen.polygon(points, fill=white)
            pen.line(points, fill=white, width=line)
        elif one.kind == "CIRCLE" and len(points) == 2:
            (x, y), (on_x, on_y) = points
            r = ((on_x - x) ** 2 + (on_y - y) ** 2) ** 0.5
            pen.ellipse((x - r, y - r, x + r, y + r), outline=white, fill=fill, width=line)
        elif one.kind == "ELLIPSE" and len(points) == 4:
            _ellipse(pen, points, white, line, filled=one.filled)
    return np.asarray(image)


def _ellipse(pen: Any, points: list[Point], white: Any, line: int, *, filled: bool) -> None:
    """Major axis between the first two points, minor axis between the others; it may be turned."""
    ends = np.asarray(points, np.float64)
    middle, major, minor = ends[:2].mean(axis=0), (ends[1] - ends[0]) / 2, (ends[3] - ends[2]) / 2
    angle = np.linspace(0, 2 * np.pi, 97)[:, np.newaxis]
    outline = [(float(x), float(y)) for x, y in middle + np.cos(angle) * major + np.sin(angle) * minor]
    if filled:
        pen.polygon(outline, fill=white)
    pen.line(outline, fill=white, width=line)
