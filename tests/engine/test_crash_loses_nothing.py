"""kill -9 at any moment loses nothing that was acknowledged; what was durable but not indexed comes back."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.recovery import RecoveryReport
from hounsfield.storage_backends.errors import PoisonedError
from hounsfield.storage_backends.lmdb_store import LmdbLimits
from hounsfield.storage_backends.local_blobs import LocalBlobs
from hounsfield.storage_backends.segment_appending import SegmentLimits
from hounsfield.storage_backends.segment_scan import ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog
from support.archives import ct_slice, open_stores, store, stores_in, write_master_key

CHILD = Path(__file__).resolve().parent.parent / "support" / "ingest_child.py"


def start_child(
    directory: Path, key: str, seed: int, count: int, associations: int, *shared: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(directory), key, str(seed), str(count), str(associations), *shared],
        stdout=subprocess.PIPE,
        text=True,
    )


def check_acknowledged(stores: Stores, acknowledged: list[str]) -> None:
    for line in acknowledged:
        study, series, sop, digest = line.split()
        with stores.store.snapshot() as snapshot:
            row = stores.catalog.instance(snapshot, study, series, sop)
        assert row is not None, "an acknowledged object is not in the index"
        ref = stores.indexer.objects.ref_of(row.location)
        data = b"".join(bytes(stores.log.open_part(part)) for part in list(ref.parts())[1:])
        assert hashlib.sha256(data).hexdigest() == digest


def check_counts(stores: Stores) -> None:
    """No half-visible study: what rows say of numbers is what is there."""
    for found in stores.planner.find(parse_qido(Level.STUDY, [])):
        study_id = stores.catalog.study_id(found.study[0x0020000D])
        with stores.store.snapshot() as snapshot:
            series = list(stores.catalog.series_of(snapshot, study_id))
            instances = [len(list(stores.catalog.instances_of(snapshot, key))) for key, _ in series]
        assert found.study[0x00201206] == str(len(series))
        assert found.study[0x00201208] == str(sum(instances))
        assert [row.instances for _, row in series] == instances


@pytest.mark.parametrize("round_number", range(4))
def test_killed_during_a_load(tmp_path: Path, round_number: int) -> None:
    key = write_master_key(tmp_path / "master.key")
    directory = tmp_path / "data"
    directory.mkdir()
    acknowledged: list[str] = []
    for life in range(3):  # the same directory is killed, recovered and loaded again
        child = start_child(directory, key, 100 * round_number + life, 10_000, 8)
        assert child.stdout is not None
        lines = random.Random(round_number * 7 + life).randrange(5, 120)
        acknowledged.extend(child.stdout.readline() for _ in range(lines))
        child.send_signal(signal.SIGKILL)
        acknowledged.extend(line for line in child.stdout if line.endswith("\n"))
        child.wait()
        stores = open_stores(directory, key)
        report = stores.catch_up(at_start=True)
        assert report.damaged == 0
        check_acknowledged(stores, acknowledged)
        check_counts(stores)
        stores.close()


def test_two_workers_share_a_study_and_one_is_killed(tmp_path: Path) -> None:
    key = write_master_key(tmp_path / "master.key")
    directory = tmp_path / "data"
    directory.mkdir()
    open_stores(directory, key).close()
    victim = start_child(directory, key, 1, 10_000, 4, "2.25.4711")
    survivor = start_child(directory, key, 2, 40, 4, "2.25.4711")
    assert victim.stdout is not None
    assert survivor.stdout is not None
    acknowledged = [victim.stdout.readline() for _ in range(60)]
    victim.send_signal(signal.SIGKILL)
    acknowledged += [line for line in victim.stdout if line.endswith("\n")]
    victim.wait()
    # What the supervisor does before it starts another: the survivor is still writing.
    stores = open_stores(directory, key)
    stores.catch_up(at_start=False)
    acknowledged += survivor.stdout.readlines()
    assert survivor.wait() == 0
    check_acknowledged(stores, acknowledged)
    check_counts(stores)
    assert len(acknowledged) >= 60 + 160
    stores.close()


async def write_without_indexing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, objects: list[bytes]
) -> None:
    """Leave durable records that the index never heard of, as a kill between the two leaves them."""

    def die(*_: object) -> None:
        raise OSError("killed here")

    with stores_in(directory) as stores, monkeypatch.context() as patch:
        patch.setattr(Indexer, "add", die)
        patch.setattr(SegmentLog, "start_anew", lambda *_: False)  # the dead do not tidy up
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for data in objects:
                with pytest.raises(Exception, match="send again"):
                    await store(engine, data, ExplicitVRLittleEndian)


async def test_durable_records_that_were_not_indexed_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [ct_slice() for _ in range(5)]
    await write_without_indexing(tmp_path / "data", monkeypatch, objects)
    with stores_in(tmp_path / "data") as stores:
        report = stores.catch_up(at_start=True)
        assert report.outcomes[Outcome.STORED] == 5
        check_counts(stores)
        # Sent again, they are held already.
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            outcomes = [(await store(engine, data, ExplicitVRLittleEndian)).outcome for data in objects]
        assert set(outcomes) == {Outcome.DUPLICATE}
    with stores_in(tmp_path / "data") as stores:
        assert stores.catch_up(at_start=True).records == 0  # closed: not read again


def end_of_records(directory: Path) -> int:
    """Where the last record of the only segment ends: zeros up to a block may follow."""
    with stores_in(directory) as stores:
        (segment,) = stores.log.segment_ids()
        *_, last = stores.log.scan(segment)
    assert isinstance(last, ScannedRecord)
    return last.ref.offset + last.ref.length


@pytest.mark.parametrize("cut", [1, 17, 300])
async def test_a_torn_tail_is_not_damage_and_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    objects = [ct_slice() for _ in range(3)]
    await write_without_indexing(tmp_path / "data", monkeypatch, objects)
    (segment,) = (tmp_path / "data" / "segments").iterdir()
    end = end_of_records(tmp_path / "data") - cut
    segment.write_bytes(segment.read_bytes()[:end])
    with stores_in(tmp_path / "data") as stores:
        report = stores.catch_up(at_start=True)
        assert (report.outcomes[Outcome.STORED], report.damaged) == (2, 0)
        assert segment.stat().st_size == end  # recovery never truncates


async def test_a_live_writer_is_left_alone(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await store(engine, ct_slice(), ExplicitVRLittleEndian)
            report: RecoveryReport = stores.catch_up(at_start=False)
            assert report.segments == 0
            assert (await store(engine, ct_slice(), ExplicitVRLittleEndian)).outcome is Outcome.STORED


async def test_a_tail_record_with_holes_is_not_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may keep a record's row and lose its frames: it was not acknowledged, and is not served."""
    objects = [ct_slice() for _ in range(3)]
    await write_without_indexing(tmp_path / "data", monkeypatch, objects)
    (segment,) = (tmp_path / "data" / "segments").iterdir()
    raw = bytearray(segment.read_bytes())
    end = end_of_records(tmp_path / "data")
    raw[end - 300 : end] = bytes(300)  # inside the last record's frame and trailer
    segment.write_bytes(raw)
    with stores_in(tmp_path / "data") as stores:
        report = stores.catch_up(at_start=True)
        assert (report.outcomes[Outcome.STORED], report.damaged) == (2, 0)
        check_counts(stores)


async def test_a_segment_without_its_key_does_not_stop_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write_without_indexing(tmp_path / "data", monkeypatch, [ct_slice()])
    (segment,) = (tmp_path / "data" / "segments").iterdir()
    keys = list((tmp_path / "data" / "keys").rglob(f"*{segment.name}*"))
    hidden = [(key, key.read_bytes()) for key in keys]
    assert hidden
    for key in keys:
        key.unlink()
    with stores_in(tmp_path / "data") as stores:
        assert stores.catch_up(at_start=True).unreadable_segments == 1
        for key, data in hidden:
            key.write_bytes(data)
        assert stores.catch_up(at_start=True).outcomes[Outcome.STORED] == 1


async def test_a_start_after_a_crash_needs_no_more_than_the_reserve(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await store(engine, ct_slice(), ExplicitVRLittleEndian)
            result = await store(engine, ct_slice(), ExplicitVRLittleEndian)
    shutil.rmtree(directory / "index")  # the most that a crash may have left to do
    full = EngineOptions(index=LmdbLimits(reserve_bytes=1 << 39))  # more than the disk has free
    with stores_in(directory, full) as stores:
        assert stores.catch_up(at_start=True).outcomes[Outcome.STORED] == 2
        with stores.store.snapshot() as snapshot:
            assert stores.catalog.study(snapshot, result.study_uid) is not None


async def test_reindex_leaves_a_torn_record_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row is whole and its frame is not; its sender was told to send again, and did."""
    objects = [ct_slice() for _ in range(3)]
    await write_without_indexing(tmp_path / "data", monkeypatch, objects)
    (segment,) = (tmp_path / "data" / "segments").iterdir()
    raw = bytearray(segment.read_bytes())
    end = end_of_records(tmp_path / "data")
    raw[end - 300 : end] = bytes(300)
    segment.write_bytes(raw)
    with stores_in(tmp_path / "data") as stores:
        stores.catch_up(at_start=True)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert (await store(engine, objects[2], ExplicitVRLittleEndian)).outcome is Outcome.STORED
    shutil.rmtree(tmp_path / "data" / "index")
    with stores_in(tmp_path / "data") as stores:
        report = stores.reindex(lambda *_: None)
        assert (report.outcomes[Outcome.STORED], report.damaged) == (3, 0)
        check_counts(stores)


async def test_reindex_reads_frames_only_of_the_last_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for _ in range(10):
                await store(engine, ct_slice(), ExplicitVRLittleEndian)
    shutil.rmtree(tmp_path / "data" / "index")
    verified = count_calls(monkeypatch, SegmentLog, "verify")
    with stores_in(tmp_path / "data") as stores:
        assert stores.reindex(lambda *_: None).outcomes[Outcome.STORED] == 10
    assert len(verified) == (1 if stores.blobs.statistics()["writers_buffered"] == 0 else 10)


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[tuple[object, ...]]:
    """The arguments of each call of a method from now on."""
    calls: list[tuple[object, ...]] = []
    real = getattr(owner, name)

    def counted(*arguments: object, **more: object) -> object:
        calls.append(arguments)
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, counted)
    return calls


async def test_a_start_reads_only_tails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a death: of each open segment the last group, of the ledger what came since the last start."""
    directory = tmp_path / "data"
    small = EngineOptions(segments=SegmentLimits(segment_bytes=400_000))
    stores = open_stores_beside(directory, small)
    async with open_engine(stores, small, owner="test") as engine:
        for number in range(40):
            await store(engine, ct_slice(pixels=bytes(40_000)), ExplicitVRLittleEndian)
            await engine.commit_fact("ae", f"AE{number}", {"title": f"AE{number}"}, number)
    stores.store.sync()  # a copied index begins at its checkpoint; one whose processes died has all
    dead = tmp_path / "dead"
    shutil.copytree(directory, dead)  # as it is, without an orderly end
    shutil.copy(tmp_path / "data.key", tmp_path / "dead.key")
    stores.close()
    segments = len(list((dead / "segments").iterdir()))
    assert segments >= 4

    read = count_calls(monkeypatch, LocalBlobs, "read")
    filled = count_calls(monkeypatch, LocalBlobs, "read_into")

    def bytes_read(prefix: str) -> int:
        return sum(int(str(n)) for _, name, _, n in read if str(name).startswith(prefix)) + sum(
            len(into) for _, name, _, into in filled if str(name).startswith(prefix)
        )  # type: ignore[arg-type, misc]

    with stores_in(dead, small) as again:
        report = again.catch_up(at_start=True)
        check_counts(again)
    # The row of a segment's progress is written with the next group: two groups of one object, and glances.
    assert report.records <= 2 * segments
    assert bytes_read("segments/") < segments * (2 * 45_000 + 3 * 8192)
    assert report.facts == 0
    read.clear()
    filled.clear()
    with stores_in(dead, small) as again:
        assert again.catch_up(at_start=True).segments == 0
        assert bytes_read("segments/") == bytes_read("ledger/") == 0
        with again.store.snapshot() as snapshot:
            assert len(list(again.journal.state(snapshot, "ae"))) == 40


def open_stores_beside(directory: Path, options: EngineOptions) -> Stores:
    """As ``stores_in``, to be left open."""
    return open_stores(directory, write_master_key(directory.parent / f"{directory.name}.key"), options)


async def test_what_a_killed_writer_did_not_sync_is_synced_before_it_is_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut after the next start takes what senders were told is held."""
    objects = [ct_slice() for _ in range(2)]
    await write_without_indexing(tmp_path / "data", monkeypatch, objects)
    synced = count_calls(monkeypatch, LocalBlobs, "make_durable")
    indexed = count_calls(monkeypatch, Indexer, "add")

    def checked(*arguments: object, **more: object) -> object:
        assert synced, "indexed before it was synced"
        return original(*arguments, **more)

    original = Indexer.add
    monkeypatch.setattr(Indexer, "add", checked)
    with stores_in(tmp_path / "data") as stores:
        assert stores.catch_up(at_start=True).outcomes[Outcome.STORED] == 2
    assert indexed


async def test_a_segment_that_cannot_be_synced_waits_for_another_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write_without_indexing(tmp_path / "data", monkeypatch, [ct_slice()])

    def fails(*_: object) -> None:
        raise PoisonedError("a sync failed")

    with monkeypatch.context() as patch:
        patch.setattr(LocalBlobs, "make_durable", fails)
        with stores_in(tmp_path / "data") as stores:
            assert stores.catch_up(at_start=True).unreadable_segments == 1
    with stores_in(tmp_path / "data") as stores:
        assert stores.catch_up(at_start=True).outcomes[Outcome.STORED] == 1
