"""The table of coders: which library decodes and encodes the frames of which transfer syntax, and how safely.

A transfer syntax without a row here is stored, served and forwarded all the same; its frames are not decoded.
Only coders that give back every bit are here so far. A frame is what stands between its item headers
(fragments joined), or the plain cells of a native syntax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from hounsfield.codecs import lossless
from hounsfield.codecs.pixels import Buffer, PixelFormat, Pixels

Decode: TypeAlias = Callable[[Buffer, PixelFormat], Pixels]
Encode: TypeAlias = Callable[[Pixels, PixelFormat], bytes]


@dataclass(frozen=True, slots=True)
class Coder:
    """One row: how frames of a transfer syntax become pixels, and pixels frames."""

    uid: str
    decode: Decode
    #: None: we do not write this syntax (yet).
    encode: Encode | None = None
    #: Whether ``decode`` gives back exactly what was encoded, for every frame of this syntax.
    lossless: bool = True
    library: str = ""
    #: Whether the library works while other Python threads do.
    releases_gil: bool = True
    #: Whether frames that others made are decoded in a process of their own: C code that parses.
    isolated: bool = True


_ROOT: Final = "1.2.840.10008.1.2"
_NUMPY: Final = "numpy"
_PLAIN: Final = [
    _ROOT,  # Implicit VR Little Endian
    f"{_ROOT}.1",  # Explicit VR Little Endian
    f"{_ROOT}.1.98",  # Encapsulated Uncompressed
    f"{_ROOT}.1.99",  # Deflated: of the data set once it is inflated
    "1.2.840.10008.1.20",
    "1.3.46.670589.33.1.4.1",
]
_BIG_ENDIAN: Final = [f"{_ROOT}.2", "1.2.840.113619.5.2"]

_ROWS: Final[tuple[Coder, ...]] = (
    *(Coder(uid, lossless.decode_little_endian, library=_NUMPY, isolated=False) for uid in _PLAIN),
    *(Coder(uid, lossless.decode_big_endian, library=_NUMPY, isolated=False) for uid in _BIG_ENDIAN),
    Coder(f"{_ROOT}.4.57", lossless.decode_jpeg_lossless, library="imagecodecs (jpegsof3)"),
    Coder(f"{_ROOT}.4.70", lossless.decode_jpeg_lossless, library="imagecodecs (jpegsof3)"),
    Coder(f"{_ROOT}.4.80", lossless.decode_jpeg_ls, library="imagecodecs (CharLS)"),
    Coder(f"{_ROOT}.4.90", lossless.decode_jpeg_2000, library="imagecodecs (OpenJPEG)"),
    Coder(f"{_ROOT}.4.110", lossless.decode_jpeg_xl, lossless.encode_jpeg_xl, library="imagecodecs (libjxl)"),
    Coder(f"{_ROOT}.4.201", lossless.decode_htj2k, lossless.encode_htj2k, library="imagecodecs (OpenJPH)"),
    Coder(f"{_ROOT}.4.202", lossless.decode_htj2k, lossless.encode_htj2k, library="imagecodecs (OpenJPH)"),
    Coder(f"{_ROOT}.5", lossless.decode_rle, library="imagecodecs (imcd)"),
    Coder(f"{_ROOT}.8.1", lossless.decode_deflated_frame, library="zlib"),
)

CODERS: Final[dict[str, Coder]] = {row.uid: row for row in _ROWS}


def coder_of(uid: str) -> Coder | None:
    """The coder of a transfer syntax, or None when its frames cannot be decoded here."""
    return CODERS.get(uid.strip(" \0"))
