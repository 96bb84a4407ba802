"""The remote application entities we know: the configuration's, and those added at run time as facts."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from hounsfield.archive.errors import HounsfieldError
from hounsfield.archive.net.policy import RemoteAe

__all__ = ["FACT_KIND", "AeError", "AeRegistry", "FactStore", "ae_of_fact", "checked"]

FACT_KIND = "ae"
"""The kind of the facts; a fact's name is the title, its body this module's dict."""

_TITLE = re.compile(r"^(?! *$)[ -\[\]-~]{1,16}$")  # PS3.5 6.2, VR AE


class AeError(HounsfieldError):
    """An application entity cannot be added or removed as asked."""


class FactStore(Protocol):
    """The part of the engine that is used here."""

    async def state(self, kind: str, /) -> list[Mapping[str, Any]]:
        """What the facts of one kind amount to now."""

    async def commit_fact(self, kind: str, name: str, body: dict[str, Any] | None, at_ns: int, /) -> int:
        """Record a fact durably."""


async def _nobody() -> None:
    """Nobody else keeps the list."""


class AeRegistry:
    """Known AEs by title, of one worker."""

    def __init__(
        self,
        store: FactStore,
        configured: Iterable[RemoteAe] = (),
        changed: Callable[[], Awaitable[None]] = _nobody,
    ) -> None:
        """``changed`` is called when an AE was added or removed here: the others must :meth:`refresh`."""
        self._store = store
        self._changed = changed
        self._added: dict[str, RemoteAe] = {}
        self._configured = {ae.title: ae for ae in configured}

    @property
    def known(self) -> Mapping[str, RemoteAe]:
        """Every known AE by title, as of the last refresh; the configuration's win over added ones."""
        return {**self._added, **self._configured}

    def configure(self, configured: Iterable[RemoteAe]) -> None:
        """Take the configuration's AEs anew."""
        self._configured = {ae.title: ae for ae in configured}

    async def refresh(self) -> None:
        """Read the added AEs now."""
        self._added = {ae.title: ae for ae in map(ae_of_fact, await self._store.state(FACT_KIND))}

    # ------------------------------------------------------------ the command line's operations

    def operations(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """``ae-list``, ``ae-add`` and ``ae-remove``, for the control socket."""
        return {"ae-list": self.list, "ae-add": self.add, "ae-remove": self.remove}

    async def list(self) -> list[dict[str, Any]]:
        """Every known AE as plain values, by title; ``configured`` says which the configuration has."""
        await self.refresh()
        return [
            {**_as_dict(ae), "configured": title in self._configured}
            for title, ae in sorted(self.known.items())
        ]

    async def add(
        self,
        *,
        title: str,
        host: str = "",
        port: int = 104,
        tls: bool = False,
        sources: Iterable[str] = (),
        comment: str = "",
    ) -> dict[str, Any]:
        """Add an AE, or replace an added one. Raises AeError for what cannot be, or is configured."""
        ae = checked(RemoteAe(title, host, port, tls, tuple(sources), comment))
        self._refuse_configured(ae.title)
        await self._store.commit_fact(FACT_KIND, ae.title, _as_dict(ae), time.time_ns())
        await self._changed()
        return _as_dict(ae)

    async def remove(self, *, title: str) -> dict[str, Any]:
        """Remove an added AE. Raises AeError when there is none, or the configuration has it."""
        await self.refresh()
        self._refuse_configured(title)
        if title not in self._added:
            raise AeError(f"no AE {title!r} is known; `hounsfield ae list` shows those that are")
        await self._store.commit_fact(FACT_KIND, title, None, time.time_ns())
        await self._changed()
        return {"title": title}

    def _refuse_configured(self, title: str) -> None:
        if title in self._configured:
            raise AeError(f"the AE {title!r} stands in the configuration file: change it there")


def checked(ae: RemoteAe) -> RemoteAe:
    """``ae`` with its title stripped. Raises AeError for a title, port or source that cannot be."""
    title = ae.title.strip()
    if not _TITLE.match(title):
        raise AeError(f"{ae.title!r} is no AE title: 1 to 16 ASCII characters, no backslash")
    if not 0 < ae.port < 65536:
        raise AeError(f"{ae.port} is no port: 1 to 65535")
    for source in ae.sources:
        try:
            network = ipaddress.ip_network(source, strict=False)
        except ValueError:
            raise AeError(f"{source!r} is no address or network; write 192.0.2.7 or 192.0.2.0/24") from None
        if network.prefixlen == 0:
            raise AeError(f"the source {source} lets every address in; name the networks you mean")
    return RemoteAe(title, ae.host.strip(), ae.port, ae.tls, ae.sources, ae.comment)


def ae_of_fact(body: Mapping[str, Any]) -> RemoteAe:
    """A fact's body as an AE; unknown keys, of a later version, are left out."""
    return RemoteAe(
        title=str(body["title"]),
        host=str(body.get("host", "")),
        port=int(body.get("port", 104)),
        tls=bool(body.get("tls", False)),
        sources=tuple(body.get("sources", ())),
        comment=str(body.get("comment", "")),
    )


def _as_dict(ae: RemoteAe) -> dict[str, Any]:
    return {
        "title": ae.title,
        "host": ae.host,
        "port": ae.port,
        "tls": ae.tls,
        "sources": list(ae.sources),
        "comment": ae.comment,
    }
