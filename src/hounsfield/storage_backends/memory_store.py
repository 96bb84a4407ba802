"""The key-value contract in dictionaries: the semantics in their plainest form, for tests.

A snapshot is a copy, a commit works on a copy and puts it in place when all of it went well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from hounsfield.storage_backends.api import Batch, CommitResult, Snapshot, Table, TableKind
from hounsfield.storage_backends.errors import PreconditionError
from hounsfield.storage_backends.tables import (
    check_batch,
    check_key,
    check_kind,
    check_tables,
    sequence_key,
)

__all__ = ["MemoryStore"]

_Plain = dict[bytes, bytes]
_Postings = dict[bytes, set[bytes]]


class _State:
    """All tables at one moment."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.plain: dict[str, _Plain] = {t.name: {} for t in tables if t.kind is not TableKind.POSTINGS}
        self.postings: dict[str, _Postings] = {t.name: {} for t in tables if t.kind is TableKind.POSTINGS}

    def copy(self) -> _State:
        new = _State(())
        new.plain = {name: dict(content) for name, content in self.plain.items()}
        new.postings = {
            name: {key: set(values) for key, values in content.items()}
            for name, content in self.postings.items()
        }
        return new


class MemoryStore:
    """A ``KeyValueStore`` that forgets everything with the process. Thread-safe."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = check_tables(tables)
        self._lock = threading.RLock()
        self._state = _State(tables)
        self._commits = 0

    @contextmanager
    def snapshot(self) -> Iterator[MemorySnapshot]:
        with self._lock:
            view = MemorySnapshot(self._tables, self._state)  # a state in place is never changed again
        try:
            yield view
        finally:
            view.close()

    def commit(self, batch: Batch) -> CommitResult:
        (result,) = self.commit_many([batch])
        if isinstance(result, Exception):
            raise result
        return result

    def commit_many(
        self,
        batches: Sequence[Batch],
        *,
        before_commit: Callable[[list[CommitResult | Exception]], None] | None = None,
    ) -> list[CommitResult | Exception]:
        return self._commit(lambda _: batches, before_commit)

    def commit_planned(self, plan: Callable[[Snapshot], Sequence[Batch]]) -> list[CommitResult | Exception]:
        return self._commit(plan, None)

    def _commit(
        self,
        plan: Callable[[Snapshot], Sequence[Batch]],
        before_commit: Callable[[list[CommitResult | Exception]], None] | None,
    ) -> list[CommitResult | Exception]:
        results: list[CommitResult | Exception] = []
        with self._lock:
            state = self._state
            for batch in plan(MemorySnapshot(self._tables, state)):
                trial = state.copy()
                try:
                    check_batch(self._tables, batch)
                    results.append(_apply(trial, batch))
                except Exception as error:  # noqa: BLE001 - whatever a callback raises is that batch's answer
                    results.append(error)
                else:
                    state = trial
            if state is not self._state:
                if before_commit is not None:
                    before_commit(results)
                self._state = state
                self._commits += 1
        return results

    def sync(self) -> None:
        """Nothing here survives a power cut."""

    def statistics(self) -> dict[str, int]:
        return {"commits": self._commits}

    def close(self) -> None:
        """Nothing to give back."""


def _apply(state: _State, batch: Batch) -> CommitResult:
    for table, key, expected in batch.preconditions:
        if state.plain[table.name].get(key) != expected:
            raise PreconditionError(table.name, key)
    for table, key in batch.deletes:
        if table.kind is TableKind.POSTINGS:
            state.postings[table.name].pop(key, None)
        else:
            state.plain[table.name].pop(key, None)
    for table, key, value in batch.puts:
        state.plain[table.name][key] = bytes(value)
    for table, key, value in batch.removes:
        values = state.postings[table.name].get(key, set())
        values.discard(value)
        if not values:
            state.postings[table.name].pop(key, None)
    for table, key, value in batch.adds:
        state.postings[table.name].setdefault(key, set()).add(bytes(value))
    sequences = []
    for table, make in batch.appends:
        log = state.plain[table.name]
        sequence = int.from_bytes(max(log, default=b""), "big") + 1
        log[sequence_key(sequence)] = bytes(make(sequence))
        sequences.append(sequence)
    result = CommitResult(tuple(sequences))
    for call in batch.before_commit:
        call(result)
    return result


class MemorySnapshot:
    """A view of one state."""

    def __init__(self, tables: dict[str, Table], state: _State) -> None:
        self._tables = tables
        self._state: _State | None = state

    def close(self) -> None:
        self._state = None

    def get(self, table: Table, key: bytes) -> bytes | None:
        check_kind(self._tables, table, TableKind.PLAIN, TableKind.LOG)
        check_key(key)
        return self._open().plain[table.name].get(key)

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(table, key) for key in keys]

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
        content = self._open().plain[table.name]
        keys = sorted((key for key in content if key.startswith(prefix)), reverse=reverse)
        given = 0
        for key in keys:
            if after is not None and (key >= after if reverse else key <= after):
                continue
            if given == limit:
                return
            self._open()
            given += 1
            yield key, content[key]

    def scan_each(self, table: Table, prefixes: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for prefix in prefixes:
            yield from self.scan(table, prefix=prefix)

    def postings(
        self,
        table: Table,
        key: bytes,
        *,
        after: bytes | None = None,
        before: bytes | None = None,
        limit: int | None = None,
    ) -> list[bytes]:
        return self.intersect(table, [key], after=after, before=before, limit=limit)

    def intersect(
        self,
        table: Table,
        keys: Sequence[bytes],
        *,
        after: bytes | None = None,
        before: bytes | None = None,
        limit: int | None = None,
    ) -> list[bytes]:
        check_kind(self._tables, table, TableKind.POSTINGS)
        if not keys:
            raise ValueError("an intersection needs at least one key")
        content = self._open().postings[table.name]
        common = set.intersection(*(content.get(key, set()) for key in keys))
        return [
            value
            for value in sorted(common)
            if (after is None or value > after) and (before is None or value < before)
        ][:limit]

    def entries(
        self, table: Table, *, after: tuple[bytes, bytes] | None = None, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        check_kind(self._tables, table, TableKind.POSTINGS)
        content = self._open().postings[table.name]
        pairs = sorted((key, value) for key, values in content.items() for value in values)
        yield from [pair for pair in pairs if after is None or pair > after][:limit]

    def count(self, table: Table, key: bytes) -> int:
        check_kind(self._tables, table, TableKind.POSTINGS)
        return len(self._open().postings[table.name].get(key, ()))

    def last(self, table: Table) -> int:
        check_kind(self._tables, table, TableKind.LOG)
        return int.from_bytes(max(self._open().plain[table.name], default=b""), "big")

    def _open(self) -> _State:
        if self._state is None:
            raise RuntimeError("this snapshot is closed: read inside its with block")
        return self._state
