"""A peer that writes in two pieces does not wait 40 ms for the kernel's acknowledgement of the first."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
import trio
import trio.testing

from hounsfield.archive.net.transport import SocketTransport, StreamTransport, acknowledge_at_once


class Below(trio.abc.HalfCloseableStream):
    """A stream over a socket, as TLS is."""

    def __init__(self, below: trio.SocketStream) -> None:
        self.transport_stream = below

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.transport_stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.transport_stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.transport_stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.transport_stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.transport_stream.aclose()


def raw(stream: trio.SocketStream) -> tuple[SocketTransport, socket.socket]:
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return SocketTransport(sock, 1 << 20), sock


def layered(stream: trio.SocketStream) -> tuple[StreamTransport, trio.socket.SocketType]:
    return StreamTransport(Below(stream)), stream.socket


@pytest.mark.parametrize("over", [raw, layered])
async def test_who_waits_has_said_that_it_acknowledges_at_once(
    over: Callable[[trio.SocketStream], tuple[SocketTransport | StreamTransport, socket.socket]],
) -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def answering(stream: trio.SocketStream) -> None:
                async with stream:
                    while data := await stream.receive_some():
                        await stream.send_all(data)

            (listener,) = await nursery.start(lambda task_status: trio.serve_tcp(
                answering, 0, host="127.0.0.1", task_status=task_status
            ))  # fmt: skip
            port = listener.socket.getsockname()[1]
            transport, sock = over(await trio.open_tcp_stream("127.0.0.1", port))
            view = memoryview(bytearray(100))
            for _ in range(3):  # question and answer: the kernel begins to hold back
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
                await transport.send([b"question"])
                assert await transport.receive(view) == 8
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 0
            nursery.start_soon(transport.receive, view)
            await trio.testing.wait_all_tasks_blocked()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1
            nursery.cancel_scope.cancel()
        await transport.aclose()


def test_what_is_no_tcp_is_left_alone() -> None:
    one, other = socket.socketpair()
    with one, other:
        acknowledge_at_once(one)
