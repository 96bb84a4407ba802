"""A store whose next calls fail or hang as a test says, and a clock that pauses move."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.directory_store import DirectoryLimits, DirectoryStore
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.object_store import ObjectStore, StoreAwayError, claim_tier

DATA = bytes(range(256)) * 64
LIMITS = DirectoryLimits(reserve_bytes=0, piece_bytes=1000)


class Troubled:
    """A directory whose next calls, or steps of an iterator, are errors, or wait for an event."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.store = DirectoryStore(directory, LIMITS)
        claim_tier(self.store, bytes(16), first_time=True)
        self.store.put("object", [DATA], len(DATA))
        self.trouble: list[StorageError | threading.Event | None] = []
        self.calls: list[str] = []
        self.closed = False

    def _meet(self, call: str) -> None:
        self.calls.append(call)
        trouble = self.trouble.pop(0) if self.trouble else None
        if isinstance(trouble, threading.Event):
            trouble.wait(60)
        elif trouble is not None:
            raise trouble

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        self._meet("put")
        self.store.put(key, pieces, length)

    def read(self, key: str, offset: int, length: int) -> bytes:
        self._meet("read")
        return self.store.read(key, offset, length)

    def read_into(self, key: str, offset: int, buffer: bytearray | memoryview) -> None:
        self._meet("read_into")
        self.store.read_into(key, offset, buffer)

    def stream(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[Buffer]:
        self._meet(f"stream {start}")
        for piece in self.store.stream(key, start, stop):
            self._meet("piece")
            yield piece

    def size(self, key: str) -> int:
        self._meet("size")
        return self.store.size(key)

    def names(self, prefix: str = "") -> Iterator[str]:
        self._meet("names")
        for name in self.store.names(prefix):
            self._meet("name")
            yield name

    def delete(self, key: str) -> None:
        self._meet("delete")
        self.store.delete(key)

    def close(self) -> None:
        self.closed = True


class Time:
    """A clock that pauses move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def until(holds: Callable[[], bool]) -> None:
    """Wait for other threads, bounded by the test's own time."""
    pause = threading.Event()
    while not holds():
        pause.wait(0.002)


ACTS: dict[str, Callable[[ObjectStore], object]] = {
    "put": lambda store: store.put("new", [DATA], len(DATA)),
    "read": lambda store: store.read("object", 1, 10),
    "read_into": lambda store: store.read_into("object", 1, bytearray(10)),
    "stream": lambda store: list(store.stream("object")),
    "size": lambda store: store.size("object"),
    "names": lambda store: list(store.names()),
    "delete": lambda store: store.delete("object"),
}
AWAY = StoreAwayError("away")
