"""What the command line asks of an archive for its health: the scrub, and what is in quarantine."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.errors import HounsfieldError
from hounsfield.archive.index import questionable
from hounsfield.archive.index.packs import Packs
from hounsfield.archive.index.questionable import Kind, Questionable
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.storage_backends.errors import KeyringError, StorageError

PAGE = 1000  # rows looked at in one question: milliseconds of a thread


class CareError(HounsfieldError):
    """The archive cannot do what was asked; the text says what to change."""


class Care:
    """The operations over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stores = engine.stores

    def table(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Every operation by the name it is asked for with."""
        return {
            "scrub-status": self._engine.scrub.status,
            "scrub-start": self.scrub_start,
            "rekey-due": self.rekey_due,
            "quarantine-page": self.quarantine_page,
            "quarantine-show": self.quarantine_show,
            "quarantine-export": self.quarantine_export,
        }

    async def scrub_start(self, segments: list[str], full_speed: bool) -> dict[str, Any]:
        """Have the leader scrub these segments, or all; see :meth:`Scrub.start`. Raises CareError."""
        known = {segment.hex() for segment in await self._engine.read(self._engine.scrub.segments)}
        unknown = [name for name in segments if name not in known]
        if unknown:
            raise CareError(f"no segment {unknown[0]}: `hounsfield keys list --all` shows them")
        await self._engine.scrub.start(tuple(bytes.fromhex(name) for name in segments), full_speed=full_speed)
        return {"segments": len(segments) or len(known)}

    async def rekey_due(self, before: float, segments: list[str]) -> list[dict[str, Any]]:
        """Segments and packs (those named, or all) whose key was made before a time, the oldest first."""

        def look() -> list[dict[str, Any]]:
            log, keyring = self._stores.log, self._stores.keyring
            found = []
            for segment in log.segment_ids():
                name = segment.hex()
                if segments and name not in segments:
                    continue
                try:
                    made = keyring.made_at("segment", name)
                    size, is_open = log.size(segment), log.is_being_written(segment)
                except StorageError:
                    continue  # compaction removed it in this moment; fsck names a key that is missing
                if made < before:
                    found.append({"segment": name, "made": made, "bytes": size, "open": is_open})
            here = set(log.segment_ids())
            for page in Packs(self._stores.store).pages():
                for segment, row in page:
                    name = segment.hex()
                    if segment in here or (segments and name not in segments) or not row.copies:
                        continue
                    with suppress(KeyringError):
                        if (made := keyring.made_at("segment", name)) < before:
                            found.append({"segment": name, "made": made, "bytes": row.size, "open": False})
            return sorted(found, key=lambda one: float(one["made"]))

        return await self._engine.read(look)

    async def quarantine_page(self, kind: str, after: str, identify: bool) -> dict[str, Any]:
        """Some objects of one kind, and where to go on; with their UIDs only when asked for."""

        def read() -> tuple[list[Questionable], bytes | None]:
            stores = self._stores
            return questionable.page(
                stores.store,
                stores.catalog,
                self._engine.scrub.suspects(),
                Kind(kind),
                after=bytes.fromhex(after),
                limit=PAGE,
            )

        found, last = await self._engine.read(read)
        return {
            "objects": [_plain(one, identify=identify) for one in found],
            "after": None if last is None else last.hex(),
        }

    async def quarantine_show(self, record: str, identify: bool) -> dict[str, Any]:
        """What is known of one object. ``identify``: also the attributes it was received with."""
        row = await self._find(record)
        location = row.location
        carried = await self._engine.read(questionable.carried, self._stores.log, location)
        shown: dict[str, Any] = {
            "record": location.record_id.hex(),
            "segment": location.segment.hex(),
            "offset": location.offset,
            "sop_class": row.sop_class_uid,
            "transfer_syntax": row.transfer_syntax_uid,
            "received": row.received_ns / 1e9,
            "frames": location.frames,
            "opens": carried is not None,
        }
        if carried is not None:
            shown["problems"] = [*carried.problems, *([carried.quarantine] if carried.quarantine else [])]
            shown["from"] = {
                "protocol": carried.source.protocol,
                "calling_ae": carried.source.calling_ae,
                "called_ae": carried.source.called_ae,
                "address": carried.source.address,
            }
            if identify:
                attributes = {**carried.study, **carried.series, **carried.instance}
                shown["study"], shown["series"] = carried.study_uid, carried.series_uid
                shown["instance"] = carried.sop_uid
                shown["attributes"] = {f"{tag:08X}": text for tag, text in sorted(attributes.items())}
        return shown

    async def quarantine_export(self, record: str, path: str, raw: bool) -> int:
        """Write one object's bytes as received to ``path``, whole or not at all; the bytes written.

        In front of them the file meta information of a DICOM file (PS3.10 7.1), unless ``raw``.
        """
        row = await self._engine.read(questionable.as_instance, self._stores.log, await self._find(record))
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        written = 0
        try:
            async with await trio.open_file(temporary, "wb") as file:
                if not raw:
                    written += await file.write(_header(row))
                pieces = self._engine.records.pieces(row)
                while (piece := await self._engine.read(next, pieces, None)) is not None:
                    for buffer in piece:
                        written += await file.write(buffer)
            temporary.replace(target)
        except OSError as error:
            raise CareError(f"cannot write {path}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return written

    async def _find(self, record: str) -> Any:
        try:
            record_id = bytes.fromhex(record)
        except ValueError:
            raise CareError(f"{record!r} is no record id: `hounsfield quarantine list` shows them") from None

        def read() -> Any:
            stores = self._stores
            return questionable.find(stores.store, stores.catalog, self._engine.scrub.suspects(), record_id)

        row = await self._engine.read(read)
        if row is None:
            raise CareError(f"no object has the record id {record}: `hounsfield quarantine list` shows them")
        return row


def _header(row: InstanceRow) -> bytes:
    try:
        return file_header(row.transfer_syntax_uid, row.sop_class_uid, row.sop_uid)
    except ValueError as error:
        raise CareError(f"no DICOM file can be made of it ({error}): export it with --raw") from error


def _plain(one: Questionable, *, identify: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "kind": one.kind.value,
        "record": one.record_id.hex(),
        "segment": one.segment.hex(),
        "reasons": list(one.reasons),
        "sop_class": one.sop_class_uid,
        "transfer_syntax": one.transfer_syntax_uid,
        "received": one.received_ns / 1e9,
    }
    if identify:
        shown |= {"study": one.study_uid, "series": one.series_uid, "instance": one.sop_uid}
    return shown
