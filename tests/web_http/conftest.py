"""A recording application, a server on a memory stream, and h11 as an independent reader of its answers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import h11
import pytest
import trio
import trio.testing

from hounsfield.archive.web.http import AsgiApp, HttpLimits, HttpServer


@dataclass
class Recorder:
    """An application that reads the whole body, remembers the request, and answers 200 with the body."""

    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    scopes: list[dict] = field(default_factory=list)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.scopes.append(scope)
        self.seen.append((scope["method"], scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-len", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    informational: list[int]


def read_answers(raw: bytes, methods: Sequence[str]) -> tuple[list[Answer], bytes]:
    """What h11's client makes of ``raw``, answers to requests of these methods; and the bytes left over."""
    answers = []
    for method in methods:
        if not raw:
            break
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        client.send(h11.EndOfMessage())
        client.receive_data(raw)
        client.receive_data(b"")
        answer = Answer(0, {}, b"", [])
        while True:
            event = client.next_event()
            if isinstance(event, h11.InformationalResponse):
                answer.informational.append(event.status_code)
            elif isinstance(event, h11.Response):
                answer.status = event.status_code
                answer.headers = dict(event.headers)
            elif isinstance(event, h11.Data):
                answer.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise AssertionError(event)
        answers.append(answer)
        raw = client.trailing_data[0]
    return answers, raw


class Peer:
    """The client's end of a memory stream that a server serves."""

    def __init__(self, stream: trio.abc.Stream, server: HttpServer) -> None:
        self.stream = stream
        self.server = server

    async def send(self, data: bytes, slices: Sequence[int] | None = None) -> None:
        """Send whole, or cut at ``slices``, each piece read by the server before the next is sent."""
        try:
            if slices is None:
                await self.stream.send_all(data)
                return
            at = 0
            for cut in [*slices, len(data)]:
                await self.stream.send_all(data[at:cut])
                at = cut
                await trio.testing.wait_all_tasks_blocked()
        except trio.BrokenResourceError:
            pass  # the server refused and closed

    async def read_until_closed(self) -> bytes:
        data = b""
        with contextlib.suppress(trio.BrokenResourceError):
            while piece := await self.stream.receive_some(65536):
                data += piece
        return data

    async def read_available(self) -> bytes:
        """Everything the server has to say for now."""
        data = b""

        async def pump() -> None:
            nonlocal data
            with contextlib.suppress(trio.BrokenResourceError):
                while piece := await self.stream.receive_some(65536):
                    data += piece

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return data

    async def exchange(self, data: bytes, slices: Sequence[int] | None = None) -> bytes:
        """Send, half-close, and read all the answers."""
        await self.send(data, slices)
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_eof()
        return await self.read_until_closed()


Connect = Callable[..., Awaitable[Peer]]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def answers_of() -> Callable[[bytes, Sequence[str]], tuple[list[Answer], bytes]]:
    return read_answers


@pytest.fixture
async def connect(nursery: trio.Nursery) -> Connect:
    """``await connect(app, limits=..., server=...)``: a peer talking to a server over memory."""

    async def go(
        app: AsgiApp | None = None, limits: HttpLimits | None = None, server=None, **options
    ) -> Peer:
        server = server or HttpServer(app, limits, **options)
        ours, theirs = trio.testing.memory_stream_pair()

        async def run() -> None:
            await server.serve_stream(theirs, client=("192.0.2.1", 4711))

        nursery.start_soon(run)
        return Peer(ours, server)

    return go


@pytest.fixture
async def listening() -> AsyncIterator[Callable]:
    """``async with listening(app, ...) as (server, port)``: a server on a real loopback port."""

    @contextlib.asynccontextmanager
    async def go(app: AsgiApp, limits: HttpLimits | None = None, **options):
        sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        server = HttpServer(app, limits, **options)
        with sock:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve, [sock])
                try:
                    yield server, sock.getsockname()[1]
                finally:
                    nursery.cancel_scope.cancel()

    return go
