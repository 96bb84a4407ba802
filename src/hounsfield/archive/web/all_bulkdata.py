"""All bulk data of a study, a series or an instance (PS3.18 10.4.1.1.5): what its metadata only links to.

Each value is a part whose ``Content-Location`` is its BulkDataURI, the pixel data last, as ``/pixeldata``
gives it. One instance's header is in memory at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from hounsfield.archive.dicom.bulk import find_all_bulk
from hounsfield.archive.dicom.byte_order import WORD_BYTES, swapped
from hounsfield.archive.dicom.json import to_json
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.web import accept
from hounsfield.archive.web.accept import Delivery
from hounsfield.archive.web.bulkdata import Bulkdata, delivery_of, has_pixels
from hounsfield.archive.web.conditional import is_unchanged
from hounsfield.archive.web.files import validators_of_all
from hounsfield.archive.web.http import AsgiApp, Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.pixels import content_type, multipart_type
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import PIECES_AHEAD, StreamResponse, begun, unchanged
from hounsfield.archive.web.urls import base_url, instance_url
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

_LINK = "BulkDataURI"
_BELOW = "bulkdata/"


class AllBulkdata:
    """Answers requests for all values at once."""

    def __init__(self, engine: Engine, settings: WebSettings, bulkdata: Bulkdata) -> None:
        self._engine = engine
        self._settings = settings
        self._bulkdata = bulkdata

    async def retrieve(
        self, scope: Scope, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> AsgiApp:
        """Every value that metadata has a BulkDataURI for. ``NotFoundError`` when there is none."""
        ranges = accept.ranges_of(*accept.accepted(scope))
        found = await self._engine.instances(study_uid, series_uid, sop_uid)
        octets = accept.for_bulk(ranges, alone=False)
        if octets is None:
            raise WebError(406, 'bulk data comes as multipart/related; type="application/octet-stream"')
        deliveries = [delivery_of(one, ranges, alone=False) if has_pixels(one) else None for one in found]
        base = base_url(scope, self._settings.base_url)
        given = [delivery.transfer_syntax for delivery in deliveries if delivery is not None]
        validators = validators_of_all(found, "bulkdata", base, *given)
        if is_unchanged(scope, validators):
            return unchanged(validators)
        boundary = new_boundary()
        body = await begun(self._parts(scope, found, deliveries, octets, base, boundary))
        lines = [(b"content-type", multipart_type(octets.media_type, boundary)), *validators.headers()]
        return StreamResponse(lines, body, ahead=PIECES_AHEAD)

    async def _parts(  # noqa: PLR0917
        self,
        scope: Scope,
        found: Sequence[Instance],
        deliveries: Sequence[Delivery | None],
        octets: Delivery,
        base: str,
        boundary: bytes,
    ) -> AsyncIterator[Sequence[Buffer]]:
        first = True
        for one, delivery in zip(found, deliveries, strict=True):
            url = instance_url(base, one.study_uid, one.series_uid, one.row.sop_uid)
            for path, data in await self._engine.read(self._values, one):
                where = f"{url}/{_BELOW}{path}".encode("ascii", "replace")
                yield part_head(boundary, content_type(octets), len(data), where, first=first), data
                first = False
            if delivery is None:
                continue
            where = (await self._bulkdata.location(scope, one)).encode("ascii", "replace")
            async with aclosing(self._bulkdata.values(one, delivery)) as values:
                async for value in values:
                    yield (part_head(boundary, content_type(delivery), value.length, where, first=first),)
                    first = False
                    async with aclosing(value.read(0, value.length)) as pieces:  # type: ignore[type-var]
                        async for piece in pieces:
                            yield piece
        if first:
            raise NotFoundError("there is no bulk data here: all of it is in the metadata")
        yield (closing(boundary),)

    def _values(self, one: Instance) -> list[tuple[str, Buffer]]:
        header = self._engine.header_blocking(one)
        syntax = lookup(header.transfer_syntax_uid)
        paths = _links(msgspec.json.decode(to_json(header.head, header.trailer, syntax)))
        return [
            (path, bulk.value if bulk.little_endian else swapped(bulk.value, WORD_BYTES.get(bulk.vr, 1)))
            for path, bulk in find_all_bulk(header.head, header.trailer, syntax, paths)
        ]


def _links(model: dict[str, Any]) -> Iterator[str]:
    """The paths that the links of a DICOM JSON object end in."""
    for element in model.values():
        link = element.get(_LINK)
        if link is not None:
            yield link.rpartition(_BELOW)[2]
        for item in element.get("Value", ()) if element.get("vr") == "SQ" else ():
            yield from _links(item)
