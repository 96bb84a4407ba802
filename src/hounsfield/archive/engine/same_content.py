"""Whether an object that came is, in another encoding, one that is held already: then it is not kept.

Decided outside of any commit, so that nobody else's object waits: the committer says which instances are held
under the object's UIDs with other bytes, :class:`Comparing` finds out on a thread whether one of them has the
same content, and if so the sender has its success; if not, or if that cannot be proven within the limits, the
object is queued again and kept beside the other.

The same content is: the same data elements (:mod:`hounsfield.archive.dicom.same_elements` says what may
differ) and, frame by frame, either the same bytes in the same transfer syntax or the same pixels in lossless
ones. Compressed pixels are decoded in a process of their own (:mod:`hounsfield.archive.engine.isolation`).
Nothing is guessed: a data set that is odd, a syntax that may lose, a decoder that fails are "not the same".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
import trio

from hounsfield.archive.dicom.cuts import Layout, frame_bytes
from hounsfield.archive.dicom.deflated import inflate
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.same_elements import DataSet, NotComparableError, read, same_elements
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.dicom.walk import looks_implicit
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.group_commit import Received, Undecided
from hounsfield.archive.engine.isolation import Isolation
from hounsfield.archive.engine.records import Records
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.archive.index.stored_objects import VANISHED
from hounsfield.codecs.coders import CODERS
from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.pixels import PixelFormat, Pixels, from_native, same_bytes, significant
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax, lookup
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import StorageError

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred("numpy")

log = structlog.get_logger(__name__)

PHOTOMETRIC, SAMPLES, PLANAR, FRAMES = 0x00280004, 0x00280002, 0x00280006, 0x00280008
ROWS, COLUMNS = 0x00280010, 0x00280011
BITS_ALLOCATED, BITS_STORED, HIGH_BIT, REPRESENTATION = 0x00280100, 0x00280101, 0x00280102, 0x00280103
PIXEL_DATA: Final = 0x7FE00010
#: What a compressor may rewrite; compared with the pixels.
_WITH_PIXELS: Final = frozenset({PHOTOMETRIC, PLANAR})
#: A reversible colour transform is undone by the decoder, which gives RGB (PS3.5 8.2.4).
_AS_RGB: Final = {"YBR_RCT": "RGB"}


@dataclass(frozen=True, slots=True)
class ComparisonLimits:
    """What finding out may cost; past any of it both objects are kept.

    ``seconds_max``: of one object. ``waiting_max``: objects that wait for their turn, holding their memory.
    ``header_bytes_max``: of a data set without its pixels: it becomes a tree in memory.
    ``inflated_bytes_max``: of a deflated data set.
    ``rounds_max``: how often an object is compared, when others come under its UIDs meanwhile.
    """

    seconds_max: float = 20.0
    waiting_max: int = 32
    header_bytes_max: int = 16 << 20
    inflated_bytes_max: int = 64 << 20
    rounds_max: int = 4


@dataclass(frozen=True, slots=True)
class Side:
    """One of two objects: how it is written, and how to get at its parts as received."""

    syntax: TransferSyntax
    layout: Layout
    header: Buffer
    trailer: Buffer
    frames: int
    frame: Callable[[int], Buffer]
    """Frame by number, from 1: native cells (all of them when undivided), or the fragments joined."""


class Comparing:
    """One worker's comparisons: one at a time, on a thread."""

    def __init__(
        self, records: Records, isolation: Isolation, limits: ComparisonLimits | None = None
    ) -> None:
        self.limits = limits or ComparisonLimits()
        self.compared = 0
        self.found_same = 0
        self._records = records
        self._isolation = isolation
        self._threads: trio.CapacityLimiter | None = None

    async def settle(self, received: Received, undecided: Undecided) -> bool:
        """Whether the object is one of those held. If not, ``received`` knows, and is queued again."""
        if self._threads is None:
            self._threads = trio.CapacityLimiter(1)
        received.rounds += 1
        received.settled = received.rounds >= self.limits.rounds_max
        compared = {one.location.record_id for one in undecided.held}
        if self._threads.statistics().tasks_waiting >= self.limits.waiting_max:
            received.unlike |= compared
            return False
        try:
            found = await trio.to_thread.run_sync(
                self.is_held, received, undecided.held, limiter=self._threads
            )
        except VANISHED:
            return False  # compaction was first: the committer says where everything is now
        except Exception as error:  # noqa: BLE001  what cannot be compared is kept, whatever the reason
            log.warning(
                "an object could not be compared with the one that is held", error=type(error).__name__
            )
            found = False
        received.unlike |= compared
        return found

    def is_held(self, received: Received, held: Sequence[InstanceRow]) -> bool:
        """Whether ``received`` has the content of one of ``held``. Blocking.

        Nothing in them raises; ``VANISHED`` when one was moved and is to be looked up again.
        """
        self.compared += 1
        deadline = time.monotonic() + self.limits.seconds_max
        try:
            mine = self._opened(side_of_received(received))
        except NotComparableError:
            return any(self._same_bytes(received, one) for one in held)
        for one in held:
            if self._same_bytes(received, one):
                self.found_same += 1
                return True
            try:
                its = self._opened(side_of_stored(self._records, one))
                if same_content(mine, its, self._isolation.decode, deadline=deadline):
                    self.found_same += 1
                    return True
            except (NotComparableError, CodecError, EngineError, StorageError) as error:
                _raise_vanished(error)  # else it is not known to be the same: both are kept
        return False

    def _same_bytes(self, received: Received, held: InstanceRow) -> bool:
        """The same bytes in one transfer syntax, but stored another way than they would be now."""
        whole = received.original
        if held.transfer_syntax_uid != received.row.transfer_syntax_uid:
            return False
        if not held.stored_as and not received.row.stored_as and self._records.is_near(held):
            return False  # the committer has compared these
        try:
            if self._records.data_set_bytes(held) != sum(map(len, whole)):
                return False
            stored = (buffer for piece in self._records.pieces(held) for buffer in piece)
            given = (buffer for buffer in whole if len(buffer))
            return all(same_bytes(one, other) for one, other in zip(stored, given, strict=True))
        except (EngineError, StorageError, ValueError) as error:
            _raise_vanished(error)
            return False

    def _opened(self, side: Side) -> Side:
        if side.syntax.deflated:
            side = _inflated(side, self.limits.inflated_bytes_max)
        if len(side.header) + len(side.trailer) > self.limits.header_bytes_max:
            raise NotComparableError("a header that is too large to compare")
        return side


def _raise_vanished(error: Exception) -> None:
    """Raise what says that a segment is gone, if that is what ``error`` comes from."""
    for one in (error, error.__cause__):
        if isinstance(one, VANISHED):
            raise one


def side_of_received(received: Received) -> Side:
    """An object that came, as its slices are."""
    slices, layout = received.original, Layout(received.row.layout)
    frames = slices[1:-1]
    return Side(
        syntax=lookup(received.row.transfer_syntax_uid),
        layout=layout,
        header=slices[0],
        trailer=slices[-1],
        frames=len(frames),
        frame=lambda number: frame_bytes(frames[number - 1], layout),
    )


def side_of_stored(records: Records, row: InstanceRow) -> Side:
    """An object that is held, read when it is looked at."""
    if row.location.stream is not None:
        raise NotComparableError("a large object, whose header is not given whole")
    header = records.header(row)
    layout = Layout(row.layout)

    def frame(number: int) -> Buffer:
        if layout is Layout.UNDIVIDED_NATIVE:
            return b"".join(records.bulk(row))
        return records.frame(row, number).data

    return Side(
        syntax=lookup(row.transfer_syntax_uid),
        layout=layout,
        header=header.head,
        trailer=header.trailer,
        frames=row.location.frames,
        frame=frame,
    )


def _inflated(side: Side, bytes_max: int) -> Side:
    """A deflated data set (PS3.5 A.5) as the explicit little endian one it is inside."""
    problems: dict[Problem, None] = {}
    plain = inflate(side.header, bytes_max, problems)
    if problems:
        raise NotComparableError("a deflated data set that is damaged or too large")
    scanned = scan(plain, EXPLICIT_VR_LITTLE_ENDIAN)
    slices = scanned.slices(plain)
    trailer: Buffer = slices[-1] if len(slices) > 1 else b""
    frames, layout = slices[1:-1], scanned.layout
    return Side(
        EXPLICIT_VR_LITTLE_ENDIAN, layout, slices[0], trailer, len(frames),
        lambda number: frame_bytes(frames[number - 1], layout),
    )  # fmt: skip


Decode = Callable[[str, Buffer, PixelFormat], Buffer]


def same_content(one: Side, other: Side, decode: Decode, *, deadline: float = float("inf")) -> bool:
    """Whether two objects say the same. ``decode`` is for compressed frames; ``deadline`` is monotonic.

    Raises ``NotComparableError`` or ``CodecError`` when it cannot be known.
    """
    mine, its = _read(one), _read(other)
    if not same_elements(mine.elements, its.elements, _WITH_PIXELS):
        return False
    if not same_elements(mine.trailing, its.trailing):
        return False
    if mine.pixels is None or its.pixels is None:
        return mine.pixels is its.pixels and _same_text(mine, its, PHOTOMETRIC) and _same_planes(mine, its)
    if mine.pixels.tag != its.pixels.tag or one.frames != other.frames:
        return False
    pixels = _Pixels(one, mine), _Pixels(other, its)
    if _photometric(mine, one) != _photometric(its, other):
        return False
    alike = (
        one.syntax.uid == other.syntax.uid and _same_text(mine, its, PHOTOMETRIC) and _same_planes(mine, its)
    )
    for number in range(1, one.frames + 1):
        if time.monotonic() > deadline:
            raise NotComparableError("comparing took too long")
        frames = one.frame(number), other.frame(number)
        if alike and same_bytes(*frames):
            continue
        if not _same_frame(pixels, frames, decode):
            return False
    return True


def _read(side: Side) -> DataSet:
    if side.layout not in (Layout.NATIVE, Layout.ENCAPSULATED, Layout.UNDIVIDED_NATIVE, Layout.HEADER_ONLY):
        raise NotComparableError("frames that cannot be told apart")
    implicit = looks_implicit(side.header, 0, len(side.header), side.syntax.implicit_vr)
    native = side.layout in (Layout.NATIVE, Layout.UNDIVIDED_NATIVE)
    native_bytes = len(side.frame(1)) * side.frames if native and side.frames else 0
    return read(
        side.header,
        side.trailer,
        implicit=implicit,
        little=side.syntax.little_endian,
        native_bytes=native_bytes,
    )


class _Pixels:
    """One side's frames, and how to make arrays of them."""

    def __init__(self, side: Side, data_set: DataSet) -> None:
        self.side = side
        self.native = side.layout in (Layout.NATIVE, Layout.UNDIVIDED_NATIVE)
        elements = data_set.elements
        self.format: PixelFormat | None = None
        bits = elements.number(BITS_ALLOCATED)
        rows, columns = elements.number(ROWS), elements.number(COLUMNS)
        assert data_set.pixels is not None
        if bits and rows and columns and data_set.pixels.tag == PIXEL_DATA:
            stored = elements.number(BITS_STORED) or bits
            high = elements.number(HIGH_BIT)
            self.at_the_bottom = high is None or high == stored - 1
            self.format = PixelFormat(
                rows, columns, elements.number(SAMPLES) or 1, bits, stored,
                signed=elements.number(REPRESENTATION) == 1,
                planar=elements.number(PLANAR) == 1,
                in_words=data_set.pixels.vr == "OW",
            )  # fmt: skip

    def array(self, frame: Buffer, decode: Decode) -> Pixels:
        pixels = self.format
        coder = CODERS.get(self.side.syntax.uid)
        if pixels is None or coder is None or not coder.lossless or not self.side.syntax.lossless:
            raise NotComparableError("frames of a syntax that is not decoded here, or may lose")
        if not coder.isolated:
            return coder.decode(frame, pixels)
        if not self.at_the_bottom:
            raise NotComparableError("pixels whose bits do not begin at the lowest")
        plain = PixelFormat(*pixels.shape, pixels.bits_allocated, pixels.bits_stored, pixels.signed)
        return from_native(decode(self.side.syntax.uid, frame, pixels), plain)


def _same_frame(sides: tuple[_Pixels, _Pixels], frames: tuple[Buffer, Buffer], decode: Decode) -> bool:
    one, other = sides
    if one.native and other.native:
        if one.side.layout is Layout.UNDIVIDED_NATIVE or other.side.layout is Layout.UNDIVIDED_NATIVE:
            # Single bits, in words whose byte order matters: only where there is none to mind.
            plain = one.side.syntax.little_endian and other.side.syntax.little_endian
            return plain and same_bytes(*frames)
        if one.format == other.format and _same_order(one.side.syntax, other.side.syntax):
            return same_bytes(*frames)
    mine, its = (side.array(frame, decode) for side, frame in zip(sides, frames, strict=True))
    if mine.dtype != its.dtype or mine.shape != its.shape:
        return False
    if np.array_equal(mine, its):
        return True
    if one.native and other.native:
        return False
    # A compressor may drop what stands above the high bit, but only if it says nothing.
    assert one.format is not None
    assert other.format is not None
    values, others = significant(mine, one.format), significant(its, other.format)
    return values is not None and others is not None and np.array_equal(values, others)


def _same_order(one: TransferSyntax, other: TransferSyntax) -> bool:
    return (one.little_endian, one.big_endian_pixels) == (other.little_endian, other.big_endian_pixels)


def _same_text(one: DataSet, other: DataSet, tag: int) -> bool:
    return one.elements.text(tag) == other.elements.text(tag)


def _same_planes(one: DataSet, other: DataSet) -> bool:
    return one.elements.number(PLANAR) == other.elements.number(PLANAR)


def _photometric(data_set: DataSet, side: Side) -> str:
    said = data_set.elements.text(PHOTOMETRIC)
    return said if side.layout is not Layout.ENCAPSULATED else _AS_RGB.get(said, said)
