"""Fresh studies are merged into the search index, by one worker at a time, out of everybody's way.

Held by a lease like all leader work. A round is a series of short commits
(:mod:`hounsfield.archive.index.merging`); after each the merger rests for twice as long as that took, because
it competes with those who store for the index's one writer and for the interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator

import structlog
import trio

from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.leadership import Leadership
from hounsfield.archive.index.merging import Merger
from hounsfield.storage_backends.api import KeyValueStore
from hounsfield.storage_backends.errors import PreconditionError, StorageError

LEASE = "gram-merging"
LEASE_S = 10.0
PAUSE_S = 2.0  # between rounds: studies gather meanwhile, and share the blocks that change
REST_RATIO = 2.0  # rest this many times as long as the step before took
REST_S_MAX = 0.2

log = structlog.get_logger(__name__)


class GramMerging:
    """Runs in every worker; the lease lets one of them work."""

    def __init__(self, store: KeyValueStore, merger: Merger, gate: Gate, *, owner: str) -> None:
        self._merger = merger
        self._gate = gate
        self._leadership = Leadership(store, gate, LEASE, owner=owner, lease_s=LEASE_S)
        self.merged = 0

    async def run(self) -> None:
        """Work until cancelled. Fresh studies are found also when they cannot be merged."""
        failing = False
        async with self._leadership:
            while True:
                try:
                    if await self._leadership.lead():
                        await self._round()
                    failing = False
                except PreconditionError:
                    pass  # another worker leads now; whatever was begun, it does again
                except (StorageError, ValueError) as error:  # full, damaged, or a newer version's
                    if not failing:
                        log.warning(
                            "fresh studies are not merged now, searches take longer", error=str(error)
                        )
                    failing = True
                await trio.sleep(PAUSE_S)

    async def _round(self) -> None:
        steps = self._merger.round()
        while True:
            began = trio.current_time()
            done = await self._gate.read(_next_step, steps)
            if done is None:
                return
            self.merged += done
            await trio.sleep(min(REST_S_MAX, (trio.current_time() - began) * REST_RATIO))
            if not await self._leadership.lead():
                return


def _next_step(steps: Iterator[int]) -> int | None:
    return next(steps, None)
