"""A C-FIND request as a question to the catalog: which SOP class allows what (PS3.4 C.4.1, C.6).

:func:`find_request` puts an identifier's keys where they are answered: in the ``Query`` that the index
answers, in the stored headers of what that finds, or nowhere. What it decides where the standard leaves it
open, or where devices do otherwise than it says:

* The level must be one of the SOP class's; without one an identifier means nothing (A900, as DCMTK's and
  dcm4chee's archives have it).
* Without relational queries the unique keys above the level must be there (A900, PS3.4 C.4.1.2.1). Lists of
  UIDs, and wildcards in a patient's ID, are taken there too: what they find is well defined.
* Keys of levels above are matched, hierarchical or not. Of those below, a PATIENT query may have the
  study's: it finds the patients who have such a study; and a STUDY query Modality, as many devices send it:
  it stands for Modalities in Study. Neither is returned.
* What no index row holds is read from stored headers: for IMAGE anything, for the other levels what all
  instances of such have alike (``levels.HEADER_STUDY``, ``HEADER_SERIES``).
* All else is not supported (PS3.4 C.2.2.1.3): neither matched nor returned, and answers are FF01.
* A unique key of the level or above that was not asked for is returned all the same: an answer without it
  could not be used for anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Final

from hounsfield.archive.dicom.attributes import REQUEST_ATTRIBUTES_SEQUENCE, SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.dictionary import VR_OF
from hounsfield.archive.dicom.find_identifier import (
    QUERY_RETRIEVE_LEVEL,
    Identifier,
    IdentifierError,
    Key,
    MismatchError,
    name_of,
)
from hounsfield.archive.dicom.levels import (
    COMPUTED_INSTANCE,
    COMPUTED_SERIES,
    COMPUTED_STUDY,
    MATCHED_AT,
    MATCHED_INSTANCE,
    MATCHED_SERIES,
    MATCHED_STUDY,
    MODALITIES_IN_STUDY,
    Level,
    from_headers,
)
from hounsfield.archive.dicom.matching import moment_range
from hounsfield.archive.dicom.query import (
    DEFAULT_LIMITS,
    INDEXED_PATHS,
    KEY_FORMS,
    Moments,
    Path,
    Query,
    QueryError,
    check_key,
)
from hounsfield.archive.dicom.text import PROSE_VRS

PATIENT_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
PATIENT_STUDY_ONLY_FIND: Final = "1.2.840.10008.5.1.4.1.2.3.1"

#: The levels of each information model, from the top (PS3.4 C.6.1.1, C.6.2.1, C.6.3.1).
LEVELS: Final[Mapping[str, tuple[Level, ...]]] = {
    PATIENT_ROOT_FIND: (Level.PATIENT, Level.STUDY, Level.SERIES, Level.INSTANCE),
    STUDY_ROOT_FIND: (Level.STUDY, Level.SERIES, Level.INSTANCE),
    PATIENT_STUDY_ONLY_FIND: (Level.PATIENT, Level.STUDY),
}
UNIQUE_KEY: Final[Mapping[Level, int]] = {
    Level.PATIENT: 0x00100020,
    Level.STUDY: 0x0020000D,
    Level.SERIES: 0x0020000E,
    Level.INSTANCE: 0x00080018,
}

#: In one key of a query: each is looked up by itself.
UIDS_MAX: Final = 10_000
#: In one other key: each is compared with each candidate, a microsecond for a name.
VALUES_MAX: Final = 1000

RETRIEVE_AE_TITLE: Final = 0x00080054
INSTANCE_AVAILABILITY: Final = 0x00080056
_TIMEZONE: Final = 0x00080201
_QUERY_RETRIEVE_VIEW: Final = 0x00080053
_LENGTH_TO_END: Final = 0x00080001
_MODALITY: Final = 0x00080060
_PATIENT_GROUP: Final = 0x0010
#: Counted when they are asked for: what the archive has of a patient (PS3.4 Table C.6-1).
PATIENT_STUDIES, PATIENT_SERIES, PATIENT_INSTANCES = 0x00201200, 0x00201202, 0x00201204
PATIENT_COUNTS: Final = frozenset({PATIENT_STUDIES, PATIENT_SERIES, PATIENT_INSTANCES})
#: Said of every answer (PS3.4 C.4.1.1.3.2), whatever a request says about them.
_ALWAYS: Final = frozenset({QUERY_RETRIEVE_LEVEL, RETRIEVE_AE_TITLE, INSTANCE_AVAILABILITY})
#: Of the request itself; never matched and never returned as a key.
_CONTROL: Final = frozenset({SPECIFIC_CHARACTER_SET, _QUERY_RETRIEVE_VIEW, _LENGTH_TO_END, *_ALWAYS})
#: The date and time attributes that are one moment together.
_PAIRS: Final = (
    (0x00080020, 0x00080030),  # study
    (0x00080021, 0x00080031),  # series
    (0x00080022, 0x00080032),  # acquisition
    (0x00080023, 0x00080033),  # content
    (0x00080012, 0x00080013),  # instance creation
    (0x00100030, 0x00100032),  # patient's birth
    (0x00400244, 0x00400245),  # performed procedure step start
)


class Origin(IntEnum):
    """Where the value of an attribute that is returned comes from."""

    STUDY = 0
    SERIES = 1
    INSTANCE = 2
    #: The same in every answer, or counted.
    EXTRA = 3
    HEADER = 4


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What SOP class extended negotiation has agreed (PS3.4 C.5.1.1, Table C.5-2)."""

    relational: bool = False
    combined: bool = False
    fuzzy: bool = False

    @classmethod
    def of(cls, agreed: bytes) -> Negotiated:
        """The meaning of an answer of :func:`agree`, b"" when nothing was negotiated."""
        flags = [byte == 1 for byte in agreed[:3].ljust(3, b"\0")]
        return cls(*flags)


def agree(asked: bytes) -> bytes:
    """The answer to what a requestor asks, byte by byte as long as its own (PS3.4 C.5.1.1.2).

    Relational queries, combined date-time matching and fuzzy matching of names: yes when asked. Timezone
    adjustment, enhanced multi-frame conversion, empty value and multiple value matching: no.
    """
    return bytes(int(number < 3 and byte == 1) for number, byte in enumerate(asked))


@dataclass(frozen=True, slots=True)
class FindRequest:
    """A C-FIND request, ready to be answered."""

    query: Query
    #: What an answer has, in the order of tags, and where it comes from. Private creators come by themselves.
    returned: tuple[tuple[Key, Origin], ...]
    #: Keys that only stored headers can satisfy.
    verified: tuple[Key, ...]
    #: What is to be read of each header, for ``verified`` and ``returned``.
    paths: frozenset[Path]
    #: Keys that are neither matched nor returned, or returned but not matched.
    unsupported: frozenset[int]
    character_set: bytes

    @property
    def counts_patients(self) -> bool:
        """Whether answers say how much the archive has of their patient."""
        return any(key.tag in PATIENT_COUNTS for key, _ in self.returned)


def find_request(sop_class_uid: str, identifier: Identifier, negotiated: Negotiated) -> FindRequest:
    """What an identifier asks for. MismatchError, or IdentifierError when a key's form is wrong."""
    level = _level(sop_class_uid, identifier)
    above = LEVELS[sop_class_uid]
    _check_unique_keys(above[: above.index(level)], identifier, negotiated)
    builder = _Builder(level, negotiated)
    for key in identifier.keys.values():
        if key.tag not in _CONTROL:
            builder.take(key)
    for each in above[: above.index(level) + 1]:
        if UNIQUE_KEY[each] not in identifier.keys:
            builder.take(Key(UNIQUE_KEY[each], VR_OF[UNIQUE_KEY[each]]))
    return builder.request(identifier.character_set)


def _level(sop_class_uid: str, identifier: Identifier) -> Level:
    text = identifier.text(QUERY_RETRIEVE_LEVEL).upper()
    if not text:
        raise MismatchError("QueryRetrieveLevel is missing", QUERY_RETRIEVE_LEVEL)
    levels = LEVELS[sop_class_uid]
    for level in levels:
        if level.value == text:
            return level
    names = ", ".join(each.value for each in levels)
    raise MismatchError(f"QueryRetrieveLevel must be one of {names}", QUERY_RETRIEVE_LEVEL)


def _check_unique_keys(above: Iterable[Level], identifier: Identifier, negotiated: Negotiated) -> None:
    if negotiated.relational:
        return
    missing = [UNIQUE_KEY[level] for level in above if not identifier.text(UNIQUE_KEY[level])]
    if missing:
        names = ", ".join(name_of(tag) for tag in missing)
        raise MismatchError(f"{names} missing: relational queries were not negotiated", *missing)


class _Builder:
    """Sorts one identifier's keys."""

    def __init__(self, level: Level, negotiated: Negotiated) -> None:
        self._level = level
        self._negotiated = negotiated
        self._matched = MATCHED_AT[level]
        self._origins = _origins(level)
        self._matches: dict[int, str] = {}
        self._returned: list[tuple[Key, Origin]] = []
        self._verified: list[Key] = []
        self._paths: set[Path] = set()
        self._unsupported: set[int] = set()

    def take(self, key: Key) -> None:
        tag = key.tag
        if key.tag & 0x10000 and not key.is_private:
            return  # who reserved a private block; returned with what stands in it
        origin = self._origins.get(tag)
        if origin is not None:
            self._returned.append((key, origin))
            if tag in self._matched:
                self._match(tag, key)
            elif not key.is_universal:
                self._unsupported.add(tag)
            return
        if tag in self._matched:  # of a level whose attributes are matched and not returned
            self._match(tag, key)
            self._unsupported.add(tag)
            return
        if tag == _MODALITY and not key.is_universal and self._level is Level.STUDY:
            if MODALITIES_IN_STUDY not in self._matches:
                self._match(MODALITIES_IN_STUDY, key)
            self._unsupported.add(tag)
            return
        if not from_headers(self._level, tag):
            self._unsupported.add(tag)
            return
        self._returned.append((key, Origin.HEADER))
        paths = set(_paths_of(key))
        self._paths |= paths
        if key.is_universal:
            return
        _check(key)
        if tag == REQUEST_ATTRIBUTES_SEQUENCE:
            self._request_attributes(key)
        else:
            self._verified.append(key)

    def _match(self, tag: int, key: Key) -> None:
        if key.is_universal:
            return
        _check_text(tag, self._matched[tag], key)
        self._matches[tag] = key.text

    def _request_attributes(self, key: Key) -> None:
        """Steps and procedures are in the index; what must stand in one item together is not."""
        wanted = [below for item in key.items for below in item if not below.is_universal]
        for below in wanted:
            if (key.tag, below.tag) in INDEXED_PATHS and len(key.items) == 1:
                self._match(below.tag, below)
        if len(wanted) > 1 or (key.tag, wanted[0].tag) not in INDEXED_PATHS:
            self._verified.append(key)

    def request(self, character_set: bytes) -> FindRequest:
        for tag in _ALWAYS:
            self._returned.append((Key(tag, "CS" if tag != RETRIEVE_AE_TITLE else "AE"), Origin.EXTRA))
        moments: list[Moments] = []
        if self._negotiated.combined:
            for date, time in _PAIRS:
                period = moment_range(self._matches.get(date, ""), self._matches.get(time, ""))
                if period is not None:
                    del self._matches[time]
                    moments.append(Moments(date, time, period))
        return FindRequest(
            Query(
                self._level,
                self._matches,
                fuzzy=self._negotiated.fuzzy,
                moments=tuple(moments),
            ),
            tuple(sorted(self._returned, key=lambda one: one[0].tag)),
            tuple(self._verified),
            frozenset(self._paths),
            frozenset(self._unsupported),
            character_set,
        )


def _check(key: Key) -> None:
    """IdentifierError when a key, or one in its items, is not in the form that its VR wants."""
    if key.text:
        _check_text(key.tag, key.vr, key)
    for below in (each for item in key.items for each in item):
        _check(below)


def _check_text(tag: int, vr: str, key: Key) -> None:
    values_max = UIDS_MAX if vr == "UI" else VALUES_MAX
    if key.text.count("\\") >= values_max and vr not in PROSE_VRS:
        raise IdentifierError(f"more than {values_max} values in {name_of(tag)}: ask in several", tag)
    if vr != "UI" and len(key.text) > DEFAULT_LIMITS.value_chars_max:
        raise IdentifierError(f"{name_of(tag)} is too long", tag)
    if vr not in KEY_FORMS:
        vr = "LO"  # compared as text, so wildcards may be in it
    try:
        check_key(tag, vr, key.text)
    except QueryError as error:
        raise IdentifierError(str(error), key.tag) from None


@cache
def _origins(level: Level) -> Mapping[int, Origin]:
    """Every attribute that a level's answers can have without a header being read."""
    counts = dict.fromkeys(PATIENT_COUNTS, Origin.EXTRA)
    if level is Level.PATIENT:
        patients = (tag for tag in MATCHED_STUDY if tag >> 16 == _PATIENT_GROUP)
        return dict.fromkeys(patients, Origin.STUDY) | counts
    found = dict.fromkeys((*MATCHED_STUDY, _TIMEZONE), Origin.STUDY) | counts
    if level is not Level.STUDY:
        found |= dict.fromkeys(MATCHED_SERIES, Origin.SERIES)
    if level is Level.INSTANCE:
        found |= dict.fromkeys(MATCHED_INSTANCE, Origin.INSTANCE)
    return found


#: What those are written as.
VRS: Final[Mapping[int, str]] = (
    MATCHED_STUDY
    | MATCHED_SERIES
    | MATCHED_INSTANCE
    | COMPUTED_STUDY
    | COMPUTED_SERIES
    | COMPUTED_INSTANCE
    | {_TIMEZONE: "SH"}
    | dict.fromkeys(PATIENT_COUNTS, "IS")
)


def _paths_of(key: Key, around: Path = ()) -> Iterable[Path]:
    """What a key asks of a header: itself whole, or of a sequence with keys in it those."""
    path = (*around, key.tag)
    below = [each for item in key.items for each in item]
    if not below:
        yield path
    for each in below:
        yield from _paths_of(each, path)
