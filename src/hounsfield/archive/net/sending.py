"""What we say to the peer of one association: whole messages, never one within another (PS3.8 Annex E).

Several tasks may have something to say. Each waits for its turn, and has it until its message is with the
kernel. What is not taken in time, or breaks off within a message, is the end of the association.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, TypeAlias

import trio

from hounsfield.archive.net.errors import PeerGoneError
from hounsfield.archive.net.transport import Transport
from hounsfield.archive.wire import Association, Buffer, Command, MessageWriter, State

__all__ = ["GiveUp", "MessageSender", "Pieces"]

Pieces: TypeAlias = AsyncIterator[tuple[Buffer, bool]]
"""A data set as it comes: bytes, and whether they are the last."""


class GiveUp(Protocol):
    """Ends the association, now; ``because`` is for the log."""

    def __call__(self, because: str, *, too_slow: bool = False) -> None: ...


class MessageSender:
    """See the module's text. ``give_up`` ends the association, and is told why."""

    __slots__ = ("_association", "_give_up", "_speaking", "_transport", "_waiting", "_write_s", "_writer")

    def __init__(
        self, association: Association, transport: Transport, write_s: float, give_up: GiveUp
    ) -> None:
        self._association = association
        self._transport = transport
        self._write_s = write_s
        self._give_up = give_up
        self._writer = MessageWriter(association)
        self._speaking = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def command(self, context_id: int, command: Command) -> None:
        """Send a message without a data set, in one write. Raises PeerGoneError."""
        if self._speaking:
            await self._waiting.park()
        self._speaking = True
        try:
            self._check()
            await self._write(self._writer.command(context_id, command))
        finally:
            self._next_turn()

    async def message(self, context_id: int, command: Command, dataset: Buffer) -> None:
        """Send a message with its data set, in one write when it fits. Raises PeerGoneError."""
        if self._speaking:
            await self._waiting.park()
        self._speaking = True
        try:
            self._check()
            for batch in self._writer.message(context_id, command, (dataset,)):
                await self._write(batch)
        finally:
            self._next_turn()

    async def answers(
        self, context_id: int, command: Command, datasets: Sequence[Buffer], final: Command | None
    ) -> None:
        """Send a message for each data set, all with the same command, then ``final``, in few writes.

        Raises PeerGoneError.
        """
        if self._speaking:
            await self._waiting.park()
        self._speaking = True
        try:
            self._check()
            for batch in self._writer.answers(context_id, command, datasets, final):
                await self._write(batch)
        finally:
            self._next_turn()

    async def stream(self, context_id: int, command: Command, pieces: Pieces) -> None:
        """Send a message whose data set comes in ``pieces``. Raises PeerGoneError.

        The first piece is waited for before our turn begins: who reads from a slow disk keeps nobody waiting.
        What ``pieces`` raises comes through; unless it was the first, the association is over then.
        """
        piece, last = await anext(pieces)
        if self._speaking:
            await self._waiting.park()
        self._speaking = True
        try:
            self._check()
            await self._stream(context_id, command, pieces, piece, last)
        finally:
            self._next_turn()

    async def _stream(
        self, context_id: int, command: Command, pieces: Pieces, piece: Buffer, last: bool
    ) -> None:
        pending = self._writer.command(context_id, command)
        while True:
            for batch in self._writer.dataset(context_id, piece, last=last):
                await self._write([*pending, *batch])
                pending = []
            if last:
                return
            try:
                piece, last = await anext(pieces)
            except BaseException:
                self._give_up("an object that was being sent broke off")
                raise

    def _next_turn(self) -> None:
        """A lock that costs nothing when nobody waits: each object's answer passes here. It is handed on
        without being opened in between, so that who sends without end does not keep the others waiting.
        """
        if self._waiting:
            self._waiting.unpark()
        else:
            self._speaking = False

    async def raw(self, buffers: list[Buffer]) -> None:
        """Send what is no message: a PDU of the association's own. Raises PeerGoneError."""
        await self._write(buffers)

    async def _write(self, buffers: list[Buffer]) -> None:
        rest = self._transport.send_nowait(buffers)
        if not rest:
            return
        try:
            with trio.move_on_after(self._write_s) as patience:
                while rest:
                    rest = await self._transport.send_some(rest)
                    patience.deadline = trio.current_time() + self._write_s
        except PeerGoneError:
            raise  # whoever reads finds out, too
        except BaseException:
            self._give_up("a message broke off")
            raise
        if rest:
            self._give_up("the peer does not take what is sent", too_slow=True)
            await trio.lowlevel.checkpoint_if_cancelled()
            raise PeerGoneError("the peer does not take what is sent")

    def _check(self) -> None:
        if self._association.state is not State.ESTABLISHED:
            raise PeerGoneError("the association is over")
