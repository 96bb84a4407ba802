"""Authentication in front of everything but health checks: a bearer token, or 401."""

from __future__ import annotations

from typing import Final

from hounsfield.archive.security.bearer import BearerTokens
from hounsfield.archive.web.http import AsgiApp, Receive, Scope, Send
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import problem_response
from hounsfield.archive.web.urls import header

_OPEN: Final = "/healthz"
_CHALLENGE: Final = b'Bearer realm="hounsfield"'


class Guard:
    """Middleware: passes requests on whose token is known; ``scope["identity"]`` names its holder."""

    def __init__(self, app: AsgiApp, tokens: BearerTokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path != _OPEN and not path.startswith(_OPEN + "/"):
            name = self._tokens.identify(header(scope, b"authorization") or b"")
            if name is None:
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                    return
                refusal = WebError(
                    401, "a bearer token is needed", headers=[(b"www-authenticate", _CHALLENGE)]
                )
                await problem_response(refusal)(scope, receive, send)
                return
            scope["identity"] = name
        await self._app(scope, receive, send)
