"""Which rejections are in force for a study: rows that hold, for each study, what concerns that study.

They are changed by the fact of a rejection, and made known before anything is indexed in a recovery.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from hounsfield.archive.index.corrections import CORRECTIONS, View, number_key, study_key
from hounsfield.archive.index.rows import CorrectionRow, CorrectionsRow, Event
from hounsfield.archive.index.tables import CORRECTION, META
from hounsfield.storage_backends.api import Batch, Snapshot

if TYPE_CHECKING:
    from hounsfield.archive.index.catalog import Catalog
    from hounsfield.archive.index.indexing import Indexer

FACT_REJECTION = "rejection"
STUDIES_PER_COMMIT = 256  # of a recovery's: a row for each


def rejection_of(body: Mapping[str, Any]) -> CorrectionRow:
    """A rejection out of its fact's body."""
    return msgspec.convert(body, CorrectionRow)


def expired_at(bodies: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """When what was received before expired, by SOP Instance UID, of rejections in force and undone ones."""
    found: dict[str, set[int]] = {}
    for row in map(rejection_of, bodies):
        if row.before_ns:
            for by_series in row.rejected.values():
                for sop_uids in by_series.values():
                    for sop_uid in sop_uids:
                        found.setdefault(sop_uid, set()).add(row.before_ns)
    return {sop_uid: tuple(moments) for sop_uid, moments in found.items()}


def announce_rejections(indexer: Indexer, facts: Iterable[Event], *, index_is_empty: bool) -> None:
    """Have rejections that are to be replayed hide what they hide before anything is indexed.

    For an index that is behind the ledger. Those that mean what was received before them: an object that was
    sent again since is not another record of the hidden one, and would be taken for it. So also when one was
    undone later, which is replayed in its turn: the note may be followed once more.

    An index that is made anew also hears of all others that are in force in the end: what they hide is filed
    where it stays, and not taken out of its study by one fact after the other, all of the study each time.
    """
    last = {event.body["name"]: event for event in facts if event.kind == FACT_REJECTION}
    by_study: dict[str, list[CorrectionRow]] = {}
    number = 0
    for event in last.values():
        row = rejection_of(event.body["body"])
        if row.before_ns or (index_is_empty and not row.reverted_ns):
            number = max(number, row.number)
            for study_uid, part in _parts(structs.replace(row, reverted_ns=0)):
                by_study.setdefault(study_uid, []).append(part)
    ahead = list(by_study.items())
    for start in range(0, len(ahead), STUDIES_PER_COMMIT):
        some = ahead[start : start + STUDIES_PER_COMMIT]
        indexer.prepare(len(some))
        batch = Batch(uses_reserve=True)
        with indexer.store.snapshot() as snapshot:
            view = View(indexer.catalog, snapshot)
            for study_uid, parts in some:
                _put_rows(indexer.catalog, snapshot, batch, study_key(indexer.catalog, study_uid), {
                    one.number: one for one in (*view.of_study(study_uid), *parts)
                }.values())  # fmt: skip
        batch.put(META, CORRECTIONS, number_key(number))
        indexer.store.commit(batch)


def _put_rows(
    catalog: Catalog, snapshot: Snapshot, batch: Batch, key: bytes, rows: Iterable[CorrectionRow]
) -> None:
    """Have ``batch`` make these the corrections in force for a study or patient."""
    batch.require(CORRECTION, key, snapshot.get(CORRECTION, key))
    now = tuple(sorted(rows, key=lambda one: one.number))
    if now:
        catalog.put_row(batch, CORRECTION, key, CorrectionsRow(now))
    else:
        batch.delete(CORRECTION, key)


def plan_rows(catalog: Catalog, snapshot: Snapshot, batch: Batch, row: CorrectionRow) -> None:
    """Have ``batch`` put a rejection among what is in force for the studies that it names, or take it out.

    A study that has it already, as in a recovery, is left as it is: it may have very many.
    """
    view = View(catalog, snapshot)
    for key, now in rows_with(catalog, snapshot, row).items():
        if now != view.of(key):
            _put_rows(catalog, snapshot, batch, key, now)


def rows_with(
    catalog: Catalog, snapshot: Snapshot, row: CorrectionRow
) -> dict[bytes, tuple[CorrectionRow, ...]]:
    """What is in force for each study of which a rejection names objects, with that rejection.

    A study has of it what concerns that study: a note that names thousands of them would otherwise be written
    thousands of times. The whole is in the fact, its state and the ledger.
    """
    view = View(catalog, snapshot)
    rows: dict[bytes, tuple[CorrectionRow, ...]] = {}
    for study_uid, part in _parts(row):
        others = [one for one in view.of_study(study_uid) if one.number != row.number]
        now = [*others, *([] if row.reverted_ns else [part])]
        rows[study_key(catalog, study_uid)] = tuple(sorted(now, key=lambda one: one.number))
    return rows


def _parts(row: CorrectionRow) -> Iterator[tuple[str, CorrectionRow]]:
    """The studies of which a rejection names objects, each with what it names of it."""
    for study_uid, by_series in row.rejected.items():
        yield study_uid, structs.replace(row, rejected={study_uid: by_series})
