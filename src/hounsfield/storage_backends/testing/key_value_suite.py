"""What every key-value store must do."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from hounsfield.storage_backends.api import Batch, CommitResult, KeyValueStore, Snapshot, Table, TableKind
from hounsfield.storage_backends.errors import PreconditionError
from hounsfield.storage_backends.testing.expectations import raises, run_all

__all__ = [
    "CONFORMANCE_TABLES",
    "KEY_VALUE_CHECKS",
    "LOG",
    "OTHER",
    "PLAIN",
    "POSTINGS",
    "check_increments",
    "increment_once",
]

OpenStore = Callable[[], KeyValueStore]

PLAIN = Table("plain")
OTHER = Table("other")
LOG = Table("log", TableKind.LOG)
POSTINGS = Table("postings", TableKind.POSTINGS, 4)
CONFORMANCE_TABLES = (PLAIN, OTHER, LOG, POSTINGS)
"""Open the key-value store under test with these."""


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
        run_all([lambda: done.append(store.commit(change))])
        assert done
        assert view.get(PLAIN, b"a") == b"1"
        assert [key for key, _ in view.scan(PLAIN)] == [b"a"]
        assert view.postings(POSTINGS, b"p") == []
        assert view.last(LOG) == 0
        with store.snapshot() as later:
            assert later.get(PLAIN, b"a") == b"2"
            assert later.last(LOG) == 1
    with raises(RuntimeError):
        view.get(PLAIN, b"a")
    with store.snapshot() as view:
        rest = view.scan(PLAIN)
        next(rest)
    with raises(RuntimeError):
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
        with raises(PreconditionError):
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


def what_is_planned_in_the_commit_sees_the_newest_state(open_store: OpenStore) -> None:
    """Nobody comes between what a plan reads and what it writes; what a plan raises changes nothing."""
    store = open_store()

    def increment(view: Snapshot) -> list[Batch]:
        held = view.get(PLAIN, b"n")
        batch = Batch()
        batch.require(PLAIN, b"n", held)
        batch.put(PLAIN, b"n", b"%d" % (int(held or b"0") + 1))
        return [batch]

    threads = [
        threading.Thread(target=lambda: [store.commit_planned(increment) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _all(store, PLAIN) == [(b"n", b"200")]

    def broken(_: Snapshot) -> list[Batch]:
        raise ZeroDivisionError

    with raises(ZeroDivisionError):
        store.commit_planned(broken)
    assert store.commit_planned(lambda _: []) == []
    assert _all(store, PLAIN) == [(b"n", b"200")]
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
    with raises(ZeroDivisionError):
        store.commit_many([batch, batch], before_commit=refuse)
    assert seen == [[CommitResult((1,)), CommitResult((2,))]]
    batch.before_commit.append(refuse)
    with raises(ZeroDivisionError):
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
    with raises(ZeroDivisionError):
        store.commit(bad)
    assert _all(store, PLAIN) == []
    store.close()


def several_beginnings_are_scanned_one_after_the_other(open_store: OpenStore) -> None:
    store = open_store()
    choose = random.Random(2)  # noqa: S311
    batch = Batch()
    for _ in range(200):
        batch.put(PLAIN, choose.randbytes(2).translate(bytes(range(4)) * 64) + choose.randbytes(2), b"value")
    store.commit(batch)
    with store.snapshot() as view:
        for _ in range(100):
            prefixes = [
                choose.randbytes(choose.randint(1, 3)).translate(bytes(range(4)) * 64)
                for _ in range(choose.randrange(5))
            ]
            expected = [entry for prefix in prefixes for entry in view.scan(PLAIN, prefix=prefix)]
            assert list(view.scan_each(PLAIN, iter(prefixes))) == expected
        assert list(view.scan_each(PLAIN, [b""])) == list(view.scan(PLAIN))
        assert list(view.scan_each(PLAIN, [b"none", b"\xff\xff"])) == []
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
        with raises(ValueError):
            view.intersect(POSTINGS, [])
        for _ in range(400):
            keys = [choose.choice(names) for _ in range(choose.randint(1, 4))]
            after = choose.choice([None, None, choose.randrange(400)])
            before = choose.choice([None, None, choose.randrange(400)])
            limit = choose.choice([None, 0, 1, 7])
            common = sorted(set.intersection(*(sets.get(key, set()) for key in keys)))
            expected = [
                value
                for value in common
                if (after is None or value > after) and (before is None or value < before)
            ][:limit]
            low, high = (None if bound is None else bound.to_bytes(4, "big") for bound in (after, before))
            found = view.intersect(POSTINGS, keys, after=low, before=high, limit=limit)
            assert [int.from_bytes(value, "big") for value in found] == expected, (keys, low, high, limit)
            if len(keys) == 1:
                assert view.postings(POSTINGS, keys[0], after=low, before=high, limit=limit) == found
    store.close()


def all_postings_are_listed_in_order(open_store: OpenStore) -> None:
    store = open_store()
    random_ = random.Random(20)  # noqa: S311 - test data
    pairs = {(b"key%d" % random_.randrange(9), random_.randbytes(4)) for _ in range(200)}
    batch = Batch()
    for key, value in pairs:
        batch.add(POSTINGS, key, value)
    store.commit(batch)
    expected = sorted(pairs)
    places = [*expected, (b"a", b"\0" * 4), (b"key3", b"\xff" * 4), (b"key3", b"\0" * 4), (b"z", b"\0" * 4)]
    with store.snapshot() as view:
        assert list(view.entries(POSTINGS)) == expected
        for after in places:
            later = [pair for pair in expected if pair > after]
            assert list(view.entries(POSTINGS, after=after)) == later
            assert list(view.entries(POSTINGS, after=after, limit=3)) == later[:3]
        with raises(ValueError):
            list(view.entries(PLAIN))


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
        with raises(ValueError):
            store.commit(batch)
    assert _all(store, PLAIN) == []
    batch = Batch()
    batch.put(PLAIN, b"k" * 511, b"longest key")
    store.commit(batch)
    with store.snapshot() as view:
        assert view.get(PLAIN, b"k" * 511) == b"longest key"
        with raises(ValueError):
            view.get(POSTINGS, b"k")
        with raises(ValueError):
            view.count(PLAIN, b"k")
        with raises(ValueError):
            view.last(PLAIN)
        with raises(ValueError):
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

    run_all([increment] * 4)
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
    what_is_planned_in_the_commit_sees_the_newest_state,
    what_is_raised_before_the_commit_aborts_it,
    several_beginnings_are_scanned_one_after_the_other,
    logs_are_dense_from_one,
    postings_are_sorted_sets,
    intersections_are_those_of_sets,
    all_postings_are_listed_in_order,
    mistakes_are_refused,
    threads_increment_without_loss,
)
