"""What the command line asks of an archive, served by a worker or done in place when no server runs.

Arguments and results are plain JSON. Attributes are ``{"0020000D": text}``, as the index keeps them.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from hounsfield.archive.app.care import Care
from hounsfield.archive.app.deleting import Deleting
from hounsfield.archive.app.fixes import Fixes
from hounsfield.archive.app.rejecting import Rejecting
from hounsfield.archive.app.tier_operations import TierOperations
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.dicom.query import QueryError, parse_qido
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.errors import HounsfieldError


class RequestError(HounsfieldError):
    """The archive cannot do what was asked; the text says what to change."""


class Operations:
    """The operations over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def table(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Every operation by the name it is asked for with."""
        return {
            "search": self.search,
            "instances": self.instances,
            "export-instance": self.export_instance,
            **Care(self._engine).table(),
            **Fixes(self._engine.correcting).table(),
            **Deleting(self._engine).table(),
            **Rejecting(self._engine.rejecting).table(),
            **TierOperations(self._engine).table(),
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
                "bytes": await self._engine.dataset_bytes(found),
            }
            for found in await self._engine.instances(study, series, instance)
        ]

    async def export_instance(
        self, study: str, series: str, instance: str, path: str, as_received: bool = False
    ) -> int:
        """Write one instance as a DICOM file (PS3.10) to ``path``, whole or not at all; the bytes written.

        With the corrections in force; ``as_received`` exactly as it came. An existing file is replaced.
        """
        (found,) = await self._engine.instances(study, series, instance)
        return await write_part10(self._engine, found, Path(path), as_received=as_received)


async def write_part10(engine: Engine, instance: Instance, path: Path, *, as_received: bool = False) -> int:
    """As :meth:`Operations.export_instance`, for an instance already found."""
    row = instance.row
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    written = 0
    try:
        async with await trio.open_file(temporary, "wb") as file:
            written += await file.write(file_header(row.transfer_syntax_uid, row.sop_class_uid, row.sop_uid))
            async for piece in engine.dataset(instance, as_received=as_received):
                written += await file.write(piece)
        temporary.replace(path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return written
