"""Native frames are stored smaller, when an administrator asks for it, and come back bit for bit.

An object's frames are compressed on a thread before it is queued for its group's commit, so that a commit
never waits for a coder. Each compressed frame has been decoded and compared before the object is handed on;
what does not fit, does not shrink or does not come back is stored as received. Which coder, at what cost:
docs/decisions/0012-compression-on-ingest.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import trio

from hounsfield.archive.engine.group_commit import Received
from hounsfield.archive.index.smaller_frames import SmallerLimits, is_worth_it, smaller
from hounsfield.codecs.at_rest import Encoding, name_of
from hounsfield.storage_backends.api import Buffer


@dataclass(frozen=True, slots=True)
class CompressionLimits(SmallerLimits):
    """What is compressed at all, and by how many at once.

    ``threads_max``: of one worker; the coders let go of the GIL, and there is a worker for each core.
    """

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
        return self.encoding is not None and is_worth_it(received.row, received.slices[1:-1], self.limits)

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
        header, *frames, trailer = received.slices
        stored = smaller(received.row, frames, self.encoding, self.limits)
        figures = self.figures
        if stored is None:
            figures.as_received += 1
            return received
        figures.objects += 1
        figures.bytes_received += sum(map(len, frames))
        figures.bytes_stored += sum(map(len, stored))
        slices: Sequence[Buffer] = [header, *stored, trailer]
        named = msgspec.structs.replace(received.row, stored_as=name_of(self.encoding, len(frames[0])))
        return Received(named, slices, received.slices)
