"""What the leader of tiering is at, how far it is, and what it saved so far: rows that every worker reads.

The leader writes them while it works, at most every :data:`SAVE_S`. They are lost with an index; nothing
rests on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from hounsfield.archive.index.carrying import Pace
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot

__all__ = ["SUMMED", "Run", "TierProgress", "TieringFigures", "runs", "sums"]

SAVE_S: Final = 2.0
"""Between two notes of how far it is: one small row, which a person looks at."""
SILENT_S: Final = 60.0
"""A run of which nothing was heard for so long is nobody's: its process was killed. Frames of a large object
that are encoded anew may take half of that."""
_RUNS = b"tiering/progress"
_SUMS = b"tiering/sums"
_NS = 1_000_000_000

SUMMED: Final = (
    "series", "gathered_bytes", "packed_bytes", "copied_bytes", "freed_bytes", "recalled_series",
    "recalled_bytes", "expired_series", "verified_copies", "repaired_packs", "failures",
)  # fmt: skip
"""Figures that are summed up over all workers and starts."""


@dataclass(slots=True)
class TieringFigures:
    """What this worker's tiering did since its start. Bytes are of packs, as they lie."""

    series: int = 0
    gathered_objects: int = 0
    gathered_bytes: int = 0
    packed_bytes: int = 0
    copied_bytes: int = 0
    freed_bytes: int = 0
    recalled_series: int = 0
    recalled_bytes: int = 0
    prefetched_series: int = 0
    expired_series: int = 0
    held_series: int = 0
    removed_packs: int = 0
    verified_copies: int = 0
    repaired_packs: int = 0
    failures: int = 0
    away: set[str] = field(default_factory=set)
    """Tiers that did not answer in the last plan."""


class Run(msgspec.Struct, frozen=True):
    """One piece of leader work. ``bytes``: read and written by it, as its throttle counts them."""

    task: str  # "plan", "verify", "recall"
    began_ns: int
    at_ns: int
    ended_ns: int = 0
    bytes: int = 0
    looked: int = 0
    """Series that were looked at, of a plan."""
    figures: dict[str, int] = {}
    """What of :data:`SUMMED` it did."""

    def is_under_way(self, now_ns: int) -> bool:
        """Whether somebody is at it."""
        return not self.ended_ns and now_ns - self.at_ns < SILENT_S * _NS

    def plain(self, now_ns: int) -> dict[str, Any]:
        """As plain JSON, with times in seconds since 1970."""
        return {
            "task": self.task,
            "began": self.began_ns / _NS,
            "ended": self.ended_ns / _NS if self.ended_ns else None,
            "running": self.is_under_way(now_ns),
            "bytes": self.bytes,
            "looked": self.looked,
            **{name: self.figures.get(name, 0) for name in SUMMED},
        }


class TierProgress:
    """The leader's side, on its thread: says what it is at."""

    def __init__(
        self,
        store: KeyValueStore,
        figures: TieringFigures,
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._figures = figures
        self._clock = clock
        self._summed = dict.fromkeys(SUMMED, 0)  # of this process's figures: so much is in the row
        self._saved_ns = 0
        self._runs: dict[str, Run] = {}

    @contextmanager
    def of(self, task: str, pace: Pace) -> Iterator[tuple[Pace, Callable[[int], None]]]:
        """While a task runs: a pace that counts as well, and what is told how many series were looked at."""
        before = self._now_figures()
        began = self._clock()
        run = Run(task, began, began)

        def noted(*, ended: bool = False) -> None:
            now = self._clock()
            done = {name: value - before[name] for name, value in self._now_figures().items()}
            self._runs[task] = Run(task, began, now, now if ended else 0, moved, looked_at, done)
            # Of a tier that is away a recall is tried again and again: that is no news each time.
            is_end = ended and (moved or any(done.values()) or task != "recall")
            if is_end or now - self._saved_ns >= SAVE_S * _NS:
                self._save(now)

        moved = looked_at = 0
        self._runs[task] = run
        noted()

        def counted(length: int) -> None:
            nonlocal moved
            pace(length)
            moved += length
            noted()

        def looked(series: int) -> None:
            nonlocal looked_at
            looked_at = series
            noted()

        try:
            yield counted, looked
        finally:
            noted(ended=True)

    def save(self) -> None:
        """Keep what was done since, if anything."""
        if self._now_figures() != self._summed:
            self._save(self._clock())

    def _now_figures(self) -> dict[str, int]:
        return {name: getattr(self._figures, name) for name in SUMMED}

    def _save(self, now: int) -> None:
        figures = self._now_figures()
        batch = Batch(uses_reserve=True)
        with self._store.snapshot() as snapshot:
            total = sums(snapshot)
            kept = _runs(snapshot)
        for name, value in figures.items():
            total[name] += value - self._summed[name]
        batch.put(META, _SUMS, msgspec.json.encode(total))
        batch.put(META, _RUNS, msgspec.json.encode({**kept, **self._runs}))
        self._store.commit(batch)
        self._summed = figures
        self._saved_ns = now


def sums(snapshot: Snapshot) -> dict[str, int]:
    """What tiering did since the index was made, by name of :data:`SUMMED`."""
    held = snapshot.get(META, _SUMS)
    found = {} if held is None else msgspec.json.decode(held, type=dict[str, int])
    return {name: found.get(name, 0) for name in SUMMED}


def runs(snapshot: Snapshot, now_ns: int) -> dict[str, dict[str, Any]]:
    """The last run of each task, by its name, as plain values."""
    return {task: run.plain(now_ns) for task, run in _runs(snapshot).items()}


def _runs(snapshot: Snapshot) -> dict[str, Run]:
    held = snapshot.get(META, _RUNS)
    return {} if held is None else msgspec.json.decode(held, type=dict[str, Run])
