"""Objects and frames in another transfer syntax than they are stored in.

One frame after the other is read, decoded and encoded, a few at a time; an object is never in memory whole.
Frames that others compressed are decoded and encoded in a process of their own, plain cells on a thread of
this one: nothing of them is parsed. Encoded frames are kept as long as there is room, and made once for all
who ask. Nothing is lost on the way unless the transfer syntax asked for cannot do otherwise: then the object
is another one, and says so (:mod:`~hounsfield.archive.engine.derivation`).
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

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
    derived_uid,
)
from hounsfield.archive.engine.errors import NotTranscodableError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.isolation import Isolation
from hounsfield.archive.engine.retrieve import Retrieve
from hounsfield.archive.engine.shared_work import SharedWork
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.index.smaller_frames import little_endian_cells
from hounsfield.codecs.coders import coder_of
from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.errors import CodecError, UnsupportedPixelsError
from hounsfield.codecs.frames import JoinedBits
from hounsfield.codecs.pixels import NAMELESS, PixelFormat, decoded_format, native_bytes, packed_bits
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax, lookup
from hounsfield.storage_backends.api import Buffer

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred("numpy")

_ROOT: Final = "1.2.840.10008.1.2"
#: What is written here, in the order of what decoding it costs a viewer; what loses comes last.
TARGETS: Final = tuple(
    f"{_ROOT}{suffix}"
    for suffix in (
        ".1", ".4.201", ".4.202", ".4.203", ".4.80", ".4.110", ".4.112", ".4.70", ".5", ".4.90", ".4.91", "",
        ".1.99", ".4.50",
    )
)  # fmt: skip
#: A frame of the one is a frame of the others, too: nothing has to be done.
SAME_FRAMES: Final = {
    f"{_ROOT}.4.{stored}": tuple(f"{_ROOT}.4.{other}" for other in others)
    for stored, others in {
        50: (51,), 70: (57,), 80: (81,), 90: (91,), 110: (112,), 111: (112,), 201: (203,), 202: (201, 203),
    }.items()
}  # fmt: skip
#: What frames that are HTJ2K on disk are, whatever syntax they came in; .202 wants tile-part lengths, too.
_HTJ2K: Final = frozenset({f"{_ROOT}.4.201", f"{_ROOT}.4.203"})
_NATIVE_BYTES_MAX: Final = 0xFFFFFFFE


@dataclass(frozen=True, slots=True)
class TranscodingLimits:
    """``cache_bytes_max``: encoded frames that one worker keeps: a series of 750 CT slices in HTJ2K.

    ``offset_table_bytes_max``: encoded frames of one object that are waited for so that its offset table can
    say where they begin: half a second's work. Larger objects are sent as they are made, with an empty table.
    """

    cache_bytes_max: int = 128 << 20
    offset_table_bytes_max: int = 8 << 20


@lru_cache(maxsize=256)  # asked for every frame; there are some 60 transfer syntaxes
def transcodable(stored_uid: str) -> tuple[str, ...]:
    """Transfer syntaxes in which objects stored so can be given: as they are stored first, then TARGETS.

    A single object may be refused nevertheless: 16 bits do not go into JPEG baseline.
    """
    source = coder_of(stored_uid)
    same = SAME_FRAMES.get(stored_uid, ())
    if source is None or not source.decoders:
        return (stored_uid, *same)
    others = (uid for uid in TARGETS if uid != stored_uid and uid not in same)
    return (stored_uid, *same, *others)


def sop_uid_of(one: Instance, syntax: str) -> str:
    """The SOP Instance UID in a transfer syntax: where something is lost it is another object's."""
    stored = one.row.transfer_syntax_uid
    if syntax == stored or syntax not in LOSSY_METHODS or syntax in SAME_FRAMES.get(stored, ()):
        return one.row.sop_uid
    return derived_uid(one.row.sop_uid, syntax)


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
        self._isolation = isolation
        self._gate = gate
        self._limits = limits
        self._threads = trio.CapacityLimiter(isolation.limits.processes_max)
        self._frames: SharedWork[tuple[bytes, int, str], Buffer] = SharedWork(limits.cache_bytes_max, len)
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
        return await self._frame(instance, number, transfer_syntax_uid, self._decoding.frame)

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

    # ------------------------------------------------------------ frames

    def _check(self, instance: Instance, target_uid: str) -> None:
        if target_uid not in transcodable(instance.row.transfer_syntax_uid):
            raise NotTranscodableError("this object cannot be given in that transfer syntax")

    async def _frame(
        self,
        instance: Instance,
        number: int,
        target_uid: str,
        read: Callable[[Instance, int], Awaitable[Buffer]],
    ) -> Buffer:
        target = lookup(target_uid)
        if not target.encapsulated and not lookup(instance.row.transfer_syntax_uid).encapsulated:
            return await self._in_order(instance, await read(instance, number))
        if target_uid in _HTJ2K and not lookup(instance.row.transfer_syntax_uid).encapsulated:
            with suppress(UnsupportedPixelsError):
                at_rest = await self._decoding.htj2k_at_rest(instance, number)
                if at_rest is not None:
                    return at_rest
        # All native targets have the same cells.
        kept_as = target_uid if target.encapsulated else EXPLICIT_VR_LITTLE_ENDIAN.uid
        key = (instance.row.location.record_id, number, kept_as)

        async def made() -> Buffer:
            async with self._decoding.turns.of(instance.row.location.record_id):
                return await self._made(instance, number, target, await read(instance, number))

        return await self._frames.get(key, made)

    async def _made(self, instance: Instance, number: int, target: TransferSyntax, frame: Buffer) -> Buffer:
        stored = instance.row.transfer_syntax_uid
        try:
            pixels = await self._decoding.format(instance)
            if target.encapsulated:
                _check_writable(stored, pixels)
            within_limits = pixels.frame_bytes <= self._isolation.limits.frame_bytes_max
            if target.encapsulated and within_limits and not is_isolated(stored, target.uid):
                with suppress(CodecError, ValueError):  # another encoder may take it, in a process of its own
                    return await trio.to_thread.run_sync(
                        encoded_beside, stored, target.uid, frame, pixels, limiter=self._threads
                    )
            if target.encapsulated:
                return await self._isolation.transcode_in_turn(stored, target.uid, frame, pixels)
            cells = await self._isolation.decode_in_turn(stored, frame, pixels)
            if pixels.bits_allocated > 1:
                return cells
            await self._decoding.arrays()
            return await trio.to_thread.run_sync(packed_bits, cells, limiter=self._threads)
        except CodecError as error:
            raise NotTranscodableError(
                f"frame {number} cannot be given in that transfer syntax ({error}); ask for it as stored"
            ) from error

    async def _in_order(self, instance: Instance, data: Buffer, *, frame: bool = True) -> Buffer:
        """Native cells, least significant byte first: those of a frame, or all of an object."""
        if little_endian_cells(instance.row.transfer_syntax_uid):
            return data
        pixels = await self._decoding.format(instance, frame=frame)
        size = 2 if pixels.in_words and pixels.bits_allocated <= 8 else max(1, pixels.bits_allocated // 8)
        await self._decoding.arrays()
        return _swapped(data, size)

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
        yield await self._in_order(instance, first, frame=not cells)
        if not cells:
            for number in range(2, source.frames + 1):
                yield await self._in_order(instance, await source.frame(number))
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
                _check_writable(instance.row.transfer_syntax_uid, pixels, cells=not target.encapsulated)
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
        at_once = self._isolation.limits.processes_max

        async def read(_: Instance, number: int) -> Buffer:
            return await source.frame(number)

        async def one(number: int, made: dict[int, Buffer], errors: list[Exception]) -> None:
            try:
                made[number] = await self._frame(instance, number, target.uid, read)
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


def _check_writable(stored_uid: str, pixels: PixelFormat, *, cells: bool = False) -> None:
    """``UnsupportedPixelsError`` when what is decoded is nothing that an object can say of itself."""
    if not cells and pixels.bits_allocated == 1:
        raise UnsupportedPixelsError("cells of one bit")
    if decoded_format(stored_uid, pixels).photometric in NAMELESS:
        raise UnsupportedPixelsError(
            "YBR_PARTIAL_422 has no name with all its chrominance, and would lose something as YBR_FULL"
        )


def is_isolated(source_uid: str, target_uid: str) -> bool:
    """Whether frames are transcoded in a process of their own: foreign codestreams, encoders with the GIL."""
    source, target = coder_of(source_uid), coder_of(target_uid)
    if source is None or target is None or source.isolated:
        return True
    return not (target.encoders and target.encoders[0].beside)


def encoded_beside(source_uid: str, target_uid: str, frame: Buffer, pixels: PixelFormat) -> bytes:
    """Plain cells, encoded on the caller's thread. ``CodecError``."""
    source, target = coder_of(source_uid), coder_of(target_uid)
    assert source is not None
    assert target is not None
    return target.encode_beside(source.decode(frame, pixels), decoded_format(source_uid, pixels))


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


def _swapped(data: Buffer, size: int) -> Buffer:
    if size == 1 or len(data) % size:
        return data
    return np.frombuffer(data, f">u{size}").astype(f"<u{size}").view(np.uint8).data


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
