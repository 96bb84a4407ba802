"""A store that is away is waited for again and again, or is not noticed when it is back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hounsfield.storage_backends.errors import BlobNotFoundError, StorageError, StoreFullError
from hounsfield.storage_backends.object_store import (
    StoreAwayError,
    StoreKnownAwayError,
    StoreRefusedError,
    TierMarkerMissingError,
)
from hounsfield.storage_backends.store_memory import MemoryLimits, Remembering
from hounsfield.storage_backends.store_wrappers import Retrying, RetryLimits
from support.troubled_store import ACTS, AWAY, DATA, Time, Troubled, until

READS = [name for name in ACTS if name not in {"put", "delete"}]


@pytest.fixture
def troubled(tmp_path: Path) -> Troubled:
    return Troubled(tmp_path / "tier")


@pytest.fixture
def time() -> Time:
    return Time()


def away(troubled: Troubled, time: Time) -> tuple[Remembering, Retrying]:
    """A store that has been away for as long as anybody waits; it is back now."""
    memory = Remembering(troubled, clock=time)
    store = Retrying(memory, RetryLimits(), clock=time, pause=time.pause, chance=lambda: 1.0)
    troubled.trouble = [AWAY] * 1000
    for act in ("size", "delete"):
        with pytest.raises(StoreAwayError):
            ACTS[act](store)
    time.now += MemoryLimits().away_after_s
    with pytest.raises(StoreAwayError):
        ACTS["size"](store)
    with pytest.raises(StoreAwayError):
        ACTS["delete"](store)
    troubled.trouble, troubled.calls, time.pauses = [], [], []
    return memory, store


@pytest.mark.parametrize("act", ACTS)
def test_who_comes_later_is_told_at_once(troubled: Troubled, time: Time, act: str) -> None:
    _, store = away(troubled, time)
    for _ in range(100):
        with pytest.raises(StoreKnownAwayError, match="away"):
            ACTS[act](store)
    assert not troubled.calls
    assert not time.pauses
    time.now += MemoryLimits().quiet_s
    ACTS[act](store)
    ACTS[act](store)


@pytest.mark.parametrize("act", READS)
def test_one_looks_and_the_others_go_on(troubled: Troubled, time: Time, act: str) -> None:
    memory, store = away(troubled, time)
    time.now += MemoryLimits().quiet_s
    release = threading.Event()
    troubled.trouble = [release]
    looking = threading.Thread(target=store.size, args=("object",))
    looking.start()
    until(lambda: bool(troubled.calls))
    for _ in range(3):
        with pytest.raises(StoreKnownAwayError):
            ACTS[act](store)
    ACTS["put"](store)  # takes another memory, and looks itself
    release.set()
    looking.join()
    ACTS[act](store)
    assert memory.trouble() is None


def test_one_that_is_still_away_is_left_alone_again(troubled: Troubled, time: Time) -> None:
    memory, store = away(troubled, time)
    for _ in range(5):
        time.now += MemoryLimits().quiet_s
        troubled.trouble = [AWAY] * 2
        for _ in range(4):
            with pytest.raises(StoreAwayError):
                store.size("object")
        assert len(troubled.trouble) == 1
        assert memory.trouble() is not None


def test_patience_is_spent_once(troubled: Troubled, time: Time) -> None:
    """Who comes when a store was away for a while waits for the rest of the time only."""
    memory = Remembering(troubled, clock=time)
    store = Retrying(memory, RetryLimits(), clock=time, pause=time.pause, chance=lambda: 1.0)
    troubled.trouble = [AWAY] * 1000
    with pytest.raises(StoreAwayError):
        memory.size("object")
    for spent in (50, 60, 60):
        time.pauses.clear()
        time.now = 1000 + spent
        with pytest.raises(StoreAwayError):
            store.size("object")
        assert sum(time.pauses) <= 20


@pytest.mark.parametrize("error", [StoreRefusedError, TierMarkerMissingError, StoreFullError])
def test_what_says_no_at_once_is_always_asked(
    troubled: Troubled, time: Time, error: type[StorageError]
) -> None:
    memory = Remembering(troubled, clock=time)
    for _ in range(5):
        troubled.trouble = [error("no")]
        with pytest.raises(error, match="no"):
            memory.put("new", [DATA], len(DATA))
        assert isinstance(memory.trouble(), error)
        time.now += 100
    memory.put("new", [DATA], len(DATA))
    assert memory.trouble() is None


def test_what_is_wrong_with_one_object_or_with_the_reader_says_nothing_of_the_store(
    troubled: Troubled, time: Time
) -> None:
    memory, _ = away(troubled, time)
    time.now += MemoryLimits().quiet_s

    def broken() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory._call("read", broken)
    assert memory.trouble() is not None
    with pytest.raises(BlobNotFoundError):
        memory.size("none")
    memory.delete("none")
    assert memory.trouble() is None
    memory.size("object")


def test_who_has_a_choice_goes_where_it_answers(troubled: Troubled, time: Time) -> None:
    memory, _ = away(troubled, time)
    assert memory.is_doubtful()
    time.now += MemoryLimits().doubted_s - 1
    assert memory.is_doubtful()
    time.now += 1
    assert not memory.is_doubtful()  # somebody has to find out
    troubled.trouble = [AWAY]
    with pytest.raises(StoreAwayError):
        memory.size("object")
    assert memory.is_doubtful()
    time.now += MemoryLimits().doubted_s
    memory.size("object")
    time.now += 1
    assert not memory.is_doubtful()


def test_a_read_that_hangs_is_noticed_before_it_ends(troubled: Troubled, time: Time) -> None:
    memory = Remembering(troubled, clock=time)
    release = threading.Event()
    troubled.trouble = [release]
    hanging = threading.Thread(target=memory.size, args=("object",))
    hanging.start()
    until(lambda: bool(troubled.calls))
    assert not memory.is_doubtful()
    time.now += MemoryLimits().slow_s
    assert memory.is_doubtful()
    release.set()
    hanging.join()
    assert not memory.is_doubtful()


def test_many_at_once_learn_from_one(troubled: Troubled, time: Time) -> None:
    """Those who were on their way when it broke do not each begin the time anew."""
    memory = Remembering(troubled, clock=time)
    release = threading.Event()
    troubled.trouble = [release] * 4
    asked: list[Callable[[], object]] = [ACTS["size"]] * 4
    threads = [threading.Thread(target=act, args=(memory,)) for act in asked]
    for thread in threads:
        thread.start()
    until(lambda: len(troubled.calls) == 4)
    with pytest.raises(StoreAwayError):
        troubled.trouble = [AWAY]
        memory.size("object")
    assert memory.trouble() is not None
    release.set()
    for thread in threads:
        thread.join()
    assert memory.trouble() is None
