"""The two contracts everything else stands on: blobs (bytes that stay) and key-value (what finds them).

Both are blocking: the engine calls them from worker threads, or directly where a call takes
microseconds. Neither knows about encryption, DICOM or each other. Every backend passes the
conformance suites in :mod:`hounsfield.storage_backends.testing`; optional capabilities are
separate protocols that a caller asks for with ``isinstance``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = [
    "BackgroundReads",
    "Batch",
    "BlobReads",
    "BlobStore",
    "BlobWriter",
    "Buffer",
    "CommitResult",
    "CopiesItself",
    "HasCopies",
    "KeyValueStore",
    "KnowsWriters",
    "MakesDurable",
    "NonBlockingReads",
    "Snapshot",
    "SpaceReserve",
    "Table",
    "TableKind",
    "WritesBlocks",
]


# ---------------------------------------------------------------- blobs


class BlobWriter(Protocol):
    """The one writer of one new blob. Not thread-safe: it has an owner."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Where the next append begins: bytes appended so far, and what :meth:`sync` padded."""

    def append(self, buffers: Sequence[Buffer]) -> int:
        """Write all buffers, in order, at the end; return the offset of the first byte.

        Neither durable nor readable until :meth:`sync`. A failed or short write poisons the writer: every
        later call raises ``PoisonedError`` and nothing is ever retried over unknown bytes.
        """

    def sync(self) -> None:
        """Return when everything appended (and the blob's name) is durable and can be read; failure poisons.

        May pad the blob with zeros up to the next multiple of 4096, so that :attr:`size` grows.
        """

    def close(self) -> None:
        """Give up writing. Does not sync: what was not synced may be gone. A closed blob is never
        appended to again."""


class BlobReads(Protocol):
    """Named blobs, to read from."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes, or ``ShortReadError`` / ``BlobNotFoundError``."""

    def read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer`` exactly, or raise as :meth:`read` does."""

    def size(self, name: str) -> int: ...


class BlobStore(BlobReads, Protocol):
    """Named blobs: created once, appended to by their creator, then only read or deleted."""

    def create(self, name: str) -> BlobWriter:
        """Start a new blob; ``BlobExistsError`` when the name was ever used and not deleted."""

    def names(self, prefix: str = "") -> list[str]:
        """Names that begin with ``prefix``, sorted."""

    def delete(self, name: str) -> None:
        """Remove a blob durably; ``BlobNotFoundError`` when there is none."""

    def close(self) -> None: ...


@runtime_checkable
class NonBlockingReads(Protocol):
    """Optional: a read that succeeds only when no disk has to be waited for."""

    def try_read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> bool:
        """Fill ``buffer`` from memory (page cache) and return True, or return False at once."""


@runtime_checkable
class ReadsAhead(Protocol):
    """Optional capability: begin reading what will be asked for, so that many waits are one."""

    def read_ahead(self, name: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Have stretches of a blob (offset, length) in memory soon. A hint: it never fails, and whoever
        reads them waits as long as it takes."""


@runtime_checkable
class HasCopies(Protocol):
    """Optional: a store some of whose blobs lie in several places."""

    def is_near(self, name: str) -> bool:
        """Whether a read of the blob waits for a local disk at most."""

    def copies(self, name: str) -> Iterator[BlobReads]:
        """Other places with the same blob, the best first: for one whose bytes turned out to be wrong."""


@runtime_checkable
class KnowsWriters(Protocol):
    """Optional: a store that can tell whether a blob's writer is still alive."""

    def is_being_written(self, name: str) -> bool:
        """Whether the blob is open for writing, in whatever process; ``BlobNotFoundError``."""


@runtime_checkable
class MakesDurable(Protocol):
    """Optional: a store in which a blob's bytes can be read before they are durable.

    A writer that was killed leaves such bytes behind. Where a store lacks this, what can be read is durable.
    """

    def make_durable(self, name: str) -> None:
        """Return when every byte of the blob that can be read, and its name, survive a power cut.

        Bytes that a failed sync left in memory are dropped from it, so that what is read next is what the
        disk has. ``PoisonedError`` when the disk does not take it; ``BlobNotFoundError``.
        """


@runtime_checkable
class WritesBlocks(Protocol):
    """Optional, of a ``BlobWriter``: whole blocks from aligned memory cost it less."""

    @property
    def block(self) -> int:
        """An append of a multiple of this, from memory aligned to it, is not copied, and one that
        ends on a multiple is not padded. 1 (where it does not matter) or a divisor of 4096."""


@runtime_checkable
class BackgroundReads(Protocol):
    """Optional: a way to read everything without pushing out of memory what others are reading."""

    def for_background(self) -> BlobStore:
        """The same blobs, for one reader who goes through them from front to back; the caller closes it."""


@runtime_checkable
class SpaceReserve(Protocol):
    """Optional: a store that keeps some space free for deletion and compaction."""

    def require_space(self, length: int) -> None:
        """Return, or raise ``StoreFullError`` when ``length`` more bytes would eat into the reserve."""


# ---------------------------------------------------------------- key-value


class TableKind(Enum):
    PLAIN = "plain"  # key -> value
    POSTINGS = "postings"  # key -> sorted set of values of one fixed size
    LOG = "log"  # dense 8-byte big-endian sequence, from 1 -> value


@dataclass(frozen=True, slots=True)
class Table:
    """A table, declared when the store is opened. ``value_bytes`` is for postings only."""

    name: str
    kind: TableKind = TableKind.PLAIN
    value_bytes: int = 0


@dataclass(slots=True)
class Batch:
    """Everything one commit does. Preconditions are checked first; then all of it happens, or none.

    ``appends`` are functions of the sequence number that the commit assigns (so that a sealed
    value can be bound to its place); they run inside the commit and must be quick.
    """

    preconditions: list[tuple[Table, bytes, bytes | None]] = field(default_factory=list)
    puts: list[tuple[Table, bytes, bytes]] = field(default_factory=list)
    deletes: list[tuple[Table, bytes]] = field(default_factory=list)
    adds: list[tuple[Table, bytes, bytes]] = field(default_factory=list)
    removes: list[tuple[Table, bytes, bytes]] = field(default_factory=list)
    appends: list[tuple[Table, Callable[[int], bytes]]] = field(default_factory=list)
    before_commit: list[Callable[[CommitResult], None]] = field(default_factory=list)
    """Called inside the commit, once its sequence numbers are known and before it becomes
    visible or durable: this is where the ledger is written and synced. Raising aborts all of it."""
    uses_reserve: bool = False
    """Set on a batch that may use the reserve: one that frees space in the end although it puts or appends
    (a deletion with its tombstone), or that a start on a full disk needs. Deletes and removes always may."""

    def require(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Commit only when ``key`` holds exactly ``value`` (None: holds nothing)."""
        self.preconditions.append((table, key, value))

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self.puts.append((table, key, value))

    def delete(self, table: Table, key: bytes) -> None:
        """Remove ``key`` (of postings: with all its values); nothing happens when it is absent."""
        self.deletes.append((table, key))

    def add(self, table: Table, key: bytes, value: bytes) -> None:
        """Add ``value`` to the postings of ``key``; nothing happens when it is there."""
        self.adds.append((table, key, value))

    def remove(self, table: Table, key: bytes, value: bytes) -> None:
        self.removes.append((table, key, value))

    def append(self, table: Table, value: Callable[[int], bytes]) -> None:
        self.appends.append((table, value))


@dataclass(frozen=True, slots=True)
class CommitResult:
    """``sequences[i]`` is the number that ``batch.appends[i]`` got."""

    sequences: tuple[int, ...]


class Snapshot(Protocol):
    """A consistent view. Hold it for less than a second, and never across an await."""

    def get(self, table: Table, key: bytes) -> bytes | None: ...

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(
        self,
        table: Table,
        *,
        prefix: bytes = b"",
        after: bytes | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys (of PLAIN and LOG tables) that begin with ``prefix``, in order (or reversed),
        strictly after ``after`` in the direction of the scan."""

    def scan_each(self, table: Table, prefixes: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Keys that begin with the first prefix, in order, then with the next, and so on."""

    def postings(
        self,
        table: Table,
        key: bytes,
        *,
        after: bytes | None = None,
        before: bytes | None = None,
        limit: int | None = None,
    ) -> list[bytes]:
        """Values of one key of a POSTINGS table, ascending, strictly between the bounds."""

    def intersect(
        self,
        table: Table,
        keys: Sequence[bytes],
        *,
        after: bytes | None = None,
        before: bytes | None = None,
        limit: int | None = None,
    ) -> list[bytes]:
        """Values that every key holds, ascending, strictly between the bounds; stops at ``limit``."""

    def entries(
        self, table: Table, *, after: tuple[bytes, bytes] | None = None, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Every (key, value) of a POSTINGS table, in order, strictly after ``after``: for checks."""

    def count(self, table: Table, key: bytes) -> int:
        """How many values a POSTINGS key holds."""

    def last(self, table: Table) -> int:
        """The highest sequence of a LOG table, 0 when empty."""


class KeyValueStore(Protocol):
    """Snapshot reads and one-shot commits; safe from several threads and processes at once."""

    def snapshot(self) -> AbstractContextManager[Snapshot]: ...

    def commit(self, batch: Batch) -> CommitResult:
        """Apply ``batch`` atomically. It survives the death of every process; a power cut may undo the
        last commits, never others and never in part, unless a :meth:`sync` came after them.

        Raises ``PreconditionError`` (naming table and key), ``StoreFullError`` (the reserve that
        lets deletion work is never used by puts), and whatever ``before_commit`` raises; in each
        case nothing has changed.
        """

    def commit_many(
        self,
        batches: Sequence[Batch],
        *,
        before_commit: Callable[[list[CommitResult | Exception]], None] | None = None,
    ) -> list[CommitResult | Exception]:
        """Apply several batches, in order, with one flush; each is atomic, and fails alone.

        ``before_commit`` is called once, after every batch's own, with what will be returned: the
        place for one ledger append and one sync for the whole group. It runs only when some batch
        succeeded; raising aborts them all, and what it raised is raised here. So is the error of
        a flush that fails, in which case nothing has changed.
        """

    def commit_planned(self, plan: Callable[[Snapshot], Sequence[Batch]]) -> list[CommitResult | Exception]:
        """Apply the batches that ``plan`` makes of the newest state, as :meth:`commit_many` would.

        For those who lost a race: no other commit comes between what the plan reads and what it
        writes, so preconditions can only fail between its own batches. Not an interactive
        transaction: ``plan`` may be called several times, must be quick (others wait), must not commit, and
        what it raises is raised here with nothing changed.
        """

    def sync(self) -> None:
        """Return when every commit so far survives a power cut: call it before what they refer to
        (a blob, a key) is deleted, or when nothing else could bring their content back."""

    def statistics(self) -> dict[str, int]: ...

    def close(self) -> None: ...


@runtime_checkable
class CopiesItself(Protocol):
    """Optional: a store that writes a consistent copy of itself while others commit."""

    def copy_to(self, directory: Path) -> None:
        """Write into the empty ``directory`` a store that holds exactly one moment's commits; durable.

        What was deleted before that moment is not in the copy, not even in free pages.
        """
