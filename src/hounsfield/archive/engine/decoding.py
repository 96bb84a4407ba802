"""Frames as pixels: decoded once for all who ask, kept as long as there is room.

What others compressed is decoded in processes of their own (:mod:`~hounsfield.archive.engine.isolation`);
plain cells become an array where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from hounsfield.archive.dicom.cuts import FrameError, Layout, frame_bytes, undivided_frame
from hounsfield.archive.dicom.deflated import plain_header
from hounsfield.archive.dicom.scan import Scanned, scan
from hounsfield.archive.engine.errors import NotFoundError, NotSeparableError
from hounsfield.archive.engine.fair_turns import FairTurns
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.isolation import Isolation
from hounsfield.archive.engine.records import Records, frame_count, frames_held
from hounsfield.archive.engine.shared_work import SharedWork
from hounsfield.archive.engine.types import Header, Instance
from hounsfield.archive.index.smaller_frames import pixel_format
from hounsfield.codecs import at_rest
from hounsfield.codecs.coders import Coder, coder_of
from hounsfield.codecs.deferred import NUMPY, import_now, is_imported
from hounsfield.codecs.errors import UnsupportedPixelsError
from hounsfield.codecs.pixels import PixelFormat, Pixels, decoded_format, from_native
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from hounsfield.storage_backends.api import Buffer

PHOTOMETRIC, HIGH_BIT, BITS_STORED = 0x00280004, 0x00280102, 0x00280101
#: Plain cells of up to so many bytes become an array on the event loop.
CHEAP_BYTES_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """``cache_bytes_max``: decoded frames that one worker keeps: 128 CT slices, a dozen mammograms."""

    cache_bytes_max: int = 64 << 20


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One frame's samples: ``pixels`` is (rows, columns, samples), colour by pixel, not to be written to.

    Whole words as they are stored: what stands above the sample (an overlay, in old objects) is still there,
    :func:`hounsfield.codecs.pixels.samples` gives the values. ``photometric`` is that of these pixels: colour
    transforms of the codec are undone. Cells of one bit are bytes of 0 and 1.
    """

    pixels: Pixels
    format: PixelFormat
    photometric: str


class Decoding:
    """One worker's decoded frames."""

    def __init__(self, records: Records, isolation: Isolation, gate: Gate, limits: DecodingLimits) -> None:
        self._records = records
        self._isolation = isolation
        self._gate = gate
        self._frames: SharedWork[tuple[bytes, int], DecodedFrame] = SharedWork(
            limits.cache_bytes_max, lambda frame: int(frame.pixels.nbytes)
        )
        self.figures = self._frames.figures
        #: Whoever has one may hold a frame on its way to a decoder: a few more than are decoded at once, and
        #: of one object no more than that, whose frames may take long.
        at_once = isolation.limits.processes_max
        self.turns = FairTurns(2 * at_once, at_once)

    async def decoded(self, instance: Instance, number: int) -> DecodedFrame:
        """Frame ``number``, from 1, as pixels; not to be written to, others have it too.

        Raises what reading a frame raises, and ``CodecError``: ``UnsupportedPixelsError`` when nobody here
        decodes such frames, another when these bytes do not decode.
        """
        key = (instance.row.location.record_id, number)
        return await self._frames.get(key, lambda: self._decoded(instance, number))

    async def _decoded(self, instance: Instance, number: int) -> DecodedFrame:
        uid = instance.row.transfer_syntax_uid
        coder = decoder_of(uid)
        pixels = await self.format(instance)
        plain = decoded_format(uid, pixels)
        async with self.turns.of(instance.row.location.record_id):
            frame = _alone(await self.frame(instance, number))
            await self.arrays()
            if coder.isolated:
                data = await self._isolation.decode_in_turn(uid, frame, pixels)
                array = from_native(data, plain)
            elif len(frame) <= CHEAP_BYTES_MAX:
                array = coder.decode(frame, pixels)
            else:
                array = await self._gate.heavy(coder.decode, frame, pixels)
        array.flags.writeable = False
        return DecodedFrame(array, plain, plain.photometric)

    async def arrays(self) -> None:
        """Arrays may be made on the event loop: numpy, a tenth of a second, was imported on a thread."""
        if not is_imported(NUMPY):
            await self._gate.read(import_now, NUMPY)

    async def frame(self, instance: Instance, number: int) -> Buffer:
        """The bytes of a frame as it was received, of a deflated object as it is inside."""
        row = instance.row
        if lookup(row.transfer_syntax_uid).deflated:
            header = await self._gate.read(self._records.header, row)
            return await self._gate.heavy(deflated_frame, header, number)
        found = self._records.frame_nowait(row, number)
        if found is None:
            found = await self._gate.read(self._records.frame, row, number)
        return found.data

    async def htj2k_at_rest(self, instance: Instance, number: int) -> Buffer | None:
        """The HTJ2K codestream of a native frame that is stored as one, None when there is none to be given.

        Raises what reading a frame raises, and ``UnsupportedPixelsError``.
        """
        row = instance.row
        if not at_rest.is_htj2k(row.stored_as):
            return None
        found = self._records.frame_at_rest(row, number, wait=False)
        if found is None:
            found = await self._gate.read(self._records.frame_at_rest, row, number)
        return None if found is None else at_rest.htj2k_of(found, await self.format(instance))

    async def frame_count(self, instance: Instance) -> int:
        """How many frames there are, see :func:`frames_there`."""
        if not lookup(instance.row.transfer_syntax_uid).deflated:
            return frame_count(instance.row)
        header = await self._gate.read(self._records.header, instance.row)
        return await self._gate.heavy(frames_there, instance, header)

    async def format(self, instance: Instance, *, frame: bool = True) -> PixelFormat:
        """What an instance says about its frames. ``UnsupportedPixelsError`` when it is no image.

        Single bits that begin anywhere are in order when they are lifted out as a ``frame``.
        """
        pixels = image_format(instance)
        if pixels.bits_allocated > 8 or lookup(instance.row.transfer_syntax_uid).little_endian:
            return pixels
        if frame and Layout(instance.row.layout) is Layout.UNDIVIDED_NATIVE:
            return pixels
        # Big endian: whether bytes stand in words (VR OW). The header ends with VR, two bytes and length.
        header = await self._gate.read(self._records.header, instance.row)
        return replace(pixels, in_words=bytes(header.head[-8:-6]) == b"OW")


def _alone(frame: Buffer) -> Buffer:
    """A frame whose bytes keep nothing else in memory.

    A small one of a large object lies in a chunk that was opened whole, and plain cells stay where they lie:
    a cache would hold many times what it counts.
    """
    if not isinstance(frame, memoryview) or memoryview(frame.obj).nbytes <= 2 * frame.nbytes:
        return frame
    return bytes(frame)


def decoder_of(transfer_syntax_uid: str) -> Coder:
    """The coder that decodes frames of a transfer syntax. ``UnsupportedPixelsError`` when there is none."""
    coder = coder_of(transfer_syntax_uid)
    if coder is None or not coder.decoders:
        raise UnsupportedPixelsError("frames of this transfer syntax are not decoded here")
    return coder


def image_format(instance: Instance) -> PixelFormat:
    """What the index says about an instance's frames. ``UnsupportedPixelsError`` when it is no image."""
    attributes = instance.row.attributes
    pixels = pixel_format(attributes)
    if pixels is None:
        raise UnsupportedPixelsError("this instance has no image, or one whose shape is not said")
    if pixels.bits_allocated >= 32 and not attributes.get(BITS_STORED):
        raise UnsupportedPixelsError("pixels that are floating point numbers are not decoded here")
    high = attributes.get(HIGH_BIT, "")
    photometric = attributes.get(PHOTOMETRIC, "").upper()
    return replace(pixels, photometric=photometric, high_bit=int(high) if high.isdigit() else None)


def deflated_frame(header: Header, number: int) -> Buffer:
    """Frame ``number`` from 1 of a deflated object. Blocking. ``NotFoundError``, ``NotSeparableError``."""
    found, slices = inflated(header)
    if not 1 <= number <= max(1, found.frame_count):
        raise NotFoundError(f"this instance has {found.frame_count} frames; there is no frame {number}")
    if found.layout.has_frames:
        return frame_bytes(slices[number], found.layout)
    if found.shape is None:
        raise NotSeparableError("the frames of this instance cannot be told apart; fetch it whole")
    try:
        return undivided_frame(slices[1], found.layout, found.shape, number)
    except FrameError as error:
        raise NotSeparableError("the frames of this instance cannot be told apart; fetch it whole") from error


def frames_there(instance: Instance, header: Header) -> int:
    """How many frames an object has, whatever it says itself; at least 1. Blocking when it is deflated.

    What it says is nothing to make room by: a header of two kilobytes may say 10⁹. Not of a video.
    """
    if not lookup(instance.row.transfer_syntax_uid).deflated:
        return frame_count(instance.row)
    found, slices = inflated(header)
    if found.layout.has_frames:
        return max(1, found.frame_count)
    return frames_held(instance.row.attributes, len(slices[1]))


def inflated(header: Header) -> tuple[Scanned, list[memoryview]]:
    """A deflated data set, inflated and cut anew (PS3.5 A.5). Blocking."""
    plain = plain_header(header.head, lookup(header.transfer_syntax_uid))
    found = scan(plain, EXPLICIT_VR_LITTLE_ENDIAN)
    slices = found.slices(plain)
    if len(slices) < 3:
        raise NotFoundError("this instance has no pixel data")
    return found, slices
