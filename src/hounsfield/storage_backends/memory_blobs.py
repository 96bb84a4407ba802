"""Blobs in memory: for tests, and for trying things out. Nothing survives the process."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import (
    BlobExistsError,
    BlobNotFoundError,
    PoisonedError,
    ShortReadError,
)
from hounsfield.storage_backends.local_blobs import check_blob_name

__all__ = ["MemoryBlobs"]


class MemoryBlobs:
    """A ``BlobStore`` (and ``NonBlockingReads``) in a dictionary. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[str, bytearray] = {}

    def create(self, name: str) -> MemoryBlobWriter:
        with self._lock:
            if check_blob_name(name) in self._blobs:
                raise BlobExistsError(f"blob {name!r} exists already")
            data = self._blobs[name] = bytearray()
        return MemoryBlobWriter(name, data, self._lock)

    def require_space(self, length: int) -> None:
        """Memory has no reserve."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        with self._lock:
            data = bytes(self._get(name)[offset : offset + length])
        if len(data) != length:
            raise ShortReadError(f"blob {name!r} ends {length - len(data)} bytes before the range does")
        return data

    def read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self.read(name, offset, len(view))

    def try_read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> bool:
        self.read_into(name, offset, buffer)
        return True

    def size(self, name: str) -> int:
        with self._lock:
            return len(self._get(name))

    def names(self, prefix: str = "") -> list[str]:
        with self._lock:
            return sorted(name for name in self._blobs if name.startswith(prefix))

    def delete(self, name: str) -> None:
        with self._lock:
            self._get(name)
            del self._blobs[name]

    def close(self) -> None:
        """Keep everything: a store opened again over the same object sees the same blobs."""

    def _get(self, name: str) -> bytearray:
        try:
            return self._blobs[check_blob_name(name)]
        except KeyError:
            raise BlobNotFoundError(f"no blob {name!r}") from None


class MemoryBlobWriter:
    """The writer of one blob in memory."""

    def __init__(self, name: str, data: bytearray, lock: threading.Lock) -> None:
        self._name = name
        self._data = data
        self._lock = lock
        self._closed = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return len(self._data)

    def append(self, buffers: Sequence[Buffer]) -> int:
        self._check()
        with self._lock:
            start = len(self._data)
            for buffer in buffers:
                self._data += buffer
        return start

    def sync(self) -> None:
        self._check()

    def close(self) -> None:
        self._closed = True

    def _check(self) -> None:
        if self._closed:
            raise PoisonedError(f"blob {self._name!r} takes nothing more: it is closed; start another")
