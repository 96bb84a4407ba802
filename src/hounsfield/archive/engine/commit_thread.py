"""The one thread on which a worker's commits happen.

It lives as long as the worker takes objects, and is handed its work and hands back its results by one
queue operation each: half of what a general hop to a thread costs, on a path that every object takes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import outcome
import trio

Work = TypeVar("Work")
Result = TypeVar("Result")


class CommitThread(Generic[Work, Result]):
    """Runs ``function`` on its own thread, one piece of work at a time, in order."""

    def __init__(self, function: Callable[[Work], Result], name: str) -> None:
        self._function = function
        self._queue: queue.SimpleQueue[tuple[Work, Callable[[outcome.Outcome[Result]], None]] | None] = (
            queue.SimpleQueue()
        )
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Work, done: Callable[[outcome.Outcome[Result]], None]) -> None:
        """Have ``function(work)`` run; ``done`` is then called on the event loop, with what came of it."""
        self._queue.put((work, done))

    def stop(self) -> None:
        """End the thread when what was submitted is done; does not wait."""
        self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            work, done = item
            result = outcome.capture(self._function, work)
            try:
                self._token.run_sync_soon(done, result)
            except trio.RunFinishedError:  # the process is ending: nobody waits any more
                return
            del item, work, done, result  # their buffers belong to the event loop again
