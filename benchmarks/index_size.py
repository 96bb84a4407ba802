"""Bytes of index an instance and a study. Sizes: --size series=20, studies=2000

Two archives are filled through the engine with 32 KiB objects: one with long series (500 instances each), one
with a study for every object. From the pages that their tables take, the cost of an instance and that of a
study are solved for. The journal, which a site may keep short or long, stands beside.
"""

from __future__ import annotations

import sys
from typing import cast

from benchmarks import archives, bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.studies import Kind, studies
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.tables import JOURNAL
from hounsfield.storage_backends.lmdb_store import LmdbStore

PER_SERIES = 500


def table_bytes(store: LmdbStore) -> dict[str, int]:
    """Bytes of the pages of each table."""
    found = {}
    with store._environment.begin() as transaction:
        for name, handle in store._handles.items():
            stat = transaction.stat(db=handle)
            pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            found[name] = pages * stat["psize"]
    return found


def _filled(settings: Settings, series: int, per_series: int) -> tuple[int, dict[str, int]]:
    with archives.folder(settings.scratch) as place, archives.stores_in(place) as stores:
        objects = studies(
            Kind.SMALL,
            run=7,
            patients=max(1, series // 3),
            studies_per_patient=3,
            instances_per_series=per_series,
        )
        archives.fill(stores, objects)
        merge(stores)
        with stores.store.snapshot() as snapshot:
            events = snapshot.last(JOURNAL)
        return events, table_bytes(cast(LmdbStore, stores.store))


def merge(stores: Stores) -> None:
    """Have the n-grams of all studies in the index, as the background work leaves it."""
    stores.merger.merge_all()


def run(settings: Settings, say: Say) -> list[Figure]:
    """One round: sizes do not vary."""
    long = settings.size("series", 20, 3) // 3 * 3 or 3
    many = settings.size("studies", 2000, 300) // 3 * 3
    _, large = _filled(settings, long, PER_SERIES)
    say(f"{long} studies of {PER_SERIES}: {sum(large.values()):,} bytes")
    events, small = _filled(settings, many, 1)
    say(f"{many} studies of one: {sum(small.values()):,} bytes")

    def of(tables: dict[str, int]) -> int:
        return sum(size for name, size in tables.items() if name != JOURNAL.name)

    # of(large) = i·a + s·b with i = long·500, s = long; of(small) = many·(a + b)
    both = of(small) / many
    instance = (of(large) - long * both) / (long * PER_SERIES - long)
    detail = {"large": large, "small": small, "journal_events": events}
    name = "index-size"
    return [
        Figure(name, "index bytes an instance", [instance], "B", at_most=400, detail=detail),
        Figure(name, "index bytes a study", [both - instance], "B", at_most=6 * 1024),
        Figure(name, "journal bytes an instance, in series", [large["journal"] / (long * PER_SERIES)], "B"),
        Figure(name, "journal bytes a study of one instance", [small["journal"] / many], "B"),
    ]


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
