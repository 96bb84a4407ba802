"""A counter: the RIS's API over an archive's records, asked in this process as people with roles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import httpx
from starlette.routing import Router

from hounsfield.archive.plugins import Change, Events
from hounsfield.ris_plugin.actors import PEOPLES_ROLES
from hounsfield.ris_plugin.api import parts
from hounsfield.ris_plugin.catalog import put_person
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.records.catalog import Person
from ris.conftest import ADMINISTRATOR, Desk

Result = TypeVar("Result")


class Records:
    """A desk's records, as a plugin has them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def reading(self) -> Any:
        return self._desk.view()

    async def commit(self, plan: Callable[[Change], Result]) -> Result:
        return self._desk.commit(plan)


class Archive:
    """As much of an archive as the API asks of one."""

    ae_title = "HOUNSFIELD"

    def __init__(self, desk: Desk) -> None:
        self.records = Records(desk)

    async def latest(self) -> str:
        return ""

    async def events(self, after: str, limit: int) -> Events:
        return Events([], after, more=False)


class Counter:
    """Asks the API; ``identity`` is the holder of the token, None where none is needed."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.ris = Ris(Archive(desk), desk.settings, now_ns=lambda: desk.now_ns)  # type: ignore[arg-type]
        self.parts = parts(self.ris)
        self._router = Router(routes=list(self.parts.routes), redirect_slashes=False)
        for role in sorted(PEOPLES_ROLES):
            desk.do(put_person, ADMINISTRATOR, Person(code=role, name=f"{role.upper()}^A", roles=(role,)))

    async def ask(
        self, who: str | None, method: str, path: str, body: Any = None, **more: Any
    ) -> httpx.Response:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if who is not None:
                scope["identity"] = who
            await self._router(scope, receive, send)

        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test/api"
        ) as client:
            return await client.request(method, path, json=body, **more)

    async def get(self, who: str | None, path: str, status: int = 200, **params: Any) -> Any:
        answer = await self.ask(who, "GET", path, params=params)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def post(self, who: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        answer = await self.ask(who, more.pop("method", "POST"), path, body, **more)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None
