"""What is known while a message is interpreted: whose it is, as of when, for which department."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from zoneinfo import ZoneInfo

from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.hl7.messages import Message, Segment
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.settings import Hl7Listener, RisSettings

__all__ = ["BY_MESSAGE", "Saying"]

AHEAD_NS_MAX: Final = 24 * 3600 * NS
"""Clocks of senders that have another time zone and do not say so are ahead by hours."""
BY_MESSAGE: Final = "hl7:"
"""What an interface is called as an actor begins so; a listener's name follows."""


@dataclass(frozen=True)
class Saying:
    """A message and its circumstances. ``event_ns``: EVN-2, else MSH-7, else when it came."""

    message: Message
    settings: RisSettings
    listener: Hl7Listener
    zone: ZoneInfo
    event_ns: int
    done: list[str] = field(default_factory=list)
    """What was done, in words for the dry run."""
    made: list[str] = field(default_factory=list)
    """What there is now that others may have waited for: ``order``, ``appointment`` and its number."""

    @property
    def sender(self) -> str:
        """Who says it, which decides between two events of one moment: MSH-3 and MSH-4, else the listener."""
        said = self.message.header.sender
        return said if said != "^" else self.listener.name

    @property
    def at(self) -> tuple[int, str]:
        """The moment and the sender."""
        return self.event_ns, self.sender

    @property
    def actor(self) -> Actor:
        """Who acts."""
        return Actor(f"{BY_MESSAGE}{self.listener.name}", frozenset({Role.INTERFACE}))

    def issuer(self, authority: str) -> str:
        """Who gave a patient's number when the message says ``authority``."""
        return authority or self.listener.issuer or self.settings.issuer

    def entity(self, segment: Segment, number: int, *, rep: int = 0) -> tuple[str, str]:
        """EI: a placer's or filler's number, and who gave it."""
        value = segment.get(number, 1, rep=rep)
        authority = segment.get(number, 2, rep=rep) or segment.get(number, 3, rep=rep)
        return value, (authority or self.listener.issuer) if value else ""


def event_moment(message: Message, zone: ZoneInfo, now_ns: int) -> int:
    """When what a message tells of happened. More than a day ahead a clock is wrong, and it was now: else
    nothing that is said later would count until then."""
    evn, msh = message.first("EVN"), message.segments[0]
    said_ns = (evn.moment(2, zone) if evn is not None else 0) or msh.moment(7, zone)
    return said_ns if 0 < said_ns <= now_ns + AHEAD_NS_MAX else now_ns
