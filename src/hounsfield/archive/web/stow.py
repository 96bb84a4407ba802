"""STOW-RS (PS3.18 10.5): instances arrive as multipart/related or alone, and stream into the engine.

A request's parts are objects, or metadata and bulk data (:mod:`.stow_metadata`).

Nothing is gathered but one object's beginning. Objects of one request are committed while the next ones
arrive, a bounded number at a time; results keep the request's order. Sending the same again succeeds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from email.message import Message as MailMessage
from typing import Final, Protocol

import trio

from hounsfield.archive.dicom.part10 import Part10Error
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.ingest import IngestSession
from hounsfield.archive.engine.types import Source
from hounsfield.archive.index.catalog import Place
from hounsfield.archive.web.accept import DICOM, MULTIPART
from hounsfield.archive.web.described import form_of
from hounsfield.archive.web.http import Receive, Scope
from hounsfield.archive.web.limits import WebLimits, WebSettings
from hounsfield.archive.web.multipart import MultipartError, MultipartReader, PartBegin, PartData
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import BuffersResponse, NoResponse, sole_error
from hounsfield.archive.web.stow_metadata import METADATA_TYPES, MetadataParts
from hounsfield.archive.web.stow_object import ArrivingObject
from hounsfield.archive.web.stow_results import CANNOT_UNDERSTAND, PartResult, store_response
from hounsfield.archive.web.uploads import SharedCount, Uploads
from hounsfield.archive.web.urls import DICOM_WEB, base_url, header

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
        form = form_of(scope)
        content_type, boundary, part_type = _content_type(scope)
        if content_type == MULTIPART and part_type not in ("", DICOM, *METADATA_TYPES):
            raise WebError(
                415, "multipart/related is taken with type application/dicom, application/dicom+json or +xml"
            )
        if content_type not in (MULTIPART, DICOM):
            raise WebError(
                415, 'send multipart/related; type="application/dicom", or application/dicom for one'
            )
        coding = (header(scope, b"content-encoding") or b"identity").lower()
        if coding != b"identity":
            raise WebError(415, "the request body may not be content-encoded")
        source = Source("stow", calling_ae=scope.get("identity", ""), address=(scope["client"] or ("",))[0])
        results: list[PartResult] = []
        limits = self._settings.limits
        try:
            async with trio.open_nursery() as nursery:
                parts = self._parts(
                    scope,
                    source,
                    part_type,
                    study_uid,
                    results,
                    _Commits(nursery, limits.commits_pending_max),
                )
                try:
                    if content_type == DICOM:
                        await _single(parts, _body(receive))
                    else:
                        await _multipart(parts, _body(receive), boundary, limits, results)
                finally:
                    parts.abandon()
        except BaseExceptionGroup as group:
            error = sole_error(group)
            if isinstance(error, _GoneError):
                return NoResponse()
            raise error from None
        if not results:
            raise WebError(400, "the request holds no instance")
        kept = [one.result for one in results if one.result is not None and one.result.study_uid]
        places = [Place(one.study_uid, one.series_uid, one.sop_instance_uid) for one in kept]
        shown = dict(zip(places, await self._engine.correcting.shown_at(places), strict=True))
        return store_response(results, shown, base_url(scope, self._settings.base_url), study_uid, form)

    def _parts(  # noqa: PLR0917
        self,
        scope: Scope,
        source: Source,
        part_type: str,
        study_uid: str | None,
        results: list[PartResult],
        commits: _Commits,
    ) -> _Parts:
        limits = self._settings.limits
        if part_type not in METADATA_TYPES:
            return _ObjectParts(
                self._engine, limits, source, study_uid=study_uid, results=results, commits=commits
            )
        url = base_url(scope, self._settings.base_url) + scope["path"].removeprefix(DICOM_WEB)
        return MetadataParts(
            self._engine, limits, source, url=url, study_uid=study_uid, results=results, commit=commits.start
        )


class _Commits:
    """The commits of one request, a bounded number at a time, while the next objects arrive."""

    def __init__(self, nursery: trio.Nursery, pending_max: int) -> None:
        self._nursery = nursery
        self._slots = trio.Semaphore(pending_max)

    async def start(self, session: IngestSession, result: PartResult) -> None:
        """Commit a session, which is not the caller's any more, and note its fate."""
        await self._slots.acquire()
        self._nursery.start_soon(self._commit, session, result)

    async def _commit(self, session: IngestSession, result: PartResult) -> None:
        try:
            result.result = await session.commit()
        except EngineError as error:
            session.abandon()
            result.fail(error)
        finally:
            self._slots.release()


class _Parts(Protocol):
    """What takes the parts of a request as they arrive."""

    async def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins."""

    async def write(self, data: memoryview | bytes) -> None:
        """Some of the part."""

    async def end(self) -> None:
        """The part is complete."""

    def finish(self) -> None:
        """The body is complete."""

    def tear(self) -> None:
        """The body broke off, or turned to nonsense."""

    def abandon(self) -> None:
        """Give back what is not complete."""


class _ObjectParts:
    """Each part is an object."""

    def __init__(
        self,
        engine: Engine,
        limits: WebLimits,
        source: Source,
        *,
        study_uid: str | None,
        results: list[PartResult],
        commits: _Commits,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._source = source
        self._study_uid = study_uid
        self._results = results
        self._commits = commits
        self._object: ArrivingObject | None = None

    async def begin(self, headers: Mapping[str, str]) -> None:
        if len(self._results) >= self._limits.parts_max:
            raise WebError(413, f"more than {self._limits.parts_max} instances in one request; send several")
        result = PartResult()
        self._results.append(result)
        self._object = ArrivingObject(
            self._engine, self._source, self._study_uid, self._limits.study_search_bytes_max, result
        )
        content_type = headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() not in _PART_TYPES:
            self._object.refuse(CANNOT_UNDERSTAND)

    async def write(self, data: memoryview | bytes) -> None:
        assert self._object is not None
        try:
            await self._object.write(data)
        except (EngineError, Part10Error) as error:
            self._object.fail(error)

    async def end(self) -> None:
        ended = self._object
        assert ended is not None
        try:
            await ended.finish()
        except (EngineError, Part10Error) as error:
            ended.fail(error)
        if ended.session is not None:
            ended.announce()
            await self._commits.start(ended.session, ended.result)
        self._object = None  # from here on the commit owns it

    def finish(self) -> None:
        """Every object is on its way."""

    def tear(self) -> None:
        # What came whole is stored and reported; the torn rest is a failure, so the sender sends again.
        if self._object is None:
            self._results.append(PartResult(failure_reason=CANNOT_UNDERSTAND))

    def abandon(self) -> None:
        if self._object is not None:
            self._object.refuse(CANNOT_UNDERSTAND)
            self._object = None


async def _single(parts: _Parts, body: AsyncIterator[bytes]) -> None:
    """The body is one object."""
    await parts.begin({})
    async for data in body:
        await parts.write(data)
    await parts.end()


async def _multipart(
    parts: _Parts, body: AsyncIterator[bytes], boundary: str, limits: WebLimits, results: list[PartResult]
) -> None:
    """The body is a multipart message."""
    reader = MultipartReader(
        boundary,
        header_bytes_max=limits.part_header_bytes_max,
        preamble_bytes_max=limits.preamble_bytes_max,
    )
    try:
        async for data in body:
            for event in reader.feed(data):
                if isinstance(event, PartData):
                    await parts.write(event.data)
                elif isinstance(event, PartBegin):
                    await parts.begin(event.headers)
                else:
                    await parts.end()
        reader.finish()
        parts.finish()
    except MultipartError:
        if not results:
            raise
        parts.tear()


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
