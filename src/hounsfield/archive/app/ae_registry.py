"""The remote application entities we know: the configuration's, and those added at run time as facts."""

from __future__ import annotations

import csv
import ipaddress
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from hounsfield.archive.config import RemoteAE, check_ae
from hounsfield.archive.errors import ConfigError, HounsfieldError
from hounsfield.archive.net.policy import SERVICES, RemoteAe

__all__ = [
    "FACT_KIND",
    "AeError",
    "AeRegistry",
    "FactStore",
    "ae_of_fact",
    "as_dict",
    "checked",
    "of_table",
    "remote_ae",
    "without",
]

FACT_KIND = "ae"
"""The kind of the facts; a fact's name is the title, its body this module's dict."""


class AeError(HounsfieldError):
    """An application entity cannot be added or removed as asked."""

    mistaken = True


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
        services: Iterable[str] = SERVICES,
    ) -> None:
        """``changed`` is called when an AE was added or removed here: the others must :meth:`refresh`.
        ``services``: what an AE may be allowed to use, plugins' among them.
        """
        self._services = tuple(services)
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
        """What ``hounsfield ae`` asks for, over the control socket."""
        return {
            "ae-list": self.list,
            "ae-show": self.show,
            "ae-add": self.add,
            "ae-set": self.set,
            "ae-remove": self.remove,
            "ae-services": self.services,
        }

    async def services(self) -> list[str]:
        """What an AE may be allowed to use."""
        return list(self._services)

    async def list(self) -> list[dict[str, Any]]:
        """Every known AE as plain values, by title; ``configured`` says which the configuration has."""
        await self.refresh()
        return [
            {**as_dict(ae), "configured": title in self._configured}
            for title, ae in sorted(self.known.items())
        ]

    async def show(self, *, title: str) -> dict[str, Any]:
        """One AE as plain values. Raises AeError when none has that title."""
        for ae in await self.list():
            if ae["title"] == title:
                return ae
        raise AeError(f"no AE {title!r} is known; `hounsfield ae list` shows those that are")

    async def add(self, **fields: Any) -> dict[str, Any]:
        """Add an AE, or replace an added one. Raises AeError for what cannot be, or is configured."""
        return await self._keep(checked(fields))

    async def set(self, *, title: str, **fields: Any) -> dict[str, Any]:
        """Change some fields of an added AE. Raises AeError for what cannot be, or was not added."""
        await self.refresh()
        self._refuse_configured(title)
        if title not in self._added:
            raise AeError(f"no AE {title!r} was added; `hounsfield ae add {title}` does")
        return await self._keep(checked({**as_dict(self._added[title]), **fields}))

    async def _keep(self, ae: RemoteAe) -> dict[str, Any]:
        self._refuse_configured(ae.title)
        _require_known(ae, self._services)
        await self._store.commit_fact(FACT_KIND, ae.title, as_dict(ae), time.time_ns())
        await self._changed()
        return as_dict(ae)

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


def checked(fields: Mapping[str, Any], *, strict: bool = True) -> RemoteAe:
    """The AE of these fields, its title stripped; numbers and yes or no may be text when not ``strict``.

    Raises AeError for a field that is unknown or cannot be.
    """
    words = dict(fields)
    for name in ("title", "host"):
        words[name] = str(words.get(name, "")).strip()
    try:
        ae = msgspec.convert(words, RemoteAE, strict=strict)
        check_ae(ae, f"AE {ae.title!r}")
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        if "matching regex" in message and place.startswith("services"):
            message = f"no name of a service; there are {', '.join(SERVICES)}, and those of plugins"
        elif "matching regex" in message:
            message = f"{words['title']!r} is no AE title: 1 to 16 ASCII characters, no backslash"
        raise AeError(f"{place.rstrip('`')}: {message}" if place else message) from None
    except ConfigError as error:
        raise AeError(str(error)) from None
    for source in ae.sources:
        if ipaddress.ip_network(source, strict=False).prefixlen == 0:
            raise AeError(f"the source {source} lets every address in; name the networks you mean")
    return remote_ae(ae)


def remote_ae(ae: RemoteAE) -> RemoteAe:
    """An entry of the configuration as the network layer knows it."""
    return msgspec.convert(msgspec.to_builtins(ae), RemoteAe)


def without(names: Iterable[str]) -> dict[str, Any]:
    """The defaults of these fields. Raises AeError for one that there is not, or that has none."""
    default = as_dict(RemoteAe(""))
    for name in names:
        if name not in default or name == "title":
            raise AeError(f"an AE has no {name!r} to clear; `hounsfield ae show` lists what it has")
    return {name: default[name] for name in names}


def _require_known(ae: RemoteAe, services: Collection[str]) -> None:
    unknown = ae.services.difference(services)
    if unknown:
        raise AeError(f"services: there is no service {min(unknown)!r}; there are {', '.join(services)}")


def of_table(table: bytes, services: Collection[str]) -> list[dict[str, Any]]:
    """The AEs of a CSV table, each checked, as fields. Raises AeError naming the first line that is wrong.

    ``services``: what an AE may be allowed to use.
    """
    default = as_dict(RemoteAe(""))
    try:
        text = table.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise AeError("it is no text in UTF-8: save the table as CSV, UTF-8") from None
    rows = csv.DictReader(text.splitlines())
    unknown = set(rows.fieldnames or ()) - set(default)
    if unknown:
        raise AeError(f"no column {min(map(str, unknown))!r} is known; there are {', '.join(default)}")
    found = []
    for row in rows:
        fields: dict[str, Any] = {}
        for name, cell in row.items():
            if name is None:
                raise AeError(f"line {rows.line_num} has more cells than the first line has columns")
            text_of = (cell or "").strip()
            if text_of:
                fields[name] = text_of.split() if isinstance(default[name], list) else text_of
        try:
            entity = checked(fields, strict=False)
            _require_known(entity, services)
            found.append(as_dict(entity))
        except AeError as error:
            raise AeError(f"line {rows.line_num}: {error}") from None
    return found


def ae_of_fact(body: Mapping[str, Any]) -> RemoteAe:
    """A fact's body as an AE; unknown keys, of a later version, are left out."""
    return msgspec.convert(dict(body), RemoteAe)


def as_dict(ae: RemoteAe) -> dict[str, Any]:
    """As plain values, those of JSON; what has no order is sorted."""
    words: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(ae, order="deterministic"))
    return words
