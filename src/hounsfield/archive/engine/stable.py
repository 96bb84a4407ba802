"""A study to which nothing was added for a while is *stable*: consumers may act on it as a whole."""

from __future__ import annotations

import time

from hounsfield.archive.engine.quiet import Consumer
from hounsfield.archive.index.indexing import EVENT_CONFLICT, EVENT_STORED
from hounsfield.archive.index.rows import Event

EVENT_STABLE = "study-stable"


def announcing_stable_studies(quiet_s: float) -> Consumer:
    """Appends a ``study-stable`` event to the journal when a study has been quiet for so long."""
    heeded = frozenset({EVENT_STORED, EVENT_CONFLICT})
    return Consumer(
        EVENT_STABLE, quiet_s, heeded.__contains__, _announce, lease_s=10.0, open_studies_max=None
    )


async def _announce(study_uid: str) -> Event:
    return Event(EVENT_STABLE, time.time_ns(), {"study": study_uid})
