"""A data set's elements in another encoding: explicit or implicit VR, little endian, with some set anew.

What can be copied is copied: between two transfer syntaxes of the same encoding only what changes is written.
From implicit VR an element gets the VR of the dictionary, or of a known private creator, else UN (PS3.5
6.2.2); attributes that hold a pixel value are signed where pixels are (PS3.5 A.1). Big endian values are
turned round by their VR. Group lengths at the top are left out (PS3.5 7.2): they would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct, pack
from typing import Final, NamedTuple

from hounsfield.archive.dicom.byte_order import WORD_BYTES, swapped
from hounsfield.archive.dicom.dictionary import SIGNED_IF_PIXELS_ARE, vr_among
from hounsfield.archive.dicom.ends import DELIMITER_BYTES, ends_a_sequence
from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.walk import DEPTH_MAX, elements, items, looks_implicit
from hounsfield.codecs.registry import TransferSyntax

#: Tables of an encapsulation that is not there any more (PS3.3 C.7.6.3.1.8, C.7.6.3.1.9).
ENCAPSULATION: Final = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00003})
_REPRESENTATION: Final = 0x00280103
_ITEM: Final = Struct("<HHL")

#: VR and value, or None for an attribute that is to go.
Changes = Mapping[int, tuple[str, bytes] | None]


class Recoded(NamedTuple):
    """The elements before the pixel data's, and those behind it."""

    before: bytes
    behind: bytes


class NotRecodableError(ValueError):
    """The elements cannot be written in that encoding; they can be given as they are."""

    retry = False


def recoded(
    head: bytes,
    trailer: bytes,
    syntax: TransferSyntax,
    target: TransferSyntax,
    *,
    changes: Changes | None = None,
    items_added: Mapping[int, bytes] | None = None,
    padding: int = 0,
) -> Recoded:
    """Header and trailer slices in ``target``'s encoding, little endian, without the pixel data's element.

    ``changes`` are made in the elements before the pixels; ``items_added`` go behind those that a sequence
    has, in the encoding of ``target``. ``padding``: bytes of native pixel data that the trailer begins with.
    """
    if not target.little_endian:
        raise NotRecodableError("nothing is written in big endian (PS3.5 A.3 is retired)")
    implicit = looks_implicit(head, 0, len(head), syntax.implicit_vr)
    writer = _Writer(implicit, syntax.little_endian, target.implicit_vr)
    before = writer.top_level(head, 0, changes or {}, items_added or {})
    start = DELIMITER_BYTES if ends_a_sequence(trailer) else padding
    return Recoded(before, writer.top_level(trailer, start, {}, {}))


class _Writer:
    """Writes elements of one encoding in another."""

    def __init__(self, implicit: bool, little: bool, to_implicit: bool) -> None:
        self._implicit, self._little, self._to_implicit = implicit, little, to_implicit
        self._signed = False

    def top_level(self, data: bytes, start: int, changes: Changes, items_added: Mapping[int, bytes]) -> bytes:
        found = dict(self._elements(data, start, len(data), self._implicit, top=True))
        for tag in ENCAPSULATION:
            found.pop(tag, None)
        for tag, new in changes.items():
            if new is None:
                found.pop(tag, None)
            else:
                found[tag] = element(tag, *new, implicit=self._to_implicit, little=True)
        for tag, more in items_added.items():
            content = self._content(found[tag]) if tag in found else b""
            found[tag] = element(tag, "SQ", content + more, implicit=self._to_implicit, little=True)
        return b"".join([found[tag] for tag in sorted(found)])

    def _content(self, raw: bytes) -> bytes:
        """The items of a sequence that is written in the target's encoding already."""
        for _, _, at, length, _ in elements(raw, 0, len(raw), self._to_implicit, True):
            return raw[at : at + length]
        return b""

    def _elements(
        self, data: bytes, start: int, end: int, implicit: bool, *, top: bool = False, depth: int = 0
    ) -> Iterator[tuple[int, bytes]]:
        creators: dict[int, str] = {}
        same = implicit == self._to_implicit and self._little
        pos = start
        for tag, written, at, length, undefined in elements(data, start, end, implicit, self._little):
            begin, pos = pos, min(at + length + (8 if undefined else 0), end)
            if top and tag in PIXEL_TAGS:
                return
            if tag == _REPRESENTATION and length >= 2:
                self._signed = data[at : at + 2] in (b"\1\0", b"\0\1")
            if tag & 0x10000 and 0x10 <= tag & 0xFFFF <= 0xFF and length <= 64:
                creators[tag & 0xFFFF00FF] = data[at : at + length].decode("latin-1").strip(" \0")
            if not tag & 0xFFFF and top:
                continue
            if same:
                yield tag, data[begin:pos]
                continue
            vr = self._vr(tag, written, implicit, undefined, creators)
            if vr == "SQ":
                if depth >= DEPTH_MAX:
                    raise NotRecodableError("sequences are nested too deep")
                yield tag, self._sequence(tag, data, at, at + length, implicit, depth)
            elif undefined:  # a sequence that somebody wrote as UN: implicit VR inside (PS3.5 6.2.2)
                yield tag, self._unknown(data, begin, at, pos)
            else:
                value = self._value(data[at : at + length], vr)
                yield tag, element(tag, vr, value, implicit=self._to_implicit, little=True)

    def _vr(self, tag: int, written: str, implicit: bool, undefined: bool, creators: dict[int, str]) -> str:
        if not implicit:
            return written
        if undefined:
            return "SQ"
        if self._signed and tag in SIGNED_IF_PIXELS_ARE:
            return "SS"
        return vr_among(tag, creators)

    def _sequence(  # noqa: PLR0917
        self, tag: int, data: bytes, at: int, end: int, implicit: bool, depth: int
    ) -> bytes:
        out: list[bytes] = []
        for start, stop, item_implicit in items(data, at, end, implicit, self._little):
            inner = self._elements(data, start, stop, item_implicit, depth=depth + 1)
            content = b"".join(raw for _, raw in inner)
            out += (_ITEM.pack(0xFFFE, 0xE000, len(content)), content)
        return element(tag, "SQ", b"".join(out), implicit=self._to_implicit, little=True)

    def _unknown(self, data: bytes, begin: int, at: int, end: int) -> bytes:
        if not self._little:
            raise NotRecodableError("a sequence of unknown VR in big endian")
        if not self._to_implicit:
            return data[begin:end]
        return data[begin : begin + 4] + pack("<L", 0xFFFFFFFF) + data[at:end]

    def _value(self, value: bytes, vr: str) -> bytes:
        return value if self._little else bytes(swapped(value, WORD_BYTES.get(vr, 1)))
