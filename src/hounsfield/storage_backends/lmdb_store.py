"""The key-value contract on LMDB: one machine, several processes, one writer at a time.

Rules that this module keeps (docs/decisions/0006-lmdb-for-the-embedded-index.md):

* one huge map from the start: growing a map invalidates live reads, so it never grows;
* read transactions live as long as a ``with`` block; dead processes' readers are cleared;
* several batches share one write transaction, each in a child transaction of its own;
* no flush a commit, but a checkpoint twice a second (:mod:`.lmdb_checkpoints`): a power cut may undo the
  last commits, whole ones and in order, and never corrupts. That is allowed because the index is a view:
  what a commit says is durable before it in a segment or the ledger, and the engine's recovery replays
  their tails. :meth:`LmdbStore.sync` is for the caller that must know;
* puts stop while a reserve is left, so that deletion always has room to work;
* never on a network file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from hounsfield.storage_backends.api import Batch, CommitResult, Snapshot, Table, TableKind
from hounsfield.storage_backends.errors import PreconditionError, StorageError, StoreFullError
from hounsfield.storage_backends.file_systems import (
    make_private_directory,
    refuse_network_file_system,
    sync_directory,
)
from hounsfield.storage_backends.lmdb_checkpoints import (
    DATA_FILE,
    Checkpoints,
    can_take,
    nobody_has_it_open,
    recover,
)
from hounsfield.storage_backends.lmdb_snapshot import LmdbSnapshot
from hounsfield.storage_backends.lmdb_upkeep import Visitors
from hounsfield.storage_backends.lmdb_whole import require_whole
from hounsfield.storage_backends.tables import check_batch, check_tables, sequence_key

__all__ = ["LmdbLimits", "LmdbStore"]

_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@dataclass(frozen=True, slots=True)
class LmdbLimits:
    """What one store may use."""

    map_bytes: int = 1 << 40
    """Address space, not disk: 1 TiB holds 2,500 million instances at 400 bytes and is below the
    47 bits that every 64-bit machine gives a process."""

    reserve_bytes: int = 256 << 20
    """Free space (of the disk, and of the map) that puts leave alone: deleting in a B+ tree that never
    overwrites needs new pages first. Half of the blobs' reserve, so that blobs stop first."""

    readers: int = 1024
    """Reader slots for all processes: 64 workers with 16 threads each."""

    snapshot_seconds: float = 1.0
    """A snapshot held longer pins every page freed since: one grew a 0.5 MB database to 58 MB."""

    checkpoint_seconds: float = 0.5
    """How often what was committed is flushed: a power cut takes at most so much from the index (the
    segments give it back), and so long no page is used again."""

    reader_check_commits: int = 1024
    """Stale readers are looked for at open and every so many commits."""


class LmdbStore:
    """A ``KeyValueStore`` in one directory. Safe from several threads and processes at once.

    One ``LmdbStore`` per path and process. ``strict=True`` (tests) raises when a snapshot is held
    longer than ``limits.snapshot_seconds``; otherwise that is counted in :meth:`statistics`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tables: Sequence[Table],
        *,
        limits: LmdbLimits | None = None,
        strict: bool = False,
    ) -> None:
        self._path = Path(path)
        self._tables = check_tables(tables)
        self._limits = limits or LmdbLimits()
        self._strict = strict
        make_private_directory(self._path)
        refuse_network_file_system(self._path)
        self._visitors = Visitors()
        self._shut = False
        self._writing = threading.Lock()  # LMDB has one writer anyway
        self.restored = False
        """Whether a checkpoint was put back when this was opened: the machine had gone down."""
        if not can_take():
            raise StorageError(
                f"this release of LMDB ({lmdb.version()}) writes another format; 0.9 is needed"
            )
        try:
            with _opening(self._path):
                if nobody_has_it_open(self._path):
                    self.restored = recover(self._path)
                    if (self._path / DATA_FILE).exists():
                        require_whole(self._path / DATA_FILE)
                if not (self._path / DATA_FILE).exists():
                    self._create()
                self._environment = self._open(self._path)
                self._checkpoints = Checkpoints(
                    self._environment, self._path, interval_seconds=self._limits.checkpoint_seconds
                )
                with self._checkpoints.committing():
                    self._handles = {table.name: self._open_table(table) for table in tables}
                self._checkpoints.take()  # the tables, and what a process that was killed committed last
        except (lmdb.Error, OSError) as error:
            raise StorageError(f"cannot open the index in {self._path}: {error}") from error
        for folder in (self._path, self._path.parent):
            sync_directory(folder)
        self._lock = threading.Lock()
        self._counts = {
            "commits": 0,
            "batches": 0,
            "batches_failed": 0,
            "stale_readers_cleared": self._environment.reader_check(),
            "snapshots": 0,
            "snapshots_held_too_long": 0,
            "snapshot_held_us_max": 0,
        }

    def __repr__(self) -> str:
        return f"LmdbStore({str(self._path)!r})"

    def _open(self, path: Path) -> Any:
        return lmdb.open(
            str(path),
            create=False,  # the directory is there: making it anyway, in vain, can fail on a full disk
            map_size=self._limits.map_bytes,
            max_dbs=max(len(self._tables), 1),
            max_readers=self._limits.readers,
            mode=0o600,
            metasync=False,
            sync=False,  # checkpoints flush
            readahead=False,  # random access: reading ahead would evict what is in use
            max_spare_txns=16,
        )

    def _create(self) -> None:
        """Bring the data file into being whole: one whose first pages a power cut tore never opens again."""
        draft = self._path / f".{os.urandom(8).hex()}.new"
        draft.mkdir(mode=0o700)
        try:
            environment = self._open(draft)
            environment.sync(True)
            environment.close()
            with suppress(FileExistsError):  # another process was faster
                (self._path / DATA_FILE).hardlink_to(draft / DATA_FILE)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        sync_directory(self._path)

    # -- reading

    @contextmanager
    def snapshot(self) -> Iterator[LmdbSnapshot]:
        try:
            transaction = self._begin_reading()
        except lmdb.Error as error:  # all reader slots taken
            raise StorageError(f"the index cannot be read: {error}; restart if this stays") from error
        try:
            with transaction:
                view = LmdbSnapshot(transaction, self._tables, self._handles)
                began = time.monotonic()
                try:
                    yield view
                finally:
                    view.close()
                    self._note_held(time.monotonic() - began)
        finally:
            self._visitors.leave()

    def _begin_reading(self) -> Any:
        """A read transaction of a visitor, who must leave."""
        self._visitors.enter()
        try:
            if not self._shut:
                return self._environment.begin()
        except lmdb.PanicError:
            pass
        except BaseException:
            self._visitors.leave()
            raise
        self._visitors.leave()
        with self._writing:
            self._ensure_open()
        self._visitors.enter()
        try:
            return self._environment.begin()
        except BaseException:
            self._visitors.leave()
            raise

    def _note_held(self, seconds: float) -> None:
        counts = self._counts  # approximate under threads, as counters are
        counts["snapshots"] += 1
        counts["snapshot_held_us_max"] = max(counts["snapshot_held_us_max"], int(seconds * 1e6))
        if seconds > self._limits.snapshot_seconds:
            counts["snapshots_held_too_long"] += 1
            if self._strict:
                raise AssertionError(f"a snapshot was held for {seconds:.2f} s")

    # -- committing

    def commit(self, batch: Batch) -> CommitResult:
        (result,) = self.commit_many([batch])
        if isinstance(result, Exception):
            raise result
        return result

    def commit_many(
        self,
        batches: Sequence[Batch],
        *,
        before_commit: Callable[[list[CommitResult | Exception]], None] | None = None,
    ) -> list[CommitResult | Exception]:
        if not batches:
            return []
        with self._committing():
            return self._commit(lambda _: batches, before_commit)

    def commit_planned(self, plan: Callable[[Snapshot], Sequence[Batch]]) -> list[CommitResult | Exception]:
        with self._committing():
            return self._commit(plan, None)

    @contextmanager
    def _committing(self) -> Iterator[None]:
        with self._writing:
            try:
                self._ensure_open()
                self._checkpoints.make_ready()
            except lmdb.Error as error:
                raise _translated(error) from error
            with self._checkpoints.committing():
                yield

    def _commit(
        self,
        plan: Callable[[Snapshot], Sequence[Batch]],
        before_commit: Callable[[list[CommitResult | Exception]], None] | None,
    ) -> list[CommitResult | Exception]:
        results: list[CommitResult | Exception] = []
        full: StoreFullError | None = None
        checked_space = False
        try:
            transaction = self._begin_writing()
        except lmdb.Error as error:
            raise _translated(error) from error
        try:
            view = LmdbSnapshot(transaction, self._tables, self._handles)
            batches = plan(view)
            view.close()
            for batch in batches:
                try:
                    check_batch(self._tables, batch)
                    if not checked_space and not _may_use_reserve(batch):
                        checked_space = True
                        full = self._full(transaction)
                    if full is not None and not _may_use_reserve(batch):
                        raise full
                    results.append(self._apply_alone(transaction, batch))
                except lmdb.Error as error:
                    results.append(_translated(error))
                except Exception as error:  # noqa: BLE001 - whatever a callback raises is that batch's answer
                    results.append(error)
            if not all(isinstance(result, Exception) for result in results):
                if before_commit is not None:
                    before_commit(results)
                transaction.commit()
                self._note_commit(results)
        except lmdb.Error as error:
            raise _translated(error) from error
        finally:
            transaction.abort()  # nothing to do when it is committed
        return results

    def _begin_writing(self) -> Any:
        """A write transaction. The caller holds the writers' lock.

        After a failed write of a meta page LMDB stops until it is opened again.
        """
        try:
            if not self._shut:
                return self._environment.begin(write=True)
        except lmdb.PanicError:
            pass
        self._open_again()
        self._checkpoints.make_ready()  # what this process had pinned went with the old environment
        return self._environment.begin(write=True)

    def _ensure_open(self) -> None:
        """Open the environment again where it has stopped. The caller holds the writers' lock."""
        try:
            if not self._shut:
                self._environment.begin().abort()
                return
        except lmdb.PanicError:
            pass
        self._open_again()

    def _open_again(self) -> None:
        with self._visitors.alone() as alone:
            if not alone:
                raise StorageError("the index has to be opened again and is being read; try again")
            self._shut = True  # until it is open: should that fail, whoever comes next tries
            self._checkpoints.let_go()
            self._environment.close()
            try:
                self._environment = self._open(self._path)
            except OSError as error:
                raise StorageError(f"the index cannot be opened again: {error}; it is tried again") from error
            self._handles = {name: self._open_table(table) for name, table in self._tables.items()}
            self._shut = False
            self._checkpoints.begin_anew(self._environment)

    def _apply_alone(self, parent: Any, batch: Batch) -> CommitResult:
        self._check_preconditions(parent, batch)
        child = self._environment.begin(write=True, parent=parent)
        try:
            result = self._apply(child, batch)
            for call in batch.before_commit:
                call(result)
            child.commit()
        finally:
            child.abort()
        return result

    def _check_preconditions(self, transaction: Any, batch: Batch) -> None:
        handles = self._handles
        for table, key, expected in batch.preconditions:
            if transaction.get(key, db=handles[table.name]) != expected:
                raise PreconditionError(table.name, key)

    def _apply(self, transaction: Any, batch: Batch) -> CommitResult:
        handles = self._handles
        put, delete = transaction.put, transaction.delete
        for table, key in batch.deletes:
            delete(key, db=handles[table.name])
        for table, key, value in batch.puts:
            put(key, value, db=handles[table.name])
        for table, key, value in batch.removes:
            delete(key, value, db=handles[table.name])
        for table, key, value in batch.adds:
            put(key, value, dupdata=False, db=handles[table.name])
        sequences = []
        for table, make in batch.appends:
            handle = handles[table.name]
            with transaction.cursor(db=handle) as cursor:
                sequence = int.from_bytes(cursor.key(), "big") + 1 if cursor.last() else 1
            put(sequence_key(sequence), make(sequence), append=True, db=handle)
            sequences.append(sequence)
        return CommitResult(tuple(sequences))

    def _note_commit(self, results: Sequence[CommitResult | Exception]) -> None:
        with self._lock:
            counts = self._counts
            counts["commits"] += 1
            failed = sum(isinstance(result, Exception) for result in results)
            counts["batches"] += len(results) - failed
            counts["batches_failed"] += failed
            due = counts["commits"] % self._limits.reader_check_commits == 0
        if due:
            cleared = self._environment.reader_check()
            with self._lock:
                counts["stale_readers_cleared"] += cleared

    # -- space

    def _full(self, transaction: Any) -> StoreFullError | None:
        reserve = self._limits.reserve_bytes
        disk = os.statvfs(self._path)
        free = disk.f_bavail * disk.f_frsize
        if free < reserve:
            return StoreFullError(
                f"{free >> 20} MiB are free where the index is and {reserve >> 20} MiB of them are kept "
                "in reserve for deletion; free some space"
            )
        page = self._environment.stat()["psize"]
        pages = self._limits.map_bytes // page
        touched = self._environment.info()["last_pgno"] + 1
        if (pages - touched) * page >= reserve:
            return None
        # The file has reached the reserve; pages freed inside it count as room again.
        live = sum(_pages(transaction.stat(db=handle)) for handle in self._handles.values())
        if (pages - live) * page >= reserve:
            return None
        return StoreFullError("the index has reached its map size; delete something or raise it at a restart")

    def statistics(self) -> dict[str, int]:
        """Counters, readers, bytes of the file and entries of each table."""
        with self._visitors.visit():
            return self._statistics(self._environment)

    def _statistics(self, environment: Any) -> dict[str, int]:
        info = environment.info()
        found = {
            **self._counts,
            "file_bytes": (info["last_pgno"] + 1) * environment.stat()["psize"],
            "map_bytes": info["map_size"],
            "readers": info["num_readers"],
            "last_transaction": info["last_txnid"],
        }
        with environment.begin() as transaction:
            for name, handle in self._handles.items():
                found[f"entries_{name}"] = transaction.stat(db=handle)["entries"]
        return found

    def check_readers(self) -> int:
        """Clear reader slots of processes that died; how many there were."""
        with self._visitors.visit():
            cleared = int(self._environment.reader_check())
        with self._lock:
            self._counts["stale_readers_cleared"] += cleared
        return cleared

    def copy_to(self, directory: Path) -> None:
        """See :class:`~hounsfield.storage_backends.api.CopiesItself`. Pages freed meanwhile stay until then.

        ``StorageError`` when it could not be written; what is there then is not a copy. Page by page: LMDB
        0.9.36 dies of a segmentation fault when it is to leave out free pages (``compact``) and a list of
        postings has pages of its own, as every one of 126 studies has.
        """
        make_private_directory(directory)
        try:
            with self._visitors.visit():
                self._environment.copy(str(directory), compact=False)
            for path in directory.iterdir():
                path.chmod(0o600)
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except (lmdb.Error, OSError) as error:
            raise StorageError(f"cannot copy the index to {directory}: {error}") from error
        sync_directory(directory)

    def sync(self) -> None:
        with self._visitors.visit():
            try:
                self._checkpoints.take()
            except lmdb.Error as error:
                raise _translated(error) from error

    def close(self) -> None:
        """Also makes the last commits durable; an error of that is the disk's, and the next open says so."""
        self._checkpoints.close()
        self._environment.close()

    def _open_table(self, table: Table) -> Any:
        postings = table.kind is TableKind.POSTINGS
        return self._environment.open_db(
            table.name.encode(), create=True, dupsort=postings, dupfixed=postings
        )


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """One process at a time opens the store in ``path``."""
    descriptor = os.open(path / "open.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _may_use_reserve(batch: Batch) -> bool:
    return batch.uses_reserve or not (batch.puts or batch.adds or batch.appends)


def _pages(stat: dict[str, int]) -> int:
    return stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]


def _translated(error: lmdb.Error) -> StorageError:
    text = str(error)
    if isinstance(error, lmdb.MapFullError) or any(phrase in text for phrase in _FULL):
        return StoreFullError(f"the index is full ({text}); nothing was written")
    return StorageError(f"the index could not be written: {text}")
