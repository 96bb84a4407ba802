"""Rows are switched to the places to which their records were carried, each only if it still needs it.

What happened in between decides: a row that was deleted stays deleted (its tombstone then names the new
place, too), one that was filed elsewhere is found there, and what nobody needs at the new place counts as
dead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec import structs

from hounsfield.archive.index.carrying import Carried
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.journal import COMMIT_ATTEMPTS_MAX
from hounsfield.archive.index.packs import plan_forget
from hounsfield.archive.index.rows import (
    InstanceRow,
    Location,
    ObjectRow,
    QuarantineRow,
    SpareRow,
    encode,
)
from hounsfield.archive.index.tables import INSTANCE, QUARANTINE, SPARE, TOMBSTONE, VERSION
from hounsfield.archive.index.use import DeadRecords, forget_segment, with_segments
from hounsfield.storage_backends.api import Batch, Snapshot, Table
from hounsfield.storage_backends.errors import PreconditionError

ATTEMPTS_BESIDE_OTHERS = 3  # then rows are switched under the store's lock


class Live(NamedTuple):
    """A row that points at a record."""

    table: Table
    key: bytes
    held: bytes
    row: InstanceRow | QuarantineRow


class Switching:
    """Plans and commits. Blocking; one thread at a time."""

    def __init__(self, indexer: Indexer, clock: Callable[[], int]) -> None:
        self._indexer = indexer
        self._clock = clock

    def find(self, snapshot: Snapshot, row: ObjectRow, record_id: bytes) -> Live | None:
        """The row that points at a record, wherever that lies; ``row`` is what it carries."""
        catalog = self._indexer.catalog
        found: list[tuple[Table, bytes, type[InstanceRow | QuarantineRow]]] = []
        if row.quarantine:
            found.append((QUARANTINE, record_id, QuarantineRow))
        else:
            key = catalog.instance_key(*catalog.place_of(snapshot, row))
            found += [(INSTANCE, key, InstanceRow), (VERSION, key + record_id, InstanceRow)]
        for table, key, kind in found:
            held = snapshot.get(table, key)
            if held is None:
                continue
            opened = catalog.open_row(table, key, held, kind)
            if opened.location.record_id == record_id:
                return Live(table, key, held, opened)
        return None

    def plan(
        self, snapshot: Snapshot, batch: Batch, group: Sequence[Carried], *, leaving: bytes | None
    ) -> None:
        """Have ``batch`` point rows at the new places, and count what nobody needs any more as dead.

        ``leaving``: the segment that everything is carried out of, and that goes; only rows that point there
        are switched. None: from wherever they are now, and what stays behind there is a further record of
        the object, dead, of which a deletion knows.
        """
        catalog = self._indexer.catalog
        dead = DeadRecords()
        for one in group:
            location = one.location
            live = self.find(snapshot, one.row, location.record_id)
            if live is not None and leaving in {None, live.row.location.segment}:
                batch.require(live.table, live.key, live.held)
                row = structs.replace(live.row, location=location)
                if isinstance(row, InstanceRow):
                    row = structs.replace(row, stored_as=one.row.stored_as)
                catalog.put_row(batch, live.table, live.key, row)
                if leaving is None:
                    _leave(snapshot, batch, dead, live.row.location, one.left)
                continue
            held = snapshot.get(TOMBSTONE, location.record_id)
            if held is not None:  # deleted since it was copied
                named = with_segments(held, [location.segment])
                batch.require(TOMBSTONE, location.record_id, held)
                batch.put(TOMBSTONE, location.record_id, named)
                if named == held:
                    continue
            dead.add(location.segment, one.length)
        dead.plan(snapshot, batch, self._clock())

    def forget(self, segment: bytes) -> None:
        """Forget a segment that is gone, and the pack that it was."""

        def forgotten(snapshot: Snapshot) -> Batch:
            batch = Batch(uses_reserve=True)
            forget_segment(batch, segment)
            plan_forget(snapshot, batch, segment)
            return batch

        self.commit(forgotten, 0)

    def commit(self, plan: Callable[[Snapshot], Batch], rows: int) -> None:
        """Commit what ``plan`` makes of the newest state, in which at most so many ``rows`` are sealed."""
        store = self._indexer.store
        for attempt in range(COMMIT_ATTEMPTS_MAX):
            self._indexer.prepare(rows)
            try:
                if attempt < ATTEMPTS_BESIDE_OTHERS:
                    with store.snapshot() as snapshot:
                        batch = plan(snapshot)
                    store.commit(batch)
                else:
                    (result,) = store.commit_planned(lambda snapshot: [plan(snapshot)])
                    if isinstance(result, Exception):
                        raise result
            except PreconditionError:
                continue
            return
        raise RuntimeError("rows could not be switched between other commits; this is a defect")


def _leave(snapshot: Snapshot, batch: Batch, dead: DeadRecords, old: Location, length: int) -> None:
    """Have ``batch`` say that a record stays in a segment where no row points at it any more."""
    key = old.record_id + old.record_id + old.segment
    if snapshot.get(SPARE, key) is None:
        batch.require(SPARE, key, None)
        batch.put(SPARE, key, encode(SpareRow(length)))
        dead.add(old.segment, length)
