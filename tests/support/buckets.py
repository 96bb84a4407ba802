"""A tier's objects in memory: they can be wrong, away, or the end of the process that puts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import BlobNotFoundError, ShortReadError, StorageError
from support.killed_commits import KilledError

PIECE_BYTES = 100_000


class AwayError(StorageError):
    """As of a store that does not answer."""

    retry = True


class Bucket:
    """Whole objects. ``failure``: what every call raises. ``forgetful``: gives back other bytes than it took.

    ``changing`` is asked before each change: it raises, or says whether its maker lives to hear of it.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.failure: StorageError | None = None
        self.changing: Callable[[], bool] = lambda: True
        self.reads = 0
        self.forgetful = False

    def _change(self) -> bool:
        if self.failure is not None:
            raise self.failure
        return self.changing()

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        data = b"".join(bytes(piece) for piece in pieces)
        if len(data) != length:
            raise ValueError("other bytes than were announced")
        lives = self._change()
        self.objects[key] = data if not self.forgetful else bytes([data[0] ^ 1]) + data[1:]
        if not lives:
            raise KilledError

    def read(self, key: str, offset: int, length: int) -> bytes:
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        if key not in self.objects:
            raise BlobNotFoundError("no such object")
        data = self.objects[key][offset : offset + length]
        if len(data) != length:
            raise ShortReadError("the object ends before the range does")
        return data

    def read_into(self, key: str, offset: int, buffer: bytearray | memoryview) -> None:
        memoryview(buffer).cast("B")[:] = self.read(key, offset, len(buffer))

    def stream(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[Buffer]:
        stop = self.size(key) if stop is None else stop
        for at in range(start, stop, PIECE_BYTES):
            yield self.read(key, at, min(PIECE_BYTES, stop - at))

    def size(self, key: str) -> int:
        if self.failure is not None:
            raise self.failure
        if key not in self.objects:
            raise BlobNotFoundError("no such object")
        return len(self.objects[key])

    def names(self, prefix: str = "") -> Iterator[str]:
        return iter(sorted(name for name in self.objects if name.startswith(prefix)))

    def delete(self, key: str) -> None:
        lives = self._change()
        self.objects.pop(key, None)
        if not lives:
            raise KilledError

    def close(self) -> None:
        """Nothing is open."""
