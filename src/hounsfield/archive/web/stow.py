"""STOW-RS (PS3.18 10.5): instances arrive as multipart/related or alone, and stream into the engine.

Nothing is gathered but one object's beginning. Objects of one request are committed while the next ones
arrive, a bounded number at a time; results keep the request's order. Sending the same again succeeds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from email.message import Message as MailMessage
from typing import Final

import trio

from hounsfield.archive.dicom.part10 import Part10Error
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.types import Source
from hounsfield.archive.web.accept import DICOM, MULTIPART
from hounsfield.archive.web.http import Receive, Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import MultipartError, MultipartReader, PartBegin, PartData
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.qido import json_type
from hounsfield.archive.web.responses import BuffersResponse, NoResponse, sole_error
from hounsfield.archive.web.stow_object import ArrivingObject
from hounsfield.archive.web.stow_results import CANNOT_UNDERSTAND, PartResult, store_response
from hounsfield.archive.web.uploads import SharedCount, Uploads
from hounsfield.archive.web.urls import base_url, header

_PART_TYPES: Final = frozenset({"", DICOM, "application/octet-stream"})


class _GoneError(Exception):
    """The client is gone, or the server has its own answer to the body's fault."""


class Stow:
    """Answers store requests."""

    def __init__(
        self, engine: Engine, settings: WebSettings, uploads_open: SharedCount | None = None
    ) -> None:
        self._engine = engine
        self._settings = settings
        limits = settings.limits
        self._uploads = Uploads(limits.uploads_max, limits.upload_wait_s, uploads_open)

    async def store(
        self, scope: Scope, receive: Receive, study_uid: str | None = None
    ) -> BuffersResponse | NoResponse:
        """One request. Raises what :mod:`.problems` maps when none of it can be read, or none now."""
        async with self._uploads.one():
            return await self._store(scope, receive, study_uid)

    async def _store(
        self, scope: Scope, receive: Receive, study_uid: str | None
    ) -> BuffersResponse | NoResponse:
        media_type = json_type(scope)
        content_type, boundary, part_type = _content_type(scope)
        if content_type == MULTIPART and part_type not in ("", DICOM):
            raise WebError(415, 'instances are taken as multipart/related; type="application/dicom" only')
        if content_type not in (MULTIPART, DICOM):
            raise WebError(
                415, 'send multipart/related; type="application/dicom", or application/dicom for one'
            )
        coding = (header(scope, b"content-encoding") or b"identity").lower()
        if coding != b"identity":
            raise WebError(415, "the request body may not be content-encoded")
        source = Source("stow", calling_ae=scope.get("identity", ""), address=(scope["client"] or ("",))[0])
        results: list[PartResult] = []
        try:
            async with trio.open_nursery() as commits:
                request = _Request(
                    self._engine,
                    self._settings,
                    source,
                    study_uid=study_uid,
                    results=results,
                    commits=commits,
                )
                try:
                    if content_type == DICOM:
                        await request.single(_body(receive))
                    else:
                        await request.multipart(_body(receive), boundary)
                finally:
                    request.abandon()
        except BaseExceptionGroup as group:
            error = sole_error(group)
            if isinstance(error, _GoneError):
                return NoResponse()
            raise error from None
        if not results:
            raise WebError(400, "the request holds no instance")
        return store_response(results, base_url(scope, self._settings.base_url), study_uid, media_type)


class _Request:
    """The parts of one request, as they arrive."""

    def __init__(
        self,
        engine: Engine,
        settings: WebSettings,
        source: Source,
        *,
        study_uid: str | None,
        results: list[PartResult],
        commits: trio.Nursery,
    ) -> None:
        self._engine = engine
        self._limits = settings.limits
        self._source = source
        self._study_uid = study_uid
        self._results = results
        self._commits = commits
        self._slots = trio.Semaphore(settings.limits.commits_pending_max)
        self._object: ArrivingObject | None = None

    async def single(self, body: AsyncIterator[bytes]) -> None:
        """The body is one object."""
        self._begin("")
        async for data in body:
            await self._write(data)
        await self._end()

    async def multipart(self, body: AsyncIterator[bytes], boundary: str) -> None:
        """The body is a multipart message of objects."""
        reader = MultipartReader(
            boundary,
            header_bytes_max=self._limits.part_header_bytes_max,
            preamble_bytes_max=self._limits.preamble_bytes_max,
        )
        try:
            async for data in body:
                for event in reader.feed(data):
                    if isinstance(event, PartData):
                        await self._write(event.data)
                    elif isinstance(event, PartBegin):
                        self._begin(event.headers.get("content-type", ""))
                    else:
                        await self._end()
            reader.finish()
        except MultipartError:
            if not self._results:
                raise
            # What came whole is stored and reported; the torn rest is a failure, so the sender sends again.
            if self._object is None:
                self._results.append(PartResult(failure_reason=CANNOT_UNDERSTAND))

    def _begin(self, content_type: str) -> None:
        if len(self._results) >= self._limits.parts_max:
            raise WebError(413, f"more than {self._limits.parts_max} instances in one request; send several")
        result = PartResult()
        self._results.append(result)
        self._object = ArrivingObject(
            self._engine, self._source, self._study_uid, self._limits.study_search_bytes_max, result
        )
        if content_type.partition(";")[0].strip().lower() not in _PART_TYPES:
            self._object.refuse(CANNOT_UNDERSTAND)

    async def _write(self, data: memoryview | bytes) -> None:
        assert self._object is not None
        try:
            await self._object.write(data)
        except (EngineError, Part10Error) as error:
            self._object.fail(error)

    async def _end(self) -> None:
        ended = self._object
        assert ended is not None
        try:
            await ended.finish()
        except (EngineError, Part10Error) as error:
            ended.fail(error)
        if ended.session is not None:
            await self._slots.acquire()
            self._commits.start_soon(self._commit, ended)
        self._object = None  # from here on the commit owns it

    async def _commit(self, ended: ArrivingObject) -> None:
        try:
            assert ended.session is not None
            ended.result.result = await ended.session.commit()
        except EngineError as error:
            ended.fail(error)
        finally:
            self._slots.release()

    def abandon(self) -> None:
        """Give back what an unfinished object holds."""
        if self._object is not None:
            self._object.refuse(CANNOT_UNDERSTAND)
            self._object = None


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        body = message.get("body", b"")
        if body:
            yield body
        if not message.get("more_body", False):
            return


def _content_type(scope: Scope) -> tuple[str, str, str]:
    """Media type, boundary, and ``type`` parameter of the request's body, the types in lower case."""
    mail = MailMessage()
    mail["content-type"] = (header(scope, b"content-type") or b"").decode("latin-1")
    boundary, part_type = mail.get_param("boundary", ""), mail.get_param("type", "")
    named = mail["content-type"].partition(";")[0].strip().lower()
    return named, str(boundary or ""), str(part_type or "").lower()
