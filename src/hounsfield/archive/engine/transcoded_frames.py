"""Frames in another transfer syntax than they are stored in: made once for all who ask, and kept for a while.

Frames that others compressed are decoded and encoded in a process of their own, plain cells on a thread of
this one: nothing of them is parsed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from hounsfield.archive.engine.decoding import Decoding
from hounsfield.archive.engine.errors import NotTranscodableError
from hounsfield.archive.engine.isolation import Isolation
from hounsfield.archive.engine.shared_work import SharedWork
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.index.smaller_frames import little_endian_cells
from hounsfield.codecs.coders import coder_of
from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.errors import CodecError, UnsupportedPixelsError
from hounsfield.codecs.pixels import NAMELESS, PixelFormat, decoded_format, packed_bits
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax, lookup
from hounsfield.storage_backends.api import Buffer

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred("numpy")

#: What frames that are HTJ2K on disk are, whatever syntax they came in; .202 wants tile-part lengths, too.
_HTJ2K: Final = frozenset({"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.203"})


class TranscodedFrames:
    """Those of one worker; ``bytes_max`` of them are kept."""

    def __init__(self, decoding: Decoding, isolation: Isolation, bytes_max: int) -> None:
        self._decoding = decoding
        self._isolation = isolation
        self._threads = trio.CapacityLimiter(isolation.limits.processes_max)
        self._kept: SharedWork[tuple[bytes, int, str], Buffer] = SharedWork(bytes_max, len)
        self.figures = self._kept.figures

    async def frame(
        self,
        instance: Instance,
        number: int,
        target_uid: str,
        read: Callable[[Instance, int], Awaitable[Buffer]],
    ) -> Buffer:
        """Frame ``number``, from 1, of what ``read`` gives; native cells least significant byte first.

        Raises what ``read`` raises, and ``NotTranscodableError``.
        """
        target = lookup(target_uid)
        if not target.encapsulated and not lookup(instance.row.transfer_syntax_uid).encapsulated:
            return await self.in_order(instance, await read(instance, number))
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

        return await self._kept.get(key, made)

    async def _made(self, instance: Instance, number: int, target: TransferSyntax, frame: Buffer) -> Buffer:
        stored = instance.row.transfer_syntax_uid
        try:
            pixels = await self._decoding.format(instance)
            if target.encapsulated:
                check_writable(stored, pixels)
            within_limits = pixels.frame_bytes <= self._isolation.limits.frame_bytes_max
            if target.encapsulated and within_limits and not _is_isolated(stored, target.uid):
                with suppress(CodecError, ValueError):  # another encoder may take it, in a process of its own
                    return await trio.to_thread.run_sync(
                        _encoded_beside, stored, target.uid, frame, pixels, limiter=self._threads
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

    async def in_order(self, instance: Instance, data: Buffer, *, frame: bool = True) -> Buffer:
        """Native cells, least significant byte first: those of a frame, or all of an object."""
        if little_endian_cells(instance.row.transfer_syntax_uid):
            return data
        pixels = await self._decoding.format(instance, frame=frame)
        size = 2 if pixels.in_words and pixels.bits_allocated <= 8 else max(1, pixels.bits_allocated // 8)
        await self._decoding.arrays()
        return _swapped(data, size)


def check_writable(stored_uid: str, pixels: PixelFormat, *, cells: bool = False) -> None:
    """``UnsupportedPixelsError`` when what is decoded is nothing that an object can say of itself."""
    if not cells and pixels.bits_allocated == 1:
        raise UnsupportedPixelsError("cells of one bit")
    if decoded_format(stored_uid, pixels).photometric in NAMELESS:
        raise UnsupportedPixelsError(
            "YBR_PARTIAL_422 has no name with all its chrominance, and would lose something as YBR_FULL"
        )


def _is_isolated(source_uid: str, target_uid: str) -> bool:
    """Whether frames are transcoded in a process of their own: foreign codestreams, encoders with the GIL."""
    source, target = coder_of(source_uid), coder_of(target_uid)
    if source is None or target is None or source.isolated:
        return True
    return not (target.encoders and target.encoders[0].beside)


def _encoded_beside(source_uid: str, target_uid: str, frame: Buffer, pixels: PixelFormat) -> bytes:
    """Plain cells, encoded on the caller's thread. ``CodecError``."""
    source, target = coder_of(source_uid), coder_of(target_uid)
    assert source is not None
    assert target is not None
    return target.encode_beside(source.decode(frame, pixels), decoded_format(source_uid, pixels))


def _swapped(data: Buffer, size: int) -> Buffer:
    if size == 1 or len(data) % size:
        return data
    return np.frombuffer(data, f">u{size}").astype(f"<u{size}").view(np.uint8).data
