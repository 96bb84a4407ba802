"""WADO-RS metadata and bulk data (PS3.18 10.4.1.5, 10.4.1.4).

Metadata is prepared (:mod:`hounsfield.archive.engine.prepared`): its compressed bytes are sent as they are
kept, inflated for the few clients that do not take gzip. BulkDataURIs are absolute: below the configured
base URL, or the request's Host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hounsfield.archive.dicom.json import Bulk, find_bulk
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.prepared import Answer
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.web import accept
from hounsfield.archive.web.accept import Delivery
from hounsfield.archive.web.deflated import deflated_pixels, is_deflated
from hounsfield.archive.web.described import (
    Form,
    documents,
    form_of,
    several_alone,
    xml_parts,
    xml_response,
    xml_type,
)
from hounsfield.archive.web.frames import accepted, not_acceptable
from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.pixels import content_type, is_big_endian, little_endian, multipart_type, swapped
from hounsfield.archive.web.problems import Header, WebError
from hounsfield.archive.web.responses import BuffersResponse, StreamResponse
from hounsfield.archive.web.urls import base_url, headers
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

_WORD_BYTES: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_PIXEL_PATHS: Final = frozenset(f"{tag:08X}" for tag in PIXEL_TAGS)


class Metadata:
    """Answers metadata and bulk data requests."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def retrieve(
        self, scope: Scope, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> BuffersResponse | StreamResponse:
        """DICOM JSON of every instance of a study, a series, or of one, as a list; or XML, in parts.

        304 when the client's entity tag is still right (RFC 9110 13.1.2).
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
        if form.is_xml:
            return await self._xml(answer, form, lines, alone=sop_uid is not None)
        if answer.etag:
            lines.append((b"etag", answer.etag.encode("ascii")))
        if answer.unchanged:
            return BuffersResponse(304, lines)
        lines.append((b"content-type", form.media_type.encode("ascii")))
        if not accept.takes_gzip(",".join(headers(scope, b"accept-encoding"))):
            return StreamResponse(lines, answer.identity())
        lines.append((b"content-encoding", b"gzip"))
        return StreamResponse(lines, answer.gzip(), length=answer.gzip_bytes)

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

    async def bulk(
        self, scope: Scope, study_uid: str, series_uid: str, sop_uid: str, path: str
    ) -> BuffersResponse:
        """The value that a BulkDataURI names."""
        ranges = accept.ranges_of(*accepted(scope))
        (one,) = await self._engine.instances(study_uid, series_uid, sop_uid)
        if path.upper() in _PIXEL_PATHS:
            return await self._pixels(one, ranges)
        found = await self._engine.read(self._find, one, path)
        if found is None:
            raise NotFoundError("no such element in this instance")
        delivery = accept.for_bulk(ranges, alone=True)
        if delivery is None:
            raise WebError(406, "bulk data is delivered as application/octet-stream only")
        value = found.value if found.little_endian else swapped(found.value, _WORD_BYTES.get(found.vr, 1))
        return _parts([value], delivery)

    def _find(self, one: Instance, path: str) -> Bulk | None:
        header = self._engine.header_blocking(one)
        return find_bulk(header.head, header.trailer, lookup(header.transfer_syntax_uid), path)

    async def _pixels(self, one: Instance, ranges: tuple[accept.MediaRange, ...]) -> BuffersResponse:
        if is_deflated(one.row.transfer_syntax_uid):
            header = await self._engine.header(one)
            buffers = [await self._engine.heavy(deflated_pixels, header)]
        else:
            buffers = await self._engine.bulk(one)
        if not buffers:
            raise NotFoundError("this instance has no pixel data that can be given alone")
        syntax = lookup(one.row.transfer_syntax_uid)
        alone = len(buffers) == 1 or not syntax.encapsulated
        delivery = accept.for_frames(ranges, syntax.uid, alone=alone)
        if delivery is None:
            raise not_acceptable(syntax.uid)
        if not syntax.encapsulated:
            whole = b"".join(buffers) if len(buffers) > 1 else buffers[0]
            buffers = [await little_endian(self._engine, one, whole) if is_big_endian(syntax.uid) else whole]
        return _parts(buffers, delivery)


def _known_tags(scope: Scope) -> frozenset[str]:
    """The entity tags of If-None-Match, as weak ones, which is how they are compared."""
    tags = ",".join(headers(scope, b"if-none-match")).split(",")
    return frozenset(
        tag if tag == "*" or tag.startswith("W/") else f"W/{tag}" for tag in map(str.strip, tags) if tag
    )


def _parts(buffers: Sequence[Buffer], delivery: Delivery) -> BuffersResponse:
    part_type = content_type(delivery)
    if not delivery.multipart:
        return BuffersResponse(200, [(b"content-type", part_type)], buffers)
    boundary = new_boundary()
    body: list[Buffer] = []
    for buffer in buffers:
        body += (part_head(boundary, part_type, len(buffer), first=not body), buffer)
    body.append(closing(boundary))
    return BuffersResponse(200, [(b"content-type", multipart_type(delivery.media_type, boundary))], body)
