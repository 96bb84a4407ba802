"""What earlier runs have done with, so that it is not read again: a small database beside the archive.

It holds keyed hashes and fates, nothing else: of a file its path, size and time of change are hashed, of what
another archive has its address and UID. The key is the archive's, so the file says nothing to whoever finds
it, and is of no use for another archive. Losing it costs time only: what is read again is found to be here.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from hounsfield.archive.app.importing.fates import Fate
from hounsfield.archive.errors import HounsfieldError

STATE = "state.db"
KEY_LABEL = "import state"
BUSY_S = 30.0
"""For another import that writes to the same state."""
_ID_BYTES = 16
_CODES = {
    Fate.IMPORTED: 1, Fate.ALREADY_THERE: 2, Fate.CONFLICT: 3, Fate.QUARANTINED: 4, Fate.NOT_DICOM: 5,
}  # fmt: skip
_SOME = 0
"""A file, series or study of several objects."""


class StateError(HounsfieldError):
    """The state cannot be used; the text says what to do."""


class ImportState:
    """One state file. Any number of imports may use it at once. Blocking, for microseconds.

    Threads use it one after the other.
    """

    blind = False
    """Whether it says of nothing that it is done with."""

    def __init__(self, path: Path, key: bytes) -> None:
        """Open or make it. StateError."""
        self._path = path
        self._key = key
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"cannot use the state file {path}: {_why(error)}") from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise StateError(
                f"the state file {path} cannot be used ({_why(error)}): remove it, and everything is read "
                "again, which stores nothing twice"
            ) from error
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        # Without a sync for each object: a power cut takes the last moments, which are then read again.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
        self._db.execute("CREATE TABLE IF NOT EXISTS done (id BLOB PRIMARY KEY, fate INTEGER) WITHOUT ROWID")
        check = self.id("check")
        self._db.execute("INSERT OR IGNORE INTO about VALUES ('check', ?)", (check,))
        (found,) = self._db.execute("SELECT value FROM about WHERE name = 'check'").fetchone()
        if found != check:
            raise StateError(
                f"the state file {self._path} is of an import into another archive: name another with --state"
            )

    def forget(self) -> None:
        """Know nothing any more."""
        self._db.execute("DELETE FROM done")
        self.blind = False

    def id(self, kind: str, *words: str | int) -> bytes:
        """What stands for something of that kind, named by ``words``."""
        digest = hashlib.blake2b(kind.encode(), key=self._key, digest_size=_ID_BYTES)
        for word in words:
            raw = str(word).encode("utf-8", "surrogateescape")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.digest()

    def has(self, id_: bytes) -> bool:
        """Whether that is done with."""
        return (
            not self.blind
            and self._db.execute("SELECT 1 FROM done WHERE id = ?", (id_,)).fetchone() is not None
        )

    def note(self, id_: bytes, fates: Iterable[Fate] = ()) -> None:
        """That is done with: call it when whatever came of it is durable. A killed process has noted it."""
        codes = {_CODES[fate] for fate in fates}
        code = codes.pop() if len(codes) == 1 else _SOME
        try:
            self._db.execute("INSERT OR REPLACE INTO done VALUES (?, ?)", (id_, code))
        except sqlite3.Error as error:
            raise StateError(f"cannot write the state file {self._path}: {_why(error)}") from error

    def close(self) -> None:
        """Close it."""
        self._db.close()


def _why(error: Exception) -> str:
    return error.strerror or "" if isinstance(error, OSError) else str(error)
