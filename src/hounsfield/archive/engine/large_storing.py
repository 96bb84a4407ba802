"""The blocking half of storing a large object: pieces, then the record that makes them an object.

While pieces come in they are compared with what is held under the same UIDs, so that a duplicate is known as
one when its last byte is here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import structlog

from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.dicom.incremental import IncrementalLimits, StreamScanned
from hounsfield.archive.dicom.incremental_deflated import open_scan
from hounsfield.archive.engine.group_commit import result_of
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.index.catalog import Stored
from hounsfield.archive.index.contents import open_pieces, same_stretches
from hounsfield.archive.index.indexing import Indexer, progress_batch
from hounsfield.archive.index.rows import (
    RECORD_KIND_OBJECT,
    RECORD_KIND_PIECE,
    InstanceRow,
    Location,
    ObjectRow,
    StreamRow,
    encode,
)
from hounsfield.archive.index.tables import QUARANTINE, SPARE
from hounsfield.archive.index.use import forget_segment
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.pixels import same_bytes
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_stream import PieceReader, SegmentStream

__all__ = ["LargeLimits", "LargeStoring", "RowMaker"]

log = structlog.get_logger(__name__)

RowMaker = Callable[[StreamScanned], ObjectRow]


@dataclass(frozen=True, slots=True)
class LargeLimits:
    """What one large object takes while it comes in.

    ``piece_bytes``: written and synced at once. 4 MiB keeps a disk busy, and three of them (one that fills,
    one that waits, one sealed) are what an object holds. It is recorded with each object.
    """

    piece_bytes: int = 4 << 20
    scan: IncrementalLimits = field(default_factory=IncrementalLimits)

    @property
    def memory_bytes(self) -> int:
        """What is taken from the budget for one object, beside what its header needs."""
        return 3 * self.piece_bytes


class LargeStoring:
    """Stores one large object. For one thread at a time."""

    def __init__(
        self, indexer: Indexer, limits: LargeLimits, transfer_syntax_uid: str, make_row: RowMaker
    ) -> None:
        self._indexer = indexer
        self._limits = limits
        self._transfer_syntax_uid = transfer_syntax_uid
        self._make_row = make_row
        self._scan = open_scan(lookup(transfer_syntax_uid), limits.scan)
        self._stream = SegmentStream(indexer.log, kind=RECORD_KIND_PIECE, piece_bytes=limits.piece_bytes)
        self._twins: dict[bytes, PieceReader] | None = None  # held objects that have the same bytes so far
        self._unlike: set[bytes] = set()  # and those that have not
        self._keep = False

    @property
    def held_bytes(self) -> int:
        """Memory that what is known of the object takes, about."""
        return self._scan.held_bytes

    def store(self, piece: memoryview) -> None:
        """The next piece: look at it, seal it, write it, sync it."""
        self._scan.feed(piece)
        self._compare(piece)
        self._stream.append(piece)

    def _compare(self, piece: memoryview) -> None:
        """Compare with what is held under the same UIDs, piece by piece as they come.

        At the end it is then known whether this is a duplicate: reading gigabytes again would take longer
        than senders wait for their answer.
        """
        at = self._stream.data_bytes
        if self._twins is None:
            header = self._scan.so_far()
            if header is None:
                return
            self._twins = self._held_in_pieces(self._make_row(header), at)
        for record_id, reader in list(self._twins.items()):
            try:
                if reader.data_bytes < at + len(piece) or not same_bytes(reader.read(at, len(piece)), piece):
                    del self._twins[record_id]
                    self._unlike.add(record_id)
            except StorageError:  # damaged, or moved meanwhile: looked at once more at the end
                del self._twins[record_id]

    def _held_in_pieces(self, row: ObjectRow, at: int) -> dict[bytes, PieceReader]:
        """The large objects under these UIDs whose first ``at`` bytes are those that are stored here."""
        indexer = self._indexer
        found: dict[bytes, PieceReader] = {}
        with indexer.store.snapshot() as snapshot:
            held = indexer.held(snapshot, row)
        for one in held:
            if one.location.stream is None or one.transfer_syntax_uid != self._transfer_syntax_uid:
                continue
            if not indexer.log.is_near(one.location.segment):
                continue  # compared at the end: what comes in does not wait for a bucket
            try:
                reader = open_pieces(indexer.log, one.location)
                same = reader.data_bytes >= at and (
                    not at or same_stretches(reader.stretches(0, at), self._stream.reader().stretches())
                )
            except StorageError:
                continue
            if same:
                found[one.location.record_id] = reader
            else:
                self._unlike.add(one.location.record_id)
        return found

    def give_up(self) -> None:
        """Leave nothing, unless the index refers to it."""
        if self._keep:
            self._stream.close()
        else:
            self._stream.discard()

    def finish(self) -> StoreResult:
        """Write the object's record and index it; of one that is held already, remove all."""
        indexer = self._indexer
        found = self._scan.finish()
        row = self._make_row(found)
        row = msgspec.structs.replace(row, stream=stream_row(found, self._limits.piece_bytes))
        with indexer.store.snapshot() as snapshot:
            held = indexer.held(snapshot, row)
        for one in held:  # outside of the snapshot: comparing may take seconds
            if self._is(one):
                self._stream.discard()
                return result_of(row, Outcome.DUPLICATE)
            self._unlike.add(one.location.record_id)
        parts = (encode(row), found.header, self._stream.table, _frame_table(found, row.stream))
        ref = self._stream.finish(RecordIn(RECORD_KIND_OBJECT, parts))
        stored = Stored(row, Location.of(ref, row.stream), frozenset(self._unlike))
        try:
            (outcome,) = indexer.add([stored])
        except Exception:
            self._keep = self._is_indexed(stored)  # the index may have come further than its answer
            raise
        if outcome is Outcome.DUPLICATE:  # another sender of the same was first, just now
            self._stream.discard()
            self._forget(stored)
            return result_of(row, outcome)
        try:
            end = {ref.segment: ref.offset + ref.length}
            indexer.store.commit(progress_batch(end, closed=True))
        except StorageError as error:  # the next start looks at the segment once more
            log.info("a finished segment was not marked as such", error_type=type(error).__name__)
        self._stream.close()
        return result_of(row, outcome)

    def _forget(self, stored: Stored) -> None:
        """Take out of the index that there was a further record of an object."""
        indexer, place = self._indexer, stored.location
        batch = Batch(uses_reserve=True)
        forget_segment(batch, place.segment)
        with indexer.store.snapshot() as snapshot:
            for one in indexer.held(snapshot, stored.row):
                batch.delete(SPARE, one.location.record_id + place.record_id + place.segment)
        try:
            indexer.store.commit(batch)
        except StorageError as error:  # it says of nothing that it is dead
            log.info("a removed segment was not forgotten", error_type=type(error).__name__)

    def _is(self, held: InstanceRow) -> bool:
        """Whether ``held`` has the bytes that were received. A damaged one has not: both are kept."""
        indexer, record_id = self._indexer, held.location.record_id
        if held.transfer_syntax_uid != self._transfer_syntax_uid or record_id in self._unlike:
            return False
        twin = (self._twins or {}).get(record_id)
        if twin is not None:  # all that came was the same
            return twin.data_bytes == self._stream.data_bytes
        try:
            if indexer.objects.data_set_bytes(held.location, held.stored_as) != self._stream.data_bytes:
                return False
            return same_stretches(
                indexer.objects.data_set(held.location, held.stored_as), self._stream.reader().stretches()
            )
        except (StorageError, CodecError):
            return False

    def _is_indexed(self, stored: Stored) -> bool:
        """Whether the index knows the record, or cannot say that it does not."""
        indexer = self._indexer
        try:
            with indexer.store.snapshot() as snapshot:
                if snapshot.get(QUARANTINE, stored.location.record_id) is not None:
                    return True
                held = indexer.held(snapshot, stored.row)
        except Exception:  # noqa: BLE001
            return True
        return any(one.location.record_id == stored.location.record_id for one in held)


def stream_row(found: StreamScanned, piece_bytes: int) -> StreamRow:
    """What the object's row says of its stream."""
    scanned, size = found.scanned, found.data_bytes
    if scanned.layout is Layout.HEADER_ONLY:
        return StreamRow(size, piece_bytes, size, size, 0)
    cuts = scanned.cuts
    frames = len(cuts) - 3
    first = cuts[2] - cuts[1]
    equal = cuts[1:-1] == list(range(cuts[1], cuts[1] + first * frames + 1, first)) if first else frames == 1
    return StreamRow(size, piece_bytes, cuts[1], cuts[-2], frames, first if equal else -1)


def _frame_table(found: StreamScanned, stream: StreamRow | None) -> bytes:
    """Where each frame begins, and where the last one ends: 8 bytes each. Nothing when arithmetic tells."""
    if stream is None or stream.frame_bytes >= 0 or not stream.frames:
        return b""
    places = found.scanned.cuts[1:-1]
    return struct.pack(f"<{len(places)}Q", *places)
