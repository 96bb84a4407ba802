"""What the leader looks after: messages that still wait although what they waited for came, and old ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import trio

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.hl7.appointing import AWAITS_APPOINTMENT
from hounsfield.ris_plugin.hl7.receiving import Receiver
from hounsfield.ris_plugin.records.base import NS, seconds
from hounsfield.ris_plugin.records.messages import LETTER, MESSAGE, RECEIVED, SENT
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.schedule import APPOINTMENT

__all__ = ["keep", "settle_all", "tidy"]

LOOK_S: Final = 600.0
TOGETHER_MAX: Final = 200
"""Records that are removed in one transaction: others wait for it meanwhile."""
DAY_NS: Final = 24 * 3600 * NS


async def keep(ris: Ris, receivers: Mapping[str, Receiver]) -> None:
    """Look every ten minutes, until cancelled; at first at once, since whoever led before may have died."""
    while True:
        await settle_all(ris, receivers)
        while await ris.commit(partial(tidy, ris)):
            pass
        await trio.sleep(LOOK_S)


async def settle_all(ris: Ris, receivers: Mapping[str, Receiver]) -> None:
    """Apply what waits for what is there: it came, and the worker died before it looked who waited for it."""
    with ris.reading() as view:
        found = {
            (one.listener, one.awaits)
            for _, one in view.find(LETTER, "state", "waiting")
            if _is_there(view, one.awaits)
        }
    for listener, key in sorted(found):
        if listener in receivers:
            await receivers[listener].settle([key])


def _is_there(view: View, key: str) -> bool:
    what, _, name = key.partition("\0")
    if what == AWAITS_APPOINTMENT:
        return bool(view.ids(APPOINTMENT, "placer", name, limit=1))
    return bool(view.ids(ORDER, "placer", name, limit=1))


def tidy(ris: Ris, change: Change) -> bool:
    """Forget what was taken, sent and settled long ago, some of it; whether there may be more."""
    before = change.now_ns - ris.settings.hl7_keep_days * DAY_NS
    removed = 0
    for record_id in change.ids(RECEIVED, "at", "", at_most=seconds(before), limit=TOGETHER_MAX):
        change.delete(RECEIVED, record_id)
        removed += 1
    for state in ("replayed", "dismissed"):
        for record_id in change.ids(LETTER, "state", state, at_most=seconds(before), limit=TOGETHER_MAX):
            change.delete(LETTER, record_id)
            removed += 1
    for to in ris.settings.hl7_destinations:
        for record_id, one in list(change.find(MESSAGE, SENT, to.name, limit=TOGETHER_MAX)):
            if one.sent_ns > before:
                break
            change.delete(MESSAGE, record_id)
            removed += 1
    return removed >= TOGETHER_MAX
