"""Writes a DICOMDIR: the Basic Directory of a file-set (PS3.3 F, PS3.10 8.6).

What records say of objects comes as DICOM JSON (PS3.18 F); text is written in UTF-8. Attributes that a record
must have and an object lacks are made up (:data:`INVENTED`), as other writers do: a directory without them
is refused by readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from struct import Struct, pack
from typing import Any, Final

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.dicomdir import MEDIA_STORAGE_DIRECTORY
from hounsfield.archive.dicom.dictionary import LONG_VRS, vr_of
from hounsfield.archive.dicom.json_model import NAME_GROUPS
from hounsfield.archive.dicom.part10 import UID_ROOT, file_header
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN

Model = Mapping[str, Any]

PATIENT: Final = "PATIENT"
STUDY: Final = "STUDY"
SERIES: Final = "SERIES"
IMAGE: Final = "IMAGE"
PRIVATE: Final = "PRIVATE"
#: (0004,1432) of records of objects whose class the standard has no record for.
PRIVATE_RECORD_UID: Final = f"{UID_ROOT}.1"

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
#: Record types by SOP class, PS3.3 Table F.4-1; "….11." stands for all whose UID goes on behind it.
_TYPES: Final[dict[str, str]] = {
    "4.2": "SPECTROSCOPY",
    "9.": "WAVEFORM",
    "11.": "PRESENTATION",
    "66": "RAW DATA",
    "66.1": "REGISTRATION",
    "66.2": "FIDUCIAL",
    "66.3": "REGISTRATION",
    "66.5": "SURFACE",
    "66.6": "TRACT",
    "67": "VALUE MAP",
    "68.1": "SURFACE SCAN",
    "68.2": "SURFACE SCAN",
    "77.1.5.3": "STEREOMETRIC",
    "78.": "MEASUREMENT",
    "79.1": "SR DOCUMENT",
    "80.1": "MEASUREMENT",
    "88.": "SR DOCUMENT",
    "88.59": "KEY OBJECT DOC",
    "104.": "ENCAP DOC",
    "481.2": "RT DOSE",
    "481.3": "RT STRUCTURE SET",
    "481.4": "RT TREAT RECORD",
    "481.5": "RT PLAN",
    "481.6": "RT TREAT RECORD",
    "481.7": "RT TREAT RECORD",
    "481.8": "RT PLAN",
    "481.9": "RT TREAT RECORD",
}

_INSTANCE_NUMBER: Final = 0x00200013
_CONTENT_DATE: Final = ((0x00080023, 1), (0x00080033, 1))
_CONTENT_IDENTIFICATION: Final = (
    (_INSTANCE_NUMBER, 1), (0x00700080, 1), (0x00700081, 2), (0x00700084, 2),
)  # fmt: skip
_CONCEPT_NAME: Final = 0x0040A043
_CONTENT: Final = 0x0040A730

#: What a record holds: tag, and 1 (must have a value), 2 (must be there) or 3 (is there when the object has
#: it), PS3.3 F.5.
KEYS: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    PATIENT: ((0x00100010, 2), (0x00100020, 1), (0x00100030, 3), (0x00100040, 3)),
    STUDY: (
        (0x00080020, 1), (0x00080030, 1), (0x00080050, 2), (0x00081030, 2), (0x0020000D, 1), (0x00200010, 1),
    ),
    SERIES: ((0x00080060, 1), (0x0008103E, 3), (0x0020000E, 1), (0x00200011, 1)),
    IMAGE: ((_INSTANCE_NUMBER, 1),),
    PRIVATE: ((_INSTANCE_NUMBER, 3),),
    "SPECTROSCOPY": (
        (0x00080008, 1), *_CONTENT_DATE, (_INSTANCE_NUMBER, 1), (0x00280008, 1), (0x00280010, 1),
        (0x00280011, 1), (0x00289001, 1), (0x00289002, 1), (0x00089092, 3),
    ),
    "WAVEFORM": ((_INSTANCE_NUMBER, 1), *_CONTENT_DATE),
    "PRESENTATION": (
        (0x00700082, 1), (0x00700083, 1), *_CONTENT_IDENTIFICATION, (0x00081115, 3), (0x00700402, 3),
    ),
    "RAW DATA": (*_CONTENT_DATE, (_INSTANCE_NUMBER, 2)),
    "REGISTRATION": (*_CONTENT_DATE, *_CONTENT_IDENTIFICATION),
    "FIDUCIAL": (*_CONTENT_DATE, *_CONTENT_IDENTIFICATION),
    "SURFACE": (*_CONTENT_DATE, *_CONTENT_IDENTIFICATION),
    "TRACT": (*_CONTENT_DATE, *_CONTENT_IDENTIFICATION),
    "VALUE MAP": (*_CONTENT_DATE, *_CONTENT_IDENTIFICATION),
    "SURFACE SCAN": _CONTENT_DATE,
    "STEREOMETRIC": (),
    "MEASUREMENT": ((_INSTANCE_NUMBER, 1), *_CONTENT_DATE),
    "SR DOCUMENT": (
        (_INSTANCE_NUMBER, 1), (0x0040A491, 1), (0x0040A493, 1), *_CONTENT_DATE, (0x0040A030, 3),
        (_CONCEPT_NAME, 1), (_CONTENT, 3),
    ),
    "KEY OBJECT DOC": ((_INSTANCE_NUMBER, 1), *_CONTENT_DATE, (_CONCEPT_NAME, 1), (_CONTENT, 3)),
    "ENCAP DOC": (
        (0x00080023, 2), (0x00080033, 2), (_INSTANCE_NUMBER, 1), (0x00420010, 2), (0x0040E001, 3),
        (_CONCEPT_NAME, 2), (0x00420012, 1),
    ),
    "RT DOSE": ((_INSTANCE_NUMBER, 1), (0x3004000A, 1)),
    "RT STRUCTURE SET": ((_INSTANCE_NUMBER, 1), (0x30060002, 1), (0x30060008, 2), (0x30060009, 2)),
    "RT PLAN": ((_INSTANCE_NUMBER, 1), (0x300A0002, 1), (0x300A0006, 2), (0x300A0007, 2)),
    "RT TREAT RECORD": ((_INSTANCE_NUMBER, 1), (0x30080250, 2), (0x30080251, 2)),
}  # fmt: skip

#: Values of what must have one and has none.
INVENTED: Final[dict[int, str]] = {
    0x00080008: "ORIGINAL\\PRIMARY",
    0x00080060: "OT",
    0x0040A491: "PARTIAL",
    0x0040A493: "UNVERIFIED",
    0x3004000A: "PLAN",
    0x00420012: "application/octet-stream",
}
_INVENTED_VALUES: Final[dict[str, str]] = {"DA": "19000101", "TM": "000000", "IS": "0"}
_INVENTED_TEXT: Final = "UNKNOWN"

_UL: Final = Struct("<L")
_ITEM: Final = b"\xfe\xff\x00\xe0"
_NUMBERS: Final = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FD": "d", "FL": "f"}


@dataclass(slots=True)
class Record:
    """A directory record, encoded but for its place; ``below``: the records of the level beneath."""

    kind: str
    keys: bytes
    file: bytes = b""
    below: list[Record] = field(default_factory=list)


def record_type(sop_class_uid: str) -> str:
    """The type of the record of an object: IMAGE when it is no other."""
    if not sop_class_uid.startswith("1.2.840.10008."):
        return PRIVATE
    uid = sop_class_uid.removeprefix(_STORAGE)
    if uid in _TYPES:
        return _TYPES[uid]
    while "." in uid:
        uid = uid.rpartition(".")[0]
        if f"{uid}." in _TYPES:
            return _TYPES[f"{uid}."]
    return IMAGE


def record(
    kind: str,
    model: Model,
    *,
    number: int = 0,
    file_id: Sequence[str] = (),
    sop_class_uid: str = "",
    sop_uid: str = "",
    transfer_syntax_uid: str = "",
) -> Record:
    """One record of what ``model`` says; ``number`` takes the place of an Instance Number that is not there.

    ``file_id``: the components of the file's name, at most eight, each of up to eight of A–Z, 0–9 and _.
    """
    found = [_text_element(SPECIFIC_CHARACTER_SET, "CS", "ISO_IR 192")]
    for tag, need in sorted(KEYS[kind]):
        element = model.get(f"{tag:08X}")
        value = _value(element) if element is not None else b""
        vr = str(element["vr"]) if element is not None else vr_of(tag)
        if tag == _CONTENT and element is not None:
            # Only what modifies the title (PS3.3 F.5.25): the document itself is in its file.
            items = [item for item in element.get("Value") or () if _is_modifier(item)]
            value = _value({"vr": "SQ", "Value": items})
        if not value and need == 1:
            value = _invented(tag, vr, number)
        if value or need < 3:
            found.append(_element(tag, vr, value))
    file = b""
    if file_id:
        file = b"".join(
            (
                _text_element(0x00041432, "UI", PRIVATE_RECORD_UID) if kind == PRIVATE else b"",
                _text_element(0x00041500, "CS", "\\".join(file_id)),
                _text_element(0x00041510, "UI", sop_class_uid),
                _text_element(0x00041511, "UI", sop_uid),
                _text_element(0x00041512, "UI", transfer_syntax_uid),
            )
        )
    return Record(kind, b"".join(found), file)


def dicomdir(roots: Sequence[Record], sop_instance_uid: str, *, file_set_id: str = "") -> bytes:
    """The whole file, in Explicit VR Little Endian (PS3.10 8.6)."""
    head = file_header(EXPLICIT_VR_LITTLE_ENDIAN.uid, MEDIA_STORAGE_DIRECTORY, sop_instance_uid)
    first = _text_element(0x00041130, "CS", file_set_id)
    # Behind these: first and last root (UL, 12 bytes each), consistency flag (US, 10), the sequence's header.
    at = len(head) + len(first) + 12 + 12 + 10 + 12
    flat: list[Record] = []
    _flatten(roots, flat)
    places: dict[int, int] = {}
    for one in flat:
        places[id(one)] = at
        at += _item_length(one)
    after: dict[int, int] = {}
    for level in (roots, *(one.below for one in flat)):
        for one, following in pairwise(level):
            after[id(one)] = places[id(following)]
    items = [_item(one, after.get(id(one), 0), places[id(one.below[0])] if one.below else 0) for one in flat]
    body = b"".join(items)
    return b"".join(
        (
            head, first,
            _element(0x00041200, "UL", _UL.pack(places[id(roots[0])] if roots else 0)),
            _element(0x00041202, "UL", _UL.pack(places[id(roots[-1])] if roots else 0)),
            _element(0x00041212, "US", b"\0\0"),
            _element(0x00041220, "SQ", body),
        )
    )  # fmt: skip


def _flatten(level: Sequence[Record], out: list[Record]) -> None:
    for one in level:
        out.append(one)
        _flatten(one.below, out)


def _kind_element(one: Record) -> bytes:
    return _text_element(0x00041430, "CS", one.kind)


def _item_length(one: Record) -> int:
    return 8 + 12 + 10 + 12 + len(_kind_element(one)) + len(one.file) + len(one.keys)


def _item(one: Record, following: int, below: int) -> bytes:
    body = b"".join(
        (
            _element(0x00041400, "UL", _UL.pack(following)),
            _element(0x00041410, "US", b"\xff\xff"),
            _element(0x00041420, "UL", _UL.pack(below)),
            _kind_element(one),
            one.file,
            one.keys,
        )
    )
    return _ITEM + _UL.pack(len(body)) + body


def _invented(tag: int, vr: str, number: int) -> bytes:
    if tag == _INSTANCE_NUMBER:
        return str(number).encode()
    if vr in _NUMBERS:
        return pack(f"<{_NUMBERS[vr]}", 1)
    if vr in ("SQ", "UI"):
        return b""
    return INVENTED.get(tag, _INVENTED_VALUES.get(vr, _INVENTED_TEXT)).encode()


def _is_modifier(item: Any) -> bool:
    relationship = (item.get("0040A010") or {}).get("Value") if isinstance(item, dict) else None
    return relationship is not None and relationship[:1] == ["HAS CONCEPT MOD"]


def _value(element: Model) -> bytes:
    """The value of a DICOM JSON element, encoded; empty when it has none that is text, number or items."""
    vr, values = str(element["vr"]), element.get("Value") or ()
    if vr == "SQ":
        items = [b"".join(_element_of(*pair) for pair in sorted((item or {}).items())) for item in values]
        return b"".join(_ITEM + _UL.pack(len(item)) + item for item in items)
    if vr in _NUMBERS:
        return b"".join(pack(f"<{_NUMBERS[vr]}", value) for value in values if value is not None)
    if vr == "PN":
        names = [
            "=".join((name or {}).get(group, "") for group in NAME_GROUPS).rstrip("=") for name in values
        ]
        return "\\".join(names).encode()
    return "\\".join("" if value is None else str(value) for value in values).encode()


def _element_of(key: str, element: Model) -> bytes:
    return _element(int(key, 16), str(element["vr"]), _value(element))


def _text_element(tag: int, vr: str, text: str) -> bytes:
    return _element(tag, vr, text.encode())


def _element(tag: int, vr: str, value: bytes) -> bytes:
    letters = vr.encode("ascii")
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    if letters in LONG_VRS:
        return pack("<HH2s2xL", tag >> 16, tag & 0xFFFF, letters, len(value)) + value
    if len(value) > 0xFFFE:
        value = value[:0xFFFE]  # no attribute of a record may be that long
    return pack("<HH2sH", tag >> 16, tag & 0xFFFF, letters, len(value)) + value
