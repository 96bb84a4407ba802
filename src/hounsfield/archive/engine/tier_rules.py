"""What rules want of a series: in which tiers it lies, encoded how, and whether it goes.

Rules are asked in their order, and the first that matches decides; what no rule matches stays as it is. A
rule is a rule of objects (:mod:`hounsfield.archive.dicom.rules`), put to a series, with what only time and
place tell: its age, when it was last opened, its size, how full the hot tier is, how old the patient is.

Pure: no clock, no index. Dates are days of the proleptic Gregorian calendar, ages whole years.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from hounsfield.archive.dicom.rules import Rule
from hounsfield.archive.index.packs import HOT
from hounsfield.archive.index.rows import Attributes, SourceRow

__all__ = ["Action", "Decision", "SeriesSubject", "Surroundings", "TierRule", "decide"]

Action = Literal["move", "copy", "recompress", "pin", "expire"]

_STUDY_DATE: Final = 0x00080020
_BIRTH_DATE: Final = 0x00100030
_DAYS_A_YEAR: Final = 365.2425
_NO_SOURCE: Final = SourceRow()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is not the series' own: the day, how much of the hot tier is used (0 to 1), and which rules are
    emptying it: it was fuller than their upper mark, and has not come down to the lower one since."""

    today: datetime.date
    hot_fill: float = 0.0
    draining: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SeriesSubject:
    """A series as rules see it. ``source`` says how it came in, and may have to read that."""

    study: Attributes
    series: Attributes
    bytes: int = 0
    received: datetime.date = datetime.date.min
    opened: datetime.date | None = None  # the last day on which it was; None: never
    sop_class_uid: str = ""
    transfer_syntax_uid: str = ""
    report_state: str = ""  # "" when no RIS says
    pinned: bool = False
    source: Callable[[], SourceRow] = field(default=lambda: _NO_SOURCE)
    newest: Callable[[], datetime.date] = field(default=lambda: datetime.date.min)
    """The day on which the last of its objects came, which has to be looked up."""

    def text(self, tag: int) -> str:
        """The text of an attribute of the series, or of its study; "" when it is absent."""
        found = self.series.get(tag)
        return self.study.get(tag, "") if found is None else found

    @property
    def protocol(self) -> str:
        return self.source().protocol

    @property
    def calling_ae(self) -> str:
        return self.source().calling_ae

    @property
    def called_ae(self) -> str:
        return self.source().called_ae

    @property
    def address(self) -> str:
        return self.source().address

    @property
    def day(self) -> datetime.date:
        """The day of the study; where it says none that can be, the day on which it came."""
        said = date_of(self.text(_STUDY_DATE))
        return self.received if said is None or said > self.received else said

    @property
    def used(self) -> datetime.date:
        """The last day on which it was opened, or came."""
        return self.received if self.opened is None else max(self.received, self.opened)

    def patient_age(self, on: datetime.date) -> int | None:
        """The patient's age in years on a day; None when no birth date is known."""
        born = date_of(self.text(_BIRTH_DATE))
        if born is None or born > on:
            return None
        return on.year - born.year - ((on.month, on.day) < (born.month, born.day))


@dataclass(frozen=True, slots=True)
class TierRule:
    """One rule. What is None or empty is not asked for.

    ``to``: the tiers that are to have it (``move``, ``copy``); ``compress``: an encoding of frames at rest.
    ``fill_above`` and ``fill_until``: begins when the hot tier is fuller than the one, ends at the other.
    ``keep_years`` and ``keep_until_age`` (``expire``): nothing goes that is younger, or whose patient is.
    The years count from the latest of the study's day and those on which the study and the last object of
    the series came, so that neither a mistyped date nor another one's age deletes anything; with
    ``from_study`` from the former alone, for what was imported.
    """

    name: str
    rule: Rule
    action: Action
    to: tuple[str, ...] = ()
    compress: str = ""
    older_than_days: float | None = None
    not_opened_days: float | None = None
    bytes_min: int | None = None
    bytes_max: int | None = None
    patient_age_min: int | None = None
    patient_age_max: int | None = None
    fill_above: float | None = None
    fill_until: float | None = None
    report_states: frozenset[str] = frozenset()
    keep_years: float | None = None
    keep_until_age: int | None = None
    from_study: bool = False

    def matches(self, series: SeriesSubject, around: Surroundings) -> bool:
        """Whether all of it holds. What costs nothing is asked first."""
        today = around.today
        return (
            self._is_full(around)
            and _at_least(self.bytes_min, series.bytes)
            and (self.bytes_max is None or series.bytes <= self.bytes_max)
            and _at_least(self.older_than_days, (today - series.day).days)
            and self._is_unopened(series, today)
            and (not self.report_states or series.report_state in self.report_states)
            and self._is_of_age(series, today)
            and self.rule.matches(series)
            and self._may_expire(series, today)
        )

    def _is_full(self, around: Surroundings) -> bool:
        return self.fill_above is None or around.hot_fill > self.fill_above or self.name in around.draining

    def _is_unopened(self, series: SeriesSubject, today: datetime.date) -> bool:
        if self.not_opened_days is None:
            return True
        return (today - series.used).days >= self.not_opened_days

    def _is_of_age(self, series: SeriesSubject, today: datetime.date) -> bool:
        if self.patient_age_min is None and self.patient_age_max is None:
            return True
        age = series.patient_age(today)
        return (
            age is not None
            and _at_least(self.patient_age_min, age)
            and (self.patient_age_max is None or age <= self.patient_age_max)
        )

    def _may_expire(self, series: SeriesSubject, today: datetime.date) -> bool:
        """Whether its years are over. Of a patient without a birth date nobody can say that, so it stays."""
        if self.action != "expire":
            return True
        if self.keep_years is not None:
            since = series.day if self.from_study else max(series.day, series.received)
            if not self._are_over(since, today):
                return False
        if self.keep_until_age is not None:
            age = series.patient_age(today)
            if age is None or age < self.keep_until_age:
                return False
        return self.from_study or self._are_over(series.newest(), today)

    def _are_over(self, since: datetime.date, today: datetime.date) -> bool:
        return self.keep_years is None or (today - since).days >= self.keep_years * _DAYS_A_YEAR


@dataclass(frozen=True, slots=True)
class Decision:
    """What the deciding rule wants. No tiers: wherever it is (``recompress``), or nowhere (``expire``)."""

    rule: str
    action: Action
    tiers: frozenset[str] = frozenset()
    compress: str = ""


def decide(rules: Sequence[TierRule], series: SeriesSubject, around: Surroundings) -> Decision | None:
    """What is wanted of a series; None: nothing is. A pinned one is wanted hot, whatever rules say."""
    if series.pinned:
        return Decision("", "pin", frozenset({HOT}))
    for rule in rules:
        if not rule.matches(series, around):
            continue
        match rule.action:
            case "move":
                return Decision(rule.name, "move", frozenset(rule.to), rule.compress)
            case "copy":
                return Decision(rule.name, "copy", frozenset({HOT, *rule.to}), rule.compress)
            case "pin":
                return Decision(rule.name, "pin", frozenset({HOT}))
            case "recompress":
                return Decision(rule.name, "recompress", compress=rule.compress)
            case "expire":
                return Decision(rule.name, "expire")
    return None


def draining(rules: Iterable[TierRule], hot_fill: float, before: frozenset[str]) -> frozenset[str]:
    """The rules that are emptying the hot tier, from those that were before."""
    found = set()
    for rule in rules:
        if rule.fill_above is None:
            continue
        until = rule.fill_above if rule.fill_until is None else rule.fill_until
        if hot_fill > rule.fill_above or (rule.name in before and hot_fill > until):
            found.add(rule.name)
    return frozenset(found)


def date_of(text: str) -> datetime.date | None:
    """The day that a value of VR DA says (PS3.5 6.2; ACR-NEMA's dots too), None when it says none."""
    digits = text.split("\\", maxsplit=1)[0].strip().replace(".", "")
    if len(digits) != 8 or not digits.isascii() or not digits.isdigit():
        return None
    try:
        return datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None


def _at_least(least: float | None, value: float) -> bool:
    return least is None or value >= least
