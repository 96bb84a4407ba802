"""One request and its response: ASGI's ``receive`` and ``send`` on a connection's bytes.

The application runs in the connection's own task. The socket is read only inside ``receive``, so an
application that does not read is back-pressure by itself; the price is that a client's going away shows in
``receive`` after the body's end, or in a write that fails, and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from .asgi import Message
from .chunks import ChunkDecoder
from .errors import ClientGoneError, RequestRefusedError, ResponseError
from .heads import RequestHead
from .responses import CONTINUE, ResponseHead, head_bytes
from .transport import Buffer

if TYPE_CHECKING:
    from .connection import Connection

_BODY_READ = 256 * 1024
"""Read at once of a body: few wake-ups for bulk, little memory when a thousand peers send."""

_DISCONNECT: Message = {"type": "http.disconnect"}


class Exchange:
    """The two callables that one request's application gets, and what the connection asks afterwards."""

    __slots__ = (
        "_chunks",
        "_connection",
        "_continue_due",
        "_disconnect_scope",
        "_head",
        "_left",
        "_no_body",
        "_response",
        "_response_chunked",
        "_response_left",
        "_waited",
        "body_bytes",
        "body_fault",
        "complete",
        "keep_alive",
        "received",
        "response_bytes",
        "started",
        "status",
    )

    def __init__(self, connection: Connection, head: RequestHead, keep_alive: bool) -> None:
        self._connection = connection
        self._head = head
        self._chunks = ChunkDecoder(connection.limits) if head.chunked else None
        self._left = head.content_length
        self._continue_due = head.expect_continue and head.has_body
        self._waited = 0.0
        self._disconnect_scope: trio.CancelScope | None = None
        self._response: ResponseHead | None = None
        self._response_left = -1
        self._response_chunked = False
        self._no_body = False
        self.received = False
        self.body_bytes = 0
        self.body_fault: RequestRefusedError | None = None
        self.keep_alive = keep_alive
        self.started = False
        self.complete = False
        self.status = 0
        self.response_bytes = 0

    # -- request body

    @property
    def request_complete(self) -> bool:
        """Whether the whole request body was taken off the connection."""
        return self._chunks.done if self._chunks is not None else self._left == 0

    async def receive(self) -> Message:
        """ASGI ``receive``: the body's next piece; after its end, wait for the client to go."""
        if self.body_fault is not None:
            return _DISCONNECT
        if not self.request_complete:
            try:
                body = await self.read_body()
            except ClientGoneError:
                self._connection.peer_gone = True
                self.keep_alive = False
                return _DISCONNECT
            except RequestRefusedError as fault:
                self.body_fault = fault
                self.keep_alive = False
                return _DISCONNECT
            done = self.request_complete
            self.received = done
            return {"type": "http.request", "body": body, "more_body": not done}
        if not self.received:
            self.received = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._wait_for_disconnect()
        return _DISCONNECT

    async def read_body(self) -> bytes:
        """The next bytes of the body, at least one unless it ends. Raises :class:`RequestRefusedError`
        (400, 408, 413)."""
        connection = self._connection
        chunks = self._chunks
        while True:
            data = connection.pending
            if data:
                connection.pending = b""
            else:
                if self._continue_due:
                    self._continue_due = False
                    if not self.started:
                        await connection.transport.send([CONTINUE])
                size = _BODY_READ if chunks is not None else min(self._left, _BODY_READ)
                arrived = connection.transport.receive_nowait(size)
                data = await self._wait_for_body(size) if arrived is None else arrived
                if not data:
                    connection.peer_gone = True
                    raise RequestRefusedError(400, "the request body ended early")
            self._continue_due = False
            if chunks is None:
                body = data[: self._left]
                if len(data) > self._left:
                    connection.pending = data[self._left :]
                self._left -= len(body)
                self.body_bytes += len(body)
                return body
            body = chunks.feed(data)
            connection.pending = chunks.rest
            self.body_bytes = chunks.body_bytes
            if body or chunks.done:
                return body

    async def _wait_for_body(self, size: int) -> bytes:
        limits = self._connection.limits
        now = trio.current_time()
        allowed = limits.rate_grace_s + self.body_bytes / limits.body_rate_min - self._waited
        with trio.CancelScope(deadline=now + min(limits.body_idle_s, allowed)) as scope:
            data = await self._connection.transport.receive(size)
        if scope.cancelled_caught:
            self._connection.counters.timed_out += 1
            raise RequestRefusedError(408, "the request body came too slowly")
        self._waited += trio.current_time() - now
        return data

    async def discard_body(self) -> bool:
        """Take what is left of the body off the connection, up to the limit. Whether it could be done."""
        limit = self.body_bytes + self._connection.limits.body_unread_max
        if self.body_fault is not None or (self._chunks is None and self._left > limit - self.body_bytes):
            return False
        try:
            while not self.request_complete:
                if self.body_bytes > limit:
                    return False
                await self.read_body()
        except (RequestRefusedError, ClientGoneError):
            return False
        return True

    async def _wait_for_disconnect(self) -> None:
        connection = self._connection
        while not self.complete and not connection.peer_gone:
            room = connection.limits.pipelined_bytes_max - len(connection.pending)
            data = connection.transport.receive_nowait(room) if room > 0 else None
            if data is None:
                with trio.CancelScope() as scope:
                    self._disconnect_scope = scope
                    try:
                        if room <= 0:
                            await trio.sleep_forever()
                        data = await connection.transport.receive(room)
                    finally:
                        self._disconnect_scope = None
            if data:
                connection.pending += data
            elif data is not None:
                connection.peer_gone = True

    # -- response

    async def send(self, message: Message) -> None:
        """ASGI ``send``. Raises :class:`ClientGoneError` (an ``OSError``), :class:`ResponseError` on misuse.

        A buffer given as body may be reused once this returns.
        """
        kind = message["type"]
        if kind == "http.response.start":
            if self.started:  # until then what fails may still be answered as such: no byte has gone
                raise ResponseError("http.response.start was sent twice")
            self._response = ResponseHead(message["status"], message.get("headers", ()))
            return
        if kind != "http.response.body":
            raise ResponseError("the application sent a message that is not part of an HTTP response")
        if self._response is None or self.complete:
            raise ResponseError("http.response.body came before http.response.start or after the last body")
        body = message.get("body", b"")
        parts: list[Buffer] = list(body) if isinstance(body, (list, tuple)) else [body]
        size = 0
        for index, part in enumerate(parts):
            if isinstance(part, memoryview) and part.itemsize != 1:
                parts[index] = part.cast("B")
            size += len(parts[index])
        last = not message.get("more_body", False)
        head = b"" if self.started else self._begin(self._response, size, last)
        if self._no_body or not size:
            parts = []
            size = 0 if self._no_body else size
        elif self._response_chunked:
            parts.insert(0, b"%x\r\n" % size)
            parts.append(b"\r\n")
        if self._response_left >= 0:
            if size > self._response_left or (last and size < self._response_left):
                raise ResponseError("the response's body is longer or shorter than its Content-Length")
            self._response_left -= size
        if last and self._response_chunked:
            parts.append(b"0\r\n\r\n")
        if head:
            parts.insert(0, head)
            self.started = True
        if last:
            self.complete = True
            if self._disconnect_scope is not None:
                self._disconnect_scope.cancel()
        self.response_bytes += size
        if parts:
            await self._connection.transport.send(parts)

    def _begin(self, response: ResponseHead, size: int, last: bool) -> bytes:
        """Choose the framing (RFC 9112 6.3) and write the head."""
        self.status = status = response.status
        length = response.content_length
        head_request = self._head.method == b"HEAD"
        framing = b""
        if head_request or status in (204, 304):
            self._no_body = True
            if head_request and length is None and last and size:
                length = size
            if status == 204:
                length = None
        elif length is not None:
            self._response_left = length
        elif last:
            length = size
        elif self._head.http_1_1:
            self._response_chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self.keep_alive = False
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        if self.keep_alive and (response.close or self._connection.draining or self._unread_is_too_much()):
            self.keep_alive = False
        if not self.keep_alive:
            framing += b"connection: close\r\n"
        elif not self._head.http_1_1:
            framing += b"connection: keep-alive\r\n"
        return head_bytes(response, extra=framing)

    def _unread_is_too_much(self) -> bool:
        """Whether the connection cannot outlive this response because of the body that was not read.

        A client that waits for 100 Continue and gets a final answer instead may or may not send its body
        (RFC 9110 10.1.1): nobody can tell where the next request begins.
        """
        return self._continue_due or self._left > self._connection.limits.body_unread_max
