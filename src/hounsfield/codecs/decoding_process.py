"""The process that decodes what others compressed: ``python -I -m hounsfield.codecs.decoding_process``.

It has a pipe to read frames from, a pipe to write pixels to, and nothing else: no other descriptor, no
environment, no key, no file it could write. What it may use is limited before it looks at the first frame.
One that crashes, hangs or grows takes one frame with it and is replaced by its owner
(``hounsfield.archive.engine.isolation``).

Request: :data:`REQUEST`, then the transfer syntax UID, then the frame. Answer: :data:`ANSWER`, then the
pixels as little endian words, colour by pixel, or the name of what went wrong. It ends when its input does,
or when nothing came for a while.
"""

from __future__ import annotations

import os
import resource
import select
import struct
import sys
from typing import Final

from hounsfield.codecs.coders import coder_of
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.pixels import PixelFormat, to_native

#: UID length, rows, columns, samples, bits allocated, bits stored, flags, CPU seconds, frame length.
REQUEST: Final = struct.Struct("<HIIHHHHIQ")
#: Status, payload length.
ANSWER: Final = struct.Struct("<BQ")
DECODED, FAILED = 0, 1
SIGNED, PLANAR, IN_WORDS = 1, 2, 4
UID_BYTES_MAX: Final = 64
DESCRIPTORS_MAX: Final = 64  # the libraries are opened one after the other, each closed again


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


def answer(uid: str, frame: bytearray, pixels: PixelFormat) -> tuple[int, bytes | memoryview]:
    """The pixels, or what went wrong. Nothing that the frame says is repeated."""
    coder = coder_of(uid)
    if coder is None:
        return FAILED, b"no coder"
    try:
        array = coder.decode(frame, pixels)
        plain = PixelFormat(*pixels.shape, pixels.bits_allocated, pixels.bits_stored, pixels.signed)
        return DECODED, to_native(array, plain)
    except (CodecError, MemoryError, ValueError) as error:
        return FAILED, type(error).__name__.encode()


def main() -> None:
    memory_bytes_max, idle_s_max = map(int, sys.argv[1:3])
    confine(memory_bytes_max)
    requests, answers = 0, 1
    while select.select([requests], [], [], idle_s_max)[0]:
        head = _read(requests, REQUEST.size)
        if head is None:
            return
        uid_length, rows, columns, samples, allocated, stored, flags, seconds, length = REQUEST.unpack(head)
        _allow_cpu(seconds)
        try:
            uid = _read(requests, min(uid_length, UID_BYTES_MAX))
            frame = _read(requests, length)
        except MemoryError:
            return
        if uid is None or frame is None:
            return
        pixels = PixelFormat(
            rows, columns, samples, allocated, stored,
            bool(flags & SIGNED), bool(flags & PLANAR), bool(flags & IN_WORDS),
        )  # fmt: skip
        status, payload = answer(uid.decode("ascii", "replace"), frame, pixels)
        _write(answers, ANSWER.pack(status, len(payload)))
        _write(answers, payload)


if __name__ == "__main__":
    main()
