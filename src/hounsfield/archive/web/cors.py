"""Cross-origin requests from configured origins (WHATWG Fetch, CORS protocol), bare frames route included."""

from __future__ import annotations

from typing import Final

from hounsfield.archive.web.http import AsgiApp, Message, Receive, Scope, Send
from hounsfield.archive.web.problems import Header
from hounsfield.archive.web.urls import header

_EXPOSED: Final = (
    b"content-type, content-length, content-range, content-location, content-encoding, etag, location, "
    b"warning, retry-after"
)
_METHODS: Final = b"GET, HEAD, POST, OPTIONS"
_MAX_AGE_SECONDS: Final = b"86400"


class Cors:
    """Middleware: answers preflights and lets configured origins read answers. Others see no change."""

    def __init__(self, app: AsgiApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._any = "*" in origins
        self._origins = frozenset(origin.rstrip("/").encode("ascii") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = header(scope, b"origin") if scope["type"] == "http" else None
        if origin is None or not (self._any or origin in self._origins):
            await self._app(scope, receive, send)
            return
        allowed: list[Header] = [
            (b"access-control-allow-origin", b"*" if self._any else origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]
        if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None:
            # The names asked for are echoed: they are the browser's list of what the script set.
            asked = header(scope, b"access-control-request-headers")
            allowed.append((b"access-control-allow-methods", _METHODS))
            allowed.append((b"access-control-max-age", _MAX_AGE_SECONDS))
            if asked is not None:
                allowed.append((b"access-control-allow-headers", asked))
            await send({"type": "http.response.start", "status": 204, "headers": allowed})
            await send({"type": "http.response.body", "body": b""})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *allowed]
            await send(message)

        await self._app(scope, receive, with_headers)
