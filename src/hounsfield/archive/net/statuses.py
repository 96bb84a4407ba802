"""The one table from what became of an object to what its sender is told (PS3.4 B.2.3, PS3.7 9.1.1.1.9).

Two rules hold for every row, and are tested: an error that may go away by itself is answered with A700, on
which senders try again, and one that will not is not; and whatever is kept other than as sent is never
plain success. Comments (0000,0902) are constants, so that none can hold a patient.
"""

from __future__ import annotations

from dataclasses import dataclass

from hounsfield.archive.dicom.problems import CUT_SHORT
from hounsfield.archive.engine.errors import (
    BusyError,
    ClosedError,
    DamagedError,
    EngineError,
    GoneError,
    HeldError,
    NotFoundError,
    NotSeparableError,
    NotTranscodableError,
    ObjectTooLargeError,
    OutOfResourcesError,
    RefusedError,
    StorageFailedError,
    UnavailableError,
)
from hounsfield.archive.engine.receiving import PROBLEM_SOP_MISMATCH
from hounsfield.archive.engine.types import COERCED, Outcome, StoreResult
from hounsfield.archive.wire import Status

__all__ = ["BY_ERROR", "BY_OUTCOME", "MISMATCH", "StoreAnswer", "answer_of", "answer_to_error"]


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """A status, and a word about it for whoever looks (64 characters at most)."""

    status: Status
    comment: str | None = None


BY_OUTCOME: dict[Outcome, StoreAnswer] = {
    Outcome.STORED: StoreAnswer(Status.SUCCESS),
    Outcome.DUPLICATE: StoreAnswer(Status.SUCCESS),
    # it is not served under the identity it came with, or no longer the only one that is
    Outcome.CONFLICT: StoreAnswer(
        Status.COERCION_OF_DATA_ELEMENTS, "kept beside another object with the same SOP Instance UID"
    ),
    Outcome.QUARANTINED: StoreAnswer(
        Status.DATASET_DOES_NOT_MATCH_SOP_CLASS_WARNING, "kept in quarantine: it lacks a usable UID"
    ),
}

MISMATCH = StoreAnswer(
    Status.DATASET_DOES_NOT_MATCH_SOP_CLASS_WARNING, "stored; the command names another SOP class or instance"
)

COERCION = StoreAnswer(Status.COERCION_OF_DATA_ELEMENTS, "stored; attributes of it are shown otherwise here")

CUT = StoreAnswer(
    Status.DATASET_DOES_NOT_MATCH_SOP_CLASS_WARNING,
    "stored as it came; bytes of it are missing, send it again",
)

BY_ERROR: dict[type[EngineError], StoreAnswer] = {
    OutOfResourcesError: StoreAnswer(Status.OUT_OF_RESOURCES, "no room at the moment, send again later"),
    StorageFailedError: StoreAnswer(Status.OUT_OF_RESOURCES, "storing failed, nothing was kept, send again"),
    ClosedError: StoreAnswer(Status.OUT_OF_RESOURCES, "the archive is shutting down, send again later"),
    ObjectTooLargeError: StoreAnswer(
        Status.RESOURCE_LIMITATION, "the object is larger than this archive takes"
    ),
    # not raised by ingest; here so that the table is whole
    BusyError: StoreAnswer(Status.OUT_OF_RESOURCES, "busy at the moment, try again later"),
    GoneError: StoreAnswer(Status.PROCESSING_FAILURE, "processing failure"),
    HeldError: StoreAnswer(Status.PROCESSING_FAILURE, "processing failure"),
    RefusedError: StoreAnswer(Status.PROCESSING_FAILURE, "processing failure"),
    NotFoundError: StoreAnswer(Status.PROCESSING_FAILURE, "processing failure"),
    DamagedError: StoreAnswer(Status.PROCESSING_FAILURE, "processing failure"),
    UnavailableError: StoreAnswer(Status.OUT_OF_RESOURCES, "not to be had at the moment, try again later"),
    NotSeparableError: StoreAnswer(Status.PROCESSING_FAILURE, "processing failure"),
    NotTranscodableError: StoreAnswer(Status.PROCESSING_FAILURE, "processing failure"),
    EngineError: StoreAnswer(Status.PROCESSING_FAILURE, "processing failure"),
}


def answer_of(result: StoreResult) -> StoreAnswer:
    """What to say about an object that is durable."""
    answer = BY_OUTCOME[result.outcome]
    if answer.status is Status.SUCCESS and PROBLEM_SOP_MISMATCH in result.warnings:
        return MISMATCH
    if answer.status is Status.SUCCESS and not CUT_SHORT.isdisjoint(result.warnings):
        return CUT
    if answer.status is Status.SUCCESS and COERCED in result.warnings:
        return COERCION
    return answer


def answer_to_error(error: EngineError) -> StoreAnswer:
    """What to say about an object that was not kept."""
    for cls in type(error).__mro__:
        found = BY_ERROR.get(cls)
        if found is not None:
            return found
    return BY_ERROR[EngineError]
