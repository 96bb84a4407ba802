"""multipart/related (RFC 2046 5.1, RFC 2387), read piece by piece and written without joining.

Reading is sans-I/O: ``feed`` takes whatever arrived and returns events; any slicing of the same bytes gives
the same parts. No more is held back than a boundary's length, or one part's header up to its limit.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Buffer = bytes | bytearray | memoryview

HEADER_BYTES_MAX: Final = 8192
PREAMBLE_BYTES_MAX: Final = 65_536
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", re.ASCII)
"""70 characters at most (RFC 2046 5.1.1)."""
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PADDING_MAX: Final = 64
"""White space after a boundary, which transports may add (RFC 2046 5.1.1)."""


class MultipartError(ValueError):
    """The body is not the multipart message that its Content-Type announces."""

    retry = False


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part starts. Header names are in lower case."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """Some of the part's bytes: a view that is valid until the next ``feed``."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is complete."""


Event = PartBegin | PartData | PartEnd

_PREAMBLE, _AFTER_BOUNDARY, _HEADER, _BODY_START, _BODY, _EPILOGUE = range(6)


class MultipartReader:
    """Reads one multipart body. ``feed`` what arrives, then ``finish``."""

    def __init__(
        self,
        boundary: str,
        *,
        header_bytes_max: int = HEADER_BYTES_MAX,
        preamble_bytes_max: int = PREAMBLE_BYTES_MAX,
    ) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise MultipartError(
                "the boundary parameter is missing, too long, or has characters it may not have"
            )
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._held = bytearray(b"\r\n")  # the first boundary may stand at the very start
        self._state = _PREAMBLE
        self._fault: MultipartError | None = None
        self._skipped = 0
        self._header_bytes_max = header_bytes_max
        self._preamble_bytes_max = preamble_bytes_max

    @property
    def complete(self) -> bool:
        """Whether the closing boundary has come; what follows it is ignored."""
        return self._state == _EPILOGUE

    def feed(self, data: Buffer) -> list[Event]:
        """The events that these bytes complete. ``MultipartError`` when they break the message.

        Events from before a fault are returned first; the fault is then raised by the next call.
        """
        if self._fault is not None:
            raise self._fault
        events: list[Event] = []
        if self._state == _EPILOGUE:
            return events
        if self._held:
            self._held += data
            window = bytes(self._held)
            self._held.clear()
        else:
            window = bytes(data)
        view = memoryview(window)
        at = 0
        try:
            while True:
                step = self._step(window, view, at, events)
                if step < 0:
                    break
                at = step
        except MultipartError as error:
            self._fault = error
            if not events:
                raise
        return events

    def finish(self) -> None:
        """Say that the body has ended. ``MultipartError`` unless the closing boundary was read."""
        if self._fault is not None:
            raise self._fault
        if not self.complete:
            raise MultipartError("the multipart body ends without its closing boundary")

    def _step(self, window: bytes, view: memoryview, at: int, events: list[Event]) -> int:
        """Go on from ``at``; where to go on next, or -1 when more bytes are needed."""
        state = self._state
        if state in (_PREAMBLE, _BODY):
            return self._to_delimiter(window, view, at, events)
        if state == _AFTER_BOUNDARY:
            return self._after_boundary(window, at)
        if state == _HEADER:
            return self._header(window, at, events)
        if state == _BODY_START:
            return self._body_start(window, at, events)
        return -1

    def _to_delimiter(self, window: bytes, view: memoryview, at: int, events: list[Event]) -> int:
        found = window.find(self._delimiter, at)
        in_body = self._state == _BODY
        end = found
        if found < 0:
            # What may be the delimiter's beginning is held back: from the last CR that could start it.
            end = max(at, len(window) - len(self._delimiter) + 1)
            hold = window.find(b"\r", end)
            end = hold if hold >= 0 else len(window)
        if in_body:
            if end > at:
                events.append(PartData(view[at:end]))
        else:
            self._skipped += end - at
            if self._skipped > self._preamble_bytes_max:
                raise MultipartError(
                    "the multipart body's first boundary does not come; check the boundary parameter"
                )
        if found < 0:
            self._held += view[end:]
            return -1
        if in_body:
            events.append(PartEnd())
        self._state = _AFTER_BOUNDARY
        return found + len(self._delimiter)

    def _after_boundary(self, window: bytes, at: int) -> int:
        """After a boundary: ``--`` closes, else white space and a line end."""
        if window[at : at + 2] == b"--":
            self._state = _EPILOGUE
            return -1
        end = window.find(b"\r\n", at, at + _PADDING_MAX + 2)
        if end < 0:
            rest = window[at : at + _PADDING_MAX + 2]
            if len(rest) > _PADDING_MAX + 1 or rest.strip(b" \t\r-"):
                raise MultipartError("a multipart boundary is followed by neither a line end nor two hyphens")
            self._held += window[at:]
            return -1
        if window[at:end].strip(b" \t"):
            raise MultipartError("a multipart boundary is followed by neither a line end nor two hyphens")
        self._state = _HEADER
        return end  # the line end is kept: it lets a header without fields end at once

    def _header(self, window: bytes, at: int, events: list[Event]) -> int:
        end = window.find(b"\r\n\r\n", at, at + self._header_bytes_max + 4)
        if end < 0:
            if len(window) - at > self._header_bytes_max + 3:
                raise MultipartError("a part's header is too long")
            self._held += window[at:]
            return -1
        events.append(PartBegin(_fields(window[at:end])))
        self._state = _BODY_START
        return end + 2

    def _body_start(self, window: bytes, at: int, events: list[Event]) -> int:
        """After a header's last field: the empty line, unless that is the next delimiter's line end."""
        if window.startswith(self._delimiter, at):
            events.append(PartEnd())
            self._state = _AFTER_BOUNDARY
            return at + len(self._delimiter)
        if self._delimiter.startswith(window[at:]):
            self._held += window[at:]
            return -1
        self._state = _BODY
        return at + 2


def _fields(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in re.sub(rb"\r\n[ \t]+", b" ", block).split(b"\r\n"):
        if not line:
            continue
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise MultipartError("a part's header has a line that is not a field")
        headers.setdefault(name.decode("ascii").lower(), value.decode("latin-1").strip(" \t"))
    return headers


def new_boundary() -> bytes:
    """A boundary that no content holds by chance or by design."""
    return secrets.token_hex(16).encode("ascii")


def part_head(
    boundary: bytes,
    content_type: bytes,
    length: int | None,
    location: bytes = b"",
    *,
    first: bool = False,
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """The boundary and header of one part; each but the first ends the part before it.

    ``length`` None: not known yet. ``extra``: further lines.
    """
    return b"%b--%b\r\nContent-Type: %b\r\n%b%b%b\r\n" % (
        b"" if first else b"\r\n",
        boundary,
        content_type,
        b"" if length is None else b"Content-Length: %d\r\n" % length,
        b"Content-Location: %b\r\n" % location if location else b"",
        b"".join([b"%b: %b\r\n" % line for line in extra]) if extra else b"",
    )


def closing(boundary: bytes) -> bytes:
    """The end of the last part and of the body."""
    return b"\r\n--%b--\r\n" % boundary
