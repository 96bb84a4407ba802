"""One engine with both doors open, in this process: a DICOM listener and a DICOMweb server, on loopback.

And senders that say exactly what a test wants said, however wrong.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio

from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.rows import InstanceRow, QuarantineRow
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.listener import Endpoint, Listener
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.net.records import ListenerObserver
from hounsfield.archive.web import create_app
from hounsfield.archive.web.http import HttpServer
from hounsfield.archive.wire import (
    NEED_DATA,
    AssociateAccept,
    AssociateRequest,
    Association,
    CommandReceived,
    CStoreRequest,
    CStoreResponse,
    DataFragment,
    MessageReader,
    MessageWriter,
    PresentationContext,
    Role,
)
from support.archives import stores_in

PATIENCE_S = 60.0
_BOUNDARY = "b:0"


@dataclass
class FrontDoors:
    """A running archive, and how to look into it."""

    stores: Stores
    engine: Engine
    dicom_port: int
    http_port: int

    def quarantined(self) -> list[QuarantineRow]:
        with self.stores.store.snapshot() as snapshot:
            return list(self.stores.catalog.quarantined(snapshot))

    def quarantined_bytes(self, row: QuarantineRow) -> bytes:
        """The data set of an object in quarantine."""
        return b"".join(bytes(stretch) for stretch in self.stores.indexer.objects.data_set(row.location))

    def instance(self, study: str, series: str, sop: str) -> InstanceRow | None:
        with self.stores.store.snapshot() as snapshot:
            return self.stores.catalog.instance(snapshot, study, series, sop)

    def versions(self, study: str, series: str, sop: str) -> list[InstanceRow]:
        """What is kept beside it."""
        with self.stores.store.snapshot() as snapshot:
            key = self.stores.catalog.instance_key(study, series, sop)
            return list(self.stores.catalog.versions(snapshot, key))

    def bytes_of(self, row: InstanceRow) -> bytes:
        """The data set of one instance or version."""
        return b"".join(bytes(one) for piece in self.engine.records.pieces(row) for one in piece)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.http_port}", timeout=PATIENCE_S)

    async def stow(self, client: httpx.AsyncClient, *files: bytes) -> httpx.Response:
        """Store DICOM files in one request."""
        head = f"\r\n--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + one for one in files) + f"\r\n--{_BOUNDARY}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary="{_BOUNDARY}"'
        return await client.post("/dicom-web/studies", content=body, headers={"content-type": kind})

    @contextlib.asynccontextmanager
    async def sender(self, *contexts: tuple[str, str]) -> AsyncIterator[Sender]:
        """An association that proposes (SOP class, transfer syntax) pairs, each a context of its own."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.dicom_port)
        async with stream:
            sender = Sender(stream)
            await sender.associate(contexts)
            yield sender


class Sender:
    """Sends objects over one association."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._association = Association(Role.REQUESTOR)
        self._writer = MessageWriter(self._association)
        self._reader = MessageReader()
        self._contexts: dict[tuple[str, str], int] = {}
        self._number = 0

    async def associate(self, contexts: tuple[tuple[str, str], ...]) -> None:
        proposed = tuple(
            PresentationContext(2 * n + 1, sop_class, (syntax,))
            for n, (sop_class, syntax) in enumerate(contexts)
        )
        self._contexts = {pair: 2 * n + 1 for n, pair in enumerate(contexts)}
        request = AssociateRequest(contexts=proposed, called_ae="HOUNSFIELD", calling_ae="NONSENSE")
        for buffer in self._association.send(request):
            await self._stream.send_all(buffer)
        answer = await self._event()
        assert isinstance(answer, AssociateAccept), answer

    async def store(self, sop_class: str, syntax: str, sop_uid: str, data: bytes) -> CStoreResponse:
        """C-STORE; the response, whatever it says."""
        self._number += 1
        context = self._contexts[sop_class, syntax]
        command = CStoreRequest(self._number, sop_class, sop_uid)
        for batch in self._writer.message(context, command, [data]):
            for buffer in batch:
                await self._stream.send_all(buffer)
        while True:
            event = await self._event()
            assert isinstance(event, DataFragment), event
            message = self._reader.receive(event)
            if isinstance(message, CommandReceived):
                assert isinstance(message.command, CStoreResponse)
                return message.command

    async def _event(self) -> object:
        with trio.fail_after(PATIENCE_S):
            while (event := self._association.next_event()) is NEED_DATA:
                self._association.receive_data(await self._stream.receive_some(65536))
            return event


def part10(syntax: str, sop_class: str, sop_uid: str, data: bytes) -> bytes:
    """A DICOM file around a data set."""
    return file_header(syntax, sop_class, sop_uid) + data


@contextlib.asynccontextmanager
async def front_doors(directory: Path, options: EngineOptions | None = None) -> AsyncIterator[FrontDoors]:
    """An archive on a new (or old) data directory."""
    with stores_in(directory, options) as stores:
        async with open_engine(stores, options or EngineOptions(), owner="test") as engine:
            with (
                socket.create_server(("127.0.0.1", 0), backlog=16) as http,
                socket.create_server(("127.0.0.1", 0), backlog=16) as dicom,
            ):
                listener = Listener(
                    engine,
                    [Endpoint(dicom, ListenerPolicy(), None)],
                    observer=ListenerObserver(),
                    limits=NetLimits(linger_s=0.2),
                )
                async with trio.open_nursery() as nursery:
                    await nursery.start(listener.serve)
                    await nursery.start(HttpServer(create_app(engine)).serve, [http])
                    try:
                        yield FrontDoors(stores, engine, dicom.getsockname()[1], http.getsockname()[1])
                    finally:
                        nursery.cancel_scope.cancel()
