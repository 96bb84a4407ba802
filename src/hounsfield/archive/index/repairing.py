"""Damaged records are written anew, from what still opens of them or from another copy of the segment."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from hounsfield.archive.index import locations
from hounsfield.archive.index.carrying import Pace
from hounsfield.archive.index.copying import Copying, NoCopyError
from hounsfield.archive.index.packs import HOT, PackGoneError, PackRow
from hounsfield.archive.index.rows import InstanceRow, Location, SpareRow, encode
from hounsfield.archive.index.suspects import (
    EVENT_REPAIRED,
    FLAG_DAMAGED,
    SEGMENT_ID_BYTES,
    SuspectRow,
    Suspects,
    at,
)
from hounsfield.archive.index.tables import SCRUB, SPARE
from hounsfield.archive.index.use import DeadRecords
from hounsfield.storage_backends.api import Batch, BlobStore, Buffer
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    KeyringError,
    PreconditionError,
    SealError,
    ShortReadError,
    StorageError,
)
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_format import RecordRef
from hounsfield.storage_backends.segment_scan import ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog

_logger = logging.getLogger(__name__)
_UNREADABLE = (SealError, ShortReadError, BlobNotFoundError, OSError)


class CopySource(Protocol):
    """Another copy of what is stored: a mirror, a backup, later a tier."""

    @property
    def name(self) -> str: ...

    def parts(self, segment: bytes, record_id: bytes, offset: int) -> tuple[int, list[Buffer]] | None:
        """Kind and parts of a record, every one opened; None when this copy has it not, or damaged."""


class SegmentCopies:
    """Copies of whole segments in another blob store: a directory that ``backup --segments`` wrote."""

    def __init__(self, name: str, blobs: BlobStore, keyring: Keyring) -> None:
        self.name = name
        self._logs = [SegmentLog(blobs, keyring, prefix=prefix) for prefix in ("segments/", "ledger/")]

    def parts(self, segment: bytes, record_id: bytes, offset: int) -> tuple[int, list[Buffer]] | None:
        for log in self._logs:
            try:
                record = next(iter(log.scan(segment, start=offset)), None)
                if isinstance(record, ScannedRecord) and record.ref.record_id == record_id:
                    return record.kind, [log.open_part(part) for part in record.ref.parts()]
            except (*_UNREADABLE, KeyringError):
                continue
        return None


class PackRepairs:
    """Puts packs that are damaged or missing here, and right in another tier, here anew. Blocking.

    :meth:`repair` is for whoever may move packs at the moment, everything else for the scrub's leader.
    """

    def __init__(self, copying: Copying, suspects: Suspects) -> None:
        self._copying = copying
        self._suspects = suspects
        self._missing: set[bytes] = set()

    def is_elsewhere(self, segment: bytes) -> bool:
        """Whether a pack that is not here need not be: another tier has it. It is put back if it should."""
        row = self._copying.packs.get(segment)
        if row is None or not set(row.copies) - {HOT}:
            return False
        if HOT in row.copies and self._others(row):
            self._missing.add(segment)
        return HOT not in row.copies or bool(self._others(row))

    def _others(self, row: PackRow) -> list[str]:
        return [name for name in row.copies if name != HOT and name in self._copying.tiers]

    def wanted(self) -> set[bytes]:
        """Packs that another tier has and of which something here is suspect, or all is missing."""
        found = {
            key[:SEGMENT_ID_BYTES] for key, row in self._suspects.all() if not row.ledger
        } | self._missing
        rows = {segment: self._copying.packs.get(segment) for segment in found}
        return {segment for segment, row in rows.items() if row is not None and self._others(row)}

    def repair(self, segments: Collection[bytes], now_ns: int, pace: Pace) -> tuple[int, set[bytes]]:
        """Put these here anew; how many were, and which have no right copy: their records are looked at."""
        done, hopeless = 0, set()
        for segment in segments:
            try:
                if not self._copying.sweep_one(HOT, segment):
                    self._copying.repair(segment, HOT, pace=pace)
            except NoCopyError:
                hopeless.add(segment)
                continue
            except PackGoneError:
                pass
            except StorageError as error:
                _logger.warning("pack %s is not put back for now: %s", segment.hex(), error)
                continue
            else:
                done += 1
            self._suspects.settle(segment, now_ns)
            self._missing.discard(segment)
        return done, hopeless


class Repairs:
    """Repairs what is confirmed to be damaged. Blocking; the leader's."""

    def __init__(
        self, log: SegmentLog, ledger: SegmentLog, suspects: Suspects, copies: Sequence[CopySource]
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._suspects = suspects
        self._copies = copies

    def repair(self, now_ns: int, put_off: Collection[bytes] = ()) -> int:
        """Write damaged records anew, from what opens or from a copy, and point the index there; how many.

        The record keeps its id and moves to the present segment under its key. Large objects, whose bytes
        are a segment of pieces, are not repaired here: restore the segment from the copy. Segments that are
        ``put_off`` will be put here anew, as a whole (:class:`PackRepairs`).
        """
        repaired = 0
        for key, row in self._suspects.all():
            if key[:SEGMENT_ID_BYTES] in put_off:
                continue
            if row.confirmed and self._repair(key, row, now_ns):
                repaired += 1
        return repaired

    def _repair(self, key: bytes, row: SuspectRow, now_ns: int) -> bool:
        segment = key[:SEGMENT_ID_BYTES]
        held = list(self._suspects.pointing(key, row))
        located = [one.location for one in held if one.location is not None]
        if any(location.stream is not None for location in located):
            return False
        record_id = located[0].record_id if located else key[SEGMENT_ID_BYTES:]
        offset = located[0].offset if located else row.offset
        if not row.ledger and not located:
            return False
        for found in self._good_copies(segment, record_id, offset, located):
            kind, parts = found
            log = self._ledger if row.ledger else self._log
            (ref,) = log.append([RecordIn(kind, parts, record_id)])
            return self._switch(key, row, held, ref, now_ns)
        return False

    def _good_copies(
        self, segment: bytes, record_id: bytes, offset: int, located: list[Location]
    ) -> Iterator[tuple[int, list[Buffer]]]:
        """The record's parts, from wherever they open: first from where they are, then from the copies."""
        for location in located[:1]:
            if location.has_table:  # of damaged framing the index knows what it said
                ref = location.ref()
                with suppress(*_UNREADABLE, KeyringError):
                    yield ref.kind, [self._log.open_part(part) for part in ref.parts()]
        for copy in self._copies:
            found = copy.parts(segment, record_id, offset)
            if found is not None:
                yield found

    def _switch(
        self, key: bytes, row: SuspectRow, held: list[locations.Located], ref: RecordRef, now_ns: int
    ) -> bool:
        self._suspects.sealer.prepare(len(held) + 4)
        batch = Batch(uses_reserve=True)
        for one in held:
            flags = None
            if isinstance(one.row, InstanceRow):
                flags = tuple(flag for flag in one.row.flags if flag != FLAG_DAMAGED)
            locations.point_elsewhere(batch, self._suspects.sealer, one, Location.of(ref, None), flags)
        batch.delete(SCRUB, at(key))
        self._suspects.announce(batch, EVENT_REPAIRED, key, row, now_ns=now_ns)
        dead = DeadRecords()
        if not row.ledger:
            # The damaged record stays where it is: a further copy, deleted with the object.
            segment = key[:SEGMENT_ID_BYTES]
            dead.add(segment, ref.length)
            batch.put(SPARE, ref.record_id * 2 + segment, encode(SpareRow(ref.length)))
        with self._suspects.store.snapshot() as snapshot:
            dead.plan(snapshot, batch, now_ns)
        try:
            self._suspects.store.commit(batch)
        except PreconditionError:
            return False  # changed in this moment: the next round repairs what is left
        return True
