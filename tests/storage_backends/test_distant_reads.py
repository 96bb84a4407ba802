"""What lies in a bucket is fetched again and again, by everybody, or is given although it is wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    SealError,
    ShortReadError,
    StorageError,
    StoreFullError,
)
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.local_blobs import LocalBlobs
from hounsfield.storage_backends.range_cache import RangeCache, RangeCacheLimits
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_format import PartRef
from hounsfield.storage_backends.segments import SegmentLog
from hounsfield.storage_backends.tiered_blobs import Elsewhere, TieredBlobs
from support.buckets import AwayError, Bucket

KIB = 1 << 10
BLOB = random.Random(5).randbytes(3_000_017)
GRAIN = 64 * KIB
NOT_AHEAD = RangeCacheLimits(ahead_bytes_max=4 * GRAIN)


class Requests:
    """A store that remembers what it was asked for."""

    def __init__(self, data: bytes = BLOB) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self.lock = threading.Lock()
        self.before: Callable[[int, int], None] = lambda offset, length: None

    def fetch(self, name: str, offset: int, length: int) -> bytes:
        with self.lock:
            self.asked.append((offset, length))
        self.before(offset, length)
        return self.data[offset : offset + length]

    def cache(self, limits: RangeCacheLimits | None = None) -> RangeCache:
        return RangeCache(self.fetch, lambda name: len(self.data), limits)


def read(cache: RangeCache, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    cache.read_into("a", offset, buffer)
    return bytes(buffer)


def test_a_frame_is_one_request_rounded_out_to_blocks() -> None:
    store = Requests()
    cache = store.cache()
    assert read(cache, 100_000, 300_000) == BLOB[100_000:400_000]
    assert store.asked == [(GRAIN, 6 * GRAIN)]
    assert read(cache, 150_000, 100_000) == BLOB[150_000:250_000]
    assert len(store.asked) == 1
    buffer = bytearray(50)
    assert cache.try_read_into("a", 399_000, buffer)
    assert buffer == BLOB[399_000:399_050]
    assert not cache.try_read_into("a", 2_000_000, buffer)
    assert not cache.try_read_into("b", 399_000, buffer)
    cache.close()


def test_the_end_of_a_blob_is_not_read_past() -> None:
    store = Requests()
    cache = store.cache()
    assert read(cache, len(BLOB) - 5, 5) == BLOB[-5:]
    assert sum(store.asked[0]) == len(BLOB)
    with pytest.raises(ShortReadError):
        read(cache, len(BLOB) - 5, 6)
    cache.close()


def test_who_wants_the_same_waits_for_one_request() -> None:
    store = Requests()
    readers = 8
    others_wait = threading.Event()

    def before(offset: int, length: int) -> None:
        others_wait.wait(30)

    store.before = before
    cache = store.cache()
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(read(cache, 100_000, 200_000))) for _ in range(readers)
    ]
    for thread in threads:
        thread.start()
    while cache.statistics()["waits"] < (readers - 1):
        pass
    others_wait.set()
    for thread in threads:
        thread.join(30)
    assert found == [BLOB[100_000:300_000]] * readers
    assert len(store.asked) == 1
    cache.close()


def test_a_request_that_fails_fails_for_its_reader_only() -> None:
    store = Requests()
    first, waiting = threading.Event(), threading.Event()

    def before(offset: int, length: int) -> None:
        if len(store.asked) == 1:
            first.set()
            waiting.wait(30)
            raise AwayError("the store is away")

    store.before = before
    cache = store.cache()
    errors: list[BaseException] = []

    def fails() -> None:
        try:
            read(cache, 0, 10)
        except AwayError as error:
            errors.append(error)

    one = threading.Thread(target=fails)
    one.start()
    assert first.wait(30)
    found: list[bytes] = []
    other = threading.Thread(target=lambda: found.append(read(cache, 5, 10)))
    other.start()
    while not cache.statistics()["waits"]:
        pass
    waiting.set()
    one.join(30)
    other.join(30)
    assert len(errors) == 1
    assert found == [BLOB[5:15]]
    cache.close()


def test_a_store_that_gives_less_than_it_was_asked_for_is_not_believed() -> None:
    cache = RangeCache(
        lambda name, offset, length: BLOB[offset : offset + length - 1], lambda name: len(BLOB)
    )
    with pytest.raises(ShortReadError):
        read(cache, 0, 10)
    assert not cache.statistics()["held_bytes"]
    cache.close()


def test_memory_stays_within_its_budget_and_what_is_asked_for_stays() -> None:
    store = Requests()
    cache = store.cache(RangeCacheLimits(bytes_max=4 * GRAIN, ahead_bytes_max=GRAIN))
    for n in (40, 2, 30, 4, 20, 2):
        assert read(cache, n * GRAIN, GRAIN) == BLOB[n * GRAIN : (n + 1) * GRAIN]
        assert cache.statistics()["held_bytes"] <= 4 * GRAIN
    assert len(store.asked) == 5  # the second of the twos was still there
    assert read(cache, 0, 10 * GRAIN) == BLOB[: 10 * GRAIN]  # also more at once than is kept
    assert cache.statistics()["held_bytes"] <= 4 * GRAIN
    cache.close()


def test_who_reads_from_front_to_back_waits_for_few_requests() -> None:
    store = Requests()
    asked_by: list[str] = []
    store.before = lambda offset, length: asked_by.append(threading.current_thread().name)
    cache = store.cache()
    whole = b"".join(read(cache, at, min(10_000, len(BLOB) - at)) for at in range(0, len(BLOB), 10_000))
    assert whole == BLOB
    cache.close()
    own = [name for name in asked_by if not name.startswith("far-reads")]
    assert len(own) < 8
    assert sum(length for _, length in store.asked) == len(BLOB)  # no byte twice


def test_what_is_fetched_ahead_comes_in_requests_that_nobody_waits_long_for() -> None:
    store = Requests()
    cache = store.cache(RangeCacheLimits(request_bytes_max=5 * GRAIN, ahead_bytes_max=64 * GRAIN))
    cache.read_ahead("a", [(0, 22 * GRAIN)])
    assert read(cache, 0, 22 * GRAIN) == BLOB[: 22 * GRAIN]  # waits for what is under way
    cache.close()
    assert sorted(store.asked) == [(at * GRAIN, min(5, 22 - at) * GRAIN) for at in range(0, 22, 5)]


def test_who_jumps_about_fetches_nothing_ahead() -> None:
    store = Requests()
    cache = store.cache()
    for n in (40, 3, 30, 7, 20):
        read(cache, n * GRAIN, 100)
    cache.close()
    assert [length for _, length in store.asked] == [GRAIN] * 5


def test_what_is_announced_is_fetched_in_the_background() -> None:
    store = Requests()
    cache = store.cache()
    cache.read_ahead("a", [(0, 100), (GRAIN, 100), (10 * GRAIN, 100)])
    assert read(cache, 10 * GRAIN, 100) == BLOB[10 * GRAIN : 10 * GRAIN + 100]
    assert read(cache, 0, 100) == BLOB[:100]
    cache.close()
    assert sorted(store.asked) == [(0, 2 * GRAIN), (10 * GRAIN, GRAIN)]
    cache.read_ahead("a", [(20 * GRAIN, 100)])  # closed: nothing happens, and nobody waits for it for ever
    assert read(cache, 20 * GRAIN, 100) == BLOB[20 * GRAIN : 20 * GRAIN + 100]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(BLOB)), st.integers(0, 400_000), st.booleans()), max_size=12),
    st.sampled_from([RangeCacheLimits(), NOT_AHEAD, RangeCacheLimits(bytes_max=GRAIN, block_bytes=4096)]),
)
def test_any_reads_in_any_order_give_what_is_there(
    wanted: list[tuple[int, int, bool]], limits: RangeCacheLimits
) -> None:
    cache = Requests().cache(limits)
    for offset, length, ahead in wanted:
        length = min(length, len(BLOB) - offset)
        if ahead:
            cache.read_ahead("a", [(offset, length)])
        assert read(cache, offset, length) == BLOB[offset : offset + length]
    cache.close()


# ---------------------------------------------------------------- a segment log over two places


class Place:
    """A segment that went to two buckets and is not here any more."""

    def __init__(self, directory: Path, keyring: Keyring) -> None:
        self.local = LocalBlobs(directory / "data")
        log = SegmentLog(self.local, keyring)
        self.frames = [random.Random(n).randbytes(length) for n, length in enumerate((300_000, 5_000_000, 0))]
        (ref,) = log.append([RecordIn(1, (b"row", b"header" * 100, *self.frames, b"trailer"))])
        log.close()
        self.ref = ref
        self.name = "segments/" + ref.segment.hex()
        self.data = self.local.read(self.name, 0, self.local.size(self.name))
        self.buckets = (Bucket(), Bucket())
        for bucket in self.buckets:
            bucket.objects["k"] = self.data
        self.local.delete(self.name)
        self.blobs = TieredBlobs(
            self.local,
            lambda name: Elsewhere(len(self.data), "k", self.buckets) if name == self.name else None,
        )
        self.log = SegmentLog(self.blobs, keyring)
        self.doubts: list[bytes] = []
        self.log.damaged = self.doubts.append

    def part(self, number: int) -> PartRef:
        return self.ref.part(number)


@pytest.fixture
def place(tmp_path: Path, keyring: Keyring) -> Iterator[Place]:
    made = Place(tmp_path, keyring)
    yield made
    made.blobs.close()


def test_everything_reads_as_if_it_were_here(place: Place) -> None:
    assert not place.blobs.is_near(place.name)
    for number, frame in enumerate(place.frames):
        assert place.log.open_part(place.part(2 + number)) == frame
        opened = place.log.try_open_part(place.part(2 + number))
        assert opened is None or opened == frame
    assert place.log.open_whole(place.part(1)) == b"header" * 100
    assert place.log.try_open_part(place.part(1)) == b"header" * 100  # it is in memory by now
    assert place.log.open_range(place.part(3), 2_000_000, 100) == place.frames[1][2_000_000:2_000_100]
    place.log.verify(place.ref)
    assert [found.ref for found in place.log.scan(place.ref.segment)] == [place.ref]  # type: ignore[union-attr]
    assert place.log.size(place.ref.segment) == len(place.data)
    assert not place.doubts
    with pytest.raises(BlobNotFoundError):
        place.blobs.read("segments/" + "0" * 32, 0, 1)


def test_a_frame_that_is_far_is_not_waited_for_where_nobody_may_wait(place: Place) -> None:
    assert place.log.try_open_part(place.part(2)) is None
    assert not place.buckets[0].reads


def test_a_copy_that_is_away_is_passed_over(place: Place) -> None:
    place.buckets[0].failure = AwayError("away")
    assert place.log.open_part(place.part(2)) == place.frames[0]
    assert not place.doubts


def test_when_no_copy_answers_it_is_said_whether_waiting_helps(place: Place) -> None:
    place.buckets[0].failure = AwayError("away")
    place.buckets[1].objects.clear()
    with pytest.raises(AwayError):
        place.log.open_part(place.part(2))
    place.buckets[0].failure, place.buckets[1].failure = StorageError("refused"), StoreFullError("full")
    with pytest.raises(StoreFullError):
        place.log.open_part(place.part(2))


def test_wrong_bytes_of_one_copy_are_read_from_the_other_and_said(place: Place) -> None:
    part = place.part(3)
    wrong = bytearray(place.data)
    wrong[part.offset + 3_000_000] ^= 1
    place.buckets[0].objects["k"] = bytes(wrong)
    assert place.log.open_part(part) == place.frames[1]
    assert place.doubts == [place.ref.segment]
    assert place.log.open_range(part, 2_990_000, 20_000) == place.frames[1][2_990_000:3_010_000]
    place.buckets[1].objects["k"] = bytes(wrong)
    with pytest.raises(SealError):
        place.log.open_part(part)


def test_a_damaged_local_copy_is_read_from_a_tier(place: Place, tmp_path: Path) -> None:
    part = place.part(1)
    wrong = bytearray(place.data)
    wrong[part.offset] ^= 1
    path = tmp_path / "data" / place.name
    path.write_bytes(wrong)
    assert place.blobs.is_near(place.name)
    assert place.log.open_whole(part) == b"header" * 100
    assert place.doubts == [place.ref.segment]
    path.write_bytes(wrong[: part.offset + 5])  # and one that was cut
    assert place.log.open_whole(place.part(4)) == b""
    assert place.log.open_part(place.part(2)) == place.frames[0]
