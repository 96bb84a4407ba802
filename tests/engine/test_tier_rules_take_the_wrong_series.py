"""A rule moves what it should not, or lets something expire whose time is not over."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hounsfield.archive.dicom.rules import parse_rule
from hounsfield.archive.engine.tier_rules import (
    Decision,
    SeriesSubject,
    Surroundings,
    TierRule,
    date_of,
    decide,
    draining,
)
from hounsfield.archive.index.packs import HOT
from hounsfield.archive.index.rows import SourceRow

TODAY = datetime.date(2026, 11, 22)
AROUND = Surroundings(TODAY)
STUDY_DATE, BIRTH_DATE, MODALITY, BODY_PART = 0x00080020, 0x00100030, 0x00080060, 0x00180015


def rule(action: str = "move", match: dict[str, Any] | None = None, **conditions: Any) -> TierRule:
    conditions.setdefault("name", "r")
    conditions.setdefault("to", ("cold",) if action in {"move", "copy"} else ())
    return TierRule(rule=parse_rule(match or {}, "match"), action=action, **conditions)  # type: ignore[arg-type]


def series(
    date: str = "20260101", born: str = "19800615", modality: str = "CT", **facts: Any
) -> SeriesSubject:
    facts.setdefault("received", datetime.date(2026, 1, 2))
    return SeriesSubject(
        study={STUDY_DATE: date, BIRTH_DATE: born}, series={MODALITY: modality, BODY_PART: "CHEST"}, **facts
    )


def days_ago(days: int) -> datetime.date:
    return TODAY - datetime.timedelta(days)


def test_the_first_rule_that_matches_decides() -> None:
    rules = [
        rule("pin", {"Modality": "MG"}, name="mammography stays"),
        rule("copy", {"BodyPartExamined": "CHEST"}, name="chests twice", to=("second",)),
        rule("move", name="all else", compress="htj2k"),
    ]
    assert decide(rules, series(modality="MG"), AROUND) == Decision(
        "mammography stays", "pin", frozenset({HOT})
    )
    assert decide(rules, series(), AROUND) == Decision("chests twice", "copy", frozenset({HOT, "second"}))
    assert decide(rules[:1] + rules[2:], series(), AROUND) == Decision(
        "all else", "move", frozenset({"cold"}), "htj2k"
    )
    assert decide([], series(), AROUND) is None
    assert decide(rules[:1], series(), AROUND) is None


def test_a_pinned_series_is_hot_whatever_rules_say() -> None:
    found = decide([rule("expire", keep_years=0), rule("move")], series(pinned=True), AROUND)
    assert found == Decision("", "pin", frozenset({HOT}))


@pytest.mark.parametrize(("days", "matches"), [(364, False), (365, True), (366, True)])
def test_age_is_that_of_the_study_not_of_its_arrival(days: int, matches: bool) -> None:
    old = series(days_ago(days).strftime("%Y%m%d"), received=TODAY)
    assert rule(older_than_days=365).matches(old, AROUND) is matches


@pytest.mark.parametrize("date", ["", "unknown", "20269999", "29990101"])
def test_a_study_without_a_usable_date_is_as_old_as_its_arrival(date: str) -> None:
    assert not rule(older_than_days=30).matches(series(date, received=days_ago(29)), AROUND)
    assert rule(older_than_days=30).matches(series(date, received=days_ago(30)), AROUND)


def test_what_was_opened_lately_stays() -> None:
    wanted = rule(not_opened_days=90)
    assert wanted.matches(series(received=days_ago(90)), AROUND)
    assert not wanted.matches(series(received=days_ago(400), opened=days_ago(89)), AROUND)
    assert wanted.matches(series(received=days_ago(400), opened=days_ago(90)), AROUND)
    assert not wanted.matches(series(received=days_ago(89), opened=days_ago(300)), AROUND)


def test_sizes_have_both_ends() -> None:
    wanted = rule(bytes_min=10, bytes_max=20)
    assert [size for size in (9, 10, 20, 21) if wanted.matches(series(bytes=size), AROUND)] == [10, 20]


def test_the_patients_age_is_in_whole_years_and_unknown_is_no_age() -> None:
    wanted = rule(patient_age_min=18, patient_age_max=30)
    born = {"20081122": True, "20081123": False, "19951123": True, "19951122": False, "": False, "x": False}
    assert {text: wanted.matches(series(born=text), AROUND) for text in born} == {
        "20081122": True,
        "20081123": False,
        "19951123": True,
        "19951122": False,
        "": False,
        "x": False,
    }


def test_the_source_is_read_only_when_all_else_holds() -> None:
    read = []

    def source() -> SourceRow:
        read.append(1)
        return SourceRow("dimse", "CT1", "HOUNSFIELD", "192.0.2.7")

    wanted = rule("move", {"calling_ae": "CT*", "Modality": "CT"}, older_than_days=10)
    assert not wanted.matches(series(modality="MR", source=source), AROUND)
    assert not wanted.matches(series("20261120", received=TODAY, source=source), AROUND)
    assert not read
    assert wanted.matches(series(source=source), AROUND)
    assert read


def test_reports_that_are_not_final_hold_images_back() -> None:
    wanted = rule(report_states=frozenset({"final"}))
    assert wanted.matches(series(report_state="final"), AROUND)
    assert not wanted.matches(series(report_state="preliminary"), AROUND)
    assert not wanted.matches(series(), AROUND)  # nobody says: it stays


def test_a_water_mark_begins_above_and_ends_below() -> None:
    wanted = rule(fill_above=0.85, fill_until=0.75)
    now: frozenset[str] = frozenset()
    said = []
    for fill in (0.5, 0.85, 0.86, 0.8, 0.76, 0.75, 0.8, 0.9):
        now = draining([wanted], fill, now)
        said.append(wanted.matches(series(), Surroundings(TODAY, fill, now)))
    assert said == [False, False, True, True, True, False, False, True]


def test_nothing_expires_before_its_years_are_over() -> None:
    wanted = rule("expire", keep_years=10)
    old = days_ago(3653)
    assert wanted.matches(series(old.strftime("%Y%m%d"), received=old), AROUND)
    young = days_ago(3650)
    assert not wanted.matches(series(young.strftime("%Y%m%d"), received=young), AROUND)
    assert not wanted.matches(series("00010101", received=young), AROUND)  # mistyped
    assert not wanted.matches(series(old.strftime("%Y%m%d"), received=young), AROUND)  # imported
    late = series(old.strftime("%Y%m%d"), received=old, newest=lambda: young)
    assert not wanted.matches(late, AROUND)  # added to an old study
    imported = rule("expire", keep_years=10, from_study=True)
    assert imported.matches(series(old.strftime("%Y%m%d"), received=young), AROUND)


def test_of_children_and_of_those_of_unknown_age_nothing_expires() -> None:
    wanted = rule("expire", keep_years=10, keep_until_age=28)
    old = days_ago(20 * 366)
    facts = {"received": old}
    assert wanted.matches(series(old.strftime("%Y%m%d"), "19981122", **facts), AROUND)
    assert not wanted.matches(series(old.strftime("%Y%m%d"), "19981123", **facts), AROUND)
    assert not wanted.matches(series(old.strftime("%Y%m%d"), "", **facts), AROUND)


@given(st.dates(datetime.date(1, 1, 1), datetime.date(9999, 12, 31)))
def test_every_day_is_read_as_written(day: datetime.date) -> None:
    text = f"{day.year:04}{day.month:02}{day.day:02}"
    assert date_of(text) == date_of(f"{text[:4]}.{text[4:6]}.{text[6:]}") == date_of(f" {text} \\x") == day


@given(st.text(max_size=12), st.text(max_size=12))
def test_whatever_dates_say_nothing_fails(date: str, born: str) -> None:
    found = series(date, born)
    rules = [rule(older_than_days=1, patient_age_min=1), rule("expire", keep_years=1, keep_until_age=1)]
    decide(rules, found, AROUND)
