"""A decoder's crash, hang or greed is one frame that was not decoded: nothing else notices."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
from pathlib import Path

import pytest
import trio
import trio.testing
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.isolation import DecodingError, Isolation, IsolationLimits
from hounsfield.archive.engine.refusals import RefusalLimits, Refusals
from hounsfield.archive.engine.types import Outcome
from hounsfield.codecs.coders import CODERS
from hounsfield.codecs.pixels import PixelFormat, to_native
from support.archives import ct_slice, store, stores_in
from support.frames import UNDECODABLE, RealFrame, real_frames

PIXELS = PixelFormat(4, 4)
J2K = str(JPEG2000Lossless)


class Sabotaged(Isolation):
    """Runs the real process with a JPEG 2000 decoder of the test's own, as if its library had that fault."""

    def __init__(self, fault: str, limits: IsolationLimits | None = None) -> None:
        super().__init__(limits)
        self._fault = fault

    def _command(self) -> list[str]:
        code = (
            "import dataclasses, os, resource, sys, time\n"
            "import numpy as np\n"
            "from hounsfield.codecs import coders, decoding_process\n"
            "def decode(frame, pixels):\n"
            "    if bytes(frame) == b'good':\n"
            "        return np.ones(pixels.shape, pixels.dtype)\n"
            f"    {self._fault}\n"
            "    return np.zeros(pixels.shape, pixels.dtype)\n"
            "sabotaged = (coders.Decoder('sabotaged', decode),)\n"
            f"coders.CODERS[{J2K!r}] = dataclasses.replace(coders.CODERS[{J2K!r}], decoders=sabotaged)\n"
            "decoding_process.main()\n"
        )
        *_, memory, idle = super()._command()
        return [sys.executable, "-I", "-c", code, memory, idle]


@pytest.fixture
def close_later():
    opened: list[Isolation] = []
    yield lambda one: opened.append(one) or one
    for one in opened:
        one.close()


def coded_frame() -> RealFrame:
    return next(one for one in real_frames() if one.path.name == "MR_small_jp2klossless.dcm")


def test_what_is_decoded_elsewhere_is_what_is_decoded_here(close_later) -> None:
    isolation = close_later(Isolation())
    seen = set()
    for frame in real_frames():
        uid = frame.transfer_syntax_uid
        coder = CODERS.get(uid)
        if (
            coder is None
            or not coder.isolated
            or frame.path.name == UNDECODABLE
            or (uid in seen and len(frame.data) > 200_000)
        ):
            continue
        seen.add(uid)
        pixels = frame.pixels
        plain = PixelFormat(*pixels.shape, pixels.bits_allocated, pixels.bits_stored, pixels.signed)
        assert isolation.decode(uid, frame.data, pixels) == to_native(coder.decode(frame.data, pixels), plain)
    assert len(seen) >= 4
    assert (isolation.started, isolation.failed) == (1, 0)


@pytest.mark.parametrize(
    "fault",
    [
        "os.abort()",
        "os.kill(os.getpid(), 11)",
        "os._exit(0)",
        "os.write(1, b'\\xff' * 9)",  # it answers nonsense
        "os.write(1, b'\\0' * 1000)",
        "os.close(1)",
    ],
)
def test_a_crash_costs_one_frame(close_later, fault: str) -> None:
    isolation = close_later(Sabotaged(fault))
    assert isolation.decode(J2K, b"good", PIXELS) == b"\1\0" * 16
    with pytest.raises(DecodingError):
        isolation.decode(J2K, b"bad", PIXELS)
    assert isolation.decode(J2K, b"good", PIXELS) == b"\1\0" * 16
    # The second was its own: the first might have been spoilt by the frame before it.
    assert (isolation.started, isolation.failed) == (3, 2)


def test_what_a_frame_spoilt_costs_the_next_one_nothing(close_later) -> None:
    """A library wrote where it must not, and answered: it shows when a sound frame is decoded."""
    spoil = "if bytes(frame) == b'bad': coders.spoilt = True\n    elif hasattr(coders, 'spoilt'): os.abort()"
    isolation = close_later(Sabotaged(spoil))
    assert isolation.decode(J2K, b"bad", PIXELS) == bytes(32)
    assert isolation.decode(J2K, b"sound", PIXELS) == bytes(32)
    assert (isolation.started, isolation.failed) == (2, 1)


def test_a_frame_is_tried_twice_at_most(close_later) -> None:
    isolation = close_later(Sabotaged("os.abort()"))
    isolation.refusals = Refusals(RefusalLimits(kept_max=0))  # starting a process may take long here
    with pytest.raises(DecodingError):
        isolation.decode(J2K, b"bad", PIXELS)
    assert (isolation.started, isolation.failed) == (1, 1)  # in a process that was new
    assert isolation.decode(J2K, b"good", PIXELS)
    with pytest.raises(DecodingError):
        isolation.decode(J2K, b"bad", PIXELS)
    assert (isolation.started, isolation.failed) == (3, 3)


def test_what_takes_too_long_is_not_tried_again(close_later) -> None:
    for fault, limits in (
        ("time.sleep(600)", IsolationLimits(wall_s_max=2.0)),
        ("while True: pass", IsolationLimits(cpu_s_max=0, wall_s_max=60.0)),
    ):
        isolation = close_later(Sabotaged(fault, limits))
        with contextlib.suppress(DecodingError):  # with no CPU time at all, now and then
            isolation.decode(J2K, b"good", PIXELS)
        failed = isolation.failed
        with pytest.raises(DecodingError):
            isolation.decode(J2K, b"bad", PIXELS)
        assert isolation.failed == failed + 1, fault


@pytest.mark.parametrize(
    ("fault", "limits"),
    [
        ("time.sleep(600)", IsolationLimits(wall_s_max=1.0)),
        ("while True: pass", IsolationLimits(cpu_s_max=0, wall_s_max=60.0)),
    ],
)
def test_a_hang_is_ended(close_later, fault: str, limits: IsolationLimits) -> None:
    isolation = close_later(Sabotaged(fault, limits))
    with pytest.raises(DecodingError):
        isolation.decode(J2K, b"bad", PIXELS)
    assert isolation.failed == 1


def test_one_that_hangs_holds_up_no_other(close_later) -> None:
    """Two at once: while one decoder sleeps, others' frames are decoded, and its own request alone fails."""
    isolation = close_later(Sabotaged("time.sleep(600)", IsolationLimits(processes_max=2, wall_s_max=3.0)))
    failed = []

    def hang() -> None:
        try:
            isolation.decode(J2K, b"bad", PIXELS)
        except DecodingError as error:
            failed.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        for _ in range(5):
            assert isolation.decode(J2K, b"good", PIXELS) == b"\1\0" * 16
    finally:
        thread.join()
    assert len(failed) == 1
    assert isolation.decode(J2K, b"good", PIXELS) == b"\1\0" * 16
    assert (isolation.failed, isolation.started) == (1, 2)
    assert len(isolation.processes) == 1


def test_greed_is_refused_and_the_process_goes_on(close_later) -> None:
    isolation = close_later(Sabotaged("bytearray(2 << 30)"))
    with pytest.raises(DecodingError):
        isolation.decode(J2K, b"bad", PIXELS)
    assert isolation.decode(J2K, b"good", PIXELS) == b"\1\0" * 16
    assert (isolation.started, isolation.failed) == (1, 0)


def test_it_has_nothing_to_give_away(close_later, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment, no descriptors but its pipes, no file that it could write, no core file."""
    monkeypatch.setenv("HOUNSFIELD_MASTER_KEY", "secret")
    inheritable = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    evidence = (
        "assert set(os.environ) <= {'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'LC_ALL', 'LC_CTYPE'};"
        "assert len(os.listdir('/proc/self/fd')) == 4, os.listdir('/proc/self/fd');"
        "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0);"
        "assert resource.getrlimit(resource.RLIMIT_FSIZE) == (0, 0);"
        "assert os.getcwd() == '/' and os.getpgrp() == os.getpid()"
    )
    try:
        isolation = close_later(Sabotaged(f"exec({evidence!r})"))
        assert isolation.decode(J2K, b"bad", PIXELS) == bytes(32)
    finally:
        os.close(inheritable)


def test_a_header_that_promises_too_much(close_later) -> None:
    """A real codestream whose image is said to be enormous."""
    isolation = close_later(Isolation())
    frame = coded_frame()
    at = frame.data.index(b"\xff\x51") + 6
    for side in (0x7FFFFFFF, 100_000):
        bomb = bytearray(frame.data)
        bomb[at : at + 8] = struct.pack(">II", side, side)
        with pytest.raises(DecodingError):
            isolation.decode(J2K, bytes(bomb), frame.pixels)
    assert isolation.decode(J2K, frame.data, frame.pixels)
    too_large = PixelFormat(60_000, 60_000)
    with pytest.raises(DecodingError):
        isolation.decode(J2K, frame.data, too_large)
    with pytest.raises(DecodingError):
        isolation.decode("1." * 60, frame.data, frame.pixels)
    with pytest.raises(DecodingError):
        isolation.decode("1.2.3", frame.data, frame.pixels)
    with pytest.raises(DecodingError):
        isolation.decode(J2K, frame.data, PixelFormat(2**40, 1, 1, 0))


@pytest.mark.parametrize("limits", [IsolationLimits(idle_s_max=0.0), IsolationLimits(frames_max=1)])
def test_a_process_does_not_stay_for_ever(close_later, limits: IsolationLimits) -> None:
    isolation = close_later(Sabotaged("pass", limits))
    for _ in range(2):
        isolation.decode(J2K, b"good", PIXELS)
    assert isolation.started == 2


async def test_what_is_not_needed_is_ended_and_forgotten_by_the_kernel(
    close_later, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing is decoded again: whether it idled too long or ended by itself, no zombie stays."""
    looked = threading.Event()

    class Heard(Sabotaged):
        def end_unused(self) -> None:
            super().end_unused()
            looked.set()

    for limits, ends_itself in ((IsolationLimits(idle_s_max=0.0), False), (IsolationLimits(), True)):
        isolation = close_later(Heard("pass", limits))
        looked.clear()
        await isolation.decode_in_turn(J2K, b"good", PIXELS)
        (process,) = isolation.processes
        if ends_itself:
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(isolation.run)
            assert await trio.to_thread.run_sync(looked.wait, 60)
            nursery.cancel_scope.cancel()
        assert process.returncode is not None  # known without asking: it was waited for
        assert not isolation.processes


def test_one_that_is_needed_is_not_ended(close_later) -> None:
    isolation = close_later(Sabotaged("pass"))
    isolation.decode(J2K, b"good", PIXELS)
    isolation.end_unused()
    isolation.decode(J2K, b"good", PIXELS)
    assert isolation.started == 1


async def test_it_starts_when_it_is_needed_and_ends_with_its_owner() -> None:
    isolation = Sabotaged("pass")
    assert isolation.started == 0
    assert await isolation.decode_in_turn(J2K, b"good", PIXELS) == b"\1\0" * 16
    (process,) = isolation.processes
    isolation.close()
    isolation.close()
    assert process.poll() is not None
    with pytest.raises(DecodingError):
        isolation.decode(J2K, b"good", PIXELS)


async def test_while_one_object_is_compared_others_are_stored(tmp_path: Path) -> None:
    """A decoder that hangs holds up the one object that may be a duplicate; its group goes on."""
    uids = {"study_uid": generate_uid(), "series_uid": generate_uid(), "sop_uid": generate_uid()}
    entered, release = threading.Event(), threading.Event()
    outcomes: list[Outcome] = []
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert (await store(engine, ct_slice(**uids), ExplicitVRLittleEndian)).outcome is Outcome.STORED

            def slow(received: object, held: object) -> bool:
                entered.set()
                release.wait(60)
                return False

            engine.comparing.is_held = slow  # type: ignore[method-assign]

            async def conflicting() -> None:
                outcomes.append((await store(engine, ct_slice(**uids), ExplicitVRLittleEndian)).outcome)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(conflicting)
                await trio.to_thread.run_sync(entered.wait)
                for _ in range(5):
                    assert (await store(engine, ct_slice(), ExplicitVRLittleEndian)).outcome is Outcome.STORED
                assert outcomes == []
                release.set()
    assert outcomes == [Outcome.CONFLICT]
