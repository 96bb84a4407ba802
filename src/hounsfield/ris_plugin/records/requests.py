"""Requests that were made under a key of their own: none is done twice because its answer was lost."""

from __future__ import annotations

from hounsfield.archive.plugins import Key, Kind
from hounsfield.ris_plugin.records.base import Row, seconds


class Done(Row, frozen=True):
    """What was done. ``key``: whose, and how he called it; ``digest``: of what was asked."""

    key: str
    digest: bytes
    answer: bytes  # as it was told
    at_ns: int


DONE = Kind("done", Done, lambda one: [Key("key", one.key, unique=True), Key("at", "", seconds(one.at_ns))])
