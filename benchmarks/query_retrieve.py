"""C-FIND, C-MOVE and C-GET beside tuned Orthanc and dcmqrscp: `python -m benchmarks query-retrieve`.

All three hold the same objects and are asked the same by the same generator (`benchmarks.query_load`), in
turn, at one and at four associations; that they answer the same is looked at first. A C-MOVE sends to a
program that throws away what it gets. Sizes, with --size: studies=5000 (find), slices=100 (each of the four
series that are moved). Ratios are ours over each of the others, pair by pair. DCMTK's server keeps its index
in one file that it reads and rewrites from end to end, and never syncs.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from benchmarks import engine
from benchmarks.bars import Experiment, Figure, Say, Settings
from benchmarks.cstore_load import Load, identity_of, run_load
from benchmarks.peers.base import Peer, PeerError
from benchmarks.peers.ours import Hounsfield
from benchmarks.peers.servers import Dcmqrscp, Discard, Orthanc
from benchmarks.people import SURNAMES
from benchmarks.processes import cpu_seconds, wait_idle
from benchmarks.query_load import FIND, GET, MOVE, QueryLoad, QueryReport, element, run_queries
from benchmarks.studies import Identity

ASSOCIATIONS = (1, 4)
SERIES = max(ASSOCIATIONS)
DCMQRSCP_STUDIES_MAX = 500  # it sets its own limit to that, whatever its configuration says
SINK = "SINK"
CALLING = "HFBENCH"
BARS = {FIND: {"orthanc": 3.0}, MOVE: {"orthanc": 3.0, "dcmqrscp": 1.0}, GET: {"orthanc": 3.0}}
_SLICE_BYTES = 512 * 1024

Identifiers = list[list[bytes]]


def find(settings: Settings, say: Say) -> list[Figure]:
    """Queries at study level: by patient ID, by part of the name, by a week of dates.

    Among as many studies as dcmqrscp can hold, and among more beside Orthanc alone.
    """
    few = min(settings.size("studies", 5000, 80), DCMQRSCP_STUDIES_MAX)
    return [
        *_found(settings, say, few, _others(0)),
        *_found(settings, say, settings.size("studies", 5000, 120), _others(0)[:1]),
    ]


def _found(settings: Settings, say: Say, studies: int, others: Sequence[type[Peer]]) -> list[Figure]:
    load = Load("127.0.0.1", 0, associations=1, count=studies, kind="small", study_per_object=True)
    figures: list[Figure] = []
    with _filled(settings, say, load, others) as (peers, load):
        people = [identity_of(Identity, load, load.run, 0, index).values() for index in range(studies)]
        questions = {
            "by patient ID": [_study_query(patient_id=one["patient_id"]) for one in people],
            "by part of the name": [_study_query(name=f"*{name[:5]}*".encode()) for name in SURNAMES],
            "by a week of dates": [
                _study_query(date=f"{year}{month:02}{day:02}-{year}{month:02}{day + 6:02}".encode())
                for year in range(2016, 2016 + max(1, studies // 336))
                for month in range(1, 13)
                for day in (1, 8, 15, 22)
            ],
        }
        for what, asked in questions.items():
            _check_same(peers, what, QueryLoad(FIND, 0, "", once=True), asked[:: max(1, len(asked) // 24)])
            for count in _associations(settings):
                shared = [asked[number::count] for number in range(count)]
                name = f"C-FIND of studies among {studies:,}, {what}"
                figures += _measured(settings, say, FIND, name, peers, shared)
    return figures


def move(settings: Settings, say: Say) -> list[Figure]:
    """C-MOVE of series of 512 KiB slices, to a destination that throws them away."""
    with Discard(scratch=settings.scratch) as sink:
        return _retrieved(settings, say, MOVE, sink.endpoints.dicom_port)


def get(settings: Settings, say: Say) -> list[Figure]:
    """C-GET of series of 512 KiB slices."""
    return _retrieved(settings, say, GET, 0)


def _retrieved(settings: Settings, say: Say, kind: str, sink_port: int) -> list[Figure]:
    slices = settings.size("slices", 100, 4)
    # over one association: dcmqrscp loses what several send at once
    load = Load("127.0.0.1", 0, associations=1, count=SERIES * slices, instances_per_series=slices)
    figures: list[Figure] = []
    with _filled(settings, say, load, _others(sink_port), sink_port=sink_port) as (peers, load):
        asked = [
            [_series_query(identity_of(Identity, load, load.run, 0, number * slices))]
            for number in range(SERIES)
        ]
        once = QueryLoad(kind, 0, "", once=True, destination=SINK)
        _check_same(peers, kind, once, [one[0] for one in asked])
        for count in _associations(settings):
            name = f"C-{kind.upper()} of series of {slices} × 512 KiB"
            figures += _measured(settings, say, kind, name, peers, asked[:count])
    return figures


def _associations(settings: Settings) -> Sequence[int]:
    return ASSOCIATIONS[:1] if settings.quick else ASSOCIATIONS


def _study_query(*, patient_id: bytes = b"", name: bytes = b"", date: bytes = b"") -> bytes:
    return b"".join((
        element(0x00080020, "DA", date),
        element(0x00080030, "TM"),
        element(0x00080050, "SH"),
        element(0x00080052, "CS", b"STUDY"),
        element(0x00081030, "LO"),
        element(0x00100010, "PN", name),
        element(0x00100020, "LO", patient_id),
        element(0x00100030, "DA"),
        element(0x0020000D, "UI"),
        element(0x00200010, "SH"),
    ))  # fmt: skip


def _series_query(identity: Identity) -> bytes:
    return b"".join((
        element(0x00080052, "CS", b"SERIES"),
        element(0x0020000D, "UI", identity.study_uid().encode()),
        element(0x0020000E, "UI", identity.series_uid().encode()),
    ))  # fmt: skip


@contextmanager
def _filled(
    settings: Settings, say: Say, load: Load, others: Sequence[type[Peer]], *, sink_port: int = 0
) -> Iterator[tuple[list[Peer], Load]]:
    """The servers that are there, with what ``load`` sends: the same objects of the same UIDs."""
    load = replace(load, run=secrets.randbelow(10**13) + 1, seconds=3600.0)
    with ExitStack() as stack:
        peers: list[Peer] = []
        kinds: tuple[type[Peer], ...] = (Hounsfield, *others)
        for kind in kinds:
            missing = kind.missing()
            if missing:
                say(f"no {kind.label} to compare with: {missing}")
                continue
            peer: Peer = stack.enter_context(kind(scratch=settings.scratch))
            if isinstance(peer, Hounsfield) and sink_port:
                peer.add_ae(SINK, "127.0.0.1", sink_port)
            peers.append(peer)
            _fill(peer, load)
            say(f"{peer.label} holds {load.associations * load.count} objects")
        os.sync()
        for peer in peers:
            wait_idle(peer.pid)
        yield peers, load


def _fill(peer: Peer, load: Load) -> None:
    where = replace(load, port=peer.endpoints.dicom_port, called_ae=peer.endpoints.ae_title)
    report = run_load(where)
    if report.acknowledged != load.associations * load.count:
        raise PeerError(
            f"{peer.label} took {report.acknowledged} of {load.associations * load.count} objects: "
            f"{report.failures}\n{peer.log_tail()}"
        )


def _others(sink_port: int) -> tuple[type[Peer], type[Peer]]:
    """Orthanc and dcmqrscp that know the destination, and the generator."""
    modalities = {CALLING: [CALLING, "127.0.0.1", 1], SINK: [SINK, "127.0.0.1", sink_port or 1]}

    class TunedOrthanc(Orthanc):
        settings = {  # noqa: RUF012
            **Orthanc.settings,
            "DicomModalities": modalities,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
        }

    class KnowingDcmqrscp(Dcmqrscp):
        hosts = {SINK: ("127.0.0.1", sink_port or 1)}  # noqa: RUF012

    return TunedOrthanc, KnowingDcmqrscp


def _check_same(peers: Sequence[Peer], what: str, load: QueryLoad, asked: Sequence[bytes]) -> None:
    """All give as many answers; of C-GET as many bytes, but for what the command sets differ in."""
    reports = [(peer, run_queries(_to(peer, load), [list(asked)])) for peer in peers]
    for peer, report in reports:
        if report.failures:
            raise PeerError(f"{what}: {peer.label}: {report.failures}\n{peer.log_tail()}")
    if len({report.answers for _, report in reports}) != 1:
        counts = ", ".join(f"{peer.label} {report.answers}" for peer, report in reports)
        raise PeerError(f"{what}: the servers give different numbers of answers: {counts}")


def _to(peer: Peer, load: QueryLoad) -> QueryLoad:
    return replace(load, port=peer.endpoints.dicom_port, called_ae=peer.endpoints.ae_title)


def _measured(
    settings: Settings,
    say: Say,
    kind: str,
    name: str,
    peers: Sequence[Peer],
    identifiers: Identifiers,
) -> list[Figure]:
    """Ratios to each of the others, of requests a second (C-FIND) or of megabytes a second."""
    count = len(identifiers)
    rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
    cpu: dict[str, list[float]] = {peer.name: [] for peer in peers}
    asked = QueryLoad(kind, 0, "", seconds=settings.seconds, destination=SINK)
    for number in range(settings.rounds):
        turn = number % len(peers)
        for peer in [*peers[turn:], *peers[:turn]]:
            wait_idle(peer.pid)
            before = cpu_seconds(peer.pid)
            report = run_queries(_to(peer, asked), identifiers)
            spent = cpu_seconds(peer.pid) - before
            if report.failures:
                raise PeerError(f"{name}: {peer.label}: {report.failures}\n{peer.log_tail()}")
            rates[peer.name].append(_rate(kind, report))
            cpu[peer.name].append(1000 * spent / max(1, report.requests if kind == FIND else report.answers))
        unit = "queries/s" if kind == FIND else "MB/s"
        shown = ", ".join(f"{peer.label} {rates[peer.name][-1]:,.0f}" for peer in peers)
        say(f"{name}, {count} associations: {shown} {unit}")
    figures = []
    for peer in peers:
        if peer.name == Hounsfield.name:
            continue
        ratios = [a / b if b else 0.0 for a, b in zip(rates[Hounsfield.name], rates[peer.name], strict=True)]
        detail: Mapping[str, object] = {"rates": rates, "cpu_ms_each": cpu, "associations": count}
        bar = BARS[kind].get(peer.name)
        what = f"{name}, {count} at once, over {peer.label}"
        figures.append(Figure(kind, what, ratios, "×", at_least=bar, detail=dict(detail)))
    return figures


def _rate(kind: str, report: QueryReport) -> float:
    if not report.seconds:
        return 0.0
    if kind == FIND:
        return report.requests / report.seconds
    # of C-MOVE the destination has the bytes: completed sub-operations, of one known size each
    return report.answers * _SLICE_BYTES / 1e6 / report.seconds


EXPERIMENTS: dict[str, tuple[Experiment, str]] = {
    FIND: (find, "C-FIND of studies"),
    GET: (get, "C-GET of series"),
    MOVE: (move, "C-MOVE of series"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments; 1 when a bar was not held or an experiment failed."""

    found = {name: (partial(_itself, run), title) for name, (run, title) in EXPERIMENTS.items()}
    return engine.run_named(arguments, found, name="query-retrieve", document=__doc__)


def _itself(run: Experiment) -> Experiment:
    return run


if __name__ == "__main__":
    sys.exit(main())
