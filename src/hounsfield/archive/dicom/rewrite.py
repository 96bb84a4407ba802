"""A data set with some attributes set or removed, and every other byte as it was received.

Works on what an archive keeps of an object: the header and trailer slices of ``scan``'s cuts (the frames in
between never change), or the whole data set where that is one slice. In any encoding: implicit or explicit
VR, either byte order, deflated.

What was replaced is told in Original Attributes Sequence (0400,0561), one item for each change, behind
those that are there already (PS3.3 C.12.1.1.9). Group lengths (PS3.5 7.2) of groups that change are left
out: they are retired, and a missing one is better than a wrong one. References to UIDs inside other
objects, digital signatures and what stands in sequences (accession numbers of requests, say) stay as they
are.

**Character sets.** New text is written in the data set's own Specific Character Set when that can hold it.
Else the whole data set becomes ISO_IR 192: (0008,0005) says so, and all other text is written anew
(:mod:`~hounsfield.archive.dicom.transcode`), since one data set has one character set.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import Struct, pack
from typing import Final, NamedTuple

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET, VALUE_BYTES_MAX, to_text
from hounsfield.archive.dicom.deflated import INFLATED_BYTES_MAX, inflate
from hounsfield.archive.dicom.dictionary import LONG_VRS, vr_of
from hounsfield.archive.dicom.ends import may_have_elements, trailer_start
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.text import character_set
from hounsfield.archive.dicom.text_encoding import text_encoder
from hounsfield.archive.dicom.transcode import UTF_8, in_utf8
from hounsfield.archive.dicom.walk import Buffer, elements, looks_implicit
from hounsfield.codecs.registry import TransferSyntax

ORIGINAL_ATTRIBUTES: Final = 0x04000561
_MODIFIED_ATTRIBUTES: Final = 0x04000550
_MODIFIED_AT: Final = 0x04000562
_MODIFYING_SYSTEM: Final = 0x04000563
_SOURCE: Final = 0x04000564
_REASON: Final = 0x04000565
_PATIENT_ID: Final = 0x00100020
_ISSUER: Final = 0x00100021
_LENGTH_TO_END: Final = 0x00080001

_SHORT_LENGTH_MAX: Final = 0xFFFE
_ITEM: Final = {True: b"\xfe\xff\x00\xe0", False: b"\xff\xfe\xe0\x00"}
_TAG: Final = {True: Struct("<HH"), False: Struct(">HH")}


class RewriteError(ValueError):
    """A data set whose header cannot be written anew; it can still be given as it was received."""

    retry = False


@dataclass(frozen=True, slots=True)
class Change:
    """What one correction sets in an object, and what Original Attributes Sequence says of it.

    ``values``: text by tag, several values joined by backslashes; "" empties an attribute, None removes it.
    ``at`` is a DT value, ``reason`` COERCE or CORRECT, ``source`` who provided the old values.
    """

    values: Mapping[int, str | None]
    at: str
    reason: str = "CORRECT"
    source: str = ""
    system: str = "Hounsfield"


class _Element(NamedTuple):
    tag: int
    vr: str
    start: int
    at: int
    length: int
    end: int


def rewrite(
    head: Buffer, trailer: Buffer, syntax: TransferSyntax, changes: Sequence[Change]
) -> tuple[Buffer, Buffer]:
    """Header and trailer slices with ``changes`` made, in order; the very same ones when nothing differs.

    An attribute whose text is already as a change wants it stays byte for byte. RewriteError for a deflated
    data set that inflates past what a scan looks at.
    """
    if not changes:
        return head, trailer
    body = bytes(head)
    if syntax.deflated:
        problems: dict[Problem, None] = {}
        body = inflate(head, INFLATED_BYTES_MAX, problems)
        if Problem.INFLATES_TOO_FAR in problems:
            raise RewriteError("this deflated data set is too large to be corrected on its way out")
    rewritten = _Rewriter(body, bytes(trailer), syntax).apply(changes)
    if rewritten is None:
        return head, trailer
    new_head, new_trailer = rewritten
    return (_deflated(new_head) if syntax.deflated else new_head), new_trailer


class _Rewriter:
    """One data set being written anew."""

    def __init__(self, body: bytes, trailer: bytes, syntax: TransferSyntax) -> None:
        self._little = syntax.little_endian
        self._implicit = looks_implicit(body, 0, len(body), syntax.implicit_vr)
        self._take(body, trailer)

    def _take(self, body: bytes, trailer: bytes) -> None:
        self._body, self._trailer = body, trailer
        self._elements = self._walk(body, 0)
        self._tail = []
        if may_have_elements(trailer):
            self._tail = self._walk(trailer, trailer_start(body, trailer, self._implicit, self._little))
        # Changes are few, elements many: what is not asked for is not taken out.
        self._found: dict[int, _Element] = {one.tag: one for one in self._elements}
        self._behind: dict[int, _Element] = {one.tag: one for one in self._tail}
        self._values: dict[int, tuple[str, bytes] | None] = {}  # VR and value as changes leave them
        self._declared = (self._value(SPECIFIC_CHARACTER_SET) or ("", b""))[1][:256]
        self._charset = character_set(self._declared)

    def _value(self, tag: int) -> tuple[str, bytes] | None:
        """VR and value of an attribute as it stands now, None when it is not there."""
        if tag in self._values:
            return self._values[tag]
        for found, data in ((self._found, self._body), (self._behind, self._trailer)):
            one = found.get(tag)
            if one is not None:
                return one.vr, data[one.at : one.at + one.length]
        return None

    def apply(self, changes: Sequence[Change]) -> tuple[bytes, bytes] | None:
        """The new header and trailer, None when nothing differs."""
        texts = {text for change in changes for text in change.values.values() if text}
        if not all(text.isascii() or self._encoded(text, "PN") is not None for text in texts) and any(
            self._differs(change) for change in changes
        ):
            self._take(*self._in_utf8())
        items: list[bytes] = []
        new: dict[int, bytes | None] = {}
        inner = self._inner_implicit()
        for change in changes:
            before: dict[int, bytes] = {}
            for tag, text in sorted(change.values.items()):
                if (self._text(tag) or "") == (text or ""):
                    continue
                before[tag] = self._original(tag, inner)
                self._set(tag, text)
                held = self._values[tag]
                new[tag] = None if held is None else self._element(tag, *held, self._implicit)
            if before:
                if _PATIENT_ID in before and _ISSUER not in before:
                    before[_ISSUER] = self._original(_ISSUER, inner)
                items.append(self._item(change, before, inner))
        if not items:
            return None
        new[ORIGINAL_ATTRIBUTES] = self._with_items(items, inner)
        return self._assembled(new)

    # ------------------------------------------------------------ reading

    def _walk(self, data: bytes, pos: int) -> list[_Element]:
        """Top-level elements with all of their bytes; stray delimiters between them are stepped over."""
        found: list[_Element] = []
        end = len(data)
        while pos < end:
            start = pos
            for tag, vr, at, length, undefined in elements(data, pos, end, self._implicit, self._little):
                pos = at + length
                if undefined:
                    pos = min(pos + 8, end)
                found.append(_Element(tag, vr, start, at, length, pos))
                start = pos
            if data[pos + 4 : pos + 8] != bytes(4) or data[pos : pos + 2] not in (b"\xfe\xff", b"\xff\xfe"):
                break
            pos += 8
        return found

    def _text(self, tag: int) -> str | None:
        """An attribute's text as an index has it, None when it is not there."""
        held = self._value(tag)
        if held is None:
            return None
        return to_text(held[1][:VALUE_BYTES_MAX], held[0], vr_of(tag), self._charset, self._little, {})

    def _differs(self, change: Change) -> bool:
        return any((self._text(tag) or "") != (text or "") for tag, text in change.values.items())

    # ------------------------------------------------------------ writing

    def _encoded(self, text: str, vr: str) -> bytes | None:
        """Text in the data set's own character set, None when that cannot hold it."""
        return text_encoder(self._declared).encode(text, vr)

    def _set(self, tag: int, text: str | None) -> None:
        """Have an attribute hold ``text`` from now on."""
        if text is None:
            self._values[tag] = None
            return
        vr = vr_of(tag)
        raw = self._encoded(text, vr) if text else b""
        if raw is None:  # such as an umlaut where only the default repertoire is allowed
            raw = text.encode("ascii", "replace")
        self._values[tag] = (vr, raw)

    def _element(self, tag: int, vr: str, raw: bytes, implicit: bool) -> bytes:
        return element(tag, vr, raw, implicit=implicit, little=self._little)

    def _original(self, tag: int, implicit: bool) -> bytes:
        """An attribute as it stands now, for Modified Attributes Sequence; of an absent one an empty one."""
        one = self._found.get(tag)
        if tag not in self._values and one is not None and implicit == self._implicit:
            return self._body[one.start : one.end]
        vr, raw = self._value(tag) or (vr_of(tag), b"")
        if vr == "SQ" and implicit != self._implicit:
            # Inside a sequence that somebody wrote as UN: implicit VR, whatever is around it (PS3.5 6.2.2).
            return b""
        return self._element(tag, vr, raw, implicit)

    def _inner_implicit(self) -> bool:
        return self._implicit or (self._value(ORIGINAL_ATTRIBUTES) or ("", b""))[0] == "UN"

    def _item(self, change: Change, before: Mapping[int, bytes], implicit: bool) -> bytes:
        """One item of Original Attributes Sequence (PS3.3 Table C.12.1.1.9-1)."""
        modified = self._in_item(b"".join(before[tag] for tag in sorted(before)))
        parts = [self._element(_MODIFIED_ATTRIBUTES, "SQ", modified, implicit)]
        for tag, text in (
            (_MODIFIED_AT, change.at),
            (_MODIFYING_SYSTEM, change.system),
            (_SOURCE, change.source),
            (_REASON, change.reason),
        ):
            parts.append(self._element(tag, vr_of(tag), text.encode("ascii", "replace"), implicit))
        return self._in_item(b"".join(parts))

    def _in_item(self, content: bytes) -> bytes:
        return _ITEM[self._little] + pack("<L" if self._little else ">L", len(content)) + content

    def _with_items(self, items: Sequence[bytes], implicit: bool) -> bytes:
        before = (self._value(ORIGINAL_ATTRIBUTES) or ("", b""))[1]
        vr = "UN" if implicit and not self._implicit else "SQ"
        return self._element(ORIGINAL_ATTRIBUTES, vr, before + b"".join(items), self._implicit)

    def _in_utf8(self) -> tuple[bytes, bytes]:
        body, _ = in_utf8(
            self._body, 0, len(self._body), implicit=self._implicit, little=self._little, top=True
        )
        trailer = self._trailer
        if self._tail:
            start = self._tail[0].start
            tail, _ = in_utf8(
                trailer, start, len(trailer),
                implicit=self._implicit, little=self._little, charset=self._charset,
            )  # fmt: skip
            trailer = trailer[:start] + tail
        declared = self._element(SPECIFIC_CHARACTER_SET, "CS", UTF_8, self._implicit)
        if self._value(SPECIFIC_CHARACTER_SET) is None:
            at = next(
                (one.start for one in self._walk(body, 0) if one.tag > SPECIFIC_CHARACTER_SET), len(body)
            )
            body = body[:at] + declared + body[at:]
        return body, trailer

    def _assembled(self, new: Mapping[int, bytes | None]) -> tuple[bytes, bytes]:
        """Header and trailer with ``new`` in the places where they belong (None: left out)."""
        groups = {tag & 0xFFFF0000 for tag in new}
        left_out = {*new, *groups, _LENGTH_TO_END}
        waiting = sorted((tag, raw) for tag, raw in new.items() if raw is not None)
        pieces: list[bytes] = []
        copied = 0
        body = self._body
        for one in self._elements:
            while waiting and waiting[0][0] <= one.tag:
                pieces += (body[copied : one.start], waiting.pop(0)[1])
                copied = one.start
            if one.tag in left_out:
                pieces.append(body[copied : one.start])
                copied = one.end
        end = self._elements[-1].end if self._elements else 0
        if waiting:
            pieces += (body[copied:end], *(raw for _, raw in waiting))
            copied = end
        pieces.append(body[copied:])
        if not any(one.tag in left_out for one in self._tail):
            return b"".join(pieces), self._trailer
        kept: list[bytes] = []
        copied = 0
        for one in self._tail:
            if one.tag in left_out:
                kept.append(self._trailer[copied : one.start])
                copied = one.end
        return b"".join(pieces), b"".join([*kept, self._trailer[copied:]])


def whole_elements(data: bytes, syntax: TransferSyntax) -> bytes:
    """The beginning of a data set without the element that may be cut off at its end."""
    implicit = looks_implicit(data, 0, len(data), syntax.implicit_vr)
    start = end = 0
    for _, _, at, length, undefined in elements(data, 0, len(data), implicit, syntax.little_endian):
        start, end = end, at + length + (8 if undefined else 0)
    return data[:start] if end >= len(data) else data[:end]


def element(tag: int, vr: str, raw: bytes, *, implicit: bool, little: bool) -> bytes:
    """One encoded data element of defined length (PS3.5 7.1), its value padded to an even length."""
    if len(raw) % 2:
        raw += b"\0" if vr in {"UI", "OB", "UN", "SQ"} else b" "
    head = _TAG[little].pack(tag >> 16, tag & 0xFFFF)
    order = "<" if little else ">"
    if implicit:
        return head + pack(f"{order}L", len(raw)) + raw
    letters = vr.encode()
    if letters in LONG_VRS:
        return head + letters + bytes(2) + pack(f"{order}L", len(raw)) + raw
    if len(raw) > _SHORT_LENGTH_MAX:  # PS3.5 6.2.2: a value too long for its VR's length field is UN
        return head + b"UN" + bytes(2) + pack(f"{order}L", len(raw)) + raw
    return head + letters + pack(f"{order}H", len(raw)) + raw


def _deflated(body: bytes) -> bytes:
    """A data set as one raw deflate stream of even length (PS3.5 A.5)."""
    packer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(body) + packer.flush()
    return packed + b"\0" if len(packed) % 2 else packed
