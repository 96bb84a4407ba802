"""WADO-RS study, series and instance retrieval (PS3.18 10.4.1.1): Part 10 files, as stored or transcoded.

Nothing larger than a few megabytes is held at a time, however large the study.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.target_syntaxes import transcodable
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.web import accept
from hounsfield.archive.web.archive_zip import FILES_MAX, Zips
from hounsfield.archive.web.conditional import is_unchanged
from hounsfield.archive.web.files import Files, given_as, meta_of, part_type, validators_of, validators_of_all
from hounsfield.archive.web.http import AsgiApp, Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import PIECES_AHEAD, StreamResponse, begun, unchanged, whole_or_range
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
        ranges = accept.ranges_of(*accept.accepted(scope))
        found = await self._engine.instances(study_uid, series_uid, sop_uid)
        syntaxes = sorted({one.row.transfer_syntax_uid for one in found})
        delivery = accept.for_instances(ranges, syntaxes, transcodable, alone=len(found) == 1)
        if delivery is None:
            if accept.for_instances(ranges, syntaxes, transcodable, alone=True) is not None:
                raise WebError(406, "several instances come as multipart/related, or as application/zip")
            raise _not_acceptable(syntaxes)
        wanted = delivery.transfer_syntax
        if delivery.media_type == accept.ZIP:
            level = "study" if series_uid is None else "series" if sop_uid is None else "instance"
            return await self._zip(scope, found, level, wanted)
        if not delivery.multipart:
            return await self._alone(scope, found[0], given_as(found[0], wanted))
        return await self._together(scope, found, wanted)

    async def _alone(self, scope: Scope, one: Instance, syntax: str) -> AsgiApp:
        if syntax != one.row.transfer_syntax_uid:
            validators = validators_of(one, "file", syntax, weak=True)
            if is_unchanged(scope, validators):
                return unchanged(validators)
            lines = [(b"content-type", part_type(one, syntax)), *validators.headers()]
            made = await begun(self._files.recoded(one, syntax))
            return StreamResponse(lines, made, ahead=PIECES_AHEAD)
        validators = validators_of(one, "file")
        if is_unchanged(scope, validators):
            return unchanged(validators)

        def pieces(start: int, stop: int) -> AsyncIterator[Sequence[Buffer]]:
            return self._files.pieces(one, start, stop)

        length = await self._files.length(one)
        return whole_or_range(scope, validators, part_type(one), length, pieces)

    async def _zip(self, scope: Scope, found: Sequence[Instance], level: str, wanted: str) -> AsgiApp:
        if len(found) > FILES_MAX:
            raise WebError(406, f"an archive has at most {FILES_MAX} files; ask for one series at a time")
        validators = validators_of_all(found, "zip", wanted)
        if is_unchanged(scope, validators):
            return unchanged(validators)
        # A UID that is the same as long as the archive is (PS3.5 B.2).
        digest = validators.etag.split('"')[1]
        uid = f"2.25.{int(digest, 16)}"
        lines = [
            (b"content-type", accept.ZIP.encode()),
            (b"content-disposition", f'attachment; filename="{level}.zip"'.encode()),
        ]
        pieces = self._zips.pieces(found, uid, wanted)
        if wanted:
            pieces = await begun(pieces)
        return StreamResponse([*lines, *validators.headers()], pieces)

    async def _together(self, scope: Scope, found: Sequence[Instance], wanted: str) -> AsgiApp:
        base = base_url(scope, self._settings.base_url)
        validators = validators_of_all(found, "files", base, wanted)
        if is_unchanged(scope, validators):
            return unchanged(validators)
        boundary = new_boundary()
        content_type = b'multipart/related; type="application/dicom"; boundary=' + boundary
        as_stored = all(given_as(one, wanted) == one.row.transfer_syntax_uid for one in found)
        if not as_stored:
            pieces = await begun(self._recoded(found, boundary, base, wanted))
            lines = [(b"content-type", content_type), *validators.headers()]
            return StreamResponse(lines, pieces, ahead=PIECES_AHEAD)
        length, heads = None, None
        if all(self._files.is_known(one) for one in found):
            parts = [self._part(one, boundary, base, n == 0) for n, one in enumerate(found)]
            length = sum(len(head) + size for head, size in parts) + len(closing(boundary))
            heads = iter([head for head, _ in parts])
        lines = [(b"content-type", content_type), *validators.headers()]
        # They are opened into memory that is used again: none is held while another is made.
        return StreamResponse(lines, self._as_stored(found, boundary, base, heads), length=length, ahead=0)

    def _part(self, one: Instance, boundary: bytes, base: str, first: bool) -> tuple[bytes, int]:
        """What precedes one data set on the wire, and how many bytes follow."""
        meta, size = meta_of(one), self._engine.dataset_bytes_blocking(one)
        location = _location(one, base)
        return part_head(boundary, part_type(one), len(meta) + size, location, first=first) + meta, size

    async def _as_stored(
        self, found: Sequence[Instance], boundary: bytes, base: str, heads: Iterator[bytes] | None
    ) -> AsyncIterator[Sequence[Buffer]]:
        """The parts of a body; ``heads``: what precedes each data set, when that is known already."""
        first = iter([True])

        def before(one: Instance) -> bytes:
            if heads is not None:
                return next(heads)
            return self._part(one, boundary, base, next(first, False))[0]

        async with aclosing(self._engine.datasets(found, before)) as lists:  # type: ignore[type-var]
            async for buffers in lists:
                yield buffers
        yield (closing(boundary),)

    async def _recoded(
        self, found: Sequence[Instance], boundary: bytes, base: str, wanted: str
    ) -> AsyncIterator[Sequence[Buffer]]:
        for n, one in enumerate(found):
            syntax = given_as(one, wanted)
            if syntax == one.row.transfer_syntax_uid:
                head, _ = await self._engine.read(self._part, one, boundary, base, n == 0)
                made = self._files.data_set(one, before=head)
            else:
                head = part_head(boundary, part_type(one, syntax), None, _location(one, base), first=n == 0)
                made = self._files.recoded(one, syntax, before=head)
            async with aclosing(made) as pieces:
                async for piece in pieces:
                    yield piece
        yield (closing(boundary),)


def _location(one: Instance, base: str) -> bytes:
    return instance_url(base, one.study_uid, one.series_uid, one.row.sop_uid).encode("ascii", "replace")


def _not_acceptable(syntaxes: Sequence[str]) -> WebError:
    common = [uid for uid in transcodable(syntaxes[0]) if all(uid in transcodable(one) for one in syntaxes)]
    return WebError(
        406,
        'these instances are given as "application/dicom", several as multipart/related, or as '
        "application/zip; as they are stored (transfer-syntax=*)"
        + (f" or in transfer syntax {', '.join(common)}" if common else ""),
    )
