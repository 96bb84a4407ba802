"""The process that reads a video that somebody else made: ``python -I -m …``.

FFmpeg's demuxers and decoders are a million lines of C. This process has what it is given on its standard
input and nothing else, is limited before it looks at it, and answers one question: a frame as RGB, or the
whole as MP4. The demuxer is named, never guessed: some of FFmpeg's read playlists, which name other files.

Input: :data:`REQUEST`, then the stream. Output: for a frame :data:`PICTURE` and its RGB of 8 bits; for the
whole the MP4 file; nothing, and another exit code than 0, when that failed.
"""

from __future__ import annotations

import io
import itertools
import resource
import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

from hounsfield.codecs.decoding_process import confine

#: Demuxer, task, frame number (or how many there may be), frames a second.
REQUEST: Final = struct.Struct("<16sBId")
#: Rows, columns.
PICTURE: Final = struct.Struct("<II")
FRAME, AS_MP4 = 0, 1

_MP4, _TRANSPORT, _PROGRAM = "mov", "mpegts", "mpeg"
#: Boxes that ISO base media files begin with (ISO/IEC 14496-12 4.2).
_BOXES: Final = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide"})
#: Bitstreams without a container, by the media type of their transfer syntax.
_BARE: Final = {"video/mpeg": "mpegvideo", "video/mp4": "h264", "video/H265": "hevc"}
HEAD_BYTES: Final = 400
"""Of a stream's beginning, which say what it is: two packets of a transport stream."""
_PACKET, _PACKET_WITH_TIME = 188, 192
#: What MP4 can hold as it is; MPEG-2 in MP4 is played by no browser.
_COPIED: Final = frozenset({"h264", "hevc"})
_FRAGMENTED: Final = "frag_keyframe+empty_moov+default_base_moof"
_CODEC, _PRESET, _QUALITY = "libx264", "veryfast", "18"
_HIGH_DEFINITION_ROWS: Final = 720
_UNSPECIFIED: Final = 2


def demuxer_of(head: bytes, media_type: str) -> str:
    """FFmpeg's name for what a stream of that transfer syntax begins with, "" when that is not known."""
    if head[4:8] in _BOXES:
        return _MP4
    for at, packet in ((0, _PACKET), (4, _PACKET_WITH_TIME)):
        if head[at : at + 1] == b"\x47" == head[at + packet : at + packet + 1]:
            return _TRANSPORT
    if head.startswith(b"\0\0\1\xba"):
        return _PROGRAM
    return _BARE.get(media_type, "") if head.startswith((b"\0\0\1", b"\0\0\0\1")) else ""


def is_mp4(demuxer: str) -> bool:
    """Whether the stream is a file that is played as it is."""
    return demuxer == _MP4


def frame(av: Any, data: bytes, demuxer: str, number: int) -> bytes:
    """Frame ``number``, from 1, as RGB. LookupError when there is none, or when it is damaged."""
    with av.open(io.BytesIO(data), format=demuxer) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        at = _time_of(container, stream, number) if demuxer == _MP4 else None
        found = _counted(container, stream, number) if at is None else _shown_at(container, stream, at)
        if found is None:
            raise LookupError("no such frame")
        # Nobody says which matrix: that of ITU-R BT.709 in high definition, as everybody takes it.
        high = found.colorspace == _UNSPECIFIED and found.height >= _HIGH_DEFINITION_ROWS
        picture = found.to_ndarray(format="rgb24", **({"src_colorspace": "ITU709"} if high else {}))
    rgb: bytes = picture.tobytes()
    return PICTURE.pack(*picture.shape[:2]) + rgb


def _time_of(container: Any, stream: Any, number: int) -> int | None:
    """When the stream shows its frame ``number``; None when its times do not tell frames apart.

    Frames need not follow each other evenly, so that no rate says it: the times of all are read, which
    decodes nothing. Those that an edit list cuts away are none. LookupError when there are fewer.
    """
    times: list[int] = []
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            if packet.pts is None:
                times.clear()
                break
            times.append(packet.pts)
    container.seek(0)
    if not times or len(set(times)) != len(times):
        return None
    if not 1 <= number <= len(times):
        raise LookupError("no such frame")
    times.sort()
    return times[number - 1]


def _shown_at(container: Any, stream: Any, at: int) -> Any:
    """The frame of that time, from the key frame before it; None when it is not whole.

    When that key frame does not lead to it (pictures that lean on an earlier one), from the beginning.
    """
    for start in (at, 0):
        container.seek(start, stream=stream if start else None)
        for one in container.decode(stream):
            if one.pts == at:
                return one
            if one.pts is not None and one.pts > at:
                break
    return None


def _counted(container: Any, stream: Any, number: int) -> Any:
    return next(itertools.islice(container.decode(stream), number - 1, None), None)


def as_mp4(av: Any, data: bytes, demuxer: str, frames_max: int, rate: float) -> bytes:
    """The whole as MP4: copied where MP4 can hold it and times are known, else as H.264 anew.

    OverflowError when that would be more than ``frames_max`` frames. Sound is left out.
    """
    out = io.BytesIO()
    with (
        av.open(io.BytesIO(data), format=demuxer) as source,
        av.open(out, "w", format="mp4", options={"movflags": _FRAGMENTED}) as target,
    ):
        stream = source.streams.video[0]
        stream.thread_type = "NONE"
        if demuxer in (_TRANSPORT, _PROGRAM) and stream.codec_context.name in _COPIED:
            copy = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    target.mux(packet)
        else:
            _encoded(source.decode(stream), target, stream, frames_max, rate)
    return out.getvalue()


def _encoded(frames: Iterator[Any], target: Any, source: Any, frames_max: int, rate: float) -> None:
    per_second = Fraction(rate).limit_denominator(1001)
    made = target.add_stream(_CODEC, rate=per_second)
    made.pix_fmt = "yuv420p"
    made.width, made.height = (side - side % 2 for side in (source.width, source.height))
    made.options = {"preset": _PRESET, "crf": _QUALITY, "threads": "1"}
    for count, one in enumerate(frames):
        if count == frames_max:
            raise OverflowError("too many frames")
        even = one.reformat(made.width, made.height, "yuv420p")
        even.pts, even.time_base, even.pict_type = count, 1 / per_second, 0
        target.mux(made.encode(even))
    target.mux(made.encode(None))


def main() -> None:
    memory_bytes_max, cpu_s_max = map(int, sys.argv[1:3])
    confine(memory_bytes_max)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s_max, cpu_s_max))
    import av

    av.logging.set_level(None)
    data = sys.stdin.buffer.read()
    name, task, number, rate = REQUEST.unpack_from(data)
    demuxer, stream = name.rstrip(b"\0").decode("ascii"), data[REQUEST.size :]
    if task == FRAME:
        answer = frame(av, stream, demuxer, number)
    else:
        answer = as_mp4(av, stream, demuxer, number, rate)
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main()
