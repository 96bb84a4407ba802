"""Going on after a write or a flush of an LMDB environment failed, without trusting what may not be there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Visitors", "rewrite_meta_pages"]

META_PAGES = 2
VISITORS_WAIT_S = 2.0  # snapshots are held for less than one


def rewrite_meta_pages(data_file: Path, page_bytes: int) -> None:
    """Write both meta pages of an environment again, as they are, and flush them; or ``OSError``.

    After a failed flush the kernel holds pages that it will not write any more. All that LMDB had left to
    later flushes is the last meta page (commits flush their data pages themselves, and those of the commit
    that failed are named by nothing); so it alone has to be made dirty again. The caller holds the
    environment's write lock.
    """
    descriptor = os.open(data_file, os.O_RDWR | os.O_CLOEXEC)
    try:
        pages = os.pread(descriptor, META_PAGES * page_bytes, 0)
        if os.pwrite(descriptor, pages, 0) != META_PAGES * page_bytes:
            raise OSError("a short write")
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


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
