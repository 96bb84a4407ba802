"""What a study says of itself when some of its objects are gone, or were indexed in another order.

A study's and a series' attributes are those of the object that was received first, filled in by the next
ones; of an object of which several versions are kept, the first received speaks. That is a function of what
is stored, so it is computed anew from the rows that the records carry, wherever it could have changed: a
deletion leaves what a reindex gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import msgspec

from hounsfield.archive.index.draft import StudyDraft
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.merged_attributes import FLAG_DEMOGRAPHICS
from hounsfield.archive.index.rows import (
    RECORD_KIND_OBJECT,
    InstanceRow,
    Location,
    ObjectRow,
    SeriesRow,
    StudyRow,
    decode,
)
from hounsfield.archive.index.tables import SERIES, STUDY, STUDY_ID_BYTES, VERSION
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.errors import PreconditionError, StorageError
from hounsfield.storage_backends.segment_format import PartRef, framing_length

WITNESSES_MAX = 4  # of a study's objects that are asked whether they say the same; mostly the first does
ATTEMPTS_MAX = 100
ROWS_PER_SNAPSHOT = 2000


class Carried:
    """What records say of themselves, each read once."""

    def __init__(self, indexer: Indexer) -> None:
        self._indexer = indexer
        self._log = indexer.log
        self._known: dict[bytes, ObjectRow | None] = {}
        self._lengths: dict[bytes, int] = {}

    def row(self, location: Location) -> ObjectRow | None:
        """What a record says of its object; None when it does not open (nor would a reindex have it)."""
        record_id = location.record_id
        if record_id not in self._known:
            try:
                row = decode(ObjectRow, self._log.open_part(row_part(location)))
            except (StorageError, msgspec.MsgspecError):
                self._known[record_id] = None
            else:
                self._known[record_id] = row
        return self._known[record_id]

    def stored_bytes(self, location: Location) -> int:
        """Stored bytes of an object's record."""
        length = self._lengths.get(location.record_id)
        if length is None:
            length = self._lengths[location.record_id] = self._indexer.objects.stored_bytes(location)
        return length

    def settle(self, draft: StudyDraft, *, always: bool = False) -> None:
        """Have ``draft`` say of study and changed series what the objects that stay say of them.

        Reads one object when all of them agree, else every one.
        """
        if not draft.is_left():
            return
        if always or draft.disagrees(FLAG_DEMOGRAPHICS) or not self._is_witnessed(draft):
            rows = [(uid, row, self.row(row.location)) for uid, row in draft.remaining()]
            rows.sort(key=lambda entry: entry[1].received_ns)
            draft.regroup()
            draft.remerge((uid, row, carried) for uid, row, carried in rows if carried is not None)

    def _is_witnessed(self, draft: StudyDraft) -> bool:
        """Whether one object that stays says all that the study says, and one of each series what it says."""
        if draft.is_corrected or not self._says(draft.remaining(), draft, None):
            return False
        return all(self._says(draft.remaining(uid), draft, uid) for uid in draft.left_series())

    def _says(
        self, remaining: Iterable[tuple[str, InstanceRow]], draft: StudyDraft, series_uid: str | None
    ) -> bool:
        wanted = draft.attributes if series_uid is None else draft.series(series_uid).attributes
        for _, row in islice(remaining, WITNESSES_MAX):
            carried = self.row(row.location)
            if carried is not None and (carried.study if series_uid is None else carried.series) == wanted:
                return True
        return False


def row_part(location: Location) -> PartRef:
    """The part of an object's record that is its row."""
    parts = 4 if location.stream is not None else location.frames + 3
    return PartRef(
        segment=location.segment,
        record_id=location.record_id,
        part=0,
        part_count=parts,
        offset=location.offset + framing_length(parts),
        length=location.row_bytes,
        kind=RECORD_KIND_OBJECT,
    )


def settle_order(indexer: Indexer) -> int:
    """After a reindex: have every study say what it would say had its objects been indexed as they came.

    Segments are read in any order. Where all objects of a study agree that makes no difference; the others
    are known by their flags and by the versions kept. How many were looked at.
    """
    catalog = indexer.catalog
    doubtful: set[bytes] = set()
    for table in (STUDY, SERIES, VERSION):
        after: bytes | None = None
        while True:
            with indexer.store.snapshot() as snapshot:
                found = list(snapshot.scan(table, after=after, limit=ROWS_PER_SNAPSHOT))
                for key, held in found:
                    flags: tuple[str, ...] = ()
                    if table is STUDY:
                        flags = catalog.open_row(table, key, held, StudyRow).flags
                    elif table is SERIES:
                        flags = catalog.open_row(table, key, held, SeriesRow).flags
                    if table is VERSION or any(flag.startswith(FLAG_DEMOGRAPHICS) for flag in flags):
                        doubtful.add(key[:STUDY_ID_BYTES])
            if len(found) < ROWS_PER_SNAPSHOT:
                break
            after = found[-1][0]
    for study_id in sorted(doubtful):
        settle_study(indexer, study_id)
    return len(doubtful)


def settle_study(indexer: Indexer, study_id: bytes) -> None:
    """Have one study, and all its series, say what its objects say in the order they were received."""
    catalog, carried = indexer.catalog, Carried(indexer)
    for _ in range(ATTEMPTS_MAX):
        indexer.prepare(1)
        with indexer.store.snapshot() as snapshot:
            study = catalog.study_by_id(snapshot, study_id)
            if study is None:
                return
            draft = StudyDraft(catalog, snapshot, study.uid)
            for _, series in catalog.series_of(snapshot, study_id):
                draft.touch(series.uid)
            carried.settle(draft, always=True)
            batch: Batch = draft.finish(study.changed_ns)
        batch.uses_reserve = True
        try:
            indexer.store.commit(batch)
        except PreconditionError:
            continue
        return
