"""Accepting: the gate between workers, several on one socket, a full server, no descriptors left."""

from __future__ import annotations

import errno
import socket

import structlog.testing
import trio
import trio.testing

from hounsfield.archive.web.http import HttpLimits, HttpServer

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.0\r\n\r\n"


async def hello(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def ask(port: int, wire: bytes = LAST) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(wire)
        try:
            return b"".join([piece async for piece in stream])
        except trio.BrokenResourceError:
            return b""


async def until(condition) -> None:
    """Let the loop turn until ``condition()``, in bounded time."""
    with trio.fail_after(60):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_the_gate_is_asked_before_each_accept(listening, autojump_clock):
    autojump_clock.autojump_threshold = 0.05  # real packets need real moments
    delays = [0.5, 0.0, 0.0]
    asked = []

    def gate() -> float:
        asked.append(trio.current_time())
        return delays.pop(0) if delays else 0.0

    async with listening(hello, accept_gate=gate) as (_, port):
        assert (await ask(port)).endswith(b"hello")
        assert (await ask(port)).endswith(b"hello")
    assert len(asked) >= 2


async def test_workers_share_a_listening_socket(nursery):
    """Two servers accept on one queue; the one that is held back leaves its connections to the other."""
    busy = HttpServer(hello, accept_gate=lambda: 3600.0)
    idle = HttpServer(hello)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        await nursery.start(busy.serve, [sock])
        with sock.dup() as other:
            await nursery.start(idle.serve, [other])
            for _ in range(10):
                assert (await ask(sock.getsockname()[1])).endswith(b"hello")
            assert idle.statistics().connections_total == 10
            assert busy.statistics().connections_total == 0
            nursery.cancel_scope.cancel()


async def test_losing_the_race_for_a_connection_is_nothing(nursery):
    servers = [HttpServer(hello) for _ in range(3)]
    with socket.create_server(("127.0.0.1", 0)) as sock:
        for server in servers:
            await nursery.start(server.serve, [sock.dup()])
        for _ in range(20):
            assert (await ask(sock.getsockname()[1])).endswith(b"hello")
        assert sum(server.statistics().connections_total for server in servers) == 20
        nursery.cancel_scope.cancel()


async def test_trios_own_listeners_are_served(nursery):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = HttpServer(hello)
    await nursery.start(server.serve, listeners)
    assert (await ask(listeners[0].socket.getsockname()[1])).endswith(b"hello")
    nursery.cancel_scope.cancel()


async def test_unix_sockets_are_served(nursery, tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "http"))
        sock.listen()
        await nursery.start(HttpServer(hello).serve, [sock])
        stream = await trio.open_unix_socket(str(tmp_path / "http"))
        await stream.send_all(LAST)
        assert b"".join([piece async for piece in stream]).endswith(b"hello")
        nursery.cancel_scope.cancel()


async def test_a_full_server_makes_room_by_closing_the_longest_idle(listening):
    async with listening(hello, HttpLimits(connections_max=2)) as (server, port):
        first = await trio.open_tcp_stream("127.0.0.1", port)
        await first.send_all(GET)
        await first.receive_some()
        await until(lambda: server.statistics().connections_idle == 1)
        second = await trio.open_tcp_stream("127.0.0.1", port)
        await until(lambda: server.statistics().connections_idle == 2)
        assert (await ask(port)).endswith(b"hello")
        assert await first.receive_some() == b""
        assert server.statistics().refused == 0
        await second.aclose()


async def test_a_full_server_without_idle_connections_answers_503(listening):
    async def stuck(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        await trio.sleep_forever()

    limits = HttpLimits(connections_max=1, refuse_after_s=0.01)
    async with listening(stuck, limits) as (server, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(GET)
        await until(lambda: server.statistics().requests_in_flight == 1)
        refused = await trio.open_tcp_stream("127.0.0.1", port)
        answer = await refused.receive_some()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 2\r\n" in answer
        assert server.statistics().refused == 1
        assert server.statistics().connections_open == 1


class NoDescriptors(socket.socket):
    """A listening socket whose first accepts fail as they do when the process is out of descriptors."""

    failures = 3

    def accept(self):
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_emfile_pauses_accepting_and_it_goes_on(nursery):
    with NoDescriptors() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        server = HttpServer(hello)
        await nursery.start(server.serve, [sock])
        with structlog.testing.capture_logs() as logs, trio.fail_after(60):
            assert (await ask(sock.getsockname()[1])).endswith(b"hello")
        assert server.statistics().accept_pauses == 3
        assert logs[0]["errno"] == errno.EMFILE
        nursery.cancel_scope.cancel()


async def test_statistics_count(listening):
    async with listening(hello) as (server, port):
        answer = await ask(port, GET + LAST)
        await ask(port, b"nonsense\r\n\r\n")
        await until(lambda: server.statistics().connections_open == 0)
        statistics = server.statistics()
        assert statistics.connections_total == 2
        assert statistics.requests_total == 2
        assert statistics.requests_in_flight == 0
        assert statistics.parse_errors == 1
        assert statistics.bytes_in == len(GET + LAST + b"nonsense\r\n\r\n")
        assert statistics.bytes_out > len(answer)
