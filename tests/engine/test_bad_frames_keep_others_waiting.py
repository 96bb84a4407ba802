"""Frames that take long and do not decode: they are tried once, and leave turns to those of other objects."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.test_decoders_misbehave import J2K, PIXELS, Sabotaged
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.errors import NotTranscodableError
from hounsfield.archive.engine.fair_turns import FairTurns
from hounsfield.archive.engine.isolation import DecodingError, IsolationLimits
from hounsfield.archive.engine.refusals import RefusalLimits, Refusals
from support.archives import ct_slice, store, stores_in

ROOT = "1.2.840.10008.1.2"


def test_a_refusal_is_paid_for_again() -> None:
    """Whatever the frame is asked for as; another is tried, and this one when it was long enough ago."""
    now = [0.0]
    limits = RefusalLimits(cost_s_min=0.0, times_cost=1e9, kept_s_max=100.0)
    isolation = Sabotaged("os.abort()")
    isolation.refusals = Refusals(limits, lambda: now[0])
    try:
        for _ in range(3):
            with pytest.raises(DecodingError, match="decoding was ended"):
                isolation.decode(J2K, b"bad", PIXELS)
        assert isolation.started == 1
        for target in (f"{ROOT}.4.80", f"{ROOT}.5", f"{ROOT}.4.201"):
            with pytest.raises(DecodingError, match="decoding was ended"):
                isolation.transcode(J2K, target, b"bad", PIXELS)
        assert isolation.started == 1
        with pytest.raises(DecodingError):
            isolation.decode(J2K, b"another", PIXELS)
        assert isolation.decode(J2K, b"good", PIXELS)
        assert (isolation.started, len(isolation.refusals)) == (3, 2)
        now[0] = 101.0
        with pytest.raises(DecodingError):
            isolation.decode(J2K, b"bad", PIXELS)
        assert isolation.failed == 4  # by itself, and once more in a process of its own
    finally:
        isolation.close()


def test_what_was_refused_takes_all_memory() -> None:
    now = [0.0]
    refusals = Refusals(RefusalLimits(cost_s_min=1.0, times_cost=10.0, kept_max=3), lambda: now[0])
    assert refusals.said((b"a",)) is None
    refusals.remember((b"cheap",), "no", 0.9)
    assert len(refusals) == 0
    for frame in (b"a", b"b", b"c", b"d"):
        refusals.remember((frame, b"x"), "no", 2.0)
    assert len(refusals) == 3
    assert refusals.said((b"a", b"x")) is None
    assert refusals.said((b"dx",), (b"d", b"x")) == "no"
    now[0] = 20.1
    assert refusals.said((b"d", b"x")) is None


def test_a_small_frame_takes_as_long_as_the_largest() -> None:
    limits = IsolationLimits()
    assert limits.cpu_s(300 * 300 * 2) <= limits.cpu_s_min + 1
    assert limits.cpu_s(limits.frame_bytes_max) == limits.cpu_s(10**12) == limits.cpu_s_max
    assert IsolationLimits(cpu_s_max=1).cpu_s(10**12) == 1


async def test_one_object_takes_all_turns(autojump_clock: MockClock) -> None:
    turns, done = FairTurns(4, 2), []

    async def use(name: str) -> None:
        async with turns.of(name):
            await trio.sleep(10)
            done.append((name, trio.current_time()))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(use, "bad")
        await wait_all_tasks_blocked()
        assert turns.borrowed_tokens == 2
        for name in ("good", "good", "other"):
            nursery.start_soon(use, name)
            await wait_all_tasks_blocked()
        assert turns.borrowed_tokens == 4
    assert [at - began for name, at in done if name == "good"] == [10, 10]
    assert [at - began for name, at in done if name == "other"] == [20]
    assert len(done) == 9
    assert turns.borrowed_tokens == 0


async def test_a_turn_is_lost_with_who_waited_for_it(autojump_clock: MockClock) -> None:
    turns, used = FairTurns(1, 1), []

    async def use(name: str) -> None:
        async with turns.of(name):
            used.append(name)
            await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, "first")
        await wait_all_tasks_blocked()
        for seconds in (5, 10):  # while it waits, and at the moment it is given
            with trio.move_on_after(seconds):
                await use("gone")
        nursery.start_soon(use, "last")
    assert (used[0], used[-1], turns.borrowed_tokens) == ("first", "last", 0)


@pytest.mark.parametrize("stored", [f"{ROOT}.1", f"{ROOT}.4.80"])
async def test_a_sound_frame_is_called_damaged(tmp_path: Path, stored: str) -> None:
    """Of 16 bits, asked for as JPEG baseline: the encoder cannot, nothing is wrong with the frame."""
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            result = await store(engine, ct_slice(pixels=os.urandom(512)), f"{ROOT}.1")
            if stored != f"{ROOT}.1":
                (one,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
                coded = b"".join([bytes(piece) async for piece in engine.transcoded(one, stored)])
                uid = result.sop_instance_uid.encode()
                other = coded.replace(uid, uid[:-1] + (b"1" if uid[-1:] != b"1" else b"2"))
                result = await store(engine, other, stored)
            (one,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
            with pytest.raises(NotTranscodableError, match="no encoder") as told:
                await engine.transcoded_frame(one, 1, f"{ROOT}.4.50")
            assert "does not decode" not in str(told.value)
