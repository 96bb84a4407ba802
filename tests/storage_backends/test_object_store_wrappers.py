"""What is put around a store does its one thing: asks again, ends, limits, counts."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    ShortReadError,
    StorageError,
    StoreFullError,
    UnreadableError,
)
from hounsfield.storage_backends.object_store import (
    ObjectStore,
    StoreAwayError,
    StoreRefusedError,
    TierMarkerMissingError,
)
from hounsfield.storage_backends.store_wrappers import Limited, Metered, Retrying, RetryLimits, TimedOut
from support.troubled_store import ACTS, AWAY, DATA, Time, Troubled, until


@pytest.fixture
def troubled(tmp_path: Path) -> Troubled:
    return Troubled(tmp_path / "tier")


@pytest.fixture
def time() -> Time:
    return Time()


def retrying(store: ObjectStore, time: Time, chance: float = 1.0, **limits: float) -> Retrying:
    return Retrying(store, RetryLimits(**limits), clock=time, pause=time.pause, chance=lambda: chance)


# ---------------------------------------------------------------- patience


@pytest.mark.parametrize("act", ACTS)
def test_a_store_that_is_away_is_asked_again(troubled: Troubled, time: Time, act: str) -> None:
    troubled.trouble = [AWAY] * 4
    ACTS[act](retrying(troubled, time))
    assert time.pauses == [0.2, 0.4, 0.8, 1.6]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    "error",
    [
        StoreRefusedError,
        BlobNotFoundError,
        ShortReadError,
        StoreFullError,
        UnreadableError,
        TierMarkerMissingError,
    ],
)
def test_what_does_not_pass_is_not_asked_again(
    troubled: Troubled, time: Time, act: str, error: type[StorageError]
) -> None:
    troubled.trouble = [error("so it is")]
    with pytest.raises(error, match="so it is"):
        ACTS[act](retrying(troubled, time))
    assert time.pauses == []


@pytest.mark.parametrize("act", ACTS)
def test_patience_ends(troubled: Troubled, time: Time, act: str) -> None:
    troubled.trouble = [AWAY] * 1000
    with pytest.raises(StoreAwayError):
        ACTS[act](retrying(troubled, time, first_s=1, longest_s=8, deadline_s=60))
    assert time.pauses == [1, 2, 4, *[8] * 6]
    assert sum(time.pauses) <= 60


def test_pauses_are_of_random_length(troubled: Troubled, time: Time) -> None:
    troubled.trouble = [AWAY] * 3
    retrying(troubled, time, chance=0.0).size("object")
    assert time.pauses == [0.1, 0.2, 0.4]


def test_a_stream_goes_on_where_it_broke_off(troubled: Troubled, time: Time) -> None:
    """And its patience begins anew with every piece: a long one may meet many restarts."""
    troubled.trouble = [None, None, None, AWAY, None, None, AWAY, AWAY]
    pieces = []
    for piece in retrying(troubled, time, deadline_s=1).stream("object", 100):
        pieces.append(bytes(piece))
        time.now += 50  # the reader is busy: that is not the store's time
    assert b"".join(pieces) == DATA[100:]
    assert [call for call in troubled.calls if call != "piece"] == [
        "stream 100",
        "stream 2100",
        "stream 3100",
        "stream 3100",
    ]


def test_a_list_that_breaks_off_is_an_error(troubled: Troubled, time: Time) -> None:
    troubled.trouble = [None, None, AWAY]
    names = retrying(troubled, time).names()
    next(names)
    with pytest.raises(StoreAwayError):
        next(names)


def test_pieces_that_are_gone_are_not_sent_again(troubled: Troubled, time: Time) -> None:
    """An iterator gives its pieces once; before it was asked for one, the put is repeated."""

    def failing(of: Troubled) -> None:
        put = of.store.put

        def once(key: str, pieces: Iterable[Buffer], length: int) -> None:
            of.store.put = put  # type: ignore[method-assign]
            next(iter(pieces))
            raise AWAY

        of.store.put = once  # type: ignore[method-assign]

    troubled.trouble = [AWAY]
    failing(troubled)
    with pytest.raises(StoreAwayError):
        retrying(troubled, time).put("new", iter([DATA]), len(DATA))
    assert troubled.calls == ["put", "put"]
    failing(troubled)
    retrying(troubled, time).put("new", [DATA], len(DATA))
    assert troubled.store.read("new", 0, len(DATA)) == DATA


def test_closing_ends_a_pause(troubled: Troubled) -> None:
    troubled.trouble = [AWAY] * 1000
    store = Retrying(troubled, RetryLimits(first_s=1000, longest_s=1000, deadline_s=10_000))
    problems: list[Exception] = []

    def ask() -> None:
        try:
            store.size("object")
        except StoreAwayError as error:
            problems.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    store.close()
    thread.join()
    assert problems == [AWAY]
    assert troubled.closed


# ---------------------------------------------------------------- a limit


@pytest.mark.parametrize("act", ["put", "read", "size", "delete"])
def test_no_more_calls_at_a_time_than_allowed(troubled: Troubled, act: str) -> None:
    release = threading.Event()
    troubled.trouble = [release, release]
    store = Limited(troubled, 2, wait_s=0)
    threads = [threading.Thread(target=store.size, args=("object",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: len(troubled.calls) == 2)
    with pytest.raises(StoreAwayError, match="busy"):
        ACTS[act](store)
    release.set()
    for thread in threads:
        thread.join()
    ACTS[act](store)


def test_a_reader_that_is_busy_takes_no_place(troubled: Troubled) -> None:
    store = Limited(troubled, 1, wait_s=0)
    stream = store.stream("object")
    next(stream)
    assert store.size("object") == len(DATA)
    troubled.trouble = [AWAY]
    with pytest.raises(StoreAwayError, match="away"):
        store.size("object")  # and gives its place back
    assert len(b"".join(stream)) == len(DATA) - 1000


# ---------------------------------------------------------------- figures


def test_calls_bytes_seconds_and_errors_are_counted(troubled: Troubled, time: Time) -> None:
    store = Metered(troubled, clock=time)
    for act in ACTS.values():
        act(store)
    troubled.store.put("object", [DATA], len(DATA))
    before = store.figures
    assert {name: of.calls for name, of in before.items()} == {
        "put": 1,
        "read": 2,
        "stream": 1,
        "size": 1,
        "names": 1,
        "delete": 1,
    }
    assert {name: of.bytes for name, of in before.items() if of.bytes} == {
        "put": len(DATA),
        "read": 20,
        "stream": len(DATA),
    }
    troubled.trouble = [AWAY, None, AWAY]
    with pytest.raises(StoreAwayError):
        store.read("object", 0, 1)
    with pytest.raises(StoreAwayError):
        list(store.stream("object"))
    with pytest.raises(BlobNotFoundError):
        store.size("none")
    figures = store.figures
    assert figures["read"].errors == {"StoreAwayError": 1}
    assert figures["stream"].errors == {"StoreAwayError": 1}
    assert figures["size"].errors == {"BlobNotFoundError": 1}
    assert figures["read"].bytes == 20
    assert before["read"].errors == {}  # what was handed out stays as it was


def test_seconds_are_those_in_the_store(troubled: Troubled, time: Time) -> None:
    store = Metered(troubled, clock=time)
    meet = troubled._meet

    def slow(call: str) -> None:
        time.now += 2
        meet(call)

    troubled._meet = slow  # type: ignore[method-assign]
    stream = store.stream("object", 0, 2000)
    next(stream)
    time.now += 1000  # the reader is busy
    list(stream)
    store.size("object")
    assert store.figures["stream"].seconds == 2 * 3  # to open it, and for two pieces
    assert store.figures["size"].seconds == 2


# ---------------------------------------------------------------- an end


@pytest.mark.parametrize("act", ACTS)
def test_a_call_that_hangs_is_left_behind(troubled: Troubled, act: str) -> None:
    release = threading.Event()
    troubled.trouble = [release]
    store = TimedOut(troubled, 0.05, slowest=1 << 40)
    with pytest.raises(StoreAwayError, match="hangs"):
        ACTS[act](store)
    release.set()


def test_a_stream_that_hangs_in_the_middle(troubled: Troubled) -> None:
    release = threading.Event()
    troubled.trouble = [None, None, None, release]
    store = TimedOut(troubled, 60)
    stream = store.stream("object")
    assert len(next(stream)) == len(next(stream)) == 1000
    store._seconds = 0.05
    with pytest.raises(StoreAwayError, match="hangs"):
        next(stream)
    release.set()


def test_memory_given_for_reading_is_not_written_to_later(troubled: Troubled) -> None:
    release = threading.Event()
    troubled.trouble = [release]
    buffer = bytearray(10)
    with pytest.raises(StoreAwayError):
        TimedOut(troubled, 0.05).read_into("object", 1, buffer)
    release.set()
    until(lambda: "store-read" not in {thread.name for thread in threading.enumerate()})
    assert buffer == bytes(10)


def test_threads_left_behind_are_limited(troubled: Troubled) -> None:
    release = threading.Event()
    troubled.trouble = [release] * 3
    store = TimedOut(troubled, 0.01, threads=3)
    for _ in range(5):
        with pytest.raises(StoreAwayError, match="hangs"):
            store.size("object")
    assert len(troubled.calls) == 3
    release.set()
    until(lambda: "store-size" not in {thread.name for thread in threading.enumerate()})
    with suppress(StoreAwayError):  # it may still be too slow, but it is asked
        store.size("object")
    until(lambda: len(troubled.calls) == 4)


def test_pieces_that_take_long_are_not_the_stores_time(troubled: Troubled) -> None:
    """Whoever makes them may wait for another store."""

    def slow() -> Iterator[bytes]:
        yield DATA[:100]
        threading.Event().wait(1.1)
        yield DATA[100:]

    TimedOut(troubled, 1).put("new", slow(), len(DATA))
    assert troubled.store.read("new", 0, len(DATA)) == DATA
