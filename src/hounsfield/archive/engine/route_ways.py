"""What routing needs of the network: ways to destinations, and what becomes of an object on one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from hounsfield.archive.engine.types import Instance

Pair = tuple[str, str]
"""SOP class UID and stored transfer syntax UID."""


class Verdict(Enum):
    """What a destination made of an object."""

    SENT = "sent"
    PASSED_OVER = "passed over"  # it need not go: it is gone, or came from there
    REFUSED = "refused"  # it will not take this one
    LATER = "later"  # it may take it, and others, later


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one object. ``reason`` names nobody. ``over``: the way cannot be used any more."""

    verdict: Verdict
    reason: str = ""
    status: int | None = None
    size: int = 0
    over: bool = False


class WayError(Exception):
    """No way to the destination, or it was lost: whether the object that was on it arrived is not known."""

    retry = True


class Way(Protocol):
    """An open way to a destination; one task's."""

    def carries(self, pair: Pair) -> bool:
        """Whether it was opened for such objects."""

    async def send(self, instance: Instance) -> Answer:
        """Send one object. WayError when the way was lost."""


OpenWay = Callable[[str, Sequence[Pair], Sequence[str]], AbstractAsyncContextManager[Way]]
"""Opens a way to a destination, by its title, for objects of these pairs, the first of them in any case, and
with the transfer syntaxes that are preferred. WayError."""
