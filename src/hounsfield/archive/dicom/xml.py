"""The Native DICOM Model (PS3.19 Annex A), DICOM's XML, from and to the DICOM JSON model (PS3.18 Annex F).

Both say the same in other words, so whatever makes JSON makes XML. What differs:

* A private element's tag has ``00`` in place of its block and names its creator (``00090027``,
  ``privateCreator="GEMS_IDEN_01"``); where its creator is not among the elements, the tag stays whole.
* Names are written by component; an empty value is left out, and the numbers of the others tell where it was.
* Characters that XML 1.0 has no way to write (form feed, escape) become U+FFFD.

The reader is for strangers' bytes: no document type, so no entities and nothing fetched; depth, length and
number of elements are bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from xml.parsers import expat

from hounsfield.archive.dicom.dictionary import KEYWORD_OF, vr_of
from hounsfield.archive.dicom.json_model import NAME_GROUPS, Model, decimal_of, integer_of
from hounsfield.archive.dicom.walk import DEPTH_MAX

NAMESPACE: Final = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
_HEAD: Final = (
    f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">'
)
_TAIL: Final = "</NativeDicomModel>"
_COMPONENTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
#: What has to be written otherwise: markup, the line end that XML would change, and what XML cannot say.
_SPECIAL: Final = re.compile("[&<>\r\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_WRITTEN: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}
_BLANKS: Final = str.maketrans({"\n": "&#10;", "\t": "&#9;"})
_INTEGERS: Final = frozenset({"SL", "SS", "SV", "UL", "US", "UV"})
_FLOATS: Final = frozenset({"FL", "FD"})
_INTEGER_TEXT: Final = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_ODD: Final = frozenset("13579BDFbdf")  # last digits of the groups of private attributes
_TAG: Final = re.compile(r"[0-9A-Fa-f]{8}", re.ASCII)
_VR: Final = re.compile(r"[A-Z]{2}", re.ASCII)


class XmlError(ValueError):
    """Bytes that are no Native DICOM Model, or more of one than is read; send something else."""

    retry = False


@dataclass(frozen=True, slots=True)
class XmlLimits:
    """What one document may hold."""

    #: Of text. Pixels belong into bulk data; the metadata of 10,000 frames has half of this.
    bytes_max: int = 64 << 20
    #: Elements, items and values together, the ones that numbers leave out counted: as JSON metadata has.
    nodes_max: int = 1_000_000
    #: Sequences in sequences, as for encoded objects.
    depth_max: int = DEPTH_MAX


DEFAULT_LIMITS: Final = XmlLimits()


# ------------------------------------------------------------ writing


def model_to_xml(model: Mapping[str, Any]) -> bytes:
    """A DICOM JSON object as one XML document, UTF-8 (PS3.19 A.1). Never raises on what JSON metadata holds.

    ``XmlError`` when sequences are nested deeper than ``DEPTH_MAX``: no object that was scanned has such.
    """
    out = [_HEAD]
    _write(model, out, 0)
    out.append(_TAIL)
    return "".join(out).encode("utf-8")


def _write(model: Mapping[str, Any], out: list[str], depth: int) -> None:
    if depth > DEPTH_MAX:
        raise XmlError(f"sequences are nested more than {DEPTH_MAX} deep")
    for key in sorted(model):
        element = model[key]
        vr = str(element.get("vr") or vr_of(int(key, 16)))
        out.append(_private(key, vr, model) if key[3] in _ODD else _standard(key, vr))
        if element.get("BulkDataURI") is not None:
            out.append(f"><BulkData uri={quoted(str(element['BulkDataURI']))}/></DicomAttribute>")
        elif element.get("InlineBinary"):
            out.append(
                f"><InlineBinary>{_text(str(element['InlineBinary']))}</InlineBinary></DicomAttribute>"
            )
        elif element.get("Value"):
            out.append(">")
            for number, value in enumerate(element["Value"], start=1):
                _write_value(vr, number, value, out, depth)
            out.append("</DicomAttribute>")
        else:
            out.append("/>")


@lru_cache(maxsize=8192)
def _standard(key: str, vr: str) -> str:
    """How an attribute of the standard begins."""
    keyword = KEYWORD_OF.get(int(key, 16))
    named = "" if keyword is None else f' keyword="{keyword}"'
    return f'<DicomAttribute tag="{key}" vr="{vr}"{named}'


def _private(key: str, vr: str, model: Mapping[str, Any]) -> str:
    """How a private attribute begins.

    A creator with two blocks is named for the first one only, or their elements would be mixed up.
    """
    tag = f'tag="{key}"'
    if key[4:6] >= "10":
        creator = _creator(model, key[:4], key[4:6])
        blocks = (f"{block:02X}" for block in range(0x10, int(key[4:6], 16)))
        if creator and all(_creator(model, key[:4], block) != creator for block in blocks):
            tag = f'tag="{key[:4]}00{key[6:]}" privateCreator={quoted(creator)}'
    return f'<DicomAttribute {tag} vr="{vr}"'


def _creator(model: Mapping[str, Any], group: str, block: str) -> str | None:
    element = model.get(f"{group}00{block}")
    values = element.get("Value") if element is not None else None
    return values[0] if values and isinstance(values[0], str) else None


def _write_value(vr: str, number: int, value: Any, out: list[str], depth: int) -> None:
    if vr == "SQ":
        out.append(f'<Item number="{number}">')
        _write(value or {}, out, depth + 1)
        out.append("</Item>")
    elif value is None:
        return
    elif isinstance(value, Mapping):
        groups = "".join(_group(group, str(value[group])) for group in NAME_GROUPS if value.get(group))
        if groups:
            out.append(f'<PersonName number="{number}">{groups}</PersonName>')
    else:
        text = value if isinstance(value, str) else repr(value)
        out.append(f'<Value number="{number}">{_text(text)}</Value>')


def _group(group: str, name: str) -> str:
    """One group of a person name; what stands behind the fifth component stays with it."""
    parts = zip(_COMPONENTS, name.split("^", len(_COMPONENTS) - 1), strict=False)
    inner = "".join(
        f"<{component}>{_text(part)}</{component}>" for component, part in parts if part.strip("^ ")
    )
    return inner and f"<{group}>{inner}</{group}>"


def _text(text: str) -> str:
    return _SPECIAL.sub(lambda found: _WRITTEN.get(found[0], "\ufffd"), text)


def quoted(text: str) -> str:
    """An attribute's value, quotes included. (The standard library's brings an HTTP client along.)"""
    return f'"{_text(text).replace(chr(34), "&quot;").translate(_BLANKS)}"'


# ------------------------------------------------------------ reading


def xml_to_model(document: bytes, limits: XmlLimits = DEFAULT_LIMITS) -> Model:
    """The DICOM JSON object that a Native DICOM Model says (PS3.19 A.1).

    ``XmlError`` says what is wrong with it, without repeating any of it. Namespaces are optional, since
    writers leave theirs out. A private element whose tag has no block gets the one of its creator, or the
    first free one.
    """
    if len(document) > limits.bytes_max:
        raise XmlError(f"the XML document is longer than {limits.bytes_max} bytes")
    reader = _Reader(limits)
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    try:
        parser.Parse(document, True)
    except expat.ExpatError as error:
        raise XmlError(f"not well-formed XML at line {error.lineno}") from None
    except (LookupError, UnicodeError):
        raise XmlError("the XML document's encoding is not known") from None
    return reader.model


def _refuse(*_: object) -> None:
    raise XmlError("a document type declaration is not taken")


@dataclass(slots=True)
class _Element:
    """A DicomAttribute that is being read."""

    vr: str
    private: bool
    values: list[Any] = field(default_factory=list)
    other: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _DataSet:
    """A data set or an item that is being read: elements by tag, and private ones that wait for a block."""

    elements: Model = field(default_factory=dict)
    waiting: list[tuple[str, str, Model]] = field(default_factory=list)


#: Which elements may stand in which.
_WITHIN: Final[dict[str, frozenset[str]]] = {
    "": frozenset({"NativeDicomModel"}),
    "NativeDicomModel": frozenset({"DicomAttribute"}),
    "Item": frozenset({"DicomAttribute"}),
    "DicomAttribute": frozenset({"Value", "Item", "PersonName", "InlineBinary", "BulkData"}),
    "PersonName": frozenset({*NAME_GROUPS, "SingleByte"}),  # its name until 2013
    "SingleByte": frozenset(_COMPONENTS),
    **dict.fromkeys(NAME_GROUPS, frozenset(_COMPONENTS)),
}
_TEXTS: Final = frozenset({"Value", "InlineBinary", *_COMPONENTS})


class _Reader:
    """Takes the parser's events."""

    def __init__(self, limits: XmlLimits) -> None:
        self.model: Model = {}
        self._limits = limits
        self._left = limits.nodes_max
        self._path: list[str] = [""]
        self._sets: list[_DataSet] = []
        self._elements: list[tuple[str, str, _Element]] = []  # tag and creator of each
        self._names: dict[str, dict[str, str]] = {}
        self._text: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        space, _, local = name.rpartition(" ")
        if (
            space not in ("", NAMESPACE)
            or local not in _WITHIN.get(self._path[-1], frozenset())
            or (len(self._path) == 1 and self._sets)
        ):
            raise XmlError(f"an element stands where the Native DICOM Model has none, in {self._where()}")
        self._path.append(local)
        self._spend(1)
        if local in ("NativeDicomModel", "Item"):
            if len(self._sets) > self._limits.depth_max:
                raise XmlError(f"sequences are nested more than {self._limits.depth_max} deep")
            if local == "Item":
                self._number(attributes)
            self._sets.append(_DataSet())
        elif local == "DicomAttribute":
            self._begin(attributes)
        elif local in ("Value", "PersonName"):
            self._number(attributes)
            self._names = {}
        elif local == "BulkData":
            uri = attributes.get("uri") or attributes.get("uuid", "")
            if not uri:
                raise XmlError(f"BulkData without a URI in {self._where()}")
            self._only("BulkDataURI", uri if "uri" in attributes else f"urn:uuid:{uri}")
        elif local in NAME_GROUPS or local == "SingleByte":
            self._names["Alphabetic" if local == "SingleByte" else local] = {}
        self._text.clear()

    def characters(self, text: str) -> None:
        if self._path[-1] in _TEXTS:
            self._text.append(text)
        elif text.strip():
            raise XmlError(f"text stands where the Native DICOM Model has none, in {self._where()}")

    def end(self, _: str) -> None:
        local = self._path.pop()
        text = "".join(self._text)
        if local == "DicomAttribute":
            self._finish()
        elif local == "Item":
            self._elements[-1][2].values[-1] = _with_blocks(self._sets.pop())
        elif local == "NativeDicomModel":
            self.model = _with_blocks(self._sets[-1])
        elif local == "Value":
            element = self._elements[-1][2]
            element.values[-1] = self._value(element.vr, text)
        elif local == "InlineBinary":
            self._only("InlineBinary", "".join(text.split()))
        elif local in _COMPONENTS:
            self._names[next(reversed(self._names))][local] = text
        elif local == "PersonName":
            self._elements[-1][2].values[-1] = _name(self._names)

    def _begin(self, attributes: dict[str, str]) -> None:
        tag, creator = attributes.get("tag", "").upper(), attributes.get("privateCreator", "")
        if not _TAG.fullmatch(tag):
            raise XmlError("a DicomAttribute has no tag of eight hexadecimal digits")
        vr = attributes.get("vr") or vr_of(int(tag, 16))
        if not _VR.fullmatch(vr):
            raise XmlError(f"{self._where()} has no VR of two letters")
        self._elements.append((tag, creator.strip(), _Element(vr, bool(creator))))

    def _finish(self) -> None:
        tag, creator, element = self._elements.pop()
        found: Model = {"vr": element.vr, **element.other}
        if element.values:
            if element.other:
                raise XmlError(f"element {tag} has values and bulk data")
            if any(value is not None for value in element.values):
                found["Value"] = element.values
        within = self._sets[-1]
        if creator and tag[4:6] == "00" and int(tag[3], 16) & 1:
            within.waiting.append((tag, creator, found))
        elif tag in within.elements:
            raise XmlError(f"element {tag} is there twice")
        else:
            within.elements[tag] = found

    def _number(self, attributes: dict[str, str]) -> None:
        """Make room for the value or item that is beginning, and for the empty ones before it."""
        tag, _, element = self._elements[-1]
        text = attributes.get("number", "")
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
        missing = number - len(element.values) - 1
        if missing < 0:
            raise XmlError(f"the values of element {tag} are not numbered upwards from 1")
        if (self._path[-1] == "Item") != (element.vr == "SQ") or (
            (self._path[-1] == "PersonName") != (element.vr == "PN")
        ):
            raise XmlError(f"element {tag} has values of another kind than its VR")
        self._spend(missing)
        element.values += [{} if element.vr == "SQ" else None for _ in range(missing)]
        element.values.append(None)

    def _only(self, name: str, value: str) -> None:
        tag, _, element = self._elements[-1]
        if element.other:
            raise XmlError(f"element {tag} has several values in binary")
        element.other[name] = value

    def _value(self, vr: str, text: str) -> Any:
        if vr in _INTEGERS:
            if not _INTEGER_TEXT.fullmatch(text.strip()):
                raise XmlError(f"a value in {self._where()} is not a whole number")
            return int(text)
        if vr in _FLOATS:
            try:
                number = float(text)
            except ValueError:
                raise XmlError(f"a value in {self._where()} is not a number") from None
            return number if math.isfinite(number) else None
        if vr in ("IS", "DS"):
            text = text.strip()
            if text:
                return integer_of(text) if vr == "IS" else decimal_of(text)
        return text or None

    def _spend(self, nodes: int) -> None:
        self._left -= nodes
        if self._left < 0:
            raise XmlError(f"more than {self._limits.nodes_max} elements, items and values")

    def _where(self) -> str:
        return f"element {self._elements[-1][0]}" if self._elements else "the document"


def _name(groups: Mapping[str, Mapping[str, str]]) -> dict[str, str] | None:
    name = {
        group: text
        for group, parts in groups.items()
        if (text := "^".join(parts.get(component, "") for component in _COMPONENTS).rstrip("^"))
    }
    return name or None


def _with_blocks(data_set: _DataSet) -> Model:
    """The elements, private ones with their creators' blocks, in order of tags (PS3.5 7.8.1)."""
    elements = data_set.elements
    for tag, creator, element in data_set.waiting:
        group = tag[:4]
        block = 0
        for candidate in range(0x10, 0x100):
            reserved = elements.get(f"{group}00{candidate:02X}")
            if reserved is None:
                block = block or candidate
            elif reserved.get("Value") == [creator]:
                block = candidate
                break
        if not block:
            raise XmlError(f"group {group} has no block left for its private creators")
        elements.setdefault(f"{group}00{block:02X}", {"vr": "LO", "Value": [creator]})
        whole = f"{group}{block:02X}{tag[6:]}"
        if whole in elements:
            raise XmlError(f"element {whole} is there twice")
        elements[whole] = element
    return dict(sorted(elements.items()))
