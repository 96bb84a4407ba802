"""WADO-RS study, series and instance retrieval (PS3.18 10.4.1.1): Part 10 files, streamed as stored.

Nothing larger than a few megabytes is held at a time, however large the study.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.web import accept
from hounsfield.archive.web.archive_zip import FILES_MAX, Zips
from hounsfield.archive.web.conditional import is_unchanged
from hounsfield.archive.web.files import Files, part_type, validators_of, validators_of_all
from hounsfield.archive.web.frames import accepted, not_acceptable
from hounsfield.archive.web.http import AsgiApp, Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import PIECES_AHEAD, StreamResponse, unchanged, whole_or_range
from hounsfield.archive.web.urls import base_url, instance_url
from hounsfield.storage_backends.api import Buffer


class Instances:
    """Answers requests for whole objects."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._files = Files(engine)
        self._zips = Zips(engine, self._files)

    async def retrieve(
        self, scope: Scope, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> AsgiApp:
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
        if delivery.media_type == accept.ZIP:
            level = "study" if series_uid is None else "series" if sop_uid is None else "instance"
            return self._zip(scope, found, level)
        if not delivery.multipart:
            return await self._alone(scope, found[0])
        return self._together(scope, found)

    async def _alone(self, scope: Scope, one: Instance) -> AsgiApp:
        validators = validators_of(one, "file")
        if is_unchanged(scope, validators):
            return unchanged(validators)

        def pieces(start: int, stop: int) -> AsyncIterator[Sequence[Buffer]]:
            return self._files.pieces(one, start, stop)

        length = await self._files.length(one)
        return whole_or_range(scope, validators, part_type(one), length, pieces)

    def _zip(self, scope: Scope, found: Sequence[Instance], level: str) -> AsgiApp:
        if len(found) > FILES_MAX:
            raise WebError(406, f"an archive has at most {FILES_MAX} files; ask for one series at a time")
        validators = validators_of_all(found, "zip")
        if is_unchanged(scope, validators):
            return unchanged(validators)
        # A UID that is the same as long as the archive is (PS3.5 B.2).
        digest = validators.etag.split('"')[1]
        uid = f"2.25.{int(digest, 16)}"
        lines = [
            (b"content-type", accept.ZIP.encode()),
            (b"content-disposition", f'attachment; filename="{level}.zip"'.encode()),
        ]
        return StreamResponse([*lines, *validators.headers()], self._zips.pieces(found, uid))

    def _together(self, scope: Scope, found: Sequence[Instance]) -> AsgiApp:
        base = base_url(scope, self._settings.base_url)
        validators = validators_of_all(found, "files", base)
        if is_unchanged(scope, validators):
            return unchanged(validators)
        boundary = new_boundary()
        content_type = b'multipart/related; type="application/dicom"; boundary=' + boundary
        length = None
        if all(self._files.is_known(one) for one in found):
            length = len(closing(boundary)) + sum(
                len(head) + size
                for head, size in (self._part(one, boundary, base, n == 0) for n, one in enumerate(found))
            )
        return StreamResponse(
            [(b"content-type", content_type), *validators.headers()],
            self._parts(found, boundary, base),
            length=length,
            ahead=PIECES_AHEAD,
        )

    def _part(self, one: Instance, boundary: bytes, base: str, first: bool) -> tuple[bytes, int]:
        """What precedes one file on the wire, and the file's length."""
        size = self._files.length_blocking(one)
        location = instance_url(base, one.study_uid, one.series_uid, one.row.sop_uid)
        head = part_head(boundary, part_type(one), size, location.encode("ascii", "replace"), first=first)
        return head, size

    async def _parts(
        self, found: Sequence[Instance], boundary: bytes, base: str
    ) -> AsyncIterator[Sequence[Buffer]]:
        for n, one in enumerate(found):
            if self._files.is_known(one):
                head, _ = self._part(one, boundary, base, n == 0)
            else:
                head, _ = await self._engine.read(self._part, one, boundary, base, n == 0)
            async with aclosing(self._files.pieces(one, before=head)) as pieces:
                async for piece in pieces:
                    yield piece
        yield (closing(boundary),)
