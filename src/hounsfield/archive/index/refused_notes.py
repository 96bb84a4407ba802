"""Rejection notes that are not followed, as they reject too much or following them fails: somebody must know.

Such a note is an object as any other. That it was looked at, and why nothing came of it, is kept in META
until it is followed after all; whoever lists rejections sees it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from hounsfield.archive.errors import where
from hounsfield.archive.index.rows import decode, encode
from hounsfield.archive.index.tables import META
from hounsfield.archive.index.waiting_notes import WaitingRow
from hounsfield.storage_backends.errors import SealError

if TYPE_CHECKING:
    from hounsfield.archive.index.sealed import RowSealer
    from hounsfield.storage_backends.api import Batch, Snapshot

_REFUSED = b"rejection-refused/"  # and a record id, in META


class RefusedNote(msgspec.Struct, array_like=True, frozen=True):
    """A note that is not followed: the note, as received; its code, "" when unknown; why; and since when."""

    note: WaitingRow
    code: str
    why: str
    at_ns: int


def defect(error: Exception) -> str:
    """Why a note is not followed, where nobody foresaw it; without the fault's text, which may quote it."""
    place = where(error)
    return (
        f"following it failed ({place['error_type']} at {place.get('where', 'an unknown place')}): this is a "
        "defect, please report it; a release that mends it follows the note by `hounsfield reject apply`"
    )


def refused_key(record_id: bytes) -> bytes:
    """The key of a note in META."""
    return _REFUSED + record_id


def note_refused(batch: Batch, sealer: RowSealer, record_id: bytes, refused: RefusedNote) -> None:
    """Have ``batch`` say that a note is not followed."""
    key = refused_key(record_id)
    batch.put(META, key, sealer.seal(META, key, encode(refused)))


def all_refused(snapshot: Snapshot, sealer: RowSealer) -> list[tuple[bytes, RefusedNote]]:
    """Every note that was not followed, by its record id, in the order they were received."""
    found: list[tuple[bytes, RefusedNote]] = []
    for key, sealed in snapshot.scan(META, prefix=_REFUSED):
        with suppress(SealError, msgspec.MsgspecError):  # as of those that wait
            found.append((key[len(_REFUSED) :], decode(RefusedNote, sealer.open(META, key, sealed))))
    return sorted(found, key=lambda one: one[1].note.received_ns)
