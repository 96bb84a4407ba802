"""Overlay planes (60xx): bits over the image, in elements of their own or in unused bits (PS3.3 C.9.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.elements import Elements
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

GROUPS: Final = tuple(range(0x6000, 0x6020, 2))
_ROWS, _COLUMNS, _FRAMES, _ORIGIN, _FRAME_ORIGIN = 0x0010, 0x0011, 0x0015, 0x0050, 0x0051
_BITS_ALLOCATED, _BIT_POSITION, _DATA = 0x0100, 0x0102, 0x3000


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """One plane. ``top`` and ``left`` are where it begins in the image, from 0; they may be outside.

    ``data`` None: the plane is bit ``position`` of the pixel cells.
    """

    group: int
    rows: int
    columns: int
    top: int
    left: int
    frames: int
    first_frame: int
    position: int
    data: bytes | None

    @property
    def embedded(self) -> bool:
        """Whether its bits stand in the pixel cells."""
        return self.data is None

    def plane(self, number: int, cells: NDArray[Any] | None) -> NDArray[Any] | None:
        """The bits over frame ``number`` (from 1), None when there are none. ``cells`` are as stored."""
        if self.data is None:
            if cells is None or self.position >= 8 * cells.dtype.itemsize:
                return None
            embedded: NDArray[Any] = (cells >> cells.dtype.type(self.position)) & 1
            return embedded
        index = number - self.first_frame if self.frames > 1 else 0
        if not 0 <= index < self.frames:
            return None
        count = self.rows * self.columns
        start = index * count
        octets = np.frombuffer(self.data, np.uint8)[start // 8 : (start + count + 7) // 8]
        bits = np.unpackbits(octets, bitorder="little")[start % 8 : start % 8 + count]
        if len(bits) < count:
            return None
        return bits.reshape(self.rows, self.columns)

    def mask(self, number: int, shape: tuple[int, ...], cells: NDArray[Any] | None) -> NDArray[Any] | None:
        """Where frame ``number`` of that shape is covered."""
        plane = self.plane(number, cells)
        if plane is None:
            return None
        out = np.zeros(shape[:2], bool)
        top, left = max(self.top, 0), max(self.left, 0)
        visible = plane[top - self.top :, left - self.left :][
            : max(shape[0] - top, 0), : max(shape[1] - left, 0)
        ]
        out[top : top + visible.shape[0], left : left + visible.shape[1]] = visible != 0
        return out


def overlays_of(found: Elements) -> Iterator[Overlay]:
    """The planes of a data set; those that contradict themselves are left out."""
    for group in GROUPS:
        base = group << 16
        rows, columns = found.integer(base | _ROWS), found.integer(base | _COLUMNS)
        if rows < 1 or columns < 1:
            continue
        origin = [int(value) for value in found.numbers(base | _ORIGIN)] or [1, 1]
        data: bytes | None = bytes(found.raw(base | _DATA))
        position = found.integer(base | _BIT_POSITION)
        frames = max(found.integer(base | _FRAMES, 1), 1)
        if not data:
            if position == 0 or found.integer(base | _BITS_ALLOCATED, 1) <= 1:
                continue
            data = None
        elif found.vr(base | _DATA) == "OW" and not found.little_endian:
            words = np.frombuffer(data[: len(data) // 2 * 2], ">u2")
            data = words.astype("<u2").tobytes()
        if data is not None and len(data) * 8 < rows * columns * frames:
            continue
        yield Overlay(
            group, rows, columns, origin[0] - 1, origin[-1] - 1, frames,
            found.integer(base | _FRAME_ORIGIN, 1), position, data,
        )  # fmt: skip
