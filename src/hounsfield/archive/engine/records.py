"""Reading one stored object, whatever way it is stored: its header, one frame, all of its bytes.

Blocking, except :meth:`Records.frame_nowait`, which answers from memory or not at all. Callers hand in
the instance's index row; nothing here looks anything up. ``DamagedError`` when bytes do not open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

from hounsfield.archive.dicom.byte_order import swapped
from hounsfield.archive.dicom.cuts import (
    FrameError,
    Layout,
    fragment_places,
    fragments_of,
    frame_bytes,
    undivided_frame,
)
from hounsfield.archive.engine.buffers import BufferPool
from hounsfield.archive.engine.errors import (
    DamagedError,
    NotFoundError,
    NotSeparableError,
    UnavailableError,
)
from hounsfield.archive.engine.large_reading import LargeReading
from hounsfield.archive.engine.types import Frame, Header
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.remaining import row_part
from hounsfield.archive.index.rows import Attributes, InstanceRow, ObjectRow, SourceRow, decode
from hounsfield.archive.index.stored_objects import OUT_OF_REACH, as_received, lengths_as_received
from hounsfield.codecs import at_rest
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.frames import FrameShape
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    FormatError,
    KeyringError,
    OtherCopyAwayError,
    SealError,
    ShortReadError,
)
from hounsfield.storage_backends.segment_format import PartRef

#: What reading a damaged or missing record raises.
UNREADABLE = (SealError, BlobNotFoundError, ShortReadError, KeyringError, FormatError, CodecError)
_OUT_OF_REACH = "it lies in another tier, which does not give it at the moment: try again later"
_MISSING = "its bytes are missing where they lay, and nowhere else: bring them back, or restore a backup"
_DAMAGED = "the stored record does not open: it is damaged; restore it from a backup"
PIECE_BYTES = 4 << 20  # of a data set on its way out: parts are read together up to this
FRAMES_NOWAIT_MAX = 64  # of one object, while others wait: each is opened alone, however few bytes it has
HEADER_NOWAIT_BYTES_MAX = 16 << 10  # those of slices and projections: read in less time than a thread takes


@dataclass(slots=True)
class RetrieveFigures:
    frames: int = 0
    frames_cached: int = 0


class Records:
    """Opens stored objects. Any number of threads at once."""

    def __init__(self, indexer: Indexer) -> None:
        self._indexer = indexer
        self._log = indexer.log
        self._large = LargeReading(indexer.log)
        self.figures = RetrieveFigures()

    def frame_nowait(self, row: InstanceRow, number: int, pool: BufferPool | None = None) -> Frame | None:
        """Frame ``number`` (from 1) if no disk has to be waited for, else None; errors as :meth:`frame`.

        With a pool, its data may be a view of one of the pool's blocks, for the caller to give back.
        """
        location = row.location
        if not location.has_table:
            return None
        layout = Layout(row.layout)
        part = _frame_part(row, layout, number)
        if part is None or (row.stored_as and not at_rest.is_cheap(row.stored_as)):
            return None
        block = pool.take(part.length) if pool is not None and not row.stored_as else None
        into = None if block is None else memoryview(block)[: part.length]
        try:  # no `with`: this is every frame's way
            data = self._log.try_open_part(part, into)
            if data is not None and row.stored_as:
                data = as_received(row.stored_as, part, data)
        except UNREADABLE as error:
            raise DamagedError(_DAMAGED) from error
        if data is None:
            if pool is not None and block is not None:
                pool.give_back(block)
            return None
        self.figures.frames += 1
        self.figures.frames_cached += 1
        return Frame(frame_bytes(data, layout), row.transfer_syntax_uid, location.record_id, block)

    def frame(self, row: InstanceRow, number: int) -> Frame:
        """Frame ``number``, from 1, as received.

        Raises ``NotFoundError``, ``NotSeparableError`` (the object's frames have no bytes of their own)
        or ``DamagedError``.
        """
        layout = Layout(row.layout)
        with _damage_named():
            part = _frame_part(row, layout, number)
            if row.location.stream is not None:
                return self._large_frame(row, layout, number)
            if part is None:
                ref = self._indexer.objects.ref_of(row.location)
                part = ref.part(1 + number if layout.has_frames else 2)
            data = as_received(row.stored_as, part, self._log.open_part(part))
        self.figures.frames += 1
        if layout is Layout.UNDIVIDED_NATIVE:
            try:
                whole = swapped(data, 2) if self._are_bits_in_words(row) else data
                cells = undivided_frame(whole, layout, _shape(row.attributes), number)
            except FrameError as error:
                raise NotSeparableError(str(error)) from error
            return Frame(cells, row.transfer_syntax_uid, row.location.record_id)
        return Frame(frame_bytes(data, layout), row.transfer_syntax_uid, row.location.record_id)

    def _are_bits_in_words(self, row: InstanceRow) -> bool:
        """Whether single bits stand in words of 16 (VR OW) with the high byte first.

        A frame of them may begin in the middle of a word, so that none can be turned round alone.
        """
        if lookup(row.transfer_syntax_uid).little_endian or _shape(row.attributes).bits_allocated != 1:
            return False
        return bytes(self.header(row).head[-8:-6]) == b"OW"

    def frame_at_rest(self, row: InstanceRow, number: int, *, wait: bool = True) -> Buffer | None:
        """Frame ``number`` as it lies on disk, see :mod:`hounsfield.codecs.at_rest`.

        None when it lies there as received, or has no part of its own that the index knows, or when a disk
        has to be waited for and the caller does not want to. Errors as :meth:`frame`.
        """
        part = _frame_part(row, Layout(row.layout), number)
        if part is None or not row.stored_as:
            return None
        with _damage_named():
            return self._log.open_part(part) if wait else self._log.try_open_part(part)

    def _large_frame(self, row: InstanceRow, layout: Layout, number: int) -> Frame:
        self.figures.frames += 1
        if layout is not Layout.UNDIVIDED_NATIVE:
            data = frame_bytes(self._large.frame(row, number), layout)
            return Frame(data, row.transfer_syntax_uid, row.location.record_id)
        try:
            in_words = self._are_bits_in_words(row)
            cells = self._large.undivided_frame(row, _shape(row.attributes), number, in_words=in_words)
        except IndexError as error:
            raise NotSeparableError("this frame has no bytes of its own; fetch the instance whole") from error
        return Frame(cells, row.transfer_syntax_uid, row.location.record_id)

    def header(self, row: InstanceRow) -> Header:
        """The data set without its pixel data's value, as received.

        Of a large object other long values are empty, too, and what follows the pixels may be cut.
        """
        with _damage_named():
            if row.location.stream is not None:
                return Header(*self._large.header(row), row.transfer_syntax_uid)
            head = self._log.open_whole(row.location.header_part())
            trailer: Buffer = b""
            if row.location.trailer_bytes:
                ref = self._indexer.objects.ref_of(row.location)
                trailer = self._log.open_whole(ref.part(len(ref.part_lengths) - 1))
        return Header(head, trailer, row.transfer_syntax_uid)

    def header_nowait(self, row: InstanceRow) -> Header | None:
        """As :meth:`header` if it is short and no disk has to be waited for, else None."""
        if row.location.stream is not None or row.location.trailer_bytes:
            return None
        part = row.location.header_part()
        if part.length > HEADER_NOWAIT_BYTES_MAX:
            return None
        with _damage_named():
            head = self._log.try_open_part(part)
        return None if head is None else Header(head, b"", row.transfer_syntax_uid)

    def read_ahead(self, rows: Iterable[InstanceRow]) -> None:
        """Have the disk bring the headers of these, all of which will be read soon. Never fails."""
        self._log.read_ahead(row.location.header_part() for row in rows if row.location.stream is None)

    def frames_to_bring(self, frames: Iterable[tuple[InstanceRow, int]]) -> list[PartRef]:
        """Where those of these frames lie that a disk has to bring. Waits for nothing.

        Not of large objects, nor of those whose table must be read: the system itself reads on.
        """
        parts: list[PartRef] = []
        for row, number in frames:
            with suppress(NotFoundError, NotSeparableError):  # whoever asks is told
                part = _frame_part(row, Layout(row.layout), number)
                if part is not None and not self._log.is_in_memory(part):
                    parts.append(part)
        return parts

    def bring(self, parts: Sequence[PartRef]) -> None:
        """Have the disk bring these soon. Never fails."""
        self._log.read_ahead(parts)

    def ends(self, row: InstanceRow) -> tuple[Header, int, int]:
        """All bytes before the pixels and behind them as received; where the former end, the latter begin.

        Of a large object without pixels, or with very much before them, only the elements at its beginning.
        """
        stream = row.location.stream
        if stream is None:
            header = self.header(row)
            return header, len(header.head), self.data_set_bytes(row) - len(header.trailer)
        with _damage_named():
            head, trailer = self._large.ends(row)
        at = stream.trailer_at if len(trailer) else stream.data_bytes
        return Header(head, trailer, row.transfer_syntax_uid), len(head), at

    def is_near(self, row: InstanceRow) -> bool:
        """Whether reading the object waits for a local disk at most, not for another tier."""
        return self._log.is_near(row.location.segment)

    def source_ae(self, row: InstanceRow) -> str:
        """The AE that sent the object, "" when none did."""
        return self.source(row).calling_ae

    def source(self, row: InstanceRow) -> SourceRow:
        """How the object came in."""
        with _damage_named():
            return decode(ObjectRow, self._log.open_part(row_part(row.location))).source

    def data_set_bytes(self, row: InstanceRow) -> int:
        """The data set's length in bytes, without reading it when the index knows."""
        if row.location.stream is not None:
            return row.location.stream.data_bytes
        if row.stored_as:
            place = row.location
            frames = place.frames * at_rest.frame_bytes_of(row.stored_as)
            return place.header_bytes + frames + place.trailer_bytes
        with _damage_named():
            return sum(self._indexer.objects.ref_of(row.location).part_lengths[1:])

    def plain_bytes(self, row: InstanceRow) -> int | None:
        """The data set's length, where it is parts stored as received of which the index knows all; else
        None: it takes :meth:`pieces`."""
        if row.location.stream is not None or row.stored_as or not row.location.has_table:
            return None
        return sum(row.location.ref().part_lengths[1:])

    def data_set_into(self, row: InstanceRow, into: memoryview, *, wait: bool) -> bool:
        """Fill ``into``, of :meth:`plain_bytes`, with the data set as received; errors as :meth:`frame`.

        False when it cannot be had so: a disk would have to be waited for, or very many frames opened, and
        the caller does not want to.
        """
        if not wait and row.location.frames > FRAMES_NOWAIT_MAX:
            return False
        parts = [part for part in islice(row.location.ref().parts(), 1, None) if part.length]
        with _damage_named():
            return not parts or self._log.open_parts(parts, into, wait=wait)

    def bring_all(self, rows: Iterable[InstanceRow]) -> None:
        """Have the disk bring the data sets of these soon, where :meth:`plain_bytes` says so. Never fails."""
        refs = [row.location.ref() for row in rows if self.plain_bytes(row) is not None]
        self._log.read_ahead(part for ref in refs for part in islice(ref.parts(), 1, None) if part.length)

    def pieces(self, row: InstanceRow, start: int = 0, stop: int | None = None) -> Iterator[list[Buffer]]:
        """The data set as received, in lists of buffers of a few megabytes (or of one large frame).

        Of it only the bytes from ``start`` to ``stop``: what is not asked for is not read.
        """
        with _damage_named():
            if row.location.stream is not None:
                for stretch in self._large.stretches(row, start, stop):
                    yield [stretch]
                return
            piece: list[Buffer] = []
            size = 0
            for part, begin, end in self._parts(row, start, stop):
                if row.stored_as or end - begin == part.length:
                    data = as_received(row.stored_as, part, self._log.open_part(part))[begin:end]
                else:
                    data = self._log.open_range(part, begin, end - begin)
                piece.append(data)
                size += len(data)
                if size >= PIECE_BYTES:
                    yield piece
                    piece, size = [], 0
            if piece:
                yield piece

    def _parts(self, row: InstanceRow, start: int, stop: int | None) -> Iterator[tuple[PartRef, int, int]]:
        """The parts that hold the bytes from ``start`` to ``stop``, and which bytes of each those are."""
        ref = self._indexer.objects.ref_of(row.location)
        end = 0
        lengths = lengths_as_received(ref, row.stored_as)
        for part, length in zip(islice(ref.parts(), 1, None), lengths, strict=True):
            begin, end = end, end + length
            if not length or end <= start:
                continue
            if stop is not None and begin >= stop:
                return
            yield part, max(start - begin, 0), length if stop is None else min(length, stop - begin)

    def pixel_places(self, row: InstanceRow) -> list[tuple[int, int]] | None:
        """Where in the data set the values of its pixel data begin and end, none when it has none.

        Native cells are one value, without padding; of encapsulated data that is not divided into frames
        (video) each fragment is one. None: each frame is a value of its own, see :meth:`frame`.
        """
        layout, location = Layout(row.layout), row.location
        if layout is Layout.ENCAPSULATED:
            return None
        if layout is Layout.HEADER_ONLY:
            return []
        with _damage_named():
            if location.stream is not None:
                begin, end = location.stream.pixels_at, location.stream.trailer_at
                if layout is Layout.NATIVE:
                    end = begin + location.stream.frames * location.stream.frame_bytes
            else:
                header, *frames, _ = lengths_as_received(
                    self._indexer.objects.ref_of(location), row.stored_as
                )
                begin, end = header, header + sum(frames)
            if layout is not Layout.UNDIVIDED_ENCAPSULATED:
                return [(begin, end)]
            return list(fragment_places(lambda at, size: self._bytes(row, at, size), begin, end))

    def _bytes(self, row: InstanceRow, start: int, length: int) -> bytes:
        return b"".join(one for piece in self.pieces(row, start, start + length) for one in piece)

    def bulk(self, row: InstanceRow) -> list[Buffer]:
        """The whole pixel data: of encapsulated data the fragments, else the frames.

        ``NotSeparableError`` when it is too long to be given as one value.
        """
        layout = Layout(row.layout)
        out: list[Buffer] = []
        with _damage_named():
            if row.location.stream is not None:
                return self._large.bulk(row)
            ref = self._indexer.objects.ref_of(row.location)
            for part in islice(ref.parts(), 2, len(ref.part_lengths) - 1):
                data = as_received(row.stored_as, part, self._log.open_part(part))
                out.extend(
                    fragments_of(data)
                    if layout is Layout.UNDIVIDED_ENCAPSULATED
                    else [frame_bytes(data, layout)]
                )
        return out


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except (*OUT_OF_REACH, OtherCopyAwayError) as error:
        raise UnavailableError(_OUT_OF_REACH) from error
    except BlobNotFoundError as error:
        raise DamagedError(_MISSING) from error
    except UNREADABLE as error:
        raise DamagedError(_DAMAGED) from error


def _frame_part(row: InstanceRow, layout: Layout, number: int) -> PartRef | None:
    """Where frame ``number`` lies, None when it takes more than the index to say."""
    location = row.location
    plain_table = location.has_table and location.stream is None
    if layout.has_frames:
        if not 1 <= number <= location.frames:
            raise NotFoundError(f"this instance has {location.frames} frames; there is no frame {number}")
        return location.frame_part(number) if plain_table else None
    if layout is Layout.HEADER_ONLY:
        raise NotSeparableError(
            "this instance has no pixel data that can be read frame by frame; fetch it whole"
        )
    frames = max(1, number_of(row.attributes.get(0x00280008, ""), 1))
    if not 1 <= number <= frames:
        raise NotFoundError(f"this instance has {frames} frames; there is no frame {number}")
    if layout is Layout.UNDIVIDED_NATIVE:
        return None
    if frames > 1:
        raise NotSeparableError(
            "the frames of this instance cannot be told apart without decoding; fetch it whole"
        )
    return location.frame_part(1) if plain_table else None


def frame_count(row: InstanceRow) -> int:
    """How many frames of an object can be read one by one, of those that it says it has.

    Not of a video nor of a deflated object, whose frames have no bytes of their own in its record. At least
    1: whoever reads that is told what is wrong.
    """
    location, layout = row.location, Layout(row.layout)
    if layout.has_frames:
        return location.frames
    if layout is not Layout.UNDIVIDED_NATIVE or location.frame_bytes < 0:
        return 1
    held = at_rest.frame_bytes_of(row.stored_as) if row.stored_as else location.frame_bytes
    return frames_held(row.attributes, held)


def frames_held(attributes: Attributes, pixel_bytes: int) -> int:
    """How many of the frames that are said to be in undivided cells can be; at least 1."""
    bits = _shape(attributes).bits
    said = number_of(attributes.get(0x00280008, ""), 1)
    return max(1, min(said, pixel_bytes * 8 // bits if bits > 0 else 1))


def _shape(attributes: Attributes) -> FrameShape:
    return FrameShape(
        rows=number_of(attributes.get(0x00280010, "")),
        columns=number_of(attributes.get(0x00280011, "")),
        samples_per_pixel=number_of(attributes.get(0x00280002, ""), 1),
        bits_allocated=number_of(attributes.get(0x00280100, ""), 1),
        photometric=attributes.get(0x00280004, ""),
    )


def number_of(text: str, default: int = 0) -> int:
    """The first whole number of an attribute's text, or ``default``."""
    try:
        return int(text.split("\\", maxsplit=1)[0].strip() or default)
    except ValueError:
        return default
