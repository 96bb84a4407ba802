"""Tags, keywords and VRs: the data dictionary of PS3.6, as flat tables of plain integers and strings.

The content is pydicom's; this module only gives it the shape that hot loops want. A VR that depends on the
data set is resolved the way implicit VR readers must guess it: ``US or SS`` is ``US`` here and is listed in
``SIGNED_IF_PIXELS_ARE``, whose members become ``SS`` when Pixel Representation says so (PS3.5 A.1).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Final


def _pydicom(name: str) -> ModuleType:
    """One of pydicom's modules that hold only tables, without pydicom.

    To import the package is to import numpy, PIL, requests and more: 0.3 s of CPU time and 25 MB of every
    process, for tables that take 0.01 s.
    """
    package = importlib.util.find_spec("pydicom")
    path = package.submodule_search_locations if package is not None else None
    spec = PathFinder.find_spec(f"pydicom.{name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"pydicom has no module {name}: install the release that constraints.txt names")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_TABLES: Final = _pydicom("_dicom_dict")
_ATTRIBUTES: Final[dict[int, tuple[str, str, str, str, str]]] = _TABLES.DicomDictionary

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD

#: Explicit VR with a 16-bit length (PS3.5 Table 7.1-2), keyed by their two bytes.
SHORT_VRS: Final[dict[bytes, str]] = {
    vr.encode(): vr
    for vr in (
        *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL"),
        *("SS", "ST", "TM", "UI", "UL", "US"),
    )
}
#: Explicit VR with two reserved bytes and a 32-bit length (PS3.5 Table 7.1-1), keyed by their two bytes.
LONG_VRS: Final[dict[bytes, str]] = {
    vr.encode(): vr for vr in ["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"]
}

_RESOLVED: Final = {
    "US or SS": "US",
    "OB or OW": "OW",
    "US or OW": "OW",
    "US or SS or OW": "US",
    "NONE": "UN",
}

#: Tag to VR, for tags that are one attribute each.
VR_OF: Final[dict[int, str]] = {tag: _RESOLVED.get(row[0], row[0]) for tag, row in _ATTRIBUTES.items()}
#: Attributes that hold a pixel value and are therefore signed when the pixels are.
SIGNED_IF_PIXELS_ARE: Final[frozenset[int]] = frozenset(
    tag for tag, row in _ATTRIBUTES.items() if row[0] in ("US or SS", "US or SS or OW")
)
KEYWORD_OF: Final[dict[int, str]] = {tag: row[4] for tag, row in _ATTRIBUTES.items() if row[4]}
TAG_OF: Final[dict[str, int]] = {keyword: tag for tag, keyword in KEYWORD_OF.items()}

#: (mask, value, VR) of attributes that repeat over groups or elements, such as overlays (60xx,eeee).
_REPEATING: Final[tuple[tuple[int, int, str], ...]] = tuple(
    (
        int("".join("0" if c == "x" else "F" for c in pattern), 16),
        int(pattern.replace("x", "0"), 16),
        _RESOLVED.get(row[0], row[0]),
    )
    for pattern, row in _TABLES.RepeatersDictionary.items()
)


def vr_of(tag: int) -> str:
    """The VR of an attribute in implicit VR: the dictionary's, LO for private creators.

    UL for group lengths, else UN.
    """
    vr = VR_OF.get(tag)
    if vr is not None:
        return vr
    element = tag & 0xFFFF
    if element == 0:
        return "UL"
    if tag & 0x10000:
        return "LO" if 0x10 <= element <= 0xFF else "UN"
    for mask, value, repeating in _REPEATING:
        if tag & mask == value:
            return repeating
    return "UN"


@cache
def _private_tables() -> dict[str, dict[str, tuple[str, str, str, str]]]:
    """By creator; loaded with the first private element of an object (0.01 s)."""
    tables: dict[str, dict[str, tuple[str, str, str, str]]] = _pydicom("_private_dict").private_dictionaries
    return tables


def private_vr_of(creator: str, tag: int) -> str | None:
    """The VR that a known private creator gives to one of its elements, or None (PS3.5 7.8.1)."""
    table = _private_tables().get(creator)
    if table is None:
        return None
    group, element = tag >> 16, tag & 0xFFFF
    for key in (f"{group:04X}xx{element & 0xFF:02X}", f"{group:04X}{element:04X}", f"{group:04X}xxxx"):
        row = table.get(key)
        if row is not None:
            return _RESOLVED.get(row[0], row[0])
    return None


def vr_among(tag: int, creators: Mapping[int, str]) -> str:
    """The VR of an element that does not tell it itself (implicit VR, UN): UN when nobody knows it.

    ``creators``: who has reserved which private block, by the tag of the element that says so (PS3.5 7.8.1).
    """
    if tag & 0x10000 and tag & 0xFFFF > 0xFF:
        creator = creators.get((tag & 0xFFFF0000) | (tag >> 8 & 0xFF))
        return (private_vr_of(creator, tag) if creator else None) or "UN"
    return vr_of(tag)
