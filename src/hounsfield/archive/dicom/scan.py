"""One walk over an encoded data set: which elements it has, where its pixels are, and where to cut it.

The **cuts** divide the received bytes into contiguous slices::

    [header][frame 1] … [frame N][trailer]        layout NATIVE or ENCAPSULATED
    [header][all pixel bytes][trailer]            layout UNDIVIDED_*: frames that have no bytes of their own
    [header]                                      layout HEADER_ONLY: no pixel data, or deflated as a whole

and the slices, put together again, are exactly the bytes that came. The header includes the tag, VR and
length of the pixel data element and, when encapsulated, the basic offset table item; an encapsulated frame's
slice includes its own item headers; the trailer is the sequence delimiter, a padding byte, and every element
after the pixel data.

Nothing is decoded and nothing raises: a data set that is truncated, corrupt or nonsense gives what could be
read and a list of ``problems``. Work is bounded by ``ScanLimits``. Nesting is followed only where a length is
undefined.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from hounsfield.archive.dicom.cuts import (
    NUMBER_OF_FRAMES,
    Element,
    Fragments,
    Layout,
    Sighted,
    cut_encapsulated,
    cut_native,
    cut_sighted,
    declared_frames,
    frame_shape,
)
from hounsfield.archive.dicom.deflated import INFLATED_BYTES_MAX, inflate
from hounsfield.archive.dicom.dictionary import (
    ITEM,
    ITEM_END,
    LONG_VRS,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
    VR_OF,
    vr_of,
)
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.walk import (
    DEPTH_MAX,
    EXPLICIT_HEAD,
    IMPLICIT_HEAD,
    LENGTH32,
    NESTED_ELEMENTS_MAX,
    BadSequenceError,
    Budget,
    is_letters,
    looks_implicit,
    odd_header,
    skip_sequence,
)
from hounsfield.codecs.frames import FrameShape
from hounsfield.codecs.registry import TransferSyntax

Buffer = bytes | bytearray | memoryview

PIXEL_DATA: Final = 0x7FE00010
PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})
_DELIMITERS: Final = frozenset({SEQUENCE_END, ITEM_END})
_EXTENDED_OFFSETS: Final = 0x7FE00001


@dataclass(frozen=True, slots=True)
class ScanLimits:
    """How much work one data set may cause."""

    #: Nested sequences of undefined length; real data sets stay below 10, the Python stack far above this.
    depth_max: int = DEPTH_MAX
    #: Top-level elements; the largest real ones (curves, private dumps) have some thousands.
    elements_max: int = 30_000
    #: Elements and items inside sequences of undefined length: a 10,000-frame enhanced object has about
    #: 600,000.
    nested_elements_max: int = NESTED_ELEMENTS_MAX
    #: Frames of one object, and fragments of its pixel data: each costs a number in a list, and a frame may
    #: be one byte. The largest real ones, tiles of a slide, are some hundred thousand.
    frames_max: int = 1_000_000
    inflated_bytes_max: int = INFLATED_BYTES_MAX


DEFAULT_LIMITS: Final = ScanLimits()


@dataclass(frozen=True, slots=True)
class PixelData:
    """Where the pixel data element is. ``length`` is None when undefined (encapsulated)."""

    tag: int
    vr: str
    #: Offset of the value: the first pixel cell, or the item tag of the basic offset table.
    offset: int
    #: Length as written, None when undefined.
    length: int | None
    #: One past the last byte of the value that is there, the sequence delimiter not counted.
    end: int


@dataclass(slots=True)
class Scanned:
    """What one walk found. Offsets are into ``body(data)``: the data set, inflated when it was deflated."""

    syntax: TransferSyntax
    #: As found in the bytes, which is not always what the transfer syntax says.
    implicit_vr: bool
    little_endian: bool
    elements: dict[int, Element]
    #: Tags of top-level elements whose length is undefined.
    undefined: set[int]
    pixels: PixelData | None
    layout: Layout
    #: Slice boundaries in the received bytes, first 0, last their length.
    cuts: list[int]
    #: Frames in the cuts, or as NumberOfFrames says when they could not be divided; 0 without pixel data.
    frame_count: int
    shape: FrameShape | None
    inflated: bytes | None
    problems: tuple[Problem, ...]

    def body(self, data: Buffer) -> Buffer:
        """The bytes that element offsets point into."""
        return data if self.inflated is None else self.inflated

    def slices(self, data: Buffer) -> list[memoryview]:
        """The cuts as views: header, then frames (or all pixels), then trailer.

        Only the header when HEADER_ONLY.
        """
        view = memoryview(data)
        cuts = self.cuts
        return [view[a:b] for a, b in pairwise(cuts)]

    def value(self, data: Buffer, tag: int) -> bytes | None:
        """The raw value of a top-level element, or None when it is not there."""
        found = self.elements.get(tag)
        if found is None:
            return None
        return bytes(self.body(data)[found[1] : found[1] + found[2]])


def scan(data: Buffer, transfer_syntax: TransferSyntax, limits: ScanLimits = DEFAULT_LIMITS) -> Scanned:
    """Walk an encoded data set (no preamble, no file meta information) once. Never raises on any bytes.

    PS3.5 7 (data elements), 7.5 (sequences), A.4 (encapsulated pixel data), A.5 (deflated).
    """
    walk = Walk(transfer_syntax, limits)
    inflated: bytes | None = None
    body: Buffer = data
    if transfer_syntax.deflated:
        inflated = inflate(data, limits.inflated_bytes_max, walk.problems)
        body = inflated
    if not transfer_syntax.known:
        walk.problems[Problem.UNKNOWN_TRANSFER_SYNTAX] = None
    if len(body) == 0:
        walk.problems[Problem.EMPTY] = None
    walk.top_level(body)
    layout, cuts, frame_count, shape = walk.cut(body)
    if inflated is not None:
        layout, cuts = Layout.HEADER_ONLY, [0, len(data)]
    return Scanned(
        transfer_syntax,
        walk.implicit,
        walk.little,
        walk.elements,
        walk.undefined,
        walk.pixels,
        layout,
        cuts,
        frame_count,
        shape,
        inflated,
        tuple(walk.problems),
    )


_PIXEL_DATA_PROVIDER: Final = 0x00287FE0
#: Rows, Columns, Bits Allocated.
_PIXEL_DESCRIPTION: Final = (0x00280010, 0x00280011, 0x00280100)
#: With one of these, what follows was not looked at.
_UNREAD: Final = frozenset({
    Problem.BAD_DEFLATE, Problem.BAD_SEQUENCE, Problem.HEADER_TOO_LONG, Problem.INFLATES_TOO_FAR,
    Problem.TOO_DEEP, Problem.TOO_MANY_ELEMENTS,
})  # fmt: skip


class _StopError(Exception):
    """The walk cannot go on from here."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


class Walk:
    """The state of one walk: kept in attributes because sequences recurse. This package's only."""

    __slots__ = (
        "budget", "elements", "encapsulated", "fragments", "implicit", "limits", "little", "pixels",
        "problems", "undefined", "video",
    )  # fmt: skip

    def __init__(self, syntax: TransferSyntax, limits: ScanLimits) -> None:
        self.limits = limits
        self.video = syntax.is_video
        self.encapsulated = syntax.encapsulated if syntax.known else None
        self.implicit = syntax.implicit_vr
        self.little = syntax.little_endian
        self.elements: dict[int, Element] = {}
        self.undefined: set[int] = set()
        self.pixels: PixelData | None = None
        self.fragments: Fragments | None = None
        self.problems: dict[Problem, None] = {}
        self.budget = Budget(limits.nested_elements_max, limits.depth_max)

    def top_level(self, data: Buffer) -> None:
        if looks_implicit(data, 0, len(data), self.implicit) != self.implicit:
            self.implicit = not self.implicit
            self.problems[Problem.UNEXPECTED_VR_ENCODING] = None
        try:
            count = self._implicit_elements(data) if self.implicit else self._explicit_elements(data)
        except _StopError as stop:
            self.problems[stop.problem] = None
        else:
            if count != len(self.elements):
                self.problems[Problem.DUPLICATE_ELEMENT] = None

    # The two loops below are the hot path: one dictionary store per element, nothing else when all is well.

    def _explicit_elements(self, data: Buffer) -> int:
        unpack = EXPLICIT_HEAD[self.little].unpack_from
        unpack32 = LENGTH32[self.little].unpack_from
        short, long, elements = SHORT_VRS.get, LONG_VRS.get, self.elements
        end = len(data)
        last = end - 8
        left = self.limits.elements_max
        count = pos = 0
        while pos <= last:
            group, number, letters, length = unpack(data, pos)
            tag = group << 16 | number
            vr = short(letters)
            if vr is not None:
                value = pos + 8
            else:
                vr = long(letters)
                if vr is not None and pos + 12 <= end:
                    value = pos + 12
                    length = unpack32(data, pos + 8)[0]
                else:
                    vr, value, length = self._odd_header(data, pos, end)
                if length == UNDEFINED:
                    if left <= 0:
                        raise _StopError(Problem.TOO_MANY_ELEMENTS)
                    pos = self._undefined(data, tag, vr, value, end)
                    left -= 1
                    count += 1
                    continue
            after = value + length
            if after > end or group == 0 or left <= 0 or group == 0xFFFE:
                pos = self._irregular(tag, vr, value, length, end, left)
                if tag not in _DELIMITERS:
                    count += 1
                continue
            elements[tag] = (vr, value, length)
            left -= 1
            count += 1
            pos = after
        if pos != end:
            self._rest(data, pos)
        return count

    def _implicit_elements(self, data: Buffer) -> int:
        unpack = IMPLICIT_HEAD[self.little].unpack_from
        known, elements = VR_OF.get, self.elements
        end = len(data)
        last = end - 8
        left = self.limits.elements_max
        count = pos = 0
        while pos <= last:
            group, number, length = unpack(data, pos)
            tag = group << 16 | number
            vr = known(tag) or vr_of(tag)
            value = pos + 8
            if length == UNDEFINED:
                if left <= 0:
                    raise _StopError(Problem.TOO_MANY_ELEMENTS)
                pos = self._undefined(data, tag, vr, value, end)
                left -= 1
                count += 1
                continue
            after = value + length
            if after > end or group == 0 or left <= 0 or group == 0xFFFE:
                pos = self._irregular(tag, vr, value, length, end, left)
                if tag not in _DELIMITERS:
                    count += 1
                continue
            elements[tag] = (vr, value, length)
            left -= 1
            count += 1
            pos = after
        if pos != end:
            self._rest(data, pos)
        return count

    def _rest(self, data: Buffer, pos: int) -> None:
        """Bytes too few to be an element: zeros are padding, others are the beginning of one."""
        self.problems[Problem.TRUNCATED if any(bytes(data[pos:])) else Problem.TRAILING_BYTES] = None

    def _irregular(  # noqa: PLR0917
        self, tag: int, vr: str, value: int, length: int, end: int, left: int
    ) -> int:
        """An element that does not fit, or that no data set has: where to go on, or _StopError."""
        if left <= 0:
            raise _StopError(Problem.TOO_MANY_ELEMENTS)
        if tag >> 16 == 0:
            # Group 0 is for commands (PS3.7); in a data set it means zeros after the end.
            raise _StopError(Problem.TRAILING_BYTES)
        if tag in _DELIMITERS and length == 0:
            self.problems[Problem.MISPLACED_DELIMITER] = None
            return value
        if value + length > end:
            self.elements[tag] = (vr, value, end - value)
            raise _StopError(Problem.TRUNCATED)
        raise _StopError(Problem.BAD_SEQUENCE)

    def _odd_header(self, data: Buffer, pos: int, end: int) -> tuple[str, int, int]:
        """VR, value offset and length of an explicit VR element whose VR is none that we know.

        Or is cut off.
        """
        letters = bytes(data[pos + 4 : pos + 6])
        if letters in LONG_VRS:
            raise _StopError(Problem.TRUNCATED)
        if is_letters(letters):
            self.problems[Problem.UNKNOWN_VR] = None
        elif bytes(data[pos : pos + 2]) not in (b"\0\0", b"\xfe\xff", b"\xff\xfe"):
            self.problems[Problem.UNEXPECTED_VR_ENCODING] = None
        return odd_header(data, pos, end, self.little)

    def _undefined(self, data: Buffer, tag: int, vr: str, value: int, end: int) -> int:
        """Read over a value of undefined length; where the next element begins."""
        self.undefined.add(tag)
        if tag == PIXEL_DATA:
            # Encapsulated pixel data is bytes, whatever a dictionary says (PS3.5 A.4).
            return self._encapsulated(data, "OB" if vr in ("OW", "UN") else vr, value, end)
        self.elements[tag] = (vr, value, end - value)
        try:
            after = skip_sequence(data, value, end, self.implicit, self.little, self.budget)
        except BadSequenceError as error:
            raise _StopError(error.problem) from None
        if self.budget.misplaced_delimiter:
            self.problems[Problem.MISPLACED_DELIMITER] = None
        # UN of undefined length is a sequence in disguise (PS3.5 6.2.2).
        self.elements[tag] = ("SQ" if vr == "UN" else vr, value, after - 8 - value)
        return after

    def _encapsulated(self, data: Buffer, vr: str, value: int, end: int) -> int:
        unpack = IMPLICIT_HEAD[self.little].unpack_from
        starts: list[int] = []
        left = self.limits.frames_max
        pos = value
        stop: Problem | None = None
        while True:
            if pos + 8 > end:
                stop = Problem.NO_SEQUENCE_END if pos == end else Problem.TRUNCATED
                break
            group, number, length = unpack(data, pos)
            tag = group << 16 | number
            if tag == SEQUENCE_END:
                break
            if tag != ITEM or length == UNDEFINED:
                stop = Problem.BAD_SEQUENCE
                break
            if left <= 0:
                stop = Problem.TOO_MANY_FRAMES
                break
            left -= 1
            starts.append(pos)
            pos += 8 + length
            if pos > end:
                pos = end
                stop = Problem.TRUNCATED
                break
        self.elements[PIXEL_DATA] = (vr, value, pos - value)
        self.pixels = PixelData(PIXEL_DATA, vr, value, None, pos)
        self.fragments = Fragments(starts, pos)
        if stop is not None:
            raise _StopError(stop)
        return pos + 8

    def cut(
        self, data: Buffer, size: int | None = None, sighted: Sighted | None = None
    ) -> tuple[Layout, list[int], int, FrameShape | None]:
        """Layout, cuts, number of frames and shape of one frame.

        Of a stream whose pixels have passed: ``data`` is what was kept of it, ``size`` its length,
        ``sighted`` its fragments; :attr:`pixels` says where the pixels were.
        """
        if size is None:
            size = len(data)
        if self.pixels is None:
            for tag in PIXEL_TAGS:
                if tag in self.elements:
                    vr, offset, length = self.elements[tag]
                    if length and vr != "SQ":
                        self.pixels = PixelData(tag, vr, offset, length, offset + length)
        pixels = self.pixels
        if pixels is None:
            if self.elements.get(PIXEL_DATA, ("", 0, 1))[2] == 0 or self._has_lost_its_pixels():
                self.problems[Problem.PIXELS_TOO_SHORT] = None
            return Layout.HEADER_ONLY, [0, size], 0, None
        inside = self.fragments is not None or sighted is not None
        if pixels.tag == PIXEL_DATA and self.encapsulated is not None and inside is not self.encapsulated:
            # Another transfer syntax than announced, most likely.
            self.problems[Problem.UNEXPECTEDLY_ENCAPSULATED if inside else Problem.NOT_ENCAPSULATED] = None
        shape = frame_shape(data, self.elements, pixels.tag, little=self.little)
        declared = declared_frames(data, self.elements)
        frames = max(declared or 1, 1)
        if (declared is None or declared < 1) and self.elements.get(NUMBER_OF_FRAMES, ("", 0, 0))[2]:
            self.problems[Problem.BAD_NUMBER] = None
        if frames > self.limits.frames_max:
            self.problems[Problem.TOO_MANY_FRAMES] = None
            frames = 1
        if self.fragments is not None or sighted is not None:
            extended = self.elements.get(_EXTENDED_OFFSETS)
            table = None if extended is None else bytes(data[extended[1] : extended[1] + extended[2]])
            if sighted is not None:
                layout, cuts, count = cut_sighted(
                    size,
                    sighted,
                    frames,
                    extended_offsets=table,
                    little_endian=self.little,
                    problems=self.problems,
                )
            else:
                assert self.fragments is not None
                layout, cuts, count = cut_encapsulated(
                    data,
                    self.fragments,
                    frames,
                    extended_offsets=table,
                    little_endian=self.little,
                    problems=self.problems,
                )
            fragments = self.fragments if sighted is None else sighted.fragments
            assert fragments is not None
            self._count_fragments(len(fragments.starts) - 1, frames)
            if self.video:
                # Frames of a video stream have no bytes of their own: that is as it should be (PS3.5 8.2.5).
                self.problems.pop(Problem.FRAMES_NOT_SEPARABLE, None)
            return layout, cuts, count, shape
        truncated = Problem.TRUNCATED in self.problems
        return *cut_native(
            size,
            pixels.offset,
            pixels.end,
            frames=frames,
            shape=shape,
            problems=self.problems,
            truncated=truncated,
        ), shape

    def _has_lost_its_pixels(self) -> bool:
        """Whether the data set describes pixels (PS3.3 C.7.6.3), was read to its end, and has none.

        Those of a provider of pixel data are elsewhere (PS3.3 C.7.6.3.2).
        """
        described = all(self.elements.get(tag, ("", 0, 0))[2] for tag in _PIXEL_DESCRIPTION)
        return described and _PIXEL_DATA_PROVIDER not in self.elements and _UNREAD.isdisjoint(self.problems)

    def _count_fragments(self, fragments: int, frames: int) -> None:
        """A frame is one fragment at the least (PS3.5 A.4), but for those of videos, and of whom we know."""
        fewest = 1 if self.video or self.encapsulated is None else frames
        if fragments < fewest:
            self.problems[Problem.PIXELS_TOO_SHORT] = None
