"""What every object store must do, and every wrapper must leave as it is.

``open_store`` gives an empty store that is marked as a tier (``claim_tier``); called again after ``close`` it
gives one with the same content.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import BlobNotFoundError, ShortReadError
from hounsfield.storage_backends.object_store import (
    TIER_MARKER,
    ForeignTierError,
    ObjectStore,
    TierMarkerMissingError,
    claim_tier,
    create_once,
)
from hounsfield.storage_backends.store_wrappers import AroundStore
from hounsfield.storage_backends.testing.expectations import raises, run_all

__all__ = ["ARCHIVE", "LARGE_BYTES", "OBJECT_STORE_CHECKS"]

OpenStore = Callable[[], ObjectStore]
T = TypeVar("T")

ARCHIVE = bytes(range(16))
"""Whose tier the stores are that the checks are given."""

LARGE_BYTES = (21 << 20) + 4321
"""More than any store sends or fetches in one request."""


class PiecesError(Exception):
    """What a giver of pieces may raise."""


def content(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)  # noqa: S311


def whole(stream: Iterator[Buffer]) -> bytes:
    return b"".join(bytes(piece) for piece in stream)


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted(name for name in store.names(prefix) if name != TIER_MARKER)


def what_is_put_is_read(open_store: OpenStore) -> None:
    store = open_store()
    for length in (0, 1, 4096, 100_001):
        data = content(length)
        store.put(f"packs/{length}", [data[: length // 3], b"", memoryview(data)[length // 3 :]], length)
        assert store.size(f"packs/{length}") == length
        assert store.read(f"packs/{length}", 0, length) == data
        assert whole(store.stream(f"packs/{length}")) == data
        buffer = bytearray(length)
        store.read_into(f"packs/{length}", 0, memoryview(buffer))
        assert buffer == data
    assert isinstance(store.read("packs/4096", 0, 10), bytes)
    store.close()


def large_objects_come_back(open_store: OpenStore) -> None:
    store = open_store()
    data = content(LARGE_BYTES)

    def reused() -> Iterator[memoryview]:
        """Pieces in one piece of memory, as readers of segments give them."""
        memory = bytearray(700_001)
        for start in range(0, len(data), len(memory)):
            piece = data[start : start + len(memory)]
            memory[: len(piece)] = piece
            yield memoryview(memory)[: len(piece)]
        memory[:] = bytes(len(memory))

    store.put("packs/large", reused(), len(data))
    assert store.size("packs/large") == len(data)
    assert whole(store.stream("packs/large")) == data
    assert store.read("packs/large", 1, len(data) - 2) == data[1:-1]
    buffer = bytearray(len(data) - 17)
    store.read_into("packs/large", 17, buffer)
    assert buffer == data[17:]
    for start, stop in ((0, 1), (5 << 20, (5 << 20) + 1), (len(data) - 3, len(data)), (3 << 20, 20 << 20)):
        assert store.read("packs/large", start, stop - start) == data[start:stop]
        assert (
            b"".join(bytes(piece) for piece in store.stream("packs/large", start, stop)) == data[start:stop]
        )
    assert b"".join(bytes(piece) for piece in store.stream("packs/large", 9 << 20)) == data[9 << 20 :]
    store.close()


def ranges_are_exact_or_refused(open_store: OpenStore) -> None:
    store = open_store()
    data = content(1000)
    store.put("object", [data], 1000)
    for offset, length in ((0, 1000), (0, 0), (1000, 0), (999, 1), (123, 456)):
        assert store.read("object", offset, length) == data[offset : offset + length]
        assert whole(store.stream("object", offset, offset + length)) == data[offset : offset + length]
    assert whole(store.stream("object", 1000)) == b""
    for offset, length in ((0, 1001), (999, 2), (1000, 1), (5000, 10), (0, LARGE_BYTES)):
        with raises(ShortReadError):
            store.read("object", offset, length)
        with raises(ShortReadError):
            store.read_into("object", offset, bytearray(length))
        with raises(ShortReadError):
            list(store.stream("object", offset, offset + length))
    with raises(ShortReadError):
        list(store.stream("object", 1001))
    store.close()


def missing_objects_are_said_to_be_missing(open_store: OpenStore) -> None:
    store = open_store()
    store.put("folder/object", [b"1"], 1)
    for key in ("none", "folder", "folder/none", "none/object"):
        with raises(BlobNotFoundError):
            store.read(key, 0, 1)
        with raises(BlobNotFoundError):
            store.read(key, 0, LARGE_BYTES)
        with raises(BlobNotFoundError):
            store.read_into(key, 0, bytearray(1))
        with raises(BlobNotFoundError):
            store.size(key)
        with raises(BlobNotFoundError):
            list(store.stream(key))
        with raises(BlobNotFoundError):
            list(store.stream(key, 0, 1))
    store.close()


def a_put_replaces(open_store: OpenStore) -> None:
    store = open_store()
    for length in (1000, 10, 5000):
        data = content(length, length)
        store.put("object", [data], length)
        assert store.size("object") == length
        assert whole(store.stream("object")) == data
    assert keys(store) == ["object"]
    store.close()


def a_put_that_fails_leaves_what_was_there(open_store: OpenStore) -> None:
    """The wrong number of bytes, or pieces that end in an error: small objects and large ones."""
    store = open_store()
    store.put("kept", [b"before"], 6)
    for length in (100, LARGE_BYTES):
        data = content(length)

        def failing(data: bytes = data) -> Iterator[bytes]:
            yield data[: len(data) // 2]
            raise PiecesError

        for key in ("kept", "new"):
            with raises(PiecesError):
                store.put(key, failing(), length)
            with raises(ValueError):
                store.put(key, [data], length + 1)
            with raises(ValueError):
                store.put(key, [data], length - 1)
            with raises(ValueError):
                store.put(key, [], length)
    with raises(BlobNotFoundError):
        store.size("new")
    assert whole(store.stream("kept")) == b"before"
    assert keys(store) == ["kept"]
    store.close()


def nothing_is_seen_of_a_put_under_way(open_store: OpenStore) -> None:
    store = open_store()
    seen: list[list[str]] = []

    def watched() -> Iterator[bytes]:
        for _ in range(LARGE_BYTES >> 20):
            yield bytes(1 << 20)
        seen.append(keys(store))
        with raises(BlobNotFoundError):
            store.size("new")
        yield bytes(LARGE_BYTES & ((1 << 20) - 1))

    store.put("new", watched(), LARGE_BYTES)
    assert seen == [[]]
    assert keys(store) == ["new"]
    store.close()


def names_are_by_prefix(open_store: OpenStore) -> None:
    store = open_store()
    names = ["a", "b/1", "b/10", "b/2", "b/x.key", "b-1", "bb", "c/d/e/f", "c.d", "B/1"]
    for name in names:
        store.put(name, [b"1"], 1)
    assert keys(store) == sorted(names)
    for prefix in (
        "b/",
        "b/1",
        "b",
        "c/d/e/",
        "c/d/e/f",
        "c/",
        "none",
        "none/",
        "c/d/e/f/g",
        "B",
        "../",
        "/",
    ):
        assert keys(store, prefix) == sorted(n for n in names if n.startswith(prefix)), prefix
    store.close()


def many_names_come_in_pages(open_store: OpenStore) -> None:
    store = open_store()
    names = [f"packs/{number % 7:02}/{number:04}" for number in range(1100)]

    def put(part: list[str]) -> None:
        for name in part:
            store.put(name, [b"1"], 1)

    run_all([partial(put, names[start::8]) for start in range(8)])
    assert keys(store) == sorted(names)
    assert keys(store, "packs/03/") == sorted(name for name in names if name.startswith("packs/03/"))
    first = store.names("packs/")
    assert next(first).startswith("packs/")
    del first  # given up in the middle
    store.close()


def deleted_objects_are_gone(open_store: OpenStore) -> None:
    store = open_store()
    store.put("folder/gone", [b"12345"], 5)
    store.put("folder/kept", [b"1"], 1)
    store.delete("folder/gone")
    store.delete("folder/gone")
    store.delete("none")
    store.delete("none/none")
    assert keys(store) == ["folder/kept"]
    with raises(BlobNotFoundError):
        store.read("folder/gone", 0, 1)
    store.put("folder/gone", [b"new"], 3)
    assert store.read("folder/gone", 0, 3) == b"new"
    store.close()


def names_never_leave_the_store(open_store: OpenStore) -> None:
    store = open_store()
    for key in (
        "",
        "..",
        "../up",
        "/root",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        "a\0b",
        "a b",
        "ä",
    ):
        with raises(ValueError):
            store.put(key, [b"1"], 1)
        with raises(ValueError):
            store.read(key, 0, 1)
        with raises(ValueError):
            list(store.stream(key))
        with raises(ValueError):
            store.size(key)
        with raises(ValueError):
            store.delete(key)
    for prefix in ("../", "/", "..", "//", "."):
        assert keys(store, prefix) == []
    assert keys(store) == []
    store.close()


def a_store_opened_again_has_what_was_put(open_store: OpenStore) -> None:
    store = open_store()
    store.put("deep/er/name", [b"kept"], 4)
    store.close()
    store = open_store()
    assert store.read("deep/er/name", 0, 4) == b"kept"
    assert keys(store) == ["deep/er/name"]
    store.close()


def a_stream_may_be_given_up(open_store: OpenStore) -> None:
    store = open_store()
    store.put("object", [bytes(LARGE_BYTES)], LARGE_BYTES)
    for _ in range(5):
        stream = store.stream("object")
        assert len(next(stream)) > 0
        del stream
    assert store.read("object", 0, 1) == b"\0"
    store.close()


def many_use_it_at_once(open_store: OpenStore) -> None:
    store = open_store()
    problems: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for turn in range(6):
                data = content(20_000, number * 100 + turn)
                key = f"many/{number}"
                store.put(key, [data], len(data))
                assert store.read(key, 5000, 10_000) == data[5000:15_000]
                assert whole(store.stream(key)) == data
                assert key in set(store.names("many/"))
                store.delete(key)
        except BaseException as error:  # noqa: BLE001 - handed to the checking thread
            problems.append(error)

    run_all([partial(use, number) for number in range(6)])
    assert not problems, problems
    assert keys(store) == []
    store.close()


def one_of_many_readers_in_one_thread(open_store: OpenStore) -> None:
    """Streams that are open at once in one thread do not wait for each other."""
    store = open_store()
    data = content(LARGE_BYTES)
    store.put("object", [data], LARGE_BYTES)
    streams = [store.stream("object") for _ in range(6)]
    heads = [bytes(next(stream)) for stream in streams]
    for head, stream in zip(heads, streams, strict=True):
        assert head + whole(stream) == data
    store.close()


def a_tier_has_one_archive(open_store: OpenStore) -> None:
    store = open_store()
    assert not claim_tier(store, ARCHIVE, first_time=False)
    assert not claim_tier(store, ARCHIVE, first_time=True)
    for first_time in (False, True):
        with raises(ForeignTierError):
            claim_tier(store, bytes(16), first_time=first_time)
    marker = store.read(TIER_MARKER, 0, store.size(TIER_MARKER))
    for other in (b"", b"hello", b"[]", b'{"format": 2, "archive": "00"}', marker[:-9], bytes(1 << 20)):
        store.put(TIER_MARKER, [other], len(other))
        with raises(ForeignTierError):
            claim_tier(store, ARCHIVE, first_time=True)
    store.put(TIER_MARKER, [marker], len(marker))
    assert not claim_tier(store, ARCHIVE, first_time=False)
    store.close()


def an_unmarked_tier_is_not_ours(open_store: OpenStore) -> None:
    store = open_store()
    store.delete(TIER_MARKER)
    with raises(TierMarkerMissingError):
        claim_tier(store, ARCHIVE, first_time=False)
    assert claim_tier(store, ARCHIVE, first_time=True)
    assert not claim_tier(store, ARCHIVE, first_time=False)
    store.close()


def one_of_many_creates(open_store: OpenStore) -> None:
    store = open_store()
    made: list[bytes] = []
    lock = threading.Lock()

    def create(data: bytes) -> None:
        if create_once(store, "once", data):
            with lock:
                made.append(data)

    run_all([partial(create, b"%d" % number) for number in range(6)])
    assert len(made) == 1
    assert store.read("once", 0, store.size("once")) == made[0]
    assert keys(store) == ["once"]
    store.close()


def one_of_two_archives_claims(open_store: OpenStore) -> None:
    """Who saw no mark, and was overtaken by another archive before it made one, does not get the tier."""
    store = open_store()
    store.delete(TIER_MARKER)
    theirs = bytes(16)
    overtaken = _Overtaken(store, lambda: claim_tier(store, theirs, first_time=True))
    with raises(ForeignTierError):
        claim_tier(overtaken, ARCHIVE, first_time=True)
    assert not claim_tier(store, theirs, first_time=False)
    store.close()


class _Overtaken(AroundStore):
    """A store in which somebody else does something right after the mark was first looked for."""

    def __init__(self, store: ObjectStore, act: Callable[[], object]) -> None:
        super().__init__(store)
        self._acts = [act]

    def _call(self, operation: str, act: Callable[[], T]) -> T:
        try:
            return act()
        finally:
            if operation == "stream" and self._acts:
                self._acts.pop()()


OBJECT_STORE_CHECKS: tuple[Callable[[OpenStore], None], ...] = (
    what_is_put_is_read,
    large_objects_come_back,
    ranges_are_exact_or_refused,
    missing_objects_are_said_to_be_missing,
    a_put_replaces,
    a_put_that_fails_leaves_what_was_there,
    nothing_is_seen_of_a_put_under_way,
    names_are_by_prefix,
    many_names_come_in_pages,
    deleted_objects_are_gone,
    names_never_leave_the_store,
    a_store_opened_again_has_what_was_put,
    a_stream_may_be_given_up,
    many_use_it_at_once,
    one_of_many_readers_in_one_thread,
    a_tier_has_one_archive,
    an_unmarked_tier_is_not_ours,
    one_of_many_creates,
    one_of_two_archives_claims,
)
