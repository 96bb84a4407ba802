"""Where one frame's bytes end and the next one's begin, and how to get at them (PS3.5 8, A.4.

PS3.3 C.7.6.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from struct import Struct
from typing import Final, NamedTuple

from hounsfield.archive.dicom.problems import Problem
from hounsfield.codecs.frames import FrameShape, extract_bits

Buffer = bytes | bytearray | memoryview
#: VR, offset of the value, length of the value in bytes (delimiters not counted).
Element = tuple[str, int, int]

NUMBER_OF_FRAMES: Final = 0x00280008
_SAMPLES_PER_PIXEL, _PHOTOMETRIC, _ROWS, _COLUMNS, _BITS_ALLOCATED = (
    0x00280002, 0x00280004, 0x00280010, 0x00280011, 0x00280100,
)  # fmt: skip
#: The attributes that say how large frames are, and how many.
SHAPE_TAGS: Final = frozenset(
    {NUMBER_OF_FRAMES, _SAMPLES_PER_PIXEL, _PHOTOMETRIC, _ROWS, _COLUMNS, _BITS_ALLOCATED}
)

_FLOAT_BITS: Final = {0x7FE00008: 32, 0x7FE00009: 64}
_ITEM_LENGTH: Final = Struct("<4xL")
_ITEM_LENGTH_BIG: Final = Struct(">4xL")
_ITEM_TAG_LITTLE: Final = b"\xfe\xff\x00\xe0"
_ITEM_TAG_BIG: Final = b"\xff\xfe\xe0\x00"

#: First bytes of a compressed image: JPEG and JPEG-LS (SOI), JPEG 2000 (SOC, SIZ), JP2, JPEG XL bare and
#: boxed.
_CODESTREAM_STARTS: Final = (
    b"\xff\xd8\xff",
    b"\xff\x4f\xff\x51",
    b"\x00\x00\x00\x0cjP  ",
    b"\xff\x0a",
    b"\x00\x00\x00\x0cJXL ",
)


class Layout(IntEnum):
    """How the received bytes are cut. The numbers are stored in records: never renumber."""

    #: One slice: no pixel data, or the data set is deflated as a whole.
    HEADER_ONLY = 0
    #: Header, one slice of plain pixel cells per frame, trailer.
    NATIVE = 1
    #: Header, one slice per frame with the item headers of its fragments, trailer.
    ENCAPSULATED = 2
    #: Header, all pixel cells in one slice, trailer: single bits that do not fill bytes, or an unknown shape.
    UNDIVIDED_NATIVE = 3
    #: Header, all fragments in one slice, trailer: video, or fragments that could not be told apart.
    UNDIVIDED_ENCAPSULATED = 4

    @property
    def has_frames(self) -> bool:
        """Each frame has a slice of its own."""
        return self in (Layout.NATIVE, Layout.ENCAPSULATED)


class Fragments(NamedTuple):
    """The items of encapsulated pixel data: offsets of their item tags, the offset table's first.

    And their end.
    """

    starts: list[int]
    end: int


Cut = tuple[Layout, list[int], int]


class FrameError(ValueError):
    """A frame that cannot be given: no such number, or the layout has no bytes for one frame alone."""

    retry = False


def cut_native(
    size: int,
    start: int,
    end: int,
    *,
    frames: int,
    shape: FrameShape | None,
    problems: dict[Problem, None],
    truncated: bool = False,
) -> Cut:
    """Cut plain pixel cells at [start, end) of ``size`` bytes into frames of equal length."""
    undivided = (Layout.UNDIVIDED_NATIVE, [0, start, end, size], frames)
    if shape is None:
        problems[Problem.NO_FRAME_SHAPE] = None
        return undivided
    length = native_frame_length(shape, frames, end - start)
    if length is None:
        if (shape.bits * frames + 7) // 8 > end - start:
            problems[Problem.PIXELS_TOO_SHORT] = None
        return undivided
    total = length * frames
    if total > end - start:
        problems[Problem.PIXELS_TOO_SHORT] = None
        return undivided
    if end - start - total > 1 and not truncated:
        problems[Problem.PIXELS_TOO_LONG] = None
    # A plain range: this is the only place whose work grows with the number of frames.
    cuts = [0, *range(start, start + total + 1, length), size]
    return Layout.NATIVE, cuts, frames


def frame_shape(
    data: Buffer, found: Mapping[int, Element], pixel_tag: int, *, little: bool
) -> FrameShape | None:
    """What the image pixel attributes say of one frame (PS3.3 C.7.6.3), None when they do not say how large.

    ``found``: elements of ``data``; floats have their bits by the tag of their pixel data (C.7.6.24, 25).
    """
    rows, columns = _unsigned(data, found, _ROWS, little), _unsigned(data, found, _COLUMNS, little)
    if not rows or not columns:
        return None
    bits = _FLOAT_BITS.get(pixel_tag) or _unsigned(data, found, _BITS_ALLOCATED, little) or 8
    _, start, length = found.get(_PHOTOMETRIC, ("", 0, 0))
    photometric = ""
    if length <= 64:
        photometric = bytes(data[start : start + length]).decode("latin-1").strip(" \0").upper()
    samples = _unsigned(data, found, _SAMPLES_PER_PIXEL, little) or 1
    return FrameShape(rows, columns, samples, bits, photometric)


def declared_frames(data: Buffer, found: Mapping[int, Element]) -> int | None:
    """NumberOfFrames as it is written, None when it is missing or no number."""
    _, start, length = found.get(NUMBER_OF_FRAMES, ("", 0, 0))
    if not 0 < length <= 32:
        return None
    try:
        return int(bytes(data[start : start + length]).split(b"\\")[0].strip(b" \0"))
    except ValueError:
        return None


def _unsigned(data: Buffer, found: Mapping[int, Element], tag: int, little: bool) -> int | None:
    _, start, length = found.get(tag, ("", 0, 0))
    if length < 2:
        return None
    return int.from_bytes(data[start : start + 2], "little" if little else "big")


def native_frame_length(shape: FrameShape, frames: int, available: int) -> int | None:
    """Bytes of one frame, or None when frames do not begin on bytes.

    Writers claim subsampled chrominance and store it in full, so what is there decides between the two.
    """
    if shape.bits != shape.full_bits and shape.full_bits % 8 == 0:
        full = shape.full_bits // 8
        if full * frames <= available:
            return full
    if not shape.byte_aligned or shape.bits == 0:
        return None
    return shape.bits // 8


@dataclass(frozen=True, slots=True)
class Sighted:
    """What is seen of encapsulated pixel data in passing, when its bytes cannot be asked again."""

    fragments: Fragments
    #: The offset table item's value.
    table: bytes
    #: Whether a fragment begins like a compressed image, for each but the table.
    begins_image: Sequence[bool | int]


def cut_encapsulated(
    data: Buffer,
    fragments: Fragments,
    frames: int,
    *,
    extended_offsets: bytes | None,
    little_endian: bool,
    problems: dict[Problem, None],
) -> Cut:
    """Cut fragments into frames: by an offset table that agrees with them, one each, all in one.

    Or by their starts.
    """
    starts = fragments.starts
    table = bytes(data[starts[0] + 8 : starts[1]]) if len(starts) > 1 else b""

    def begins_image() -> Sequence[bool]:
        return [looks_like_image(bytes(data[at + 8 : at + 20])) for at in starts[1:]]

    return _cut_fragments(
        len(data),
        fragments,
        frames,
        offsets=offsets_in(table, extended_offsets, little_endian),
        begins_image=begins_image,
        problems=problems,
    )


def cut_sighted(
    size: int,
    sighted: Sighted,
    frames: int,
    *,
    extended_offsets: bytes | None,
    little_endian: bool,
    problems: dict[Problem, None],
) -> Cut:
    """As :func:`cut_encapsulated`, of ``size`` bytes that have passed."""
    return _cut_fragments(
        size,
        sighted.fragments,
        frames,
        offsets=offsets_in(sighted.table, extended_offsets, little_endian),
        begins_image=lambda: sighted.begins_image,
        problems=problems,
    )


def _cut_fragments(
    size: int,
    fragments: Fragments,
    frames: int,
    *,
    offsets: Sequence[int],
    begins_image: Callable[[], Sequence[bool | int]],
    problems: dict[Problem, None],
) -> Cut:
    starts = fragments.starts
    if len(starts) < 2:
        if starts and frames >= 1:
            problems[Problem.PIXELS_TOO_SHORT] = None
        first = fragments.end
        return Layout.UNDIVIDED_ENCAPSULATED, [0, first, first, size], 0
    first = starts[1]
    items = starts[1:]
    head = [0]
    tail = [fragments.end, size]
    if len(items) == frames:
        if not _agrees(offsets, items, items):
            problems[Problem.BAD_OFFSET_TABLE] = None
        return Layout.ENCAPSULATED, head + items + tail, frames
    if offsets:
        begins = [first + offset for offset in offsets]
        if _agrees(offsets, begins, items):
            if len(begins) != frames:
                problems[Problem.FRAME_COUNT_DIFFERS] = None
            if len(begins) == frames or frames == 1:
                return Layout.ENCAPSULATED, head + begins + tail, len(begins)
        else:
            problems[Problem.BAD_OFFSET_TABLE] = None
    if frames == 1:
        return Layout.ENCAPSULATED, [*head, first, *tail], 1
    if len(items) > frames:
        begins = [at for at, image in zip(items, begins_image(), strict=True) if image]
        if len(begins) == frames and begins[0] == first:
            return Layout.ENCAPSULATED, head + begins + tail, frames
    problems[Problem.FRAMES_NOT_SEPARABLE] = None
    return Layout.UNDIVIDED_ENCAPSULATED, [*head, first, *tail], frames


def looks_like_image(beginning: bytes) -> bool:
    """Whether a fragment that begins so begins a compressed image; 12 bytes tell."""
    return beginning.startswith(_CODESTREAM_STARTS)


def offsets_in(table: bytes, extended: bytes | None, little_endian: bool) -> Sequence[int]:
    """Offsets of frames, counted from the first fragment's item tag.

    The extended table's, else the basic one's.
    """
    order = "<" if little_endian else ">"
    if extended:
        return Struct(f"{order}{len(extended) // 8}Q").unpack_from(extended)
    return Struct(f"{order}{len(table) // 4}L").unpack_from(table)


def _agrees(offsets: Sequence[int], begins: list[int], items: list[int]) -> bool:
    """An offset table is right when it starts at 0, ascends, and every entry is the start of a fragment.

    Or is empty.
    """
    if not offsets:
        return True
    first = items[0]
    if begins is items:
        return len(offsets) == len(items) and all(
            first + o == at for o, at in zip(offsets, items, strict=True)
        )
    if offsets[0] != 0 or any(a >= b for a, b in pairwise(offsets)):
        return False
    return set(items).issuperset(begins)


def fragments_of(piece: Buffer) -> list[memoryview]:
    """The fragments in a slice of encapsulated pixel data, without their item headers and without copying."""
    view = memoryview(piece)
    out: list[memoryview] = []
    pos, end = 0, len(view)
    big = bytes(view[:4]) == _ITEM_TAG_BIG
    unpack = (_ITEM_LENGTH_BIG if big else _ITEM_LENGTH).unpack_from
    item_tag = _ITEM_TAG_BIG if big else _ITEM_TAG_LITTLE
    while pos + 8 <= end and bytes(view[pos : pos + 4]) == item_tag:
        length: int = unpack(view, pos)[0]
        out.append(view[pos + 8 : pos + 8 + length])
        pos += 8 + length
    return out


def fragment_places(read: Callable[[int, int], bytes], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the values of the fragments between ``start`` and ``end`` begin and end.

    ``read(at, length)`` gives bytes: of each fragment only its item header is read. A fragment that is cut
    short ends where the bytes do.
    """
    while start + 8 <= end:
        item = read(start, 8)
        big = item[:4] == _ITEM_TAG_BIG
        if not big and item[:4] != _ITEM_TAG_LITTLE:
            return
        length: int = (_ITEM_LENGTH_BIG if big else _ITEM_LENGTH).unpack(item)[0]
        yield start + 8, min(start + 8 + length, end)
        start += 8 + length


def frame_bytes(piece: Buffer, layout: Layout) -> memoryview | bytes:
    """A slice's own bytes: pixel cells as they are, or fragments without item headers.

    No copy is made of native pixels nor of a frame in one fragment; several fragments are joined. For an
    undivided layout this is the whole pixel data, which for video is the stream. A slice cut short gives what
    there is.
    """
    if layout in (Layout.NATIVE, Layout.UNDIVIDED_NATIVE):
        return memoryview(piece)
    if len(piece) < 8:
        return b""
    length: int = _ITEM_LENGTH.unpack_from(piece)[0]
    if length + 8 >= len(piece):
        return memoryview(piece)[8:]
    return b"".join(fragments_of(piece))


def undivided_frame(piece: Buffer, layout: Layout, shape: FrameShape, number: int) -> bytes:
    """Frame ``number`` (from 1) out of a slice that holds them all: packed bits, moved to begin on a byte.

    FrameError when the layout or the shape gives one frame no bytes of its own, or when there is no such
    frame.
    """
    if layout is not Layout.UNDIVIDED_NATIVE:
        raise FrameError(
            f"frames of a {layout.name} object have no bytes of their own; ask for the whole pixel data"
        )
    try:
        return extract_bits(memoryview(piece), number, shape.bits)
    except IndexError as error:
        raise FrameError(str(error)) from None
