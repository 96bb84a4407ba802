"""Softcopy presentation states: how somebody wanted an image to be seen (PS3.3 A.33, C.10, C.11; PS3.4 N)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.color import Palette, has_palette, palette_of
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import NoImageError, NotRenderableError
from hounsfield.archive.rendering.graphics import Drawing, drawings_of, drawn
from hounsfield.archive.rendering.grey import Modality, modality_of
from hounsfield.archive.rendering.lettering import BUILT_IN, Lettering
from hounsfield.archive.rendering.lut import Lut, lut_of
from hounsfield.archive.rendering.overlays import Overlay, overlays_of
from hounsfield.archive.rendering.request import Viewport
from hounsfield.archive.rendering.shutter import shuttered
from hounsfield.archive.rendering.viewport import aspect_of, flips_of, part_of, pasted, size_of
from hounsfield.archive.rendering.voi import Voi, voi_of
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

#: Grayscale, Color and Pseudo-Color Softcopy Presentation State Storage.
SOP_CLASSES: Final = frozenset(f"1.2.840.10008.5.1.4.1.1.11.{number}" for number in (1, 2, 3))
REFERENCES_MAX: Final = 2000
"""Images of one presentation state: it is for one series as a rule. What is beyond is not shown."""

_REFERENCED_SERIES, _REFERENCED_IMAGES = 0x00081115, 0x00081140
_SERIES_UID, _SOP_UID, _FRAMES = 0x0020000E, 0x00081155, 0x00081160
_SOFTCOPY_VOI, _PRESENTATION_LUTS, _PRESENTATION_SHAPE = 0x00283110, 0x20500010, 0x20500020
_DISPLAYED_AREAS, _TOP_LEFT, _BOTTOM_RIGHT = 0x0070005A, 0x00700052, 0x00700053
_SPACING, _ASPECT = 0x00700101, 0x00700102
_FLIP, _ROTATION = 0x00700041, 0x00700042
_ICC_PROFILE: Final = 0x00282000
_ACTIVATION_LAYER: Final = 0x1001
_GROWTH_MAX: Final = 16
"""A displayed area may be larger than its image; not so many times larger."""
AREA_PIXELS_MAX: Final = 1 << 25
"""Pixels of a picture whose area reaches beyond its image: as many as the largest displays have (8K).

What lies beside the image takes memory that nobody sent: past this a viewport is asked for, which bounds it.
"""


@dataclass(frozen=True, slots=True)
class Reference:
    """An image that a presentation state is for; no frames: all of them."""

    series_uid: str
    sop_uid: str
    frames: tuple[int, ...] = ()


class PresentationState:
    """One presentation state object. Immutable; any thread may use it."""

    def __init__(self, found: Elements) -> None:
        self.elements = found

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """The images it is for, in its order. ``NoImageError`` when it names none."""
        found: list[Reference] = []
        for series in self.elements.items(_REFERENCED_SERIES):
            for image in series.items(_REFERENCED_IMAGES):
                frames = tuple(int(number) for number in image.numbers(_FRAMES))
                found.append(Reference(series.text(_SERIES_UID), image.text(_SOP_UID), frames))
                if len(found) == REFERENCES_MAX:
                    return tuple(found)
        if not found:
            raise NoImageError("this presentation state refers to no image")
        return tuple(found)

    def of_image(self, sop_uid: str, number: int) -> ImagePresentation:
        """What it says of one frame of one image."""
        found = self.elements
        voi = next(self._for_image(_SOFTCOPY_VOI, sop_uid, number), None)
        area = next(self._for_image(_DISPLAYED_AREAS, sop_uid, number), None)
        table = found.item(_PRESENTATION_LUTS)
        return ImagePresentation(
            elements=found,
            modality=modality_of(found),
            voi=None if voi is None else voi_of(voi),
            inverse=table is None and found.word(_PRESENTATION_SHAPE) == "INVERSE",
            presentation_lut=None if table is None else lut_of(table),
            palette=palette_of(found) if has_palette(found) else None,
            area=area,
            flip=found.word(_FLIP) == "Y",
            quarter_turns=found.integer(_ROTATION) // 90 % 4,
            drawings=tuple(drawings_of(found, lambda item: _is_for(item, sop_uid, number))),
        )

    def _for_image(self, tag: int, sop_uid: str, number: int) -> Iterator[Elements]:
        return (item for item in self.elements.items(tag) if _is_for(item, sop_uid, number))


def _is_for(item: Elements, sop_uid: str, number: int) -> bool:
    """Whether an item is for that frame: it names it, or names nothing."""
    if not item.item_count(_REFERENCED_IMAGES):
        return True
    for image in item.items(_REFERENCED_IMAGES):
        if image.text(_SOP_UID) == sop_uid:
            frames = image.numbers(_FRAMES)
            if not frames or number in frames:
                return True
    return False


@dataclass(frozen=True, slots=True, eq=False)
class ImagePresentation:
    """What a presentation state says of one frame. Without ``voi`` the data's range is shown."""

    elements: Elements
    modality: Modality | None = None
    voi: Voi | None = None
    inverse: bool = False
    presentation_lut: Lut | None = None
    palette: Palette | None = None
    area: Elements | None = None
    flip: bool = False
    quarter_turns: int = 0
    drawings: tuple[Drawing, ...] = field(default=())

    @property
    def icc_profile(self) -> bytes:
        """The profile of its palette's colours."""
        return bytes(self.elements.raw(_ICC_PROFILE))

    def overlays(self, of_image: Iterable[Overlay]) -> tuple[Overlay, ...]:
        """The planes that are shown: its own and the image's, each only when put into a layer."""
        own = {overlay.group: overlay for overlay in overlays_of(self.elements)}
        planes = {overlay.group: overlay for overlay in of_image} | own
        return tuple(
            overlay
            for group, overlay in sorted(planes.items())
            if self.elements.text(group << 16 | _ACTIVATION_LAYER)
        )

    def pixel_aspect(self, of_image: float) -> float:
        """Height over width of a pixel that is shown."""
        aspect = of_image
        if self.area is not None:
            for tag in (_SPACING, _ASPECT):
                own = aspect_of(self.area.numbers(tag))
                if own is not None:
                    aspect = own
                    break
        return 1 / aspect if self.quarter_turns % 2 else aspect

    def applied(
        self,
        picture: NDArray[Any],
        lettering: Lettering = BUILT_IN,
        viewport: Viewport | None = None,
        image_aspect: float = 1.0,
    ) -> NDArray[Any]:
        """Shutters, then the displayed area, turned, flipped, as the viewport shows it, and written on.

        It is one step from the image's pixels to those that are asked for: what of the area lies beside the
        image is never made larger than it is shown. ``BadParameterError``, ``NotRenderableError``.
        """
        rows, columns = picture.shape[:2]
        size = self.size_of(rows, columns, viewport, image_aspect)
        picture = shuttered(picture, self.elements)
        left, top, right, bottom = self._area(rows, columns)
        width, height = right - left, bottom - top
        whole = (width, height) if self.quarter_turns % 2 == 0 else (height, width)
        part = (0, 0, *whole) if viewport is None else part_of(whole[1], whole[0], viewport)
        flips = (False, False) if viewport is None else flips_of(viewport)

        # What of the image is in the area, turned as that is, and where.
        inside = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        ends = [
            self._turned(min(max(x, 0), columns) - left, min(max(y, 0), rows) - top, width, height)
            for x, y in ((left, top), (right, bottom))
        ]
        at = min(int(ends[0][0]), int(ends[1][0])), min(int(ends[0][1]), int(ends[1][1]))
        inside = np.rot90(inside, -self.quarter_turns)  # the angle is clockwise (PS3.3 C.10.6)
        if self.flip:
            inside = inside[:, ::-1]
        shown = pasted(inside, at, part, flips, size)

        def place_turned(x: float, y: float) -> tuple[float, float]:
            x = (x - part[0]) * size[1] / (part[2] - part[0])
            y = (y - part[1]) * size[0] / (part[3] - part[1])
            return (size[1] - x if flips[0] else x), (size[0] - y if flips[1] else y)

        def place(x: float, y: float) -> tuple[float, float]:
            return place_turned(*self._turned(x - left, y - top, width, height))

        def place_share(x: float, y: float) -> tuple[float, float]:
            return place_turned(x * whole[0], y * whole[1])

        return drawn(shown, self.drawings, place, lettering, place_share) if self.drawings else shown

    def size_of(
        self, rows: int, columns: int, viewport: Viewport | None = None, image_aspect: float = 1.0
    ) -> tuple[int, int]:
        """Rows and columns that :meth:`applied` gives of a picture of that size, and its errors."""
        left, top, right, bottom = self._area(rows, columns)
        size = bottom - top, right - left
        if self.quarter_turns % 2:
            size = size[::-1]
        if viewport is not None:
            size = size_of(*size, viewport, self.pixel_aspect(image_aspect))
        elif size[0] * size[1] > max(AREA_PIXELS_MAX, rows * columns):
            raise NotRenderableError(
                "the displayed area of the presentation state has more pixels than are drawn at once;"
                " ask for a viewport"
            )
        return size

    def _area(self, rows: int, columns: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of what is shown, the ends exclusive.

        The corners are those of the turned image in coordinates of the stored one (PS3.3 C.10.4).
        """
        if self.area is None:
            return 0, 0, columns, rows
        first, second = self.area.numbers(_TOP_LEFT), self.area.numbers(_BOTTOM_RIGHT)
        if len(first) != 2 or len(second) != 2:
            return 0, 0, columns, rows
        left, right = int(min(first[0], second[0])) - 1, int(max(first[0], second[0]))
        top, bottom = int(min(first[1], second[1])) - 1, int(max(first[1], second[1]))
        too_large = (right - left) * (bottom - top) > _GROWTH_MAX * rows * columns
        outside = left >= columns or top >= rows or right <= 0 or bottom <= 0
        return (0, 0, columns, rows) if too_large or outside else (left, top, right, bottom)

    def _turned(self, x: float, y: float, width: int, height: int) -> tuple[float, float]:
        for _ in range(self.quarter_turns):
            x, y, width, height = height - y, x, height, width
        return (width - x if self.flip else x), y
