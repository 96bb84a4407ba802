"""Whatever bytes come, however sliced: the connection ends and nothing is blamed on the application."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.web.http import HttpServer

HANDSHAKE = (
    b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
SEEDS = [
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: u\r\n\r\n",
    HANDSHAKE + b"\x81\x82\0\0\0\0hi\x89\x80\0\0\0\0\x88\x82\0\0\0\0\x03\xe8",
    HANDSHAKE + b"\x01\x82\0\0\0\0\xc3\xa4\x80\x81\0\0\0\0!\x82\xfe\x00\x05\0\0\0\0hello",
]


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": "x"})
        return
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


async def talk(wire: bytes, cuts: list[int]) -> None:
    server = HttpServer(app)
    ours, theirs = trio.testing.memory_stream_pair()

    async def read() -> None:
        while await ours.receive_some(65536):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, theirs)
        nursery.start_soon(read)
        try:
            at = 0
            for cut in [*cuts, len(wire)]:
                await ours.send_all(wire[at:cut])
                at = cut
                await trio.testing.wait_all_tasks_blocked()
            await ours.send_eof()
        except trio.BrokenResourceError:
            pass
    statistics = server.statistics()
    assert statistics.app_errors == 0
    assert statistics.connections_open == statistics.websockets_open == statistics.requests_in_flight == 0


@settings(max_examples=200, deadline=None)
@given(
    seeds=st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3),
    changes=st.lists(
        st.tuples(
            st.integers(0, 600), st.integers(0, 3), st.binary(max_size=9) | st.sampled_from([b"\r\n", b"\n"])
        ),
        max_size=5,
    ),
    cuts=st.lists(st.integers(0, 600), max_size=4).map(sorted),
)
def test_any_bytes_end_in_order(seeds, changes, cuts):
    wire = bytearray(b"".join(seeds))
    for at, removed, put in changes:
        wire[at : at + removed] = put
    trio.run(talk, bytes(wire), cuts, clock=trio.testing.MockClock(autojump_threshold=0))
