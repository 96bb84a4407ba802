"""How a native frame lies on disk when it is stored smaller: a small head, and what a coder made of it.

Every frame says for itself what was done to it, so that a frame which a coder cannot take, or which does not
shrink, is kept otherwise than its neighbours, and so that nothing else has to be known to get it back::

    byte 0      method: 0 as it was · 1 zstd · 2 JPEG XL · 3 HTJ2K
    byte 1      flags: 1 big endian · 2 signed · 4 colour by plane · 8 differences (zstd)
    byte 2      bytes of one word: 1, 2, 4, 8
    byte 3      samples per pixel
    bytes 4-7   rows, little endian
    bytes 8-11  columns
    bytes 12-19 length of the frame as it was received
    bytes 20-   the coded frame

*zstd*: words become differences to the word one pixel before, with the sign in the lowest bit; then all
lowest bytes stand together, then the next ones; then zstd level 1. *JPEG XL*: lossless, effort 1; signed
words have their highest bit turned, which makes them unsigned in the same order. *HTJ2K*: reversible.

What comes back is exactly what went in, whatever it meant: unused high bits, odd lengths, any byte order.
:func:`compressed` has decoded what it returns and compared it. These frames are ours, sealed and
authenticated: they are decoded in the process that reads them.
"""

from __future__ import annotations

import struct
import threading
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final

import zstandard

from hounsfield.codecs.by_imagecodecs import (
    decode_htj2k,
    decode_jpeg_xl,
    encode_htj2k,
    encode_jpeg_xl,
    imagecodecs,
)
from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.errors import CodecError, CorruptFrameError
from hounsfield.codecs.pixels import Buffer, PixelFormat, Pixels, from_native, same_bytes, to_native

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred("numpy")

ZSTD_LEVEL: Final = 1  # level 3 costs three times as much and gains 2 %
#: Decoded on the event loop when its frame is no longer than this: zstd takes 1.2 ms for it.
CHEAP_BYTES_MAX: Final = 1 << 20

_HEAD: Final = struct.Struct("<BBBBIIQ")
_BIG_ENDIAN, _SIGNED, _PLANAR, _DIFFERENCES = 1, 2, 4, 8
_ROWS_MAX: Final = (1 << 32) - 1


class Encoding(StrEnum):
    """What native frames are stored as. The value is what configuration and index rows say."""

    ZSTD = "zstd"
    JPEG_XL = "jpegxl"
    HTJ2K = "htj2k"


class Method(IntEnum):
    """What was done to one frame. The numbers are on disk: never renumber."""

    NONE = 0
    ZSTD = 1
    JPEG_XL = 2
    HTJ2K = 3


def compressed(
    frame: Buffer, encoding: Encoding, pixels: PixelFormat | None, *, little_endian: bool = True
) -> bytes:
    """The frame as it lies on disk; proven by decoding it. Never longer than head and frame.

    ``pixels``: the frame's shape, None or one that does not fit when only its bytes are known. What the image
    coders do not take is left to zstd, what does not shrink, or does not come back, is kept as it is.
    """
    if pixels is not None and (pixels.frame_bytes != len(frame) or not _is_sound(pixels)):
        pixels = None
    for method in _methods(encoding, pixels):
        try:
            stored = _encoded(method, frame, pixels, little_endian)
            if len(stored) < _HEAD.size + len(frame) and same_bytes(decoded(stored), frame):
                return stored
        except CodecError:
            continue
    return b"".join((_HEAD.pack(Method.NONE, 0, 1, 1, 0, 0, len(frame)), frame))


def decoded(stored: Buffer) -> memoryview:
    """The frame as it was received. ``CorruptFrameError`` when the bytes are no stored frame."""
    view = memoryview(stored).cast("B")
    if len(view) < _HEAD.size:
        raise CorruptFrameError("a stored frame without its head")
    method, flags, word, samples, rows, columns, length = _HEAD.unpack_from(view)
    payload = view[_HEAD.size :]
    if method == Method.NONE:
        plain = payload
    elif method == Method.ZSTD:
        plain = _from_zstd(payload, flags, word, samples, length)
    elif method in (Method.JPEG_XL, Method.HTJ2K):
        pixels = PixelFormat(
            rows, columns, samples, 8 * word, 8 * word, bool(flags & _SIGNED), bool(flags & _PLANAR)
        )
        plain = _from_image(method, payload, pixels, little_endian=not flags & _BIG_ENDIAN)
    else:
        raise CorruptFrameError(f"a stored frame of method {method}, which this version does not know")
    if len(plain) != length:
        raise CorruptFrameError(f"a stored frame gave {len(plain)} bytes and not {length}")
    return plain


def htj2k_of(stored: Buffer, pixels: PixelFormat) -> memoryview | None:
    """The HTJ2K codestream that a stored frame is, if it can be given to others as it is.

    That is where it holds the samples that ``pixels`` says, with the colour transform that goes with
    them. Else None: signed samples whose unused high bits may not be the sign, colour that is not RGB.
    """
    view = memoryview(stored).cast("B")
    if len(view) < _HEAD.size or view[0] != Method.HTJ2K:
        return None
    if pixels.signed and pixels.bits_stored != pixels.bits_allocated:
        return None
    if not pixels.at_the_bottom or (pixels.samples != 1 and pixels.photometric != "RGB"):
        return None
    return view[_HEAD.size :]


def name_of(encoding: Encoding, frame_bytes: int) -> str:
    """What an object's row says of frames stored so: the encoding, and each frame's length as received."""
    return f"{encoding.value}:{frame_bytes}"


def frame_bytes_of(stored_as: str) -> int:
    """The length of every frame as it was received."""
    return int(stored_as.rpartition(":")[2])


def is_htj2k(stored_as: str) -> bool:
    """Whether frames stored so may be HTJ2K codestreams."""
    return stored_as.partition(":")[0] == Encoding.HTJ2K


def is_cheap(stored_as: str) -> bool:
    """Whether decoding a frame takes no longer than an event loop may."""
    encoding, _, frame_bytes = stored_as.rpartition(":")
    return encoding == Encoding.ZSTD and int(frame_bytes) <= CHEAP_BYTES_MAX


def _is_sound(pixels: PixelFormat) -> bool:
    try:
        pixels.check()
    except CodecError:
        return False
    return pixels.samples <= 255 and max(pixels.rows, pixels.columns) <= _ROWS_MAX


def _methods(encoding: Encoding, pixels: PixelFormat | None) -> tuple[Method, ...]:
    if encoding is Encoding.ZSTD or pixels is None:
        return (Method.ZSTD,)
    return (Method.JPEG_XL if encoding is Encoding.JPEG_XL else Method.HTJ2K, Method.ZSTD)


def _encoded(method: Method, frame: Buffer, pixels: PixelFormat | None, little_endian: bool) -> bytes:
    flags = 0
    if method is Method.ZSTD:
        word = pixels.bits_allocated // 8 if pixels else 1
        samples = pixels.samples if pixels and not pixels.planar else 1
        if word > 1 and not little_endian:
            flags |= _BIG_ENDIAN
        if pixels is not None:
            flags |= _DIFFERENCES
        payload = _to_zstd(frame, flags, word, samples)
        return b"".join((_HEAD.pack(method, flags, word, samples, 0, 0, len(frame)), payload))
    assert pixels is not None
    word = pixels.bits_allocated // 8
    whole = PixelFormat(  # all bits of the word, whatever the attributes say of them
        pixels.rows, pixels.columns, pixels.samples, 8 * word, 8 * word, pixels.signed, pixels.planar
    )
    cells = from_native(frame, whole, little_endian=little_endian)
    if method is Method.JPEG_XL:
        payload = encode_jpeg_xl(_turned(cells, whole), _unsigned(whole))
    else:
        payload = encode_htj2k(cells, whole)
    flags |= (0 if little_endian else _BIG_ENDIAN) | (_SIGNED if whole.signed else 0)
    flags |= _PLANAR if whole.planar else 0
    head = _HEAD.pack(method, flags, word, whole.samples, whole.rows, whole.columns, len(frame))
    return b"".join((head, payload))


def _from_image(method: int, payload: memoryview, pixels: PixelFormat, *, little_endian: bool) -> memoryview:
    if method == Method.JPEG_XL:
        cells = _turned(decode_jpeg_xl(payload, _unsigned(pixels)), pixels)
    else:
        cells = decode_htj2k(payload, pixels)
    return to_native(cells, pixels, little_endian=little_endian)


def _unsigned(pixels: PixelFormat) -> PixelFormat:
    return PixelFormat(
        pixels.rows, pixels.columns, pixels.samples, pixels.bits_allocated, pixels.bits_stored, False
    )


def _turned(cells: Pixels, pixels: PixelFormat) -> Pixels:
    """Signed words as unsigned ones in the same order, or back; unsigned ones as they are."""
    if not pixels.signed:
        return cells
    unsigned = np.dtype(f"u{pixels.bits_allocated // 8}")
    top = unsigned.type(1 << (pixels.bits_allocated - 1))
    turned: Pixels = np.ascontiguousarray(cells).view(unsigned) ^ top
    return turned if cells.dtype.kind == "i" else turned.view(pixels.dtype)


# ---------------------------------------------------------------- zstd


class _Contexts(threading.local):
    """zstd's working memory, one for each thread."""

    def __init__(self) -> None:
        self.pack = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self.unpack = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def _to_zstd(frame: Buffer, flags: int, word: int, samples: int) -> bytes:
    if not flags & _DIFFERENCES:
        return _contexts.pack.compress(frame)
    words = np.frombuffer(frame, f"{'>' if flags & _BIG_ENDIAN else '<'}u{word}")
    words = words.astype(f"=u{word}", copy=False)
    words = words.reshape(-1, samples)
    steps = imagecodecs().delta_encode(words, axis=0).reshape(-1)
    signs = np.right_shift(steps.view(f"i{word}"), 8 * word - 1).view(steps.dtype)
    folded = np.left_shift(steps, 1)
    folded ^= signs
    if word == 1:
        return _contexts.pack.compress(folded.data)
    planes = np.empty((word, folded.size), np.uint8)
    for number in range(word):
        np.right_shift(folded, 8 * number, out=planes[number], casting="unsafe")
    return _contexts.pack.compress(planes.reshape(-1).data)


def _from_zstd(payload: memoryview, flags: int, word: int, samples: int, length: int) -> memoryview:
    try:
        plain = _contexts.unpack.decompress(payload, max_output_size=length)
    except zstandard.ZstdError as error:
        raise CorruptFrameError("a stored frame does not inflate") from error
    if not flags & _DIFFERENCES or len(plain) != length:
        return memoryview(plain)
    if not word or not samples or length % (word * samples):
        raise CorruptFrameError("a stored frame that is not made of whole pixels")
    planes = np.frombuffer(plain, np.uint8).reshape(word, -1)
    folded = planes[word - 1].astype(f"=u{word}")
    for number in range(word - 2, -1, -1):
        folded <<= 8
        folded |= planes[number]
    steps = np.bitwise_and(folded, 1)
    np.negative(steps, out=steps)
    folded >>= 1
    steps ^= folded
    words = imagecodecs().delta_decode(steps.reshape(-1, samples), axis=0)
    ordered = words.reshape(-1).astype(f"{'>' if flags & _BIG_ENDIAN else '<'}u{word}", copy=False)
    return memoryview(ordered.view(np.uint8).data)
