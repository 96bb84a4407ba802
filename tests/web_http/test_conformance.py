"""HTTP/1.1 as peers rely on it: framing, keep-alive, pipelining, HEAD and bodiless statuses, 100-continue."""

# ruff: noqa: E501 - one row of the table, one line
from __future__ import annotations

import pytest
import trio
import trio.testing

from hounsfield.archive.web.http import GATHER, HttpLimits


def responder(status=200, headers=(), bodies=(b"",), more_at_end=False):
    """An application that sends these pieces, whatever it is asked."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for index, body in enumerate(bodies):
            last = index == len(bodies) - 1 and not more_at_end
            await send({"type": "http.response.body", "body": body, "more_body": not last})

    return app


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
CL = b"content-length"
TE = b"transfer-encoding"

# name, application, request, status, Content-Length, Transfer-Encoding, body
FRAMING = [
    ("one body gets a length", responder(bodies=[b"hello"]), GET, 200, b"5", None, b"hello"),
    ("an empty body gets a length", responder(), GET, 200, b"0", None, b""),
    ("a stream is chunked", responder(bodies=[b"he", b"", b"llo"]), GET, 200, None, b"chunked", b"hello"),
    ("a stream may end empty", responder(bodies=[b"hello", b""]), GET, 200, None, b"chunked", b"hello"),
    ("a stream may start empty", responder(bodies=[b"", b"hello"]), GET, 200, None, b"chunked", b"hello"),
    (
        "a stream with a length is not chunked",
        responder(headers=[(CL, b"5")], bodies=[b"he", b"llo"]),
        GET,
        200,
        b"5",
        None,
        b"hello",
    ),
    ("a stream on 1.0 ends with the connection", responder(bodies=[b"he", b"llo"]), GET_1_0, 200, None, None, b"hello"),
    ("one body on 1.0 gets a length", responder(bodies=[b"hello"]), GET_1_0, 200, b"5", None, b"hello"),
    ("HEAD has the length and no body", responder(bodies=[b"hello"]), HEAD, 200, b"5", None, b""),
    ("HEAD with the application's length", responder(headers=[(CL, b"7")]), HEAD, 200, b"7", None, b""),
    ("HEAD of a stream", responder(bodies=[b"he", b"llo"]), HEAD, 200, None, None, b""),
    ("204 has no length and no body", responder(204, [(CL, b"5")], [b"hello"]), GET, 204, None, None, b""),
    ("304 keeps its length and has no body", responder(304, [(CL, b"5")]), GET, 304, b"5", None, b""),
    ("the application may name chunked", responder(headers=[(TE, b"chunked")], bodies=[b"a", b"b"]), GET, 200, None, b"chunked", b"ab"),
    ("bytearray", responder(bodies=[bytearray(b"hello")]), GET, 200, b"5", None, b"hello"),
    ("memoryview", responder(bodies=[memoryview(b"hello")]), GET, 200, b"5", None, b"hello"),
    ("wide memoryview", responder(bodies=[memoryview(bytes(8)).cast("Q")]), GET, 200, b"8", None, bytes(8)),
    ("gathered parts", responder(bodies=[[b"he", memoryview(b"ll"), bytearray(b"o")]]), GET, 200, b"5", None, b"hello"),
    ("gathered stream", responder(bodies=[(b"he", b"l"), [b"lo"]]), GET, 200, None, b"chunked", b"hello"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("app", "wire", "status", "length", "coding", "body"),
    [pytest.param(*row[1:], id=row[0]) for row in FRAMING],
)
async def test_framing(app, wire, status, length, coding, body, connect, answers_of):
    peer = await connect(app)
    method = wire.split(b" ")[0].decode()
    answers, rest = answers_of(await peer.exchange(wire), [method])
    (answer,) = answers
    assert (answer.status, answer.headers.get(CL), answer.headers.get(TE), answer.body) == (
        status,
        length,
        coding,
        body,
    )
    assert rest == b""
    assert answer.headers[b"server"] == b"hounsfield"
    assert answer.headers[b"date"].endswith(b" GMT")


async def test_large_bodies_arrive_whole_over_a_real_socket(listening):
    big = bytes(range(256)) * 16384  # 4 MiB: past every socket buffer, so that writing has to wait
    async with listening(responder(bodies=[memoryview(big), [big[:100], big[100:]], big])) as (server, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()  # our buffers are full, the server waits
        got = b"".join([piece async for piece in stream])
        assert got.partition(b"\r\n\r\n")[2] == big * 3
        assert server.statistics().bytes_out == len(got)


async def test_pipelined_requests_are_answered_in_order(connect, recorder, answers_of):
    peer = await connect(recorder)
    wire = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (i, i % 7, b"x" * (i % 7))
        for i in range(50)
    )
    answers, rest = answers_of(await peer.exchange(wire), ["POST"] * 50)
    assert [len(answer.body) for answer in answers] == [i % 7 for i in range(50)]
    assert [path for _, path, _ in recorder.seen] == [f"/{i}" for i in range(50)]
    assert rest == b""


async def test_keep_alive_and_close(connect, recorder, answers_of):
    peer = await connect(recorder)
    await peer.send(GET)
    answers, _ = answers_of(await peer.read_available(), ["GET"])
    assert b"connection" not in answers[0].headers
    await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answers, _ = answers_of(await peer.read_until_closed(), ["GET"])
    assert answers[0].headers[b"connection"] == b"close"


async def test_http_1_0_stays_open_only_when_asked(connect, recorder, answers_of):
    peer = await connect(recorder)
    await peer.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    answers, _ = answers_of(await peer.read_available(), ["GET"])
    assert answers[0].headers[b"connection"] == b"keep-alive"
    await peer.send(GET_1_0)
    answers, _ = answers_of(await peer.read_until_closed(), ["GET"])
    assert answers[0].headers[b"connection"] == b"close"


async def test_the_application_may_close(connect, answers_of):
    peer = await connect(responder(headers=[(b"Connection", b"close")], bodies=[b"bye"]))
    await peer.send(GET)
    answers, _ = answers_of(await peer.read_until_closed(), ["GET"])
    assert answers[0].headers[b"connection"] == b"close"


EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"


async def test_continue_is_sent_when_the_application_first_reads(connect, recorder, answers_of):
    peer = await connect(recorder)
    await peer.send(EXPECT)
    assert await peer.read_available() == b"HTTP/1.1 100 Continue\r\n\r\n"
    answers, _ = answers_of(await peer.exchange(b"hello"), ["POST"])
    assert answers[0].body == b"hello"


async def test_continue_is_not_sent_when_the_body_is_there_already(connect, recorder, answers_of):
    peer = await connect(recorder)
    answers, _ = answers_of(await peer.exchange(EXPECT + b"hello"), ["POST"])
    assert answers[0].informational == []
    assert answers[0].body == b"hello"


async def test_continue_is_not_sent_to_http_1_0(connect, recorder):
    peer = await connect(recorder)
    await peer.send(EXPECT.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert await peer.read_available() == b""


async def test_refusing_without_reading_sends_no_continue_and_closes(connect, answers_of):
    """Nobody can tell whether the body still comes, so the next request could not be found."""
    peer = await connect(responder(413))
    await peer.send(EXPECT)
    answers, _ = answers_of(await peer.read_until_closed(), ["POST"])
    assert (answers[0].status, answers[0].informational) == (413, [])
    assert answers[0].headers[b"connection"] == b"close"


async def test_an_unread_body_is_swallowed_and_the_connection_lives(connect, answers_of):
    peer = await connect(responder())
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    sized = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    answers, rest = answers_of(await peer.exchange(sized + chunked + GET), ["POST", "POST", "GET"])
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert rest == b""


async def test_a_long_unread_body_closes_the_connection(connect, answers_of, autojump_clock):
    peer = await connect(responder(), HttpLimits(body_unread_max=10))
    wire = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n" + b"x" * 100 + GET
    answers, rest = answers_of(await peer.exchange(wire), ["POST"])
    assert answers[0].headers[b"connection"] == b"close"
    assert rest == b""


async def test_bodies_are_back_pressure(connect):
    """While the application does not read, the server takes nothing more from the peer."""
    go_on = trio.Event()

    async def app(scope, receive, send):
        await receive()
        await go_on.wait()
        while (await receive())["more_body"]:
            pass
        await responder()(scope, receive, send)

    peer = await connect(app)
    total = 4_000_000
    await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % total)
    for _ in range(40):
        await peer.send(bytes(100_000))
    await trio.testing.wait_all_tasks_blocked()
    assert peer.server.statistics().bytes_in < 600_000
    go_on.set()
    assert (await peer.read_available()).startswith(b"HTTP/1.1 200 ")
    assert peer.server.statistics().bytes_in > total


async def test_a_buffer_may_be_reused_once_send_returns(listening):
    """The body is handed to the kernel, not kept: an engine can open the next frame into the same memory."""
    buffer = bytearray(1 << 20)

    async def app(scope, receive, send):
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(CL, b"%d" % (len(buffer) * 8))]}
        )
        for value in range(8):
            buffer[:] = bytes([value]) * len(buffer)
            await send({"type": "http.response.body", "body": buffer, "more_body": value < 7})

    async with listening(app) as (_, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        got = b"".join([piece async for piece in stream]).partition(b"\r\n\r\n")[2]
        assert got == b"".join(bytes([value]) * len(buffer) for value in range(8))


async def test_scope(connect, recorder):
    peer = await connect(recorder)
    await peer.exchange(
        b"GET /a%20b/%C3%A4?q=%C3%A4&r HTTP/1.1\r\nHost: a:8042\r\nX-One:  1 \r\nx-one: 2\r\n\r\n"
    )
    (scope,) = recorder.scopes
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert scope["path"] == "/a b/ä"
    assert scope["raw_path"] == b"/a%20b/%C3%A4"
    assert scope["query_string"] == b"q=%C3%A4&r"
    assert scope["headers"] == [(b"host", b"a:8042"), (b"x-one", b"1"), (b"x-one", b"2")]
    assert (scope["method"], scope["scheme"], scope["http_version"]) == ("GET", "http", "1.1")
    assert scope["client"] == ("192.0.2.1", 4711)
    assert GATHER in scope["extensions"]


async def test_receive_after_the_body_waits_for_the_client_to_go(connect):
    events = []

    async def app(scope, receive, send):
        events.append((await receive())["type"])
        events.append((await receive())["type"])

    peer = await connect(app)
    await peer.send(GET)
    assert await peer.read_available() == b""
    assert events == ["http.request"]
    await peer.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert events == ["http.request", "http.disconnect"]


async def test_waiting_for_the_client_keeps_pipelined_requests(connect, answers_of):
    """A long poll listens for a disconnect and meets the next request instead: it must not be lost."""

    async def app(scope, receive, send):
        await receive()
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                assert (await receive())["type"] == "http.disconnect"  # because the response is complete

            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            await responder(bodies=[scope["path"].encode()])(scope, receive, send)

    peer = await connect(app)
    wire = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(2))
    await peer.send(wire + b"GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answers, _ = answers_of(await peer.read_until_closed(), ["GET"] * 3)
    assert [answer.body for answer in answers] == [b"/0", b"/1", b"/2"]


async def test_writing_to_a_client_that_is_gone_is_an_oserror(listening):
    failures = []
    done = trio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for _ in range(10_000):
                await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        except OSError as error:
            failures.append(error)
            raise
        finally:
            done.set()

    async with listening(app) as (server, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(GET)
        await stream.receive_some(1)
        await stream.aclose()
        with trio.fail_after(30):
            await done.wait()
        assert len(failures) == 1
        assert server.statistics().app_errors == 0


async def test_gathering_more_buffers_than_the_kernel_takes_at_once(listening):
    """A multipart answer of many small frames: IOV_MAX is 1,024."""
    parts = [b"%05d" % i for i in range(5000)]
    async with listening(responder(bodies=[parts, [memoryview(bytes(8)).cast("Q")]])) as (_, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        got = b"".join([piece async for piece in stream]).partition(b"\r\n\r\n")[2]
        assert got == b"".join(parts) + bytes(8)
