"""Paths are looked for among those of their depth only: none may be missed for it."""

from __future__ import annotations

import re

import pytest
from starlette.routing import Match

from hounsfield.archive.web.application import _Routers
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.routes import routes


@pytest.fixture
async def table(archive):
    return routes(archive.engine, WebSettings(), metrics=None, health=None)


async def test_every_route_is_found_by_its_path(table) -> None:
    routers = _Routers(table)
    for row in table:
        for rest in ("00420011", "1/2/3", "a/b/c/d/e/f/g/h"):
            path = re.sub(r"\{\w+\}", "1.2", row.path.replace("{path:path}", rest))
            scope = {"type": "http", "path": path, "method": row.method, "headers": []}
            found = [route for route in routers.of(path).routes if route.matches(scope)[0] is Match.FULL]
            assert [route.path for route in found] == [row.path]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/dicom-web/studies/1.2/nothing/3/at/any/of/these/depths/at/all", 404),
        ("PUT", "/dicom-web/studies", 405),
        ("POST", "/dicom-web/studies/1.2/metadata", 405),
    ],
)
async def test_what_there_is_not_is_a_problem_document(archive, method: str, path: str, status: int) -> None:
    async with archive.client() as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
