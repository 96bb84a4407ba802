"""A slow, obvious matcher, written from PS3.4 C.2.2.2 and from the archive's published choices.

It shares no code with ``hounsfield.archive.dicom.matching``: what both say is right in two ways.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from itertools import permutations

from pydicom.datadict import dictionary_VR, tag_for_keyword

WILDCARD_VRS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
LETTERS = {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "ħ": "h"}


def tag_of(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


def satisfies(keys: Mapping[str, str], attributes: Mapping[int, str], *, fuzzy: bool = False) -> bool:
    """Whether every key (by keyword) matches; attributes that are absent are empty (C.2.2.2.3)."""
    return all(
        key_matches(dictionary_VR(tag_of(keyword)), key, attributes.get(tag_of(keyword), ""), fuzzy)
        for keyword, key in keys.items()
    )


def key_matches(vr: str, key: str, text: str, fuzzy: bool = False) -> bool:
    if key == "" or (vr in WILDCARD_VRS and set(key) == {"*"}):
        return True  # C.2.2.2.3, C.2.2.2.4: universal
    if vr in {"LT", "ST", "UT", "UR"}:
        return wild(key, text)  # PS3.5 6.2: a backslash is a character of prose
    for wanted in key.split("\\"):  # C.2.2.2.2 for UIDs, and here for every list
        if vr == "UI" and not wanted:
            continue
        for value in text.split("\\"):
            if value and one_matches(vr, wanted, value, fuzzy):
                return True
    return False


def one_matches(vr: str, key: str, value: str, fuzzy: bool) -> bool:
    if key == "" or (vr in WILDCARD_VRS and set(key) == {"*"}):
        return True
    if vr == "PN":
        return words_match(key, value) if fuzzy else name_matches(key, value)
    if vr == "DA":
        return in_range(key, value, date)
    if vr == "TM":
        return in_range(key, value, clock)
    if vr == "IS":
        return int(key) == int(value) if value.strip().lstrip("+-").isdigit() else key == value
    if vr in WILDCARD_VRS:
        return wild(key, value)  # C.2.2.2.4, and C.2.2.2.1 when nothing in it is wild
    return key == value


def wild(pattern: str, value: str) -> bool:
    parts = [".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern]
    return re.fullmatch("".join(parts), value, re.DOTALL) is not None


# Person names: C.2.2.2.1 lets an archive ignore case and accents; this one does.


def bare(text: str) -> str:
    """No case, no accents of Latin, Greek and Cyrillic, one width."""
    apart = unicodedata.normalize("NFKD", text)
    kept = "".join(c for c in apart if not 0x300 <= ord(c) <= 0x36F)
    return "".join(LETTERS.get(c, c) for c in unicodedata.normalize("NFKC", kept).casefold())


def groups(text: str) -> list[list[str]]:
    """Components of the alphabetic, ideographic and phonetic group."""
    found = []
    for group in bare(text).split("=")[:3]:
        components = [component.strip() for component in group.split("^")]
        while components and not components[-1]:
            components.pop()
        found.append(components)
    return found


def name_matches(key: str, value: str) -> bool:
    wanted, have = groups(key), groups(value)
    if len(wanted) == 1:
        return any(group_matches(wanted[0], group) for group in have if group)
    have += [[]] * (3 - len(have))
    return all(
        set("^".join(want)) <= {"*"} or (group != [] and group_matches(want, group))
        for want, group in zip(wanted, have, strict=False)
    )


def group_matches(wanted: list[str], have: list[str]) -> bool:
    pattern = "^".join(wanted)
    if not set(pattern) & {"*", "?"}:
        return wanted == have
    # A component that is not there is as good as an empty one.
    padded = have + [""] * max(0, len(wanted) - max(1, len(have)))
    return wild(pattern, "^".join(have)) or wild(pattern, "^".join(padded))


def words_match(key: str, value: str) -> bool:
    """Each word of the key begins another word of the name, in any order."""
    wanted = [word for word in re.split(r"[\s^,=]+", bare(key)) if word]
    have = [word for word in re.split(r"[\s^,=]+", bare(value)) if word]
    if len(wanted) > len(have):
        return False
    return any(
        all(wild(word.rstrip("*") + "*", other) for word, other in zip(wanted, order, strict=True))
        for order in permutations(have, len(wanted))
    )


# Dates and times: C.2.2.2.5.


def date(text: str) -> tuple[str, str] | None:
    text = text.strip()
    found = re.fullmatch(r"([0-9]{4})\.?([0-9]{2})\.?([0-9]{2})", text)
    if found is None or not 1 <= int(found[2]) <= 12 or not 1 <= int(found[3]) <= 31:
        return None
    day = "".join(found.groups())
    return day, day


def clock(text: str) -> tuple[str, str] | None:
    """The first and the last microsecond that a time of some precision names."""
    text = text.strip()
    found = re.fullmatch(r"([0-9]{2})(?::?([0-9]{2})(?::?([0-9]{2})(\.[0-9]{1,6})?)?)?", text)
    if found is None or int(found[1]) > 23 or int(found[2] or 0) > 59 or int(found[3] or 0) > 60:
        return None
    hours, minutes, seconds, fraction = found.groups()
    digits = (fraction or ".")[1:]
    low = f"{hours}{minutes or '00'}{seconds or '00'}{digits:0<6}"
    high = f"{hours}{minutes or '59'}{seconds or '59'}{digits:9<6}"
    return low, high


def in_range(key: str, value: str, read) -> bool:  # type: ignore[no-untyped-def]
    have = read(value)
    if have is None:
        return False
    first, dash, last = key.partition("-")
    if not dash:
        last = first
    if not first.strip() and not last.strip():
        return False
    low = read(first) if first.strip() else ("", "")
    high = read(last) if last.strip() else ("~", "~")
    return low is not None and high is not None and low[0] <= have[0] <= high[1]
