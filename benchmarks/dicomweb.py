"""DICOMweb beside tuned Orthanc: `python -m benchmarks dicomweb [--only NAME,…] [--quick]`.

Each experiment fills both servers with the same objects and asks both the same, in turn; what answers say is
compared first. Sizes, with --size: frames=500 (multiples of 4), slices=1000 (metadata), studies=5000 (qido),
pictures=20 (rendered), series=500. Results are saved as JSON with the machine that they were measured on;
exit status 1 when a bar is not held.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from PIL import Image

from benchmarks import engine
from benchmarks.bars import Experiment, Figure, Say, Settings
from benchmarks.beside import CONNECTIONS, Answer, Question, ask, bar, filled, measured, read_once
from benchmarks.cstore_load import Load, identity_of
from benchmarks.frames import VARIANTS, frame_targets
from benchmarks.http_load import Target, payload
from benchmarks.peers.base import Peer, PeerError
from benchmarks.people import SURNAMES
from benchmarks.results import OURS
from benchmarks.studies import Identity, Kind, template

ASSOCIATIONS = 4
#: HTJ2K before anything: who has none sends the frames as they are stored.
HTJ2K_ACCEPT = (
    'multipart/related; type="image/jphc"; transfer-syntax=1.2.840.10008.1.2.4.201, '
    'multipart/related; type="application/octet-stream"; transfer-syntax=*'
)
JSON_ACCEPT = "application/dicom+json"
INSTANCE_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
#: Servers differ in which of an object's windows they take; here both show the same.
WINDOW = "window=40,400,linear"
#: Of what was never asked for, each client takes so many, by the number of clients. Those of `http_load`
#: start 37 apart.
FRESH_EACH = {1: 148, 8: 37}
FRESH_EACH_QUICK = {1: 8}
ANSWERS_MAX = 101  # as OHIF asks


# ------------------------------------------------------------ frames


def frames(settings: Settings, say: Say) -> list[Figure]:
    """Frames as they are stored: 512 KiB each."""
    with filled(settings, say, _slices(settings.size("frames", 500, 20))) as (peers, load):
        targets = frame_targets(load, load.run)
        for peer in peers:
            read_once(peer, targets)
        question = Question(
            "512 KiB frames", lambda *_: targets, bars={1: 6.0, 8: 8.0}, p99_ms=3.0, unit="frames"
        )
        return measured(settings, say, "frames", peers, [question])


def htj2k(settings: Settings, say: Say) -> list[Figure]:
    """Frames for a client that prefers HTJ2K, of objects that were sent uncompressed.

    Orthanc has no HTJ2K: it gives the frames uncompressed, which such a client takes too. Both are lossless:
    one of ours is decoded, and both are compared with what was sent. What was never asked for was read as it
    is stored, so that both servers have it in memory.
    """
    number, each = settings.size("frames", 500, 20), _each(settings)
    with filled(settings, say, _slices(number + _fresh(each) * settings.rounds)) as (peers, load):
        stored = frame_targets(load, load.run)
        every = [_of_htj2k(target) for target in stored]
        again, once = every[:number], every[number:]
        for peer in peers:
            _check_htj2k(peer, again[0])
            read_once(peer, again, connections=CONNECTIONS)
            read_once(peer, [_whole(target) for target in stored[number:]])
        questions = [
            Question("frames as HTJ2K, asked before", lambda *_: again, bars=bar(10.0), unit="frames"),
            Question(
                "frames as HTJ2K, never asked before",
                partial(_never_asked, once, each),
                each=each,
                unit="frames",
            ),
        ]
        return measured(settings, say, "htj2k", peers, questions)


def _whole(target: Target) -> Target:
    """The instance of a frame: who has read it has all of it in memory."""
    return Target(path=target.path.rpartition("/frames/")[0], accept=INSTANCE_ACCEPT)


def _of_htj2k(target: Target) -> Target:
    # 64 KiB: less is no CT slice. Ours are some 170 KiB, theirs 512.
    return Target(path=target.path, accept=HTJ2K_ACCEPT, size=64 * 1024)


def _check_htj2k(peer: Peer, target: Target) -> None:
    answer = ask(peer, target)
    data = bytes(payload(memoryview(answer.body), answer.head))
    if peer.name == OURS:
        import imagecodecs

        data = np.asarray(imagecodecs.htj2k_decode(data)).astype("<u2").tobytes()
    if data != _pixels(0):
        raise PeerError(f"{peer.label} gives other pixels than were sent")


# ------------------------------------------------------------ metadata


def metadata(settings: Settings, say: Say) -> list[Figure]:
    """Everything but bulk data of each instance of one series, as DICOM JSON."""
    slices = settings.size("slices", 1000, 20)
    load = Load("127.0.0.1", 0, count=slices, instances_per_series=slices)
    with filled(settings, say, load) as (peers, load):
        path = f"{_series(load, 0)}/metadata"
        for peer in peers:
            found = len(json.loads(ask(peer, Target(path, JSON_ACCEPT)).body))
            if found != slices:
                raise PeerError(f"{peer.label} describes {found} of {slices} instances")
        questions = [
            Question(f"metadata of {slices:,} instances, {said}", partial(_only, target), bars=bar(50.0))
            for said, target in (
                ("gzip", Target(path, JSON_ACCEPT, coding="gzip")),
                ("uncompressed", Target(path, JSON_ACCEPT)),
            )
        ]
        return measured(settings, say, "metadata", peers, questions)


def _only(target: Target, *_: object) -> list[Target]:
    return [target]


# ------------------------------------------------------------ QIDO-RS


def qido(settings: Settings, say: Say) -> list[Figure]:
    """Searches for studies among many, of one small instance each, with up to 101 answers."""
    studies = settings.size("studies", 5000, 160)
    load = Load(
        "127.0.0.1", 0, associations=8, count=max(1, studies // 8), kind="small", study_per_object=True
    )
    with filled(settings, say, load) as (peers, load):
        asked = {
            "by part of the name": (_by_name(), 10.0),
            "by a week of dates": (_by_week(), 10.0),
            "by patient ID": (_by_patient(load), None),
        }
        for what, (paths, _) in asked.items():
            _check_same(peers, what, paths[:: max(1, len(paths) // 16)])
        questions = [
            Question(
                f"QIDO, {load.associations * load.count:,} studies, {what}",
                partial(_searches, paths),
                bars=bar(least) if least else {},
            )
            for what, (paths, least) in asked.items()
        ]
        return measured(settings, say, "qido", peers, questions)


def _search(match: str) -> str:
    return f"/dicom-web/studies?{match}&limit={ANSWERS_MAX}&offset=0&fuzzymatching=false"


def _by_name() -> list[str]:
    return [_search(f"PatientName=*{name[1:5]}*") for name in SURNAMES]


def _by_week() -> list[str]:
    """Weeks of the years that `studies.Identity` spreads studies over."""
    return [
        _search(f"StudyDate={year}{month:02}{day:02}-{year}{month:02}{day + 6:02}")
        for year in range(2016, 2026)
        for month in range(1, 13)
        for day in (1, 8, 15, 22)
    ]


def _by_patient(load: Load) -> list[str]:
    people = (
        identity_of(Identity, load, load.run, association, index)
        for association in range(load.associations)
        for index in range(0, load.count, 10)
    )
    return [_search(f"PatientID={one.values()['patient_id'].decode()}") for one in people]


def _searches(paths: Sequence[str], *_: object) -> list[Target]:
    return [Target(path, JSON_ACCEPT) for path in paths]


def _check_same(peers: Sequence[Peer], what: str, paths: Sequence[str]) -> None:
    """Both find the same studies; where there are more than one answer holds, as many."""
    for path in paths:
        found = [_studies_of(ask(peer, Target(path, JSON_ACCEPT))) for peer in peers]
        if any(one != found[0] for one in found) and any(len(one) < ANSWERS_MAX for one in found):
            raise PeerError(f"{what}: the servers find {' and '.join(str(len(one)) for one in found)}")


def _studies_of(answer: Answer) -> set[str]:
    return {study["0020000D"]["Value"][0] for study in json.loads(answer.body or b"[]")}


# ------------------------------------------------------------ rendered


def rendered(settings: Settings, say: Say) -> list[Figure]:
    """JPEG of CT slices, the same window: again and again, and of slices that nobody has asked for.

    Those are read as they are stored right before, so that both servers have them in memory and neither has
    drawn them.
    """
    number, each = settings.size("pictures", 20, 4), _each(settings)
    fresh = _fresh(each)
    with filled(settings, say, _slices(number + fresh * settings.rounds)) as (peers, load):
        stored = frame_targets(load, load.run)
        drawn = [_drawn(target) for target in stored]
        again, once = drawn[:number], drawn[number:]
        for peer in peers:
            _check_picture(peer, again[0])
            read_once(peer, again, connections=CONNECTIONS)

        def warm(peer: Peer, turn: int) -> None:
            first = number + turn * fresh
            read_once(peer, [_whole(target) for target in stored[first : first + fresh]])

        questions = [
            Question("rendered JPEG, asked before", lambda *_: again, bars=bar(3.0), unit="pictures"),
            Question(
                "rendered JPEG, never asked before",
                partial(_never_asked, once, each),
                bars=bar(3.0),
                each=each,
                unit="pictures",
            ),
        ]
        return measured(settings, say, "rendered", peers, questions, before=warm)


def _drawn(target: Target) -> Target:
    return Target(
        path=f"{target.path.rpartition('/frames/')[0]}/rendered?{WINDOW}", accept="image/jpeg", size=1024
    )


def _check_picture(peer: Peer, target: Target) -> None:
    picture = Image.open(io.BytesIO(ask(peer, target).body))
    if (picture.format, picture.size) != ("JPEG", (512, 512)):
        raise PeerError(f"{peer.label} draws a {picture.format} of {picture.size}")


# ------------------------------------------------------------ a whole series


def series(settings: Settings, say: Say) -> list[Figure]:
    """Every instance of a series in one answer, as stored."""
    slices = settings.size("series", 500, 20)
    load = Load("127.0.0.1", 0, count=slices, instances_per_series=slices)
    with filled(settings, say, load) as (peers, load):
        path = _series(load, 0)
        for peer in peers:
            _check_series(peer, path, slices)
        question = Question(
            f"a series of {slices} CT slices",
            partial(
                _only, Target(path, INSTANCE_ACCEPT, size=slices * template(Kind.CT).pixels[1], kept=False)
            ),
            bars=bar(1.4),
            unit="instances",
            holds=slices,
        )
        return measured(settings, say, "series", peers, [question])


def _check_series(peer: Peer, path: str, slices: int) -> None:
    """As many parts as instances, the first with pixels that were sent."""
    answer = ask(peer, Target(path, INSTANCE_ACCEPT))
    found = re.search(r'boundary="?([^";]+)"?', answer.header("content-type"))
    if found is None:
        raise PeerError(f"{peer.label} does not answer in parts")
    parts = answer.body.count(b"\r\nContent-Type: application/dicom")
    if parts != slices:
        raise PeerError(f"{peer.label} gives {parts} of {slices} instances")
    end = answer.body.index(b"\r\n--" + found[1].encode(), 1)
    if not any(answer.body.endswith(_pixels(variant), 0, end) for variant in range(VARIANTS)):
        raise PeerError(f"{peer.label} gives other pixels than were sent")


def _pixels(variant: int) -> bytes:
    source = template(Kind.CT, variant=variant)
    offset, length = source.pixels
    return source.data[offset : offset + length]


# ------------------------------------------------------------ what is stored


def _slices(number: int) -> Load:
    """So many CT slices or a few more, in four studies."""
    return Load("127.0.0.1", 0, associations=ASSOCIATIONS, count=-(-number // ASSOCIATIONS))


def _each(settings: Settings) -> dict[int, int]:
    return FRESH_EACH_QUICK if settings.quick else FRESH_EACH


def _fresh(each: Mapping[int, int]) -> int:
    """How many a round takes that were never asked for."""
    return sum(clients * count for clients, count in each.items())


def _never_asked(
    once: Sequence[Target], each: Mapping[int, int], _: Peer, turn: int, clients: int
) -> Sequence[Target]:
    """Those of a round that are kept for so many clients."""
    first = turn * _fresh(each) + sum(many * count for many, count in each.items() if many < clients)
    return once[first : first + clients * each[clients]]


def _series(load: Load, association: int) -> str:
    one = identity_of(Identity, load, load.run, association, 0)
    return f"/dicom-web/studies/{one.study_uid()}/series/{one.series_uid()}"


EXPERIMENTS: dict[str, tuple[Experiment, str]] = {
    "frames": (frames, "512 KiB frames as stored"),
    "htj2k": (htj2k, "frames for a client that takes HTJ2K"),
    "rendered": (rendered, "JPEG of CT slices, asked before and never"),
    "metadata": (metadata, "metadata of a series of 1,000"),
    "series": (series, "a whole series of 500 in one answer"),
    "qido": (qido, "searches among 5,000 studies"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments; 1 when a bar was not held or an experiment failed."""
    found = {name: (partial(_itself, run), title) for name, (run, title) in EXPERIMENTS.items()}
    return engine.run_named(arguments, found, name="dicomweb", document=__doc__)


def _itself(run: Experiment) -> Experiment:
    return run


if __name__ == "__main__":
    sys.exit(main())
