"""Stopping in good order: requests in flight finish, idle connections close, and it ends in bounded time."""

from __future__ import annotations

import socket

import pytest
import structlog.testing
import trio
import trio.testing

from hounsfield.archive.web.http import HttpLimits, HttpServer, LifespanError

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Gate:
    """An application whose answers wait for ``open``."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.open = trio.Event()
        self.cancelled = False

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        self.entered.set()
        try:
            await self.open.wait()
        except trio.Cancelled:
            self.cancelled = True
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


async def read_all(stream) -> bytes:
    data = b""
    try:
        async for piece in stream:
            data += piece
    except trio.BrokenResourceError:
        pass
    return data


async def test_drain_finishes_what_is_in_flight(answers_of):
    gate = Gate()
    server = HttpServer(gate)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, [sock])
            idle = await trio.open_tcp_stream("127.0.0.1", port)
            busy = await trio.open_tcp_stream("127.0.0.1", port)
            await busy.send_all(GET)
            with trio.fail_after(30):
                await gate.entered.wait()
                while server.statistics().connections_idle < 1:
                    await trio.lowlevel.checkpoint()
                server.drain()
                server.drain()
                assert await read_all(idle) == b""
                assert not gate.cancelled
                gate.open.set()
                answers, rest = answers_of(await read_all(busy), ["GET"])
        # the nursery ended: serve returned by itself
        assert answers[0].body == b"done"
        assert answers[0].headers[b"connection"] == b"close"
        assert rest == b""
        assert sock.fileno() >= 0  # the listener is the caller's


async def test_grace_s_bounds_the_drain(nursery, mock_clock):
    gate = Gate()
    server = HttpServer(gate, HttpLimits(grace_s=20))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        done = trio.Event()

        async def serve(task_status=trio.TASK_STATUS_IGNORED) -> None:
            await server.serve([sock], task_status=task_status)
            done.set()

        await nursery.start(serve)
        stream = await trio.open_tcp_stream("127.0.0.1", sock.getsockname()[1])
        await stream.send_all(GET)
        await gate.entered.wait()
        server.drain()
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(19)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        mock_clock.jump(2)
        await done.wait()
        assert gate.cancelled
        assert server.statistics().connections_open == 0


async def test_cancelling_serve_stops_at_once(nursery):
    gate = Gate()
    server = HttpServer(gate)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with trio.open_nursery() as inner:
            await inner.start(server.serve, [sock])
            stream = await trio.open_tcp_stream("127.0.0.1", sock.getsockname()[1])
            await stream.send_all(GET)
            await gate.entered.wait()
            inner.cancel_scope.cancel()
        assert gate.cancelled
        assert await read_all(stream) == b""


async def test_a_half_received_head_may_still_become_a_request(connect, answers_of):
    gate = Gate()
    gate.open.set()
    peer = await connect(gate)
    await peer.send(GET[:10])
    await trio.testing.wait_all_tasks_blocked()
    peer.server.drain()
    await peer.send(GET[10:])
    answers, _ = answers_of(await peer.read_until_closed(), ["GET"])
    assert (answers[0].status, answers[0].headers[b"connection"]) == (200, b"close")


async def test_a_request_that_has_arrived_is_answered_before_closing(listening, answers_of):
    """Cut between arrival and answer, its sender would have to guess whether to repeat it."""
    gate = Gate()
    gate.open.set()
    async with listening(gate) as (server, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        with trio.fail_after(60):
            while server.statistics().connections_idle < 1:
                await trio.lowlevel.checkpoint()
        stream.socket._sock.send(GET)  # without giving the server a turn
        server.drain()
        answers, _ = answers_of(await read_all(stream), ["GET"])
    assert (answers[0].status, answers[0].headers[b"connection"]) == (200, b"close")


# -- lifespan


async def test_lifespan_brackets_serving_and_its_state_reaches_requests(listening):
    log = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            scope["state"]["archive"] = "open"
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            log.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return
        log.append(scope["state"]["archive"])
        scope["state"]["archive"] = "changed"  # each request has its own copy
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with listening(app) as (server, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(GET + b"GET / HTTP/1.0\r\n\r\n")
        await read_all(stream)
        server.drain()
        await trio.testing.wait_all_tasks_blocked()
    assert log == ["open", "open", "shutdown"]


async def fails_to_start(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no key"})


async def raises_on_start(scope, receive, send):
    await receive()
    raise ValueError("no key")


@pytest.mark.parametrize("app", [fails_to_start, raises_on_start])
async def test_an_application_that_fails_to_start_is_not_served(app):
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(LifespanError):
        await HttpServer(app).serve([sock])


async def test_a_lifespan_that_breaks_later_is_logged_without_its_words(listening):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ValueError("DOE^JANE")

    with structlog.testing.capture_logs() as logs:
        async with listening(app) as (server, _):
            server.drain()
            await trio.testing.wait_all_tasks_blocked()
    assert logs[0]["error"] == "ValueError"
    assert "DOE" not in str(logs)
