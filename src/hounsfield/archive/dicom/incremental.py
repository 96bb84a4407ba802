"""The walk of :mod:`~hounsfield.archive.dicom.scan` over a data set that is never there as a whole.

Bytes are fed as they come, in any slices; what is kept of them is the header, the place of every fragment
and a bounded stretch behind the pixels. ``finish`` then says what ``scan`` and ``extract`` would say of the
same bytes given whole::

    HEAD ──pixel data──▸ CELLS (native) ───────────────▸ TAIL      kept: header, tail, places
      │                └▸ FRAGMENTS ──sequence delimiter──▸ TAIL
      └──a long value that no index wants──▸ ASIDE ──▸ HEAD        its bytes pass by

What is kept is itself an encoded data set, without the pixels and with long values emptied: the *rest*. It
is scanned by the very same code, so there is one truth about elements, attributes and problems.

Where this must differ from ``scan``: a header longer than ``header_bytes_max``, or more than
``trailer_bytes_max`` behind the pixels, is looked at so far and flagged. Of several pixel data elements the
first one counts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Final

from hounsfield.archive.dicom.attributes import INDEXED_TAGS
from hounsfield.archive.dicom.cuts import Sighted
from hounsfield.archive.dicom.dictionary import (
    ITEM_END,
    LONG_VRS,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
    vr_of,
)
from hounsfield.archive.dicom.incremental_fragments import PassingFragments
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.scan import PIXEL_DATA, PIXEL_TAGS, Buffer, PixelData, ScanLimits, Scanned, Walk
from hounsfield.archive.dicom.walk import (
    EXPLICIT_HEAD,
    IMPLICIT_HEAD,
    LENGTH32,
    BadSequenceError,
    Budget,
    is_letters,
    looks_implicit,
    odd_header,
    skip_sequence,
)
from hounsfield.codecs.registry import TransferSyntax

__all__ = ["IncrementalLimits", "IncrementalScan", "StreamScanned"]

#: 7FE0,0001: frames are located by it, so it is kept however long.
_EXTENDED_OFFSETS: Final = 0x7FE00001
_KEPT: Final = INDEXED_TAGS | PIXEL_TAGS | {_EXTENDED_OFFSETS}

_NEVER: Final = 1 << 62
_STEP_BYTES: Final = 64 * 1024  # of header gathered before it is looked at again


@dataclass(frozen=True, slots=True)
class IncrementalLimits:
    """How much of a passing data set is kept."""

    #: The header: all elements before the pixels but long values. Per-frame groups of an enhanced object take
    #: 1 to 2 KB a frame: 32 MiB holds those of 16,000 to 30,000 frames.
    header_bytes_max: int = 32 << 20
    #: A longer value of a top-level element that neither index nor frames need is passed by: documents,
    #: private dumps. A megabyte is more than what headers consist of.
    aside_bytes_min: int = 1 << 20
    #: What is behind the pixels: padding, signatures, private groups.
    trailer_bytes_max: int = 4 << 20
    scan: ScanLimits = dataclasses.field(default_factory=ScanLimits)


@dataclass(slots=True)
class StreamScanned:
    """What one pass found. ``scanned.cuts`` are offsets in the stream, its elements' are in ``rest``."""

    scanned: Scanned
    #: What was kept, as a data set: give it to ``extract`` with ``scanned``.
    rest: bytes
    #: The header as received, but for long values, which are empty: up to the first frame's slice.
    header: bytes
    data_bytes: int


class _State(Enum):
    HEAD = "elements before the pixels"
    ASIDE = "a long value passes by"
    CELLS = "native pixels pass by"
    FRAGMENTS = "encapsulated pixels pass by"
    TAIL = "what is behind the pixels"
    PAST = "the rest passes by: nothing reads on from here"


class IncrementalScan:
    """One pass over one data set that is not deflated: ``feed`` it all of its bytes, then ``finish``.

    Never raises. For a data set of whatever syntax: :func:`.incremental_deflated.open_scan`.
    """

    def __init__(self, syntax: TransferSyntax, limits: IncrementalLimits | None = None) -> None:
        self._syntax = syntax
        self._limits = limits or IncrementalLimits()
        self._little = syntax.little_endian
        self._implicit = syntax.implicit_vr
        self._state = _State.HEAD
        self._received = 0
        self._problems: dict[Problem, None] = {}
        # the header
        self._head = bytearray()
        self._vr_known = False
        self._next = 0  # where in the head the next element begins
        self._wanted = _STEP_BYTES  # at how many bytes of head it makes sense to look again
        self._elements_left = self._limits.scan.elements_max
        self._nested_left = self._limits.scan.nested_elements_max
        self._emptied = False  # a long value has passed by
        self._passing = 0  # bytes that pass by before the state ends
        # the pixels
        self._pixels: tuple[int, str, int, int | None] | None = None  # tag, VR, offset, length
        self._pixel_header = 0  # where in the head the pixel data element begins
        self._end_of_pixels = 0
        self._stop: Problem | None = None
        self._fragments = PassingFragments(self._little, self._limits.scan.frames_max)
        # behind them
        self._tail = bytearray()

    def feed(self, data: Buffer) -> None:
        """Take the next bytes; the buffer is free again on return."""
        view = memoryview(data).cast("B")
        self._run(view)

    def _run(self, view: memoryview) -> None:
        later: list[memoryview] = []
        while True:
            while view:
                taken, again = self._take(view)
                self._received += taken - len(again)
                view = view[taken:]
                if again:
                    if view:
                        later.append(view)
                    view = memoryview(again)
            if not later:
                return
            view = later.pop()

    def _take(self, view: memoryview) -> tuple[int, bytes]:
        """Consume some bytes in the present state, at least one; and the last of them that it gives back."""
        if self._state is _State.HEAD:
            return self._take_head(view)
        return self._take_past_head(view), b""

    def _take_past_head(self, view: memoryview) -> int:
        state = self._state
        if state is _State.FRAGMENTS:
            return self._take_fragments(view)
        if state is _State.TAIL:
            room = self._limits.trailer_bytes_max - len(self._tail)
            if room <= 0:
                self._problems[Problem.TRAILER_TOO_LONG] = None
                self._state = _State.PAST
                return len(view)
            taken = min(room, len(view))
            self._tail += view[:taken]
            return taken
        if state is _State.PAST:
            return len(view)
        taken = min(self._passing, len(view))
        self._passing -= taken
        if not self._passing:
            if state is _State.ASIDE:
                self._state = _State.HEAD
            else:
                self._end_pixels(self._received + taken)
        return taken

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that this scan holds, and will hold at its end, about."""
        return 3 * (len(self._head) + len(self._tail)) + self._fragments.held_bytes

    # ------------------------------------------------------------ the header

    def _take_head(self, view: memoryview) -> tuple[int, bytes]:
        head = self._head
        before = len(head)
        room = self._limits.header_bytes_max - before
        if room <= 0:
            self._problems[Problem.HEADER_TOO_LONG] = None
            self._state = _State.PAST
            return len(view), b""
        taken = min(len(view), room, max(self._wanted - before, _STEP_BYTES))
        head += view[:taken]
        looking = len(head) >= self._wanted or self._wanted <= _STEP_BYTES
        return taken, self._walk() if looking else b""

    def _walk(self) -> bytes:
        """Read on in the head as far as it goes; take off and return those last bytes that are not of it.

        Whatever irregular it meets, ``finish`` has to judge: then the head is gathered and no more looked at.
        """
        head, little, limits = self._head, self._little, self._limits
        if not self._vr_known:
            if len(head) < 8:
                return b""
            self._implicit = looks_implicit(head, 0, len(head), self._implicit)
            self._vr_known = True
        while True:
            pos = self._next
            found = self._element(pos)
            if found is None:
                self._wanted = len(head) + 1
                return b""
            tag, vr, value, length = found
            if self._elements_left <= 0 or tag >> 16 == 0:
                return self._look_no_more()
            if tag in (SEQUENCE_END, ITEM_END) and length == 0:
                self._next = value
                continue
            if tag >> 16 == 0xFFFE and length != UNDEFINED:
                return self._look_no_more()
            if length == UNDEFINED:
                if tag == PIXEL_DATA:
                    return self._begin_pixels(tag, "OB" if vr in ("OW", "UN") else vr, value, None)
                budget = Budget(self._nested_left, limits.scan.depth_max)
                try:
                    self._next = skip_sequence(head, value, len(head), self._implicit, little, budget)
                except BadSequenceError as error:
                    if error.problem is not Problem.TRUNCATED:
                        return self._look_no_more()
                    # What is incomplete is walked again when there is twice as much of it.
                    self._wanted = max(2 * len(head) - pos, len(head) + 1)
                    return b""
                self._nested_left = budget.elements_left
                self._elements_left -= 1
                continue
            if tag in PIXEL_TAGS and length and vr != "SQ" and self._can_be_emptied(pos, value):
                return self._begin_pixels(tag, vr, value, length)
            if length >= limits.aside_bytes_min and tag not in _KEPT and self._empty(pos, value):
                return self._set_aside(value, length)
            after = value + length
            if after > len(head):
                self._wanted = after
                return b""
            self._elements_left -= 1
            self._next = after

    def _element(self, pos: int) -> tuple[int, str, int, int] | None:
        """Tag, VR, value offset and length of the element at ``pos``; None when more bytes are needed."""
        head, little = self._head, self._little
        if pos + 8 > len(head):
            return None
        if self._implicit:
            group, number, length = IMPLICIT_HEAD[little].unpack_from(head, pos)
            tag = group << 16 | number
            return tag, vr_of(tag), pos + 8, length
        group, number, letters, length = EXPLICIT_HEAD[little].unpack_from(head, pos)
        tag = group << 16 | number
        vr = SHORT_VRS.get(letters)
        if vr is not None:
            return tag, vr, pos + 8, length
        vr = LONG_VRS.get(letters)
        if vr is not None:
            if pos + 12 > len(head):
                return None
            return tag, vr, pos + 12, LENGTH32[little].unpack_from(head, pos + 8)[0]
        if pos + 16 > len(head):
            return None
        return tag, *odd_header(head, pos, len(head), little)

    def _look_no_more(self) -> bytes:
        self._wanted = _NEVER
        return b""

    def _empty(self, pos: int, value: int) -> bool:
        """Write 0 as the length of the element at ``pos``, if its header says it in four bytes at its end."""
        letters = bytes(self._head[pos + 4 : pos + 6])
        if not self._implicit and letters not in LONG_VRS:
            return False
        self._head[value - 4 : value] = bytes(4)
        return True

    def _set_aside(self, value: int, length: int) -> bytes:
        here = self._cut_head(value)
        self._emptied = True
        self._elements_left -= 1
        self._next = value
        self._wanted = 0
        self._passing = length
        self._state = _State.ASIDE
        return here

    def _begin_pixels(self, tag: int, vr: str, value: int, length: int | None) -> bytes:
        here = self._cut_head(value)
        self._pixel_header = self._next
        # Where the value begins in the stream is known when what is given back is taken again.
        self._pixels = (tag, vr, -1, length)
        if length is None:
            self._state = _State.FRAGMENTS
        else:
            self._state = _State.CELLS
            self._passing = length
        return here

    def _cut_head(self, value: int) -> bytes:
        here = bytes(self._head[value:])
        del self._head[value:]
        return here

    # ------------------------------------------------------------ the pixels

    def _take_fragments(self, view: memoryview) -> int:
        self._locate()
        fragments = self._fragments
        taken = fragments.take(view, self._received)
        if fragments.end is not None:
            self._end_of_pixels, self._stop = fragments.end, fragments.problem
            self._tail += fragments.delimiter
            self._state = _State.TAIL if fragments.problem is None else _State.PAST
        return taken

    def _locate(self) -> None:
        """Note where in the stream the pixel data's value begins."""
        assert self._pixels is not None
        tag, vr, offset, length = self._pixels
        if offset < 0:
            self._pixels = (tag, vr, self._received, length)

    def _end_pixels(self, at: int) -> None:
        assert self._pixels is not None
        self._end_of_pixels = at
        self._state = _State.TAIL

    # ------------------------------------------------------------ the end

    def so_far(self) -> StreamScanned | None:
        """What the header says, as if nothing followed it; None as long as it is not there whole."""
        if self._state in (_State.HEAD, _State.ASIDE):
            return None
        header = IncrementalScan(self._syntax, self._limits)
        header.feed(self._head)
        return header.finish()

    def finish(self) -> StreamScanned:
        """What the data set was. Call it once; feed nothing more."""
        if not self._syntax.known:
            self._problems = {Problem.UNKNOWN_TRANSFER_SYNTAX: None, **self._problems}
        if not self._received:
            self._problems[Problem.EMPTY] = None
        while self._state is _State.HEAD and self._wanted != _NEVER and (again := self._walk()):
            self._received -= len(again)
            self._run(memoryview(again))
        self._end_within()
        return self._result(*self._judge())

    def _end_within(self) -> None:
        """The stream is over: what it is in the middle of is cut short."""
        if self._state is _State.ASIDE:
            self._stop = Problem.TRUNCATED
        elif self._state is _State.CELLS:
            assert self._pixels is not None
            tag, vr, _, length = self._pixels
            assert length is not None
            if self._passing == length:  # not one pixel came
                self._pixels = None
            else:
                self._pixels = (tag, vr, self._received - (length - self._passing), length)
            self._end_of_pixels = self._received
            self._stop = Problem.TRUNCATED
        elif self._state is _State.FRAGMENTS:
            self._locate()
            self._fragments.cut_short(self._received)
            assert self._fragments.end is not None
            self._end_of_pixels, self._stop = self._fragments.end, self._fragments.problem
        elif self._pixels is not None and self._pixels[3] is not None:
            tag, vr, _, length = self._pixels
            assert length is not None
            self._pixels = (tag, vr, self._end_of_pixels - length, length)

    def _judge(self) -> tuple[Walk, bytes]:
        """Scan what was kept."""
        walk = Walk(self._syntax, self._limits.scan)
        walk.problems.update(self._problems)
        rest = bytearray(self._head)
        if self._pixels is not None:
            # The element stays, without its value: what is odd about its header is to be found.
            if self._pixels[3] is not None:
                self._empty_in(rest)
            if self._stop is None:
                rest += self._tail
            elif self._pixels[3] is None:
                rest += IMPLICIT_HEAD[self._little].pack(SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0)
        body = bytes(rest)
        walk.top_level(body)
        if self._stop is not None:
            walk.problems.pop(Problem.DUPLICATE_ELEMENT, None)
            walk.problems[self._stop] = None
        elif self._problems.keys() & {Problem.HEADER_TOO_LONG, Problem.TRAILER_TOO_LONG}:
            # Cut off by us, not by the sender.
            for problem in (Problem.TRUNCATED, Problem.TRAILING_BYTES):
                walk.problems.pop(problem, None)
        return walk, body

    def _can_be_emptied(self, pos: int, value: int) -> bool:
        """Whether the element is read the same way with length 0: not one of an unknown VR with 16 bits."""
        letters = bytes(self._head[pos + 4 : pos + 6])
        return self._implicit or value - pos == 12 or letters in SHORT_VRS or not is_letters(letters)

    def _empty_in(self, rest: bytearray) -> None:
        """Give the pixel data element the length that it has in ``rest``: none."""
        value = len(self._head)
        letters = bytes(rest[self._pixel_header + 4 : self._pixel_header + 6])
        if self._implicit or value - self._pixel_header == 12 or letters not in SHORT_VRS:
            rest[value - 4 : value] = bytes(4)
        else:
            rest[value - 2 : value] = bytes(2)

    def _result(self, walk: Walk, rest: bytes) -> StreamScanned:
        size = self._received
        sighted: Sighted | None = None
        if self._pixels is not None:
            walk.fragments = None
            tag, vr, offset, length = self._pixels
            walk.pixels = PixelData(tag, vr, offset, length, self._end_of_pixels)
            if length is None:
                sighted = self._fragments.sighted()
        elif self._emptied or len(rest) != size:
            for tag in PIXEL_TAGS & walk.elements.keys():
                del walk.elements[tag]  # where it would be in the stream is not known
        layout, cuts, frame_count, shape = walk.cut(rest, size, sighted)
        scanned = Scanned(
            self._syntax, walk.implicit, walk.little, walk.elements, walk.undefined, walk.pixels, layout,
            cuts, frame_count, shape, None, tuple(walk.problems),
        )  # fmt: skip
        header = bytes(self._head)
        if sighted is not None and walk.pixels is not None:
            header += self._fragments.table_item(cuts[1] - walk.pixels.offset)
        return StreamScanned(scanned, rest, header, size)
