"""Gathering stopped at any step, or killed at any moment: nothing is lost, or seen twice, or leaks."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.large_storing import LargeLimits
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.gathering import Gatherer, GatherLimits
from hounsfield.archive.index.packs import Packs
from hounsfield.archive.index.tables import SERIES
from hounsfield.archive.index.use import uses
from hounsfield.codecs.at_rest import Encoding
from hounsfield.storage_backends import packs
from hounsfield.storage_backends.local_writer import LocalBlobWriter
from support.archives import ct_slice, store, stores_in
from support.contents import contents
from support.killed_steps import STEPS, Killed, compact_everything, killed_at
from support.leader_child import killed_after

EVERY = int(os.environ.get("HOUNSFIELD_KILL_EVERY") or 2)  # so-manieth step
LIMITS = GatherLimits(group_bytes=4096, group_records=2, pack_bytes=14_000)
OPTIONS = EngineOptions(ingest=IngestLimits(stream_bytes_min=20_000, large=LargeLimits(piece_bytes=10_000)))


def fill(directory: Path) -> None:
    """A series of slices, one twice and one deleted, and an object in pieces; another series beside."""

    def shape(frames: int):  # type: ignore[no-untyped-def]
        def change(data) -> None:  # type: ignore[no-untyped-def]
            data.Rows = data.Columns = 64
            data.NumberOfFrames = frames
            data.PixelData = bytes(range(256)) * 32 * frames

        return change

    async def run(stores: Stores) -> None:
        async with open_engine(stores, OPTIONS, owner="test") as engine:
            for number in (0, 1, 2, 2, 3, 4):
                data = ct_slice(
                    study_uid="2.25.1", series_uid="2.25.1.1", sop_uid=f"2.25.1.1.{number}", number=number,
                    change=shape(3 if number == 4 else 1) if number != 2 else None,
                )  # fmt: skip
                await store(engine, data, ExplicitVRLittleEndian)
            await store(engine, ct_slice(study_uid="2.25.2"), ExplicitVRLittleEndian)
            target = Target("2.25.1", "2.25.1.1", ("2.25.1.1.3",))
            stores.deletions.delete(target, reason="test", actor="test", now_ns=1)

    with stores_in(directory, OPTIONS) as stores:
        trio.run(run, stores)
    with stores_in(directory, OPTIONS) as stores:
        stores.catch_up(at_start=True)


def shown(stores: Stores) -> dict[str, Any]:
    """The contents with what was received as each object, and not where and how it is stored."""
    found = contents(stores)
    for table in ("instance", "version"):
        for row in found[table].values():
            pieces = stores.indexer.objects.data_set(row.pop("location"), row.pop("stored_as"))
            row["bytes"] = b"".join(map(bytes, pieces))
    return {name: rows for name, rows in found.items() if name not in {"use", "spare", "tombstone"}}


def gather_all(stores: Stores, encoding: Encoding | None = Encoding.ZSTD) -> list[bytes]:
    with stores.store.snapshot() as snapshot:
        keys = [key for key, _ in snapshot.scan(SERIES)]
    found: list[bytes] = []
    for key in keys:
        report = Gatherer(stores.indexer, LIMITS).gather(key, quiet_before_ns=1 << 62, recompress=encoding)
        assert not report.skipped
        found += report.packs
    return found


def check_nothing_leaks(stores: Stores, before: dict[str, Any]) -> None:
    """All is in packs, each of which proves itself and is listed; and there is nothing else."""
    assert shown(stores) == before
    with stores.store.snapshot() as snapshot:
        assert not list(uses(snapshot))
    found = contents(stores)
    rows = [*found["instance"].values(), *found["version"].values()]
    segments = set(stores.log.segment_ids())
    assert segments == {row["location"].segment for row in rows}
    listed = {segment: row for page in Packs(stores.store).pages() for segment, row in page}
    assert set(listed) == segments
    for segment, row in listed.items():
        key = stores.keyring.key("segment", segment.hex())
        pieces = stores.log.stretches(segment, 0, stores.log.size(segment))
        assert packs.checked(pieces, segment, key).digest == row.digest
        assert row.objects == sum(one["location"].segment == segment for one in rows)
    ledger = {one.hex() for one in stores.ledger.segment_ids()}
    # A key can be left of a segment that never came to be; it opens nothing.
    unused = set(stores.keyring.key_ids("segment")) - {one.hex() for one in segments} - ledger
    assert len(unused) <= 1


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    key = target.parent / f"{target.name}.key"
    key.write_text((source.parent / f"{source.name}.key").read_text())
    key.chmod(0o600)
    return target


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_stopped_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    fill(tmp_path / "data")
    with stores_in(tmp_path / "data", OPTIONS) as stores:
        before = shown(stores)
        key = stores.catalog.series_key("2.25.1", "2.25.1.1")
    met: set[str] = set()
    for step in range(1, 200, EVERY * (3 if after else 1)):
        directory = copied(tmp_path / "data", tmp_path / str(step))
        with stores_in(directory, OPTIONS) as stores:
            stores.sealer.prepare(100)
            done = True
            with killed_at(step, monkeypatch, after=after) as seen:
                try:
                    Gatherer(stores.indexer, LIMITS).gather(
                        key, quiet_before_ns=1 << 62, recompress=Encoding.ZSTD
                    )
                except Killed:
                    done = False
            met.update(seen)
        if step % 4 == 1:
            again = copied(directory, tmp_path / f"{step}-anew")
            shutil.rmtree(again / "index")
            with stores_in(again, OPTIONS) as stores:
                assert stores.reindex(lambda _done, _total: None).damaged == 0
                assert shown(stores) == before
                stores.catch_up(at_start=True)
                gather_all(stores)
                compact_everything(stores)
                check_nothing_leaks(stores, before)
            shutil.rmtree(again)
        with stores_in(directory, OPTIONS) as stores:
            assert stores.catch_up(at_start=True).damaged == 0
            assert shown(stores) == before
            gather_all(stores)
            assert shown(stores) == before
            compact_everything(stores)
            check_nothing_leaks(stores, before)
        shutil.rmtree(directory)
        if done:
            break
    assert step > 20
    steps = {f"{cls.__name__}.{name}" for cls, name in STEPS}
    # Nothing old is deleted, and no sync of the index waited for: what it would lose is still where it was.
    assert after or met == steps - {"Keyring.destroy_key", "LmdbStore.sync"}


def test_killed_in_the_middle(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    fill(directory)
    with stores_in(directory, OPTIONS) as stores:
        before = shown(stores)
    source = random.Random(4)
    for turn in range(3):
        killed_after(source.randrange(1, 60), "gather", directory)
        if turn % 2:
            shutil.rmtree(directory / "index")
            with stores_in(directory, OPTIONS) as stores:
                assert stores.reindex(lambda _done, _total: None).damaged == 0
                assert shown(stores) == before
        with stores_in(directory, OPTIONS) as stores:
            assert stores.catch_up(at_start=True).damaged == 0
            assert shown(stores) == before
    with stores_in(directory, OPTIONS) as stores:
        gather_all(stores)
        compact_everything(stores)
        check_nothing_leaks(stores, before)


def test_an_error_leaves_no_half_written_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails in the middle, in a process that goes on."""
    fill(tmp_path / "data")
    with stores_in(tmp_path / "data", OPTIONS) as stores:
        before, segments = shown(stores), stores.log.segment_ids()
        sync = LocalBlobWriter.sync
        for failing in range(1, 30):
            times = 0

            def fail(self: LocalBlobWriter, failing: int = failing) -> None:
                nonlocal times
                times += 1
                if times == failing:
                    raise OSError("no more")
                sync(self)

            with monkeypatch.context() as patch:
                patch.setattr(LocalBlobWriter, "sync", fail)
                try:
                    gather_all(stores)
                except OSError:
                    gathered = {segment for page in Packs(stores.store).pages() for segment, _ in page}
                    assert set(stores.log.segment_ids()) == {*segments, *gathered}
                    continue
            break
        assert failing > 5
        compact_everything(stores)
        check_nothing_leaks(stores, before)


def test_an_older_index_finds_what_was_gathered_since(tmp_path: Path) -> None:
    """The index comes from a backup: the places that it names are gone, and their records are in packs."""
    directory = tmp_path / "data"
    fill(directory)
    with stores_in(directory, OPTIONS) as stores:
        before = shown(stores)
    shutil.copytree(directory / "index", tmp_path / "older")
    with stores_in(directory, OPTIONS) as stores:
        gather_all(stores, Encoding.HTJ2K)
    shutil.rmtree(directory / "index")
    shutil.copytree(tmp_path / "older", directory / "index")
    with stores_in(directory, OPTIONS) as stores:
        assert stores.catch_up(at_start=True).damaged == 0
        assert shown(stores) == before
        gather_all(stores)
        compact_everything(stores)
        check_nothing_leaks(stores, before)


def test_a_damaged_end_makes_a_pack_a_segment_like_any_other(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    fill(directory)
    with stores_in(directory, OPTIONS) as stores:
        before = shown(stores)
        found = gather_all(stores)
        ends = {segment: packs.end_of(stores.log, segment) for segment in found}
    for segment, end in ends.items():
        assert end is not None
        path = directory / "segments" / segment.hex()
        raw = bytearray(path.read_bytes())
        raw[end.end_at + 70] ^= 1
        path.write_bytes(raw)
    shutil.rmtree(directory / "index")
    with stores_in(directory, OPTIONS) as stores:
        stores.reindex(lambda _done, _total: None)
        assert shown(stores) == before
        assert not list(Packs(stores.store).pages())
        gather_all(stores)
        assert shown(stores) == before
