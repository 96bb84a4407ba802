"""Storage commitment's data sets: an N-ACTION's request, an N-EVENT-REPORT's report (PS3.4 J.3). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from hounsfield.archive.dicom.attributes import uid_is_usable
from hounsfield.archive.dicom.references import (
    Reference,
    encoded,
    items_in,
    reference,
    reference_in,
    referenced,
    sequence,
    text_in,
    uid,
)
from hounsfield.archive.dicom.selection import select
from hounsfield.codecs.registry import TransferSyntax

__all__ = [
    "ALL_COMMITTED",
    "COMMITMENT_INSTANCE",
    "REQUEST_COMMITMENT",
    "SOME_FAILED",
    "STORAGE_COMMITMENT",
    "CommitmentError",
    "CommitmentRequest",
    "FailureReason",
    "Reference",
    "parse_report",
    "parse_request",
    "report",
    "request",
]

STORAGE_COMMITMENT: Final = "1.2.840.10008.1.20.1"
"""The push model SOP class (PS3.4 J.3)."""
COMMITMENT_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
"""Its one, well-known SOP instance (PS3.4 J.3.5)."""
REQUEST_COMMITMENT: Final = 1
"""The action type (PS3.4 J.3.2)."""
ALL_COMMITTED: Final = 1
SOME_FAILED: Final = 2
"""The event types (PS3.4 J.3.3)."""

_TRANSACTION, _REFERENCED, _FAILED = 0x00081195, 0x00081199, 0x00081198
_REASON, _RETRIEVE_AE = 0x00081197, 0x00080054


class FailureReason(IntEnum):
    """Why an instance is not committed: Failure Reason (0008,1197) (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    REFERENCED_SOP_CLASS_NOT_SUPPORTED = 0x0122
    DUPLICATE_TRANSACTION_UID = 0x0131
    RESOURCE_LIMITATION = 0x0213


@dataclass(frozen=True, slots=True)
class CommitmentRequest:
    """For what the caller wants somebody else to be responsible; each instance once, in the order given."""

    transaction_uid: str
    references: tuple[Reference, ...]


class CommitmentError(ValueError):
    """The data set is none of storage commitment; the text says what it lacks, and names no UID of it."""

    retry = False


def parse_request(data: bytes, syntax: TransferSyntax) -> CommitmentRequest:
    """The data set of an N-ACTION-RQ (PS3.4 Table J.3-1). Raises CommitmentError."""
    model = select(data, syntax, [(_TRANSACTION,), (_REFERENCED,)])
    transaction = _transaction(model)
    references = dict.fromkeys(referenced(model, _REFERENCED))
    if not references:
        raise CommitmentError("Referenced SOP Sequence (0008,1199) is missing or empty")
    if not all(map(uid_is_usable, (value for one in references for value in one))):
        raise CommitmentError("a Referenced SOP Class or Instance UID is missing or is no UID")
    return CommitmentRequest(transaction, tuple(references))


def parse_report(
    data: bytes, syntax: TransferSyntax
) -> tuple[str, tuple[Reference, ...], tuple[tuple[Reference, int], ...]]:
    """Transaction UID, what is committed, and what is not with the reason (PS3.4 Table J.3-2).

    Raises CommitmentError when there is no transaction UID.
    """
    model = select(data, syntax, [(_TRANSACTION,), (_REFERENCED,), (_FAILED,)])
    failed = tuple(
        (reference_in(item), int(text_in(item, _REASON) or 0)) for item in items_in(model, _FAILED)
    )
    return _transaction(model), tuple(referenced(model, _REFERENCED)), failed


def request(asked: CommitmentRequest, syntax: TransferSyntax) -> bytes:
    """The data set of an N-ACTION-RQ, in a little endian ``syntax`` (PS3.4 Table J.3-1)."""
    return b"".join((
        uid(_TRANSACTION, asked.transaction_uid, syntax),
        sequence(_REFERENCED, (reference(one, syntax) for one in asked.references), syntax),
    ))  # fmt: skip


def report(
    transaction_uid: str,
    committed: Sequence[Reference],
    failed: Sequence[tuple[Reference, int]],
    syntax: TransferSyntax,
    *,
    retrieve_ae: str = "",
) -> bytes:
    """The data set of an N-EVENT-REPORT-RQ, in a little endian ``syntax`` (PS3.4 Table J.3-2).

    ``retrieve_ae``: from whom the committed instances can be retrieved, "" to leave it out. Of the two
    sequences one that would be empty is left out.
    """
    parts = []
    if retrieve_ae:
        parts.append(encoded(_RETRIEVE_AE, "AE", retrieve_ae.encode("ascii"), syntax))
    parts.append(uid(_TRANSACTION, transaction_uid, syntax))
    if failed:
        items = (
            reference(one, syntax) + encoded(_REASON, "US", int(reason).to_bytes(2, "little"), syntax)
            for one, reason in failed
        )
        parts.append(sequence(_FAILED, items, syntax))
    if committed:
        parts.append(sequence(_REFERENCED, (reference(one, syntax) for one in committed), syntax))
    return b"".join(parts)


def _transaction(model: Mapping[str, Any]) -> str:
    transaction = text_in(model, _TRANSACTION)
    if not uid_is_usable(transaction):
        raise CommitmentError("Transaction UID (0008,1195) is missing or is no UID")
    return transaction
