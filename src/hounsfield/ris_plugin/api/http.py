"""``/ris/api`` over HTTP: requests in, answers and problem documents (RFC 9457) out."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hounsfield.archive.plugins import RecordError, TakenError
from hounsfield.ris_plugin.api.endpoints import Endpoint
from hounsfield.ris_plugin.api.identity import Caller, is_foreign
from hounsfield.ris_plugin.api.performing import KEY, perform
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError, RisError

__all__ = ["API", "BODY_BYTES_MAX", "problem", "routes"]

API: Final = "/api"
"""Below the plugin's name."""
BODY_BYTES_MAX: Final = 4 << 20
"""Of one request: a report of many pages is a tenth of it."""
JSON: Final = "application/json"
_FRESH: Final = {"cache-control": "no-store"}
"""Patients' data belongs into no cache on the way."""


class TooLargeError(RisError):
    """A body is larger than anything that is asked for."""

    status = 413


class UnsupportedError(RisError):
    """A body is no JSON by its own account."""

    status = 415


def routes(ris: Ris, endpoints: tuple[Endpoint, ...]) -> list[Route]:
    """A route for each path; its methods share it, so that a wrong one is answered with 405."""
    paths: dict[str, dict[str, Endpoint]] = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method] = one
    # Fixed words before parameters: /patients/provisional is no patient's id.
    ordered = sorted(paths.items(), key=lambda one: [part.startswith("{") for part in one[0].split("/")])
    return [_route(ris, path, by_method) for path, by_method in ordered]


def _route(ris: Ris, path: str, by_method: dict[str, Endpoint]) -> Route:
    async def handle(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await _answer(ris, by_method[method], request)

    return Route(f"{API}{path}", handle, methods=list(by_method))


async def _answer(ris: Ris, endpoint: Endpoint, request: Request) -> Response:
    caller = Caller(token_holder=request.scope.get("identity"))
    try:
        if caller.token_holder is None and is_foreign(request.headers):
            raise ForbiddenError("a page of somebody else asks")
        query = _once(request)
        body = await _body(request)
        answer = await perform(
            ris,
            endpoint,
            caller,
            path=request.path_params,
            query=query,
            body=body,
            version=_version(request),
            key=request.headers.get(KEY, ""),
        )
    except RisError as error:
        return problem(error.status, str(error), field=getattr(error, "field", ""))
    except TakenError as error:
        return problem(409, str(error))
    except RecordError as error:
        return problem(422, str(error))
    if answer is None:
        return Response(status_code=204, headers=_FRESH)
    headers = dict(_FRESH)
    version = getattr(answer, "version", None)
    if isinstance(version, int):
        headers["etag"] = f'"{version}"'
    if endpoint.status == 201:
        headers["location"] = (
            f"{request.scope.get('root_path', '')}{API}{endpoint.location or endpoint.path}/{answer.id}"
        )
    return Response(
        msgspec.json.encode(answer), status_code=endpoint.status, media_type=JSON, headers=headers
    )


def _once(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in found:
            raise InvalidError("a parameter is given twice", name)
        found[name] = value
    return found


async def _body(request: Request) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > BODY_BYTES_MAX:
            raise TooLargeError(f"a body has at most {BODY_BYTES_MAX} bytes")
        pieces.append(piece)
    body = b"".join(pieces)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and media_type != JSON:
        # Also what keeps a foreign page from having a browser send it as a form, or as bytes of no type:
        # before those comes no preflight.
        raise UnsupportedError(f"a body is {JSON}")
    return body


def _version(request: Request) -> int | None:
    text = request.headers.get("if-match", "").strip()
    if text in ("", "*"):
        return None
    number = text.removeprefix('"').removesuffix('"')
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise InvalidError("If-Match has one ETag, as a record was answered with", "If-Match")
    return int(number)


def problem(status: int, detail: str, **more: Any) -> Response:
    """A problem document. ``more``: its other members, without those that are empty."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    document |= {name: value for name, value in more.items() if value}
    return Response(
        msgspec.json.encode(document),
        status_code=status,
        media_type="application/problem+json",
        headers=_FRESH,
    )
