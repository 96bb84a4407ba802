"""What a C-FIND, C-MOVE or C-GET request's identifier says: its keys, as text (PS3.4 C.4.1.1.3, C.2.2.2).

Identifiers come from strangers. They are read in the transfer syntax of their presentation context, with
groups' lengths, sequences of any sort of length and private elements; text by its Specific Character Set with
code extensions. What is no data set is an :class:`IdentifierError`; nothing that is cut off is taken for
something shorter. Messages name attributes, never their values.

Read as it is meant: VRs that were left out or written as UN are the dictionary's; elements may come in any
order; a key that is nothing but an asterisk is universal in any VR, and so is a range that is nothing but a
minus: devices send both for dates and UIDs, and nothing else can be meant. So is a name of nothing but
delimiters; and what is empty in a list of values is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET, to_text
from hounsfield.archive.dicom.dictionary import KEYWORD_OF, UNDEFINED, vr_among
from hounsfield.archive.dicom.matching import is_universal
from hounsfield.archive.dicom.text import DEFAULT_CHARACTER_SET, PROSE_VRS, CharacterSet, character_set
from hounsfield.archive.dicom.walk import Budget, elements, is_letters, items, looks_implicit
from hounsfield.codecs.registry import TransferSyntax

QUERY_RETRIEVE_LEVEL: Final = 0x00080052
_BINARY: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW"})
_TIMES: Final = frozenset({"DA", "TM", "DT"})
_CREATOR_BYTES_MAX: Final = 64  # VR LO


@dataclass(frozen=True, slots=True)
class IdentifierLimits:
    """What one identifier may hold."""

    #: Keys and items together. PS3.4's tables have some dozens of keys; lists of UIDs are one key.
    elements_max: int = 4096
    #: Sequences in sequences; those that are matched are two deep.
    depth_max: int = 8
    #: Of one value: a list of 60,000 UIDs fits. What a whole identifier may take limits who receives it.
    value_bytes_max: int = 4 << 20


DEFAULT_LIMITS: Final = IdentifierLimits()


class IdentifierError(ValueError):
    """The identifier cannot be read, or a key cannot be meant so; ``tags`` are the attributes at fault."""

    retry = False

    def __init__(self, message: str, *tags: int) -> None:
        super().__init__(message)
        self.tags = tags


class MismatchError(IdentifierError):
    """The identifier does not fit its SOP class: its level is none, or a unique key is missing."""


@dataclass(frozen=True, slots=True)
class Key:
    """One attribute of an identifier: to match, or with nothing in it only to return."""

    tag: int
    vr: str
    #: Values joined by backslashes, as in ``Query``; "" when everything matches (PS3.4 C.2.2.2.3).
    text: str = ""
    #: Of a sequence: the keys of each item.
    items: tuple[tuple[Key, ...], ...] = ()
    #: Of a private attribute: who reserved its block in the identifier (PS3.5 7.8.1).
    creator: str = ""

    @property
    def is_universal(self) -> bool:
        """Whether every value matches, in sequences too (PS3.4 C.2.2.2.3, C.2.2.2.6)."""
        return not self.text and all(key.is_universal for item in self.items for key in item)

    @property
    def is_private(self) -> bool:
        return bool(self.tag & 0x10000) and self.tag & 0xFFFF > 0xFF


@dataclass(frozen=True, slots=True)
class Identifier:
    """A whole identifier; ``keys`` in the order of tags, group 0008's own control attributes among them."""

    keys: Mapping[int, Key]
    #: The raw value of Specific Character Set (0008,0005), b"" when there is none.
    character_set: bytes = b""

    def text(self, tag: int) -> str:
        """A key's text, "" when it is universal or not there."""
        key = self.keys.get(tag)
        return "" if key is None else key.text


def read_identifier(
    data: bytes, syntax: TransferSyntax, limits: IdentifierLimits = DEFAULT_LIMITS
) -> Identifier:
    """The keys of an encoded identifier. IdentifierError when it is not whole, or more than ``limits``."""
    reader = _Reader(data, syntax.little_endian, limits)
    implicit = looks_implicit(data, 0, len(data), syntax.implicit_vr)
    keys = reader.keys(0, len(data), implicit, DEFAULT_CHARACTER_SET, 0)
    return Identifier({tag: keys[tag] for tag in sorted(keys)}, reader.declared)


def is_whole(data: bytes, syntax: TransferSyntax) -> bool:
    """Whether an answer's bytes are a data set, to their end: one that is cut off names something else."""
    reader = _Reader(data, syntax.little_endian, DEFAULT_LIMITS)
    try:
        for _ in reader.elements(0, len(data), looks_implicit(data, 0, len(data), syntax.implicit_vr)):
            pass
    except IdentifierError:
        return False
    return True


def name_of(tag: int) -> str:
    """An attribute's keyword for messages, or its tag."""
    return KEYWORD_OF.get(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _fitting(tag: int, vr: str, known: str, *, empty: bool) -> str:
    """The VR by which a key is read: as it is written, when that can hold what the attribute is.

    A text key in bytes, or a sequence for what is none, would say nothing and so match everything.
    """
    fits = (vr == "SQ") == (known == "SQ") and (vr not in _BINARY or known in _BINARY)
    if fits or known == "UN":
        return vr
    if empty:
        return known
    raise IdentifierError(f"{name_of(tag)} is written as {vr} and is {known}", tag)


class _Reader:
    """One identifier being read."""

    def __init__(self, data: bytes, little: bool, limits: IdentifierLimits) -> None:
        self._data = data
        self._little = little
        self._limits = limits
        self._left = limits.elements_max
        self.declared = b""

    def keys(self, start: int, end: int, implicit: bool, charset: CharacterSet, depth: int) -> dict[int, Key]:
        """The keys of the data set or item at [start, end)."""
        found: dict[int, Key] = {}
        creators: dict[int, str] = {}
        for tag, written, at, length, undefined in self.elements(start, end, implicit):
            group, number = tag >> 16, tag & 0xFFFF
            if number == 0 or group < 8:  # group lengths, and what belongs into files
                continue
            if tag in found:
                raise IdentifierError(f"{name_of(tag)} is in the identifier twice", tag)
            if length > self._limits.value_bytes_max:
                raise IdentifierError(f"{name_of(tag)} is too long", tag)
            if group & 1 and 0x10 <= number <= 0xFF and length <= _CREATOR_BYTES_MAX:
                creators[tag] = self._data[at : at + length].decode("latin-1").strip(" \0")
            vr = self._vr(tag, written, implicit, undefined, creators)
            vr = _fitting(tag, vr, vr_among(tag, creators), empty=not length)
            if tag == SPECIFIC_CHARACTER_SET:
                raw = self._data[at : at + length]
                charset = character_set(raw)
                if not depth:
                    self.declared = raw.strip(b" \0")
            creator = creators.get(tag & 0xFFFF0000 | tag >> 8 & 0xFF, "") if group & 1 else ""
            if vr == "SQ":
                inner = implicit or (written == "UN" and not undefined)
                below = tuple(self._items(tag, at, length, inner, charset, depth + 1))
                found[tag] = Key(tag, vr, "", below, creator)
            else:
                found[tag] = Key(tag, vr, self._text(vr, at, length, charset), (), creator)
        return found

    def elements(self, start: int, end: int, implicit: bool) -> Iterator[tuple[int, str, int, int, bool]]:
        """As :func:`walk.elements`, which reads what it can; this one raises when there is more, or less."""
        budget = Budget(self._limits.elements_max, self._limits.depth_max)
        pos = start
        for one in elements(self._data, start, end, implicit, self._little, budget):
            tag, _, at, length, undefined = one
            self._left -= 1
            if self._left < 0:
                raise IdentifierError(f"an identifier of more than {self._limits.elements_max} elements")
            begin, pos = pos, at + length + (8 if undefined else 0)
            # A length that reaches beyond the end was made to end there.
            if pos > end or (pos == end and not undefined and self._declared(begin, at, implicit) != length):
                raise IdentifierError(f"the identifier ends within {name_of(tag)}", tag)
            yield one
        if pos != end:
            raise IdentifierError("the identifier is no data set in its transfer syntax, or is cut off")

    def _declared(self, begin: int, at: int, implicit: bool) -> int:
        """The length that stands before a value."""
        short = at - begin == 8 and not implicit and is_letters(self._data[begin + 4 : begin + 6])
        return int.from_bytes(self._data[at - (2 if short else 4) : at], "little" if self._little else "big")

    def _vr(self, tag: int, written: str, implicit: bool, undefined: bool, creators: dict[int, str]) -> str:
        if undefined:
            return "SQ"
        return vr_among(tag, creators) if implicit or written == "UN" else written

    def _items(  # noqa: PLR0917
        self, tag: int, at: int, length: int, implicit: bool, charset: CharacterSet, depth: int
    ) -> Iterator[tuple[Key, ...]]:
        if depth > self._limits.depth_max:
            raise IdentifierError(f"{name_of(tag)} is nested deeper than {self._limits.depth_max}", tag)
        end = at + length
        pos = at
        budget = Budget(self._limits.elements_max, self._limits.depth_max)
        for start, stop, item_implicit in items(self._data, at, end, implicit, self._little, budget):
            self._left -= 1
            undefined = self._length_before(start) == UNDEFINED
            pos = stop + (8 if undefined else 0)
            if pos > end or not (undefined or self._length_before(start) == stop - start):
                raise IdentifierError(f"an item of {name_of(tag)} is cut off", tag)
            keys = self.keys(start, stop, item_implicit, charset, depth)
            yield tuple(keys[each] for each in sorted(keys))
        if pos != end:
            raise IdentifierError(f"{name_of(tag)} is no sequence of items", tag)

    def _length_before(self, at: int) -> int:
        return int.from_bytes(self._data[at - 4 : at], "little" if self._little else "big")

    def _text(self, vr: str, at: int, length: int, charset: CharacterSet) -> str:
        if not length or vr in _BINARY:  # bytes are never compared: what they are is not said
            return ""
        raw = self._data[at : at + length]
        if vr == "AT":
            return "\\".join(self._tags(raw))
        # Of a private attribute in implicit VR nobody may know what it is: text, if it is to be matched.
        known = "LO" if vr == "UN" else vr
        text = to_text(raw, known, known, charset, self._little, {})
        if "\\" in text and known not in PROSE_VRS:
            # Nothing is no value of a list: a single empty one would find everything there is.
            text = "\\".join(part for part in text.split("\\") if part.strip(" \0"))
        if known == "PN" and not text.strip("^= "):  # forms that put a name together send its carets alone
            return ""
        if is_universal(text, vr) or not text.strip("*") or (text == "-" and vr in _TIMES):
            return ""
        return text

    def _tags(self, raw: bytes) -> Iterator[str]:
        order = "little" if self._little else "big"
        for at in range(0, len(raw) - 3, 4):
            pair = (raw[at : at + 2], raw[at + 2 : at + 4])
            yield "".join(f"{int.from_bytes(half, order):04X}" for half in pair)  # type: ignore[arg-type]
