"""Deflated data sets as they are inside (PS3.5 A.5), damaged ones as far as they go."""

from __future__ import annotations

import zlib
from typing import Final

from hounsfield.archive.dicom.problems import Problem
from hounsfield.codecs.registry import TransferSyntax

Buffer = bytes | bytearray | memoryview

#: A deflated data set is inflated this far: deflate can grow a thousandfold.
INFLATED_BYTES_MAX: Final = 256 * 1024 * 1024
_STEP_BYTES: Final = 512  # what damage costs of the output before it


def plain_header(header: Buffer, transfer_syntax: TransferSyntax) -> bytes:
    """An object's header slice as plain elements: of a deflated one, whose slice is all of it, inflated."""
    return inflate(header, INFLATED_BYTES_MAX, {}) if transfer_syntax.deflated else bytes(header)


def inflate(data: Buffer, bytes_max: int, problems: dict[Problem, None]) -> bytes:
    """A deflated data set's plain bytes, at most ``bytes_max``; of a damaged one what comes before it."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(data, bytes_max)
    except zlib.error:
        # Once more in small steps, to keep what comes before the damage. Some writers add a zlib header.
        plain, inflater = _inflate_what_is_good(data, bytes_max)
        problems[Problem.BAD_DEFLATE] = None
    if inflater.unconsumed_tail and len(plain) >= bytes_max:
        problems[Problem.INFLATES_TOO_FAR] = None
    elif not inflater.eof:
        problems[Problem.TRUNCATED] = None
    return plain


def _inflate_what_is_good(data: Buffer, bytes_max: int) -> tuple[bytes, zlib._Decompress]:
    best = b""
    best_inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for bits in (-zlib.MAX_WBITS, zlib.MAX_WBITS):
        inflater = zlib.decompressobj(bits)
        out = bytearray()
        view = memoryview(data)
        try:
            for start in range(0, len(view), _STEP_BYTES):
                out += inflater.decompress(view[start : start + _STEP_BYTES], bytes_max - len(out) or 1)
                if inflater.eof or len(out) >= bytes_max:
                    break
        except zlib.error:
            pass
        if len(out) > len(best):
            best, best_inflater = bytes(out), inflater
    return best, best_inflater
