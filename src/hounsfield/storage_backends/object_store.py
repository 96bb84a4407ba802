"""A tier's place for whole objects: the contract, its errors, and the mark that says whose it is.

A tier is a bucket or a directory that holds copies (docs/decisions/0025-tiers.md). Unlike a
:class:`~hounsfield.storage_backends.api.BlobStore` it takes an object as a whole, may be away for hours, and
answers in milliseconds where a disk takes microseconds. Implementations:
:class:`~hounsfield.storage_backends.s3_store.S3Store` and
:class:`~hounsfield.storage_backends.directory_store.DirectoryStore`; what is put around them is in
:mod:`~hounsfield.storage_backends.store_wrappers`. All pass
:mod:`hounsfield.storage_backends.testing.object_store_suite`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import BlobNotFoundError, FormatError, StorageError

__all__ = [
    "TIER_FORMAT",
    "TIER_MARKER",
    "CreatesOnce",
    "ForeignTierError",
    "ObjectStore",
    "StoreAwayError",
    "StoreKnownAwayError",
    "StoreRefusedError",
    "TierMarkerMissingError",
    "claim_tier",
    "create_once",
]

TIER_MARKER = "hounsfield-tier"
"""The object that says which archive a tier belongs to."""

TIER_FORMAT = 1
"""Of what a tier holds, and under which names: docs/decisions/0025-tiers.md."""


class StoreAwayError(StorageError):
    """The store does not answer, is too slow, says that it is overloaded, or breaks off: try again later."""

    retry = True


class StoreKnownAwayError(StoreAwayError):
    """The store has been away for longer than anyone waits: it was asked once for this, or not at all."""


class StoreRefusedError(StorageError):
    """The store answers and will not: credentials, rights, no such bucket, a certificate not trusted.

    An administrator must change something before trying again helps.
    """


class TierMarkerMissingError(StoreAwayError):
    """A tier that was claimed shows no mark: its disk is not mounted, or this is another bucket.

    Nothing was read, written or deleted. Retrying helps once the disk is mounted again.
    """


class ForeignTierError(StorageError):
    """The tier belongs to another archive, or was written by a release that this one does not know."""


class ObjectStore(Protocol):
    """Named objects, each put as a whole. Blocking, thread-safe; names are those of blobs.

    Every call ends within the limits of the store it is made of: with a result, or with one of
    ``BlobNotFoundError`` (of reading: no such object), ``ShortReadError`` (the object ends before the
    range does), ``StoreFullError`` (of putting), ``StoreAwayError`` (``retry`` helps), ``StoreRefusedError``
    (it does not), ``UnreadableError`` (a disk does not give the bytes back). ``ValueError``: not a name.
    Lengths are checked here; that bytes are the right ones, seals and digests say.
    """

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        """Put the ``length`` bytes of ``pieces``, in order, as the object ``key``, durable when this returns.

        Whole or not at all: until it returns, and when it fails, ``key`` names what it named before (after
        ``StoreAwayError`` perhaps the new object, whole, when only the answer was lost). Memory is bounded
        however long the object is. ``ValueError`` when the pieces are not ``length`` bytes; what ``pieces``
        raises is raised here. Pieces may be overwritten by their maker once the next is asked for.
        """

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset`` on."""

    def read_into(self, key: str, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer`` exactly."""

    def stream(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[Buffer]:
        """The bytes from ``start`` to ``stop`` (None: the object's end), in order, in pieces of any length.

        Reads ahead in bounded memory. A piece holds until the next is asked for. Ends with an error
        wherever bytes are missing, never early; closing the iterator gives up what is under way.
        """

    def size(self, key: str) -> int:
        """How many bytes the object has."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """Keys that begin with ``prefix``, each once, in the store's order, fetched page by page.

        What is put or deleted meanwhile may be among them or not. Unfinished objects never are.
        """

    def delete(self, key: str) -> None:
        """Remove the object, durably; nothing happens when there is none."""

    def close(self) -> None:
        """Let connections and threads go. Calls under way end, with or without an error."""


@runtime_checkable
class CreatesOnce(Protocol):
    """Optional: a store in which of several who create the same object one alone succeeds."""

    def create(self, key: str, data: bytes) -> bool:
        """Put a small object under a key that has none, or return False. Durable when it returns."""


def create_once(store: ObjectStore, key: str, data: bytes) -> bool:
    """:meth:`CreatesOnce.create`; into a store that knows nothing of it the object is put, come what may."""
    if isinstance(store, CreatesOnce):
        return store.create(key, data)
    store.put(key, [data], len(data))
    return True


def claim_tier(store: ObjectStore, archive: bytes, *, first_time: bool, name: str = "") -> bool:
    """Make sure that ``store`` is the tier ``name`` of ``archive`` (its keyring's root id); True when newly
    marked.

    ``first_time``: the caller knows of no copy there, so an unmarked store is marked. Otherwise an unmarked
    store is a disk that is not mounted, or another bucket: ``TierMarkerMissingError``. ``ForeignTierError``
    when it is marked as somebody else's, or as another tier of the same archive: under two names what lies
    there would be deleted as the one's while it is the other's; what the store raises. Of several who mark at
    the same moment one alone succeeds, where the store lets one alone create an object.
    """
    found = _read_marker(store)
    if found is None:
        if not first_time:
            raise TierMarkerMissingError(
                f"{store!r} holds copies of this archive, but has no object {TIER_MARKER!r}: mount the disk, "
                "or correct the tier's address; nothing was written"
            )
        said = {"format": TIER_FORMAT, "archive": archive.hex(), "tier": name}
        marker = json.dumps(said).encode() + b"\n"
        created = create_once(store, TIER_MARKER, marker)
        written = _read_marker(store)  # somebody may have been faster, and a store may not keep its word
        if written is None and not created:
            raise StoreAwayError(f"{store!r}: somebody else is marking it at this moment; try again later")
        if written is None:
            raise FormatError(
                f"{store!r} does not give back the object {TIER_MARKER!r} that was just put there"
            )
        _require_ours(store, written, archive, name)
        return True
    _require_ours(store, found, archive, name)
    return False


_MARKER_BYTES = 4096  # far more than a marker is; what is larger is no marker


def _read_marker(store: ObjectStore) -> bytes | None:
    marker = b""
    try:
        for piece in store.stream(TIER_MARKER):  # unlike a question for its size it shows a missing bucket
            marker += piece
            if len(marker) > _MARKER_BYTES:
                break
    except BlobNotFoundError:
        return None
    return marker[:_MARKER_BYTES]


def _require_ours(store: ObjectStore, marker: bytes, archive: bytes, name: str) -> None:
    try:
        content = json.loads(marker)
        version, owner = content["format"], bytes.fromhex(content["archive"])
        tier = content.get("tier", name)
    except (ValueError, TypeError, KeyError):
        raise ForeignTierError(
            f"{TIER_MARKER!r} in {store!r} is no archive's mark: it is damaged, or the place is used for "
            "something else; give the tier an empty place of its own (another bucket, prefix or directory)"
        ) from None
    if version != TIER_FORMAT:
        raise ForeignTierError(
            f"{store!r} is laid out in format {version!r}, this release knows {TIER_FORMAT}: use the release "
            "that wrote it, or a newer one"
        )
    if owner != archive:
        raise ForeignTierError(
            f"{store!r} belongs to the archive {owner.hex()[:16]}…, this is {archive.hex()[:16]}…: give the "
            "tier a place of its own (another bucket, prefix or directory)"
        )
    if tier != name:
        raise ForeignTierError(
            f"{store!r} is this archive's tier {tier!r}, not {name!r}: give it that name in config.toml "
            "again, or the tier another place"
        )
