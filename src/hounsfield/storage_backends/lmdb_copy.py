"""A copy of an LMDB store, as a backup has it, read where it lies: nothing is written, not even a lock.

So it can be on a medium that only reads, and stays what its digest says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from hounsfield.storage_backends.api import Table
from hounsfield.storage_backends.errors import StorageError

DATABASES_MAX = 256  # of the file; a release may have had more tables than this one


class LmdbCopy:
    """The rows of a copy that nobody changes."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value of a key, None when there is none, or no such table."""
        with self._environment.begin() as transaction:
            database = self._database(table, transaction)
            held = None if database is None else transaction.get(key, db=database)
            return None if held is None else bytes(held)

    def is_empty(self, table: Table) -> bool:
        """Whether a table has no row, or is none."""
        with self._environment.begin() as transaction:
            database = self._database(table, transaction)
            return database is None or not transaction.stat(database)["entries"]

    def _database(self, table: Table, transaction: Any) -> Any:
        try:
            return self._environment.open_db(table.name.encode(), txn=transaction, create=False)
        except lmdb.NotFoundError:
            return None


@contextmanager
def reading_copy(directory: Path) -> Iterator[LmdbCopy]:
    """Open the copy in ``directory``. ``StorageError`` when it is none, or does not read."""
    try:
        environment = lmdb.open(
            str(directory), readonly=True, lock=False, create=False, max_dbs=DATABASES_MAX, readahead=False
        )
        try:
            yield LmdbCopy(environment)
        finally:
            environment.close()
    except lmdb.Error as error:
        raise StorageError(f"the index in {directory} cannot be read: {error}") from error
