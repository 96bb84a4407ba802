"""WADO-RS metadata and bulk data (PS3.18 10.4.1.5, 10.4.1.4): DICOM JSON from header bytes.

BulkDataURIs are absolute: below the configured base URL, or the request's Host.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from hounsfield.archive.dicom.json import Bulk, find_bulk, to_json
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.web import accept
from hounsfield.archive.web.accept import Delivery
from hounsfield.archive.web.deflated import deflated_pixels, is_deflated
from hounsfield.archive.web.frames import accepted, not_acceptable
from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.pixels import content_type, is_big_endian, little_endian, multipart_type, swapped
from hounsfield.archive.web.problems import Header, WebError
from hounsfield.archive.web.qido import json_type
from hounsfield.archive.web.responses import BuffersResponse, StreamResponse
from hounsfield.archive.web.urls import base_url, headers, instance_url
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

_GZIP_LEVEL: Final = 1
"""Metadata of one series shrinks to a twentieth even so; level 6 takes thrice the time for a tenth less."""
_GZIP_WINDOW: Final = 31  # zlib's way of saying: gzip framing
_WORD_BYTES: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_PIXEL_PATHS: Final = frozenset(f"{tag:08X}" for tag in PIXEL_TAGS)


class Metadata:
    """Answers metadata and bulk data requests."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def retrieve(
        self, scope: Scope, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> StreamResponse:
        """DICOM JSON of every instance of a study, a series, or of one, as a list."""
        media_type = json_type(scope)
        found = await self._engine.instances(study_uid, series_uid, sop_uid)
        compressed = accept.takes_gzip(",".join(headers(scope, b"accept-encoding")))
        answer: list[Header] = [
            (b"content-type", media_type.encode("ascii")),
            (b"vary", b"accept, accept-encoding"),
        ]
        if compressed:
            answer.append((b"content-encoding", b"gzip"))
        base = base_url(scope, self._settings.base_url)
        return StreamResponse(answer, self._pieces(found, base, compressed))

    async def _pieces(
        self, found: Sequence[Instance], base: str, compressed: bool
    ) -> AsyncIterator[Sequence[Buffer]]:
        packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW) if compressed else None
        batch = self._settings.limits.metadata_batch

        def make(start: int) -> bytes:
            models = [self._model(one, base) for one in found[start : start + batch]]
            last = start + batch >= len(found)
            text = (b"," if start else b"[") + b",".join(models) + (b"]" if last else b"")
            if packer is None:
                return text
            packed = packer.compress(text)
            return packed + packer.flush() if last else packed

        for start in range(0, len(found), batch):
            yield (await self._engine.read(make, start),)

    def _model(self, one: Instance, base: str) -> bytes:
        header = self._engine.header_blocking(one)
        url = instance_url(base, one.study_uid, one.series_uid, one.row.sop_uid)
        return to_json(header.head, header.trailer, lookup(header.transfer_syntax_uid), base_uri=f"{url}/")

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
