"""What an entry of each section may say, how it is read and how it is written.

In CSV, and in YAML where one likes, a list is one text with semicolons between (``\\;`` is one of the text's
own), alternatives have ``or`` between, and a code is ``value^meaning^scheme`` (HL7 v2 2.A.13).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hounsfield.archive.plugins import Kind
from hounsfield.ris_plugin.importing.hours import closure_text, hours_text, read_closure, read_hours
from hounsfield.ris_plugin.importing.reading import Value
from hounsfield.ris_plugin.records.base import Code
from hounsfield.ris_plugin.records.catalog import PERSON, PROCEDURE, RESOURCE
from hounsfield.ris_plugin.records.reports import MACRO, TEMPLATE
from hounsfield.ris_plugin.schedule.free_time import Calendar

__all__ = ["CLOSURES", "SECTIONS", "SYNONYMS", "Field", "Section", "items_of", "joined"]

LOCAL_SCHEME: Final = "L"
"""Of codes that name none: private, as HL7 (table 0396) and DICOM (PS3.16 8.1) have it."""

_YES: Final = frozenset({"yes", "true", "y", "1", "on", "ja", "x"})
_NO: Final = frozenset({"no", "false", "n", "0", "off", "nein", ""})


@dataclass(frozen=True, slots=True)
class Field:
    """A field: from what stands in a file, and back to a text or (for YAML) a list. Raises ValueError."""

    read: Callable[[Value, Calendar], Any]
    write: Callable[[Any, Calendar], str | list[str]]


def items_of(value: Value) -> list[str]:
    """A list of texts, or one with semicolons between."""
    if isinstance(value, str):
        parts = re.split(r"(?<!\\);|\n", value)
        return [part.replace("\\;", ";").strip() for part in parts if part.strip()]
    if not isinstance(value, list) or any(not isinstance(one, str) for one in value):
        raise ValueError("this is a list of texts")
    return [one.strip() for one in value if isinstance(one, str) and one.strip()]


def joined(items: list[str]) -> str:
    """A list as one text."""
    return "; ".join(one.replace(";", "\\;") for one in items)


def _text(value: Value, calendar: Calendar | None = None) -> str:
    del calendar
    if not isinstance(value, str):
        raise ValueError("this is a text")
    return value.strip()


def _number(value: Value, calendar: Calendar) -> int:
    del calendar
    text = _text(value)
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise ValueError(f"{text[:40]!r} is no whole number")
    return int(text)


def _flag(value: Value, calendar: Calendar) -> bool:
    del calendar
    text = _text(value).casefold()
    if text not in _YES | _NO:
        raise ValueError(f"{text[:40]!r} is neither yes nor no")
    return text in _YES


def _groups(value: Value, calendar: Calendar) -> tuple[tuple[str, ...], ...]:
    """``CT1 or CT2; #person:``: one of each group."""
    del calendar
    of: list[list[str]] = []
    for one in value if isinstance(value, list) else items_of(value):
        if isinstance(one, list):
            of.append(items_of(one))
        else:
            of.append([name.strip() for name in re.split(r"\s+or\s+", _text(one))])
    if any(not name for group in of for name in group):
        raise ValueError("a group of resources names at least one")
    return tuple(tuple(group) for group in of)


def _code(value: Value) -> Code:
    if isinstance(value, dict):
        unknown = value.keys() - {"value", "meaning", "scheme"}
        if unknown:
            raise ValueError(f"a code has value, meaning and scheme, no {min(unknown)}")
        parts = [_text(value.get(name, "")) for name in ("value", "meaning", "scheme")]
    else:
        parts = [part.strip() for part in _text(value).split("^")]
    if not parts[0] or len(parts) > 3:
        raise ValueError("a code is value^meaning^scheme")
    parts += [""] * (3 - len(parts))
    return Code(value=parts[0], meaning=parts[1], scheme=parts[2] or LOCAL_SCHEME)


def _codes(value: Value, calendar: Calendar) -> tuple[Code, ...]:
    del calendar
    return tuple(_code(one) for one in (value if isinstance(value, list) else items_of(value)))


def _hours(value: Value, calendar: Calendar) -> Any:
    del calendar
    return read_hours(value if isinstance(value, str) else ", ".join(items_of(value)))


def _closures(value: Value, calendar: Calendar) -> Any:
    # In order, so that what was written in another one is the same.
    found = {read_closure(one, calendar) for one in items_of(value)}
    return tuple(sorted(found, key=lambda one: (one.from_ns, one.to_ns, one.why)))


TEXT: Final = Field(_text, lambda one, _: one)
NUMBER: Final = Field(_number, lambda one, _: str(one))
FLAG: Final = Field(_flag, lambda one, _: "yes" if one else "no")
TEXTS: Final = Field(lambda value, _: tuple(items_of(value)), lambda one, _: list(one))
CODES: Final = Field(_codes, lambda one, _: [f"{each.value}^{each.meaning}^{each.scheme}" for each in one])
GROUPS: Final = Field(_groups, lambda one, _: [" or ".join(group) for group in one])
HOURS: Final = Field(_hours, lambda one, _: hours_text(one))
BREAKS: Final = Field(_hours, lambda one, _: hours_text(one, "none"))
CLOSURES_OF_ONE: Final = Field(
    _closures, lambda one, calendar: [closure_text(each, calendar) for each in one]
)


@dataclass(frozen=True, slots=True)
class Section:
    """A section: a kind of record, and the fields that are read one by one."""

    kind: Kind[Any]
    fields: Mapping[str, Field]
    required: tuple[str, ...]


SECTIONS: Final[Mapping[str, Section]] = {
    "resources": Section(
        RESOURCE,
        {
            "code": TEXT, "kind": TEXT, "name": TEXT, "modality": TEXT, "ae_title": TEXT,
            "station_name": TEXT, "location": TEXT, "hours": HOURS, "breaks": BREAKS,
            "closures": CLOSURES_OF_ONE, "buffer_min": NUMBER, "active": FLAG,
        },
        ("code",),
    ),
    "people": Section(
        PERSON,
        {
            "code": TEXT, "name": TEXT, "roles": TEXTS, "phone": TEXT, "address": TEXT, "department": TEXT,
            "subspecialties": TEXTS, "deputises_for": TEXTS, "active": FLAG,
        },
        ("code",),
    ),
    "procedures": Section(
        PROCEDURE,
        {
            "code": TEXT, "scheme": TEXT, "meaning": TEXT, "modality": TEXT, "body_part": TEXT,
            "laterality": FLAG, "duration_min": NUMBER, "preparation": TEXT, "preparation_min": NUMBER,
            "cleaning_min": NUMBER, "resources": GROUPS, "questions": TEXTS, "contrast": FLAG,
            "needs_protocol": FLAG, "steps": CODES, "subspecialty": TEXT, "charge_codes": CODES,
            "active": FLAG,
        },
        ("code",),
    ),
    # The rest of these is read by ris_plugin.reading.templates.
    "templates": Section(TEMPLATE, {}, ("name", "sections")),
    "macros": Section(MACRO, {"name": TEXT, "text": TEXT, "owner": TEXT}, ("name", "text")),
}  # fmt: skip
"""In the order in which they are put: procedures name resources."""

CLOSURES: Final = "closures"
"""The section of closures of several resources, or all: no records of their own."""
SYNONYMS: Final[Mapping[str, tuple[str, Mapping[str, Value]]]] = {
    "devices": ("resources", {"kind": "device"}),
    "rooms": ("resources", {"kind": "room"}),
    "hours": ("resources", {}),
    "catalog": ("procedures", {}),
    "holidays": (CLOSURES, {}),
}
"""Other names of sections, and what entries of theirs need not say."""
