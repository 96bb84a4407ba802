"""Does a value match a key: PS3.4 C.2.2.2, written to be read beside the standard.

Choices that the standard leaves open, and this archive's answers (they belong into a conformance statement):

* Person names ignore case and accents, with and without wildcards (``fold_name``). A key without ``=`` may
  match any of the alphabetic, ideographic and phonetic groups; a key with ``=`` matches group by group, and
  an empty group matches an empty or universal one only. Trailing empty components do not count. With fuzzy
  matching each word of the key begins a different word of the name, in any order.
* An attribute with several values matches when one of them does; a key with several (backslash) likewise.
* Times and date-times in keys stand for the whole period that their precision names: ``10`` is 10:00 until
  before
  11:00, both as a single value and as the end of a range.
* Numbers in text (IS, DS) are compared as numbers.
* Date and time ranges are two independent keys, unless combined matching was negotiated (C.2.2.2.5.4,
  ``moment_range``): then a range of times goes with the ends of the range of dates, and a date without a
  time is that day's beginning.
* Everything else is case sensitive. An absent or empty attribute matches universal keys only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC
from functools import lru_cache
from typing import Final

from hounsfield.archive.dicom.levels import WILDCARD_VRS

Predicate = Callable[[str], bool]

_PROSE: Final = frozenset({"LT", "ST", "UT", "UR"})
_NUMERIC: Final = frozenset({"DS", "IS", "US", "UL", "SS", "SL", "FL", "FD", "UV", "SV"})


def is_universal(value: str, vr: str) -> bool:
    """Whether a key matches everything (PS3.4 C.2.2.2.3, C.2.2.2.4).

    Empty, or only asterisks where those are wild.
    """
    return not value or (not value.strip("*") and vr in WILDCARD_VRS)


def matcher(vr: str, key: str, fuzzy: bool = False) -> Predicate:
    """The test that one key puts to an attribute's text (PS3.4 C.2.2.2)."""
    return (_matcher if len(key) <= _KEY_CHARS_SHORT else _long_matcher)(vr, key, fuzzy)


def _make_matcher(vr: str, key: str, fuzzy: bool) -> Predicate:
    if is_universal(key, vr):
        return lambda _: True
    if vr in _PROSE:
        return _text(key)
    if vr == "UI":
        return _uid(key)
    tests = [_single(vr, part, fuzzy) for part in key.split("\\")]

    def any_value_matches(text: str) -> bool:
        if not text:
            return False
        if "\\" not in text:
            return any(test(text) for test in tests)
        return any(test(value) for value in text.split("\\") if value for test in tests)

    return any_value_matches


_matcher = lru_cache(maxsize=512)(_make_matcher)
#: Of lists of thousands of UIDs, which are megabytes, only those in hand are kept.
_long_matcher = lru_cache(maxsize=4)(_make_matcher)
_KEY_CHARS_SHORT: Final = 1024


def _uid(key: str) -> Predicate:
    wanted = frozenset(uid.strip(" \0") for uid in key.split("\\") if uid)
    return lambda text: any(value.strip(" \0") in wanted for value in text.split("\\") if value)


def _single(vr: str, key: str, fuzzy: bool) -> Predicate:
    if is_universal(key, vr):
        return lambda _: True
    match vr:
        case "PN":
            return _fuzzy_name(key) if fuzzy else _name(key)
        case "DA":
            return _ranged(date_range(key), date_period)
        case "TM":
            return _ranged(time_range(key), time_period)
        case "DT":
            return _ranged(datetime_range(key), datetime_period)
    if vr in _NUMERIC:
        return _number(key)
    return _text(key)


def _text(key: str) -> Predicate:
    return wildcard(key) if "*" in key or "?" in key else key.__eq__


def _number(key: str) -> Predicate:
    wanted = _as_number(key)

    def same(text: str) -> bool:
        value = _as_number(text)
        return text.strip() == key.strip() if wanted is None or value is None else wanted == value

    return same


def _as_number(text: str) -> float | int | None:
    text = text.strip()
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return None


@lru_cache(maxsize=512)
def wildcard(pattern: str) -> Predicate:
    """The test :func:`wildcard_matches` for one pattern, which is taken apart only once."""
    if "?" in pattern or "*" not in pattern:
        return lambda text: wildcard_matches(pattern, text)
    first, *middle, last = pattern.split("*")
    pieces = [piece for piece in middle if piece]
    length_min = len(first) + len(last)

    def test(text: str) -> bool:
        end = len(text) - len(last)
        if len(text) < length_min or not text.startswith(first) or not text.endswith(last):
            return False
        at = len(first)
        for piece in pieces:
            at = text.find(piece, at, end)
            if at < 0:
                return False
            at += len(piece)
        return True

    return test


def wildcard_matches(pattern: str, text: str) -> bool:
    """``*`` is any run of characters, ``?`` is one (PS3.4 C.2.2.2.4).

    Time at most the product of the lengths.
    """
    p = t = 0
    star, resume = -1, 0
    while t < len(text):
        if p < len(pattern) and pattern[p] == "*":
            star, resume = p, t
            p += 1
        elif p < len(pattern) and (pattern[p] == "?" or pattern[p] == text[t]):
            p += 1
            t += 1
        elif star >= 0:
            resume += 1
            p, t = star + 1, resume
        else:
            return False
    return not pattern[p:].strip("*")


# Person names

_COMBINING: Final = re.compile("[\u0300-\u036f]")
_LETTERS: Final = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "ħ": "h"}
)
_WORDS: Final = re.compile(r"[\s^,=]+")
_SPACE: Final = re.compile(r"\s")


@lru_cache(maxsize=4096)
def fold_name(text: str) -> str:
    """A person name as it is compared: no case, no accents on Latin, Greek and Cyrillic.

    Full and half width alike.

    Voiced kana and Hangul stay whole: only U+0300–U+036F are taken off.
    """
    if text.isascii():
        return text.lower()
    bare = _COMBINING.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKC", bare).casefold().translate(_LETTERS)


def name_groups(text: str) -> list[str]:
    """The alphabetic, ideographic and phonetic group, folded.

    Without spaces around components or empty ones at the end.
    """
    return all_name_groups(text)[:3]


def all_name_groups(text: str) -> list[str]:
    """As :func:`name_groups`, with what stands behind the third group although nothing may."""
    folded = fold_name(text)
    if "=" not in folded and not _SPACE.search(folded):
        return [folded.rstrip("^")]
    return [
        "^".join([component.strip() for component in group.split("^")]).rstrip("^")
        for group in folded.split("=")
    ]


def _name(key: str) -> Predicate:
    wanted = name_groups(key)
    by_group = len(wanted) > 1

    def same(text: str) -> bool:
        groups = name_groups(text)
        if not by_group:
            return any(_group_matches(wanted[0], group) for group in groups if group)
        groups += [""] * (3 - len(groups))
        return all(
            not want.strip("*") or (group != "" and _group_matches(want, group))
            for want, group in zip(wanted, groups, strict=False)
        )

    return same


def _group_matches(wanted: str, group: str) -> bool:
    if "*" not in wanted and "?" not in wanted:
        return wanted == group
    # "DOE^*" asks for any given name, none included: give the name the carets that the key has.
    missing = wanted.count("^") - group.count("^")
    alike = wildcard(wanted)
    return alike(group) or (missing > 0 and alike(group + "^" * missing))


def name_words(text: str) -> list[str]:
    """The words of a name, folded, in order: what fuzzy matching compares."""
    return [word for word in _WORDS.split(fold_name(text)) if word]


def _fuzzy_name(key: str) -> Predicate:
    wanted = sorted(name_words(key), key=len, reverse=True)

    def alike(text: str) -> bool:
        left = name_words(text)
        for word in wanted:
            pattern = word if word.endswith("*") else word + "*"
            found = next((have for have in left if wildcard_matches(pattern, have)), None)
            if found is None:
                return False
            left.remove(found)
        return True

    return alike


# Dates and times. A period is a pair of texts that sort as moments do; a range is a period with open ends.

Period = tuple[str, str]
_OPEN: Final[Period] = ("", "\uffff")
_MIDNIGHT: Final = "000000.000000"
_DATE: Final = re.compile(r"(\d{4})[.]?(\d{2})[.]?(\d{2})", re.ASCII)
_TIME: Final = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?", re.ASCII)
_DATETIME: Final = re.compile(
    r"(\d{4})(?:(\d{2})(?:(\d{2})(?:(\d{2})(?:(\d{2})(?:(\d{2})(?:\.(\d{1,6}))?)?)?)?)?)?([+-]\d{4})?",
    re.ASCII,
)
_DATETIME_RANGE: Final = re.compile(r"(\d[\d.]*(?:[+-]\d{4}(?=-|$))?)?-(\d[\d.]*(?:[+-]\d{4})?)?", re.ASCII)


def _ranged(wanted: Period | None, period: Callable[[str], Period | None]) -> Predicate:
    if wanted is None:
        return lambda _: False
    low, high = wanted

    def inside(text: str) -> bool:
        have = period(text.strip())
        # A value less precise than the key lies inside when it begins inside.
        return have is not None and low <= have[0] <= high

    return inside


def _range(key: str, period: Callable[[str], Period | None]) -> Period | None:
    key = key.strip()
    if "-" not in key:
        return period(key)
    low, _, high = key.partition("-")
    return _between(low, high, period)


def _between(low: str, high: str, period: Callable[[str], Period | None]) -> Period | None:
    if not low.strip() and not high.strip():
        return None
    first = period(low.strip()) if low.strip() else _OPEN
    last = period(high.strip()) if high.strip() else _OPEN
    return None if first is None or last is None else (first[0], last[1])


def date_period(text: str) -> Period | None:
    """The day that a DA value names; the retired form YYYY.MM.DD is read too (PS3.5 6.2)."""
    found = _DATE.fullmatch(text)
    if found is None or not ("01" <= found[2] <= "12" and "01" <= found[3] <= "31"):
        return None
    day = found[1] + found[2] + found[3]
    return day, day


def time_period(text: str) -> Period | None:
    """The period of a day that a TM value names, HHMMSS.FFFFFF to HHMMSS.FFFFFF."""
    found = _TIME.fullmatch(text)
    if found is None or found[1] > "23" or (found[2] or "0") > "59" or (found[3] or "0") > "60":
        return None
    return _fill(found[1] + (found[2] or "") + (found[3] or ""), "000000", "235959", found[4])


def _fill(digits: str, lowest: str, highest: str, fraction: str | None) -> Period:
    fraction = fraction or ""
    return (
        digits + lowest[len(digits) :] + "." + fraction.ljust(6, "0"),
        digits + highest[len(digits) :] + "." + fraction.ljust(6, "9"),
    )


def datetime_period(text: str) -> Period | None:
    """The period that a DT value names. An offset from UTC is applied to values that have one.

    And only to those.
    """
    found = _DATETIME.fullmatch(text)
    if found is None:
        return None
    digits = "".join(part for part in found.groups()[:6] if part)
    low, high = _fill(digits, "00000101000000", "99991231235959", found[7])
    offset = found[8]
    if offset is None or len(digits) < 10:
        return low, high
    return _to_utc(low, offset), _to_utc(high, offset)


def _to_utc(moment: str, offset: str) -> str:
    from datetime import datetime, timedelta, timezone

    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    zone = (
        timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)) if minutes < 24 * 60 else None
    )
    if zone is None:
        return moment
    try:
        local = datetime.strptime(moment, "%Y%m%d%H%M%S.%f").replace(tzinfo=zone)
        return local.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f")
    except (ValueError, OverflowError):
        return moment


def date_range(key: str) -> Period | None:
    """A DA key, single or range, as (first day, last day); None when it is neither (PS3.4 C.2.2.2.5.1)."""
    return _range(key, date_period)


def time_range(key: str) -> Period | None:
    """A TM key, single or range (PS3.4 C.2.2.2.5.2)."""
    return _range(key, time_period)


def moment_range(date_key: str, time_key: str) -> Period | None:
    """The period YYYYMMDDHHMMSS.FFFFFF that a DA and a TM key name together (PS3.4 C.2.2.2.5.4).

    None when they are no pair: the times are no range, or either is a list. An end of the range of days that
    is open is open whatever the time.
    """
    if "-" not in time_key or "\\" in time_key or "\\" in date_key:
        return None
    days, times = date_range(date_key), time_range(time_key)
    if days is None or times is None:
        return None
    low = days[0] and days[0] + (times[0] or _MIDNIGHT)
    return low, days[1] + times[1] if days[1].isdigit() else days[1]


def moment_inside(wanted: Period, date: str, time: str) -> bool:
    """Whether a date and its time lie in a period of :func:`moment_range`; of several dates, one of them.

    A date without a time that can be read is that day's beginning.
    """
    low, high = wanted
    clock = time_period(time.strip())
    begins = _MIDNIGHT if clock is None else clock[0]
    days = (date_period(value.strip()) for value in date.split("\\"))
    return any(day is not None and low <= day[0] + begins <= high for day in days)


def datetime_range(key: str) -> Period | None:
    """A DT key, single or range (PS3.4 C.2.2.2.5.3).

    A minus before four last digits is an offset, not a range.
    """
    key = key.strip()
    single = datetime_period(key)
    if single is not None:
        return single
    found = _DATETIME_RANGE.fullmatch(key)
    return None if found is None else _between(found[1] or "", found[2] or "", datetime_period)
