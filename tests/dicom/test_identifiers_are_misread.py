"""Danger: a C-FIND identifier is read as something else, or a hostile one takes the archive along."""

from __future__ import annotations

import random
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from hounsfield.archive.dicom.find_answers import declarable
from hounsfield.archive.dicom.find_identifier import (
    Identifier,
    IdentifierError,
    IdentifierLimits,
    MismatchError,
    read_identifier,
)
from hounsfield.archive.dicom.find_request import (
    LEVELS,
    PATIENT_ROOT_FIND,
    PATIENT_STUDY_ONLY_FIND,
    STUDY_ROOT_FIND,
    Negotiated,
    Origin,
    agree,
    find_request,
)
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.matching import moment_inside, moment_range
from hounsfield.archive.dicom.query import matches
from hounsfield.archive.dicom.rewrite import element
from hounsfield.codecs.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax,
)
from support.identifiers import data_set, keys
from support.slow_matcher import tag_of

SYNTAXES = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)


def written(data: Dataset, syntax: TransferSyntax) -> bytes:
    """As pydicom writes it."""
    out = pydicom.filebase.DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = syntax.implicit_vr, syntax.little_endian
    write_dataset(out, data, [data.get("SpecificCharacterSet") or "iso8859"])
    return out.getvalue()


def rich(*, undefined: bool) -> Dataset:
    """Something of everything."""
    data = Dataset()
    data.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    data.QueryRetrieveLevel = "IMAGE"
    data.PatientName = "Yamada^Tarou=山田^太郎"
    data.StudyDate = ""
    data.ModalitiesInStudy = ["CT", "MR"]
    data.Rows = 512
    data.FrameIncrementPointer = 0x00181063
    data.StudyInstanceUID = ["1.2.3", "1.2.4"]
    request = Dataset()
    request.RequestedProcedureID = "A"
    request.ScheduledProcedureStepID = ""
    code = Dataset()
    code.CodeValue = "T1"
    request.RequestedProcedureCodeSequence = Sequence([code])
    data.RequestAttributesSequence = Sequence([request])
    data["RequestAttributesSequence"].is_undefined_length = undefined
    for item in data.RequestAttributesSequence:
        item.is_undefined_length_sequence_item = undefined
    data.add_new(0x00290010, "LO", "ACME 1.1")
    data.add_new(0x00291001, "LO", "17")
    data.add_new(0x00080000, "UL", 4711)
    data.add_new(0x00280000, "UL", 1)
    return data


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda one: one.name)
@pytest.mark.parametrize("undefined", [False, True])
def test_what_pydicom_writes_is_read(syntax: TransferSyntax, undefined: bool) -> None:
    found = read_identifier(written(rich(undefined=undefined), syntax), syntax)
    assert found.character_set == b"\\ISO 2022 IR 87"
    assert found.text(0x00080052) == "IMAGE"
    assert found.text(0x00100010) == "Yamada^Tarou=山田^太郎"
    assert found.text(0x00080061) == "CT\\MR"
    assert found.text(0x00280010) == "512"
    assert found.text(0x00280009) == "00181063"
    assert found.text(0x0020000D) == "1.2.3\\1.2.4"
    assert found.keys[0x00080020].is_universal
    (item,) = found.keys[0x00400275].items
    assert {key.tag: key.text for key in item if key.vr != "SQ"} == {0x00400009: "", 0x00401001: "A"}
    (codes,) = next(key for key in item if key.vr == "SQ").items
    assert [key.text for key in codes] == ["T1"]
    private = found.keys[0x00291001]
    assert (private.creator, private.text) == ("ACME 1.1", "17")
    assert list(found.keys) == sorted(found.keys)
    assert 0x00080000 not in found.keys and 0x00280000 not in found.keys


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda one: one.name)
@pytest.mark.parametrize("undefined", [False, True])
def test_what_is_cut_off_is_not_something_shorter(syntax: TransferSyntax, undefined: bool) -> None:
    """Cut anywhere but between two elements it is refused; there, it has what came before."""
    whole = written(rich(undefined=undefined), syntax)
    everything = read_identifier(whole, syntax)
    read = 0
    for end in range(len(whole)):
        try:
            found = read_identifier(whole[:end], syntax)
        except IdentifierError as error:
            assert "Yamada" not in str(error)
            continue
        read += 1
        assert all(found.keys[tag] == everything.keys[tag] for tag in found.keys)
    assert read <= len(everything.keys) + 3  # after each of them, and each group's length


@given(st.binary(max_size=200), st.sampled_from(SYNTAXES))
def test_random_bytes(raw: bytes, syntax: TransferSyntax) -> None:
    try:
        read_identifier(raw, syntax)
    except IdentifierError:
        return


@given(st.integers(0, 1 << 30), st.sampled_from(SYNTAXES), st.booleans())
def test_damaged_bytes(seed: int, syntax: TransferSyntax, undefined: bool) -> None:
    source = random.Random(seed)
    raw = bytearray(written(rich(undefined=undefined), syntax))
    for _ in range(source.randrange(1, 6)):
        raw[source.randrange(len(raw))] = source.choice((0, 1, 0xFF, 0xFE, source.randrange(256)))
    try:
        found = read_identifier(bytes(raw), syntax)
        for sop_class in LEVELS:
            find_request(sop_class, found, Negotiated(True, True, True))
    except IdentifierError:
        return


def test_limits() -> None:
    few = IdentifierLimits(elements_max=5)
    raw = data_set(keys(PatientID="", PatientName="", StudyDate="", StudyTime=""), SYNTAXES[0])
    assert len(read_identifier(raw, SYNTAXES[0], few).keys) == 5
    raw = data_set(keys(PatientID="", PatientName="", StudyDate="", StudyTime="", Modality=""), SYNTAXES[0])
    with pytest.raises(IdentifierError):
        read_identifier(raw, SYNTAXES[0], few)
    deep: Any = [{}]
    for _ in range(12):
        deep = [{0x00400275: deep}]
    for undefined in (False, True):
        raw = data_set({0x00400275: deep}, SYNTAXES[0])
        if undefined:
            raw = b"\x40\0\x75\2SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 5000
        with pytest.raises(IdentifierError):
            read_identifier(raw, SYNTAXES[0])
    with pytest.raises(IdentifierError):
        read_identifier(
            data_set(keys(PatientID="x" * 20), SYNTAXES[0]), SYNTAXES[0], IdentifierLimits(value_bytes_max=10)
        )
    twice = data_set(keys(PatientID=""), SYNTAXES[0], b"") * 2
    with pytest.raises(IdentifierError):
        read_identifier(twice, SYNTAXES[0])


# ---------------------------------------------------------------- levels and models (PS3.4 C.4.1, C.6)


def identifier(**values: str) -> Identifier:
    return read_identifier(data_set(keys(**values), SYNTAXES[0]), SYNTAXES[0])


@pytest.mark.parametrize(
    ("sop_class", "level", "fits"),
    [
        (sop_class, level, level in levels)
        for sop_class, levels in LEVELS.items()
        for level in (Level.PATIENT, Level.STUDY, Level.SERIES, Level.INSTANCE)
    ],
)
def test_levels_of_the_models(sop_class: str, level: Level, fits: bool) -> None:
    asked = identifier(QueryRetrieveLevel=level.value)
    if fits:
        assert find_request(sop_class, asked, Negotiated(relational=True)).query.level is level
    else:
        with pytest.raises(MismatchError) as raised:
            find_request(sop_class, asked, Negotiated(relational=True))
        assert raised.value.tags == (0x00080052,)


@pytest.mark.parametrize("level", ["", "IMAGES", "STUDY\\SERIES", "*"])
def test_no_level(level: str) -> None:
    with pytest.raises(MismatchError):
        find_request(STUDY_ROOT_FIND, identifier(QueryRetrieveLevel=level), Negotiated())


@pytest.mark.parametrize(
    ("sop_class", "values", "missing"),
    [
        (STUDY_ROOT_FIND, {"QueryRetrieveLevel": "STUDY"}, ()),
        (STUDY_ROOT_FIND, {"QueryRetrieveLevel": "SERIES"}, (0x0020000D,)),
        (STUDY_ROOT_FIND, {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": "*"}, (0x0020000D,)),
        (STUDY_ROOT_FIND, {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": "1.2\\1.3"}, ()),
        (STUDY_ROOT_FIND, {"QueryRetrieveLevel": "IMAGE", "StudyInstanceUID": "1.2"}, (0x0020000E,)),
        (STUDY_ROOT_FIND, {"QueryRetrieveLevel": "IMAGE"}, (0x0020000D, 0x0020000E)),
        (PATIENT_ROOT_FIND, {"QueryRetrieveLevel": "PATIENT"}, ()),
        (PATIENT_ROOT_FIND, {"QueryRetrieveLevel": "STUDY"}, (0x00100020,)),
        (PATIENT_ROOT_FIND, {"QueryRetrieveLevel": "SERIES", "PatientID": "7"}, (0x0020000D,)),
        (PATIENT_STUDY_ONLY_FIND, {"QueryRetrieveLevel": "STUDY", "PatientID": "7"}, ()),
        (PATIENT_STUDY_ONLY_FIND, {"QueryRetrieveLevel": "STUDY", "PatientID": ""}, (0x00100020,)),
    ],
)
def test_unique_keys_above_the_level(
    sop_class: str, values: dict[str, str], missing: tuple[int, ...]
) -> None:
    asked = identifier(**values)
    assert find_request(sop_class, asked, Negotiated(relational=True))
    if not missing:
        assert find_request(sop_class, asked, Negotiated())
        return
    with pytest.raises(MismatchError) as raised:
        find_request(sop_class, asked, Negotiated())
    assert raised.value.tags == missing


def test_where_keys_are_answered() -> None:
    asked = find_request(
        STUDY_ROOT_FIND,
        identifier(
            QueryRetrieveLevel="STUDY", Modality="CT", SeriesNumber="1", Allergies="nut*", KVP="",
            StudyDate="*", NumberOfPatientRelatedStudies="3", TimezoneOffsetFromUTC="", PatientName="a*",
            StudyTime="-",
        ),
        Negotiated(),
    )  # fmt: skip
    assert asked.query.matches == {tag_of("ModalitiesInStudy"): "CT", tag_of("PatientName"): "a*"}
    assert {key.tag for key in asked.verified} == {tag_of("Allergies")}
    assert asked.unsupported == {
        tag_of(name) for name in ("Modality", "SeriesNumber", "KVP", "NumberOfPatientRelatedStudies")
    }
    origins = {key.tag: origin for key, origin in asked.returned}
    assert origins[tag_of("Allergies")] is Origin.HEADER
    assert origins[tag_of("StudyInstanceUID")] is Origin.STUDY  # though nobody asked
    assert not origins.keys() & {tag_of("Modality"), tag_of("SeriesNumber"), tag_of("KVP")}
    patients = find_request(
        PATIENT_ROOT_FIND, identifier(QueryRetrieveLevel="PATIENT", StudyDate="20240101-"), Negotiated()
    )
    assert patients.query.matches == {tag_of("StudyDate"): "20240101-"}
    assert patients.unsupported == {tag_of("StudyDate")}


@pytest.mark.parametrize(
    ("keyword", "text"),
    [("StudyDate", "yesterday"), ("StudyTime", "25"), ("StudyInstanceUID", "1.2.*"), ("SeriesNumber", "one")],
)
def test_keys_in_a_wrong_form(keyword: str, text: str) -> None:
    with pytest.raises(IdentifierError) as raised:
        find_request(
            STUDY_ROOT_FIND,
            identifier(QueryRetrieveLevel="IMAGE", **{keyword: text}),
            Negotiated(relational=True),
        )
    assert raised.value.tags == (tag_of(keyword),)
    assert text not in str(raised.value)
    assert not isinstance(raised.value, MismatchError)


def test_keys_that_take_too_long() -> None:
    """Wildcards are compared in time that is the product of two lengths, UIDs are looked up one by one."""
    for values in (
        {tag_of("StudyDescription"): "*?" * 200},
        {tag_of("PatientAge"): "?" * 300},
        {0x00290010: "ACME 1.1", 0x00291001: "?" * 300},
        {tag_of("PatientComments"): "x" * 70_000},
        {tag_of("SOPInstanceUID"): "\\".join(["1.2"] * 10_001)},
        {tag_of("PatientName"): "\\".join(["DOE^JOHN"] * 1001)},
        {tag_of("ViewCodeSequence"): [{tag_of("CodeMeaning"): "\\".join(["A"] * 1001)}]},
        {tag_of("ViewCodeSequence"): [{tag_of("CodeMeaning"): "?" * 300}]},
    ):
        raw = data_set({**keys(QueryRetrieveLevel="IMAGE"), **values}, SYNTAXES[1])
        with pytest.raises(IdentifierError):
            find_request(STUDY_ROOT_FIND, read_identifier(raw, SYNTAXES[1]), Negotiated(relational=True))
    for keyword, text in (("PatientName", "\\".join(["A"] * 1000)), ("PatientComments", "\\" * 2000 + "x")):
        raw = data_set(keys(QueryRetrieveLevel="STUDY", **{keyword: text}), SYNTAXES[1])
        assert find_request(STUDY_ROOT_FIND, read_identifier(raw, SYNTAXES[1]), Negotiated())
    many = "\\".join(f"1.2.{number}" for number in range(10_000))
    raw = data_set(keys(QueryRetrieveLevel="STUDY", StudyInstanceUID=many), SYNTAXES[1])
    asked = read_identifier(raw, SYNTAXES[1])
    query = find_request(STUDY_ROOT_FIND, asked, Negotiated()).query
    assert matches(query, {0x0020000D: "1.2.9999"}) and not matches(query, {0x0020000D: "1.2.10000"})


def test_negotiation() -> None:
    """Byte by byte as long as what was asked (PS3.4 Table C.5-2)."""
    assert agree(b"") == b""
    assert agree(b"\1") == b"\1"
    assert agree(b"\0\1\1") == b"\0\1\1"
    assert agree(b"\1\1\1\1\1\1\1") == b"\1\1\1\0\0\0\0"
    assert agree(b"\7\1") == b"\0\1"
    assert Negotiated.of(b"") == Negotiated()
    assert Negotiated.of(b"\1\0\1\0") == Negotiated(True, False, True)


def test_dates_and_times_as_one_moment() -> None:
    """PS3.4 C.2.2.2.5.4, its own example: 5 July 10:00 until 7 July 18:00."""
    period = moment_range("20060705-20060707", "1000-1800")
    assert period is not None
    for date, time, inside in (
        ("20060705", "0959", False), ("20060705", "1000", True), ("20060706", "0300", True),
        ("20060706", "2359", True), ("20060707", "1800", True), ("20060707", "180059.9", True),
        ("20060707", "1801", False), ("20060708", "1200", False), ("20060706", "", True),
        ("20060705", "", False), ("", "1200", False),
    ):  # fmt: skip
        assert moment_inside(period, date, time) is inside, (date, time)
    assert moment_range("20060705", "10") is None
    assert moment_range("20060705\\20060706", "10-11") is None
    assert moment_range("20060705-", "1000-") == ("20060705100000.000000", "\uffff")
    assert moment_range("-20060705", "-1000") == ("", "20060705100059.999999")


def test_an_identifier_without_anything() -> None:
    assert read_identifier(b"", SYNTAXES[0]).keys == {}


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("AccessionNumber", "OB", b"ZZZZ"),
        ("PatientID", "OW", b"ZZZZ"),
        ("PatientName", "SQ", b"\xfe\xff\x00\xe0\x00\x00\x00\x00"),
        ("RequestAttributesSequence", "LO", b"abc "),
    ],
)
def test_a_key_in_a_vr_that_cannot_hold_it_matches_nothing(keyword: str, vr: str, value: bytes) -> None:
    """Read as what it is, it would have no text, and so match everything."""
    tag = tag_of(keyword)

    def one(value: bytes) -> bytes:
        return element(tag, vr, value, implicit=False, little=True)

    level = element(0x00080052, "CS", b"STUDY", implicit=False, little=True)
    order = (one, level) if tag < 0x00080052 else (level, one)
    joined = b"".join(part if isinstance(part, bytes) else part(value) for part in order)
    with pytest.raises(IdentifierError) as raised:
        read_identifier(joined, EXPLICIT_VR_LITTLE_ENDIAN)
    assert raised.value.tags == (tag,)
    empty = b"".join(part if isinstance(part, bytes) else part(b"") for part in order)
    key = read_identifier(empty, EXPLICIT_VR_LITTLE_ENDIAN).keys[tag]
    assert key.is_universal


@pytest.mark.parametrize(
    ("asked", "declared"),
    [
        (b"", b""),
        (b"ISO_IR 100", b"ISO_IR 100"),
        (b"\\ISO 2022 IR 87", b"\\ISO 2022 IR 87"),
        (b"ISO_IR 192\\ISO 2022 IR 87", b"ISO_IR 192"),
        (b"GB18030\\ISO 2022 IR 87", b"GB18030"),
        (b"ISO_IR 100\\ISO 2022 IR 87", b"ISO 2022 IR 100\\ISO 2022 IR 87"),
    ],
)
def test_answers_declare_what_the_standard_knows(asked: bytes, declared: bytes) -> None:
    assert declarable(asked) == declared


@pytest.mark.parametrize(
    ("keyword", "sent", "meant"),
    [
        ("PatientID", "A\\", "A"),
        ("PatientID", "\\A", "A"),
        ("PatientID", "A\\ \\B", "A\\B"),
        ("PatientID", "\\", ""),
        ("PatientName", "DOE\\", "DOE"),
        ("PatientName", "^", ""),
        ("PatientName", "^^^^", ""),
        ("PatientName", "^=^=", ""),
        ("PatientName", "^JOHN", "^JOHN"),
        ("StudyDate", "20240101\\", "20240101"),
        ("StudyDate", "\\-20240101", "-20240101"),
        ("StudyInstanceUID", "\\1.2\\\\1.3\\", "1.2\\1.3"),
        ("ModalitiesInStudy", "CT\\\\MR", "CT\\MR"),
        ("PatientComments", "A\\", "A\\"),  # a backslash is a character of prose
    ],
)
def test_nothing_in_a_list_is_no_value(keyword: str, sent: str, meant: str) -> None:
    raw = data_set(keys(QueryRetrieveLevel="STUDY") | {tag_of(keyword): sent}, EXPLICIT_VR_LITTLE_ENDIAN)
    assert read_identifier(raw, EXPLICIT_VR_LITTLE_ENDIAN).text(tag_of(keyword)) == meant
