"""However TCP cuts a stream of requests: the same answers, and the application sees the same requests."""

from __future__ import annotations

import re

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.web.http import HttpLimits, HttpServer

LIMITS = HttpLimits(
    request_line_bytes_max=60, header_bytes_max=300, chunk_line_bytes_max=30, body_bytes_max=500
)

good = st.sampled_from(
    [
        b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HEAD /b HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n",
        b"\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /d HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello\r\n\r\nGE",
        b"POST /e HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n00\r\nT: u\r\n\r\n",
        b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /unread HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET /f HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET /" + b"g" * 80 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /h HTTP/1.1\r\nHost: a\r\n" + b"X: yyyyyyyyy\r\n" * 30 + b"\r\n",
        b"POST /i HTTP/1.1\r\nHost: a\r\nContent-Length: 501\r\n\r\n",
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Requests in a row, often with a few bytes changed."""
    wire = bytearray(b"".join(draw(st.lists(good, min_size=1, max_size=5))))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(wire)))
        change = draw(
            st.sampled_from([b"\n", b"\r", b"\r\n", b" ", b"\0", b":", b"0", b"F", b",", b"\r\n\r\n", b""])
        )
        wire[at : at + draw(st.integers(0, 2))] = change
    return bytes(wire)


async def answer(wire: bytes, cuts: list[int]) -> tuple[bytes, list]:
    seen: list = []

    async def app(scope, receive, send):
        body = b""
        if scope["path"] != "/unread":
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
        seen.append((scope["method"], scope["path"], scope["headers"], body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    server = HttpServer(app, LIMITS)
    ours, theirs = trio.testing.memory_stream_pair()
    out = b""

    async def read() -> None:
        nonlocal out
        while piece := await ours.receive_some(65536):
            out += piece

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, theirs)
        nursery.start_soon(read)
        at = 0
        try:
            for cut in [*sorted(cuts), len(wire)]:
                await ours.send_all(wire[at:cut])
                at = cut
                await trio.testing.wait_all_tasks_blocked()
            await ours.send_eof()
        except trio.BrokenResourceError:
            pass
    return re.sub(rb"date: [^\r]*\r\n", b"", out), seen


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_slicing_changes_nothing(data):
    wire = data.draw(streams())
    cuts = data.draw(
        st.one_of(
            st.lists(st.integers(0, len(wire)), max_size=8),
            st.just(list(range(len(wire)))),
        )
    )
    clock = trio.testing.MockClock()
    whole = trio.run(answer, wire, [], clock=clock)
    sliced = trio.run(answer, wire, cuts, clock=trio.testing.MockClock())
    assert sliced == whole
