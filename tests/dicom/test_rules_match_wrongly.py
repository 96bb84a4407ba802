"""Rules match what PS3.4 C.2.2.2 says, hold by logic, and say clearly when they cannot be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hounsfield.archive.dicom.dictionary import TAG_OF, VR_OF
from hounsfield.archive.dicom.matching import matcher
from hounsfield.archive.dicom.rules import ATTRIBUTES, parse_rule
from hounsfield.archive.errors import ConfigError


@dataclass
class Subject:
    attributes: dict[str, str] = field(default_factory=dict)
    sop_class_uid: str = "1.2.840.10008.5.1.4.1.1.2"
    transfer_syntax_uid: str = "1.2.840.10008.1.2.1"
    protocol: str = "dimse"
    calling_ae: str = "CT1"
    called_ae: str = "HOUNSFIELD"
    address: str = "192.0.2.10"

    def text(self, tag: int) -> str:
        return next((text for name, text in self.attributes.items() if TAG_OF[name] == tag), "")


def holds(table: dict[str, Any], subject: Subject) -> bool:
    return parse_rule(table, "match").matches(subject)


@pytest.mark.parametrize(
    ("table", "attributes", "expected"),
    [
        ({}, {}, True),
        ({"Modality": "CT"}, {"Modality": "CT"}, True),
        ({"Modality": "CT"}, {"Modality": "MR"}, False),
        ({"Modality": "CT"}, {}, False),
        ({"Modality": ["MR", "CT"]}, {"Modality": "CT"}, True),
        ({"Modality": "MR\\CT"}, {"Modality": "CT"}, True),
        ({"StudyDescription": "*THORAX*"}, {"StudyDescription": "CT THORAX KM"}, True),
        ({"ImageType": "*SCOUT*"}, {"ImageType": "ORIGINAL\\PRIMARY\\SCOUT"}, True),
        ({"PatientName": "müller^*"}, {"PatientName": "MULLER^Anna"}, True),
        ({"StudyDate": "20250101-20250331"}, {"StudyDate": "20250215"}, True),
        ({"StudyDate": "20250101-20250331"}, {"StudyDate": "20250401"}, False),
        ({"StudyTime": "2000-"}, {"StudyTime": "213000"}, True),
        ({"SeriesNumber": 7}, {"SeriesNumber": "07"}, True),
        ({"AccessionNumber": ""}, {}, True),
        ({"AccessionNumber": ""}, {"AccessionNumber": "A1"}, False),
        ({"AccessionNumber": "?*"}, {"AccessionNumber": "A1"}, True),
        ({"AccessionNumber": "?*"}, {}, False),
        ({"SeriesNumber": "?*"}, {"SeriesNumber": "3"}, True),
        ({"StudyDate": "?*"}, {}, False),
        ({"AccessionNumber": ["", "X*"]}, {"AccessionNumber": "X9"}, True),
        ({"Modality": "CT", "not": {"ImageType": "*SCOUT*"}}, {"Modality": "CT"}, True),
        ({"not": {"Modality": "CT", "PatientSex": "F"}}, {"Modality": "CT", "PatientSex": "M"}, True),
        ({"not": {"Modality": "CT", "PatientSex": "F"}}, {"Modality": "CT", "PatientSex": "F"}, False),
        ({"any": [{"Modality": "CT"}, {"PatientSex": "F"}]}, {"PatientSex": "F"}, True),
        ({"any": [{"Modality": "CT"}, {"PatientSex": "F"}]}, {"PatientSex": "M"}, False),
    ],
)
def test_attributes_match_as_in_queries(
    table: dict[str, Any], attributes: dict[str, str], expected: bool
) -> None:
    assert holds(table, Subject(attributes)) is expected


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"calling_ae": "CT*"}, True),
        ({"calling_ae": ["MR1", "MR2"]}, False),
        ({"called_ae": "HOUNSFIELD"}, True),
        ({"source": "192.0.2.0/24"}, True),
        ({"source": ["198.51.100.7", "2001:db8::/32"]}, False),
        ({"protocol": "dimse"}, True),
        ({"protocol": ["stow", "import"]}, False),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.2*"}, True),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.4"}, False),
        ({"transfer_syntax": "1.2.840.10008.1.2.1"}, True),
        ({"not": {"calling_ae": "CT1"}}, False),
    ],
)
def test_how_an_object_came(table: dict[str, Any], expected: bool) -> None:
    assert holds(table, Subject()) is expected


def test_an_ipv4_sender_on_an_ipv6_socket_is_who_it_is() -> None:
    assert holds({"source": "192.0.2.0/24"}, Subject(address="::ffff:192.0.2.10"))
    assert not holds({"source": "192.0.2.0/24"}, Subject(address=""))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"Modalty": "CT"}, "match.Modalty: nothing is called Modalty; did you mean Modality?"),
        ({"PatientAddress": "X"}, "match.PatientAddress: PatientAddress is not among the attributes"),
        ({"ConceptNameCodeSequence": "X"}, "is a sequence"),
        ({"StudyDate": "yesterday"}, "'yesterday' is no DA value or range; write 20250131"),
        ({"Modality": "*"}, "matches every object"),
        ({"Modality": []}, "an empty list matches nothing"),
        ({"Modality": {"a": 1}}, "expected text or a list of texts"),
        ({"not": "CT"}, "match.not: expected a table"),
        ({"any": []}, "an empty list holds for nothing"),
        ({"any": [{"Modality": "CT"}, {"not": {"Foo": "1"}}]}, "match.any.not.Foo: nothing is called Foo"),
        ({"source": "hospital"}, "no address or network"),
        ({"protocol": "ftp"}, "'ftp' is no way in"),
        ({"calling_ae": "A" * 17}, "is no AE title"),
        ({"sop_class": "CT Image"}, "is no UID"),
    ],
)
def test_what_cannot_be_is_said(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"^match") as error:
        parse_rule(table, "match")
    assert said in str(error.value)


def test_tables_are_not_nested_without_end() -> None:
    table: dict[str, Any] = {"Modality": "CT"}
    for _ in range(20):
        table = {"not": table}
    with pytest.raises(ConfigError, match="nested deeper"):
        parse_rule(table, "match")


def test_how_an_object_came_is_asked_last() -> None:
    """It may have to be read from the disk."""

    class Unread(Subject):
        @property
        def calling_ae(self) -> str:
            raise AssertionError("nobody needed that")

        @calling_ae.setter
        def calling_ae(self, _: str) -> None: ...

    rule = parse_rule({"calling_ae": "CT1", "not": {"calling_ae": "X"}, "Modality": "MR"}, "match")
    assert rule.asks_origin
    assert not rule.matches(Unread({"Modality": "CT"}))
    assert not parse_rule({"Modality": "MR"}, "match").asks_origin


# ------------------------------------------------------------ any rule, any object

_NAMES = ("Modality", "PatientName", "StudyDate", "SeriesNumber", "ImageType", "AccessionNumber")
_VALUES = {
    "Modality": ["CT", "MR", "SR", "C?", "?*", ""],
    "PatientName": ["Muster^Erika", "MUSTER*", "?*", "", "Doe^John=X"],
    "StudyDate": ["20250101", "20250101-20250301", "-20250101", ""],
    "SeriesNumber": ["1", "01", "2", ""],
    "ImageType": ["ORIGINAL", "*PRIMARY", "ORIGINAL\\AXIAL", ""],
    "AccessionNumber": ["A1", "A*", "", "B?"],
}
_TEXTS = {
    "Modality": ["CT", "MR", "", " "],
    "PatientName": ["MUSTER^ERIKA", "Doe^John", ""],
    "StudyDate": ["20250101", "20250215", "19991231", "rubbish", ""],
    "SeriesNumber": ["1", "2", "x", ""],
    "ImageType": ["ORIGINAL\\PRIMARY\\AXIAL", "DERIVED", ""],
    "AccessionNumber": ["A1", "B2", ""],
}
_leaves = st.dictionaries(st.sampled_from(_NAMES), st.none(), max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries(
        {name: st.lists(st.sampled_from(_VALUES[name]), min_size=1, max_size=3) for name in chosen}
    )
)
_tables = st.recursive(
    _leaves,
    lambda inner: st.builds(
        lambda leaf, no, either: {
            **leaf,
            **({"not": no} if no is not None else {}),
            **({"any": either} if either else {}),
        },
        _leaves,
        st.none() | inner,
        st.lists(inner, max_size=2),
    ),
    max_leaves=5,
)
_subjects = st.fixed_dictionaries({}, optional={name: st.sampled_from(_TEXTS[name]) for name in _NAMES})


def _oracle(table: dict[str, Any], attributes: dict[str, str]) -> bool:
    """The rule, as one would say it."""
    for name, value in table.items():
        if name == "not":
            if _oracle(value, attributes):
                return False
        elif name == "any":
            if not any(_oracle(each, attributes) for each in value):
                return False
        else:
            text = attributes.get(name, "")
            empty = not text.strip()
            one_fits = any(
                (empty if key == "" else not empty and matcher(VR_OF[TAG_OF[name]], key)(text))
                for key in value
            )
            if not one_fits:
                return False
    return True


@given(_tables, _subjects)
def test_every_rule_is_what_it_says(table: dict[str, Any], attributes: dict[str, str]) -> None:
    assert holds(table, Subject(attributes)) is _oracle(table, attributes)
    assert holds({"not": table}, Subject(attributes)) is not _oracle(table, attributes)


@given(st.sampled_from(sorted(ATTRIBUTES)), st.text(max_size=30), st.text(max_size=30))
def test_no_text_is_too_odd(tag: int, key: str, text: str) -> None:
    """A key is refused with words or it is a test that never raises."""
    keyword = next(name for name, known in TAG_OF.items() if known == tag)
    try:
        rule = parse_rule({keyword: key}, "match")
    except ConfigError:
        return
    rule.matches(Subject({keyword: text}))
