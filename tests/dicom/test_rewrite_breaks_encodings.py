"""Headers written anew: character sets, nested text, group lengths, padding, every encoding and damage."""

from __future__ import annotations

import io
import struct
import zlib

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from hounsfield.archive.dicom import rewrite as rewriting
from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.dicom.rewrite import (
    ORIGINAL_ATTRIBUTES,
    Change,
    RewriteError,
    element,
    rewrite,
    whole_elements,
)
from hounsfield.archive.dicom.scan import scan
from hounsfield.codecs.registry import lookup
from support.archives import encode

NAME, ID, ISSUER, COMMENTS, ADDRESS = 0x00100010, 0x00100020, 0x00100021, 0x00104000, 0x00101040
AT = "20260102030405.000000+0000"
SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


def corrected(data: bytes, syntax: str, *changes: Change) -> bytes:
    pieces = [bytes(piece) for piece in scan(data, lookup(syntax)).slices(data)]
    head, trailer = rewrite(pieces[0], pieces[-1] if len(pieces) > 1 else b"", lookup(syntax), changes)
    return b"".join([bytes(head), *pieces[1:-1], bytes(trailer)])


def read(data: bytes, syntax: str) -> Dataset:
    return pydicom.dcmread(io.BytesIO(file_header(syntax, "1.2.840.10008.5.1.4.1.1.7", "1.2.3") + data))


def sample(charset: str | list[str], text: str, *, pixels: bool = True) -> Dataset:
    """Text at every depth, private text, text behind the pixels."""
    data = Dataset()
    data.SpecificCharacterSet = charset
    data.SOPInstanceUID, data.StudyDate, data.StudyDescription = "1.2.3", "20200101", text
    data.PatientName, data.PatientID = text, "P1"
    inner = Dataset()
    inner.CodeMeaning, inner.CodeValue = text, "1"
    outer = Dataset()
    outer.CodeMeaning, outer.ConceptNameCodeSequence = "plain", Sequence([inner, Dataset()])
    data.ProcedureCodeSequence = Sequence([outer, Dataset()])
    block = data.private_block(0x0029, "OURS", create=True)
    block.add_new(1, "LO", text)
    block.add_new(2, "OB", text.encode("latin-1", "replace") * 2)
    if pixels:
        data.Rows = data.Columns = 4
        data.BitsAllocated, data.SamplesPerPixel, data.PhotometricInterpretation = 8, 1, "MONOCHROME2"
        data.PixelData = bytes(range(16))
        data.DataSetTrailingPadding = b"\0\0"
    return data


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("ISO_IR 100", "Müßig^Jörg"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 192", "山田^太郎"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("GB18030", "王^小东"),
    ],
)
def test_a_name_that_the_character_set_cannot_hold_turns_all_text_into_utf_8(
    syntax: str, charset: str | list[str], text: str
) -> None:
    before = sample(charset, text)
    data = encode(before, syntax)
    after = read(corrected(data, syntax, Change({NAME: "Ünïcode^Œuvre=Ελλάς"}, at=AT)), syntax)
    assert after.PatientName == "Ünïcode^Œuvre=Ελλάς"
    if charset not in ("ISO_IR 192", "GB18030"):
        assert after.SpecificCharacterSet == "ISO_IR 192"
    was = read(data, syntax)
    assert after.StudyDescription == was.StudyDescription
    outer, empty = after.ProcedureCodeSequence
    assert outer.CodeMeaning == "plain"
    assert (
        outer.ConceptNameCodeSequence[0].CodeMeaning
        == was.ProcedureCodeSequence[0].ConceptNameCodeSequence[0].CodeMeaning
    )
    assert len(empty) == 0
    if syntax != ImplicitVRLittleEndian:  # where nothing says that a private element is text
        assert after[0x00291001].value == was[0x00291001].value
    assert after[0x00291002].value == was[0x00291002].value
    assert after.PixelData == before.PixelData
    assert after.DataSetTrailingPadding == b"\0\0"
    (item,) = after.OriginalAttributesSequence
    assert item.ModifiedAttributesSequence[0].PatientName == was.PatientName


@pytest.mark.parametrize(
    ("charset", "new"),
    [
        ("ISO_IR 100", "Müßig^Jörg"),
        ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        ("ISO_IR 144", "Люкceмбypг"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_what_the_character_set_can_hold_leaves_it_as_it_is(charset: str | list[str], new: str) -> None:
    data = encode(sample(charset, "plain"), ExplicitVRLittleEndian)
    after = read(corrected(data, ExplicitVRLittleEndian, Change({NAME: new}, at=AT)), ExplicitVRLittleEndian)
    assert after.PatientName == new
    assert after.SpecificCharacterSet == charset


def test_only_what_is_corrected_changes_byte_for_byte() -> None:
    data = encode(sample("ISO_IR 100", "Müßig^Jörg"), ExplicitVRLittleEndian)
    after = corrected(data, ExplicitVRLittleEndian, Change({ID: "K-4711"}, at=AT))
    old = element(ID, "LO", b"P1", implicit=False, little=True)
    new = element(ID, "LO", b"K-4711", implicit=False, little=True)
    at = data.index(old)
    assert after.startswith(data[:at] + new)
    rest = after[at + len(new) :]
    start = rest.index(struct.pack("<HH2sH", 0x0400, 0x0561, b"SQ", 0))
    length = struct.unpack_from("<L", rest, start + 8)[0]
    assert rest[:start] + rest[start + 12 + length :] == data[at + len(old) :]
    # And what is already as it should be is not touched at all.
    assert (
        corrected(data, ExplicitVRLittleEndian, Change({ID: "P1", COMMENTS: None, ISSUER: ""}, at=AT)) == data
    )


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_changes_are_told_one_after_the_other_behind_those_that_were_there(syntax: str) -> None:
    before = sample("ISO_IR 100", "Müßig^Jörg")
    earlier = Dataset()
    earlier.ModifyingSystem, earlier.ReasonForTheAttributeModification = "OTHER", "COERCE"
    earlier.ModifiedAttributesSequence = Sequence([Dataset()])
    before.OriginalAttributesSequence = Sequence([earlier])
    before.OriginalAttributesSequence.is_undefined_length = True
    before.PatientAddress = "Weg 1"
    first = Change({ID: "P2", NAME: "Zwei", ADDRESS: None}, at=AT, source="CT1", system="Hounsfield")
    second = Change({ID: "P3"}, at=AT, reason="COERCE")
    after = read(corrected(encode(before, syntax), syntax, first, second), syntax)
    assert (after.PatientID, after.PatientName, "PatientAddress" in after) == ("P3", "Zwei", False)
    theirs, one, two = after.OriginalAttributesSequence
    assert theirs.ModifyingSystem == "OTHER"
    was = one.ModifiedAttributesSequence[0]
    assert (was.PatientID, was.PatientName, was.PatientAddress) == ("P1", "Müßig^Jörg", "Weg 1")
    assert was.IssuerOfPatientID == ""  # says whose id it was: nobody's
    assert (one.SourceOfPreviousValues, one.AttributeModificationDateTime) == ("CT1", AT)
    assert one.ReasonForTheAttributeModification == "CORRECT"
    assert (two.ModifiedAttributesSequence[0].PatientID, two.ReasonForTheAttributeModification) == (
        "P2",
        "COERCE",
    )


def test_a_sequence_of_originals_that_was_written_as_unknown_stays_so() -> None:
    inner = element(0x04000563, "LO", b"OTHER ", implicit=True, little=True)
    item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
    data = (
        element(NAME, "PN", b"Alt", implicit=False, little=True)
        + element(ID, "LO", b"P1", implicit=False, little=True)
        + element(ORIGINAL_ATTRIBUTES, "UN", item, implicit=False, little=True)
    )
    after = read(corrected(data, ExplicitVRLittleEndian, Change({ID: "P2"}, at=AT)), ExplicitVRLittleEndian)
    found = after[ORIGINAL_ATTRIBUTES].value
    assert [one.ModifyingSystem for one in found] == ["OTHER", "Hounsfield"]
    assert found[1].ModifiedAttributesSequence[0].PatientID == "P1"


def test_group_lengths_of_groups_that_change_go_and_others_stay() -> None:
    def group(number: int, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return element(number << 16, "UL", struct.pack("<L", len(body)), implicit=False, little=True) + body

    data = b"".join((
        group(0x0008, element(0x00080050, "SH", b"A1", implicit=False, little=True)),
        group(0x0010, element(ID, "LO", b"P1", implicit=False, little=True)),
        group(0x0018, element(0x00181030, "LO", b"x ", implicit=False, little=True)),
    ))  # fmt: skip
    after = read(corrected(data, ExplicitVRLittleEndian, Change({ID: "P2"}, at=AT)), ExplicitVRLittleEndian)
    assert (0x0010, 0) not in after
    assert after[0x00080000].value == 10
    assert after[0x00180000].value == 10


def test_a_text_that_outgrows_its_length_field_is_kept_whole() -> None:
    text = "ä" * 40_000
    data = Dataset()
    data.SpecificCharacterSet, data.PatientName = "ISO_IR 100", "Alt"
    data.AdditionalPatientHistory = text
    after = read(
        corrected(encode(data), ExplicitVRLittleEndian, Change({NAME: "Ελλάς"}, at=AT)),
        ExplicitVRLittleEndian,
    )
    held = after[0x001021B0].value
    assert (held.decode() if isinstance(held, bytes) else held).rstrip() == text


def test_a_deflated_object_that_inflates_too_far_is_refused_not_shown_uncorrected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rewriting, "INFLATED_BYTES_MAX", 1 << 16)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = element(ID, "LO", b"P1", implicit=False, little=True)
    packed = packer.compress(head + bytes(1 << 17)) + packer.flush()
    with pytest.raises(RewriteError):
        rewrite(packed, b"", lookup(DeflatedExplicitVRLittleEndian), [Change({ID: "P2"}, at=AT)])


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300), cut=st.integers(0, 600), syntax=st.sampled_from(SYNTAXES))
def test_no_bytes_make_it_fail_and_what_it_writes_says_what_it_should(
    data: bytes, cut: int, syntax: str
) -> None:
    """Damaged data sets are delivered too: what could be read of them is corrected."""
    whole = encode(sample("ISO_IR 100", "Müßig^Jörg"), syntax)
    for damaged in (data, whole[:cut] + data, whole[:cut]):
        after = corrected(damaged, syntax, Change({ID: "K-4711", NAME: "Ελλάς"}, at=AT))
        if syntax != DeflatedExplicitVRLittleEndian and after != damaged:
            order = "big" if syntax == ExplicitVRBigEndian else "little"
            assert (0x0010).to_bytes(2, order) + (0x0020).to_bytes(2, order) in after
            assert b"K-4711" in after


def test_the_beginning_of_a_data_set_ends_with_a_whole_element() -> None:
    whole = encode(sample("ISO_IR 100", "Jo"), ExplicitVRLittleEndian)
    syntax = lookup(ExplicitVRLittleEndian)
    ends = {0}
    for cut in range(len(whole)):
        kept = whole_elements(whole[:cut], syntax)
        assert whole.startswith(kept)
        ends.add(len(kept))
    assert len(ends) > 10
