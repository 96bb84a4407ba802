"""Data sets by hand: identifiers of queries and objects with odd text, in any character set and encoding."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from struct import pack

import pydicom
from pydicom import charset as theirs
from pydicom.datadict import dictionary_VR
from pydicom.valuerep import PN_DELIMS

from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.dicom.text import character_set, decode
from hounsfield.archive.dicom.text_encoding import text_encoder
from hounsfield.codecs.registry import TransferSyntax
from support.slow_matcher import tag_of

#: Every sort that there is: one set, several with escape sequences, multi-byte ones (PS3.3 C.12.1.1.2).
CHARACTER_SETS = (
    b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 101", b"ISO_IR 109", b"ISO_IR 110", b"ISO_IR 148",
    b"ISO_IR 203", b"ISO_IR 144", b"ISO_IR 127", b"ISO_IR 126", b"ISO_IR 138", b"ISO_IR 166", b"ISO_IR 13",
    b"\\ISO 2022 IR 87", b"ISO 2022 IR 13\\ISO 2022 IR 87", b"\\ISO 2022 IR 87\\ISO 2022 IR 159",
    b"\\ISO 2022 IR 149", b"\\ISO 2022 IR 58", b"ISO 2022 IR 100\\ISO 2022 IR 144\\ISO 2022 IR 126",
    b"\\ISO 2022 IR 166\\ISO 2022 IR 127\\ISO 2022 IR 138", b"GB18030", b"GBK", b"ISO_IR 192",
)  # fmt: skip
_CHARACTER_SET_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
#: pydicom has no Latin 9, and leaves the escape sequence of GB2312 in the text that it reads.
_NOT_THEIRS = (b"ISO_IR 203", b"\\ISO 2022 IR 58")

#: Text, or the items of a sequence, by tag.
Values = Mapping[int, "str | Sequence[Values]"]
#: VRs of private attributes, by tag.
PrivateVrs = Mapping[int, str]


def holds(declared: bytes, *texts: str) -> bool:
    """Whether a character set has all of these texts."""
    return all(text_encoder(declared).encode(text, "LO") is not None for text in texts)


def data_set(
    values: Values, syntax: TransferSyntax, declared: bytes = b"ISO_IR 192", private: PrivateVrs | None = None
) -> bytes:
    """The encoded elements, with (0008,0005) when ``declared`` is something."""
    out = _elements(values, syntax, declared, private or {})
    if declared:
        implicit, little = syntax.implicit_vr, syntax.little_endian
        out[0x00080005] = element(0x00080005, "CS", declared, implicit=implicit, little=little)
    return b"".join(out[tag] for tag in sorted(out))


def _elements(
    values: Values, syntax: TransferSyntax, declared: bytes, private: PrivateVrs
) -> dict[int, bytes]:
    little, implicit = syntax.little_endian, syntax.implicit_vr
    out: dict[int, bytes] = {}
    for tag, value in values.items():
        vr = private.get(tag) or ("LO" if tag & 0x10000 else dictionary_VR(tag)[:2])
        if isinstance(value, str):
            raw = text_encoder(declared).encode(value, vr)
            assert raw is not None, (declared, value)
        else:
            raw = b""
            for item in value:
                inner = _elements(item, syntax, declared, private)
                content = b"".join(inner[each] for each in sorted(inner))
                head = b"\xfe\xff\x00\xe0" if little else b"\xff\xfe\xe0\x00"
                raw += head + pack("<L" if little else ">L", len(content)) + content
        out[tag] = element(tag, vr, raw, implicit=implicit, little=little)
    return out


def keys(**values: str) -> dict[int, str]:
    """Values by keyword as values by tag."""
    return {tag_of(keyword): text for keyword, text in values.items()}


def read(raw: bytes, syntax: TransferSyntax) -> pydicom.Dataset:
    """What pydicom reads."""
    return pydicom.filereader.read_dataset(
        io.BytesIO(raw), syntax.implicit_vr, syntax.little_endian, bytelength=len(raw)
    )


def text_in(answer: pydicom.Dataset, tag: int, declared: bytes | None = None) -> str | None:
    """An attribute's text as pydicom decodes it, padding taken off; None when it is not there.

    ``declared`` is the character set for the items of sequences.
    """
    if tag not in answer:
        return None
    raw = answer.get_item(tag).value or b""
    assert isinstance(raw, bytes)
    if declared is None:
        declared = declared_in(answer)
    vr = dictionary_VR(tag) if not tag & 0x10000 else "LO"
    if vr not in _CHARACTER_SET_VRS:
        text = raw.decode("ascii")
    elif declared in _NOT_THEIRS:
        text = decode(raw, character_set(declared))[0]
    else:
        terms = theirs.convert_encodings(declared.decode().split("\\") if declared else [""])
        delimiters = {0x5C, 0x0A, 0x0C, 0x0D, 0x09, *(PN_DELIMS if vr == "PN" else ())}
        text = theirs.decode_bytes(raw, terms, delimiters)
    return "\\".join(part.strip(" \0") for part in text.split("\\"))


def declared_in(answer: pydicom.Dataset) -> bytes:
    """What (0008,0005) says, b"" when it is not there."""
    if 0x00080005 not in answer:
        return b""
    raw = answer.get_item(0x00080005).value or b""
    assert isinstance(raw, bytes)
    return raw.strip()
