"""What cannot be read here costs a route one object, or a pause; never the other destinations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hounsfield.archive.engine.route_ways import Verdict, Way, WayError
from hounsfield.archive.net.outgoing import pair_of
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.net.routing import RouteWays
from hounsfield.storage_backends.errors import StorageError
from support.retrieving import Known, at, slices, stored


@pytest.fixture
def routing(open_archive: Callable[..., Any], serve: Any, sink: Any) -> Callable[..., Any]:
    """``async with routing() as (archive, way, instances)``: a way to ``sink``, and what may go there."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Any, Way, list[Any]]]:
        async with open_archive() as archive, serve(sink, ListenerPolicy()) as there:
            instances = [await stored(archive.engine, raw) for raw in slices(2)]
            ways = RouteWays(archive.engine, Known(DEST=at(there.port)))  # type: ignore[arg-type]
            async with ways.open("DEST", [pair_of(instances[0])], ()) as way:
                yield archive, way, instances

    return opened


@pytest.mark.parametrize("error", [OSError(5, "no"), StorageError("no")])
async def test_a_disk_that_fails_is_no_objects_fault(
    routing: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The way is lost, as when the destination is: it waits, and is sent again."""

    async def failing(*_: str) -> Any:
        raise error

    async with routing() as (archive, way, instances):
        with monkeypatch.context() as patch:
            patch.setattr(archive.engine, "instances", failing)
            with pytest.raises(WayError, match="cannot be read here"):
                await way.send(instances[0])
        assert (await way.send(instances[1])).verdict is Verdict.SENT


async def test_a_defect_that_one_object_meets_sets_that_one_aside(
    routing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: str) -> Any:
        raise ZeroDivisionError

    async with routing() as (archive, way, instances):
        with monkeypatch.context() as patch:
            patch.setattr(archive.engine, "instances", failing)
            answer = await way.send(instances[0])
        assert (answer.verdict, answer.reason) == (Verdict.REFUSED, "a fault of the archive; see its log")
        assert (await way.send(instances[1])).verdict is Verdict.SENT
