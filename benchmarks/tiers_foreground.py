"""What moving series to another tier costs those who store and read meanwhile. Sizes: --size series=24

One server, whose cold tier is a directory of the same disk. MR over four associations is measured, then
frames of it at one client, while nothing moves and while the rules are carried out, in turns. The rules take
CT, of which so many series are stored before each pair: what is being stored must not be what moves, or the
two would be about the same rows, which a site's `quiet_minutes` keeps apart.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import archives, bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.beside import read_once
from benchmarks.cstore_load import Load, run_load
from benchmarks.http_load import FRAMES_ACCEPT, HttpLoad, Target, run_http_load
from benchmarks.index_load import OnArchive, server_on
from benchmarks.processes import cpu_seconds
from benchmarks.sealed_frames import path_of
from benchmarks.studies import Kind, studies
from benchmarks.tiers_place import COLD

COST_MAX = 1.2
MOVED_MIN = 25.0
ASSOCIATIONS = 4
FRAMES = 100
PACE = 160 << 20  # a byte is paced each of the five times or so that it is read or written on its way
EXPERIMENT = "foreground"


@dataclass(slots=True)
class _Side:
    """What was measured while series moved, or while none did."""

    stores: list[float] = field(default_factory=list)
    frames_ms: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def run(settings: Settings, say: Say) -> list[Figure]:
    """Pairs: still and moving, the first one alternating."""
    series = settings.size("series", 24, 4)
    slices = settings.size("slices", 100, 20)
    read = list(studies(Kind.MR, run=2, instances_per_series=FRAMES))
    still, moving = _Side(), _Side()
    with archives.folder(settings.scratch) as place:
        with archives.stores_in(place) as stores:
            archives.fill(stores, read)
        with _serving(place, settings.scratch) as peer:
            targets = [Target(path_of(one), FRAMES_ACCEPT) for one in read]
            read_once(peer, targets, connections=4)
            for number in range(settings.rounds):
                _fed(peer, series, slices)
                for side in (still, moving) if number % 2 else (moving, still):
                    _measured(settings, peer, targets, side, moves=side is moving)
                say(
                    f"C-STORE {still.stores[-1]:.0f}/s, moving {moving.stores[-1]:.0f}/s; frame p99 "
                    f"{still.frames_ms[-1]:.1f} ms, moving {moving.frames_ms[-1]:.1f} ms; "
                    f"moved {moving.moved[-1]:.0f} MB/s"
                )
    slower = [a / b for a, b in zip(still.stores, moving.stores, strict=True)]
    later = [a / b for a, b in zip(moving.frames_ms, still.frames_ms, strict=True)]
    detail = {
        name: {"stores": side.stores, "p99_ms": side.frames_ms, "moved": side.moved, "cpu_s": side.cpu}
        for name, side in (("still", still), ("moving", moving))
    }
    return [
        Figure(EXPERIMENT, "moved meanwhile", moving.moved, "MB/s", at_least=MOVED_MIN, detail=detail),
        Figure(EXPERIMENT, "C-STORE of MR, still over moving", slower, "×", at_most=COST_MAX),
        Figure(EXPERIMENT, "frame p99, moving over still", later, "×", at_most=COST_MAX),
    ]


def _fed(peer: OnArchive, series: int, slices: int) -> None:
    where, title = peer.endpoints.dicom_port, peer.endpoints.ae_title
    count = series * slices // ASSOCIATIONS
    load = Load("127.0.0.1", where, title, associations=ASSOCIATIONS, seconds=600.0, count=count)
    report = run_load(replace(load, instances_per_series=slices))
    if report.failures:
        raise RuntimeError(f"failures: {report.failures}")


def _measured(
    settings: Settings, peer: OnArchive, targets: Sequence[Target], side: _Side, *, moves: bool
) -> None:
    _quiet(peer)
    assert peer.endpoints.http_port
    load = Load(
        "127.0.0.1",
        peer.endpoints.dicom_port,
        called_ae=peer.endpoints.ae_title,
        associations=ASSOCIATIONS,
        kind=Kind.MR.value,
        seconds=settings.seconds / 2,
        instances_per_series=100,
    )
    frames = HttpLoad("127.0.0.1", peer.endpoints.http_port, seconds=settings.seconds / 2)
    with _moving(peer, moves=moves) as moved:
        cpu = cpu_seconds(peer.pid)
        stored = run_load(load)
        shown = run_http_load(frames, list(targets))
        side.cpu.append(cpu_seconds(peer.pid) - cpu)
        side.moved.append(moved())
    if stored.failures or shown.failures:
        raise RuntimeError(f"failures: {stored.failures} {shown.failures}")
    side.stores.append(stored.rate)
    side.frames_ms.append(shown.p99_ms)


@contextmanager
def _moving(peer: OnArchive, *, moves: bool) -> Iterator[Callable[[], float]]:
    """Carry the rules out, again and again; how many MB a second reached the other tier so far."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            _asked(peer, "tier-apply")
            ended.wait(1.0)

    asking = threading.Thread(target=ask)
    before, began = _cold_bytes(peer), time.monotonic()
    if moves:
        asking.start()
        while _cold_bytes(peer) == before and time.monotonic() - began < 20:
            time.sleep(0.1)
        before, began = _cold_bytes(peer), time.monotonic()
    try:
        yield lambda: (_cold_bytes(peer) - before) / (time.monotonic() - began) / 1e6
    finally:
        ended.set()
        if moves:
            asking.join()


def _quiet(peer: OnArchive) -> None:
    """Wait until what was asked for is done, so that a still server is still."""
    moved = -1
    while moved != (now := _cold_bytes(peer)):
        moved = now
        time.sleep(2.5)


def _cold_bytes(peer: OnArchive) -> int:
    tiers = _asked(peer, "tier-status")["tiers"]
    return sum(int(one["bytes"]) for one in tiers if one["tier"] == COLD)


def _asked(peer: OnArchive, operation: str) -> dict[str, Any]:
    answer = peer.asked(operation)
    if answer is None:
        raise RuntimeError(f"the server does not answer {operation}:\n{peer.log_tail()}")
    return answer


@contextmanager
def _serving(place: Path, scratch: Path | None) -> Iterator[OnArchive]:
    folder = place / COLD
    folder.mkdir()
    config = place / "config.toml"
    config.write_text(
        f"[tiering]\nquiet_minutes = 0.0\nplan_minutes = 10000.0\nbytes_per_second = {PACE}\n"
        f'[[tiers]]\nname = "{COLD}"\ndirectory = {json.dumps(str(folder))}\n'
        f'[[tier_rules]]\nname = "old"\nmatch = {{ Modality = "CT" }}\naction = "move"\nto = ["{COLD}"]\n'
    )
    peer = server_on(place, scratch)
    peer.arguments = (*peer.arguments, "--config", str(config))
    with peer:
        yield peer


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
