"""What the server tells about itself: one record a request, and its statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class RequestRecord(NamedTuple):
    """One request answered (or not: ``status`` 0 means that nothing was). Holds no path and no query: they
    name people."""

    method: str
    route: str | None
    """The route's *pattern* (``/studies/{study}``), when the application's router put it into the scope."""
    status: int
    bytes: int
    """Of the response's body, as given to the transport."""
    seconds: float
    """From the head's end to the response's end, on the loop's clock."""


OnRequest = Callable[[RequestRecord], None]


@dataclass(frozen=True, slots=True)
class HttpStatistics:
    """A moment's counters. All but ``connections_open`` and ``requests_in_flight`` only grow."""

    connections_open: int
    connections_idle: int
    connections_total: int
    requests_in_flight: int
    requests_total: int
    websockets_open: int
    bytes_in: int
    bytes_out: int
    refused: int
    """Connections turned away because the server was full."""
    timed_out: int
    """Connections cut because the peer was too slow (idle keep-alive closes are not counted)."""
    parse_errors: int
    """Requests refused as malformed."""
    app_errors: int
    """Exceptions out of the application, and ASGI rules it broke."""
    accept_pauses: int
    """Times that accepting stopped for want of file descriptors or memory."""


class Counters:
    """The mutable side of :class:`HttpStatistics`: plain attributes, one thread."""

    __slots__ = (
        "accept_pauses",
        "app_errors",
        "bytes_in",
        "bytes_out",
        "connections_total",
        "parse_errors",
        "refused",
        "requests_in_flight",
        "requests_total",
        "timed_out",
        "websockets_open",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    accept_pauses: int
    app_errors: int
    bytes_in: int
    bytes_out: int
    connections_total: int
    parse_errors: int
    refused: int
    requests_in_flight: int
    requests_total: int
    timed_out: int
    websockets_open: int
