"""Lookup tables: modality, VOI and presentation LUTs and palettes (PS3.3 C.11.1, C.11.2, C.7.9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

_DESCRIPTOR: Final = 0x00283002
_DATA: Final = 0x00283006
ENTRIES_MAX: Final = 1 << 16
_FIRST_MAX: Final = 1 << 32
"""The first value that is looked up is one of a pixel, or of what its rescaling gives."""

_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class Lut:
    """A table. Input ``first`` gives entry 0; what lies outside gives the nearest entry."""

    first: int
    bits: int
    table: NDArray[Any]  # uint16

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """The entries of these values, which are rounded."""
        if values.dtype.kind == "f":
            values = np.clip(np.rint(values), self.first, self.first + len(self.table) - 1)
        index = np.clip(values.astype(np.int64) - self.first, 0, len(self.table) - 1)
        found: NDArray[Any] = self.table[index]
        return found

    @property
    def top(self) -> int:
        """The largest value that an entry may have."""
        return (1 << self.bits) - 1

    def eight_bits(self) -> NDArray[Any]:
        """The entries, scaled to bytes."""
        if self.bits <= 8:
            return self.table.astype(np.uint8)
        return (self.table >> (self.bits - 8)).astype(np.uint8)


def lut_of(item: Elements) -> Lut:
    """The table of an item of a Modality, VOI or Presentation LUT Sequence. ``NotRenderableError``."""
    return lut_from(item, _DESCRIPTOR, _DATA)


def lut_from(found: Elements, descriptor_tag: int, data_tag: int, segmented_tag: int = 0) -> Lut:
    """The table that a descriptor and its data say. ``NotRenderableError`` when they say none."""
    descriptor = found.numbers(descriptor_tag)
    if len(descriptor) != 3:
        raise NotRenderableError("a lookup table without a descriptor of three values")
    # The first and last are unsigned whatever the VR says; the second is a pixel value.
    count = int(descriptor[0]) & 0xFFFF or ENTRIES_MAX
    first, bits = int(descriptor[1]), int(descriptor[2]) & 0xFFFF
    if abs(first) > _FIRST_MAX:
        raise NotRenderableError("a lookup table that begins at a value which no pixel has")
    if not 1 <= bits <= 16:
        raise NotRenderableError("a lookup table whose entries have neither 8 nor 16 bits")
    raw = found.raw(data_tag)
    if len(raw):
        table = _entries(raw, count, found.little_endian)
    elif segmented_tag and len(found.raw(segmented_tag)):
        table = _expanded(found.raw(segmented_tag), bits, found.little_endian, count)
    else:
        raise NotRenderableError("a lookup table without data")
    if len(table) < count:
        raise NotRenderableError("a lookup table with fewer entries than its descriptor says")
    # Tables exist that say 8 bits and hold 16, or say 16 and hold 8 at the bottom (PS3.3 C.11.1.1.1, note).
    highest = int(table.max(initial=0))
    if highest >= 1 << bits:
        bits = highest.bit_length()
    return Lut(first, bits, table[:count])


def _entries(raw: memoryview, count: int, little_endian: bool) -> NDArray[Any]:
    """Words of 16 bits, or, in tables that are half as long, bytes."""
    if len(raw) // 2 >= count:
        return np.frombuffer(raw[: count * 2], "<u2" if little_endian else ">u2").astype(np.uint16)
    data = np.frombuffer(raw, np.uint8)
    if not little_endian:
        data = data[: len(data) // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)
    return data[:count].astype(np.uint16)


def _expanded(raw: memoryview, bits: int, little_endian: bool, count: int) -> NDArray[Any]:
    """A segmented palette, unrolled (PS3.3 C.7.9.2). ``NotRenderableError`` when it is damaged."""
    order = "<" if little_endian else ">"
    words = np.frombuffer(raw[: len(raw) // 2 * 2], f"{order}u2").astype(np.int64)
    if bits == 8:
        words = np.stack([words & 0xFF, words >> 8], axis=-1).reshape(-1)
    out: list[int] = []
    at = 0
    values = words.tolist()
    while at + 1 < len(values) and len(out) < count:
        at = _segment(values, at, out, bits, follow=True)
    if len(out) > ENTRIES_MAX:
        raise NotRenderableError("a segmented lookup table with more entries than one can have")
    return np.asarray(out, np.uint16)


def _segment(values: list[int], at: int, out: list[int], bits: int, *, follow: bool) -> int:
    """Append one segment's entries; where the next one begins."""
    opcode, length = values[at], values[at + 1]
    start = at
    if opcode == _DISCRETE:
        at += 2
        if at + length > len(values):
            raise NotRenderableError("a segmented lookup table that ends inside a segment")
        out.extend(values[at : at + length])
        at += length
    elif opcode == _LINEAR:
        if not out or at + 2 >= len(values):
            raise NotRenderableError("a segmented lookup table with a slope that starts nowhere")
        low, high = out[-1], values[at + 2]
        out.extend(round(low + (high - low) * step / length) for step in range(1, length + 1))
        at += 3
    elif opcode == _INDIRECT and follow:
        halves = 4 if bits == 8 else 2
        if at + 2 + halves > len(values):
            raise NotRenderableError("a segmented lookup table that ends inside a segment")
        unit = 8 if bits == 8 else 16
        offset = sum(values[at + 2 + n] << (unit * n) for n in range(halves))
        where = offset if bits == 8 else offset // 2
        at += 2 + halves
        for _ in range(length):
            if not 0 <= where < start:
                raise NotRenderableError("a segmented lookup table that refers to what is not there")
            where = _segment(values, where, out, bits, follow=False)
            if len(out) > ENTRIES_MAX:
                raise NotRenderableError("a segmented lookup table with more entries than one can have")
    else:
        raise NotRenderableError("a segmented lookup table with an unknown kind of segment")
    return at
