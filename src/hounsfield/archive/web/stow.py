"""STOW-RS (PS3.18 10.5): instances arrive as multipart/related or alone, and stream into the engine.

Nothing is gathered but one object's beginning. Objects of one request are committed while the next ones
arrive, a bounded number at a time; results keep the request's order. Sending the same again succeeds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message as MailMessage
from typing import Any, Final

import msgspec
import trio

from hounsfield.archive.dicom.attributes import STUDY_INSTANCE_UID, extract
from hounsfield.archive.dicom.part10 import META_BYTES_MAX, Part10, Part10Error, split
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.ingest import IngestSession
from hounsfield.archive.engine.types import Outcome, Source, StoreResult
from hounsfield.archive.web.accept import DICOM, MULTIPART
from hounsfield.archive.web.http import Receive, Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import MultipartError, MultipartReader, PartBegin, PartData
from hounsfield.archive.web.problems import RETRY_AFTER_SECONDS, Header, WebError, row_of
from hounsfield.archive.web.qido import json_type
from hounsfield.archive.web.responses import BuffersResponse, NoResponse, json_response, sole_error
from hounsfield.archive.web.urls import base_url, header, instance_url, study_url
from hounsfield.codecs.registry import lookup

_PEEK_BYTES: Final = 4096
"""Enough of an object to read its file meta information, but for monstrous ones."""
_PART_TYPES: Final = frozenset({"", DICOM, "application/octet-stream"})

CANNOT_UNDERSTAND: Final = 0xC000
"""PS3.18 Table I.2-2, as in PS3.4 B.2.3: not a DICOM object, or not one that can be read."""
OTHER_STUDY: Final = 0xA901
"""The A9xx family, data set does not match: the object belongs to another study than the path says."""

#: Warning reasons (PS3.18 Table I.2-1) of what was kept, but not as its sender may think. Total.
WARNINGS: Final[dict[Outcome, int | None]] = {
    Outcome.STORED: None,
    Outcome.DUPLICATE: None,
    Outcome.CONFLICT: 0xB000,
    Outcome.QUARANTINED: 0xB007,
}


class _GoneError(Exception):
    """The client is gone, or the server has its own answer to the body's fault."""


@dataclass(slots=True)
class _Result:
    """One part's fate; ``result`` is None when it was not stored."""

    result: StoreResult | None = None
    failure_reason: int = 0
    sop_class_uid: str = ""
    sop_uid: str = ""
    retry: bool = False
    status: int = 409


class Stow:
    """Answers store requests."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def store(
        self, scope: Scope, receive: Receive, study_uid: str | None = None
    ) -> BuffersResponse | NoResponse:
        """One request. Raises what :mod:`.problems` maps when none of it can be read."""
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
        results: list[_Result] = []
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
            raise sole_error(group) from None
        except _GoneError:
            return NoResponse()
        if not results:
            raise WebError(400, "the request holds no instance")
        return _response(results, base_url(scope, self._settings.base_url), study_uid, media_type)


class _Request:
    """The parts of one request, as they arrive."""

    def __init__(
        self,
        engine: Engine,
        settings: WebSettings,
        source: Source,
        *,
        study_uid: str | None,
        results: list[_Result],
        commits: trio.Nursery,
    ) -> None:
        self._engine = engine
        self._limits = settings.limits
        self._source = source
        self._study_uid = study_uid
        self._results = results
        self._commits = commits
        self._slots = trio.Semaphore(settings.limits.commits_pending_max)
        self._object: _Object | None = None

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
                self._results.append(_Result(failure_reason=CANNOT_UNDERSTAND))

    def _begin(self, content_type: str) -> None:
        if len(self._results) >= self._limits.parts_max:
            raise WebError(413, f"more than {self._limits.parts_max} instances in one request; send several")
        result = _Result()
        self._results.append(result)
        self._object = _Object(
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
        self._object = None
        if ended.session is not None:
            await self._slots.acquire()
            self._commits.start_soon(self._commit, ended)

    async def _commit(self, ended: _Object) -> None:
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


class _Object:
    """One object on its way in: file meta information is peeled off, the rest goes to a session."""

    def __init__(
        self, engine: Engine, source: Source, study_uid: str | None, search_bytes_max: int, result: _Result
    ) -> None:
        self._engine = engine
        self._source = source
        self._study_uid = study_uid
        self._search_bytes_max = search_bytes_max
        self._peek = bytearray()
        self._peek_until = _PEEK_BYTES
        self._searched: bytearray | None = bytearray() if study_uid is not None else None
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
        if self._searched is not None:
            self._check_study(last=True)

    def fail(self, error: Exception) -> None:
        """It cannot be stored, for this reason."""
        row = row_of(error)
        self.refuse(row.failure_reason if row is not None else CANNOT_UNDERSTAND)
        self.result.retry = bool(getattr(error, "retry", False))
        self.result.status = row.status if row is not None else 409

    def refuse(self, reason: int) -> None:
        """Swallow the rest of it."""
        self._refused = True
        self._peek.clear()
        self._searched = None
        self.result.failure_reason = reason
        if self._meta is not None:
            self.result.sop_class_uid = self._meta.sop_class_uid
            self.result.sop_uid = self._meta.sop_instance_uid
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
        assert self.session is not None
        await self.session.write(data)
        if self._searched is not None:
            self._searched += data
            if len(self._searched) >= self._search_at:
                self._search_at = len(self._searched) * 4
                self._check_study(last=len(self._searched) >= self._search_bytes_max)

    def _check_study(self, *, last: bool) -> None:
        """Compare the object's study with the path's, as soon as enough has come to tell."""
        assert self._searched is not None and self._meta is not None
        data = bytes(self._searched)
        found = scan(data, lookup(self._meta.transfer_syntax_uid))
        uid = extract(found, data).study.get(STUDY_INSTANCE_UID, "")
        # A prefix may cut the value: an element after it proves that it is whole.
        whole = any(tag > STUDY_INSTANCE_UID for tag in found.elements)
        if not last and not (uid and whole):
            return
        if uid != self._study_uid:
            self.refuse(OTHER_STUDY)
        self._searched = None


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


def _response(results: list[_Result], base: str, study_uid: str | None, media_type: str) -> BuffersResponse:
    """PS3.18 10.5.3: 200 if all is well, 202 if some is, 409 if nothing was, 503 when it may be soon."""
    referenced: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    studies: dict[str, None] = {}
    warned = False
    for one in results:
        if one.result is None:
            reason = {"00081197": _value("US", one.failure_reason)}
            if one.sop_uid:
                failed.append({**_sop(one.sop_class_uid, one.sop_uid), **reason})
            else:
                others.append(reason)
            continue
        result = one.result
        item = _sop(result.sop_class_uid, result.sop_instance_uid)
        warning = WARNINGS[result.outcome]
        if warning is not None:
            warned = True
            item["00081196"] = _value("US", warning)
        if result.outcome is not Outcome.QUARANTINED:
            studies[result.study_uid] = None
            item["00081190"] = _value(
                "UR", instance_url(base, result.study_uid, result.series_uid, result.sop_instance_uid)
            )
        referenced.append(item)
    body: dict[str, Any] = {}
    retrieve = study_uid or (next(iter(studies)) if len(studies) == 1 else None)
    if retrieve is not None and studies:
        body["00081190"] = _value("UR", study_url(base, retrieve))
    else:
        body["00081190"] = {"vr": "UR"}
    for key, items in (("00081198", failed), ("00081199", referenced), ("0008119A", others)):
        if items:
            body[key] = {"vr": "SQ", "Value": items}
    headers: list[Header] = []
    lost = len(failed) + len(others)
    if not lost:
        status = 202 if warned else 200
    elif referenced:
        status = 202
    elif all(one.retry for one in results):
        status = 503
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
    elif all(one.status == 413 for one in results):
        status = 413
    else:
        status = 409
    return json_response(msgspec.json.encode(body), media_type, headers=headers, status=status)


def _sop(class_uid: str, uid: str) -> dict[str, Any]:
    return {"00081150": _value("UI", class_uid), "00081155": _value("UI", uid)}


def _value(vr: str, value: object) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]} if value != "" else {"vr": vr}
