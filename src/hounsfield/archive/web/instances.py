"""WADO-RS study, series and instance retrieval (PS3.18 10.4.1.1): Part 10 files, streamed as stored.

Nothing larger than a few megabytes is held at a time, however large the study.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final

from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.web import accept
from hounsfield.archive.web.frames import accepted, not_acceptable
from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import StreamResponse
from hounsfield.archive.web.urls import base_url, instance_url
from hounsfield.storage_backends.api import Buffer

PIECES_AHEAD: Final = 2
"""Read and opened while the one before is sent: a thread and the network, both busy."""


class Instances:
    """Answers requests for whole objects."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def retrieve(
        self, scope: Scope, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> StreamResponse:
        """The objects of a study, a series, or one. Raises what :mod:`.problems` maps."""
        ranges = accept.ranges_of(*accepted(scope))
        found = await self._engine.instances(study_uid, series_uid, sop_uid)
        syntaxes = sorted({one.row.transfer_syntax_uid for one in found})
        delivery = accept.for_instances(ranges, syntaxes, alone=len(found) == 1)
        if delivery is None:
            if accept.for_instances(ranges, syntaxes, alone=True) is not None:
                raise WebError(406, "several instances come as multipart/related only")
            if len(syntaxes) == 1:
                raise not_acceptable(syntaxes[0])
            raise WebError(
                406,
                "these instances are stored in several transfer syntaxes and are not transcoded; ask for "
                'multipart/related; type="application/dicom"; transfer-syntax=*',
            )
        known = all(self._is_known(one) for one in found)
        if not delivery.multipart:
            one = found[0]
            head = _file_header(one)
            return StreamResponse(
                [(b"content-type", _part_type(one))],
                self._file(one, head),
                length=len(head) + await self._engine.dataset_bytes(one)
                if known or self._engine.is_corrected(one)
                else None,
            )
        boundary = new_boundary()
        base = base_url(scope, self._settings.base_url)
        content_type = b'multipart/related; type="application/dicom"; boundary=' + boundary
        length = None
        if known:
            length = len(closing(boundary)) + sum(
                len(head) + size
                for head, size in (self._part(one, boundary, base, n == 0) for n, one in enumerate(found))
            )
        return StreamResponse(
            [(b"content-type", content_type)],
            self._parts(found, boundary, base),
            length=length,
            ahead=PIECES_AHEAD,
        )

    def _is_known(self, one: Instance) -> bool:
        """Whether an object's length is known without reading: a corrected header must be made first."""
        return one.row.location.has_table and not self._engine.is_corrected(one)

    def _part(self, one: Instance, boundary: bytes, base: str, first: bool) -> tuple[bytes, int]:
        """What precedes one object's data set on the wire, and the data set's length."""
        header = _file_header(one)
        size = self._engine.dataset_bytes_blocking(one)
        location = instance_url(base, one.study_uid, one.series_uid, one.row.sop_uid)
        head = part_head(
            boundary, _part_type(one), len(header) + size, location.encode("ascii", "replace"), first=first
        )
        return head + header, size

    async def _parts(
        self, found: Sequence[Instance], boundary: bytes, base: str
    ) -> AsyncIterator[Sequence[Buffer]]:
        for n, one in enumerate(found):
            if self._is_known(one):
                head, _ = self._part(one, boundary, base, n == 0)
            else:
                head, _ = await self._engine.read(self._part, one, boundary, base, n == 0)
            async with aclosing(self._file(one, head)) as pieces:
                async for piece in pieces:
                    yield piece
        yield (closing(boundary),)

    async def _file(self, one: Instance, head: bytes) -> AsyncGenerator[Sequence[Buffer], None]:
        """``head`` and the data set; no empty read follows the last when the length is known."""
        left = await self._engine.dataset_bytes(one) if self._is_known(one) else -1
        before: tuple[bytes, ...] = (head,)
        async with aclosing(self._engine.dataset(one)) as buffers:  # type: ignore[type-var]
            async for buffer in buffers:
                yield (*before, buffer)
                before = ()
                left -= len(buffer)
                if left == 0:
                    return
        if before:
            yield before


def _file_header(one: Instance) -> bytes:
    return file_header(one.row.transfer_syntax_uid, one.row.sop_class_uid, one.row.sop_uid)


def _part_type(one: Instance) -> bytes:
    uid = one.row.transfer_syntax_uid
    if not uid.replace(".", "").isdigit():
        return b"application/dicom"
    return b"application/dicom; transfer-syntax=" + uid.encode("ascii")
