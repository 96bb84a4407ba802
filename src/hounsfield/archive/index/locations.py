"""Everything in the index that points into a segment, page by page, and how it is pointed elsewhere.

Walks take a snapshot for each page, so that they may last for hours; what changes meanwhile is seen as it
is when its page is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from msgspec import structs

from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.rows import InstanceRow, Location, QuarantineRow, encode
from hounsfield.archive.index.sealed import RowSealer
from hounsfield.archive.index.tables import INSTANCE, QUARANTINE, VERSION
from hounsfield.storage_backends.api import Batch, KeyValueStore, Table
from hounsfield.storage_backends.errors import SealError

#: The tables whose rows have a location, in the order of a walk.
LOCATED: tuple[tuple[Table, type[InstanceRow | QuarantineRow]], ...] = (
    (INSTANCE, InstanceRow),
    (VERSION, InstanceRow),
    (QUARANTINE, QuarantineRow),
)
PAGE_ROWS = 1000  # some 10 ms of opening rows: a snapshot is held no longer

Position = tuple[int, bytes]
"""Where a walk goes on: which of the tables, and the last key done."""

START: Position = (0, b"")


@dataclass(frozen=True, slots=True)
class Located:
    """One row with a location, as it was read. ``row`` is None when it does not open."""

    table: Table
    key: bytes
    sealed: bytes
    row: InstanceRow | QuarantineRow | None

    @property
    def location(self) -> Location | None:
        return None if self.row is None else self.row.location


def walk(
    store: KeyValueStore, catalog: Catalog, start: Position = START, *, page: int = PAGE_ROWS
) -> Iterator[tuple[Position, list[Located]]]:
    """Every row with a location from ``start`` on, with the position behind each page."""
    number, after = start
    while number < len(LOCATED):
        table, kind = LOCATED[number]
        with store.snapshot() as snapshot:
            found = list(snapshot.scan(table, after=after or None, limit=page))
        rows = [
            Located(table, key, sealed, opened(catalog, table, key, sealed, kind)) for key, sealed in found
        ]
        if len(found) == page:
            after = found[-1][0]
        else:
            number, after = number + 1, b""
        yield (number, after), rows


def opened(
    catalog: Catalog,
    table: Table,
    key: bytes,
    sealed: bytes,
    kind: type[InstanceRow | QuarantineRow],
) -> InstanceRow | QuarantineRow | None:
    """The row, or None when it does not open or decode."""
    try:
        return catalog.open_row(table, key, sealed, kind)
    except (SealError, msgspec.MsgspecError):
        return None


def again(store: KeyValueStore, catalog: Catalog, held: Located) -> Located | None:
    """The same row as it is now; None when it is gone."""
    with store.snapshot() as snapshot:
        sealed = snapshot.get(held.table, held.key)
    if sealed is None:
        return None
    kind: type[InstanceRow | QuarantineRow] = InstanceRow if held.table != QUARANTINE else QuarantineRow
    return Located(held.table, held.key, sealed, opened(catalog, held.table, held.key, sealed, kind))


def point_elsewhere(  # noqa: PLR0917
    batch: Batch,
    sealer: RowSealer,
    held: Located,
    location: Location,
    flags: tuple[str, ...] | None = None,
    stored_as: str | None = None,
) -> None:
    """Have ``batch`` give a row another location (and flags, and how frames are stored there), if it is still
    as it was read."""
    if held.row is None:
        raise ValueError("a row that does not open is not rewritten")
    new = structs.replace(held.row, location=location)
    if stored_as is not None and isinstance(new, InstanceRow):
        new = structs.replace(new, stored_as=stored_as)
    if flags is not None and isinstance(new, InstanceRow):
        new = structs.replace(new, flags=flags)
    batch.require(held.table, held.key, held.sealed)
    batch.put(held.table, held.key, sealer.seal(held.table, held.key, encode(new)))
