"""Queries: what QIDO-RS parameters ask, as one frozen value that the planner.

The matcher and the oracle share.

``parse_qido`` reads PS3.18 8.3.4 parameters; ``matches`` says whether a record satisfies it (value by value:
``matching``). A query has *matches* (tag to key, the key in PS3.4 C.2.2.2's notation: wildcards, ranges,
backslash lists) and *includes* (tags to return besides those always returned).

What PS3.18 leaves to the server: an attribute that this archive does not match on, and a parameter that it
does not know, are ignored and named in ``warnings`` (the route puts them into Warning headers), as PS3.4
C.2.2.1.3 treats an unsupported optional key. A malformed value of one that it does match on is a
``QueryError`` (400).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from hounsfield.archive.dicom.attributes import (
    REQUEST_ATTRIBUTES_SEQUENCE,
    SERIES_INSTANCE_UID,
    STUDY_INSTANCE_UID,
)
from hounsfield.archive.dicom.dictionary import KEYWORD_OF, TAG_OF
from hounsfield.archive.dicom.levels import (
    MATCHED_AT,
    MATCHED_INSTANCE,
    MATCHED_SERIES,
    MATCHED_STUDY,
    WILDCARD_VRS,
    Level,
)
from hounsfield.archive.dicom.matching import (
    Period,
    date_range,
    datetime_range,
    is_universal,
    matcher,
    moment_inside,
    time_range,
)


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What one query may hold."""

    #: More keys than any table of PS3.18 has rows.
    parameters_max: int = 256
    #: All values together: a list of 1,000 UIDs fits.
    value_chars_max: int = 65_536
    #: A key with wildcards is compared in time proportional to its length times the value's.
    wildcard_chars_max: int = 256
    includes_max: int = 1024
    #: One page; larger wishes are answered with this many and a warning.
    limit_max: int = 10_000
    offset_max: int = 1_000_000_000


DEFAULT_LIMITS: Final = QueryLimits()
PATH_MAX: Final = 8
"""Sequences around an attribute that is asked for, and itself; those of structured reports are bulk."""
#: Attributes in sequences that are matched: the index holds them for the series (PS3.18 Table 10.6.1-5).
INDEXED_PATHS: Final = frozenset(
    (REQUEST_ATTRIBUTES_SEQUENCE, TAG_OF[keyword])
    for keyword in ("ScheduledProcedureStepID", "RequestedProcedureID")
)


class QueryError(ValueError):
    """The query cannot be read; it has to be written differently."""

    retry = False


Path = tuple[int, ...]
"""The tags that lead to an attribute: one, or those of the sequences around it before it."""


@dataclass(frozen=True, slots=True)
class Moments:
    """A range of moments that a date and a time attribute name together (PS3.4 C.2.2.2.5.4)."""

    date: int
    time: int
    #: YYYYMMDDHHMMSS.FFFFFF, first and last.
    period: Period


@dataclass(frozen=True, slots=True)
class Query:
    """One question to the catalog."""

    level: Level
    #: Tag to key, PS3.4 C.2.2.2 notation. Universal keys are not kept here but in ``includes``.
    matches: Mapping[int, str] = field(default_factory=dict)
    #: Further tags to return.
    includes: frozenset[int] = frozenset()
    #: Answers wanted; None: the archive's default.
    limit: int | None = None
    offset: int = 0
    #: Person names by word prefixes in any order (PS3.18 8.3.4.2, PS3.4 C.2.2.2.1.1).
    fuzzy: bool = False
    include_all: bool = False
    warnings: tuple[str, ...] = ()
    #: Attributes to return of the items of sequences: the tags that lead to each, two or more.
    include_paths: frozenset[Path] = frozenset()
    #: Besides ``matches``, which has the range of dates of each, as what is found must have them anyway.
    moments: tuple[Moments, ...] = ()


def matches(
    query: Query,
    study: Mapping[int, str] | None,
    series: Mapping[int, str] | None = None,
    instance: Mapping[int, str] | None = None,
) -> bool:
    """Whether the attributes of one study, series and instance satisfy every key of the query.

    Patient attributes are the study's. Keys of a level that is None are not looked at, so a planner can test
    a study before it opens the study's series. Never raises on any attribute text.
    """
    for tag, key in query.matches.items():
        if tag in MATCHED_STUDY:
            attributes, vr = study, MATCHED_STUDY[tag]
        elif tag in MATCHED_SERIES:
            attributes, vr = series, MATCHED_SERIES[tag]
        elif tag in MATCHED_INSTANCE:
            attributes, vr = instance, MATCHED_INSTANCE[tag]
        else:
            continue
        if attributes is not None and not matcher(vr, key, query.fuzzy)(attributes.get(tag, "")):
            return False
    for moments in query.moments:
        table = next((at for at, tags in enumerate(_TABLES) if moments.date in tags), 0)
        attributes = (study, series, instance)[table]
        if attributes is not None and not moment_inside(
            moments.period, attributes.get(moments.date, ""), attributes.get(moments.time, "")
        ):
            return False
    return True


_TABLES: Final = (MATCHED_STUDY, MATCHED_SERIES, MATCHED_INSTANCE)


_PAIR_TAG: Final = re.compile(r"\(?([0-9A-Fa-f]{4})[,|]?([0-9A-Fa-f]{4})\)?", re.ASCII)
#: Parameters of other purposes that clients send along; never worth a warning.
#: Kinds of matching that a server may leave out, saying so in these words (PS3.18 8.3.4.5, 8.3.4.6).
_NOT_SUPPORTED: Final = {
    "emptyvaluematching": "Empty Value Matching",
    "multiplevaluematching": "Multiple Value Matching",
}
_SILENT: Final = frozenset({"accept", "charset", "_", "orderby"})


def parse_tag(name: str) -> int | None:
    """The tag that an attribute is called by: keyword, eight hexadecimal digits, or ``gggg,eeee``.

    None when unknown.
    """
    name = name.strip()
    tag = TAG_OF.get(name)
    if tag is not None:
        return tag
    pair = _PAIR_TAG.fullmatch(name)
    return int(pair[1] + pair[2], 16) if pair is not None else None


def parse_path(name: str) -> Path | None:
    """As :func:`parse_tag`, of an attribute or of one in sequences, ``a.b`` (PS3.18 8.3.4.1)."""
    tags = tuple(tag for part in name.split(".") if (tag := parse_tag(part)) is not None)
    return tags if len(tags) == name.count(".") + 1 and len(tags) <= PATH_MAX else None


def parse_qido(
    level: Level,
    parameters: Iterable[tuple[str, str]],
    *,
    study_uid: str | None = None,
    series_uid: str | None = None,
    limits: QueryLimits = DEFAULT_LIMITS,
) -> Query:
    """The query that decoded URL parameters and the path's UIDs make (PS3.18 8.3.4, 10.6.1).

    QueryError says which parameter is wrong and what it should be.
    """
    reader = _Reader(level, limits)
    for name, value in parameters:
        reader.parameter(name, value)
    for tag, uid in ((STUDY_INSTANCE_UID, study_uid), (SERIES_INSTANCE_UID, series_uid)):
        if uid is not None:
            reader.path(tag, uid)
    return Query(
        level,
        reader.matches,
        frozenset(reader.includes),
        reader.limit,
        reader.offset,
        reader.fuzzy,
        reader.include_all,
        tuple(reader.warnings),
        frozenset(reader.include_paths),
    )


class _Reader:
    """Gathers one query's parameters."""

    def __init__(self, level: Level, limits: QueryLimits) -> None:
        self.level = level
        self.limits = limits
        self.matched = MATCHED_AT[level]
        self.matches: dict[int, str] = {}
        self.includes: set[int] = set()
        self.include_paths: set[Path] = set()
        self.limit: int | None = None
        self.offset = 0
        self.fuzzy = False
        self.include_all = False
        self.warnings: dict[str, None] = {}
        self._seen: set[int] = set()
        self._count = 0
        self._chars = 0

    def parameter(self, name: str, value: str) -> None:
        """Take one name and value."""
        self._count += 1
        self._chars += len(name) + len(value)
        if self._count > self.limits.parameters_max:
            raise QueryError(f"more than {self.limits.parameters_max} parameters; ask in several queries")
        if self._chars > self.limits.value_chars_max:
            raise QueryError(
                f"parameters of more than {self.limits.value_chars_max} characters; ask in several queries"
            )
        match name.lower():
            case "limit":
                self.limit = self._number(name, value)
                if self.limit > self.limits.limit_max:
                    self.limit = self.limits.limit_max
                    self._warn(f"limit is at most {self.limits.limit_max}; use offset for more")
            case "offset":
                self.offset = self._number(name, value)
                if self.offset > self.limits.offset_max:
                    raise QueryError(f"offset must be at most {self.limits.offset_max}")
            case "fuzzymatching":
                self.fuzzy = self._flag(name, value)
            case "includefield":
                self._include(value)
            case lowered if lowered in _NOT_SUPPORTED:
                if self._flag(name, value):
                    kind = _NOT_SUPPORTED[lowered]
                    self._warn(f"The {lowered} parameter is not supported. {kind} has not been performed.")
            case lowered if lowered in _SILENT:
                pass
            case _:
                self._key(name, value)

    def path(self, tag: int, uid: str) -> None:
        """A UID in the path restricts like a key, and beside one."""
        key = self.matches.get(tag)
        if key is not None and uid not in key.split("\\"):
            raise QueryError(f"{_name(tag)} is in the path already and differs; leave the parameter out")
        self.matches[tag] = uid

    def _key(self, name: str, value: str) -> None:
        path = parse_path(name)
        if path is None:
            self._warn(f"parameter {_shown(name)} is not known and was ignored")
            return
        if path not in INDEXED_PATHS:  # whose sequence is in the answer in any case
            self._wish(path)
        tag = path[-1]
        vr = self.matched.get(tag) if len(path) == 1 or path in INDEXED_PATHS else None
        if vr is None:
            if value.strip(" \0"):
                self._warn(f"{'.'.join(map(_name, path))} is not matched at this level and was ignored")
            return
        if tag in self._seen:
            raise QueryError(
                f"{_name(tag)} is given twice; join the values with a backslash where a list is meant"
            )
        self._seen.add(tag)
        value = value.strip(" \0")
        if vr == "UI":
            value = value.replace(",", "\\")
        if is_universal(value, vr):
            return
        check_key(tag, vr, value, self.limits)
        self.matches[tag] = value

    def _include(self, value: str) -> None:
        for name in value.split(","):
            wish = name.strip()
            if not wish:
                continue
            if wish.lower() == "all":
                self.include_all = True
                continue
            path = parse_path(wish)
            if path is None:
                self._warn(f"includefield {_shown(wish)} is not known and was ignored")
                continue
            self._wish(path)

    def _wish(self, path: Path) -> None:
        if len(path) == 1:
            self.includes.add(path[0])
        else:
            self.include_paths.add(path)
        if len(self.includes) + len(self.include_paths) > self.limits.includes_max:
            raise QueryError(f"more than {self.limits.includes_max} attributes; use includefield=all")

    def _number(self, name: str, value: str) -> int:
        value = value.strip()
        if not (value.isascii() and value.isdigit() and len(value) <= 12):
            raise QueryError(f"{name} must be a whole number of 0 or more")
        return int(value)

    def _flag(self, name: str, value: str) -> bool:
        match value.strip().lower():
            case "true" | "1":
                return True
            case "false" | "0" | "":
                return False
        raise QueryError(f"{name} must be true or false")

    def _warn(self, text: str) -> None:
        if len(self.warnings) < 16:
            self.warnings[text] = None


_NUMBERS: Final = frozenset({"IS", "DS", "US", "UL", "SS", "SL"})
#: VRs whose keys have a form; all others are compared as they are.
KEY_FORMS: Final = WILDCARD_VRS | _NUMBERS | {"DA", "TM", "DT", "UI", "FL", "FD", "SV", "UV"}


def check_key(tag: int, vr: str, value: str, limits: QueryLimits = DEFAULT_LIMITS) -> None:
    """QueryError when a key is not in the form that its VR's matching wants.

    The value itself is never repeated.
    """
    name = _name(tag)
    if vr == "DA":
        if any(date_range(part) is None for part in value.split("\\")):
            raise QueryError(f"{name} must be a date YYYYMMDD or a range a-b, a- or -b")
    elif vr == "TM":
        if any(time_range(part) is None for part in value.split("\\")):
            raise QueryError(f"{name} must be a time HH[MM[SS[.F]]] or a range a-b, a- or -b")
    elif vr == "DT":
        if any(datetime_range(part) is None for part in value.split("\\")):
            raise QueryError(f"{name} must be a date and time YYYY[MM[DD[HH[MM[SS[.F]]]]]][&ZZXX] or a range")
    elif vr == "UI":
        if not re.fullmatch(r"[0-9.]{1,64}(\\[0-9.]{1,64})*", value.strip("\\"), re.ASCII):
            raise QueryError(f"{name} must be a UID or a list of UIDs; UIDs take no wildcards")
    elif vr in WILDCARD_VRS and ("*" in value or "?" in value) and len(value) > limits.wildcard_chars_max:
        raise QueryError(
            f"{name} is longer than {limits.wildcard_chars_max} characters, too long for wildcards"
        )
    elif vr in _NUMBERS and not re.fullmatch(r"[-+0-9.eE]{1,16}(\\[-+0-9.eE]{1,16})*", value, re.ASCII):
        raise QueryError(f"{name} must be a number")


def _name(tag: int) -> str:
    return KEYWORD_OF.get(tag) or f"{tag:08X}"


def _shown(name: str) -> str:
    """A parameter's name for a message: short, and plain characters only, since it ends up in a header."""
    plain = "".join(c if c.isascii() and c.isalnum() else "." for c in name[:32])
    return f"'{plain}'"
