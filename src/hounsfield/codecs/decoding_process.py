"""The process that decodes what others compressed: ``python -I -m hounsfield.codecs.decoding_process``.

It has a pipe to read frames from, a pipe to write pixels to, and nothing else: no other descriptor, no
environment, no key, no file it could write. What it may use is limited before it looks at the first frame.
One that crashes, hangs or grows takes one frame with it and is replaced by its owner
(``hounsfield.archive.engine.isolation``).

It also encodes what it decoded, when it is asked for the frame in another transfer syntax: the pixels need
not travel then, and libraries that keep the GIL keep that of this process.

Request: :data:`REQUEST`, then a JSON object (:class:`Task`), then the frame. Answer: :data:`ANSWER`, then the
pixels as little endian words, colour by pixel, or the encoded frame, or the name of what went wrong. It ends
when its input does, or when nothing came for a while.
"""

from __future__ import annotations

import json
import os
import resource
import select
import struct
import sys
from dataclasses import asdict, dataclass
from typing import Final

from hounsfield.codecs.coders import coder_of
from hounsfield.codecs.errors import CodecError, UnsupportedPixelsError
from hounsfield.codecs.pixels import PixelFormat, decoded_format, to_native

#: Length of the task, length of the frame.
REQUEST: Final = struct.Struct("<IQ")
#: Status, payload length.
ANSWER: Final = struct.Struct("<BQ")
DECODED, FAILED, NOT_ENCODED = 0, 1, 2
TASK_BYTES_MAX: Final = 4096
IMPORTS_CPU_S: Final = 1  # while it is at its first frame a process imports the libraries
DESCRIPTORS_MAX: Final = 64  # the libraries are opened one after the other, each closed again


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done with a frame: decode it, and encode it where ``target`` names a transfer syntax."""

    source: str
    target: str
    pixels: PixelFormat
    cpu_s: int

    def encoded(self) -> bytes:
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def decoded(cls, data: bytes | bytearray) -> Task:
        fields = json.loads(data)
        return cls(fields["source"], fields["target"], PixelFormat(**fields["pixels"]), fields["cpu_s"])


def confine(memory_bytes_max: int) -> None:
    """Give up what decoding does not need, for good."""
    unlimited = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold somebody's images
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS_MAX, DESCRIPTORS_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (unlimited, unlimited))


def _allow_cpu(seconds: int) -> None:
    """So many more seconds of CPU; past them the kernel ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _read(descriptor: int, length: int) -> bytearray | None:
    data = bytearray(length)
    view, filled = memoryview(data), 0
    while filled < length:
        count = os.readv(descriptor, [view[filled:]])
        if not count:
            return None
        filled += count
    return data


def _write(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def answer(task: Task, frame: bytearray) -> tuple[int, bytes | memoryview]:
    """The pixels, the encoded frame, or what went wrong. Nothing that the frame says is repeated."""
    try:
        coder = coder_of(task.source)
        if coder is None:
            raise UnsupportedPixelsError("no coder")
        array = coder.decode(frame, task.pixels)
        plain = decoded_format(task.source, task.pixels)
        if not task.target:
            return DECODED, to_native(array, plain)
    except (CodecError, MemoryError, ValueError) as error:
        return FAILED, type(error).__name__.encode()
    try:
        target = coder_of(task.target)
        if target is None:
            raise UnsupportedPixelsError("no coder")
        return DECODED, target.encode(array, plain)
    except (CodecError, MemoryError, ValueError) as error:
        return NOT_ENCODED, type(error).__name__.encode()


def main() -> None:
    memory_bytes_max, idle_s_max = map(int, sys.argv[1:3])
    confine(memory_bytes_max)
    requests, answers = 0, 1
    imports_cpu_s = IMPORTS_CPU_S
    while select.select([requests], [], [], idle_s_max)[0]:
        head = _read(requests, REQUEST.size)
        if head is None:
            return
        task_length, frame_length = REQUEST.unpack(head)
        described = _read(requests, min(task_length, TASK_BYTES_MAX))
        if described is None:
            return
        task = Task.decoded(described)
        _allow_cpu(task.cpu_s + imports_cpu_s)
        imports_cpu_s = 0
        try:
            frame = _read(requests, frame_length)
        except MemoryError:
            return
        if frame is None:
            return
        status, payload = answer(task, frame)
        _write(answers, ANSWER.pack(status, len(payload)))
        _write(answers, payload)


if __name__ == "__main__":
    main()
