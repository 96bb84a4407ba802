"""Objects that a peer sends us, into a tree of DICOM files (PS3.10): DIR/STUDY/SERIES/INSTANCE.dcm.

A file appears under its name when all of it is there. Bytes of data sets are kept as they come.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO

from hounsfield.archive.dicom.file_names import safe_name
from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.wire import AcceptedContext, Buffer, CStoreRequest, Status
from hounsfield.codecs.registry import lookup

__all__ = ["FileStorage", "ReceivedFile"]

_HEAD_BYTES = 64 * 1024
"""The Study and Series Instance UID stand in group 0020, behind everything that is said of the patient."""
_STUDY, _SERIES, _INSTANCE = 0x0020000D, 0x0020000E, 0x00080018


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """What became of one object: ``path`` is None when it could not be written, ``error`` says why."""

    path: Path | None
    sop_class_uid: str
    sop_instance_uid: str
    size: int
    error: str = ""


class FileStorage:
    """Writes what comes below ``directory``, which exists. ``on_file`` hears of each object as it is done."""

    def __init__(
        self, directory: Path, source_ae: str, on_file: Callable[[ReceivedFile], None] = lambda _: None
    ) -> None:
        self.directory = directory
        self.source_ae = source_ae
        self.on_file = on_file
        self._number = count()

    def begin(self, context: AcceptedContext, request: CStoreRequest) -> _File:
        """An object announces itself."""
        temporary = self.directory / f".{os.getpid()}.{next(self._number)}.part"
        return _File(self, context, request, temporary)


class _File:
    """One object. Writes go to the page cache in the loop's own task: nothing else runs there meanwhile."""

    def __init__(
        self, owner: FileStorage, context: AcceptedContext, request: CStoreRequest, temporary: Path
    ) -> None:
        self._owner = owner
        self._context = context
        self._request = request
        self._temporary = temporary
        self._file: BinaryIO | None = None
        self._head = bytearray()
        self._size = 0
        self._error = ""

    async def write(self, data: Buffer) -> None:
        """Take ``data``."""
        if self._error:
            return
        if len(self._head) < _HEAD_BYTES:
            self._head += data[: _HEAD_BYTES - len(self._head)]
        self._size += len(data)
        try:
            if self._file is None:
                self._file = self._temporary.open("xb")
                self._file.write(
                    file_header(
                        self._context.transfer_syntax,
                        self._request.affected_sop_class_uid,
                        self._request.affected_sop_instance_uid,
                        source_ae=self._owner.source_ae,
                    )
                )
            self._file.write(data)
        except OSError as error:
            self._fail(error)

    async def commit(self) -> tuple[int, str]:
        """All of it is here: give it its name."""
        request = self._request
        path: Path | None = None
        if self._file is None and not self._error:
            self._error = "it has no data set"
        if not self._error:
            path = self._path()
            try:
                assert self._file is not None
                self._file.close()
                path.parent.mkdir(parents=True, exist_ok=True)
                self._temporary.replace(path)
            except OSError as error:
                self._fail(error)
                path = None
        self._owner.on_file(
            ReceivedFile(
                path,
                request.affected_sop_class_uid,
                request.affected_sop_instance_uid,
                self._size,
                self._error,
            )
        )
        return (Status.SUCCESS, "") if path is not None else (Status.OUT_OF_RESOURCES, "it cannot be written")

    def abandon(self) -> None:
        """The rest will not come."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        self._error = f"cannot be written: {error.strerror}"
        self.abandon()

    def _path(self) -> Path:
        head = bytes(self._head)
        scanned = scan(head, lookup(self._context.transfer_syntax))
        body = scanned.body(head)

        def uid(tag: int) -> str:
            found = scanned.elements.get(tag)
            if found is None:
                return ""
            _, at, length = found
            return bytes(body[at : at + length]).decode("latin-1").strip(" \0")

        instance = uid(_INSTANCE) or self._request.affected_sop_instance_uid
        folder = self._owner.directory / safe_name(uid(_STUDY)) / safe_name(uid(_SERIES))
        return folder / f"{safe_name(instance)}.dcm"
