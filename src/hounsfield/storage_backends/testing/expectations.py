"""What the suites share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["raises", "run_all"]


@contextmanager
def raises(*errors: type[BaseException]) -> Iterator[None]:
    """The block must raise one of ``errors``."""
    try:
        yield
    except errors:
        return
    raise AssertionError(f"expected {' or '.join(error.__name__ for error in errors)}")


def run_all(jobs: list[Callable[[], None]]) -> None:
    """Run every job in a thread of its own, at once, and wait for all."""
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
