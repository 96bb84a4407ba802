"""A study to which nothing was added for a while is *stable*: consumers may act on it as a whole."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from hounsfield.archive.engine.quiet import Consumer
from hounsfield.archive.index.indexing import EVENT_CONFLICT, EVENT_STORED
from hounsfield.archive.index.rows import Event

EVENT_STABLE = "study-stable"


async def _nobody(_: str) -> None:
    """Nobody else is to be told."""


def announcing_stable_studies(quiet_s: float, tell: Callable[[str], Awaitable[None]] = _nobody) -> Consumer:
    """Appends a ``study-stable`` event to the journal when a study has been quiet for so long.

    ``tell`` is called before with its UID; twice, if this process dies in between.
    """
    heeded = frozenset({EVENT_STORED, EVENT_CONFLICT})

    async def announce(study_uid: str) -> Event:
        await tell(study_uid)
        return Event(EVENT_STABLE, time.time_ns(), {"study": study_uid})

    return Consumer(EVENT_STABLE, quiet_s, heeded.__contains__, announce, lease_s=10.0, open_studies_max=None)
