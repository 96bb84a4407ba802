"""One file's objects into the archive: sniffed, sent and made durable in one reading."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from hounsfield.archive.app.importing.fates import Fate, fate_of
from hounsfield.archive.app.importing.reading import (
    Begun,
    Seen,
    UnreadableError,
    begin,
    begin_member,
    members,
    open_zip,
)
from hounsfield.archive.app.importing.recognising import (
    BLOCK_BYTES,
    HeaderCopy,
    Kind,
    is_document,
    is_of_orthanc,
    recognised,
)
from hounsfield.archive.app.importing.work import Work, is_for_good
from hounsfield.archive.dicom.dicomdir import DICOMDIR_BYTES_MAX
from hounsfield.archive.dicom.part10 import Part10
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.types import Source as From
from hounsfield.archive.engine.types import StoreResult

FROM_FILES = From("import")
HEADER_COPY = "Orthanc's copy of a header, whose object lies beside it"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Found:
    """A file that was met, and what it was like then."""

    path: str
    seen: Seen


class Files:
    """Imports single files; any number of tasks use it at once."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def take(self, found: Found, *, listing: Callable[[bytes], None] | None = None) -> bool:
        """Bring in what a file holds, unless that was done before; whether it was not.

        ``listing`` takes the bytes of the file when it is a DICOMDIR.
        """
        work = self._work
        id_ = work.state.id("file", found.path, found.seen.size, found.seen.mtime_ns)
        if work.state.has(id_):
            work.tally.before += 1
            return False
        try:
            fates = await work.patiently(lambda: self._once(found, listing))
        except UnreadableError as error:
            work.tally.object(found.path, Fate.UNREADABLE, str(error))
            return True
        if fates and all(fate.settled for fate in fates):
            work.state.note(id_, fates)
        return True

    async def _once(self, found: Found, listing: Callable[[bytes], None] | None) -> list[Fate]:
        begun = await self._thread(lambda: begin(found.path))
        try:
            if begun.seen != found.seen:
                raise UnreadableError("it changed since it was found")
            what = recognised(begun.first)
            if what is Kind.ZIP:
                return await self._zip(found, begun)
            if what is Kind.DICOMDIR:  # never done with: what it lists may come later
                if listing is None:
                    self._work.tally.object(found.path, Fate.NOT_DICOM, what.value)
                else:
                    listing(await self._all(begun))
                return []
            return [await self._object(found.path, begun, what)]
        finally:
            begun.blocks.close()

    async def _object(self, place: str, begun: Begun, what: Part10 | Kind) -> Fate:
        """Send the object that was begun with, and note what becomes of it. Raises UnreadableError, and
        EngineError when it is worth another try.
        """
        tally = self._work.tally
        if what is Kind.PACKED:
            raise UnreadableError(what.value)
        if isinstance(what, Kind):
            tally.object(place, Fate.NOT_DICOM, what.value)
            return Fate.NOT_DICOM
        if what.offset >= BLOCK_BYTES or (
            what.offset >= len(begun.first) and len(begun.first) >= BLOCK_BYTES
        ):
            raise UnreadableError("its file meta information does not end")
        copy = HeaderCopy(what.transfer_syntax_uid) if is_of_orthanc(place) else None
        try:
            result, size = await self._send(begun, what, copy)
        except EngineError as error:
            if not is_for_good(error):
                raise
            tally.object(place, Fate.REJECTED, str(error))
            return Fate.REJECTED
        if result is None:
            tally.object(place, Fate.NOT_DICOM, HEADER_COPY)
            return Fate.NOT_DICOM
        fate, reason = fate_of(result)
        tally.object(place, fate, reason, size=size)
        self._work.progress.object()
        return fate

    async def _send(
        self, begun: Begun, part10: Part10, copy: HeaderCopy | None
    ) -> tuple[StoreResult | None, int]:
        session = self._work.sink.begin(
            transfer_syntax_uid=part10.transfer_syntax_uid,
            sop_class_uid=part10.sop_class_uid,
            sop_instance_uid=part10.sop_instance_uid,
            source=FROM_FILES,
        )
        try:
            block = begun.first
            data = memoryview(block)[part10.offset :]
            size = 0
            while True:
                size += len(data)
                if copy is not None:
                    copy.feed(data)
                if data:
                    await session.write(data)
                if len(block) < BLOCK_BYTES:
                    break
                block = await self._thread(begun.blocks.next)
                data = memoryview(block)
            if copy is not None and copy.is_one():
                return None, 0
            return await session.commit(), size
        finally:
            session.abandon()

    async def _all(self, begun: Begun) -> bytes:
        whole = bytearray(begun.first)
        block = begun.first
        while len(block) == BLOCK_BYTES:
            if len(whole) > DICOMDIR_BYTES_MAX:
                raise UnreadableError(
                    f"a DICOMDIR of more than {DICOMDIR_BYTES_MAX} bytes: name its folder instead"
                )
            block = await self._thread(begun.blocks.next)
            whole += block
        return bytes(whole)

    # ------------------------------------------------------------ ZIP archives

    async def _zip(self, found: Found, begun: Begun) -> list[Fate]:
        file = begun.file
        if file is None:
            raise UnreadableError("a ZIP archive within another file")
        with await self._thread(lambda: file.reopened(begun.first)) as opened:
            archive = await self._thread(lambda: open_zip(opened))
            with archive:
                return [
                    await self._member(found, archive, member)
                    for member in await self._thread(lambda: list(members(archive)))
                ]

    async def _member(self, found: Found, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Fate:
        """One file of an archive; one that was done with by a run that was killed is not read again."""
        work = self._work
        place = f"{found.path}!{member.filename}"
        id_ = work.state.id(
            "member", found.path, found.seen.size, found.seen.mtime_ns, member.header_offset, member.CRC
        )
        if work.state.has(id_):
            work.tally.before += 1
            return Fate.ALREADY_THERE
        try:
            fate = await work.patiently(lambda: self._member_once(place, archive, member))
        except UnreadableError as error:
            work.tally.object(place, Fate.UNREADABLE, str(error))
            return Fate.UNREADABLE
        if fate.settled:
            work.state.note(id_, [fate])
        return fate

    async def _member_once(self, place: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Fate:
        begun = await self._thread(lambda: begin_member(archive, member))
        try:
            what = recognised(begun.first)
            if what is Kind.ZIP and not is_document(begun.first):
                raise UnreadableError(
                    "a ZIP archive within another: unpack the outer one, and import its folder"
                )
            return await self._object(place, begun, what)
        finally:
            begun.blocks.close()

    async def _thread(self, function: Callable[[], Result]) -> Result:
        return await trio.to_thread.run_sync(function, limiter=self._work.threads)
