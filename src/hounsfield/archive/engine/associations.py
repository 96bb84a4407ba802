"""Associations in the journal: who called, from where, as whom, and what came of it; written in batches.

One event holds the records of some seconds, so that a thousand associations cost a few commits. No change
feed tells them, and no record names a patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rows import Event
from hounsfield.storage_backends.api import KeyValueStore

__all__ = ["EVENT_ASSOCIATIONS", "RECORDS_MAX", "AssociationEvents", "Record"]

EVENT_ASSOCIATIONS: Final = "associations"
RECORDS_MAX: Final = 512
"""In one event: some 100 kB."""
_EVENTS_PER_READ: Final = 2000  # of whatever kind; opened in a few tens of milliseconds, in one snapshot

Record = Mapping[str, Any]
"""``at_ns`` and ``what`` (``accepted``, ``refused``, ``ended``), titles, address, and what else is known."""


class AssociationEvents:
    """Appends and finds records of associations. Any task may call it."""

    def __init__(self, store: KeyValueStore, journal: Journal, gate: Gate) -> None:
        self._store = store
        self._journal = journal
        self._gate = gate

    async def append(self, records: Sequence[Record]) -> None:
        """Keep at most :data:`RECORDS_MAX` records, oldest first. Raises StoreFullError."""
        body = {"records": [dict(record) for record in records[:RECORDS_MAX]]}
        event = Event(EVENT_ASSOCIATIONS, int(records[-1]["at_ns"]), body)
        await self._gate.read(self._journal.commit_events, [event])

    async def newest(
        self,
        *,
        since_ns: int,
        limit: int,
        what: str = "",
        title: str = "",
        address: str = "",
        user: str = "",
    ) -> tuple[list[Record], bool]:
        """At most ``limit`` records, none older than ``since_ns``, newest first; whether there are more.

        ``title`` is a calling or called one; "" is any, everywhere.
        """
        wanted = {"what": what, "address": address, "user": user}
        found: list[Record] = []
        before: int | None = None
        while True:
            events, before = await self._gate.read(self._page, before, since_ns)
            for event in events:
                for record in reversed(event.body["records"]):
                    if record["at_ns"] < since_ns or any(
                        value and record.get(name) != value for name, value in wanted.items()
                    ):
                        continue
                    if title and title not in (record.get("calling_ae"), record.get("called_ae")):
                        continue
                    if len(found) == limit:
                        return found, True
                    found.append(record)
            if before is None:
                return found, False

    def _page(self, before: int | None, since_ns: int) -> tuple[list[Event], int | None]:
        """Events of associations before a place, newest first; where to go on, None when nowhere."""
        with self._store.snapshot() as snapshot:
            page = self._journal.read_back(snapshot, before, _EVENTS_PER_READ)
        events = [event for _, event in page if event.kind == EVENT_ASSOCIATIONS]
        # an event is as old as its newest record; events follow one another within seconds
        if len(page) < _EVENTS_PER_READ or page[-1][1].at_ns < since_ns - _DISORDER_NS:
            return events, None
        return events, page[-1][0]


_DISORDER_NS: Final = 600 * 10**9  # an event's time is older than its commit's: by a batch, by a slow ingest
