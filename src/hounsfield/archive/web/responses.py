"""ASGI responses that give buffers to the server as they are, and stream what is not gathered."""

# ruff: noqa: ARG002 - every answer has the same shape, whether it looks at all of it or not

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Final

import trio

from hounsfield.archive.web.conditional import Validators, byte_ranges, content_range
from hounsfield.archive.web.http import Receive, Scope, Send
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.problems import Header, WebError, problem_body, problem_headers
from hounsfield.storage_backends.api import Buffer

PIECES_AHEAD: Final = 2
"""Read and opened while the one before is sent: a thread and the network, both busy."""
AHEAD_BYTES_MIN: Final = 4 << 20
"""One body up to this comes in one piece: there is nothing to be read ahead."""


class BuffersResponse:
    """A whole answer in one message; its buffers are neither joined nor copied."""

    def __init__(self, status: int, headers: Sequence[Header], buffers: Sequence[Buffer] = ()) -> None:
        self.status = status
        self.headers = list(headers)
        self.buffers = buffers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": tuple(self.buffers)})


class StreamResponse:
    """An answer piece by piece, each a few buffers. A failure in the middle cuts the connection.

    ``ahead``: so many pieces are made while earlier ones are being sent. HEAD makes none.
    """

    def __init__(
        self,
        headers: Sequence[Header],
        pieces: AsyncIterator[Sequence[Buffer]],
        *,
        length: int | None = None,
        ahead: int = 0,
        status: int = 200,
    ) -> None:
        self.status = status
        self.ahead = ahead
        self.headers = list(headers)
        self.pieces = pieces
        if length is not None:
            self.headers.append((b"content-length", b"%d" % length))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        if scope["method"] != "HEAD" and self.ahead:
            await self._send_ahead(send)
        elif scope["method"] != "HEAD":
            async with aclosing(self.pieces) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": tuple(piece), "more_body": True})
        else:
            async with aclosing(self.pieces):  # type: ignore[type-var]
                pass
        await send({"type": "http.response.body", "body": b""})

    async def _send_ahead(self, send: Send) -> None:
        give, take = trio.open_memory_channel[Sequence[Buffer]](self.ahead - 1)  # one more is in the making

        async def make() -> None:
            async with give, aclosing(self.pieces) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    try:
                        await give.send(piece)
                    except trio.BrokenResourceError:
                        return  # nobody takes more: why, is what sending raised

        try:
            async with trio.open_nursery() as nursery, take:
                nursery.start_soon(make)
                async for piece in take:
                    await send({"type": "http.response.body", "body": tuple(piece), "more_body": True})
        except BaseExceptionGroup as group:
            raise sole_error(group) from None


def whole_or_range(
    scope: Scope,
    validators: Validators,
    content_type: bytes,
    length: int,
    pieces: Callable[[int, int], AsyncIterator[Sequence[Buffer]]],
) -> StreamResponse:
    """A body of ``length`` bytes, or the ranges of it that the request asks for (206).

    Several ranges come as multipart/byteranges (RFC 9110 14.6). ``pieces`` gives the bytes from the first to
    before the second. ``WebError`` (416).
    """
    lines = [*validators.headers(), (b"accept-ranges", b"bytes")]
    ranges = byte_ranges(scope, validators, length)
    if len(ranges) > 1:
        boundary = new_boundary()
        lines.append((b"content-type", b"multipart/byteranges; boundary=" + boundary))
        heads = [
            part_head(
                boundary, content_type, stop - start, extra=[content_range(start, stop, length)], first=not n
            )
            for n, (start, stop) in enumerate(ranges)
        ]
        size = sum(map(len, heads)) + sum(stop - start for start, stop in ranges) + len(closing(boundary))
        body = _several_ranges(boundary, heads, ranges, pieces)
    else:
        lines.append((b"content-type", content_type))
        start, stop = ranges[0] if ranges else (0, length)
        if ranges:
            lines.append(content_range(start, stop, length))
        size, body = stop - start, pieces(start, stop)
    return StreamResponse(
        lines,
        body,
        length=size,
        ahead=PIECES_AHEAD if size > AHEAD_BYTES_MIN else 0,
        status=206 if ranges else 200,
    )


async def _several_ranges(
    boundary: bytes,
    heads: Sequence[bytes],
    ranges: Sequence[tuple[int, int]],
    pieces: Callable[[int, int], AsyncIterator[Sequence[Buffer]]],
) -> AsyncIterator[Sequence[Buffer]]:
    for head, one in zip(heads, ranges, strict=True):
        yield (head,)
        async with aclosing(pieces(*one)) as stretch:  # type: ignore[type-var]
            async for piece in stretch:
                yield piece
    yield (closing(boundary),)


async def stretch_of(data: Buffer, start: int, stop: int) -> AsyncIterator[Sequence[Buffer]]:
    """The same of what is in memory."""
    yield (memoryview(data)[start:stop],)


async def begun(pieces: AsyncIterator[Sequence[Buffer]]) -> AsyncIterator[Sequence[Buffer]]:
    """The same pieces, of which the first two are there.

    What is wrong with them is raised now, while there can be an answer that says so.
    """
    first: list[Sequence[Buffer]] = []
    with suppress(StopAsyncIteration):
        while len(first) < 2:
            first.append(await anext(pieces))
    return _Begun(first, pieces)


class _Begun:
    def __init__(self, first: list[Sequence[Buffer]], rest: AsyncIterator[Sequence[Buffer]]) -> None:
        self._first = first
        self._rest = rest

    def __aiter__(self) -> _Begun:
        return self

    async def __anext__(self) -> Sequence[Buffer]:
        return self._first.pop(0) if self._first else await anext(self._rest)

    async def aclose(self) -> None:
        async with aclosing(self._rest):  # type: ignore[type-var]
            pass


def unchanged(validators: Validators) -> BuffersResponse:
    """304: what the client has is right."""
    return BuffersResponse(304, validators.headers())


class NoResponse:
    """Nothing: the client is gone, or the server itself answers the body's fault (408, 413)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        return


def sole_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in a nursery's group, or the group."""
    while len(group.exceptions) == 1:
        (inner,) = group.exceptions
        if not isinstance(inner, BaseExceptionGroup):
            return inner
        group = inner
    return group


def json_response(
    body: bytes, media_type: str, *, headers: Iterable[Header] = (), status: int = 200
) -> BuffersResponse:
    """A JSON document."""
    return BuffersResponse(status, [(b"content-type", media_type.encode("ascii")), *headers], (body,))


def problem_response(error: WebError) -> BuffersResponse:
    """The RFC 9457 answer to an error."""
    return BuffersResponse(error.status, problem_headers(error), (problem_body(error.status, error.detail),))
