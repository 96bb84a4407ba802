"""A process that rewrites segments, one after the other and over and over, until it is killed.

``python compaction_child.py DIRECTORY KEY``; a line for each step that it is about to do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hounsfield.archive.index.rewriting import RewriteLimits, Rewriter
from support.archives import open_stores


def main(directory: str, key: str) -> None:
    stores = open_stores(Path(directory), key)
    stores.catch_up(at_start=True)
    rewriter = Rewriter(stores.indexer, RewriteLimits(group_bytes=4096, group_records=2))
    commit = stores.store.commit

    def say(what: str) -> None:
        os.write(1, what.encode() + b"\n")

    def committed(batch):  # type: ignore[no-untyped-def]
        say("commit")
        return commit(batch)

    stores.store.commit = committed
    for _ in range(1000):
        for segment in stores.log.segment_ids():
            rewriter.rewrite_segment(segment, pace=lambda _: say("copy"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
