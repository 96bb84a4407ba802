"""Leader work is held by leases: one process at a time, and another when it falls silent."""

from __future__ import annotations

import msgspec

from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import PreconditionError

_LEASE = b"lease/"


class LeaseRow(msgspec.Struct, array_like=True, frozen=True):
    owner: str
    until_ns: int


def hold(store: KeyValueStore, name: str, owner: str, now_ns: int, duration_ns: int) -> bool:
    """Take or renew lease ``name`` for ``owner``; False while another owner's has not run out.

    One that ends later than any does that is taken now was taken before the clock was put back: who has it
    would have to renew it for years, and nobody could take over.
    """
    key = _LEASE + name.encode()
    with store.snapshot() as snapshot:
        held = snapshot.get(META, key)
    if held is not None:
        row = msgspec.msgpack.decode(held, type=LeaseRow)
        if row.owner != owner and now_ns < row.until_ns <= now_ns + duration_ns:
            return False
    batch = Batch(uses_reserve=True)  # one small row, which a leader on a full disk needs
    batch.require(META, key, held)
    batch.put(META, key, msgspec.msgpack.encode(LeaseRow(owner, now_ns + duration_ns)))
    try:
        store.commit(batch)
    except PreconditionError:
        return False
    return True


def give_up(store: KeyValueStore, name: str, owner: str) -> None:
    """End ``owner``'s lease now, if it is the owner's."""
    key = _LEASE + name.encode()
    with store.snapshot() as snapshot:
        held = snapshot.get(META, key)
    if held is None or msgspec.msgpack.decode(held, type=LeaseRow).owner != owner:
        return
    batch = Batch(uses_reserve=True)  # one small row, which a leader on a full disk needs
    batch.require(META, key, held)
    batch.delete(META, key)
    try:
        store.commit(batch)
    except PreconditionError:
        return


def is_held(store: KeyValueStore, name: str, owner: str) -> bool:
    """Whether lease ``name`` is ``owner``'s: also one that has run out, until somebody else takes it."""
    with store.snapshot() as snapshot:
        held = snapshot.get(META, _LEASE + name.encode())
    return held is not None and msgspec.msgpack.decode(held, type=LeaseRow).owner == owner


def end_all(store: KeyValueStore) -> None:
    """End every lease. At a start, while nobody else is here: those who hold them are gone."""
    end_those_of(store, "")


def end_those_of(store: KeyValueStore, owners: str) -> None:
    """End the leases of all owners whose names begin so: they are gone."""
    batch = Batch(uses_reserve=True)
    with store.snapshot() as snapshot:
        for key, held in snapshot.scan(META, prefix=_LEASE):
            if msgspec.msgpack.decode(held, type=LeaseRow).owner.startswith(owners):
                batch.delete(META, key)
    if batch.deletes:
        store.commit(batch)
