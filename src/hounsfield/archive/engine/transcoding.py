"""Objects and frames in another transfer syntax than they are stored in.

One frame after the other is read, decoded and encoded, a few at a time
(:mod:`~hounsfield.archive.engine.transcoded_frames`); an object is never in memory whole. Nothing is lost on
the way unless the transfer syntax asked for cannot do otherwise: then the object is another one, and says so
(:mod:`~hounsfield.archive.engine.derivation`).
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from hounsfield.archive.dicom.cuts import Layout, frame_bytes
from hounsfield.archive.dicom.encapsulation import PIXEL_DATA_HEAD, SEQUENCE_END, item_head, offset_tables
from hounsfield.archive.dicom.recoding import NotRecodableError, recoded
from hounsfield.archive.dicom.scan import PIXEL_DATA, PIXEL_TAGS, scan
from hounsfield.archive.dicom.walk import looks_implicit
from hounsfield.archive.engine.decoding import Decoding, image_format, inflated
from hounsfield.archive.engine.derivation import (
    LOSSY_METHOD,
    LOSSY_METHODS,
    LOSSY_RATIO,
    Derivation,
    derivation,
)
from hounsfield.archive.engine.errors import NotTranscodableError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.isolation import Isolation
from hounsfield.archive.engine.retrieve import Retrieve
from hounsfield.archive.engine.target_syntaxes import SAME_FRAMES, transcodable
from hounsfield.archive.engine.transcoded_frames import TranscodedFrames, check_writable
from hounsfield.archive.engine.types import Instance
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.frames import JoinedBits
from hounsfield.codecs.pixels import PixelFormat, decoded_format, native_bytes
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax, lookup
from hounsfield.storage_backends.api import Buffer

_NATIVE_BYTES_MAX: Final = 0xFFFFFFFE


@dataclass(frozen=True, slots=True)
class TranscodingLimits:
    """``cache_bytes_max``: encoded frames that one worker keeps: a series of 750 CT slices in HTJ2K.

    ``offset_table_bytes_max``: encoded frames of one object that are waited for so that its offset table can
    say where they begin: half a second's work. Larger objects are sent as they are made, with an empty table.
    """

    cache_bytes_max: int = 128 << 20
    offset_table_bytes_max: int = 8 << 20


@dataclass(frozen=True, slots=True)
class _Source:
    """An object as it is read, inflated where it was deflated."""

    syntax: TransferSyntax
    layout: Layout
    head: bytes
    trailer: bytes
    frames: int
    frame: Callable[[int], Awaitable[Buffer]]


class Transcoding:
    """One worker's transcoding."""

    def __init__(
        self,
        retrieve: Retrieve,
        decoding: Decoding,
        isolation: Isolation,
        gate: Gate,
        limits: TranscodingLimits,
    ) -> None:
        self._retrieve = retrieve
        self._decoding = decoding
        self._at_once = isolation.limits.processes_max
        self._gate = gate
        self._limits = limits
        self._frames = TranscodedFrames(decoding, isolation, limits.cache_bytes_max)
        self.figures = self._frames.figures

    async def transcoded_frame(self, instance: Instance, number: int, transfer_syntax_uid: str) -> Buffer:
        """Frame ``number``, from 1, in another transfer syntax; native cells least significant byte first.

        Cells of one bit are packed, and begin on a byte (as those that are stored so do when they leave).
        Raises what reading a frame raises, and ``NotTranscodableError``.
        """
        self._check(instance, transfer_syntax_uid)
        stored = instance.row.transfer_syntax_uid
        if transfer_syntax_uid == stored or transfer_syntax_uid in SAME_FRAMES.get(stored, ()):
            return await self._decoding.frame(instance, number)
        return await self._frames.frame(instance, number, transfer_syntax_uid, self._decoding.frame)

    async def made_ahead(
        self, study_uid: str, series_uid: str, sop_uid: str, number: int, transfer_syntax_uid: str
    ) -> bool:
        """Have a frame in the cache before it is asked for; whether it was not there. Raises as asking."""
        made = self.figures.made
        instance = self._retrieve.named(study_uid, series_uid, sop_uid)
        await self.transcoded_frame(instance, number, transfer_syntax_uid)
        return self.figures.made > made

    async def transcoded(self, instance: Instance, transfer_syntax_uid: str) -> AsyncIterator[Buffer]:
        """The data set in another transfer syntax, without file meta information, as it is made.

        What is wrong with the request or the first frames is raised before the first piece is given:
        ``NotTranscodableError``, or what reading raises.
        """
        self._check(instance, transfer_syntax_uid)
        stored = instance.row.transfer_syntax_uid
        if transfer_syntax_uid == stored or transfer_syntax_uid in SAME_FRAMES.get(stored, ()):
            async for piece in self._retrieve.dataset(instance):
                yield piece
            return
        target = lookup(transfer_syntax_uid)
        source = await self._source(instance)
        if target.encapsulated:
            pieces = self._encapsulated(instance, source, target)
        elif source.syntax.encapsulated and source.layout is not Layout.HEADER_ONLY:
            pieces = self._decoded(instance, source, target)
        else:
            pieces = self._native(instance, source, target)
        if target.deflated:
            pieces = _deflated(pieces)
        async for piece in pieces:
            yield piece

    def _check(self, instance: Instance, target_uid: str) -> None:
        if target_uid not in transcodable(instance.row.transfer_syntax_uid):
            raise NotTranscodableError("this object cannot be given in that transfer syntax")

    # ------------------------------------------------------------ objects

    async def _source(self, instance: Instance) -> _Source:
        header = await self._gate.read(self._retrieve.ends_blocking, instance)
        row = instance.row
        syntax = lookup(row.transfer_syntax_uid)
        if not syntax.deflated:
            return _Source(
                syntax, Layout(row.layout), bytes(header.head), bytes(header.trailer), row.location.frames,
                partial(self._decoding.frame, instance),
            )  # fmt: skip
        found, slices = await self._gate.heavy(inflated, header)

        async def frame(number: int) -> Buffer:
            return frame_bytes(slices[number], found.layout)

        trailer = bytes(slices[-1]) if len(slices) > 1 else b""
        return _Source(
            EXPLICIT_VR_LITTLE_ENDIAN, found.layout, bytes(slices[0]), trailer, max(0, len(slices) - 2), frame
        )

    def _ends(
        self, source: _Source, target: TransferSyntax, made: Derivation, padding: int = 0
    ) -> tuple[bytes, bytes]:
        try:
            return recoded(
                source.head, source.trailer, source.syntax, target,
                changes=made.changes, items_added=made.items_added, padding=padding,
            )  # fmt: skip
        except NotRecodableError as error:
            raise NotTranscodableError(f"{error}; ask for the object as it is stored") from error

    async def _native(
        self, instance: Instance, source: _Source, target: TransferSyntax
    ) -> AsyncIterator[Buffer]:
        """Cells as they are, in another byte order at most: of any shape, and of none."""
        element = _pixel_element(source)
        if element is None:
            before, behind = self._ends(source, target, Derivation())
            yield before + behind
            return
        tag, vr, declared = element
        cells = [source.frame] if source.layout is Layout.UNDIVIDED_NATIVE else []
        first = await self._bulk(instance, source) if cells else await source.frame(1)
        length = len(first) * (1 if cells else source.frames)
        before, behind = self._ends(source, target, Derivation(), max(0, declared - length))
        yield before + _native_head(tag, vr, length, target)
        yield await self._frames.in_order(instance, first, frame=not cells)
        if not cells:
            for number in range(2, source.frames + 1):
                yield await self._frames.in_order(instance, await source.frame(number))
        yield bytes(length % 2) + behind

    async def _bulk(self, instance: Instance, source: _Source) -> Buffer:
        if lookup(instance.row.transfer_syntax_uid).deflated:
            return await source.frame(1)
        return b"".join(await self._retrieve.bulk(instance))

    async def _decoded(
        self, instance: Instance, source: _Source, target: TransferSyntax
    ) -> AsyncIterator[Buffer]:
        """Compressed frames as plain cells."""
        pixels = self._image(instance, source, target)
        length = native_bytes(instance.row.transfer_syntax_uid, pixels, source.frames)
        if length > _NATIVE_BYTES_MAX:
            raise NotTranscodableError(
                "decoded, this object has more than 4 GiB of pixels, which no native transfer syntax can hold"
            )
        vr = "OW" if pixels.bits_allocated > 8 else "OB"
        before, behind = self._ends(source, target, derivation(instance, pixels, target.uid))
        head: Buffer = before + _native_head(PIXEL_DATA, vr, length, target)
        joined = JoinedBits(pixels.bits) if pixels.bits_allocated == 1 else None
        async for frames in self._in_batches(instance, source, target):
            if head:
                yield head
                head = b""
            for frame in frames:
                yield frame if joined is None else joined.add(frame)
        yield (b"" if joined is None else joined.rest()) + bytes(length % 2) + behind

    async def _encapsulated(
        self, instance: Instance, source: _Source, target: TransferSyntax
    ) -> AsyncIterator[Buffer]:
        """Frames of any kind, encoded, each in one fragment, behind an offset table where one can be had."""
        pixels = self._image(instance, source, target)
        # What loses something is encoded twice: its header tells the ratio, before the frames come.
        lengths = await self._lengths(instance, source, target) if target.uid in LOSSY_METHODS else None
        ratio = None
        if lengths is not None:
            plain = decoded_format(instance.row.transfer_syntax_uid, pixels)
            ratio = plain.frame_bytes * source.frames / max(1, sum(lengths))
        made = derivation(
            instance, pixels, target.uid, ratio=ratio, ratios_before=_text_of(source, LOSSY_RATIO),
            methods_before=_text_of(source, LOSSY_METHOD),
        )  # fmt: skip
        padding = 0
        if not source.syntax.encapsulated:
            element = _pixel_element(source)
            assert element is not None
            padding = max(0, element[2] - len(await source.frame(1)) * source.frames)
        frames = self._in_order_of_number(instance, source, target)
        waited_for: list[Buffer] = []
        if lengths is None:
            waited_for, complete = await self._waited_for(frames, source.frames)
            lengths = [len(frame) for frame in waited_for] if complete else None
        tables = offset_tables(lengths)
        made.changes.update(tables.extended)
        before, behind = self._ends(source, target, made, padding)
        yield before + PIXEL_DATA_HEAD + tables.basic
        for number, frame in enumerate(waited_for):
            for piece in _fragment(frame, lengths, number):
                yield piece
        number = len(waited_for)
        waited_for.clear()
        async for frame in frames:
            for piece in _fragment(frame, lengths, number):
                yield piece
            number += 1
        yield SEQUENCE_END + behind

    def _image(self, instance: Instance, source: _Source, target: TransferSyntax) -> PixelFormat:
        if not source.layout.has_frames or not source.frames:
            raise NotTranscodableError("this object has no frames of its own to be transcoded")
        try:
            pixels = image_format(instance)
            if source.syntax.encapsulated or target.encapsulated:
                check_writable(instance.row.transfer_syntax_uid, pixels, cells=not target.encapsulated)
            return pixels
        except CodecError as error:
            raise NotTranscodableError(f"{error}; ask for the object as it is stored") from error

    async def _lengths(self, instance: Instance, source: _Source, target: TransferSyntax) -> list[int]:
        """Of all frames, which are encoded again later where the cache has not kept them."""
        return [len(frame) async for frame in self._in_order_of_number(instance, source, target)]

    async def _waited_for(self, frames: AsyncIterator[Buffer], count: int) -> tuple[list[Buffer], bool]:
        """The first frames, and whether they are all: that none follows, and that they were worth waiting."""
        first: list[Buffer] = []
        held = 0
        async for frame in frames:
            first.append(frame)
            held += len(frame)
            # The others are about as long: what will not be complete is not waited for.
            if held // len(first) * count > self._limits.offset_table_bytes_max:
                break
        return first, len(first) == count

    async def _in_order_of_number(
        self, instance: Instance, source: _Source, target: TransferSyntax
    ) -> AsyncIterator[Buffer]:
        async for frames in self._in_batches(instance, source, target):
            for frame in frames:
                yield frame

    async def _in_batches(
        self, instance: Instance, source: _Source, target: TransferSyntax
    ) -> AsyncIterator[list[Buffer]]:
        """The frames in order, as many made at once as there are processes."""
        at_once = self._at_once

        async def read(_: Instance, number: int) -> Buffer:
            return await source.frame(number)

        async def one(number: int, made: dict[int, Buffer], errors: list[Exception]) -> None:
            try:
                made[number] = await self._frames.frame(instance, number, target.uid, read)
            except Exception as error:  # noqa: BLE001 - raised below, without a group around it
                errors.append(error)

        for start in range(1, source.frames + 1, at_once):
            made: dict[int, Buffer] = {}
            errors: list[Exception] = []
            async with trio.open_nursery() as nursery:
                for number in range(start, min(start + at_once, source.frames + 1)):
                    nursery.start_soon(one, number, made, errors)
            if errors:
                raise errors[0]
            yield [made[number] for number in sorted(made)]


def _pixel_element(source: _Source) -> tuple[int, str, int] | None:
    """Tag, VR and length of native pixel data, whose own header the header slice ends with."""
    if source.layout is Layout.HEADER_ONLY:
        return None
    order = "little" if source.syntax.little_endian else "big"
    implicit = looks_implicit(source.head, 0, len(source.head), source.syntax.implicit_vr)
    start = len(source.head) - (8 if implicit else 12)
    head = source.head[start:]
    group, number = (int.from_bytes(head[at : at + 2], order) for at in (0, 2))  # type: ignore[arg-type]
    tag = group << 16 | number
    if tag not in PIXEL_TAGS:
        raise NotTranscodableError("this object's pixel data is not where its header ends")
    vr = {0x7FE00008: "OF", 0x7FE00009: "OD"}.get(tag, "OW") if implicit else head[4:6].decode("latin-1")
    return tag, vr, int.from_bytes(head[-4:], order)  # type: ignore[arg-type]


def _text_of(source: _Source, tag: int) -> str:
    found = scan(source.head, source.syntax).value(source.head, tag)
    return (found or b"").decode("latin-1").strip(" \0")


def _native_head(tag: int, vr: str, length: int, target: TransferSyntax) -> bytes:
    length += length % 2
    start = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    if target.implicit_vr:
        return start + length.to_bytes(4, "little")
    return start + vr.encode("latin-1") + bytes(2) + length.to_bytes(4, "little")


def _fragment(frame: Buffer, lengths: list[int] | None, number: int) -> Iterator[Buffer]:
    """The item of a frame, whose length is what the offset table says."""
    if lengths is not None and lengths[number] != len(frame):
        raise NotTranscodableError("a frame was not encoded twice to the same length")
    yield item_head(len(frame))
    yield frame
    if len(frame) % 2:
        yield b"\0"


async def _deflated(pieces: AsyncIterator[Buffer]) -> AsyncIterator[Buffer]:
    """One raw deflate stream of even length (PS3.5 A.5)."""
    packer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -zlib.MAX_WBITS)
    total = 0
    async for piece in pieces:
        packed = await trio.to_thread.run_sync(packer.compress, piece)
        total += len(packed)
        if packed:
            yield packed
    packed = packer.flush()
    total += len(packed)
    yield packed + bytes(total % 2)
