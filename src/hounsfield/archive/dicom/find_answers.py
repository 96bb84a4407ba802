"""Answers of a C-FIND as encoded identifiers (PS3.4 C.4.1.1.3.2): what was asked for, and nothing else.

Each has the Query/Retrieve Level, where it can be retrieved from and that it is online, and the keys that are
supported: an attribute that is known and has no value is there without one. Its text is in the requestor's
character set when all of it has a place there, else in ISO_IR 192 (UTF-8), and (0008,0005) says which; with
nothing declared and nothing but ASCII in it there is none.

The hot path of a query: what is the same in every answer, or was in one before, is encoded once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is an exception
from typing import Any, Final, NamedTuple

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.byte_order import WORD_BYTES, swapped
from hounsfield.archive.dicom.find_request import VRS, FindRequest, Origin
from hounsfield.archive.dicom.header_matching import element_text, inline_bytes
from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.dicom.text import CHARACTER_SET_VRS
from hounsfield.archive.dicom.text_encoding import UTF_8, TextEncoder, text_encoder
from hounsfield.codecs.registry import TransferSyntax

Attributes = Mapping[int, str]
Model = Mapping[str, Any]

#: Values of one column that are remembered: sexes and modalities are few, names and days come in runs.
COLUMN_VALUES_MAX: Final = 256
#: Forms of answers that are remembered: each device asks in two or three. A megabyte each, if full.
FORMS_MAX: Final = 16
_NUMBERS: Final = {
    "US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "UV": "Q", "SV": "q",
}  # fmt: skip
_BINARY: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_ITEM: Final = {True: b"\xfe\xff\x00\xe0", False: b"\xff\xfe\xe0\x00"}
_LENGTH: Final = {True: Struct("<L"), False: Struct(">L")}
_SHORT_TEXT: Final = 0xFFFE  # what has a length of 16 bits when it is padded
_NOTHING: Final[dict[int, str]] = {}


class _NoPlaceError(Exception):
    """Text that the requestor's character set does not hold."""

    retry = False


class _Column(NamedTuple):
    """One attribute of every answer, and what it was in others, of other requests and on any thread too."""

    level: int
    tag: int
    vr: str
    known: dict[str, bytes]
    head: bytes
    """What stands before the length of its values; b"" where that is not all there is to writing them."""
    pad: bytes


_ALONE: Final = frozenset({b"ISO_IR 192", b"GB18030", b"GBK"})
#: What of a key that is returned decides how it is written: tag, VR, where from, private creator.
_Wish = tuple[int, str, Origin, str]


class AnswerEncoder:
    """Encodes the answers of one request."""

    def __init__(self, request: FindRequest, syntax: TransferSyntax) -> None:
        self._wishes = tuple(
            (key.tag, VRS.get(key.tag, key.vr), origin, key.creator) for key, origin in request.returned
        )
        self._syntax = syntax
        asked = declarable(request.character_set)
        declared = asked if text_encoder(asked).charset.known else UTF_8
        self._asked = _form(self._wishes, syntax, declared)

    def encode(
        self,
        study: Attributes,
        series: Attributes | None,
        instance: Attributes | None,
        extra: Attributes,
        header: Model | None = None,
    ) -> bytes:
        """One answer: the attributes of its levels, those that are nowhere else, and what its header says.

        The keys of ``header`` are the request's.
        """
        levels = (study, series or _NOTHING, instance or _NOTHING, extra)
        try:
            return self._asked.encode(levels, header)
        except _NoPlaceError:
            return _form(self._wishes, self._syntax, UTF_8).encode(levels, header)


def declarable(asked: bytes) -> bytes:
    """Specific Character Set as an answer may have it, for what a request had (PS3.3 C.12.1.1.2).

    ISO_IR 192, GB18030 and GBK stand alone. The first of several is one with code extensions, also where a
    requestor named it as if it were without.
    """
    terms = [term.strip(b" \0") for term in asked.split(b"\\")]
    alone = next((term for term in terms if term in _ALONE), None)
    if alone is not None:
        return alone
    if len(terms) > 1 and terms[0].startswith(b"ISO_IR "):
        terms[0] = terms[0].replace(b"ISO_IR ", b"ISO 2022 IR ")
    return b"\\".join(terms)


@lru_cache(maxsize=FORMS_MAX)
def _form(wishes: tuple[_Wish, ...], syntax: TransferSyntax, declared: bytes) -> _Form:
    return _Form(wishes, syntax, text_encoder(declared))


class _Form:
    """Answers with the same attributes, in one encoding and character set."""

    def __init__(self, wishes: tuple[_Wish, ...], syntax: TransferSyntax, encoder: TextEncoder) -> None:
        self._implicit, self._little = syntax.implicit_vr, syntax.little_endian
        self._encoder = encoder
        self._strict = encoder.declared != UTF_8
        self._length = Struct(("<" if self._little else ">") + ("L" if self._implicit else "H"))
        self._columns: list[_Column] = []
        self._headers: list[tuple[int, int, str]] = []  # where in an answer, and what
        if encoder.declared:
            declared = self._element(SPECIFIC_CHARACTER_SET, "CS", encoder.declared)
            self._add(0, SPECIFIC_CHARACTER_SET, "CS", {"": declared})
        creators = dict(_creators(wishes))
        for tag, vr, origin, _ in wishes:
            for block in sorted(block for block in creators if block < tag):
                creator = self._element(block, "LO", creators.pop(block).encode("latin-1"))
                self._add(Origin.EXTRA, block, "LO", {"": creator})
            if origin is Origin.HEADER:
                self._headers.append((len(self._columns) + len(self._headers), tag, vr))
            else:
                self._add(origin, tag, vr, {})

    def _add(self, level: int, tag: int, vr: str, known: dict[str, bytes]) -> None:
        # of an empty value the length is at the end; elements of long VRs have theirs elsewhere
        empty = self._element(tag, vr, b"")
        plain = vr not in _NUMBERS and len(empty) == 8
        head = empty[: 4 if self._implicit else 6] if plain else b""
        self._columns.append(_Column(level, tag, vr, known, head, b"\0" if vr == "UI" else b" "))

    def encode(self, levels: tuple[Attributes, ...], header: Model | None) -> bytes:
        out: list[bytes] = []
        pack = self._length.pack
        for level, tag, vr, known, head, pad in self._columns:
            text = levels[level].get(tag, "")
            raw = known.get(text)
            if raw is None:
                if head and len(text) < _SHORT_TEXT and text.isascii() and "\x1b" not in text:
                    value = text.encode("ascii")
                    if len(value) & 1:
                        value += pad
                    raw = head + pack(len(value)) + value
                else:
                    raw = self._text_element(tag, vr, text)
                if vr != "UI":  # which seldom come twice
                    if len(known) >= COLUMN_VALUES_MAX:
                        known.clear()
                    known[text] = raw
            out.append(raw)
        for at, tag, vr in self._headers:
            entry = (header or {}).get(f"{tag:08X}")
            out.insert(at, self._from_model(tag, vr, entry or {}))
        return b"".join(out)

    # ------------------------------------------------------------ one element

    def _element(self, tag: int, vr: str, raw: bytes) -> bytes:
        return element(tag, vr, raw, implicit=self._implicit, little=self._little)

    def _text_element(self, tag: int, vr: str, text: str) -> bytes:
        code = _NUMBERS.get(vr)
        if code is not None:
            return self._element(tag, vr, self._numbers(code, text.split("\\") if text else ()))
        return self._element(tag, vr, self._text(text, vr))

    def _text(self, text: str, vr: str) -> bytes:
        raw = self._encoder.encode(text, vr)
        if raw is not None:
            return raw
        if vr not in CHARACTER_SET_VRS:  # no character set helps: what is stored was wrong
            return text.replace("\x1b", "").encode("ascii", "replace")
        if self._strict:
            raise _NoPlaceError
        return text.replace("\x1b", "").encode("utf-8", "replace")

    def _numbers(self, code: str, values: Iterable[Any]) -> bytes:
        number = Struct(("<" if self._little else ">") + code)
        out = bytearray()
        for value in values:
            try:
                out += number.pack(float(value) if code in "fd" else int(value))
            except (ValueError, TypeError, OverflowError, StructError):
                return b""  # a number that its own VR does not hold is not known
        return bytes(out)

    # ------------------------------------------------------------ from a header

    def _from_model(self, tag: int, asked: str, entry: Model) -> bytes:
        """An element as a header has it; of its own VR, or the request's when it is not there.

        Bulk data is left out: an answer is no place for it.
        """
        vr = entry.get("vr") or asked
        values = entry.get("Value") or []
        if vr == "SQ":
            return self._element(tag, vr, b"".join(self._item(item or {}) for item in values))
        if vr in _BINARY:
            raw = inline_bytes(entry)
            return self._element(tag, vr, raw if self._little else bytes(swapped(raw, WORD_BYTES.get(vr, 1))))
        code = _NUMBERS.get(vr)
        if code is not None:
            return self._element(tag, vr, self._numbers(code, values))
        if vr == "AT":
            return self._element(tag, vr, b"".join(self._tag(value) for value in values))
        return self._element(tag, vr, self._text(element_text(entry, vr), vr))

    def _item(self, item: Model) -> bytes:
        keys = sorted(key for key in item if key != f"{SPECIFIC_CHARACTER_SET:08X}")
        content = b"".join(self._from_model(int(key, 16), "UN", item[key]) for key in keys)
        return _ITEM[self._little] + _LENGTH[self._little].pack(len(content)) + content

    def _tag(self, value: Any) -> bytes:
        order = "little" if self._little else "big"
        text = str(value)
        return b"".join(int(half, 16).to_bytes(2, order) for half in (text[:4], text[4:8]))  # type: ignore[arg-type]


def _creators(wishes: Iterable[_Wish]) -> Iterable[tuple[int, str]]:
    """The elements that reserve the blocks of private attributes, by tag (PS3.5 7.8.1)."""
    for tag, _, _, creator in wishes:
        if creator:
            yield tag & 0xFFFF0000 | tag >> 8 & 0xFF, creator
