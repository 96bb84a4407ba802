"""Ingest, and start after a kill, with millions in the index. Sizes: --size studies=1000000, instances=10

The index is filled with made-up studies by its own functions, in bulk (`benchmarks.search_load`'s generator);
there are no objects behind them. Then a server on that archive and one on an empty archive take CT over
eight associations in turns, and the ratio of each pair is the figure. Last, the server is killed (SIGKILL,
all its processes) in the middle of such a load, and the time from its next start until it says that it serves
is taken; beside it stands the same for an empty archive that was closed in order.

    python -m benchmarks.index_load --folder DIR        keeps the filled archive, and uses it again
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from benchmarks import archives, bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.cstore_load import Load, run_load
from benchmarks.index_size import table_bytes
from benchmarks.peers.ours import Hounsfield
from benchmarks.processes import tree, wait_idle
from benchmarks.search_load import People, load
from hounsfield.storage_backends.lmdb_store import LmdbStore

ASSOCIATIONS = 8
WARM_UP_OBJECTS = 20
KILL_AFTER_SECONDS = 1.5


class OnArchive(Hounsfield):
    """A server on an archive that is there already and stays."""

    place: Path

    @property
    def _data(self) -> Path:
        return self.place / "data"


def server_on(place: Path, scratch: Path | None) -> OnArchive:
    """A server, to be entered, on the archive in ``place``."""
    key = f"keys.master_key=file:{place / 'master.key'}"
    quiet = "storage.metadata_quiet_seconds=86400"
    members = {"place": place, "arguments": ("--set", key, "--set", quiet)}
    return cast(OnArchive, type("OnThisArchive", (OnArchive,), members)(scratch=scratch))


def run(settings: Settings, say: Say) -> list[Figure]:
    """Fill, pairs of rounds, kills."""
    studies = settings.size("studies", 1_000_000, 3000)
    instances = settings.size("instances", 10, 10)
    figures: list[Figure] = []
    name = "large-index"
    with _filled(settings, studies, instances, say) as place, archives.folder(settings.scratch) as other:
        with archives.stores_in(place) as stores:
            tables = table_bytes(cast(LmdbStore, stores.store))
        count = f"{studies * instances:,} instances of {studies:,} studies"
        full: list[float] = []
        empty: list[float] = []
        for number in range(settings.rounds):
            fresh = other / str(number)
            fresh.mkdir()
            with archives.stores_in(fresh):
                pass
            turns = [(place, full), (fresh, empty)]
            for where, rates in turns if number % 2 else reversed(turns):
                rates.append(_rate(where, settings))
            say(f"full {full[-1]:,.0f}/s, empty {empty[-1]:,.0f}/s")
        ratios = [a / b for a, b in zip(full, empty, strict=True)]
        detail = {"full_per_s": full, "empty_per_s": empty, "tables": tables}
        figures.append(
            Figure(name, f"ingest with {count} over empty", ratios, "×", at_least=0.9, detail=detail)
        )
        starts: list[float] = []
        plain: list[float] = []
        for _ in range(settings.rounds):
            starts.append(_restart(place, settings))
            plain.append(_start(other / "0", settings))
            say(f"started {starts[-1]:.2f} s after a kill; {plain[-1]:.2f} s empty and closed in order")
        figures.append(Figure(name, f"start after kill -9, {count}", starts, "s", at_most=3))
        figures.append(Figure(name, "start of a small archive that was closed in order", plain, "s"))
    return figures


@contextmanager
def _filled(settings: Settings, studies: int, instances: int, say: Say) -> Iterator[Path]:
    kept = os.environ.get(KEEP)
    with contextlib.ExitStack() as stack:
        if kept:
            place = Path(kept)
            place.mkdir(parents=True, exist_ok=True)
        else:
            place = stack.enter_context(archives.folder(settings.scratch))
        done = place / "filled"
        wanted = f"{studies} {instances}\n"
        if done.exists() and done.read_text() != wanted:
            raise RuntimeError(f"{place} was filled with other numbers: {done.read_text().strip()}")
        if not done.exists():
            with archives.stores_in(place) as stores:
                took = load(stores, People(1), range(studies), studies, instances, say)
            say(f"filled: {took}")
            done.write_text(wanted)
        yield place


KEEP = "HOUNSFIELD_BENCH_INDEX"
"""In the environment: a folder whose filled archive is kept and used again."""


def _rate(place: Path, settings: Settings) -> float:
    os.sync()
    with server_on(place, settings.scratch) as peer:
        run_load(_load(peer, 5.0, WARM_UP_OBJECTS))
        wait_idle(peer.pid)
        report = run_load(_load(peer, settings.seconds))
    if report.failures or not report.acknowledged:
        raise RuntimeError(f"not all were stored: {report.failures}")
    return report.rate


def _load(peer: Hounsfield, seconds: float, count: int = 1_000_000) -> Load:
    return Load(
        "127.0.0.1",
        peer.endpoints.dicom_port,
        called_ae=peer.endpoints.ae_title,
        associations=ASSOCIATIONS,
        seconds=seconds,
        count=count,
    )


def _restart(place: Path, settings: Settings) -> float:
    """Kill a server in the middle of a load; how long the next one takes from its start to serving."""
    with server_on(place, settings.scratch) as peer:
        sending = threading.Thread(target=run_load, args=(_load(peer, KILL_AFTER_SECONDS + 1.0),))
        sending.start()
        time.sleep(KILL_AFTER_SECONDS)
        for pid in tree(peer.pid):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        sending.join()
    return _start(place, settings)


def _start(place: Path, settings: Settings) -> float:
    began = time.perf_counter()
    with server_on(place, settings.scratch):
        return time.perf_counter() - began


if __name__ == "__main__":
    if "--folder" in sys.argv:
        at = sys.argv.index("--folder")
        os.environ[KEEP] = sys.argv[at + 1]
        del sys.argv[at : at + 2]
    sys.exit(bars.main(run, __doc__))
