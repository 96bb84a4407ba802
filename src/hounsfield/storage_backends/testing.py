"""The conformance suites: what every blob store and every key-value store must do.

A backend's test calls each check of :data:`BLOB_CHECKS` or :data:`KEY_VALUE_CHECKS` with a function
that opens the store. Called again after ``close`` it must open the same content (memory stores
return the same object). Checks raise ``AssertionError``; they need nothing but the standard library.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hounsfield.storage_backends.api import (
    Batch,
    BlobStore,
    CommitResult,
    KeyValueStore,
    NonBlockingReads,
    Table,
    TableKind,
)
from hounsfield.storage_backends.errors import (
    BlobExistsError,
    BlobNotFoundError,
    PoisonedError,
    PreconditionError,
    ShortReadError,
)

__all__ = ["BLOB_CHECKS", "CONFORMANCE_TABLES", "KEY_VALUE_CHECKS", "LOG", "PLAIN", "POSTINGS"]

OpenBlobs = Callable[[], BlobStore]
OpenStore = Callable[[], KeyValueStore]

PLAIN = Table("plain")
OTHER = Table("other")
LOG = Table("log", TableKind.LOG)
POSTINGS = Table("postings", TableKind.POSTINGS, 4)
CONFORMANCE_TABLES = (PLAIN, OTHER, LOG, POSTINGS)
"""Open the key-value store under test with these."""


@contextmanager
def _raises(*errors: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except errors:
        return
    raise AssertionError(f"expected {' or '.join(error.__name__ for error in errors)}")


# ---------------------------------------------------------------- blobs


def what_is_appended_is_read(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("segments/a")
    assert writer.name == "segments/a"
    assert writer.size == 0
    assert writer.append([b"one", bytearray(b"two"), memoryview(b"three")]) == 0
    assert writer.append([]) == 11
    assert writer.append([b"", b"four"]) == 11
    assert writer.size == 15
    writer.sync()
    writer.sync()
    assert blobs.read("segments/a", 0, 15) == b"onetwothreefour"
    assert blobs.read("segments/a", 3, 3) == b"two"
    assert blobs.read("segments/a", 15, 0) == b""
    buffer = bytearray(b"......")
    blobs.read_into("segments/a", 6, memoryview(buffer)[:5])
    assert buffer == b"three."
    assert blobs.size("segments/a") == 15
    writer.close()
    writer.close()
    blobs.close()


def more_buffers_than_one_call_takes(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("many")
    pieces = [number.to_bytes(4, "big") for number in range(5000)]
    writer.append(pieces)
    writer.sync()
    assert blobs.read("many", 0, 20_000) == b"".join(pieces)
    writer.close()
    blobs.close()


def synced_blobs_are_there_after_reopening(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("deep/er/name")
    writer.append([b"kept"])
    writer.sync()
    writer.close()
    blobs.close()
    blobs = open_blobs()
    assert blobs.read("deep/er/name", 0, 4) == b"kept"
    with _raises(BlobExistsError):
        blobs.create("deep/er/name")
    blobs.close()


def a_name_is_created_once(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    blobs.create("name").close()
    with _raises(BlobExistsError):
        blobs.create("name")
    blobs.close()


def names_never_leave_the_store(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    for name in (
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
        with _raises(ValueError):
            blobs.create(name)
        with _raises(ValueError):
            blobs.read(name, 0, 1)
    assert blobs.names() == []
    blobs.close()


def missing_blobs_are_said_to_be_missing(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    with _raises(BlobNotFoundError):
        blobs.read("none", 0, 1)
    with _raises(BlobNotFoundError):
        blobs.read_into("none", 0, bytearray(1))
    with _raises(BlobNotFoundError):
        blobs.size("none")
    with _raises(BlobNotFoundError):
        blobs.delete("none")
    if isinstance(blobs, NonBlockingReads):
        with _raises(BlobNotFoundError):
            blobs.try_read_into("none", 0, bytearray(1))
    blobs.close()


def short_ranges_are_refused(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("short")
    writer.append([b"12345"])
    writer.sync()
    for offset, length in ((0, 6), (5, 1), (4, 2), (1000, 1)):
        with _raises(ShortReadError):
            blobs.read("short", offset, length)
        with _raises(ShortReadError):
            blobs.read_into("short", offset, bytearray(length))
    writer.close()
    blobs.close()


def names_are_sorted_and_by_prefix(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    for name in ("b/2", "a", "b/10", "c", "b/1", "bb"):
        blobs.create(name).close()
    assert blobs.names() == ["a", "b/1", "b/10", "b/2", "bb", "c"]
    assert blobs.names("b/") == ["b/1", "b/10", "b/2"]
    assert blobs.names("b/1") == ["b/1", "b/10"]
    assert blobs.names("none/") == []
    blobs.close()


def deleted_blobs_are_gone(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("gone")
    writer.append([b"12345"])
    writer.sync()
    writer.close()
    assert blobs.read("gone", 0, 5) == b"12345"
    blobs.delete("gone")
    assert blobs.names() == []
    with _raises(BlobNotFoundError):
        blobs.read("gone", 0, 5)
    writer = blobs.create("gone")
    writer.append([b"new"])
    writer.sync()
    assert blobs.read("gone", 0, 3) == b"new"
    writer.close()
    blobs.close()


def a_closed_writer_takes_nothing(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("closed")
    writer.append([b"1"])
    writer.sync()
    writer.close()
    with _raises(PoisonedError):
        writer.append([b"2"])
    with _raises(PoisonedError):
        writer.sync()
    assert blobs.size("closed") == 1
    blobs.close()


def reading_without_waiting_is_exact_or_refused(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    if isinstance(blobs, NonBlockingReads):
        writer = blobs.create("warm")
        writer.append([bytes(range(256)) * 64])
        writer.sync()
        buffer = bytearray(100)
        if blobs.try_read_into("warm", 200, buffer):
            assert buffer == (bytes(range(256)) * 2)[200:300]
        writer.close()
    blobs.close()


def readers_and_a_writer_at_once(open_blobs: OpenBlobs) -> None:
    """Many threads read many blobs (more than a descriptor cache keeps) while they grow and vanish."""
    blobs = open_blobs()
    problems: list[BaseException] = []

    def content(number: int) -> bytes:
        return number.to_bytes(2, "big") * 500

    writers = [blobs.create(f"many/{number}") for number in range(40)]
    for number, writer in enumerate(writers):
        writer.append([content(number)])

    def read(seed: int) -> None:
        choose = random.Random(seed)  # noqa: S311
        try:
            for _ in range(300):
                number = choose.randrange(40)
                assert blobs.read(f"many/{number}", 0, 1000) == content(number)
        except BaseException as error:  # noqa: BLE001 - handed to the checking thread
            problems.append(error)

    def churn() -> None:
        try:
            for number in range(60):
                writer = blobs.create(f"churn/{number}")
                writer.append([b"x" * 100])
                writer.sync()
                writer.close()
                assert blobs.read(f"churn/{number}", 0, 100) == b"x" * 100
                blobs.delete(f"churn/{number}")
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    _run_all([*(lambda seed=seed: read(seed) for seed in range(4)), churn])
    for writer in writers:
        writer.close()
    blobs.close()
    assert not problems, problems


BLOB_CHECKS: tuple[Callable[[OpenBlobs], None], ...] = (
    what_is_appended_is_read,
    more_buffers_than_one_call_takes,
    synced_blobs_are_there_after_reopening,
    a_name_is_created_once,
    names_never_leave_the_store,
    missing_blobs_are_said_to_be_missing,
    short_ranges_are_refused,
    names_are_sorted_and_by_prefix,
    deleted_blobs_are_gone,
    a_closed_writer_takes_nothing,
    reading_without_waiting_is_exact_or_refused,
    readers_and_a_writer_at_once,
)


# ---------------------------------------------------------------- key-value


def _put(store: KeyValueStore, table: Table, **items: bytes) -> CommitResult:
    batch = Batch()
    for key, value in items.items():
        batch.put(table, key.encode(), value)
    return store.commit(batch)


def _all(store: KeyValueStore, table: Table) -> list[tuple[bytes, bytes]]:
    with store.snapshot() as view:
        return list(view.scan(table))


def what_is_committed_is_read(open_store: OpenStore) -> None:
    store = open_store()
    _put(store, PLAIN, a=b"1", b=b"", c=b"3" * 5000)
    _put(store, OTHER, a=b"other")
    with store.snapshot() as view:
        assert view.get(PLAIN, b"a") == b"1"
        assert view.get(PLAIN, b"b") == b""
        assert view.get(PLAIN, b"none") is None
        assert view.get_many(PLAIN, [b"c", b"none", b"a"]) == [b"3" * 5000, None, b"1"]
        assert view.get(OTHER, b"a") == b"other"
    batch = Batch()
    batch.put(PLAIN, b"a", b"2")
    batch.delete(PLAIN, b"b")
    batch.delete(PLAIN, b"never there")
    store.commit(batch)
    assert _all(store, PLAIN) == [(b"a", b"2"), (b"c", b"3" * 5000)]
    store.close()
    store = open_store()
    assert _all(store, PLAIN) == [(b"a", b"2"), (b"c", b"3" * 5000)]
    store.close()


def a_delete_and_a_put_of_one_key_leave_the_put(open_store: OpenStore) -> None:
    store = open_store()
    batch = Batch()
    batch.put(PLAIN, b"k", b"new")
    batch.delete(PLAIN, b"k")
    batch.add(POSTINGS, b"p", b"0001")
    batch.remove(POSTINGS, b"p", b"0001")
    store.commit(batch)
    with store.snapshot() as view:
        assert view.get(PLAIN, b"k") == b"new"
        assert view.postings(POSTINGS, b"p") == [b"0001"]
    store.close()


def a_snapshot_does_not_move(open_store: OpenStore) -> None:
    store = open_store()
    _put(store, PLAIN, a=b"1")
    with store.snapshot() as view:
        change = Batch()
        change.put(PLAIN, b"a", b"2")
        change.put(PLAIN, b"b", b"2")
        change.add(POSTINGS, b"p", b"0001")
        change.append(LOG, lambda _: b"entry")
        done: list[CommitResult] = []
        _run_all([lambda: done.append(store.commit(change))])
        assert done
        assert view.get(PLAIN, b"a") == b"1"
        assert [key for key, _ in view.scan(PLAIN)] == [b"a"]
        assert view.postings(POSTINGS, b"p") == []
        assert view.last(LOG) == 0
        with store.snapshot() as later:
            assert later.get(PLAIN, b"a") == b"2"
            assert later.last(LOG) == 1
    with _raises(RuntimeError):
        view.get(PLAIN, b"a")
    with store.snapshot() as view:
        rest = view.scan(PLAIN)
        next(rest)
    with _raises(RuntimeError):
        next(rest)
    store.close()


def scans_are_ordered_bounded_and_resumable(open_store: OpenStore) -> None:
    store = open_store()
    keys = [b"a", b"a\x00", b"ab", b"ab\xff", b"ab\xff\xff", b"ac", b"b", b"\xff", b"\xff\xff"]
    batch = Batch()
    for key in reversed(keys):
        batch.put(PLAIN, key, b"=" + key)
    store.commit(batch)
    with store.snapshot() as view:
        for prefix in (b"", b"a", b"ab", b"ab\xff", b"b", b"c", b"\xff", b"\xff\xff"):
            for reverse in (False, True):
                expected = sorted((key for key in keys if key.startswith(prefix)), reverse=reverse)
                assert list(view.scan(PLAIN, prefix=prefix, reverse=reverse)) == [
                    (k, b"=" + k) for k in expected
                ]
                for after in (*keys, b"0", b"aa", b"abc", b"zz", b"\xff\xff\xff"):
                    behind = [key for key in expected if (key < after if reverse else key > after)]
                    for limit in (None, 0, 1, 2, 100):
                        found = view.scan(PLAIN, prefix=prefix, after=after, reverse=reverse, limit=limit)
                        assert [key for key, _ in found] == behind[:limit], (prefix, after, reverse, limit)
    store.close()


def preconditions_hold_or_nothing_happens(open_store: OpenStore) -> None:
    store = open_store()
    _put(store, PLAIN, a=b"1")
    for key, value in ((b"a", b"2"), (b"a", None), (b"none", b"1")):
        batch = Batch()
        batch.put(PLAIN, b"b", b"1")
        batch.add(POSTINGS, b"p", b"0001")
        batch.append(LOG, lambda _: b"entry")
        batch.require(PLAIN, key, value)
        with _raises(PreconditionError):
            store.commit(batch)
    assert _all(store, PLAIN) == [(b"a", b"1")]
    with store.snapshot() as view:
        assert view.last(LOG) == 0
        assert view.count(POSTINGS, b"p") == 0
    batch = Batch()
    batch.require(PLAIN, b"a", b"1")
    batch.require(PLAIN, b"none", None)
    batch.put(PLAIN, b"a", b"2")
    store.commit(batch)
    assert _all(store, PLAIN) == [(b"a", b"2")]
    store.close()


def batches_of_one_commit_see_each_other_and_fail_alone(open_store: OpenStore) -> None:
    store = open_store()

    def batch(expected: bytes | None, value: bytes) -> Batch:
        made = Batch()
        made.require(PLAIN, b"k", expected)
        made.put(PLAIN, b"k", value)
        made.append(LOG, lambda number: value + str(number).encode())
        return made

    def failing(_: CommitResult) -> None:
        raise ZeroDivisionError

    broken = batch(b"1", b"broken")
    broken.before_commit.append(failing)
    wrong = Batch()
    wrong.put(PLAIN, b"", b"a key must not be empty")
    results = store.commit_many([batch(None, b"1"), batch(None, b"late"), broken, wrong, batch(b"1", b"2")])
    assert results[0] == CommitResult((1,))
    assert isinstance(results[1], PreconditionError)
    assert isinstance(results[2], ZeroDivisionError)
    assert isinstance(results[3], ValueError)
    assert results[4] == CommitResult((2,))
    assert _all(store, PLAIN) == [(b"k", b"2")]
    assert [value for _, value in _all(store, LOG)] == [b"11", b"22"]
    assert store.commit_many([]) == []
    store.close()


def what_is_raised_before_the_commit_aborts_it(open_store: OpenStore) -> None:
    store = open_store()
    seen: list[object] = []

    def refuse(result: object) -> None:
        seen.append(result)
        raise ZeroDivisionError

    batch = Batch()
    batch.put(PLAIN, b"a", b"1")
    batch.append(LOG, lambda _: b"entry")
    with _raises(ZeroDivisionError):
        store.commit_many([batch, batch], before_commit=refuse)
    assert seen == [[CommitResult((1,)), CommitResult((2,))]]
    batch.before_commit.append(refuse)
    with _raises(ZeroDivisionError):
        store.commit(batch)
    assert seen[1:] == [CommitResult((1,))]
    never = Batch()
    never.require(PLAIN, b"a", b"not so")
    assert isinstance(store.commit_many([never], before_commit=refuse)[0], PreconditionError)
    assert len(seen) == 2  # nothing to commit, nothing to be told about
    assert _all(store, PLAIN) == []
    assert _all(store, LOG) == []
    bad = Batch()
    bad.put(PLAIN, b"a", b"1")
    bad.append(LOG, lambda _: 1 // 0)  # type: ignore[arg-type,return-value]
    with _raises(ZeroDivisionError):
        store.commit(bad)
    assert _all(store, PLAIN) == []
    store.close()


def logs_are_dense_from_one(open_store: OpenStore) -> None:
    store = open_store()
    with store.snapshot() as view:
        assert view.last(LOG) == 0
    batch = Batch()
    for _ in range(3):
        batch.append(LOG, lambda number: b"entry %d" % number)
    assert store.commit(batch) == CommitResult((1, 2, 3))
    assert store.commit(batch) == CommitResult((4, 5, 6))
    with store.snapshot() as view:
        assert view.last(LOG) == 6
        assert view.get(LOG, (5).to_bytes(8, "big")) == b"entry 5"
        tail = view.scan(LOG, after=(4).to_bytes(8, "big"))
        assert list(tail) == [((n).to_bytes(8, "big"), b"entry %d" % n) for n in (5, 6)]
    store.close()


def postings_are_sorted_sets(open_store: OpenStore) -> None:
    store = open_store()
    batch = Batch()
    for number in (5, 1, 3, 3, 2**31):
        batch.add(POSTINGS, b"k", number.to_bytes(4, "big"))
    batch.add(POSTINGS, b"l", bytes(4))
    store.commit(batch)
    store.commit(batch)
    with store.snapshot() as view:
        found = view.postings(POSTINGS, b"k")
        assert [int.from_bytes(value, "big") for value in found] == [1, 3, 5, 2**31]
        assert view.count(POSTINGS, b"k") == 4
        assert view.count(POSTINGS, b"none") == 0
        assert view.postings(POSTINGS, b"none") == []
        assert view.postings(POSTINGS, b"k", after=found[0], limit=2) == found[1:3]
        assert view.postings(POSTINGS, b"k", after=b"\x00\x00\x00\x02") == found[1:]
        assert view.postings(POSTINGS, b"k", after=found[-1]) == []
        assert view.postings(POSTINGS, b"k", after=b"\xff" * 4) == []
        assert view.postings(POSTINGS, b"k", limit=0) == []
    batch = Batch()
    batch.remove(POSTINGS, b"k", (3).to_bytes(4, "big"))
    batch.remove(POSTINGS, b"k", (9).to_bytes(4, "big"))
    batch.remove(POSTINGS, b"none", (9).to_bytes(4, "big"))
    batch.delete(POSTINGS, b"l")
    store.commit(batch)
    with store.snapshot() as view:
        assert view.count(POSTINGS, b"k") == 3
        assert view.postings(POSTINGS, b"l") == []
    store.close()


def intersections_are_those_of_sets(open_store: OpenStore) -> None:
    store = open_store()
    choose = random.Random(1)  # noqa: S311
    sets = {
        b"k%d" % number: {choose.randrange(size) for _ in range(count)}
        for number, (size, count) in enumerate([(300, 200), (300, 100), (1000, 20), (300, 5), (2000, 1000)])
    }
    batch = Batch()
    for key, values in sets.items():
        for value in values:
            batch.add(POSTINGS, key, value.to_bytes(4, "big"))
    store.commit(batch)
    names = [*sets, b"none"]
    with store.snapshot() as view:
        with _raises(ValueError):
            view.intersect(POSTINGS, [])
        for _ in range(400):
            keys = [choose.choice(names) for _ in range(choose.randint(1, 4))]
            after = choose.choice([None, None, choose.randrange(400)])
            limit = choose.choice([None, 0, 1, 7])
            common = sorted(set.intersection(*(sets.get(key, set()) for key in keys)))
            expected = [value for value in common if after is None or value > after][:limit]
            packed = None if after is None else after.to_bytes(4, "big")
            found = view.intersect(POSTINGS, keys, after=packed, limit=limit)
            assert [int.from_bytes(value, "big") for value in found] == expected, (keys, after, limit)
    store.close()


def mistakes_are_refused(open_store: OpenStore) -> None:
    store = open_store()
    stranger = Table("stranger")
    wrong: list[Callable[[Batch], None]] = [
        lambda batch: batch.put(PLAIN, b"", b""),
        lambda batch: batch.put(PLAIN, b"k" * 512, b""),
        lambda batch: batch.delete(PLAIN, b""),
        lambda batch: batch.require(PLAIN, b"", None),
        lambda batch: batch.put(stranger, b"k", b""),
        lambda batch: batch.put(Table("plain", TableKind.LOG), b"k", b""),
        lambda batch: batch.put(LOG, b"k", b""),
        lambda batch: batch.put(POSTINGS, b"k", b"1234"),
        lambda batch: batch.add(POSTINGS, b"k", b"123"),
        lambda batch: batch.remove(POSTINGS, b"k", b"12345"),
        lambda batch: batch.add(PLAIN, b"k", b"1234"),
        lambda batch: batch.append(PLAIN, lambda _: b""),
    ]
    for spoil in wrong:
        batch = Batch()
        batch.put(PLAIN, b"fine", b"")
        spoil(batch)
        with _raises(ValueError):
            store.commit(batch)
    assert _all(store, PLAIN) == []
    batch = Batch()
    batch.put(PLAIN, b"k" * 511, b"longest key")
    store.commit(batch)
    with store.snapshot() as view:
        assert view.get(PLAIN, b"k" * 511) == b"longest key"
        with _raises(ValueError):
            view.get(POSTINGS, b"k")
        with _raises(ValueError):
            view.count(PLAIN, b"k")
        with _raises(ValueError):
            view.last(PLAIN)
        with _raises(ValueError):
            view.get(stranger, b"k")
    store.close()


def threads_increment_without_loss(open_store: OpenStore) -> None:
    store = open_store()
    problems: list[BaseException] = []
    per_thread = 25

    def increment() -> None:
        try:
            for _ in range(per_thread):
                increment_once(store)
        except BaseException as error:  # noqa: BLE001 - handed to the checking thread
            problems.append(error)

    _run_all([increment] * 4)
    assert not problems, problems
    check_increments(store, 4 * per_thread)
    store.close()


def increment_once(store: KeyValueStore, key: bytes = b"counter") -> None:
    """Add one to a counter, with a log entry, however many others do so at once."""
    while True:
        with store.snapshot() as view:
            found = view.get(PLAIN, key)
        number = int(found or b"0") + 1
        batch = Batch()
        batch.require(PLAIN, key, found)
        batch.put(PLAIN, key, b"%d" % number)
        batch.append(LOG, lambda sequence, number=number: b"%d %d" % (number, sequence))  # type: ignore[misc]
        try:
            store.commit(batch)
        except PreconditionError:
            continue
        return


def check_increments(store: KeyValueStore, total: int, key: bytes = b"counter") -> None:
    """After ``total`` calls of :func:`increment_once`, from wherever: all counted, the log in order."""
    with store.snapshot() as view:
        assert view.get(PLAIN, key) == b"%d" % total
        assert view.last(LOG) == total
        entries = list(view.scan(LOG))
    assert entries == [(n.to_bytes(8, "big"), b"%d %d" % (n, n)) for n in range(1, total + 1)]


KEY_VALUE_CHECKS: tuple[Callable[[OpenStore], None], ...] = (
    what_is_committed_is_read,
    a_delete_and_a_put_of_one_key_leave_the_put,
    a_snapshot_does_not_move,
    scans_are_ordered_bounded_and_resumable,
    preconditions_hold_or_nothing_happens,
    batches_of_one_commit_see_each_other_and_fail_alone,
    what_is_raised_before_the_commit_aborts_it,
    logs_are_dense_from_one,
    postings_are_sorted_sets,
    intersections_are_those_of_sets,
    mistakes_are_refused,
    threads_increment_without_loss,
)


def _run_all(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
