"""ASGI 3: scopes for requests and web sockets, and the lifespan protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
import trio

from .errors import LifespanError, RequestRefusedError, without_values
from .heads import RequestHead

log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

ASGI_HTTP = {"version": "3.0", "spec_version": "2.4"}
"""2.4: ``send`` raises an ``OSError`` once the client is gone, so applications need not listen for it."""

GATHER = "hounsfield.gather"
"""Scope extension: ``body`` may also be a list or tuple of buffers, sent in order without being joined."""


class PeerInfo:
    """What is the same for every request of a connection."""

    __slots__ = ("client", "extensions", "root_path", "scheme", "server", "state", "websocket_extensions")

    def __init__(
        self,
        *,
        client: tuple[str, int] | None = None,
        server: tuple[str, int | None] | None = None,
        tls: dict[str, Any] | None = None,
        state: dict[str, Any] | None = None,
        root_path: str = "",
    ) -> None:
        self.client = client
        self.server = server
        self.scheme = "http" if tls is None else "https"
        self.state = state or {}
        self.root_path = root_path
        self.extensions: dict[str, Any] = {GATHER: {}}
        self.websocket_extensions: dict[str, Any] = {"websocket.http.response": {}}
        if tls is not None:
            self.extensions["tls"] = tls
            self.websocket_extensions["tls"] = tls


def decoded_path(raw: bytes) -> str:
    """The percent-decoded path as text. Raises :class:`RequestRefusedError` when it is not UTF-8 or holds
    a NUL."""
    if b"%" not in raw:
        return raw.decode("ascii")
    try:
        path = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        path = "\0"
    if "\0" in path:
        raise RequestRefusedError(400, "the request path is not UTF-8 text")
    return path


def http_scope(head: RequestHead, peer: PeerInfo) -> Scope:
    """The scope of one request."""
    scope: Scope = {
        "type": "http",
        "asgi": ASGI_HTTP,
        "http_version": "1.1" if head.http_1_1 else "1.0",
        "method": head.method.decode("ascii"),
        "scheme": peer.scheme,
        "path": decoded_path(head.path),
        "raw_path": head.path,
        "query_string": head.query,
        "root_path": peer.root_path,
        "headers": head.headers,
        "client": peer.client,
        "server": peer.server,
        "extensions": peer.extensions,
    }
    if peer.state:
        scope["state"] = peer.state.copy()
    return scope


def websocket_scope(head: RequestHead, peer: PeerInfo, subprotocols: list[str]) -> Scope:
    """The scope of one web socket."""
    scope = http_scope(head, peer)
    del scope["method"]
    scope["type"] = "websocket"
    scope["scheme"] = "ws" if peer.scheme == "http" else "wss"
    scope["subprotocols"] = subprotocols
    scope["extensions"] = peer.websocket_extensions
    return scope


def route_of(scope: Scope) -> str | None:
    """The matched route's pattern, as Starlette's router leaves it in the scope; never the path itself."""
    route = scope.get("route")
    if route is None or isinstance(route, str):
        return route
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else None


@asynccontextmanager
async def lifespan(app: AsgiApp, timeout_s: float) -> AsyncIterator[dict[str, Any]]:
    """Start the application, yield its state, and stop it however the body ends.

    An application that raises on a lifespan scope before its first message does not know the protocol: it is
    served without. Raises :class:`LifespanError` when it says that it failed, or takes longer than
    ``timeout_s``.
    """
    state: dict[str, Any] = {}
    to_app, from_server = trio.open_memory_channel[Message](2)
    started, stopped = trio.Event(), trio.Event()
    outcome: set[str] = set()
    failure: list[Exception] = []

    async def send(message: Message) -> None:
        kind = message["type"]
        outcome.add(kind)
        (stopped if "shutdown" in kind else started).set()

    async def run() -> None:
        try:
            await app({"type": "lifespan", "asgi": ASGI_HTTP, "state": state}, from_server.receive, send)
        except Exception as error:  # noqa: BLE001 - judged below
            failure.append(error)
        finally:
            started.set()
            stopped.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        to_app.send_nowait({"type": "lifespan.startup"})
        with trio.move_on_after(timeout_s) as scope:
            await started.wait()
        refusal = None
        if scope.cancelled_caught:
            refusal = f"the application did not start within {timeout_s:g} s"
        elif "lifespan.startup.failed" in outcome:
            refusal = "the application says that its start failed; its own log says why"
        elif failure and from_server.statistics().current_buffer_used == 0:
            refusal = f"the application raised {type(failure[0]).__name__} while starting"
        if refusal is not None:
            nursery.cancel_scope.cancel()
        else:
            try:
                yield state
            finally:
                with trio.CancelScope(deadline=trio.current_time() + timeout_s, shield=True):
                    to_app.send_nowait({"type": "lifespan.shutdown"})
                    await stopped.wait()
                nursery.cancel_scope.cancel()
    if refusal is None and failure and "lifespan.startup.complete" in outcome:
        log.error("the application's lifespan ended with an error", **without_values(failure[0]))
    if refusal is not None:
        raise LifespanError(refusal) from (failure[0] if failure else None)
