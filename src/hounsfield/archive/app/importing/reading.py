"""A file is opened once and read once, block by block, and seen to be the same at its end. Blocking.

Each call is made on a thread; a small file is one call.
"""

from __future__ import annotations

import errno
import io
import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol

from hounsfield.archive.app.importing.recognising import BLOCK_BYTES, is_deflated, is_of_orthanc
from hounsfield.archive.errors import HounsfieldError

MEMBERS_MAX: Final = 1_000_000
"""Of a ZIP archive: more is not a disc image but a bomb."""


_ZIP_ERRORS: Final = (
    OSError,
    EOFError,
    MemoryError,  # what a damaged LZMA header asks for
    NotImplementedError,
    RuntimeError,
    ValueError,  # names that are no text, places before the beginning
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile raises at archives that are damaged, or packed in ways that it does not know."""


class UnreadableError(HounsfieldError):
    """A file cannot be read, or changed while it was read; nothing of it is kept."""


class Blocks(Protocol):
    """The contents of a file, or of a file in a ZIP archive, in order."""

    def next(self) -> bytes:
        """The next block: a shorter one than :data:`BLOCK_BYTES` is the last. UnreadableError."""

    def close(self) -> None:
        """Let go of it. Idempotent."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file was like when it was met: the same again means the same bytes."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Seen:
        return cls(found.st_size, found.st_mtime_ns)


class FileBlocks:
    """The blocks of a file."""

    def __init__(self, path: str) -> None:
        """Opens it. UnreadableError."""
        # A pipe or a device that took the file's place must not hold us up.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        self._fd = -1
        try:
            self._fd = os.open(path, flags)
            found = os.fstat(self._fd)
        except (OSError, ValueError) as error:
            self.close()
            raise UnreadableError(_why(error)) from error
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise UnreadableError("not a regular file any more")
        self.seen = Seen.of(found)
        self._left = self.seen.size
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def next(self) -> bytes:
        """See :class:`Blocks`."""
        if self._fd < 0:
            return b""
        wanted = min(self._left, BLOCK_BYTES)
        try:
            block = _exactly(self._fd, wanted)
            self._left -= len(block)
            if len(block) == wanted and self._left:
                return block
            whole = len(block) == wanted and Seen.of(os.fstat(self._fd)) == self.seen
            # What was read here is not read again: the memory is of more use to the archive.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise UnreadableError(_why(error)) from error
        finally:
            if not self._left:
                self._end()
        if not whole:
            raise UnreadableError("it changed while it was read")
        return block

    def _end(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """See :class:`Blocks`."""
        self._end()

    def reopened(self, already: bytes) -> BinaryIO:
        """The open file, for who reads here and there; the caller closes it. ``already``: its first block."""
        if self._fd < 0:  # all of it was in the first block
            return io.BytesIO(already)
        fd, self._fd = self._fd, -1
        return io.BufferedReader(_Remembering(fd, already, self.seen.size))


class _Remembering(io.RawIOBase):
    """An open file whose first block is not read again."""

    def __init__(self, fd: int, first: bytes, size: int) -> None:
        self._fd = fd
        self._first = first
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        known = self._first[self._at : self._at + len(view)]
        data = known or os.pread(self._fd, len(view), self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def _exactly(fd: int, count: int) -> bytes:
    block = os.read(fd, count)
    if len(block) == count or not block:
        return block
    pieces = [block]
    have = len(block)
    while have < count and (block := os.read(fd, count - have)):
        pieces.append(block)
        have += len(block)
    return b"".join(pieces)


class Inflated:
    """The blocks of an attachment that Orthanc compressed."""

    def __init__(self, first: bytes, blocks: Blocks) -> None:
        self._blocks = blocks
        self._size = int.from_bytes(first[:8], "little")
        self._given = 0
        self._inflate = zlib.decompressobj()
        self._input = first[8:]

    def next(self) -> bytes:
        """See :class:`Blocks`."""
        out = b""
        try:
            while not self._inflate.eof:
                data = self._inflate.unconsumed_tail or self._input
                self._input = b""
                if not data:
                    data = self._blocks.next()
                    if not data:
                        raise UnreadableError("compressed by Orthanc, and cut short")
                out += self._inflate.decompress(data, BLOCK_BYTES - len(out))
                if len(out) >= BLOCK_BYTES:
                    break
        except zlib.error as error:
            raise UnreadableError("compressed by Orthanc, and damaged") from error
        self._given += len(out)
        if self._given > self._size or (len(out) < BLOCK_BYTES and self._given != self._size):
            raise UnreadableError("compressed by Orthanc, and not as long as it says")
        return out

    def close(self) -> None:
        """See :class:`Blocks`."""
        self._blocks.close()


class MemberBlocks:
    """The blocks of one file in a ZIP archive."""

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        """UnreadableError."""
        if member.flag_bits & 1:
            raise UnreadableError("encrypted in its ZIP archive")
        try:
            self._file = archive.open(member)
        except _ZIP_ERRORS as error:
            raise UnreadableError("damaged in its ZIP archive") from error

    def next(self) -> bytes:
        """See :class:`Blocks`."""
        try:
            return self._file.read(BLOCK_BYTES)
        except _ZIP_ERRORS as error:
            raise UnreadableError("damaged in its ZIP archive") from error

    def close(self) -> None:
        """See :class:`Blocks`."""
        self._file.close()


@dataclass
class Begun:
    """A file that is open, and its first block."""

    blocks: Blocks
    first: bytes
    seen: Seen | None = None
    file: FileBlocks | None = None


def begin(path: str) -> Begun:
    """Open a file and read its first block. UnreadableError."""
    blocks = FileBlocks(path)
    try:
        first = blocks.next()
        if is_of_orthanc(path) and is_deflated(first):
            inflated = Inflated(first, blocks)
            return Begun(inflated, inflated.next(), blocks.seen)
    except BaseException:
        blocks.close()
        raise
    return Begun(blocks, first, blocks.seen, blocks)


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """UnreadableError."""
    try:
        archive = zipfile.ZipFile(file)
    except _ZIP_ERRORS as error:
        raise UnreadableError("a ZIP archive that is damaged") from error
    if len(archive.filelist) > MEMBERS_MAX:
        archive.close()
        raise UnreadableError(f"a ZIP archive of more than {MEMBERS_MAX} files")
    return archive


def members(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """The files in it, as they lie in it."""
    for member in sorted(archive.infolist(), key=lambda one: one.header_offset):
        if not member.filename.endswith("/"):  # is_dir() fails at a name of no letters
            yield member


def begin_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Begun:
    """As :func:`begin`. UnreadableError."""
    blocks = MemberBlocks(archive, member)
    try:
        return Begun(blocks, blocks.next())
    except BaseException:
        blocks.close()
        raise


def _why(error: Exception) -> str:
    words = error.strerror if isinstance(error, OSError) else None
    return f"cannot be read: {words or type(error).__name__}"
