"""Structured logs that cannot name a patient: only keys known to be safe are written, identifiers are hashed.

A log line is an event (a constant sentence), a level, a time, and keys. A key that is not in :data:`SAFE`
or :data:`HASHED` is written as withheld, so that forgetting is safe. UIDs, wherever they turn up, become
a short hash keyed anew at each start: lines of one run can be put together, and nothing can be looked up.
Libraries' own log texts are withheld too, since a DICOM library may well quote a value.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, cast

from hounsfield.archive.app.lean_structlog import structlog
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.errors import HounsfieldError, alone, is_ours, where

WITHHELD = "[withheld]"

# Keys whose values are ours, the machine's or a peer system's, never a person's.
SAFE = frozenset(
    {
        "event", "level", "timestamp", "logger", "worker", "pid", "version", "address", "host",
        "port", "listener", "listeners", "protocol", "tls", "url", "calling_ae", "called_ae",
        "association", "connection", "context_id", "message_id", "command", "service", "sop_class",
        "transfer_syntax", "status", "outcome", "reason", "source", "result", "state", "method",
        "route", "status_code", "duration_ms", "seconds", "bytes", "objects", "frames", "count",
        "records", "segment", "offset", "length", "limit", "attempt", "retry", "delay_seconds",
        "exit_code", "signal", "error", "error_type", "where", "path", "directory", "key_source",
        "announcement", "next", "workers", "restarts", "grace_seconds", "table", "what", "tag",
        "vr", "connections", "errno", "request_id", "response_started", "exception", "at", "errors",
        "detail", "destination", "answers", "headers", "completed", "failed", "warning", "cancelled",
        "tier", "rule", "removed", "unknown",
    }
)  # fmt: skip

# Keys whose values identify an object (and through it a person): hashed.
HASHED = frozenset(
    {
        "study", "series", "instance", "study_uid", "series_uid", "sop_instance",
        "sop_instance_uid", "study_instance_uid", "series_instance_uid", "frame_of_reference",
        "uid",
    }
)  # fmt: skip

# A UID of five or more components. The standard's own (SOP classes, transfer syntaxes) identify no one.
_UID = re.compile(r"(?<![\d.])(?!1\.2\.840\.10008\.)[0-2](?:\.(?:0|[1-9]\d*)){4,}(?!\.?\d)")
_ADDRESS = re.compile(r"^\d{1,3}(?:\.\d{1,3}){3}$")


class Redactor:
    """The structlog processor: see the module's text. ``salt`` is random and new at each start."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt[:64]

    def hash(self, value: object) -> str:
        """A short keyed hash of ``value``: equal within one run, meaningless outside it."""
        digest = hashlib.blake2b(str(value).encode(), key=self._salt, digest_size=5).hexdigest()
        return f"#{digest}"

    def __call__(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for key, value in event.items():
            event[key] = self._one(key, value)
        return event

    def _one(self, key: str, value: Any) -> Any:
        if key in HASHED:
            return None if value is None else self.hash(value)
        return self._clean(value) if key in SAFE else WITHHELD

    def _clean(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, list | tuple):
            return [self._clean(item) for item in value]
        if isinstance(value, dict):
            return {key: self._one(key, item) for key, item in value.items()}
        text = str(value)
        if _ADDRESS.match(text):
            return text
        return _UID.sub(lambda found: self.hash(found[0]), text)


def _most_important_first(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Time, level and event first: a person reads lines from the left."""
    first = {key: event[key] for key in ("timestamp", "level", "event") if key in event}
    return {**first, **event}


class _LibraryHandler(logging.Handler):
    """Passes on that a library had something to say, and where, never what."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.log(
            record.levelno, "a library logged", logger=record.name, where=f"{record.module}:{record.lineno}"
        )


class _Unfailing:
    """Standard error that loses a line rather than the server: its disk may be full, its reader gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def set_up_logs(
    *,
    level: str,
    form: Literal["auto", "json", "console"],
    salt: bytes,
    worker: int | None = None,
    for_good: bool = True,
) -> None:
    """Log to standard error from here on: JSON lines, or coloured columns on a terminal.

    ``for_good``: loggers that were used stay as they are then, and cost less.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(pad_event_to=32) if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            Redactor(salt),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _most_important_first,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Unfailing(sys.stderr))),
        cache_logger_on_first_use=for_good,
    )
    structlog.contextvars.clear_contextvars()
    if worker is not None:
        structlog.contextvars.bind_contextvars(worker=worker)
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[_LibraryHandler()], force=True)


def is_refusal(error: BaseException) -> bool:
    """Whether it could not be done as it was asked, by a command or a plugin's rules: that is for who asked,
    not for who watches the log. What the engine could not do, and what is a fault, is."""
    return isinstance(error, HounsfieldError) or (is_ours(error) and not isinstance(error, EngineError))


def describe(error: BaseException) -> dict[str, str]:
    """What went wrong, as keys of a log line: our own errors' words, else only the type and the place."""
    error = alone(error)
    keys = where(error)
    if is_ours(error) or isinstance(error, OSError):
        keys["error"] = str(error)
    return keys
