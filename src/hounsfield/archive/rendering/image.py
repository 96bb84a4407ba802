"""What an image object says of its pixels, and what of each of its frames (PS3.3 C.7.6.3, C.7.6.16)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Final

from hounsfield.archive.rendering.color import (
    MONOCHROME,
    PALETTE_COLOR,
    RETIRED,
    Palette,
    has_palette,
    palette_of,
)
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import NoImageError, NotRenderableError
from hounsfield.archive.rendering.grey import Modality, Padding, Rescale, Word, modality_of
from hounsfield.archive.rendering.overlays import Overlay, overlays_of
from hounsfield.archive.rendering.viewport import aspect_of
from hounsfield.archive.rendering.voi import Range, Voi, voi_of
from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.pixels import WORD_BITS, PixelFormat

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred("numpy")

_SAMPLES, _PHOTOMETRIC, _FRAMES = 0x00280002, 0x00280004, 0x00280008
_ROWS, _COLUMNS = 0x00280010, 0x00280011
_ALLOCATED, _STORED, _HIGH_BIT, _REPRESENTATION = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_ALLOCATED_BITS: Final = (1, *WORD_BITS)
_PADDING, _PADDING_LIMIT = 0x00280120, 0x00280121
#: Bits of a number, its padding value, and the other end of a range of padding (PS3.3 C.7.6.24, C.7.6.25).
_FLOATING: Final = {
    0x7FE00008: (32, 0x00280122, 0x00280124),
    0x7FE00009: (64, 0x00280123, 0x00280125),
}
_REPRESENTATIVE_FRAME: Final = 0x00286010
_PRESENTATION_LUT_SHAPE: Final = 0x20500020
_PIXEL_PRESENTATION: Final = 0x00089205
_PIXEL_DATA: Final = 0x7FE00010
_PIXEL_ASPECT_RATIO: Final = 0x00280034
_SPACINGS: Final = (0x00280030, 0x00181164, 0x00182010)
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_PIXEL_MEASURES, _PIXEL_VALUES, _FRAME_VOI = 0x00289110, 0x00289145, 0x00289132
_ICC_PROFILE, _OPTICAL_PATHS = 0x00282000, 0x00480105
_RECOMMENDED_RATE, _FRAME_TIME, _CINE_RATE = 0x00082144, 0x00181063, 0x00180040
FRAME_SECONDS_DEFAULT: Final = 0.1
"""A frame's time in a film when the object says none."""
FRAME_SECONDS_MIN, FRAME_SECONDS_MAX = 1 / 240, 60.0
"""Nobody sees faster ones, nobody waits for slower ones: such values are damage."""


def _within(seconds: float) -> float:
    return min(max(seconds, FRAME_SECONDS_MIN), FRAME_SECONDS_MAX)


class Image:
    """The description of one object's pixels. Immutable; any thread may use it.

    ``frames``: how many there are; None: as many as the object says, whatever that is.
    """

    def __init__(self, found: Elements, frames: int | None = None) -> None:
        self.elements = found
        self._check()
        self.photometric = found.word(_PHOTOMETRIC)
        self.frames = max(found.integer(_FRAMES, 1) if frames is None else frames, 1)
        allocated = found.integer(_ALLOCATED, 16)
        stored = found.integer(_STORED, allocated)
        if self.floating:
            allocated = stored = _FLOATING[self.floating][0]
        if allocated not in _ALLOCATED_BITS:
            raise NotRenderableError("pixel cells that are neither single bits nor whole words")
        if not 1 <= stored <= allocated:
            stored = allocated
        samples = found.integer(_SAMPLES, 1)
        self.format = PixelFormat(
            rows=found.integer(_ROWS),
            columns=found.integer(_COLUMNS),
            samples=samples,
            bits_allocated=allocated,
            bits_stored=stored,
            signed=found.pixels_signed,
        )
        high_bit = found.integer(_HIGH_BIT, stored - 1)
        self.shift = high_bit + 1 - stored if stored - 1 <= high_bit < allocated else 0
        if self.photometric in RETIRED:
            raise NotRenderableError(
                f"the photometric interpretation {self.photometric} is retired and not rendered (PS3.3"
                " C.7.6.3.1.2); the frames themselves, or the object, can be fetched"
            )
        if samples not in (1, 3):
            raise NotRenderableError(f"{samples} samples a pixel are not rendered")
        if samples == 1 and self.photometric not in MONOCHROME and self.photometric != PALETTE_COLOR:
            raise NotRenderableError("the photometric interpretation does not fit one sample a pixel")
        if self.floating and not self.is_grey:
            raise NotRenderableError("floating point numbers that are colours are not rendered")

    @cached_property
    def floating(self) -> int:
        """The element that holds its pixels when those are floating point numbers, else 0."""
        return next((tag for tag in _FLOATING if tag in self.elements), 0)

    def _check(self) -> None:
        found = self.elements
        if (
            not (self.floating or _PIXEL_DATA in found)
            or found.integer(_ROWS) < 1
            or found.integer(_COLUMNS) < 1
        ):
            raise NoImageError("this instance has no pixels to show")

    @property
    def is_grey(self) -> bool:
        return self.photometric in MONOCHROME

    @property
    def inverse(self) -> bool:
        """Whether the lowest value is shown white (PS3.3 C.7.6.3.1.2; C.11.6: the shape says it again)."""
        shape = self.elements.word(_PRESENTATION_LUT_SHAPE)
        if shape in ("IDENTITY", "INVERSE") and self.photometric == "MONOCHROME2":
            return shape == "INVERSE"
        return self.photometric == "MONOCHROME1"

    @property
    def representative_frame(self) -> int:
        """The frame that stands for all of them: the one the object names, else the one in the middle."""
        named = self.elements.integer(_REPRESENTATIVE_FRAME)
        return named if 1 <= named <= self.frames else (self.frames + 1) // 2

    @cached_property
    def overlays(self) -> tuple[Overlay, ...]:
        return tuple(overlays_of(self.elements))

    @cached_property
    def palette(self) -> Palette:
        """``NotRenderableError`` when it has none that is whole."""
        return palette_of(self.elements)

    @cached_property
    def supplemental(self) -> Palette | None:
        """The colours of values that lie above the grey ones, if any (PS3.3 C.7.6.19, C.8.16.2.1.1.1)."""
        coloured = self.elements.word(_PIXEL_PRESENTATION) in ("COLOR", "MIXED")
        if not (coloured and self.is_grey and has_palette(self.elements)) or self.floating:
            return None
        try:
            return self.palette
        except NotRenderableError:  # damaged colours are no reason to show nothing
            return None

    @cached_property
    def padding(self) -> Padding | None:
        """The stored values that stand for no measurement."""
        if self.floating:
            _, value, limit = _FLOATING[self.floating]
            numbers = [number for tag in (value, limit) for number in self.elements.numbers(tag)[:1]]
            return Padding(min(numbers), max(numbers)) if value in self.elements and numbers else None
        ends = [self.elements.number(tag) for tag in (_PADDING, _PADDING_LIMIT)]
        words = [self._in_word(int(end)) for end in ends if end is not None]
        if ends[0] is None:
            return None
        return Padding(min(words), max(words))

    def _in_word(self, value: int) -> int:
        bits = self.format.bits_allocated
        value &= (1 << bits) - 1
        return value - (1 << bits) if self.format.signed and value >> (bits - 1) else value

    def modality(self, number: int) -> Modality:
        """From stored values to what they measure, of frame ``number`` from 1."""
        for group in self._groups(number, _PIXEL_VALUES):
            found = modality_of(group)
            if found is not None:
                return found
        return modality_of(self.elements) or Rescale()

    def voi(self, number: int) -> Voi | None:
        """What the object says to show of frame ``number``, from 1.

        Samples of up to 8 bits that nothing is said of are shown as they are; None: the data's range.
        """
        for group in self._groups(number, _FRAME_VOI):
            found = voi_of(group)
            if found is not None:
                return found
        said = voi_of(self.elements)
        if said is None and self.format.bits_stored <= 8 and self.modality(number) == Rescale():
            signed, stored = self.format.signed, self.format.bits_stored
            low = -(1 << (stored - 1)) if signed else 0
            return Range(low, low + (1 << stored) - 1)
        return said

    @cached_property
    def pixel_aspect(self) -> float:
        """Height of a pixel over its width."""
        aspect = aspect_of(self.elements.numbers(_PIXEL_ASPECT_RATIO))
        if aspect is not None:
            return aspect
        measures = next(self._groups(1, _PIXEL_MEASURES), None)
        for found, tags in ((measures, _SPACINGS[:1]), (self.elements, _SPACINGS)):
            for tag in tags if found is not None else ():
                aspect = aspect_of(found.numbers(tag)) if found is not None else None
                if aspect is not None:
                    return aspect
        return 1.0

    @cached_property
    def icc_profile(self) -> bytes:
        """The profile of its colours, empty when it has none (PS3.3 C.11.15)."""
        profile = bytes(self.elements.raw(_ICC_PROFILE))
        if not profile:
            path = self.elements.item(_OPTICAL_PATHS)
            profile = bytes(path.raw(_ICC_PROFILE)) if path is not None else b""
        return profile

    @cached_property
    def frame_seconds(self) -> float:
        """How long an animation shows a frame."""
        for tag in (_RECOMMENDED_RATE, _CINE_RATE):
            rate = self.elements.number(tag)
            if rate is not None and rate > 0:
                return _within(1 / rate)
        time = self.elements.number(_FRAME_TIME)
        return _within(time / 1000) if time is not None and time > 0 else FRAME_SECONDS_DEFAULT

    def _groups(self, number: int, tag: int) -> Iterator[Elements]:
        """The functional group of a frame: its own, then the one that all share (PS3.3 C.7.6.16)."""
        if _SHARED not in self.elements and _PER_FRAME not in self.elements:
            return
        for sequence, index in ((_PER_FRAME, number - 1), (_SHARED, 0)):
            item = self.elements.item(sequence, index)
            group = item.item(tag) if item is not None else None
            if group is not None:
                yield group

    @property
    def word(self) -> Word:
        """Where the values of native cells stand."""
        return Word(self.format.bits_allocated - self.format.bits_stored, self.shift)
