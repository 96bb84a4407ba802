"""Text of HL7 v2: character sets (MSH-18, table 0211), escape sequences (2.7), moments (2.A.75), names."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Final

from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.records.base import NS

__all__ = ["Separators", "codec_of", "decoded", "encoded", "escaped", "moment", "moment_text", "unescaped"]

CODECS: Final = {
    "ASCII": "ascii",
    **{f"{iso}8859{part}": f"iso8859_{part}" for part in range(1, 17) if part != 12 for iso in ("", "ISO")},
    **{f"{name}125{page}": f"cp125{page}" for page in range(9) for name in ("WINDOWS", "CP")},
    "ISOIR6": "ascii",
    "ISOIR14": "shift_jis",  # JIS X 0201
    "ISOIR87": "iso2022_jp",
    "ISOIR159": "iso2022_jp_2",
    "GB180302000": "gb18030",
    "GB18030": "gb18030",
    "KSX1001": "euc_kr",
    "BIG5": "big5",
    "UNICODE": "utf_16",
    **{f"{unicode}UTF{bits}": f"utf_{bits}" for bits in (8, 16, 32) for unicode in ("", "UNICODE")},
    # Those who also speak DICOM name them as PS3.3 C.12.1.1.2 does.
    **{
        f"ISOIR{number}": f"iso8859_{part}"
        for number, part in (
            (100, 1), (101, 2), (109, 3), (110, 4), (144, 5), (127, 6), (126, 7), (138, 8), (148, 9),
            (166, 11), (203, 15),
        )
    },
    "ISOIR13": "shift_jis",
    "ISOIR149": "euc_kr",
    "ISOIR58": "gb2312",
    "ISOIR192": "utf_8",
}  # fmt: skip
"""Table 0211 and what senders call them otherwise, by letters and digits alone, and how Python calls them;
others are read as what they turn out to be."""
_NOT_OF_NAMES = re.compile(r"[^A-Z0-9]+")
FALLBACK: Final = "cp1252"
"""What senders that declare nothing, or lie, most often use beside UTF-8: Latin 1, with Windows' letters."""
REMEMBERED_MAX: Final = 1024
"""Moments: those of messages are mostly of the same seconds and days."""
_MOMENT = re.compile(
    r"(\d{4})(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,9}))?)?)?)?)?)?(?:([+-])(\d\d):?(\d\d))?",
    re.ASCII,
)


def codec_of(declared: str) -> str | None:
    """Python's name of the first character set that MSH-18 names; of several, the one that has others."""
    names = [CODECS.get(_NOT_OF_NAMES.sub("", one.upper())) for one in declared.split("~")]
    return next((name for name in reversed(names) if name is not None), None)


def decoded(data: bytes, assumed: str = "") -> tuple[str, str]:
    """A message as text, and the codec by which it was read: nothing of it is lost, whatever was declared.

    ``assumed``: the character set of those that declare none.
    """
    if b"\0" in data[:2] or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        codec = "utf_16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else (
            "utf_16_le" if data[1:2] == b"\0" else "utf_16_be")  # fmt: skip
        return data.decode(codec, "replace").lstrip("\ufeff"), codec
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\0", b"")
    header = data.split(b"\r", 1)[0].split(b"\n", 1)[0]
    fields = header.split(header[3:4]) if len(header) > 3 else []
    declared = fields[17].decode("ascii", "replace").replace(chr(header[5]), "~") if len(fields) > 17 else ""
    for known in (codec_of(declared), codec_of(assumed), "utf_8"):
        if known is not None and not known.startswith(("utf_16", "utf_32")):  # which have zeros
            try:
                return data.decode(known), known
            except UnicodeDecodeError:
                continue
    try:
        return data.decode(FALLBACK), FALLBACK
    except UnicodeDecodeError:
        return data.decode("latin_1"), "latin_1"


def encoded(text: str, codec: str) -> bytes:
    """Text as bytes of a character set; what it has not, as ``?`` beside what it has."""
    return text.encode(codec, "replace")


class Separators(str):
    """MSH-1 and MSH-2: field, component, repetition, escape, subcomponent."""

    __slots__ = ()

    @classmethod
    def of(cls, header: str) -> Separators:
        """Those of a message that begins so."""
        field = header[3:4] or "|"
        given = header[4:].split(field, 1)[0][:4]
        return cls(field + given + "^~\\&"[len(given) :])

    field = property(lambda self: self[0])
    component = property(lambda self: self[1])
    repetition = property(lambda self: self[2])
    escape = property(lambda self: self[3])
    subcomponent = property(lambda self: self[4])


USUAL: Final = Separators("|^~\\&")


def unescaped(text: str, separators: Separators) -> str:
    """Text as it is meant. Sequences for highlighting and unknown ones disappear, others' codes stay."""
    escape = separators[3]
    if escape not in text:
        return text
    out: list[str] = []
    rest = text
    while escape in rest:
        before, _, rest = rest.partition(escape)
        out.append(before)
        sequence, closed, after = rest.partition(escape)
        if not closed or len(sequence) > 256 or "\r" in sequence:
            out.append(escape)  # a lone backslash, as in a path: it stands for itself
            continue
        meant = _meant(sequence, separators)
        if meant is None:
            out.append(escape)
            continue
        out.append(meant)
        rest = after
    out.append(rest)
    return "".join(out)


def _meant(sequence: str, separators: Separators) -> str | None:
    simple = {"F": 0, "S": 1, "R": 2, "E": 3, "T": 4}
    if sequence in simple:
        return separators[simple[sequence]]
    if sequence in {"H", "N"}:
        return ""
    if sequence.startswith("X") and len(sequence) % 2 and len(sequence) > 1:
        try:
            data = bytes.fromhex(sequence[1:])
        except ValueError:
            return None
        text = decoded_bytes(data)
        return text.replace("\r\n", "\n").replace("\r", "\n")
    if sequence.startswith("."):
        command = sequence[1:3]
        if command in {"br", "ce"}:
            return "\n"
        if command == "sp":
            count = sequence[3:].strip().lstrip("+")
            return "\n" * min(int(count), 100) if count.isdigit() else "\n"
        if command in {"in", "ti", "sk", "fi", "nf"}:
            return " " if command == "sk" else ""
        return None
    if sequence[:1] in {"C", "M", "Z"} and re.fullmatch(r"[CMZ][0-9A-Fa-f]+", sequence):
        return ""
    return None


def decoded_bytes(data: bytes) -> str:
    """Bytes of a ``\\X..\\`` sequence: UTF-8 when they are that."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin_1")


_ESCAPES: Final = str.maketrans(
    {"|": "\\F\\", "^": "\\S\\", "~": "\\R\\", "\\": "\\E\\", "&": "\\T\\", "\n": "\\.br\\", "\r": "",
     **{chr(code): "" for code in range(32) if chr(code) not in "\r\n\t"}}
)  # fmt: skip


def escaped(text: str) -> str:
    """Text as it stands in a component, with the usual separators. No control character comes through."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_ESCAPES)


# ---------------------------------------------------------------- moments


@lru_cache(REMEMBERED_MAX)
def moment(text: str, zone: tzinfo, field: str = "") -> int:
    """A moment (TS, DTM) in nanoseconds since 1970; 0 for none. Without an offset it is the department's.

    A day alone begins at midnight. InvalidError names the field, not the value.
    """
    text = text.strip()
    if not text:
        return 0
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise InvalidError(f"{field or 'a moment'} is no YYYYMMDDHHMMSS", field)
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = found.groups()
    if sign is not None:
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        zone = timezone(-offset if sign == "-" else offset) if offset < timedelta(hours=24) else zone
    leap = second == "60"
    try:
        at = datetime(
            int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0),
            59 if leap else int(second or 0), tzinfo=zone,
        )  # fmt: skip
        whole = int(at.timestamp()) + leap
    except (ValueError, OverflowError):
        raise InvalidError(f"{field or 'a moment'} is no YYYYMMDDHHMMSS", field) from None
    return whole * NS + int((fraction or "").ljust(9, "0") or 0)


def day(text: str, field: str = "") -> str:
    """A day (DT, or the day of a TS) as YYYYMMDD; "" for none, and for a year or a month alone, be the rest
    left out or zeros."""
    text = text.strip()
    if len(text) < 8 or text[:4] == "0000" or "00" in (text[4:6], text[6:8]):
        return ""
    try:
        if not text[:8].isdecimal():
            raise ValueError
        date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        raise InvalidError(f"{field or 'a day'} is no YYYYMMDD", field) from None
    return text[:8]


def moment_text(moment_ns: int, zone: tzinfo, *, fraction: bool = False) -> str:
    """A moment in the department's time, with its offset."""
    if not moment_ns:
        return ""
    local, offset = _second_text(moment_ns // NS, zone)
    return f"{local}.{moment_ns % NS // 1_000_000:03}{offset}" if fraction else local + offset


@lru_cache(REMEMBERED_MAX)
def _second_text(second: int, zone: tzinfo) -> tuple[str, str]:
    at = datetime.fromtimestamp(second, UTC).astimezone(zone)
    return f"{at:%Y%m%d%H%M%S}", f"{at:%z}"
