"""Danger: the index holds another name, number or UID than the object."""

from __future__ import annotations

import struct
import warnings
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.dicom.attributes import (
    INSTANCE_LEVEL,
    SERIES_LEVEL,
    STUDY_LEVEL,
    VALUE_BYTES_MAX,
    Extracted,
    extract,
    uid_is_usable,
    uid_is_valid,
)
from hounsfield.archive.dicom.dictionary import TAG_OF
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.dicom.text import character_set, decode
from hounsfield.codecs.registry import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax

MISSING = {
    Problem.MISSING_SOP_CLASS_UID, Problem.MISSING_SOP_INSTANCE_UID, Problem.MISSING_STUDY_UID,
    Problem.MISSING_SERIES_UID,
}  # fmt: skip


def data(*elements: tuple[str, bytes, bytes], order: str = "<") -> bytes:
    out = b""
    for keyword, vr, value in elements:
        value += b" " * (len(value) % 2)
        tag = TAG_OF[keyword]
        if vr in (b"UT", b"SQ", b"UN"):
            out += struct.pack(order + "HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value
        else:
            out += struct.pack(order + "HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
    return out


def attributes(raw: bytes, syntax: TransferSyntax = EXPLICIT_VR_LITTLE_ENDIAN) -> Extracted:
    return extract(scan(raw, syntax), raw)


def test_no_attribute_belongs_to_two_levels() -> None:
    assert not STUDY_LEVEL.keys() & SERIES_LEVEL.keys()
    assert not STUDY_LEVEL.keys() & INSTANCE_LEVEL.keys()
    assert not SERIES_LEVEL.keys() & INSTANCE_LEVEL.keys()


REQUIRED = {
    "study": "StudyDate StudyTime AccessionNumber ReferringPhysicianName TimezoneOffsetFromUTC PatientName "
    "PatientID PatientBirthDate PatientSex StudyInstanceUID StudyID",
    "series": "Modality TimezoneOffsetFromUTC SeriesDescription SeriesInstanceUID SeriesNumber "
    "PerformedProcedureStepStartDate PerformedProcedureStepStartTime "
    "ScheduledProcedureStepID RequestedProcedureID",
    "instance": "SOPClassUID SOPInstanceUID InstanceNumber Rows Columns BitsAllocated NumberOfFrames",
}


def test_the_attributes_that_qido_must_return_are_in_the_tables() -> None:
    """PS3.18 Tables 10.6.3-3 to -5, without those that the archive computes."""
    known = {"study": STUDY_LEVEL, "series": SERIES_LEVEL | STUDY_LEVEL, "instance": INSTANCE_LEVEL}
    for level, keywords in REQUIRED.items():
        for keyword in keywords.split():
            assert TAG_OF[keyword] in known[level], keyword


def test_every_real_file_gives_what_pydicom_reads(sample: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(sample.path, force=True)
        if sample.path.name == "emri_small_jpeg_2k_lossless_too_short.dcm":
            return  # pydicom gives up on it
        got = extract(scan(sample.data, sample.syntax), sample.data)
        for level, table in (
            (got.study, STUDY_LEVEL),
            (got.series, SERIES_LEVEL),
            (got.instance, INSTANCE_LEVEL),
        ):
            assert level.keys() <= table.keys()
            for tag, text in level.items():
                if tag in (0x00400009, 0x00401001):
                    continue
                assert tag in ds
                raw = ds.get_item(tag).value
                value = raw if isinstance(raw, str) else _plain(ds, tag)
                if isinstance(value, bytes | None):
                    continue
                assert text == value, hex(tag)


def _plain(ds: Any, tag: int) -> str | None:
    try:
        element = ds[tag]
    except (ValueError, TypeError):
        return None
    value = element.value
    if element.VR in ("IS", "DS"):
        values = value if element.VM > 1 else [value]
        return "\\".join(
            "" if v is None or v == "" else str(getattr(v, "original_string", v)).strip() for v in values
        )
    if element.VM > 1:
        return "\\".join(str(v).strip() for v in value)
    return "" if value is None else str(value).strip(" \0")


@pytest.mark.parametrize(
    ("charset", "raw", "name"),
    [
        (b"", b"Doe^John", "Doe^John"),
        (b"ISO_IR 100", "Buc^Jérôme".encode("latin-1"), "Buc^Jérôme"),
        (b"ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
        (b"ISO_IR 126", "Διονυσιος".encode("iso8859_7"), "Διονυσιος"),
        (b"ISO_IR 192", "Wang^XiaoDong=王^小东".encode(), "Wang^XiaoDong=王^小东"),
        (b"GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
        # PS3.5 H.3.1, H.3.2, I.2, K: the standard's own examples.
        (b"\\ISO 2022 IR 87",
         b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
         "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (b"ISO 2022 IR 13\\ISO 2022 IR 87",
         b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
         "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        (b"\\ISO 2022 IR 149",
         b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
         "Hong^Gildong=洪^吉洞=홍^길동"),
        (b"\\ISO 2022 IR 58",
         b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=", "Zhang^XiaoDong=张^小东"),
        (b"\\ISO 2022 IR 100\\ISO 2022 IR 144",
         b"Dionysios is \x1b-L\xbb\xee\xda", "Dionysios is Люк"),
    ],
)  # fmt: skip
def test_names_in_every_script(charset: bytes, raw: bytes, name: str) -> None:
    got = attributes(data(("SpecificCharacterSet", b"CS", charset), ("PatientName", b"PN", raw)))
    assert got.study[TAG_OF["PatientName"]] == name
    assert not set(got.problems) - MISSING


@pytest.mark.parametrize(
    ("charset", "raw", "name", "problem"),
    [
        (b"", "Müller".encode("latin-1"), "Müller", Problem.BAD_TEXT),
        (b"", "Müller".encode(), "Müller", Problem.BAD_TEXT),
        (b"ISO_IR 192", "Müller".encode("latin-1"), "M\ufffdller", Problem.BAD_TEXT),
        (b"ISO-IR 100", "Müller".encode("latin-1"), "Müller", Problem.BAD_CHARACTER_SET),
        (b"iso_ir_192", "Müller".encode(), "Müller", Problem.BAD_CHARACTER_SET),
        (b"KLINGON", "Müller".encode("latin-1"), "Müller", Problem.BAD_CHARACTER_SET),
        (b"\\ISO 2022 IR 87", b"A=\x1b$B;", "A=", Problem.BAD_TEXT),
        (b"ISO_IR 100", b"A\x1bzzB", "AzzB", Problem.BAD_TEXT),
    ],
)
def test_wrong_character_sets_are_flagged_and_read_as_well_as_can_be(
    charset: bytes, raw: bytes, name: str, problem: Problem
) -> None:
    got = attributes(data(("SpecificCharacterSet", b"CS", charset), ("PatientName", b"PN", raw)))
    assert got.study[TAG_OF["PatientName"]].startswith(name)
    assert problem in got.problems


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=40))
def test_no_bytes_and_no_character_set_raise(raw: bytes, charset: bytes) -> None:
    text, _ = decode(raw, character_set(charset))
    text.encode("utf-8")
    for term in (b"ISO 2022 IR 13\\ISO 2022 IR 87", b"\\ISO 2022 IR 149", b"ISO_IR 192", b"GB18030"):
        decode(b"\x1b$B" + raw, character_set(term))[0].encode("utf-8")


def test_values_are_trimmed_and_joined() -> None:
    got = attributes(
        data(
            ("ImageType", b"CS", b"ORIGINAL \\ PRIMARY"),
            ("StudyInstanceUID", b"UI", b"1.2\0"),
            ("PatientComments", b"LT", b"  two\\three  "),
            ("PatientID", b"LO", b"   "),
        )
    )
    assert got.instance[TAG_OF["ImageType"]] == "ORIGINAL\\PRIMARY"
    assert got.study[TAG_OF["StudyInstanceUID"]] == "1.2"
    assert got.study[TAG_OF["PatientComments"]] == "  two\\three"
    assert got.study[TAG_OF["PatientID"]] == ""


def test_numbers_become_decimal_text_in_both_byte_orders() -> None:
    for order, syntax in (("<", EXPLICIT_VR_LITTLE_ENDIAN), (">", EXPLICIT_VR_BIG_ENDIAN)):
        raw = data(("Rows", b"US", struct.pack(order + "H", 512)), order=order)
        assert attributes(raw, syntax).instance == {TAG_OF["Rows"]: "512"}
    got = attributes(data(("Rows", b"UL", struct.pack("<L", 70000)), ("Columns", b"IS", b"12")))
    assert got.instance == {TAG_OF["Rows"]: "70000", TAG_OF["Columns"]: "12"}
    assert Problem.BAD_NUMBER in attributes(data(("Rows", b"UL", b"abcdef"))).problems


def test_a_known_attribute_written_as_un_is_read_with_its_own_vr() -> None:
    got = attributes(data(("PatientName", b"UN", b"A^B "), ("Rows", b"UN", b"\0\2")))
    assert got.study[TAG_OF["PatientName"]] == "A^B"
    assert got.instance[TAG_OF["Rows"]] == "512"


def test_a_monstrous_value_is_cut_in_the_index() -> None:
    got = attributes(data(("PatientComments", b"UT", b"x" * (VALUE_BYTES_MAX + 2))))
    assert len(got.study[TAG_OF["PatientComments"]]) == VALUE_BYTES_MAX
    assert Problem.VALUE_TOO_LONG in got.problems


def test_request_attributes_are_flattened() -> None:
    def item(step: bytes) -> bytes:
        inner = data(("ScheduledProcedureStepID", b"SH", step), ("RequestedProcedureID", b"SH", b"RP"))
        return struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner

    got = attributes(data(("RequestAttributesSequence", b"SQ", item(b"S1") + item(b"S2"))))
    assert got.series == {TAG_OF["ScheduledProcedureStepID"]: "S1\\S2", TAG_OF["RequestedProcedureID"]: "RP"}


@pytest.mark.parametrize(
    ("uid", "valid", "usable"),
    [
        ("1.2.840.10008.1.1", True, True),
        ("2.25.329800735698586629295641978511506172918", True, True),
        ("1.2.03", False, True),
        ("1..2", False, True),
        ("1.2.", False, True),
        ("", False, False),
        ("1" * 65, False, False),
        ("1." * 32 + "1", False, False),
        ("1.2.a", False, False),
        ("1.2 3", False, False),
        ("1.2.٣", False, False),
        ("../../x", False, False),
    ],
)
def test_uids(uid: str, valid: bool, usable: bool) -> None:
    assert uid_is_valid(uid) is valid
    assert uid_is_usable(uid) is usable


def test_missing_and_invalid_uids_are_flagged() -> None:
    assert set(attributes(data(("Modality", b"CS", b"CT"))).problems) == MISSING
    got = attributes(
        data(
            ("SOPClassUID", b"UI", b"1.2\0"), ("SOPInstanceUID", b"UI", b"1.2.03"),
            ("StudyInstanceUID", b"UI", b"1.2\0"), ("SeriesInstanceUID", b"UI", b"1.2\0"),
        )
    )  # fmt: skip
    assert got.problems == (Problem.INVALID_UID,)
