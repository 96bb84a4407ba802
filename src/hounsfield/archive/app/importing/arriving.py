"""An object that comes over a network as a DICOM file, piece by piece, into the archive."""

from __future__ import annotations

from typing import Final

from hounsfield.archive.app.importing.sink import Session
from hounsfield.archive.app.importing.work import Work
from hounsfield.archive.dicom.part10 import META_BYTES_MAX, Part10Error, split
from hounsfield.archive.engine.types import Source, StoreResult
from hounsfield.storage_backends.api import Buffer

_PEEK_BYTES: Final = 4096
"""Enough to read the file meta information of, but for monstrous ones."""


class Arriving:
    """One object. ``write`` each piece, then ``commit``; ``abandon`` in a finally."""

    def __init__(self, work: Work, source: Source) -> None:
        self._work = work
        self._source = source
        self._peek = bytearray()
        self._peek_until = _PEEK_BYTES
        self._session: Session | None = None
        self.size = 0
        """Bytes of its data set."""

    async def write(self, data: Buffer) -> None:
        """The next bytes. Raises EngineError, and Part10Error when they are no DICOM file."""
        if self._session is not None:
            self.size += len(data)
            await self._session.write(data)
            return
        self._peek += data
        if len(self._peek) >= self._peek_until:
            await self._open(at_end=False)

    async def commit(self) -> StoreResult:
        """All of it is here. Raises EngineError, Part10Error."""
        if self._session is None:
            await self._open(at_end=True)
        assert self._session is not None
        return await self._session.commit()

    def abandon(self) -> None:
        """Forget it; nothing after a commit."""
        if self._session is not None:
            self._session.abandon()

    async def _open(self, *, at_end: bool) -> None:
        if not self._peek:
            raise Part10Error("an empty part is no DICOM file")
        found = split(self._peek)
        # A prefix may end within the meta information: only what ends well before it does is certain.
        if not at_end and found.offset + 12 > len(self._peek) and len(self._peek) < META_BYTES_MAX:
            self._peek_until = len(self._peek) * 4
            return
        self._session = self._work.sink.begin(
            transfer_syntax_uid=found.transfer_syntax_uid,
            sop_class_uid=found.sop_class_uid,
            sop_instance_uid=found.sop_instance_uid,
            source=self._source,
        )
        beginning = bytes(memoryview(self._peek)[found.offset :])
        self._peek.clear()
        self.size += len(beginning)
        await self._session.write(beginning)
