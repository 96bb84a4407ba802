"""Connections that are nobody's association: in a TLS handshake, without a request, or refused and open."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Pending", "PendingConnections"]


class Pending(Protocol):
    """One of them."""

    address: str

    def end(self, because: str) -> None:
        """Cut it, now; ``because`` is for the log."""


class PendingConnections:
    """So many are held, whoever they are from; one more cuts the oldest of the address that has the most.

    So a device's request is waited for, while somebody else opens connections by the thousand: those
    make room for each other.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._of: dict[str, dict[Pending, None]] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, one: Pending) -> None:
        """Hold ``one``, and perhaps cut another."""
        of_address = self._of.setdefault(one.address, {})
        if one not in of_address:
            of_address[one] = None
            self._count += 1
        if self._count > self._most:
            self.cut_one("evicted: too many connections without an association")

    def discard(self, one: Pending) -> None:
        """It is pending no more, or never was."""
        of_address = self._of.get(one.address)
        if of_address is not None and one in of_address:
            del of_address[one]
            self._count -= 1
            if not of_address:
                del self._of[one.address]

    def cut_one(self, because: str) -> None:
        """Cut one, if there is any."""
        if self._of:
            busiest = max(self._of, key=lambda address: len(self._of[address]))
            one = next(iter(self._of[busiest]))
            self.discard(one)
            one.end(because)
