"""The table of coders: which libraries decode and encode the frames of which transfer syntax, and how safely.

A transfer syntax without a row here, or with a row without decoders, is stored, served and forwarded all the
same; its frames are not decoded. A frame is what stands between its item headers (fragments joined), or the
plain cells of a native syntax.

The libraries of a row are asked in order: the first is the one that takes the least CPU time for a frame
(``benchmarks/coders.py``, docs/decisions/0017-coders.md), the others are asked when it refuses one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final, TypeAlias

from hounsfield.codecs import by_gdcm, by_imagecodecs, by_pylibjpeg, native
from hounsfield.codecs.codestreams import check_size, precision_of
from hounsfield.codecs.errors import CodecError, DisagreeingError, UnsupportedPixelsError
from hounsfield.codecs.pixels import Buffer, PixelFormat, Pixels, at_high_bit

Decode: TypeAlias = Callable[[Buffer, PixelFormat], Pixels]
Encode: TypeAlias = Callable[[Pixels, PixelFormat], bytes]


class FrameLayout(Enum):
    """How the frames of an object lie in its pixel data."""

    #: Plain cells, one frame directly behind the other (PS3.5 8.1.1).
    CELLS = "cells"
    #: Each frame in one fragment or several of its own (PS3.5 A.4).
    FRAGMENTS = "fragments"
    #: The fragments together are one stream in which frames have no bytes of their own (PS3.5 8.2.5 - 8.2.8).
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Decoder:
    """One library's way from a frame to pixels."""

    library: str
    decode: Decode


@dataclass(frozen=True, slots=True)
class Encoder:
    """One library's way from pixels to a frame."""

    library: str
    encode: Encode
    #: Lets go of the GIL while it works, and takes any array that it is given: an archive's own process may
    #: call it on a thread. Others are called in a process of their own.
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Coder:
    """One row: how frames of a transfer syntax become pixels, and pixels frames."""

    uid: str
    #: In the order in which they are asked; none: frames are passed through only.
    decoders: tuple[Decoder, ...] = ()
    #: In the order in which they are asked; none: we do not write this syntax.
    encoders: tuple[Encoder, ...] = ()
    #: Whether decoding gives back exactly what was encoded, for every frame of this syntax.
    lossless: bool = True
    layout: FrameLayout = FrameLayout.FRAGMENTS
    #: Whether frames that others made are decoded in a process of their own: C code that parses.
    isolated: bool = True
    #: Whether what we encode is what is decoded: a syntax that may lose can be written without loss.
    encodes_lossless: bool = True

    def decode(self, frame: Buffer, pixels: PixelFormat) -> Pixels:
        """The frame's samples, colour by pixel; every decoder is asked. ``CodecError`` is the first one's."""
        refused: CodecError | None = None
        precision: int | None = None
        if self.layout is FrameLayout.FRAGMENTS:
            head = bytes(frame[:CODESTREAM_HEAD_BYTES])
            check_size(head, pixels)
            precision = None if pixels.at_the_bottom else precision_of(head)
        for decoder in self.decoders:
            try:
                return at_high_bit(decoder.decode(frame, pixels), pixels, precision)
            except DisagreeingError:
                raise
            except CodecError as error:
                refused = refused or error
        raise refused or UnsupportedPixelsError("frames of this transfer syntax are not decoded here")

    def encode(self, array: Pixels, pixels: PixelFormat) -> bytes:
        """One frame; every encoder is asked. ``CodecError`` is the first one's."""
        refused: CodecError | None = None
        for encoder in self.encoders:
            try:
                return encoder.encode(array, pixels)
            except CodecError as error:
                refused = refused or error
        raise refused or UnsupportedPixelsError("this transfer syntax is not written here")

    def encode_beside(self, array: Pixels, pixels: PixelFormat) -> bytes:
        """As :meth:`encode`, by the first encoder, if it may be called beside an event loop.

        ``CodecError`` also where another encoder would take the frame: in a process of its own.
        """
        if not self.encoders or not self.encoders[0].beside:
            raise UnsupportedPixelsError("no encoder that may be called beside an event loop")
        return self.encoders[0].encode(array, pixels)


#: The size of an image is said in so many bytes of its codestream, or the decoder finds it out.
CODESTREAM_HEAD_BYTES: Final = 1 << 16

_ROOT: Final = "1.2.840.10008.1.2"
_NUMPY: Final = "numpy"
_LITTLE: Final = (Decoder(_NUMPY, native.decode_little_endian),)
_BIG: Final = (Decoder(_NUMPY, native.decode_big_endian),)
_CELLS: Final = (Encoder(_NUMPY, native.encode_little_endian),)


def _plain(uid: str, *, written: bool = False) -> Coder:
    return Coder(uid, _LITTLE, _CELLS if written else (), layout=FrameLayout.CELLS, isolated=False)


def _big_endian(uid: str) -> Coder:
    return Coder(uid, _BIG, layout=FrameLayout.CELLS, isolated=False)


def _imagecodecs(decode: Decode) -> Decoder:
    return Decoder(by_imagecodecs.NAME, decode)


def _by_gdcm(suffix: str) -> Decoder:
    return Decoder(by_gdcm.NAME, partial(by_gdcm.decode, transfer_syntax_uid=f"{_ROOT}.{suffix}"))


def _encoded_by_imagecodecs(encode: Encode) -> Encoder:
    return Encoder(by_imagecodecs.NAME, encode, beside=True)


def _encoded_by_gdcm(suffix: str) -> Encoder:
    return Encoder(by_gdcm.NAME, partial(by_gdcm.encode, transfer_syntax_uid=f"{_ROOT}.{suffix}"))


_OPENJPEG: Final = Decoder(by_pylibjpeg.OPENJPEG, by_pylibjpeg.decode_jpeg_2000)
_JPEG_XL: Final = (_imagecodecs(by_imagecodecs.decode_jpeg_xl),)
_HTJ2K: Final = (
    _imagecodecs(by_imagecodecs.decode_htj2k),
    _OPENJPEG,
    _imagecodecs(by_imagecodecs.decode_jpeg_2000),
)
_TO_HTJ2K: Final = (_encoded_by_imagecodecs(by_imagecodecs.encode_htj2k),)
_TO_JPEG_2000: Final = (
    _encoded_by_imagecodecs(by_imagecodecs.encode_jpeg_2000),
    Encoder(by_pylibjpeg.OPENJPEG, by_pylibjpeg.encode_jpeg_2000),
)
_VIDEO: Final = (
    "100", "100.1", "101", "101.1", "102", "102.1", "103", "103.1", "104", "104.1", "105", "105.1", "106",
    "106.1", "107", "108",
)  # fmt: skip


def _jpeg_lossless(suffix: str) -> tuple[Decoder, ...]:
    return (
        _imagecodecs(by_imagecodecs.decode_jpeg_lossless_turbo),
        _imagecodecs(by_imagecodecs.decode_jpeg_lossless),
        _by_gdcm(suffix),
    )


def _jpeg_2000(suffix: str) -> tuple[Decoder, ...]:
    return (_imagecodecs(by_imagecodecs.decode_jpeg_2000), _OPENJPEG, _by_gdcm(suffix))


_ROWS: Final[tuple[Coder, ...]] = (
    _plain(_ROOT, written=True),  # Implicit VR Little Endian
    _plain(f"{_ROOT}.1", written=True),  # Explicit VR Little Endian
    _plain(f"{_ROOT}.1.99", written=True),  # Deflated: of the data set once it is inflated
    _plain("1.2.840.10008.1.20"),
    _plain("1.3.46.670589.33.1.4.1"),
    _big_endian(f"{_ROOT}.2"),
    _big_endian("1.2.840.113619.5.2"),
    Coder(
        f"{_ROOT}.1.98", (Decoder(_NUMPY, native.decode_fragment),), isolated=False
    ),  # Encapsulated Uncompressed
    Coder(
        f"{_ROOT}.4.50",
        (_imagecodecs(by_imagecodecs.decode_jpeg),),
        (_encoded_by_imagecodecs(by_imagecodecs.encode_jpeg_baseline),),
        lossless=False,
        encodes_lossless=False,
    ),
    Coder(f"{_ROOT}.4.51", (_imagecodecs(by_imagecodecs.decode_jpeg),), lossless=False),
    Coder(f"{_ROOT}.4.53", (_imagecodecs(by_imagecodecs.decode_jpeg),), lossless=False),
    Coder(f"{_ROOT}.4.55", (_imagecodecs(by_imagecodecs.decode_jpeg),), lossless=False),
    Coder(f"{_ROOT}.4.57", _jpeg_lossless("4.57")),
    Coder(
        f"{_ROOT}.4.70",
        _jpeg_lossless("4.70"),
        (_encoded_by_imagecodecs(by_imagecodecs.encode_jpeg_lossless), _encoded_by_gdcm("4.70")),
    ),
    Coder(
        f"{_ROOT}.4.80",
        (_imagecodecs(by_imagecodecs.decode_jpeg_ls), _by_gdcm("4.80")),
        (_encoded_by_imagecodecs(by_imagecodecs.encode_jpeg_ls),),
    ),
    Coder(f"{_ROOT}.4.81", (_imagecodecs(by_imagecodecs.decode_jpeg_ls), _by_gdcm("4.81")), lossless=False),
    Coder(f"{_ROOT}.4.90", _jpeg_2000("4.90"), _TO_JPEG_2000),
    Coder(f"{_ROOT}.4.91", _jpeg_2000("4.91"), _TO_JPEG_2000, lossless=False),
    *(Coder(f"{_ROOT}.4.{number}", lossless=False, layout=FrameLayout.STREAM) for number in _VIDEO),
    Coder(f"{_ROOT}.4.110", _JPEG_XL, (_encoded_by_imagecodecs(by_imagecodecs.encode_jpeg_xl),)),
    Coder(f"{_ROOT}.4.111", _JPEG_XL, lossless=False),
    Coder(
        f"{_ROOT}.4.112",
        _JPEG_XL,
        (_encoded_by_imagecodecs(by_imagecodecs.encode_jpeg_xl),),
        lossless=False,
    ),
    Coder(f"{_ROOT}.4.201", _HTJ2K, _TO_HTJ2K),
    Coder(f"{_ROOT}.4.202", _HTJ2K, (_encoded_by_imagecodecs(by_imagecodecs.encode_htj2k_rpcl),)),
    Coder(f"{_ROOT}.4.203", _HTJ2K, _TO_HTJ2K, lossless=False),
    Coder(
        f"{_ROOT}.5",
        (
            _imagecodecs(by_imagecodecs.decode_rle),
            Decoder(by_pylibjpeg.RLE, by_pylibjpeg.decode_rle),
            _by_gdcm("5"),
        ),
        (Encoder(by_pylibjpeg.RLE, by_pylibjpeg.encode_rle),),
    ),
    Coder(f"{_ROOT}.8.1", (Decoder("zlib", native.decode_deflated_frame),)),
)

CODERS: Final[dict[str, Coder]] = {row.uid: row for row in _ROWS}


def coder_of(uid: str) -> Coder | None:
    """The coder of a transfer syntax, or None when nothing is known of its frames."""
    return CODERS.get(uid.strip(" \0"))
