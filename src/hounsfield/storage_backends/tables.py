"""What every key-value backend checks in the same way: tables, keys, values, batches."""

from __future__ import annotations

from collections.abc import Sequence

from hounsfield.storage_backends.api import Batch, Table, TableKind

__all__ = ["KEY_BYTES_MAX", "check_batch", "check_key", "check_kind", "check_tables", "sequence_key"]

KEY_BYTES_MAX = 511
"""LMDB's build-time limit, which other backends keep too, so that data can move between them."""

VALUE_BYTES_MAX = 64 << 20
"""A value is a record or an artefact of a series, never an object: those are blobs."""


def check_tables(tables: Sequence[Table]) -> dict[str, Table]:
    """The tables by name; ``ValueError`` when two share one or a size makes no sense."""
    by_name = {table.name: table for table in tables}
    if len(by_name) != len(tables) or not all(by_name):
        raise ValueError("every table needs a name of its own")
    for table in tables:
        fixed = table.kind is TableKind.POSTINGS
        if fixed != bool(table.value_bytes) or not 0 <= table.value_bytes <= KEY_BYTES_MAX:
            raise ValueError(
                f"table {table.name!r}: value_bytes is 1 to {KEY_BYTES_MAX} for postings, else 0"
            )
    return by_name


def check_kind(tables: dict[str, Table], table: Table, *kinds: TableKind) -> None:
    """``ValueError`` when the store was not opened with ``table`` or the operation is not for its kind."""
    known = tables.get(table.name)
    if known is not table and known != table:
        raise ValueError(f"the store was not opened with table {table.name!r} (of this kind and size)")
    if table.kind not in kinds:
        raise ValueError(f"table {table.name!r} is of kind {table.kind.value}: not for this operation")


def check_key(key: bytes) -> None:
    """``ValueError`` unless ``key`` has 1 to 511 bytes."""
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise ValueError(f"a key has 1 to {KEY_BYTES_MAX} bytes, not {len(key)}")


def check_batch(tables: dict[str, Table], batch: Batch) -> None:
    """``ValueError`` for anything no backend could do: it is a mistake of the caller's, not a failure."""
    for table, key, _ in batch.preconditions:
        check_kind(tables, table, TableKind.PLAIN)
        check_key(key)
    for table, key, value in batch.puts:
        check_kind(tables, table, TableKind.PLAIN)
        check_key(key)
        if len(value) > VALUE_BYTES_MAX:
            raise ValueError(f"a value has at most {VALUE_BYTES_MAX} bytes, not {len(value)}: store a blob")
    for table, key in batch.deletes:
        check_kind(tables, table, TableKind.PLAIN, TableKind.POSTINGS)
        check_key(key)
    for table, key, value in (*batch.adds, *batch.removes):
        check_kind(tables, table, TableKind.POSTINGS)
        check_key(key)
        if len(value) != table.value_bytes:
            raise ValueError(
                f"values of table {table.name!r} have {table.value_bytes} bytes, not {len(value)}"
            )
    for table, _ in batch.appends:
        check_kind(tables, table, TableKind.LOG)


def sequence_key(sequence: int) -> bytes:
    """The key of an entry of a LOG table."""
    return sequence.to_bytes(8, "big")
