"""What only LMDB can get wrong: processes, dead readers, full disks, maps, network file systems."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import kv_processes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.storage_backends import file_systems, lmdb_store
from hounsfield.storage_backends.api import Batch, CommitResult, KeyValueStore, Table
from hounsfield.storage_backends.errors import NetworkFileSystemError, StorageError, StoreFullError
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore
from hounsfield.storage_backends.memory_store import MemoryStore
from hounsfield.storage_backends.testing import (
    CONFORMANCE_TABLES,
    LOG,
    OTHER,
    PLAIN,
    POSTINGS,
    check_increments,
    increment_once,
)

NO_RESERVE = LmdbLimits(reserve_bytes=0)


def opened(path: Path, limits: LmdbLimits = NO_RESERVE) -> LmdbStore:
    return LmdbStore(path / "index", CONFORMANCE_TABLES, limits=limits)


def put(key: bytes, value: bytes) -> Batch:
    batch = Batch()
    batch.put(PLAIN, key, value)
    return batch


# ---------------------------------------------------------------- processes


def started(path: Path, job: str) -> subprocess.Popen[str]:
    command = [sys.executable, kv_processes.__file__, str(path / "index"), job]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_sync_and_close_take_a_checkpoint_of_everything(tmp_path: Path) -> None:
    store = opened(tmp_path)
    environment, checkpoints = store._environment, store._checkpoints
    assert environment.flags()["sync"] is False
    assert checkpoints is not None
    for end in (store.sync, store.close):
        store.commit(put(b"k", end.__name__.encode()))
        last = environment.info()["last_txnid"]
        end()
        assert checkpoints._taken == last
    store.close()  # a second time does no harm


def test_processes_increment_without_loss(tmp_path: Path) -> None:
    store = opened(tmp_path)
    running = [started(tmp_path, "increment") for _ in range(3)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for _ in range(kv_processes.INCREMENTS):
        increment_once(store)
    for process in running:
        process.communicate()
        assert process.returncode == 0
    check_increments(store, 4 * kv_processes.INCREMENTS)


def test_the_reader_of_a_dead_process_is_cleared(tmp_path: Path) -> None:
    store = opened(tmp_path)
    process = started(tmp_path, "die in a snapshot")
    process.communicate("go\n")
    assert process.returncode == -9
    cleared = store.check_readers()  # its snapshot, and its checkpoint while it had one
    assert cleared in {1, 2}
    assert store.check_readers() == 0
    assert store.statistics()["stale_readers_cleared"] == cleared


def test_dead_readers_are_looked_for_at_open_and_every_so_often(tmp_path: Path) -> None:
    living = started(tmp_path, "increment")  # alone, LMDB itself would start with an empty reader table
    started(tmp_path, "die in a snapshot").communicate("go\n")
    store = opened(tmp_path, LmdbLimits(reserve_bytes=0, reader_check_commits=3))
    cleared = store.statistics()["stale_readers_cleared"]
    assert cleared in {1, 2}
    started(tmp_path, "die in a snapshot").communicate("go\n")
    for number in range(3):
        store.commit(put(b"k", b"%d" % number))
    assert store.statistics()["stale_readers_cleared"] > cleared
    living.communicate("go\n")


def test_a_process_that_dies_in_a_commit_leaves_nothing_and_blocks_nobody(tmp_path: Path) -> None:
    store = opened(tmp_path)
    process = started(tmp_path, "die in a commit")
    process.communicate("go\n")
    assert process.returncode == -9
    with store.snapshot() as view:
        assert view.get(PLAIN, b"a") is None
        assert view.last(LOG) == 0
    batch = put(b"a", b"mine")
    batch.append(LOG, lambda number: b"%d" % number)
    assert store.commit(batch) == CommitResult((1,))


def test_what_was_committed_outlives_its_process(tmp_path: Path) -> None:
    started(tmp_path, "die after a commit").communicate("go\n")
    with opened(tmp_path).snapshot() as view:
        assert view.get(PLAIN, b"a") == b"durable"


# ---------------------------------------------------------------- readers


def test_a_snapshot_held_too_long_is_counted_and_in_tests_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(lmdb_store.time, "monotonic", lambda: clock[0])
    store = opened(tmp_path)
    with store.snapshot():
        clock[0] += 0.9
    assert store.statistics()["snapshots_held_too_long"] == 0
    with store.snapshot():
        clock[0] += 1.1
    found = store.statistics()
    assert found["snapshots_held_too_long"] == 1
    assert found["snapshot_held_us_max"] == pytest.approx(1_100_000, abs=2)
    store.close()
    strict = LmdbStore(tmp_path / "index", CONFORMANCE_TABLES, limits=NO_RESERVE, strict=True)
    with pytest.raises(AssertionError, match="held"), strict.snapshot():
        clock[0] += 1.1


def test_short_snapshots_do_not_make_the_file_grow(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for round_number in range(60):
        with store.snapshot() as view:
            view.get(PLAIN, b"k1")
        batch = Batch()
        for number in range(100):
            batch.put(PLAIN, b"k%d" % number, bytes([round_number]) * 200)
        store.commit(batch)
        if round_number % 10 == 9:
            store.sync()  # pages that only an older checkpoint had are free from here on
    assert store.statistics()["file_bytes"] < 1 << 20


# ---------------------------------------------------------------- space


def test_puts_stop_at_the_disk_reserve_and_deletes_go_on(tmp_path: Path) -> None:
    store = opened(tmp_path)
    batch = put(b"a", b"1")
    batch.add(POSTINGS, b"p", b"0001")
    store.commit(batch)
    store.close()
    store = opened(tmp_path, LmdbLimits(reserve_bytes=1 << 62))
    refused = [put(b"b", b"1"), Batch(), Batch()]
    refused[1].add(POSTINGS, b"p", b"0002")
    refused[2].append(LOG, lambda _: b"entry")
    for batch in refused:
        with pytest.raises(StoreFullError, match="free some space"):
            store.commit(batch)
    deleting = Batch()
    deleting.require(PLAIN, b"a", b"1")
    deleting.delete(PLAIN, b"a")
    deleting.remove(POSTINGS, b"p", b"0001")
    tombstone = put(b"tombstone", b"a")
    tombstone.append(LOG, lambda _: b"deleted")
    tombstone.uses_reserve = True
    results = store.commit_many([refused[0], deleting, tombstone])
    assert isinstance(results[0], StoreFullError)
    assert results[1:] == [CommitResult(()), CommitResult((1,))]
    with store.snapshot() as view:
        assert list(view.scan(PLAIN)) == [(b"tombstone", b"a")]
        assert view.count(POSTINGS, b"p") == 0


def test_puts_stop_at_the_map_reserve_and_deleting_makes_room_again(tmp_path: Path) -> None:
    limits = LmdbLimits(map_bytes=4 << 20, reserve_bytes=1 << 20)
    store = LmdbStore(tmp_path / "index", [PLAIN], limits=limits)
    value = bytes(3000)
    stored = 0
    while stored < 10_000:
        batch = Batch()
        for number in range(stored, stored + 20):
            batch.put(PLAIN, b"%08d" % number, value)
        try:
            store.commit(batch)
        except StoreFullError:
            break
        stored += 20
    assert 500 < stored < 1400
    with store.snapshot() as view:
        assert view.get(PLAIN, b"%08d" % (stored - 1)) == value
    for first in range(0, stored, 100):  # every delete works, in full map
        batch = Batch()
        for number in range(first, first + 100):
            batch.delete(PLAIN, b"%08d" % number)
        store.commit(batch)
    store.commit(put(b"again", value))
    with store.snapshot() as view:
        assert [key for key, _ in view.scan(PLAIN)] == [b"again"]


def test_one_batch_too_large_for_the_map_fails_alone(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "index", [PLAIN], limits=LmdbLimits(map_bytes=1 << 20, reserve_bytes=0))
    large = Batch()
    for number in range(500):
        large.put(PLAIN, b"%d" % number, bytes(3000))
    results = store.commit_many([put(b"a", b"1"), large, put(b"b", b"1")])
    assert isinstance(results[1], StoreFullError)
    assert results[0] == results[2] == CommitResult(())
    with store.snapshot() as view:
        assert [key for key, _ in view.scan(PLAIN)] == [b"a", b"b"]


def test_a_disk_that_fills_up_during_a_commit_changes_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(put(b"a", b"1"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "index" / "data.mdb").stat().st_size
    large = Batch()
    for number in range(200):
        large.put(PLAIN, b"%d" % number, bytes(3000))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        with pytest.raises(StoreFullError, match="nothing was written"):
            store.commit(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with store.snapshot() as view:
        assert list(view.scan(PLAIN)) == [(b"a", b"1")]
    store.commit(large)
    with store.snapshot() as view:
        assert len(list(view.scan(PLAIN))) == 201


def test_the_map_takes_no_disk(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.statistics()["map_bytes"] == 1 << 40
    assert (tmp_path / "index" / "data.mdb").stat().st_size < 1 << 20


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert stat.S_IMODE((tmp_path / "index").stat().st_mode) == 0o700
    for name in ("data.mdb", "lock.mdb"):
        assert stat.S_IMODE((tmp_path / "index" / name).stat().st_mode) == 0o600
    store.close()


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize("magic", [0x6969, 0xFF534D42, 0xFE534D42, 0x65735546, 0x01021997])
def test_network_file_systems_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magic: int
) -> None:
    monkeypatch.setattr(file_systems, "file_system_type", lambda _: magic)
    with pytest.raises(NetworkFileSystemError, match=file_systems.NETWORK_FILE_SYSTEMS[magic]):
        opened(tmp_path)
    assert not (tmp_path / "index" / "data.mdb").exists()


def test_the_file_system_is_asked_for(tmp_path: Path) -> None:
    assert file_systems.file_system_type(Path("/proc")) == 0x9FA0
    assert file_systems.file_system_type(tmp_path) is not None
    assert file_systems.file_system_type(tmp_path / "nowhere") is None


def test_what_is_no_index_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "data.mdb").write_bytes(os.urandom(8192))
    with pytest.raises(StorageError, match="cannot open the index"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "tables",
    [
        [Table("a"), Table("a")],
        [Table("")],
        [Table("a", value_bytes=4)],
        [Table("a", POSTINGS.kind, 0)],
        [Table("a", POSTINGS.kind, 512)],
    ],
)
def test_tables_that_make_no_sense(tmp_path: Path, tables: list[Table]) -> None:
    for opening in (lambda: LmdbStore(tmp_path / "index", tables), lambda: MemoryStore(tables)):
        with pytest.raises(ValueError, match="table"):
            opening()


def test_a_table_added_later(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "index", [PLAIN], limits=NO_RESERVE)
    store.commit(put(b"a", b"1"))
    store.close()
    store = opened(tmp_path)
    with store.snapshot() as view:
        assert view.get(PLAIN, b"a") == b"1"
        assert view.get(OTHER, b"a") is None


# ---------------------------------------------------------------- against the plain one

KEYS = st.sampled_from([b"a", b"ab", b"b", b"\xff", b"c" * 511])
VALUES = st.sampled_from([b"", b"1", b"2" * 2500])
POSTED = st.integers(0, 12).map(lambda number: number.to_bytes(4, "big"))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    batch = Batch()
    if draw(st.integers(0, 3)) == 0:
        batch.require(PLAIN, draw(KEYS), draw(st.none() | VALUES))
    for _ in range(draw(st.integers(0, 3))):
        batch.put(draw(st.sampled_from([PLAIN, OTHER])), draw(KEYS), draw(VALUES))
    for _ in range(draw(st.integers(0, 2))):
        batch.delete(draw(st.sampled_from([PLAIN, OTHER, POSTINGS])), draw(KEYS))
    for _ in range(draw(st.integers(0, 8))):
        batch.add(POSTINGS, draw(KEYS), draw(POSTED))
    for _ in range(draw(st.integers(0, 3))):
        batch.remove(POSTINGS, draw(KEYS), draw(POSTED))
    for _ in range(draw(st.integers(0, 2))):
        batch.append(LOG, lambda number: b"entry %d" % number)
    if draw(st.integers(0, 9)) == 0:
        batch.before_commit.append(lambda _: 1 / 0)
    return batch


def everything(store: KeyValueStore) -> list[object]:
    keys = [b"a", b"ab", b"b", b"\xff", b"c" * 511]
    with store.snapshot() as view:
        found: list[object] = [list(view.scan(table)) for table in (PLAIN, OTHER, LOG)]
        found += [view.postings(POSTINGS, key) for key in keys]
        found += [view.intersect(POSTINGS, [a, b]) for a in keys for b in keys]
        found += [view.count(POSTINGS, key) for key in keys]
        found.append(view.last(LOG))
    return found


@settings(max_examples=60, deadline=None)
@given(rounds=st.lists(st.lists(batches(), min_size=1, max_size=4), min_size=1, max_size=5))
def test_random_commits_give_what_the_memory_store_gives(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[Batch]]
) -> None:
    lmdb = opened(tmp_path_factory.mktemp("store"))
    memory = MemoryStore(CONFORMANCE_TABLES)
    try:
        for group in rounds:
            answers = [store.commit_many(group) for store in (lmdb, memory)]
            shown = [[repr(item) for item in answer] for answer in answers]
            assert shown[0] == shown[1]
            assert everything(lmdb) == everything(memory)
    finally:
        lmdb.close()


@settings(max_examples=60, deadline=None)
@given(
    sets=st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=4),
    after=st.none() | st.integers(0, 41),
    limit=st.none() | st.integers(0, 5),
)
def test_intersections_against_sets(
    tmp_path_factory: pytest.TempPathFactory, sets: list[set[int]], after: int | None, limit: int | None
) -> None:
    store = opened(tmp_path_factory.mktemp("store"))
    try:
        batch = Batch()
        for number, values in enumerate(sets):
            for value in values:
                batch.add(POSTINGS, b"%d" % number, value.to_bytes(4, "big"))
        store.commit(batch)
        expected = [v for v in sorted(set.intersection(*sets)) if after is None or v > after][:limit]
        with store.snapshot() as view:
            found = view.intersect(
                POSTINGS,
                [b"%d" % number for number in range(len(sets))],
                after=None if after is None else after.to_bytes(4, "big"),
                limit=limit,
            )
        assert [int.from_bytes(value, "big") for value in found] == expected
    finally:
        store.close()


COPIES = """
import sys
from pathlib import Path
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore
from hounsfield.storage_backends.testing import CONFORMANCE_TABLES, POSTINGS

def entries(store):
    with store.snapshot() as view:
        return list(view.entries(POSTINGS))

store = LmdbStore(sys.argv[1], CONFORMANCE_TABLES, limits=LmdbLimits(reserve_bytes=0))
batch = Batch()
for number in range(5000):
    for key in (b"one", b"two", b"three%d" % (number % 40)):
        batch.add(POSTINGS, key, number.to_bytes(POSTINGS.value_bytes, "big"))
store.commit(batch)
store.copy_to(Path(sys.argv[2]))
copy = LmdbStore(sys.argv[2], CONFORMANCE_TABLES, limits=LmdbLimits(reserve_bytes=0))
assert entries(copy) == entries(store) and len(entries(copy)) == 15000
print("same")
"""


def test_a_copy_has_long_lists_of_postings(tmp_path: Path) -> None:
    """Of a hundred studies and more: in a process of its own, which LMDB's compacting copy ends."""
    command = [sys.executable, "-c", COPIES, str(tmp_path / "index"), str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr
