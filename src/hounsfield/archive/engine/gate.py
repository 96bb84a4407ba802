"""The one gate from the event loop to threads: a hop costs about 140 µs, so only what can block goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import trio

READERS_MAX = 8  # threads that wait for disks; more would only queue in the kernel
FAR_READERS_MAX = 32  # threads that wait for other tiers, which answer in milliseconds or not for a minute
STREAMS_MAX = 2  # large objects whose pieces are sealed and written at once: they share one disk

SWITCH_SECONDS = 0.0002
"""For ``sys.setswitchinterval`` in a process that stores. The commit thread gives up the interpreter's lock
at every seal, write and sync. While the event loop is busy it gets it back after this long; with Python's
5 ms one association alone was a third slower."""

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Gate:
    """Runs blocking calls on threads: a lane for heavy work, a few for reads and large objects.

    Reads of what lies in another tier have threads of their own: whoever waits for a bucket holds up nobody
    who reads from a disk.
    """

    def __init__(
        self,
        readers_max: int = READERS_MAX,
        *,
        is_far: Callable[[tuple[Any, ...]], bool] = lambda arguments: False,  # noqa: ARG005
    ) -> None:
        """``is_far``: whether a read with these arguments is of what lies in another tier."""
        self._is_far = is_far
        self._reads = trio.CapacityLimiter(readers_max)
        self._far_reads = trio.CapacityLimiter(FAR_READERS_MAX)
        self._heavy = trio.CapacityLimiter(1)
        self._streams = trio.CapacityLimiter(STREAMS_MAX)

    async def heavy(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Run ``function``, which may take a second or hundreds of megabytes, one such call at a time."""
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._heavy)

    async def stream(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Run ``function``, which writes a piece of a large object, or ends one; a few at a time."""
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._streams)

    async def read(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Run ``function`` beside other reads; its caller may be cancelled only when it has returned."""
        limiter = self._far_reads if self._is_far(arguments) else self._reads
        return await trio.to_thread.run_sync(function, *arguments, limiter=limiter)
