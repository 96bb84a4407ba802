"""Cross-origin requests from configured origins (WHATWG Fetch, CORS protocol), bare frames route included."""

from __future__ import annotations

from typing import Final

from hounsfield.archive.web.http import AsgiApp, Message, Receive, Scope, Send
from hounsfield.archive.web.problems import Header
from hounsfield.archive.web.urls import header

# What scripts read besides the safelisted ones: viewers page through frames by Content-Range, uploaders
# come back after Retry-After, and a search that was cut off says so in Warning (PS3.18 8.3.4.4).
_EXPOSED: Final = (
    b"accept-ranges, content-disposition, content-encoding, content-length, content-location, content-range, "
    b"content-type, etag, link, location, retry-after, warning, www-authenticate"
)
_METHODS: Final = b"GET, HEAD, POST, PUT, DELETE, OPTIONS"
_MAX_AGE_SECONDS: Final = b"86400"
_ASKED_BYTES_MAX: Final = 4096  # of the names a preflight lists: an echo is no amplifier


class Cors:
    """Middleware: answers preflights and lets configured origins read answers. Others see no change.

    Credentials that browsers add by themselves (cookies) are not allowed: a token is sent by the script.
    """

    def __init__(self, app: AsgiApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._any = "*" in origins
        self._origins = frozenset(origin.rstrip("/").encode("ascii") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Also where no origin, or another, is told: or a shared cache gives that answer to one that may read.
        added: list[Header] = [] if self._any else [(b"vary", b"origin")]
        origin = header(scope, b"origin")
        if origin is not None and (self._any or origin in self._origins):
            added.append((b"access-control-allow-origin", b"*" if self._any else origin))
            added.append((b"access-control-expose-headers", _EXPOSED))
            if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None:
                await _preflight(scope, send, added)
                return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self._app(scope, receive, with_headers)


async def _preflight(scope: Scope, send: Send, headers: list[Header]) -> None:
    """What may be sent. The header names asked for are echoed: the browser's list of what the script set."""
    asked = header(scope, b"access-control-request-headers")
    headers.append((b"access-control-allow-methods", _METHODS))
    headers.append((b"access-control-max-age", _MAX_AGE_SECONDS))
    headers.append((b"vary", b"access-control-request-headers"))
    if asked is not None and len(asked) <= _ASKED_BYTES_MAX:
        headers.append((b"access-control-allow-headers", asked))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
