"""The chunked transfer coding (RFC 9112 7.1), read strictly. No I/O.

llhttp cannot be paused at the end of a message, so it would swallow the next pipelined request; bodies are
framed here instead. Sizes are bare hexadecimal, line ends are CRLF, extensions are skipped up to a limit,
trailers are checked and dropped (merging them into the headers is how trailers smuggle).

::

    chunk-size [;extensions] CRLF  data CRLF  …  0 [;extensions] CRLF  [trailer CRLF]…  CRLF
"""

from __future__ import annotations

import re
from enum import Enum, auto

from .errors import RequestRefusedError
from .limits import HttpLimits

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_BAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")


class _Expect(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    DONE = auto()


class ChunkDecoder:
    """``feed`` bytes, get body bytes; ``done`` once the last trailer's line ended, ``rest`` is the next
    request's."""

    __slots__ = ("_expect", "_left", "_limits", "_line", "_overhead", "_trailers", "body_bytes", "rest")

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._expect = _Expect.SIZE
        self._line = b""
        self._left = 0
        self._overhead = 0
        self._trailers = 0
        self.body_bytes = 0
        self.rest = b""

    @property
    def done(self) -> bool:
        """Whether the body is complete."""
        return self._expect is _Expect.DONE

    def feed(self, data: bytes) -> bytes:
        """The body bytes in ``data``. Raises :class:`RequestRefusedError` on the first byte that is not
        chunked coding."""
        out: list[bytes] = []
        at = 0
        size = len(data)
        while at < size and self._expect is not _Expect.DONE:
            if self._expect is _Expect.DATA:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self.body_bytes += len(piece)
                out.append(piece)
                if self._left == 0:
                    self._expect = _Expect.DATA_END
                continue
            # Everything else is lines. A line may straddle calls: its start waits in _line.
            end = data.find(b"\n", at)
            stop = size if end < 0 else end + 1
            self._line += data[at:stop]
            at = stop
            line = self._line
            if len(line) > self._limits.chunk_line_bytes_max or _BAD.search(line):
                raise RequestRefusedError(400, "a chunk's line is too long or holds a byte that HTTP forbids")
            if self._expect is _Expect.DATA_END and not b"\r\n".startswith(line):
                raise RequestRefusedError(400, "a chunk is longer than its size says")
            if end >= 0:
                self._line = b""
                self._take_line(line[:-2])
        if self._expect is _Expect.DONE:
            self.rest = data[at:]
        return out[0] if len(out) == 1 else b"".join(out)

    def _take_line(self, line: bytes) -> None:
        if self._expect is _Expect.SIZE:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise RequestRefusedError(400, "a chunk's size is not a plain hexadecimal number")
            self._count_overhead(len(line) - len(match[1]))
            self._left = int(match[1], 16)
            if self.body_bytes + self._left > self._limits.body_bytes_max:
                raise RequestRefusedError(
                    413, f"the request body is larger than {self._limits.body_bytes_max} bytes"
                )
            self._expect = _Expect.DATA if self._left else _Expect.TRAILER
        elif self._expect is _Expect.DATA_END:
            self._expect = _Expect.SIZE
        elif not line:
            self._expect = _Expect.DONE
        else:
            self._trailers += 1
            self._count_overhead(len(line))
            if self._trailers > self._limits.trailer_count_max or not _TRAILER.fullmatch(line):
                raise RequestRefusedError(400, "the trailers are malformed or too many")

    def _count_overhead(self, size: int) -> None:
        self._overhead += size
        if self._overhead > self._limits.chunk_overhead_bytes_max:
            raise RequestRefusedError(400, "the chunk extensions and trailers are larger than any real one")
