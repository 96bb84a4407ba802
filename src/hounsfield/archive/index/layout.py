"""Which layout of keys and rows an index is written in: another one's is not looked at, but made anew.

The index is a view of segments and ledger, so there is nothing to convert: `hounsfield reindex`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hounsfield.archive.index.tables import JOURNAL, META, STUDY
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.lmdb_copy import reading_copy

LAYOUT = b"2"
"""1, which said nothing of itself, had objects of one device anywhere in the table of UIDs."""
_KEY = b"index/layout"


def require_layout(store: KeyValueStore) -> None:
    """Mark an index in which nothing is yet as being of this layout. StorageError when it is of another."""
    with store.snapshot() as snapshot:
        held = snapshot.get(META, _KEY)
        is_new = not snapshot.last(JOURNAL) and next(snapshot.scan(STUDY, limit=1), None) is None
    if held == LAYOUT:
        return
    if held is not None or not is_new:
        raise StorageError(
            "the index was written by another release of Hounsfield and would be misread; nothing is lost: "
            "stop the server, run `hounsfield reindex`, and start it again"
        )
    batch = Batch(uses_reserve=True)  # one small row, without which a full archive could not start
    batch.put(META, _KEY, LAYOUT)
    store.commit(batch)


def copy_is_of_this_layout(index: Path) -> bool:
    """Whether the copy of an index in a directory can be used as it is; nothing is written there."""
    with suppress(StorageError), reading_copy(index) as copy:
        held = copy.get(META, _KEY)
        return held == LAYOUT or (held is None and copy.is_empty(JOURNAL) and copy.is_empty(STUDY))
    return False
