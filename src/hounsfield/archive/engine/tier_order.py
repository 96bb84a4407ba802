"""A plan in the order in which it is to be carried out, in bounded memory.

Where the hot tier is too full, what was opened longest ago goes first, as whoever set the mark expects; of
all else the oldest studies do. A plan may be of every series of an archive, so no more of it is remembered
than :data:`REMEMBERED` keys; the rest is found by walking again. Each series is planned anew when it is its
turn: hours may have passed, in which somebody opened it, or enough became free.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Final

from hounsfield.archive.engine.tier_planning import RANK_BYTES, SeriesTask, TierPlanning
from hounsfield.archive.engine.tier_rules import Surroundings
from hounsfield.storage_backends.api import KeyValueStore

__all__ = ["REMEMBERED", "in_order"]

REMEMBERED: Final = 50_000
"""Series of one walk, some 10 MB. A first plan of a million series walks twenty times, 40 s each, in days."""


def in_order(
    planning: TierPlanning,
    store: KeyValueStore,
    around: Callable[[], Surroundings],
    clock: Callable[[], int],
    *,
    between: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda _: None,
    remembered: int = REMEMBERED,
) -> Iterator[SeriesTask]:
    """Every series of which something is to be done, in order, each as it is when it is its turn.

    A task is over when the next one is asked for; ``around`` is then asked anew. ``between`` is called
    once for each page of series that is looked at, and may raise; ``progress``, with how many series need
    nothing or had their turn. A series is given once, also when it is as before.
    """
    after, looked, waiting = b"", 0, 0
    is_first = True

    def ranks(now: Surroundings) -> Iterator[bytes]:
        nonlocal looked, waiting
        page_after: bytes | None = None
        while True:
            between()
            page = planning.page(store, now, clock(), page_after)
            if is_first:
                looked += page.looked
                waiting += len(page.tasks)
                progress(looked - waiting)
            yield from (task.rank for task in page.tasks if task.rank > after)
            page_after = page.after
            if page_after is None:
                return

    while True:
        now = around()
        turn = heapq.nsmallest(remembered, ranks(now))
        is_first = False
        for number, rank in enumerate(turn):
            if not number % 100:
                between()
            task = planning.task_of(store, now, clock(), rank[RANK_BYTES:])
            if task is not None:
                yield task
                now = around()
            waiting = max(0, waiting - 1)
            progress(looked - waiting)
        if len(turn) < remembered:
            return
        after = turn[-1]
