"""What part of the values is shown: windows and VOI LUTs (PS3.3 C.11.2, C.11.8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.archive.rendering.lut import Lut, lut_of
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

_VOI_LUT_SEQUENCE: Final = 0x00283010
_WINDOW_CENTER, _WINDOW_WIDTH, _VOI_LUT_FUNCTION = 0x00281050, 0x00281051, 0x00281056


class Function(Enum):
    """How a window maps values to grey (PS3.3 C.11.2.1.2, C.11.2.1.3)."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"


@dataclass(frozen=True, slots=True)
class Window:
    """A window over the values that the modality transformation gives."""

    center: float
    width: float
    function: Function = Function.LINEAR

    @property
    def is_valid(self) -> bool:
        """A linear window is at least 1 wide, every other wider than 0 (PS3.3 C.11.2.1.2.1)."""
        if not (math.isfinite(self.center) and math.isfinite(self.width)):
            return False
        return self.width >= 1 if self.function is Function.LINEAR else self.width > 0

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Grey from 0 to 1."""
        values = values.astype(np.float64)
        if self.function is Function.SIGMOID:
            with np.errstate(over="ignore"):
                sigmoid: NDArray[Any] = 1 / (1 + np.exp(-4 * (values - self.center) / self.width))
            return sigmoid
        if self.function is Function.LINEAR_EXACT:
            low, span = self.center - self.width / 2, self.width
        else:
            low, span = self.center - 0.5 - (self.width - 1) / 2, self.width - 1
        if span == 0:
            return (values > low).astype(np.float64)
        grey: NDArray[Any] = np.clip((values - low) / span, 0, 1)
        return grey


@dataclass(frozen=True, slots=True)
class Range:
    """From the lowest to the highest value: what is shown when nothing says what to show."""

    low: float
    high: float

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Grey from 0 to 1."""
        values = values.astype(np.float64)
        if self.high <= self.low:
            return np.zeros(values.shape)
        grey: NDArray[Any] = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        return grey


Voi: TypeAlias = Window | Lut | Range


def voi_of(found: Elements) -> Window | Lut | None:
    """What a data set or item says to show: its first VOI LUT, else its first window that is one."""
    item = found.item(_VOI_LUT_SEQUENCE)
    if item is not None:
        try:
            return lut_of(item)
        except NotRenderableError:  # a damaged table is no reason to show nothing
            pass
    function = Function.__members__.get(found.word(_VOI_LUT_FUNCTION), Function.LINEAR)
    for center, width in zip(found.numbers(_WINDOW_CENTER), found.numbers(_WINDOW_WIDTH), strict=False):
        window = Window(center, width, function)
        if window.is_valid:
            return window
    return None
