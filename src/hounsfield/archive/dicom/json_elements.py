"""Encoded elements as DICOM JSON, one after the other: the hot part of :mod:`~hounsfield.archive.dicom.json`.

Each becomes a *fragment*, ``"GGGGEEEE":{…}``. What was met before, in the same bytes and under the same
circumstances, is taken from a memo.
"""

from __future__ import annotations

import math
from base64 import b64encode
from struct import Struct
from typing import Any, Final

import msgspec

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.byte_order import WORD_BYTES, swapped
from hounsfield.archive.dicom.dictionary import SIGNED_IF_PIXELS_ARE, vr_among
from hounsfield.archive.dicom.json_likeness import Met
from hounsfield.archive.dicom.json_model import EXACT_MAX, KEY_OF, text_values
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.text import DEFAULT_CHARACTER_SET, CharacterSet, character_set, decode
from hounsfield.archive.dicom.walk import DEPTH_MAX, Budget, elements, items

#: Elements (and items) that one object's metadata may have at its top level, and in all its sequences
#: together: an enhanced object of 10,000 frames has about 600,000. A sequence that goes past is a link.
ELEMENTS_MAX: Final = 1_000_000
MEMO_VALUE_BYTES_MAX: Final = 8 << 10  # longer values seldom come twice, and hashing them costs
MEMO_ENTRY_BYTES: Final = 250  # of a dictionary's entry, its key and two byte objects

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
_ONE: Final = {
    (vr, little): Struct(("<" if little else ">") + code)
    for vr, code in _CODE.items()
    for little in (True, False)
}
_PADDING: Final = 0xFFFC0000
_PIXEL_REPRESENTATION: Final = 0x00280103
#: What changes how others are read, or depends on where it stands.
_NOT_REMEMBERED: Final = frozenset({*PIXEL_TAGS, _PIXEL_REPRESENTATION})
_to_bytes: Final = msgspec.json.encode


class Memo:
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


class Encoder:
    """One object's encoding: what stays the same at every depth."""

    __slots__ = ("base_uri", "budget", "inline_bytes_max", "left", "links", "little", "memo", "signed")

    def __init__(self, little: bool, base_uri: str, inline_bytes_max: int, memo: Memo) -> None:
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
        key_of = KEY_OF.get
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
        vr = vr_among(tag, creators)
        return "UN" if vr == "SQ" and tag & 0x10000 else vr

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
            return [value if -EXACT_MAX <= value <= EXACT_MAX else str(value) for value in values]
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
        inline = b64encode(raw if self.little else swapped(raw, WORD_BYTES.get(vr, 1)))
        return b'"%b":{"vr":"%b","InlineBinary":"%b"}' % (key.encode(), vr.encode(), inline)

    def _link(self, key: str, vr: str, path: str) -> bytes:
        self.links += 1
        uri = _to_bytes(f"{self.base_uri}bulkdata/{path}")
        return b'"%b":{"vr":"%b","BulkDataURI":%b}' % (key.encode(), vr.encode(), uri)


def _declared(data: bytes, at: int, little: bool) -> int:
    """The 32-bit length in front of a value: pixel data's when the header was cut off behind it."""
    return int.from_bytes(data[at - 4 : at], "little" if little else "big")
