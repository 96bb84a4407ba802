"""What can go wrong in the HTTP server. ``retry`` says whether doing the same again can help.

Remote faults (:class:`RequestRefusedError`) are the peer's doing and have one HTTP answer each; local faults
(:class:`ResponseError`) are the application's doing and become a 500. Messages never quote the request: a
path or a header of a DICOM request can name a patient.
"""

from __future__ import annotations

import traceback
from typing import Any


class HttpServerError(Exception):
    """Root of this package's errors."""

    retry = False


class RequestRefusedError(HttpServerError):
    """The peer sent something that is not a request we serve. ``status`` is the answer; the connection
    closes."""

    def __init__(self, status: int, detail: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(f"request refused with {status}: {detail}")
        self.status = status
        self.detail = detail
        self.headers = headers


class ResponseError(HttpServerError):
    """The application broke HTTP or ASGI: fix the application. Nothing of the faulty message was sent."""


class ClientGoneError(HttpServerError, OSError):
    """The peer closed, reset, or stopped reading. An ``OSError``, as ASGI 2.4 asks of ``send``."""

    retry = True


class LifespanError(HttpServerError):
    """The application refused to start, or did not start in time."""


class TlsConfigError(HttpServerError):
    """A certificate, key or CA file is missing or unusable."""


def without_values(error: BaseException) -> dict[str, Any]:
    """What of an exception may be logged: its type and where it was raised. Its text may name a patient."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    found: dict[str, Any] = {
        "error": type(error).__name__,
        "at": [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(error, BaseExceptionGroup):
        found["errors"] = [without_values(inner) for inner in error.exceptions[:5]]
    if isinstance(error, HttpServerError):
        found["detail"] = str(error)  # our own fixed sentences
    return found
