"""WebSocket against wsproto's client: handshake, messages both ways, pings, close codes, limits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from hounsfield.archive.web.http import ClientGoneError, HttpLimits


class Client:
    """wsproto in the client's role on a peer's stream."""

    def __init__(self, peer) -> None:
        self.peer = peer
        self.ws = WSConnection(ConnectionType.CLIENT)
        self.events: list = []

    async def open(self, target="/live?x=y", subprotocols=(), headers=()) -> None:
        await self.send(
            Request(host="a", target=target, subprotocols=list(subprotocols), extra_headers=list(headers))
        )

    async def send(self, event) -> None:
        await self.peer.stream.send_all(self.ws.send(event))

    async def next(self):
        while not self.events:
            data = await self.peer.stream.receive_some(65536)
            if not data:
                return None
            self.ws.receive_data(data)
            self.events.extend(self.ws.events())
        return self.events.pop(0)


@pytest.fixture
def client_of(connect):
    async def go(app, limits=None) -> Client:
        return Client(await connect(app, limits))

    return go


async def echo(scope, receive, send):
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    while (message := await receive())["type"] == "websocket.receive":
        if "text" in message:
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


async def test_text_bytes_and_subprotocol(client_of):
    client = await client_of(echo)
    await client.open(subprotocols=["live.v1", "live.v0"])
    accepted = await client.next()
    assert isinstance(accepted, AcceptConnection) and accepted.subprotocol == "live.v1"
    await client.send(TextMessage(data="Grüße"))
    assert (await client.next()).data == "Grüße"
    await client.send(BytesMessage(data=b"\x00\xff"))
    assert bytes((await client.next()).data) == b"\x00\xff"
    await client.send(TextMessage(data="in ", message_finished=False))
    await client.send(TextMessage(data="two", message_finished=True))
    assert (await client.next()).data == "in two"
    await client.send(CloseConnection(code=1000))
    assert (await client.next()).code == 1000
    assert await client.next() is None
    await client.peer.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert client.peer.server.statistics().websockets_open == 0


async def test_scope_and_bytes_sent_with_the_handshake(client_of):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await echo(scope, receive, send)

    client = await client_of(app)
    hello = client.ws.send(Request(host="a", target="/live?x=y"))
    early = bytearray(b"\x81\x82\0\0\0\0hi")  # a masked text frame that does not wait for the answer
    await client.peer.stream.send_all(hello + early)
    assert isinstance(await client.next(), AcceptConnection)
    assert (await client.next()).data == "hi"
    (scope,) = scopes
    assert (scope["type"], scope["scheme"], scope["path"], scope["query_string"]) == (
        "websocket",
        "ws",
        "/live",
        b"x=y",
    )
    assert "method" not in scope


async def test_refusal_is_403(client_of):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.close"})

    client = await client_of(app)
    await client.open()
    rejected = await client.next()
    assert isinstance(rejected, RejectConnection) and rejected.status_code == 403


async def test_refusal_with_a_response_of_the_applications(client_of):
    async def app(scope, receive, send):
        await receive()
        await send(
            {
                "type": "websocket.http.response.start",
                "status": 401,
                "headers": [(b"www-authenticate", b"Bearer")],
            }
        )
        await send({"type": "websocket.http.response.body", "body": b"who ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"are you?"})

    client = await client_of(app)
    await client.open()
    rejected = await client.next()
    assert rejected.status_code == 401
    body = b""
    while isinstance(event := await client.next(), RejectData):
        body += event.data
        if event.body_finished:
            break
    assert body == b"who are you?"


async def test_an_exception_before_accepting_is_500_and_after_it_1011(client_of):
    async def early(scope, receive, send):
        raise ValueError

    async def late(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        raise ValueError

    client = await client_of(early)
    await client.open()
    assert (await client.next()).status_code == 500
    client = await client_of(late)
    await client.open()
    assert isinstance(await client.next(), AcceptConnection)
    assert (await client.next()).code == 1011
    assert client.peer.server.statistics().app_errors == 1


async def test_the_applications_close_code_and_reason(client_of):
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4001, "reason": "signed out"})

    client = await client_of(app)
    await client.open()
    await client.next()
    close = await client.next()
    assert (close.code, close.reason) == (4001, "signed out")
    await client.send(close.response())
    assert await client.next() is None


async def test_pings_are_answered_while_the_application_is_busy(client_of):
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        await trio.sleep_forever()

    client = await client_of(app)
    await client.open()
    await client.next()
    await client.send(Ping(payload=b"there?"))
    pong = await client.next()
    assert isinstance(pong, Pong) and bytes(pong.payload) == b"there?"


def disconnects(log: list, accept=True):
    async def app(scope, receive, send):
        await receive()
        if accept:
            await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                log.append((message["code"], message["reason"]))
                try:
                    await send({"type": "websocket.send", "text": "too late"})
                except ClientGoneError:
                    log.append("gone")
                return

    return app


async def test_the_peers_close_reaches_the_application(client_of):
    log: list = []
    client = await client_of(disconnects(log))
    await client.open()
    await client.next()
    await client.send(CloseConnection(code=4002, reason="tab closed"))
    assert (await client.next()).code == 4002
    assert await client.next() is None
    assert log == [(4002, "tab closed"), "gone"]


async def test_a_peer_that_vanishes_is_1006(client_of):
    log: list = []
    client = await client_of(disconnects(log))
    await client.open()
    await client.next()
    await client.peer.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert log == [(1006, ""), "gone"]


async def test_broken_frames_are_1002(client_of):
    log: list = []
    client = await client_of(disconnects(log))
    await client.open()
    await client.next()
    await client.peer.stream.send_all(b"\xff\xff\xff\xff")
    assert (await client.next()).code == 1002
    await trio.testing.wait_all_tasks_blocked()
    assert log[0][0] == 1002


async def test_websocket_message_bytes_max(client_of, autojump_clock):
    log: list = []
    client = await client_of(disconnects(log), HttpLimits(websocket_message_bytes_max=100))
    await client.open()
    await client.next()
    await client.send(BytesMessage(data=bytes(60), message_finished=False))
    await client.send(BytesMessage(data=bytes(60), message_finished=False))
    assert (await client.next()).code == 1009
    await trio.testing.wait_all_tasks_blocked()
    assert log[0][0] == 1009


async def test_websocket_queue_bytes_max(client_of, autojump_clock):
    """An application that does not take its messages is back-pressure, not memory."""
    go_on = trio.Event()
    got = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while (message := await receive())["type"] == "websocket.receive":
            got.append(message["bytes"])

    limits = HttpLimits(websocket_queue_bytes_max=50_000, websocket_ping_s=1e9)
    client = await client_of(app, limits)
    await client.open()
    await client.next()
    for _ in range(100):
        await client.send(BytesMessage(data=bytes(10_000)))
    await trio.testing.wait_all_tasks_blocked()
    assert client.peer.server.statistics().bytes_in < 200_000
    go_on.set()
    await client.send(CloseConnection(code=1000))
    await client.next()
    assert [len(data) for data in got] == [10_000] * 100


async def test_websocket_ping_s_and_pong_s(client_of, autojump_clock):
    log: list = []
    client = await client_of(disconnects(log), HttpLimits(websocket_ping_s=20, websocket_pong_s=10))
    await client.open()
    await client.next()
    for _ in range(5):  # a peer that answers lives on
        ping = await client.next()
        await client.send(ping.response())
    assert trio.current_time() == pytest.approx(20 + 4 * 30)
    assert log == []
    assert isinstance(await client.next(), Ping)  # this one stays unanswered
    assert await client.next() is None
    assert log == [(1006, ""), "gone"]
    assert client.peer.server.statistics().timed_out == 1


async def test_websocket_close_s(client_of, autojump_clock):
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})

    client = await client_of(app, HttpLimits(websocket_close_s=5))
    await client.open()
    await client.next()
    assert (await client.next()).code == 1000
    assert await client.peer.read_until_closed() == b""  # we never answered its close
    assert trio.current_time() == pytest.approx(5)


async def test_going_away_is_1001(listening):
    log: list = []

    async def app(scope, receive, send):
        if scope["type"] != "websocket":
            raise NotImplementedError
        await disconnects(log)(scope, receive, send)

    async with listening(app) as (server, port):
        peer = SimpleNamespace(stream=await trio.open_tcp_stream("127.0.0.1", port))
        client = Client(peer)
        await client.open()
        assert isinstance(await client.next(), AcceptConnection)
        server.drain()
        close = await client.next()
        assert close.code == 1001
        await client.send(close.response())
        assert await client.next() is None
    assert log[0][0] == 1001


async def test_a_header_of_the_applications_cannot_inject(client_of):
    async def app(scope, receive, send):
        await send({"type": "websocket.accept", "headers": [(b"x", b"y\r\nset-cookie: a=b")]})

    client = await client_of(app)
    await client.open()
    assert (await client.next()).status_code == 500


async def test_sending_into_a_close_is_gone_and_not_misuse(client_of):
    """Message and close in one segment: the application answers when the close was read already."""
    client = await client_of(echo)
    frames = b"\x81\x82\0\0\0\0hi\x89\x80\0\0\0\0\x88\x82\0\0\0\0\x03\xe8"
    await client.peer.stream.send_all(client.ws.send(Request(host="a", target="/live")) + frames)
    await client.peer.stream.send_eof()
    await client.peer.read_until_closed()
    await trio.testing.wait_all_tasks_blocked()
    statistics = client.peer.server.statistics()
    assert (statistics.app_errors, statistics.websockets_open) == (0, 0)
