"""Several frames as one file that moves: GIF, and MP4 where PyAV is installed (extra ``video``)."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, Final

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


def animated(pictures: Sequence[NDArray[Any]], frame_seconds: float) -> bytes:
    """Pictures of one size as a GIF that goes round."""
    frames = []
    for picture in pictures:
        image = PilImage.fromarray(np.ascontiguousarray(picture))
        # Grey has the 256 colours of a GIF; of others the 256 that are nearest are found frame by frame.
        frames.append(image if image.mode == "L" else image.quantize(256, PilImage.Quantize.FASTOCTREE))
    out = io.BytesIO()
    milliseconds = max(round(frame_seconds * 100), 2) * 10  # players slow anything faster down
    frames[0].save(
        out, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, optimize=False
    )
    return out.getvalue()


def filmed(pictures: Sequence[NDArray[Any]], frame_seconds: float, quality: int) -> bytes:
    """Pictures of one size as H.264 in MP4, in fragments, so that it plays while it comes."""
    rows, columns = pictures[0].shape[:2]
    grow = ((0, rows % 2), (0, columns % 2))  # its chrominance is halved: sides are even
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"movflags": _FRAGMENTED}) as container:
        stream = container.add_stream(_CODEC, rate=Fraction(1 / frame_seconds).limit_denominator(1000))
        stream.width, stream.height = columns + columns % 2, rows + rows % 2
        stream.pix_fmt = "yuv420p"
        crf = _CRF_WORST - (_CRF_WORST - _CRF_BEST) * quality // 100
        stream.options = {"preset": _PRESET, "crf": str(crf), "threads": "1"}
        for picture in pictures:
            even = np.pad(picture, (*grow, (0, 0))[: picture.ndim], mode="edge")
            kind = "gray" if picture.ndim == 2 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format=kind)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()
