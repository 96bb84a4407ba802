"""Stored videos as rendered resources: the stream as it is, or as MP4 (PS3.18 8.7.4, 10.4.1.1.4).

A video in MP4, and MPEG-2 and HEVC for those who take video/mpeg and video/H265, is given as it is stored,
streamed and by ranges, so that a browser can jump in it. Anything else is made MP4 where PyAV is installed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from hounsfield.archive.engine.rendered import Rendered
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.engine.video import Stream, are_decoded
from hounsfield.archive.rendering.request import MP4, STILL
from hounsfield.archive.web import accept
from hounsfield.archive.web.conditional import is_unchanged
from hounsfield.archive.web.files import validators_of
from hounsfield.archive.web.http import AsgiApp, Scope
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.pixels import multipart_type
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import PIECES_AHEAD, StreamResponse, unchanged, whole_or_range
from hounsfield.codecs.registry import lookup
from hounsfield.codecs.video_process import is_mp4
from hounsfield.storage_backends.api import Buffer


@dataclass(frozen=True, slots=True)
class _Form:
    """How a video can be given."""

    media_type: str
    as_stored: bool


def is_video(one: Instance) -> bool:
    """Whether an instance's pixels are one stream of video."""
    return lookup(one.row.transfer_syntax_uid).is_video


async def video_answer(
    scope: Scope, rendered: Rendered, one: Instance, ranges: Sequence[accept.MediaRange]
) -> AsgiApp | None:
    """The video, None when a picture of it is preferred. ``WebError`` (406) when it is neither."""
    stream = await rendered.video.stream(one)
    forms = _forms(one, await rendered.video.demuxer(one, stream))
    stills = STILL if are_decoded() else ()
    for wanted in ranges:
        for form in forms:
            if accept.covers(wanted.content_type.lower(), form.media_type.lower()):
                return await _given(scope, rendered, one, stream, form, multipart=wanted.is_multipart)
        if any(accept.covers(wanted.content_type, still) for still in stills):
            return None
    kinds = ", ".join((*(form.media_type for form in forms), *stills)) or "nothing: PyAV is not installed"
    raise WebError(406, f"this video is given as {kinds}")


def _forms(one: Instance, demuxer: str) -> list[_Form]:
    """The best first."""
    media_type = lookup(one.row.transfer_syntax_uid).media_type
    forms = [_Form(MP4, as_stored=True)] if is_mp4(demuxer) else []
    if media_type != MP4:
        forms.append(_Form(media_type, as_stored=True))
    if are_decoded() and demuxer and not is_mp4(demuxer):
        forms.append(_Form(MP4, as_stored=False))
    return forms


async def _given(
    scope: Scope, rendered: Rendered, one: Instance, stream: Stream, form: _Form, *, multipart: bool
) -> AsgiApp:
    validators = validators_of(one, "video", repr(form), weak=multipart or not form.as_stored)
    if is_unchanged(scope, validators):
        return unchanged(validators)
    if not form.as_stored:
        (subject,) = await rendered.subjects(one)
        data = await rendered.film_of_video(subject)
        stream = Stream(len(data), lambda start, stop: _in_memory(data, start, stop))
    kind = form.media_type.encode()
    if not multipart:
        return whole_or_range(
            scope, validators, kind, stream.length, lambda start, stop: _pieces(stream, start, stop)
        )
    boundary = new_boundary()
    head = part_head(boundary, kind, stream.length, first=True)

    async def parts() -> AsyncIterator[Sequence[Buffer]]:
        yield (head,)
        async with aclosing(_pieces(stream, 0, stream.length)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece
        yield (closing(boundary),)

    lines = [(b"content-type", multipart_type(form.media_type, boundary)), *validators.headers()]
    length = len(head) + stream.length + len(closing(boundary))
    return StreamResponse(lines, parts(), length=length, ahead=PIECES_AHEAD)


async def _pieces(stream: Stream, start: int, stop: int) -> AsyncIterator[Sequence[Buffer]]:
    async with aclosing(stream.read(start, stop)) as buffers:  # type: ignore[type-var]
        async for buffer in buffers:
            yield (buffer,)


async def _in_memory(data: Buffer, start: int, stop: int) -> AsyncIterator[Buffer]:
    yield memoryview(data)[start:stop]
