"""The two ends of an object, its header and trailer slices: where elements begin behind the pixels."""

from __future__ import annotations

from typing import Final

from hounsfield.archive.dicom.cuts import SHAPE_TAGS, declared_frames, frame_shape, native_frame_length
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.walk import Budget, elements

Buffer = bytes | bytearray | memoryview

_SEQUENCE_ENDS: Final = (b"\xfe\xff\xdd\xe0", b"\xff\xfe\xe0\xdd")
_TOLD_BY: Final = PIXEL_TAGS | SHAPE_TAGS
DELIMITER_BYTES: Final = 8
_ELEMENT_BYTES_MIN: Final = 8


def ends_a_sequence(trailer: Buffer) -> bool:
    """Whether the trailer begins with the delimiter of encapsulated pixel data."""
    return bytes(trailer[:4]) in _SEQUENCE_ENDS


def may_have_elements(trailer: Buffer) -> bool:
    """Whether there may be elements after the pixel data, not just the delimiter of its items, or padding."""
    return len(trailer) >= _ELEMENT_BYTES_MIN + (DELIMITER_BYTES if ends_a_sequence(trailer) else 0)


def trailer_start(
    header: bytes, trailer: Buffer, implicit: bool, little: bool, budget: Budget | None = None
) -> int:
    """Where elements begin in a trailer: after the sequence delimiter, or the bytes that pad the last frame.

    ``header`` ends behind the head of the pixel data's element.
    """
    if ends_a_sequence(trailer):
        return DELIMITER_BYTES
    found = {
        tag: (vr, at, length)
        for tag, vr, at, length, _ in elements(header, 0, len(header), implicit, little, budget)
        if tag in _TOLD_BY
    }
    tag = next((tag for tag in PIXEL_TAGS if tag in found), None)
    shape = None if tag is None else frame_shape(header, found, tag, little=little)
    if shape is None or len(header) < 4:
        return 0
    frames = max(declared_frames(header, found) or 1, 1)
    declared = int.from_bytes(header[-4:], "little" if little else "big")
    length = native_frame_length(shape, frames, declared)
    padding = declared - length * frames if length else 0
    return padding if 0 < padding <= len(trailer) else 0
