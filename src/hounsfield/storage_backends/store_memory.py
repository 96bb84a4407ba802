"""What is remembered of a store that is away: whoever comes next is told so at once, and one looks again.

Without it each reader of a bucket that hangs waits for it as long as the first one did, one after the other,
and the threads that wait are the ones that other tiers are read with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from hounsfield.storage_backends.errors import StorageError, StoreFullError
from hounsfield.storage_backends.object_store import (
    ObjectStore,
    StoreAwayError,
    StoreKnownAwayError,
    StoreRefusedError,
    TierMarkerMissingError,
)
from hounsfield.storage_backends.store_wrappers import AroundStore

__all__ = ["MemoryLimits", "Remembering"]

T = TypeVar("T")
_WRITES = {"put", "delete"}
_ANSWERS = (StoreRefusedError, TierMarkerMissingError, StoreFullError)  # at once, and of the store as a whole


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """When a store counts as away, and for how long it is then left alone."""

    away_after_s: float = 60
    """Without a call that went well, since the first that failed: the patience of one call, which so is spent
    once and not by everybody."""

    quiet_s: float = 5
    """Between two looks whether a store is back, of one caller each. As long as clients of the web interface
    are asked to wait: who comes back then may be the one who looks."""

    doubted_s: float = 300
    """For so long after its last failure a store is asked last by those who have a choice: one reader in five
    minutes finds out whether it is back, and at worst waits for one request in vain."""

    slow_s: float = 5
    """A read under way for longer makes those who have a choice go elsewhere. Of at most 4 MiB: a store that
    is well takes less, also across an ocean."""


@dataclass(slots=True)
class _Memory:
    """Of reads, or of writes: a bucket that takes nothing may still give."""

    well_at: float = float("-inf")
    """When a call went well last."""
    away_since: float | None = None
    """When the first call began that failed, if none went well since."""
    failed_at: float = 0.0
    last: StorageError | None = None
    """What was said last, if it was a failure of the store as a whole."""
    is_probed: bool = False
    under_way: dict[int, float] = field(default_factory=dict)
    """Since when, by call."""


class Remembering(AroundStore):
    """Remembers that its store is away, across calls and threads; ``StoreKnownAwayError`` says so at once.

    Goes inside of :class:`~hounsfield.storage_backends.store_wrappers.Retrying`: what is only troubled is
    asked again as ever, by everybody, until it was away for as long as one call would be patient. From then
    on one call at a time, every few seconds, finds out whether it is back; what it learns holds for all.
    """

    def __init__(
        self,
        store: ObjectStore,
        limits: MemoryLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(store)
        self._limits = limits or MemoryLimits()
        self._clock = clock
        self._lock = threading.Lock()
        self._reads = _Memory()
        self._writes = _Memory()
        self._number = 0

    def trouble(self) -> StorageError | None:
        """What the store as a whole failed with last: away, refused, full; None: the last calls went well."""
        with self._lock:
            return self._reads.last or self._writes.last

    def is_doubtful(self) -> bool:
        """Whether a reader who has a choice had better ask elsewhere first."""
        now = self._clock()
        with self._lock:
            memory = self._reads
            if memory.last is not None and now - memory.failed_at < self._limits.doubted_s:
                return True
            begun = next(iter(memory.under_way.values()), now)
            return now - begun >= self._limits.slow_s

    def _call(self, operation: str, act: Callable[[], T]) -> T:
        memory = self._writes if operation in _WRITES else self._reads
        with self._lock:
            began = self._clock()
            probes = self._look_again(memory, began)
            self._number = number = self._number + 1
            memory.under_way[number] = began
        failure: StorageError | None = None
        is_of_store = True
        try:
            return act()
        except (StoreAwayError, *_ANSWERS) as error:
            failure = error
            if probes and not isinstance(error, _ANSWERS):
                raise StoreKnownAwayError(str(error)) from error  # nobody was patient with it any more
            raise
        except StorageError:
            raise  # of this object: the store answered
        except BaseException:
            is_of_store = False  # what was to be put was not to be had: nothing was learned
            raise
        finally:
            with self._lock:
                del memory.under_way[number]
                if probes:
                    memory.is_probed = False
                if is_of_store:
                    self._learn(memory, began, failure)

    def _look_again(self, memory: _Memory, now: float) -> bool:
        """Whether this call is the one that looks; ``StoreKnownAwayError`` when it is not to be made."""
        since = memory.away_since
        if since is None or now - since < self._limits.away_after_s:
            return False
        if memory.is_probed or now - memory.failed_at < self._limits.quiet_s:
            raise StoreKnownAwayError(str(memory.last))
        memory.is_probed = True
        return True

    def _learn(self, memory: _Memory, began: float, failure: StorageError | None) -> None:
        now = self._clock()
        if failure is None:
            memory.well_at = now
            memory.away_since = memory.last = None
            return
        memory.failed_at = now
        memory.last = failure
        if isinstance(failure, _ANSWERS):
            memory.away_since = None  # nobody waits for what it says
        elif memory.away_since is None:
            memory.away_since = max(began, memory.well_at)
