"""Routes of plugins, each plugin's below its own name; behind the same guard and limits as all others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Mount, Router

from hounsfield.archive.errors import ConfigError
from hounsfield.archive.web.http import Receive, ResponseError, Scope, Send
from hounsfield.archive.web.problems import WebError, web_error_of
from hounsfield.archive.web.responses import problem_response

__all__ = ["PluginRoutes"]


class PluginRoutes:
    """An application that answers below the names of plugins. What they raise becomes a problem document."""

    def __init__(self, routes: Mapping[str, Sequence[BaseRoute]], taken: Collection[str]) -> None:
        """``taken``: first parts of paths that are the archive's. ConfigError for a plugin of such a name."""
        for name in routes:
            if name in taken:
                raise ConfigError(f"plugins.{name}: the archive's own routes lie below that name")
        self._mounts = {
            name: Mount(f"/{name}", app=Router(routes=list(of), redirect_slashes=False))
            for name, of in routes.items()
        }
        self._router = Router(routes=list(self._mounts.values()), redirect_slashes=False)

    def has(self, path: str) -> bool:
        """Whether the path lies below a plugin's name."""
        return bool(self._mounts) and path[:1] == "/" and path[1:].partition("/")[0] in self._mounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # Starlette's routers then raise 404 and 405 instead of answering in plain text
        if scope["path"].count("/") == 1:
            scope["path"] += "/"  # a mount's own root
        if scope["type"] == "websocket":
            try:
                await self._router(scope, receive, send)
            except HTTPException:
                await send({"type": "websocket.close", "code": 1008})
            return
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            headers = [(k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items()]
            answer = WebError(error.status_code, str(error.detail), headers=headers)
            await problem_response(answer)(scope, receive, send)
        except Exception as error:
            known = web_error_of(error)
            if known is None:
                raise
            try:
                await problem_response(known)(scope, receive, send)
            except ResponseError:
                raise error from None  # its answer had begun: this is why it breaks off
