"""WADO-RS bulk data and pixel data (PS3.18 10.4.1.1.5, 10.4.1.1.6): values alone, streamed however long.

Native pixel data is one value, little endian; each frame of encapsulated pixel data is one; a video is one,
its fragments joined (PS3.18 8.7.3.3). A value that comes alone can be asked for by byte ranges.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from hounsfield.archive.dicom.bulk import Bulk, find_bulk
from hounsfield.archive.dicom.byte_order import WORD_BYTES, swapped
from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.engine.decoding import image_format
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.records import number_of
from hounsfield.archive.engine.target_syntaxes import transcodable
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.web import accept
from hounsfield.archive.web.accept import Delivery, MediaRange
from hounsfield.archive.web.conditional import is_unchanged
from hounsfield.archive.web.deflated import deflated_pixels, is_deflated
from hounsfield.archive.web.documents import DOCUMENT, PDF, is_pdf
from hounsfield.archive.web.files import validators_of, validators_of_all
from hounsfield.archive.web.frames import not_acceptable
from hounsfield.archive.web.http import AsgiApp, Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.pixels import (
    content_type,
    is_big_endian,
    multipart_type,
    pixel_tag,
    word_bytes,
)
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import (
    PIECES_AHEAD,
    StreamResponse,
    begun,
    stretch_of,
    unchanged,
    whole_or_range,
)
from hounsfield.archive.web.urls import base_url, instance_url
from hounsfield.codecs.frames import JoinedBits
from hounsfield.codecs.registry import OCTETS, lookup
from hounsfield.storage_backends.api import Buffer

_PIXEL_PATHS: Final = frozenset(f"{tag:08X}" for tag in PIXEL_TAGS)

_NUMBER_OF_FRAMES: Final = 0x00280008

Stretch = Callable[[int, int], AsyncIterator[Sequence[Buffer]]]


@dataclass(frozen=True, slots=True)
class Value:
    """One value: so many bytes; ``read`` gives those from the first to before the second."""

    length: int
    read: Stretch


class Bulkdata:
    """Answers requests for values."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def element(
        self, scope: Scope, study_uid: str, series_uid: str, sop_uid: str, path: str
    ) -> AsgiApp:
        """The value that a BulkDataURI names."""
        if path.upper() in _PIXEL_PATHS:
            return await self.pixels(scope, study_uid, series_uid, sop_uid)
        ranges = accept.ranges_of(*accept.accepted(scope))
        (one,) = await self._engine.instances(study_uid, series_uid, sop_uid)
        found = await self._engine.read(self._find, one, path)
        if found is None:
            raise NotFoundError("no such element in this instance")
        of = PDF if path == DOCUMENT and is_pdf(one) else OCTETS
        delivery = accept.for_bulk(ranges, alone=True, of=of)
        if delivery is None:
            kinds = " or ".join(dict.fromkeys((OCTETS, of)))
            raise WebError(406, f"this bulk data is delivered as {kinds} only")
        data = found.value if found.little_endian else swapped(found.value, WORD_BYTES.get(found.vr, 1))
        url = f"{self._url(scope, one)}/bulkdata/{path}"
        return await self._one_value(scope, one, _in_memory(data), delivery, url)

    def _find(self, one: Instance, path: str) -> Bulk | None:
        header = self._engine.header_blocking(one)
        return find_bulk(header.head, header.trailer, lookup(header.transfer_syntax_uid), path)

    async def pixels(
        self, scope: Scope, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> AsgiApp:
        """The pixel data of every instance of a study, of a series, or of one, that has any.

        ``NotFoundError`` when none has; 406 when that of one of them cannot be given as asked.
        """
        ranges = accept.ranges_of(*accept.accepted(scope))
        found = [
            one for one in await self._engine.instances(study_uid, series_uid, sop_uid) if has_pixels(one)
        ]
        if not found:
            raise NotFoundError("there is no pixel data here that can be given alone")
        if len(found) == 1:
            return await self._pixels_of_one(scope, found[0], ranges)
        deliveries = [delivery_of(one, ranges, alone=False) for one in found]
        given = [delivery.transfer_syntax for delivery in deliveries]
        validators = validators_of_all(found, "pixels", self._url(scope, found[0]), *given)
        if is_unchanged(scope, validators):
            return unchanged(validators)
        boundary = new_boundary()
        kind = multipart_type(deliveries[0].media_type, boundary)
        body = await begun(self._multipart(scope, found, deliveries, boundary))
        return StreamResponse([(b"content-type", kind), *validators.headers()], body, ahead=PIECES_AHEAD)

    async def _pixels_of_one(self, scope: Scope, one: Instance, ranges: tuple[MediaRange, ...]) -> AsgiApp:
        delivery = delivery_of(one, ranges, alone=True)
        if _is_one_value(one, delivery):
            async with aclosing(self.values(one, delivery)) as values:
                async for value in values:
                    return await self._one_value(scope, one, value, delivery, await self.location(scope, one))
            raise NotFoundError("there is no pixel data here that can be given alone")
        if not delivery.multipart:
            delivery = delivery_of(one, ranges, alone=False)
        given = ("pixels", self._url(scope, one), delivery.transfer_syntax)
        validators = validators_of_all([one], *given)
        if is_unchanged(scope, validators):
            return unchanged(validators)
        boundary = new_boundary()
        body = await begun(self._multipart(scope, [one], [delivery], boundary))
        kind = multipart_type(delivery.media_type, boundary)
        return StreamResponse([(b"content-type", kind), *validators.headers()], body, ahead=PIECES_AHEAD)

    async def _one_value(
        self, scope: Scope, one: Instance, value: Value, delivery: Delivery, url: str
    ) -> AsgiApp:
        kind = content_type(delivery)
        given = ("value", url, delivery.transfer_syntax)
        uid = one.row.transfer_syntax_uid
        weak = delivery.multipart or not accept.is_as_stored(delivery, uid)
        validators = validators_of(one, *given, weak=weak)
        if is_unchanged(scope, validators):
            return unchanged(validators)
        if not delivery.multipart:
            return whole_or_range(scope, validators, kind, value.length, value.read)
        boundary = new_boundary()
        head = part_head(boundary, kind, value.length, url.encode("ascii", "replace"), first=True)
        lines = [(b"content-type", multipart_type(delivery.media_type, boundary)), *validators.headers()]
        length = len(head) + value.length + len(closing(boundary))
        return StreamResponse(lines, _framed(head, value, boundary), length=length, ahead=PIECES_AHEAD)

    async def _multipart(
        self, scope: Scope, found: Sequence[Instance], deliveries: Sequence[Delivery], boundary: bytes
    ) -> AsyncIterator[Sequence[Buffer]]:
        first = True
        for one, delivery in zip(found, deliveries, strict=True):
            url = (await self.location(scope, one)).encode("ascii", "replace")
            async with aclosing(self.values(one, delivery)) as values:
                async for value in values:
                    yield (part_head(boundary, content_type(delivery), value.length, url, first=first),)
                    first = False
                    async with aclosing(value.read(0, value.length)) as pieces:  # type: ignore[type-var]
                        async for piece in pieces:
                            yield piece
        yield (closing(boundary),)

    async def values(self, one: Instance, delivery: Delivery) -> AsyncGenerator[Value, None]:
        """The values of an instance's pixel data, one after the other."""
        syntax = lookup(one.row.transfer_syntax_uid)
        if not accept.is_as_stored(delivery, syntax.uid):
            target = delivery.transfer_syntax
            if not lookup(target).encapsulated:
                yield await self._decoded_value(one, target)
                return
            for number in range(1, await self._engine.decoding.frame_count(one) + 1):
                yield _in_memory(await self._engine.transcoded_frame(one, number, target))
            return
        if is_deflated(syntax.uid):
            header = await self._engine.header(one)
            with suppress(NotFoundError):  # only inflating it tells that it has none
                yield _in_memory(await self._engine.heavy(deflated_pixels, header))
            return
        places = await self._engine.pixel_places(one)
        if places is None:
            for number in range(1, one.row.location.frames + 1):
                frame = await self._engine.frame(one.study_uid, one.series_uid, one.row.sop_uid, number)
                yield _in_memory(frame.data)
        elif is_big_endian(syntax.uid):
            yield self._swapped_value(one, places[0], await word_bytes(self._engine, one))
        elif syntax.is_video:
            yield self._value(one, places)
        else:
            for place in places:
                yield self._value(one, [place])

    def _value(self, one: Instance, places: Sequence[tuple[int, int]]) -> Value:
        """The stretches of a stored data set, joined."""

        async def read(start: int, stop: int) -> AsyncIterator[Sequence[Buffer]]:
            async with aclosing(self._engine.received(one, places, start, stop)) as buffers:  # type: ignore[type-var]
                async for buffer in buffers:
                    yield (buffer,)

        return Value(sum(end - begin for begin, end in places), read)

    async def _decoded_value(self, one: Instance, target: str) -> Value:
        """The cells of compressed frames, one frame after the other."""
        size = len(await self._engine.transcoded_frame(one, 1, target))
        bits = image_format(one).bits
        if bits % 8:
            return self._joined_value(one, target, bits)

        async def read(start: int, stop: int) -> AsyncIterator[Sequence[Buffer]]:
            for number in range(start // size, -(-stop // size)):
                cells = memoryview(await self._engine.transcoded_frame(one, number + 1, target))
                yield (cells[max(start - number * size, 0) : stop - number * size],)

        return Value(size * _frames_of(one), read)

    def _joined_value(self, one: Instance, target: str, bits: int) -> Value:
        """The same of cells of one bit: a frame begins at the bit where the one before ends (PS3.5 8.1.1)."""
        frames = _frames_of(one)

        async def read(start: int, stop: int) -> AsyncIterator[Sequence[Buffer]]:
            first = start * 8 // bits
            joined, at = JoinedBits(bits, skipped=first), first * bits // 8
            for number in range(first, min(-(-stop * 8 // bits), frames)):
                cells = memoryview(joined.add(await self._engine.transcoded_frame(one, number + 1, target)))
                yield (cells[max(start - at, 0) : max(stop - at, 0)],)
                at += len(cells)
            yield (joined.rest()[max(start - at, 0) : max(stop - at, 0)],)

        return Value(-(-bits * frames // 8), read)

    def _swapped_value(self, one: Instance, place: tuple[int, int], size: int) -> Value:
        """The same of big-endian words, little endian."""
        whole = self._value(one, [place])

        async def read(start: int, stop: int) -> AsyncIterator[Sequence[Buffer]]:
            at = start - start % size
            end = min(stop + -stop % size, whole.length)
            kept = b""
            async with aclosing(whole.read(at, end)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    words = b"".join((kept, *piece))
                    length = len(words) - len(words) % size
                    words, kept = words[:length], words[length:]
                    turned = await self._engine.read(swapped, words, size)
                    yield (memoryview(turned)[max(start - at, 0) : max(stop - at, 0)],)
                    at += length
            if kept:
                yield (memoryview(kept)[max(start - at, 0) : max(stop - at, 0)],)

        return Value(whole.length, read)

    def _url(self, scope: Scope, one: Instance) -> str:
        return instance_url(
            base_url(scope, self._settings.base_url), one.study_uid, one.series_uid, one.row.sop_uid
        )

    async def location(self, scope: Scope, one: Instance) -> str:
        """The BulkDataURI that metadata has for the pixel data (PS3.18 10.4.3.3.6)."""
        return f"{self._url(scope, one)}/bulkdata/{await pixel_tag(self._engine, one):08X}"


def delivery_of(one: Instance, ranges: tuple[MediaRange, ...], *, alone: bool) -> Delivery:
    uid = one.row.transfer_syntax_uid
    delivery = accept.for_frames(ranges, uid, transcodable, alone=alone)
    if delivery is None:
        if not alone and accept.for_frames(ranges, uid, transcodable, alone=True) is not None:
            raise WebError(406, "this comes in several parts, as multipart/related only")
        raise not_acceptable(uid)
    return delivery


def has_pixels(one: Instance) -> bool:
    """Whether an instance has pixel data, or may have: of a deflated one only inflating it tells."""
    return is_deflated(one.row.transfer_syntax_uid) or Layout(one.row.layout) is not Layout.HEADER_ONLY


def _is_one_value(one: Instance, delivery: Delivery) -> bool:
    """Whether all pixel data is one value: cells, a video's stream, or a single frame."""
    given = lookup(delivery.transfer_syntax)
    return not given.encapsulated or given.is_video or _frames_of(one) == 1


def _frames_of(one: Instance) -> int:
    """How many frames there are: the index knows, but of a deflated object only what it says itself."""
    return one.row.location.frames or max(1, number_of(one.row.attributes.get(_NUMBER_OF_FRAMES, ""), 1))


def _in_memory(data: Buffer) -> Value:
    return Value(len(data), partial(stretch_of, data))


async def _framed(head: bytes, value: Value, boundary: bytes) -> AsyncIterator[Sequence[Buffer]]:
    yield (head,)
    async with aclosing(value.read(0, value.length)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            yield piece
    yield (closing(boundary),)
