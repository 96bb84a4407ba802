"""Text out of bytes: Specific Character Set with code extensions (PS3.5 6.1.2), trimmed per VR.

Never raises.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

#: VRs whose bytes are in the character set of (0008,0005); all other text is the default repertoire.
CHARACTER_SET_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
#: VRs in which leading spaces mean something and a backslash is a character (PS3.5 6.2).
PROSE_VRS: Final = frozenset({"LT", "ST", "UT", "UR"})

_ESCAPE: Final = b"\x1b"
_ASCII: Final = "ascii"
#: Escape sequences that switch to a set whose Python codec wants to see them itself.
_STATEFUL: Final = frozenset({"iso2022_jp", "iso2022_jp_2"})
#: Escape sequence to Python's codec (PS3.3 Tables C.12-3 and C.12-4). This and the next table are pydicom's,
#: as a test checks: to import it takes 0.3 s of CPU time.
_BY_ESCAPE: Final = {
    b"\x1b(B": "iso8859",
    b"\x1b-A": "latin_1",
    b"\x1b)I": "shift_jis",
    b"\x1b(J": "shift_jis",
    b"\x1b$B": "iso2022_jp",
    b"\x1b-B": "iso8859_2",
    b"\x1b-C": "iso8859_3",
    b"\x1b-D": "iso8859_4",
    b"\x1b-F": "iso_ir_126",
    b"\x1b-G": "iso_ir_127",
    b"\x1b-H": "iso_ir_138",
    b"\x1b-L": "iso_ir_144",
    b"\x1b-M": "iso_ir_148",
    b"\x1b-T": "iso_ir_166",
    b"\x1b$)C": "euc_kr",
    b"\x1b$(D": "iso2022_jp_2",
    b"\x1b$)A": "iso_ir_58",
}
#: Defined term of (0008,0005) to Python's codec (PS3.3 C.12.1.1.2).
_BY_TERM: Final = {
    "": "iso8859",
    "ISO_IR 6": "iso8859",
    "ISO 2022 IR 6": "iso8859",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 100": "latin_1",
    "ISO_IR 101": "iso8859_2",
    "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4",
    "ISO_IR 126": "iso_ir_126",
    "ISO_IR 127": "iso_ir_127",
    "ISO_IR 138": "iso_ir_138",
    "ISO_IR 144": "iso_ir_144",
    "ISO_IR 148": "iso_ir_148",
    "ISO_IR 166": "iso_ir_166",
    "ISO 2022 IR 13": "shift_jis",
    "ISO 2022 IR 87": "iso2022_jp",
    "ISO 2022 IR 100": "latin_1",
    "ISO 2022 IR 101": "iso8859_2",
    "ISO 2022 IR 109": "iso8859_3",
    "ISO 2022 IR 110": "iso8859_4",
    "ISO 2022 IR 126": "iso_ir_126",
    "ISO 2022 IR 127": "iso_ir_127",
    "ISO 2022 IR 138": "iso_ir_138",
    "ISO 2022 IR 144": "iso_ir_144",
    "ISO 2022 IR 148": "iso_ir_148",
    "ISO 2022 IR 149": "euc_kr",
    "ISO 2022 IR 159": "iso2022_jp_2",
    "ISO 2022 IR 166": "iso_ir_166",
    "ISO 2022 IR 58": "iso_ir_58",
    "ISO_IR 192": "UTF8",
    "GB18030": "GB18030",
    "ISO 2022 GBK": "GBK",
    "ISO 2022 58": "GB2312",
    "GBK": "GBK",
}
#: Latin alphabet No. 9 came into the standard later than into pydicom.
_BY_TERM_TOO: Final = {"ISO_IR 203": "iso8859_15", "ISO 2022 IR 203": "iso8859_15"}
_BY_ESCAPE_TOO: Final = {b"\x1b-b": "iso8859_15"}
#: Defined terms of Specific Character Set (PS3.3 C.12.1.1.2) and the codec of each.
CHARACTER_SETS: Final = _BY_TERM | _BY_TERM_TOO
_ESCAPES: Final = _BY_ESCAPE | _BY_ESCAPE_TOO
_DELIMITERS: Final = b"\r\n\t\f\\^="


class CharacterSet(NamedTuple):
    """How to decode text: the codec in force at the start of each value.

    And whether code extensions were declared.
    """

    codec: str
    #: False: some term of (0008,0005) is none that PS3.3 C.12.1.1.2 defines.
    known: bool
    #: True: nothing was declared, so only ASCII is rightful.
    default: bool = False


DEFAULT_CHARACTER_SET: Final = CharacterSet(_ASCII, True, True)


@lru_cache(maxsize=256)
def character_set(raw: bytes) -> CharacterSet:
    """The character set that a raw value of Specific Character Set (0008,0005) declares."""
    terms = [term.strip(b" \0").decode("latin-1") for term in raw.split(b"\\")]
    if not any(terms):
        return DEFAULT_CHARACTER_SET
    known = True
    first = _ASCII
    for index, term in enumerate(terms):
        codec, sound = _codec_of(term)
        known = known and sound
        if index == 0:
            first = codec
    return CharacterSet(first, known, first == _ASCII)


def _codec_of(term: str) -> tuple[str, bool]:
    if term in ("", "ISO_IR 6", "ISO 2022 IR 6"):
        return _ASCII, True
    codec = CHARACTER_SETS.get(term)
    if codec is None:
        # "ISO-IR 100", "ISO_IR_100", "iso_ir 192", "ISO 2022-IR 87": what people write instead.
        words = term.upper().replace("_", " ").replace("-", " ")
        number = words.rpartition(" ")[2]
        for candidate in (
            f"ISO 2022 IR {number}" if "2022" in words else f"ISO_IR {number}",
            f"ISO_IR {number}",
        ):
            codec = CHARACTER_SETS.get(candidate)
            if codec is not None:
                return _python_name(codec), False
        return ("utf-8" if words in ("UTF8", "UTF 8", "UNICODE") else _ASCII), False
    return _python_name(codec), True


def _python_name(codec: str) -> str:
    # iso2022_jp as the *first* set means ASCII until an escape; its codec does exactly that.
    return "gb2312" if codec == "iso_ir_58" else codec


def decode(raw: bytes, charset: CharacterSet) -> tuple[str, bool]:
    """Text and whether every byte was rightful in the declared character set.

    Bytes that are not become what they most likely mean: UTF-8 if they are that, else Latin-1 when nothing
    was declared, else the replacement character.
    """
    if _ESCAPE in raw:
        return _decode_extended(raw, charset)
    if raw.isascii() and charset.codec != "shift_jis":
        return raw.decode(_ASCII), True
    try:
        return raw.decode(charset.codec), True
    except UnicodeError:
        return _decode_wrong(raw, charset), False


def _decode_wrong(raw: bytes, charset: CharacterSet) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeError:
        return raw.decode("latin-1") if charset.default else raw.decode(charset.codec, "replace")


def _decode_extended(raw: bytes, charset: CharacterSet) -> tuple[str, bool]:
    """Decode with ISO 2022 escape sequences (PS3.5 6.1.2.5.3)."""
    pieces = raw.split(_ESCAPE)
    out: list[str] = []
    sound = True
    if pieces[0]:
        text, sound = decode(pieces[0], charset)
        out.append(text)
    for piece in pieces[1:]:
        escape = _ESCAPE + piece[:2]
        codec = _ESCAPES.get(escape)
        if codec is None:
            escape = _ESCAPE + piece[:3]
            codec = _ESCAPES.get(escape)
        if codec is None:
            sound = False
            out.append(piece.decode(_ASCII, "replace"))
            continue
        body = piece[len(escape) - 1 :]
        if codec in _STATEFUL:
            try:
                out.append((escape + body).decode(codec))
            except UnicodeError:
                sound = False
                out.append((escape + body).decode(codec, "replace"))
            continue
        # A delimiter puts the initial set back, without an escape sequence.
        cut = next((at for at, byte in enumerate(body) if byte in _DELIMITERS), len(body))
        codec = _ASCII if codec == "iso8859" else _python_name(codec)
        text, good = decode(body[:cut], CharacterSet(codec, True, codec == _ASCII))
        out.append(text)
        sound = sound and good
        if cut < len(body):
            text, good = decode(body[cut:], charset)
            out.append(text)
            sound = sound and good
    return "".join(out), sound


def trim(text: str, vr: str) -> str:
    """Text without the padding that its VR allows (PS3.5 6.2); each value of several is trimmed."""
    if vr in PROSE_VRS:
        return text.rstrip(" \0")
    padding = " \0"
    if "\\" in text:
        text = "\\".join([part.strip(padding) for part in text.split("\\")])
    else:
        text = text.strip(padding)
    # Empty groups at the end of a name are as good as none.
    return text.rstrip("=") if vr == "PN" and text.endswith("=") else text
