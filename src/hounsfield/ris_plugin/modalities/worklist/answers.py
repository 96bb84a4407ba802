"""Worklist items as encoded answers (PS3.4 K.4.1.1.3.2): what was asked for, and nothing else.

An attribute that has no value is there without one, a sequence only when it must be (type 2). Text is in the
requestor's character set when all of it has a place there, else in ISO_IR 192 (UTF-8), and (0008,0005) says
which; who names none is answered in the department's when ASCII does not do.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.dictionary import TAG_OF
from hounsfield.archive.dicom.find_answers import declarable
from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.dicom.text import CHARACTER_SET_VRS
from hounsfield.archive.dicom.text_encoding import UTF_8, TextEncoder, text_encoder
from hounsfield.archive.plugins import TransferSyntax
from hounsfield.ris_plugin.modalities.worklist.attributes import Table
from hounsfield.ris_plugin.modalities.worklist.items import Item

__all__ = ["AnswerForm", "Wish", "all_wishes", "answer_form"]

FORMS_REMEMBERED: Final = 64
_ITEM: Final = {True: b"\xfe\xff\x00\xe0", False: b"\xff\xfe\xe0\x00"}
_LENGTH: Final = {True: Struct("<L"), False: Struct(">L")}
_EMPTY_SEQUENCES: Final = frozenset(
    TAG_OF[keyword] for keyword in ("ReferencedStudySequence", "ReferencedPatientSequence")
)
"""Of type 2."""
_NUMBER: Final = {True: Struct("<H"), False: Struct(">H")}


class Wish(NamedTuple):
    """An attribute to be returned; of a sequence those of its items."""

    tag: int
    vr: str
    below: tuple[Wish, ...]


def all_wishes(table: Table) -> tuple[Wish, ...]:
    """Everything of a table: what an empty sequence asks for."""
    return tuple(Wish(tag, one.vr, all_wishes(one.below)) for tag, one in sorted(table.items()))


class _NoPlaceError(Exception):
    """Text that a character set does not hold."""

    retry = False


@lru_cache(maxsize=FORMS_REMEMBERED)
def answer_form(
    wishes: tuple[Wish, ...], syntax: TransferSyntax, character_set: bytes, otherwise: bytes
) -> AnswerForm:
    """The form of the answers to requests that ask for the same in the same encoding."""
    return AnswerForm(wishes, syntax, character_set, otherwise)


class AnswerForm:
    """Encodes items. ``otherwise``: for text that is not ASCII, when no character set is asked for."""

    def __init__(
        self, wishes: tuple[Wish, ...], syntax: TransferSyntax, character_set: bytes, otherwise: bytes
    ) -> None:
        self._wishes = wishes
        self._implicit, self._little = syntax.implicit_vr, syntax.little_endian
        asked = declarable(character_set)
        known = [asked] if text_encoder(asked).charset.known else []
        self._sets = tuple(dict.fromkeys([*known, *([] if asked else [otherwise]), UTF_8]))

    def encode(self, item: Item) -> bytes:
        """One answer."""
        for declared in self._sets:
            try:
                return self._encode(item, text_encoder(declared), strict=declared != UTF_8)
            except _NoPlaceError:
                continue
        raise AssertionError("UTF-8 holds everything")

    def _encode(self, item: Item, encoder: TextEncoder, *, strict: bool) -> bytes:
        declared = self._element(SPECIFIC_CHARACTER_SET, "CS", encoder.declared) if encoder.declared else b""
        return declared + self._elements(self._wishes, item, encoder, strict)

    def _elements(self, wishes: Iterable[Wish], item: Item, encoder: TextEncoder, strict: bool) -> bytes:
        out: list[bytes] = []
        for tag, vr, below in wishes:
            value = item.get(tag, "")
            if vr == "SQ" and not value and tag not in _EMPTY_SEQUENCES:
                continue  # of type 1C and 3: there with items, or not at all (PS3.5 7.4)
            if isinstance(value, tuple):
                content = b"".join(self._item(self._elements(below, one, encoder, strict)) for one in value)
                out.append(self._element(tag, vr, content))
            elif vr == "US" and value:
                out.append(self._element(tag, vr, _NUMBER[self._little].pack(int(value))))
            else:
                out.append(self._element(tag, vr, self._text(value, vr, encoder, strict)))
        return b"".join(out)

    def _item(self, content: bytes) -> bytes:
        return _ITEM[self._little] + _LENGTH[self._little].pack(len(content)) + content

    def _element(self, tag: int, vr: str, raw: bytes) -> bytes:
        return element(tag, vr, raw, implicit=self._implicit, little=self._little)

    @staticmethod
    def _text(text: str, vr: str, encoder: TextEncoder, strict: bool) -> bytes:
        raw = encoder.encode(text, vr)
        if raw is not None:
            return raw
        if vr not in CHARACTER_SET_VRS:  # no character set helps
            return text.replace("\x1b", "").encode("ascii", "replace")
        if strict:
            raise _NoPlaceError
        return text.replace("\x1b", "").encode("utf-8", "replace")
