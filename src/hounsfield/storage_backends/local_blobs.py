"""Blobs as files in one directory of one machine, with plain POSIX calls.

A name such as ``segments/ab12`` is a path below the directory. Writing is
:mod:`~hounsfield.storage_backends.local_writer`'s; a blob is durable after ``fdatasync`` of the file
and, the first time, ``fsync`` of every directory from the file up to the root (so that the name itself,
and directories just made for it, survive too).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hounsfield.storage_backends.errors import (
    BlobExistsError,
    BlobNotFoundError,
    ShortReadError,
    StoreFullError,
    UnreadableError,
)
from hounsfield.storage_backends.file_systems import make_private_directory, sync_directory
from hounsfield.storage_backends.local_background import BackgroundBlobs
from hounsfield.storage_backends.local_writer import LocalBlobWriter, StagingPool, translated, turn_direct

__all__ = ["LocalBlobLimits", "LocalBlobs", "check_blob_name", "is_blob_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._-]{0,199}){0,7}")


@dataclass(frozen=True, slots=True)
class LocalBlobLimits:
    """What one ``LocalBlobs`` may use."""

    open_files: int = 256
    """Descriptors kept for reading. A reader of old studies touches few segments at a time; 256 of
    the usual 1,024 a process may have leaves the rest to sockets."""

    reserve_bytes: int = 512 << 20
    """Free space that appends never touch: deletion, compaction and the index need some to work."""


def check_blob_name(name: str) -> str:
    """``name`` itself, or ``ValueError``: a blob can never name a path outside its store."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a blob name: {name!r}")
    return name


def is_blob_name(name: str) -> bool:
    """Whether a blob can have that name; what else lies in a directory or bucket is somebody else's."""
    return _NAME.fullmatch(name) is not None


class LocalBlobs:
    """A ``BlobStore`` (and ``NonBlockingReads``) over one local directory. Thread-safe.

    Several processes may share the directory; each blob still has one writer. Directories are made
    0700 and files 0600. ``direct``: write past the page cache where the file system takes it
    (:meth:`statistics` counts the writers that do and that do not); blobs then grow in whole blocks.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        limits: LocalBlobLimits | None = None,
        direct: bool = True,
    ) -> None:
        self._root = Path(directory)
        self._direct = direct
        self._pool = StagingPool()
        self._limits = limits or LocalBlobLimits()
        self._files = _OpenFiles(self._limits.open_files)
        make_private_directory(self._root)

    def __repr__(self) -> str:
        return f"LocalBlobs({str(self._root)!r})"

    # -- writing

    def create(self, name: str) -> LocalBlobWriter:
        path = self._path(name)
        make_private_directory(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            raise BlobExistsError(f"blob {name!r} exists already") from None
        except OSError as error:
            raise translated(error, f"cannot create blob {name!r}") from error
        # Held until the writer is closed or its process is gone: recovery tells the dead from the living.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        directories = self._folders(path)
        direct = self._direct and turn_direct(descriptor)
        return LocalBlobWriter(name, descriptor, directories, self._pool, direct=direct)

    def is_being_written(self, name: str) -> bool:
        """Whether the blob's writer, in any process of this machine, is still there."""
        with self._files.borrow(name, self._path) as reading:
            descriptor = os.open(f"/proc/self/fd/{reading}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(descriptor)
            return False

    def make_durable(self, name: str) -> None:
        """Sync a blob whose writer is gone, and have its next read come from the disk."""
        with self._files.borrow(name, self._path) as descriptor:
            try:
                os.fsync(descriptor)
                for folder in self._folders(self._path(name)):
                    sync_directory(folder)
            except OSError as error:
                raise translated(error, f"blob {name!r} cannot be made durable") from error
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def require_space(self, length: int) -> None:
        """Return, or raise ``StoreFullError`` when ``length`` more bytes would eat into the reserve."""
        found = os.statvfs(self._root)
        free = found.f_bavail * found.f_frsize
        if free - length < self._limits.reserve_bytes:
            raise StoreFullError(
                f"{free >> 20} MiB are free where the blobs are, of which "
                f"{self._limits.reserve_bytes >> 20} MiB are kept for deletion; free some space"
            )

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            path.unlink()
        except FileNotFoundError:
            raise BlobNotFoundError(f"no blob {name!r}") from None
        self._files.forget(name)
        sync_directory(path.parent)

    # -- reading

    def read(self, name: str, offset: int, length: int) -> bytes:
        with self._files.borrow(name, self._path) as descriptor:
            try:
                data = os.pread(descriptor, length, offset)
            except OSError as error:
                raise _unreadable(name, error) from error
            if len(data) == length:
                return data
            buffer = bytearray(length)
            _fill(descriptor, offset, memoryview(buffer), name)
            return bytes(buffer)

    def read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> None:
        with self._files.borrow(name, self._path) as descriptor:
            _fill(descriptor, offset, memoryview(buffer).cast("B"), name)

    def try_read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> bool:
        with self._files.borrow(name, self._path) as descriptor:
            try:
                got = os.preadv(descriptor, (buffer,), offset, os.RWF_NOWAIT)
            except OSError as error:  # EAGAIN: not cached; EOPNOTSUPP: this file system cannot tell
                if error.errno in {errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
                    return False
                raise _unreadable(name, error) from error
            return got == len(buffer)  # a short answer means that the rest is not cached

    def read_ahead(self, name: str, ranges: Iterable[tuple[int, int]]) -> None:
        # Whoever reads is told what is wrong with the blob.
        with contextlib.suppress(OSError, BlobNotFoundError), self._files.borrow(name, self._path) as file:
            for offset, length in ranges:
                os.posix_fadvise(file, offset, length, os.POSIX_FADV_WILLNEED)

    def size(self, name: str) -> int:
        try:
            return self._path(name).stat().st_size
        except FileNotFoundError:
            raise BlobNotFoundError(f"no blob {name!r}") from None

    def names(self, prefix: str = "") -> list[str]:
        folder = prefix.rpartition("/")[0]
        start = self._root / folder if folder else self._root
        found = []
        for directory, _, files in os.walk(start):
            below = os.path.relpath(directory, self._root)
            lead = "" if below == "." else below + "/"
            names = (lead + file for file in files)
            found += [name for name in names if name.startswith(prefix) and _NAME.fullmatch(name)]
        return sorted(found)

    def for_background(self) -> BackgroundBlobs:
        """The same blobs for one reader of everything, past the page cache; the caller closes it."""
        return BackgroundBlobs(self, self._path)

    def release_deleted(self) -> int:
        """Close descriptors of blobs that another process deleted, so that their disk is returned."""
        return self._files.release_deleted()

    def close(self) -> None:
        self._files.close()

    def statistics(self) -> dict[str, int]:
        """Open descriptors; writers so far that wrote directly, and through the page cache."""
        return {
            "open_files": len(self._files),
            "writers_direct": self._pool.writers_direct,
            "writers_buffered": self._pool.writers_buffered,
        }

    def _path(self, name: str) -> Path:
        return self._root / check_blob_name(name)

    def _folders(self, path: Path) -> list[Path]:
        """The directories that ``path`` is in, innermost first, down to this store's own."""
        found = [path.parent]
        while found[-1] != self._root:
            found.append(found[-1].parent)
        return found


# ---------------------------------------------------------------- descriptors


class _OpenFile:
    __slots__ = ("descriptor", "readers", "retired")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.readers = 0
        self.retired = False


class _OpenFiles:
    """The least recently used descriptors are closed, but never under a reader."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def borrow(self, name: str, path_of: Callable[[str], Path]) -> _Loan:
        with self._lock:
            file = self._files.get(name)
            if file is not None:
                self._files.move_to_end(name)
                file.readers += 1
                return _Loan(self, file)
        try:
            descriptor = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise BlobNotFoundError(f"no blob {name!r}") from None
        file = _OpenFile(descriptor)
        file.readers = 1
        with self._lock:
            if name in self._files:  # another thread was faster: use ours once
                file.retired = True
            else:
                self._files[name] = file
                while len(self._files) > self._limit:
                    self._retire(next(iter(self._files)))
        return _Loan(self, file)

    def give_back(self, file: _OpenFile) -> None:
        with self._lock:
            file.readers -= 1
            if file.retired and not file.readers:
                os.close(file.descriptor)

    def forget(self, name: str) -> None:
        with self._lock:
            if name in self._files:
                self._retire(name)

    def release_deleted(self) -> int:
        with self._lock:
            gone = [name for name, file in self._files.items() if not os.fstat(file.descriptor).st_nlink]
            for name in gone:
                self._retire(name)
            return len(gone)

    def close(self) -> None:
        with self._lock:
            for name in list(self._files):
                self._retire(name)

    def _retire(self, name: str) -> None:
        file = self._files.pop(name)
        file.retired = True
        if not file.readers:
            os.close(file.descriptor)


class _Loan:
    """A descriptor in use; a plain class because the contextlib one costs more than the read."""

    __slots__ = ("_file", "_owner")

    def __init__(self, owner: _OpenFiles, file: _OpenFile) -> None:
        self._owner = owner
        self._file = file

    def __enter__(self) -> int:
        return self._file.descriptor

    def __exit__(self, *_: object) -> None:
        self._owner.give_back(self._file)


# ---------------------------------------------------------------- calls


def _unreadable(name: str, error: OSError) -> UnreadableError:
    return UnreadableError(
        f"the disk does not give back a part of blob {name!r} ({error.strerror}): look after the disk, and "
        "restore the blob from another copy"
    )


def _fill(descriptor: int, offset: int, view: memoryview, name: str) -> None:
    while len(view):
        try:
            got = os.preadv(descriptor, (view,), offset)
        except OSError as error:
            raise _unreadable(name, error) from error
        if not got:
            raise ShortReadError(f"blob {name!r} ends {len(view)} bytes before the range does")
        offset += got
        view = view[got:]
