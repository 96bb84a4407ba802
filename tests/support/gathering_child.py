"""A process that gathers every series anew, over and over, and compacts what that leaves, until it is killed.

``python gathering_child.py DIRECTORY KEY``; a line for each step that it is about to do.
"""

from __future__ import annotations

import os
import sys
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hounsfield.archive.index.gathering import Gatherer, GatherLimits
from hounsfield.archive.index.packs import packs_of
from hounsfield.archive.index.rewriting import RewriteLimits, Rewriter
from hounsfield.archive.index.tables import SERIES
from hounsfield.archive.index.use import uses
from hounsfield.codecs.at_rest import Encoding
from support.archives import open_stores

LIMITS = RewriteLimits(group_bytes=4096, group_records=2)


def main(directory: str, key: str) -> None:
    stores = open_stores(Path(directory), key)
    stores.catch_up(at_start=True)
    gatherer, rewriter = (
        Gatherer(stores.indexer, GatherLimits(4096, 2, 9000)),
        Rewriter(stores.indexer, LIMITS),
    )
    commit = stores.store.commit

    def say(what: str) -> None:
        os.write(1, what.encode() + b"\n")

    def committed(batch):  # type: ignore[no-untyped-def]
        say("commit")
        return commit(batch)

    stores.store.commit = committed
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


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
