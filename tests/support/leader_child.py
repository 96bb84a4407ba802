"""A process that does a leader's work over and over until it is killed.

``python leader_child.py gather|compact DIRECTORY KEY``; a line for each step that it is about to do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.gathering import Gatherer, GatherLimits
from hounsfield.archive.index.packs import packs_of
from hounsfield.archive.index.rewriting import RewriteLimits, Rewriter
from hounsfield.archive.index.tables import SERIES
from hounsfield.archive.index.use import uses
from hounsfield.codecs.at_rest import Encoding
from support.archives import open_stores

LIMITS = RewriteLimits(group_bytes=4096, group_records=2)


def killed_after(steps: int, work: str, directory: Path) -> None:
    """Have another process do such work in an archive of :func:`~support.archives.stores_in`, and kill it."""
    child = subprocess.Popen(
        [sys.executable, __file__, work, str(directory), f"file:{directory}.key"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child.stdout:
        for _ in range(steps):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()


def say(what: str) -> None:
    os.write(1, what.encode() + b"\n")


def compact(stores: Stores) -> None:
    """Every segment is rewritten."""
    rewriter = Rewriter(stores.indexer, LIMITS)
    while True:
        for segment in stores.log.segment_ids():
            rewriter.rewrite_segment(segment, pace=lambda _: say("copy"))


def gather(stores: Stores) -> None:
    """Every series is gathered anew, and what that leaves is compacted."""
    gatherer, rewriter = (
        Gatherer(stores.indexer, GatherLimits(4096, 2, 9000)),
        Rewriter(stores.indexer, LIMITS),
    )
    for encoding in cycle([None, Encoding.ZSTD, Encoding.HTJ2K]):
        with stores.store.snapshot() as snapshot:
            series = [key for key, _ in snapshot.scan(SERIES)]
        for one in series:
            with stores.store.snapshot() as snapshot:
                known = {segment for segment, _ in packs_of(snapshot, one)}
            gatherer.gather(
                one, quiet_before_ns=1 << 62, recompress=encoding, renew=known, pace=lambda _: say("copy")
            )
        with stores.store.snapshot() as snapshot:
            todo = [segment for segment, _ in uses(snapshot)]
        for segment in todo:
            rewriter.rewrite_segment(segment, pace=lambda _: say("copy"))


def main(work: str, directory: str, key: str) -> None:
    stores = open_stores(Path(directory), key)
    stores.catch_up(at_start=True)
    commit = stores.store.commit

    def committed(batch):  # type: ignore[no-untyped-def]
        say("commit")
        return commit(batch)

    stores.store.commit = committed
    {"gather": gather, "compact": compact}[work](stores)


if __name__ == "__main__":
    main(*sys.argv[1:])
