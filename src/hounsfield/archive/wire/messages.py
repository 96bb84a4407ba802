"""DIMSE messages over P-DATA: a command, then perhaps a data set, in fragments (PS3.7 6.3, PS3.8 Annex E).

Reading never holds more than a command set; the data set streams. Writing never copies a data set:
the buffers that come out are headers and slices of what went in, made to be written with ``sendmsg``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from hounsfield.archive.wire.association import Association
from hounsfield.archive.wire.command_codec import decode_command, encode_command
from hounsfield.archive.wire.commands import Command
from hounsfield.archive.wire.errors import LocalProtocolError, RemoteProtocolError
from hounsfield.archive.wire.limits import WireLimits
from hounsfield.archive.wire.pdu_writer import PDV_OVERHEAD, data_header
from hounsfield.archive.wire.pdus import Buffer, DataFragment, PduType

__all__ = [
    "CommandReceived",
    "DatasetFragment",
    "MessageEvent",
    "MessageReader",
    "MessageWriter",
    "lone_command",
]

_BATCH_BYTES = 1024 * 1024
"""What one ``sendmsg`` gets: past it the call's cost is noise."""
_BATCH_BUFFERS = 512
"""Linux takes 1024 buffers in one ``sendmsg`` (IOV_MAX); half, so that a caller can add some."""
_SHORT_BYTES = 64 * 1024
"""Messages that are copied into one buffer, together: less work than a buffer and a write for each."""

_LONE_BYTES_MIN = 12  # a P-DATA-TF's header and its only PDV's
_WHOLE_COMMAND = 3  # a PDV's control: a command, and the last of it (PS3.8 E.2)


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """A whole command. If ``command.has_dataset``, DatasetFragments follow, the final one with ``last``."""

    context_id: int
    command: Command


@dataclass(frozen=True, slots=True)
class DatasetFragment:
    """The next bytes of the data set; ``data`` lives as long as a ``DataFragment``'s."""

    context_id: int
    data: Buffer
    last: bool


MessageEvent: TypeAlias = CommandReceived | DatasetFragment


class MessageReader:
    """Turns the DataFragments of one association into commands and data set fragments."""

    __slots__ = ("_command", "_context_id", "_dataset_bytes", "_in_dataset", "_limits")

    def __init__(self, limits: WireLimits | None = None) -> None:
        self._limits = limits if limits is not None else WireLimits()
        self._command = bytearray()
        self._context_id = 0  # of the message under way; 0, which is no context's id, between messages
        self._in_dataset = False
        self._dataset_bytes = 0

    @property
    def idle(self) -> bool:
        """Whether no message is under way: a release is only right now."""
        return self._context_id == 0

    def receive(self, fragment: DataFragment) -> MessageEvent | None:
        """The event that ``fragment`` completes or is; None while a command is not whole.

        Raises ``RemoteProtocolError`` (A-ABORT) when fragments of messages are mixed, a command
        is over the limit or not readable, or a data set comes that was not announced.
        """
        context_id = fragment.context_id
        if self._context_id and context_id != self._context_id:
            raise RemoteProtocolError(
                f"a fragment of context {context_id} within a message of {self._context_id}"
            )
        if fragment.is_command:
            return self._receive_command(fragment)
        if not self._in_dataset:
            raise RemoteProtocolError("a data set fragment where a command must come")
        size = self._dataset_bytes = self._dataset_bytes + len(fragment.data)
        if size > self._limits.dataset_bytes_max:
            raise RemoteProtocolError(f"a data set over {self._limits.dataset_bytes_max} bytes")
        if fragment.last:
            self._in_dataset = False
            self._context_id = 0
        return DatasetFragment(context_id, fragment.data, fragment.last)

    def _receive_command(self, fragment: DataFragment) -> CommandReceived | None:
        if self._in_dataset:
            raise RemoteProtocolError("a command fragment within a data set")
        if len(self._command) + len(fragment.data) > self._limits.command_bytes_max:
            raise RemoteProtocolError(f"a command set over {self._limits.command_bytes_max} bytes")
        self._context_id = fragment.context_id
        if not fragment.last:
            self._command += fragment.data
            return None
        if self._command:
            self._command += fragment.data
            command = decode_command(self._command)
            self._command = bytearray()
        else:
            command = decode_command(fragment.data)
        if command.has_dataset:
            self._in_dataset = True
            self._dataset_bytes = 0
        else:
            self._context_id = 0
        return CommandReceived(fragment.context_id, command)


def lone_command(data: bytes) -> tuple[int, Command] | None:
    """Context id and command, if ``data`` is one P-DATA-TF with one message that has no data set.

    None for anything else, right or wrong: that is for an association and its :class:`MessageReader`.
    """
    end = len(data)
    if end < _LONE_BYTES_MIN or data[0] != PduType.P_DATA_TF or data[11] & 3 != _WHOLE_COMMAND:
        return None
    if data[2:6] != (end - 6).to_bytes(4, "big") or data[6:10] != (end - 10).to_bytes(4, "big"):
        return None
    try:
        command = decode_command(data[12:])
    except RemoteProtocolError:
        return None
    return None if command.has_dataset else (data[10], command)


class MessageWriter:
    """Turns commands and data sets into P-DATA-TF PDUs within the peer's maximum length."""

    __slots__ = ("_association",)

    def __init__(self, association: Association) -> None:
        self._association = association

    def command(self, context_id: int, command: Command) -> list[Buffer]:
        """A message without data set, or the beginning of one, as a single buffer.

        One buffer matters: a response in two small writes meets Nagle and delayed
        acknowledgement and takes 40 ms.
        """
        self._begin(context_id)
        encoded = encode_command(command)
        size = self._association.send_pdu_bytes_max - PDV_OVERHEAD
        if len(encoded) <= size:
            return [data_header(context_id, True, True, len(encoded)) + encoded]
        pieces = [encoded[i : i + size] for i in range(0, len(encoded), size)]
        final = len(pieces) - 1
        return [
            b"".join(
                data_header(context_id, True, number == final, len(piece)) + piece
                for number, piece in enumerate(pieces)
            )
        ]

    def dataset(self, context_id: int, data: Buffer, *, last: bool) -> Iterator[list[Buffer]]:
        """Part of a data set, or with ``last`` its end (may be empty then), as batches for ``sendmsg``."""
        return self._batches(context_id, [], (data,), last)

    def message(self, context_id: int, command: Command, dataset: Iterable[Buffer]) -> Iterator[list[Buffer]]:
        """A command with the whole of its data set, in any number of buffers, as batches for ``sendmsg``."""
        if not command.has_dataset:
            raise LocalProtocolError("the command says that no data set follows")
        return self._batches(context_id, self.command(context_id, command), dataset, True)

    def answers(
        self, context_id: int, command: Command, datasets: Iterable[Buffer], final: Command | None
    ) -> Iterator[list[Buffer]]:
        """One message for each of ``datasets``, all with the same command, then ``final``; as batches.

        Short messages share a buffer: small answers to a query are sent some dozens at a time.
        """
        head = self.command(context_id, command)[0] if command.has_dataset else b""
        size = self._association.send_pdu_bytes_max - PDV_OVERHEAD
        gathered = bytearray()
        for dataset in datasets:
            if not head:
                raise LocalProtocolError("the command says that no data set follows")
            length = len(dataset)
            if length <= min(size, _SHORT_BYTES):
                gathered += head
                gathered += data_header(context_id, False, True, length)
                gathered += dataset
            else:
                yield from self._batches(context_id, [bytes(gathered), head], (dataset,), True)
                gathered.clear()
                self._begin(context_id)
            if len(gathered) >= _SHORT_BYTES:
                yield [bytes(gathered)]
                gathered.clear()
                self._begin(context_id)
        if final is not None:
            gathered += self.command(context_id, final)[0]
        if gathered:
            yield [bytes(gathered)]

    def _begin(self, context_id: int) -> None:
        association = self._association
        if context_id not in association.contexts:
            raise LocalProtocolError(f"presentation context {context_id} was not accepted")
        association.begin_sending_data()

    def _batches(
        self, context_id: int, batch: list[Buffer], dataset: Iterable[Buffer], last: bool
    ) -> Iterator[list[Buffer]]:
        self._begin(context_id)
        return self._fragments(context_id, batch, dataset, last)

    def _fragments(
        self, context_id: int, batch: list[Buffer], dataset: Iterable[Buffer], last: bool
    ) -> Iterator[list[Buffer]]:
        size = self._association.send_pdu_bytes_max - PDV_OVERHEAD
        size -= size & 1  # fragments of a data set are even (PS3.8 E.1)
        batch_bytes = 0
        # gathered for the next PDU: slices of several small buffers can share one
        gathered: list[Buffer] = []
        gathered_bytes = 0
        for buffer in dataset:
            view = memoryview(buffer).cast("B")
            position, end = 0, len(view)
            while position < end:
                if gathered_bytes == size:  # known only now not to be the last one
                    batch.append(data_header(context_id, False, False, gathered_bytes))
                    batch += gathered
                    batch_bytes += gathered_bytes
                    gathered, gathered_bytes = [], 0
                    if batch_bytes >= _BATCH_BYTES or len(batch) >= _BATCH_BUFFERS:
                        yield batch
                        self._association.begin_sending_data()
                        batch, batch_bytes = [], 0
                count = min(size - gathered_bytes, end - position)
                gathered.append(view[position : position + count])
                gathered_bytes += count
                position += count
                if len(gathered) == _BATCH_BUFFERS // 2:
                    gathered = [b"".join(gathered)]  # crumbs: copying them is cheaper than a long list
        if gathered_bytes or last:
            batch.append(data_header(context_id, False, last, gathered_bytes))
            batch += gathered
        if batch:
            yield batch
