"""Whatever a peer says in whatever order: nothing fails on our side, nothing is left behind, all ends."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.net.services import Service
from hounsfield.archive.wire import (
    NEED_DATA,
    Abort,
    AsynchronousOperations,
    CCancelRequest,
    CEchoRequest,
    CFindRequest,
    CFindResponse,
    CGetRequest,
    CGetResponse,
    CommandReceived,
    CStoreRequest,
    CStoreResponse,
    DataFragment,
    LocalProtocolError,
    NActionRequest,
    NActionResponse,
    NEventReportRequest,
    NEventReportResponse,
    PresentationContext,
    ReleaseRequest,
    RemoteProtocolError,
    RoleSelection,
    TransportClosed,
    UserInformation,
    encode_command,
)

EXPLICIT = "1.2.840.10008.1.2.1"
CT, FIND, GET, COMMITMENT = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.2.2.1",
    "1.2.840.10008.5.1.4.1.2.2.3",
    "1.2.840.10008.1.20.1",
)
CONTEXTS = tuple(
    PresentationContext(2 * number + 1, uid, (EXPLICIT,))
    for number, uid in enumerate(("1.2.840.10008.1.1", CT, FIND, GET, COMMITMENT))
)
PENDING, CANCEL = 0xFF00, 0xFE00
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, LocalProtocolError)  # or it has said goodbye
OURS = {"an association failed", "a connection failed", "an operation failed"}


class Work:
    """Long operations of all kinds, that take their time."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.begun = self.ended = 0

    @property
    def services(self) -> list[Service]:
        return [
            Service("find", frozenset({FIND}), {CFindRequest: self}),
            Service("get", frozenset({GET}), {CGetRequest: self}),
            Service("commit", frozenset({COMMITMENT}), {NActionRequest: self}),
        ]

    async def __call__(self, operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        self.begun += 1
        try:
            if isinstance(request, CFindRequest):
                await self._find(operation, request)
            elif isinstance(request, CGetRequest):
                await self._get(operation, request)
            else:
                await operation.respond(NActionResponse(request.message_id, 0))
                await self._pause()
                event = NEventReportRequest(0, COMMITMENT, "1.2.840.10008.1.20.1.1", 1)
                await operation.report(context, event, bytes(2 * self.chance.randrange(2000)))
        finally:
            self.ended += 1

    async def _find(self, operation: Any, request: Any) -> None:
        pending = CFindResponse(request.message_id, PENDING, FIND, has_dataset=True)
        for _ in range(self.chance.randrange(20)):
            if operation.cancelled:
                break
            await operation.respond(pending, bytes(2 * self.chance.randrange(1, 40_000)))
            await self._pause()
        final = CANCEL if operation.cancelled else 0
        await operation.respond(CFindResponse(request.message_id, final, FIND))

    async def _get(self, operation: Any, request: Any) -> None:
        for number in range(self.chance.randrange(4)):
            await operation.store(operation.contexts[3], f"1.2.{number}", self._pieces())
            await operation.respond(CGetResponse(request.message_id, PENDING, GET, 1, 1, 0, 0))
        await operation.respond(CGetResponse(request.message_id, 0, GET))

    async def _pieces(self) -> AsyncIterator[tuple[bytes, bool]]:
        for _ in range(self.chance.randrange(3)):
            yield bytes(2 * self.chance.randrange(50_000)), False
            await self._pause()
        yield b"12", True

    async def _pause(self) -> None:
        for _ in range(self.chance.randrange(3)):
            await trio.lowlevel.checkpoint()


def said(peer: Any, chance: random.Random) -> bytes:
    """A message of some kind, most of them right."""
    number = chance.randrange(1, 12)
    request: Any
    request, context = chance.choice(
        [
            (CEchoRequest(number), 1),
            (CFindRequest(number, FIND), 5),
            (CFindRequest(number, FIND), 5),
            (CGetRequest(number, GET), 7),
            (NActionRequest(number, COMMITMENT, "1.2", 1), 9),
            (CStoreRequest(number, CT, "1.2.3"), 3),
            (CStoreRequest(number, CT, "1.2.3"), chance.choice([1, 3, 5])),
            (CCancelRequest(number), 5),
            (CCancelRequest(number), 7),
        ]
    )
    if not request.has_dataset:
        (message,) = peer.writer.command(context, request)
        return bytes(message)
    dataset = bytes(2 * chance.choice([0, 1, 1000, 100_000]))
    batches = peer.writer.message(context, request, [dataset])
    return b"".join(bytes(buffer) for batch in batches for buffer in batch)


async def answering(peer: Any, chance: random.Random, lock: trio.Lock) -> None:
    """Reads all that comes, and answers requests, mostly as one should."""
    while True:
        try:
            event = peer.association.next_event()
        except RemoteProtocolError as error:  # what we are told must always be right
            raise AssertionError("we broke the protocol") from error
        if event is NEED_DATA:
            try:
                data = await peer.stream.receive_some(chance.choice([7, 1000, 65536]))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            peer.association.receive_data(data)
            continue
        if isinstance(event, TransportClosed | Abort):
            return
        if not isinstance(event, DataFragment):
            continue
        message = peer.reader.receive(event)
        if not isinstance(message, CommandReceived):
            continue
        command = message.command
        number = getattr(command, "message_id", 0)
        if number and chance.random() < 0.95:
            response: Any = CStoreResponse(number, 0)
            if isinstance(command, NEventReportRequest):
                response = NEventReportResponse(number, 0)
            try:
                async with lock:
                    await peer.say(message.context_id, response)
            except GONE:
                return


async def talk(peer: Any, chance: random.Random) -> None:
    """A conversation, and one of the ways in which it can end."""
    lock = trio.Lock()
    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answering, peer, chance, lock)
            try:
                for _ in range(chance.randrange(1, 25)):
                    async with lock:
                        await peer.stream.send_all(said(peer, chance))
                    for _ in range(chance.choice([0, 0, 1, 30])):
                        await trio.lowlevel.checkpoint()
                end = chance.randrange(6)
                async with lock:
                    if end == 0:
                        await peer.send(ReleaseRequest())
                    elif end == 1:
                        await peer.send(Abort())
                    elif end == 2:
                        await peer.send(
                            DataFragment(3, True, True, encode_command(CStoreRequest(1, CT, "1")))
                        )
                    elif end == 3:
                        await peer.raw(b"nonsense")
                    elif end == 4:
                        await peer.say(3, CStoreResponse(99, 0))
            except GONE:
                pass
            nursery.cancel_scope.deadline = trio.current_time() + chance.choice([0.0, 0.05])
    await trio.aclose_forcefully(peer.stream)


@pytest.mark.parametrize("seed", range(30))
async def test_any_conversation(serve: Any, sink: Any, peer_to: Any, seed: int) -> None:
    chance = random.Random(seed)
    work = Work(chance)
    limits = NetLimits(
        dimse_s=0.3,
        write_s=0.5,
        linger_s=0.05,
        identifier_bytes_max=10_000,
        operations_invoked_max=chance.choice([1, 3, 16]),
    )
    with capture_logs() as logs:
        async with serve(sink, ListenerPolicy(), services=work.services, limits=limits) as archive:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    peer = await peer_to(archive)
                    window = AsynchronousOperations(chance.choice([1, 2, 0]), chance.choice([1, 3]))
                    await peer.associate(
                        *CONTEXTS,
                        user=UserInformation(
                            max_pdu_length=chance.choice([256, 16384, 0]),
                            asynchronous_operations=window if chance.random() < 0.7 else None,
                            roles=(RoleSelection(CT, scu=True, scp=True),),
                        ),
                    )
                    nursery.start_soon(talk, peer, chance)
                if chance.random() < 0.3:
                    for _ in range(chance.choice([0, 10, 100])):
                        await trio.lowlevel.checkpoint()
                    nursery.start_soon(archive.listener.drain)
            await archive.until(lambda: archive.listener.statistics().connections_open == 0)
            figures = archive.listener.statistics()
            assert figures.associations_accepted == 3
            assert figures.associations_released + figures.associations_aborted == 3
            assert archive.observer.associations_open() == 0
    assert work.begun == work.ended
    assert sink.begun == len(sink.objects) + sink.abandoned
    assert [entry for entry in logs if entry["event"] in OURS] == []
