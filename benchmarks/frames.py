"""Frames over DICOMweb: the same studies in every server, 512 KiB frames at 1 and 8 clients, compared with
what was sent.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.cstore_load import Load, identity_of, run_load
from benchmarks.http_load import FRAMES_ACCEPT, HttpLoad, Target, run_http_load
from benchmarks.peers.base import Peer, PeerError
from benchmarks.processes import MemoryWatch, cpu_seconds, wait_idle
from benchmarks.studies import Identity, Kind, template

ASSOCIATIONS = 4
INSTANCES_EACH = 125
CLIENTS = (1, 8)
VARIANTS = 4


def frame_targets(load: Load, run: int) -> list[Target]:
    """The URL, length and digest of every frame that `load` stored."""
    digests = []
    for variant in range(VARIANTS):
        source = template(Kind(load.kind), variant=variant)
        offset, length = source.pixels
        pixels = source.data[offset : offset + length]
        size = length // source.kind.frames
        digests.append([hashlib.sha256(pixels[at : at + size]).hexdigest() for at in range(0, length, size)])
    targets = []
    for association in range(load.associations):
        for index in range(load.count):
            identity = identity_of(Identity, load, run, association, index)
            where = (
                f"/dicom-web/studies/{identity.study_uid()}/series/{identity.series_uid()}"
                f"/instances/{identity.sop_instance_uid()}/frames/"
            )
            for number, digest in enumerate(digests[index % VARIANTS], start=1):
                targets.append(
                    Target(path=f"{where}{number}", accept=FRAMES_ACCEPT, size=size, digest=digest)
                )
    return targets


def rounds(
    peers: Sequence[type[Peer]],
    *,
    number: int,
    seconds: float,
    scratch: Path | None,
    clients: Sequence[int] = CLIENTS,
    progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Fills every server once, then `number` rounds in turned order. The servers that are not asked stay
    idle.
    """
    cells = []
    with ExitStack() as stack:
        ready: list[tuple[Peer, list[Target]]] = []
        for peer_class in peers:
            try:
                ready.append(_filled(stack.enter_context(peer_class(scratch=scratch))))
            except (PeerError, RuntimeError, OSError) as error:
                cell = {"server": peer_class.name, "scenario": "frames", "clients": 0, "error": str(error)}
                cells.append(cell)
                progress(cell)
        os.sync()
        for index in range(number):
            turn = index % len(ready) if ready else 0
            for count in clients:
                for peer, targets in [*ready[turn:], *ready[:turn]]:
                    cell = asked(peer, targets, "frames", clients=count, seconds=seconds)
                    cell |= {"round": index, "at": time.time()}
                    cells.append(cell)
                    progress(cell)
    return cells


def _filled(peer: Peer) -> tuple[Peer, list[Target]]:
    """The server with the studies in it, and every frame's URL, after one read of each so that all caches
    are as warm. A server without a DICOM port stores nothing and is asked for anything.
    """
    if not peer.endpoints.dicom_port:
        return peer, [Target(path="/", accept=FRAMES_ACCEPT)]
    load = Load(
        host="127.0.0.1",
        port=peer.endpoints.dicom_port,
        called_ae=peer.endpoints.ae_title,
        associations=ASSOCIATIONS,
        count=INSTANCES_EACH,
        seconds=120.0,
    )
    report = run_load(load)
    if report.failures or report.acknowledged != ASSOCIATIONS * INSTANCES_EACH:
        taken = f"{peer.label} took {report.acknowledged} objects"
        raise PeerError(f"{taken}: {report.failures}\n{peer.log_tail()}")
    targets = frame_targets(load, report.run)
    wait_idle(peer.pid)
    assert peer.endpoints.http_port
    once = HttpLoad("127.0.0.1", peer.endpoints.http_port, count=len(targets), seconds=60.0, in_order=True)
    warm = run_http_load(once, targets)
    if warm.failures:
        raise PeerError(f"{peer.label} does not give its frames back: {warm.failures}\n{peer.log_tail()}")
    return peer, targets


def asked(
    peer: Peer,
    targets: list[Target],
    scenario: str,
    *,
    clients: int,
    seconds: float,
    count: int | None = None,
) -> dict[str, Any]:
    """One measurement. ``count``: each client asks for so many, in order, instead of any for ``seconds``."""
    assert peer.endpoints.http_port
    load = HttpLoad("127.0.0.1", peer.endpoints.http_port, clients=clients, seconds=seconds)
    if count is not None:
        load = replace(load, count=count, in_order=True)
    wait_idle(peer.pid, timeout_seconds=1.0)
    before = cpu_seconds(peer.pid)
    with MemoryWatch(peer.pid) as memory:
        report = run_http_load(load, targets)
    cpu = cpu_seconds(peer.pid) - before
    cell = asdict(report)
    cell |= {
        "server": peer.name,
        "scenario": scenario,
        "clients": clients,
        "cpu_ms_per_object": 1000 * cpu / report.completed if report.completed else None,
        "peak_pss_bytes": memory.peak_pss,
        "peak_rss_bytes": memory.peak_rss,
    }
    return cell
