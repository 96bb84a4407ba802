"""Requests that we send on a peer's own association, and the responses that come back to them.

The reader of the association hands responses over; who asked waits for them here, within the window that the
peer agreed to. C-STORE sub-operations of a C-GET, and N-EVENT-REPORT, go this way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from hounsfield.archive.net.errors import TimedOutError
from hounsfield.archive.net.providers import discard_dataset
from hounsfield.archive.net.turns import Turns
from hounsfield.archive.wire import Command, CStoreResponse, NEventReportResponse, RemoteProtocolError

if TYPE_CHECKING:
    from hounsfield.archive.net.connection import Connection

__all__ = ["Awaited", "RequestsOfOurs"]

Response = TypeVar("Response", CStoreResponse, NEventReportResponse)


class RequestsOfOurs:
    """Those of one association: ``window`` at once, each waited for ``dimse_s`` seconds."""

    def __init__(self, connection: Connection, window: int, dimse_s: float) -> None:
        self._connection = connection
        self._window = Turns(window)
        self._dimse_s = dimse_s
        self._message_id = 0
        self._awaited: dict[int, Awaited[Any]] = {}

    async def ask(self, expected: type[Response], send: Callable[[int], Awaitable[None]]) -> Response:
        """Send a request, given its message id, and wait for its response, within the peer's window.

        Raises PeerGoneError and TimedOutError, and what ``send`` raises.
        """
        return await (await self.begin(expected, send)).response()

    async def begin(
        self, expected: type[Response], send: Callable[[int], Awaitable[None]]
    ) -> Awaited[Response]:
        """As :meth:`ask`, to the moment when the request is sent."""
        await self._window.take()
        message_id = self._next_message_id()
        awaited: Awaited[Response] = Awaited(self, message_id, expected)
        self._awaited[message_id] = awaited
        try:
            await send(message_id)
        except BaseException:
            self._awaited.pop(message_id, None)
            awaited.give_up()
            raise
        # cancelled from here on, the message id stays taken: the response may still come
        return awaited

    async def hear(self, awaited: Awaited[Any]) -> None:
        """Wait for a response. Raises PeerGoneError and TimedOutError."""
        here = self._connection.response_nowait(awaited.message_id, awaited.expected)
        if here is not None:
            awaited.value = here
            del self._awaited[awaited.message_id]
            return
        with trio.move_on_after(self._dimse_s):
            await awaited.came.wait()
        if awaited.value is None:
            self._connection.end("the peer does not answer a request of ours", too_slow=True)
            await trio.lowlevel.checkpoint_if_cancelled()
            raise TimedOutError("the peer does not answer a request on its own association")

    def turn_over(self) -> None:
        """A request of ours is not outstanding any more, as far as we care."""
        self._window.give_back()

    def _next_message_id(self) -> int:
        while True:
            self._message_id = self._message_id % 0xFFFF + 1
            if self._message_id not in self._awaited:
                return self._message_id

    async def take_response(self, response: Any) -> None:
        """What the reader got. Raises RemoteProtocolError for a response to nothing."""
        awaited = self._awaited.pop(response.message_id_responded_to, None)
        if awaited is None or type(response) is not awaited.expected:
            raise RemoteProtocolError(f"{type(response).__name__} without a request of ours")
        await discard_dataset(self._connection, response)
        awaited.value = response
        awaited.came.set()


class Awaited(Generic[Response]):
    """A response that is to come. It is waited for once, or given up."""

    __slots__ = ("_outstanding", "_requests", "came", "expected", "message_id", "value")

    def __init__(self, requests: RequestsOfOurs, message_id: int, expected: type[Response]) -> None:
        self.message_id = message_id
        self.expected: type[Command] = expected
        self.came = trio.Event()
        self.value: Response | None = None
        self._requests = requests
        self._outstanding = True

    async def response(self) -> Response:
        try:
            if self.value is None:
                await self._requests.hear(self)
        finally:
            self.give_up()
        assert self.value is not None
        return self.value

    def give_up(self) -> None:
        if self._outstanding:
            self._outstanding = False
            self._requests.turn_over()
