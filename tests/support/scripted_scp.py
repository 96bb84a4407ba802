"""An SCP that says exactly what a test wants said: the wire package and a script, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from hounsfield.archive.wire import (
    NEED_DATA,
    Abort,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    Association,
    CommandReceived,
    ContextResult,
    DataFragment,
    DatasetFragment,
    Event,
    MessageReader,
    MessageWriter,
    PresentationResult,
    ReleaseReply,
    ReleaseRequest,
    Role,
    UserInformation,
)


class GoneError(Exception):
    """The requestor released, aborted or closed; ``event`` says which."""

    def __init__(self, event: Event) -> None:
        super().__init__(type(event).__name__)
        self.event = event


@dataclass
class Message:
    """A command that came, with its whole data set."""

    context_id: int
    command: Any
    dataset: bytes = b""


class ScriptedScp:
    """One association, as its acceptor."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.association = Association(Role.ACCEPTOR)
        self.writer = MessageWriter(self.association)
        self.reader = MessageReader()
        self.request: AssociateRequest | None = None

    async def accept(
        self, user: UserInformation | None = None, *, refuse: frozenset[str] = frozenset()
    ) -> None:
        """Take the request: every context in its first transfer syntax."""
        request = await self.event()
        assert isinstance(request, AssociateRequest), request
        self.request = request
        results = tuple(
            PresentationResult(
                one.context_id,
                ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED
                if one.abstract_syntax in refuse
                else ContextResult.ACCEPTANCE,
                one.transfer_syntaxes[0],
            )
            for one in request.contexts
        )
        accept = AssociateAccept(
            called_ae=request.called_ae,
            calling_ae=request.calling_ae,
            contexts=results,
            user=user or UserInformation(),
        )
        await self._write(self.association.send(accept))

    async def refuse(self, reject: AssociateReject) -> None:
        """Take no association."""
        await self.event()
        await self._write(self.association.send(reject))

    async def message(self) -> Message:
        """The next message. Raises GoneError."""
        message: Message | None = None
        data = bytearray()
        while True:
            event = await self.event()
            if not isinstance(event, DataFragment):
                if isinstance(event, ReleaseRequest):
                    await self._write(self.association.send(ReleaseReply()))
                raise GoneError(event)
            found = self.reader.receive(event)
            if isinstance(found, CommandReceived):
                message = Message(found.context_id, found.command)
                if not found.command.has_dataset:
                    return message
            elif isinstance(found, DatasetFragment):
                assert message is not None
                data += found.data
                if found.last:
                    message.dataset = bytes(data)
                    return message

    async def say(self, context_id: int, command: Any, dataset: bytes = b"") -> None:
        """Send a whole message."""
        if not command.has_dataset:
            await self._write(self.writer.command(context_id, command))
            return
        for batch in self.writer.message(context_id, command, [dataset]):
            await self._write(batch)

    async def begin_saying(self, context_id: int, command: Any, part: bytes) -> None:
        """Send a command and a part of its data set."""
        await self._write(self.writer.command(context_id, command))
        for batch in self.writer.dataset(context_id, part, last=False):
            await self._write(batch)

    async def abort(self) -> None:
        await self._write(self.association.send(Abort()))

    async def event(self) -> Event:
        while (event := self.association.next_event()) is NEED_DATA:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            self.association.receive_data(data)
        return event

    async def _write(self, buffers: Any) -> None:
        for buffer in buffers:
            await self.stream.send_all(buffer)


Script = Callable[[ScriptedScp], Awaitable[None]]


@dataclass
class Scripted:
    """Where the scripted SCP listens, and how its conversations ended."""

    port: int = 0
    endings: list[Event] = field(default_factory=list)
    ended: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Scripted]:
    """An SCP that does what ``script`` does with each association. A script that raises fails the test."""
    state = Scripted()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            scp = ScriptedScp(stream)
            try:
                await script(scp)
                while True:
                    await scp.message()
            except GoneError as gone:
                state.endings.append(gone.event)
            except trio.BrokenResourceError:
                pass
            state.ended.set()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(lambda **kw: trio.serve_tcp(serve, 0, host="127.0.0.1", **kw))
        state.port = listeners[0].socket.getsockname()[1]
        yield state
        nursery.cancel_scope.cancel()
