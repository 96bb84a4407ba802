"""The rows of packs are made to say where packs are, for an index that is older than the tiers.

Between a backup and its restore packs were copied, recalled, dropped, gathered anew and removed. What a row
says is believed only of tiers that nobody asked; what the others hold is compared with what the row says of
the pack.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.far_packs import FarPack, FarPacks
from hounsfield.archive.index.packs import HOT, CopyRow, PackRow, Packs, plan_forget
from hounsfield.archive.index.rows import encode
from hounsfield.archive.index.tables import PACK
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.packs import end_of
from hounsfield.storage_backends.segments import SegmentLog


class Reconciling:
    """Nobody else may change the index meanwhile."""

    def __init__(self, store: KeyValueStore, catalog: Catalog, log: SegmentLog, far: FarPacks) -> None:
        self._store = store
        self._catalog = catalog
        self._log = log
        self._far = far
        self._packs = Packs(store)

    def correct(self) -> int:
        """Have each pack's row name the tiers that have a copy, and no others that were asked; how many were
        wrong."""
        here = set(self._log.segment_ids())
        asked = {HOT, *self._far.asked}
        corrected = 0
        for page in self._packs.pages():
            doubtful = []
            for segment, row in page:
                listed = {*self._far.packs.get(segment, ()), *((HOT,) if segment in here else ())}
                if {name for name in row.copies if name in asked} != listed:
                    doubtful.append((segment, row, listed))
            found = dict(self._far.read((segment for segment, *_ in doubtful), self._catalog))
            for segment, row, listed in doubtful:
                copies = {
                    name: copy for name, copy in row.copies.items() if name not in asked or name in listed
                }
                far = found.get(segment)
                if isinstance(far, FarPack) and (far.row.digest, far.row.size) == (row.digest, row.size):
                    for name in listed - {HOT} - copies.keys():
                        copies[name] = CopyRow(row.made_ns)  # to be verified in its time
                if HOT in listed - copies.keys() and self._is_here(segment, row):
                    copies[HOT] = CopyRow(row.made_ns)
                if copies != row.copies:
                    batch = Batch(uses_reserve=True)
                    batch.put(PACK, segment, encode(structs.replace(row, copies=copies)))
                    self._store.commit(batch)
                    corrected += 1
        return corrected

    def _is_here(self, segment: bytes, row: PackRow) -> bool:
        try:
            end = end_of(self._log, segment)
            return end is not None and end.digest == row.digest and self._log.size(segment) == row.size
        except StorageError:
            return False

    def newer(self) -> Iterator[FarPack]:
        """Packs in tiers that the index does not know, those made last first."""
        with self._store.snapshot() as snapshot:
            wanted = [segment for segment in self._far.packs if snapshot.get(PACK, segment) is None]
        made = {
            segment: found.row.made_ns
            for segment, found in self._far.read(wanted, self._catalog)
            if isinstance(found, FarPack)
        }
        for _, found in self._far.read(sorted(made, key=lambda one: -made[one]), self._catalog):
            if isinstance(found, FarPack):
                yield found

    def somewhere(self) -> set[bytes]:
        """Packs that some tier has, or is said to have by nobody who was asked."""
        return {segment for page in self._packs.pages() for segment, row in page if row.copies}

    def forget(self, needed: set[bytes]) -> None:
        """Forget packs that are nowhere and that nothing points into."""
        gone = [
            segment
            for page in self._packs.pages()
            for segment, row in page
            if not row.copies and segment not in needed
        ]
        for segment in gone:
            batch = Batch(uses_reserve=True)
            with self._store.snapshot() as snapshot:
                plan_forget(snapshot, batch, segment)
            self._store.commit(batch)
