"""pynetdicom's reactor thread is really paused while a request waits for its response.

As it comes (3.0) an association counts as paused a moment longer than its reactor waits: on a busy machine
the reactor then takes the response that a request waits for, and the request times out; and a release
overtakes the answer that the reactor is about to send. Not ours to test.
"""

from __future__ import annotations

import threading
from typing import Any

from pynetdicom.association import Association


class _Checkpoint(threading.Event):
    """Knows whether somebody waits for it, and lets nobody pass who was told of a moment that is over."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()
        self.holds = False

    def clear(self) -> None:
        with self._turn:
            super().clear()

    def wait(self, timeout: float | None = None) -> bool:
        while True:
            with self._turn:
                self.holds = not self.is_set()
            if not self.holds:
                return True
            super().wait(timeout)


def _is_paused(association: Any) -> bool:
    # What the reactor itself runs (a C-GET SCP that sends C-STORE requests) has nobody to wait for.
    own = threading.current_thread() is association
    return bool(own or association._kill or association._reactor_checkpoint.holds)


def mend() -> None:
    """Have every association made from here on pause so."""
    if isinstance(vars(Association).get("_is_paused"), property):
        return
    begin = Association.__init__

    def made(self: Any, *arguments: Any, **more: Any) -> None:
        begin(self, *arguments, **more)
        self._reactor_checkpoint = _Checkpoint()
        self._reactor_checkpoint.set()

    Association.__init__ = made  # type: ignore[method-assign]
    Association._is_paused = property(_is_paused, lambda self, value: None)  # type: ignore[assignment]
