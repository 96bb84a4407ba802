"""STOW-RS of a CT series beside C-STORE of the same series, in one run. Sizes: --size slices=300

One client posts a series (multipart/related, one request of known length), or sends it over one association;
the two take turns, each to the same server, in series never sent before. The same for eight at once. Rates
are acknowledged instances over the time from the first byte sent to the last answer read.
"""

from __future__ import annotations

import http.client
import json
import secrets
import sys
import threading
import time

from benchmarks import bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.cstore_load import Load, run_load
from benchmarks.metadata import NeverQuiet
from benchmarks.peers.ours import Hounsfield
from benchmarks.processes import wait_idle
from benchmarks.studies import Identity, Instance, Kind, part10, template

BOUNDARY = "hounsfield-benchmark"
RESPONSE_SECONDS = 300.0


def run(settings: Settings, say: Say) -> list[Figure]:
    """Ratios of pairs, for one client and for eight."""
    slices = settings.size("slices", 300, 40)
    figures = []
    for clients in (1, 8):
        stow: list[float] = []
        cstore: list[float] = []
        with NeverQuiet(scratch=settings.scratch) as peer:
            _posted(peer, 1, 10)
            _sent(peer, 1, 10)
            each = slices if clients == 1 else max(10, slices // 2)
            for number in range(settings.rounds):
                turns = [(_posted, stow), (_sent, cstore)]
                for measure, rates in turns if number % 2 else reversed(turns):
                    wait_idle(peer.pid)
                    rates.append(measure(peer, clients, each))
                say(f"{clients} at once: STOW-RS {stow[-1]:,.0f}/s, C-STORE {cstore[-1]:,.0f}/s")
        ratios = [ours / theirs for ours, theirs in zip(stow, cstore, strict=True)]
        detail = {"stow_per_s": stow, "cstore_per_s": cstore, "slices": each}
        figures.append(
            Figure(
                "stow",
                f"STOW-RS over C-STORE, CT series, {clients} at once",
                ratios,
                "×",
                at_least=0.8,
                detail=detail,
            )
        )
    return figures


def _sent(peer: Hounsfield, clients: int, slices: int) -> float:
    load = Load(
        host="127.0.0.1",
        port=peer.endpoints.dicom_port,
        called_ae=peer.endpoints.ae_title,
        associations=clients,
        seconds=600.0,
        count=slices,
        instances_per_series=1_000_000,
    )
    report = run_load(load)
    if report.acknowledged != clients * slices:
        raise RuntimeError(
            f"{report.acknowledged} of {clients * slices} were acknowledged: {report.failures}"
        )
    return report.rate


def _posted(peer: Hounsfield, clients: int, slices: int) -> float:
    """Instances a second. Bodies are made before the clock starts, as the C-STORE generator's are."""
    run_id = secrets.randbelow(10**13) + 1
    bodies = [_body(run_id, client, slices) for client in range(clients)]
    began: list[float] = [0.0] * clients
    ended: list[float] = [0.0] * clients
    stored: list[int] = [0] * clients
    start = threading.Barrier(clients)

    def post(client: int) -> None:
        assert peer.endpoints.http_port
        connection = http.client.HTTPConnection(
            "127.0.0.1", peer.endpoints.http_port, timeout=RESPONSE_SECONDS
        )
        connection.connect()
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        start.wait()
        began[client] = time.perf_counter()
        connection.request(
            "POST",
            "/dicom-web/studies",
            body=bodies[client],
            headers={"Content-Type": kind, "Accept": "application/dicom+json"},
        )
        answer = connection.getresponse()
        body = answer.read()
        ended[client] = time.perf_counter()
        if answer.status == 200:
            stored[client] = len(json.loads(body)["00081199"]["Value"])
        connection.close()

    threads = [threading.Thread(target=post, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if stored != [slices] * clients:
        raise RuntimeError(f"{sum(stored)} of {clients * slices} were stored over STOW-RS")
    return clients * slices / (max(ended) - min(began))


def _body(run_id: int, study: int, slices: int) -> bytes:
    parts = []
    for number in range(slices):
        source = template(Kind.CT, variant=number % 4)
        identity = Identity(run_id, study, study, 0, number)
        one = Instance(
            source.sop_class_uid,
            identity.sop_instance_uid(),
            "1.2.840.10008.1.2.1",
            source.encode(identity),
            identity,
        )
        parts.append(f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode())
        parts.append(part10(one))
        parts.append(b"\r\n")
    parts.append(f"--{BOUNDARY}--\r\n".encode())
    return b"".join(parts)


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
