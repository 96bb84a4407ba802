"""A tier in a directory of another disk, or of NFS or SMB, with plain POSIX calls.

An object is written beside, synced, and renamed to its name, so a name shows a whole object or none. The
directory is the administrator's: it is never made here, and nothing but the mark itself is put into one
without the mark (:data:`~hounsfield.storage_backends.object_store.TIER_MARKER`), because an empty mount point
looks like an empty directory. Every call goes through a descriptor of the directory as it finds it at that
moment, so that a disk that is unmounted or mounted meanwhile is one or the other for the whole call.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.drafts import Draft
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    ShortReadError,
    StorageError,
    StoreFullError,
    UnreadableError,
)
from hounsfield.storage_backends.local_blobs import check_blob_name, is_blob_name
from hounsfield.storage_backends.object_store import (
    TIER_MARKER,
    StoreAwayError,
    StoreRefusedError,
    TierMarkerMissingError,
)

__all__ = ["DirectoryLimits", "DirectoryStore"]

INCOMING = ".incoming"  # not a key: names begin with a letter or digit
_CLEAN_EVERY_S = 3600
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MIB = 1 << 20

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
_UNREADABLE = {errno.EIO, errno.EBADMSG, errno.EUCLEAN}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True, slots=True)
class DirectoryLimits:
    """What one ``DirectoryStore`` may use."""

    reserve_bytes: int = 1 << 30
    """Free space that puts leave: others may use the disk, and file systems slow down when they are full."""

    piece_bytes: int = 4 * _MIB
    """Of one read of a stream, which holds one and has the kernel fetch the next."""

    stale_s: float = 24 * 3600
    """An unfinished file that nobody wrote to for so long is of a process that was killed. Longer than a
    put may pause, and than clocks of two machines should differ."""


class DirectoryStore:
    """An ``ObjectStore`` (and ``CreatesOnce``) in one directory. Thread-safe; several machines may share it.

    A key cannot be a folder of another. Opening touches nothing.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        limits: DirectoryLimits | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = Path(directory).absolute()
        self._limits = limits or DirectoryLimits()
        self._clock = clock
        self._clean_at = 0.0

    def __repr__(self) -> str:
        return f"<DirectoryStore {self._root}>"

    # -- writing

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        with self._written(key, pieces, length) as (incoming, draft, target, name):
            os.rename(draft, name, src_dir_fd=incoming, dst_dir_fd=target)

    def create(self, key: str, data: bytes) -> bool:
        with self._written(key, [data], len(data)) as (incoming, draft, target, name):
            try:
                os.link(draft, name, src_dir_fd=incoming, dst_dir_fd=target)
                created = True
            except FileExistsError:
                created = False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                created = _created_in_place(target, name, data)  # SMB and FAT have no links
            os.unlink(draft, dir_fd=incoming)
        return created

    def delete(self, key: str) -> None:
        folder, _, name = check_blob_name(key).rpartition("/")
        with self._opened("deleting", key, marked=True) as root:
            try:
                target = os.open(folder or ".", _DIRECTORY, dir_fd=root)
            except FileNotFoundError:
                return
            try:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=target)
                    os.fsync(target)
            finally:
                os.close(target)

    def _remove_stale(self, incoming: int) -> None:
        """Remove, now and then, what killed processes left unfinished."""
        now = self._clock()
        if now < self._clean_at:
            return
        self._clean_at = now + _CLEAN_EVERY_S
        for name in os.listdir(incoming):
            with suppress(FileNotFoundError):  # somebody else cleans, too
                if (
                    os.stat(name, dir_fd=incoming, follow_symlinks=False).st_mtime
                    < now - self._limits.stale_s
                ):
                    os.unlink(name, dir_fd=incoming)

    @contextmanager
    def _written(
        self, key: str, pieces: Iterable[Buffer], length: int
    ) -> Iterator[tuple[int, str, int, str]]:
        """The object as a synced draft (folder, name), for the block to move to its place (folder, name).

        What the block did is durable when it is left.
        """
        folder, _, name = check_blob_name(key).rpartition("/")
        draft = secrets.token_hex(16)
        try:
            with self._opened("putting", key, marked=key != TIER_MARKER) as root:
                self._require_space(root, length)
                with _folder(root, INCOMING) as (incoming, _), _folder(root, folder) as (target, above):
                    self._remove_stale(incoming)
                    try:
                        self._fill(incoming, draft, pieces, length, key)
                        yield incoming, draft, target, name
                    except BaseException:
                        with suppress(OSError):
                            os.unlink(draft, dir_fd=incoming)
                        raise
                    for changed in (target, *above):  # another process may have made a folder a moment ago
                        os.fsync(changed)
        except _PiecesError as failed:
            raise failed.reason from None

    def _fill(self, incoming: int, draft: str, pieces: Iterable[Buffer], length: int, key: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o600, dir_fd=incoming)
        draft_file = Draft(descriptor, length)
        try:
            left = length
            for piece in _marked_as_theirs(pieces):
                left -= memoryview(piece).nbytes
                if left < 0:
                    raise ValueError(f"putting {key!r}: more than the {length} bytes that were said to come")
                draft_file.write(piece)
            if left:
                raise ValueError(f"putting {key!r}: {left} bytes fewer than were said to come")
            draft_file.sync()
        finally:
            draft_file.close()
            os.close(descriptor)

    def _require_space(self, root: int, length: int) -> None:
        found = os.fstatvfs(root)
        free = found.f_bavail * found.f_frsize
        if free - length < self._limits.reserve_bytes:
            raise StoreFullError(
                f"{free >> 20} MiB are free in {self._root}, of which {self._limits.reserve_bytes >> 20} MiB "
                f"are kept: {-(-length >> 20)} MiB more do not fit; free some space"
            )

    # -- reading

    def read(self, key: str, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read_into(key, offset, buffer)
        return bytes(buffer)

    def read_into(self, key: str, offset: int, buffer: bytearray | memoryview) -> None:
        with self._file("reading", key) as descriptor:
            self._read(descriptor, key, offset, memoryview(buffer).cast("B"))

    def stream(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[Buffer]:
        with self._file("reading", key) as descriptor:
            end = os.fstat(descriptor).st_size if stop is None else stop
            if start > end:
                raise ShortReadError(f"reading {key!r} of {self!r}: it ends {start - end} bytes before")
            os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_SEQUENTIAL)
            while start < end:
                view = memoryview(bytearray(min(self._limits.piece_bytes, end - start)))
                self._read(descriptor, key, start, view)
                start += len(view)
                os.posix_fadvise(descriptor, start, self._limits.piece_bytes, os.POSIX_FADV_WILLNEED)
                yield view

    def _read(self, descriptor: int, key: str, offset: int, view: memoryview) -> None:
        while len(view):
            got = os.preadv(descriptor, (view,), offset)
            if not got:
                raise ShortReadError(
                    f"reading {key!r} of {self!r}: it ends {len(view)} bytes before the range does"
                )
            offset += got
            view = view[got:]

    def size(self, key: str) -> int:
        with self._file("asking for", key) as descriptor:
            return os.fstat(descriptor).st_size

    def names(self, prefix: str = "") -> Iterator[str]:
        with self._opened("listing", prefix, marked=True) as root:
            yield from _names(root, "", prefix)

    def close(self) -> None:
        """Nothing is held open."""

    # -- what these share

    @contextmanager
    def _opened(self, doing: str, key: str, *, marked: bool) -> Iterator[int]:
        """A descriptor of the directory as it is now; ``marked``: only with the mark in it."""
        try:
            try:
                root = os.open(self._root, _DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                raise TierMarkerMissingError(
                    f"{doing} {key!r}: there is no directory {self._root}; mount the disk, or make it"
                ) from None
            try:
                if marked:
                    self._require_marker(root, doing, key)
                yield root
            finally:
                os.close(root)
        except OSError as error:
            raise self._translated(error, doing, key) from error

    @contextmanager
    def _file(self, doing: str, key: str) -> Iterator[int]:
        check_blob_name(key)
        with self._opened(doing, key, marked=False) as root:
            descriptor = _open_regular(root, key)
            if descriptor is None:
                if key != TIER_MARKER:
                    self._require_marker(root, doing, key)
                raise BlobNotFoundError(f"{doing} {key!r} of {self!r}: no such object")
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def _require_marker(self, root: int, doing: str, key: str) -> None:
        try:
            os.stat(TIER_MARKER, dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            raise TierMarkerMissingError(
                f"{doing} {key!r}: {self._root} has no {TIER_MARKER!r}, so it is not this tier's; "
                "is the disk mounted?"
            ) from None

    def _translated(self, error: OSError, doing: str, key: str) -> StorageError:
        what = f"{doing} {key!r} of {self!r}: {error.strerror}"
        if error.errno in _FULL:
            return StoreFullError(f"{what}; free some space")
        if error.errno in _REFUSED:
            return StoreRefusedError(f"{what}; check how it is mounted, and whose it is")
        if error.errno in _UNREADABLE and doing == "reading":
            return UnreadableError(f"{what}; look after the disk; another copy may help")
        return StoreAwayError(f"{what}; try again later")


class _PiecesError(Exception):
    """What the giver of pieces raised, on its way past our own handling of the disk's errors."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


def _marked_as_theirs(pieces: Iterable[Buffer]) -> Iterator[Buffer]:
    try:
        yield from pieces
    except Exception as error:
        raise _PiecesError(error) from error


@contextmanager
def _folder(root: int, folder: str) -> Iterator[tuple[int, list[int]]]:
    """A folder, made when it is missing, and those it is in, innermost first."""
    with ExitStack() as stack:
        path = [root]
        for part in folder.split("/") if folder else ():
            try:
                below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=path[0])
            except FileNotFoundError:
                with suppress(FileExistsError):  # somebody else is putting there, too
                    os.mkdir(part, 0o700, dir_fd=path[0])
                below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=path[0])
            stack.callback(os.close, below)
            path.insert(0, below)
        yield path[0], path[1:]


def _open_regular(root: int, key: str) -> int | None:
    try:
        descriptor = os.open(key, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)  # a folder
    return None


def _created_in_place(target: int, name: str, data: bytes) -> bool:
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=target)
    except FileExistsError:
        return False
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _names(folder: int, path: str, prefix: str) -> Iterator[str]:
    """Keys in an open folder, whose own path is ``path``, and below, sorted."""
    with os.scandir(folder) as found:
        entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
    for name, is_folder in entries:
        below = path + name
        if not is_folder:
            if below.startswith(prefix) and is_blob_name(below):
                yield below
            continue
        below += "/"
        if name[0] == "." or not (below.startswith(prefix) or prefix.startswith(below)):
            continue
        try:
            descriptor = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        except FileNotFoundError:
            continue
        try:
            yield from _names(descriptor, below, prefix)
        finally:
            os.close(descriptor)
