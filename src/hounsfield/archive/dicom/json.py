"""DICOM JSON (PS3.18 Annex F) straight from encoded bytes: no data set object is built in between.

Input is what an archive keeps of an object: the header slice and the trailer slice of ``scan``'s cuts (the
frames in between are not needed), or the whole data set where that is one slice. Output is UTF-8.

* Text is decoded and trimmed; (0008,0005) becomes ISO_IR 192, since that is what the text is in now.
* IS and DS are numbers when they are numbers, else the text as it was written. Numbers beyond 2^53 are text,
  because
  JSON's readers have no others (F.2.2); a NaN or infinity is null.
* An empty value has no ``Value`` (F.2.5); an empty one among several is null; so is an empty sequence none.
* Binary values up to ``inline_bytes_max`` are InlineBinary, little endian; longer ones, and top-level pixel
  data
  always, are a BulkDataURI that ends in ``bulkdata/`` and the path to the element: ``00880200/1/7FE00010`` is
  an element of the first item of a sequence. ``find_bulk`` follows such a path.
* UN gets the VR that PS3.6 or a known private creator gives the element (PS3.5 6.2.2).
* A sequence that takes an object past ``ELEMENTS_MAX`` is a UN with a BulkDataURI: its encoded items.
* Group lengths, group 2 and trailing padding are left out.
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Mapping
from itertools import pairwise
from struct import Struct
from typing import Any, Final, NamedTuple

import msgspec

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.cuts import native_frame_length
from hounsfield.archive.dicom.deflated import plain_header
from hounsfield.archive.dicom.dictionary import SIGNED_IF_PIXELS_ARE, VR_OF, private_vr_of, vr_of
from hounsfield.archive.dicom.json_likeness import Likeness, Met
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.text import DEFAULT_CHARACTER_SET, CharacterSet, character_set, decode, trim
from hounsfield.archive.dicom.walk import DEPTH_MAX, Budget, elements, items, looks_implicit
from hounsfield.codecs.frames import FrameShape
from hounsfield.codecs.registry import TransferSyntax

Buffer = bytes | bytearray | memoryview
Model = dict[str, Any]

#: Longer binary values become links. What viewers compute with (private scale factors, small lookup tables)
#: is shorter.
INLINE_BYTES_MAX: Final = 1024
#: Elements (and items) that one object's metadata may have at its top level, and in all its sequences
#: together: an enhanced object of 10,000 frames has about 600,000. A sequence that goes past is a link.
ELEMENTS_MAX: Final = 1_000_000
#: What a ``JsonWriter`` remembers; a series of CT slices needs 0.1 MB and two of the values of each slice.
MEMO_BYTES_MAX: Final = 8 << 20
LIKENESS_BYTES_MAX: Final = 1 << 20  # of a header whose stretches are compared; two are held
MEMO_VALUE_BYTES_MAX: Final = 8 << 10  # longer values seldom come twice, and hashing them costs
MEMO_ENTRY_BYTES: Final = 250  # of a dictionary's entry, its key and two byte objects
#: The largest integer that every JSON reader keeps exactly.
_EXACT: Final = 1 << 53

_KEY_OF: Final[dict[int, str]] = {tag: f"{tag:08X}" for tag in VR_OF}
_PLAIN, _TEXT, _PROSE, _NAME, _INTEGER, _DECIMAL, _NUMBERS, _TAGS, _SEQUENCE, _BINARY = range(10)
_KIND: Final[dict[str, int]] = (
    dict.fromkeys(("AE", "AS", "CS", "DA", "DT", "TM", "UI"), _PLAIN)
    | dict.fromkeys(("LO", "SH", "UC"), _TEXT)
    | dict.fromkeys(("LT", "ST", "UT", "UR"), _PROSE)
    | dict.fromkeys(("FL", "FD", "SL", "SS", "SV", "UL", "US", "UV"), _NUMBERS)
    | dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), _BINARY)
    | {"PN": _NAME, "IS": _INTEGER, "DS": _DECIMAL, "AT": _TAGS, "SQ": _SEQUENCE}
)
_CODE: Final = {"FL": "f", "FD": "d", "SL": "l", "SS": "h", "SV": "q", "UL": "L", "US": "H", "UV": "Q"}
_SIZE: Final = {"FL": 4, "FD": 8, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}
_WORD: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_ONE: Final = {
    (vr, little): Struct(("<" if little else ">") + code)
    for vr, code in _CODE.items()
    for little in (True, False)
}
_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_PADDING: Final = 0xFFFC0000
_PIXEL_REPRESENTATION: Final = 0x00280103
#: What changes how others are read, or depends on where it stands.
_NOT_REMEMBERED: Final = frozenset({*PIXEL_TAGS, _PIXEL_REPRESENTATION})
_to_bytes: Final = msgspec.json.encode
_SEQUENCE_ENDS: Final = (b"\xfe\xff\xdd\xe0", b"\xff\xfe\xe0\xdd")
_INTEGER_TEXT: Final = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_DECIMAL_TEXT: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)


def to_json(
    header: Buffer,
    trailer: Buffer,
    transfer_syntax: TransferSyntax,
    *,
    base_uri: str = "",
    inline_bytes_max: int = INLINE_BYTES_MAX,
) -> bytes:
    """One object's metadata as a DICOM JSON object. ``base_uri`` is put before ``bulkdata/…``.

    Never raises on bytes.

    PS3.18 F.2. Several objects are these, joined by commas, in brackets; a :class:`JsonWriter` is faster.
    """
    return JsonWriter(inline_bytes_max).write(header, trailer, transfer_syntax, base_uri=base_uri)


class JsonWriter:
    """Makes the metadata of objects that resemble each other, such as the slices of a series.

    An element that was met before, in the same bytes and under the same circumstances, is not encoded again:
    of a CT slice that is nine in ten. Not thread-safe. What it remembers is bounded by ``memo_bytes_max``.
    """

    def __init__(
        self, inline_bytes_max: int = INLINE_BYTES_MAX, memo_bytes_max: int = MEMO_BYTES_MAX
    ) -> None:
        self._inline_bytes_max = inline_bytes_max
        self._memo = _Memo(memo_bytes_max)
        self._likeness: dict[tuple[bool, bool], Likeness] = {}

    def write(
        self, header: Buffer, trailer: Buffer, transfer_syntax: TransferSyntax, *, base_uri: str = ""
    ) -> bytes:
        """As :func:`to_json`."""
        body = _body(header, transfer_syntax)
        little = transfer_syntax.little_endian
        implicit = looks_implicit(body, 0, len(body), transfer_syntax.implicit_vr)
        encoder = _Encoder(little, base_uri, self._inline_bytes_max, self._memo)
        likeness = self._likeness.setdefault((implicit, little), Likeness(implicit, little))
        met: list[Met] | None = None
        if len(body) <= LIKENESS_BYTES_MAX and not likeness.is_hopeless and not _has_elements(trailer):

            def encode(start: int, end: int, charset: CharacterSet, signed: bool, out: list[bytes]) -> None:
                encoder.signed = signed
                encoder.dataset(body, start, end, implicit, out, charset, "", 0)

            if (found := likeness.write(body, encode)) is not None:
                return b"{" + b",".join(found) + b"}"
            encoder = _Encoder(little, base_uri, self._inline_bytes_max, self._memo)
            met = []
        fragments: list[bytes] = []
        charset = encoder.dataset(body, 0, len(body), implicit, fragments, DEFAULT_CHARACTER_SET, "", 0, met)
        if met is not None:
            likeness.learn(body, met, fragments)
        if len(trailer):
            tail = bytes(trailer)
            start = _trailer_start(body, tail, fragments, little)
            encoder.budget = Budget(ends={})
            encoder.dataset(tail, start, len(tail), implicit, fragments, charset, "", 0)
        if any(a[:9] >= b[:9] for a, b in pairwise(fragments)):
            fragments = sorted({fragment[:9]: fragment for fragment in fragments}.values())
        return b"{" + b",".join(fragments) + b"}"


def _has_elements(trailer: Buffer) -> bool:
    """Whether there may be elements after the pixel data, and not just the delimiter of its items."""
    return len(trailer) > (8 if bytes(trailer[:4]) in _SEQUENCE_ENDS else 0)


def _body(header: Buffer, transfer_syntax: TransferSyntax) -> bytes:
    return plain_header(header, transfer_syntax)


def _trailer_start(header: bytes, trailer: bytes, fragments: list[bytes], little: bool) -> int:
    """Where elements begin in a trailer: after the sequence delimiter.

    Or after bytes that pad the last frame.
    """
    if trailer[:4] in _SEQUENCE_ENDS:
        return 8
    model: Model = msgspec.json.decode(
        b"{" + b",".join(fragment for fragment in fragments if fragment[1:5] in (b"0028", b"7FE0")) + b"}"
    )
    rows, columns = _count(model, "00280010"), _count(model, "00280011")
    tag = next((tag for tag in PIXEL_TAGS if f"{tag:08X}" in model), None)
    if not rows or not columns or tag is None or len(header) < 4:
        return 0
    declared = int.from_bytes(header[-4:], "little" if little else "big")
    bits = {0x7FE00008: 32, 0x7FE00009: 64}.get(tag) or _count(model, "00280100") or 8
    photometric = str(_first(model, "00280004") or "").upper()
    shape = FrameShape(rows, columns, _count(model, "00280002") or 1, bits, photometric)
    frames = _count(model, "00280008") or 1
    length = native_frame_length(shape, frames, declared)
    padding = declared - length * frames if length else 0
    return padding if 0 < padding <= len(trailer) else 0


def _first(model: Model, key: str) -> Any:
    values = model.get(key, {}).get("Value")
    return values[0] if values else None


def _count(model: Model, key: str) -> int:
    """A positive number, or 0 whatever else a writer put there."""
    value = _first(model, key)
    return value if isinstance(value, int) and value > 0 else 0


class _Memo:
    """Encoded elements and items by their bytes, apart for whatever else decides how they are encoded."""

    __slots__ = ("_bytes", "_bytes_max", "_kinds")

    def __init__(self, bytes_max: int) -> None:
        self._bytes = 0
        self._bytes_max = bytes_max
        self._kinds: dict[tuple[Any, ...], dict[Any, bytes]] = {}

    def kind(self, *circumstances: Any) -> dict[Any, bytes]:
        found = self._kinds.get(circumstances)
        if found is None:
            found = self._kinds[circumstances] = {}
        return found

    def keep(self, kind: dict[Any, bytes], key: Any, raw: bytes, fragment: bytes) -> None:
        self._bytes += len(raw) + len(fragment) + MEMO_ENTRY_BYTES
        if self._bytes > self._bytes_max:
            # What came once (UIDs, positions) goes with the rest; what comes again is soon back.
            for every in self._kinds.values():
                every.clear()
            self._bytes = 0
        kind[key] = fragment


class _TooManyElementsError(Exception):
    """An object's budget of elements is spent: the sequence that is being encoded becomes a link."""

    retry = False


class _Encoder:
    """One object's encoding: what stays the same at every depth."""

    __slots__ = ("base_uri", "budget", "inline_bytes_max", "left", "links", "little", "memo", "signed")

    def __init__(self, little: bool, base_uri: str, inline_bytes_max: int, memo: _Memo) -> None:
        self.little = little
        self.base_uri = base_uri
        self.inline_bytes_max = inline_bytes_max
        self.memo = memo
        self.signed = False
        self.links = 0  # made so far: what holds one depends on its path and is not remembered
        self.left = ELEMENTS_MAX
        self.budget = Budget(ends={})

    def dataset(  # noqa: PLR0917
        self,
        data: bytes,
        start: int,
        end: int,
        implicit: bool,
        fragments: list[bytes],
        charset: CharacterSet,
        path: str,
        depth: int,
        met: list[Met] | None = None,
    ) -> CharacterSet:
        """Append the elements of one data set or item to ``fragments``; the character set at its end.

        ``met`` is told about each.
        """
        little = self.little
        creators: dict[int, str] = {}
        key_of = _KEY_OF.get
        known = self.memo.kind(little, implicit, charset, self.signed, self.inline_bytes_max)
        for tag, written_vr, at, length, undefined in elements(
            data, start, end, implicit, little, self.budget
        ):
            vr = written_vr
            if met is not None:
                after = min(at + length + 8 if undefined else at + length, end)
                met.append(
                    Met(tag, after, len(fragments), self.links, charset, self.signed, written_vr == "UN")
                )
            if tag & 0x10000 and 0x10 <= tag & 0xFFFF <= 0xFF and length <= 64:
                creators[tag & 0xFFFF00FF] = data[at : at + length].decode("latin-1").strip(" \0")
            if vr == "UN":
                vr = self._known_vr(tag, creators, undefined)
            if depth:
                self.left -= 1
                if self.left < 0:
                    raise _TooManyElementsError
            elif len(fragments) >= ELEMENTS_MAX:
                return charset
            raw = None
            if length <= MEMO_VALUE_BYTES_MAX:
                raw = data[at : at + length]
                fragment = known.get((tag, written_vr, vr, raw, undefined))
                if fragment is not None:
                    fragments.append(fragment)
                    continue
            key = key_of(tag)
            if key is None:
                if not tag & 0xFFFF or tag >= _PADDING or tag >> 16 == 2:
                    continue
                key = f"{tag:08X}"
            elif tag >> 16 == 2 or not tag & 0xFFFF or tag >= _PADDING:
                continue
            if not depth and tag in PIXEL_TAGS:
                if undefined and implicit:
                    vr = "OB"  # Encapsulated pixel data is always bytes (PS3.5 A.4).
                if length or undefined or (at >= end and _declared(data, at, little)):
                    fragments.append(self._link(key, vr, key))
                else:
                    fragments.append(b'"%b":{"vr":"%b"}' % (key.encode(), vr.encode()))
                continue
            if tag == SPECIFIC_CHARACTER_SET and length:
                charset = character_set(data[at : at + length][:256])
                fragments.append(b'"00080005":{"vr":"%b","Value":["ISO_IR 192"]}' % vr.encode())
                known = self.memo.kind(little, implicit, charset, self.signed, self.inline_bytes_max)
                continue
            links = self.links
            fragment = self._element(
                data, at, length, key, tag, vr, written_vr, undefined, implicit, charset, path, depth
            )
            fragments.append(fragment)
            if tag == _PIXEL_REPRESENTATION and not depth:
                self.signed = fragment.endswith(b'"Value":[1]}')
                known = self.memo.kind(little, implicit, charset, self.signed, self.inline_bytes_max)
            elif raw is not None and links == self.links and tag not in _NOT_REMEMBERED:
                self.memo.keep(known, (tag, written_vr, vr, raw, undefined), raw, fragment)
        return charset

    def _element(  # noqa: PLR0917
        self,
        data: bytes,
        at: int,
        length: int,
        key: str,
        tag: int,
        vr: str,
        written_vr: str,
        undefined: bool,
        implicit: bool,
        charset: CharacterSet,
        path: str,
        depth: int,
    ) -> bytes:
        """One element as ``"GGGGEEEE":{…}``."""
        if vr == "SQ" and written_vr == "UN" and not undefined and not implicit:
            # PS3.5 6.2.2: the value of a UN element is in implicit VR little endian, whatever is around it.
            return self._sequence(data, at, length, key, True, charset, path, depth)
        if implicit and tag in SIGNED_IF_PIXELS_ARE and self.signed and vr == "US":
            vr = "SS"
        if not length:
            return b'"%b":{"vr":"%b"}' % (key.encode(), (vr if vr in _KIND else "UN").encode())
        kind = _KIND.get(vr, _BINARY)
        if kind == _SEQUENCE:
            return self._sequence(data, at, length, key, implicit, charset, path, depth)
        if kind == _BINARY or (kind == _NUMBERS and length > self.inline_bytes_max):
            return self._binary(data, at, length, key, vr, path)
        raw = data[at : at + length]
        values: list[Any] | None
        if kind <= _DECIMAL and raw.isascii() and b"\x1b" not in raw:
            # The fast path: ASCII is the same in every character set, and most values are one value.
            text = raw.decode("ascii")
            if kind <= _TEXT and "\\" not in text:
                text = text.strip(" \0")
                values = [text] if text else None
            else:
                values = text_values(text, vr)
        else:
            values = self._values(raw, vr, kind, charset)
        if not values:
            return b'"%b":{"vr":"%b"}' % (key.encode(), vr.encode())
        return b'"%b":{"vr":"%b","Value":%b}' % (key.encode(), vr.encode(), _to_bytes(values))

    def _known_vr(self, tag: int, creators: dict[int, str], undefined: bool) -> str:
        if undefined:
            return "SQ"
        if not tag & 0x10000:
            return vr_of(tag)
        if 0x10 <= tag & 0xFFFF <= 0xFF:
            return "LO"
        creator = creators.get((tag & 0xFFFF0000) | (tag >> 8 & 0xFF))
        vr = private_vr_of(creator, tag) if creator else None
        return vr if vr is not None and vr != "SQ" else "UN"

    def _values(self, raw: bytes, vr: str, kind: int, charset: CharacterSet) -> list[Any] | None:
        if kind == _NUMBERS:
            return self._numbers(raw, vr)
        if kind == _TAGS:
            order: Any = "little" if self.little else "big"
            return [
                f"{int.from_bytes(raw[i : i + 2], order):04X}{int.from_bytes(raw[i + 2 : i + 4], order):04X}"
                for i in range(0, len(raw) - 3, 4)
            ]
        if kind in (_TEXT, _PROSE, _NAME):
            text = decode(raw, charset)[0]
        else:
            text = raw.decode("ascii") if raw.isascii() else decode(raw, DEFAULT_CHARACTER_SET)[0]
        return text_values(text, vr)

    def _numbers(self, raw: bytes, vr: str) -> list[Any]:
        size = _SIZE[vr]
        if len(raw) == size:
            values: list[Any] = [_ONE[vr, self.little].unpack(raw)[0]]
        else:
            count = len(raw) // size
            values = list(Struct(f"{'<' if self.little else '>'}{count}{_CODE[vr]}").unpack_from(raw))
        if vr in ("FL", "FD"):
            return [value if math.isfinite(value) else None for value in values]
        if vr in ("SV", "UV"):
            return [value if -_EXACT <= value <= _EXACT else str(value) for value in values]
        return values

    def _sequence(  # noqa: PLR0917
        self,
        data: bytes,
        at: int,
        length: int,
        key: str,
        implicit: bool,
        charset: CharacterSet,
        path: str,
        depth: int,
    ) -> bytes:
        out: list[bytes] = []
        if depth < DEPTH_MAX:
            try:
                self._items(data, at, length, implicit, charset, f"{path}{key}/", depth + 1, out)
            except _TooManyElementsError:
                if depth:
                    raise
                return self._link(key, "UN", key)
        else:
            self.links += 1  # cut off because of where it stands: not to be remembered for other places
        if not out:
            return b'"%b":{"vr":"SQ"}' % key.encode()
        return b'"%b":{"vr":"SQ","Value":[%b]}' % (key.encode(), b",".join(out))

    def _items(  # noqa: PLR0917
        self,
        data: bytes,
        at: int,
        length: int,
        implicit: bool,
        charset: CharacterSet,
        path: str,
        depth: int,
        out: list[bytes],
    ) -> None:
        """Append the items of a sequence. Equal ones (segmentations have thousands) are encoded once."""
        known = self.memo.kind("item", self.little, charset, self.signed, self.inline_bytes_max)
        for start, end, item_implicit in items(data, at, at + length, implicit, self.little, self.budget):
            self.left -= 1
            if self.left < 0:
                raise _TooManyElementsError
            raw = data[start:end] if end - start <= MEMO_VALUE_BYTES_MAX else None
            if raw is not None:
                held = known.get((item_implicit, raw))
                if held is not None:
                    out.append(held)
                    continue
            links = self.links
            fragments: list[bytes] = []
            self.dataset(data, start, end, item_implicit, fragments, charset, f"{path}{len(out) + 1}/", depth)
            if len({fragment[:9] for fragment in fragments}) < len(fragments):
                fragments = list({fragment[:9]: fragment for fragment in fragments}.values())
            item = b"{" + b",".join(fragments) + b"}"
            out.append(item)
            if raw is not None and links == self.links:
                self.memo.keep(known, (item_implicit, raw), raw, item)

    def _binary(  # noqa: PLR0917
        self, data: bytes, at: int, length: int, key: str, vr: str, path: str
    ) -> bytes:
        if vr not in _KIND:
            vr = "UN"
        if length > self.inline_bytes_max:
            return self._link(key, vr, path + key)
        raw = data[at : at + length]
        if not self.little and vr in _WORD:
            raw = _swapped(raw, _WORD[vr])
        return b'"%b":{"vr":"%b","InlineBinary":"%b"}' % (key.encode(), vr.encode(), b64encode(raw))

    def _link(self, key: str, vr: str, path: str) -> bytes:
        self.links += 1
        uri = _to_bytes(f"{self.base_uri}bulkdata/{path}")
        return b'"%b":{"vr":"%b","BulkDataURI":%b}' % (key.encode(), vr.encode(), uri)


def _declared(data: bytes, at: int, little: bool) -> int:
    """The 32-bit length in front of a value: pixel data's when the header was cut off behind it."""
    return int.from_bytes(data[at - 4 : at], "little" if little else "big")


def _swapped(raw: bytes, size: int) -> bytes:
    """Words of ``size`` bytes with their bytes in the other order; a rest that is no word stays."""
    whole = len(raw) - len(raw) % size
    out = bytearray(raw)
    for i in range(size):
        out[i:whole:size] = raw[size - 1 - i : whole : size]
    return bytes(out)


def text_values(text: str, vr: str) -> list[Any] | None:
    """The JSON values of an attribute's text, several joined by backslashes.

    None when it is empty (PS3.18 F.2.3).
    """
    text = trim(text, vr)
    if not text:
        return None
    if vr in ("LT", "ST", "UT", "UR"):
        return [text]
    parts = text.split("\\") if "\\" in text else [text]
    if vr == "PN":
        return [_name(part) if part else None for part in parts]
    if vr == "IS":
        return [_integer(part) if part else None for part in parts]
    if vr == "DS":
        return [_decimal(part) if part else None for part in parts]
    return [part or None for part in parts]


def _name(text: str) -> dict[str, str]:
    if "=" not in text:
        return {"Alphabetic": text}
    return {group: part for group, part in zip(_GROUPS, text.split("="), strict=False) if part}


def _integer(text: str) -> int | str:
    if not _INTEGER_TEXT.fullmatch(text):
        return text
    value = int(text)
    return value if -_EXACT <= value <= _EXACT else text


def _decimal(text: str) -> float | int | str:
    if _INTEGER_TEXT.fullmatch(text):
        return _integer(text)
    if not _DECIMAL_TEXT.fullmatch(text):
        return text
    value = float(text)
    return value if math.isfinite(value) else text


_INTEGERS: Final = frozenset({"SL", "SS", "SV", "UL", "US", "UV"})


def attributes_to_model(*levels: tuple[Mapping[int, str], Mapping[int, str]]) -> Model:
    """One query answer out of pairs of (tag → text, tag → VR).

    The attributes that have a VR, in order of tags.
    """
    merged: list[tuple[int, str, str]] = sorted(
        (tag, vrs[tag], text) for attributes, vrs in levels for tag, text in attributes.items() if tag in vrs
    )
    model: Model = {}
    for tag, vr, text in merged:
        key = _KEY_OF.get(tag) or f"{tag:08X}"
        if not text:
            model[key] = {"vr": vr}
            continue
        values: list[Any] | None
        if vr in _INTEGERS:
            values = [_integer(part) if part else None for part in text.split("\\")]
        elif vr in ("FL", "FD"):
            values = [_decimal(part) if part else None for part in text.split("\\")]
        elif tag == SPECIFIC_CHARACTER_SET:
            values = ["ISO_IR 192"]
        else:
            values = text_values(text, vr)
        model[key] = {"vr": vr, "Value": values} if values else {"vr": vr}
    return model


def attributes_to_json(*levels: tuple[Mapping[int, str], Mapping[int, str]]) -> bytes:
    """One query answer as a DICOM JSON object (PS3.18 F.2, 10.6.3).

    Empty values keep their VR and nothing else.
    """
    return msgspec.json.encode(attributes_to_model(*levels))


class Bulk(NamedTuple):
    """A bulk element's value, as received: byte order is the transfer syntax's."""

    vr: str
    value: memoryview
    little_endian: bool


_PATH: Final = re.compile(r"[0-9A-Fa-f]{8}(?:/[1-9][0-9]{0,8}/[0-9A-Fa-f]{8}){0,32}", re.ASCII)


def find_bulk(header: Buffer, trailer: Buffer, transfer_syntax: TransferSyntax, path: str) -> Bulk | None:
    """The element that a BulkDataURI's path names, or None.

    No such path, no such element, or top-level pixel data.

    Pixel data is not in these slices; its frames are cut (``scan``).
    """
    if not _PATH.fullmatch(path):
        return None
    steps = path.split("/")
    body = _body(header, transfer_syntax)
    little = transfer_syntax.little_endian
    implicit = looks_implicit(body, 0, len(body), transfer_syntax.implicit_vr)
    if int(steps[0], 16) in PIXEL_TAGS:
        return None
    found = _find(body, 0, len(body), implicit, little, steps)
    if found is None and len(trailer):
        tail = bytes(trailer)
        fragments: list[bytes] = []
        encoder = _Encoder(little, "", INLINE_BYTES_MAX, _Memo(MEMO_BYTES_MAX))
        encoder.dataset(body, 0, len(body), implicit, fragments, DEFAULT_CHARACTER_SET, "", 0)
        start = _trailer_start(body, tail, fragments, little)
        found = _find(tail, start, len(tail), implicit, little, steps)
    return found


def _find(  # noqa: PLR0917
    data: bytes, start: int, end: int, implicit: bool, little: bool, steps: list[str]
) -> Bulk | None:
    wanted = int(steps[0], 16)
    for tag, vr, at, length, undefined in elements(data, start, end, implicit, little):
        if tag != wanted:
            continue
        if len(steps) == 1:
            # A sequence too is given, as it is encoded: metadata links to one that is too long for it.
            return Bulk("UN" if vr == "SQ" else vr, memoryview(data)[at : at + length], little)
        inner = implicit or (vr == "UN" and not undefined)
        for number, (item_start, item_end, item_implicit) in enumerate(
            items(data, at, at + length, inner, little), start=1
        ):
            if number == int(steps[1]):
                return _find(data, item_start, item_end, item_implicit, little, steps[2:])
        return None
    return None
