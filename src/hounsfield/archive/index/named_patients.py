"""Whom the objects of a study name: one study is of one patient, unless a device or a person was mistaken.

What a study shows is what its first objects said, with corrections; that an object of somebody else in it
disagrees, the study's row remembers. Only then is each object's own record asked.
"""

from __future__ import annotations

from typing import Final

from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.merged_attributes import FLAG_DEMOGRAPHICS
from hounsfield.archive.index.remaining import Carried
from hounsfield.archive.index.rows import Attributes, InstanceRow, StudyRow
from hounsfield.storage_backends.api import Snapshot

__all__ = ["IDENTITY", "names_others", "patients_named"]

IDENTITY: Final = (0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040)
"""Name, ID, issuer of the ID, birth date and sex (PS3.3 C.7.1.1)."""
_DISAGREEING: Final = frozenset(f"{FLAG_DEMOGRAPHICS}:{tag:08X}" for tag in IDENTITY)
OBJECTS_ASKED_MAX: Final = 10_000
"""Each takes some dozens of microseconds, of a thread of its own."""


def names_others(study: StudyRow) -> bool:
    """Whether objects of a study say otherwise of their patient than those that came before them."""
    return not _DISAGREEING.isdisjoint(study.flags)


def patients_named(
    indexer: Indexer, catalog: Catalog, snapshot: Snapshot, study_uid: str
) -> list[Attributes]:
    """What a study's objects say of their patient, as they came, each set once, the first received first.

    None where all agree, or where there is no such study. Objects that lie in another tier are not asked.
    """
    study = catalog.study(snapshot, study_uid)
    if study is None or not names_others(study):
        return []
    carried = Carried(indexer)
    rows: list[InstanceRow] = []
    for key, _ in catalog.series_of(snapshot, catalog.study_id(study_uid)):
        for row in catalog.instances_of(snapshot, key):
            if len(rows) < OBJECTS_ASKED_MAX and indexer.log.is_near(row.location.segment):
                rows.append(row)
    rows.sort(key=lambda row: row.received_ns)
    found: dict[tuple[str, ...], None] = {}
    for row in rows:
        said = carried.row(row.location)
        if said is not None:
            found[tuple(said.study.get(tag, "") for tag in IDENTITY)] = None
    return [dict(zip(IDENTITY, one, strict=True)) for one in found]
