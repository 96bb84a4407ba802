"""The web application: CORS, then authentication, then the frames route, then Starlette's router."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import trio
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route, Router

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.security.bearer import BearerTokens
from hounsfield.archive.web.cors import Cors
from hounsfield.archive.web.forwarded import Forwarded
from hounsfield.archive.web.frames import Frames, is_frames_path
from hounsfield.archive.web.guard import Guard
from hounsfield.archive.web.http import AsgiApp, Receive, ResponseError, Scope, Send
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.plugin_routes import PluginRoutes
from hounsfield.archive.web.problems import WebError, web_error_of
from hounsfield.archive.web.responses import problem_response
from hounsfield.archive.web.routes import Health, RouteRow, routes
from hounsfield.archive.web.uploads import SharedCount


def create_app(
    engine: Engine,
    *,
    settings: WebSettings | None = None,
    metrics: Callable[[], bytes] | None = None,
    health: Health | None = None,
    tokens: BearerTokens | None = None,
    uploads_open: SharedCount | None = None,
    feeds_open: SharedCount | None = None,
    closing: trio.Event | None = None,
    plugins: Mapping[str, Sequence[BaseRoute]] | None = None,
) -> AsgiApp:
    """The ASGI application over a running engine.

    ``metrics`` makes the answer of ``/metrics``; ``health`` the named checks of ``/healthz/ready``. With
    ``tokens``, everything but ``/healthz`` wants one of them. ``uploads_open`` counts the store requests that
    are open, over all workers; without it, this application's own; ``feeds_open`` the change feeds. When
    ``closing`` is set, feeds end. ``plugins``: routes by the name below which they lie; ConfigError when
    there is something else.
    """
    settings = settings or WebSettings()
    table = routes(
        engine,
        settings,
        metrics=metrics,
        health=health,
        uploads_open=uploads_open,
        feeds_open=feeds_open,
        closing=closing,
        plugins=tuple(plugins or ()),
    )
    app: AsgiApp = Application(engine, settings, table, plugins or {})
    if tokens is not None:
        app = Guard(app, tokens)
    if settings.cors_origins:
        app = Cors(app, settings.cors_origins)
    if settings.trusted_proxies and not settings.base_url:
        app = Forwarded(app, settings.trusted_proxies)
    return app


class Application:
    """Dispatches requests, and turns the errors that :mod:`.problems` knows into problem documents."""

    def __init__(
        self,
        engine: Engine,
        settings: WebSettings,
        table: tuple[RouteRow, ...],
        plugins: Mapping[str, Sequence[BaseRoute]],
    ) -> None:
        self._frames = Frames(engine, settings)
        self._routers = _Routers(table)
        self._plugins = PluginRoutes(plugins, {row.path.split("/")[1] for row in table})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"} and self._plugins.has(scope["path"]):
            await self._plugins(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._routers.of("")(scope, receive, send)
            return
        try:
            frames = is_frames_path(scope["path"])
            if frames is None:
                scope["app"] = (
                    self  # Starlette's router then raises 404 and 405 instead of answering in plain text
                )
                await self._routers.of(scope["path"])(scope, receive, send)
            elif scope["method"] in ("GET", "HEAD"):
                await self._frames.answer(scope, receive, send, frames)
            else:
                raise WebError(405, "frames are read with GET", headers=[(b"allow", b"GET, HEAD")])
        except HTTPException as error:
            headers = [(k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items()]
            await problem_response(WebError(error.status_code, _ROUTING[error.status_code], headers=headers))(
                scope, receive, send
            )
        except Exception as error:
            answer = web_error_of(error)
            if answer is None:
                raise
            try:
                await problem_response(answer)(scope, receive, send)
            except ResponseError:
                raise error from None  # its answer had begun: this is why it breaks off


_ROUTING = {404: "there is no such resource", 405: "this resource does not take that method"}


class _Routers:
    """A router for paths of each depth: one that tries every route needs fifty microseconds for the last."""

    def __init__(self, table: tuple[RouteRow, ...]) -> None:
        every = list(_starlette_routes(table))
        of_any_depth = [route for route in every if ":path}" in route.path]
        depths = {route.path.count("/") for route in every}
        self._by_depth = {
            depth: _router(
                [route for route in every if route in of_any_depth or route.path.count("/") == depth]
            )
            for depth in depths
        }
        self._other = _router(of_any_depth)

    def of(self, path: str) -> Router:
        """The router that knows every route which may match."""
        return self._by_depth.get(path.count("/"), self._other)


def _router(routes: list[Route]) -> Router:
    return Router(routes=routes, redirect_slashes=False)


def _starlette_routes(table: tuple[RouteRow, ...]) -> Iterator[Route]:
    by_path: dict[str, dict[str, RouteRow]] = {}
    for row in table:
        by_path.setdefault(row.path, {})[row.method] = row
    for path, methods in by_path.items():
        yield Route(path, _endpoint(path, methods), methods=list(methods))


class _endpoint:  # noqa: N801 - Starlette takes a class instance as an ASGI application, a function as a view
    def __init__(self, path: str, methods: dict[str, RouteRow]) -> None:
        self._path = path
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self._path
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        answer = await self._methods[method].answer(scope, receive, scope["path_params"])
        await answer(scope, receive, send)


__all__ = ["Application", "create_app"]
