"""What the RIS costs those who store and view images. Sizes: --size associations=4, slices=50, clients=2

Two servers, alike but for the RIS, on archives of their own, take CT over C-STORE and give its frames in
turns, the first one alternating. A study is quiet after a second, so that what the RIS does with each that
came (it is tracked, and matched to an order or put up) falls into what is measured. The figures are ratios of
pairs: of rates, and of processor time per object of all processes, which tells more on a busy machine.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from benchmarks import archives, bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.beside import read_once
from benchmarks.cstore_load import Load, run_load
from benchmarks.http_load import FRAMES_ACCEPT, HttpLoad, Target, run_http_load
from benchmarks.peers.ours import Hounsfield
from benchmarks.processes import cpu_seconds, wait_idle
from benchmarks.sealed_frames import path_of
from benchmarks.studies import Kind, studies

LEAST = 0.95
EXPERIMENT = "ris-cost"
STABLE_SECONDS = 1
FRAMES = 60
ALIKE = ("--set", f"storage.study_stable_seconds={STABLE_SECONDS}")
RIS = ("--set", "plugins.ris={}")


@dataclass(slots=True)
class _Side:
    """What was measured of one server."""

    peer: Hounsfield
    store_rate: list[float] = field(default_factory=list)
    store_cpu_ms: list[float] = field(default_factory=list)
    frame_rate: list[float] = field(default_factory=list)
    frame_cpu_ms: list[float] = field(default_factory=list)
    idle_cpu_ms: list[float] = field(default_factory=list)


def run(settings: Settings, say: Say) -> list[Figure]:
    """Pairs: without the RIS and with it."""
    shown = list(studies(Kind.CT, run=2, instances_per_series=FRAMES))
    targets = [Target(path_of(one), FRAMES_ACCEPT) for one in shown]
    with archives.folder(settings.scratch) as place:
        for name in ("off", "on"):
            (place / name).mkdir()
            with archives.stores_in(place / name) as stores:
                archives.fill(stores, shown)
        with (
            _server(place / "off", ALIKE, settings.scratch) as without,
            _server(place / "on", (*ALIKE, *RIS), settings.scratch) as with_ris,
        ):
            off, on = _Side(without), _Side(with_ris)
            for side in (off, on):
                read_once(side.peer, targets, connections=8)
            for number in range(settings.rounds):
                sides = (off, on) if number % 2 else (on, off)
                for side in sides:
                    _stored(settings, side)
                for side in sides:
                    _viewed(settings, side, targets)
                for side in sides:
                    _idle(settings, side)
                say(
                    f"C-STORE {off.store_rate[-1]:,.0f}/s, {on.store_rate[-1]:,.0f} with the RIS; "
                    f"CPU {off.store_cpu_ms[-1]:.2f} and {on.store_cpu_ms[-1]:.2f} ms an object; frames "
                    f"{off.frame_rate[-1]:,.0f}/s, {on.frame_rate[-1]:,.0f}; "
                    f"CPU {off.frame_cpu_ms[-1]:.3f} and {on.frame_cpu_ms[-1]:.3f} ms a frame"
                )

    def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
        return [a / b for a, b in zip(above, below, strict=True)]

    def figure(what: str, values: list[float], unit: str, at_least: float | None = None) -> Figure:
        return Figure(EXPERIMENT, what, values, unit, at_least=at_least)

    return [
        figure("C-STORE, RIS on / off", ratios(on.store_rate, off.store_rate), "×", LEAST),
        figure("frames, RIS on / off", ratios(on.frame_rate, off.frame_rate), "×", LEAST),
        figure("C-STORE, CPU per object, off / on", ratios(off.store_cpu_ms, on.store_cpu_ms), "×", LEAST),
        figure("frames, CPU per frame, off / on", ratios(off.frame_cpu_ms, on.frame_cpu_ms), "×", LEAST),
        figure("C-STORE with the RIS", on.store_rate, "objects/s"),
        figure("frames with the RIS", on.frame_rate, "frames/s"),
        figure("C-STORE with the RIS, CPU", on.store_cpu_ms, "ms/object"),
        figure("frames with the RIS, CPU", on.frame_cpu_ms, "ms/frame"),
        figure("while nobody asks, with the RIS, CPU", on.idle_cpu_ms, "ms/s"),
        figure("while nobody asks, without, CPU", off.idle_cpu_ms, "ms/s"),
    ]


def _server(place: Path, arguments: Sequence[str], scratch: Path | None) -> Hounsfield:
    """A server on an archive that is there already."""
    members = {
        "_data": place / "data",
        "arguments": ("--set", f"keys.master_key=file:{place / 'master.key'}", *arguments),
    }
    return cast(Hounsfield, type("OnItsArchive", (Hounsfield,), members)(scratch=scratch))


def _stored(settings: Settings, side: _Side) -> None:
    """Store for a while, and wait until all is done that follows from it."""
    load = Load(
        "127.0.0.1",
        side.peer.endpoints.dicom_port,
        called_ae=side.peer.endpoints.ae_title,
        associations=settings.size("associations", 4, 2),
        seconds=settings.seconds,
        instances_per_series=settings.size("slices", 50, 10),
        run=secrets.randbelow(10**13) + 1,
    )
    warm = run_load(replace(load, count=5, run=secrets.randbelow(10**13) + 1))
    time.sleep(STABLE_SECONDS)
    wait_idle(side.peer.pid)
    before = cpu_seconds(side.peer.pid)
    report = run_load(load)
    time.sleep(STABLE_SECONDS)  # then its studies are quiet, and the RIS looks at them
    wait_idle(side.peer.pid)
    cpu = cpu_seconds(side.peer.pid) - before
    if report.failures or warm.failures or not report.acknowledged:
        raise RuntimeError(f"not all were stored: {report.failures} {warm.failures}\n{side.peer.log_tail()}")
    side.store_rate.append(report.rate)
    side.store_cpu_ms.append(1000 * cpu / report.acknowledged)


def _viewed(settings: Settings, side: _Side, targets: Sequence[Target]) -> None:
    """Ask for frames for a while."""
    assert side.peer.endpoints.http_port
    load = HttpLoad(
        "127.0.0.1",
        side.peer.endpoints.http_port,
        clients=settings.size("clients", 2, 1),
        seconds=settings.seconds,
    )
    wait_idle(side.peer.pid)
    before = cpu_seconds(side.peer.pid)
    report = run_http_load(load, list(targets))
    cpu = cpu_seconds(side.peer.pid) - before
    if report.failures or not report.completed:
        raise RuntimeError(f"not all frames were given: {report.failures}\n{side.peer.log_tail()}")
    side.frame_rate.append(report.rate)
    side.frame_cpu_ms.append(1000 * cpu / report.completed)


def _idle(settings: Settings, side: _Side) -> None:
    """What it takes to be there."""
    wait_idle(side.peer.pid)
    before, began = cpu_seconds(side.peer.pid), time.monotonic()
    time.sleep(settings.seconds)
    side.idle_cpu_ms.append(1000 * (cpu_seconds(side.peer.pid) - before) / (time.monotonic() - began))


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
