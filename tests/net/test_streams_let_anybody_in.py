"""Listeners of plugins: strangers, crowds, half handshakes, and an end that cuts no answer off."""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from hounsfield.archive.net.policy import networks
from hounsfield.archive.net.streams import StreamEndpoint, StreamLimits, StreamServer
from hounsfield.archive.net.tls import server_context
from hounsfield.archive.plugins import Serve, StreamPeer
from support.pki import Authority

PATIENCE_S = 30.0


class Counts:
    """Of one process."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()

    def opened(self, listener: str) -> int:
        self.open[listener] += 1
        return self.open[listener]

    def closed(self, listener: str) -> None:
        self.open[listener] -= 1


async def echo(stream: trio.abc.Stream, peer: StreamPeer) -> None:
    while data := await stream.receive_some(100):
        if data == b"FAIL":
            raise RuntimeError("SECRET^NAME")
        await stream.send_all(f"{peer.listener} {peer.address} ".encode() + data)


@asynccontextmanager
async def serving(
    serve: Serve = echo, *, limits: StreamLimits | None = None, **more: Any
) -> AsyncIterator[tuple[StreamServer, int, Counts]]:
    with socket.create_server(("127.0.0.1", 0)) as sock, trio.fail_after(PATIENCE_S):
        counts = Counts()
        endpoint = StreamEndpoint("some.line", sock, serve, **more)
        server = StreamServer([endpoint], counts, limits=limits)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve)
            yield server, sock.getsockname()[1], counts
            await server.drain()
            assert counts.open["some.line"] == 0


async def connected(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def said(stream: trio.abc.Stream, words: bytes) -> bytes:
    """What is answered; b"" when the connection is closed or broken."""
    try:
        await stream.send_all(words)
        return bytes(await stream.receive_some(100))
    except trio.BrokenResourceError:
        return b""


async def test_who_may_connect_is_told_who_it_is() -> None:
    async with serving(sources=networks(["127.0.0.0/8"])) as (_, port, _), await connected(port) as stream:
        assert await said(stream, b"x") == b"line 127.0.0.1 x"


async def test_a_stranger_hears_nothing() -> None:
    async with serving(sources=networks(["192.0.2.0/24"])) as (server, port, _):
        async with await connected(port) as stream:
            assert await said(stream, b"x") == b""
        assert server.refused == 1


async def test_past_the_limit_nobody_is_served_and_then_somebody_again() -> None:
    async with serving(connections_max=2) as (_, port, counts):
        first, second = await connected(port), await connected(port)
        for each in (first, second):
            assert await said(each, b"x")
        async with await connected(port) as third:
            assert await said(third, b"x") == b""
        await first.aclose()
        while counts.open["some.line"] > 1:
            await trio.sleep(0)
        async with await connected(port) as fourth:
            assert await said(fourth, b"x")
        await second.aclose()


async def test_what_fails_ends_one_connection_and_tells_nobody_why() -> None:
    with capture_logs() as logs:
        async with serving() as (_, port, _):
            first, second = await connected(port), await connected(port)
            assert await said(first, b"FAIL") == b""
            assert await said(second, b"x")
            await first.aclose()
            await second.aclose()
    assert [each["error_type"] for each in logs if each["log_level"] == "error"] == ["RuntimeError"]
    assert "SECRET" not in str(logs)


async def test_the_end_answers_what_came_whole_and_reads_no_more() -> None:
    answering, goes_on = trio.Event(), trio.Event()

    async def slow(stream: trio.abc.Stream, peer: StreamPeer) -> None:
        if await stream.receive_some(100) != b"whole":
            return
        answering.set()
        await goes_on.wait()
        await stream.send_all(b"acknowledged")
        assert await stream.receive_some(100) == b""  # though more has come

    async with serving(slow) as (server, port, counts):
        busy, idle = await connected(port), await connected(port)
        await busy.send_all(b"whole")
        await answering.wait()
        await busy.send_all(b"half of ano")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain)
            assert await idle.receive_some(100) == b""  # it was asked for nothing
            assert counts.open["some.line"] >= 1
            goes_on.set()
            assert await busy.receive_some(100) == b"acknowledged"
            assert await busy.receive_some(100) == b""
            await busy.aclose()
            await idle.aclose()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


def contexts(authority: Authority, *, asked: bool) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    shown = authority.sign("server")
    ours = server_context(shown.pem, shown.key, client_ca=authority.pem if asked else None)
    theirs = ssl.create_default_context(cafile=str(authority.pem))
    return ours, theirs


async def shaken(port: int, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    return trio.SSLStream(await connected(port), context, server_hostname="127.0.0.1")


async def test_tls_is_spoken_and_ends_in_order(authority: Authority) -> None:
    ours, theirs = contexts(authority, asked=False)

    async def once(stream: trio.abc.Stream, peer: StreamPeer) -> None:
        await stream.send_all(b"got " + await stream.receive_some(100))

    async with serving(once, tls=ours) as (_, port, _):
        stream = await shaken(port, theirs)
        assert await said(stream, b"x") == b"got x"
        assert await stream.receive_some(1) == b""  # close_notify: not cut off
        await trio.aclose_forcefully(stream)


async def test_who_shows_no_certificate_where_one_is_asked_for_is_not_served(
    authority: Authority, tmp_path: Path
) -> None:
    ours, theirs = contexts(authority, asked=True)
    with capture_logs() as logs:
        async with serving(tls=ours) as (_, port, _):
            stream = await shaken(port, theirs)
            with pytest.raises(trio.BrokenResourceError) as told:
                await stream.receive_some(1)
            assert "certificate_required" in str(told.value.__cause__).replace(" ", "_")
            await trio.aclose_forcefully(stream)
            shown = authority.sign("client")
            theirs.load_cert_chain(shown.pem, shown.key)
            stream = await shaken(port, theirs)
            assert await said(stream, b"x") == b"line 127.0.0.1 x"
            await trio.aclose_forcefully(stream)
    (failed,) = (each for each in logs if each["event"] == "a TLS handshake failed")
    assert "peer did not return a certificate" in failed["reason"]


async def test_half_handshakes_make_room_for_each_other(authority: Authority) -> None:
    ours, theirs = contexts(authority, asked=False)
    limits = StreamLimits(handshakes_max=2)
    with capture_logs() as logs:
        async with serving(tls=ours, limits=limits) as (_, port, _):
            idle = [await connected(port) for _ in range(3)]
            assert await idle[0].receive_some(1) == b""  # the oldest
            stream = await shaken(port, theirs)
            assert await said(stream, b"x") == b"line 127.0.0.1 x"
            await trio.aclose_forcefully(stream)
            for each in idle:
                await each.aclose()
    assert "evicted" in next(each["reason"] for each in logs if each["event"] == "a TLS handshake failed")


async def test_a_handshake_has_its_time(authority: Authority, autojump_clock: trio.testing.MockClock) -> None:
    ours, _ = contexts(authority, asked=False)
    stream, peer = trio.testing.memory_stream_pair()
    limits = StreamLimits()
    server = StreamServer([], Counts(), limits=limits)
    endpoint = StreamEndpoint("some.line", socket.socket(), echo, tls=ours)
    began = trio.current_time()
    with capture_logs() as logs:
        shaking = trio.SSLStream(stream, ours, server_side=True)
        deadline = trio.current_time() + limits.handshake_s
        assert not await server.shake_hands(endpoint, shaking, "192.0.2.1", deadline)  # type: ignore[arg-type]
    assert trio.current_time() - began == limits.handshake_s
    assert logs[0]["reason"] == "too slow"
    endpoint.sock.close()
    await peer.aclose()
