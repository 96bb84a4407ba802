"""Softcopy presentation states: how somebody wanted an image to be seen (PS3.3 A.33, C.10, C.11; PS3.4 N)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.color import Palette, has_palette, palette_of
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import NoImageError
from hounsfield.archive.rendering.graphics import Drawing, drawings_of, drawn
from hounsfield.archive.rendering.grey import Modality, modality_of
from hounsfield.archive.rendering.lettering import BUILT_IN, Lettering
from hounsfield.archive.rendering.lut import Lut, lut_of
from hounsfield.archive.rendering.overlays import Overlay, overlays_of
from hounsfield.archive.rendering.shutter import shuttered
from hounsfield.archive.rendering.viewport import aspect_of
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

    def applied(self, picture: NDArray[Any], lettering: Lettering = BUILT_IN) -> NDArray[Any]:
        """Shutters, then the displayed area, turned, flipped, and written on."""
        rows, columns = picture.shape[:2]
        picture = shuttered(picture, self.elements)
        left, top, right, bottom = self._area(rows, columns)
        part = np.zeros((bottom - top, right - left, *picture.shape[2:]), np.uint8)
        inside = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        at_row, at_column = max(-top, 0), max(-left, 0)
        part[at_row : at_row + inside.shape[0], at_column : at_column + inside.shape[1]] = inside
        turned = np.rot90(part, -self.quarter_turns)  # the angle is clockwise (PS3.3 C.10.6)
        if self.flip:
            turned = turned[:, ::-1]

        def place(x: float, y: float) -> tuple[float, float]:
            return self._turned(x - left, y - top, right - left, bottom - top)

        return drawn(turned, self.drawings, place, lettering) if self.drawings else turned

    def size_of(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns that :meth:`applied` gives of a picture of that size."""
        left, top, right, bottom = self._area(rows, columns)
        size = bottom - top, right - left
        return size[::-1] if self.quarter_turns % 2 else size

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
