"""Response heads and error bodies as bytes. No I/O.

The application's headers are checked here: a CR, LF or NUL in one would let data write headers or a second
response.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus

from .errors import ResponseError
from .heads import Header

SERVER = b"hounsfield"
"""The Server header: the product, and no version for scanners to match."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_known_names: set[bytes] = set()
_KNOWN_NAMES_MAX = 1000
_DIGITS = re.compile(rb"[0-9]{1,16}")


class ResponseHead:
    """A response's status and headers, checked; ``content_length`` is ``None`` when the application gave
    none."""

    __slots__ = ("block", "close", "content_length", "has_date", "has_server", "status")

    def __init__(self, status: int, headers: Iterable[Header]) -> None:
        if not 200 <= status <= 599:
            raise ResponseError("the response status must be from 200 to 599 (1xx and 101 are the server's)")
        self.status = status
        self.content_length: int | None = None
        self.close = False
        self.has_date = False
        self.has_server = False
        lines: list[bytes] = []
        for name, value in headers:
            low = name.lower()
            if low not in _known_names:
                _learn(low)
            if low == b"content-length":
                if not _DIGITS.fullmatch(value) or self.content_length not in (None, int(value)):
                    raise ResponseError(
                        "the response's Content-Length is not a plain number, or there are two"
                    )
                self.content_length = int(value)
                continue
            if low == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise ResponseError("the response's transfer coding is the server's to choose")
                continue
            if low == b"connection":
                self.close = self.close or b"close" in value.lower()
                continue
            if low == b"date":
                self.has_date = True
            elif low == b"server":
                self.has_server = True
            lines += (low, b": ", value, b"\r\n")
        self.block = block = b"".join(lines)
        count = len(lines) // 4
        if block.count(b"\r") != count or block.count(b"\n") != count or b"\0" in block:
            raise ResponseError(
                "a response header holds a line end or a NUL: refused, it would inject headers"
            )


def _learn(name: bytes) -> None:
    if not _TOKEN.fullmatch(name):
        raise ResponseError("a response header's name is not a token")
    if len(_known_names) < _KNOWN_NAMES_MAX:
        _known_names.add(name)


_date_second = 0
_date_line = b""


def date_line() -> bytes:
    """The Date header of this second."""
    global _date_second, _date_line  # noqa: PLW0603 - one formatted date a second, for every connection
    now = int(time.time())
    if now != _date_second:
        _date_second = now
        _date_line = b"date: %s\r\n" % formatdate(now, usegmt=True).encode()
    return _date_line


def head_bytes(head: ResponseHead, *, extra: bytes = b"") -> bytes:
    """The status line, the headers and the empty line; ``extra`` is framing lines of the server's own."""
    status_line = _STATUS_LINES.get(head.status) or b"HTTP/1.1 %d Status\r\n" % head.status
    date = b"" if head.has_date else date_line()
    server = b"" if head.has_server else b"server: " + SERVER + b"\r\n"
    return b"".join((status_line, head.block, date, server, extra, b"\r\n"))


def problem(status: int, detail: str, *, instance: str | None = None) -> bytes:
    """An RFC 9457 problem document. ``detail`` is a fixed sentence of ours, never the peer's or the
    application's."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    if instance is not None:
        body["instance"] = instance
    return json.dumps(body).encode()


def problem_response(
    status: int,
    detail: str,
    *,
    close: bool,
    headers: Iterable[Header] = (),
    instance: str | None = None,
    body: bool = True,
) -> bytes:
    """A whole error response; ``body=False`` for HEAD."""
    content = problem(status, detail, instance=instance)
    head = ResponseHead(
        status,
        [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(content)).encode()),
            *headers,
        ],
    )
    extra = b"connection: close\r\n" if close else b""
    return head_bytes(head, extra=extra) + (content if body else b"")
