"""Stored videos: their stream as it is, and frames of it, drawn in a process that may crash or hang.

Frames of a video have no bytes of their own (PS3.5 8.2.5 to 8.2.8): whoever wants one has the stream read
from its beginning, or in MP4 from the key frame before. PyAV does that, which is the extra ``video``.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

import trio

from hounsfield.archive.engine.retrieve import Retrieve
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.registry import lookup
from hounsfield.codecs.video_process import AS_MP4, FRAME, HEAD_BYTES, PICTURE, REQUEST, demuxer_of
from hounsfield.storage_backends.api import Buffer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

_MODULE: Final = "hounsfield.codecs.video_process"
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What one question about a video may cost.

    ``stream_bytes_max``: of the stored stream, which is held twice, here and in the process.
    ``memory_bytes_max``: address space of the process, without the stream; FFmpeg's libraries take 0.3 GiB.
    ``wall_s_max``: and so many seconds of CPU.
    """

    stream_bytes_max: int = 256 << 20
    memory_bytes_max: int = 2 << 30
    wall_s_max: float = 60.0


@cache
def are_decoded() -> bool:
    """Whether frames of videos are decoded here: PyAV is installed."""
    return importlib.util.find_spec("av") is not None


@dataclass(frozen=True, slots=True)
class Stream:
    """A video's bytes as stored, its fragments joined. ``read`` gives those from ``start`` to ``stop``."""

    length: int
    read: Callable[[int, int], AsyncIterator[Buffer]]


class Videos:
    """One worker's way to stored videos. One is drawn at a time: it takes a processor for seconds."""

    def __init__(self, retrieve: Retrieve, frame: Callable[[Instance, int], Awaitable[Buffer]]) -> None:
        self._retrieve, self._frame_bytes = retrieve, frame
        self._turns: trio.CapacityLimiter | None = None

    async def stream(self, instance: Instance) -> Stream:
        """The stored stream; empty when there is none."""
        places = await self._retrieve.pixel_places(instance)
        if places is None:  # as many fragments as frames, so that each was taken for one
            count = instance.row.location.frames
            whole = b"".join([bytes(await self._frame_bytes(instance, n + 1)) for n in range(count)])
            return Stream(len(whole), lambda start, stop: _stretch(whole, start, stop))
        length = sum(end - begin for begin, end in places)
        return Stream(length, partial(self._retrieve.received, instance, places))

    async def demuxer(self, instance: Instance, stream: Stream) -> str:
        """What the stream is, "" when nobody knows; see :func:`demuxer_of`."""
        head = await _gathered(stream, min(stream.length, HEAD_BYTES))
        return demuxer_of(head, lookup(instance.row.transfer_syntax_uid).media_type)

    async def frame(self, instance: Instance, number: int, limits: VideoLimits) -> NDArray[Any]:
        """Frame ``number``, from 1, as RGB of 8 bits. ``NotRenderableError``."""
        answer = await self._asked(instance, FRAME, number, 0.0, limits)
        if len(answer) < PICTURE.size:
            raise NotRenderableError("the video does not decode up to this frame")
        rows, columns = PICTURE.unpack_from(answer)
        cells = np.frombuffer(answer, np.uint8, offset=PICTURE.size)
        said = tuple(instance.row.attributes.get(tag, "") for tag in (0x00280010, 0x00280011))
        if cells.size != rows * columns * 3 or said != (str(rows), str(columns)):
            raise NotRenderableError("the video's frames are of another size than its attributes say")
        return cells.reshape(rows, columns, 3)

    async def as_mp4(self, instance: Instance, frames_max: int, rate: float, limits: VideoLimits) -> bytes:
        """The video as MP4: copied where that can be, else coded anew. ``NotRenderableError``."""
        answer = await self._asked(instance, AS_MP4, frames_max, rate, limits)
        if not answer:
            raise NotRenderableError(
                "this video is not made into MP4: it is damaged, or too long; ask for it as it is stored"
            )
        return answer

    async def _asked(
        self, instance: Instance, task: int, number: int, rate: float, limits: VideoLimits
    ) -> bytes:
        if not are_decoded():
            raise NotRenderableError("pictures of videos need the extra 'video', which is not installed")
        stream = await self.stream(instance)
        if stream.length > limits.stream_bytes_max:
            raise NotRenderableError("the video is too long to be drawn; ask for it as it is stored")
        demuxer = await self.demuxer(instance, stream)
        if not demuxer:
            raise NotRenderableError("the video is in no form that is decoded here")
        if self._turns is None:
            self._turns = trio.CapacityLimiter(1)
        async with self._turns:
            data = await _gathered(stream, stream.length)
            request = REQUEST.pack(demuxer.encode(), task, number, rate) + data
            return await _answered(request, limits)


async def _gathered(stream: Stream, length: int) -> bytes:
    pieces = bytearray()
    async with aclosing(stream.read(0, length)) as buffers:  # type: ignore[type-var]
        async for buffer in buffers:
            pieces += buffer
    return bytes(pieces)


async def _stretch(whole: bytes, start: int, stop: int) -> AsyncIterator[Buffer]:
    yield memoryview(whole)[start:stop]


async def _answered(request: bytes, limits: VideoLimits) -> bytes:
    """What the process says to it, nothing when it failed. It ends when nobody waits for it any more."""
    memory = limits.memory_bytes_max + 2 * len(request)
    with trio.move_on_after(limits.wall_s_max):
        done = await trio.run_process(
            [sys.executable, "-I", "-m", _MODULE, str(memory), str(int(limits.wall_s_max) + 1)],
            stdin=request,
            capture_stdout=True,
            stderr=subprocess.DEVNULL,
            check=False,
            close_fds=True,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
        )
        answer: bytes = b"" if done.returncode else done.stdout
        return answer
    return b""
