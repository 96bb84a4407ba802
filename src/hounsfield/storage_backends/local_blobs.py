"""Blobs as files in one directory of one machine, with plain POSIX calls.

A name such as ``segments/ab12`` is a path below the directory. Appending is one ``writev``; a blob
is durable after ``fdatasync`` of the file and, the first time, ``fsync`` of every directory from
the file up to the root (so that the name itself, and directories just made for it, survive too).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import (
    BlobExistsError,
    BlobNotFoundError,
    PoisonedError,
    ShortReadError,
    StorageError,
    StoreFullError,
)
from hounsfield.storage_backends.file_systems import make_private_directory, sync_directory

__all__ = ["LocalBlobLimits", "LocalBlobs", "check_blob_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._-]{0,199}){0,7}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GATHER_BYTES_MAX = 1 << 30  # the kernel silently shortens one write at 2 GiB - 4 KiB; stay well below
_IOV_MAX = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 1024


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


class LocalBlobs:
    """A ``BlobStore`` (and ``NonBlockingReads``) over one local directory. Thread-safe.

    Several processes may share the directory; each blob still has one writer. Directories are made
    0700 and files 0600.
    """

    def __init__(self, directory: str | os.PathLike[str], *, limits: LocalBlobLimits | None = None) -> None:
        self._root = Path(directory)
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
            raise _translated(error, f"cannot create blob {name!r}") from error
        # Held until the writer is closed or its process is gone: recovery tells the dead from the living.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        directories = [path.parent]
        while directories[-1] != self._root:
            directories.append(directories[-1].parent)
        return LocalBlobWriter(name, descriptor, directories)

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
            data = os.pread(descriptor, length, offset)
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
                raise
            return got == len(buffer)  # a short answer means that the rest is not cached

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

    def release_deleted(self) -> int:
        """Close descriptors of blobs that another process deleted, so that their disk is returned."""
        return self._files.release_deleted()

    def close(self) -> None:
        self._files.close()

    def statistics(self) -> dict[str, int]:
        return {"open_files": len(self._files)}

    def _path(self, name: str) -> Path:
        return self._root / check_blob_name(name)


class LocalBlobWriter:
    """The writer of one new file."""

    def __init__(self, name: str, descriptor: int, directories: list[Path]) -> None:
        self._name = name
        self._descriptor = descriptor
        self._directories = directories  # still to be synced, innermost first
        self._size = 0
        self._poison: str | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def append(self, buffers: Sequence[Buffer]) -> int:
        self._check()
        start = self._size
        try:
            for group, length in _gather(buffers):
                written = os.writev(self._descriptor, group)
                if written != length:  # on a local file that is a disk that is almost full
                    self._poison = f"a write of {length} bytes wrote {written}"
                    raise StoreFullError(f"blob {self._name!r}: {self._poison}")
                self._size += written
        except OSError as error:
            self._poison = f"a write failed ({error.strerror})"
            raise _translated(error, f"blob {self._name!r}: {self._poison}") from error
        return start

    def sync(self) -> None:
        self._check()
        try:
            os.fdatasync(self._descriptor)
            while self._directories:
                sync_directory(self._directories[0])
                self._directories.pop(0)
        except OSError as error:
            # The kernel may already have dropped the dirty pages: a second sync would lie.
            self._poison = f"a sync failed ({error.strerror})"
            raise PoisonedError(f"blob {self._name!r}: {self._poison}") from error

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._poison = self._poison or "it is closed"
            os.close(descriptor)

    def _check(self) -> None:
        if self._poison is not None:
            raise PoisonedError(f"blob {self._name!r} takes nothing more: {self._poison}; start another")


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


def _gather(buffers: Sequence[Buffer]) -> Iterator[tuple[list[Buffer], int]]:
    """Cut ``buffers`` into groups that one ``writev`` takes whole."""
    group: list[Buffer] = []
    length = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while len(view):
            if len(group) == _IOV_MAX or length == _GATHER_BYTES_MAX:
                yield group, length
                group, length = [], 0
            piece = view[: _GATHER_BYTES_MAX - length]
            group.append(piece)
            length += len(piece)
            view = view[len(piece) :]
    if group:
        yield group, length


def _fill(descriptor: int, offset: int, view: memoryview, name: str) -> None:
    while len(view):
        got = os.preadv(descriptor, (view,), offset)
        if not got:
            raise ShortReadError(f"blob {name!r} ends {len(view)} bytes before the range does")
        offset += got
        view = view[got:]


def _translated(error: OSError, what: str) -> StorageError:
    if error.errno in _FULL:
        return StoreFullError(f"{what}: the disk is full")
    return PoisonedError(what)
