"""Untrusted compressed pixels are decoded in processes of their own, which may crash, hang or grow.

A few for each engine, started when they are needed and by exec (a fork would copy locks and keys), ended when
they have not been needed for a while. Each inherits a pipe each way and nothing else: no environment, no
descriptor, no key (:mod:`hounsfield.codecs.decoding_process` says what it gives up). What they answer is as
trustworthy as the bytes they were given: it may be wrong about pixels, never about anything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Final

import trio

from hounsfield.archive.engine.refusals import Refusals
from hounsfield.codecs import decoding_process as protocol
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.pixels import PixelFormat, decoded_format
from hounsfield.storage_backends.api import Buffer

_MODULE: Final = "hounsfield.codecs.decoding_process"
#: Numeric libraries start a thread for each core unless told not to; each would reserve memory.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
#: A CT slice goes through in one piece instead of eight, each a switch between two processes.
_PIPE_BYTES: Final = 1 << 20
_UID_CHARACTERS_MAX: Final = 64
_DOES_NOT_DECODE: Final = "the frame does not decode as its transfer syntax and attributes say"
#: How often those that are not needed any more are looked for, at most.
_LOOKS_EVERY_S_MIN: Final = 1.0


class DecodingError(CodecError):
    """The frame was not decoded: it is no such frame, or decoding it took too much."""


class NotEncodedError(DecodingError):
    """The frame was decoded, and no encoder of the transfer syntax takes what it is."""


class _SpoiltError(DecodingError):
    """The process that was to decode the frame ended, and had decoded others before."""


@dataclass(frozen=True, slots=True)
class IsolationLimits:
    """What one frame may cost, and how many are worked on at once.

    ``memory_bytes_max``: address space of each process, libraries included (about 0.3 GiB of it).
    ``cpu_s_max``, ``wall_s_max``: the largest frames in practice take under two seconds.
    ``cpu_s_min``: what the smallest may take; others more, as much as they are larger: a changed byte that
    keeps a decoder busy costs no more than that.
    ``frame_bytes_max``: compressed, and decoded.
    ``idle_s_max``: after so long a process is not used again, and soon ended; 60 MB lie idle meanwhile.
    ``frames_max``: decoded by one process, so that one which somebody's bytes took over does not stay.
    ``processes_max``: of one worker; there is a worker for each core, and one request may be all there is.
    """

    memory_bytes_max: int = 1 << 30
    cpu_s_max: int = 10
    cpu_s_min: int = 1
    wall_s_max: float = 20.0
    frame_bytes_max: int = 128 << 20
    idle_s_max: float = 60.0
    frames_max: int = 1000
    processes_max: int = 2

    def cpu_s(self, decoded_bytes: int) -> int:
        """What a frame of that size may take."""
        share = min(1.0, 4 * decoded_bytes / self.frame_bytes_max)
        least = min(self.cpu_s_min, self.cpu_s_max)
        return least + int((self.cpu_s_max - least) * share)


class _Worker:
    """One process and its pipes."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            close_fds=True,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,  # a Ctrl-C is for its owner, who ends it
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.answers = self.process.stdin.fileno(), self.process.stdout.fileno()
        for pipe in (self.requests, self.answers):
            os.set_blocking(pipe, False)
            with contextlib.suppress(OSError):  # a user's pipes have a limit: then they stay small
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.used_at = time.monotonic()
        self.frames = 0

    def exchange(self, pieces: tuple[Buffer, ...], bytes_max: int, deadline: float) -> tuple[int, bytearray]:
        for piece in pieces:
            _write(self.requests, piece, deadline)
        status, length = protocol.ANSWER.unpack(_read(self.answers, protocol.ANSWER.size, deadline))
        if length > max(bytes_max, 256):
            raise EOFError("an answer that is too long")
        payload = _read(self.answers, length, deadline)
        self.used_at = time.monotonic()
        self.frames += 1
        return status, payload

    def may_have_been_spoilt(self, error: Exception) -> bool:
        """Whether a frame before may be why the process, which was ended, has failed.

        Libraries write where they must not, and it shows later. What took too long did so by itself.
        """
        took_too_long = isinstance(error, TimeoutError) or self.process.returncode == -signal.SIGXCPU
        return self.frames > 0 and not took_too_long

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()


class Isolation:
    """Decodes and transcodes frames elsewhere. Any thread may call it; a few frames at once."""

    def __init__(self, limits: IsolationLimits | None = None) -> None:
        self.limits = limits or IsolationLimits()
        self.refusals = Refusals()
        self.started = 0
        self.failed = 0
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(self.limits.processes_max)
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._closed = False
        self._threads: trio.CapacityLimiter | None = None

    def decode(self, transfer_syntax_uid: str, frame: Buffer, pixels: PixelFormat) -> bytearray:
        """The frame's pixels: little endian words, colour by pixel. Blocking; ``DecodingError``."""
        expected = decoded_format(transfer_syntax_uid, pixels).frame_bytes
        return self._done(transfer_syntax_uid, "", frame, pixels, expected)

    def transcode(self, source_uid: str, target_uid: str, frame: Buffer, pixels: PixelFormat) -> bytearray:
        """The frame in another transfer syntax. Blocking; ``DecodingError``."""
        return self._done(source_uid, target_uid, frame, pixels, None)

    async def decode_in_turn(self, transfer_syntax_uid: str, frame: Buffer, pixels: PixelFormat) -> bytearray:
        """As :meth:`decode`, waiting on a thread; cancelled only when the frame is done or given up."""
        return await trio.to_thread.run_sync(
            self.decode, transfer_syntax_uid, frame, pixels, limiter=self._limiter()
        )

    async def transcode_in_turn(
        self, source_uid: str, target_uid: str, frame: Buffer, pixels: PixelFormat
    ) -> bytearray:
        """As :meth:`transcode`, waiting on a thread; cancelled only when the frame is done or given up."""
        return await trio.to_thread.run_sync(
            self.transcode, source_uid, target_uid, frame, pixels, limiter=self._limiter()
        )

    def _limiter(self) -> trio.CapacityLimiter:
        if self._threads is None:
            self._threads = trio.CapacityLimiter(self.limits.processes_max)
        return self._threads

    def _done(
        self, source_uid: str, target_uid: str, frame: Buffer, pixels: PixelFormat, expected: int | None
    ) -> bytearray:
        limits = self.limits
        decoded_bytes = decoded_format(source_uid, pixels).frame_bytes
        if not 0 < decoded_bytes <= limits.frame_bytes_max or len(frame) > limits.frame_bytes_max:
            raise DecodingError(f"a frame of more than {limits.frame_bytes_max} bytes is not decoded")
        if max(len(source_uid), len(target_uid)) > _UID_CHARACTERS_MAX:
            raise DecodingError("no transfer syntax has so long a UID")
        task = protocol.Task(source_uid, target_uid, pixels, limits.cpu_s(decoded_bytes)).encoded()
        if len(task) > protocol.TASK_BYTES_MAX:
            raise DecodingError("no frame is described so")
        request = protocol.REQUEST.pack(len(task), len(frame)) + task
        bytes_max = expected if expected is not None else limits.frame_bytes_max
        to_decode: tuple[Buffer, ...] = (protocol.Task(source_uid, "", pixels, 0).encoded(), frame)
        asked = (task, frame)
        said = self.refusals.said(to_decode, asked)
        if said is not None:
            raise DecodingError(said)
        with self._turns:
            began = time.monotonic()
            try:
                status, payload = self._tried((request, frame), bytes_max, expected)
            except DecodingError as error:
                if not self._closed:
                    refused = asked if target_uid else to_decode
                    self.refusals.remember(refused, str(error), time.monotonic() - began)
                raise
        if status == protocol.NOT_ENCODED:
            raise NotEncodedError("no encoder of that transfer syntax takes such pixels")
        if status != protocol.DECODED:
            self.refusals.remember(to_decode, _DOES_NOT_DECODE, time.monotonic() - began)
            raise DecodingError(_DOES_NOT_DECODE)
        return payload

    def _tried(
        self, request: tuple[Buffer, ...], bytes_max: int, expected: int | None
    ) -> tuple[int, bytearray]:
        try:
            return self._exchange(request, bytes_max, expected)
        except _SpoiltError:
            # Perhaps a frame before it is at fault: it has a process of its own, once.
            return self._exchange(request, bytes_max, expected, fresh=True)

    def _exchange(
        self, request: tuple[Buffer, ...], bytes_max: int, expected: int | None, *, fresh: bool = False
    ) -> tuple[int, bytearray]:
        """``DecodingError``; ``_SpoiltError`` when a process ended that had decoded others before."""
        deadline = time.monotonic() + self.limits.wall_s_max
        worker: _Worker | None = None
        try:
            worker = self._started() if fresh else self._taken()
            status, payload = worker.exchange(request, bytes_max, deadline)
            if status == protocol.DECODED and expected is not None and len(payload) != expected:
                raise EOFError("an answer of another length than the shape's")
        except (OSError, EOFError, TimeoutError) as error:
            self._let_go(worker)
            with self._lock:
                self.failed += 1
                closed = self._closed
            said = f"decoding was ended ({type(error).__name__})"
            if worker is not None and worker.may_have_been_spoilt(error) and not closed:
                raise _SpoiltError(said) from error
            raise DecodingError(said) from error
        except BaseException:
            self._let_go(worker)
            raise
        with self._lock:
            self._busy.discard(worker)
            closed = self._closed
            if not closed:
                self._idle.append(worker)
        if closed:
            worker.end()
        return status, payload

    async def run(self) -> None:
        """End processes that have not been needed for a while, until cancelled.

        Those that ended by themselves are waited for, too: nothing else asks the kernel to forget them.
        """
        while True:
            await trio.sleep(max(self.limits.idle_s_max, _LOOKS_EVERY_S_MIN))
            if self._idle:
                await trio.to_thread.run_sync(self.end_unused)

    def end_unused(self) -> None:
        """End idle processes that will not be used again, or have ended. Blocking."""
        with self._lock:
            stale = [worker for worker in self._idle if self._is_stale(worker)]
            self._idle = [worker for worker in self._idle if worker not in stale]
        for worker in stale:
            worker.end()

    def _is_stale(self, worker: _Worker) -> bool:
        return (
            worker.used_at < time.monotonic() - self.limits.idle_s_max
            or worker.frames >= self.limits.frames_max
            or worker.process.poll() is not None
        )

    def _taken(self) -> _Worker:
        """A process that may be used, the one used last first; others that may not be any more are ended."""
        stale: list[_Worker] = []
        found: _Worker | None = None
        with self._lock:
            if self._closed:
                raise EOFError("the engine is closed")
            while self._idle and found is None:
                worker = self._idle.pop()
                if self._is_stale(worker):
                    stale.append(worker)
                else:
                    found = worker
                    self._busy.add(worker)
        for worker in stale:
            worker.end()
        return found or self._started()

    def _started(self) -> _Worker:
        worker = _Worker(self._command())
        with self._lock:
            self.started += 1
            self._busy.add(worker)
            started_in_vain = bool(self.closed)
        if started_in_vain:
            self._let_go(worker)
            raise EOFError("the engine is closed")
        return worker

    def _let_go(self, worker: _Worker | None) -> None:
        if worker is not None:
            with self._lock:
                self._busy.discard(worker)
            worker.end()

    def _command(self) -> list[str]:
        # It ends by itself well after the moment from which it is not used any more.
        limits = [str(self.limits.memory_bytes_max), str(int(self.limits.idle_s_max * 2) + 1)]
        return [sys.executable, "-I", "-m", _MODULE, *limits]

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called: nothing is decoded any more."""
        return self._closed

    @property
    def processes(self) -> tuple[subprocess.Popen[bytes], ...]:
        """Those that run, at work or idle."""
        with self._lock:
            return tuple(worker.process for worker in (*self._idle, *self._busy))

    def close(self) -> None:
        """End the processes; what is being decoded fails. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for worker in busy:
            worker.process.kill()  # whoever waits for it lets go of it
        for worker in idle:
            worker.end()


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError("decoding took too long")


def _write(descriptor: int, data: Buffer, deadline: float) -> None:
    view = memoryview(data).cast("B")
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            _wait(descriptor, select.POLLOUT, deadline)


def _read(descriptor: int, length: int, deadline: float) -> bytearray:
    data = bytearray(length)
    view, filled = memoryview(data), 0
    while filled < length:
        try:
            count = os.readv(descriptor, [view[filled:]])
        except BlockingIOError:
            _wait(descriptor, select.POLLIN, deadline)
            continue
        if not count:
            raise EOFError("the decoding process has ended")
        filled += count
    return data
