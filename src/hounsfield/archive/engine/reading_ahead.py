"""A viewer walks a series: the next frames are on their way before it asks for them.

Only what was not there at once teaches: frames that come from memory need no help, and cost nothing here.
Once a few neighbouring frames of a series were asked for in order, forward or backward, the disk is told of
those that follow (``WILLNEED``); where frames are transcoded, the next ones are made beforehand while a
decoder is idle. Several clients, or one with several connections, may walk together: neighbours may be a few
frames apart, since other workers may have been asked for those between.

One event loop's. Nothing here fails a request.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import structlog
import trio
from msgspec import structs

from hounsfield.archive.engine.types import Instance
from hounsfield.archive.index.rows import InstanceRow

log = structlog.get_logger(__name__)

Place = tuple[InstanceRow, int]
"""One frame: its instance's row, without attributes, and its number."""
Series = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ReadingAheadLimits:
    """``steps``: neighbours asked for in order before anything is done: two meet by chance.
    ``stride_max``: how far neighbours may be apart.
    ``frames_ahead``: of how many the disk is told: half a second of quick scrolling.
    ``made_ahead``: how many are made beforehand: each takes a decoder, and room in the cache.
    ``series_max``, ``instances_max``: series that are followed at once, the longest of them: 10 MB of rows.
    """

    steps: int = 3
    stride_max: int = 4
    frames_ahead: int = 16
    made_ahead: int = 2
    series_max: int = 8
    instances_max: int = 2000


@dataclass(slots=True)
class ReadingAheadFigures:
    """Frames of which the disk was told, and frames that were made, before they were asked for."""

    announced: int = 0
    made: int = 0


class _Walk:
    """What is asked for of one series. ``rows`` is empty until somebody has looked."""

    __slots__ = ("early", "first", "follows", "recent", "rows", "starts", "syntax", "until")

    def __init__(self, limits: ReadingAheadLimits) -> None:
        self.early: dict[tuple[str, int], None] = {}
        self.first: dict[str, int] = {}
        self.rows: list[InstanceRow] = []
        self.starts: list[int] = []
        self.recent: deque[int] = deque(maxlen=limits.steps)
        self.until: int | None = None  # the furthest position that the disk was told of
        self.follows = True  # not when the series is too long
        self.syntax = ""  # in which the frames are wanted, when not as stored

    def fill(self, found: Sequence[Instance]) -> None:
        """Take in the order of a series."""
        at = 0
        for one in found:
            self.first[one.row.sop_uid] = at
            self.rows.append(structs.replace(one.row, attributes={}))
            self.starts.append(at)
            at += max(1, one.row.location.frames)
        self.starts.append(at)
        for sop_uid, number in self.early:
            self.step(sop_uid, number)

    def step(self, sop_uid: str, number: int) -> bool:
        """A frame was asked for; False when it has no place in the series."""
        first = self.first.get(sop_uid)
        if first is None:
            return False
        position = first + number - 1
        if not self.recent or self.recent[-1] != position:
            self.recent.append(position)
        return True

    def direction(self, limits: ReadingAheadLimits) -> int:
        """1 forward, -1 backward, 0 when the last steps were not neighbours in order."""
        if len(self.recent) < limits.steps:
            return 0
        strides = [after - before for before, after in pairwise(self.recent)]
        if all(1 <= stride <= limits.stride_max for stride in strides):
            return 1
        return -1 if all(1 <= -stride <= limits.stride_max for stride in strides) else 0

    def ahead(self, direction: int, count: int) -> range:
        """The next positions, so many at most."""
        last = self.recent[-1]
        if direction > 0:
            return range(last + 1, min(last + 1 + count, self.starts[-1]))
        return range(last - 1, max(last - 1 - count, -1), -1)

    def untold(self, direction: int, limits: ReadingAheadLimits) -> range:
        """The positions ahead of which the disk was not told, none while it knows enough of them."""
        ahead = self.ahead(direction, limits.frames_ahead)
        known = 0 if self.until is None else (self.until - self.recent[-1]) * direction
        if not 0 < known <= limits.frames_ahead:
            return ahead  # a new walk, or one that turned round
        return ahead[known:] if known <= limits.frames_ahead // 2 else ahead[:0]

    def place(self, position: int) -> Place:
        """What stands at a position."""
        index = bisect_right(self.starts, position) - 1
        return self.rows[index], position - self.starts[index] + 1


class ReadingAhead:
    """Watches which frames are asked for: call :meth:`asked` for each. :meth:`run` does the work.

    ``instances``: those of a series, in order. ``announce``: tell the disk of those of these
    frames that are not in memory, and say of how many. ``make``: have a frame
    transcoded into the cache. ``idle``: whether a decoder has nothing to do.
    """

    def __init__(
        self,
        *,
        instances: Callable[[str, str], Awaitable[Sequence[Instance]]],
        announce: Callable[[Sequence[Place]], Awaitable[int]],
        make: Callable[[str, str, str, int, str], Awaitable[object]],
        idle: Callable[[], bool],
        limits: ReadingAheadLimits | None = None,
    ) -> None:
        self._instances = instances
        self._announce = announce
        self._make = make
        self._idle = idle
        self._limits = limits or ReadingAheadLimits()
        self._walks: OrderedDict[Series, _Walk] = OrderedDict()
        self._give, self._take = trio.open_memory_channel[Series](self._limits.series_max)
        self._making = trio.CapacityLimiter(1)
        self.figures = ReadingAheadFigures()

    def asked(self, instance: Instance, number: int, *, at_once: bool, syntax: str = "") -> None:
        """A frame was asked for. ``at_once``: it was in memory. ``syntax``: it had to be transcoded."""
        series = (instance.study_uid, instance.series_uid)
        walk = self._walks.get(series)
        if walk is None:
            if at_once:
                return
            walk = self._walks[series] = _Walk(self._limits)
            if len(self._walks) > self._limits.series_max:
                self._walks.popitem(last=False)
        if not walk.follows:
            return
        walk.syntax = syntax
        if not walk.rows:
            walk.early[instance.row.sop_uid, number] = None
            if len(walk.early) > self._limits.steps:
                del walk.early[next(iter(walk.early))]
            if len(walk.early) == self._limits.steps:
                self._tell(series)
            return
        if not walk.step(instance.row.sop_uid, number):
            del self._walks[series]  # it has changed
            return
        direction = walk.direction(self._limits)
        if direction and (syntax or walk.untold(direction, self._limits)):
            self._tell(series)

    def _tell(self, series: Series) -> None:
        with suppress(trio.WouldBlock):  # nobody waits for it: the next frame tells again
            self._give.send_nowait(series)

    async def run(self) -> None:
        """Read ahead for all walks, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for series in self._take:
                walk = self._walks.get(series)
                if walk is None:
                    continue
                self._walks.move_to_end(series)
                try:
                    await self._go_ahead(series, walk, nursery)
                except Exception as error:  # noqa: BLE001 - a hint: whoever asks is told what is wrong
                    log.debug("reading ahead failed", error=type(error).__name__)
                    self._walks.pop(series, None)

    async def _go_ahead(self, series: Series, walk: _Walk, nursery: trio.Nursery) -> None:
        limits = self._limits
        if not walk.rows:
            found = await self._instances(*series)
            if len(found) > limits.instances_max:
                walk.follows = False
                return
            walk.fill(found)
        direction = walk.direction(limits)
        if not direction:
            return
        untold = walk.untold(direction, limits)
        if untold:
            walk.until = untold[-1]
            told = await self._announce([walk.place(position) for position in untold])
            self.figures.announced += told
            if not told and not walk.syntax:  # all in memory: what is missed later begins anew
                self._walks.pop(series, None)
                return
        if walk.syntax and not self._making.borrowed_tokens:
            wanted = [walk.place(position) for position in walk.ahead(direction, limits.made_ahead)]
            nursery.start_soon(self._make_all, series, wanted, walk.syntax)

    async def _make_all(self, series: Series, wanted: Sequence[Place], syntax: str) -> None:
        async with self._making:
            for row, number in wanted:
                if not self._idle():
                    return
                try:
                    if await self._make(*series, row.sop_uid, number, syntax):
                        self.figures.made += 1
                except Exception as error:  # noqa: BLE001 - as above
                    log.debug("making a frame ahead failed", error=type(error).__name__)
                    return
