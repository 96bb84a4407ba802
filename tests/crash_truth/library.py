"""The recorder: compiled when first needed, its log and its faults. The layout is that of ``recorder.c``."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import mmap
import os
import shutil
import struct
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("recorder.c")
COMPILE = ("cc", "-O2", "-shared", "-fPIC")
LINK = ("-ldl", "-lpthread")

MAGIC = 0x4853415243465548
HEAD_BYTES = 65536
LOG_BYTES = 4 << 30  # sparse: what is written is what it takes
_HEAD = struct.Struct("<QQQQQ")
_READS_FAIL_AT = 32
_ROOT_AT = 256
_FAULTS_AT = 256 + 4096
_FAULT = struct.Struct("<iiqqiiqq208s")
FAULTS_MAX = 8


class On(IntFlag):
    """Which operations a fault is for."""

    WRITE = 1
    SYNC = 2
    READ = 4
    NAME = 8


class Do(IntEnum):
    """What a fault does."""

    FAIL = 0
    SHORT = 1
    DIE = 2


def built(directory: Path | None = None) -> Path:
    """The compiled library; kept, by the hash of its source, in ``directory`` (default: .cache)."""
    folder = directory or Path(__file__).resolve().parents[2] / ".cache" / "crash-truth"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(SOURCE.read_bytes() + repr((COMPILE, LINK)).encode()).hexdigest()[:16]
    library = folder / f"recorder-{name}.so"
    if not library.exists():
        draft = folder / f".{name}.{os.getpid()}.so"
        subprocess.run([*COMPILE, "-o", str(draft), str(SOURCE), *LINK], check=True)
        draft.replace(library)
    return library


class Recorder:
    """One log over one directory. ``environment`` is what a program needs to be recorded."""

    def __init__(self, log: Path, root: Path) -> None:
        self.log = log
        self.root = root.resolve()
        self._library_path = built()
        with log.open("xb") as file:
            file.truncate(LOG_BYTES)
            file.write(_HEAD.pack(MAGIC, LOG_BYTES, HEAD_BYTES, 0, 0))
            file.seek(_ROOT_AT)
            file.write(os.fsencode(self.root))
        with log.open("r+b") as file:
            self._head = mmap.mmap(file.fileno(), HEAD_BYTES)
        self._library = ctypes.CDLL(str(self._library_path))
        self._library.crash_truth_open(os.fsencode(log))
        self._library.crash_truth_prepare()

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library_path), "CRASH_TRUTH_LOG": str(self.log)}

    def note(self, **what: Any) -> None:
        """Put what a client saw into the log, now."""
        self._library.crash_truth_note(json.dumps(what).encode())

    @property
    def used(self) -> int:
        """Bytes of the log so far."""
        return int(_HEAD.unpack_from(self._head)[2])

    # ------------------------------------------------------------------ faults

    def arm(
        self,
        on: On,
        path: str = "",
        *,
        skip: int = 0,
        times: int = 1,
        error: int = errno.EIO,
        do: Do = Do.FAIL,
        short_bytes: int = 0,
        slot: int = 0,
    ) -> None:
        """Let ``skip`` operations on files whose path holds ``path`` succeed, then ``times`` of them fail."""
        self.disarm(slot)
        at = _FAULTS_AT + slot * _FAULT.size
        self._head[at : at + _FAULT.size] = _FAULT.pack(
            0, on, skip, times, error, do, short_bytes, 0, path.encode()
        )
        self._head[_READS_FAIL_AT : _READS_FAIL_AT + 8] = struct.pack("<Q", bool(on & On.READ))
        self._head[at : at + 4] = struct.pack("<i", 1)

    def disarm(self, slot: int = 0) -> None:
        at = _FAULTS_AT + slot * _FAULT.size
        self._head[at : at + 4] = struct.pack("<i", 0)
        self._head[_READS_FAIL_AT : _READS_FAIL_AT + 8] = struct.pack("<Q", 0)

    def fired(self, slot: int = 0) -> int:
        """How often the fault happened since it was armed."""
        at = _FAULTS_AT + slot * _FAULT.size
        return int(_FAULT.unpack_from(self._head, at)[7])

    def passed(self, before: int, slot: int = 0) -> int:
        """Of ``before`` operations that were to be let through, how many were."""
        at = _FAULTS_AT + slot * _FAULT.size
        return before - int(_FAULT.unpack_from(self._head, at)[2])


def compiler_is_there() -> bool:
    return shutil.which("cc") is not None


def quick_directory(wanted_bytes: int = 2 << 30) -> Path | None:
    """A file system in memory with room to spare, or None: replayed states need no disk under them."""
    memory = Path("/dev/shm")
    with contextlib.suppress(OSError):
        found = os.statvfs(memory)
        if found.f_bavail * found.f_frsize >= wanted_bytes and os.access(memory, os.W_OK):
            return memory
    return None
