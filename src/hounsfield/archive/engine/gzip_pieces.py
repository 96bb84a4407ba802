"""A gzip body out of pieces that were compressed apart, long before and in any order.

Each piece is raw deflate (RFC 1951) that ends on a byte boundary without a final block and refers to
nothing before itself, so pieces can be put behind each other as they are. The character between two
pieces, and the one before the first, goes out as a stored block of one byte. The checksum of the whole is
calculated from the pieces' own (what zlib calls crc32_combine). It is one gzip member: browsers take the
second member of a body for garbage.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["END_BYTES", "HEAD", "LEAD_BYTES", "GzipJoin", "PackedPiece", "gzip_length", "pack", "unpack"]

HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # RFC 1952 2.3: no name, no time, system unknown
FIRST, BETWEEN, LAST = b"[", b",", b"]"
LEAD_BYTES = 6
END_BYTES = LEAD_BYTES + 8
_RAW = -15  # zlib's way of saying: deflate without framing, 32 KiB window
_SIZES = struct.Struct("<LL")


@dataclass(frozen=True, slots=True)
class PackedPiece:
    """One or more texts, joined by commas. The checksums include the character before them."""

    body: bytes
    length: int
    crc_first: int
    crc_between: int


def pack(text: bytes, level: int) -> PackedPiece:
    """``text`` as a piece."""
    packer = zlib.compressobj(level, zlib.DEFLATED, _RAW)
    body = packer.compress(text) + packer.flush(zlib.Z_FULL_FLUSH)
    return PackedPiece(
        body, len(text), zlib.crc32(text, zlib.crc32(FIRST)), zlib.crc32(text, zlib.crc32(BETWEEN))
    )


def unpack(body: bytes, length: int) -> bytes:
    """A piece's text, which has ``length`` bytes. Raises ``zlib.error`` on bytes that are no piece."""
    text = zlib.decompressobj(_RAW).decompress(body, length)
    if len(text) != length:
        raise zlib.error("a piece is not as long as it was")
    return text


class GzipJoin:
    """One JSON list: the bytes that go before each piece, and behind the last."""

    def __init__(self) -> None:
        self._crc = 0
        self._length = 0

    def lead(self, length: int, crc_first: int, crc_between: int) -> bytes:
        """What goes before a piece (of these figures); before the first piece, :data:`HEAD` too."""
        first = not self._length
        self._crc = crc_first if first else _combined(self._crc, crc_between, length + 1)
        self._length += length + 1
        return HEAD + _stored(FIRST, final=False) if first else _stored(BETWEEN, final=False)

    def end(self) -> bytes:
        """What goes behind the last piece, of which there is at least one."""
        crc = zlib.crc32(LAST, self._crc)
        return _stored(LAST, final=True) + _SIZES.pack(crc, (self._length + 1) & 0xFFFFFFFF)


def gzip_length(bodies: Iterable[int]) -> int:
    """Bytes of the whole, from the lengths of the pieces' bodies."""
    return len(HEAD) + END_BYTES + sum(LEAD_BYTES + length for length in bodies)


def _stored(byte: bytes, *, final: bool) -> bytes:
    return (b"\x01" if final else b"\x00") + b"\x01\x00\xfe\xff" + byte


# ---------------------------------------------------------------- CRC-32 of two strings behind each other

_POLYNOMIAL = 0xEDB88320  # reflected, as everywhere in zlib
_ONE = 1 << 31


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo the CRC's."""
    product = 0
    bit = _ONE
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


def _squares() -> tuple[int, ...]:
    """x, x², x⁴ … x^(2^66): enough for 2^63 bytes."""
    powers = [_ONE >> 1]
    for _ in range(66):
        powers.append(_times(powers[-1], powers[-1]))
    return tuple(powers)


_SQUARES = _squares()


def _combined(crc_before: int, crc_behind: int, length_behind: int) -> int:
    """The CRC of two strings from theirs and the second one's length: the first moves up by its bits."""
    power = _ONE
    bit = 3  # bytes to bits
    while length_behind:
        if length_behind & 1:
            power = _times(_SQUARES[bit], power)
        length_behind >>= 1
        bit += 1
    return _times(power, crc_before) ^ crc_behind
