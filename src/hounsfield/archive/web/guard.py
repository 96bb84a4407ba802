"""Authentication in front of everything but health checks: a bearer token, or 401."""

from __future__ import annotations

from typing import Final

from hounsfield.archive.security.bearer import BearerTokens
from hounsfield.archive.web.http import AsgiApp, ClientGoneError, Message, Receive, Scope, Send
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import problem_response
from hounsfield.archive.web.urls import header

_OPEN: Final = "/healthz"
_POLICY: Final = 1008  # RFC 6455 7.4.1
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
                    await send({"type": "websocket.close", "code": _POLICY})
                    return
                refusal = WebError(
                    401, "a bearer token is needed", headers=[(b"www-authenticate", _CHALLENGE)]
                )
                await problem_response(refusal)(scope, receive, send)
                return
            scope["identity"] = name
            if scope["type"] == "websocket":
                await self._app(scope, receive, self._while_known(scope, name, send))
                return
        await self._app(scope, receive, send)

    def _while_known(self, scope: Scope, name: str, send: Send) -> Send:
        """``send`` of a web socket, which is told nothing more once its token was taken away."""
        generation = self._tokens.generation

        async def checked(message: Message) -> None:
            nonlocal generation
            if message["type"] == "websocket.send" and generation != self._tokens.generation:
                if self._tokens.identify(header(scope, b"authorization") or b"") != name:
                    await send({"type": "websocket.close", "code": _POLICY})
                    raise ClientGoneError("the web socket's token was taken away")
                generation = self._tokens.generation
            await send(message)

        return checked
