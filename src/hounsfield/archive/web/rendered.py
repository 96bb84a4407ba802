"""WADO-RS rendered resources and thumbnails (PS3.18 10.4.1.1.4, 10.4.1.1.5, 8.3.5, 8.7.4).

One picture is answered alone or in a part, as Accept says; several come as ``multipart/related``, each drawn
while the one before is sent. An object of many frames is a film for those who ask for one, else, asked for
one picture, the frame that stands for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import DamagedError, NotFoundError, NotSeparableError
from hounsfield.archive.engine.rendered import Subject
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.rendering.errors import NoImageError, RenderingError
from hounsfield.archive.rendering.film import film_types
from hounsfield.archive.rendering.presentation import SOP_CLASSES as PRESENTATION_STATES
from hounsfield.archive.rendering.request import FILMS, JPEG, STILL, Rendering, Viewport, parse_rendering
from hounsfield.archive.web import accept
from hounsfield.archive.web.conditional import Validators, entity_tag, has_conditions, is_unchanged
from hounsfield.archive.web.documents import document_answer, is_pdf
from hounsfield.archive.web.frames import frame_numbers
from hounsfield.archive.web.http import AsgiApp, Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.pixels import multipart_type
from hounsfield.archive.web.problems import Header, WebError
from hounsfield.archive.web.responses import BuffersResponse, StreamResponse, unchanged
from hounsfield.archive.web.urls import base_url, instance_url, parameters
from hounsfield.archive.web.video import is_video, video_answer
from hounsfield.codecs.errors import CodecError
from hounsfield.storage_backends.api import Buffer

_ROWS: Final = 0x00280010
_IMAGE_TYPE: Final = 0x00080008
#: Objects that have pixels and are no images of the patient: segmentations, dose, parametric maps.
_DERIVED: Final = frozenset({
    "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.30",
})  # fmt: skip
THUMBNAIL_TRIES_MAX: Final = 4
"""Images that are tried when the one in the middle cannot be shown."""
#: One object of many that fails so is left out: it is damaged, unusual, or was deleted meanwhile.
_UNSHOWN: Final = (RenderingError, CodecError, NotFoundError, NotSeparableError, DamagedError)

#: Of which object, which of its frames, and the file.
_Picture = tuple[Instance, Sequence[int], Buffer]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was agreed on: the media type, and whether it comes in parts."""

    media_type: str
    multipart: bool


@dataclass(frozen=True, slots=True)
class UriWishes:
    """What WADO-URI can ask of a picture and WADO-RS cannot (PS3.18 9.5.1.2).

    ``presentation``: series and SOP instance UID of the presentation state to show it under. ``region``:
    left, top, width and height of the part to show, as fractions of what would be shown.
    """

    presentation: tuple[str, str] | None = None
    region: tuple[float, float, float, float] | None = None


class RenderedPictures:
    """Answers requests for rendered resources and thumbnails."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings

    # ------------------------------------------------------------ rendered

    async def retrieve(
        self,
        scope: Scope,
        study_uid: str,
        series_uid: str | None = None,
        sop_uid: str | None = None,
        frames: str | None = None,
        *,
        wishes: UriWishes = UriWishes(),
    ) -> AsgiApp:
        """The pictures of a study, a series, an instance, or of some of its frames."""
        ranges = accept.ranges_of(*accept.accepted(scope))
        if sop_uid is None or series_uid is None:
            return await self._many(scope, study_uid, series_uid, ranges)
        (one,) = await self._engine.instances(study_uid, series_uid, sop_uid)
        if is_pdf(one) and frames is None and wishes.presentation is None:
            return await document_answer(scope, self._engine, one, ranges)
        if is_video(one) and frames is None and wishes.presentation is None:
            answer = await video_answer(scope, self._engine.rendered, one, ranges)
            if answer is not None:
                return answer
        if wishes.presentation is None:
            subjects = await self._engine.rendered.subjects(one)
        else:
            (state,) = await self._engine.instances(study_uid, *wishes.presentation)
            subjects = [await self._engine.rendered.subject_under(one, state)]
        if frames is None:
            wanted = [(subject, subject.frames) for subject in subjects]
        else:
            subject, numbers = subjects[0], self._numbers(frames)
            if one.row.sop_class_uid in PRESENTATION_STATES:
                raise NotFoundError("a presentation state has no frames of its own")
            if max(numbers) > subject.image.frames:
                raise NotFoundError(f"this instance has {subject.image.frames} frames")
            if subject.state is not None and not set(numbers) <= set(subject.frames):
                raise WebError(400, "that presentation state is not for this frame")
            wanted = [(replace(subject, chosen=True), numbers)]
        return await self._pictures(scope, wanted, ranges, chosen=frames is not None, region=wishes.region)

    async def _pictures(
        self,
        scope: Scope,
        wanted: Sequence[tuple[Subject, Sequence[int]]],
        ranges: tuple[accept.MediaRange, ...],
        *,
        chosen: bool,
        region: tuple[float, float, float, float] | None = None,
    ) -> AsgiApp:
        """Of one request's objects; ``chosen``: their frames are named, so that all of them must come."""
        several = len(wanted) > 1 or (chosen and len(wanted[0][1]) > 1)
        film = len(wanted) == 1 and not is_video(wanted[0][0].instance)
        answer = negotiated(ranges, alone=not several, film=film)
        asked, ignored = parse_rendering(parameters(scope), answer.media_type)
        if region is not None:
            sides = (asked.viewport.width, asked.viewport.height) if asked.viewport else (None, None)
            asked = replace(asked, viewport=Viewport(*sides, *region, fractions=True))
        warnings = _warnings(ignored)
        if not answer.multipart:
            subject, numbers = wanted[0]
            if answer.media_type not in FILMS and len(numbers) > 1:
                numbers = (subject.image.representative_frame,) if subject.state is None else numbers[:1]
            validators = _validators(subject, numbers, asked)
            if has_conditions(scope) and is_unchanged(scope, validators):
                return unchanged(validators)
            data = await self._engine.rendered.file(subject, numbers, asked)
            kind = (b"content-type", answer.media_type.encode())
            return BuffersResponse(200, [kind, *warnings, *validators.headers()], (data,))
        # What is wrong is said before the answer begins; the first picture is kept until its turn comes.
        await self._engine.rendered.file(*next(_each_file(wanted, answer.media_type)), asked)
        return self._parts(scope, answer.media_type, self._each(wanted, asked), warnings)

    async def _each(
        self, wanted: Sequence[tuple[Subject, Sequence[int]]], asked: Rendering
    ) -> AsyncGenerator[_Picture, None]:
        for subject, numbers in _each_file(wanted, asked.media_type):
            yield subject.instance, numbers, await self._engine.rendered.file(subject, numbers, asked)

    async def _many(
        self, scope: Scope, study_uid: str, series_uid: str | None, ranges: tuple[accept.MediaRange, ...]
    ) -> AsgiApp:
        """Every image of a study or series, in parts; what cannot be shown is left out."""
        found = [one for one in await self._engine.instances(study_uid, series_uid) if _has_pixels(one)]
        if not found:
            raise NoImageError("there are no images in this study or series")
        if len(found) == 1:
            return await self.retrieve(scope, study_uid, found[0].series_uid, found[0].row.sop_uid)
        answer = negotiated(ranges, alone=False, film=False)
        asked, ignored = parse_rendering(parameters(scope), answer.media_type)
        for first, one in enumerate(found):
            try:
                (subject,) = await self._engine.rendered.subjects(one)
                await self._engine.rendered.file(subject, subject.frames[:1], asked)
            except _UNSHOWN:
                continue
            pictures = self._drawable(found[first:], asked)
            return self._parts(scope, answer.media_type, pictures, _warnings(ignored))
        raise NoImageError("none of the images in this study or series can be shown")

    async def _drawable(self, found: Sequence[Instance], asked: Rendering) -> AsyncGenerator[_Picture, None]:
        for one in found:
            with suppress(*_UNSHOWN):
                (subject,) = await self._engine.rendered.subjects(one)
                for number in subject.frames:
                    yield one, (number,), await self._engine.rendered.file(subject, (number,), asked)

    def _parts(
        self,
        scope: Scope,
        media_type: str,
        pictures: AsyncGenerator[_Picture, None],
        lines: Sequence[Header],
    ) -> StreamResponse:
        boundary = new_boundary()
        base = base_url(scope, self._settings.base_url)

        async def pieces() -> AsyncIterator[Sequence[Buffer]]:
            first = True
            async with aclosing(pictures) as drawn:
                async for one, numbers, data in drawn:
                    url = instance_url(base, one.study_uid, one.series_uid, one.row.sop_uid)
                    if len(numbers) == 1:
                        url = f"{url}/frames/{numbers[0]}"
                    location = f"{url}/rendered".encode("ascii", "replace")
                    yield part_head(boundary, media_type.encode(), len(data), location, first=first), data
                    first = False
            yield (closing(boundary),)

        head = [(b"content-type", multipart_type(media_type, boundary)), *lines, *_CACHING]
        return StreamResponse(head, pieces(), ahead=1)

    # ------------------------------------------------------------ thumbnails

    async def thumbnail(
        self,
        scope: Scope,
        study_uid: str,
        series_uid: str | None = None,
        sop_uid: str | None = None,
        frames: str | None = None,
    ) -> AsgiApp:
        """One small picture that stands for a study, a series, an instance or a frame."""
        answer = negotiated(accept.ranges_of(*accept.accepted(scope)), alone=True, film=False)
        asked, _ = parse_rendering(parameters(scope), answer.media_type, thumbnail=True)
        if sop_uid is not None and series_uid is not None:
            candidates = await self._engine.instances(study_uid, series_uid, sop_uid)
        else:
            candidates = representatives(await self._engine.instances(study_uid, series_uid))
        number = self._numbers(frames)[0] if frames is not None else None
        failure: Exception = NoImageError("there are no images in this study or series")
        for one in candidates[:THUMBNAIL_TRIES_MAX]:
            try:
                subject = (await self._engine.rendered.subjects(one))[0]
                representative = subject.image.representative_frame
                if is_video(one):
                    representative = subject.frames[0]
                numbers = (representative if number is None else number,)
                subject = replace(subject, chosen=number is not None)
                validators = _validators(subject, numbers, asked)
                if has_conditions(scope) and is_unchanged(scope, validators):
                    return unchanged(validators)
                data = await self._engine.rendered.file(subject, numbers, asked)
            except _UNSHOWN as error:
                failure = error
                continue
            kind, lines = answer.media_type.encode(), validators.headers()
            if not answer.multipart:
                return BuffersResponse(200, [(b"content-type", kind), *lines], (data,))
            boundary = new_boundary()
            lines.append((b"content-type", multipart_type(answer.media_type, boundary)))
            part = part_head(boundary, kind, len(data), first=True)
            return BuffersResponse(200, lines, (part, data, closing(boundary)))
        raise failure

    def _numbers(self, text: str) -> tuple[int, ...]:
        return tuple(frame_numbers(text, self._settings.limits.frames_max))


def _each_file(
    wanted: Sequence[tuple[Subject, Sequence[int]]], media_type: str
) -> Iterator[tuple[Subject, Sequence[int]]]:
    """Which frames go into which file, one after the other: there may be a million."""
    for subject, numbers in wanted:
        if media_type in FILMS:
            yield subject, numbers
        else:
            yield from ((subject, (number,)) for number in numbers)


def negotiated(ranges: Sequence[accept.MediaRange], *, alone: bool, film: bool) -> _Answer:
    """What Accept allows, the best first. ``WebError`` (406) when that is nothing we make.

    ``alone``: one picture can be the answer. ``film``: several frames may come as one film.
    """
    kinds = (*STILL, *film_types()) if film else STILL
    in_parts_only = False
    for one in ranges:
        for offered in kinds:
            if not _covers(one.content_type, offered):
                continue
            if one.is_multipart or (one.media_type == "*/*" and not alone):
                return _Answer(offered, multipart=True)
            if alone or offered in FILMS:
                return _Answer(offered, multipart=False)
            in_parts_only = True
    if in_parts_only:
        raise WebError(406, 'several pictures come as multipart/related only; ask for type="image/jpeg"')
    raise WebError(406, f"pictures are given as {', '.join(kinds)}, which the request does not accept")


def _covers(pattern: str, media_type: str) -> bool:
    if pattern in ("*/*", media_type) or (pattern == "image/jpg" and media_type == JPEG):
        return True
    return pattern.endswith("/*") and media_type.startswith(pattern[:-1])


def representatives(found: Sequence[Instance]) -> list[Instance]:
    """The images that may stand for these instances, the best first.

    From the middle of the series that has the most; one that is localizers or derived objects comes last.
    """
    ranked: list[tuple[int, int, list[Instance]]] = []
    for _, group in groupby(found, key=lambda one: one.series_uid):
        images = [one for one in group if _has_pixels(one)]
        if images:
            ranked.append((_rank(images[len(images) // 2]), -len(images), images))
    ranked.sort(key=lambda entry: entry[:2])
    best: list[Instance] = []
    for _, _, images in ranked:
        middle = len(images) // 2
        best += sorted(images, key=lambda one: abs(images.index(one) - middle))[:THUMBNAIL_TRIES_MAX]
    return best


def _rank(one: Instance) -> int:
    if one.row.sop_class_uid in _DERIVED:
        return 2
    return 1 if "LOCALIZER" in one.row.attributes.get(_IMAGE_TYPE, "").upper() else 0


def _has_pixels(one: Instance) -> bool:
    return bool(one.row.attributes.get(_ROWS))


_CACHING: Final = ((b"vary", b"accept"), (b"cache-control", b"private, no-cache"))


def _warnings(ignored: Sequence[str]) -> list[Header]:
    return [(b"warning", b'299 hounsfield "' + text.encode("ascii", "replace") + b'"') for text in ignored]


def _validators(subject: Subject, numbers: Sequence[int], asked: Rendering) -> Validators:
    which = numbers if isinstance(numbers, range) and len(numbers) > 1 else tuple(numbers)
    said = repr((subject.key, which, asked, sorted(asked.annotations)))
    return Validators(entity_tag("rendered", said, weak=True))
