"""A place that is opened when it is first used, so that an archive starts with a tier that cannot be opened.

What opening raises (keys that cannot be read, a certificate that is not there) is raised by whatever call
needs the place, and opening is tried again by the next: once it is mended, nothing is started anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.object_store import ObjectStore, create_once

__all__ = ["LateStore"]


class LateStore:
    """An ``ObjectStore`` (and ``CreatesOnce``) over one that ``opening`` makes. Thread-safe."""

    def __init__(self, opening: Callable[[], ObjectStore], name: str) -> None:
        """``name``: what it is called until it is open."""
        self._opening = opening
        self._name = name
        self._lock = threading.Lock()
        self._store: ObjectStore | None = None

    def __repr__(self) -> str:
        return self._name if self._store is None else repr(self._store)

    def _opened(self) -> ObjectStore:
        store = self._store
        if store is None:
            with self._lock:
                store = self._store
                if store is None:
                    store = self._store = self._opening()
        return store

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        self._opened().put(key, pieces, length)

    def create(self, key: str, data: bytes) -> bool:
        return create_once(self._opened(), key, data)

    def read(self, key: str, offset: int, length: int) -> bytes:
        return self._opened().read(key, offset, length)

    def read_into(self, key: str, offset: int, buffer: bytearray | memoryview) -> None:
        self._opened().read_into(key, offset, buffer)

    def stream(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[Buffer]:
        return self._opened().stream(key, start, stop)

    def size(self, key: str) -> int:
        return self._opened().size(key)

    def names(self, prefix: str = "") -> Iterator[str]:
        return self._opened().names(prefix)

    def delete(self, key: str) -> None:
        self._opened().delete(key)

    def close(self) -> None:
        with self._lock:
            if self._store is not None:
                self._store.close()
