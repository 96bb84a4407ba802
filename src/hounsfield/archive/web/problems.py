"""Every error as one RFC 9457 problem document, by one table.

Details are our own sentences: they never hold an identifier, a path or a query.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec

from hounsfield.archive.dicom.part10 import Part10Error
from hounsfield.archive.dicom.query import QueryError
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
from hounsfield.archive.rendering.errors import BadParameterError, NoImageError, RenderingError
from hounsfield.archive.web.multipart import MultipartError
from hounsfield.codecs.errors import CodecError

Header = tuple[bytes, bytes]

RETRY_AFTER_SECONDS: Final = 5
"""What a client is told to wait: a commit takes milliseconds, a drain or a full disk longer."""


class WebError(Exception):
    """A request that is answered with a problem; ``retry`` when sending it again can help."""

    def __init__(self, status: int, detail: str, *, headers: Iterable[Header] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = tuple(headers)
        self.retry = status == 503


@dataclass(frozen=True, slots=True)
class Row:
    """How one kind of error is answered: HTTP status, and failure reason in a STOW-RS result (PS3.18 I.2)."""

    status: int
    failure_reason: int


_OUT_OF_RESOURCES: Final = 0xA700
_PROCESSING_FAILURE: Final = 0x0110
_CANNOT_UNDERSTAND: Final = 0xC000

#: Total over the engine's errors (a test walks its classes) and over what reading requests raises.
TABLE: Final[dict[type[Exception], Row]] = {
    EngineError: Row(500, _PROCESSING_FAILURE),
    OutOfResourcesError: Row(503, _OUT_OF_RESOURCES),
    ObjectTooLargeError: Row(413, _OUT_OF_RESOURCES),
    StorageFailedError: Row(503, _PROCESSING_FAILURE),
    BusyError: Row(503, _PROCESSING_FAILURE),
    GoneError: Row(410, _PROCESSING_FAILURE),
    HeldError: Row(409, _PROCESSING_FAILURE),
    RefusedError: Row(400, _PROCESSING_FAILURE),
    NotFoundError: Row(404, _PROCESSING_FAILURE),
    DamagedError: Row(500, _PROCESSING_FAILURE),
    UnavailableError: Row(503, _PROCESSING_FAILURE),
    NotSeparableError: Row(404, _PROCESSING_FAILURE),
    NotTranscodableError: Row(406, _PROCESSING_FAILURE),
    ClosedError: Row(503, _OUT_OF_RESOURCES),
    QueryError: Row(400, _CANNOT_UNDERSTAND),
    MultipartError: Row(400, _CANNOT_UNDERSTAND),
    Part10Error: Row(400, _CANNOT_UNDERSTAND),
    CodecError: Row(406, _PROCESSING_FAILURE),
    RenderingError: Row(406, _PROCESSING_FAILURE),
    NoImageError: Row(404, _PROCESSING_FAILURE),
    BadParameterError: Row(400, _CANNOT_UNDERSTAND),
}


def row_of(error: Exception) -> Row | None:
    """The table's row for an error, by its class or the nearest one above it."""
    for kind in type(error).__mro__:
        row = TABLE.get(kind)
        if row is not None:
            return row
    return None


def web_error_of(error: Exception) -> WebError | None:
    """The problem that an error is answered with; None for a defect, which the server logs and answers."""
    if isinstance(error, WebError):
        return error
    row = row_of(error)
    return None if row is None else WebError(row.status, str(error))


def problem_body(status: int, detail: str) -> bytes:
    """An ``application/problem+json`` document."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    return msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})


def problem_headers(error: WebError) -> list[Header]:
    """The headers of a problem response; a retryable one says when to come back."""
    headers: list[Header] = [(b"content-type", b"application/problem+json"), *error.headers]
    if error.status == 503 and all(name != b"retry-after" for name, _ in error.headers):
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
    return headers
