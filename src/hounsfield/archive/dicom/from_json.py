"""Encoded data sets out of the DICOM JSON model (PS3.18 Annex F): Explicit VR Little Endian (PS3.5 A.2).

The model is what ``msgspec.json.decode`` or :func:`~hounsfield.archive.dicom.xml.xml_to_model` make of a
stranger's bytes: anything may be in it. What cannot be written without changing what it says is refused.

* Elements are sorted; groups 0 and 2, group lengths, trailing padding and (0008,3002) are left out.
* Text is UTF-8: (0008,0005) becomes ISO_IR 192, unless there is none and all text is ASCII.
* Values of one attribute are joined by backslashes, the groups of a name by ``=``; null is an empty value.
* A number that is text in the data set (DS, IS) is written in the room it has, text for a number is read.
* A value too long for the length field of its VR is UN (PS3.5 6.2.2).
* ``BulkDataURI`` is looked up in ``bulk``. Pixel data at the top level need not be there: it is what a data
  set is sent in two parts for, so it is left to whoever streams it.
"""

from __future__ import annotations

import binascii
import math
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is an exception
from typing import Any, Final, NamedTuple

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.dictionary import LONG_VRS, SHORT_VRS, vr_of
from hounsfield.archive.dicom.json_elements import ELEMENTS_MAX
from hounsfield.archive.dicom.json_model import NAME_GROUPS
from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.text import CHARACTER_SET_VRS, PROSE_VRS
from hounsfield.archive.dicom.walk import DEPTH_MAX

Buffer = bytes | bytearray | memoryview

#: What search answers say of an object (PS3.18 10.6.3.3); it is not of the object.
AVAILABLE_TRANSFER_SYNTAX_UID: Final = 0x00083002
TRANSFER_SYNTAX_UID: Final = 0x00020010
_PADDING: Final = 0xFFFC0000
_VRS: Final = frozenset({*SHORT_VRS.values(), *LONG_VRS.values()})
_BINARY: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_NUMBERS: Final = {
    vr: Struct(f"<{code}")
    for vr, code in (
        *(
            ("FL", "f"),
            ("FD", "d"),
            ("SL", "l"),
            ("SS", "h"),
            ("SV", "q"),
            ("UL", "L"),
            ("US", "H"),
            ("UV", "Q"),
        ),
    )
}
_TAG_VALUE: Final = Struct("<HH")
_KEY: Final = re.compile(r"[0-9A-Fa-f]{8}", re.ASCII)
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_ITEM: Final = b"\xfe\xff\x00\xe0"
_NUMBER_MAX: Final = 1e300
_DS_CHARS_MAX: Final = 16  # PS3.5 Table 6.2-1
_EMPTY: Final = 8  # bytes of an element without a value, with a VR of a short length
_LENGTH_MAX: Final = 0xFFFFFFFE
_UTF_8: Final = b"ISO_IR 192"


class ModelError(ValueError):
    """A model that no data set can be made of; the message says where, and repeats no value."""

    retry = False


class PixelLink(NamedTuple):
    """Pixel data that is somewhere else: its element, and where it is."""

    tag: int
    vr: str
    uri: str


class Encoded(NamedTuple):
    """A data set. With ``pixels``: all before them, and all after them."""

    head: bytes
    pixels: PixelLink | None
    trailer: bytes


def from_json(model: Any, bulk: Mapping[str, Buffer] | None = None) -> Encoded:
    """The data set that ``model`` says; ``bulk`` has the values behind its links but for pixel data.

    Raises ModelError; also when a link leads nowhere.
    """
    return _Writer(bulk or {}).data_set(model)


def links(model: Any) -> Iterator[str]:
    """Every BulkDataURI of a model but that of its pixel data, at any depth, in no order. ModelError."""
    pixels = pixel_link(model)
    waiting: list[tuple[Any, int]] = [(model, 0)]
    while waiting:
        elements, depth = waiting.pop()
        if depth > DEPTH_MAX:
            raise ModelError(f"sequences are nested deeper than {DEPTH_MAX}")
        for key, entry in _entries(elements):
            uri = entry.get("BulkDataURI")
            if uri is not None and (depth or pixels is None or int(key, 16) != pixels.tag):
                yield _uri(key, uri)
            if entry.get("vr") == "SQ":
                values = entry.get("Value")
                waiting += [(item, depth + 1) for item in values if item] if isinstance(values, list) else []


def pixel_link(model: Any) -> PixelLink | None:
    """The pixel data at the top level of a model, when it is somewhere else. ModelError."""
    for key, entry in _entries(model):
        tag = int(key, 16)
        if tag in PIXEL_TAGS and entry.get("BulkDataURI") is not None:
            return PixelLink(tag, _vr(key, tag, entry), _uri(key, entry["BulkDataURI"]))
    return None


def text_of(model: Any, tag: int) -> str:
    """The first value of an attribute of a model, when that is text or a number; else ""."""
    entry = model.get(f"{tag:08X}") if isinstance(model, Mapping) else None
    values = entry.get("Value") if isinstance(entry, Mapping) else None
    value = values[0] if isinstance(values, list) and values else ""
    return str(value).strip(" \0") if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _entries(model: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(model, Mapping):
        raise ModelError("an object of the metadata is not a JSON object of attributes")
    for key, entry in model.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ModelError("an attribute of the metadata is not named by eight hexadecimal digits")
        if not isinstance(entry, Mapping):
            raise ModelError(f"attribute {key.upper()} is not a JSON object")
        yield key.upper(), entry


def _uri(key: str, uri: Any) -> str:
    if not isinstance(uri, str) or not uri:
        raise ModelError(f"the BulkDataURI of attribute {key} is not a URI")
    return uri


def _vr(key: str, tag: int, entry: Mapping[str, Any]) -> str:
    vr = entry.get("vr", "")
    if not vr:
        return vr_of(tag)
    if not isinstance(vr, str) or vr not in _VRS:
        raise ModelError(f"attribute {key} has a value representation that is not known")
    return vr


class _Writer:
    """One data set being written."""

    def __init__(self, bulk: Mapping[str, Buffer]) -> None:
        self._bulk = bulk
        self._left = ELEMENTS_MAX
        self._is_ascii = True

    def data_set(self, model: Any) -> Encoded:
        pixels = pixel_link(model)
        written = self._elements(model, 0, pixels.tag if pixels is not None else None)
        if not self._is_ascii or len(written.get(SPECIFIC_CHARACTER_SET, b"")) > _EMPTY:
            written[SPECIFIC_CHARACTER_SET] = _element(SPECIFIC_CHARACTER_SET, "CS", _UTF_8)
        tags = sorted(written)
        if pixels is None:
            return Encoded(b"".join(written[tag] for tag in tags), None, b"")
        return Encoded(
            b"".join(written[tag] for tag in tags if tag < pixels.tag),
            pixels,
            b"".join(written[tag] for tag in tags if tag > pixels.tag),
        )

    def _elements(self, model: Any, depth: int, left_out: int | None = None) -> dict[int, bytes]:
        """The encoded elements of a data set or item, by tag."""
        written: dict[int, bytes] = {}
        for key, entry in _entries(model):
            tag = int(key, 16)
            if tag >> 16 in (0, 2) or not tag & 0xFFFF or tag >= _PADDING:
                continue
            if tag == AVAILABLE_TRANSFER_SYNTAX_UID:
                continue
            if tag in written:
                raise ModelError(f"attribute {key} is there twice")
            self._count()
            if tag == left_out:
                continue
            vr = _vr(key, tag, entry)
            value = self._value(key, vr, entry, depth)
            if tag == SPECIFIC_CHARACTER_SET and depth:
                continue  # an item without one has that of its data set (PS3.5 7.5.3)
            written[tag] = _element(tag, vr, value)
        return written

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ModelError(f"more than {ELEMENTS_MAX} attributes and items in one object")

    def _value(self, key: str, vr: str, entry: Mapping[str, Any], depth: int) -> bytes:
        given = [name for name in ("Value", "InlineBinary", "BulkDataURI") if entry.get(name) is not None]
        if len(given) > 1:
            raise ModelError(f"attribute {key} has more than one of Value, InlineBinary and BulkDataURI")
        if not given:
            return b""
        content = entry[given[0]]
        if given[0] == "BulkDataURI":
            return self._linked(key, vr, _uri(key, content))
        if given[0] == "InlineBinary":
            return _inline(key, vr, content)
        if not isinstance(content, list):
            raise ModelError(f"the Value of attribute {key} is not a list")
        if vr == "SQ":
            return self._items(content, depth + 1)
        if vr in _BINARY:
            if content:
                raise ModelError(f"attribute {key} is binary and has a Value: it goes into InlineBinary")
            return b""
        if vr in _NUMBERS:
            return b"".join(_number(key, vr, one) for one in content)
        if vr == "AT":
            return b"".join(_tag_value(key, one) for one in content)
        if vr in PROSE_VRS and len(content) > 1:
            raise ModelError(f"attribute {key} has several values where there is one")
        return self._encoded("\\".join(_text(key, vr, one) for one in content))

    def _items(self, content: list[Any], depth: int) -> bytes:
        if depth > DEPTH_MAX:
            raise ModelError(f"sequences are nested deeper than {DEPTH_MAX}")
        out = []
        for item in content:
            self._count()
            written = {} if item is None else self._elements(item, depth)
            body = b"".join(written[tag] for tag in sorted(written))
            out.append(_ITEM + len(body).to_bytes(4, "little") + body)
        return b"".join(out)

    def _linked(self, key: str, vr: str, uri: str) -> bytes:
        value = self._bulk.get(uri)
        if value is None:
            raise ModelError(f"the bulk data of attribute {key} is not in the request")
        if vr == "SQ":
            raise ModelError(f"attribute {key} is a sequence: its items belong into the metadata")
        raw = bytes(value)
        if vr in CHARACTER_SET_VRS and not raw.isascii():
            try:
                return self._encoded(raw.decode("utf-8"))
            except UnicodeDecodeError:
                raise ModelError(f"the bulk data of attribute {key} is text, and not UTF-8") from None
        return raw

    def _encoded(self, text: str) -> bytes:
        if not text.isascii():
            self._is_ascii = False
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair
            raise ModelError("a value holds what is not a character") from None


def _element(tag: int, vr: str, value: bytes) -> bytes:
    if len(value) > _LENGTH_MAX:
        raise ModelError(f"attribute {tag:08X} is longer than a data set can say")
    if len(value) % 2 and vr in _BINARY:
        value += b"\0"
    return element(tag, vr, value, implicit=False, little=True)


def _inline(key: str, vr: str, content: Any) -> bytes:
    if vr not in _BINARY:
        raise ModelError(f"attribute {key} is not binary and has InlineBinary")
    if not isinstance(content, str):
        raise ModelError(f"the InlineBinary of attribute {key} is not text")
    try:
        return b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise ModelError(f"the InlineBinary of attribute {key} is not base64") from None


def _number(key: str, vr: str, value: Any) -> bytes:
    if value is None and vr in ("FL", "FD"):
        value = math.nan  # JSON has no other way to say it, and no way to leave one out of several
    elif isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"a value of attribute {key} is not a number")
    if isinstance(value, float) and vr not in ("FL", "FD"):
        if not value.is_integer():
            raise ModelError(f"a value of attribute {key} is not an integer")
        value = int(value)
    try:
        return _NUMBERS[vr].pack(value)
    except (StructError, OverflowError):
        raise ModelError(f"a value of attribute {key} does not fit its value representation") from None


def _tag_value(key: str, value: Any) -> bytes:
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise ModelError(f"a value of attribute {key} is not a tag of eight hexadecimal digits")
    return _TAG_VALUE.pack(int(value[:4], 16), int(value[4:], 16))


def _text(key: str, vr: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if vr == "PN" and isinstance(value, Mapping):
        groups = [value.get(group) or "" for group in NAME_GROUPS]
        if not all(isinstance(group, str) for group in groups):
            raise ModelError(f"a name in attribute {key} is not text")
        return "=".join(groups).rstrip("=")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"a value of attribute {key} is not text")
    if not -_NUMBER_MAX < value < _NUMBER_MAX:  # nor is NaN
        raise ModelError(f"a value of attribute {key} is no number that text could say")
    if isinstance(value, int):
        return str(value)
    if vr == "IS":
        if not value.is_integer():
            raise ModelError(f"a value of attribute {key} is not an integer")
        return str(int(value))
    return decimal_text(value)


def decimal_text(value: float) -> str:
    """The number in 16 characters at most, as near as they come to it."""
    text = repr(value)
    digits = _DS_CHARS_MAX
    while len(text) > _DS_CHARS_MAX:
        text = f"{value:.{digits}g}"
        digits -= 1
    return text
