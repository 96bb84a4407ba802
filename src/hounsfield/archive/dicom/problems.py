"""What can be wrong with a data set that is kept all the same. Flags, not errors.

Nothing here refuses an object.
"""

from __future__ import annotations

from enum import StrEnum


class Problem(StrEnum):
    """One finding about a data set; the value is the word that is stored, listed and counted."""

    # how it is written
    EMPTY = "empty"
    TRUNCATED = "truncated"
    TRAILING_BYTES = "trailing-bytes"
    UNEXPECTED_VR_ENCODING = "unexpected-vr-encoding"
    UNKNOWN_VR = "unknown-vr"
    UNKNOWN_TRANSFER_SYNTAX = "unknown-transfer-syntax"
    DUPLICATE_ELEMENT = "duplicate-element"
    MISPLACED_DELIMITER = "misplaced-delimiter"
    BAD_SEQUENCE = "bad-sequence"
    TOO_DEEP = "too-deep"
    TOO_MANY_ELEMENTS = "too-many-elements"
    BAD_DEFLATE = "bad-deflate"
    INFLATES_TOO_FAR = "inflates-too-far"
    #: Of an object that was scanned while it came in: more before, or behind, its pixels than is looked at.
    HEADER_TOO_LONG = "header-too-long"
    TRAILER_TOO_LONG = "trailer-too-long"
    # its pixel data
    PIXELS_TOO_SHORT = "pixels-too-short"
    PIXELS_TOO_LONG = "pixels-too-long"
    NO_FRAME_SHAPE = "no-frame-shape"
    TOO_MANY_FRAMES = "too-many-frames"
    NO_SEQUENCE_END = "no-sequence-end"
    BAD_OFFSET_TABLE = "bad-offset-table"
    FRAMES_NOT_SEPARABLE = "frames-not-separable"
    FRAME_COUNT_DIFFERS = "frame-count-differs"
    NOT_ENCAPSULATED = "not-encapsulated"
    UNEXPECTEDLY_ENCAPSULATED = "unexpectedly-encapsulated"
    # its attributes
    BAD_CHARACTER_SET = "bad-character-set"
    BAD_TEXT = "bad-text"
    BAD_NUMBER = "bad-number"
    VALUE_TOO_LONG = "value-too-long"
    MISSING_SOP_CLASS_UID = "missing-sop-class-uid"
    MISSING_SOP_INSTANCE_UID = "missing-sop-instance-uid"
    MISSING_STUDY_UID = "missing-study-uid"
    MISSING_SERIES_UID = "missing-series-uid"
    INVALID_UID = "invalid-uid"


#: Bytes of the object are missing: its sender should know, and another of its UIDs that has them is served.
CUT_SHORT = frozenset({
    Problem.EMPTY, Problem.TRUNCATED, Problem.BAD_DEFLATE, Problem.PIXELS_TOO_SHORT, Problem.NO_SEQUENCE_END,
})  # fmt: skip
