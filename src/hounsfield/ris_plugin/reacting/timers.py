"""What time alone makes happen: alerts for what waits too long, and the end of locks that nobody uses."""

from __future__ import annotations

from typing import Final

import trio

from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin import tracking
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import seconds
from hounsfield.ris_plugin.records.reports import REPORT

__all__ = ["look", "run"]

LOOK_SECONDS: Final = 15.0
LOOK_MAX: Final = 500
"""Of each kind in one transaction, which others wait for; the rest in the next one."""


async def run(ris: Ris) -> None:
    """Look now and then, until cancelled."""
    while True:
        while await look(ris):
            pass
        await trio.sleep(LOOK_SECONDS)


async def look(ris: Ris) -> bool:
    """Tell of what waits too long, and end locks that ran out; whether there may be more."""
    with ris.reading() as view:
        late = list(tracking.late(view, ris.settings, ris.now_ns(), limit=LOOK_MAX))
        locked = view.ids(REPORT, "locked", "", at_most=seconds(ris.now_ns()), limit=LOOK_MAX)
    if not late and not locked:
        return False

    def plan(change: Change) -> int:
        for tracked_id, _, why in late:
            tracking.alert(change, tracked_id, why)
        return sum(reporting.unlock(change, one) for one in locked if change.version(REPORT, one))

    ended = await ris.commit(plan)
    return len(late) >= LOOK_MAX or (len(locked) == LOOK_MAX and ended > 0)
