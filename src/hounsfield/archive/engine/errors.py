"""What the engine refuses, and whether trying again can help. One table each maps these to DIMSE and HTTP."""

from __future__ import annotations


class EngineError(Exception):
    """Root of the engine's errors. Messages never hold an identifier."""

    retry = False


class OutOfResourcesError(EngineError):
    """The disk is full, or the memory budget stayed used up: nothing of this object was kept."""

    retry = True


class ObjectTooLargeError(EngineError):
    """The object is longer than ``ingest.object_bytes_max`` allows."""


class StorageFailedError(EngineError):
    """Writing, syncing or indexing failed: the object was not acknowledged and may be sent again."""

    retry = True


class NotFoundError(EngineError):
    """No such study, series, instance or frame."""


class GoneError(EngineError):
    """A place in a journal that was made anew since: read it from the beginning."""


class HeldError(EngineError):
    """A legal hold forbids to delete it: nothing was deleted."""


class RefusedError(EngineError):
    """What is asked for cannot be done as it is asked; the text says what to change."""


class BusyError(EngineError):
    """Another process does this at the moment: try again later."""

    retry = True


class DamagedError(EngineError):
    """Stored bytes do not open any more: the record is damaged; nothing else is affected."""


class UnavailableError(EngineError):
    """It lies in another tier, which cannot be reached or does not give it at the moment."""

    retry = True


class NotSeparableError(EngineError):
    """The frames of this object cannot be told apart without decoding; fetch the whole instance."""


class NotTranscodableError(EngineError):
    """It cannot be given in that transfer syntax, object or frame; it can be had as it is stored."""


class ClosedError(EngineError):
    """The engine is draining or closed; no new objects are taken."""

    retry = True
