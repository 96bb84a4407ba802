"""What the scrub does not trust: stretches that do not open, and whose they are.

A *suspect* is a stretch of a segment that does not open. It is *confirmed* when a row of the index points to
it: then it was acknowledged, the row is flagged, the journal says so, and it stays listed until it is
repaired, put back, or nothing points to it any more. Kept in the table ``scrub``, see
:mod:`~hounsfield.archive.index.scrubbing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import msgspec
from msgspec import structs

from hounsfield.archive.index import locations
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rows import Event, InstanceRow, Location, decode, encode
from hounsfield.archive.index.sealed import RowSealer
from hounsfield.archive.index.tables import SCRUB
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import PreconditionError

FLAG_DAMAGED = "damaged"
EVENT_DAMAGED = "record-damaged"
EVENT_REPAIRED = "record-repaired"
SEGMENT_ID_BYTES = 16
SUSPECT = b"suspect/"  # before their keys in the table, so that they are found among a million segments


def at(key: bytes) -> bytes:
    """The key in the table of a suspect, which everywhere else is ``segment id | record id``."""
    return SUSPECT + key


class ScrubRow(msgspec.Struct, array_like=True, frozen=True):
    """One segment: ``done_ns`` is when a pass over all of it ended; ``position`` where the present one is."""

    began_ns: int = 0
    done_ns: int = 0
    position: int = 0
    records: int = 0
    bytes: int = 0
    suspects: int = 0
    under_way: bool = False


class SuspectRow(msgspec.Struct, array_like=True, frozen=True):
    """A stretch that does not open. ``confirmed``: a row of the index points to it, it was acknowledged.

    ``keys``: those rows, as (table, key).
    """

    offset: int
    length: int
    reason: str
    found_ns: int
    confirmed: bool = False
    keys: tuple[tuple[str, bytes], ...] = ()
    ledger: bool = False


class WalkRow(msgspec.Struct, array_like=True, frozen=True):
    """The walk over the index: when the last whole one began and ended, and how far the present one is."""

    began_ns: int = 0
    done_ns: int = 0
    took_ns: int = 0
    last_began_ns: int = 0
    table: int = 0
    after: bytes = b""
    rows: int = 0
    under_way: bool = False


class RequestRow(msgspec.Struct, array_like=True, frozen=True):
    """Somebody asked for a scrub: of these segments, or of all. ``full_speed``: no throttle."""

    asked_ns: int
    segments: tuple[bytes, ...] = ()
    full_speed: bool = False


class Suspects:
    """All that is suspect or damaged. Blocking; the leader writes, anybody reads."""

    def __init__(self, store: KeyValueStore, catalog: Catalog, sealer: RowSealer, journal: Journal) -> None:
        self.store = store
        self.sealer = sealer
        self._catalog = catalog
        self._journal = journal
        self.confirmed = 0  # how many this process confirmed

    def all(self) -> list[tuple[bytes, SuspectRow]]:
        """Everything that does not open, with its key (segment id, record id)."""
        found = []
        with self.store.snapshot() as snapshot:
            for key, sealed in snapshot.scan(SCRUB, prefix=SUSPECT):
                row = decode(SuspectRow, self.sealer.open(SCRUB, key, sealed))
                found.append((key[len(SUSPECT) :], row))
        return found

    def add(self, batch: Batch, known: set[bytes], key: bytes, row: SuspectRow) -> None:
        """Have ``batch`` keep a suspect that is not ``known`` yet; what is confirmed already is announced."""
        if key not in known:
            batch.put(SCRUB, at(key), self.sealer.seal(SCRUB, at(key), encode(row)))
            if row.confirmed:
                self.announce(batch, EVENT_DAMAGED, key, row, now_ns=row.found_ns)
                self.confirmed += 1

    def announce(self, batch: Batch, kind: str, key: bytes, row: SuspectRow, *, now_ns: int) -> None:
        body = {
            "segment": key[:SEGMENT_ID_BYTES],
            "record": key[SEGMENT_ID_BYTES:],
            "offset": row.offset,
            "reason": row.reason,
            "ledger": row.ledger,
        }
        self._journal.append(batch, Event(kind, now_ns, body))

    def confirm(self, one: locations.Located, key: bytes, row: SuspectRow, now_ns: int) -> None:
        """A row points to what does not open: flag it, list it, say so; in one commit."""
        current = locations.again(self.store, self._catalog, one)
        if current is None or current.row is None or current.location != one.location:
            return
        mark = (one.table.name, one.key)
        self.sealer.prepare(4)
        with self.store.snapshot() as snapshot:
            held = snapshot.get(SCRUB, at(key))
        if held is not None:
            row = decode(SuspectRow, self.sealer.open(SCRUB, at(key), held))
        batch = Batch(uses_reserve=True)
        batch.require(SCRUB, at(key), held)
        known = row.confirmed and mark in row.keys
        flagged = not isinstance(current.row, InstanceRow) or FLAG_DAMAGED in current.row.flags
        if known and flagged:
            return
        if isinstance(current.row, InstanceRow) and not flagged:
            flags = tuple(sorted({*current.row.flags, FLAG_DAMAGED}))
            locations.point_elsewhere(batch, self.sealer, current, current.row.location, flags)
        if not known:
            new = structs.replace(row, confirmed=True, keys=(*row.keys, mark))
            batch.put(SCRUB, at(key), self.sealer.seal(SCRUB, at(key), encode(new)))
            self.announce(batch, EVENT_DAMAGED, key, new, now_ns=now_ns)
            self.confirmed += 1
        with suppress(PreconditionError):  # changed in this moment: the next walk sees it as it is then
            self.store.commit(batch)

    def heal(self, segment: bytes, seen: set[bytes], now_ns: int) -> None:
        """What did not open once and does now is no damage any more: somebody put the file back."""
        for key, row in self.all():
            if key.startswith(segment) and key not in seen and row.confirmed:
                self.sealer.prepare(len(row.keys) + 4)
                batch = Batch(uses_reserve=True)
                for one in self.pointing(key, row):
                    if isinstance(one.row, InstanceRow) and FLAG_DAMAGED in one.row.flags:
                        flags = tuple(flag for flag in one.row.flags if flag != FLAG_DAMAGED)
                        locations.point_elsewhere(batch, self.sealer, one, one.row.location, flags)
                batch.delete(SCRUB, at(key))
                self.announce(batch, EVENT_REPAIRED, key, row, now_ns=now_ns)
                with suppress(PreconditionError):  # changed in this moment: the next pass does it
                    self.store.commit(batch)

    def settle(self, segment: bytes, now_ns: int) -> None:
        """A segment was put here anew, or lies elsewhere now: nothing that was suspect in it is any more."""
        self.heal(segment, set(), now_ns)
        batch = Batch(uses_reserve=True)
        for key, row in self.all():
            if key.startswith(segment) and not row.confirmed:
                batch.delete(SCRUB, at(key))
        if batch.deletes:
            self.store.commit(batch)

    def forget_unconfirmed(self, before_ns: int) -> None:
        """Drop suspects found before a whole walk began that met no row which points to them."""
        batch = Batch(uses_reserve=True)
        for key, row in self.all():
            if row.confirmed:
                gone = not row.ledger and not any(True for _ in self.pointing(key, row))
            else:
                gone = row.found_ns < before_ns
            if gone:
                batch.delete(SCRUB, at(key))
        if batch.deletes:
            self.store.commit(batch)

    def pointing(self, key: bytes, row: SuspectRow) -> Iterator[locations.Located]:
        """The rows that still point to a damage: not deleted, replaced or moved since."""
        tables = {table.name: table for table, _ in locations.LOCATED}
        for name, row_key in row.keys:
            held = locations.again(
                self.store, self._catalog, locations.Located(tables[name], row_key, b"", None)
            )
            location = None if held is None else held.location
            if held is not None and location is not None and location.segment == key[:SEGMENT_ID_BYTES]:
                yield held


class Spots:
    """Stretches that do not open, to be hit by locations."""

    def __init__(self, suspects: list[tuple[bytes, SuspectRow]]) -> None:
        self._by_record: dict[tuple[bytes, bytes], tuple[bytes, SuspectRow]] = {}
        self._by_segment: dict[bytes, list[tuple[bytes, SuspectRow]]] = {}
        for key, row in suspects:
            if row.ledger:
                continue
            segment = key[:SEGMENT_ID_BYTES]
            self._by_record[segment, key[SEGMENT_ID_BYTES:]] = (key, row)
            self._by_segment.setdefault(segment, []).append((key, row))

    def hit(self, location: Location) -> tuple[bytes, SuspectRow] | None:
        near = self._by_segment.get(location.segment)
        if near is None:
            return None
        if location.stream is not None:
            return near[0]  # a segment of its own: whatever is damaged there is this object's
        found = self._by_record.get((location.segment, location.record_id))
        if found is not None:
            return found
        for key, row in near:
            if row.offset <= location.offset < row.offset + row.length:
                return key, row
        return None
