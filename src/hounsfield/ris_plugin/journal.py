"""The archive's journal as one worker's consumers read it: together, since they are mostly at the same place.

Under load the journal tells hundreds of events a second, which a dozen consumers would each open and decode.
Here a page is read once, and who waits for more waits with the others.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import trio

from hounsfield.archive.plugins import Archive, Events

__all__ = ["Journal"]

PAGE_EVENTS: Final = 100
"""Acted on in one transaction: others wait for it meanwhile."""
PAGES_KEPT: Final = 16
"""For those that are a little behind: some megabytes at most."""
WAIT_SECONDS: Final = 60.0
GATHER_SECONDS: Final = 0.15
"""After something happened: what happens next is read with it."""


class Journal:
    """Pages of the journal. Any task may ask for one."""

    def __init__(self, archive: Archive) -> None:
        self.consumers: dict[str, Any] = {}
        """Who follows it, by name: :class:`~hounsfield.ris_plugin.following.Consumer`."""
        self._archive = archive
        self._pages: OrderedDict[str, Events] = OrderedDict()
        self._reading = trio.Lock()
        self._waiting: dict[str, trio.Event] = {}

    async def after(self, cursor: str) -> Events:
        """What happened after a cursor, a page of it. GoneError as of the archive."""
        async with self._reading:
            page = self._pages.get(cursor)
            if page is None:
                page = await self._archive.events(cursor, PAGE_EVENTS)
                if page.next != cursor and cursor:  # what follows a place stays, while this process lives
                    self._pages[cursor] = page
                    if len(self._pages) > PAGES_KEPT:
                        self._pages.popitem(last=False)
        return page

    async def wait(self, cursor: str) -> None:
        """Return when something may have happened after a cursor."""
        waited = self._waiting.get(cursor)
        if waited is not None:
            await waited.wait()
            return
        waited = self._waiting[cursor] = trio.Event()
        try:
            if await self._archive.wait(cursor, WAIT_SECONDS):
                await trio.sleep(GATHER_SECONDS)
        finally:
            del self._waiting[cursor]
            waited.set()
