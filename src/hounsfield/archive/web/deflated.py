"""Pixels of deflated objects, all at once; single frames are :mod:`~hounsfield.archive.engine.decoding`'s."""

from __future__ import annotations

from hounsfield.archive.engine.decoding import inflated
from hounsfield.archive.engine.types import Header
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer


def is_deflated(transfer_syntax_uid: str) -> bool:
    """Whether objects of this transfer syntax are one deflate stream."""
    return lookup(transfer_syntax_uid).deflated


def deflated_pixels(header: Header) -> Buffer:
    """All pixel data of a deflated object. Blocking. ``NotFoundError`` when it has none."""
    _, slices = inflated(header)
    return b"".join(slices[1:-1])
