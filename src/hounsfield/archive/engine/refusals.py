"""Frames that took long and were refused are not tried again for a while: the next refusal costs nothing.

A changed byte can keep a decoder busy for seconds. What it costs decides how long it is remembered, so that
however often such a frame is asked for, it takes a small share of a processor.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hounsfield.storage_backends.api import Buffer


@dataclass(frozen=True, slots=True)
class RefusalLimits:
    """``cost_s_min``: refusals that took less are cheap; starting a process takes half of it.

    ``times_cost``: so many times as long as it took one is remembered: it takes a fiftieth of a processor.
    ``kept_s_max``: and no longer: a frame may have been refused because the machine was busy.
    ``kept_max``: of so many frames; 0.5 MB. Those that were refused first are forgotten.
    """

    cost_s_min: float = 1.0
    times_cost: float = 50.0
    kept_s_max: float = 600.0
    kept_max: int = 4096


class Refusals:
    """What was refused lately, by what was asked. Any thread."""

    def __init__(
        self, limits: RefusalLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits or RefusalLimits()
        self._clock = clock
        self._lock = threading.Lock()
        self._until: OrderedDict[bytes, tuple[float, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def said(self, *asked: tuple[Buffer, ...]) -> str | None:
        """What one of these was refused with, None when that is not known or was long ago.

        Nothing is computed as long as nothing was refused.
        """
        if not self._until:
            return None
        for pieces in asked:
            key = _key(pieces)
            with self._lock:
                found = self._until.get(key)
                if found is not None and found[0] > self._clock():
                    return found[1]
        return None

    def remember(self, asked: tuple[Buffer, ...], said: str, cost_s: float) -> None:
        """It was refused, and that took so long."""
        limits = self.limits
        if cost_s < limits.cost_s_min:
            return
        key = _key(asked)
        with self._lock:
            self._until[key] = self._clock() + min(cost_s * limits.times_cost, limits.kept_s_max), said
            self._until.move_to_end(key)
            while len(self._until) > limits.kept_max:
                self._until.popitem(last=False)


def _key(pieces: tuple[Buffer, ...]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.digest()
