"""Danger: a query gives a record that it must not give, or misses one (PS3.4 C.2.2.2; PS3.18 8.3.4)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.dicom.dictionary import TAG_OF
from hounsfield.archive.dicom.matching import fold_name, matcher, wildcard, wildcard_matches
from hounsfield.archive.dicom.query import (
    Level,
    Query,
    QueryError,
    QueryLimits,
    matches,
    parse_path,
    parse_qido,
    parse_tag,
)

UID, STUDY_DATE, NAME = TAG_OF["StudyInstanceUID"], TAG_OF["StudyDate"], TAG_OF["PatientName"]


def ask(*parameters: tuple[str, str], level: Level = Level.STUDY, **how: Any) -> Query:
    return parse_qido(level, parameters, **how)


# Matching


@pytest.mark.parametrize(
    ("vr", "key", "value", "expected"),
    [
        # single value (C.2.2.2.1): case counts
        ("LO", "abc", "abc", True),
        ("LO", "abc", "ABC", False),
        ("LO", "abc", "abcd", False),
        ("LO", "abc", "", False),
        ("SH", "a", "x\\a\\y", True),
        ("SH", "a", "x\\ab\\y", False),
        ("AS", "040Y", "040Y", True),
        # universal (C.2.2.2.3)
        ("LO", "", "", True),
        ("LO", "*", "", True),
        ("LO", "**", "anything", True),
        ("DA", "", "20240101", True),
        ("LO", "?", "", False),
        # list of UID (C.2.2.2.2)
        ("UI", "1.2", "1.2", True),
        ("UI", "1.2\\1.3", "1.3", True),
        ("UI", "1.2\\1.3", "1.4", False),
        ("UI", "1.2", "1.23", False),
        ("UI", "1.2\\1.3", "", False),
        # wildcards (C.2.2.2.4)
        ("LO", "a*", "abc", True),
        ("LO", "a*", "a", True),
        ("LO", "*c", "abc", True),
        ("LO", "a?c", "abc", True),
        ("LO", "a?c", "ac", False),
        ("LO", "*b*", "abc", True),
        ("LO", "*B*", "abc", False),
        ("LO", "a*b*c", "a--b--b-c", True),
        ("LO", "a*b*c", "a--b--b-cd", False),
        ("LO", "a.c", "abc", False),
        ("LO", "[a]", "a", False),
        ("LT", "a\\b", "a\\b", True),
        ("LT", "a*b", "a\\b", True),
        ("CS", "C*", "MR\\CT", True),
        # dates (C.2.2.2.5.1)
        ("DA", "20240229", "20240229", True),
        ("DA", "20240229", "2024.02.29", True),
        ("DA", "20240101-20241231", "20240101", True),
        ("DA", "20240101-20241231", "20241231", True),
        ("DA", "20240101-20241231", "20250101", False),
        ("DA", "-20240101", "19700101", True),
        ("DA", "-20240101", "20240102", False),
        ("DA", "20240101-", "20991231", True),
        ("DA", "20240101 - 20240102", "20240102", True),
        ("DA", "20240101-", "", False),
        ("DA", "20240101-", "2024", False),
        ("DA", "20240102-20240101", "20240101", False),
        # times (C.2.2.2.5.2)
        ("TM", "1011", "101130.5", True),
        ("TM", "1011", "101200", False),
        ("TM", "101112", "10:11:12", True),
        ("TM", "10-11", "115959.999999", True),
        ("TM", "10-11", "120000", False),
        ("TM", "10-11", "095959", False),
        ("TM", "-1011", "000000", True),
        ("TM", "235959-", "2359", False),
        ("TM", "101112.5", "101112.5", True),
        ("TM", "101112.5", "101112.6", False),
        # date-times (C.2.2.2.5.3)
        ("DT", "2024", "20240704101112", True),
        ("DT", "202401-202402", "20240229235959", True),
        ("DT", "202401-202402", "20240301", False),
        ("DT", "20240101120000+0100", "20240101110000+0000", True),
        ("DT", "20240101120000+0100", "20240101120000+0000", False),
        ("DT", "20240101120000-0500", "20240101170000+0000", True),
        ("DT", "20240101-0500-20240102-0500", "20240101120000", True),
        # numbers as text
        ("IS", "7", "007", True),
        ("IS", "7", "+7", True),
        ("IS", "7", "70", False),
        ("DS", "1.50", "1.5", True),
        ("IS", "x", "x", True),
        ("US", "512", "512", True),
        # names
        ("PN", "doe^john", "DOE^John", True),
        ("PN", "DOE^JOHN", "Doe^John^^^", True),
        ("PN", "DOE^JOHN^^", "Doe^John", True),
        ("PN", "DOE", "Doe^John", False),
        ("PN", "DOE*", "Doe^John", True),
        ("PN", "DOE^*", "Doe", True),
        ("PN", "DOE^J*", "Doe^John", True),
        ("PN", "D?E^JOHN", "Doe^John", True),
        ("PN", "*ohn", "Doe^John", True),
        ("PN", "müller", "MULLER", True),
        ("PN", "MULLER", "Müller", True),
        ("PN", "Strasse", "Straße", True),
        ("PN", "SORENSEN*", "Sørensen^Åse", True),
        ("PN", "山田^太郎", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("PN", "山*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("PN", "*=山田*", "Yamada^Tarou=山田^太郎", True),
        ("PN", "=山田*", "Yamada^Tarou=山田^太郎", True),
        ("PN", "Suzuki*=山田*", "Yamada^Tarou=山田^太郎", False),
        ("PN", "=山田*", "Yamada^Tarou", False),
        ("PN", "=*^*", "Yamada^Tarou", False),
        ("PN", "=*^*", "Yamada=山田", True),
        ("PN", "=*", "Yamada^Tarou", True),
        ("PN", "ﾔﾏﾀﾞ*", "ヤマダ^タロウ", True),
        ("PN", "か", "が", False),
        ("PN", "홍*", "Hong^Gildong=洪^吉洞=홍^길동", True),
    ],
)
def test_one_key_and_one_value(vr: str, key: str, value: str, expected: bool) -> None:
    assert matcher(vr, key)(value) is expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("john doe", "DOE^JOHN", True),
        ("doe, jo", "Doe^John^Quincy", True),
        ("jo do", "Doe^John", True),
        ("doe doe", "Doe^John", False),
        ("doe doe", "Doe^Doe", True),
        ("ohn", "Doe^John", False),
        ("*ohn*", "Doe^John", True),
        ("mull", "Müller^Hans", True),
        ("yam 太", "Yamada^Tarou=山田^太郎", True),
        ("x", "", False),
        ("", "", True),
    ],
)
def test_fuzzy_names(key: str, value: str, expected: bool) -> None:
    assert matcher("PN", key, True)(value) is expected


@settings(max_examples=400, deadline=None)
@given(st.text("ab*?.", max_size=8), st.text("ab.", max_size=10))
def test_wildcards_are_what_regular_expressions_say(pattern: str, text: str) -> None:
    regex = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    expected = re.fullmatch(regex, text, re.DOTALL) is not None
    assert wildcard_matches(pattern, text) is expected
    assert wildcard(pattern)(text) is expected


def test_hostile_wildcards_take_bounded_time() -> None:
    """Work is at most pattern × text; a backtracking matcher would not come back from this."""
    for pattern in ("*a" * 128 + "b", "*a" * 128 + "b*", "*ab" * 80 + "*", "*?a" * 80 + "b"):
        assert not wildcard_matches(pattern, "a" * 4096)
        assert not wildcard(pattern)("a" * 4096)


_ANY_VR = st.sampled_from(["LO", "PN", "DA", "TM", "DT", "UI", "IS", "DS", "CS", "LT", "AS", "US"])


@settings(max_examples=400, deadline=None)
@given(_ANY_VR, st.text(max_size=20), st.text(max_size=30), st.booleans())
def test_no_text_raises(vr: str, key: str, value: str, fuzzy: bool) -> None:
    assert matcher(vr, key, fuzzy)(value) in (True, False)


@given(st.text(max_size=20))
def test_folding_twice_is_folding_once(text: str) -> None:
    assert fold_name(fold_name(text)) == fold_name(text)


def test_every_key_must_match_and_each_at_its_level() -> None:
    query = ask(("PatientName", "doe*"), ("Modality", "CT"), ("Rows", "512"), level=Level.INSTANCE)
    study, series, instance = {NAME: "Doe^J"}, {TAG_OF["Modality"]: "CT"}, {TAG_OF["Rows"]: "512"}
    assert matches(query, study, series, instance)
    assert not matches(query, study, series, {TAG_OF["Rows"]: "256"})
    assert not matches(query, study, {TAG_OF["Modality"]: "MR"}, instance)
    assert not matches(query, {NAME: "Roe"}, series, instance)
    assert matches(query, study, None, None)
    assert not matches(query, {}, series, instance)


def test_modalities_in_study_matches_any_of_them() -> None:
    query = ask(("ModalitiesInStudy", "SR"))
    assert matches(query, {0x00080061: "CT\\SR"})
    assert not matches(query, {0x00080061: "CT"})
    assert matches(ask(("ModalitiesInStudy", "MR\\SR")), {0x00080061: "CT\\SR"})


# Reading parameters


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("PatientName", NAME),
        ("00100010", NAME),
        ("0010,0010", NAME),
        ("(0010,0010)", NAME),
        ("0020000d", UID),
        ("RequestAttributesSequence.RequestedProcedureID", None),
        ("patientname", None),
        ("0010001", None),
        ("", None),
        ("__class__", None),
    ],
)
def test_names_of_attributes(name: str, tag: int | None) -> None:
    assert parse_tag(name) == tag


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("PatientName", (NAME,)),
        ("RequestAttributesSequence.RequestedProcedureID", (0x00400275, 0x00401001)),
        ("00400275.(0040,1001)", (0x00400275, 0x00401001)),
        ("a.PatientName", None),
        ("00081140.", None),
        (".", None),
        (".".join(["00081140"] * 9), None),
    ],
)
def test_names_of_attributes_in_sequences(name: str, path: tuple[int, ...] | None) -> None:
    assert parse_path(name) == path


def test_an_attribute_in_a_sequence_is_not_the_one_outside() -> None:
    query = ask(("00081140.00080018", "1.2"), ("00081140.PatientName", "x"), level=Level.INSTANCE)
    assert query.matches == {}
    assert query.includes == set()
    assert query.include_paths == {(0x00081140, 0x00080018), (0x00081140, NAME)}
    assert len(query.warnings) == 2
    query = ask(("RequestAttributesSequence.RequestedProcedureID", "P*"), level=Level.SERIES)
    assert query.matches == {0x00401001: "P*"}
    assert not query.include_paths
    assert not query.warnings
    assert ask(("includefield", "00081111.00081155, 00081111")).include_paths == {(0x00081111, 0x00081155)}


def test_what_ohif_sends() -> None:
    query = ask(
        ("limit", "101"),
        ("offset", "0"),
        ("fuzzymatching", "false"),
        ("includefield", "00081030,00080060,00080061,00201208"),
        ("PatientName", "*doe*"),
        ("00100020", "*12*"),
        ("StudyDate", "20200101-20201231"),
        ("ModalitiesInStudy", "CT"),
        ("StudyInstanceUID", "1.2\\1.3"),
    )
    assert query.limit == 101
    assert query.offset == 0
    assert not query.fuzzy
    assert query.matches == {
        NAME: "*doe*", 0x00100020: "*12*", STUDY_DATE: "20200101-20201231", 0x00080061: "CT", UID: "1.2\\1.3",
    }  # fmt: skip
    assert {0x00081030, 0x00080060, 0x00080061, 0x00201208} <= query.includes
    assert query.warnings == ()


def test_universal_keys_ask_for_the_attribute_only() -> None:
    query = ask(("PatientName", ""), ("StudyDescription", "*"))
    assert query.matches == {}
    assert query.includes == {NAME, TAG_OF["StudyDescription"]}


def test_lists_of_uids_take_commas_too() -> None:
    assert ask(("StudyInstanceUID", "1.2,1.3")).matches[UID] == "1.2\\1.3"


def test_include_all() -> None:
    query = ask(("includefield", "all"), ("includefield", "PatientName,,00080005"))
    assert query.include_all
    assert query.includes == {NAME, 0x00080005}


def test_the_path_restricts() -> None:
    query = ask(("Modality", "CT"), level=Level.INSTANCE, study_uid="1.2", series_uid="1.3")
    assert query.matches == {TAG_OF["Modality"]: "CT", UID: "1.2", TAG_OF["SeriesInstanceUID"]: "1.3"}
    assert ask(("StudyInstanceUID", "1.1\\1.2"), study_uid="1.2").matches[UID] == "1.2"
    with pytest.raises(QueryError, match="in the path already"):
        ask(("StudyInstanceUID", "1.1"), study_uid="1.2")


def test_what_is_not_known_is_ignored_and_said() -> None:
    query = ask(
        ("Colour", "purple"),
        ("WindowWidth", "1"),
        ("Modality", "CT"),
        ("includefield", "Nope"),
        ("accept", "x"),
    )
    assert query.matches == {}
    assert len(query.warnings) == 4
    assert all("purple" not in warning for warning in query.warnings)


def test_kinds_of_matching_that_there_are_not_are_said_in_the_standards_words() -> None:
    assert ask(("emptyvaluematching", "false"), ("multiplevaluematching", "")).warnings == ()
    for kind in ("Empty", "Multiple"):
        name = f"{kind.lower()}valuematching"
        (warning,) = ask((name, "true")).warnings
        assert warning == (
            f"The {name} parameter is not supported. {kind} Value Matching has not been performed."
        )
    with pytest.raises(QueryError):
        ask(("emptyvaluematching", "perhaps"))


def test_a_warning_cannot_break_out_of_its_header() -> None:
    for warning in ask(("a\r\nSet-Cookie: x", "1"), ("includefield", '"\r\n')).warnings:
        assert warning.isprintable()
        assert '"' not in warning


@pytest.mark.parametrize(
    "parameter",
    [
        ("limit", "-1"),
        ("limit", "ten"),
        ("limit", ""),
        ("limit", "1" * 13),
        ("limit", "٣"),
        ("offset", "1.5"),
        ("offset", "999999999999"),
        ("fuzzymatching", "perhaps"),
        ("StudyDate", "today"),
        ("StudyDate", "20241301"),
        ("StudyDate", "-"),
        ("StudyDate", "2024*"),
        ("StudyTime", "25"),
        ("StudyTime", "10-11-12"),
        ("StudyInstanceUID", "1.2*"),
        ("StudyInstanceUID", "abc"),
        ("StudyInstanceUID", "1" * 65),
        ("PatientName", "*" + "a" * 256),
    ],
)
def test_malformed_parameters_are_refused_without_repeating_them(parameter: tuple[str, str]) -> None:
    with pytest.raises(QueryError) as caught:
        ask(parameter)
    assert not caught.value.retry
    if len(parameter[1]) > 4:
        assert parameter[1] not in str(caught.value)


def test_the_same_attribute_twice_is_refused() -> None:
    with pytest.raises(QueryError, match="given twice"):
        ask(("PatientName", "a"), ("00100010", "b"))


def test_limits() -> None:
    limits = QueryLimits(
        parameters_max=3, value_chars_max=100, wildcard_chars_max=5, includes_max=2, limit_max=10
    )
    assert ask(("limit", "11"), limits=limits).limit == 10
    assert ask(("limit", "11"), limits=limits).warnings
    with pytest.raises(QueryError, match="3 parameters"):
        ask(*[("x", "1")] * 4, limits=limits)
    with pytest.raises(QueryError, match="100 characters"):
        ask(("PatientName", "a" * 100), limits=limits)
    with pytest.raises(QueryError, match="wildcards"):
        ask(("PatientName", "abcde*"), limits=limits)
    with pytest.raises(QueryError, match="includefield"):
        ask(("includefield", "PatientName,PatientID,StudyDate"), limits=limits)
    with pytest.raises(QueryError, match="offset"):
        ask(("offset", "11"), limits=QueryLimits(offset_max=10))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["PatientName", "StudyDate", "limit", "offset", "includefield", "0020000D", "x"])
            | st.text(max_size=12),
            st.text(max_size=20),
        ),
        max_size=6,
    )
)
def test_any_parameters_are_a_query_or_a_query_error(parameters: list[tuple[str, str]]) -> None:
    try:
        query = ask(*parameters)
    except QueryError:
        return
    matches(query, {NAME: "A", STUDY_DATE: "20240101", UID: "1.2"}, {}, {})
