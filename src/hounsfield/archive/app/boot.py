"""What passes between the supervisor and a worker: one boot message, then small notes both ways.

Both ends hold one socket of a pair. A message is four bytes of length, then msgpack. The boot message
carries the configuration, the numbers of the inherited file descriptors, and the secrets, which therefore
never stand in an environment, on a command line or in a file of ours. When one side dies the other reads
the end of the stream.
"""

from __future__ import annotations

import socket
from typing import Any

import msgspec
import trio

from hounsfield.archive.config import Config

MESSAGE_BYTES_MAX = 64 << 20  # a page of search results is the largest thing that travels here
_LENGTH = 4


class ListenerFd(msgspec.Struct, frozen=True):
    """A listening socket that the worker inherits, and which listener of the configuration it belongs to."""

    kind: str  # "dicom" or "http"
    index: int
    fd: int
    host: str
    port: int


class Boot(msgspec.Struct, frozen=True):
    """All that a worker is told at its start."""

    worker: int
    workers: int
    config: Config
    directory: str
    listeners: tuple[ListenerFd, ...]
    scoreboard_fd: int
    scoreboard_tiers: tuple[str, ...]  # of the start: a reload may name others, and the page stays as it is
    wakeup_fds: tuple[int, ...]
    lock_fd: int
    root_key: bytes  # of the keyring: a master key that is rotated meanwhile does not matter
    log_salt: bytes
    first: bool = False  # nobody else has the archive open yet: recover it whole

    def __repr__(self) -> str:
        """Without the secrets, so that no traceback prints them."""
        return f"Boot(worker={self.worker})"


class ChannelClosed(Exception):  # noqa: N818 - an event, not a fault
    """The process at the other end is gone."""


def pack(message: Any) -> bytes:
    """The bytes of one message."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {len(body)} bytes is more than {MESSAGE_BYTES_MAX}")
    return len(body).to_bytes(_LENGTH, "big") + body


def receive_boot(sock: socket.socket) -> Boot:
    """Read the first message, blocking: the worker has nothing else to do yet."""
    return msgspec.msgpack.decode(_exactly(sock, int.from_bytes(_exactly(sock, _LENGTH), "big")), type=Boot)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise ChannelClosed
        data += chunk
    return bytes(data)


class Channel:
    """One end, on trio. Any task may send; one task receives."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._lock = trio.Lock()

    async def send(self, message: Any) -> None:
        """Send one message. Raises ChannelClosed."""
        data = pack(message)
        async with self._lock:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise ChannelClosed from None

    async def receive(self) -> dict[str, Any]:
        """Wait for the next message. Raises ChannelClosed at the end."""
        length = int.from_bytes(await self._exactly(_LENGTH), "big")
        if length > MESSAGE_BYTES_MAX:
            raise ChannelClosed
        message: dict[str, Any] = msgspec.msgpack.decode(await self._exactly(length))
        return message

    async def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                chunk = await self._stream.receive_some(count - len(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise ChannelClosed from None
            if not chunk:
                raise ChannelClosed
            data += chunk
        return bytes(data)

    async def aclose(self) -> None:
        """Close this end."""
        await self._stream.aclose()
