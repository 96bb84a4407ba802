"""How fast cold series come back: Copying's recall (fetch, prove, write, sync, row) beside obstore alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks import archives, bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.processes import cpu_seconds
from benchmarks.studies import Instance
from benchmarks.tiers_place import (
    ColdArchive,
    alone,
    cold_archive,
    fetched,
    fetched_to_file,
    multi_frame,
    s3_server,
    slices,
)
from hounsfield.archive.index.packs import HOT

BAR = 0.8
EXPERIMENT = "recall"


@dataclass(slots=True)
class _Way:
    """One way to get a pack's bytes; figures by round."""

    name: str
    get: Callable[[], int]
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    server_cpu_ms: list[float] = field(default_factory=list)


def run(settings: Settings, say: Say) -> list[Figure]:
    """Three ways in turn, every round."""
    slice_count = settings.size("slices", 500, 20)
    frames = settings.size("frames", 600, 80)
    return [
        *_of(settings, say, f"a CT series of {slice_count} × 512 KiB", slices(slice_count)),
        *_of(settings, say, f"an object of {frames >> 1} MiB in pieces", [multi_frame(frames)]),
    ]


def _of(settings: Settings, say: Say, what: str, instances: Sequence[Instance]) -> list[Figure]:
    with (
        s3_server(settings.scratch) as server,
        archives.folder(settings.scratch) as place,
        cold_archive(server, place, instances) as cold,
    ):
        (segment,) = cold.packs
        store = alone(server)
        row = cold.copying.packs.get(segment)
        assert row is not None
        size, file = row.size, cold.place / "alone"
        ours = _Way("recalled", lambda: cold.copying.copy(segment, HOT).size)
        memory = _Way("obstore into memory", lambda: fetched(store, segment, size))
        disk = _Way("obstore into a synced file", lambda: fetched_to_file(store, segment, size, file))
        ways = [ours, memory, disk]
        for number in range(-1, settings.rounds):
            turn = max(number, 0) % len(ways)
            for way in ways[turn:] + ways[:turn]:
                _measured(cold, way, size, counts=number >= 0)
                if way is ours:
                    cold.copying.drop(segment, HOT)
            if number >= 0:
                say(f"{what}: " + ", ".join(f"{way.name} {way.rates[-1]:,.0f}" for way in ways) + " MB/s")
        detail = {
            way.name: {"mb_s": way.rates, "cpu_ms_mb": way.cpu_ms, "server_cpu_ms_mb": way.server_cpu_ms}
            for way in ways
        }
        ratios = [[a / b for a, b in zip(ours.rates, way.rates, strict=True)] for way in (memory, disk)]
        return [
            Figure(EXPERIMENT, f"{what}, over {memory.name}", ratios[0], "×", at_least=BAR, detail=detail),
            Figure(EXPERIMENT, f"{what}, over {disk.name}", ratios[1], "×", at_least=BAR),
            Figure(EXPERIMENT, f"{what}, recalled", ours.rates, "MB/s"),
            Figure(EXPERIMENT, f"{what}, CPU of ours for it", ours.cpu_ms, "ms/MB"),
        ]


def _measured(cold: ColdArchive, way: _Way, size: int, *, counts: bool) -> None:
    os.sync()
    began, cpu, server = time.perf_counter(), time.process_time(), cpu_seconds(cold.server.pid)
    got = way.get()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    server = cpu_seconds(cold.server.pid) - server
    if got != size:
        raise RuntimeError(f"{way.name}: {got} of {size} bytes came")
    if counts:
        way.rates.append(size / took / 1e6)
        way.cpu_ms.append(1e9 * cpu / size)
        way.server_cpu_ms.append(1e9 * server / size)


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
