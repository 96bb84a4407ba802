"""What the supervisor and its workers say to each other while they serve: lists handed out, questions asked.

A command that changes who may connect returns only once every worker uses what was handed out. A worker that
ends, or hangs, keeps no command waiting for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import trio

from hounsfield.archive.app.boot import ChannelClosed
from hounsfield.archive.app.lean_structlog import structlog
from hounsfield.archive.app.place import Place
from hounsfield.archive.app.scoreboard import Scoreboard
from hounsfield.archive.config import Config
from hounsfield.archive.errors import ControlError

ANSWER_SECONDS_MAX = 600.0
START_SECONDS_MAX = 20.0
START_LOOK_SECONDS = 0.1
HAND_OUT_SECONDS_MAX = 10.0  # a worker that hangs must not keep a command waiting


class Talking:
    """Of one supervisor with the workers in its ``places``."""

    def __init__(self, places: Sequence[Place], board: Scoreboard) -> None:
        self._places = places
        self._board = board
        self._hand_outs = 0
        self._taken = trio.lowlevel.ParkingLot()
        self._questions: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._question = 0

    def begin(self, place: Place) -> None:
        """A worker is about to get its boot message, with all that was handed out so far."""
        place.told = True
        place.lists = self._hand_outs

    async def tell(self, place: Place, message: str) -> None:
        """Say one word to a worker, which may be gone."""
        if place.channel is not None:
            with contextlib.suppress(ChannelClosed):
                await place.channel.send({"type": message})

    async def hand_out(self, config: Config) -> None:
        """Tell every worker to use the lists, tokens and added AEs as they are now."""
        self._hand_outs += 1
        message = {"type": "reload", "config": config, "number": self._hand_outs}
        for place in self._places:
            if place.channel is not None and place.told:
                with contextlib.suppress(ChannelClosed):
                    await place.channel.send(message)

    def taken(self, place: Place, number: int) -> None:
        """A worker says which hand-out it uses now."""
        place.lists = number
        self._taken.unpark_all()

    async def all_taken(self) -> None:
        """Wait until every worker uses what was handed out: who removed an AE has to rely on it."""
        number = self._hand_outs
        with trio.move_on_after(HAND_OUT_SECONDS_MAX) as patience:
            while late := [each.number for each in self._places if each.ready and each.lists < number]:
                with trio.move_on_after(1.0):  # one that ends meanwhile says nothing
                    await self._taken.park()
        if patience.cancelled_caught:
            structlog.get_logger().warning("workers did not take the lists in time", what=f"workers {late}")

    async def ask(self, op: str, args: dict[str, Any], *, state: str) -> Any:
        """Pass a question on to the ready worker with the fewest connections; its answer.

        Raises ControlError when no worker is ready (the server is in that ``state``; while it starts one is
        waited for), when the one that was asked ends, and when it says so.
        """
        place = self._least_busy()
        if state == "starting":  # who starts a server and asks it next is not told to try again
            with trio.move_on_after(START_SECONDS_MAX):
                while place is None:
                    await trio.sleep(START_LOOK_SECONDS)
                    place = self._least_busy()
        if place is None or place.channel is None:
            raise ControlError(f"the server is {state}, no worker can answer; try again in a moment")
        self._question += 1
        number = self._question
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._questions[number] = send
        try:
            await place.channel.send({"type": "ask", "id": number, "op": op, "args": args})
            with trio.fail_after(ANSWER_SECONDS_MAX):
                reply = await receive.receive()
        except (ChannelClosed, trio.TooSlowError):
            raise ControlError("the worker that was asked ended or did not answer; try again") from None
        finally:
            self._questions.pop(number, None)
        await self.all_taken()
        if "error" in reply:
            raise ControlError(reply["error"], mistaken=reply.get("mistaken", False))
        return reply["result"]

    def _least_busy(self) -> Place | None:
        return min(
            (each for each in self._places if each.ready and each.channel is not None),
            key=lambda each: self._board.by_worker("worker_connections")[each.number],
            default=None,
        )

    def answered(self, reply: dict[str, Any]) -> None:
        """A worker's reply to a question; nobody may be waiting for it any more."""
        waiting = self._questions.pop(reply["id"], None)
        if waiting is not None:
            waiting.send_nowait(reply)
