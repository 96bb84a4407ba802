"""Epochs of the journal: what a number that was told to somebody outside means after a restart.

A power cut may take the last half second of commits with it (docs/decisions/0015); recovery makes them anew,
in another order, so numbers of the journal are given again, to other events. And a reindex makes a journal
anew. So whoever keeps a number outside keeps the *epoch* with it in which it was told: every start, before it
commits anything else, begins one and notes after which number it began. Numbers up to there are as they
were; of a number past it that is from an earlier epoch nobody knows what it is now, and its holder goes on
from the beginning of the next epoch, hearing some events again and missing none (docs/decisions/0019).
"""

from __future__ import annotations

import os
from typing import NamedTuple

import msgspec

from hounsfield.archive.index.tables import JOURNAL, META
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot

EPOCHS_MAX = 1000  # starts that are remembered: years of them, in 20 KB
EPOCH_BYTES = 8
_KEY = b"journal/epochs"


class UnknownEpochError(LookupError):
    """An epoch of another journal: of before a reindex, of another archive, or long ago."""

    retry = False


class Epoch(NamedTuple):
    """One: who it is, and the journal's last number when it began."""

    epoch_id: bytes
    base: int


def begin_epoch(store: KeyValueStore) -> Epoch:
    """Begin an epoch, durably. At a start, before anything else is committed; nobody else commits."""
    with store.snapshot() as snapshot:
        known = _epochs(snapshot)
        begun = Epoch(os.urandom(EPOCH_BYTES), snapshot.last(JOURNAL))
    batch = Batch(uses_reserve=True)  # one small row; without it a full archive could not start
    batch.put(META, _KEY, msgspec.msgpack.encode([*known, begun][-EPOCHS_MAX:]))
    store.commit(batch)
    store.sync()  # or a power cut gives its name to numbers that it takes away
    return begun


def current_epoch(snapshot: Snapshot) -> Epoch:
    """The one that goes on. An index that was never started has one of no name."""
    known = _epochs(snapshot)
    return known[-1] if known else Epoch(bytes(EPOCH_BYTES), 0)


def go_on_from(snapshot: Snapshot, epoch_id: bytes, sequence: int) -> int:
    """The number after which a holder of ``sequence``, told in an epoch, has to read. UnknownEpochError."""
    known = _epochs(snapshot) or [current_epoch(snapshot)]
    for at, epoch in enumerate(known):
        if epoch.epoch_id == epoch_id:
            later = min((one.base for one in known[at + 1 :]), default=snapshot.last(JOURNAL))
            return min(sequence, later)
    raise UnknownEpochError("this place is in another journal: read from the beginning")


def _epochs(snapshot: Snapshot) -> list[Epoch]:
    held = snapshot.get(META, _KEY)
    return [] if held is None else msgspec.msgpack.decode(held, type=list[Epoch])
