"""The bytes of one connection that came and were not read yet, in one buffer that is filled in place."""

from __future__ import annotations

from hounsfield.archive.wire.errors import LocalProtocolError
from hounsfield.archive.wire.pdus import Buffer


class ReceiveBuffer:
    """``data[start:end]`` is what is there. Who reads moves ``start``; views of ``readable`` need no copy."""

    __slots__ = ("_capacity", "_view", "data", "end", "readable", "start")

    def __init__(self, capacity: int, first: int) -> None:
        """It is ``first`` long until that is filled, then ``capacity``; past it only while :meth:`append` is
        given more at once.
        """
        self._capacity = capacity
        self.start = self.end = 0
        self._own(bytearray(min(first, capacity)))

    def _own(self, data: bytearray) -> None:
        self.data = data
        self._view = memoryview(data)
        self.readable = self._view.toreadonly()

    def clear(self) -> None:
        """Forget what is there."""
        self.start = self.end = 0

    def space(self) -> memoryview:
        """Where to receive into, never empty; what is there may move. ``LocalProtocolError`` when full."""
        if self.end == len(self.data) < self._capacity:
            # more is there than fits, a long PDU or a fast sender: from here on it is read in few calls
            rest = self._view[self.start : self.end]
            self._own(bytearray(self._capacity))
            self._view[: len(rest)] = rest
            self.start, self.end = 0, len(rest)
        elif self.start == self.end:
            self.start = self.end = 0
            if len(self.data) > self._capacity:
                self._own(bytearray(self._capacity))
        elif self.start and len(self.data) - self.end < len(self.data) >> 1:
            # what is left is the beginning of a PDU that has to be whole: short, so moving it is cheap
            left = self.end - self.start
            self._view[:left] = self._view[self.start : self.end]
            self.start, self.end = 0, left
        if self.end == len(self.data):
            raise LocalProtocolError("the receive buffer is full: call next_event until NEED_DATA")
        return self._view[self.end :]

    def filled(self, count: int) -> None:
        """``count`` bytes were received into :meth:`space`."""
        if not 0 <= count <= len(self.data) - self.end:
            raise LocalProtocolError(f"received {count} bytes into a buffer of {len(self.data) - self.end}")
        self.end += count

    def append(self, data: Buffer) -> None:
        """Take ``data`` by copying, however long it is."""
        rest = bytes(self.readable[self.start : self.end])
        left = len(rest)
        size = max(self._capacity, left + len(data))
        if len(self.data) != size:
            self._own(bytearray(size))
        self._view[:left] = rest
        self._view[left : left + len(data)] = data
        self.start, self.end = 0, left + len(data)
