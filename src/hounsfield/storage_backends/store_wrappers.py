"""What is put around an object store, one concern each: patience, an end, a limit, and figures.

Each is an ``ObjectStore`` itself and passes the same suite. From the outside in:
``Retrying(Remembering(Limited(Metered(TimedOut(DirectoryStore(…))))))`` (what is remembered:
:mod:`~hounsfield.storage_backends.store_memory`); an ``S3Store`` ends its own requests.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.handover import Handover
from hounsfield.storage_backends.object_store import (
    ObjectStore,
    StoreAwayError,
    StoreKnownAwayError,
    TierMarkerMissingError,
    create_once,
)

__all__ = ["AroundStore", "Limited", "Metered", "OperationFigures", "RetryLimits", "Retrying", "TimedOut"]

T = TypeVar("T")


class AroundStore:
    """An object store around another: every call, and every step of an iterator, is a :meth:`_call`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def __repr__(self) -> str:
        return repr(self._store)  # what messages name is the place

    def _call(self, operation: str, act: Callable[[], T]) -> T:
        raise NotImplementedError

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        self._call("put", lambda: self._store.put(key, pieces, length))

    def create(self, key: str, data: bytes) -> bool:
        """As ``CreatesOnce``. False also when it was this call's own first try whose answer was lost: read
        what is there."""
        return self._call("put", lambda: create_once(self._store, key, data))

    def read(self, key: str, offset: int, length: int) -> bytes:
        return self._call("read", lambda: self._store.read(key, offset, length))

    def read_into(self, key: str, offset: int, buffer: bytearray | memoryview) -> None:
        self._call("read", lambda: self._store.read_into(key, offset, buffer))

    def stream(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[Buffer]:
        return self._each("stream", self._store.stream(key, start, stop))

    def size(self, key: str) -> int:
        return self._call("size", lambda: self._store.size(key))

    def names(self, prefix: str = "") -> Iterator[str]:
        return self._each("names", self._store.names(prefix))

    def delete(self, key: str) -> None:
        self._call("delete", lambda: self._store.delete(key))

    def close(self) -> None:
        self._store.close()

    def _each(self, operation: str, items: Iterator[T]) -> Iterator[T]:
        try:
            while taken := self._call(operation, lambda: list(islice(items, 1))):
                yield taken[0]
        finally:
            _give_up(items)


def _give_up(items: Iterator[object]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        with suppress(ValueError):  # a call that was given up is still in it
            close()


# ---------------------------------------------------------------- patience


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How long, and how often, a store that is away is asked again."""

    first_s: float = 0.2
    """About the first pause; each is up to twice the one before. A server restarts a process in less."""

    longest_s: float = 10
    """No pause is longer: a store that is back is noticed within that time."""

    deadline_s: float = 60
    """Since the call began, or since a stream's last piece: no further try begins after it. A rolling
    restart of a store takes less; whoever has hours (a move) comes back later, whoever waits has left."""


class Retrying(AroundStore):
    """Asks a store that is away again, after growing pauses of random length (so that not all ask at once).

    Only ``StoreAwayError``: what is refused, missing, short or full is so the next time. A stream goes on
    where it broke off; a list of names begins anew until it has given one. A put is repeated when its
    pieces can be: a list, or another iterable that begins anew; an iterator's are gone once it was asked for
    one. :meth:`close` ends every pause.
    """

    def __init__(
        self,
        store: ObjectStore,
        limits: RetryLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(store)
        self._limits = limits or RetryLimits()
        self._clock = clock
        self._closed = threading.Event()
        self._pause = pause or self._closed.wait
        self._chance = chance

    def _call(self, operation: str, act: Callable[[], T]) -> T:  # noqa: ARG002
        patience = _Patience(self)
        while True:
            try:
                return act()
            except StoreAwayError as error:
                patience.after(error)

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        asked = _Asked(pieces)
        patience = _Patience(self)
        while True:
            try:
                return self._store.put(key, asked, length)
            except StoreAwayError as error:
                if asked.used_up:
                    raise
                patience.after(error)

    def stream(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[Buffer]:
        patience = _Patience(self)
        while True:
            pieces = self._store.stream(key, start, stop)
            try:
                for piece in pieces:
                    start += len(piece)
                    yield piece
                    patience = _Patience(self)
                return
            except StoreAwayError as error:
                patience.after(error)
            finally:
                _give_up(pieces)

    def names(self, prefix: str = "") -> Iterator[str]:
        patience = _Patience(self)
        begun = False
        while True:
            names = self._store.names(prefix)
            try:
                for name in names:
                    begun = True  # from here on it could only begin anew by remembering every name
                    yield name
                return
            except StoreAwayError as error:
                if begun:
                    raise
                patience.after(error)
            finally:
                _give_up(names)

    def close(self) -> None:
        self._closed.set()
        super().close()


class _Patience:
    """Of one call."""

    def __init__(self, owner: Retrying) -> None:
        self._owner = owner
        self._until = owner._clock() + owner._limits.deadline_s
        self._next = owner._limits.first_s

    def after(self, error: StoreAwayError) -> None:
        """Pause, or raise ``error`` again: the time is over, for all, or people must mount a disk first."""
        owner = self._owner
        pause = self._next * (0.5 + owner._chance() / 2)
        is_over = isinstance(error, TierMarkerMissingError | StoreKnownAwayError)
        if is_over or owner._clock() + pause > self._until:
            raise error
        owner._pause(pause)
        if owner._closed.is_set():
            raise error
        self._next = min(self._next * 2, owner._limits.longest_s)


class _Asked:
    """Pieces that know whether they can be asked for once more."""

    def __init__(self, pieces: Iterable[Buffer]) -> None:
        self._pieces = pieces
        self.used_up = False

    def __iter__(self) -> Iterator[Buffer]:
        begun = iter(self._pieces)
        self.used_up = begun is self._pieces
        return begun


# ---------------------------------------------------------------- a limit


class Limited(AroundStore):
    """Lets so many calls at a time through to a store; the others wait, but not for ever.

    A stream or list counts while a piece is fetched, not while its reader is busy with it.
    """

    def __init__(self, store: ObjectStore, calls: int, *, wait_s: float = 30) -> None:
        """``wait_s``: whoever waits longer gets ``StoreAwayError``; the store does not keep up."""
        super().__init__(store)
        self._places = threading.BoundedSemaphore(calls)
        self._wait_s = wait_s

    def _call(self, operation: str, act: Callable[[], T]) -> T:  # noqa: ARG002
        if not self._places.acquire(timeout=self._wait_s):
            raise StoreAwayError(f"{self!r} is busy: no place within {self._wait_s:g} s; try again later")
        try:
            return act()
        finally:
            self._places.release()


# ---------------------------------------------------------------- figures


@dataclass(slots=True)
class OperationFigures:
    """Of one operation since the store was opened."""

    calls: int = 0
    seconds: float = 0.0
    """Spent in the store. A stream's are those its pieces were waited for."""
    bytes: int = 0
    """Put or read, of calls that went well and of pieces that came."""
    errors: Counter[str] = field(default_factory=Counter)
    """By kind: the name of the error."""


class Metered(AroundStore):
    """Counts calls, bytes, seconds and errors by operation: put, read, stream, size, names and delete.

    A stream or a list is one call.
    """

    def __init__(self, store: ObjectStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(store)
        self._clock = clock
        self._lock = threading.Lock()
        self._figures = {name: OperationFigures() for name in _OPERATIONS}

    @property
    def figures(self) -> dict[str, OperationFigures]:
        """As they are at this moment; all operations, in one order."""
        with self._lock:
            return {name: replace(of, errors=of.errors.copy()) for name, of in self._figures.items()}

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        super().put(key, pieces, length)
        self._add("put", transferred=length)

    def create(self, key: str, data: bytes) -> bool:
        created = super().create(key, data)
        self._add("put", transferred=len(data) if created else 0)
        return created

    def read(self, key: str, offset: int, length: int) -> bytes:
        data = super().read(key, offset, length)
        self._add("read", transferred=length)
        return data

    def read_into(self, key: str, offset: int, buffer: bytearray | memoryview) -> None:
        super().read_into(key, offset, buffer)
        self._add("read", transferred=memoryview(buffer).nbytes)

    def stream(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[Buffer]:
        self._add("stream", calls=1)
        for piece in super().stream(key, start, stop):
            self._add("stream", transferred=len(piece))
            yield piece

    def names(self, prefix: str = "") -> Iterator[str]:
        self._add("names", calls=1)
        yield from super().names(prefix)

    def _call(self, operation: str, act: Callable[[], T]) -> T:
        began = self._clock()
        kind = None
        try:
            return act()
        except StorageError as error:
            kind = type(error).__name__
            raise
        finally:
            calls = 0 if operation in {"stream", "names"} else 1  # those are many steps of one call
            self._add(operation, calls=calls, seconds=self._clock() - began, error=kind)

    def _add(
        self,
        operation: str,
        *,
        calls: int = 0,
        seconds: float = 0.0,
        transferred: int = 0,
        error: str | None = None,
    ) -> None:
        with self._lock:
            figures = self._figures[operation]
            figures.calls += calls
            figures.seconds += seconds
            figures.bytes += transferred
            if error is not None:
                figures.errors[error] += 1


_OPERATIONS = ("put", "read", "stream", "size", "names", "delete")


# ---------------------------------------------------------------- an end


class TimedOut(AroundStore):
    """Gives up waiting for a store whose calls may hang: a network file system whose server is gone.

    No thread can be stopped in such a call, so each call has one of its own, which is left behind; as long
    as ``threads`` hang or are busy, further calls fail at once. A put may take ``seconds`` for each piece,
    and at its end as long as its bytes need at ``slowest`` (2 MiB/s: a slow disk across a network syncs).
    """

    def __init__(
        self, store: ObjectStore, seconds: float = 30, *, threads: int = 32, slowest: float = 2 << 20
    ) -> None:
        super().__init__(store)
        self._seconds = seconds
        self._slowest = slowest
        self._threads = threading.BoundedSemaphore(threads)

    def _call(self, operation: str, act: Callable[[], T]) -> T:
        return self._result(operation, self._begun(operation, act), self._seconds)

    def read_into(self, key: str, offset: int, buffer: bytearray | memoryview) -> None:
        # Not into the caller's memory: a call that was given up may go on at any time.
        view = memoryview(buffer).cast("B")
        view[:] = self.read(key, offset, len(view))

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        handover = Handover()

        def put() -> None:
            try:
                self._store.put(key, handover, length)
            finally:
                handover.taker_left()

        putting = self._begun("put", put)
        try:
            for piece in pieces:
                if not handover.give(bytes(piece), self._seconds):  # a copy: it may be taken later
                    break
        except TimeoutError:
            handover.give_up()
            raise self._hangs("put") from None
        except BaseException:
            handover.give_up()
            wait([putting], self._seconds)  # it cleans up behind itself
            raise
        handover.end()
        self._result("put", putting, self._seconds + length / self._slowest)

    def _begun(self, operation: str, act: Callable[[], T]) -> Future[T]:
        if not self._threads.acquire(blocking=False):
            raise self._hangs(operation)
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(act())
            except BaseException as error:  # noqa: BLE001 - for whoever waits
                future.set_exception(error)
            finally:
                self._threads.release()

        threading.Thread(target=run, name=f"store-{operation}", daemon=True).start()
        return future

    def _result(self, operation: str, future: Future[T], seconds: float) -> T:
        wait([future], seconds)
        if not future.done():
            raise self._hangs(operation)
        return future.result()

    def _hangs(self, operation: str) -> StoreAwayError:
        return StoreAwayError(f"{operation} at {self!r}: it hangs; look after the server it is mounted from")
