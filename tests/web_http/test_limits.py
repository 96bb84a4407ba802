"""Every limit in ``HttpLimits`` has a test here; the last one counts them. Time is a mock clock's."""

# ruff: noqa: E501 - one row of a table, one line
from __future__ import annotations

import contextlib
import dataclasses
import socket

import pytest
import trio
import trio.testing

from hounsfield.archive.web.http import ClientGoneError, HttpLimits, HttpServer, LifespanError, transport

COVERED: set[str] = set()


def covers(*names: str):
    COVERED.update(names)
    return lambda test: test


HOST = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

# limit's name, its value here, a request just within, one just past, the answer past it
AT_THE_EDGE = [
    ("request_line_bytes_max", 30, b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 16), b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 17), 414),
    ("header_bytes_max", 100, b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"x" * 68), b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"x" * 69), 431),
    ("header_count_max", 3, b"GET / HTTP/1.1\r\nHost: a\r\nB: b\r\nC: c\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nB: b\r\nC: c\r\nD: d\r\n\r\n", 431),
    ("body_bytes_max", 5, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nhello!", 413),
    ("body_bytes_max", 5, CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", CHUNKED + b"2\r\nhe\r\n4\r\nllo!\r\n0\r\n\r\n", 413),
    ("chunk_line_bytes_max", 20, CHUNKED + b"1;%s\r\na\r\n0\r\n\r\n" % (b"x" * 16), CHUNKED + b"1;%s\r\na\r\n0\r\n\r\n" % (b"x" * 17), 400),
    ("chunk_overhead_bytes_max", 20, CHUNKED + b"1;aaaaaaaaa\r\na\r\n" * 2 + b"0\r\n\r\n", CHUNKED + b"1;aaaaaaaaa\r\na\r\n" * 2 + b"0;\r\n\r\n", 400),
    ("chunk_overhead_bytes_max", 20, CHUNKED + b"0\r\nX: 4567890\r\nX: 4567890\r\n\r\n", CHUNKED + b"0\r\nX: 4567890\r\nX: 45678901\r\n\r\n", 400),
    ("trailer_count_max", 2, CHUNKED + b"0\r\nA: b\r\nC: d\r\n\r\n", CHUNKED + b"0\r\nA: b\r\nC: d\r\nE: f\r\n\r\n", 400),
]  # fmt: skip


@covers(*(row[0] for row in AT_THE_EDGE))
@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "sliced"])
@pytest.mark.parametrize(("name", "value", "within", "past", "status"), AT_THE_EDGE)
async def test_sizes_and_counts(
    name, value, within, past, status, sliced, connect, recorder, answers_of, mock_clock
):
    for wire, expected in ((within, 200), (past, status)):
        peer = await connect(recorder, HttpLimits(**{name: value}))
        raw = await peer.exchange(wire, range(1, len(wire)) if sliced else None)
        answers, rest = answers_of(raw, ["GET"])
        assert answers[0].status == expected
        assert rest == b""
    assert len(recorder.seen) == 1


@covers("first_byte_s")
async def test_a_connection_that_says_nothing(connect, recorder, autojump_clock):
    peer = await connect(recorder, HttpLimits(first_byte_s=5))
    assert await peer.read_until_closed() == b""
    assert trio.current_time() == pytest.approx(5)
    assert peer.server.statistics().timed_out == 0


@covers("keep_alive_s")
async def test_an_idle_connection(connect, recorder, answers_of, autojump_clock):
    peer = await connect(recorder, HttpLimits(keep_alive_s=50))
    await peer.send(GET)
    answers, rest = answers_of(await peer.read_until_closed(), ["GET"])
    assert answers[0].status == 200
    assert rest == b""
    assert trio.current_time() == pytest.approx(50)


@covers("header_s")
async def test_slow_loris_in_the_head(connect, recorder, answers_of, autojump_clock):
    """A byte every second never lets a stall timer fire: the head as a whole has a deadline."""
    peer = await connect(recorder, HttpLimits(header_s=10))

    async def drip() -> None:
        for byte in b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100:
            await peer.send(bytes([byte]))
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        answers, _ = answers_of(await peer.read_until_closed(), ["GET"])
        nursery.cancel_scope.cancel()
    assert answers[0].status == 408
    assert trio.current_time() <= 13
    assert peer.server.statistics().timed_out == 1
    assert recorder.seen == []


@covers("body_idle_s")
async def test_a_body_that_stops(connect, recorder, answers_of, autojump_clock):
    peer = await connect(recorder, HttpLimits(body_idle_s=7, rate_grace_s=100))
    await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
    answers, _ = answers_of(await peer.read_until_closed(), ["POST"])
    assert answers[0].status == 408
    assert peer.server.statistics().timed_out == 1


@covers("body_rate_min", "rate_grace_s")
@pytest.mark.parametrize(("bytes_per_s", "status"), [(99, 408), (150, 200)])
async def test_slow_loris_in_the_body(bytes_per_s, status, connect, recorder, answers_of, autojump_clock):
    limits = HttpLimits(body_idle_s=60, rate_grace_s=2, body_rate_min=100)
    peer = await connect(recorder, limits)
    await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (bytes_per_s * 1000))

    async def drip() -> None:
        for _ in range(1000):
            await trio.sleep(1)
            await peer.send(bytes(bytes_per_s))
        await peer.stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        answers, _ = answers_of(await peer.read_until_closed(), ["POST"])
        nursery.cancel_scope.cancel()
    assert answers[0].status == status


async def test_the_applications_own_slowness_is_not_the_clients(connect, answers_of, autojump_clock):
    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            await trio.sleep(1000)
        await trio.sleep(1000)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await trio.sleep(1000)
        await send({"type": "http.response.body", "body": b"done"})

    peer = await connect(app)
    wire = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
    await peer.send(wire, [len(wire) - 2])
    answers, _ = answers_of(await peer.read_until_closed(), ["POST"])
    assert answers[0].body == b"done"


def stalling_server(limits: HttpLimits, failures: list[BaseException]) -> HttpServer:
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for _ in range(100):
                await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        except ClientGoneError as error:
            failures.append(error)
            raise

    return HttpServer(app, limits)


@covers("write_stall_s")
async def test_a_client_that_does_not_read(nursery, autojump_clock):
    failures: list[BaseException] = []
    server = stalling_server(HttpLimits(write_stall_s=9, rate_grace_s=1000), failures)
    ours, theirs = trio.testing.lockstep_stream_pair()  # no buffer: a write waits for its reader
    nursery.start_soon(server.serve_stream, theirs)
    await ours.send_all(GET)
    await trio.sleep(10)
    assert len(failures) == 1
    assert server.statistics().timed_out == 1
    assert server.statistics().app_errors == 0


@covers("write_rate_min")
async def test_a_client_that_reads_a_byte_at_a_time(nursery, autojump_clock):
    failures: list[BaseException] = []
    server = stalling_server(HttpLimits(write_stall_s=60, rate_grace_s=5, write_rate_min=1000), failures)
    ours, theirs = trio.testing.lockstep_stream_pair()
    nursery.start_soon(server.serve_stream, theirs)
    await ours.send_all(GET)
    with pytest.raises(trio.BrokenResourceError):
        for _ in range(1000):
            await trio.sleep(1)
            if not await ours.receive_some(1):
                break
        await ours.send_all(b"x")
    assert len(failures) == 1


async def test_a_stalled_socket_is_reset(listening, autojump_clock):
    failures: list[BaseException] = []
    app = stalling_server(HttpLimits(), failures).app
    async with listening(app, HttpLimits(write_stall_s=9)) as (server, port):
        autojump_clock.autojump_threshold = float("inf")  # while real packets travel
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.setblocking(False)
            await trio.lowlevel.wait_writable(sock)
            sock.send(GET)
            await trio.lowlevel.wait_readable(sock)  # it began; we read none of it
            with trio.fail_after(100_000):
                while not failures:
                    autojump_clock.jump(1)
                    await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().timed_out == 1


@pytest.mark.parametrize(("taken_per_s", "served"), [(2000, True), (500, False), (0, False)])
async def test_a_steady_slow_reader_is_served(taken_per_s, served, listening, autojump_clock, monkeypatch):
    """A socket is writable when a third of its buffer is free, which at a reader's pace can take a minute."""
    failures: list[BaseException] = []
    app = stalling_server(HttpLimits(), failures).app

    def untaken(_: socket.socket) -> int:
        return 10_000_000 - int(taken_per_s * trio.current_time())

    monkeypatch.setattr(transport, "untaken_bytes", untaken)
    async with listening(app, HttpLimits(write_stall_s=9, rate_grace_s=5, write_rate_min=1000)) as (_, port):
        autojump_clock.autojump_threshold = float("inf")  # while real packets travel
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.setblocking(False)
            await trio.lowlevel.wait_writable(sock)
            sock.send(GET)
            await trio.lowlevel.wait_readable(sock)
            for _ in range(200):
                autojump_clock.jump(1)
                await trio.testing.wait_all_tasks_blocked()
            assert (not failures) == served


def test_what_a_peer_did_not_take_yet_is_counted():
    with socket.create_server(("127.0.0.1", 0)) as server:
        reader = socket.create_connection(server.getsockname())
        writer, _ = server.accept()
        with reader, writer:
            writer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    writer.send(bytes(100_000))
            full = transport.untaken_bytes(writer)
            assert full > 0
            left = full
            while left == full:
                reader.recv(1_000_000)
                left = transport.untaken_bytes(writer)
            assert left < full


@covers("linger_s")
async def test_lingering_after_an_error_is_bounded(connect, recorder, autojump_clock):
    peer = await connect(recorder, HttpLimits(linger_s=3))
    await peer.send(b"nonsense\r\n\r\n")
    await peer.read_until_closed()
    await trio.sleep(4)
    assert peer.server.statistics().connections_open == 0


@covers("body_unread_max")
async def test_lingering_swallows_only_so_much(connect, recorder, autojump_clock):
    peer = await connect(recorder, HttpLimits(body_unread_max=1000, linger_s=1000))
    await peer.send(b"nonsense\r\n\r\n" + bytes(100_000))
    await trio.testing.wait_all_tasks_blocked()
    assert peer.server.statistics().connections_open == 0
    assert peer.server.statistics().bytes_in < 20_000


@covers("pipelined_bytes_max")
async def test_what_is_sent_ahead_is_bounded(connect, autojump_clock):
    """An application that waits for a disconnect reads ahead, but not without end."""

    async def app(scope, receive, send):
        await receive()
        await receive()

    peer = await connect(app, HttpLimits(pipelined_bytes_max=1000))
    await peer.send(GET + bytes(100_000))
    await trio.testing.wait_all_tasks_blocked()
    assert peer.server.statistics().bytes_in <= 16 * 1024 + 1000
    peer2 = await connect(app, HttpLimits(pipelined_bytes_max=1000))
    await peer2.send(GET, [len(GET) - 1])
    await peer2.send(bytes(100_000))
    await trio.testing.wait_all_tasks_blocked()
    assert peer2.server.statistics().bytes_in <= len(GET) + 1000


@covers("requests_per_connection_max")
async def test_a_connection_ends_after_so_many_requests(connect, recorder, answers_of):
    peer = await connect(recorder, HttpLimits(requests_per_connection_max=3))
    answers, rest = answers_of(await peer.exchange(GET * 5), ["GET"] * 5)
    assert [answer.headers.get(b"connection") for answer in answers] == [None, None, b"close"]
    assert rest == b""


@covers("lifespan_s")
async def test_an_application_that_never_starts(recorder, autojump_clock):
    async def app(scope, receive, send):
        await trio.sleep_forever()

    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(LifespanError, match="within 8 s"):
        await HttpServer(app, HttpLimits(lifespan_s=8)).serve([sock])


# tests/web_http/test_accept.py, test_drain.py, test_tls.py and test_websocket.py have these
covers("connections_max", "refuse_after_s", "grace_s", "tls_handshake_s")
covers("websocket_message_bytes_max", "websocket_queue_bytes_max", "websocket_ping_s")
covers("websocket_pong_s", "websocket_close_s")


def test_every_limit_is_tested():
    assert {item.name for item in dataclasses.fields(HttpLimits)} == COVERED
