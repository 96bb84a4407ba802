"""What moving series to another tier costs those who store and read meanwhile. Sizes: --size stores=N (a
second), --size frames=N, --size slices=N.

One server, whose cold tier is a directory of the same disk. MR is stored over four associations and frames of
MR are asked for by one client, both at rates far below what the server can do. Each is timed from when it was
due: what is late delays nobody's request, but shows in all that wait behind it. In turns nothing moves, and
the rules are carried out at the default pace; what moved meanwhile is what came to lie in the other tier. The
rules take CT, of which enough is stored before each pair: what is being stored must not be what moves, or the
two would be about the same rows, which a site's `quiet_minutes` keeps apart.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
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
MOVED_MAX = 45e6  # bytes a second: more is never needed
ASSOCIATIONS = 4
FRAMES = 100
UNTIMED_S = 3.0  # in which the processes of both loads start
SLICE_BYTES = 525_000
EXPERIMENT = "foreground"


@dataclass(slots=True)
class _Side:
    """What was measured while series moved, or while none did."""

    store_p99_ms: list[float] = field(default_factory=list)
    store_p50_ms: list[float] = field(default_factory=list)
    frame_p99_ms: list[float] = field(default_factory=list)
    frame_p50_ms: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)


def run(settings: Settings, say: Say) -> list[Figure]:
    """Pairs: still and moving, the first one alternating."""
    slices = settings.size("slices", 25, 10)
    read = list(studies(Kind.MR, run=2, instances_per_series=FRAMES))
    still, moving = _Side(), _Side()
    with archives.folder(settings.scratch) as place:
        with archives.stores_in(place) as stores:
            archives.fill(stores, read)
        with _serving(place, settings.scratch) as peer:
            targets = [Target(path_of(one), FRAMES_ACCEPT) for one in read]
            read_once(peer, targets, connections=4)
            for number in range(settings.rounds):
                needed = MOVED_MAX * (settings.seconds + 3 + UNTIMED_S) / SLICE_BYTES
                _quiet(peer)  # the last plan would take what is stored now
                _fed(peer, max(ASSOCIATIONS, int(needed / slices)), slices)
                for side in (still, moving) if number % 2 else (moving, still):
                    _measured(settings, peer, targets, side, moves=side is moving)
                say(
                    f"C-STORE p50 {still.store_p50_ms[-1]:.1f} ms, p99 {still.store_p99_ms[-1]:.1f}; moving "
                    f"{moving.store_p50_ms[-1]:.1f}, {moving.store_p99_ms[-1]:.1f}; frame p50 "
                    f"{still.frame_p50_ms[-1]:.1f}, p99 {still.frame_p99_ms[-1]:.1f}; moving "
                    f"{moving.frame_p50_ms[-1]:.1f}, {moving.frame_p99_ms[-1]:.1f}; "
                    f"CPU {still.cpu_s[-1]:.1f} s, moving {moving.cpu_s[-1]:.1f} s; "
                    f"moved {moving.moved[-1]:.0f} MB/s"
                )
    detail = {"still": asdict(still), "moving": asdict(moving)}

    def times(name: str) -> list[float]:
        return [a / b for a, b in zip(getattr(moving, name), getattr(still, name), strict=True)]

    seconds = settings.seconds + UNTIMED_S
    more = [
        1000 * (a - b) / (seconds * moved)
        for a, b, moved in zip(moving.cpu_s, still.cpu_s, moving.moved, strict=True)
        if moved > 0
    ]
    return [
        Figure(EXPERIMENT, "moved meanwhile", moving.moved, "MB/s", at_least=MOVED_MIN, detail=detail),
        Figure(EXPERIMENT, "C-STORE p99, moving over still", times("store_p99_ms"), "×", at_most=COST_MAX),
        Figure(EXPERIMENT, "C-STORE p50, moving over still", times("store_p50_ms"), "×"),
        Figure(EXPERIMENT, "frame p99, moving over still", times("frame_p99_ms"), "×", at_most=COST_MAX),
        Figure(EXPERIMENT, "frame p50, moving over still", times("frame_p50_ms"), "×"),
        Figure(EXPERIMENT, "C-STORE p99 while nothing moves", still.store_p99_ms, "ms"),
        Figure(EXPERIMENT, "frame p99 while nothing moves", still.frame_p99_ms, "ms"),
        Figure(EXPERIMENT, "CPU of what moves", more, "ms/MB"),
    ]


def _fed(peer: OnArchive, series: int, slices: int) -> None:
    where, title = peer.endpoints.dicom_port, peer.endpoints.ae_title
    count = -(-series // ASSOCIATIONS) * slices
    load = Load("127.0.0.1", where, title, associations=ASSOCIATIONS, seconds=600.0, count=count)
    report = run_load(replace(load, instances_per_series=slices))
    if report.failures:
        raise RuntimeError(f"failures: {report.failures}")


def _measured(
    settings: Settings, peer: OnArchive, targets: Sequence[Target], side: _Side, *, moves: bool
) -> None:
    _quiet(peer)
    assert peer.endpoints.http_port
    stores, frames = settings.size("stores", 120, 40), settings.size("frames", 80, 40)
    load = Load(
        "127.0.0.1",
        peer.endpoints.dicom_port,
        called_ae=peer.endpoints.ae_title,
        associations=ASSOCIATIONS,
        kind=Kind.MR.value,
        seconds=settings.seconds + UNTIMED_S,
        instances_per_series=100,
        interval_s=ASSOCIATIONS / stores,
        untimed_s=UNTIMED_S,
    )
    views = HttpLoad(
        "127.0.0.1",
        peer.endpoints.http_port,
        seconds=settings.seconds + UNTIMED_S,
        interval_s=1 / frames,
        untimed_s=UNTIMED_S,
    )
    with _moving(peer, moves=moves) as moved, ThreadPoolExecutor(1) as beside:
        cpu = cpu_seconds(peer.pid)
        viewing = beside.submit(run_http_load, views, list(targets))
        stored = run_load(load)
        shown = viewing.result()
        side.cpu_s.append(cpu_seconds(peer.pid) - cpu)
        side.moved.append(moved())
    if stored.failures or shown.failures:
        raise RuntimeError(f"failures: {stored.failures} {shown.failures}")
    side.stored.append(stored.acknowledged)
    side.store_p99_ms.append(stored.p99_ms)
    side.store_p50_ms.append(stored.p50_ms)
    side.frame_p99_ms.append(shown.p99_ms)
    side.frame_p50_ms.append(shown.p50_ms)


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
        if _cold_bytes(peer) == before:
            raise RuntimeError(f"nothing moves: {_asked(peer, 'tier-progress')}\n{peer.log_tail()}")
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
    """What lies in the cold tier, as its disk says."""
    found = 0
    for path in (peer.place / COLD / "packs").glob("*/*"):
        with suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


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
        f"[tiering]\nquiet_minutes = 0.0\nplan_minutes = 10000.0\n"
        f'[[tiers]]\nname = "{COLD}"\ndirectory = {json.dumps(str(folder))}\n'
        f'[[tier_rules]]\nname = "old"\nmatch = {{ Modality = "CT" }}\naction = "move"\nto = ["{COLD}"]\n'
    )
    peer = server_on(place, scratch)
    peer.arguments = (*peer.arguments, "--config", str(config))
    with peer:
        yield peer


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
