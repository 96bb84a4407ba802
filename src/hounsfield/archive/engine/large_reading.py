"""Reading a large object: one frame costs the chunks that hold it, the tables are read once. Blocking."""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from hounsfield.archive.dicom.byte_order import swapped
from hounsfield.archive.dicom.cuts import Layout, fragments_of, frame_bytes
from hounsfield.archive.dicom.rewrite import RewriteError, whole_elements
from hounsfield.archive.engine.errors import NotSeparableError
from hounsfield.archive.index.contents import FRAMES_PART, HEADER_PART, open_pieces
from hounsfield.archive.index.rows import InstanceRow, Location, StreamRow
from hounsfield.codecs.frames import FrameShape, extract_bits
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.segment_stream import PieceReader
from hounsfield.storage_backends.segments import SegmentLog

#: Piece and frame tables kept in memory. A slide of 300,000 unequal tiles has 2.4 MB, a 4 GB cine loop 24 KB.
TABLES_BYTES_MAX = 16 << 20
#: One frame, or all pixel data, given as one value. Longer ones are fetched with the whole instance, which
#: streams: a request must not take a gigabyte of memory.
VALUE_BYTES_MAX = 512 << 20
#: What is read of what follows the pixels, for metadata; more was not looked at when it came in either.
TRAILER_BYTES_MAX = 4 << 20
#: What is read of what precedes the pixels when the header is written anew: far more than headers have.
HEAD_BYTES_MAX = 64 << 20
#: What is read of a deflated object to inflate its header.
DEFLATED_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class _Tables:
    pieces: PieceReader
    frames: bytes  # where each begins, and the last ends; empty when they are equal

    @property
    def held_bytes(self) -> int:
        return self.pieces.held_bytes + len(self.frames)


class LargeReading:
    """Opens objects that lie in pieces. Any number of threads at once."""

    def __init__(self, log: SegmentLog, tables_bytes_max: int = TABLES_BYTES_MAX) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._tables: OrderedDict[tuple[bytes, bytes], _Tables] = OrderedDict()
        self._bytes_max = tables_bytes_max
        self.held_bytes = 0

    def header(self, row: InstanceRow) -> tuple[Buffer, Buffer]:
        """The data set before and behind its pixels; of long values that are not pixels only that they are.

        Of what is behind the pixels at most :data:`TRAILER_BYTES_MAX`.
        """
        location, stream = row.location, _stream(row.location)
        if lookup(row.transfer_syntax_uid).deflated:
            return self._pieces(location).read(0, min(stream.data_bytes, DEFLATED_BYTES_MAX)), b""
        head = self._log.open_part(location.ref().part(HEADER_PART))
        length = min(location.trailer_bytes, TRAILER_BYTES_MAX)
        return head, self._pieces(location).read(stream.trailer_at, length) if length else b""

    def ends(self, row: InstanceRow) -> tuple[Buffer, Buffer]:
        """The data set before and behind its pixels, byte for byte.

        Of what is before them whole elements, at most :data:`HEAD_BYTES_MAX`.
        RewriteError when it is deflated and too long to be inflated.
        Nothing of what is behind the pixels when that is longer than :data:`TRAILER_BYTES_MAX`.
        """
        location, stream, syntax = row.location, _stream(row.location), lookup(row.transfer_syntax_uid)
        pieces = self._pieces(location)
        if syntax.deflated:
            if stream.data_bytes > DEFLATED_BYTES_MAX:
                raise RewriteError("this deflated data set is too large to be corrected on its way out")
            return pieces.read(0, stream.data_bytes), b""
        before = stream.pixels_at if stream.frames else stream.data_bytes
        head: Buffer = pieces.read(0, min(before, HEAD_BYTES_MAX))
        if not stream.frames or before > HEAD_BYTES_MAX:
            head = whole_elements(bytes(head), syntax)
        behind = location.trailer_bytes
        trailer = pieces.read(stream.trailer_at, behind) if 0 < behind <= TRAILER_BYTES_MAX else b""
        return head, trailer

    def frame(self, row: InstanceRow, number: int) -> Buffer:
        """Frame ``number`` (from 1, and there is one such), as it lies there, with item headers."""
        stream = _stream(row.location)
        if not Layout(row.layout).has_frames:
            start, stop = stream.pixels_at, stream.trailer_at
        elif stream.frame_bytes >= 0:
            start = stream.pixels_at + (number - 1) * stream.frame_bytes
            stop = start + stream.frame_bytes
        else:
            start, stop = struct.unpack_from("<2Q", self._open(row.location).frames, 8 * (number - 1))
        return self._value(row.location, start, stop)

    def undivided_frame(
        self, row: InstanceRow, shape: FrameShape, number: int, *, in_words: bool = False
    ) -> bytes:
        """Frame ``number`` of packed bits, which may begin within a byte; else ``IndexError``.

        ``in_words``: they stand in words of 16 bits with the high byte first.
        """
        stream = _stream(row.location)
        bits = shape.bits
        first, end = (number - 1) * bits // 8, -(-number * bits // 8)
        if bits < 1 or first < 0 or end > stream.trailer_at - stream.pixels_at:
            raise IndexError(f"no frame {number}")
        if in_words:
            begin, stop = first - first % 2, min(end + end % 2, stream.trailer_at - stream.pixels_at)
            words = self._value(row.location, stream.pixels_at + begin, stream.pixels_at + stop)
            chunk: Buffer = memoryview(swapped(words, 2))[first - begin : end - begin]
        else:
            chunk = self._value(row.location, stream.pixels_at + first, stream.pixels_at + end)
        shift = (number - 1) * bits % 8
        if not shift:
            return extract_bits(memoryview(chunk), 1, bits)
        value = (int.from_bytes(chunk, "little") >> shift) & ((1 << bits) - 1)
        return value.to_bytes(-(-bits // 8), "little")

    def stretches(self, row: InstanceRow, start: int = 0, stop: int | None = None) -> Iterator[Buffer]:
        """The data set as received, or its bytes from ``start`` to ``stop``, a piece at a time."""
        yield from self._pieces(row.location).stretches(start, stop)

    def bulk(self, row: InstanceRow) -> list[Buffer]:
        """The whole pixel data: of encapsulated data the fragments, else the frames as one buffer."""
        layout, stream = Layout(row.layout), _stream(row.location)
        if layout is Layout.HEADER_ONLY:
            return []
        stop = stream.trailer_at
        if layout is Layout.NATIVE:
            stop = stream.pixels_at + stream.frames * stream.frame_bytes
        whole = memoryview(self._value(row.location, stream.pixels_at, stop))
        if layout in (Layout.NATIVE, Layout.UNDIVIDED_NATIVE):
            return [whole]
        if layout is Layout.UNDIVIDED_ENCAPSULATED:
            return list(fragments_of(whole))
        if stream.frame_bytes >= 0:
            size = stream.frame_bytes
            places = tuple(range(0, stream.frames * size + 1, size or 1))
        else:
            places = struct.unpack(f"<{stream.frames + 1}Q", self._open(row.location).frames)
            places = tuple(place - stream.pixels_at for place in places)
        return [frame_bytes(whole[start:stop], layout) for start, stop in pairwise(places)]

    def _value(self, location: Location, start: int, stop: int) -> Buffer:
        if stop - start > VALUE_BYTES_MAX:
            raise NotSeparableError(
                f"a value of more than {VALUE_BYTES_MAX >> 20} MiB is not given alone; fetch the instance"
            )
        return self._pieces(location).read(start, stop - start)

    def _pieces(self, location: Location) -> PieceReader:
        return self._open(location).pieces

    def _open(self, location: Location) -> _Tables:
        """The tables, from memory or read just now."""
        key = (location.segment, location.record_id)
        with self._lock:
            found = self._tables.get(key)
            if found is not None:
                self._tables.move_to_end(key)
                return found
        ref = location.ref()
        found = _Tables(open_pieces(self._log, location), bytes(self._log.open_part(ref.part(FRAMES_PART))))
        with self._lock:
            if key not in self._tables:
                self._tables[key] = found
                self.held_bytes += found.held_bytes
            while self.held_bytes > self._bytes_max and len(self._tables) > 1:
                _, dropped = self._tables.popitem(last=False)
                self.held_bytes -= dropped.held_bytes
        return found


def _stream(location: Location) -> StreamRow:
    assert location.stream is not None
    return location.stream
