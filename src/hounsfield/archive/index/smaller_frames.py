"""Native frames of one object stored smaller: which objects, with what the index knows of their pixels.

Used when objects come in (engine) and when a series is gathered. Every frame that is returned was decoded
and compared (:mod:`hounsfield.codecs.at_rest`). Only native cells are ever touched: what others compressed
stays as it is, and is not decoded here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.index.rows import Attributes, ObjectRow
from hounsfield.codecs.at_rest import Encoding, compressed
from hounsfield.codecs.pixels import PixelFormat
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

ROWS, COLUMNS, SAMPLES, PLANAR = 0x00280010, 0x00280011, 0x00280002, 0x00280006
BITS_ALLOCATED, BITS_STORED, REPRESENTATION = 0x00280100, 0x00280101, 0x00280103

_NATIVE: Final = frozenset({Layout.NATIVE, Layout.UNDIVIDED_NATIVE})
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SmallerLimits:
    """What is compressed at all.

    ``frame_bytes_min``: below it the head, the thread and the part outweigh what is saved.
    ``stored_share_max``: an object that shrinks less is stored as received, so that reading it costs nothing.
    """

    frame_bytes_min: int = 4096
    stored_share_max: float = 0.95


def is_native(row: ObjectRow) -> bool:
    """Whether an object has cells for a coder. What is in quarantine is looked at as it came."""
    return Layout(row.layout) in _NATIVE and not row.quarantine


def is_worth_it(row: ObjectRow, frames: Sequence[Buffer], limits: SmallerLimits) -> bool:
    """Whether the object has frames, as received, that can be stored smaller."""
    return is_native(row) and bool(frames) and len(frames[0]) >= limits.frame_bytes_min


def smaller(
    row: ObjectRow, frames: Sequence[Buffer], encoding: Encoding, limits: SmallerLimits
) -> list[Buffer] | None:
    """The frames as they are to be stored, each proven; None when they are to stay as received."""
    pixels = pixel_format(row.instance) if Layout(row.layout) is Layout.NATIVE else None
    little_endian = little_endian_cells(row.transfer_syntax_uid)
    if any(len(one) != len(frames[0]) for one in frames):
        return None
    try:
        stored: list[Buffer] = [
            compressed(frame, encoding, pixels, little_endian=little_endian) for frame in frames
        ]
    except Exception as error:  # noqa: BLE001  no defect of a coder may cost an object
        _logger.warning("frames are stored as received: compressing them failed (%s)", type(error).__name__)
        return None
    fits = sum(map(len, stored)) <= sum(map(len, frames)) * limits.stored_share_max
    return stored if fits else None


def little_endian_cells(transfer_syntax_uid: str) -> bool:
    """The byte order of native pixel cells."""
    syntax = lookup(transfer_syntax_uid)
    return syntax.little_endian and not syntax.big_endian_pixels


def pixel_format(attributes: Attributes) -> PixelFormat | None:
    """The shape of a frame's cells as an instance's attributes say, None when they do not."""
    rows, columns, bits = (_number(attributes, tag) for tag in (ROWS, COLUMNS, BITS_ALLOCATED))
    if rows is None or columns is None or bits is None:
        return None
    return PixelFormat(
        rows=rows,
        columns=columns,
        samples=_number(attributes, SAMPLES) or 1,
        bits_allocated=bits,
        bits_stored=_number(attributes, BITS_STORED) or bits,
        signed=_number(attributes, REPRESENTATION) == 1,
        planar=_number(attributes, PLANAR) == 1,
    )


def _number(attributes: Attributes, tag: int) -> int | None:
    try:
        return int(attributes.get(tag, ""))
    except ValueError:
        return None
