"""Opening an LMDB environment again, after a write failed, under nobody who uses it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Visitors"]

VISITORS_WAIT_S = 2.0  # snapshots are held for less than one


class Visitors:
    """Who uses an environment at the moment, so that it can be closed and opened again under nobody."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Use the environment; waits while it is being opened again."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        with self._changed:
            if self._closed:
                self._changed.wait_for(lambda: not self._closed, 2 * VISITORS_WAIT_S)
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if self._closed:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether all have left within two seconds; then nobody comes in until the end of the block."""
        with self._changed:
            self._closed = True
            left = self._changed.wait_for(lambda: not self._inside, VISITORS_WAIT_S)
        try:
            yield left
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()
