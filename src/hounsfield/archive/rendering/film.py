"""Several frames as one file that moves: GIF, and MP4 where PyAV is installed (extra ``video``)."""

from __future__ import annotations

import importlib.util
import io
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from hounsfield.archive.rendering.request import GIF, MP4
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image as PilImage
else:
    np, PilImage = deferred("numpy"), deferred("PIL.Image")

av: Any = deferred("av")

_CODEC: Final = "libx264"
_PRESET: Final = "veryfast"
_FRAGMENTED: Final = "frag_keyframe+empty_moov+default_base_moof"
_CRF_BEST, _CRF_WORST = 10, 40
"""x264's constant rate factors for quality 100 and 0; 18 is taken for visually lossless."""

FRAME_BYTES: Final = 1024
"""Of a frame besides its pixels: a table of 256 colours, and its head."""
_GIF_HEAD: Final = b"GIF89a"
#: A table of 256 colours (three bits for 8, and one that it is there), background 0, no aspect ratio; grey.
_GREY_LEVELS: Final = bytes(n for level in range(256) for n in (level,) * 3)
_GREY_TABLE: Final = b"\xf7\0\0" + _GREY_LEVELS
_TABLE_AT, _EXTENSION = 13, 0x21
_FOR_EVER: Final = b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"


@cache
def film_types() -> tuple[str, ...]:
    """The media types that films can have here."""
    return (GIF, MP4) if importlib.util.find_spec("av") is not None else (GIF,)


class Film(Protocol):
    """A film that is being made: pictures of one size, in their order, then the file."""

    def add(self, picture: NDArray[Any]) -> None:
        """The next picture."""

    def finish(self) -> bytes:
        """The file. Nothing is added any more."""

    def close(self) -> None:
        """Let go of everything; also of a film that is not finished."""


def film_of(media_type: str, frame_seconds: float, quality: int) -> Film:
    """An empty film of that type."""
    return Gif(frame_seconds) if media_type == GIF else Mp4(frame_seconds, quality)


def film_bytes_max(media_type: str, count: int, pixels: int) -> int:
    """What a film of so many pictures of so many pixels may hold while it is made, its file included."""
    kind = Gif if media_type == GIF else Mp4
    return count * (2 * pixels + FRAME_BYTES) + min(count, kind.PICTURES_HELD) * 2 * pixels


class Gif:
    """A GIF that goes round. It holds the file, each picture coded as it comes, and the last picture.

    Of a picture like the one before only the rectangle is coded in which they differ.
    """

    #: Whole pictures that are held, in halves: none but the one that is compared, which its maker counts.
    PICTURES_HELD: Final = 0

    def __init__(self, frame_seconds: float) -> None:
        # Players slow anything faster down.
        self._milliseconds = max(round(frame_seconds * 100), 2) * 10
        self._out = io.BytesIO()
        self._before: NDArray[Any] | None = None

    def add(self, picture: NDArray[Any]) -> None:
        left, top, right, bottom = 0, 0, picture.shape[1], picture.shape[0]
        if self._before is None:
            self._out.write(_GIF_HEAD + right.to_bytes(2, "little") + bottom.to_bytes(2, "little"))
            self._out.write(_GREY_TABLE + _FOR_EVER)
        else:
            left, top, right, bottom = _changed(self._before, picture)
        self._before = picture
        image = PilImage.fromarray(np.ascontiguousarray(picture[top:bottom, left:right]))
        # Grey has the 256 colours of a GIF; of others the 256 that are nearest are found frame by frame.
        colours = image if image.mode == "L" else image.quantize(256, PilImage.Quantize.FASTOCTREE)
        alone = io.BytesIO()
        colours.save(alone, "GIF", optimize=False, interlace=0)
        self._append(alone.getbuffer(), left, top)

    def _append(self, alone: memoryview, left: int, top: int) -> None:
        """A GIF of one picture as the next frame of this one: its table is its own, unless that is grey."""
        size = alone[10] & 7
        at = _TABLE_AT + 3 * (2 << size)
        table = alone[_TABLE_AT:at]
        while alone[at] == _EXTENSION:  # none is about the pixels
            at += 2
            while alone[at]:
                at += 1 + alone[at]
            at += 1
        own = bytes(table) != _GREY_LEVELS
        self._out.write(b"!\xf9\x04\0" + (self._milliseconds // 10).to_bytes(2, "little") + b"\0\0")
        self._out.write(b"," + left.to_bytes(2, "little") + top.to_bytes(2, "little"))
        self._out.write(alone[at + 5 : at + 9])  # columns and rows
        self._out.write(bytes([0x80 | size if own else 0]))
        if own:
            self._out.write(table)
        self._out.write(alone[at + 10 : -1])

    def finish(self) -> bytes:
        self._out.write(b";")
        return self._out.getvalue()  # which copies nothing

    def close(self) -> None:
        self._out, self._before = io.BytesIO(), None


def _changed(before: NDArray[Any], picture: NDArray[Any]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not as it was; of no change one pixel, for its time."""
    other = before != picture
    if other.ndim == 3:
        other = other.any(axis=2)
    down, across = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
    if not down.size:
        return 0, 0, 1, 1
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


class Mp4:
    """H.264 in MP4, in fragments, so that it plays while it comes. It holds the file, and some pictures."""

    #: What x264 looks ahead and back at with this preset, at one and a half bytes a pixel.
    PICTURES_HELD: Final = 32

    def __init__(self, frame_seconds: float, quality: int) -> None:
        self._out = io.BytesIO()
        self._container = av.open(self._out, "w", format="mp4", options={"movflags": _FRAGMENTED})
        self._stream = self._container.add_stream(
            _CODEC, rate=Fraction(1 / frame_seconds).limit_denominator(1000)
        )
        self._stream.pix_fmt = "yuv420p"
        crf = _CRF_WORST - (_CRF_WORST - _CRF_BEST) * quality // 100
        self._stream.options = {"preset": _PRESET, "crf": str(crf), "threads": "1"}
        self._begun = False

    def add(self, picture: NDArray[Any]) -> None:
        rows, columns = picture.shape[:2]
        if not self._begun:
            self._stream.width, self._stream.height = columns + columns % 2, rows + rows % 2
            self._begun = True
        grow = ((0, rows % 2), (0, columns % 2))  # its chrominance is halved: sides are even
        even = np.pad(picture, (*grow, (0, 0))[: picture.ndim], mode="edge")
        kind = "gray" if picture.ndim == 2 else "rgb24"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format=kind)
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self.close()
        return self._out.getvalue()

    def close(self) -> None:
        self._container.close()
