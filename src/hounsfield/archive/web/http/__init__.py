"""Our HTTP/1.1 and WebSocket server: runs an ASGI 3 application on trio. See ``docs/decisions/0003-own-
http-server.md``."""

from __future__ import annotations

from .asgi import GATHER, AsgiApp, Message, Receive, Scope, Send
from .errors import (
    ClientGoneError,
    HttpServerError,
    LifespanError,
    RequestRefusedError,
    ResponseError,
    TlsConfigError,
)
from .limits import HttpLimits
from .records import HttpStatistics, RequestRecord
from .server import AcceptGate, HttpServer
from .tls import server_context

__all__ = [
    "GATHER",
    "AcceptGate",
    "AsgiApp",
    "ClientGoneError",
    "HttpLimits",
    "HttpServer",
    "HttpServerError",
    "HttpStatistics",
    "LifespanError",
    "Message",
    "Receive",
    "RequestRecord",
    "RequestRefusedError",
    "ResponseError",
    "Scope",
    "Send",
    "TlsConfigError",
    "server_context",
]
