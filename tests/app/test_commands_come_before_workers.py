"""Who starts a server and asks it the next moment is told to try again."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hounsfield.archive.app.place import Place
from hounsfield.archive.app.talking import START_SECONDS_MAX, Talking
from hounsfield.archive.errors import ControlError


class Board:
    def by_worker(self, name: str) -> list[int]:
        del name
        return [0]


class Channel:
    def __init__(self) -> None:
        self.talking: Talking

    async def send(self, message: dict[str, Any]) -> None:
        self.talking.answered({"id": message["id"], "result": message["op"]})


def talking() -> tuple[Talking, Place]:
    place = Place(0)
    channel = Channel()
    place.channel = channel  # type: ignore[assignment]
    made = Talking([place], Board())  # type: ignore[arg-type]
    channel.talking = made
    return made, place


async def test_a_server_that_starts_is_waited_for(autojump_clock: MockClock) -> None:
    made, place = talking()

    async def start() -> None:
        await trio.sleep(START_SECONDS_MAX / 2)
        place.ready = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        assert await made.ask("ls", {}, state="starting") == "ls"


async def test_one_that_never_does_or_stops_says_so(autojump_clock: MockClock) -> None:
    made, _ = talking()
    begun = trio.current_time()
    with pytest.raises(ControlError, match="the server is starting"):
        await made.ask("ls", {}, state="starting")
    assert trio.current_time() - begun >= START_SECONDS_MAX
    begun = trio.current_time()
    with pytest.raises(ControlError, match="the server is draining"):
        await made.ask("ls", {}, state="draining")
    assert trio.current_time() == begun
