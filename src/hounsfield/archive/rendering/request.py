"""What a client may ask of a rendering: the parameters of PS3.18 8.3.5, read and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hounsfield.archive.rendering.errors import BadParameterError
from hounsfield.archive.rendering.voi import Function, Window

JPEG, PNG, GIF, MP4 = "image/jpeg", "image/png", "image/gif", "video/mp4"
STILL: Final = (JPEG, PNG)
FILMS: Final = (GIF, MP4)
QUALITY_DEFAULT: Final = 90
VIEWPORT_MAX: Final = 8192
"""Pixels on a side: twice what the widest displays have, and 192 MiB of RGB."""
THUMBNAIL_SIDE: Final = 200
"""Pixels of a thumbnail's longer side when no viewport says otherwise."""
ANNOTATIONS: Final = frozenset({"patient", "technique"})
ICC: Final = frozenset({"no", "yes", "srgb", "adobergb", "rommrgb"})
_FUNCTIONS: Final = {
    "linear": Function.LINEAR,
    "linear-exact": Function.LINEAR_EXACT,
    "linear_exact": Function.LINEAR_EXACT,
    "sigmoid": Function.SIGMOID,
}


@dataclass(frozen=True, slots=True)
class Viewport:
    """Where the image goes and which part of it (PS3.18 8.3.5.1.3), in pixels.

    ``width`` and ``height``: the image is scaled to fit; None: that side does not bind. ``left`` and ``top``
    of the part, from 0; its ``source_width`` and ``source_height``, negative to flip, None for all there is.
    ``fractions``: those four are shares of what is shown, from 0 to 1 (the region of PS3.18 9.5.1.2).
    """

    width: int | None
    height: int | None
    left: float = 0
    top: float = 0
    source_width: float | None = None
    source_height: float | None = None
    fractions: bool = False

    def in_pixels(self, rows: int, columns: int) -> Viewport:
        """The same of a picture of that size, its part in pixels."""
        if not self.fractions:
            return self
        width, height = self.source_width, self.source_height
        return Viewport(
            self.width,
            self.height,
            self.left * columns,
            self.top * rows,
            None if width is None else width * columns,
            None if height is None else height * rows,
        )


@dataclass(frozen=True, slots=True)
class Rendering:
    """Everything that decides how a frame looks. Two that are equal give the same bytes."""

    media_type: str = JPEG
    window: Window | None = None
    viewport: Viewport | None = None
    annotations: frozenset[str] = frozenset()
    icc: str = "no"
    quality: int = QUALITY_DEFAULT
    overlays: bool = True


def parse_rendering(
    parameters: Iterable[tuple[str, str]], media_type: str, *, thumbnail: bool = False
) -> tuple[Rendering, tuple[str, ...]]:
    """What the query parameters say, and what of them was ignored. ``BadParameterError``.

    A thumbnail takes a viewport and nothing else: it identifies nobody and looks the same for everybody.
    """
    given = {name.lower(): value for name, value in parameters}
    ignored: list[str] = []
    viewport = _viewport(given["viewport"]) if given.get("viewport") else None
    if thumbnail:
        side = THUMBNAIL_SIDE
        return Rendering(media_type, viewport=viewport or Viewport(side, side), overlays=False), ()
    annotations: set[str] = set()
    for word in given.get("annotation", "").split(","):
        name = word.strip().strip('"').lower()
        if name in ANNOTATIONS:
            annotations.add(name)
        elif name:
            ignored.append("annotation has values that are not known: they are ignored")
    icc = given.get("iccprofile", "no").strip().lower() or "no"
    if icc not in ICC:
        raise BadParameterError(f"iccprofile is one of {', '.join(sorted(ICC))}")
    return Rendering(
        media_type,
        window=_window(given["window"]) if given.get("window") else None,
        viewport=viewport,
        annotations=frozenset(annotations),
        icc=icc,
        quality=_quality(given.get("quality", "")),
    ), tuple(dict.fromkeys(ignored))


def _quality(text: str) -> int:
    if not text:
        return QUALITY_DEFAULT
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= 100):
        raise BadParameterError("quality is a whole number from 1 to 100")
    return int(text)


def _window(text: str) -> Window:
    parts = [part.strip() for part in text.split(",")]
    function = _FUNCTIONS.get(parts[2].lower()) if len(parts) == 3 else Function.LINEAR
    if len(parts) not in (2, 3) or function is None:
        raise BadParameterError("window is center,width,function with linear, linear-exact or sigmoid")
    window = Window(_number(parts[0], "window"), _number(parts[1], "window"), function)
    if not window.is_valid:
        raise BadParameterError("the window's width must be at least 1 (linear), or more than 0")
    return window


def _viewport(text: str) -> Viewport:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (2, 6):
        raise BadParameterError("viewport is vw,vh or vw,vh,sx,sy,sw,sh")
    sides: list[int] = []
    for part in parts[:2]:
        side = _number(part, "viewport")
        if not 1 <= side <= VIEWPORT_MAX or side != int(side):
            raise BadParameterError(f"a viewport's width and height are from 1 to {VIEWPORT_MAX} pixels")
        sides.append(int(side))
    if len(parts) == 2:
        return Viewport(sides[0], sides[1])
    left, top, width, height = (_number(part, "viewport") if part else None for part in parts[2:])
    if (left or 0) < 0 or (top or 0) < 0 or width == 0 or height == 0:
        raise BadParameterError("a viewport's sx and sy are not negative, its sw and sh not zero")
    return Viewport(sides[0], sides[1], left or 0, top or 0, width, height)


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadParameterError(f"{what} has a value that is not a number") from None
    if not math.isfinite(value) or abs(value) > 1e12:
        raise BadParameterError(f"{what} has a value that is not a number")
    return value
