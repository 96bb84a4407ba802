"""The recorder's log, entry by entry, in the one order in which everything happened."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from crash_truth.library import HEAD_BYTES

_ENTRY = struct.Struct("<IIIIQqQQiIII")
_ALIGNMENT = 64
assert _ENTRY.size == _ALIGNMENT


class Kind(IntEnum):
    """What happened."""

    CREATE = 1
    WRITE = 2
    SYNC_BEGIN = 3
    SYNC_END = 4
    TRUNCATE = 5
    ALLOCATE = 6
    RENAME = 7
    LINK = 8
    UNLINK = 9
    MKDIR = 10
    RMDIR = 11
    MAPPED = 12
    NOTE = 13
    UNSUPPORTED = 14
    FAULT = 15
    DROP = 16


DURABLE, DIRECT, IS_DIRECTORY, OF_BEFORE = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened. Which fields mean something depends on ``kind``."""

    number: int
    kind: Kind
    process: int
    thread: int
    inode: int
    offset: int
    token: int
    result: int
    flags: int
    path: str
    path2: str
    data: bytes
    length: int

    @property
    def note(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path)
        return found

    def __str__(self) -> str:
        text = f"{self.number} {self.kind.name} process {self.process}"
        if self.kind in {Kind.WRITE, Kind.TRUNCATE, Kind.ALLOCATE}:
            text += f" inode {self.inode} at {self.offset} length {self.length}"
        return f"{text} {self.path} {self.path2}".rstrip()


def entries(log: Path) -> Iterator[Entry]:
    """Every entry, oldest first. One that a killed process did not complete had not returned: left out."""
    with log.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        (used,) = struct.unpack_from("<Q", data, 16)
        at, number = HEAD_BYTES, 0
        while at < used:
            (
                room, kind, process, thread, inode, offset, length, token, result, flags, first, second,
            ) = _ENTRY.unpack_from(data, at)  # fmt: skip
            if not room:  # killed before it said how long it is, so all of it is zeros
                at += _ALIGNMENT
                continue
            if room % 2:
                start = at + _ENTRY.size
                path = data[start : start + first].decode()
                path2 = data[start + first : start + first + second].decode()
                body = data[start + first + second : start + first + second + length]
                yield Entry(
                    number, Kind(kind), process, thread, inode, offset, token, result, flags, path, path2,
                    body, length,
                )  # fmt: skip
                number += 1
            at += room // 2 * _ALIGNMENT
