"""What an index holds, as plain values: to compare it with another, or with itself after a reindex."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.rows import (
    InstanceRow,
    PatientRow,
    QuarantineRow,
    SeriesRow,
    SpareRow,
    StudyRow,
    UseRow,
    decode,
)
from hounsfield.archive.index.tables import (
    INSTANCE,
    PATIENT,
    PLACE,
    QUARANTINE,
    SERIES,
    SPARE,
    STUDY,
    TOKEN,
    TOMBSTONE,
    USE,
    VERSION,
)

_SEALED = {
    PATIENT: PatientRow,
    STUDY: StudyRow,
    SERIES: SeriesRow,
    INSTANCE: InstanceRow,
    VERSION: InstanceRow,
    QUARANTINE: QuarantineRow,
}
_TIMES = {"changed_ns", "since_ns"}  # when a row was written is not a matter of what is stored


def contents(stores: Stores) -> dict[str, Any]:
    """Every row of the catalog, opened, without the times at which rows were written."""
    found: dict[str, Any] = {}
    with stores.store.snapshot() as snapshot:
        for table, kind in _SEALED.items():
            rows = {
                key: structs.asdict(stores.catalog.open_row(table, key, held, kind))
                for key, held in snapshot.scan(table)
            }
            for row in rows.values():
                for name in _TIMES & row.keys():
                    del row[name]
                if table is STUDY:
                    del row["received_ns"]
                if table is PATIENT:
                    del row["attributes"]
            found[table.name] = rows
        for table in (PLACE, TOKEN):
            found[table.name] = set(snapshot.entries(table))
        found["spare"] = {key: decode(SpareRow, held).length for key, held in snapshot.scan(SPARE)}
        found["use"] = {
            key: (use.dead_bytes, use.dead_records)
            for key, use in ((key, decode(UseRow, held)) for key, held in snapshot.scan(USE))
        }
        found["tombstone"] = {
            key: {held[start : start + 16] for start in range(0, len(held), 16)}
            for key, held in snapshot.scan(TOMBSTONE)
        }
    return found
