"""A listener over a real engine on a temporary directory, and tools that call it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.listener import Endpoint, Listener
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.net.records import CallRecord, EndRecord, ListenerObserver
from hounsfield.archive.net.services import Service
from hounsfield.archive.wire import (
    NEED_DATA,
    AssociateAccept,
    AssociateRequest,
    Association,
    CommandReceived,
    DataFragment,
    Event,
    MessageReader,
    MessageWriter,
    PresentationContext,
    Role,
)
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import MasterKey, load_master_key

# Longer than anything here takes, so that a fault ends a test and not the run.
PATIENCE_S = 60


class Calls(ListenerObserver):
    """Remembers who called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[CallRecord] = []
        self.ends: list[EndRecord] = []
        self.aborted = 0

    def called(self, call: CallRecord) -> None:
        self.calls.append(call)

    def handshake_failed(self, call: CallRecord) -> None:
        self.calls.append(call)

    def ended(self, end: EndRecord) -> None:
        self.ends.append(end)

    def association_aborted(self) -> None:
        self.aborted += 1


@dataclass
class Archive:
    """A running listener and what is behind it."""

    engine: Any
    listener: Listener
    observer: Calls
    port: int
    nursery: trio.Nursery

    async def run(self, *command: object) -> subprocess.CompletedProcess[bytes]:
        """Run one of the peers' programs; PORT stands for our port."""
        words = [str(self.port) if word == "PORT" else str(word) for word in command]
        with trio.fail_after(PATIENCE_S):
            return await trio.run_process(
                words,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
                env={**os.environ, "TCP_NODELAY": "1"},
            )

    async def connect(self) -> trio.SocketStream:
        """A raw connection."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def stored(self, study: str, series: str, sop: str) -> bytes:
        """The data set that the engine gives back."""
        instance = (await self.engine.instances(study, series, sop))[0]
        return b"".join([bytes(piece) async for piece in self.engine.dataset(instance)])

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds; for what another task does soon."""
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await trio.lowlevel.checkpoint()


def listening_socket() -> socket.socket:
    """A listening socket on loopback, at a port of the kernel's choice."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    return sock


@pytest.fixture(scope="session")
def master_key() -> MasterKey:
    os.environ["HOUNSFIELD_TEST_KEY"] = os.urandom(32).hex()
    return load_master_key("env:HOUNSFIELD_TEST_KEY")


@asynccontextmanager
async def _engine(directory: Path, master: MasterKey, options: EngineOptions) -> AsyncIterator[Engine]:
    stores = Stores.open(directory, Keyring.create(directory / "keys", master), options)
    try:
        async with open_engine(stores, options, owner="test") as engine:
            yield engine
    finally:
        stores.close()


@asynccontextmanager
async def serve(sink: Any, policy: ListenerPolicy, **options: Any) -> AsyncIterator[Archive]:
    """A listener in front of ``sink``."""
    observer = options.setdefault("observer", Calls())
    if options.get("limits") is None:
        options["limits"] = NetLimits(linger_s=0.2)  # peers in tests may leave the closing to us
    tls = options.pop("tls", None)
    with listening_socket() as sock:
        listener = Listener(sink, [Endpoint(sock, policy, tls)], **options)
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve)
            try:
                yield Archive(sink, listener, observer, sock.getsockname()[1], nursery)
            finally:
                nursery.cancel_scope.cancel()


@pytest.fixture
def open_archive(tmp_path: Path, master_key: MasterKey) -> Callable[..., Any]:
    """``async with open_archive(policy=…, limits=…) as archive``: a listener over a real engine."""

    @asynccontextmanager
    async def opened(
        *,
        policy: ListenerPolicy | None = None,
        limits: NetLimits | None = None,
        engine_options: EngineOptions | None = None,
        provide: Callable[[Engine], Sequence[Service]] = lambda _: (),
        **options: Any,
    ) -> AsyncIterator[Archive]:
        data = tmp_path / "data"
        data.mkdir()
        async with _engine(data, master_key, engine_options or EngineOptions()) as engine:
            options = {"services": provide(engine), **options}
            async with serve(engine, policy or ListenerPolicy(), limits=limits, **options) as archive:
                yield archive

    return opened


@pytest.fixture(name="serve")
def serve_fixture() -> Callable[..., Any]:
    """``async with serve(sink, policy, …) as archive``: a listener over a stand-in."""
    return serve


class Peer:
    """A requestor made of the wire package and a raw stream: says exactly what a test wants said."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.association = Association(Role.REQUESTOR)
        self.writer = MessageWriter(self.association)
        self.reader = MessageReader()

    async def associate(self, *contexts: PresentationContext, **more: Any) -> AssociateAccept:
        answer = await self.request(*contexts, **more)
        assert isinstance(answer, AssociateAccept), answer
        return answer

    async def request(self, *contexts: PresentationContext, **more: Any) -> Event:
        words: dict[str, Any] = {"called_ae": "HOUNSFIELD", "calling_ae": "PEER", **more}
        await self.send(AssociateRequest(contexts=contexts, **words))
        return await self.event()

    async def send(self, pdu: Any) -> None:
        for buffer in self.association.send(pdu):
            await self.stream.send_all(buffer)

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def event(self) -> Event:
        """The next PDU, or the end."""
        with trio.fail_after(PATIENCE_S):
            while (event := self.association.next_event()) is NEED_DATA:
                try:
                    data = await self.stream.receive_some(65536)
                except trio.BrokenResourceError:
                    data = b""
                self.association.receive_data(data)
            return event

    async def say(self, context_id: int, command: Any, dataset: bytes | None = None) -> None:
        """Send a whole message."""
        if dataset is None:
            for buffer in self.writer.command(context_id, command):
                await self.stream.send_all(buffer)
            return
        for batch in self.writer.message(context_id, command, [dataset]):
            for buffer in batch:
                await self.stream.send_all(buffer)

    async def response(self) -> Any:
        """The next command that the other side says."""
        while True:
            event = await self.event()
            assert isinstance(event, DataFragment), event
            message = self.reader.receive(event)
            if isinstance(message, CommandReceived):
                return message.command

    async def message(self) -> tuple[int, Any, bytes]:
        """The next message that the other side says: its context, command and data set."""
        dataset = bytearray()
        command: Any = None
        while True:
            event = await self.event()
            assert isinstance(event, DataFragment), event
            message = self.reader.receive(event)
            if isinstance(message, CommandReceived):
                command = message.command
                if not command.has_dataset:
                    return message.context_id, command, b""
            elif message is not None:
                dataset += message.data
                if message.last:
                    return message.context_id, command, bytes(dataset)

    async def closed(self) -> None:
        """Wait for the end of the stream."""
        with trio.fail_after(PATIENCE_S):
            try:
                while await self.stream.receive_some(65536):
                    pass
            except trio.BrokenResourceError:
                pass


class HoldingSink:
    """Takes objects and commits them when told to; what was written stands in ``objects``."""

    def __init__(self) -> None:
        self.objects: list[bytes] = []
        self.abandoned = 0
        self.begun = 0
        self.failing: dict[str, Exception] = {}
        self.hold: trio.Event | None = None
        self.committing = trio.Event()

    def begin(self, **announced: Any) -> HoldingSession:
        if "begin" in self.failing:
            raise self.failing["begin"]
        self.begun += 1
        return HoldingSession(self)


class HoldingSession:
    def __init__(self, sink: HoldingSink) -> None:
        self._sink = sink
        self._data: bytearray | None = bytearray()

    async def write(self, data: Any, /) -> None:
        assert self._data is not None
        if "write" in self._sink.failing:
            self.abandon()
            raise self._sink.failing["write"]
        self._data += data

    async def commit(self) -> StoreResult:
        assert self._data is not None
        self._sink.committing.set()
        if self._sink.hold is not None:
            await self._sink.hold.wait()
        if "commit" in self._sink.failing:
            raise self._sink.failing["commit"]
        self._sink.objects.append(bytes(self._data))
        self._data = None
        return StoreResult(Outcome.STORED, "", "", "", "")

    def abandon(self) -> None:
        if self._data is not None:
            self._data = None
            self._sink.abandoned += 1


@pytest.fixture
def sink() -> HoldingSink:
    return HoldingSink()


@pytest.fixture
def peer_to() -> Callable[[Archive], Any]:
    """``peer = await peer_to(archive)``: a raw peer, connected."""

    async def connected(archive: Archive) -> Peer:
        return Peer(await archive.connect())

    return connected
