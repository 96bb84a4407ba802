"""Reading one consistent view of an LMDB store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile
from typing import Any

from hounsfield.storage_backends.api import Table, TableKind
from hounsfield.storage_backends.tables import check_key, check_kind

__all__ = ["LmdbSnapshot"]


class LmdbSnapshot:
    """A ``Snapshot`` over one read transaction. It belongs to the thread that opened it."""

    __slots__ = ("_handles", "_tables", "_transaction")

    def __init__(self, transaction: Any, tables: dict[str, Table], handles: dict[str, Any]) -> None:
        self._transaction = transaction
        self._tables = tables
        self._handles = handles

    def close(self) -> None:
        """Reads after this raise ``RuntimeError``; the owner of the transaction ends it."""
        self._transaction = None

    def get(self, table: Table, key: bytes) -> bytes | None:
        transaction = self._transaction or self._closed()
        check_kind(self._tables, table, TableKind.PLAIN, TableKind.LOG)
        check_key(key)
        found: bytes | None = transaction.get(key, db=self._handles[table.name])
        return found

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        transaction = self._transaction or self._closed()
        check_kind(self._tables, table, TableKind.PLAIN, TableKind.LOG)
        get, handle = transaction.get, self._handles[table.name]
        for key in keys:
            check_key(key)
        return [get(key, db=handle) for key in keys]

    def scan(
        self,
        table: Table,
        *,
        prefix: bytes = b"",
        after: bytes | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        check_kind(self._tables, table, TableKind.PLAIN, TableKind.LOG)
        transaction = self._transaction or self._closed()
        with transaction.cursor(db=self._handles[table.name]) as cursor:
            found = _before(cursor, prefix, after) if reverse else _behind(cursor, prefix, after)
            step = cursor.prev if reverse else cursor.next
            given = 0
            while found and given != limit:
                key, value = cursor.item()
                if not key.startswith(prefix):
                    return
                yield key, value
                given += 1
                if self._transaction is None:
                    self._closed()
                found = step()

    def scan_each(self, table: Table, prefixes: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        check_kind(self._tables, table, TableKind.PLAIN, TableKind.LOG)
        transaction = self._transaction or self._closed()
        with transaction.cursor(db=self._handles[table.name]) as cursor:
            set_range, item, following = cursor.set_range, cursor.item, cursor.next
            for prefix in prefixes:
                found = set_range(prefix) if prefix else cursor.first()
                while found:
                    entry = item()
                    if not entry[0].startswith(prefix):
                        break
                    yield entry
                    if self._transaction is None:
                        self._closed()
                    found = following()

    def postings(
        self,
        table: Table,
        key: bytes,
        *,
        after: bytes | None = None,
        before: bytes | None = None,
        limit: int | None = None,
    ) -> list[bytes]:
        check_kind(self._tables, table, TableKind.POSTINGS)
        check_key(key)
        transaction = self._transaction or self._closed()
        if limit is not None and limit <= 0:
            return []
        with transaction.cursor(db=self._handles[table.name]) as cursor:
            if after is None:
                found = cursor.set_key(key)
            else:
                found = cursor.set_range_dup(key, after)
                if found and cursor.value() == after:
                    found = cursor.next_dup()
            if not found:
                return []
            values = cursor.iternext_dup()
            if before is not None:
                values = takewhile(before.__gt__, values)
            return list(islice(values, limit))

    def intersect(
        self,
        table: Table,
        keys: Sequence[bytes],
        *,
        after: bytes | None = None,
        before: bytes | None = None,
        limit: int | None = None,
    ) -> list[bytes]:
        """Leapfrog: every list in turn seeks to the highest value seen, shortest list first."""
        check_kind(self._tables, table, TableKind.POSTINGS)
        if not keys:
            raise ValueError("an intersection needs at least one key")
        unique = list(dict.fromkeys(keys))
        if len(unique) == 1:
            return self.postings(table, unique[0], after=after, before=before, limit=limit)
        transaction = self._transaction or self._closed()
        lists: list[tuple[int, bytes, Any]] = []
        for key in unique:
            check_key(key)
            cursor = transaction.cursor(db=self._handles[table.name])
            if not cursor.set_key(key):
                return []
            lists.append((cursor.count(), key, cursor))
        lists.sort(key=lambda entry: entry[0])
        return _leapfrog([(key, cursor) for _, key, cursor in lists], after, before, limit)

    def entries(
        self, table: Table, *, after: tuple[bytes, bytes] | None = None, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        check_kind(self._tables, table, TableKind.POSTINGS)
        transaction = self._transaction or self._closed()
        with transaction.cursor(db=self._handles[table.name]) as cursor:
            if after is None:
                found = cursor.first()
            else:
                found = cursor.set_range(after[0])
                if found and cursor.key() == after[0]:
                    found = cursor.set_range_dup(*after)
                    if found and cursor.value() == after[1]:
                        found = cursor.next()
                    elif not found:  # every value of that key lies before it
                        found = cursor.set_key(after[0]) and cursor.next_nodup()
            given = 0
            while found and given != limit:
                yield cursor.item()
                given += 1
                if self._transaction is None:
                    self._closed()
                found = cursor.next()

    def count(self, table: Table, key: bytes) -> int:
        check_kind(self._tables, table, TableKind.POSTINGS)
        check_key(key)
        transaction = self._transaction or self._closed()
        with transaction.cursor(db=self._handles[table.name]) as cursor:
            return int(cursor.count()) if cursor.set_key(key) else 0

    def last(self, table: Table) -> int:
        check_kind(self._tables, table, TableKind.LOG)
        transaction = self._transaction or self._closed()
        with transaction.cursor(db=self._handles[table.name]) as cursor:
            return int.from_bytes(cursor.key(), "big") if cursor.last() else 0

    @staticmethod
    def _closed() -> Any:
        raise RuntimeError("this snapshot is closed: read inside its with block")


def _leapfrog(
    lists: list[tuple[bytes, Any]], after: bytes | None, before: bytes | None, limit: int | None
) -> list[bytes]:
    found: list[bytes] = []
    if limit is not None and limit <= 0:
        return found
    first_key, first = lists[0]
    if after is not None:
        if not first.set_range_dup(first_key, after):
            return found
        if first.value() == after and not first.next_dup():
            return found
    candidate = first.value()
    while before is None or candidate < before:
        for key, cursor in lists[1:]:
            if not cursor.set_range_dup(key, candidate):
                return found
            value = cursor.value()
            if value != candidate:
                if not first.set_range_dup(first_key, value):
                    return found
                candidate = first.value()
                break
        else:
            found.append(candidate)
            if len(found) == limit or not first.next_dup():
                return found
            candidate = first.value()
    return found


def _behind(cursor: Any, prefix: bytes, after: bytes | None) -> bool:
    """Place the cursor at the first key of a scan."""
    if after is None or after < prefix:
        return bool(cursor.set_range(prefix)) if prefix else bool(cursor.first())
    found = bool(cursor.set_range(after))
    return bool(cursor.next()) if found and cursor.key() == after else found


def _before(cursor: Any, prefix: bytes, after: bytes | None) -> bool:
    """Place the cursor at the first key of a reversed scan."""
    bound = _end_of(prefix)
    if after is not None and (bound is None or after < bound):
        bound = after
    if bound is None:
        return bool(cursor.last())
    return bool(cursor.prev()) if cursor.set_range(bound) else bool(cursor.last())


def _end_of(prefix: bytes) -> bytes | None:
    """The first key behind every key that begins with ``prefix``; None when there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None
