"""What is left of packs of which objects were deleted, replaced or gathered anew, and how it goes.

Nothing is taken out of a pack. One of which nothing is needed is removed, from every tier, and its key
destroyed; one of which something is needed is gathered anew first.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from hounsfield.archive.index.copying import Copying
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.packs import HOT, PackRow, pack_of
from hounsfield.archive.index.rows import RECORD_KIND_OBJECT, ObjectRow, UseRow, decode, encode
from hounsfield.archive.index.switching import Switching
from hounsfield.archive.index.tables import SPARE, USE
from hounsfield.archive.index.use import use_of, uses
from hounsfield.storage_backends.api import Batch, BlobReads, Snapshot
from hounsfield.storage_backends.errors import BlobNotFoundError, KeyringError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.packs import read_contents, read_end

__all__ = ["Remains"]


class Remains:
    """Finds and removes them. Blocking; one thread at a time, under a lease."""

    def __init__(
        self, indexer: Indexer, keyring: Keyring, copying: Copying, blobs: BlobReads, *, prefix: str
    ) -> None:
        """``blobs``: reads packs wherever they lie, below ``prefix``."""
        self._indexer = indexer
        self._log = indexer.log
        self._keyring = keyring
        self._copying = copying
        self._blobs = blobs
        self._prefix = prefix
        self._rows = Switching(indexer, copying.now)

    def dead(self, before_ns: int) -> list[bytes]:
        """Packs of which nothing is needed, since a moment or longer."""
        return [
            segment
            for segment, use, row in self._used()
            if use.dead_records >= row.objects and use.changed_ns < before_ns
        ]

    def partly_dead(self, before_ns: int) -> list[tuple[bytes, PackRow]]:
        """Packs elsewhere of which something is needed, and in which something was deleted before a moment.

        Those that are here are compacted as other segments are.
        """
        return [
            (segment, row)
            for segment, use, row in self._used()
            if 0 < use.dead_records < row.objects and use.since_ns < before_ns and HOT not in row.copies
        ]

    def _used(self) -> Iterator[tuple[bytes, UseRow, PackRow]]:
        with self._indexer.store.snapshot() as snapshot:
            for segment, use in list(uses(snapshot)):
                row = pack_of(snapshot, segment)
                if row is not None:
                    yield segment, use, row

    def remove(self, segment: bytes) -> bool:
        """Remove a dead pack from every tier, and destroy its key; False when a row needs it after all.

        The counts that call it dead are not believed: each of its records is looked up. May be killed
        anywhere; calling it again goes on. Raises what a tier's store raises.
        """
        if self._is_needed(segment):
            return False
        self._rows.commit(lambda snapshot: _emptied(snapshot, segment), 0)
        self._indexer.store.sync()  # or a power cut could bring back rows that point at what is gone
        self._copying.remove(segment)
        self._log.remove(segment)
        self._rows.forget(segment)
        return True

    def _is_needed(self, segment: bytes) -> bool:
        name = self._prefix + segment.hex()
        try:
            key = self._keyring.key("segment", segment.hex())
            end = read_end(self._blobs, name, segment, key)
            contents = read_contents(self._blobs, name, segment, key, end)
        except (BlobNotFoundError, KeyringError):
            return False  # it was removed already, and the process killed before it was forgotten
        with self._indexer.store.snapshot() as snapshot:
            for entry in contents.entries:
                if entry.ref.kind != RECORD_KIND_OBJECT:
                    continue
                row = decode(ObjectRow, entry.row)
                live = self._rows.find(snapshot, row, entry.ref.record_id)
                if live is not None and live.row.location.segment == segment:
                    return True
        return False


def _emptied(snapshot: Snapshot, segment: bytes) -> Batch:
    """The batch after which nobody misses a copy of a pack, and no record is said to be in it."""
    batch = Batch(uses_reserve=True)
    use = use_of(snapshot, batch, segment)
    batch.put(USE, segment, encode(structs.replace(use, emptied=True)))
    for key, _ in snapshot.scan(SPARE):
        if key[32:] == segment:
            batch.delete(SPARE, key)
    return batch
