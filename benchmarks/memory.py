"""Memory of one worker that takes in what 64 associations send, or one object of 4 GB.

Sizes: --size associations=64, megabytes=4000

Associations: first a steady load (each waits for its response), whose peak of proportional memory (PSS) is
sampled four times a second; then `benchmarks.worker_memory`, where all are in the middle of an object at
once. The large object is `benchmarks.large_object`'s: what the worker's peak resident memory grows by while
it comes in.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks import bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.cstore_load import Load, run_load
from benchmarks.peers.ours import Hounsfield
from benchmarks.processes import ROOT, MemoryWatch, tree, wait_idle

MIB = 1 << 20


class OneWorker(Hounsfield):
    """All associations in one process."""

    arguments = ("--set", "archive.workers=1")


def run(settings: Settings, say: Say) -> list[Figure]:
    """A fresh server each round."""
    associations = settings.size("associations", 64, 16)
    peaks: list[float] = []
    rests: list[float] = []
    rates: list[float] = []
    for _ in range(settings.rounds):
        with OneWorker(scratch=settings.scratch) as peer:
            wait_idle(peer.pid)
            (worker,) = [pid for pid in tree(peer.pid) if pid != peer.pid]
            with MemoryWatch(worker) as resting:
                pass
            load = Load(
                "127.0.0.1",
                peer.endpoints.dicom_port,
                called_ae=peer.endpoints.ae_title,
                associations=associations,
                seconds=settings.seconds,
                variants=1,
            )
            with MemoryWatch(worker) as memory:
                report = run_load(load)
            if report.failures:
                raise RuntimeError(f"not all were stored: {report.failures}")
        peaks.append(memory.peak_pss / MIB)
        rests.append(resting.peak_pss / MIB)
        rates.append(report.rate)
        say(f"{peaks[-1]:.0f} MiB at {rates[-1]:,.0f} instances/s; {rests[-1]:.0f} MiB before")
    what = f"memory of a worker, {associations} associations of CT"
    detail = {"instances_per_s": rates}
    figures = [
        Figure("memory", f"{what}: peak PSS", peaks, "MiB", at_most=350, detail=detail),
        Figure("memory", "memory of a worker that does nothing", rests, "MiB"),
    ]
    where = ["--directory", str(settings.scratch)] if settings.scratch else []
    burst = _told("benchmarks.worker_memory", "--associations", str(associations), *where)
    if burst["failed"]:
        raise RuntimeError(f"{burst['failed']} objects were not stored")
    figures.append(
        Figure(
            "memory",
            f"{what}, all in the middle of an object: peak RSS",
            [float(burst["rss_mib"]["peak"])],
            "MiB",
            at_most=350,
            detail=burst,
        )
    )
    size = settings.size("megabytes", 4000, 200) / 1000
    growth: list[float] = []
    large: dict[str, Any] = {}
    for way in ("dimse", "stow"):
        large[way] = _told("benchmarks.large_object", "--gigabytes", str(size), "--way", way, *where)
        growth.append(large[way]["memory_growth_mib"])
        say(f"{size:g} GB over {way}: the worker grew by {growth[-1]} MiB")
    figures.append(
        Figure(
            "memory", f"a worker's growth, one object of {size:g} GB", growth, "MiB", at_most=64, detail=large
        )
    )
    return figures


def _told(module: str, *arguments: str) -> dict[str, Any]:
    """What another benchmark's program prints."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
