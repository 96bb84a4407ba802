"""Re-authenticating what is stored: every record opened again, every place in the index looked at.

Two walks, both in steps of a bounded size, so that whoever calls can rest in between:

* over the segments (:meth:`Scrubber.verify`): each record of a segment is read and opened. What does not open
  is a *suspect*: only the index knows whether it was ever acknowledged;
* over the index (:meth:`Scrubber.look`): each location must lead to its record. A suspect that a row points
  to is *damage*: the row is flagged, an event says so, and it is listed. A suspect that nothing points to is
  the rest of an append that a crash cut short, or was deleted, and is forgotten.

Only the leader scrubs. What it knows is in the index (table ``scrub``), so that a successor goes on::

    segment id (16)                          ScrubRow: how far, when, how much
    "suspect/" | segment id | record id (16) SuspectRow, sealed
    "walk"                                   WalkRow: how far the walk over the index is
    "request"                                RequestRow: what somebody asked for
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from msgspec import structs

from hounsfield.archive.index import locations
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.copying import Copying
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.repairing import CopySource, PackRepairs, Repairs
from hounsfield.archive.index.rows import Location, SegmentRow, decode, encode
from hounsfield.archive.index.sealed import RowSealer
from hounsfield.archive.index.suspects import (
    SEGMENT_ID_BYTES,
    SUSPECT,
    RequestRow,
    ScrubRow,
    Spots,
    SuspectRow,
    Suspects,
    WalkRow,
    at,
)
from hounsfield.archive.index.tables import SCRUB, SEGMENT, TOMBSTONE
from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.api import Batch, BlobStore, KeyValueStore
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    KeyDestroyedError,
    KeyringError,
    PreconditionError,
    SealError,
    ShortReadError,
)
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.segment_format import RecordRef
from hounsfield.storage_backends.segment_scan import Damage, DamageReason, ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog

HEAD_COST_BYTES = 4096  # what looking at one place of the index reads from a disk
PERSIST_BYTES = 256 << 20  # verified again after a crash, at most: seconds of reading
_WALK = b"walk"
_REQUEST = b"request"


@dataclass(slots=True)
class ScrubFigures:
    """What this process did since it started, and what the leader knows."""

    records: int = 0
    bytes: int = 0
    places: int = 0
    suspects: int = 0
    damaged: int = 0
    repaired: int = 0
    known_damaged: int = 0
    oldest_s: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What one step cost, and whether there is more to do."""

    bytes: int
    more: bool


@dataclass(slots=True)
class _Under:
    """The segment that is being verified."""

    segment: bytes
    row: ScrubRow
    persisted: int
    whole: bool  # this process saw the pass from its beginning
    ledger: bool
    found: dict[bytes, SuspectRow] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)  # suspects of this pass


class Scrubber:
    """The blocking half of the scrub. One thread at a time."""

    def __init__(
        self,
        *,
        log: SegmentLog,
        ledger: SegmentLog,
        reading: tuple[SegmentLog, SegmentLog],
        blobs: BlobStore,
        store: KeyValueStore,
        keyring: Keyring,
        catalog: Catalog,
        sealer: RowSealer,
        journal: Journal,
        copies: Sequence[CopySource] = (),
        copying: Copying | None = None,
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._reading = reading  # the same two, read in the background
        self._blobs = blobs
        self._store = store
        self._keyring = keyring
        self._catalog = catalog
        self._sealer = sealer
        self._journal = journal
        self.suspects = Suspects(store, catalog, sealer, journal)
        self._repairs = Repairs(log, ledger, self.suspects, copies)
        self.packs = PackRepairs(copying or Copying(store, keyring, {}), self.suspects)
        self._under: _Under | None = None
        self._figures = ScrubFigures()

    @property
    def figures(self) -> ScrubFigures:
        """What this process did, and what it knows."""
        self._figures.damaged = self.suspects.confirmed
        return self._figures

    # ------------------------------------------------------------ what is due

    def rows(self) -> dict[bytes, ScrubRow]:
        """What is known of each segment."""
        with self._store.snapshot() as snapshot:
            return {
                key: decode(ScrubRow, value)
                for key, value in snapshot.scan(SCRUB)
                if len(key) == SEGMENT_ID_BYTES
            }

    def segments(self) -> dict[bytes, bool]:
        """Every segment there is; whether it is the ledger's."""
        found = dict.fromkeys(self._log.segment_ids(), False)
        return found | dict.fromkeys(self._ledger.segment_ids(), True)

    def stored_bytes(self) -> int:
        """Bytes of all segments and the ledger."""
        total = 0
        for segment, ledger in self.segments().items():
            try:
                total += (self._ledger if ledger else self._log).size(segment)
            except BlobNotFoundError:
                continue
        return total

    def due(self, now_ns: int, interval_ns: int, fresh_ns: int, request: RequestRow | None) -> list[bytes]:
        """Segments to verify now: those under way first, then the ones verified longest ago.

        ``fresh_ns``: a segment that was never verified waits until it is so old. ``interval_ns`` 0: only what
        the request asks for.
        """
        rows = self.rows()
        found: list[tuple[int, bytes]] = []
        for segment in self.segments():
            row = rows.get(segment, ScrubRow())
            asked = request is not None and (not request.segments or segment in request.segments)
            if asked and request is not None and row.done_ns < request.asked_ns:
                found.append((row.done_ns, segment))
            elif not interval_ns:
                continue
            elif row.under_way:
                found.append((-1, segment))
            elif row.done_ns:
                if now_ns - row.done_ns >= interval_ns:
                    found.append((row.done_ns, segment))
            elif now_ns - self._made_ns(segment) >= min(fresh_ns, interval_ns):
                found.append((0, segment))
        self._forget_gone(rows, now_ns)
        verified = [row.done_ns for row in rows.values() if row.done_ns]
        self._figures.oldest_s = (now_ns - min(verified)) // 1_000_000_000 if verified else 0
        return [segment for _, segment in sorted(found)]

    def _made_ns(self, segment: bytes) -> int:
        try:
            return int(self._keyring.made_at("segment", segment.hex()) * 1e9)
        except KeyringError:
            return 0

    def _forget_gone(self, rows: dict[bytes, ScrubRow], now_ns: int) -> None:
        """Drop what is known of segments that compaction removed, and of packs that lie elsewhere now."""
        have = self.segments()
        gone = [segment for segment in rows if segment not in have]
        if gone:
            for segment in gone:
                if self.packs.is_elsewhere(segment):
                    self.suspects.settle(segment, now_ns)
            batch = Batch(uses_reserve=True)
            for segment in gone:
                batch.delete(SCRUB, segment)
            for key, _ in self.suspects.all():
                if key[:SEGMENT_ID_BYTES] in gone:
                    batch.delete(SCRUB, at(key))
            self._store.commit(batch)

    # ------------------------------------------------------------ requests

    def request(self) -> RequestRow | None:
        with self._store.snapshot() as snapshot:
            held = snapshot.get(SCRUB, _REQUEST)
        return None if held is None else decode(RequestRow, held)

    def ask(self, request: RequestRow) -> None:
        """Have the leader do this next, whichever process it is."""
        batch = Batch()
        batch.put(SCRUB, _REQUEST, encode(request))
        self._store.commit(batch)

    def done_with(self, request: RequestRow) -> None:
        """Forget a request, unless another one came since."""
        batch = Batch(uses_reserve=True)
        batch.require(SCRUB, _REQUEST, encode(request))
        batch.delete(SCRUB, _REQUEST)
        with suppress(PreconditionError):
            self._store.commit(batch)

    # ------------------------------------------------------------ segments

    def verify(self, segment: bytes, bytes_max: int, now_ns: int) -> Step:
        """Open the next records of a segment, about ``bytes_max`` of them (one at least)."""
        under = self._begin(segment, now_ns)
        ledger = under.ledger
        log = self._reading[1 if ledger else 0]
        start = under.row.position
        records = total = suspects = 0
        position, end = start, False
        try:
            limit = self._limit(segment, ledger)
            for found in log.scan(segment, start=start or None):
                place, length = _place(found)
                if place >= limit:
                    break
                position = place + length
                total += length
                if isinstance(found, ScannedRecord):
                    records += 1
                    reason = self._opens(log, found.ref)
                elif found.reason is DamageReason.HEADER:
                    continue  # the other copy serves, or neither is needed
                else:
                    reason = found.reason.value
                if reason:
                    suspects += self._suspect(under, found, reason, now_ns, ledger)
                if total >= bytes_max:
                    break
            else:
                end = True
            end = end or position >= limit
        except (BlobNotFoundError, KeyDestroyedError):
            self._under = None  # compaction removed it
            return Step(total, more=False)
        except KeyringError as error:
            suspects += self._suspect_all(under, segment, str(error), now_ns, ledger)
            end = True
        row = structs.replace(
            under.row,
            position=position,
            records=under.row.records + records,
            bytes=under.row.bytes + total,
            suspects=under.row.suspects + suspects,
        )
        if end:
            row = structs.replace(row, done_ns=now_ns, under_way=False, position=0)
        under.row = row
        self._figures.records += records
        self._figures.bytes += total
        self._figures.suspects += suspects
        if end or under.found or row.bytes - under.persisted >= PERSIST_BYTES:
            self._persist(under)
        if end:
            self._under = None
            if under.whole:
                self.suspects.heal(segment, under.seen, now_ns)
        return Step(total, more=not end)

    def _begin(self, segment: bytes, now_ns: int) -> _Under:
        under = self._under
        if under is None or under.segment != segment:
            row = self.rows().get(segment, ScrubRow())
            if not row.under_way:
                row = ScrubRow(began_ns=now_ns, done_ns=row.done_ns, under_way=True)
            under = self._under = _Under(
                segment, row, row.bytes, not row.position, segment in self._ledger.segment_ids()
            )
        return under

    def _limit(self, segment: bytes, ledger: bool) -> int:
        """Up to where the segment is synced: all of it, unless somebody is writing to it."""
        log = self._ledger if ledger else self._log
        size = log.size(segment)
        if not log.is_being_written(segment):
            return size
        if ledger:
            return 0  # it is verified when it is closed; it is small
        with self._store.snapshot() as snapshot:
            held = snapshot.get(SEGMENT, segment)
        return 0 if held is None else min(size, decode(SegmentRow, held).indexed_to)

    def _opens(self, log: SegmentLog, ref: RecordRef) -> str:
        """Why a record does not open; "" when every byte of it is as it was sealed."""
        try:
            log.verify(ref)
        except SealError:
            return "does not open"
        except (ShortReadError, OSError) as error:
            return f"cannot be read ({type(error).__name__})"
        return ""

    def _suspect(
        self, under: _Under, found: ScannedRecord | Damage, reason: str, now_ns: int, ledger: bool
    ) -> int:
        place, length = _place(found)
        record_id = found.ref.record_id if isinstance(found, ScannedRecord) else found.record_id
        if record_id is not None:
            with self._store.snapshot() as snapshot:
                if snapshot.get(TOMBSTONE, record_id) is not None:
                    return 0  # deleted: nobody will ask for it
        # Without an id (its framing is gone) the place stands for it: no two records share one.
        key = under.segment + (record_id or b"@" + place.to_bytes(15, "big"))
        confirmed = ledger and reason != DamageReason.TORN_TAIL.value
        under.found[key] = SuspectRow(place, length, reason, now_ns, confirmed, (), ledger)
        return 1

    def _suspect_all(self, under: _Under, segment: bytes, reason: str, now_ns: int, ledger: bool) -> int:
        size = (self._ledger if ledger else self._log).size(segment)
        under.found[segment + b"@" * 16] = SuspectRow(0, size, reason, now_ns, ledger, (), ledger)
        return 1

    def _persist(self, under: _Under) -> None:
        self._sealer.prepare(len(under.found))
        batch = Batch(uses_reserve=True)
        batch.put(SCRUB, under.segment, encode(under.row))
        with self._store.snapshot() as snapshot:
            known = {key[len(SUSPECT) :] for key, _ in snapshot.scan(SCRUB, prefix=at(under.segment))}
        for key, row in under.found.items():
            self.suspects.add(batch, known, key, row)
        self._store.commit(batch)
        under.seen.update(under.found)
        under.found.clear()
        under.persisted = under.row.bytes

    # ------------------------------------------------------------ the index

    def walk_state(self) -> WalkRow:
        with self._store.snapshot() as snapshot:
            held = snapshot.get(SCRUB, _WALK)
        return WalkRow() if held is None else decode(WalkRow, held)

    def look(self, now_ns: int, *, rows_max: int = locations.PAGE_ROWS) -> Step:
        """Look at the next places of the index, one page: does each lead to its record, and does it open?"""
        state = self.walk_state()
        began = time.monotonic_ns()
        if not state.under_way:
            state = WalkRow(now_ns, state.done_ns, 0, state.last_began_ns, under_way=True)
        suspects = self.suspects.all()
        spots = Spots(suspects)
        page = next(
            locations.walk(self._store, self._catalog, (state.table, state.after), page=rows_max), None
        )
        cost = 0
        position = (len(locations.LOCATED), b"")
        count = 0
        if page is not None:
            position, held = page
            count = len(held)
            wrong: list[tuple[locations.Located, bytes, SuspectRow]] = []
            for one in sorted(held, key=_by_place):
                location = one.location
                if location is None:
                    continue  # fsck says so: what does not open here is the index's, not a segment's
                hit = spots.hit(location)
                if hit is None:
                    cost += HEAD_COST_BYTES
                    hit = self._leads_nowhere(one, location, now_ns)
                if hit is not None:
                    wrong.append((one, *hit))
            for one, key, row in wrong:
                self.suspects.confirm(one, key, row, now_ns)
        more = position[0] < len(locations.LOCATED)
        took = state.took_ns + time.monotonic_ns() - began
        state = structs.replace(
            state, table=position[0], after=position[1], rows=state.rows + count, took_ns=took
        )
        if not more:
            self.suspects.forget_unconfirmed(state.began_ns)
            state = structs.replace(
                state, done_ns=now_ns, last_began_ns=state.began_ns, table=0, after=b"", under_way=False
            )
        batch = Batch(uses_reserve=True)
        batch.put(SCRUB, _WALK, encode(state))
        self._store.commit(batch)
        self._figures.places += count
        return Step(cost, more)

    def _leads_nowhere(
        self, one: locations.Located, location: Location, now_ns: int
    ) -> tuple[bytes, SuspectRow] | None:
        """What is wrong with the place that a row names; None when its record is there."""
        reason = self._wrong_at(location)
        if not reason:
            return None
        current = locations.again(self._store, self._catalog, one)
        if current is None or current.location != location:
            return None  # deleted or moved since it was read
        key = location.segment + location.record_id
        return key, SuspectRow(location.offset, 0, reason, now_ns)

    def _wrong_at(self, location: Location) -> str:
        name = f"segments/{location.segment.hex()}"
        try:
            data = self._blobs.read(name, location.offset, layout.HEAD_BYTES)
            head = layout.parse_head(data)
            if head is None or head.record_id != location.record_id:
                return "the record is not where the index says"
            if location.offset + head.length > self._blobs.size(name):
                return "the segment ends before the record does"
        except BlobNotFoundError:
            return "" if self.packs.is_elsewhere(location.segment) else "the segment is missing"
        except ShortReadError:
            return "the segment ends before the record does"
        except OSError as error:
            return f"cannot be read ({type(error).__name__})"
        return ""

    # ------------------------------------------------------------ repair

    def repair(self, now_ns: int, put_off: Collection[bytes] = ()) -> int:
        """Repair what can be; how many. See :class:`~hounsfield.archive.index.repairing.Repairs`."""
        repaired = self._repairs.repair(now_ns, put_off)
        self._figures.repaired += repaired
        return repaired


def _by_place(one: locations.Located) -> tuple[bytes, int]:
    return (b"", 0) if one.location is None else (one.location.segment, one.location.offset)


def _place(found: ScannedRecord | Damage) -> tuple[int, int]:
    if isinstance(found, ScannedRecord):
        return found.ref.offset, found.ref.length
    return found.offset, found.length
