"""What can go wrong below the engine. ``retry`` says whether doing the same again can help."""

from __future__ import annotations


class StorageError(Exception):
    """Root of this package's errors."""

    retry = False


class BlobExistsError(StorageError):
    """A blob of that name exists already."""


class BlobNotFoundError(StorageError):
    """No blob of that name."""


class ShortReadError(StorageError):
    """The blob ends before the range does."""


class PoisonedError(StorageError):
    """An earlier write or sync of this blob failed: close it and start another."""


class StoreFullError(StorageError):
    """The disk or the store is full: nothing was written; reads go on."""

    retry = True


class PreconditionError(StorageError):
    """Somebody else committed first: read again and rebuild the batch."""

    retry = True

    def __init__(self, table: str, key: bytes) -> None:
        super().__init__(f"precondition on table {table!r} does not hold any more; read again and retry")
        self.table = table
        self.key = key


class SealError(StorageError):
    """Sealed bytes do not open: they were changed, cut, moved, or sealed with another key."""


class KeyringError(StorageError):
    """A key is missing, does not unwrap, or cannot be stored."""


class KeyDestroyedError(KeyringError):
    """The key was destroyed on purpose; only its file's name is still to go."""


class MasterKeyError(KeyringError):
    """The master key is missing or is not the one that wrapped this archive's keys."""


class UnreadableError(SealError):
    """The disk does not give stored bytes back: other records are not touched; another copy may help."""

    retry = True


class OtherCopyAwayError(SealError):
    """This copy is wrong, and another, which may be right, cannot be reached now."""

    retry = True


class FormatError(StorageError):
    """Bytes that are not what the format document says, or of a version this release does not know."""


class NetworkFileSystemError(StorageError):
    """The index must not live on a network file system: its locks and memory map are not safe there."""
