"""Colour: what the photometric interpretations mean, as RGB of 8 bits (PS3.3 C.7.6.3.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.bands import in_bands
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.archive.rendering.lut import Lut, lut_from
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

_PALETTE_TAGS: Final = (
    (0x00281101, 0x00281201, 0x00281221),
    (0x00281102, 0x00281202, 0x00281222),
    (0x00281103, 0x00281203, 0x00281223),
)
#: What decoders of JPEG 2000 and JPEG XL have turned back into RGB already.
RGB_WHEN_DECODED: Final = frozenset({"RGB", "YBR_RCT", "YBR_ICT", "XYB"})
MONOCHROME: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
PALETTE_COLOR: Final = "PALETTE COLOR"
#: Until 1998: nobody says how their colours are meant, and no sample of them is to be had.
RETIRED: Final = frozenset({"ARGB", "CMYK", "HSV"})


@dataclass(frozen=True, slots=True)
class Palette:
    """Three tables, for red, green and blue."""

    red: Lut
    green: Lut
    blue: Lut

    def __call__(self, stored: NDArray[Any]) -> NDArray[Any]:
        """RGB of 8 bits, of one sample a pixel."""
        colours = []
        for lut in (self.red, self.green, self.blue):
            small = Lut(lut.first, 8, lut.eight_bits())
            colours.append(small(stored))
        return np.stack(colours, axis=-1)

    @property
    def first(self) -> int:
        """The lowest value that has a colour of its own."""
        return self.red.first

    def over(self, grey: NDArray[Any]) -> NDArray[Any]:
        """The colours of grey, from the first of black to the last of white (PS3.4 N.2.2)."""
        last = len(self.red.table) - 1
        table = self(self.first + np.rint(np.arange(256) * (last / 255)))
        return in_bands(lambda part: table[part], grey)


def has_palette(found: Elements) -> bool:
    """Whether a data set says anything of a palette."""
    return _PALETTE_TAGS[0][0] in found


def palette_of(found: Elements) -> Palette:
    """The palette of a data set. ``NotRenderableError`` when it has none that is whole."""
    first, second, third = (lut_from(found, *tags) for tags in _PALETTE_TAGS)
    return Palette(first, second, third)


def to_rgb(stored: NDArray[Any], photometric: str, bits: int) -> NDArray[Any]:
    """RGB of 8 bits, of three samples a pixel that have ``bits`` bits. ``NotRenderableError``."""
    if photometric in RGB_WHEN_DECODED:
        return _bytes(stored, bits)
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        return ybr_full_to_rgb(_bytes(stored, bits))
    if photometric.startswith("YBR_PARTIAL"):
        return ybr_partial_to_rgb(_bytes(stored, bits))
    raise NotRenderableError("the photometric interpretation is none that is rendered")


def _bytes(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    if stored.dtype.itemsize == 1 and bits == 8:
        same: NDArray[Any] = stored.view(np.uint8)
        return same
    if bits > 8:
        high: NDArray[Any] = (stored >> (bits - 8)).astype(np.uint8)
        return high
    scaled: NDArray[Any] = np.rint(stored.astype(np.float32) * (255 / ((1 << bits) - 1))).astype(np.uint8)
    return scaled


def ybr_full_to_rgb(ybr: NDArray[Any]) -> NDArray[Any]:
    """ITU-R BT.601 with luminance and chrominance over all 8 bits."""
    luminance, blue, red = _planes(ybr)
    return _rgb(
        luminance + 1.402 * red,
        luminance - 0.114 * 1.772 / 0.587 * blue - 0.299 * 1.402 / 0.587 * red,
        luminance + 1.772 * blue,
    )


def ybr_partial_to_rgb(ybr: NDArray[Any]) -> NDArray[Any]:
    """ITU-R BT.601 with luminance from 16 to 235 and chrominance from 16 to 240."""
    luminance, blue, red = _planes(ybr)
    luminance = (luminance - 16) * (255 / 219)
    blue, red = blue * (255 / 224), red * (255 / 224)
    return _rgb(
        luminance + 1.402 * red,
        luminance - 0.114 * 1.772 / 0.587 * blue - 0.299 * 1.402 / 0.587 * red,
        luminance + 1.772 * blue,
    )


def _planes(ybr: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Luminance, and the chrominances around 0."""
    planes = ybr.astype(np.float32)
    return planes[..., 0], planes[..., 1] - 128, planes[..., 2] - 128


def _rgb(*planes: NDArray[Any]) -> NDArray[Any]:
    stacked = np.stack(planes, axis=-1)
    np.rint(stacked, out=stacked)
    return np.clip(stacked, 0, 255, out=stacked).astype(np.uint8)
