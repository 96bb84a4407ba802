"""A study, a series or an instance as one ZIP archive (PS3.18 8.7.3.9): a file-set with its DICOMDIR.

Streamed: nothing is held but the directory's records, about 600 bytes an object. Objects are stored in it,
not compressed; their files are ``DICOM/SE000001/IM000001`` (PS3.10 8.2), ``DICOMDIR`` is the last entry. Past
4 GiB it is ZIP64.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec

from hounsfield.archive.dicom import dicomdir_writing as directory
from hounsfield.archive.dicom.dicomdir_writing import Record, record, record_type
from hounsfield.archive.dicom.json import JsonWriter
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.prepared_build import instance_json
from hounsfield.archive.engine.target_syntaxes import sop_uid_of
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.web.files import Files, given_as
from hounsfield.storage_backends.api import Buffer

FILES_MAX: Final = 999_999
"""What six digits number in a file ID; the directory's records of so many would be 600 MB."""

_INSTANCE_NUMBER: Final = 0x00200013
_NS: Final = 1_000_000_000
_NOT_KNOWN: Final = 1 << 32  # may be as long as that: it is announced as ZIP64
_ZIP_BEGAN: Final = (1980, 1, 1, 0, 0, 0)  # the format has no earlier time


class Zips:
    """Makes archives of stored instances."""

    def __init__(self, engine: Engine, files: Files) -> None:
        self._engine = engine
        self._files = files

    async def pieces(
        self, found: Sequence[Instance], uid: str, wanted: str = ""
    ) -> AsyncIterator[Sequence[Buffer]]:
        """The archive of these instances of one study, in the ``wanted`` transfer syntax or as stored.

        ``uid``: the directory's own SOP Instance UID.
        """
        out = _Outlet()
        archive = zipfile.ZipFile(out, "w", zipfile.ZIP_STORED)  # type: ignore[call-overload]
        listing = _Listing(self._engine)
        try:
            for one in found:
                syntax = given_as(one, wanted)
                file_id = await self._engine.read(listing.add, one, syntax)
                if syntax == one.row.transfer_syntax_uid:
                    length, made = await self._files.length(one), self._files.pieces(one)
                else:
                    length, made = _NOT_KNOWN, self._files.recoded(one, syntax)
                entry = archive.open(_entry(file_id, length, one.row.received_ns), "w")
                async with aclosing(made) as pieces:
                    async for piece in pieces:
                        await self._engine.read(_write, entry, piece)  # a checksum of megabytes
                        yield out.take()
                entry.close()
            listed = listing.directory(uid)
            with archive.open(_entry(("DICOMDIR",), len(listed), listing.newest_ns), "w") as entry:
                entry.write(listed)
            archive.close()
            yield out.take()
        finally:
            archive.fp = None  # given up in the middle: it would complain of its open entry


class _Listing:
    """The directory's records, as objects are added to it. Blocking."""

    def __init__(self, engine: Engine) -> None:
        self._header = engine.header_blocking
        self._patient: Record | None = None
        self._series: dict[str, tuple[int, Record]] = {}
        self.newest_ns = 0

    def add(self, one: Instance, syntax: str) -> tuple[str, ...]:
        """The file ID of an object that is listed now, given in a transfer syntax.

        Its header is read when the index does not say enough: of the first of a series, and of what is no
        image.
        """
        row = one.row
        kind = record_type(row.sop_class_uid)
        number, series = self._series.get(one.series_uid, (len(self._series) + 1, None))
        self.newest_ns = max(self.newest_ns, row.received_ns)
        if series is None or kind not in (directory.IMAGE, directory.PRIVATE):
            model = self._model(one)
        else:
            text = row.attributes.get(_INSTANCE_NUMBER, "")
            model = {"00200013": {"vr": "IS", "Value": [text]}} if text else {}
        if series is None:
            series = record(directory.SERIES, model)
            self._series[one.series_uid] = number, series
            self._study(model).below.append(series)
        place = len(series.below) + 1
        file_id = ("DICOM", f"SE{number:06}", f"IM{place:06}")
        series.below.append(
            record(
                kind,
                model,
                number=place,
                file_id=file_id,
                sop_class_uid=row.sop_class_uid,
                sop_uid=sop_uid_of(one, syntax),
                transfer_syntax_uid=syntax,
            )
        )
        return file_id

    def _study(self, model: dict[str, Any]) -> Record:
        if self._patient is None:
            self._patient = record(directory.PATIENT, model)
            self._patient.below.append(record(directory.STUDY, model))
        return self._patient.below[0]

    def _model(self, one: Instance) -> dict[str, Any]:
        model: dict[str, Any] = msgspec.json.decode(instance_json(self._header, JsonWriter(), "", one))
        return model

    def directory(self, uid: str) -> bytes:
        """The DICOMDIR."""
        return directory.dicomdir([self._patient] if self._patient is not None else [], uid)


class _Outlet:
    """Where the archive is written to: what came since it was last asked. It cannot be sought in."""

    def __init__(self) -> None:
        self._held: list[Buffer] = []

    def write(self, data: Buffer) -> int:
        self._held.append(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits here."""

    def take(self) -> list[Buffer]:
        held, self._held = self._held, []
        return held


def _write(entry: Any, buffers: Sequence[Buffer]) -> None:
    for buffer in buffers:
        entry.write(buffer)


def _entry(file_id: Sequence[str], length: int, at_ns: int) -> zipfile.ZipInfo:
    when = max(time.gmtime(at_ns // _NS)[:6], _ZIP_BEGAN)
    entry = zipfile.ZipInfo("/".join(file_id), when)
    entry.file_size = length
    entry.external_attr = 0o644 << 16
    return entry
