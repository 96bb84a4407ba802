"""A blob store that knows which bytes would survive a power cut, and that fails when told to.

Live bytes are what readers see now; durable bytes are what a sync has returned for. A crash keeps,
of what was not synced, whatever ``crash`` is told: nothing, the beginning, or any of its sectors.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import (
    BlobExistsError,
    BlobNotFoundError,
    PoisonedError,
    ShortReadError,
    StoreFullError,
)
from hounsfield.storage_backends.local_blobs import check_blob_name

SECTOR_BYTES = 512


@dataclass
class _Blob:
    live: bytearray = field(default_factory=bytearray)
    durable: int = 0
    """How many bytes from the beginning are durable."""
    named: bool = False
    """Whether its name is."""


@dataclass
class Fault:
    """What happens at the ``number``-th operation (from 1): ``fail`` | ``full`` | ``short:N`` bytes."""

    operation: str
    number: int
    what: str = "fail"


class CrashDisk:
    """A ``BlobStore`` with a past and several possible futures."""

    def __init__(self, *faults: Fault) -> None:
        self.blobs: dict[str, _Blob] = {}
        self.faults = list(faults)
        self.counts = {"append": 0, "sync": 0, "create": 0, "delete": 0}
        self.history: list[tuple[str, str, int]] = []
        """(operation, name, bytes) in order: what a recorder would have seen."""
        self._lock = threading.RLock()

    # -- futures

    def crash(self, keep: Callable[[str, bytes], bytes] | None = None) -> CrashDisk:
        """The disk as it comes back after a power cut now.

        ``keep(name, unsynced)`` says what became of the bytes that were not durable: any bytes up to
        that length (default: none of them). A blob whose name was never synced comes back only if it
        kept something.
        """
        after = CrashDisk()
        for name, blob in self.blobs.items():
            unsynced = bytes(blob.live[blob.durable :])
            kept = keep(name, unsynced) if keep is not None else b""
            assert len(kept) <= len(unsynced)
            if blob.named or kept:
                content = blob.live[: blob.durable] + kept
                after.blobs[name] = _Blob(bytearray(content), len(content), True)
        return after

    def truncated(self, name: str, length: int) -> CrashDisk:
        """A copy of the disk on which one blob has been cut."""
        after = self.crash(lambda _, unsynced: unsynced)
        content = after.blobs[name].live[:length]
        after.blobs[name] = _Blob(content, len(content), True)
        return after

    def altered(self, name: str, offset: int, value: int) -> CrashDisk:
        """A copy of the disk on which one byte of one blob is another."""
        after = self.crash(lambda _, unsynced: unsynced)
        after.blobs[name].live[offset] = value
        return after

    def _step(self, operation: str, name: str, size: int) -> str | None:
        self.counts[operation] += 1
        self.history.append((operation, name, size))
        for fault in self.faults:
            if fault.operation == operation and fault.number == self.counts[operation]:
                return fault.what
        return None

    # -- the contract

    def create(self, name: str) -> CrashWriter:
        with self._lock:
            if check_blob_name(name) in self.blobs:
                raise BlobExistsError(f"blob {name!r} exists already")
            what = self._step("create", name, 0)
            if what:
                raise (
                    StoreFullError("no room for a name") if what == "full" else PoisonedError("create failed")
                )
            self.blobs[name] = _Blob()
            return CrashWriter(self, name)

    def read(self, name: str, offset: int, length: int) -> bytes:
        with self._lock:
            data = bytes(self._get(name).live[offset : offset + length])
        if len(data) != length:
            raise ShortReadError(f"blob {name!r} ends before the range does")
        return data

    def read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self.read(name, offset, len(view))

    def try_read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> bool:
        self.read_into(name, offset, buffer)
        return True

    def size(self, name: str) -> int:
        with self._lock:
            return len(self._get(name).live)

    def names(self, prefix: str = "") -> list[str]:
        with self._lock:
            return sorted(name for name in self.blobs if name.startswith(prefix))

    def delete(self, name: str) -> None:
        with self._lock:
            self._get(name)
            self._step("delete", name, 0)
            del self.blobs[name]

    def close(self) -> None:
        """Nothing to give back."""

    def _get(self, name: str) -> _Blob:
        try:
            return self.blobs[check_blob_name(name)]
        except KeyError:
            raise BlobNotFoundError(f"no blob {name!r}") from None


class CrashWriter:
    """The writer of one blob of a ``CrashDisk``."""

    def __init__(self, disk: CrashDisk, name: str) -> None:
        self._disk = disk
        self._blob = disk.blobs[name]
        self.name = name
        self.size = 0
        self.poison: str | None = None

    def append(self, buffers: Sequence[Buffer]) -> int:
        self._check()
        data = b"".join(bytes(buffer) for buffer in buffers)
        with self._disk._lock:
            what = self._disk._step("append", self.name, len(data))
            if what is not None:
                self.poison = what
                if what.startswith("short:"):
                    self._blob.live += data[: int(what[6:])]
                    raise StoreFullError("a short write")
                if what == "full":
                    raise StoreFullError("the disk is full")
                raise PoisonedError("a write failed") from OSError(errno.EIO, "injected")
            self._blob.live += data
            self.size += len(data)
            return self.size - len(data)

    def sync(self) -> None:
        self._check()
        with self._disk._lock:
            what = self._disk._step("sync", self.name, 0)
            if what is not None:
                self.poison = what
                raise PoisonedError("a sync failed") from OSError(errno.EIO, "injected")
            self._blob.durable = self.size
            self._blob.named = True

    def close(self) -> None:
        self.poison = self.poison or "closed"

    def _check(self) -> None:
        if self.poison is not None:
            raise PoisonedError(f"poisoned: {self.poison}")
