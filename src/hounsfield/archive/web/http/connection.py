"""One connection: read a head, run the application in this very task, answer, again.

No task, nursery, channel or new timer per request. One cancel scope spans the connection; its deadline is
set only while the connection waits for a request, so it never interrupts the application.
"""

from __future__ import annotations

import secrets
from importlib import import_module
from typing import TYPE_CHECKING

import structlog
import trio

from .asgi import PeerInfo, Scope, http_scope, route_of
from .errors import ClientGoneError, RequestRefusedError, without_values
from .exchange import Exchange
from .heads import HeadParser, RequestHead, frame_fault, wants_websocket
from .records import RequestRecord
from .responses import problem_response
from .transport import SocketTransport, Transport

if TYPE_CHECKING:
    from .server import HttpServer
    from .websocket import WebSocketSession

_HEAD_READ = 16 * 1024
"""Read at once while waiting for a head: nearly every request, and a few pipelined ones."""

_NEVER = float("inf")

log = structlog.get_logger(__name__)


class Connection:
    """A peer and its requests, in order, until one side closes."""

    __slots__ = (
        "_idle_scope",
        "_parser",
        "_requests",
        "_server",
        "counters",
        "idle",
        "idle_since",
        "limits",
        "peer",
        "peer_gone",
        "pending",
        "transport",
        "websocket",
    )

    def __init__(self, server: HttpServer, transport: Transport, peer: PeerInfo) -> None:
        self._server = server
        self.limits = server.limits
        self.counters = server.counters
        self.transport = transport
        self.peer = peer
        self.pending = b""
        """Received and not yet used: the start of what comes next on the wire."""
        self.peer_gone = False
        self.idle = False
        self.idle_since = 0.0
        self.websocket: WebSocketSession | None = None
        self._idle_scope = trio.CancelScope()
        self._parser = HeadParser(self.limits)
        self._requests = 0

    @property
    def draining(self) -> bool:
        """Whether the server wants every connection to end after its present request."""
        return self._server.draining

    def close_if_idle(self) -> bool:
        """Close a connection that waits for a request and has none of its bytes. Whether it was one."""
        if not self.idle or self.transport.has_data():
            return False  # a request is there already: it is answered, with "Connection: close" when draining
        self._idle_scope.cancel()
        return True

    async def run(self) -> None:
        """Serve until the connection ends, and close it."""
        clean = False
        try:
            with self._idle_scope:
                clean = await self._serve()
            if self._idle_scope.cancelled_caught:
                clean = True
                if not self.idle:
                    self.counters.timed_out += 1
                    await self._refuse(RequestRefusedError(408, "the request's head came too slowly"))
        except ClientGoneError:
            pass
        finally:
            await self._close(clean)

    async def _close(self, clean: bool) -> None:
        transport = self.transport
        if isinstance(transport, SocketTransport):
            if clean and not transport.torn:
                transport.close()
            else:
                transport.abort()
        elif clean and not transport.torn:
            await transport.aclose()
        else:
            await transport.aclose_forcefully()

    async def _serve(self) -> bool:
        """The loop. Whether the connection ended in good order."""
        while True:
            try:
                head = await self._next_head()
                if head is None:
                    return True
                if head.upgrade and wants_websocket(head):
                    if self.draining:
                        await self._refuse(RequestRefusedError(503, "the server is stopping"))
                        return True
                    return await self._serve_websocket(head)
                scope = http_scope(head, self.peer)
            except RequestRefusedError as fault:
                self._idle_scope.deadline = _NEVER
                self.counters.parse_errors += 1
                await self._refuse(fault)
                return True
            self._requests += 1
            keep_alive = head.keep_alive and self._requests < self.limits.requests_per_connection_max
            exchange = Exchange(self, head, keep_alive)
            if not await self._run_app(head, scope, exchange):
                return False
            if not exchange.keep_alive:
                if not exchange.request_complete or self.pending:
                    await self.linger()
                return True
            if not exchange.request_complete and not await exchange.discard_body():
                await self.linger()
                return True
            if self.draining:
                return True
            if self.pending:
                await trio.lowlevel.checkpoint()  # a peer that pipelines must not keep the loop to itself

    async def _next_head(self) -> RequestHead | None:
        """The next request's head, ``None`` when the peer closed in between. Raises
        :class:`RequestRefusedError`."""
        limits = self.limits
        scope = self._idle_scope
        data = self.pending
        if not data:
            if self.peer_gone:
                return None
            arrived = self.transport.receive_nowait(_HEAD_READ)
            if arrived is None and self.draining:
                return None
            if arrived is None:
                now = trio.current_time()
                scope.deadline = now + (limits.keep_alive_s if self._requests else limits.first_byte_s)
                self.idle_since = now
                self.idle = True
                arrived = await self.transport.receive(_HEAD_READ)
                self.idle = False
                scope.deadline = _NEVER
            if not arrived:
                return None
            data = arrived
        end = data.find(b"\r\n\r\n")
        if end < 0 or data[:2] == b"\r\n":
            data, end = await self._rest_of_head(data)
            scope.deadline = _NEVER
            if end < 0:
                return None
        end += 4
        if end == len(data):
            self.pending = b""
            return self._parser.parse(data)
        self.pending = data[end:]
        return self._parser.parse(data[:end])

    async def _rest_of_head(self, data: bytes) -> tuple[bytes, int]:
        """Read on until the empty line, within ``header_s`` of the first byte."""
        scope = self._idle_scope
        scope.deadline = trio.current_time() + self.limits.header_s
        got = bytearray(data)
        stripped = False
        searched = 0
        while True:
            if not stripped and len(got) >= 2:
                stripped = True
                if got[:2] == b"\r\n":  # RFC 9112 2.2: one empty line before a request is forgiven
                    del got[:2]
            end = got.find(b"\r\n\r\n", max(0, searched - 3))
            if end >= 0:
                return bytes(got), end
            searched = len(got)
            if stripped and (fault := frame_fault(got, self.limits)):
                raise fault
            more = await self.transport.receive(_HEAD_READ)
            if not more:
                self.peer_gone = True
                if got:
                    raise RequestRefusedError(400, "the request head ended early")
                return b"", -1
            got += more

    async def _run_app(self, head: RequestHead, scope: Scope, exchange: Exchange) -> bool:
        """One request through the application. Whether the connection is still in a known state."""
        server = self._server
        counters = self.counters
        started_at = trio.current_time()
        counters.requests_total += 1
        counters.requests_in_flight += 1
        try:
            try:
                await server.app(scope, exchange.receive, exchange.send)
            except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it is a 500
                await self._app_failed(head, scope, exchange, error)
            if not exchange.complete:
                return await self._app_unfinished(head, scope, exchange)
            return not self.transport.torn
        finally:
            counters.requests_in_flight -= 1
            if server.on_request is not None:
                record = RequestRecord(
                    head.method.decode("ascii"),
                    route_of(scope),
                    exchange.status,
                    exchange.response_bytes,
                    trio.current_time() - started_at,
                )
                try:
                    server.on_request(record)
                except Exception as error:  # noqa: BLE001 - a hook must not end a connection
                    log.error("on_request hook failed", **without_values(error))

    async def _app_failed(
        self, head: RequestHead, scope: Scope, exchange: Exchange, error: Exception
    ) -> None:
        exchange.keep_alive = False
        if exchange.body_fault is not None or self.peer_gone or isinstance(error, ClientGoneError):
            log.debug("request ended: the peer failed it", route=route_of(scope), **without_values(error))
            return
        self.counters.app_errors += 1
        request_id = secrets.token_hex(8)
        log.error(
            "request failed in the application",
            request_id=request_id,
            method=head.method.decode("ascii"),
            route=route_of(scope),
            response_started=exchange.started,
            **without_values(error),
        )
        if not exchange.started:
            await self._answer(head, exchange, 500, "the server failed; its log has this id", request_id)

    async def _app_unfinished(self, head: RequestHead, scope: Scope, exchange: Exchange) -> bool:
        """The application returned (or failed) without completing its response."""
        exchange.keep_alive = False
        if exchange.started:
            return False  # cut: a truncated body must not look whole
        if (fault := exchange.body_fault) is not None:
            self.counters.parse_errors += fault.status != 408
            exchange.status = fault.status
            await self._refuse(fault, method=head.method)
            exchange.complete = True
            return True
        if exchange.complete or self.peer_gone:
            return exchange.complete
        self.counters.app_errors += 1
        request_id = secrets.token_hex(8)
        log.error(
            "the application returned without a response",
            request_id=request_id,
            method=head.method.decode("ascii"),
            route=route_of(scope),
        )
        await self._answer(head, exchange, 500, "the server failed; its log has this id", request_id)
        return True

    async def _answer(
        self, head: RequestHead, exchange: Exchange, status: int, detail: str, request_id: str
    ) -> None:
        exchange.started = exchange.complete = True
        exchange.status = status
        data = problem_response(
            status,
            detail,
            close=True,
            headers=[(b"x-request-id", request_id.encode())],
            instance=f"urn:hounsfield:request:{request_id}",
            body=head.method != b"HEAD",
        )
        await self.transport.send([data])

    async def _refuse(self, fault: RequestRefusedError, *, method: bytes = b"GET") -> None:
        """Answer a fault of the peer and swallow what it still sends, in bounded time."""
        data = problem_response(
            fault.status, fault.detail, close=True, headers=fault.headers, body=method != b"HEAD"
        )
        await self.transport.send([data])
        await self.linger()

    async def linger(self) -> None:
        """Close our half and read on a little: closing with bytes unread sends a reset that overtakes the
        answer."""
        left = self.limits.body_unread_max
        with trio.move_on_after(self.limits.linger_s):
            await self.transport.send_eof()
            while left > 0 and (data := await self.transport.receive(min(left, _HEAD_READ * 4))):
                left -= len(data)

    async def _serve_websocket(self, head: RequestHead) -> bool:
        # Only now: wsproto takes 25 ms of every worker's start, and few of them ever see a web socket. On a
        # thread, because nobody waits for an import.
        module = await trio.to_thread.run_sync(import_module, f"{__package__}.websocket")
        session: WebSocketSession = module.WebSocketSession(self, head)  # raises when the handshake is wrong
        self.websocket = session
        self.counters.websockets_open += 1
        try:
            return await session.run(self._server.app)
        finally:
            self.websocket = None
            self.counters.websockets_open -= 1
