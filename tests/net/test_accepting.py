"""Accepting is shared with other workers, and survives running out of descriptors."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
import trio

from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.listener import Endpoint, Listener
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.wire import CEchoRequest, PresentationContext

ECHO_CONTEXT = PresentationContext(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",))


class Stingy(socket.socket):
    """A listening socket of a process that has no descriptors left, twice."""

    refusals = 2

    def accept(self) -> Any:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def _listening(kind: type[socket.socket] = socket.socket) -> socket.socket:
    sock = kind()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


async def test_workers_share_a_socket(sink: Any) -> None:
    with _listening() as sock:
        # one loop waits for a descriptor once: each has its own, as processes have
        workers = [Listener(sink, [Endpoint(sock.dup(), ListenerPolicy())]) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for worker in workers:
                await nursery.start(worker.serve)
            streams = [await trio.open_tcp_stream(*sock.getsockname()) for _ in range(12)]
            with trio.fail_after(30):
                while sum(worker.statistics().connections_open for worker in workers) < 12:
                    await trio.lowlevel.checkpoint()
            for stream in streams:
                await stream.aclose()
            nursery.cancel_scope.cancel()
        for worker in workers:
            worker.endpoints[0].sock.close()


async def test_the_busier_worker_leaves_connections_to_the_other(sink: Any) -> None:
    asked = 0

    def delay() -> float:
        nonlocal asked
        asked += 1
        return 3600.0

    with _listening() as sock:
        busy = Listener(sink, [Endpoint(sock.dup(), ListenerPolicy())], accept_delay=delay)
        idle = Listener(sink, [Endpoint(sock, ListenerPolicy())], accept_delay=lambda: 0.0)
        async with trio.open_nursery() as nursery:
            await nursery.start(busy.serve)
            await nursery.start(idle.serve)
            streams = [await trio.open_tcp_stream(*sock.getsockname()) for _ in range(4)]
            with trio.fail_after(30):
                while idle.statistics().connections_open < 4:
                    await trio.lowlevel.checkpoint()
            assert busy.statistics().connections_total == 0
            for stream in streams:
                await stream.aclose()
            nursery.cancel_scope.cancel()
        busy.endpoints[0].sock.close()
    assert asked


async def test_out_of_descriptors_pauses_and_goes_on(
    sink: Any, peer_to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hounsfield.archive.net.accepting._ACCEPT_PAUSE_S", 0.001)
    with _listening(Stingy) as sock:
        listener = Listener(sink, [Endpoint(sock, ListenerPolicy())], limits=NetLimits())
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve)

            class Address:
                @staticmethod
                async def connect() -> trio.SocketStream:
                    return await trio.open_tcp_stream(*sock.getsockname())

            peer = await peer_to(Address)
            await peer.associate(ECHO_CONTEXT)
            await peer.say(1, CEchoRequest(1))
            assert (await peer.response()).status == 0
            nursery.cancel_scope.cancel()
