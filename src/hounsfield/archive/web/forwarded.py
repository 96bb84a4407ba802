"""Where clients see this archive behind a reverse proxy: ``Forwarded`` (RFC 7239) and X-Forwarded-*.

Anybody can send these headers, and links in answers are made of them: so they are heeded only from the
addresses that ``http.trusted_proxies`` lists, and nothing of them where ``http.base_url`` is set. Of a chain
of proxies the outermost trusted one's word counts: what stands before it came from outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from hounsfield.archive.web.http import AsgiApp, Receive, Scope, Send
from hounsfield.archive.web.urls import FORWARDED_PREFIX, HOST, headers

Network = IPv4Network | IPv6Network

_PAIR: Final = re.compile(r'\s*([A-Za-z]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;,"]*)\s*(;|,|$)')
_PREFIX: Final = re.compile(r"(?:/[0-9A-Za-z._~-]+)+", re.ASCII)
_HOP_MAX: Final = 32
"""Proxies in one chain; more is nonsense."""


class Forwarded:
    """Middleware: a trusted proxy's word takes the place of scheme and Host; others' is not looked at."""

    def __init__(self, app: AsgiApp, trusted: Sequence[str]) -> None:
        self._app = app
        networks = [ip_network(one, strict=False) for one in trusted]

        @lru_cache(maxsize=1024)
        def is_trusted(address: str) -> bool:
            return _within(address, networks)

        self._is_trusted = is_trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if client is not None and scope["type"] == "http" and self._is_trusted(client[0]):
            scope = self._as_seen_outside(scope)
        await self._app(scope, receive, send)

    def _as_seen_outside(self, scope: Scope) -> Scope:
        said = self._standard(headers(scope, b"forwarded"))
        if said is None:
            said = {
                "proto": _last(headers(scope, b"x-forwarded-proto")),
                "host": _last(headers(scope, b"x-forwarded-host")),
            }
        seen = dict(scope)
        if said.get("proto", "").lower() in ("http", "https"):
            seen["scheme"] = said["proto"].lower()
        host = said.get("host", "")
        if HOST.fullmatch(host.encode("latin-1", "replace")):
            others = [line for line in scope["headers"] if line[0] != b"host"]
            seen["headers"] = [(b"host", host.encode("ascii")), *others]
        prefix = _last(headers(scope, b"x-forwarded-prefix")).rstrip("/")
        if _PREFIX.fullmatch(prefix):
            seen[FORWARDED_PREFIX] = prefix
        return seen

    def _standard(self, lines: Sequence[str]) -> dict[str, str] | None:
        """What the outermost trusted proxy says in ``Forwarded``; None: nothing that can be read."""
        hops = _hops(",".join(lines))
        if not hops:
            return None
        at = len(hops) - 1
        while at > 0 and self._is_trusted(_node(hops[at].get("for", ""))):
            at -= 1
        return hops[at]


def _hops(text: str) -> list[dict[str, str]]:
    hops: list[dict[str, str]] = [{}]
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None or len(hops) > _HOP_MAX:
            return []
        value = pair[2]
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        hops[-1].setdefault(pair[1].lower(), value)
        if pair[3] == ",":
            hops.append({})
        at = pair.end()
    return [hop for hop in hops if hop]


def _node(text: str) -> str:
    """The address of a node (RFC 7239 6), without its port."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _last(lines: Iterable[str]) -> str:
    """The last of a list's values: what the nearest proxy added, where proxies add."""
    return ",".join(lines).rpartition(",")[2].strip()


def _within(address: str, networks: Sequence[Network]) -> bool:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in network for network in networks)
