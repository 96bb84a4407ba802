"""What the key-value tests run in processes of their own: ``python kv_processes.py PATH JOB``."""

from __future__ import annotations

import os
import signal
import sys

from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore
from hounsfield.storage_backends.testing import CONFORMANCE_TABLES, LOG, PLAIN, increment_once

INCREMENTS = 40


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(path: str, job: str) -> None:
    store = LmdbStore(path, CONFORMANCE_TABLES, limits=LmdbLimits(reserve_bytes=0))
    sys.stdout.write("open\n")
    sys.stdout.flush()
    sys.stdin.readline()
    if job == "increment":
        for _ in range(INCREMENTS):
            increment_once(store)
        store.close()
    elif job == "die in a snapshot":
        with store.snapshot() as view:
            view.get(PLAIN, b"a")
            die()
    elif job == "die in a commit":
        batch = Batch()
        batch.put(PLAIN, b"a", b"never")
        batch.append(LOG, lambda _: b"never")
        batch.before_commit.append(die)
        store.commit(batch)
    elif job == "die after a commit":
        batch = Batch()
        batch.put(PLAIN, b"a", b"durable")
        store.commit(batch)
        die()
    else:
        raise SystemExit(f"no such job: {job}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
