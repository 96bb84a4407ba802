"""``/ris/api/live``: what happens in the RIS, told to everybody who looks, as it happens: ids and kinds only.

One task in each worker reads the journal and gives each event to the sockets of that worker. Who connects is
told ``hello`` first, and reads his lists then; who is too slow, or was told wrong because the journal was
made anew, is closed (1013) and does the same again. Everybody is told of what he can read: a referrer of his
own orders, their appointments, and their reports from the first version put forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import trio
from starlette.websockets import WebSocket, WebSocketDisconnect

from hounsfield.archive.plugins import Event, GoneError, View
from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.api import sight
from hounsfield.ris_plugin.api.identity import Caller, actor_of, is_foreign
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import RisError

__all__ = ["TOPICS", "Live"]

PAGE_EVENTS: Final = 500
WAIT_SECONDS: Final = 60.0
BEHIND_MAX: Final = 256
"""Events that one socket may be behind; then it is closed, and its owner reads his lists anew."""
SOCKETS_MAX: Final = 1000
"""In one worker: the desks of a large department, and their second screens."""
OWN: Final = "ris."
TOPICS: Final[Mapping[str, tuple[str, ...]]] = {
    "patients": ("patient-", "patients-"),
    "orders": ("order-",),
    "schedule": ("appointment-",),
    "worklist": ("step-", "performed-"),
    "images": ("images-", "study-"),
    "reports": ("report-",),
    "catalog": ("catalog-",),
}
"""By the beginnings of the kinds of events; what has none of these is told to nobody."""
ROLES: Final = "catalog"
"""The topic under which it is told that somebody may have other roles now."""
SIGHT: Final[Mapping[str, tuple[str, Callable[[View, Actor, str], object]]]] = {
    "orders": ("order", sight.order),
    "schedule": ("appointment", sight.appointment),
    "reports": ("report", sight.report),
}
"""By topic what an event is of, and who may see that: of who does not see everything. Of other topics he
is told nothing."""
_IDS: Final = (
    "patient", "order", "orders", "appointment", "step", "study", "report", "survivor", "merged", "merge",
    "performed", "record", "version", "to", "why", "actor",
)  # fmt: skip
"""What is told of an event."""
_TRY_AGAIN: Final = 1013  # RFC 6455 7.4, IANA: try again later
_POLICY: Final = 1008


@dataclass(eq=False, slots=True)
class _Socket:
    """One who looks."""

    topics: frozenset[str]
    send: trio.MemorySendChannel[dict[str, Any]]
    behind: bool = field(default=False)


class Live:
    """Gives events to sockets. :meth:`run` in each worker."""

    def __init__(self, ris: Ris) -> None:
        self._ris = ris
        self._sockets: set[_Socket] = set()
        self._some = trio.Event()

    async def run(self) -> None:
        """Read the journal while anybody looks; until cancelled."""
        while True:
            await self._some.wait()
            cursor = await self._ris.archive.latest()
            while self._sockets:
                try:
                    page = await self._ris.archive.events(cursor, PAGE_EVENTS)
                except GoneError:
                    self._close_all()
                    break
                for event in page.events:
                    self._tell(event)
                cursor = page.next
                if not page.more:
                    await self._ris.archive.wait(cursor, WAIT_SECONDS)
            if not self._sockets:
                self._some = trio.Event()

    def _tell(self, event: Event) -> None:
        if not event.kind.startswith(OWN):
            return
        kind = event.kind.removeprefix(OWN)
        topic = next((name for name, of in TOPICS.items() if kind.startswith(of)), None)
        if topic is None:
            return
        told = {
            "event": kind,
            "topic": topic,
            **{name: event.body[name] for name in _IDS if name in event.body},
        }
        for socket in list(self._sockets):
            if topic in socket.topics or topic == ROLES:
                try:
                    socket.send.send_nowait(told)
                except trio.WouldBlock:
                    self._close(socket)

    def _close(self, socket: _Socket) -> None:
        socket.behind = True
        self._sockets.discard(socket)
        socket.send.close()

    def _close_all(self) -> None:
        for socket in list(self._sockets):
            self._close(socket)

    # ------------------------------------------------------------ one socket

    async def serve(self, websocket: WebSocket) -> None:
        """Tell one who looks. ``?topics=orders,reports``: of these alone."""
        caller = Caller(token_holder=websocket.scope.get("identity"))
        wanted = filter(None, websocket.query_params.get("topics", "").split(","))
        topics = frozenset(wanted) or frozenset(TOPICS)
        try:
            self._actor(caller)
        except RisError:
            await websocket.close(_POLICY)
            return
        if not topics <= TOPICS.keys() or (caller.token_holder is None and is_foreign(websocket.headers)):
            await websocket.close(_POLICY)
            return
        if len(self._sockets) >= SOCKETS_MAX:
            await websocket.close(_TRY_AGAIN)
            return
        await websocket.accept()
        send, take = trio.open_memory_channel[dict[str, Any]](BEHIND_MAX)
        socket = _Socket(topics, send)
        self._sockets.add(socket)
        self._some.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_gone, websocket, nursery.cancel_scope)
                await self._send(websocket, {"event": "hello", "topics": sorted(topics)})
                code = await self._serve(websocket, take, caller, topics)
                if code:
                    await websocket.close(code)
                nursery.cancel_scope.cancel()
        except* (WebSocketDisconnect, trio.BrokenResourceError, RuntimeError) as group:
            _only_gone(group)
        finally:
            self._sockets.discard(socket)
            with trio.CancelScope(shield=True):
                await take.aclose()

    async def _serve(
        self,
        websocket: WebSocket,
        take: trio.MemoryReceiveChannel[dict[str, Any]],
        caller: Caller,
        topics: frozenset[str],
    ) -> int:
        """Until it is to be closed, with which code."""
        actor: Actor | None = None
        async for told in take:
            if actor is None or told["topic"] == ROLES:
                try:
                    actor = self._actor(caller)  # roles may be other ones now
                except RisError:
                    return _POLICY
            if told["topic"] in topics and self._sees(actor, told):
                await self._send(websocket, told)
        return _TRY_AGAIN

    def _actor(self, caller: Caller) -> Actor:
        with self._ris.reading() as view:
            actor = actor_of(view, self._ris.settings, caller)
        actor.require(*sight.ANYBODY, what="this")
        return actor

    def _sees(self, actor: Actor, told: Mapping[str, Any]) -> bool:
        if sight.sees_all(actor):
            return True
        name, seen = SIGHT.get(told["topic"], ("", None))
        if seen is None or name not in told:
            return False
        try:
            with self._ris.reading() as view:
                seen(view, actor, told[name])
        except RisError:
            return False
        return True

    @staticmethod
    async def _send(websocket: WebSocket, told: Mapping[str, Any]) -> None:
        await websocket.send_text(msgspec.json.encode(told).decode())


async def _until_gone(websocket: WebSocket, scope: trio.CancelScope) -> None:
    """What a socket says, in whatever frames, is not listened to; that it is gone is."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
    scope.cancel()


def _only_gone(group: BaseExceptionGroup[Any]) -> None:
    """A socket that is gone while it is told something is no defect."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _only_gone(error)
        elif isinstance(error, RuntimeError) and "close" not in str(error):
            raise error
