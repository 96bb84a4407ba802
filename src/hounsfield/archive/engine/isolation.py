"""Untrusted compressed pixels are decoded in a process of their own, which may crash, hang or grow.

One process for each engine, started when it is first needed and by exec (a fork would copy locks and keys),
ended when it has not been needed for a while. It inherits a pipe each way and nothing else: no environment,
no descriptor, no key (:mod:`hounsfield.codecs.decoding_process` says what it gives up). What it answers is
as trustworthy as the bytes it was given: it may be wrong about pixels, never about anything else.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Final

import trio

from hounsfield.codecs import decoding_process as protocol
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.pixels import PixelFormat
from hounsfield.storage_backends.api import Buffer

_MODULE: Final = "hounsfield.codecs.decoding_process"
#: Numeric libraries start a thread for each core unless told not to; each would reserve memory.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}


class DecodingError(CodecError):
    """The frame was not decoded: it is no such frame, or decoding it took too much."""


@dataclass(frozen=True, slots=True)
class IsolationLimits:
    """What one frame may cost.

    ``memory_bytes_max``: address space, libraries included (about 0.3 GiB of it).
    ``cpu_s_max``, ``wall_s_max``: the largest frames in practice take under two seconds.
    ``frame_bytes_max``: compressed, and decoded.
    ``idle_s_max``: after so long a process is not used again; 60 MB lie idle meanwhile.
    ``frames_max``: decoded by one process, so that one which somebody's bytes took over does not stay.
    """

    memory_bytes_max: int = 1 << 30
    cpu_s_max: int = 10
    wall_s_max: float = 20.0
    frame_bytes_max: int = 128 << 20
    idle_s_max: float = 60.0
    frames_max: int = 1000


class Isolation:
    """Decodes frames elsewhere. Any thread may call it; one frame is decoded at a time."""

    def __init__(self, limits: IsolationLimits | None = None) -> None:
        self.limits = limits or IsolationLimits()
        self.started = 0
        self.failed = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._used_at = 0.0
        self._frames = 0
        self._closed = False
        self._threads: trio.CapacityLimiter | None = None

    def decode(self, transfer_syntax_uid: str, frame: Buffer, pixels: PixelFormat) -> bytearray:
        """The frame's pixels: little endian words, colour by pixel. Blocking; ``DecodingError``."""
        limits = self.limits
        if len(frame) > limits.frame_bytes_max or pixels.frame_bytes > limits.frame_bytes_max:
            raise DecodingError(f"a frame of more than {limits.frame_bytes_max} bytes is not decoded")
        uid = transfer_syntax_uid.encode("ascii", "replace")
        if len(uid) > protocol.UID_BYTES_MAX:
            raise DecodingError("no transfer syntax has so long a UID")
        try:
            request = protocol.REQUEST.pack(
                len(uid), *pixels.shape, pixels.bits_allocated, pixels.bits_stored, _flags(pixels),
                limits.cpu_s_max, len(frame),
            )  # fmt: skip
        except struct.error:
            raise DecodingError("no frame has such a shape") from None
        with self._lock:
            return self._exchange((request + uid, frame), pixels.frame_bytes)

    async def decode_in_turn(self, transfer_syntax_uid: str, frame: Buffer, pixels: PixelFormat) -> bytearray:
        """As :meth:`decode`, waiting on a thread; cancelled only when the frame is done or given up."""
        if self._threads is None:
            self._threads = trio.CapacityLimiter(1)
        return await trio.to_thread.run_sync(
            self.decode, transfer_syntax_uid, frame, pixels, limiter=self._threads
        )

    def _exchange(self, request: tuple[Buffer, ...], expected: int) -> bytearray:
        deadline = time.monotonic() + self.limits.wall_s_max
        try:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            for piece in request:
                _write(process.stdin.fileno(), piece, deadline)
            head = _read(process.stdout.fileno(), protocol.ANSWER.size, deadline)
            status, length = protocol.ANSWER.unpack(head)
            if status == protocol.DECODED and length != expected:
                raise EOFError("an answer of another length than the shape's")
            if length > max(expected, 256):
                raise EOFError("an answer that is too long")
            payload = _read(process.stdout.fileno(), length, deadline)
        except (OSError, EOFError, TimeoutError) as error:
            self._end()
            self.failed += 1
            raise DecodingError(f"decoding was ended ({type(error).__name__})") from error
        except BaseException:
            self._end()
            raise
        self._used_at = time.monotonic()
        self._frames += 1
        if status != protocol.DECODED:
            raise DecodingError("the frame does not decode as its transfer syntax and attributes say")
        return payload

    def _running(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise EOFError("the engine is closed")
        stale = time.monotonic() - self._used_at > self.limits.idle_s_max
        if self._process is not None and (
            stale or self._frames >= self.limits.frames_max or self._process.poll() is not None
        ):
            self._end()
        if self._process is None:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                close_fds=True,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,  # a Ctrl-C is for its owner, who ends it
            )
            self.started += 1
            self._frames = 0
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
        return self._process

    def _command(self) -> list[str]:
        # It ends by itself well after the moment from which it is not used any more.
        limits = [str(self.limits.memory_bytes_max), str(int(self.limits.idle_s_max * 2) + 1)]
        return [sys.executable, "-I", "-m", _MODULE, *limits]

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait()

    def close(self) -> None:
        """End the process; what is being decoded fails. Idempotent."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()


def _flags(pixels: PixelFormat) -> int:
    return (
        protocol.SIGNED * pixels.signed
        | protocol.PLANAR * pixels.planar
        | protocol.IN_WORDS * pixels.in_words
    )


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
