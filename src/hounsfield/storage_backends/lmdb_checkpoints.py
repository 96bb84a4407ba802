"""Commits to LMDB without a flush each, from which a power cut takes at most the last second.

LMDB never overwrites a page that a reader may need. So the state of one transaction stays whole on disk,
whatever later commits write and in whatever order it reaches the disk, as long as

1. everything of that state was flushed once, and
2. a reader is pinned to it, in every process that commits, and
3. its meta page (the roots of its trees) is kept where later commits do not write: LMDB itself has room
   for two, which the next two commits reuse.

That is a *checkpoint*. Each process takes its own: pin a reader to the newest transaction T, copy T's
meta page, flush the data file, write the copy durably to the process's own slot file, then let the reader
of the checkpoint before go. Whoever opens the store first after a power cut puts the newest saved meta
page back, and LMDB begins where that checkpoint was. Every pin is at most its process's own checkpoint,
hence at most the newest one: the newest is always protected, also when the process that took it died.

When only processes died the page cache still has everything, and nothing is put back: each slot says
in which session (boot, mount, files) it was written.

    slot file   record (4096) │ record (4096)       written in turn; the newer whole one counts
    record      magic (8) │ transaction (8) │ session (32) │ meta page, first 160 bytes │ SHA-256 (32)

All integers little-endian. The meta page is LMDB's of data format 1 (0.9.x) on this machine; with an
LMDB of another format the store is not opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb

from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.file_systems import sync_directory

__all__ = ["DATA_FILE", "Checkpoints", "can_take", "nobody_has_it_open", "recover"]

DATA_FILE = "data.mdb"
UNFLUSHED_FILE = "unflushed"  # a flush failed: the page cache of this session is not to be trusted
REWRITE_BYTES = 1 << 20
SLOTS_MAX = 1024  # as many processes as there are reader slots
_RECORD_BYTES = 4096
_MAGIC = b"HFCHKPT1"
_HEAD = struct.Struct("<8sQ32s")
_META_BYTES = 160
_LMDB_MAGIC, _LMDB_VERSION, _PAGE_IS_META = 0xBEEFC0DE, 1, 0x08
# Page header; magic, version; address, map size; the roots of its two own trees; last page, transaction.
_META = struct.Struct("<Q2xHI II QQ 96x QQ")
_PGNO = struct.Struct("<Q")
_TRANSACTION_AT = 144


def session_of(path: Path) -> bytes:
    """What stays the same only as long as the page cache of these files can be trusted."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    facts = [boot.read_bytes() if boot.exists() else os.urandom(16)]
    for name in (path, path / DATA_FILE):
        found = name.stat()
        facts.append(f"{found.st_dev} {found.st_ino}".encode())
    with suppress(OSError):
        device = f"{os.major(path.stat().st_dev)}:{os.minor(path.stat().st_dev)}".encode()
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        facts += [line.split()[0] for line in lines if line.split()[2] == device]
    return hashlib.sha256(b"\0".join(facts)).digest()


def can_take() -> bool:
    """Whether this LMDB's files have the data format that checkpoints know."""
    return lmdb.version()[:2] == (0, 9) and sys.byteorder == "little" and sys.maxsize > 1 << 32


# ---------------------------------------------------------------- meta pages


def _metas(descriptor: int, page_bytes: int) -> list[tuple[int, bytes]]:
    """(transaction, page) of the two meta pages; none when this is not a data format that we know."""
    found = []
    for number in (0, 1):
        page = os.pread(descriptor, _META_BYTES, number * page_bytes)
        if len(page) < _META_BYTES:
            return []
        pgno, flags, _, magic, version, _, _, _, transaction = _META.unpack_from(page)
        if pgno != number or not flags & _PAGE_IS_META or (magic, version) != (_LMDB_MAGIC, _LMDB_VERSION):
            return []
        found.append((transaction, page))
    return found


def _page_bytes(meta: bytes) -> int:
    """The page size that a meta page states (LMDB keeps it in the free list's padding)."""
    return int.from_bytes(meta[40:44], "little")


# ---------------------------------------------------------------- slots


def _pack(transaction: int, session: bytes, meta: bytes) -> bytes:
    record = _HEAD.pack(_MAGIC, transaction, session) + meta
    return (record + hashlib.sha256(record).digest()).ljust(_RECORD_BYTES, b"\0")


def _read_slot(path: Path) -> list[tuple[int, bytes, bytes]]:
    """(transaction, session, meta page) of every whole record of a slot file."""
    found = []
    data = path.read_bytes()
    length = _HEAD.size + _META_BYTES
    for start in range(0, len(data), _RECORD_BYTES):
        record, digest = data[start : start + length], data[start + length : start + length + 32]
        if len(digest) == 32 and hashlib.sha256(record).digest() == digest:
            magic, transaction, session = _HEAD.unpack_from(record)
            if magic == _MAGIC:
                found.append((transaction, session, record[_HEAD.size :]))
    return found


def _slot_path(path: Path, number: int) -> Path:
    return path / f"checkpoint-{number:04d}"


def recover(path: Path) -> bool:
    """Put the newest checkpoint back if the machine went down since; whether it was. Before opening LMDB.

    The caller makes sure that no process has the store open.
    """
    data = path / DATA_FILE
    slots = sorted(path.glob("checkpoint-*"))
    if not data.exists():
        _forget(path, slots)  # they are of a file that is gone: never into the one that follows it
        return False
    if not slots:
        return False
    newest = max((record for slot in slots for record in _read_slot(slot)), default=None)
    if newest is None:
        return False
    transaction, session, meta = newest
    descriptor = os.open(data, os.O_RDWR | os.O_CLOEXEC)
    try:
        page_bytes = _page_bytes(meta)
        metas = _metas(descriptor, page_bytes)
        if session == session_of(path) and not (path / UNFLUSHED_FILE).exists():
            return False
        if metas and max(metas)[0] < transaction:
            # Flushed with each checkpoint is a meta page at least as new: these are of another file (one that
            # was put here from a backup), and would make of it a tree of pages that are not there.
            _forget(path, slots)
            return False
        # Both places: the other one must not look newer, nor hold half of what came later.
        for number, shown in ((transaction & 1, transaction), (~transaction & 1, max(transaction - 1, 0))):
            page = bytearray(meta)
            page[0:8] = _PGNO.pack(number)
            page[_TRANSACTION_AT : _TRANSACTION_AT + 8] = _PGNO.pack(shown)
            os.pwrite(descriptor, page, number * page_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    (path / UNFLUSHED_FILE).unlink(missing_ok=True)
    return not metas or max(metas)[0] != transaction


def _forget(path: Path, slots: list[Path]) -> None:
    for slot in (*slots, path / UNFLUSHED_FILE):
        slot.unlink(missing_ok=True)
    if slots:
        sync_directory(path)


def nobody_has_it_open(path: Path) -> bool:
    """Whether no living process holds a slot. The caller holds the lock under which stores are opened."""
    for slot in path.glob("checkpoint-*"):
        descriptor = os.open(slot, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
    return True


# ---------------------------------------------------------------- taking them


class Checkpoints:
    """The checkpoints that one process takes of one open environment. Thread-safe.

    Every commit happens inside :meth:`committing`; :meth:`take` is what ``sync`` means.
    """

    def __init__(self, environment: Any, path: Path, *, interval_seconds: float) -> None:
        self._environment = environment
        self._path = path
        self._interval_seconds = interval_seconds
        self._lock = threading.RLock()  # one checkpoint at a time
        self._users = threading.Lock()
        self._committing = 0
        self._pin: Any = None
        self._taken = 0  # the transaction of the last checkpoint
        self._unflushed = False
        self._slot = -1
        self._turn = 0
        self._data = os.open(path / DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
        self._page_bytes = _page_bytes(os.pread(self._data, _META_BYTES, 0))
        self._session = session_of(path)
        self._wake = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None
        self._slot = self._claim_slot()

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Around each commit: a checkpoint of this process is pinned meanwhile, or ``StorageError``."""
        with self._users:
            self._committing += 1
        try:
            self.make_ready()
            if self._thread is None:
                self._start()
            yield
        finally:
            with self._users:
                self._committing -= 1
            if not self._wake.is_set():
                self._wake.set()

    def make_ready(self) -> None:
        """Have a checkpoint to which this process is pinned."""
        if self._pin is None or self._unflushed:
            self.take()

    def take(self) -> None:
        """Return when everything committed so far, by any process, survives a power cut."""
        with self._lock:
            try:
                if self._unflushed:
                    self._write_all_again()
                pin, transaction, meta = self._pinned()
                try:
                    os.fdatasync(self._data)
                    record = _pack(transaction, self._session, meta)
                    if os.pwrite(self._slot, record, self._turn * _RECORD_BYTES) != len(record):
                        raise OSError("a short write")
                    os.fdatasync(self._slot)
                except BaseException:
                    pin.abort()
                    raise
            except OSError as error:
                self._note_unflushed()
                raise StorageError(
                    f"the index could not be flushed ({error.strerror or error}); nothing is committed until "
                    "it can be: check the disk"
                ) from error
            self._turn = 1 - self._turn
            self._taken = transaction
            before, self._pin = self._pin, pin
            if before is not None:
                before.abort()
            if self._unflushed:
                self._unflushed = False
                (self._path / UNFLUSHED_FILE).unlink(missing_ok=True)

    def _note_unflushed(self) -> None:
        self._unflushed = True
        with suppress(OSError):  # for whoever starts before the machine does
            os.close(os.open(self._path / UNFLUSHED_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _write_all_again(self) -> None:
        """Make every page dirty once more: after a failed flush the kernel takes some for written.

        Nobody commits meanwhile: a page read here must not be an older one when it is written.
        """
        os.fdatasync(self._slot)  # as long as that fails there is no point in the rest
        transaction = self._environment.begin(write=True)
        try:
            end = (self._environment.info()["last_pgno"] + 1) * self._page_bytes
            for start in range(0, end, REWRITE_BYTES):
                pages = os.pread(self._data, min(REWRITE_BYTES, end - start), start)
                if os.pwrite(self._data, pages, start) != len(pages):
                    raise OSError("a short write")
        finally:
            transaction.abort()

    def _pinned(self) -> tuple[Any, int, bytes]:
        """A reader at the newest transaction, and that transaction's meta page."""
        while True:
            pin = self._environment.begin()
            transaction = pin.id()
            for number, page in _metas(self._data, self._page_bytes):
                if number == transaction:
                    return pin, transaction, page
            pin.abort()  # two commits later its place was taken: pin the newest once more

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._ended:
                self._thread = threading.Thread(target=self._work, name="hounsfield-checkpoint", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        pause = threading.Event()
        while True:
            self._wake.wait()
            self._wake.clear()
            pause.wait(self._interval_seconds)
            with suppress(StorageError, lmdb.Error), self._lock:  # said at the next commit
                if self._ended:
                    return
                if self._pin is None or self._unflushed:
                    continue  # the next commit takes one first
                if self._environment.info()["last_txnid"] != self._taken:
                    self.take()
                with self._users:
                    if not self._committing and not self._wake.is_set() and self._pin is not None:
                        # Nobody commits here: an old reader would only hold back those who do elsewhere.
                        pin, self._pin = self._pin, None
                        pin.abort()

    def close(self) -> None:
        """Take a last checkpoint and let go. The environment is still open."""
        with self._lock:
            self._ended = True
            self._wake.set()
            if not self._unflushed and self._pin is not None:
                with suppress(StorageError, lmdb.Error):
                    self.take()
            self.let_go()
            for descriptor in (self._data, self._slot):
                if descriptor >= 0:
                    os.close(descriptor)
            self._data = self._slot = -1

    def let_go(self) -> None:
        """Unpin, because the environment is about to be closed."""
        with self._lock:
            if self._pin is not None:
                self._pin.abort()
                self._pin = None

    def begin_anew(self, environment: Any) -> None:
        """Go on with the same store, opened again; not pinned until somebody commits."""
        with self._lock:
            self._environment = environment

    def _claim_slot(self) -> int:
        """A slot file that no living process has; its blocks are on disk, so that a record is one write."""
        for number in range(SLOTS_MAX):
            path = _slot_path(self._path, number)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            records = _read_slot(path)
            if os.fstat(descriptor).st_size < 2 * _RECORD_BYTES:
                os.pwrite(descriptor, bytes(2 * _RECORD_BYTES), 0)
                os.fsync(descriptor)
                sync_directory(self._path)
            # Where the older record stands: a slot's last owner may have left the newest checkpoint here.
            data = os.pread(descriptor, 2 * _RECORD_BYTES, 0)
            self._turn = _older(data, records)
            return descriptor
        raise StorageError(f"more than {SLOTS_MAX} processes have the index open")


def _older(data: bytes, records: list[tuple[int, bytes, bytes]]) -> int:
    if not records:
        return 0
    newest = max(records)
    return 1 if data[: _HEAD.size] == _HEAD.pack(_MAGIC, newest[0], newest[1]) else 0
