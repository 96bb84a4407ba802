"""Bytes out of text: the other way of :mod:`~hounsfield.archive.dicom.text` (PS3.5 6.1.2, PS3.3 C.12.1.1.2).

A :class:`TextEncoder` writes text in what one value of Specific Character Set (0008,0005) declares: one
character set, or several between which escape sequences switch (PS3.5 6.1.2.5). What it writes reads back as
the very same text, here and in other implementations; text that no declared set holds is refused, never
changed.

With code extensions the first set is in force at the beginning of every value, behind every delimiter (the
carets and equals signs of a name, a backslash, the ends of lines and pages) and at the end (PS3.5 6.1.2.5.3).
Readers differ in which of the delimiters they heed in text that is no name, so whatever may be one is
followed by a new escape sequence: that reads the same either way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from hounsfield.archive.dicom.text import (
    CHARACTER_SET_VRS,
    DEFAULT_CHARACTER_SET,
    CharacterSet,
    character_set,
    decode,
)

UTF_8: Final = b"ISO_IR 192"
CHARACTERS_REMEMBERED: Final = 16_384  # those of a language's names are some thousands; two megabytes

#: Sets that allow no code extensions beside them (PS3.3 Table C.12-5): the whole text is in their encoding.
_WHOLE: Final = {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"}
_DELIMITERS: Final = frozenset("\\^=\r\n\t\f")


class _Graphic(NamedTuple):
    """One coded character set with code extensions (PS3.3 Tables C.12-3 and C.12-4)."""

    codec: str
    #: Invoked in the lower half of the code table (G0) or the upper one (G1).
    lower: bool
    escape: bytes
    #: What Python's codec puts before a character of this very set, and behind it.
    prefix: bytes = b""
    bytes_each: int = 1


_ASCII: Final = _Graphic("ascii", True, b"\x1b(B")
_ROMAJI: Final = _Graphic("ascii", True, b"\x1b(J")
_KATAKANA: Final = _Graphic("shift_jis", False, b"\x1b)I")

#: Defined term to the sets that it stands for, without the ASCII that every text may use.
_SETS: Final[dict[str, tuple[_Graphic, ...]]] = {
    "": (),
    "6": (),
    "13": (_KATAKANA,),
    "87": (_Graphic("iso2022_jp", True, b"\x1b$B", b"\x1b$B", 2),),
    "159": (_Graphic("iso2022_jp_2", True, b"\x1b$(D", b"\x1b$(D", 2),),
    "100": (_Graphic("latin_1", False, b"\x1b-A"),),
    "101": (_Graphic("iso8859_2", False, b"\x1b-B"),),
    "109": (_Graphic("iso8859_3", False, b"\x1b-C"),),
    "110": (_Graphic("iso8859_4", False, b"\x1b-D"),),
    "126": (_Graphic("iso8859_7", False, b"\x1b-F"),),
    "127": (_Graphic("iso8859_6", False, b"\x1b-G"),),
    "138": (_Graphic("iso8859_8", False, b"\x1b-H"),),
    "144": (_Graphic("iso8859_5", False, b"\x1b-L"),),
    "148": (_Graphic("iso8859_9", False, b"\x1b-M"),),
    "203": (_Graphic("iso8859_15", False, b"\x1b-b"),),
    "166": (_Graphic("tis_620", False, b"\x1b-T"),),
    "149": (_Graphic("euc_kr", False, b"\x1b$)C", b"", 2),),
    "58": (_Graphic("gb2312", False, b"\x1b$)A", b"", 2),),
}


class TextEncoder:
    """Writes text in one declared character set. Immutable; see :func:`text_encoder`."""

    def __init__(self, declared: bytes) -> None:
        #: The value of (0008,0005) that says how the text is read, padding taken off; b"": none is needed.
        self.declared = declared.strip(b" \0")
        self.charset: CharacterSet = character_set(self.declared)
        terms = [term.strip(b" \0").decode("latin-1") for term in self.declared.split(b"\\")]
        self._whole = _WHOLE.get(terms[0]) if len(terms) == 1 else None
        self._sets: tuple[_Graphic, ...] = ()
        self._extended = len(terms) > 1 or "2022" in terms[0]
        self._initial_lower, self._initial_upper = _ASCII, None
        if not self.charset.known and len(terms) == 1:  # a name that is misspelt, and understood
            self._whole = self.charset.codec
        elif self._whole is None and self.charset.known:
            found = [_SETS.get(_number(term), ()) for term in terms]
            self._sets = tuple(dict.fromkeys(one for sets in found for one in sets))
            self._initial_lower = _ROMAJI if _number(terms[0]) == "13" else _ASCII
            self._initial_upper = next((one for one in found[0] if not one.lower), None)

    def encode(self, text: str, vr: str) -> bytes | None:
        """A value, or several joined by backslashes; None when a character has no place in the sets.

        Of a VR to which (0008,0005) does not apply (PS3.5 6.1.2.3) everything must be ASCII.
        """
        if "\x1b" in text:  # would begin an escape sequence
            return None
        if text.isascii():
            return text.encode("ascii")
        if vr not in CHARACTER_SET_VRS or self.charset is DEFAULT_CHARACTER_SET:
            return None
        if self._whole is not None:
            try:
                raw: bytes | None = text.encode(self._whole)
            except UnicodeError:
                return None
        else:
            raw = self._extended_bytes(text) if self._extended else self._single(text)
        # Codecs know more than their sets (a yen sign as a backslash): only what reads the same counts.
        return raw if raw is not None and decode(raw, self.charset) == (text, True) else None

    def _single(self, text: str) -> bytes | None:
        held = self._initial_upper
        if held is None:
            return None
        out = bytearray()
        for character in text:
            raw = character.encode("ascii") if character.isascii() else _encoded(held, character)
            if raw is None:
                return None
            out += raw
        return bytes(out)

    def _extended_bytes(self, text: str) -> bytes | None:
        writer = _Writer(self._initial_lower, self._initial_upper)
        for character in text:
            if character.isascii():
                writer.ascii(character)
                continue
            held, raw = self._holder(character, writer.lower, writer.upper)
            if held is None or raw is None:
                return None
            writer.other(held, raw)
        writer.reset()
        return bytes(writer.out)

    def _holder(
        self, character: str, lower: _Graphic, upper: _Graphic | None
    ) -> tuple[_Graphic | None, bytes | None]:
        """The set to write a character in: the one in force where that has it, else the first that has."""
        for held in (lower, upper, *self._sets):
            if held is not None and (raw := _encoded(held, character)) is not None:
                return held, raw
        return None, None


class _Writer:
    """What is written so far, and which sets are in force.

    Few readers keep the two halves of the code table apart: behind an escape sequence they read everything
    in that one set. So a character of the upper half is written with the first set in the lower half, and
    its own escape sequence is the last one before it.
    """

    __slots__ = ("_first_lower", "_first_upper", "lower", "out", "upper")

    def __init__(self, lower: _Graphic, upper: _Graphic | None) -> None:
        self._first_lower, self._first_upper = lower, upper
        self.lower, self.upper = lower, upper
        self.out = bytearray()

    def ascii(self, character: str) -> None:
        self._first_in_lower()
        if character in _DELIMITERS:
            self.reset()
        self.out += character.encode("ascii")

    def other(self, held: _Graphic, raw: bytes) -> None:
        if held.lower:
            if held is not self.lower:
                self.lower = held
                self.out += held.escape
        else:
            self._first_in_lower()
            if held is not self.upper:
                self.upper = held
                self.out += held.escape
        self.out += raw

    def reset(self) -> None:
        """Have the first set in force, as behind a delimiter."""
        self._first_in_lower()
        if self.upper is not self._first_upper:
            self.upper = self._first_upper
            if self.upper is not None:
                self.out += self.upper.escape

    def _first_in_lower(self) -> None:
        if self.lower is not self._first_lower:
            self.lower = self._first_lower
            self.out += self.lower.escape
            if self.lower is not _ROMAJI:  # which is read together with its katakana
                self.upper = None


@lru_cache(maxsize=256)
def text_encoder(declared: bytes) -> TextEncoder:
    """The encoder for a raw value of Specific Character Set (0008,0005)."""
    return TextEncoder(declared)


def _number(term: str) -> str:
    """What a defined term is registered under, ``ISO_IR 100`` and ``ISO 2022 IR 100`` alike."""
    return term.rpartition(" ")[2]


@lru_cache(maxsize=CHARACTERS_REMEMBERED)
def _encoded(held: _Graphic, character: str) -> bytes | None:
    """One character in one set, None when it is not in it."""
    try:
        raw = character.encode(held.codec)
    except UnicodeError:
        return None
    if held.prefix:
        if not raw.startswith(held.prefix):
            return None
        return raw[len(held.prefix) : len(held.prefix) + held.bytes_each]
    if len(raw) != held.bytes_each or (not held.lower and raw[0] < 0xA0):
        return None
    return raw
