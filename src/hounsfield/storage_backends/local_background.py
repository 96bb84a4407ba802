"""Reading local blobs from front to back without pushing out of memory what viewers are reading.

Bytes come past the page cache, in windows (what the disk holds is also what a scrub must see, not what
memory still remembers). Where a file system does not take direct reads, the cache is told to drop each
window again.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

from hounsfield.storage_backends.api import BlobStore, BlobWriter
from hounsfield.storage_backends.errors import BlobNotFoundError, ShortReadError
from hounsfield.storage_backends.local_writer import BLOCK_BYTES, turn_direct

__all__ = ["WINDOW_BYTES", "BackgroundBlobs"]

WINDOW_BYTES = 4 << 20  # one read of a disk: its seek is then a small part of it


class BackgroundBlobs:
    """A ``BlobStore`` for one reader at a time; everything but reading is the wrapped store's.

    It keeps one file open; :meth:`close` lets go of it, and the next read opens again.
    """

    def __init__(self, blobs: BlobStore, path_of: Callable[[str], Path]) -> None:
        self._blobs = blobs
        self._path_of = path_of
        self._lock = threading.Lock()
        self._window = mmap.mmap(-1, WINDOW_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._window)
        self._name = ""
        self._descriptor = -1
        self._direct = False
        self._start = 0
        self._filled = 0
        self.bytes_read = 0

    def read(self, name: str, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read_into(name, offset, buffer)
        return bytes(buffer)

    def read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> None:
        view = memoryview(buffer).cast("B")
        with self._lock:
            if name != self._name:
                self._open(name)
            while len(view):
                if not self._start <= offset < self._start + self._filled:
                    self._load(offset)
                at = offset - self._start
                got = min(len(view), self._filled - at)
                if got <= 0:
                    raise ShortReadError(f"blob {name!r} ends {len(view)} bytes before the range does")
                view[:got] = self._view[at : at + got]
                view = view[got:]
                offset += got

    def create(self, name: str) -> BlobWriter:
        return self._blobs.create(name)

    def size(self, name: str) -> int:
        return self._blobs.size(name)

    def names(self, prefix: str = "") -> list[str]:
        return self._blobs.names(prefix)

    def delete(self, name: str) -> None:
        self._blobs.delete(name)

    def close(self) -> None:
        """Let go of the file that was read last, so that its disk is returned when it was deleted."""
        with self._lock:
            self._forget()

    def _open(self, name: str) -> None:
        self._forget()
        try:
            self._descriptor = os.open(self._path_of(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise BlobNotFoundError(f"no blob {name!r}") from None
        self._direct = turn_direct(self._descriptor)
        self._name = name

    def _load(self, offset: int) -> None:
        self._filled = 0
        self._start = offset - offset % BLOCK_BYTES
        try:
            self._filled = os.preadv(self._descriptor, (self._view,), self._start)
        except OSError as error:
            if not self._direct or error.errno != errno.EINVAL:
                raise
            self._undirected()  # taken when it was opened, refused when it is read
            self._filled = os.preadv(self._descriptor, (self._view,), self._start)
        if not self._direct:
            os.posix_fadvise(self._descriptor, self._start, self._filled, os.POSIX_FADV_DONTNEED)
        self.bytes_read += self._filled

    def _undirected(self) -> None:
        os.close(self._descriptor)
        self._descriptor = os.open(self._path_of(self._name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._direct = False

    def _forget(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
        self._name = ""
        self._start = self._filled = 0
