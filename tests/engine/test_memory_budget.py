"""Bytes in flight are bounded: senders wait, then are told so; nobody runs out of memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import trio
import trio.testing
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.budget import ByteBudget
from hounsfield.archive.engine.buffers import EXPECTED_BYTES_MAX, POOLED_BYTES_MAX, BufferPool, Gathering
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.errors import ClosedError, ObjectTooLargeError, OutOfResourcesError
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.types import Outcome
from support.archives import TEST_SOURCE, ct_slice, store, stores_in


async def test_a_sender_waits_for_another_to_finish(autojump_clock: trio.testing.MockClock) -> None:
    budget = ByteBudget(100, 20.0)
    await budget.take(80)
    order = []

    async def second() -> None:
        await budget.take(50)
        order.append("second")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        assert budget.in_flight == 80
        order.append("first")
        budget.give_back(80)
    assert order == ["first", "second"]
    assert budget.in_flight == 50


async def test_waiting_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    budget = ByteBudget(100, 20.0)
    await budget.take(100)
    with pytest.raises(OutOfResourcesError) as caught:
        await budget.take(1)
    assert caught.value.retry
    assert trio.current_time() == pytest.approx(20.0, abs=1e-6)
    assert budget.in_flight == 100


async def test_an_object_past_the_limit_is_refused_and_others_go_on(tmp_path: Path) -> None:
    options = EngineOptions(ingest=IngestLimits(bytes_in_flight_max=100_000, object_bytes_max=4_000))
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            await session.write(bytes(4_000))
            with pytest.raises(ObjectTooLargeError):
                await session.write(b"x")
            assert engine.statistics().bytes_in_flight == 0
            assert engine.statistics().sessions_open == 0
            assert (await store(engine, ct_slice(), ExplicitVRLittleEndian)).outcome is Outcome.STORED


async def test_many_senders_share_a_small_budget(tmp_path: Path) -> None:
    data = [ct_slice() for _ in range(12)]
    options = EngineOptions(ingest=IngestLimits(bytes_in_flight_max=3 << 16, object_bytes_max=4_000))
    seen = []
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:

            async def send(one: bytes) -> None:
                result = await store(engine, one, ExplicitVRLittleEndian, piece=len(one))
                seen.append((result.outcome, engine.statistics().bytes_in_flight))

            async with trio.open_nursery() as nursery:
                for one in data:
                    nursery.start_soon(send, one)
    assert [outcome for outcome, _ in seen] == [Outcome.STORED] * 12
    assert max(in_flight for _, in_flight in seen) <= options.ingest.bytes_in_flight_max


async def test_a_group_waits_for_what_is_being_received_and_no_longer_than_it_may(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    options = EngineOptions(ingest=IngestLimits(group_wait_s_max=3600.0), study_stable_s=1e9)
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            slow = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            await slow.write(b"the beginning of an object that takes its time")
            began = trio.current_time()
            assert (await store(engine, ct_slice(), ExplicitVRLittleEndian)).outcome is Outcome.STORED
            assert trio.current_time() - began >= 3600.0
            # One that has been silent is waited for no more, though no time passes at all from here on.
            autojump_clock.autojump_threshold = math.inf
            began = trio.current_time()
            assert (await store(engine, ct_slice(), ExplicitVRLittleEndian)).outcome is Outcome.STORED
            assert trio.current_time() == began
            slow.abandon()


async def test_memory_is_charged_as_buffers_not_as_payload(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            for size, held in ((1, 1 << 16), (65_000, 1 << 16), (65_000, 1 << 17), (1 << 20, 1 << 21)):
                await session.write(bytes(size))
                assert engine.statistics().bytes_in_flight == held
            session.abandon()
            assert engine.statistics().bytes_in_flight == 0


async def test_a_commit_after_the_end_is_refused(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
            await session.write(ct_slice())
        with pytest.raises(ClosedError):
            await session.commit()


async def test_objects_that_are_complete_together_share_a_commit(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    options = EngineOptions(ingest=IngestLimits(group_wait_s_max=60.0))
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            sessions = []
            for _ in range(8):
                session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
                await session.write(ct_slice())
                sessions.append(session)
            async with trio.open_nursery() as nursery:
                for session in sessions:
                    nursery.start_soon(session.commit)
            assert engine.statistics().groups == 1
            assert engine.statistics().objects_stored == 8


async def test_64_associations_of_ct_take_what_is_budgeted_and_give_it_back(tmp_path: Path) -> None:
    slice_bytes = 526_000  # 512 × 512 × 2 and a header
    options = EngineOptions(ingest=IngestLimits(bytes_in_flight_max=1 << 30))
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            for _ in range(2):
                sessions = []
                for _ in range(64):
                    session = engine.begin(transfer_syntax_uid=ExplicitVRLittleEndian, source=TEST_SOURCE)
                    for _ in range(0, slice_bytes, 65_750):
                        await session.write(bytes(65_750))
                    sessions.append(session)
                assert engine.statistics().bytes_in_flight <= 64 << 20
                for session in sessions:
                    session.abandon()
                assert engine.statistics().bytes_in_flight == 0


def test_large_blocks_grow_without_a_copy_and_are_not_kept() -> None:
    pool = BufferPool()
    gathering = Gathering(pool, expected_bytes=500 << 20)  # the last one was huge; this one need not be
    gathering.append(b"begin")
    assert gathering.capacity_for(0) <= EXPECTED_BYTES_MAX
    gathering.append(bytes(30 << 20))
    gathering.append(b"end")
    contents = gathering.contents()
    assert (bytes(contents[:5]), bytes(contents[-3:]), len(contents)) == (b"begin", b"end", (30 << 20) + 8)
    contents.release()
    gathering.release()
    gathering.release()
    assert pool.pooled_bytes <= 2 << 20  # the smaller ones on the way; a block of 32 MiB is not kept


def test_a_block_that_somebody_still_looks_at_grows_by_copying() -> None:
    pool = BufferPool()
    gathering = Gathering(pool)
    gathering.append(b"x" * (1 << 20))
    seen = gathering.contents()
    gathering.append(b"y" * (1 << 20))
    assert bytes(gathering.contents()) == b"x" * (1 << 20) + b"y" * (1 << 20)
    assert seen[0] == ord("x")
    gathering.release()


def test_the_pool_keeps_no_more_than_it_may() -> None:
    pool = BufferPool(pooled_bytes_max=3 << 20)
    blocks = [pool.take(1 << 20) for _ in range(8)]
    for block in blocks:
        pool.give_back(block)
    assert pool.pooled_bytes == 3 << 20
    assert POOLED_BYTES_MAX <= 64 << 20
