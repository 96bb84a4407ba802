"""C-STORE: every server at 1, 4 and 8 associations, interleaved, each cell on a fresh server and an empty
disk queue.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.cstore_load import Load, LoadReport, run_load
from benchmarks.peers.base import Peer, PeerError
from benchmarks.processes import MemoryWatch, cpu_seconds, wait_idle

WARM_UP_OBJECTS = 20
# Objects a cell may send per association, so that a fast server cannot fill the disk: 4 GiB of CT slices in
# all.
CELL_BYTES_MAX = 4 * 1024**3


@dataclass(frozen=True, slots=True)
class Scenario:
    """What one table measures."""

    name: str
    title: str
    kind: str
    study_per_object: bool
    associations: tuple[int, ...]


SCENARIOS = {
    "ct": Scenario("ct", "C-STORE, 512 KiB CT slices", "ct", study_per_object=False, associations=(1, 4, 8)),
    "small": Scenario(
        "small", "C-STORE, 32 KiB objects in series", "small", study_per_object=False, associations=(8,)
    ),
    "small-studies": Scenario(
        "small-studies",
        "C-STORE, 32 KiB objects, a study each",
        "small",
        study_per_object=True,
        associations=(8,),
    ),
}


def measure(
    peer_class: type[Peer], scenario: Scenario, associations: int, *, seconds: float, scratch: Path | None
) -> dict[str, Any]:
    """One cell: start, warm up, load, count what is there, stop. Never raises for a server's failure: it is
    the result.
    """
    cell: dict[str, Any] = {
        "server": peer_class.name,
        "scenario": scenario.name,
        "associations": associations,
    }
    os.sync()  # what an earlier server left unwritten must not be written in this one's time
    try:
        with peer_class(scratch=scratch) as peer:
            cell |= _loaded(peer, scenario, associations, seconds)
    except (PeerError, RuntimeError, OSError) as error:
        cell |= {"error": str(error), "rate": 0.0, "acknowledged": 0, "failures": {"server": 1}}
    return cell


def _loaded(peer: Peer, scenario: Scenario, associations: int, seconds: float) -> dict[str, Any]:
    base = Load(
        host="127.0.0.1",
        port=peer.endpoints.dicom_port,
        called_ae=peer.endpoints.ae_title,
        associations=associations,
        kind=scenario.kind,
        study_per_object=scenario.study_per_object,
    )
    warm = run_load(replace(base, count=WARM_UP_OBJECTS, seconds=5.0))
    if not warm.acknowledged:
        raise PeerError(f"{peer.label} stored nothing: {warm.failures}\n{peer.log_tail()}")
    wait_idle(peer.pid)
    count = int(CELL_BYTES_MAX / max(1, warm.bytes_each) / associations)
    before = cpu_seconds(peer.pid)
    with MemoryWatch(peer.pid) as memory:
        report = run_load(replace(base, count=count, seconds=seconds))
    wait_idle(peer.pid)
    cpu = cpu_seconds(peer.pid) - before
    stored = peer.stored()
    return _cell(report, cpu, memory, acknowledged=warm.acknowledged + report.acknowledged, stored=stored)


def _cell(
    report: LoadReport, cpu: float, memory: MemoryWatch, *, acknowledged: int, stored: int | None
) -> dict[str, Any]:
    cell = asdict(report)
    cell.pop("studies")
    cell["cpu_ms_per_object"] = 1000 * cpu / report.acknowledged if report.acknowledged else None
    cell["peak_pss_bytes"] = memory.peak_pss
    cell["peak_rss_bytes"] = memory.peak_rss
    cell["lost"] = None if stored is None else max(0, acknowledged - stored)
    return cell


def rounds(
    peers: Sequence[type[Peer]],
    scenario: Scenario,
    *,
    number: int,
    seconds: float,
    scratch: Path | None,
    associations: Sequence[int] | None = None,
    progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """`number` rounds; in each, every server is measured once per number of associations. The order turns
    by one in every round, so that no server always runs after the same neighbour.
    """
    cells = []
    for index in range(number):
        turned = [*peers[index % len(peers) :], *peers[: index % len(peers)]]
        for count in associations or scenario.associations:
            for peer_class in turned:
                cell = measure(peer_class, scenario, count, seconds=seconds, scratch=scratch)
                cell["round"] = index
                cell["at"] = time.time()
                cells.append(cell)
                progress(cell)
    return cells
