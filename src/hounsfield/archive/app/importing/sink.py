"""Where an import's objects go: through the doors of a running server, or into an engine in this process."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Final, Protocol

import msgspec
import trio

from hounsfield.archive.app.asking import ask, control_socket, short_name
from hounsfield.archive.app.data_directory import IMPORT
from hounsfield.archive.app.engine_options import engine_options
from hounsfield.archive.app.importing.doors import (
    ABANDON,
    BEGIN,
    COMMIT,
    DATA,
    DATA_BYTES_MAX,
    HEAD,
    HELLO,
    PROTOCOL,
    RESULT,
    VERSION,
    Announced,
    DoorError,
    Hello,
    Reader,
    Refusal,
    Stored,
    error_of,
    result_of,
)
from hounsfield.archive.app.importing.state import KEY_LABEL
from hounsfield.archive.app.offline import open_stores
from hounsfield.archive.app.route_options import coercions_of
from hounsfield.archive.config import Config
from hounsfield.archive.engine.engine import Engine, open_engine
from hounsfield.archive.engine.errors import ClosedError
from hounsfield.archive.engine.gate import SWITCH_SECONDS
from hounsfield.archive.engine.types import Source, StoreResult
from hounsfield.archive.errors import ControlError, NoServerError
from hounsfield.storage_backends.api import Buffer

AWAY_S: Final = 60.0
"""How long a server may be away, as when a service manager starts it again, until the import ends."""
GREETING_S: Final = 10.0
"""For a worker to say that it is there."""
LOOK_S: Final = 0.25
"""Between two looks whether it is back."""


class ServerLostError(ClosedError):
    """The server, or the worker that took this object, went away before it answered: it is sent again."""


class ServerGoneError(ControlError):
    """The server does not come back. What was acknowledged is in the archive."""


class Session(Protocol):
    """Receives one object; as an :class:`~hounsfield.archive.engine.ingest.IngestSession` does."""

    async def write(self, data: Buffer, /) -> None:
        """Copy ``data`` to the object's end. Raises EngineError."""

    async def commit(self) -> StoreResult:
        """Return once the object is durable. Raises EngineError: it is not."""

    def abandon(self) -> None:
        """Forget the object; nothing after a commit."""


class Sink(Protocol):
    """Where objects go. What is sent is always said to be imported."""

    state_key: bytes
    """For :class:`~.state.ImportState`."""

    def begin(
        self, *, transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str, source: Source
    ) -> Session:
        """A session for one object. Raises EngineError."""

    async def available(self) -> None:
        """Return when objects can be sent again, after a ServerLostError. Raises ServerGoneError."""


def imported(source: Source) -> Source:
    """How an object is said to have come that came to the import from ``source``."""
    return Source(PROTOCOL, source.calling_ae, source.called_ae, source.address)


def import_folder(config: Config) -> Path:
    """Where an archive keeps its doors, and what imports have done with."""
    return Path(config.archive.data).expanduser().absolute() / IMPORT


@asynccontextmanager
async def open_sink(config: Config) -> AsyncIterator[Sink]:
    """The archive of ``config.archive.data``: its server when one runs, else opened and locked here.

    Raises HounsfieldError, EngineError, StorageError.
    """
    try:
        await _serving(control_socket(config))
    except NoServerError:
        async with _open_here(config) as here:
            yield here
        return
    doors = Doors(import_folder(config))
    try:
        await doors.available()
        yield doors
    finally:
        doors.close()


async def _serving(socket_path: Path) -> None:
    """Return when the server there serves, and wait for one that starts. ControlError, NoServerError."""
    deadline = trio.current_time() + AWAY_S
    while (state := ask(socket_path, "status")["state"]) != "serving":
        if state != "starting" or trio.current_time() > deadline:
            raise ControlError(f"the server is {state}: try again when it serves")
        await trio.sleep(LOOK_S)


@asynccontextmanager
async def _open_here(config: Config) -> AsyncIterator[Sink]:
    sys.setswitchinterval(SWITCH_SECONDS)  # as in a worker
    with open_stores(config) as stores:
        await trio.to_thread.run_sync(lambda: stores.catch_up(at_start=True))
        options = engine_options(config, workers=1)
        async with open_engine(stores, options, owner="import") as engine:
            engine.use_coercions(coercions_of(config))
            yield _Here(engine)


class _Here:
    """An engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.state_key = engine.stores.keyring.derived_key(KEY_LABEL)

    def begin(
        self, *, transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str, source: Source
    ) -> Session:
        return self._engine.begin(
            transfer_syntax_uid=transfer_syntax_uid,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            source=imported(source),
        )

    async def available(self) -> None:
        await trio.lowlevel.checkpoint()


class _Line:
    """A connection to one worker."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.reader = Reader(sock)

    async def hello(self) -> Hello:
        kind, body = await self.message()
        if kind != HELLO:
            raise DoorError("no greeting")
        hello = msgspec.msgpack.decode(body, type=Hello)
        if hello.version != VERSION:
            raise ControlError(
                "the server is of another release than this command: use the one that it was started with"
            )
        return hello

    async def message(self) -> tuple[bytes, bytes]:
        head = await self.reader.head()
        if head is None:
            raise DoorError("the worker is gone")
        kind, length = head
        return kind, await self.reader.words(length)

    async def send(self, buffers: list[Buffer]) -> None:
        left = [memoryview(one) for one in buffers]
        while left:
            sent = await self.sock.sendmsg(left)
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def close(self) -> None:
        self.sock.close()


class Doors:
    """The workers of a running server. Connections are made as they are needed, and used again."""

    state_key = b""

    def __init__(self, folder: Path, *, away_s: float = AWAY_S) -> None:
        self._folder = folder
        self._away_s = away_s
        self._idle: list[_Line] = []
        self._turn = count()

    def begin(
        self, *, transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str, source: Source
    ) -> Session:
        announced = Announced(
            transfer_syntax_uid,
            sop_class_uid,
            sop_instance_uid,
            source.calling_ae,
            source.called_ae,
            source.address,
        )
        return _SentObject(self._take, self._idle.append, announced)

    async def available(self) -> None:
        deadline = trio.current_time() + self._away_s
        while True:
            line = await self._connect()
            if line is not None:
                self._idle.append(line)
                return
            if trio.current_time() > deadline:
                missing = "" if any(self._folder.glob("*.sock")) else f" (no door of it in {self._folder})"
                raise ServerGoneError(
                    f"the server ended, or is of another release{missing}, and none came within "
                    f"{self._away_s:.0f} s: start the import again to go on"
                )
            await trio.sleep(LOOK_S)

    def close(self) -> None:
        for line in self._idle:
            line.close()
        self._idle.clear()

    async def _take(self) -> _Line:
        """An idle line, or a new one. Raises ServerLostError."""
        if self._idle:
            return self._idle.pop()
        line = await self._connect()
        if line is None:
            raise ServerLostError("no worker of the server takes objects; sent again")
        return line

    async def _connect(self) -> _Line | None:
        """A new line, to one worker after the other; None when none listens."""
        paths = sorted(self._folder.glob("*.sock"))
        turn = next(self._turn)
        for number in range(len(paths)):
            path = paths[(turn + number) % len(paths)]
            sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            line = _Line(sock)
            try:
                with trio.fail_after(GREETING_S), short_name(path) as name:
                    await sock.connect(name)
                    hello = await line.hello()
            except (OSError, DoorError, trio.TooSlowError):  # of a worker that was killed, ends, or hangs
                line.close()
                continue
            except BaseException:
                line.close()
                raise
            self.state_key = hello.key
            return line
        return None


class _SentObject:
    """One object on its way to a worker."""

    def __init__(
        self,
        take: Callable[[], Awaitable[_Line]],
        give_back: Callable[[_Line], None],
        announced: Announced,
    ) -> None:
        self._take = take
        self._give_back = give_back
        self._announcement = msgspec.msgpack.encode(announced)
        self._line: _Line | None = None
        self._over = False

    async def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), DATA_BYTES_MAX):
            piece = view[start : start + DATA_BYTES_MAX]
            await self._send([HEAD.pack(DATA, len(piece)), piece])

    async def commit(self) -> StoreResult:
        await self._send([HEAD.pack(COMMIT, 0)])
        line = self._line
        assert line is not None
        try:
            kind, body = await line.message()
        except (OSError, DoorError) as error:
            self._end()
            raise ServerLostError("the server went away before it answered; sent again") from error
        except BaseException:
            self._end()
            raise
        self._line, self._over = None, True
        self._give_back(line)
        if kind == RESULT:
            return result_of(msgspec.msgpack.decode(body, type=Stored))
        raise error_of(msgspec.msgpack.decode(body, type=Refusal))

    def abandon(self) -> None:
        line = self._line
        if line is None:
            self._over = True
            return
        # Between two messages: the worker forgets the object, and the line is good for the next one.
        with contextlib.suppress(OSError):
            if line.sock.fileno() >= 0 and _at_once(line.sock, HEAD.pack(ABANDON, 0)):
                self._line, self._over = None, True
                self._give_back(line)
                return
        self._end()

    async def _send(self, buffers: list[Buffer]) -> None:
        if self._over:
            raise ClosedError("this object was abandoned or committed already")
        line = self._line
        try:
            if line is None:
                line = self._line = await self._take()
                buffers = [HEAD.pack(BEGIN, len(self._announcement)) + self._announcement, *buffers]
            await line.send(buffers)
        except OSError as error:
            self._end()
            raise ServerLostError("the server went away within an object; sent again") from error
        except BaseException:  # cancelled within a message
            self._end()
            raise

    def _end(self) -> None:
        """Hang up: the worker forgets what is not complete."""
        self._over = True
        line, self._line = self._line, None
        if line is not None:
            line.close()


def _at_once(sock: trio.socket.SocketType, data: bytes) -> bool:
    """Whether the few bytes could be sent without waiting."""
    with socket.socket(fileno=sock.fileno()) as plain:
        try:
            return plain.send(data, socket.MSG_DONTWAIT) == len(data)
        except BlockingIOError:
            return False
        finally:
            plain.detach()
