"""Native frames are stored smaller, when an administrator asks for it, and come back bit for bit.

An object's frames are compressed on a thread before it is queued for its group's commit, so that a commit
never waits for a coder. Each compressed frame has been decoded and compared before the object is handed on;
what does not fit, does not shrink or does not come back is stored as received. Which coder, at what cost:
docs/decisions/0012-compression-on-ingest.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog
import trio

from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.engine.group_commit import Received
from hounsfield.archive.index.rows import Attributes
from hounsfield.codecs.at_rest import Encoding, compressed, name_of
from hounsfield.codecs.pixels import PixelFormat
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

ROWS, COLUMNS, SAMPLES, PLANAR = 0x00280010, 0x00280011, 0x00280002, 0x00280006
BITS_ALLOCATED, BITS_STORED, REPRESENTATION = 0x00280100, 0x00280101, 0x00280103
log = structlog.get_logger(__name__)

_NATIVE: Final = frozenset({Layout.NATIVE, Layout.UNDIVIDED_NATIVE})


@dataclass(frozen=True, slots=True)
class CompressionLimits:
    """What is compressed at all, and by how many at once.

    ``frame_bytes_min``: below it the head, the thread and the part outweigh what is saved.
    ``stored_share_max``: an object that shrinks less is stored as received, so that reading it costs nothing.
    ``threads_max``: of one worker; the coders let go of the GIL, and there is a worker for each core.
    """

    frame_bytes_min: int = 4096
    stored_share_max: float = 0.95
    threads_max: int = 2


@dataclass(slots=True)
class CompressionFigures:
    """Bytes of frames before and after, of objects that were stored smaller; objects that were not."""

    objects: int = 0
    bytes_received: int = 0
    bytes_stored: int = 0
    as_received: int = 0


@dataclass(slots=True)
class Compressing:
    """One worker's coders. ``encoding`` None: everything is stored as received."""

    encoding: Encoding | None = None
    limits: CompressionLimits = field(default_factory=CompressionLimits)
    figures: CompressionFigures = field(default_factory=CompressionFigures)
    _threads: trio.CapacityLimiter | None = None

    def wants(self, received: Received) -> bool:
        """Whether the object has frames that can be stored smaller."""
        row = received.row
        if self.encoding is None or Layout(row.layout) not in _NATIVE or row.quarantine:
            return False  # what is in quarantine is looked at as it came
        frames = received.slices[1:-1]
        return bool(frames) and len(frames[0]) >= self.limits.frame_bytes_min

    async def compress(self, received: Received, take_nowait: Callable[[int], bool]) -> Received:
        """The object as it is to be stored; what it was given when nothing can be gained.

        ``take_nowait`` takes memory from the budget of bytes in flight; without it there is no compressing.
        """
        if not self.wants(received):
            return received
        if not take_nowait(sum(map(len, received.slices[1:-1]))):
            self.figures.as_received += 1
            return received
        if self._threads is None:
            self._threads = trio.CapacityLimiter(self.limits.threads_max)
        return await trio.to_thread.run_sync(self.compress_blocking, received, limiter=self._threads)

    def compress_blocking(self, received: Received) -> Received:
        """As :meth:`compress`, on the caller's thread."""
        if not self.wants(received):
            return received
        assert self.encoding is not None
        row = received.row
        header, *frames, trailer = received.slices
        pixels = pixel_format(row.instance) if Layout(row.layout) is Layout.NATIVE else None
        little_endian = little_endian_cells(row.transfer_syntax_uid)
        total = sum(map(len, frames))
        figures = self.figures
        try:
            stored: list[Buffer] = [
                compressed(frame, self.encoding, pixels, little_endian=little_endian) for frame in frames
            ]
        except Exception as error:  # noqa: BLE001  no defect of a coder may cost an object
            log.warning("frames are stored as received: compressing them failed", error=type(error).__name__)
            figures.as_received += 1
            return received
        size = sum(map(len, stored))
        if size > total * self.limits.stored_share_max or any(len(one) != len(frames[0]) for one in frames):
            figures.as_received += 1
            return received
        figures.objects += 1
        figures.bytes_received += total
        figures.bytes_stored += size
        slices: Sequence[Buffer] = [header, *stored, trailer]
        named = msgspec.structs.replace(row, stored_as=name_of(self.encoding, len(frames[0])))
        return Received(named, slices, received.slices)


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
