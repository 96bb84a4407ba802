"""A ``BlobStore`` whose older blobs may lie elsewhere: read from the local directory, or from the tiers.

Everything that writes, lists and deletes is the local store's. A read of a blob that is not there goes to
the tiers that are said to have it (docs/decisions/0025-tiers.md), one request for a stretch, to the first
that answers. A local blob costs what it cost before: whether it is there, opening it tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from hounsfield.storage_backends.api import BlobReads, BlobWriter
from hounsfield.storage_backends.errors import BlobNotFoundError, StorageError
from hounsfield.storage_backends.local_blobs import LocalBlobs
from hounsfield.storage_backends.object_store import ObjectStore
from hounsfield.storage_backends.range_cache import RangeCache, RangeCacheLimits

__all__ = ["Elsewhere", "TieredBlobs"]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where else a blob lies: its length, its key there, and the stores that have it, the best first.

    ``at_once``: the same, without patience for one that is away, if there is a choice.
    """

    size: int
    key: str
    stores: tuple[ObjectStore, ...]
    at_once: tuple[ObjectStore, ...] = ()


class TieredBlobs:
    """Local blobs, and those of the tiers. Thread-safe, as :class:`LocalBlobs`.

    ``elsewhere`` says of a blob's name where it lies, None when no tier has it.
    """

    def __init__(
        self,
        local: LocalBlobs,
        elsewhere: Callable[[str], Elsewhere | None],
        limits: RangeCacheLimits | None = None,
    ) -> None:
        self.local = local
        self._elsewhere = elsewhere
        self._far = RangeCache(self._fetch, self._far_size, limits)
        # These are the local store's own: nothing of them is to be done elsewhere.
        self.names = local.names
        self.is_being_written = local.is_being_written
        self.make_durable = local.make_durable
        self.require_space = local.require_space
        self.for_background = local.for_background

    # ------------------------------------------------------------ writing

    def create(self, name: str) -> BlobWriter:
        return self.local.create(name)

    def delete(self, name: str) -> None:
        self.local.delete(name)

    # ------------------------------------------------------------ reading

    def read(self, name: str, offset: int, length: int) -> bytes:
        try:
            return self.local.read(name, offset, length)
        except BlobNotFoundError:
            buffer = bytearray(length)
            self._far.read_into(name, offset, buffer)
            return bytes(buffer)

    def read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> None:
        try:
            self.local.read_into(name, offset, buffer)
        except BlobNotFoundError:
            self._far.read_into(name, offset, buffer)

    def try_read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> bool:
        try:
            return self.local.try_read_into(name, offset, buffer)
        except BlobNotFoundError:
            return self._far.try_read_into(name, offset, buffer)

    def read_ahead(self, name: str, ranges: Iterable[tuple[int, int]]) -> None:
        if self.is_near(name):
            self.local.read_ahead(name, ranges)
            return
        try:
            self._far.read_ahead(name, ranges)
        except StorageError:
            return  # it is a hint: whoever reads is told

    def size(self, name: str) -> int:
        try:
            return self.local.size(name)
        except BlobNotFoundError:
            return self._far_size(name)

    def is_near(self, name: str) -> bool:
        """Whether a read of the blob waits for a local disk at most."""
        try:
            self.local.size(name)
        except BlobNotFoundError:
            return False
        return True

    def copies(self, name: str) -> Iterator[BlobReads]:
        """Each copy elsewhere by itself, past what is kept in memory, which is forgotten: it is in doubt."""
        self._far.forget(name)
        found = self._elsewhere(name)
        for store in () if found is None else found.stores:
            yield _OneCopy(self, store)

    def statistics(self) -> dict[str, int]:
        """Those of the local store, and what was fetched from elsewhere (``far_…``)."""
        return {
            **self.local.statistics(),
            **{f"far_{name}": count for name, count in self._far.statistics().items()},
        }

    def release_deleted(self) -> int:
        """As of the local store."""
        return self.local.release_deleted()

    def close(self) -> None:
        self._far.close()
        self.local.close()

    # ------------------------------------------------------------ elsewhere

    def where(self, name: str) -> Elsewhere:
        """Where a blob lies that is not here; ``BlobNotFoundError`` when it lies nowhere."""
        found = self._elsewhere(name)
        if found is None or not found.stores:
            raise BlobNotFoundError(f"no blob {name!r}")
        return found

    def _far_size(self, name: str) -> int:
        return self.where(name).size

    def _fetch(self, name: str, offset: int, length: int) -> bytes:
        found = self.where(name)
        failure: StorageError | None = None
        for store in (*found.at_once, *found.stores):
            try:
                return store.read(found.key, offset, length)
            except StorageError as error:
                # What may come back is worth waiting for: it is what is said when no copy answers.
                if failure is None or (error.retry and not failure.retry):
                    failure = error
        assert failure is not None
        raise failure


class _OneCopy:
    """One copy of blobs that lie elsewhere, read without any cache."""

    def __init__(self, blobs: TieredBlobs, store: ObjectStore) -> None:
        self._blobs = blobs
        self._store = store

    def read(self, name: str, offset: int, length: int) -> bytes:
        return self._store.read(self._blobs.where(name).key, offset, length)

    def read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> None:
        self._store.read_into(self._blobs.where(name).key, offset, buffer)

    def size(self, name: str) -> int:
        return self._store.size(self._blobs.where(name).key)
