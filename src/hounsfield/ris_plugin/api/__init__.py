"""``/ris/api``: the actions of the RIS for programs, over HTTP and for the command line; live over WebSocket.

Each resource has a module with rows (:class:`~hounsfield.ris_plugin.api.endpoints.Endpoint`); routes, the
OpenAPI document and what commands may ask for are made of them.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from hounsfield.archive.plugins import Parts
from hounsfield.ris_plugin.api.figures import figures
from hounsfield.ris_plugin.api.http import API, routes
from hounsfield.ris_plugin.api.identity import Caller
from hounsfield.ris_plugin.api.live import Live
from hounsfield.ris_plugin.api.openapi import document
from hounsfield.ris_plugin.api.performing import perform
from hounsfield.ris_plugin.api.table import BY_NAME, ENDPOINTS
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import InvalidError

__all__ = ["parts"]


def parts(ris: Ris) -> Parts:
    """The API in one worker."""
    live = Live(ris)

    async def describe(request: Request) -> Response:
        del request
        return Response(msgspec.json.encode(document()), media_type="application/json")

    async def do(
        *,
        user: str,
        endpoint: str,
        path: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        body: Any = None,
        version: int | None = None,
    ) -> Any:
        """What a command asks for, by the name of an endpoint, for a user of this system."""
        row = BY_NAME.get(endpoint)
        if row is None or not user:
            raise InvalidError("there is no such endpoint, or nobody asks")
        answer = await perform(
            ris,
            row,
            Caller(local_user=user),
            path=path or {},
            query=query or {},
            body=b"" if body is None else msgspec.json.encode(body),
            version=version,
        )
        return msgspec.to_builtins(answer)

    return Parts(
        routes=[
            Route(f"{API}/openapi.json", describe, methods=["GET"]),
            WebSocketRoute(f"{API}/live", live.serve),
            *routes(ris, ENDPOINTS),
        ],
        background=[live.run],
        operations={"do": do},
        metrics=lambda: figures(ris),
    )
