"""What a worklist request asks for: tests for items, the lookups that lead to candidates, what is returned.

What PS3.4 K leaves open, or modalities do otherwise than it says:

* A sequence without items, or with one that is empty, asks for all that the sequence may have (K.2.2.1.2).
* Ranges of start date and start time are one range of moments (K.6.1.2.2, remark at the start time).
* An optional key that we do not have is neither matched nor returned, and answers are FF01.
* A key in a form that cannot be meant is refused (C000); it would match nothing, and nobody would know why.
* Who names neither a day nor a patient or request (an accession number, say) is answered with the days
  around today that the settings name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.dictionary import TAG_OF
from hounsfield.archive.dicom.find_identifier import (
    QUERY_RETRIEVE_LEVEL,
    Identifier,
    IdentifierError,
    Key,
    MismatchError,
    name_of,
    read_identifier,
)
from hounsfield.archive.dicom.matching import Period, date_range, matcher, moment_inside, moment_range
from hounsfield.archive.dicom.query import KEY_FORMS, QueryError, check_key
from hounsfield.archive.dicom.text import PROSE_VRS
from hounsfield.archive.plugins import TransferSyntax
from hounsfield.ris_plugin.modalities.worklist.answers import Wish, all_wishes
from hounsfield.ris_plugin.modalities.worklist.attributes import (
    ATTRIBUTES,
    SCHEDULED_STEP_SEQUENCE,
    Attribute,
    Table,
)
from hounsfield.ris_plugin.modalities.worklist.items import Item

__all__ = ["Lookups", "WorklistQuery", "worklist_query"]

VALUES_MAX: Final = 1000
"""In one key: each is compared with each candidate."""
QUERIES_REMEMBERED: Final = 64
"""A modality asks the same all day."""

Test = Callable[[Item], bool]

_CONTROL: Final = frozenset({SPECIFIC_CHARACTER_SET, 0x00080001})
_DATE, _TIME = TAG_OF["ScheduledProcedureStepStartDate"], TAG_OF["ScheduledProcedureStepStartTime"]


@dataclass(frozen=True, slots=True)
class Lookups:
    """Exact values by which candidates are found; None: the key does not restrict, or not so simply."""

    stations: tuple[str, ...] | None = None
    modalities: tuple[str, ...] | None = None
    patients: tuple[str, ...] | None = None
    accessions: tuple[str, ...] | None = None
    studies: tuple[str, ...] | None = None
    steps: tuple[str, ...] | None = None
    days: Period | None = None
    """First and last day, YYYYMMDD; "" or what is no number for open ends."""

    @property
    def is_broad(self) -> bool:
        """Whether neither a day nor anybody's request is named."""
        named = (self.patients, self.accessions, self.studies, self.steps, self.days)
        return all(one is None for one in named)


@dataclass(frozen=True, slots=True, eq=False)
class WorklistQuery:
    """One request, ready to be answered. The same bytes asked again are the same query."""

    tests: tuple[Test, ...]
    lookups: Lookups
    wishes: tuple[Wish, ...]
    unsupported: frozenset[int]
    character_set: bytes

    def matches(self, item: Item) -> bool:
        """Whether an item satisfies all keys."""
        return all(test(item) for test in self.tests)


@lru_cache(maxsize=QUERIES_REMEMBERED)
def worklist_query(data: bytes, syntax: TransferSyntax) -> WorklistQuery:
    """What an encoded identifier asks for. IdentifierError, MismatchError."""
    return _query(read_identifier(data, syntax))


def _query(identifier: Identifier) -> WorklistQuery:
    reader = _Reader()
    tests, wishes = reader.table(identifier.keys.values(), ATTRIBUTES)
    if not wishes:
        raise MismatchError("no key of a worklist is asked for", QUERY_RETRIEVE_LEVEL)
    return WorklistQuery(
        tuple(tests),
        _lookups(identifier),
        tuple(wishes),
        frozenset(reader.unsupported),
        identifier.character_set,
    )


# ---------------------------------------------------------------- tests and wishes


class _Reader:
    """Sorts one identifier's keys."""

    def __init__(self) -> None:
        self.unsupported: set[int] = set()

    def table(self, keys: Iterable[Key], table: Table) -> tuple[list[Test], list[Wish]]:
        """The tests of some keys, and what is returned of them."""
        tests: list[Test] = []
        wishes: list[Wish] = []
        known = {key.tag: key for key in keys if key.tag in table}
        self.unsupported |= {key.tag for key in keys if not (key.tag in table or _says_nothing(key))}
        moments = self._moments(known)
        if moments is not None:
            tests.append(moments)
        for tag, key in known.items():
            attribute = table[tag]
            test, below = self._key(key, attribute)
            wishes.append(Wish(tag, attribute.vr, below))
            if test is not None and not (moments is not None and tag in (_DATE, _TIME)):
                tests.append(test)
        return tests, wishes

    def _key(self, key: Key, attribute: Attribute) -> tuple[Test | None, tuple[Wish, ...]]:
        tag = key.tag
        if attribute.vr != "SQ":
            if not key.text:
                return None, ()
            _check(key, attribute.vr)
            same = matcher(attribute.vr, key.text)
            return lambda item: same(_text(item, tag)), ()
        if not any(key.items):
            return None, all_wishes(attribute.below)
        found = [self.table(item, attribute.below) for item in key.items]
        wishes = {wish.tag: wish for _, of_item in found for wish in of_item}
        below = tuple(wishes[each] for each in sorted(wishes))
        alternatives = tuple(tuple(tests) for tests, _ in found)
        if not all(alternatives):  # an item without a test matches whatever there is, and what is not there
            return None, below
        # One item must satisfy all keys of an item of the request (C.2.2.2.6).
        return (
            lambda item: any(
                all(test(one) for test in tests) for one in _items(item, tag) for tests in alternatives
            )
        ), below

    def _moments(self, keys: Mapping[int, Key]) -> Test | None:
        """Start date and time as one range, when both are there and the time is a range."""
        date, time = keys.get(_DATE), keys.get(_TIME)
        if date is None or time is None or not date.text or not time.text:
            return None
        for key, vr in ((date, "DA"), (time, "TM")):
            _check(key, vr)
        if "-" not in date.text:  # of one day: the times of that day
            return None
        period = moment_range(date.text, time.text)
        if period is None:
            return None
        return lambda item: moment_inside(period, _text(item, _DATE), _text(item, _TIME))


def _text(item: Item, tag: int) -> str:
    value = item.get(tag, "")
    return value if isinstance(value, str) else ""


def _items(item: Item, tag: int) -> tuple[Item, ...]:
    value = item.get(tag, ())
    return () if isinstance(value, str) else value


def _says_nothing(key: Key) -> bool:
    """Whether it is about the other keys: a character set, who has reserved a private block."""
    return key.tag in _CONTROL or (bool(key.tag & 0x10000) and not key.is_private)


def _check(key: Key, vr: str) -> None:
    if key.text.count("\\") >= VALUES_MAX and vr not in PROSE_VRS:
        raise IdentifierError(f"more than {VALUES_MAX} values in {name_of(key.tag)}: ask in several", key.tag)
    try:
        check_key(key.tag, vr if vr in KEY_FORMS else "LO", key.text)
    except QueryError as error:
        raise IdentifierError(str(error), key.tag) from None


# ---------------------------------------------------------------- where to look


def _lookups(identifier: Identifier) -> Lookups:
    top = identifier.keys
    scheduled = top.get(SCHEDULED_STEP_SEQUENCE)
    items = scheduled.items if scheduled is not None else ()
    inner = {key.tag: key for key in items[0]} if len(items) == 1 else {}
    return Lookups(
        stations=_exact(inner.get(TAG_OF["ScheduledStationAETitle"])),
        modalities=_exact(inner.get(TAG_OF["Modality"])),
        patients=_exact(top.get(TAG_OF["PatientID"])),
        accessions=_exact(top.get(TAG_OF["AccessionNumber"])),
        studies=_exact(top.get(TAG_OF["StudyInstanceUID"])),
        steps=_exact(inner.get(TAG_OF["ScheduledProcedureStepID"])),
        days=_days(inner.get(_DATE)),
    )


def _exact(key: Key | None) -> tuple[str, ...] | None:
    if key is None or not key.text or "*" in key.text or "?" in key.text:
        return None
    return tuple(dict.fromkeys(value for value in key.text.split("\\") if value))


def _days(key: Key | None) -> Period | None:
    if key is None or not key.text:
        return None
    found = [period for part in key.text.split("\\") if (period := date_range(part)) is not None]
    if not found:
        return None
    return min(low for low, _ in found), max(high for _, high in found)
