"""WADO-RS frames (PS3.18 10.4.1.6), the route that viewers live on.

Bare ASGI in front of the router: index → page cache → open the seal → one gather write. The frame's
bytes are never joined with the multipart framing around them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import lru_cache, partial
from typing import Final, NamedTuple

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import NotFoundError, NotSeparableError
from hounsfield.archive.engine.target_syntaxes import transcodable
from hounsfield.archive.engine.types import Frame, Instance
from hounsfield.archive.web import accept
from hounsfield.archive.web.accept import Delivery, MediaRange
from hounsfield.archive.web.conditional import (
    Validators,
    entity_tag,
    frame_tag,
    has_conditions,
    is_unchanged,
)
from hounsfield.archive.web.http import Receive, Scope, Send
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.pixels import content_type, is_big_endian, little_endian, multipart_type
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import StreamResponse, begun, stretch_of, unchanged, whole_or_range
from hounsfield.archive.web.urls import base_url, instance_url
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

ROUTE: Final = "/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/{frames}"
_PREFIX: Final = "/dicom-web/studies/"


def is_frames_path(path: str) -> list[str] | None:
    """Study, series, instance and frame list of a frames path, else None."""
    if not path.startswith(_PREFIX):
        return None
    parts = path.split("/")
    if len(parts) != 10 or parts[4] != "series" or parts[6] != "instances" or parts[8] != "frames":
        return None
    return [parts[3], parts[5], parts[7], parts[9]]


class _Plan(NamedTuple):
    """How frames of one transfer syntax leave for all who accept alike."""

    delivery: Delivery
    untouched: bool  # they leave with the very bytes that are stored
    weak: bool  # their entity tags are
    transcoded_to: str  # a transfer syntax, or ""
    part_type: bytes


@lru_cache(maxsize=1024)
def _plan(ranges: tuple[MediaRange, ...], transfer_syntax_uid: str) -> _Plan | None:
    """For one frame; None when no range allows it."""
    delivery = accept.for_frames(ranges, transfer_syntax_uid, transcodable, alone=True)
    if delivery is None:
        return None
    as_stored = accept.is_as_stored(delivery, transfer_syntax_uid)
    untouched = as_stored and not is_big_endian(transfer_syntax_uid)
    weak = delivery.multipart or not as_stored
    transcoded_to = "" if as_stored else delivery.transfer_syntax
    return _Plan(delivery, untouched, weak, transcoded_to, content_type(delivery))


class Frames:
    """Answers frames requests."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def answer(self, scope: Scope, receive: Receive, send: Send, path: Sequence[str]) -> None:
        """One request. Raises what :mod:`.problems` maps; nothing was sent then."""
        scope["route"] = ROUTE
        study, series, instance, text = path
        numbers = frame_numbers(text, self._settings.limits.frames_max)
        ranges = accept.ranges_of(*accept.accepted(scope))
        if len(numbers) > 1:
            await self._several(scope, receive, send, (study, series, instance), numbers, ranges)
            return
        (number,) = numbers
        found = self._engine.named(study, series, instance)
        plan = _plan(ranges, found.row.transfer_syntax_uid)
        if plan is None:
            raise not_acceptable(found.row.transfer_syntax_uid)
        delivery = plan.delivery
        tag = frame_tag(found.row.location.record_id, number, delivery.transfer_syntax, weak=plan.weak)
        validators = Validators(tag)
        conditional = has_conditions(scope)
        if conditional and is_unchanged(scope, validators):
            await unchanged(validators)(scope, receive, send)
            return
        frame = self._at_once(found, number) if plan.untouched else None
        data = await self._data(found, number, delivery) if frame is None else frame.data
        if not len(data):
            raise NotFoundError("this frame was received without a single byte; there is nothing to give")
        self._engine.reading_ahead.asked(found, number, at_once=frame is not None, syntax=plan.transcoded_to)
        lines = validators.headers()
        if delivery.multipart:
            boundary = new_boundary()
            base = base_url(scope, self._settings.base_url)
            location = f"{instance_url(base, study, series, instance)}/frames/{number}"
            head = part_head(boundary, plan.part_type, len(data), _header_text(location), first=True)
            lines.append((b"content-type", multipart_type(delivery.media_type, boundary)))
            await send({"type": "http.response.start", "status": 200, "headers": lines})
            await send({"type": "http.response.body", "body": (head, data, closing(boundary))})
        elif not conditional:
            lines += ((b"content-type", plan.part_type), (b"accept-ranges", b"bytes"))
            await send({"type": "http.response.start", "status": 200, "headers": lines})
            await send({"type": "http.response.body", "body": data})
        else:
            await whole_or_range(scope, validators, plan.part_type, len(data), partial(stretch_of, data))(
                scope, receive, send
            )
        if frame is not None:
            self._engine.frame_sent(frame)

    async def _several(  # noqa: PLR0917 - ASGI takes three of them
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        path: tuple[str, str, str],
        numbers: list[int],
        ranges: tuple[accept.MediaRange, ...],
    ) -> None:
        (found,) = await self._engine.instances(*path)
        uid = found.row.transfer_syntax_uid
        # The highest number exists, so all do: what is wrong is said before the answer begins.
        await self._engine.decoding.frame(found, max(numbers))
        delivery = accept.for_frames(ranges, uid, transcodable, alone=False)
        if delivery is None:
            if accept.for_frames(ranges, uid, transcodable, alone=True) is not None:
                raise WebError(
                    406, "several frames come as multipart/related only; ask for one frame at a time"
                )
            raise not_acceptable(uid)
        url = instance_url(base_url(scope, self._settings.base_url), *path)
        given = ("frames", repr(numbers), url, delivery.transfer_syntax)
        validators = Validators(entity_tag(*given, found.row.location.record_id, weak=True))
        if is_unchanged(scope, validators):
            await unchanged(validators)(scope, receive, send)
            return
        boundary = new_boundary()
        lines = [(b"content-type", multipart_type(delivery.media_type, boundary)), *validators.headers()]
        pieces = self._pieces(found, numbers, delivery, boundary, url)
        if not accept.is_as_stored(delivery, uid):
            pieces = await begun(pieces)
        await StreamResponse(lines, pieces)(scope, receive, send)

    async def _pieces(
        self,
        found: Instance,
        numbers: list[int],
        delivery: Delivery,
        boundary: bytes,
        url: str,
    ) -> AsyncIterator[Sequence[Buffer]]:
        part_type = content_type(delivery)
        first = True
        for number in numbers:
            data = await self._data(found, number, delivery)
            location = _header_text(f"{url}/frames/{number}")
            yield part_head(boundary, part_type, len(data), location, first=first), data
            first = False
        yield (closing(boundary),)

    def _at_once(self, found: Instance, number: int) -> Frame | None:
        """A frame that is in memory, or None."""
        try:
            return self._engine.frame_nowait(found, number)
        except NotSeparableError:
            return None  # unless it is deflated: `_data` looks inside

    async def _data(self, found: Instance, number: int, delivery: Delivery) -> Buffer:
        """A frame as it is to leave."""
        uid = found.row.transfer_syntax_uid
        if not accept.is_as_stored(delivery, uid):
            return await self._engine.transcoded_frame(found, number, delivery.transfer_syntax)
        data = await self._engine.decoding.frame(found, number)
        return await little_endian(self._engine, found, data) if is_big_endian(uid) else data


def frame_numbers(text: str, frames_max: int) -> list[int]:
    """The frame list of a path: numbers from 1, in the order asked for. ``WebError`` 400 when it is none."""
    numbers: list[int] = []
    for part in map(str.strip, text.split(",")):
        if not (part.isascii() and part.isdigit() and len(part) <= 9) or int(part) == 0:
            raise WebError(400, "the frame list must be frame numbers from 1, separated by commas")
        numbers.append(int(part))
    if len(numbers) > frames_max:
        raise WebError(400, f"more than {frames_max} frames in one request; ask for fewer")
    return numbers


def not_acceptable(transfer_syntax_uid: str) -> WebError:
    """What a client is told that takes nothing of what could be given."""
    syntax = lookup(transfer_syntax_uid)
    others = [uid for uid in transcodable(transfer_syntax_uid) if uid != transfer_syntax_uid]
    return WebError(
        406,
        f'the request accepts none of what there is: type="{syntax.media_type}" as stored '
        f"({syntax.uid}, or transfer-syntax=*)"
        + (f", or one of the transfer syntaxes {', '.join(others)}" if others else ""),
    )


def _header_text(url: str) -> bytes:
    return url.encode("ascii", "replace")
