"""Outside the framing that docs/segment-format.md names, sealed files cannot be told from random bytes."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.tables import FRESH, GRAM, GRAMS, INSTANCE, JOURNAL, PATIENT, SERIES, STUDY
from hounsfield.storage_backends.api import Table
from support.archives import ct_slice, store, stores_in

MARKER = bytes.fromhex("F19D48465245430E")
HEAD = struct.Struct("<8s16sIIQII")
HEADERS_BYTES = 2 * 4096
EPOCH_BYTES = 4
#: Of 255 degrees of freedom: mean 255, deviation 22.6. Random bytes leave these bounds once in 10^7 tests.
CHI_SQUARE_MIN, CHI_SQUARE_MAX = 150.0, 390.0


def sealed_parts(segment: bytes) -> Iterator[bytes]:
    """What stands between the framing of each record; a second reading of docs/segment-format.md."""
    at = HEADERS_BYTES
    while at < len(segment):
        if segment[at : at + 8] != MARKER:
            end = min(len(segment), -(-(at + 1) // 4096) * 4096)
            assert not any(segment[at:end]), "neither a record nor padding"
            at = end
            continue
        _, _, _, parts, length, _, _ = HEAD.unpack_from(segment, at)
        yield segment[at + HEAD.size + 8 * parts : at + length]
        at += length


def chi_square(data: np.ndarray) -> float:
    expected = len(data) / 256
    return float(((np.bincount(data, minlength=256) - expected) ** 2 / expected).sum())


def check_random(data: bytes) -> None:
    """Single bytes, neighbours and bytes sixteen apart are spread evenly, and nothing compresses."""
    assert len(data) > 100_000
    raw = np.frombuffer(data, np.uint8)
    for distance in (0, 1, 2, 4, 8, 16, 512):
        seen = raw if not distance else raw[distance:] ^ raw[:-distance]
        assert CHI_SQUARE_MIN < chi_square(seen) < CHI_SQUARE_MAX, distance
    assert len(zlib.compress(data, 9)) >= len(data)
    assert len({data[i : i + 16] for i in range(0, len(data) - 16, 16)}) == (len(data) - 1) // 16


def sealed_rows(stores: Stores, table: Table) -> Iterator[bytes]:
    with stores.store.snapshot() as snapshot:
        for _, row in snapshot.scan(table):
            yield row[EPOCH_BYTES:]


async def test_segments_ledger_and_rows(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for number in range(40):
                pixels = bytes(16 * 16 * 2) * 40  # as far from random as can be
                uids = {"study_uid": f"2.25.{number % 7 + 1}", "series_uid": f"2.25.{number}"}
                data = ct_slice(**uids, number=number, pixels=pixels)
                await store(engine, data, ExplicitVRLittleEndian)
            for number in range(300):
                await engine.commit_fact(
                    "ae", f"AE{number}", {"title": f"AE{number}", "comment": "0" * 400}, 1
                )
        stores.merger.merge_all()
        tables = (STUDY, SERIES, INSTANCE, PATIENT, GRAMS, JOURNAL)
        rows = b"".join(row for table in tables for row in sealed_rows(stores, table))
        with stores.store.snapshot() as snapshot:
            assert not list(snapshot.scan(FRESH))
            assert list(snapshot.scan(GRAM))
    check_random(rows)
    for kind in ("segments", "ledger"):
        whole = b"".join(
            part
            for path in sorted((directory / kind).iterdir())
            if path.is_file()
            for part in sealed_parts(path.read_bytes())
        )
        check_random(whole)


def test_the_tests_tell_random_bytes_from_others() -> None:
    source = random.Random(4)
    noise = source.randbytes(300_000)
    check_random(noise)
    biased = bytes(byte if source.random() < 0.97 else 0 for byte in noise)
    repeated = noise[:150_000] * 2
    for data in (biased, repeated, noise[:299_000] + bytes(1000), b"text" * 75_000):
        try:
            check_random(data)
        except AssertionError:
            continue
        raise RuntimeError("was taken for random")
