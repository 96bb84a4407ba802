"""A bare HTTP server of sealed frames: what trio, httptools and AES-256-GCM can do, without an archive.

It reads with `preadv`, opens the seal and sends, one gather write an answer; it looks nothing up but a path
in a dictionary, checks nobody and counts nothing. The table says where each path's sealed bytes are and how
they open: they are an archive's own.

    python -m benchmarks.peers.sealed_frames --table TABLE --processes 2
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import secrets
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import httptools
import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

READ_BYTES = 16 * 1024
TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sealed:
    """One frame: which bytes of which file, and how they open."""

    file: str
    offset: int
    length: int
    key: bytes
    nonce: bytes
    bound_to: bytes


class Connection:
    """One client: llhttp calls back with the path."""

    def __init__(
        self, sock: trio.socket.SocketType, table: dict[bytes, Sealed], files: dict[str, int]
    ) -> None:
        self._sock = sock
        self._table = table
        self._files = files
        self._path = b""
        self._asked = False
        self._sealed = bytearray()
        self._plain = bytearray()

    def on_url(self, url: bytes) -> None:
        """The request's target."""
        self._path += url

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._asked = True

    async def serve(self) -> None:
        """Answer until the client goes."""
        parser = httptools.HttpRequestParser(self)
        while data := await self._sock.recv(READ_BYTES):
            parser.feed_data(data)
            if self._asked:
                await self._answer(self._table.get(self._path))
                self._path, self._asked = b"", False

    async def _answer(self, frame: Sealed | None) -> None:
        if frame is None:
            await self._sock.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        if len(self._plain) != frame.length:
            self._plain = bytearray(frame.length)
            self._sealed = bytearray(frame.length + TAG_BYTES)
        if os.preadv(self._files[frame.file], [self._sealed], frame.offset) != len(self._sealed):
            raise OSError("a frame's bytes are not there")
        AESGCM(frame.key).decrypt_into(frame.nonce, self._sealed, frame.bound_to, self._plain)
        boundary = secrets.token_hex(16).encode()
        part = b"--%b\r\nContent-Type: application/octet-stream\r\n\r\n" % boundary
        end = b"\r\n--%b--\r\n" % boundary
        head = (
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n"
            b'Content-Type: multipart/related; type="application/octet-stream"; boundary=%b\r\n\r\n'
        ) % (len(part) + frame.length + len(end), boundary)
        pieces = [memoryview(piece) for piece in (head + part, self._plain, end)]
        while pieces:
            sent = await self._sock.sendmsg(pieces)
            while pieces and sent >= len(pieces[0]):
                sent -= len(pieces.pop(0))
            if pieces:
                pieces[0] = pieces[0][sent:]


async def _serve(listener: socket.socket, table: dict[bytes, Sealed], files: dict[str, int]) -> None:
    accepting = trio.socket.from_stdlib_socket(listener)

    async def one(sock: trio.socket.SocketType) -> None:
        with sock, contextlib.suppress(ConnectionError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await Connection(sock, table, files).serve()

    async with trio.open_nursery() as nursery:
        while True:
            sock, _ = await accepting.accept()
            nursery.start_soon(one, sock)


def main() -> None:
    """Listens in so many processes, which share the port; prints `ready PORT`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.sealed_frames", description=__doc__)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    table: dict[bytes, Sealed] = pickle.loads(arguments.table.read_bytes())
    files = {name: os.open(name, os.O_RDONLY) for name in {one.file for one in table.values()}}
    listeners: list[socket.socket] = []
    for _ in range(arguments.processes):  # a queue of its own each: the kernel spreads the connections
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", listeners[0].getsockname()[1] if listeners else 0))
        sock.listen(64)
        listeners.append(sock)
    children = []
    for sock in listeners[1:]:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            trio.run(_serve, sock, table, files)
        children.append(pid)

    def stop(*_: object) -> None:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    print(f"ready {listeners[0].getsockname()[1]}", flush=True)
    trio.run(_serve, listeners[0], table, files)


if __name__ == "__main__":
    main()
