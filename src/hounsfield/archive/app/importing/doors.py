"""The door of an import into a running server: each worker has one, a Unix socket of the archive's owner.

Objects go through it to the worker's engine as those do that a device sends. On a connection, one after the
other; several connections, several at once. Whoever may open the sockets may read the archive's keys.

::

    both ways   kind (1 byte) │ length (4, little-endian) │ that many bytes
    worker      H  msgpack {version, key}        at once
    importer    B  msgpack Announced             an object begins
                D  bytes                         … of its data set
                C                                that was all: make it durable
                X                                forget it
    worker      R  msgpack StoreResult           to C: it is durable
                E  msgpack Refusal               to C: it is not
"""

from __future__ import annotations

import contextlib
import socket
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Final

import msgspec
import trio

from hounsfield.archive.app.asking import short_name
from hounsfield.archive.app.importing.state import KEY_LABEL
from hounsfield.archive.engine import errors
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.ingest import IngestSession
from hounsfield.archive.engine.types import Outcome, Source, StoreResult

VERSION: Final = 1
HEAD: Final = Struct("<cI")
HELLO, BEGIN, DATA, COMMIT, ABANDON, RESULT, REFUSED = b"H", b"B", b"D", b"C", b"X", b"R", b"E"
PROTOCOL: Final = "import"
STALL_S: Final = 600.0
"""Within an object. An importer that waits for its own source gives up before; one that was stopped (SIGSTOP)
must not hold memory of the server for ever."""
CONNECTIONS_MAX: Final = 128
_WORDS_BYTES_MAX: Final = 64 << 10
DATA_BYTES_MAX: Final = 16 << 20
BUFFER_BYTES: Final = 512 << 10


class Hello(msgspec.Struct, frozen=True):
    """What a worker says first."""

    version: int
    key: bytes
    """Of the state file."""


class Announced(msgspec.Struct, frozen=True):
    """An object that is to come."""

    transfer_syntax: str
    sop_class: str
    sop_instance: str
    calling_ae: str
    called_ae: str
    address: str


class Stored(msgspec.Struct, frozen=True):
    """An object that is durable: a StoreResult."""

    outcome: str
    sop_class: str
    sop_instance: str
    study: str
    series: str
    warnings: tuple[str, ...]


class Refusal(msgspec.Struct, frozen=True):
    """An object that is not: the class and the text of an EngineError."""

    error: str
    text: str


class DoorError(Exception):
    """What came is no message of this protocol, or the other side is gone."""


def stored(result: StoreResult) -> Stored:
    """As it goes over the wire."""
    return Stored(
        result.outcome.name,
        result.sop_class_uid,
        result.sop_instance_uid,
        result.study_uid,
        result.series_uid,
        result.warnings,
    )


def result_of(one: Stored) -> StoreResult:
    """As it came over the wire."""
    return StoreResult(
        Outcome[one.outcome], one.sop_class, one.sop_instance, one.study, one.series, one.warnings
    )


@cache
def _error_classes() -> dict[str, type[EngineError]]:
    found = (getattr(errors, name) for name in vars(errors))
    return {one.__name__: one for one in found if isinstance(one, type) and issubclass(one, EngineError)}


def error_of(refusal: Refusal) -> EngineError:
    """The error that a worker's engine raised."""
    return _error_classes().get(refusal.error, EngineError)(refusal.text)


class Reader:
    """Messages from a socket; data is handed on as it lies in the buffer."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    async def head(self) -> tuple[bytes, int] | None:
        """Kind and length of the next message; None at the end. DoorError when it ends within one."""
        if not await self._fill(HEAD.size):
            return None
        kind, length = HEAD.unpack_from(self._view, self._start)
        self._start += HEAD.size
        if length > (DATA_BYTES_MAX if kind == DATA else _WORDS_BYTES_MAX):
            raise DoorError("a message is too long")
        return kind, length

    async def words(self, length: int) -> bytes:
        """A whole message that is no data."""
        if not await self._fill(length):
            raise DoorError("the connection ended within a message")
        self._start += length
        return bytes(self._view[self._start - length : self._start])

    async def some(self, length: int) -> memoryview:
        """Some of the next ``length`` bytes; valid until the next call."""
        if not await self._fill(1):
            raise DoorError("the connection ended within an object")
        taken = min(length, self._end - self._start)
        self._start += taken
        return self._view[self._start - taken : self._start]

    async def _fill(self, count: int) -> bool:
        """Have ``count`` bytes at hand; False when nothing more came at all."""
        have = self._end - self._start
        if have >= count:
            return True
        if BUFFER_BYTES - self._start < max(count, BUFFER_BYTES // 2):
            self._view[:have] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, have
        while self._end - self._start < count:
            try:
                received = await self._sock.recv_into(self._view[self._end :])
            except OSError:
                received = 0
            if not received:
                if self._end > self._start:
                    raise DoorError("the connection ended within a message")
                return False
            self._end += received
        return True


class ImportDoor:
    """One worker's door."""

    def __init__(self, engine: Engine, path: Path) -> None:
        """``path`` of the socket, whose folder exists and is the owner's alone."""
        self._engine = engine
        self._path = path
        self._idle: set[trio.CancelScope] = set()
        self._draining = False
        self._scope = trio.CancelScope()
        self._done = trio.Event()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take objects until :meth:`drain`, or until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                limit = trio.CapacityLimiter(CONNECTIONS_MAX)
                with self._listen() as sock:
                    try:
                        task_status.started()
                        with self._scope:
                            while True:
                                connection, _ = await sock.accept()
                                nursery.start_soon(self._connection, connection, limit)
                    finally:  # who comes now finds no door, and goes to another
                        with contextlib.suppress(OSError):
                            self._path.unlink()
        finally:
            self._done.set()

    async def drain(self) -> None:
        """Take no further object; return when those under way are done with."""
        self._draining = True
        self._scope.cancel()
        for scope in list(self._idle):
            scope.cancel()
        await self._done.wait()

    def _listen(self) -> trio.socket.SocketType:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # of a worker that was killed: nobody else has this number
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_name(self._path) as name:
                sock.bind(name)
            self._path.chmod(0o600)
            sock.listen(CONNECTIONS_MAX)
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        return trio.socket.from_stdlib_socket(sock)

    async def _connection(self, sock: trio.socket.SocketType, limit: trio.CapacityLimiter) -> None:
        with sock, contextlib.suppress(DoorError, OSError, msgspec.MsgspecError):
            async with limit:
                key = self._engine.stores.keyring.derived_key(KEY_LABEL)
                await send(sock, HELLO, msgspec.msgpack.encode(Hello(VERSION, key)))
                reader = Reader(sock)
                while not self._draining:
                    head: tuple[bytes, int] | None = None
                    with trio.CancelScope() as idle:
                        self._idle.add(idle)
                        try:
                            head = await reader.head()
                        finally:
                            self._idle.discard(idle)
                    if head is None:
                        return
                    kind, length = head
                    if kind != BEGIN:
                        raise DoorError("an object begins with its announcement")
                    announced = msgspec.msgpack.decode(await reader.words(length), type=Announced)
                    await self._object(sock, reader, announced)

    async def _object(self, sock: trio.socket.SocketType, reader: Reader, announced: Announced) -> None:
        session: IngestSession | None = None
        failure: EngineError | None = None
        try:
            try:
                session = self._engine.begin(
                    transfer_syntax_uid=announced.transfer_syntax,
                    sop_class_uid=announced.sop_class,
                    sop_instance_uid=announced.sop_instance,
                    source=Source(PROTOCOL, announced.calling_ae, announced.called_ae, announced.address),
                )
            except EngineError as error:
                failure = error
            while True:
                with trio.move_on_after(STALL_S):
                    head = await reader.head()
                    if head is None:
                        raise DoorError("the connection ended within an object")
                    kind, left = head
                    while kind == DATA and left:
                        data = await reader.some(left)
                        left -= len(data)
                        if session is not None:
                            try:
                                await session.write(data)
                            except EngineError as error:
                                failure, session = error, None
                    if kind == DATA:
                        continue
                    break
                raise DoorError("an object does not go on")
            if kind == ABANDON:
                return
            if kind != COMMIT:
                raise DoorError("an object ends with a commit, or is abandoned")
            if session is not None:
                try:
                    result = await session.commit()
                except EngineError as error:
                    failure = error
                else:
                    await send(sock, RESULT, msgspec.msgpack.encode(stored(result)))
                    return
            assert failure is not None
            refusal = Refusal(type(failure).__name__, str(failure))
            await send(sock, REFUSED, msgspec.msgpack.encode(refusal))
        finally:
            if session is not None:
                session.abandon()


async def send(sock: trio.socket.SocketType, kind: bytes, body: bytes) -> None:
    """One short message."""
    data = memoryview(HEAD.pack(kind, len(body)) + body)
    while data:
        data = data[await sock.send(data) :]
