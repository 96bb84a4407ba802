"""Objects stored while they come in: same bytes, same answers; nothing left of what was not finished."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.dicom.incremental import IncrementalLimits
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import (
    EngineError,
    NotFoundError,
    NotSeparableError,
    ObjectTooLargeError,
    OutOfResourcesError,
    StorageFailedError,
)
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.large_reading import LargeReading
from hounsfield.archive.engine.large_storing import LargeLimits, LargeStoring
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Instance, Outcome, StoreResult
from hounsfield.archive.index.contents import given_up_bytes
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.rows import RECORD_KIND_OBJECT, RECORD_KIND_PIECE
from hounsfield.storage_backends.errors import BlobNotFoundError, PoisonedError, StoreFullError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.local_blobs import LocalBlobs
from hounsfield.storage_backends.local_writer import LocalBlobWriter
from hounsfield.storage_backends.master_key import MasterKey
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_scan import ScannedRecord
from hounsfield.storage_backends.segment_stream import PieceReader, SegmentStream
from hounsfield.storage_backends.segments import SegmentLog
from support.archives import TEST_SOURCE, SampleFile, ct_slice, sample_files, store, stored_bytes, stores_in
from support.crash_disk import CrashDisk

TINY = IngestLimits(
    stream_bytes_min=1000,
    large=LargeLimits(piece_bytes=512, scan=IncrementalLimits(aside_bytes_min=100)),
)
STREAMS = EngineOptions(ingest=TINY)
EVERY_PIECE = EngineOptions(ingest=IngestLimits(stream_bytes_min=1000, large=LargeLimits(piece_bytes=70_000)))


def segments(stores: Stores) -> list[str]:
    return stores.blobs.names("segments/")


def large_slice(frames: int = 20, **of: object) -> bytes:
    """A multi-frame object of 512 bytes a frame."""

    def change(data: Dataset) -> None:
        data.NumberOfFrames = frames

    return ct_slice(change=change, pixels=random.Random(5).randbytes(512 * frames), **of)  # type: ignore[arg-type]


async def instance_of(engine: Engine, data: bytes, syntax: str, piece: int) -> Instance:
    result = await store(engine, data, syntax, piece=piece)
    (found,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
    return found


async def answers(engine: Engine, one: Instance) -> list[object]:
    """Everything that can be asked of an instance."""
    row = one.row
    out: list[object] = [
        row.attributes, set(row.flags), row.layout, row.location.frames, row.transfer_syntax_uid,
        await engine.dataset_bytes(one), b"".join([bytes(piece) async for piece in engine.dataset(one)]),
    ]  # fmt: skip
    for number in range(row.location.frames + 2):
        try:
            out.append(bytes((await engine.frame(one.study_uid, one.series_uid, row.sop_uid, number)).data))
        except (NotFoundError, NotSeparableError) as error:
            out.append(type(error))
    out.append(b"".join(map(bytes, await engine.read(engine.records.bulk, row))))
    header = await engine.header(one)
    return [*out, bytes(header.head), bytes(header.trailer)]


def usable(sample: SampleFile) -> bool:
    return len(sample.data) > 1000 and "DICOMDIR" not in sample.path.name


async def test_every_sample_file_answers_as_if_it_had_been_gathered(tmp_path: Path) -> None:
    compared = 0
    seen: set[str] = set()
    with stores_in(tmp_path / "plain") as plain, stores_in(tmp_path / "large", EVERY_PIECE) as large:
        async with (
            open_engine(plain, EngineOptions(), owner="plain") as one_engine,
            open_engine(large, EVERY_PIECE, owner="large") as other_engine,
        ):
            for sample in filter(usable, sample_files()):
                try:
                    one = await instance_of(one_engine, sample.data, sample.transfer_syntax_uid, 1 << 20)
                except NotFoundError:
                    continue  # in quarantine
                other = await instance_of(other_engine, sample.data, sample.transfer_syntax_uid, 30_000)
                if one.row.sop_uid in seen:
                    continue  # the same object in another syntax
                seen.add(one.row.sop_uid)
                assert other.row.location.stream is not None, sample.path
                assert await answers(one_engine, one) == await answers(other_engine, other), sample.path
                compared += 1
            assert other_engine.statistics().bytes_in_flight == 0
    assert compared > 60


async def test_frames_and_headers_in_tiny_pieces(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            data = large_slice()
            result = await store(engine, data, ExplicitVRLittleEndian, piece=100)
            assert result.outcome is Outcome.STORED
            assert await stored_bytes(engine, result) == data
            at = len(data) - 512 * 20
            for number in (1, 7, 20):
                frame = await engine.frame(
                    result.study_uid, result.series_uid, result.sop_instance_uid, number
                )
                assert frame.data == data[at + 512 * (number - 1) : at + 512 * number]
            (found,) = await engine.instances(result.study_uid)
            header = await engine.header(found)
            assert header.head == data[:at]
            assert header.trailer == b""


async def test_a_frame_costs_the_chunks_that_hold_it_and_the_tables_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(data: Dataset) -> None:
        data.Rows = data.Columns = 512
        data.NumberOfFrames = 24

    data = ct_slice(change=change, pixels=random.Random(6).randbytes(24 << 19))
    options = EngineOptions(ingest=IngestLimits(stream_bytes_min=1 << 20))
    costs: list[int] = []
    read_into = LocalBlobs.read_into

    def counting(blobs: LocalBlobs, name: str, offset: int, buffer: memoryview) -> None:
        costs.append(len(buffer))
        read_into(blobs, name, offset, buffer)

    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            result = await store(engine, data, ExplicitVRLittleEndian)
            names = result.study_uid, result.series_uid, result.sop_instance_uid
            monkeypatch.setattr(LocalBlobs, "read_into", counting)
            start = len(data) - (24 << 19)
            for number in (20, 3, 11):
                costs.clear()
                frame = await engine.frame(*names, number)
                assert frame.data == data[start + (number - 1 << 19) : start + (number << 19)]
                assert sum(costs) <= 2 * ((1 << 20) + 16) + (200 if number == 20 else 0)


async def test_tables_in_memory_are_bounded(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            found = []
            for _ in range(5):
                result = await store(engine, large_slice(), ExplicitVRLittleEndian)
                (one,) = await engine.instances(result.study_uid)
                found.append(one.row)
            reading = LargeReading(stores.log, tables_bytes_max=2000)
            for row in found * 2:
                assert len(reading.frame(row, 3)) == 512
                assert 0 < reading.held_bytes <= 2000


async def test_a_reindex_finds_it_again(tmp_path: Path) -> None:
    data = large_slice()
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            result = await store(engine, data, ExplicitVRLittleEndian)
    for file in (tmp_path / "data" / "index").iterdir():
        file.unlink()
    with stores_in(tmp_path / "data", STREAMS) as stores:
        report = stores.reindex(lambda done, total: None)
        assert (report.outcomes[Outcome.STORED], report.damaged, report.given_up) == (1, 0, 0)
        async with open_engine(stores, STREAMS, owner="test") as engine:
            assert await stored_bytes(engine, result) == data


@pytest.mark.parametrize("options", [EngineOptions(), STREAMS], ids=["gathered", "in pieces"])
async def test_a_duplicate_is_held_already_and_leaves_nothing(tmp_path: Path, options: EngineOptions) -> None:
    data = large_slice()
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            first = await store(engine, data, ExplicitVRLittleEndian)
        before = segments(stores)
        for again in (STREAMS, EngineOptions()):
            async with open_engine(stores, again, owner="again") as engine:
                result = await store(engine, data, ExplicitVRLittleEndian)
                assert result.outcome is Outcome.DUPLICATE
                assert await stored_bytes(engine, first) == data
        assert segments(stores) == before
        assert len(stores.keyring.key_ids("segment")) == len(before)


async def test_a_duplicate_is_known_without_reading_it_all_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = large_slice()
    whole: list[object] = []
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            await store(engine, data, ExplicitVRLittleEndian)
            monkeypatch.setattr(stores.indexer.objects, "data_set", whole.append)
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE
            other = data[:-1] + bytes([data[-1] ^ 1])
            assert (await store(engine, other, ExplicitVRLittleEndian)).outcome is Outcome.CONFLICT
            longer = data + bytes(600)
            assert (await store(engine, longer, ExplicitVRLittleEndian)).outcome is Outcome.CONFLICT
            assert (await store(engine, longer, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE
    assert not whole


async def test_one_that_was_moved_meanwhile_is_still_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = large_slice()
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            await store(engine, data, ExplicitVRLittleEndian)
            read = PieceReader.read
            reads = iter(range(1 << 30))

            def moved(reader: PieceReader, start: int, length: int) -> memoryview:
                if next(reads) == 3:
                    raise BlobNotFoundError("its segment was compacted")
                return read(reader, start, length)

            monkeypatch.setattr(PieceReader, "read", moved)
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE


async def test_one_without_usable_uids_is_kept_in_quarantine(tmp_path: Path) -> None:
    data = large_slice(sop_uid="not a UID")
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.QUARANTINED
        with stores.store.snapshot() as snapshot:
            (kept,) = stores.catalog.quarantined(snapshot)
        assert b"".join(stores.indexer.objects.data_set(kept.location)) == data


async def test_other_content_under_the_same_uids_is_kept_beside(tmp_path: Path) -> None:
    data = large_slice()
    other = data[:-1] + bytes([data[-1] ^ 1])
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            first = await store(engine, data, ExplicitVRLittleEndian)
            second = await store(engine, other, ExplicitVRLittleEndian)
            assert (first.outcome, second.outcome) == (Outcome.STORED, Outcome.CONFLICT)
            assert (await store(engine, other, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE
            assert await stored_bytes(engine, first) == data
        with stores.store.snapshot() as snapshot:
            key = stores.catalog.instance_key(first.study_uid, first.series_uid, first.sop_instance_uid)
            (kept,) = stores.catalog.versions(snapshot, key)
        assert b"".join(stores.indexer.objects.data_set(kept.location)) == other
        assert len(segments(stores)) == 2


async def test_the_same_object_twice_at_once_is_one_object(tmp_path: Path) -> None:
    data = large_slice()
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            outcomes = []

            async def send() -> None:
                outcomes.append((await store(engine, data, ExplicitVRLittleEndian, piece=300)).outcome)

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(send)
            assert sorted(outcome.value for outcome in outcomes) == ["duplicate"] * 3 + ["stored"]
            assert len(segments(stores)) == 1


async def test_several_large_ones_beside_small_ones(tmp_path: Path) -> None:
    study = "2.25.77"
    objects = [large_slice(10 + i, study_uid=study, sop_uid=f"{study}.{i}") for i in range(6)]
    objects += [ct_slice(study_uid=study, sop_uid=f"{study}.9{i}") for i in range(12)]
    limits = IngestLimits(stream_bytes_min=3000, large=TINY.large)
    options = EngineOptions(ingest=limits)
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:

            async def send(data: bytes) -> None:
                result = await store(engine, data, ExplicitVRLittleEndian, piece=333)
                assert result.outcome is Outcome.STORED
                assert await stored_bytes(engine, result) == data

            async with trio.open_nursery() as nursery:
                for data in objects:
                    nursery.start_soon(send, data)
            assert engine.statistics().objects_stored == 18
            assert engine.statistics().bytes_in_flight == 0
        assert len(segments(stores)) == 7


async def gone(stores: Stores, engine: Engine) -> None:
    """Wait until nothing is left of what was given up."""
    for _ in range(2000):
        if not segments(stores) and not engine.statistics().bytes_in_flight:
            break
        await trio.sleep(0.001)
    assert segments(stores) == []
    assert stores.keyring.key_ids("segment") == []
    assert engine.statistics().bytes_in_flight == 0
    assert engine.statistics().sessions_open == 0


@pytest.mark.parametrize("sent", [900, 1100, 5000])
async def test_a_sender_that_vanishes_leaves_nothing(tmp_path: Path, sent: int) -> None:
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            for start in range(0, sent, 100):
                await session.write(large_slice()[start : start + 100])
            session.abandon()
            with pytest.raises(EngineError):
                await session.write(b"x")
            await gone(stores, engine)


async def test_a_sender_cancelled_while_the_disk_is_slow_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    sync = LocalBlobWriter.sync

    def slow(writer: LocalBlobWriter) -> None:
        began.set()
        go_on.wait(10)
        sync(writer)

    monkeypatch.setattr(LocalBlobWriter, "sync", slow)
    data = large_slice(200)
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store, engine, data, ExplicitVRLittleEndian)
                await trio.to_thread.run_sync(began.wait)
                nursery.cancel_scope.cancel()
            assert len(segments(stores)) == 1  # a thread is still writing it
            go_on.set()
            await gone(stores, engine)


async def test_a_drain_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            await session.write(large_slice())
        assert segments(stores) == []
        with pytest.raises(EngineError):
            await session.commit()


async def test_an_object_past_the_limit_is_given_up(tmp_path: Path) -> None:
    options = EngineOptions(
        ingest=IngestLimits(stream_bytes_min=1000, object_bytes_max=6000, large=TINY.large)
    )
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            with pytest.raises(ObjectTooLargeError):
                await store(engine, large_slice(), ExplicitVRLittleEndian, piece=500)
            await gone(stores, engine)


def failing(
    monkeypatch: pytest.MonkeyPatch, number: int, make: Callable[[LocalBlobWriter], Exception], method: str
) -> None:
    """The ``number``-th call of a writer's method fails, and poisons the writer as a disk would."""
    real = getattr(LocalBlobWriter, method)
    calls = iter(range(1, 1 << 30))

    def fail(writer: LocalBlobWriter, *arguments: object) -> object:
        if "segments/" in writer.name and next(calls) == number:
            writer._poison = "a test"
            raise make(writer)
        return real(writer, *arguments)

    monkeypatch.setattr(LocalBlobWriter, method, fail)


@pytest.mark.parametrize("number", [1, 2, 5, 21, 22])
@pytest.mark.parametrize("method", ["append", "sync"])
@pytest.mark.parametrize("full", [True, False])
async def test_a_failing_disk_fails_the_object_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, method: str, full: bool
) -> None:
    small = ct_slice()
    error: type[EngineError] = OutOfResourcesError if full else StorageFailedError
    options = EngineOptions(ingest=IngestLimits(stream_bytes_min=3000, large=TINY.large))
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            kept = await store(engine, small, ExplicitVRLittleEndian)
            before = segments(stores)
            failing(
                monkeypatch,
                number,
                lambda _: StoreFullError("full") if full else PoisonedError("bad"),
                method,
            )
            with pytest.raises(error) as caught:
                await store(engine, large_slice(), ExplicitVRLittleEndian, piece=400)
            assert caught.value.retry
            assert await stored_bytes(engine, kept) == small
            monkeypatch.undo()
            again = await store(engine, large_slice(), ExplicitVRLittleEndian, piece=400)
            assert again.outcome is Outcome.STORED
            assert len(segments(stores)) == len(before) + 1
            assert engine.statistics().bytes_in_flight == 0


async def test_no_room_in_the_middle_is_out_of_resources_and_gives_space_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 4000

    def require(blobs: LocalBlobs, length: int) -> None:
        if sum(blobs.size(name) for name in blobs.names("segments/")) + length > room + 20_000:
            raise StoreFullError("no room")

    monkeypatch.setattr(LocalBlobs, "require_space", require)
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            with pytest.raises(OutOfResourcesError):
                await store(engine, large_slice(200), ExplicitVRLittleEndian)
            await gone(stores, engine)


async def test_an_index_that_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:

            def full(*_: object, **__: object) -> Iterator[None]:
                raise StoreFullError("the index is full")

            with monkeypatch.context() as patch:
                patch.setattr(stores.indexer, "add", full)
                with pytest.raises(OutOfResourcesError):
                    await store(engine, large_slice(), ExplicitVRLittleEndian)
            await gone(stores, engine)
            assert (await store(engine, large_slice(), ExplicitVRLittleEndian)).outcome is Outcome.STORED


async def test_an_index_that_took_it_and_failed_later_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = large_slice()
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            add = stores.indexer.add

            def late(*arguments: object, **named: object) -> object:
                add(*arguments, **named)  # type: ignore[arg-type]
                raise PoisonedError("the answer was lost")

            with monkeypatch.context() as patch:
                patch.setattr(stores.indexer, "add", late)
                with pytest.raises(StorageFailedError):
                    await store(engine, data, ExplicitVRLittleEndian)
            result = await store(engine, data, ExplicitVRLittleEndian)
            assert result.outcome is Outcome.DUPLICATE
            assert await stored_bytes(engine, result) == data


async def test_senders_wait_for_memory_and_give_up_in_time(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    limits = IngestLimits(stream_bytes_min=1000, bytes_in_flight_max=1536 * 2 - 1, large=TINY.large)
    options = EngineOptions(ingest=limits, study_stable_s=1e9)
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            await session.write(large_slice())
            assert engine.statistics().bytes_in_flight >= TINY.large.memory_bytes
            began = trio.current_time()
            with pytest.raises(OutOfResourcesError):
                await store(engine, large_slice(), ExplicitVRLittleEndian)
            assert trio.current_time() - began >= limits.budget_wait_s_max
            assert (await session.commit()).outcome is Outcome.STORED
            assert engine.statistics().bytes_in_flight == 0


@pytest.mark.parametrize("finished", [False, True])
async def test_what_a_crash_leaves_is_removed_or_indexed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """The process is gone, its locks with it. Killed for real in end_to_end."""
    data = large_slice()
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            with monkeypatch.context() as patch:
                patch.setattr(LargeStoring, "give_up", lambda storing: storing._stream.close())
                session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
                await session.write(data if finished else data[:-2000])
                if finished:
                    monkeypatch.setattr(
                        stores.indexer, "add", lambda *_, **__: (_ for _ in ()).throw(PoisonedError("died"))
                    )
                    with pytest.raises(StorageFailedError):
                        await session.commit()
                else:
                    session.abandon()
                    for _ in range(1000):
                        if not engine.statistics().bytes_in_flight:
                            break
                        await trio.sleep(0.001)
        assert len(segments(stores)) == 1
    monkeypatch.undo()
    with stores_in(tmp_path / "data", STREAMS) as stores:
        if not finished:  # a reindex, which changes no segment, leaves it for the next start
            assert stores.reindex(lambda done, total: None).given_up == 0
            assert len(segments(stores)) == 1
        report = stores.catch_up(at_start=True)
        assert report.damaged == 0
        assert report.given_up == (0 if finished else 1)
        assert (report.given_up_bytes > 8192) == (not finished)
        assert report.outcomes[Outcome.STORED] == (1 if finished else 0)
        assert len(segments(stores)) == (1 if finished else 0)
        assert len(stores.keyring.key_ids("segment")) == (1 if finished else 0)
        if finished:
            async with open_engine(stores, STREAMS, owner="test") as engine:
                result = await store(engine, data, ExplicitVRLittleEndian)
                assert result.outcome is Outcome.DUPLICATE
                assert await stored_bytes(engine, result) == data


async def test_a_live_upload_is_not_taken_for_one_given_up(tmp_path: Path) -> None:
    data = large_slice()
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            await session.write(data[:5000])
            report = await trio.to_thread.run_sync(lambda: stores.catch_up(at_start=False))
            assert report.given_up == 0
            await session.write(data[5000:])
            result = await session.commit()
            assert result.outcome is Outcome.STORED
            assert await stored_bytes(engine, result) == data


def written_in_pieces(directory: Path, pieces: int) -> tuple[CrashDisk, SegmentLog, bytes, list[int]]:
    """A whole object on a disk that can be cut; the segment, and where its records begin."""
    disk = CrashDisk()
    log = SegmentLog(disk, Keyring.create(directory / "keys", MasterKey(bytes(range(32)), "test")))
    stream = SegmentStream(log, kind=RECORD_KIND_PIECE, piece_bytes=100)
    for number in range(pieces):
        stream.append(bytes([number]) * 100)
    ref = stream.finish(RecordIn(RECORD_KIND_OBJECT, (b"row", b"header", stream.table, b"")))
    starts = [one.ref.offset for one in log.scan(ref.segment) if isinstance(one, ScannedRecord)]
    return disk, log, ref.segment, starts


def test_cut_at_every_byte_it_is_there_whole_or_was_given_up(tmp_path: Path) -> None:
    disk, log, segment, starts = written_in_pieces(tmp_path, 3)
    name = "segments/" + segment.hex()
    whole = disk.size(name)
    for length in range(whole + 1):
        log._blobs = disk.truncated(name, length)
        given_up = given_up_bytes(log, segment)
        first_piece_is_whole = length >= starts[1]
        assert given_up == (length if first_piece_is_whole and length < whole else 0), length


def test_what_may_be_a_finished_object_that_was_damaged_is_not_given_up(tmp_path: Path) -> None:
    disk, log, segment, _ = written_in_pieces(tmp_path, 3)
    name = "segments/" + segment.hex()
    for at in range(disk.size(name)):
        log._blobs = disk.altered(name, at, disk.blobs[name].live[at] ^ 0x55)
        assert given_up_bytes(log, segment) == 0, at


def test_zeros_behind_the_pieces_are_what_a_power_cut_leaves(tmp_path: Path) -> None:
    disk, log, segment, starts = written_in_pieces(tmp_path, 3)
    name = "segments/" + segment.hex()
    live = disk.blobs[name].live
    live[starts[2] :] = bytes(len(live) - starts[2])
    live.extend(bytes(10_000))
    assert given_up_bytes(log, segment) == len(live)
    live[-1] = 1
    assert given_up_bytes(log, segment) == 0


async def frames_of(engine: Engine, result: StoreResult, count: int) -> list[bytes]:
    names = result.study_uid, result.series_uid, result.sop_instance_uid
    return [bytes((await engine.frame(*names, number)).data) for number in range(1, count + 1)]


async def test_one_that_is_moved_to_another_segment_reads_the_same(tmp_path: Path) -> None:
    data = large_slice()
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            result = await store(engine, data, ExplicitVRLittleEndian)
            frames = await frames_of(engine, result, 20)
            (segment,) = stores.log.segment_ids()
            await engine.compaction.rewrite(segment, throttled=False)
            await engine.compaction.finish()
            (moved,) = stores.log.segment_ids()
            assert moved != segment
            assert await stored_bytes(engine, result) == data
            assert await frames_of(engine, result, 20) == frames
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE
        assert stores.keyring.key_ids("segment") == [moved.hex()]
    for file in (tmp_path / "data" / "index").iterdir():
        file.unlink()
    with stores_in(tmp_path / "data", STREAMS) as stores:
        stores.reindex(lambda done, total: None)
        async with open_engine(stores, STREAMS, owner="test") as engine:
            assert await stored_bytes(engine, result) == data


async def test_a_deleted_one_gives_all_its_space_back(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data", STREAMS) as stores:
        async with open_engine(stores, STREAMS, owner="test") as engine:
            result = await store(engine, large_slice(), ExplicitVRLittleEndian)
            (segment,) = stores.log.segment_ids()
            size = stores.log.size(segment)
            report = await engine.delete(Target(result.study_uid), reason="test", actor="test")
            assert (
                0 <= size - report.stored_bytes <= 8192 + 22 * 4096
            )  # all but the header and padding is dead
            assert segment in await engine.compaction.due(everything=True)
            await engine.compaction.rewrite(segment, throttled=False)
            await engine.compaction.finish()
        assert segments(stores) == []
        assert segment.hex() not in stores.keyring.key_ids("segment")  # the ledger's is there
