"""Coercion on receipt: attributes of an object that are shown otherwise than they were sent (PS3.4 B.4.1.3).

A coercion says of the objects that its rule matches what becomes of attributes::

    copy   = { InstitutionalDepartmentName = "StationName" }  # from another attribute, if that has a value
    map    = { StationName = { "CT01" = "CT-EAST", "*" = "CT" } }  # by table; "*": any other value
    set    = { InstitutionName = "General Hospital" }
    remove = ["OtherPatientIDs"]

in this order, and coercions in theirs: each sees what those before it did. The bytes stay as they were
received. What comes out is a table of texts by tag, "" for an emptied attribute and None for a removed one;
it is kept with the object, so that the rules may change and what was received stays what it became.

Never touched are UIDs, the character set, what describes pixels (groups 0028 and above), and sequences.
Attributes that a data set must have (type 2 of patient and study, PS3.3 C.7.1.1 and C.7.2.1) are emptied
where they are to be removed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hounsfield.archive.dicom.attributes import LEVEL_OF, Extracted
from hounsfield.archive.dicom.dictionary import TAG_OF, VR_OF
from hounsfield.archive.dicom.matching import date_period, datetime_period, time_period
from hounsfield.archive.dicom.rules import ATTRIBUTES, Rule
from hounsfield.archive.errors import ConfigError

__all__ = ["Coerced", "Coercion", "Coercions", "Origin", "applied", "parse_coercion"]

Values = dict[int, str | None]
"""What becomes of attributes: text by tag, "" empties, None removes."""

ANY: Final = "*"
VALUES_MAX: Final = 10_000
"""Entries of one table: a list of all wards, not of all patients."""

_GROUPS: Final = frozenset({0x0008, 0x0010, 0x0032, 0x0038, 0x0040, 0x4008})
"""About the study, who took part, the patient and the stay. Of others (0018, 0020: how it was acquired,
and where it lies) what the index has."""
_PIXELS: Final = 0x0028
_CHARACTER_SET: Final = 0x00080005
#: Longest value in characters (PS3.5 6.2); those that are not here are prose, or have a form.
_LENGTH_MAX: Final = {
    "AE": 16, "AS": 4, "CS": 16, "DA": 8, "DS": 16, "DT": 26, "IS": 12, "LO": 64, "PN": 324, "SH": 16,
    "TM": 14, "LT": 10_240, "ST": 1024, "UC": 4096, "UT": 4096,
}  # fmt: skip
_PROSE: Final = frozenset({"LT", "ST", "UT"})
_FORMS: Final = {
    "AE": re.compile(r"[ -\[\]-~]+"),
    "AS": re.compile(r"\d{3}[DWMY]", re.ASCII),
    "CS": re.compile(r"[A-Z0-9 _]+"),
    "DS": re.compile(r" *[+-]?(\d+(\.\d*)?|\.\d+)([Ee][+-]?\d+)? *", re.ASCII),
    "IS": re.compile(r" *[+-]?\d+ *", re.ASCII),
}
_PERIODS: Final = {"DA": date_period, "TM": time_period, "DT": datetime_period}
#: Required, but may be empty.
_EMPTIED: Final = frozenset(
    TAG_OF[keyword]
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
        "AccessionNumber", "ReferringPhysicianName", "StudyID",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Origin:
    """How an object came in, for rules."""

    sop_class_uid: str
    transfer_syntax_uid: str
    protocol: str
    calling_ae: str
    called_ae: str
    address: str


@dataclass(frozen=True, slots=True)
class Coercion:
    """One entry: what it matches, and what it does."""

    name: str
    rule: Rule
    copied: tuple[tuple[int, int], ...] = ()
    mapped: tuple[tuple[int, Mapping[str, str]], ...] = ()
    given: tuple[tuple[int, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Coerced:
    """What coercions did to one object, and which."""

    values: Values
    names: tuple[str, ...]


class _Subject:
    """An object being coerced, as it is by now."""

    def __init__(self, found: Extracted, origin: Origin) -> None:
        self._levels = (found.instance, found.series, found.study)
        self.values: Values = {}
        self.sop_class_uid = origin.sop_class_uid
        self.transfer_syntax_uid = origin.transfer_syntax_uid
        self.protocol = origin.protocol
        self.calling_ae = origin.calling_ae
        self.called_ae = origin.called_ae
        self.address = origin.address

    def received(self, tag: int) -> str | None:
        for level in self._levels:
            text = level.get(tag)
            if text is not None:
                return text
        return None

    def text(self, tag: int) -> str:
        if tag in self.values:
            return self.values[tag] or ""
        return self.received(tag) or ""


class Coercions:
    """All coercions of an archive, in their order."""

    def __init__(self, entries: Sequence[Coercion]) -> None:
        self.entries = tuple(entries)

    def coerce(self, found: Extracted, origin: Origin) -> Coerced | None:
        """What is to be shown otherwise of an object; None for nothing. Never raises on what it says."""
        subject = _Subject(found, origin)
        names: list[str] = []
        for entry in self.entries:
            if entry.rule.matches(subject):
                before = dict(subject.values)
                _do(entry, subject)
                if subject.values != before:
                    names.append(entry.name)
        values = {
            tag: text
            for tag, text in subject.values.items()
            if tag not in ATTRIBUTES or (subject.received(tag) or "") != (text or "")
        }
        return Coerced(values, tuple(names)) if values else None


def _do(entry: Coercion, subject: _Subject) -> None:
    for tag, source in entry.copied:
        text = _fitting(tag, subject.text(source))
        if text:
            subject.values[tag] = text
    for tag, table in entry.mapped:
        text = subject.text(tag)
        if text:
            new = "\\".join(table.get(value.strip(), table.get(ANY, value)) for value in text.split("\\"))
            if new != text:
                subject.values[tag] = new.strip("\\")
    for tag, given in entry.given:
        subject.values[tag] = given


def _fitting(tag: int, text: str) -> str:
    """Text as an attribute may have it: cut at its longest value; "" where its form is another."""
    vr = VR_OF[tag]
    values = [text] if vr in _PROSE else text.split("\\")
    length = _LENGTH_MAX[vr]
    if vr in _FORMS or vr in _PERIODS:
        return text if all(_why_not(vr, value) is None for value in values) else ""
    return "\\".join(value[:length].rstrip() for value in values)


def applied(found: Extracted, values: Mapping[int, str | None]) -> Extracted:
    """The index attributes with ``values``; what was found is not changed, since others may share it."""
    levels = (dict(found.study), dict(found.series), dict(found.instance))
    for tag, text in values.items():
        place = LEVEL_OF.get(tag)
        if place is None:
            continue
        if text is None:
            levels[place[0]].pop(tag, None)
        else:
            levels[place[0]][tag] = text
    study, series, instance = levels
    return replace(found, study=study, series=series, instance=instance)


# ---------------------------------------------------------------- from config.toml


def parse_coercion(  # noqa: PLR0917
    name: str,
    rule: Rule,
    copied: Mapping[str, str],
    mapped: Mapping[str, Any],
    given: Mapping[str, str],
    removed: Sequence[str],
    where: str,
) -> Coercion:
    """A coercion as the configuration has it. ConfigError, beginning with ``where``, for what cannot be."""
    if not (copied or mapped or given or removed):
        raise ConfigError(f"{where}: it does nothing; give it copy, map, set or remove")
    both = set(given) & set(removed)
    if both:
        raise ConfigError(f"{where}: {min(both)} is both set and removed")
    copies = tuple(
        (_target(tag, f"{where} copy.{tag}"), _source(source, f"{where} copy.{tag}"))
        for tag, source in copied.items()
    )
    maps = tuple(
        (_indexed(_target(tag, f"{where} map.{tag}"), tag, f"{where} map.{tag}"), _table(tag, table, where))
        for tag, table in mapped.items()
    )
    values: list[tuple[int, str | None]] = []
    for keyword, text in given.items():
        tag = _target(keyword, f"{where} set.{keyword}")
        _check_text(VR_OF[tag], text, f"{where} set.{keyword}")
        values.append((tag, text))
    for keyword in removed:
        tag = _target(keyword, f"{where} remove")
        values.append((tag, "" if tag in _EMPTIED else None))
    return Coercion(name, rule, copies, maps, tuple(values))


def _tag(keyword: str, place: str) -> int:
    tag = TAG_OF.get(keyword)
    if tag is None:
        import difflib  # only for what is wrong

        near = difflib.get_close_matches(keyword, TAG_OF, n=1)
        hint = f"did you mean {near[0]}?" if near else "name it by its keyword (PS3.6)"
        raise ConfigError(f"{place}: no attribute is called {keyword}; {hint}")
    return tag


def _target(keyword: str, place: str) -> int:
    tag = _tag(keyword, place)
    vr, group = VR_OF[tag], tag >> 16
    if vr == "UI":
        raise ConfigError(f"{place}: {keyword} is a UID: identity is never coerced; see `hounsfield fix`")
    in_request = tag in ATTRIBUTES and tag not in LEVEL_OF
    if vr not in _LENGTH_MAX or tag == _CHARACTER_SET or in_request:
        raise ConfigError(f"{place}: {keyword} cannot be coerced: only attributes that are text, each alone")
    if group not in _GROUPS and (tag not in ATTRIBUTES or group == _PIXELS):
        raise ConfigError(f"{place}: {keyword} describes pixels, or what is in the object: it is not coerced")
    return tag


def _indexed(tag: int, keyword: str, place: str) -> int:
    if tag not in ATTRIBUTES:
        raise ConfigError(f"{place}: {keyword} is not among the attributes that the index keeps")
    return tag


def _source(keyword: str, place: str) -> int:
    return _indexed(_tag(keyword, place), keyword, place)


def _table(keyword: str, table: Any, where: str) -> Mapping[str, str]:
    place = f"{where} map.{keyword}"
    if not isinstance(table, Mapping) or not table:
        raise ConfigError(f'{place}: expected a table of values, such as {{ "CT01" = "CT-EAST" }}')
    if len(table) > VALUES_MAX:
        raise ConfigError(f"{place}: more than {VALUES_MAX} values")
    vr = VR_OF[TAG_OF[keyword]]
    for new in table.values():
        if not isinstance(new, str):
            raise ConfigError(f"{place}: expected text for text")
        _check_text(vr, new, place)
        if "\\" in new:
            raise ConfigError(f"{place}: a value stands for one value, not for several")
    return {str(old).strip(): new for old, new in table.items()}


def _check_text(vr: str, text: Any, place: str) -> None:
    if not isinstance(text, str):
        raise ConfigError(f"{place}: expected text")
    for value in [text] if vr in _PROSE else text.split("\\"):
        reason = _why_not(vr, value)
        if reason is not None:
            raise ConfigError(f"{place}: {reason}")


def _why_not(vr: str, value: str) -> str | None:
    """Why a value cannot be one of a VR (PS3.5 6.2); None when it can, or is empty."""
    if not value:
        return None
    if len(value) > _LENGTH_MAX[vr]:
        return f"a value of {len(value)} characters; {vr} has at most {_LENGTH_MAX[vr]}"
    form, period = _FORMS.get(vr), _PERIODS.get(vr)
    if (form is not None and not form.fullmatch(value)) or (period is not None and period(value) is None):
        return f"{value!r} is no {vr} value (PS3.5 6.2)"
    if vr not in _PROSE and any(ord(character) < 0x20 for character in value):
        return "control characters"
    return None
