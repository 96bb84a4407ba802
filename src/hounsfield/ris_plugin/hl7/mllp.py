"""HL7 v2 over a stream of bytes: the Minimal Lower Layer Protocol (HL7 v2 Transport Specification, MLLP R1).

A message stands between a start block (0B) and an end block (1C 0D). Real senders leave out the CR, put line
feeds or other bytes between messages, begin a message again that broke off, or send one without its start
block; all of that is understood. :class:`Framer` knows no socket: bytes in, messages out.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from hounsfield.ris_plugin.errors import RisError

__all__ = ["Framer", "Limits", "MllpError", "TooLong", "ask", "framed", "serve"]

START: Final = b"\x0b"
_HEADER: Final = re.compile(rb"\x0b[ \t\r\n]*(?:\xef\xbb\xbf)?(?:MSH|FHS|BHS)")
END: Final = b"\x1c"
BETWEEN_BYTES_MAX: Final = 64 << 10
"""Bytes that belong to no message: somebody who sends more speaks something else."""
RECEIVE_BYTES: Final = 64 << 10
HEADER_BYTES: Final = 1 << 10
"""Of a message that is too long: enough of it to say whose it is."""


class MllpError(RisError):
    """What a peer sends is no MLLP, or it is silent."""

    retry = True


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection. Times in seconds."""

    message_bytes_max: int = 16 << 20
    message_s: float = 60.0
    """From a message's first byte to its last: who stops half-way holds memory."""
    idle_s: float = 24 * 3600.0
    """Between messages. Interfaces stay connected over quiet nights; who is silent for longer is gone."""
    send_s: float = 60.0
    """For an answer to be taken."""


@dataclass(frozen=True, slots=True)
class TooLong:
    """A message with more bytes than are taken: its beginning. The rest of it is passed over."""

    beginning: bytes


class Framer:
    """Bytes in, messages out. ``skipped`` counts bytes that belonged to none."""

    def __init__(self, message_bytes_max: int) -> None:
        self._max = message_bytes_max
        self._buffer = bytearray()
        self._looked = 0
        self._passing_over = False
        self.skipped = 0

    @property
    def inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._passing_over or START in self._buffer or b"MSH" in self._buffer

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes | TooLong]:
        """What came: the messages that are complete now. MllpError for what is no MLLP."""
        if self._passing_over:
            end = bytes(data).find(END)
            if end < 0:
                return
            self._passing_over, data = False, data[end + 1 :]
        self._buffer += data
        while True:
            end = self._buffer.find(END, self._looked)
            if end < 0:
                break
            found = self._message(bytes(self._buffer[:end]))
            del self._buffer[: end + 1]
            self._looked = 0
            if found is not None:
                yield TooLong(found[:HEADER_BYTES]) if len(found) > self._max else found
        self._looked = len(self._buffer)
        if len(self._buffer) > self._max + HEADER_BYTES:
            found = self._message(bytes(self._buffer))
            self._buffer.clear()
            self._looked = 0
            if found is None:
                raise MllpError("what comes is no HL7 over MLLP")
            self._passing_over = True
            yield TooLong(found[:HEADER_BYTES])
        elif len(self._buffer) > BETWEEN_BYTES_MAX and START not in self._buffer:
            beginning = bytes(self._buffer[:HEADER_BYTES]).lstrip()
            if not beginning.startswith(b"MSH"):
                raise MllpError("what comes is no HL7 over MLLP")

    def _message(self, block: bytes) -> bytes | None:
        begin = block.rfind(START)
        if begin >= 0 and not block.startswith(b"MSH", begin + 1):
            begin = _beginning(block)
        if begin < 0:
            begin = block.find(b"MSH")
            if begin < 0:
                self.skipped += len(block)
                return None
            self.skipped += begin
            return block[begin:]
        self.skipped += begin
        return block[begin + 1 :] or None


def _beginning(block: bytes) -> int:
    """Where the start block is, -1 for none. Behind the last one with a header, the former message broke off,
    and its sender began again; others are vertical tabs in text that was written elsewhere."""
    headers = [found.start() for found in _HEADER.finditer(block)]
    if headers:
        return headers[-1]
    first = block.find(START)
    return -1 if b"MSH" in block[:first] else first


def framed(message: bytes) -> bytes:
    """A message as it goes over the wire."""
    return START + message + END + b"\r"


Answer = Callable[[bytes | TooLong], Awaitable[bytes]]
"""What is answered to a message, framed; nothing when it is none."""


async def serve(stream: trio.abc.Stream, answer: Answer, limits: Limits) -> str:
    """Answer the messages of one connection, one after another, until it ends; why we ended it, "" when its
    peer did. Raises trio's errors of a connection that broke off."""
    framer = Framer(limits.message_bytes_max)
    began: float | None = None
    while True:
        deadline = trio.current_time() + limits.idle_s if began is None else began + limits.message_s
        with trio.CancelScope(deadline=deadline) as scope:
            data = await stream.receive_some(RECEIVE_BYTES)
        if scope.cancelled_caught:
            if began is None:
                return f"nothing came for {limits.idle_s:g} s"
            return f"a message that had begun did not end in {limits.message_s:g} s"
        if not data:
            return ""
        try:
            for message in framer.feed(data):
                began = None
                if answered := await answer(message):
                    with trio.fail_after(limits.send_s):
                        await stream.send_all(answered)
        except MllpError as error:
            return str(error)
        except trio.TooSlowError:
            return f"an answer was not taken in {limits.send_s:g} s"
        began = (began or trio.current_time()) if framer.inside else None


async def ask(stream: trio.abc.Stream, framer: Framer, message: bytes | None) -> bytes:
    """Send a message, if any; the next one that comes. MllpError when the peer ends instead."""
    if message is not None:
        await stream.send_all(framed(message))
    data: bytes | bytearray = b""
    while True:
        for found in framer.feed(data):  # what came with an answer before may be there already
            if isinstance(found, TooLong):
                raise MllpError("the receiver's answer is longer than any")
            return found
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise MllpError("the receiver closed the connection without an answer")
