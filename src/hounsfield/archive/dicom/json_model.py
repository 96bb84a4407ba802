"""The DICOM JSON model (PS3.18 F.2): what values look like in it, and query answers as such objects.

* IS and DS are numbers when they are numbers, else the text as it was written. Numbers beyond 2^53 are text,
  because JSON's readers have no others (F.2.2).
* An empty value has no ``Value`` (F.2.5); an empty one among several is null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.dictionary import VR_OF
from hounsfield.archive.dicom.text import trim

Model = dict[str, Any]

#: What the objects' keys are, of every tag in the dictionary.
KEY_OF: Final[dict[int, str]] = {tag: f"{tag:08X}" for tag in VR_OF}
#: Of a name, in the order in which a data set has them, joined by ``=`` (PS3.5 6.2.1).
NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
#: The largest integer that every JSON reader keeps exactly.
EXACT_MAX: Final = 1 << 53

_INTEGERS: Final = frozenset({"SL", "SS", "SV", "UL", "US", "UV"})
_INTEGER_TEXT: Final = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_DECIMAL_TEXT: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)


def text_values(text: str, vr: str) -> list[Any] | None:
    """The values of an attribute's text, several joined by backslashes; None when it is empty (F.2.3)."""
    text = trim(text, vr)
    if not text:
        return None
    if vr in ("LT", "ST", "UT", "UR"):
        return [text]
    parts = text.split("\\") if "\\" in text else [text]
    if vr == "PN":
        return [_name(part) if part else None for part in parts]
    if vr == "IS":
        return [integer_of(part) if part else None for part in parts]
    if vr == "DS":
        return [decimal_of(part) if part else None for part in parts]
    return [part or None for part in parts]


def _name(text: str) -> dict[str, str]:
    if "=" not in text:
        return {"Alphabetic": text}
    return {group: part for group, part in zip(NAME_GROUPS, text.split("="), strict=False) if part}


def integer_of(text: str) -> int | str:
    """One value of IS: a number when it is one that every reader keeps, else the text."""
    if not _INTEGER_TEXT.fullmatch(text):
        return text
    value = int(text)
    return value if -EXACT_MAX <= value <= EXACT_MAX else text


def decimal_of(text: str) -> float | int | str:
    """One value of DS, likewise."""
    if _INTEGER_TEXT.fullmatch(text):
        return integer_of(text)
    if not _DECIMAL_TEXT.fullmatch(text):
        return text
    value = float(text)
    return value if math.isfinite(value) else text


def attributes_to_model(*levels: tuple[Mapping[int, str], Mapping[int, str]]) -> Model:
    """One query answer (PS3.18 10.6.3) out of pairs of (tag → text, tag → VR).

    It has what has a VR, in order of tags; empty values keep their VR and nothing else.
    """
    merged: list[tuple[int, str, str]] = sorted(
        (tag, vrs[tag], text) for attributes, vrs in levels for tag, text in attributes.items() if tag in vrs
    )
    model: Model = {}
    for tag, vr, text in merged:
        key = KEY_OF.get(tag) or f"{tag:08X}"
        if not text:
            model[key] = {"vr": vr}
            continue
        values: list[Any] | None
        if vr in _INTEGERS:
            values = [integer_of(part) if part else None for part in text.split("\\")]
        elif vr in ("FL", "FD"):
            values = [decimal_of(part) if part else None for part in text.split("\\")]
        elif tag == SPECIFIC_CHARACTER_SET:
            values = ["ISO_IR 192"]
        else:
            values = text_values(text, vr)
        model[key] = {"vr": vr, "Value": values} if values else {"vr": vr}
    return model
