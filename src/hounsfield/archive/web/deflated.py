"""Pixels of deflated objects: the data set is one deflate stream, inflated and cut anew (PS3.5 A.5)."""

from __future__ import annotations

from hounsfield.archive.dicom.cuts import FrameError, frame_bytes, undivided_frame
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.scan import DEFAULT_LIMITS, Scanned, inflate, scan
from hounsfield.archive.engine.errors import NotFoundError, NotSeparableError
from hounsfield.archive.engine.types import Header
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from hounsfield.storage_backends.api import Buffer


def is_deflated(transfer_syntax_uid: str) -> bool:
    """Whether objects of this transfer syntax are one deflate stream."""
    return lookup(transfer_syntax_uid).deflated


def deflated_frame(header: Header, number: int) -> Buffer:
    """Frame ``number`` from 1 of a deflated object. Blocking. ``NotFoundError``, ``NotSeparableError``."""
    found, slices = _cut(header)
    if not 1 <= number <= max(1, found.frame_count):
        raise NotFoundError(f"this instance has {found.frame_count} frames; there is no frame {number}")
    if found.layout.has_frames:
        return frame_bytes(slices[number], found.layout)
    if found.shape is None:
        raise NotSeparableError("the frames of this instance cannot be told apart; fetch it whole")
    try:
        return undivided_frame(slices[1], found.layout, found.shape, number)
    except FrameError as error:
        raise NotSeparableError("the frames of this instance cannot be told apart; fetch it whole") from error


def deflated_pixels(header: Header) -> Buffer:
    """All pixel data of a deflated object. Blocking. ``NotFoundError`` when it has none."""
    _, slices = _cut(header)
    return b"".join(slices[1:-1])


def _cut(header: Header) -> tuple[Scanned, list[memoryview]]:
    problems: dict[Problem, None] = {}
    plain = inflate(header.head, DEFAULT_LIMITS.inflated_bytes_max, problems)
    found = scan(plain, EXPLICIT_VR_LITTLE_ENDIAN)
    slices = found.slices(plain)
    if len(slices) < 3:
        raise NotFoundError("this instance has no pixel data")
    return found, slices
