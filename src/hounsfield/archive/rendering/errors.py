"""What rendering can refuse. None goes away by asking the same again."""

from __future__ import annotations


class RenderingError(Exception):
    """Root of this package's errors. Messages never hold an identifier."""

    retry = False


class BadParameterError(RenderingError):
    """A rendering parameter that cannot be read, or that this object cannot follow."""


class NoImageError(RenderingError):
    """The object has no pixels that could be shown."""


class NotRenderableError(RenderingError):
    """The object has pixels, but of a kind that is not rendered, or that contradict its attributes."""
