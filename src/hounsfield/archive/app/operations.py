"""What the command line asks of an archive, served by a worker or done in place when no server runs.

Arguments and results are plain JSON. Attributes are ``{"0020000D": text}``, as the index keeps them.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import trio

from hounsfield.archive.config import RemoteAE
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.dicom.query import QueryError, parse_qido
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.errors import HounsfieldError

AE_FACT = "ae"


class RequestError(HounsfieldError):
    """The archive cannot do what was asked; the text says what to change."""


async def _nobody() -> None:
    """Nobody else keeps a list of AEs."""


class Operations:
    """The operations over one engine."""

    def __init__(
        self,
        engine: Engine,
        configured: Callable[[], Iterable[RemoteAE]],
        aes_changed: Callable[[], Awaitable[None]] = _nobody,
    ) -> None:
        self._engine = engine
        self._configured = configured
        self._aes_changed = aes_changed

    def table(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Every operation by the name it is asked for with."""
        return {
            "search": self.search,
            "instances": self.instances,
            "export-instance": self.export_instance,
            "ae-list": self.ae_list,
            "ae-add": self.ae_add,
            "ae-remove": self.ae_remove,
        }

    async def search(self, level: str, parameters: list[list[str]]) -> dict[str, Any]:
        """One page of answers to QIDO-RS ``parameters``: rows with study, series and instance attributes."""
        try:
            query = parse_qido(Level[level.upper()], [(name, value) for name, value in parameters])
        except QueryError as error:
            raise RequestError(str(error)) from error
        page = await self._engine.search(query)
        rows = [
            {
                name: {f"{tag:08X}": text for tag, text in attributes.items()}
                for name, attributes in (
                    ("study", row.study),
                    ("series", row.series),
                    ("instance", row.instance),
                )
                if attributes is not None
            }
            for row in page.rows
        ]
        return {"rows": rows, "more": page.more, "warnings": list(query.warnings)}

    async def instances(
        self, study: str, series: str | None = None, instance: str | None = None
    ) -> list[dict[str, Any]]:
        """The instances of a study, of a series, or the one named. Raises NotFoundError."""
        return [
            {
                "study": found.study_uid,
                "series": found.series_uid,
                "instance": found.row.sop_uid,
                "sop_class": found.row.sop_class_uid,
                "transfer_syntax": found.row.transfer_syntax_uid,
                "bytes": self._engine.dataset_bytes(found),
            }
            for found in await self._engine.instances(study, series, instance)
        ]

    async def export_instance(self, study: str, series: str, instance: str, path: str) -> int:
        """Write one instance as a DICOM file (PS3.10) to ``path``, whole or not at all; the bytes written.

        The data set is written exactly as it was received. An existing file is replaced.
        """
        (found,) = await self._engine.instances(study, series, instance)
        return await write_part10(self._engine, found, Path(path))

    async def ae_list(self) -> list[dict[str, Any]]:
        """Every known AE; those of config.toml are marked ``configured`` and win over added ones."""
        configured = [{**msgspec.to_builtins(ae), "configured": True} for ae in self._configured()]
        titles = {ae["title"] for ae in configured}
        added = [{**ae, "configured": False} for ae in await self._added() if ae["title"] not in titles]
        return sorted(configured + added, key=lambda ae: str(ae["title"]))

    async def known_aes(self) -> tuple[RemoteAE, ...]:
        """Every known AE, as the policy and the SCU want it."""
        entries = [{k: v for k, v in ae.items() if k != "configured"} for ae in await self.ae_list()]
        return tuple(msgspec.convert(entry, RemoteAE) for entry in entries)

    async def ae_add(self, ae: dict[str, Any], *, replace: bool = False) -> dict[str, Any]:
        """Keep an AE in the archive, as a fact. Raises RequestError for a bad or known one."""
        try:
            entry = msgspec.convert(ae, RemoteAE)
        except msgspec.ValidationError as error:
            raise RequestError(f"not an AE: {error}") from error
        for source in entry.sources:
            try:
                network = ipaddress.ip_network(source, strict=False)
            except ValueError:
                raise RequestError(f"{source!r} is not an address or network; write 192.0.2.0/24") from None
            if network.prefixlen == 0:
                raise RequestError(f"the source {source} lets every address in: name the networks you mean")
        if any(known.title == entry.title for known in self._configured()):
            raise RequestError(f"{entry.title} is in config.toml: change it there")
        if not replace and any(known["title"] == entry.title for known in await self._added()):
            raise RequestError(f"{entry.title} is known already: use --replace to change it")
        body: dict[str, Any] = msgspec.to_builtins(entry)
        await self._engine.commit_fact(
            AE_FACT, entry.title, {**body, "sources": list(entry.sources)}, time.time_ns()
        )
        await self._aes_changed()
        return body

    async def ae_remove(self, title: str) -> None:
        """Forget an AE that was added. Raises RequestError when there is none."""
        if any(known.title == title for known in self._configured()):
            raise RequestError(f"{title} is in config.toml: remove it there")
        if all(known["title"] != title for known in await self._added()):
            raise RequestError(f"no AE {title} was added; `hounsfield ae list` shows the known ones")
        await self._engine.commit_fact(AE_FACT, title, None, time.time_ns())
        await self._aes_changed()

    async def _added(self) -> list[dict[str, Any]]:
        return [dict(body) for body in await self._engine.state(AE_FACT)]


async def write_part10(engine: Engine, instance: Instance, path: Path) -> int:
    """As :meth:`Operations.export_instance`, for an instance already found."""
    row = instance.row
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    written = 0
    try:
        async with await trio.open_file(temporary, "wb") as file:
            written += await file.write(file_header(row.transfer_syntax_uid, row.sop_class_uid, row.sop_uid))
            async for piece in engine.dataset(instance):
                written += await file.write(piece)
        temporary.replace(path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return written


def safe_name(uid: str) -> str:
    """A file name for a UID that a stranger sent: itself when it looks like one, else a hash."""
    if len(uid) <= 64 and set(uid) <= set("0123456789.") and uid[:1].isdigit():
        return uid
    return "x" + hashlib.sha256(uid.encode()).hexdigest()[:32]
