"""What coding a frame can fail with. None goes away by trying again with the same bytes."""

from __future__ import annotations


class CodecError(Exception):
    """Root of this package's errors."""

    retry = False


class UnsupportedPixelsError(CodecError):
    """The coder does not take pixels of this shape or word size; another may."""


class CorruptFrameError(CodecError):
    """The bytes are no frame of that coder, or one of another shape than the attributes say."""


class DisagreeingError(CorruptFrameError):
    """The frame decodes, to something else than the attributes say: another library would find the same."""
