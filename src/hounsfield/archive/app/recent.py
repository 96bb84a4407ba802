"""Who called lately, and why some were refused: what ``hounsfield ae recent`` shows."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

# An administrator looks for one device among tens. Past this the ones not heard of for longest are forgotten,
# so that a scanner of networks cannot fill the memory.
PEERS_MAX = 500
_TEXT_MAX = 64


class RecentPeers:
    """Calls counted by (calling title, called title, address, outcome, reason), newest first."""

    def __init__(self, peers_max: int = PEERS_MAX) -> None:
        self._max = peers_max
        self._peers: OrderedDict[tuple[str, ...], dict[str, Any]] = OrderedDict()

    def note(self, call: dict[str, Any]) -> None:
        """Count one call: keys ``calling_ae``, ``called_ae``, ``address``, ``outcome``, ``reason``."""
        names = ("calling_ae", "called_ae", "address", "outcome", "reason")
        values = tuple(_printable(str(call.get(name, ""))) for name in names)
        now = time.time()
        entry = self._peers.setdefault(
            values, {**dict(zip(names, values, strict=True)), "count": 0, "first": now}
        )
        entry["count"] += 1
        entry["last"] = now
        self._peers.move_to_end(values)
        while len(self._peers) > self._max:
            self._peers.popitem(last=False)

    def rows(self) -> list[dict[str, Any]]:
        """Every remembered peer, newest first."""
        return [dict(entry) for entry in reversed(self._peers.values())]


def _printable(text: str) -> str:
    """What a stranger sent, safe to show on a terminal."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text.strip())[:_TEXT_MAX]
