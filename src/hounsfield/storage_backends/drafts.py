"""The bytes of one new file, in order, past the page cache where its disk takes that.

A cached write costs the processor some 2.5 ms/MB, a direct one 0.4, and what goes to another tier pushes
nothing out of memory that somebody reads. Across a network a direct write waits for the server each time,
so there the kernel's cache is written to, and emptied. A direct write waits for the disk: what comes next
is staged meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.file_systems import NETWORK_FILE_SYSTEMS, file_system_type
from hounsfield.storage_backends.local_writer import BLOCK_BYTES, turn_direct

__all__ = ["Draft"]

DIRECT_BYTES_MIN = 1 << 20  # shorter files are not worth a staging buffer
STAGING_BYTES = 4 << 20  # of one write, and twice in memory; one of 1 MiB costs twice the CPU


class Draft:
    """Writes through a descriptor of an empty file. One thread at a time; raises ``OSError``."""

    def __init__(self, descriptor: int, length: int) -> None:
        """``length``: about so many bytes will come."""
        self._descriptor = descriptor
        self._staging: mmap.mmap | None = None
        self._spare: mmap.mmap | None = None  # of which is being written, perhaps
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._staged = 0
        self._begun = False
        if length >= DIRECT_BYTES_MIN and _is_local(descriptor) and turn_direct(descriptor):
            self._staging = _staging()

    def write(self, piece: Buffer) -> None:
        """The next bytes; they may be overwritten when this returns."""
        view = memoryview(piece).cast("B")
        while len(view) and self._staging is not None:
            taken = min(len(view), STAGING_BYTES - self._staged)
            self._staging[self._staged : self._staged + taken] = view[:taken]
            self._staged += taken
            view = view[taken:]
            if self._staged == STAGING_BYTES:
                self._flush_beside(self._staging)
        self._write(view)

    def sync(self) -> None:
        """That was all: return when it is durable."""
        self._written()
        if self._staging is not None:
            whole = self._staged & -BLOCK_BYTES
            if whole:
                self._flush(self._staging, whole)
        if self._staging is not None:  # what does not fill a block cannot go directly
            self._turn_cached(self._staging)
        os.fsync(self._descriptor)
        # What is read back shows what the disk has, and what goes cold does not fill the memory.
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Nothing is being written any more when this returns; what was not synced may be lost."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    def _flush_beside(self, staging: mmap.mmap) -> None:
        """Write all that is staged, beside; the first time here, to see whether it can be done so."""
        self._written()
        if not self._begun:
            self._flush(staging, STAGING_BYTES)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="draft")
        following = self._spare or _staging()
        self._spare, self._staging, self._staged = staging, following, 0
        self._writing = self._thread.submit(self._write_whole, staging)

    def _write_whole(self, staging: mmap.mmap) -> None:
        with memoryview(staging) as whole:
            self._write(whole)

    def _written(self) -> None:
        """Wait until nothing is being written; raises what that did."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _flush(self, staging: mmap.mmap, length: int) -> None:
        with memoryview(staging) as whole, whole[:length] as view:
            try:
                self._write(view)
            except OSError as error:
                if self._begun or error.errno != errno.EINVAL:
                    raise
                self._turn_cached(staging)  # this file system took the flag and does not do it
                return
        left = self._staged - length
        staging[:left] = staging[length : self._staged]
        self._staged = left

    def _turn_cached(self, staging: mmap.mmap) -> None:
        """Write what is staged, and all that follows, through the page cache."""
        self._staging = None
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        with memoryview(staging) as whole, whole[: self._staged] as view:
            self._write(view)
        self._staged = 0

    def _write(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            with view[at:] as left:
                at += os.write(self._descriptor, left)
            self._begun = True


def _staging() -> mmap.mmap:
    return mmap.mmap(-1, STAGING_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _is_local(descriptor: int) -> bool:
    kind = file_system_type(Path(f"/proc/self/fd/{descriptor}"))
    return kind is not None and kind not in NETWORK_FILE_SYSTEMS
