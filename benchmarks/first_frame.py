"""From the last C-STORE response to the first frame in a client's hands. Sizes: --size studies=40, slices=20

A study of CT slices is stored over one association; the moment its last response is read, the frame of its
first slice is asked for on a connection that is open. The time ends with the last byte of the frame. Nothing
is known to the server of that study but what C-STORE brought.
"""

from __future__ import annotations

import sys
import time

from benchmarks import bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.cstore_load import Association, Load, PreparedObject
from benchmarks.figures import percentile
from benchmarks.http_load import FRAMES_ACCEPT, Client
from benchmarks.metadata import NeverQuiet
from benchmarks.studies import Identity, Kind, template


def run(settings: Settings, say: Say) -> list[Figure]:
    """One server; a round is so many studies, its value their median."""
    studies = settings.size("studies", 40, 5)
    slices = settings.size("slices", 20, 5)
    medians: list[float] = []
    tails: list[float] = []
    with NeverQuiet(scratch=settings.scratch) as peer:
        assert peer.endpoints.http_port
        load = Load("127.0.0.1", peer.endpoints.dicom_port, called_ae=peer.endpoints.ae_title)
        client = Client("127.0.0.1", peer.endpoints.http_port)
        client.get(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        source = template(Kind.CT)
        run_id = time.time_ns() // 1000 % 10**13
        for number in range(settings.rounds):
            took: list[float] = []
            for study in range(studies):
                association = Association(load, source.sop_class_uid)
                prepared = PreparedObject(source, association.max_pdu)
                for instance in range(slices):
                    one = Identity(run_id, 0, number * studies + study, 0, instance)
                    prepared.patch(one.values(), instance + 1)
                    status = association.store(prepared.view, instance + 1)
                    if status:
                        raise RuntimeError(f"C-STORE was answered with {status:04X}")
                began = time.perf_counter()
                _frame(client, Identity(run_id, 0, number * studies + study, 0, 0))
                took.append(1000 * (time.perf_counter() - began))
                _frame(client, Identity(run_id, 0, number * studies + study, 0, slices - 1))
                association.release()
            took.sort()
            medians.append(percentile(took, 0.5))
            tails.append(percentile(took, 0.99))
            say(f"p50 {medians[-1]:.2f} ms, p99 {tails[-1]:.2f} ms")
        client.close()
    detail = {"studies": studies, "slices": slices}
    return [
        Figure(
            "first-frame",
            "last C-STORE response to first frame, p50",
            medians,
            "ms",
            at_most=10,
            detail=detail,
        ),
        Figure("first-frame", "last C-STORE response to first frame, p99", tails, "ms"),
    ]


def _frame(client: Client, one: Identity) -> None:
    path = (
        f"/dicom-web/studies/{one.study_uid()}/series/{one.series_uid()}"
        f"/instances/{one.sop_instance_uid()}/frames/1"
    )
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {FRAMES_ACCEPT}\r\n\r\n".encode()
    status, body, _ = client.get(request)
    if status != 200 or len(body) < 512 * 512 * 2:
        raise RuntimeError(f"a frame was answered with {status} and {len(body)} bytes")


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
