"""Reindexing: by the rows that records carry, and by reading every header again. Sizes: --size objects=20000

An archive of 32 KiB objects in series (so that the figure is the index's, not the disk's) is indexed anew
from its segments, each round into an empty index. Segments are in the page cache or not as they come.
"""

from __future__ import annotations

import shutil
import sys
import time

from benchmarks import archives, bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.studies import Kind, studies

PER_SERIES = 250


def run(settings: Settings, say: Say) -> list[Figure]:
    """One archive, ``rounds`` reindexes of either kind."""
    objects = settings.size("objects", 20_000, 1000)
    rates: dict[str, list[float]] = {"rows": [], "rescan": []}
    with archives.folder(settings.scratch) as place:
        with archives.stores_in(place) as stores:
            made = studies(
                Kind.SMALL,
                run=9,
                patients=max(1, objects // PER_SERIES // 4),
                studies_per_patient=2,
                series_per_study=2,
                instances_per_series=PER_SERIES,
            )
            stored = archives.fill(stores, made)
        for _ in range(settings.rounds):
            for way, found in rates.items():
                shutil.rmtree(place / "data" / "index")
                with archives.stores_in(place) as stores:
                    began = time.perf_counter()
                    report = stores.reindex(lambda *_: None, rescan=way == "rescan")
                    took = time.perf_counter() - began
                if report.records != stored or report.damaged:
                    raise RuntimeError(f"{report.records} of {stored} records were indexed")
                found.append(stored / took)
            say(f"by rows {rates['rows'][-1]:,.0f}/s, by rescan {rates['rescan'][-1]:,.0f}/s")
    detail = {"objects": stored}
    name = "reindex"
    return [
        Figure(name, "reindex by the rows that records carry", rates["rows"], "instances/s",
               at_least=10_000, detail=detail),
        Figure(name, "reindex by full rescan of headers", rates["rescan"], "instances/s", at_least=1_500),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
