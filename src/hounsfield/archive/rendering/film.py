"""Several frames as one file that moves: GIF, and MP4 where PyAV is installed (extra ``video``)."""

from __future__ import annotations

import importlib.util
import io
from collections import deque
from collections.abc import Iterator
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


class Gif:
    """A GIF that goes round. Until it is finished it holds one byte for each pixel."""

    def __init__(self, frame_seconds: float) -> None:
        # Players slow anything faster down.
        self._milliseconds = max(round(frame_seconds * 100), 2) * 10
        self._frames: deque[Any] = deque()

    def add(self, picture: NDArray[Any]) -> None:
        image = PilImage.fromarray(np.ascontiguousarray(picture))
        # Grey has the 256 colours of a GIF; of others the 256 that are nearest are found frame by frame.
        colours = image if image.mode == "L" else image.quantize(256, PilImage.Quantize.FASTOCTREE)
        self._frames.append(colours)

    def finish(self) -> bytes:
        out = io.BytesIO()
        self._frames.popleft().save(
            out, "GIF", save_all=True, append_images=self._others(), duration=self._milliseconds, loop=0,
            optimize=False,
        )  # fmt: skip
        return out.getvalue()

    def _others(self) -> Iterator[Any]:
        while self._frames:  # Pillow keeps copies: each of ours goes when it has its own
            yield self._frames.popleft()

    def close(self) -> None:
        self._frames.clear()


class Mp4:
    """H.264 in MP4, in fragments, so that it plays while it comes. It holds the file, and some pictures."""

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
