"""Writing one file, directly to the disk where its file system takes that, and durably when told to.

A direct write (``O_DIRECT``) needs address, length and offset in multiples of a block. What the caller
hands over aligned goes out from the caller's own memory; the rest goes through a staging buffer. What
does not fill a block waits there for :meth:`LocalBlobWriter.sync`, which pads it with zeros.
Why direct: docs/decisions/0007-direct-writes.md.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import PoisonedError, StorageError, StoreFullError
from hounsfield.storage_backends.file_systems import sync_directory

__all__ = ["BLOCK_BYTES", "LocalBlobWriter", "StagingPool", "translated", "turn_direct"]

BLOCK_BYTES = 4096  # no local disk of today has larger logical blocks; also the pages this is made for
STAGING_BYTES = 1 << 20  # one write of this size keeps a disk as busy as a larger one
_STAGING_KEPT = 4  # a worker writes one segment and one ledger at a time
_GATHER_BYTES_MAX = 1 << 30  # the kernel silently shortens one write at 2 GiB - 4 KiB; stay well below
_IOV_MAX = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 1024
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_O_DIRECT = getattr(os, "O_DIRECT", 0)


def turn_direct(descriptor: int) -> bool:
    """Have writes through ``descriptor`` go past the page cache; False where that cannot be.

    Asked for after opening, because an open that is refused for it leaves an empty file behind. With
    pages larger than a block the last page of a file would be half in the cache and half not.
    """
    if not _O_DIRECT or mmap.PAGESIZE != BLOCK_BYTES:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | _O_DIRECT)
    except OSError:  # EINVAL: tmpfs before Linux 6.6, some FUSE and network file systems
        return False
    return True


class StagingPool:
    """Aligned buffers that writers borrow between an append and its sync. Counts refusals, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[mmap.mmap] = []
        self.writers_direct = 0
        self.writers_buffered = 0

    def take(self) -> mmap.mmap:
        with self._lock:
            if self._free:
                return self._free.pop()
        return mmap.mmap(-1, STAGING_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def give_back(self, buffer: mmap.mmap) -> None:
        with self._lock:
            if len(self._free) < _STAGING_KEPT:
                self._free.append(buffer)

    def started(self, direct: bool) -> None:
        with self._lock:
            self.writers_direct += direct
            self.writers_buffered += not direct

    def fell_back(self) -> None:
        with self._lock:
            self.writers_direct -= 1
            self.writers_buffered += 1


class LocalBlobWriter:
    """The writer of one new file."""

    def __init__(
        self, name: str, descriptor: int, directories: list[Path], pool: StagingPool, *, direct: bool
    ) -> None:
        self._name = name
        self._descriptor = descriptor
        self._directories = directories  # still to be synced, innermost first
        self._pool = pool
        self._direct = direct
        self._written = 0  # in the file; of a direct writer a multiple of the block
        self._staging: mmap.mmap | None = None
        self._staged = 0
        self._poison: str | None = None
        pool.started(direct)

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._written + self._staged

    @property
    def block(self) -> int:
        """Appends of multiples of this, from memory aligned to it, are neither copied nor padded."""
        return BLOCK_BYTES if self._direct else 1

    def append(self, buffers: Sequence[Buffer]) -> int:
        self._check()
        start = self.size
        try:
            if self._direct:
                for buffer in buffers:
                    self._take(memoryview(buffer).cast("B"))
                if self.block == 1:  # found out just now
                    self._flush_staging()
            else:
                for group, length in _gather(buffers):
                    self._write(group, length)
        except OSError as error:
            raise self._failed(error) from error
        return start

    def sync(self) -> None:
        self._check()
        try:
            if self._staged:
                self._pad_and_flush()
        except OSError as error:
            raise self._failed(error) from error
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
        """Give up writing. What was never synced may be lost: what waits for a full block is."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._poison = self._poison or "it is closed"
            self._drop_staging()
            os.close(descriptor)

    # -- direct writing

    def _take(self, view: memoryview) -> None:
        """Write all of ``view``, or leave its end in the staging buffer."""
        while len(view):
            if not self._staged and len(view) >= BLOCK_BYTES and _is_aligned(view):
                whole = min(len(view), _GATHER_BYTES_MAX) & -BLOCK_BYTES
                self._write([view[:whole]], whole)
            else:
                if self._staging is None:
                    self._staging = self._pool.take()
                whole = min(len(view), STAGING_BYTES - self._staged)
                self._staging[self._staged : self._staged + whole] = view[:whole]
                self._staged += whole
                if self._staged == STAGING_BYTES:
                    self._flush_staging()
            view = view[whole:]

    def _pad_and_flush(self) -> None:
        assert self._staging is not None
        padding = -self._staged % BLOCK_BYTES
        self._staging[self._staged : self._staged + padding] = bytes(padding)
        self._staged += padding
        self._flush_staging()

    def _flush_staging(self) -> None:
        if self._staging is not None:
            length, self._staged = self._staged, 0  # on failure nothing of it is tried again
            with memoryview(self._staging) as staging, staging[:length] as staged:
                self._write([staged], length)
            self._drop_staging()

    def _drop_staging(self) -> None:
        staging, self._staging, self._staged = self._staging, None, 0
        if staging is not None:
            self._pool.give_back(staging)

    # -- either way

    def _write(self, group: list[Buffer], length: int) -> None:
        """One write at the end of the file; short is a failure."""
        if not length:
            return
        try:
            written = os.pwritev(self._descriptor, group, self._written)
        except OSError as error:
            if not self._direct or self._written or error.errno != errno.EINVAL:
                raise
            # The very first write: this file system took the flag and does not do it (or in larger blocks).
            self._direct = False
            self._pool.fell_back()
            fcntl.fcntl(
                self._descriptor, fcntl.F_SETFL, fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~_O_DIRECT
            )
            written = os.pwritev(self._descriptor, group, self._written)
        self._written += written
        if written != length:  # on a local file that is a disk that is almost full
            self._poison = f"a write of {length} bytes wrote {written}"
            self._drop_staging()
            raise StoreFullError(f"blob {self._name!r}: {self._poison}")

    def _failed(self, error: OSError) -> StorageError:
        self._poison = f"a write failed ({error.strerror})"
        self._drop_staging()
        return translated(error, f"blob {self._name!r}: {self._poison}")

    def _check(self) -> None:
        if self._poison is not None:
            raise PoisonedError(f"blob {self._name!r} takes nothing more: {self._poison}; start another")


def _is_aligned(view: memoryview) -> bool:
    try:
        return not ctypes.addressof(ctypes.c_char.from_buffer(view)) % BLOCK_BYTES
    except TypeError:  # read-only memory does not tell where it is
        return False


def _gather(buffers: Sequence[Buffer]) -> Iterator[tuple[list[Buffer], int]]:
    """Cut ``buffers`` into groups that one gather write takes whole."""
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


def translated(error: OSError, what: str) -> StorageError:
    """The error of this package for one of the operating system's."""
    if error.errno in _FULL:
        return StoreFullError(f"{what}: the disk is full")
    return PoisonedError(what)
