"""Keys against a stored header: what no index row holds, and sequences (PS3.4 C.2.2.2, C.2.2.2.6).

The header is a DICOM JSON model of what the keys ask about (``selection.select``).
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterable, Mapping
from typing import Any, Final

from hounsfield.archive.dicom.attributes import to_text
from hounsfield.archive.dicom.find_identifier import Key
from hounsfield.archive.dicom.from_json import decimal_text
from hounsfield.archive.dicom.json_model import NAME_GROUPS
from hounsfield.archive.dicom.matching import matcher
from hounsfield.archive.dicom.text import DEFAULT_CHARACTER_SET

_CREATORS: Final = range(0x10, 0x100)


def header_matches(keys: Iterable[Key], model: Mapping[str, Any], *, fuzzy: bool = False) -> bool:
    """Whether every key finds what it asks for. What is not there matches universal keys only."""
    return all(key.is_universal or _matches(key, model.get(f"{key.tag:08X}"), fuzzy) for key in keys)


def _matches(key: Key, element: Mapping[str, Any] | None, fuzzy: bool) -> bool:
    if element is None:
        return False
    if key.vr == "SQ":
        found = element.get("Value") if element.get("vr") == "SQ" else None
        # One item must satisfy all keys of an item of the request (C.2.2.2.6).
        return any(
            header_matches(wanted, item or {}, fuzzy=fuzzy) for item in found or () for wanted in key.items
        )
    vr = element.get("vr") or key.vr if key.vr == "UN" else key.vr  # only the object says what it is
    return matcher(vr, key.text, fuzzy)(element_text(element, "LO" if vr == "UN" else vr))


def element_text(element: Mapping[str, Any], vr: str) -> str:
    """An element's values as an index row would have them; ``vr`` is what it is taken for if it is UN."""
    if "InlineBinary" in element:
        return to_text(inline_bytes(element), "UN", vr, DEFAULT_CHARACTER_SET, True, {})
    return "\\".join(_value_text(value) for value in element.get("Value") or ())


def inline_bytes(element: Mapping[str, Any]) -> bytes:
    """An element's bytes, little endian, when they stand in the model; b"" when they are elsewhere."""
    try:
        return b64decode(element.get("InlineBinary") or "", validate=True)
    except (binascii.Error, ValueError):
        return b""


def _value_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return decimal_text(value)
    if isinstance(value, Mapping):
        return "=".join(value.get(group) or "" for group in NAME_GROUPS).rstrip("=")
    return str(value)


def blocks_to_look_in(keys: Iterable[Key]) -> frozenset[tuple[int, ...]]:
    """All elements that may say who reserved which block of the keys' private groups (PS3.5 7.8.1)."""
    groups = {key.tag >> 16 for key in keys if key.is_private and key.creator}
    return frozenset((group << 16 | number,) for group in groups for number in _CREATORS)


def in_their_blocks(keys: Iterable[Key], model: Mapping[str, Any]) -> dict[int, int]:
    """Where an object has private keys: the tag of each by the one that the request gives it.

    A key without a creator stays where it is; one whose creator the object does not name is left out.
    """
    found: dict[int, int] = {}
    for key in keys:
        if not key.is_private:
            continue
        if not key.creator:
            found[key.tag] = key.tag
            continue
        group, number = key.tag & 0xFFFF0000, key.tag & 0xFF
        own = key.tag >> 8 & 0xFF
        for block in (own, *_CREATORS):
            element = model.get(f"{group | block:08X}")
            if element is not None and element_text(element, "LO").strip() == key.creator:
                found[key.tag] = group | block << 8 | number
                break
    return found
