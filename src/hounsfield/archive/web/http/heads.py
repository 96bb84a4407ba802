"""Request heads: exact bytes up to the empty line in, one checked :class:`RequestHead` out. No I/O.

llhttp (httptools) does the parsing; this module decides *where* a head ends and refuses what llhttp lets
through. Two readings of one message are what request smuggling lives on, so anything that a proxy could read
differently is refused (RFC 9112 2.2, 3, 5, 6): the table is ``tests/web_http/test_smuggling.py``.

A head is given to llhttp whole, never in slices, so the answer cannot depend on how TCP cut it. For an
incomplete head, :func:`frame_fault` finds the first byte that can no longer become a good one; it is exact
about positions so that, here too, slicing changes nothing.
"""

from __future__ import annotations

import re

import httptools

from .errors import RequestRefusedError
from .limits import HttpLimits

Header = tuple[bytes, bytes]

# What may stand in a head at all: printable ASCII, tab, CR, LF, and obs-text (bytes ≥ 0x80, in values only).
_GOOD_BYTES = b"\t\r\n" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_BAD_BYTE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])|\r\n[ \t]")
_DIGITS = re.compile(rb"[0-9]{1,16}")
_AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE | re.DOTALL)
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_END = b"\r\n\r\n"

_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"SEARCH", b"QUERY"})
"""What the application may see. TRACE echoes credentials, CONNECT is for proxies; the rest is not for an
archive."""

_SPECIAL = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
)  # fmt: skip


class RequestHead:
    """One request's line and headers, already checked. Header names are lower case, values stripped."""

    __slots__ = (
        "chunked",
        "content_length",
        "expect_continue",
        "headers",
        "http_1_1",
        "keep_alive",
        "method",
        "path",
        "query",
        "upgrade",
    )

    def __init__(
        self, method: bytes, path: bytes, query: bytes, headers: list[Header], http_1_1: bool
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.http_1_1 = http_1_1
        self.keep_alive = http_1_1
        self.content_length = 0
        self.chunked = False
        self.expect_continue = False
        self.upgrade = b""

    @property
    def has_body(self) -> bool:
        """Whether bytes of a body follow the head."""
        return self.chunked or self.content_length > 0


def frame_fault(data: bytes | bytearray, limits: HttpLimits) -> RequestRefusedError | None:
    """The fault that stands earliest in an unfinished or doubtful head, or ``None`` while it may still
    become good.

    The answer for a prefix is the answer for every continuation of it: reading a byte at a time or all at
    once refuses the same request with the same status.
    """
    found: list[tuple[int, RequestRefusedError]] = []
    end = data.find(_END)
    stop = len(data) if end < 0 else end + 4
    if bad := _BAD_BYTE.search(data, 0, stop):
        detail = "the request head holds a byte or a line end that HTTP forbids"
        found.append((bad.end() + (bad[0] == b"\r"), RequestRefusedError(400, detail)))
    line_end = data.find(b"\r\n", 0, stop)
    line_max = limits.request_line_bytes_max
    if line_end > line_max or (line_end < 0 and stop > line_max + 1):
        detail = f"the request line is longer than {line_max} bytes"
        found.append((line_max + 2, RequestRefusedError(414, detail)))
    elif line_end >= 0 and (fault := _line_fault(data[:line_end])):
        found.append((line_end + 2, fault))
    if stop > limits.header_bytes_max:
        detail = f"the request head is longer than {limits.header_bytes_max} bytes"
        found.append((limits.header_bytes_max + 1, RequestRefusedError(431, detail)))
    return min(found, key=lambda item: item[0])[1] if found else None


def _line_fault(line: bytes | bytearray) -> RequestRefusedError | None:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        return RequestRefusedError(400, "the request line is not 'METHOD target HTTP/1.1'")
    if match[3] != b"1" or match[4] not in (b"0", b"1"):
        return RequestRefusedError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    if match[1] not in _METHODS:
        return RequestRefusedError(501, "this method is not implemented here")
    return None


class HeadParser:
    """Turns complete heads into :class:`RequestHead`; one per connection. ``parse`` raises
    :class:`RequestRefusedError`."""

    __slots__ = ("_headers", "_limits", "_llhttp", "_target")

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._headers: list[Header] = []
        self._target = b""
        self._llhttp: httptools.HttpRequestParser | None = None

    # llhttp's callbacks. Names and values arrive whole because the head is fed whole.
    def on_url(self, url: bytes) -> None:
        """Called by llhttp with (a piece of) the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp with one header."""
        self._headers.append((name.lower(), value))

    def parse(self, head: bytes) -> RequestHead:
        """Check and parse ``head``: the bytes from the request line through the empty line, exactly."""
        limits = self._limits
        lines = head.count(b"\r\n")
        if (
            len(head) > limits.header_bytes_max
            or head.count(b"\r") != lines
            or head.count(b"\n") != lines
            or head.translate(None, _GOOD_BYTES)
            or b"\r\n " in head
            or b"\r\n\t" in head
        ):
            raise frame_fault(head, limits) or RequestRefusedError(400, "the request head is malformed")
        line = head[: head.find(b"\r\n")]
        match = _REQUEST_LINE.fullmatch(line)
        if match is None or len(line) > limits.request_line_bytes_max:
            raise frame_fault(head, limits) or RequestRefusedError(400, "the request line is malformed")
        method, target, major, minor = match.groups()
        if major != b"1" or minor not in b"01" or method not in _METHODS:
            raise frame_fault(head, limits) or RequestRefusedError(400, "the request line is malformed")
        if lines - 2 > limits.header_count_max:
            raise RequestRefusedError(431, f"the request has more than {limits.header_count_max} headers")

        llhttp = self._llhttp
        if llhttp is None:
            llhttp = httptools.HttpRequestParser(self)
        headers: list[Header] = []
        self._headers = headers
        self._target = b""
        upgrade = False
        try:
            llhttp.feed_data(head)
        except httptools.HttpParserUpgrade:
            upgrade = True
        except httptools.HttpParserError as error:
            self._llhttp = None
            raise _llhttp_fault(head) from error
        if self._target != target or len(headers) != lines - 2:
            # Two readings of one head: whichever is right, it is not a head to act on.
            self._llhttp = None
            raise RequestRefusedError(400, "the request head is ambiguous")

        request = RequestHead(method, target, b"", headers, minor == b"1")
        _apply_headers(request, limits)
        _apply_target(request)
        # llhttp waits for a body, or refuses more input after close or upgrade: then the next head gets a
        # new one.
        clean = request.keep_alive and not upgrade and not request.has_body
        self._llhttp = llhttp if clean else None
        return request


def _llhttp_fault(head: bytes) -> RequestRefusedError:
    """llhttp said no: tell a coding we do not know (501, RFC 9112 6.1) from plain bad framing (400)."""
    codings = re.findall(rb"(?i)\r\ntransfer-encoding:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", head)
    if (
        len(codings) == 1
        and re.fullmatch(rb"(?i)[a-z0-9-]+([ \t]*,[ \t]*[a-z0-9-]+)*[ \t]*,[ \t]*chunked", codings[0])
        and b"chunked" not in codings[0].lower()[:-7]
        and not re.search(rb"(?i)\r\ncontent-length:", head)
    ):
        return RequestRefusedError(501, "only the chunked transfer coding is implemented here")
    return RequestRefusedError(400, "the request head is malformed")


def _apply_headers(request: RequestHead, limits: HttpLimits) -> None:
    headers = request.headers
    hosts = lengths = 0
    connection = b""
    for index, (name, value) in enumerate(headers):
        if value[-1:] in b" \t" and value:
            value = value.rstrip(b" \t")  # noqa: PLW2901 - llhttp strips the front only
            headers[index] = (name, value)
        if name not in _SPECIAL:
            continue
        if name == b"host":
            hosts += 1
            if hosts > 1 or not _AUTHORITY.fullmatch(value):
                raise RequestRefusedError(400, "the Host header is repeated or malformed")
        elif name == b"content-length":
            lengths += 1
            if lengths > 1 or not _DIGITS.fullmatch(value):
                raise RequestRefusedError(400, "the Content-Length header is repeated or not a plain number")
            request.content_length = int(value)
        elif name == b"transfer-encoding":
            if request.chunked or value.lower() != b"chunked":
                raise _llhttp_fault(b"\r\n" + b"".join(b"%s: %s\r\n" % pair for pair in headers))
            request.chunked = True
        elif name == b"connection":
            connection = connection + b"," + value if connection else value
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise RequestRefusedError(417, "the only expectation met here is 100-continue")
            request.expect_continue = request.http_1_1
        elif name == b"upgrade":
            request.upgrade = value.lower()
    if connection:
        _apply_connection(request, connection)
    if request.chunked and (lengths or not request.http_1_1):
        raise RequestRefusedError(400, "Transfer-Encoding is combined with Content-Length or with HTTP/1.0")
    if hosts == 0 and request.http_1_1:
        raise RequestRefusedError(400, "the Host header is missing")
    if request.content_length > limits.body_bytes_max:
        raise RequestRefusedError(413, f"the request body is larger than {limits.body_bytes_max} bytes")


def _apply_connection(request: RequestHead, value: bytes) -> None:
    options = value.lower()
    if options == b"keep-alive":
        request.keep_alive = True
    elif options == b"close":
        request.keep_alive = False
    else:
        named = {option.strip(b" \t") for option in options.split(b",")}
        if b"close" in named:
            request.keep_alive = False
        elif b"keep-alive" in named:
            request.keep_alive = True


def _apply_target(request: RequestHead) -> None:
    target = request.path
    if target[:1] != b"/":
        if target == b"*" and request.method == b"OPTIONS":
            return
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise RequestRefusedError(400, "the request target is neither a path nor a URL")
        hosts = [value for name, value in request.headers if name == b"host"]
        if not _AUTHORITY.fullmatch(absolute[1]) or (hosts and hosts[0].lower() != absolute[1].lower()):
            # RFC 9112 3.2.2 says to prefer the target; a client must send both alike, so a difference is a
            # trick.
            raise RequestRefusedError(400, "the request target and the Host header name different hosts")
        target = absolute[2]
        if target[:1] != b"/":
            target = b"/" + target
    if b"#" in target or (b"%" in target and _BAD_PERCENT.search(target)):
        raise RequestRefusedError(400, "the request target holds a fragment or a broken percent-escape")
    path, mark, query = target.partition(b"?")
    request.path = path
    if mark:
        request.query = query


def wants_websocket(head: RequestHead) -> bool:
    """Whether the head asks to become a web socket (RFC 6455 4.1). ``RequestRefusedError``: wrongly."""
    if head.upgrade != b"websocket":
        return False
    connection = b",".join(value for name, value in head.headers if name == b"connection").lower()
    if b"upgrade" not in {option.strip(b" \t") for option in connection.split(b",")}:
        return False
    if head.method != b"GET" or not head.http_1_1 or head.has_body:
        raise RequestRefusedError(400, "a WebSocket begins with a GET over HTTP/1.1 without a body")
    versions = [value for name, value in head.headers if name == b"sec-websocket-version"]
    if versions != [b"13"]:
        wanted = (b"sec-websocket-version", b"13")
        raise RequestRefusedError(426, "WebSocket version 13 is spoken here", (wanted,))
    return True
