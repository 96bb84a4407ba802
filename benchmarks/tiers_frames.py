"""The first frame of a series that lies in a bucket, over HTTP from a running server, and those after it.

Beside it stands one ranged GET of the same sealed bytes, with obstore from the same bucket. Every series is
asked for once, so that nothing of it was kept; nothing is brought back meanwhile (`recall_when_opened`).
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.store import S3Store

from benchmarks import archives, bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.figures import median
from benchmarks.http_load import (
    FRAMES_ACCEPT,
    Client,
    HttpLoad,
    Target,
    build_request,
    payload,
    run_http_load,
)
from benchmarks.index_load import OnArchive, server_on
from benchmarks.peers.seaweedfs import BUCKET, SeaweedFs
from benchmarks.sealed_frames import path_of
from benchmarks.studies import Instance, Kind, template
from benchmarks.tiers_place import COLD, ColdArchive, alone, cold_archive, s3_server, slices
from hounsfield.archive.index.tier_places import pack_key
from hounsfield.storage_backends.segment_format import sealed_length

BAR = 3.0
EXPERIMENT = "first-cold-frame"

Stretch = tuple[str, int, int]  # the object in the bucket, from where, how many bytes


def run(settings: Settings, say: Say) -> list[Figure]:
    """One server; a round is so many series for the first frame, and one that is scrolled through."""
    opened, each = settings.size("series", 12, 3), settings.size("slices", 10, 3)
    scrolled = settings.size("scrolled", 200, 10)
    rounds = settings.rounds
    short = slices(each, series=opened * rounds + 1)
    long = slices(scrolled, series=rounds, run=2)
    with s3_server(settings.scratch) as bucket, archives.folder(settings.scratch) as place:
        with cold_archive(bucket, place, [*short, *long]) as cold:
            firsts = [short[at + each // 2] for at in range(0, len(short), each)]
            stretches = [_stretch(cold, one) for one in firsts]
        with _serving(place, bucket, settings.scratch) as peer:
            figures = _firsts(settings, say, peer, alone(bucket), firsts, stretches)
            return figures + _scrolled(say, peer, long, scrolled)


def _firsts(
    settings: Settings,
    say: Say,
    peer: OnArchive,
    store: S3Store,
    firsts: Sequence[Instance],
    stretches: Sequence[Stretch],
) -> list[Figure]:
    port = peer.endpoints.http_port
    assert port
    client = Client("127.0.0.1", port)
    _timed_frame(client, port, firsts[-1])  # connections are open, and keys unwrapped
    _timed_range(store, stretches[-1])
    ours: list[float] = []
    raw: list[float] = []
    each = len(firsts) // settings.rounds
    for number in range(settings.rounds):
        some = range(number * each, (number + 1) * each)
        frames, ranges = [], []
        for at in some:
            if at % 2:
                frames.append(_timed_frame(client, port, firsts[at]))
            ranges.append(_timed_range(store, stretches[at]))
            if not at % 2:
                frames.append(_timed_frame(client, port, firsts[at]))
        ours.append(median(frames))
        raw.append(median(ranges))
        say(f"first frame {ours[-1]:.1f} ms, ranged GET {raw[-1]:.1f} ms")
    client.close()
    ratios = [a / b for a, b in zip(ours, raw, strict=True)]
    return [
        Figure(EXPERIMENT, "first frame over one ranged GET of its bytes", ratios, "×", at_most=BAR),
        Figure(EXPERIMENT, "first frame of a cold series, p50", ours, "ms"),
        Figure(EXPERIMENT, "one ranged GET of obstore, p50", raw, "ms"),
    ]


def _timed_frame(client: Client, port: int, one: Instance) -> float:
    request = build_request("127.0.0.1", port, Target(path_of(one), FRAMES_ACCEPT))
    began = time.perf_counter()
    status, body, head = client.get(request)
    took = time.perf_counter() - began
    if status != 200 or bytes(payload(body, head)) != _pixels(one):
        raise RuntimeError(f"a cold frame was answered with {status}, or other bytes: {bytes(body[:300])!r}")
    return 1000 * took


def _timed_range(store: S3Store, stretch: Stretch) -> float:
    key, start, length = stretch
    began = time.perf_counter()
    got = len(obstore.get_range(store, key, start=start, length=length))
    took = time.perf_counter() - began
    if got != length:
        raise RuntimeError(f"{got} of {length} bytes came")
    return 1000 * took


def _scrolled(say: Say, peer: OnArchive, instances: Sequence[Instance], each: int) -> list[Figure]:
    assert peer.endpoints.http_port
    p50: list[float] = []
    p99: list[float] = []
    for start in range(0, len(instances), each):
        targets = [
            Target(path_of(one), FRAMES_ACCEPT, digest=hashlib.sha256(_pixels(one)).hexdigest())
            for one in instances[start : start + each]
        ]
        load = HttpLoad("127.0.0.1", peer.endpoints.http_port, seconds=600.0, count=each, in_order=True)
        report = run_http_load(load, targets)
        if report.failures:
            raise RuntimeError(f"cold frames were answered with {report.failures}")
        p50.append(report.p50_ms)
        p99.append(report.p99_ms)
        say(f"scrolling: p50 {p50[-1]:.1f} ms, p99 {p99[-1]:.1f} ms, {report.rate:.0f} frames/s")
    return [
        Figure(EXPERIMENT, f"scrolling through {each} cold slices, p50", p50, "ms"),
        Figure(EXPERIMENT, f"scrolling through {each} cold slices, p99", p99, "ms"),
    ]


def _pixels(one: Instance) -> bytes:
    offset, length = template(Kind.CT).pixels
    return bytes(one.data[offset : offset + length])


def _stretch(cold: ColdArchive, one: Instance) -> Stretch:
    """Where the sealed bytes of its frame are, as the archive's index says it."""
    who, stores = one.identity, cold.stores
    with stores.store.snapshot() as snapshot:
        row = stores.catalog.instance(snapshot, who.study_uid(), who.series_uid(), one.sop_instance_uid)
    if row is None:
        raise RuntimeError("an object that was stored is not in the index")
    part = row.location.frame_part(1)
    return pack_key(part.segment), part.offset, sealed_length(part.length)


@contextmanager
def _serving(place: Path, bucket: SeaweedFs, scratch: Path | None) -> Iterator[OnArchive]:
    """The archive in ``place``, with the bucket as its cold tier and no rule."""
    tier = {
        "name": COLD,
        "bucket": BUCKET,
        "endpoint": bucket.endpoint,
        "plain": True,
        "credentials": f"file:{bucket.keys}",
    }
    lines = ["[tiering]", "recall_when_opened = false", "[[tiers]]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in tier.items()]
    config = place / "config.toml"
    config.write_text("\n".join(lines) + "\n")
    peer = server_on(place, scratch)
    peer.arguments = (*peer.arguments, "--config", str(config))
    with peer:
        yield peer


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
