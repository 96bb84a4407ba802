"""One instance of a STOW-RS request whose metadata and bulk data are apart, on its way into the engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from email.message import Message as MailMessage
from typing import Any, Final

import msgspec

from hounsfield.archive.dicom.codestreams import transfer_syntax_of, without_container
from hounsfield.archive.dicom.from_json import (
    AVAILABLE_TRANSFER_SYNTAX_UID,
    TRANSFER_SYNTAX_UID,
    Encoded,
    PixelLink,
    from_json,
    links,
    pixel_link,
    text_of,
)
from hounsfield.archive.engine.ingest import IngestSession
from hounsfield.archive.web.stow_results import DOES_NOT_MATCH, PartResult
from hounsfield.codecs.frames import FrameShape
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, OCTETS, lookup

Commit = Callable[[IngestSession, PartResult], Awaitable[None]]

_SOP_CLASS_UID: Final = 0x00080016
_SOP_INSTANCE_UID: Final = 0x00080018
_SAMPLES, _PHOTOMETRIC, _FRAMES = 0x00280002, 0x00280004, 0x00280008
_ROWS, _COLUMNS, _BITS = 0x00280010, 0x00280011, 0x00280100
_FLOAT_BITS: Final = {0x7FE00008: 32, 0x7FE00009: 64}
_TABLE: Final = b"\xfe\xff\x00\xe0\0\0\0\0"  # an empty basic offset table (PS3.5 A.4)
_ITEM: Final = b"\xfe\xff\x00\xe0"
_SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"
_UNDEFINED: Final = 0xFFFFFFFF
_LENGTH_MAX: Final = 0xFFFFFFFE
_IMAGES_IN_FILES: Final = frozenset({"image/jp2", "image/jpx", "image/jphc"})


class MismatchError(Exception):
    """Bulk data that is not what the metadata describes."""

    retry = False


class PartType:
    """What a part's header says of it."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        mail = MailMessage()
        mail["content-type"] = headers.get("content-type", "")
        self.media_type = mail["content-type"].partition(";")[0].strip().lower()
        self.transfer_syntax = str(mail.get_param("transfer-syntax", "") or "").strip(" *")
        length = headers.get("content-length", "")
        self.length = int(length) if length.isascii() and length.isdigit() and len(length) <= 18 else None


class ArrivingInstance:
    """One instance of the metadata, on its way into a session."""

    def __init__(
        self, raw: bytes, model: Any, result: PartResult, begin: Callable[..., IngestSession], commit: Commit
    ) -> None:
        self._raw = raw
        self._begin = begin
        self._commit = commit
        self.result = result
        self.is_over = False
        self.needs = set(links(model))
        self.uses: frozenset[str] = frozenset()
        self.pixels: PixelLink | None = pixel_link(model)
        self.pending: list[tuple[PartType, bytes]] = []  # pixel data that came before other bulk data
        result.sop_class_uid = text_of(model, _SOP_CLASS_UID)
        result.sop_uid = text_of(model, _SOP_INSTANCE_UID)
        frames = text_of(model, _FRAMES)
        self._frames = max(1, _count(frames))
        self._announced = text_of(model, AVAILABLE_TRANSFER_SYNTAX_UID) or text_of(model, TRANSFER_SYNTAX_UID)
        self._shape = _shape(model, self.pixels.tag) if self.pixels is not None else None
        self._encoded: Encoded | None = None
        self._session: IngestSession | None = None
        self._parts = 0
        self._parts_wanted = 1
        self._left = 0  # bytes of the element or fragment that is being written
        self._pads = False

    @property
    def is_ready(self) -> bool:
        """Whether everything but pixel data is written, so that pixel data can follow."""
        return self._encoded is not None and not self.is_over

    def encode(self, bulk: Mapping[str, bytes]) -> None:
        """Make the data set, everything but pixel data being there. ModelError."""
        self._encoded = from_json(msgspec.json.decode(self._raw), bulk)
        self._raw = b""

    async def store_without_pixels(self) -> None:
        """Write and commit an instance whose metadata is all of it."""
        assert self._encoded is not None
        await self._open(EXPLICIT_VR_LITTLE_ENDIAN.uid)
        await self._close()

    def length_of(self, part: PartType) -> int | None:
        """How many bytes a part of its pixel data has, when they can be written as they come; else None."""
        if self._is_native(part):
            if part.length is not None:
                return part.length
            if self._shape is None or self._shape.bits != self._shape.full_bits:
                return None
            return -(-self._shape.bits * self._frames // 8)
        # What an image says of itself is needed before its first byte is written, and files are unpacked.
        if part.media_type in _IMAGES_IN_FILES or (not self._parts and not self._syntax_said(part)):
            return None
        return part.length

    async def begin_part(self, part: PartType, length: int, beginning: bytes) -> None:
        """Pixel data of ``length`` bytes follows; ``beginning`` has some of it, to look at."""
        assert self.pixels is not None
        if self._session is None:
            await self._begin_pixels(part, length, beginning)
        elif self._is_native(part) != (self._parts_wanted == 0):
            raise MismatchError("compressed and uncompressed pixel data of one instance")
        if self._parts_wanted:
            await self._write(_ITEM + (length + length % 2).to_bytes(4, "little"))
        self._left = length
        self._pads = length % 2 == 1

    async def write(self, data: memoryview | bytes) -> None:
        """Some of the part that was begun."""
        if len(data) > self._left + self._pads * (self._parts_wanted == 0):
            raise MismatchError("more pixel data than was announced")
        if len(data) > self._left:  # the byte that makes an odd length even came with it
            self._pads = False
        self._left = max(0, self._left - len(data))
        await self._write(data)

    async def end_part(self) -> None:
        """The part is complete; with its last one, so is the instance."""
        if self._left:
            raise MismatchError("less pixel data than was announced")
        if self._pads:
            await self._write(b"\0")
        self._parts += 1
        if self._parts >= self._parts_wanted:
            await self._close()

    async def whole_part(self, part: PartType, data: bytes) -> None:
        """A part of its pixel data that was gathered."""
        if part.media_type in _IMAGES_IN_FILES:
            data = without_container(data)
        await self.begin_part(part, len(data), data)
        await self.write(data)
        await self.end_part()

    async def _begin_pixels(self, part: PartType, length: int, beginning: bytes) -> None:
        assert self.pixels is not None
        head = self.pixels.tag.to_bytes(4, "big")
        head = head[1::-1] + head[:1:-1]
        if self._is_native(part):
            self._parts_wanted = 0
            if not self._fits(length):
                raise MismatchError("pixel data that is not as long as its description says")
            if length > _LENGTH_MAX:
                raise MismatchError("uncompressed pixel data is longer than a data set can say")
            await self._open(EXPLICIT_VR_LITTLE_ENDIAN.uid)
            vr = self.pixels.vr if self.pixels.vr in ("OB", "OW", "OF", "OD") else "OW"
            await self._write(head + vr.encode() + bytes(2) + (length + length % 2).to_bytes(4, "little"))
            return
        syntax = self._syntax_said(part) or transfer_syntax_of(part.media_type, beginning)
        if not syntax or not lookup(syntax).encapsulated:
            raise MismatchError("pixel data of a media type that does not tell its transfer syntax")
        self._parts_wanted = 1 if lookup(syntax).is_video else self._frames
        await self._open(syntax)
        await self._write(head + b"OB" + bytes(2) + _UNDEFINED.to_bytes(4, "little") + _TABLE)

    @staticmethod
    def _is_native(part: PartType) -> bool:
        return part.media_type in ("", OCTETS) and not lookup(part.transfer_syntax).encapsulated

    def _syntax_said(self, part: PartType) -> str:
        """The transfer syntax that the part or the metadata names, where that can be."""
        for uid in (part.transfer_syntax, self._announced):
            if lookup(uid).encapsulated and lookup(uid).media_type in (part.media_type, OCTETS):
                return uid
        return part.transfer_syntax if part.media_type == OCTETS else ""

    def _fits(self, length: int) -> bool:
        if self._shape is None:
            return True
        least = -(-self._shape.bits * self._frames // 8)
        most = -(-self._shape.full_bits * self._frames // 8)
        return least <= length <= most + 1

    async def _open(self, syntax: str) -> None:
        assert self._encoded is not None
        self._session = self._begin(syntax, self.result.sop_class_uid, self.result.sop_uid)
        await self._write(self._encoded.head)

    async def _write(self, data: memoryview | bytes) -> None:
        assert self._session is not None
        await self._session.write(data)

    async def _close(self) -> None:
        assert self._session is not None and self._encoded is not None
        if self.pixels is not None and self._parts_wanted:
            await self._write(_SEQUENCE_END)
        await self._write(self._encoded.trailer)
        session, self._session = self._session, None
        self._forget()
        await self._commit(session, self.result)

    def fail(self, error: Exception | int) -> None:
        """It is not stored, for this reason."""
        if self.is_over:
            return
        if self._session is not None:
            self._session.abandon()
            self._session = None
        self._forget()
        if isinstance(error, int):
            self.result.failure_reason = error
        elif isinstance(error, MismatchError):
            self.result.failure_reason = DOES_NOT_MATCH
        else:
            self.result.fail(error)

    def _forget(self) -> None:
        self.is_over = True
        self._encoded = None
        self._raw = b""
        self.pending.clear()


def _shape(model: Any, tag: int) -> FrameShape | None:
    """One uncompressed frame as the metadata describes it; None when it does not."""
    numbers = [text_of(model, one) for one in (_ROWS, _COLUMNS, _SAMPLES, _BITS)]
    if tag in _FLOAT_BITS:
        numbers[3] = str(_FLOAT_BITS[tag])
    rows, columns, samples, bits = map(_count, numbers)
    if not all(0 < number <= 0xFFFF for number in (rows, columns, samples, bits)):
        return None
    return FrameShape(rows, columns, samples, bits, text_of(model, _PHOTOMETRIC).upper())


def _count(text: str) -> int:
    """The number, or 0 for what is none, or none of a count of frames (PS3.5 6.2, IS)."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0
