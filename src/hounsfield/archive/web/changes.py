"""The change feed over HTTP: pages, long polls, and server-sent events (WHATWG HTML 9.2).

``GET /changes?since=CURSOR&limit=N`` is a page; with ``wait=SECONDS`` an empty one comes only when that time
is over. With ``Accept: text/event-stream`` it is a stream of events, each with its cursor as id, that goes on
where ``Last-Event-ID`` says. What a cursor is worth: docs/decisions/0019.

A stream reads the journal as fast as its client reads the stream: nothing is queued here for anybody.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import trio

from hounsfield.archive.engine.changes import Change, ChangePage, Cursor
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import OutOfResourcesError
from hounsfield.archive.web.accept import JSON, accepted, ranges_of
from hounsfield.archive.web.http import AsgiApp, Receive, Scope, Send
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.problems import Header, WebError
from hounsfield.archive.web.responses import BuffersResponse, NoResponse, json_response, sole_error
from hounsfield.archive.web.uploads import OwnCount, SharedCount
from hounsfield.archive.web.urls import header, parameters

EVENT_STREAM: Final = "text/event-stream"
LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000
WAIT_S_MAX: Final = 60.0
"""Of one long poll: proxies cut what is silent for longer."""
ALIVE_S: Final = 15.0
"""A stream says so often that it is there: proxies and clients give up what is silent for 30 to 60 s."""
STREAM_S_MAX: Final = 3600.0
"""A stream ends then, and its client comes back: with a token that is still good, to any worker."""
_RECONNECT_MS: Final = 3000
_FRESH: Final[tuple[Header, ...]] = ((b"cache-control", b"no-store"),)


class ChangeFeed:
    """Answers requests for changes."""

    def __init__(
        self,
        engine: Engine,
        settings: WebSettings,
        *,
        feeds_open: SharedCount | None = None,
        closing: trio.Event | None = None,
    ) -> None:
        """``feeds_open`` counts over all workers; ``closing`` is set when what waits here has to end."""
        self._changes = engine.changes if engine is not None else None
        self._feeds_max = settings.limits.feeds_max
        self._open: SharedCount = feeds_open or OwnCount()
        self._closing = closing if closing is not None else trio.Event()

    async def answer(self, scope: Scope, receive: Receive) -> AsgiApp:
        """One request. Raises ``WebError``, and what :mod:`.problems` maps."""
        asked = _Asked.of(scope)
        cursor = await self._cursor(asked.since)
        if asked.is_stream:
            await self._read(cursor, 1)  # a cursor that is not taken is an error, not an empty stream
            return _EventStream(self, cursor, asked.limit)
        page = await self._read(cursor, asked.limit)
        if asked.wait_s and not page.changes and not page.more and scope["method"] != "HEAD":
            async with self.one():
                polled = await self._until_gone(receive, lambda: self._poll(page.next, asked))
            if polled is None:
                return NoResponse()
            page = polled
        return json_response(_document(page), JSON, headers=_FRESH)

    async def _cursor(self, since: str) -> Cursor:
        assert self._changes is not None
        if since in ("", "0"):
            return await self._changes.start()
        return await self._changes.end() if since == "now" else Cursor.parse(since)

    async def _read(self, cursor: Cursor, limit: int) -> ChangePage:
        assert self._changes is not None
        return await self._changes.read(cursor, limit)

    async def _poll(self, cursor: Cursor, asked: _Asked) -> ChangePage:
        """The first page with an event, or that of the moment when the time is over."""
        assert self._changes is not None
        page = await self._read(cursor, asked.limit)
        deadline = trio.current_time() + asked.wait_s
        while not page.changes and not self._closing.is_set():
            if not page.more and not await self.wait(page.next, deadline - trio.current_time()):
                break
            page = await self._read(page.next, asked.limit)
        return page

    async def wait(self, cursor: Cursor, seconds: float) -> bool:
        """As the engine's, and at most until the server closes."""
        assert self._changes is not None
        result = False
        changes = self._changes

        async def wait() -> None:
            nonlocal result
            result = await changes.wait(cursor, seconds)
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await self._closing.wait()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise sole_error(group) from None
        return result

    async def page(self, cursor: Cursor, limit: int) -> ChangePage:
        """Read on."""
        return await self._read(cursor, limit)

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """While one feed is open, a stream or a poll. ``OutOfResourcesError`` when too many are."""
        self._open.add(1)
        try:
            if self._open.total() > self._feeds_max:
                raise OutOfResourcesError(
                    f"{self._feeds_max} change feeds are open already: come back later, ask without wait, or "
                    "raise http.feeds_max"
                )
            yield
        finally:
            self._open.add(-1)

    @staticmethod
    async def _until_gone(receive: Receive, make: Callable[[], Awaitable[ChangePage]]) -> ChangePage | None:
        """What ``make`` makes, or None when the client is gone before."""
        made: ChangePage | None = None

        async def work() -> None:
            nonlocal made
            made = await make()
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                await gone(receive)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise sole_error(group) from None
        return made


async def gone(receive: Receive) -> None:
    """Return when the client is."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _EventStream:
    """Server-sent events, until the client goes, the server closes or the time is over."""

    def __init__(self, feed: ChangeFeed, cursor: Cursor, limit: int) -> None:
        self._feed = feed
        self._cursor = cursor
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"x-accel-buffering", b"no"),  # nginx would gather it
            *_FRESH,
        ]
        if scope["method"] == "HEAD":
            await BuffersResponse(200, headers)(scope, receive, send)
            return
        async with self._feed.one():
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_when_gone, receive, nursery.cancel_scope)
                    with trio.move_on_after(STREAM_S_MAX):
                        await self._stream(send)
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                raise sole_error(group) from None
            await send({"type": "http.response.body", "body": b""})

    @staticmethod
    async def _end_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
        await gone(receive)
        scope.cancel()

    async def _stream(self, send: Send) -> None:
        async def say(*pieces: bytes) -> None:
            # Shielded: half of a message would be the end of the stream for its reader.
            with trio.CancelScope(shield=True):
                await send({"type": "http.response.body", "body": pieces, "more_body": True})

        # An id without data makes no event, and is what a client that comes back goes on from.
        told = self._cursor
        await say(b"retry: %d\nid: %b\n\n" % (_RECONNECT_MS, str(told).encode()))
        while not self._feed.is_closing:
            page = await self._feed.page(self._cursor, self._limit)
            self._cursor = page.next
            if page.changes:
                told = page.changes[-1].cursor
                await say(*map(_event, page.changes))
            elif page.more or await self._feed.wait(page.next, ALIVE_S):
                continue
            elif not self._feed.is_closing:
                await say(b": alive\n\n" if told == page.next else b"id: %b\n\n" % str(page.next).encode())
                told = page.next


def _event(change: Change) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (
        str(change.cursor).encode(), change.kind.encode(), change.body,
    )  # fmt: skip


def _document(page: ChangePage) -> bytes:
    fields: dict[str, object] = {
        "changes": [msgspec.Raw(change.body) for change in page.changes],
        "next": str(page.next),
        "more": page.more,
    }
    if page.again:
        fields["again"] = True
    return msgspec.json.encode(fields)


class _Asked:
    """What a request asks for."""

    def __init__(self, since: str, limit: int, wait_s: float, is_stream: bool) -> None:
        self.since = since
        self.limit = limit
        self.wait_s = wait_s
        self.is_stream = is_stream

    @classmethod
    def of(cls, scope: Scope) -> _Asked:
        given: dict[str, str] = {}
        for name, value in parameters(scope):
            if name in given:
                raise WebError(400, "a parameter is given twice")
            given[name] = value
        is_stream = _takes_stream(scope)
        since = given.get("since", "")
        if is_stream:
            since = (header(scope, b"last-event-id") or b"").decode("latin-1") or since
        return cls(since, _limit(given.get("limit")), _wait(given.get("wait")), is_stream)


def _takes_stream(scope: Scope) -> bool:
    for one in ranges_of(*accepted(scope)):
        if one.content_type == EVENT_STREAM:
            return True
        if one.content_type in (JSON, "application/*", "*/*"):
            return False
    raise WebError(406, f"changes are answered as {JSON} or {EVENT_STREAM}, neither of which is accepted")


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT_DEFAULT
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise WebError(400, "limit is a number from 1")
    return min(int(text), LIMIT_MAX)


def _wait(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise WebError(400, "wait is a number of seconds")
    return min(seconds, WAIT_S_MAX)
