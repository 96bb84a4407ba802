"""Requests of modalities that are handed on to other systems, as they came."""

from __future__ import annotations

from collections.abc import Iterator

from hounsfield.archive.plugins import Key, Kind
from hounsfield.ris_plugin.records.base import Row, seconds

WAITING, SENT, REFUSED = "waiting", "sent", "refused"


class Forward(Row, frozen=True):
    """An MPPS request for a destination, in its order there. ``number`` counts per destination, from 1.

    ``packed``: its data set as it was received, in ``transfer_syntax``, packed by zlib; nothing once sent.
    """

    destination: str
    number: int
    operation: str  # "create" or "set"
    sop_uid: str
    transfer_syntax: str
    packed: bytes = b""
    state: str = WAITING
    made_ns: int = 0
    attempts: int = 0
    next_ns: int = 0
    error: str = ""
    ended_ns: int = 0


def _forward_keys(one: Forward) -> Iterator[Key]:
    yield Key(one.state, one.destination, seconds(one.ended_ns) if one.state == SENT else one.number)
    yield Key("sop", one.sop_uid, seconds(one.made_ns))


FORWARD = Kind("forward", Forward, _forward_keys)
