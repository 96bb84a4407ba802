"""What could not be done in one round of moves or recalls, said once for each tier, and not once a series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import structlog

__all__ = ["Troubles"]

log = structlog.get_logger(__name__)


class Troubles:
    """Of one round. One thread."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        """Tiers of which the round learned that they do not answer: nobody need ask them again in it."""
        self._series: Counter[str] = Counter()
        self._said: dict[str, str] = {}

    def note(self, tiers: Iterable[str], why: str) -> None:
        """A series stays as it is because of each of these tiers; ``why`` is kept of the first."""
        for tier in tiers:
            self._series[tier] += 1
            self._said.setdefault(tier, why)

    def say(self, event: str) -> None:
        """Log it, a line for each tier."""
        for tier, count in sorted(self._series.items()):
            log.warning(event, tier=tier, count=count, error=self._said[tier])
        self._series.clear()
        self._said.clear()
