"""Series metadata over HTTP: prepared, not yet prepared, extended. Sizes: --size slices=1000

Each round a fresh series of synthetic CT slices is stored and asked for once (which builds it), then again
(which finds it prepared); then a tenth as many slices are added. Times are whole round trips on an open
connection, request sent to last byte read, with Accept-Encoding: gzip; the body is inflated and counted
outside of them.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from dataclasses import dataclass

from benchmarks import bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.cstore_load import Load, run_load
from benchmarks.http_load import Client
from benchmarks.peers.ours import Hounsfield
from benchmarks.processes import cpu_seconds, wait_idle
from benchmarks.studies import Identity

HITS = 7  # requests for what is prepared, of which the median is a round's value


class NeverQuiet(Hounsfield):
    """So that nothing is prepared unless it is asked for."""

    arguments = ("--set", "storage.metadata_quiet_seconds=86400")


@dataclass(frozen=True, slots=True)
class _Asked:
    milliseconds: float
    body_bytes: int
    instances: int
    text_bytes: int


def run(settings: Settings, say: Say) -> list[Figure]:
    """One server, ``rounds`` series."""
    slices = settings.size("slices", 1000, 100)
    prepared: list[float] = []
    fresh: list[float] = []
    extended: list[float] = []
    inflated: list[float] = []
    detail: dict[str, float] = {"slices": slices}
    with NeverQuiet(scratch=settings.scratch) as peer:
        assert peer.endpoints.http_port
        client = Client("127.0.0.1", peer.endpoints.http_port)
        for number in range(1, settings.rounds + 1):
            run_id = _store(peer, number, slices)
            wait_idle(peer.pid)
            before = cpu_seconds(peer.pid)
            first = _ask(client, run_id)
            detail["cpu_ms_built"] = round(1000 * (cpu_seconds(peer.pid) - before), 1)
            hits = sorted(_ask(client, run_id).milliseconds for _ in range(HITS))
            plain = _ask(client, run_id, coding="identity")
            if first.instances != slices or plain.instances != slices:
                raise RuntimeError(f"{first.instances} of {slices} instances are described")
            fresh.append(first.milliseconds)
            prepared.append(hits[HITS // 2])
            inflated.append(plain.milliseconds)
            detail |= {"gzip_bytes": first.body_bytes, "json_bytes": first.text_bytes}
            _store(peer, number, slices // 10, first=slices, run_id=run_id)
            more = _ask(client, run_id)
            if more.instances != slices + slices // 10:
                raise RuntimeError(f"{more.instances} instances are described after an addition")
            extended.append(more.milliseconds)
            say(f"round {number}: built {fresh[-1]:.0f} ms, prepared {prepared[-1]:.1f} ms")
        client.close()
    name = "metadata"
    return [
        Figure(name, "series metadata, prepared", prepared, "ms", at_most=20, detail=detail),
        Figure(name, "series metadata, not yet prepared", fresh, "ms", at_most=500),
        Figure(name, "series metadata, a tenth added since", extended, "ms"),
        Figure(name, "series metadata, prepared, client without gzip", inflated, "ms"),
    ]


def _store(peer: Hounsfield, number: int, slices: int, *, first: int = 0, run_id: int = 0) -> int:
    """Store one series over one association; the run that its UIDs come from."""
    load = Load(
        host="127.0.0.1",
        port=peer.endpoints.dicom_port,
        called_ae=peer.endpoints.ae_title,
        seconds=600.0,
        count=slices,
        first=first,
        instances_per_series=1_000_000,
        run=run_id or time.time_ns() // 1000 % 10**13 + number,
    )
    report = run_load(load)
    if report.acknowledged != slices:
        raise RuntimeError(f"{report.acknowledged} of {slices} slices were stored: {report.failures}")
    return load.run


def _ask(client: Client, run_id: int, coding: str = "gzip") -> _Asked:
    one = Identity(run_id, 0, 0, 0, 0)
    path = f"/dicom-web/studies/{one.study_uid()}/series/{one.series_uid()}/metadata"
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/dicom+json\r\n"
        f"Accept-Encoding: {coding}\r\n\r\n"
    ).encode()
    began = time.perf_counter()
    status, body, _ = client.get(request)
    took = time.perf_counter() - began
    if status != 200:
        raise RuntimeError(f"metadata was answered with {status}")
    text = zlib.decompress(body, 31) if coding == "gzip" else bytes(body)
    return _Asked(1000 * took, len(body), len(json.loads(text)), len(text))


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
