"""Objects that somebody should look at: in quarantine, damaged, in conflict, or kept although not whole.

What is listed names records and segments. UIDs stand in :class:`Questionable` for those who may see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.index import locations
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.remaining import row_part
from hounsfield.archive.index.rows import InstanceRow, Location, ObjectRow, QuarantineRow, SeriesRow, StudyRow
from hounsfield.archive.index.rows import decode as decode_row
from hounsfield.archive.index.suspects import FLAG_DAMAGED, SuspectRow
from hounsfield.archive.index.tables import (
    INSTANCE,
    QUARANTINE,
    SERIES,
    SERIES_HASH_BYTES,
    STUDY,
    STUDY_ID_BYTES,
    VERSION,
)
from hounsfield.archive.index.versions import FLAG_AGAIN, FLAG_CONFLICT
from hounsfield.storage_backends.api import KeyValueStore, Table
from hounsfield.storage_backends.errors import KeyringError, SealError, StorageError
from hounsfield.storage_backends.segments import SegmentLog

#: Problems that mean: something of the object is missing or cannot be used. Others are blemishes.
SPOILT = frozenset(
    {
        Problem.EMPTY, Problem.TRUNCATED, Problem.MISPLACED_DELIMITER, Problem.BAD_SEQUENCE,
        Problem.TOO_DEEP, Problem.TOO_MANY_ELEMENTS, Problem.BAD_DEFLATE, Problem.INFLATES_TOO_FAR,
        Problem.HEADER_TOO_LONG, Problem.TRAILER_TOO_LONG, Problem.PIXELS_TOO_SHORT,
        Problem.TOO_MANY_FRAMES, Problem.NO_SEQUENCE_END, Problem.FRAMES_NOT_SEPARABLE,
        Problem.FRAME_COUNT_DIFFERS, Problem.NOT_ENCAPSULATED,
    }
)  # fmt: skip


class Kind(StrEnum):
    """Why an object is listed."""

    QUARANTINED = "quarantined"  # no usable UID: it is in no study
    DAMAGED = "damaged"  # stored bytes do not open any more
    CONFLICT = "conflict"  # other content came under its UIDs: kept, not served
    SPOILT = "spoilt"  # served, but it was not whole when it came


@dataclass(frozen=True, slots=True)
class Questionable:
    """One object. ``record_id`` is how it is asked for; the UIDs identify a patient's study."""

    kind: Kind
    record_id: bytes
    segment: bytes
    reasons: tuple[str, ...]
    sop_class_uid: str
    transfer_syntax_uid: str
    received_ns: int
    table: str
    key: bytes
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""


Suspects = Sequence[tuple[bytes, SuspectRow]]


def page(
    store: KeyValueStore,
    catalog: Catalog,
    suspects: Suspects,
    kind: Kind,
    *,
    after: bytes = b"",
    limit: int = locations.PAGE_ROWS,
) -> tuple[list[Questionable], bytes | None]:
    """Some of one kind, and from where to go on; None at the end. Looks at ``limit`` rows at most."""
    if kind is Kind.DAMAGED:
        return list(_damaged(store, catalog, suspects)), None
    table, row_kind = _TABLES[kind]
    found: list[Questionable] = []
    last: bytes | None = None
    with store.snapshot() as snapshot:
        rows = list(snapshot.scan(table, after=after or None, limit=limit))
    for key, sealed in rows:
        held = locations.Located(table, key, sealed, locations.opened(catalog, table, key, sealed, row_kind))
        if one := _listed(store, catalog, kind, held):
            found.append(one)
    if len(rows) == limit:
        last = rows[-1][0]
    return found, last


_TABLES: dict[Kind, tuple[Table, type[InstanceRow | QuarantineRow]]] = {
    Kind.QUARANTINED: (QUARANTINE, QuarantineRow),
    Kind.CONFLICT: (VERSION, InstanceRow),
    Kind.SPOILT: (INSTANCE, InstanceRow),
}


def _listed(
    store: KeyValueStore, catalog: Catalog, kind: Kind, held: locations.Located
) -> Questionable | None:
    row = held.row
    if row is None:
        return None
    if isinstance(row, QuarantineRow):
        reasons: tuple[str, ...] = (row.reason,)
        sop_uid = ""
    else:
        reasons = row.flags
        if kind is Kind.SPOILT:
            reasons = tuple(flag for flag in row.flags if flag in SPOILT)
            if not reasons:
                return None
        elif kind is Kind.CONFLICT:
            if FLAG_AGAIN in row.flags:
                return None
            reasons = row.flags or (FLAG_CONFLICT,)
        sop_uid = row.sop_uid
    study_uid, series_uid = ("", "") if held.table == QUARANTINE else _uids(store, catalog, held.key)
    location = row.location
    return Questionable(
        kind, location.record_id, location.segment, reasons, row.sop_class_uid, row.transfer_syntax_uid,
        row.received_ns, held.table.name, held.key, study_uid, series_uid, sop_uid,
    )  # fmt: skip


def _damaged(store: KeyValueStore, catalog: Catalog, suspects: Suspects) -> Iterator[Questionable]:
    tables = {table.name: table for table, _ in locations.LOCATED}
    for _, suspect in suspects:
        if not suspect.confirmed:
            continue
        for name, key in suspect.keys:
            held = locations.again(store, catalog, locations.Located(tables[name], key, b"", None))
            one = None if held is None else _listed(store, catalog, Kind.DAMAGED, held)
            if one is not None:
                yield Questionable(
                    Kind.DAMAGED, one.record_id, one.segment, (suspect.reason,), one.sop_class_uid,
                    one.transfer_syntax_uid, one.received_ns, name, key, one.study_uid, one.series_uid,
                    one.sop_uid,
                )  # fmt: skip


def _uids(store: KeyValueStore, catalog: Catalog, key: bytes) -> tuple[str, str]:
    """The study and the series that an instance's row belongs to, when their rows open."""
    study_id, series_key = key[:STUDY_ID_BYTES], key[: STUDY_ID_BYTES + SERIES_HASH_BYTES]
    with store.snapshot() as snapshot:
        study, series = snapshot.get(STUDY, study_id), snapshot.get(SERIES, series_key)
    try:
        return (
            "" if study is None else catalog.open_row(STUDY, study_id, study, StudyRow).uid,
            "" if series is None else catalog.open_row(SERIES, series_key, series, SeriesRow).uid,
        )
    except (SealError, msgspec.MsgspecError):
        return "", ""


def find(
    store: KeyValueStore, catalog: Catalog, suspects: Suspects, record_id: bytes
) -> InstanceRow | QuarantineRow | None:
    """The row of a listed object, by its record id. Walks the index when it must."""
    with store.snapshot() as snapshot:
        sealed = snapshot.get(QUARANTINE, record_id)
    if sealed is not None:
        return catalog.open_row(QUARANTINE, record_id, sealed, QuarantineRow)
    tables = {table.name: table for table, _ in locations.LOCATED}
    for _, suspect in suspects:
        for name, key in suspect.keys:
            held = locations.again(store, catalog, locations.Located(tables[name], key, b"", None))
            if held is not None and held.location is not None and held.location.record_id == record_id:
                return held.row
    for start in ((1, b""), (0, b"")):  # versions first: they are few
        for _, rows in locations.walk(store, catalog, start):
            for one in rows:
                if one.location is not None and one.location.record_id == record_id:
                    return one.row
    return None


def carried(log: SegmentLog, location: Location) -> ObjectRow | None:
    """What the record itself says of its object; None when it does not open."""
    try:
        return decode_row(ObjectRow, log.open_part(row_part(location)))
    except (StorageError, KeyringError, msgspec.MsgspecError, OSError):
        return None


def as_instance(log: SegmentLog, row: InstanceRow | QuarantineRow) -> InstanceRow:
    """A row that the object's bytes can be read with, also of one that is in no study."""
    if isinstance(row, InstanceRow):
        return row
    object_row = carried(log, row.location)
    return InstanceRow(
        object_row.sop_uid if object_row else "",
        row.sop_class_uid,
        row.transfer_syntax_uid,
        row.location,
        object_row.layout if object_row else 0,
        {},
        row.received_ns,
        (),
        object_row.stored_as if object_row else "",
    )


__all__ = ["FLAG_DAMAGED", "SPOILT", "Kind", "Questionable", "as_instance", "carried", "find", "page"]
