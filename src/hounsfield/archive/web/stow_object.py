"""One object of a STOW-RS request on its way into the engine."""

from __future__ import annotations

from typing import Final

from hounsfield.archive.dicom.attributes import STUDY_INSTANCE_UID, extract
from hounsfield.archive.dicom.part10 import META_BYTES_MAX, Part10, Part10Error, split
from hounsfield.archive.dicom.scan import ScanLimits, scan
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.ingest import IngestSession
from hounsfield.archive.engine.types import Source
from hounsfield.archive.web.stow_results import OTHER_STUDY, PartResult
from hounsfield.codecs.registry import lookup

_PEEK_BYTES: Final = 4096
"""Enough of an object to read its file meta information, but for monstrous ones."""


class ArrivingObject:
    """One object on its way in: file meta information is peeled off, the rest goes to a session."""

    def __init__(
        self, engine: Engine, source: Source, study_uid: str | None, search_bytes_max: int, result: PartResult
    ) -> None:
        self._engine = engine
        self._source = source
        self._study_uid = study_uid
        self._search_bytes_max = search_bytes_max
        self._peek = bytearray()
        self._peek_until = _PEEK_BYTES
        self._searching = study_uid is not None
        self._search_at = _PEEK_BYTES
        self._meta: Part10 | None = None
        self._refused = False
        self.result = result
        self.session: IngestSession | None = None

    async def write(self, data: memoryview | bytes) -> None:
        """The object's next bytes."""
        if self._refused:
            return
        if self.session is not None:
            await self._put(data)
            return
        self._peek += data
        if len(self._peek) >= self._peek_until:
            found = split(self._peek)
            # A prefix may end within the meta information: only what ends well before it does is certain.
            if found.offset + 12 > len(self._peek) and len(self._peek) < META_BYTES_MAX:
                self._peek_until = len(self._peek) * 4
                return
            await self._open(found)

    async def finish(self) -> None:
        """The object has ended."""
        if self._refused:
            return
        if self.session is None:
            if not self._peek:
                raise Part10Error("an empty part is no DICOM file")
            await self._open(split(self._peek))
        if self._searching:
            self._check_study(last=True)

    def fail(self, error: Exception) -> None:
        """It cannot be stored, for this reason."""
        self.result.fail(error)
        self.refuse(self.result.failure_reason)

    def announce(self) -> None:
        """Have the result say which object it is about, should its commit fail."""
        if self._meta is not None:
            self.result.sop_class_uid = self._meta.sop_class_uid
            self.result.sop_uid = self._meta.sop_instance_uid

    def refuse(self, reason: int) -> None:
        """Swallow the rest of it."""
        self._refused = True
        self._peek.clear()
        self._searching = False
        self.result.failure_reason = reason
        self.announce()
        if self.session is not None:
            self.session.abandon()
            self.session = None

    async def _open(self, found: Part10) -> None:
        self._meta = found
        self.session = self._engine.begin(
            transfer_syntax_uid=found.transfer_syntax_uid,
            sop_class_uid=found.sop_class_uid,
            sop_instance_uid=found.sop_instance_uid,
            source=self._source,
        )
        beginning = bytes(memoryview(self._peek)[found.offset :])
        self._peek.clear()
        await self._put(beginning)

    async def _put(self, data: memoryview | bytes) -> None:
        session = self.session
        assert session is not None
        if self._searching and session.is_last_gathered(len(data)):
            self._check_study(last=True, more=data)
            if self._refused:
                return
        await session.write(data)
        if self._searching and session.gathered_bytes >= self._search_at:
            self._search_at = session.gathered_bytes * 4
            self._check_study(last=session.gathered_bytes >= self._search_bytes_max)

    def _check_study(self, *, last: bool, more: memoryview | bytes = b"") -> None:
        """Compare the object's study with the path's, as soon as enough has come to tell.

        What is looked at is what the session has gathered: no second copy is kept.
        """
        assert self.session is not None and self._meta is not None
        data = self.session.gathered()
        if more:
            data = memoryview(b"".join((data, more)))
        limits = ScanLimits(inflated_bytes_max=self._search_bytes_max)
        found = scan(data, lookup(self._meta.transfer_syntax_uid), limits)
        uid = extract(found, data).study.get(STUDY_INSTANCE_UID, "")
        # A prefix may cut the value: an element after it proves that it is whole.
        whole = any(tag > STUDY_INSTANCE_UID for tag in found.elements)
        if not last and not (uid and whole):
            return
        if uid != self._study_uid:
            self.refuse(OTHER_STUDY)
        self._searching = False
