"""Stretches of blobs that are far away, kept in memory in blocks: fetched once however many ask, and ahead
of whoever reads on.

What a frame's reader asks for is one request to the store, rounded out to blocks. Who reads from front to
back is noticed, and what comes next is fetched meanwhile, in ever larger stretches, as a kernel does for
files. Bytes are kept as the store gave them: whether they are right, the seals say.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import ShortReadError

__all__ = ["RangeCache", "RangeCacheLimits"]

TRAILS_MAX = 256  # readers whose last place is remembered; a further one reads without reading ahead at first

Fetch = Callable[[str, int, int], Buffer]
"""Exactly so many bytes of a blob from an offset, or an error."""


@dataclass(frozen=True, slots=True)
class RangeCacheLimits:
    """What one process keeps and fetches."""

    bytes_max: int = 64 << 20
    """Kept in memory; what was not asked for longest goes first. A CT series as HTJ2K twice over."""

    block_bytes: int = 64 << 10
    """The grain. A header comes with its neighbours, and a frame with 64 KiB too much on average."""

    ahead_bytes_max: int = 16 << 20
    """Fetched ahead of one reader at most: at 1 GB/s and 10 ms away that is what is on its way."""

    request_bytes_max: int = 2 << 20
    """Of one request ahead: who catches up with it waits for all of it, and shorter ones are slower. The
    longest waits of a fast reader: 47 ms with 4 MiB, 25 ms with 2 MiB, 38 ms with 1 MiB."""

    requests: int = 4
    """Ahead, at the same time: one connection of many stores gives a quarter of what they have."""


class _Run:
    """Blocks of one blob on their way. ``error`` is said when ``done``."""

    __slots__ = ("done", "error", "first", "last", "name")

    def __init__(self, name: str, first: int, last: int) -> None:
        self.name = name
        self.first = first
        self.last = last
        self.done = threading.Event()
        self.error: BaseException | None = None


@dataclass(slots=True)
class _Trail:
    """Where a blob was read last, and how far ahead was fetched for that."""

    at: int
    window: int = 0


class RangeCache:
    """Reads stretches of distant blobs. Any number of threads at once.

    ``fetch`` asks a store; ``size`` says how long a blob is, without asking anyone.
    """

    def __init__(
        self, fetch: Fetch, size: Callable[[str], int], limits: RangeCacheLimits | None = None
    ) -> None:
        self._fetch = fetch
        self._size = size
        self._limits = limits or RangeCacheLimits()
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], memoryview] = OrderedDict()
        self._held_bytes = 0
        self._under_way: dict[tuple[str, int], _Run] = {}
        self._trails: OrderedDict[str, _Trail] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False
        self._counts = {"requests": 0, "bytes": 0, "hits": 0, "misses": 0, "waits": 0}

    # ------------------------------------------------------------ reading

    def try_read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> bool:
        """Fill ``buffer`` from memory and return True, or return False at once."""
        view = memoryview(buffer).cast("B")
        with self._lock:
            held: dict[int, memoryview] = {}
            for block in self._blocks_of(offset, len(view)):
                found = self._blocks.get((name, block))
                if found is None:
                    return False
                held[block] = found
            for block in held:
                self._blocks.move_to_end((name, block))
            self._counts["hits"] += 1
        self._copy(held, offset, view)
        return True

    def read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``; what is not here is fetched, by one of those who want it. Raises as ``fetch``."""
        view = memoryview(buffer).cast("B")
        if not len(view):
            return
        size = self._size(name)
        if offset + len(view) > size:
            raise ShortReadError(
                f"blob {name!r} ends {offset + len(view) - size} bytes before the range does"
            )
        held: dict[int, memoryview] = {}
        asked = False
        while True:
            mine, others = self._claim(name, self._blocks_of(offset, len(view)), held)
            if not mine and not others:
                break
            asked = True
            try:
                while mine:
                    self._bring(mine[0], size, held)
                    del mine[0]
            except BaseException as error:
                for run in mine[1:]:  # the first one was given up by the one who brought it
                    self._give_up(run, error)
                raise
            for run in others:
                run.done.wait()  # when it failed, the next round fetches it itself
        with self._lock:
            self._counts["misses" if asked else "hits"] += 1
        self._copy(held, offset, view)
        self._follow(name, offset, offset + len(view), size)

    def read_ahead(self, name: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Have stretches (offset, length) fetched in the background. Never fails, never waits."""
        size = self._size(name)
        blocks: list[int] = []
        room = self._limits.ahead_bytes_max // self._limits.block_bytes
        for offset, length in ranges:
            blocks += self._blocks_of(offset, min(length, size - offset))
            if len(blocks) >= room:
                break
        self._bring_ahead(name, sorted(set(blocks))[:room], size)

    def forget(self, name: str) -> None:
        """Drop what is held of a blob: it was wrong, or is not needed any more."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == name]:
                self._held_bytes -= len(self._blocks.pop(key))
            self._trails.pop(name, None)

    def statistics(self) -> dict[str, int]:
        """Requests to stores and their bytes; reads that took none, some; bytes held."""
        with self._lock:
            return {**self._counts, "held_bytes": self._held_bytes}

    def close(self) -> None:
        """Fetch nothing more in the background."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------ blocks

    def _blocks_of(self, offset: int, length: int) -> range:
        grain = self._limits.block_bytes
        return range(offset // grain, -(-(offset + length) // grain) if length > 0 else offset // grain)

    def _copy(self, held: dict[int, memoryview], offset: int, view: memoryview) -> None:
        grain = self._limits.block_bytes
        at = 0
        for block in self._blocks_of(offset, len(view)):
            begin = offset + at - block * grain
            piece = held[block][begin : begin + len(view) - at]
            view[at : at + len(piece)] = piece
            at += len(piece)

    def _claim(
        self, name: str, blocks: Iterable[int], held: dict[int, memoryview]
    ) -> tuple[list[_Run], list[_Run]]:
        """Take what is here into ``held``; the runs that the caller is to bring now, and those of others."""
        mine: list[_Run] = []
        others: list[_Run] = []
        longest = self._limits.ahead_bytes_max // self._limits.block_bytes
        with self._lock:
            for block in blocks:
                if block in held:
                    continue
                key = name, block
                found = self._blocks.get(key)
                if found is not None:
                    self._blocks.move_to_end(key)
                    held[block] = found
                    continue
                run = self._under_way.get(key)
                if run is not None:
                    if run not in others:
                        others.append(run)
                    self._counts["waits"] += 1
                    continue
                if mine and mine[-1].last == block - 1 and block - mine[-1].first < longest:
                    mine[-1].last = block
                else:
                    mine.append(_Run(name, block, block))
                self._under_way[key] = mine[-1]
        return mine, [run for run in others if run not in mine]

    def _bring(self, run: _Run, size: int, held: dict[int, memoryview] | None = None) -> None:
        grain = self._limits.block_bytes
        start, stop = run.first * grain, min((run.last + 1) * grain, size)
        try:
            data = memoryview(self._fetch(run.name, start, stop - start)).cast("B")
            if len(data) != stop - start:
                raise ShortReadError(f"a store gave {len(data)} of {stop - start} bytes of blob {run.name!r}")
        except BaseException as error:
            self._give_up(run, error)
            raise
        with self._lock:
            self._counts["requests"] += 1
            self._counts["bytes"] += len(data)
            for block in range(run.first, run.last + 1):
                # A copy: a view would keep the whole stretch in memory for one block of it.
                piece = memoryview(bytes(data[block * grain - start : (block + 1) * grain - start]))
                if held is not None:
                    held[block] = piece
                old = self._blocks.pop((run.name, block), None)
                self._held_bytes += len(piece) - (0 if old is None else len(old))
                self._blocks[run.name, block] = piece
                self._under_way.pop((run.name, block), None)
            while self._held_bytes > self._limits.bytes_max:
                _, gone = self._blocks.popitem(last=False)
                self._held_bytes -= len(gone)
        run.done.set()

    def _give_up(self, run: _Run, error: BaseException) -> None:
        with self._lock:
            for block in range(run.first, run.last + 1):
                self._under_way.pop((run.name, block), None)
        run.error = error
        run.done.set()

    # ------------------------------------------------------------ ahead

    def _follow(self, name: str, start: int, stop: int, size: int) -> None:
        """Notice who reads on, and fetch ahead of them."""
        grain = self._limits.block_bytes
        with self._lock:
            trail = self._trails.get(name)
            if trail is None:
                trail = self._trails[name] = _Trail(-1)
                if len(self._trails) > TRAILS_MAX:
                    self._trails.popitem(last=False)
            self._trails.move_to_end(name)
            goes_on = 0 <= start - trail.at < grain and trail.at >= 0
            trail.at = stop
            if not goes_on:
                trail.window = 0
                return
            trail.window = min(max(2 * trail.window, 4 * grain), self._limits.ahead_bytes_max)
            near = self._blocks_of(stop, min(trail.window // 2, size - stop))
            if all((name, block) in self._blocks or (name, block) in self._under_way for block in near):
                return
            wanted = self._blocks_of(stop, min(trail.window, size - stop))
        self._bring_ahead(name, wanted, size)

    def _bring_ahead(self, name: str, blocks: Iterable[int], size: int) -> None:
        limits = self._limits
        each = min(limits.request_bytes_max, limits.ahead_bytes_max // limits.requests)
        per_request = max(1, each // limits.block_bytes)
        with self._lock:
            if self._closed:
                return
            runs: list[_Run] = []
            for block in blocks:
                if (name, block) in self._blocks or (name, block) in self._under_way:
                    continue
                if runs and runs[-1].last == block - 1 and block - runs[-1].first < per_request:
                    runs[-1].last = block
                else:
                    runs.append(_Run(name, block, block))
                self._under_way[name, block] = runs[-1]
            if runs and self._threads is None:
                self._threads = ThreadPoolExecutor(self._limits.requests, thread_name_prefix="far-reads")
            threads = self._threads
            for run, handed in self._handed(threads, runs, size):
                if not handed:
                    for block in range(run.first, run.last + 1):
                        self._under_way.pop((name, block), None)
                    run.done.set()

    def _handed(
        self, threads: ThreadPoolExecutor | None, runs: list[_Run], size: int
    ) -> Iterator[tuple[_Run, bool]]:
        for run in runs:
            try:
                if threads is None:
                    raise RuntimeError("closed")
                threads.submit(self._bring_quietly, run, size)
            except RuntimeError:  # shut down in this moment
                yield run, False
            else:
                yield run, True

    def _bring_quietly(self, run: _Run, size: int) -> None:
        with contextlib.suppress(Exception):  # whoever reads there is told
            self._bring(run, size)
