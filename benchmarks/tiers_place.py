"""An archive whose series lie in a bucket, and what obstore alone gets from there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store

from benchmarks import archives
from benchmarks.large_object import MULTI_FRAME_GRAYSCALE_WORD, LargeObject
from benchmarks.peers.base import PeerError
from benchmarks.peers.seaweedfs import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFs
from benchmarks.studies import EXPLICIT_VR_LITTLE_ENDIAN, Identity, Instance, Kind, studies
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.tiers import TieringOptions, TierOptions
from hounsfield.archive.index.copying import Copying
from hounsfield.archive.index.gathering import Gatherer
from hounsfield.archive.index.packs import HOT
from hounsfield.archive.index.tables import SERIES
from hounsfield.archive.index.tier_places import pack_key

COLD = "cold"
AT_ONCE = 4  # requests of obstore alone, and the bytes of each: nothing was faster on loopback
RANGE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ColdArchive:
    """Open stores, of which every series is a pack that lies in the bucket."""

    stores: Stores
    copying: Copying
    packs: Sequence[bytes]
    place: Path
    server: SeaweedFs


@contextmanager
def cold_archive(server: SeaweedFs, place: Path, instances: Sequence[Instance]) -> Iterator[ColdArchive]:
    """Store, gather, and move to the bucket of ``server``: an archive in ``place``."""
    options = replace(archives.OPTIONS, tiering=TieringOptions((TierOptions(COLD, server.options()),)))
    with archives.stores_in(place, options) as stores:
        archives.fill(stores, instances)
        copying = Copying(stores.store, stores.keyring, stores.tiers.by_name)
        packs = gathered(stores)
        for segment in packs:
            copying.copy(segment, COLD)
            copying.drop(segment, HOT)
        os.sync()
        yield ColdArchive(stores, copying, packs, place, server)


@contextmanager
def s3_server(scratch: Path | None) -> Iterator[SeaweedFs]:
    """An S3 server; ``PeerError`` when none is installed."""
    missing = SeaweedFs.missing()
    if missing:
        raise PeerError(f"no S3 server: {missing}")
    with SeaweedFs(scratch=scratch) as server:
        yield server


def gathered(stores: Stores) -> list[bytes]:
    """Make packs of every series."""
    with stores.store.snapshot() as snapshot:
        series = [key for key, _ in snapshot.scan(SERIES)]
    gatherer = Gatherer(stores.indexer)
    reports = [gatherer.gather(key, quiet_before_ns=1 << 62) for key in series]
    return [segment for report in reports for segment in report.packs]


def slices(count: int, *, series: int = 1, run: int = 1) -> list[Instance]:
    """CT of 512 KiB a slice: so many series of so many, in one study."""
    return list(studies(Kind.CT, run=run, series_per_study=series, instances_per_series=count))


def multi_frame(frames: int) -> Instance:
    """One object that is stored in pieces."""
    one = LargeObject.of(frames)
    identity = Identity(0, 0, 0, 0, 0)  # only its UIDs would be asked for
    data = b"".join(one.pieces())
    return Instance(MULTI_FRAME_GRAYSCALE_WORD, one.sop_uid, EXPLICIT_VR_LITTLE_ENDIAN, data, identity)


# ---------------------------------------------------------------- obstore alone


def alone(server: SeaweedFs) -> S3Store:
    """A store of obstore's own, with nothing of ours around it."""
    return S3Store(
        BUCKET,
        config={
            "endpoint": server.endpoint,
            "region": "us-east-1",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "virtual_hosted_style_request": False,
        },
        client_options={"allow_http": True, "timeout": timedelta(seconds=60)},
    )


def fetched(store: S3Store, segment: bytes, size: int) -> int:
    """All bytes of a pack into memory, ``AT_ONCE`` ranges at a time, each let go when it is there."""
    key = pack_key(segment)
    edges = [(start, min(start + RANGE_BYTES, size)) for start in range(0, size, RANGE_BYTES)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        ranges = threads.map(
            lambda edge: len(obstore.get_range(store, key, start=edge[0], end=edge[1])), edges
        )
        return sum(ranges)


def fetched_to_file(store: S3Store, segment: bytes, size: int, path: Path) -> int:
    """The same into a synced file, each range written by whoever fetched it."""
    key = pack_key(segment)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def one(start: int) -> int:
        data = obstore.get_range(store, key, start=start, end=min(start + RANGE_BYTES, size))
        return os.pwrite(descriptor, data, start)

    try:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            done = sum(threads.map(one, range(0, size, RANGE_BYTES)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        path.unlink()
    return done
