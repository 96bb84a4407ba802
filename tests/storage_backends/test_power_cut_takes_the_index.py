"""A power cut keeps any subset of what was not flushed: the index must be what it was at a checkpoint."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hounsfield.storage_backends import lmdb_checkpoints
from hounsfield.storage_backends.api import Batch, Table, TableKind
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore

PLAIN = Table("plain")
POSTINGS = Table("postings", TableKind.POSTINGS, 8)
LOG = Table("log", TableKind.LOG)
TABLES = (PLAIN, POSTINGS, LOG)
PAGE = 4096
LIMITS = LmdbLimits(reserve_bytes=0, map_bytes=1 << 30, checkpoint_seconds=3600)  # only when a test asks
State = tuple[tuple[bytes, bytes], ...]


def opened(path: Path) -> LmdbStore:
    return LmdbStore(path, TABLES, limits=LIMITS)


def change(store: LmdbStore, chance: random.Random) -> None:
    batch = Batch()
    for _ in range(chance.randrange(1, 20)):
        key = b"k%d" % chance.randrange(400)
        if chance.random() < 0.3:
            batch.delete(PLAIN, key)
        else:
            batch.put(PLAIN, key, chance.randbytes(chance.choice([10, 200, 3000, 9000])))
        batch.add(POSTINGS, b"p%d" % chance.randrange(5), chance.randbytes(8))
    batch.append(LOG, lambda number: b"%d" % number)
    store.commit(batch)


def state(store: LmdbStore) -> State:
    with store.snapshot() as view:
        found = [*view.scan(PLAIN), *view.scan(LOG)]
        for number in range(5):
            found += [(b"p%d" % number, value) for value in view.postings(POSTINGS, b"p%d" % number)]
    return tuple(found)


def digest(store: LmdbStore) -> str:
    return hashlib.sha256(repr(state(store)).encode()).hexdigest()


class Disk:
    """What is surely on disk of a store's files: what a flush found there."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.durable: dict[str, bytes] = {}
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(lmdb_checkpoints.os, name, self._flushing(getattr(os, name)))

    def _flushing(self, call):
        def flush(descriptor: int) -> None:
            name = Path(f"/proc/self/fd/{descriptor}").readlink()
            if name.parent == self.path:
                self.durable[name.name] = name.read_bytes()  # before the call: later writes may be missing
            call(descriptor)

        return flush

    def after_a_power_cut(self, into: Path, chance: random.Random, kept: float) -> Path:
        """A copy in which each page that was written since the last flush is there or not."""
        into.mkdir()
        for file in sorted(self.path.iterdir()):
            if file.name in {"lock.mdb", "open.lock"}:
                continue
            now, safe = file.read_bytes(), self.durable.get(file.name, b"")
            length = chance.choice([len(now), max(len(safe), chance.randrange(len(now) + 1))])
            data = bytearray(length)
            for start in range(0, length, PAGE):
                source = now if chance.random() < kept or start >= len(now) else safe
                piece = source[start : start + PAGE][: length - start]
                data[start : start + len(piece)] = piece
            (into / file.name).write_bytes(data)
        return into


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_any_pages_may_be_lost_behind_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: float
) -> None:
    chance = random.Random(f"pages {kept}")
    disk = Disk(tmp_path / "index", monkeypatch)
    store = opened(disk.path)
    put_back = 0
    for cut in range(12):
        for _ in range(chance.randrange(30)):
            change(store, chance)
        store.sync()
        expected = state(store)
        for _ in range(chance.randrange(1, 60)):
            change(store, chance)
        copy = disk.after_a_power_cut(tmp_path / f"cut{cut}", chance, kept)
        again = opened(copy)
        put_back += again.restored
        assert state(again) == expected
        change(again, chance)  # and it goes on from there
        after = state(again)
        again.close()
        again = opened(copy)
        assert not again.restored
        assert state(again) == after
        again.close()
        shutil.rmtree(copy)
    assert put_back or kept < 0.5  # where a meta page that came later was kept
    store.close()


def test_a_cut_while_a_checkpoint_is_taken_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random("during")
    disk = Disk(tmp_path / "index", monkeypatch)
    store = opened(disk.path)
    for round_number in range(10):
        before = state(store)
        for _ in range(25):
            change(store, chance)
        now = state(store)
        checkpoint, safe = store._checkpoints, dict(disk.durable)
        assert checkpoint is not None
        store.sync()
        newer = dict(disk.durable)
        slot = next(name for name in newer if name.startswith("checkpoint-"))
        # The data file flushed, the slot file not, or torn anywhere.
        torn = bytearray(safe[slot])
        new = newer[slot]
        size = chance.randrange(PAGE)
        turn = 0 if new[:PAGE] != safe[slot][:PAGE] else PAGE
        current = (disk.path / slot).read_bytes()
        torn[turn : turn + size] = current[turn : turn + size]
        copy = disk.after_a_power_cut(tmp_path / f"cut{round_number}", chance, 0.5)
        (copy / slot).write_bytes(torn)
        again = opened(copy)
        assert state(again) in ({before} if size < 240 else {before, now}), size
        again.close()
        shutil.rmtree(copy)
    store.close()


def test_while_the_machine_stays_up_nothing_is_put_back(tmp_path: Path) -> None:
    script = (
        "import os, random, sys\n"
        "from pathlib import Path\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "import test_power_cut_takes_the_index as t\n"
        "store = t.opened(Path(sys.argv[1])); store.sync()\n"
        "[t.change(store, random.Random(n)) for n in range(50)]\n"
        "print(t.digest(store), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "index"), str(Path(__file__).parent), *sys.path],
        stdout=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -9
    store = opened(tmp_path / "index")
    assert not store.restored
    assert digest(store) == done.stdout.strip()
    store.close()


def test_the_newest_checkpoint_holds_whoever_took_it_and_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random("two")
    disk = Disk(tmp_path / "index", monkeypatch)
    ours = opened(disk.path)
    change(ours, chance)
    theirs = LmdbStoreOfAnother(ours)
    theirs.checkpoints.take()  # newer than ours, and its process dies: its reader is cleared
    expected = state(ours)
    theirs.die()
    assert ours._checkpoints is not None
    for _ in range(200):
        change(ours, chance)
    copy = disk.after_a_power_cut(tmp_path / "cut", chance, 0.5)
    again = opened(copy)
    assert state(again) == expected
    again.close()
    ours.close()


class LmdbStoreOfAnother:
    """Another process's checkpoints, as far as the files can tell."""

    def __init__(self, store: LmdbStore) -> None:
        self.checkpoints = lmdb_checkpoints.Checkpoints(
            store._environment, store._path, interval_seconds=3600
        )

    def die(self) -> None:
        self.checkpoints._pin.abort()
        os.close(self.checkpoints._slot)


def test_after_a_failed_flush_nothing_is_committed_until_all_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random("failed")
    store = opened(tmp_path / "index")
    for _ in range(20):
        change(store, chance)
    before = state(store)

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(lmdb_checkpoints.os, "fdatasync", broken)
        for call in (store.sync, lambda: change(store, chance), lambda: change(store, chance)):
            with pytest.raises(StorageError, match="could not be flushed"):
                call()
        assert state(store) == before  # reading goes on
    written: list[tuple[int, int]] = []
    pwrite = os.pwrite

    def watched(descriptor: int, data: bytes, offset: int) -> int:
        if descriptor == store._checkpoints._data:
            written.append((offset, len(data)))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(lmdb_checkpoints.os, "pwrite", watched)
    change(store, chance)
    assert sum(length for _, length in written) >= 20 * PAGE  # what the kernel gave up is written once more
    count = len(written)
    change(store, chance)
    assert len(written) == count
    after = state(store)
    store.close()
    store = opened(tmp_path / "index")
    assert state(store) == after
    store.close()


def test_a_start_after_a_failed_flush_trusts_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random("distrust")
    store = opened(tmp_path / "index")
    change(store, chance)
    store.sync()
    safe = state(store)
    change(store, chance)

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(lmdb_checkpoints.os, "fdatasync", broken)
        with pytest.raises(StorageError):
            store.sync()
        store.close()
    store = opened(tmp_path / "index")
    assert store.restored
    assert state(store) == safe
    store.close()


def test_an_idle_process_keeps_no_pages_from_the_others(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "index", TABLES, limits=LmdbLimits(reserve_bytes=0, checkpoint_seconds=0.01))
    change(store, random.Random(1))
    checkpoints = store._checkpoints
    assert checkpoints is not None
    for _ in range(500):
        if checkpoints._pin is None:
            break
        checkpoints._thread.join(0.01)  # type: ignore[union-attr]
    assert checkpoints._pin is None
    assert checkpoints._taken == store.statistics()["last_transaction"]
    change(store, random.Random(2))
    assert checkpoints._taken  # took one before it committed
    store.close()


def test_checkpoints_of_a_file_that_is_gone_are_not_put_into_its_successor(tmp_path: Path) -> None:
    """``data.mdb`` was removed, or lost, and what other processes knew of it stayed beside it."""
    chance = random.Random(1)
    store = opened(tmp_path / "index")
    for _ in range(40):
        change(store, chance)
    store.close()
    shutil.copy(tmp_path / "index" / "checkpoint-0000", tmp_path / "index" / "checkpoint-0001")
    (tmp_path / "index" / "data.mdb").rename(tmp_path / "aside")  # its inode is not used again
    store = opened(tmp_path / "index")
    change(store, chance)
    before = digest(store)
    store.close()
    assert not lmdb_checkpoints.recover(tmp_path / "index")
    store = opened(tmp_path / "index")
    assert digest(store) == before
    store.close()


def test_checkpoints_are_not_put_into_an_older_file(tmp_path: Path) -> None:
    """As who puts the ``data.mdb`` of a backup in the place of the one that is there."""
    chance = random.Random(2)
    store = opened(tmp_path / "index")
    for _ in range(5):
        change(store, chance)
    store.copy_to(tmp_path / "copy")
    before = digest(store)
    for _ in range(40):
        change(store, chance)
    store.close()
    (tmp_path / "copy" / "data.mdb").replace(tmp_path / "index" / "data.mdb")
    assert not lmdb_checkpoints.recover(tmp_path / "index")
    store = opened(tmp_path / "index")
    assert digest(store) == before
    store.close()
