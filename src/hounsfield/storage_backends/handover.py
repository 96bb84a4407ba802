"""Pieces that one thread makes and another takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from hounsfield.storage_backends.api import Buffer

__all__ = ["GivenUpError", "Handover"]


class GivenUpError(Exception):
    """Whoever made the pieces has given up: what was made of them is to be thrown away."""


class Handover:
    """Hands pieces from the thread that makes them to the one that iterates, one at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._piece: Buffer | None = None
        self._ended = self._given_up = self._taker_left = False

    def give(self, piece: Buffer, wait_s: float | None = None) -> bool:
        """Return when the piece before was taken; False when nobody takes any more. ``TimeoutError``."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._piece is None or self._taker_left, wait_s):
                raise TimeoutError
            self._piece = piece
            self._changed.notify_all()
            return not self._taker_left

    def end(self) -> None:
        """That was the last piece."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def give_up(self) -> None:
        """There is no last piece: whoever takes gets ``GivenUpError``."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def taker_left(self) -> None:
        """Whoever took is done with it, or failed."""
        with self._changed:
            self._taker_left = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Buffer]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._piece is not None or self._ended or self._given_up)
                if self._given_up:
                    raise GivenUpError
                piece, self._piece = self._piece, None
                self._changed.notify_all()
            if piece is None:
                return
            yield piece
