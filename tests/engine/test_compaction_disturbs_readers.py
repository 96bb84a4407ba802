"""Who reads while records are moved gets the same bytes, in the middle of a download too."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.engine.compaction import CompactionLimits
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import DamagedError, EngineError
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.rewriting import Rewriter
from support.archives import ct_slice, store, stored_bytes, stores_in

WHY = {"reason": "test", "actor": "tester"}


async def send(engine: Engine, data: bytes) -> StoreResult:
    return await store(engine, data, ExplicitVRLittleEndian)


async def fill(directory: Path, count: int = 6, frames: int = 4) -> dict[tuple[str, str, str], bytes]:
    """Multi-frame objects in one segment that nobody writes any more, and the bytes of each."""
    sent = {}
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            study, series = str(generate_uid()), str(generate_uid())
            for number in range(count):

                def change(data, number: int = number) -> None:  # type: ignore[no-untyped-def]
                    data.NumberOfFrames = frames
                    data.Rows = data.Columns = 512
                    data.PixelData = b"".join(bytes([number, frame]) * (512 * 512) for frame in range(frames))

                data = ct_slice(study_uid=study, series_uid=series, number=number, change=change)
                result = await send(engine, data)
                sent[result.study_uid, result.series_uid, result.sop_instance_uid] = data
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
    return sent


def rewrite_all(stores: Stores) -> None:
    for segment in stores.log.segment_ids():
        report = Rewriter(stores.indexer).rewrite_segment(segment)
        assert report.removed, report.kept_because
    stores.keyring.forget_destroyed("segment")
    stores.blobs.release_deleted()  # type: ignore[attr-defined]


async def test_readers_beside_a_compaction_get_the_same_bytes(tmp_path: Path) -> None:
    sent = await fill(tmp_path / "data")
    done = threading.Event()
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:

            def rewrite() -> None:
                try:
                    for _ in range(6):
                        rewrite_all(stores)
                finally:
                    done.set()

            async def read(which: int) -> None:
                uids = list(sent)
                turn = which
                while not done.is_set() or turn < which + 20:
                    key = uids[turn % len(uids)]
                    turn += 1
                    number = 1 + turn % 4
                    frame = engine.frame_nowait(engine.named(*key), number)
                    frame = frame or await engine.frame(*key, number)
                    assert bytes(frame.data) == sent[key][-(5 - number) * 524288 :][:524288]
                    (instance,) = await engine.instances(*key)
                    data = b"".join([bytes(piece) async for piece in engine.dataset(instance)])
                    assert data == sent[key]
                    assert bytes((await engine.header(instance)).head) == sent[key][: -4 * 524288]

            async with trio.open_nursery() as nursery:
                for which in range(3):
                    nursery.start_soon(read, which)
                await trio.to_thread.run_sync(rewrite)
        assert len(stores.log.segment_ids()) == 1


async def test_a_download_in_the_middle_goes_on_at_the_new_place(tmp_path: Path) -> None:
    sent = await fill(tmp_path / "data", count=1, frames=20)
    ((key, data),) = sent.items()
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            (instance,) = await engine.instances(*key)
            got: list[bytes] = []
            moves = 0
            async for piece in engine.dataset(instance):
                got.append(bytes(piece))
                if len(got) % 6 == 3:
                    await trio.to_thread.run_sync(rewrite_all, stores)
                    moves += 1
            assert b"".join(got) == data
            assert moves >= 3


async def test_a_series_in_the_middle_goes_on_at_the_new_place(tmp_path: Path) -> None:
    """Its objects were looked up before they moved, and are opened into memory that is used again."""
    sent = await fill(tmp_path / "data", frames=1)
    study, series, _ = next(iter(sent))
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            found = await engine.instances(study, series)
            given = b""
            lists = 0
            async for buffers in engine.datasets(found, lambda one: one.row.sop_uid.encode()):
                given += b"".join(map(bytes, buffers))
                lists += 1
                if lists == 2:
                    await trio.to_thread.run_sync(rewrite_all, stores)
            whole = [one.row.sop_uid.encode() + sent[study, series, one.row.sop_uid] for one in found]
            assert given == b"".join(whole)
            assert lists > 2


async def test_what_is_deleted_in_the_middle_is_not_served_from_memory_of_its_place(tmp_path: Path) -> None:
    sent = await fill(tmp_path / "data", count=1)
    (key,) = sent
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            (instance,) = await engine.instances(*key)
            await engine.delete(Target(key[0]), **WHY)
            rewrite_all(stores)
            with pytest.raises(DamagedError):
                await engine.header(instance)
            with pytest.raises(EngineError):
                await engine.frame(*key, 1)


async def test_the_leader_compacts_what_is_due_and_nothing_else(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    now = 10**18
    limits = CompactionLimits(
        dead_fraction=0.5, erase_s=1000, quiet_s=10, remove_after_s=5, bytes_per_second=0,
        check_s=math.inf,  # only when told to: while a thread works this clock jumps to whatever is next
    )  # fmt: skip
    options = EngineOptions(compaction=limits)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, options, owner="filler") as engine:
            few = [await send(engine, ct_slice(pixels=bytes(65536))) for _ in range(8)]
            few_segment = stores.log.own_segments[-1]
            stores.log.start_anew()
            half = [await send(engine, ct_slice(pixels=bytes(65536))) for _ in range(8)]
            half_segment = stores.log.own_segments[-1]
            stores.log.start_anew()
            compaction = engine.compaction
            compaction._clock = lambda: now
            for one in (few[0], *half[:7]):
                stores.deletions.delete(Target(one.study_uid), now_ns=now, **WHY)
            assert await compaction.due(everything=False) == [], "more may be deleted in a moment"
            now += 11 * 10**9
            assert await compaction.due(everything=False) == [half_segment]
            assert set(await compaction.due(everything=True)) == {half_segment, few_segment}
            await compaction.leading.run(compaction._step)
            assert half_segment in stores.log.segment_ids(), "readers may be on their way"
            now += 6 * 10**9
            await compaction.leading.run(compaction._step)
            assert half_segment not in stores.log.segment_ids()
            assert few_segment in stores.log.segment_ids()
            assert compaction.figures.reclaimed_bytes > 0
            assert compaction.figures.dead_bytes > 0
            now += 1000 * 10**9
            await compaction.leading.run(compaction._step)
            now += 6 * 10**9
            await compaction.leading.run(compaction._step)
            assert few_segment not in stores.log.segment_ids(), "what was deleted so long ago is erased"
            assert compaction.figures.dead_bytes == 0
            for one in (*few[1:], half[7]):
                assert await stored_bytes(engine, one)


async def test_a_worker_gives_up_the_segment_in_which_something_is_due(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            first, second = await send(engine, ct_slice()), await send(engine, ct_slice())
            (segment,) = stores.log.own_segments
            await engine.delete(Target(first.study_uid), **WHY)
            engine.compaction.keep_house()
            assert stores.log.is_being_written(segment), "not due yet"
            assert await engine.compaction.due(everything=True) == [segment]
            assert not stores.log.is_being_written(segment)
            report = await engine.compaction.rewrite(segment, throttled=False)
            assert (report.moved, report.dropped) == (1, 1)
            assert await engine.compaction.finish() == 1
            assert segment not in stores.log.segment_ids()
            assert await stored_bytes(engine, second)


async def test_the_throttle_counts_what_is_read_and_written(tmp_path: Path) -> None:
    await fill(tmp_path / "data", count=2)
    waited: list[float] = []
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            compaction = engine.compaction
            compaction.leading.bytes_per_second = 1 << 50
            compaction.leading.wait = waited.append
            (segment,) = stores.log.segment_ids()
            asked = 0
            pace = compaction.leading.pace

            def counting(*, throttled: bool = True):  # type: ignore[no-untyped-def]
                real = pace(throttled=throttled)

                def count(length: int) -> None:
                    nonlocal asked
                    asked += length
                    real(length)

                return count

            compaction.leading.pace = counting  # type: ignore[method-assign]
            report = await compaction.rewrite(segment, throttled=True)
            size = report.size - 8192
            assert 1.9 * size < asked <= 2.1 * size
            assert not waited, "at this speed there is nothing to wait for"


async def test_a_cancelled_compaction_stops_and_leaves_nothing_behind(tmp_path: Path) -> None:
    await fill(tmp_path / "data", count=3)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            compaction = engine.compaction
            compaction.leading.bytes_per_second = 1  # it would take days
            segments = stores.log.segment_ids()
            waiting = threading.Event()
            wait = compaction.leading.wait

            def waits(seconds: float) -> None:
                waiting.set()
                wait(min(seconds, 0.001))

            compaction.leading.wait = waits
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:

                    async def work() -> None:
                        await compaction.rewrite(segments[0], throttled=True)

                    nursery.start_soon(work)
                    await trio.to_thread.run_sync(waiting.wait)
                    nursery.cancel_scope.cancel()
            assert stores.log.segment_ids() == segments
            compaction.leading.bytes_per_second = 0
            assert (await compaction.rewrite(segments[0], throttled=True)).moved == 3


async def test_a_duplicate_that_comes_while_its_record_moves_is_a_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is read, then the segment that it names goes, then the bytes are to be compared."""
    sent = await fill(tmp_path / "data", count=1)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            held, moved = Indexer.held, False

            def then_moved(self, snapshot, row):  # type: ignore[no-untyped-def]
                nonlocal moved
                found = held(self, snapshot, row)
                if not moved:
                    moved = True
                    thread = threading.Thread(target=rewrite_all, args=(stores,))
                    thread.start()
                    thread.join()
                return found

            monkeypatch.setattr(Indexer, "held", then_moved)
            for data in sent.values():
                assert (await send(engine, data)).outcome is Outcome.DUPLICATE
            assert moved
