"""WADO-RS metadata (PS3.18 10.4.1.1.2).

Metadata is prepared (:mod:`hounsfield.archive.engine.prepared`): its compressed bytes are sent as they are
kept, inflated (and compressed by zstd) for the few clients that do not take gzip. BulkDataURIs are absolute:
below the configured base URL, or the request's Host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final

import zstandard

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.prepared import Answer
from hounsfield.archive.web import accept
from hounsfield.archive.web.conditional import Validators, is_unchanged
from hounsfield.archive.web.described import (
    Form,
    documents,
    form_of,
    several_alone,
    xml_parts,
    xml_response,
    xml_type,
)
from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import new_boundary
from hounsfield.archive.web.problems import Header
from hounsfield.archive.web.responses import BuffersResponse, StreamResponse
from hounsfield.archive.web.urls import base_url, headers
from hounsfield.storage_backends.api import Buffer

ZSTD_LEVEL: Final = 3
"""The library's own default: metadata repeats itself so much that any level finds it."""


class Metadata:
    """Answers metadata requests."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def retrieve(
        self, scope: Scope, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> BuffersResponse | StreamResponse:
        """DICOM JSON of every instance of a study, a series, or of one, as a list; or XML, in parts.

        304 when the client's entity tag is still right (RFC 9110 13.1.2). ``WebError`` 412 when If-Match
        names any: the tag is weak, and If-Match wants a strong one (13.1.1); ``*`` is what there is.
        """
        form = form_of(scope)
        # What is XML has no entity tag: the one that is prepared is the JSON's.
        prepared, known = self._engine.metadata, frozenset() if form.is_xml else _known_tags(scope)
        links = base_url(scope, self._settings.base_url)
        if series_uid is not None and sop_uid is not None:
            answer = await prepared.instance(study_uid, series_uid, sop_uid, links=links, known=known)
        else:
            answer = await prepared.open(study_uid, series_uid, links=links, known=known)
        lines: list[Header] = [
            (b"vary", b"accept, accept-encoding"),
            (b"cache-control", b"private, no-cache"),
        ]
        tag = "" if form.is_xml else answer.etag
        same = is_unchanged(scope, Validators(tag)) or answer.unchanged
        if form.is_xml and not same:
            return await self._xml(answer, form, lines, alone=sop_uid is not None)
        if tag:
            lines.append((b"etag", tag.encode("ascii")))
        if same:
            return BuffersResponse(304, lines)
        lines.append((b"content-type", form.media_type.encode("ascii")))
        codings = ",".join(headers(scope, b"accept-encoding"))
        if accept.takes_gzip(codings):
            lines.append((b"content-encoding", b"gzip"))
            return StreamResponse(lines, answer.gzip(), length=answer.gzip_bytes)
        if accept.takes_zstd(codings):
            lines.append((b"content-encoding", b"zstd"))
            return StreamResponse(lines, self._zstd(answer.identity()))
        return StreamResponse(lines, answer.identity())

    async def _zstd(self, pieces: AsyncIterator[Sequence[Buffer]]) -> AsyncIterator[Sequence[Buffer]]:
        """For clients that take no gzip, in which metadata is kept."""
        packer = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
        async with aclosing(pieces) as texts:  # type: ignore[type-var]
            async for piece in texts:
                yield (await self._engine.read(packer.compress, b"".join(piece)),)
        yield (packer.flush(),)

    async def _xml(
        self, answer: Answer, form: Form, lines: list[Header], *, alone: bool
    ) -> BuffersResponse | StreamResponse:
        if form.multipart:
            boundary = new_boundary()
            lines.append((b"content-type", xml_type(boundary)))
            return StreamResponse(lines, xml_parts(self._engine, answer.identity(), boundary))
        if not alone:
            raise several_alone()
        text = b"".join([b"".join(piece) async for piece in answer.identity()])
        return xml_response(await self._engine.read(documents, text), form, headers=lines)


def _known_tags(scope: Scope) -> frozenset[str]:
    """The entity tags of If-None-Match, as weak ones, which is how they are compared."""
    tags = ",".join(headers(scope, b"if-none-match")).split(",")
    return frozenset(
        tag if tag == "*" or tag.startswith("W/") else f"W/{tag}" for tag in map(str.strip, tags) if tag
    )
