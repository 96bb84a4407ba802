"""A data file that was cut off must be said to be, not end the process with SIGBUS at the first look."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from hounsfield.storage_backends.api import Batch, Table
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore
from hounsfield.storage_backends.lmdb_whole import require_whole

PLAIN = Table("plain")
LIMITS = LmdbLimits(reserve_bytes=0, map_bytes=1 << 30)
PAGE = 4096


def filled(path: Path, seed: int = 1, commits: int = 60) -> None:
    chance = random.Random(seed)
    store = LmdbStore(path, [PLAIN], limits=LIMITS)
    for _ in range(commits):
        batch = Batch()
        for _ in range(chance.randrange(1, 40)):
            key = b"k%d" % chance.randrange(500)
            if chance.random() < 0.4:
                batch.delete(PLAIN, key)
            else:
                batch.put(PLAIN, key, chance.randbytes(chance.choice([10, 300, 5000, 20_000])))
        store.commit(batch)
        require_whole(path / "data.mdb")
    store.close()


@pytest.mark.parametrize("seed", range(4))
def test_what_the_store_wrote_is_whole(tmp_path: Path, seed: int) -> None:
    filled(tmp_path / "index", seed)
    require_whole(tmp_path / "index" / "data.mdb")


@pytest.mark.parametrize("keep", [0, 1, PAGE, 2 * PAGE, 3 * PAGE, 0.5, 0.9])
def test_what_is_cut_off_is_refused_by_a_process_that_lives(tmp_path: Path, keep: float) -> None:
    filled(tmp_path / "index")
    data = tmp_path / "index" / "data.mdb"
    size = int(keep * data.stat().st_size) if isinstance(keep, float) else keep
    with data.open("r+b") as file:
        file.truncate(size)
    code = """
import sys
from hounsfield.storage_backends.api import Table
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore
with LmdbStore(sys.argv[1], [Table("plain")], limits=LmdbLimits(map_bytes=1 << 30)).snapshot() as view:
    print(sum(len(value) for _, value in view.scan(Table("plain"))))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, data.parent], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1, run
    assert "StorageError" in run.stderr or "CutOffError" in run.stderr
    with pytest.raises(StorageError):
        LmdbStore(data.parent, [PLAIN], limits=LIMITS)


def test_a_file_whose_last_pages_are_free_is_whole(tmp_path: Path) -> None:
    """LMDB does not write pages that a transaction takes and gives back; they are beyond the end then."""
    path = tmp_path / "index"
    store = LmdbStore(path, [PLAIN], limits=LIMITS)
    for wide in (1, 200):
        batch = Batch()
        for number in range(wide):
            batch.put(PLAIN, b"k%d" % number, bytes(9000))
        store.commit(batch)
    for round_ in range(20):  # what stays is written to the first pages that are free
        batch = Batch()
        for number in range(200):
            batch.delete(PLAIN, b"k%d" % number)
        batch.put(PLAIN, b"other", b"%d" % round_)
        store.commit(batch)
        store.sync()
    store.close()
    data = path / "data.mdb"
    size = data.stat().st_size
    with data.open("r+b") as file:
        file.truncate(size - 3 * PAGE)
    require_whole(data)
    store = LmdbStore(path, [PLAIN], limits=LIMITS)
    with store.snapshot() as view:
        assert view.get(PLAIN, b"other") == b"19"
    store.close()
