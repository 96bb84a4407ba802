"""ASGI ``websocket`` over wsproto (RFC 6455): one session on one connection.

Unlike requests, a web socket has tasks of its own: pings must be answered and a close noticed while the
application only sends. What has arrived waits in a queue bounded in bytes; when it is full the socket is not
read.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import TYPE_CHECKING, Any

import structlog
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from .asgi import AsgiApp, Message, route_of, websocket_scope
from .errors import ClientGoneError, RequestRefusedError, ResponseError, without_values
from .heads import RequestHead
from .responses import ResponseHead, head_bytes, problem_response

if TYPE_CHECKING:
    from .connection import Connection

_READ = 64 * 1024
NORMAL, GOING_AWAY, PROTOCOL_ERROR, NO_STATUS, ABNORMAL, TOO_BIG, SERVER_ERROR = (
    1000, 1001, 1002, 1005, 1006, 1009, 1011,
)  # fmt: skip

log = structlog.get_logger(__name__)


class WebSocketSession:
    """The two callables that a web socket's application gets, and the tasks beside it."""

    def __init__(self, connection: Connection, head: RequestHead) -> None:
        self._connection = connection
        self._limits = connection.limits
        self._ws = WSConnection(ConnectionType.SERVER)
        self._queue: deque[tuple[int, Message]] = deque()
        self._queued_bytes = 0
        self._changed = trio.Event()
        self._send_lock = trio.Lock()
        self._heard = False
        self._accepted = False
        self._denial: ResponseHead | None = None
        self._denied = False
        self._close_sent = False
        self._disconnect: Message | None = None
        self._ended = False
        self._nursery: trio.Nursery | None = None
        try:
            path = head.path + (b"?" + head.query if head.query else b"")
            self._ws.initiate_upgrade_connection(head.headers, path.decode("ascii"))
            request = next(iter(self._ws.events()))
        except (RemoteProtocolError, StopIteration) as error:
            raise RequestRefusedError(400, "the WebSocket handshake is malformed") from error
        assert isinstance(request, Request)
        self._scope = websocket_scope(head, connection.peer, list(request.subprotocols))
        self._queue.append((0, {"type": "websocket.connect"}))

    async def run(self, app: AsgiApp) -> bool:
        """Run the application and the closing handshake. Whether it all ended in good order."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await app(self._scope, self.receive, self.send)
                code = NORMAL
            except Exception as error:  # noqa: BLE001 - the boundary, as for requests
                code = SERVER_ERROR
                if not isinstance(error, ClientGoneError):
                    self._log_failure(error)
            await self._finish(code)
            nursery.cancel_scope.cancel()
        if self._disconnect is None or self._disconnect["code"] == ABNORMAL:
            return not self._accepted
        await self._connection.linger()
        return True

    async def go_away(self) -> None:
        """Tell both sides that the server is stopping."""
        if self._accepted and self._disconnect is None:
            self._set_disconnect(GOING_AWAY)
            await self._close(GOING_AWAY, "the server is stopping")

    # -- ASGI

    async def receive(self) -> Message:
        """The next message; once the peer is gone, always ``websocket.disconnect``."""
        while not self._queue:
            if self._disconnect is not None:
                await trio.lowlevel.checkpoint()
                return self._disconnect
            await self._changed.wait()
        size, message = self._queue.popleft()
        self._queued_bytes -= size
        self._notify()
        return message

    async def send(self, message: Message) -> None:
        """ASGI ``send``. Raises :class:`ClientGoneError` after a disconnect, :class:`ResponseError` on
        misuse."""
        kind = message["type"]
        if self._disconnect is not None:
            raise ClientGoneError("the web socket is closed")
        try:
            if kind == "websocket.accept":
                await self._accept(message)
            elif kind == "websocket.send" and self._accepted:
                text = message.get("text")
                event: Event = (
                    TextMessage(data=text) if text is not None else BytesMessage(data=message["bytes"])
                )
                await self._send_event(event)
            elif kind == "websocket.close" and self._accepted:
                await self._close(message.get("code", NORMAL), message.get("reason") or None)
            elif kind == "websocket.close" and not self._denied:
                await self._deny(problem_response(403, "the web socket was refused", close=True))
            elif kind == "websocket.http.response.start" and not self._accepted and self._denial is None:
                self._denial = ResponseHead(message["status"], message.get("headers", ()))
            elif kind == "websocket.http.response.body" and self._denial is not None:
                await self._deny_piece(message)
            else:
                raise ResponseError("the application sent a web socket message out of turn")
        except LocalProtocolError as error:
            if self._accepted and self._ws.state is not ConnectionState.OPEN:
                raise ClientGoneError("the web socket is closing") from error
            raise ResponseError("the application sent a web socket message that RFC 6455 forbids") from error

    async def _accept(self, message: Message) -> None:
        if self._accepted or self._denied or self._denial is not None:
            raise ResponseError("the web socket was already answered")
        headers = message.get("headers") or []
        ResponseHead(200, headers)  # refuses line ends
        self._accepted = True
        await self._send_event(
            AcceptConnection(subprotocol=message.get("subprotocol"), extra_headers=list(headers))
        )
        assert self._nursery is not None
        self._nursery.start_soon(self._read)
        self._nursery.start_soon(self._ping)
        if self._connection.draining:
            self._nursery.start_soon(self.go_away)

    async def _deny(self, data: bytes) -> None:
        self._denied = True
        await self._connection.transport.send([data])

    async def _deny_piece(self, message: Message) -> None:
        """A refusal with the application's own response; delimited by the close that follows it."""
        assert self._denial is not None
        body = message.get("body", b"")
        if self._denied:
            await self._connection.transport.send([body])
            return
        length = self._denial.content_length
        extra = b"connection: close\r\n" + (b"content-length: %d\r\n" % length if length is not None else b"")
        self._denied = True
        await self._connection.transport.send([head_bytes(self._denial, extra=extra), body])

    async def _finish(self, code: int) -> None:
        """The application is done: whatever it left open is closed."""
        if not self._accepted:
            if not self._denied and self._disconnect is None:
                await self._deny(problem_response(500, "the server failed", close=True))
            return
        if self._disconnect is None:
            await self._close(code)
        if self._disconnect is not None and self._disconnect["code"] == ABNORMAL:
            return
        with trio.move_on_after(self._limits.websocket_close_s):
            while not self._ended:
                self._queue.clear()
                self._queued_bytes = 0
                self._notify()
                await self._changed.wait()

    # -- beside the application

    async def _read(self) -> None:
        try:
            await self._read_messages()
        finally:
            self._ended = True
            self._notify()

    async def _read_messages(self) -> None:
        connection = self._connection
        parts: list[Any] = []
        size = 0
        data = connection.pending
        connection.pending = b""
        while True:
            if not data:
                while self._queued_bytes >= self._limits.websocket_queue_bytes_max:
                    await self._changed.wait()
                data = await connection.transport.receive(_READ)
                if not data:
                    connection.peer_gone = True
                    self._set_disconnect(ABNORMAL)
                    return
            self._heard = True
            try:
                self._ws.receive_data(data)
                data = b""
                for event in self._ws.events():
                    if isinstance(event, (TextMessage, BytesMessage)):
                        parts.append(event.data)
                        size += len(event.data.encode()) if isinstance(event.data, str) else len(event.data)
                        if size > self._limits.websocket_message_bytes_max:
                            await self._close(TOO_BIG, "the message is too big")
                            self._set_disconnect(TOO_BIG)
                            return
                        if event.message_finished:
                            self._put(parts, size)
                            parts, size = [], 0
                    elif isinstance(event, Ping):
                        await self._send_event(event.response())
                    elif isinstance(event, CloseConnection):
                        # First, so that a send of the application's in the meantime is told "gone".
                        self._set_disconnect(event.code or NO_STATUS, event.reason or "")
                        if not self._close_sent:
                            self._close_sent = True
                            await self._send_event(event.response())
                        return
            except RemoteProtocolError:
                connection.counters.parse_errors += 1
                await self._close(PROTOCOL_ERROR)
                self._set_disconnect(PROTOCOL_ERROR)
                return
            except (ClientGoneError, LocalProtocolError):
                self._set_disconnect(ABNORMAL)
                return

    def _put(self, parts: list[Any], size: int) -> None:
        message: Message = {"type": "websocket.receive"}
        if isinstance(parts[0], str):
            message["text"] = "".join(parts)
        else:
            message["bytes"] = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
        cost = size + 64  # empty messages must not be free
        self._queue.append((cost, message))
        self._queued_bytes += cost
        self._notify()

    async def _ping(self) -> None:
        while self._disconnect is None:
            await trio.sleep(self._limits.websocket_ping_s)
            self._heard = False
            try:
                await self._send_event(Ping(payload=b"hounsfield"))
            except (ClientGoneError, LocalProtocolError):
                self._set_disconnect(ABNORMAL)
                return
            await trio.sleep(self._limits.websocket_pong_s)
            # A reader that stands still because the application does is no proof of a dead peer.
            if not self._heard and self._queued_bytes < self._limits.websocket_queue_bytes_max:
                self._connection.counters.timed_out += 1
                self._set_disconnect(ABNORMAL)

    async def _close(self, code: int, reason: str | None = None) -> None:
        if self._close_sent:
            return
        self._close_sent = True
        try:
            await self._send_event(CloseConnection(code=code, reason=reason))
        except (ClientGoneError, LocalProtocolError):
            self._set_disconnect(ABNORMAL)

    async def _send_event(self, event: Event) -> None:
        async with self._send_lock:
            await self._connection.transport.send([self._ws.send(event)])

    def _set_disconnect(self, code: int, reason: str = "") -> None:
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _log_failure(self, error: Exception) -> None:
        self._connection.counters.app_errors += 1
        log.error(
            "web socket failed in the application",
            request_id=secrets.token_hex(8),
            route=route_of(self._scope),
            **without_values(error),
        )
