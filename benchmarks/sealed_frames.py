"""Frames beside a bare server that reads, opens and sends the same sealed bytes. Sizes: --size slices=200

Both have as many processes and read one archive's segments: ours through its index, rights, conditions and
counters, the bare one by a dictionary. The ratio is what an archive costs above what sealed bytes cost.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from benchmarks import archives, bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.beside import read_once
from benchmarks.frames import asked
from benchmarks.http_load import FRAMES_ACCEPT, Target
from benchmarks.index_load import server_on
from benchmarks.peers.base import PYTHON, Endpoints, Peer
from benchmarks.peers.sealed_frames import Sealed
from benchmarks.studies import Instance, Kind, studies, template
from hounsfield.archive.engine.stores import Stores
from hounsfield.storage_backends import segment_format

CLIENTS = (1, 8)
RATIO_MIN = 0.7


class BareFrames(Peer):
    """The bare server over a table of sealed frames."""

    name = "bare-frames"
    label = "bare: preadv, open, send"
    durable = "stores nothing"
    tuning = "trio and httptools, a process per core, TCP_NODELAY"
    table: Path

    def version(self) -> str:
        return "benchmarks.peers.sealed_frames"

    def _launch(self) -> Endpoints:
        module = "benchmarks.peers.sealed_frames"
        self._start([PYTHON, "-m", module, "--table", str(self.table), "--processes", str(os.cpu_count())])
        return Endpoints(dicom_port=0, http_port=self._wait_ready_line())


def path_of(one: Instance) -> str:
    """The URL of its first frame."""
    who = one.identity
    return (
        f"/dicom-web/studies/{who.study_uid()}/series/{who.series_uid()}"
        f"/instances/{one.sop_instance_uid}/frames/1"
    )


def sealed_frames(stores: Stores, data: Path, instances: Sequence[Instance]) -> dict[bytes, Sealed]:
    """Where the first frames of these are, as the archive's index says it."""
    table: dict[bytes, Sealed] = {}
    with stores.store.snapshot() as snapshot:
        for one in instances:
            who = one.identity
            row = stores.catalog.instance(snapshot, who.study_uid(), who.series_uid(), one.sop_instance_uid)
            if row is None:
                raise RuntimeError("an object that was stored is not in the index")
            part = row.location.frame_part(1)
            (_, _, length, last), *others = segment_format.chunks(part.length)
            if others:
                raise RuntimeError("the bare server reads frames of one chunk")
            segment_key = stores.keyring.key("segment", part.segment.hex())
            table[path_of(one).encode()] = Sealed(
                file=str(data / "segments" / part.segment.hex()),
                offset=part.offset,
                length=length,
                key=segment_format.record_key(segment_key, part.record_id),
                nonce=segment_format.nonce(part.part, 0, last),
                bound_to=segment_format.associated_data(
                    part.segment, part.record_id, kind=part.kind, part=part.part, part_count=part.part_count
                ),
            )
    return table


def _digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def run(settings: Settings, say: Say) -> list[Figure]:
    """Both filled once, rounds in turned order; the figure is the ratio of a round's rates."""
    slices = settings.size("slices", 200, 20)
    with archives.folder(settings.scratch) as place:
        wanted = list(studies(Kind.CT, run=1, instances_per_series=slices))
        with archives.stores_in(place) as stores:
            archives.fill(stores, wanted)
            table = place / "table"
            table.write_bytes(pickle.dumps(sealed_frames(stores, place / "data", wanted)))
        offset, length = template(Kind.CT).pixels
        targets = [
            Target(
                path_of(one), FRAMES_ACCEPT, size=length, digest=_digest(one.data[offset : offset + length])
            )
            for one in wanted
        ]
        bare = cast(type[BareFrames], type("Bare", (BareFrames,), {"table": table}))
        with server_on(place, settings.scratch) as ours, bare(scratch=settings.scratch) as other:
            for peer in (ours, other):
                read_once(peer, targets)
            return [
                figure
                for clients in CLIENTS
                for figure in _compared(settings, say, ours, other, targets, clients)
            ]


def _compared(
    settings: Settings, say: Say, ours: Peer, other: Peer, targets: list[Target], clients: int
) -> list[Figure]:
    ratios: list[float] = []
    cpu: dict[str, list[float]] = {ours.name: [], other.name: []}
    for number in range(settings.rounds):
        rates = {}
        for peer in (ours, other) if number % 2 else (other, ours):
            cell = asked(peer, targets, "sealed-frames", clients=clients, seconds=settings.seconds)
            if cell["failures"]:
                raise RuntimeError(f"{peer.label}: {cell['failures']}")
            rates[peer.name] = cell["rate"]
            cpu[peer.name].append(1000 * cell["cpu_ms_per_object"])
        ratios.append(rates[ours.name] / rates[other.name])
        say(f"{clients} clients: {rates[ours.name]:,.0f}/s beside {rates[other.name]:,.0f}/s")
    who = f"512 KiB frames, {clients} clients"
    detail = {"clients": clients, "frames": len(targets)}
    return [
        Figure("sealed-frames", f"{who}: ours ÷ bare", ratios, "×", at_least=RATIO_MIN, detail=detail),
        Figure("sealed-frames", f"{who}: CPU a frame, ours", cpu[ours.name], "µs", detail=detail),
        Figure("sealed-frames", f"{who}: CPU a frame, bare", cpu[other.name], "µs", detail=detail),
    ]


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
