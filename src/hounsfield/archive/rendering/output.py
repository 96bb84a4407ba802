"""Pictures as files: JPEG and PNG, with an ICC profile when asked."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.archive.rendering.request import PNG
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

imagecodecs: Any = deferred("imagecodecs")

#: A picture, the profile that it has, and the one that it shall have, to the picture that it is then.
Convert: TypeAlias = "Callable[[NDArray[Any], bytes, bytes], NDArray[Any]]"

_ICC_CHUNK: Final = 65_519
"""Of a profile in one APP2 segment: 65,535 less the length, the name and the two counters (ICC.1 B.4)."""
#: White point, primaries (x, y, Y each) and gamma of ROMM RGB (ISO 22028-2).
_ROMM_WHITE, _ROMM_GAMMA = (0.3457, 0.3585, 1.0), 1.8
_ROMM_PRIMARIES: Final = (0.7347, 0.2653, 1.0, 0.1596, 0.8404, 1.0, 0.0366, 0.0001, 1.0)
_JPEG_SIDE_MAX: Final = 65_500
_PNG_LEVEL: Final = 3


@cache
def profile_of(name: str) -> bytes:
    """The profile of a well-known colour space."""
    if name == "rommrgb":
        profile: bytes = imagecodecs.cms_profile(
            "rgb", whitepoint=_ROMM_WHITE, primaries=_ROMM_PRIMARIES, gamma=_ROMM_GAMMA
        )
    else:
        profile = imagecodecs.cms_profile(name)
    return profile


def in_profile(
    picture: NDArray[Any], icc: str, own: bytes, foreign: Convert | None = None
) -> tuple[NDArray[Any], bytes]:
    """The picture in the colour space that is asked for, and that one's profile (PS3.18 8.3.5.1.5).

    ``own``: a profile that came with the image; ``foreign`` converts by it, where it can do no harm.
    """
    if icc == "no":
        return picture, b""
    if picture.ndim == 2:
        picture, own = np.repeat(picture[:, :, np.newaxis], 3, axis=2), b""
    if icc == "yes":
        return picture, own or profile_of("srgb")
    wanted = profile_of(icc)
    if own and own != wanted:
        if foreign is None:
            raise NotRenderableError("colours are not converted by an image's own ICC profile here")
        return foreign(picture, own, wanted), wanted
    if own or icc == "srgb":
        return picture, wanted
    converted: NDArray[Any] = imagecodecs.cms_transform(
        np.ascontiguousarray(picture), profile_of("srgb"), wanted, colorspace="rgb", outcolorspace="rgb"
    )
    return converted, wanted


def encoded(picture: NDArray[Any], media_type: str, quality: int, profile: bytes = b"") -> bytes:
    """One picture as image/jpeg (baseline) or image/png."""
    if max(picture.shape[:2]) > _JPEG_SIDE_MAX:
        raise NotRenderableError("the image has a side that is too long for a picture file")
    picture = np.ascontiguousarray(picture)
    if media_type == PNG:
        data: bytes = imagecodecs.png_encode(picture, level=_PNG_LEVEL)
        return _png_with(data, profile) if profile else data
    data = imagecodecs.jpeg8_encode(picture, level=quality, subsampling="444" if picture.ndim == 3 else None)
    return _jpeg_with(data, profile) if profile else data


def _jpeg_with(data: bytes, profile: bytes) -> bytes:
    """The profile in APP2 segments behind SOI and JFIF's APP0."""
    at = 2
    if data[2:4] == b"\xff\xe0":
        at += 2 + int.from_bytes(data[4:6], "big")
    chunks = [profile[n : n + _ICC_CHUNK] for n in range(0, len(profile), _ICC_CHUNK)]
    if len(chunks) > 255:
        raise NotRenderableError("the image's ICC profile is longer than a JPEG file can hold")
    segments = b"".join(
        b"\xff\xe2" + struct.pack(">H", len(chunk) + 16) + b"ICC_PROFILE\0" + bytes((n, len(chunks))) + chunk
        for n, chunk in enumerate(chunks, start=1)
    )
    return data[:at] + segments + data[at:]


def _png_with(data: bytes, profile: bytes) -> bytes:
    """The profile in an iCCP chunk behind IHDR."""
    end_of_header = 8 + 25
    chunk = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:end_of_header] + framed + data[end_of_header:]
