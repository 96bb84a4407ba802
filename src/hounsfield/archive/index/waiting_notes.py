"""Key object selections that nobody has looked at yet: each may be a rejection note.

The commit that indexes such an object says so in META, so that a crash between storing a rejection note and
following it loses nothing: whoever comes next finds it (:mod:`~hounsfield.archive.index.rejections`). The
commit that follows it takes that away, when it happens and when its fact is replayed.

That commit also says by which rejections a note of this SOP Instance UID was followed, for ever: undoing one
does not change that. So a note is not followed once more when it is sent again after it was deleted, or when
a reindex finds it, in whatever order it meets records.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from hounsfield.archive.index.rows import decode, encode
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.errors import SealError

if TYPE_CHECKING:
    from hounsfield.archive.index.catalog import Stored
    from hounsfield.archive.index.sealed import RowSealer
    from hounsfield.storage_backends.api import Batch, Snapshot

_WAITING = b"rejecting/"  # and a record id, in META
FOLLOWED = b"rejected-by/"  # and a keyed hash of a note's UID, in META: the numbers of its rejections


class WaitingRow(msgspec.Struct, array_like=True, frozen=True):
    """A key object selection: its UIDs, as received, and when it was."""

    study_uid: str
    series_uid: str
    sop_uid: str
    received_ns: int


def waiting_key(record_id: bytes) -> bytes:
    """The key of a note in META."""
    return _WAITING + record_id


def leave_waiting(batch: Batch, sealer: RowSealer, stored: Stored) -> None:
    """Have ``batch`` say that this object is to be looked at."""
    row = stored.row
    key = waiting_key(stored.location.record_id)
    waiting = WaitingRow(row.study_uid, row.series_uid, row.sop_uid, row.received_ns)
    batch.put(META, key, sealer.seal(META, key, encode(waiting)))


def all_waiting(snapshot: Snapshot, sealer: RowSealer) -> list[tuple[bytes, WaitingRow]]:
    """Every object that is to be looked at, by its record id, in the order they were received."""
    found: list[tuple[bytes, WaitingRow]] = []
    for key, sealed in snapshot.scan(META, prefix=_WAITING):
        with suppress(SealError, msgspec.MsgspecError):  # damage must not keep an archive from starting
            found.append((key[len(_WAITING) :], decode(WaitingRow, sealer.open(META, key, sealed))))
    return sorted(found, key=lambda one: one[1].received_ns)
