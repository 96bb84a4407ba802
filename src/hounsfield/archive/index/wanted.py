"""What a query's keys ask of the tokens: for each key, the alternatives that it allows.

Each alternative is a conjunction: tokens that every study has which matches in that way. Written beside
``dicom.matching``; what a key is found by here must never be less than what matches there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hounsfield.archive.dicom.levels import MODALITIES_IN_STUDY
from hounsfield.archive.dicom.matching import date_range, is_universal, name_groups, name_words
from hounsfield.archive.index import grams
from hounsfield.archive.index.postings import Term
from hounsfield.archive.index.sealed import KeyedHash
from hounsfield.archive.index.tables import DAY_BYTES, STUDY_ID_BYTES
from hounsfield.archive.index.tokens import (
    BIRTH_DATE,
    EXACT_FIELDS,
    GRAM_FIELDS,
    MERGED_FIELDS,
    NAME_FIELDS,
    NO_DAY,
    STUDY_DATE,
    day_bytes,
    token,
)

MODALITY = 0x00080060
#: Tokens that one range of birth dates may be united from; a wider one is looked for study by study.
DATE_TOKENS_MAX = 400
_VRS = {MODALITIES_IN_STUDY: "CS", BIRTH_DATE: "DA", **dict.fromkeys(NAME_FIELDS, "PN")}

_BEFORE_ALL = b"\x00" * STUDY_ID_BYTES
_BEHIND_ALL = b"\xff" * STUDY_ID_BYTES


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to satisfy a key: all of ``exact`` (in ``token``), or one of each of ``merged`` (in ``gram``).

    Either may be empty: it narrows nothing.
    """

    exact: tuple[bytes, ...] = ()
    merged: tuple[Term, ...] = ()


ANYTHING = Alternative()


@dataclass(frozen=True, slots=True)
class Days:
    """Where in the order of studies the answers are: strictly behind ``after`` and before ``before``."""

    after: bytes | None = None
    before: bytes | None = None


def of_keys(
    hashes: KeyedHash, matches: Mapping[int, str], *, fuzzy: bool
) -> Iterator[tuple[Alternative, ...]]:
    """For each key that narrows anything, its alternatives; none: nothing can match."""
    for tag, key in matches.items():
        # A series' modality is one of its study's.
        field = MODALITIES_IN_STUDY if tag == MODALITY else tag
        if field not in EXACT_FIELDS and field not in MERGED_FIELDS:
            continue
        vr = _VRS.get(field, "LO")
        if is_universal(key, vr):
            continue
        found: list[Alternative] = []
        for part in key.split("\\"):
            if is_universal(part, vr):
                found.append(ANYTHING)
            elif field == BIRTH_DATE:
                found += _dates(hashes, part)
            elif field in NAME_FIELDS:
                found.append(_words(hashes, field, part) if fuzzy else _name(hashes, field, part))
            else:
                found.append(_text(hashes, field, part))
        if ANYTHING not in found:
            yield tuple(found)


def days_of(matches: Mapping[int, str]) -> Days | None:
    """The days that a Study Date key leaves; None when it leaves none. Odd dates are beside them."""
    key = matches.get(STUDY_DATE)
    if not key:
        return Days()
    if any(not part for part in key.split("\\")):
        return Days()
    periods = [period for part in key.split("\\") if (period := date_range(part)) is not None]
    if not periods:
        return None
    low, high = min(period[0] for period in periods), max(period[1] for period in periods)
    after = _next_to(day_bytes(high), -1) + _BEHIND_ALL if high.isdigit() else None
    before = (_next_to(day_bytes(low), +1) if low else NO_DAY) + _BEFORE_ALL
    return Days(after, before)


def _next_to(day: bytes, step: int) -> bytes:
    return (int.from_bytes(day, "big") + step).to_bytes(DAY_BYTES, "big")


def _text(hashes: KeyedHash, tag: int, key: str) -> Alternative:
    if "*" in key or "?" in key:
        return Alternative(merged=_grams(hashes, tag, grams.of_pattern(key.casefold())))
    exact = (token(hashes, EXACT_FIELDS[tag], key),) if tag in EXACT_FIELDS else ()
    if tag in MERGED_FIELDS:
        return Alternative(exact, ((token(hashes, MERGED_FIELDS[tag], key),),))
    return Alternative(exact, _grams(hashes, tag, grams.of_pattern(key.casefold())))


def _name(hashes: KeyedHash, tag: int, key: str) -> Alternative:
    exact: list[bytes] = []
    merged: list[Term] = []
    groups = name_groups(key)
    for group in groups:
        if len(groups) > 1 and not group.strip("*"):
            continue
        if "*" not in group and "?" not in group:
            if tag in EXACT_FIELDS:
                exact.append(token(hashes, EXACT_FIELDS[tag], group))
            else:
                merged.append((token(hashes, MERGED_FIELDS[tag], group),))
        merged += _grams(hashes, tag, grams.of_pattern(group, name=True))
        merged += [
            tuple(token(hashes, GRAM_FIELDS[tag], piece) for piece in pieces)
            for pieces in grams.of_component_ends(group)
        ]
    return Alternative(tuple(exact), tuple(merged))


def _words(hashes: KeyedHash, tag: int, key: str) -> Alternative:
    pieces: set[str] = set()
    for word in name_words(key):
        pieces |= grams.of_word_beginning(word)
    return Alternative(merged=_grams(hashes, tag, pieces))


def _grams(hashes: KeyedHash, tag: int, pieces: set[str]) -> tuple[Term, ...]:
    field = GRAM_FIELDS.get(tag)
    return () if field is None else tuple((token(hashes, field, piece),) for piece in sorted(pieces))


def _dates(hashes: KeyedHash, key: str) -> list[Alternative]:
    """A range as days, months, years and centuries that fill it; nothing when it is no date."""
    period = date_range(key)
    if period is None:
        return []
    low, high = period[0] or "00000000", period[1] if period[1].isdigit() else "99999999"
    prefixes = _cover("", low, high)
    if len(prefixes) > DATE_TOKENS_MAX:
        return [ANYTHING]
    field = MERGED_FIELDS[BIRTH_DATE]
    return [Alternative(merged=((token(hashes, field, prefix),),)) for prefix in prefixes]


def _cover(prefix: str, low: str, high: str) -> list[str]:
    """Prefixes of days (two digits a step): every day from ``low`` to ``high`` has one, no other has."""
    first, last = prefix.ljust(8, "0"), prefix.ljust(8, "9")
    if last < low or high < first:
        return []
    if prefix and low <= first and last <= high:
        return [prefix]
    if len(prefix) == 8:
        return [prefix]
    numbers = range(100) if len(prefix) < 4 else range(1, 13) if len(prefix) == 4 else range(1, 32)
    return [found for number in numbers for found in _cover(f"{prefix}{number:02d}", low, high)]
