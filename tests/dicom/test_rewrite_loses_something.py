"""A corrected header differs where it was corrected and nowhere else, in whatever way it is encoded."""

from __future__ import annotations

import io
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from hounsfield.archive.dicom.attributes import extract
from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.dicom.rewrite import ORIGINAL_ATTRIBUTES, Change, rewrite
from hounsfield.archive.dicom.scan import scan
from hounsfield.codecs.registry import lookup

NAME, ID, ISSUER, BIRTH, SEX = 0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040
STUDY_UID, COMMENTS, AGE, ACCESSION = 0x0020000D, 0x00104000, 0x00101010, 0x00080050
AT = "20260102030405.000000+0000"
CORRECTION = Change(
    {
        NAME: "Muster^Erika=Ünicode^Ölaf" , ID: "K-4711", ISSUER: "HOSPITAL", BIRTH: "19640812", SEX: "F",
        STUDY_UID: "1.2.826.0.1.3680043.8.498.1", COMMENTS: None, ACCESSION: "",
    },
    at=AT,
)  # fmt: skip
PLAIN = Change({NAME: "Muster^Erika", ID: "K-4711", COMMENTS: None}, at=AT, reason="COERCE", source="CT1")


def corrected(data: bytes, syntax_uid: str, *changes: Change) -> bytes:
    """The object as an archive delivers it: header and trailer written anew, frames as they are."""
    slices = [bytes(piece) for piece in scan(data, lookup(syntax_uid)).slices(data)]
    head, frames, trailer = slices[0], slices[1:-1], slices[-1] if len(slices) > 1 else b""
    new_head, new_trailer = rewrite(head, trailer, lookup(syntax_uid), changes)
    return b"".join([bytes(new_head), *frames, bytes(new_trailer)])


def read(data: bytes, syntax_uid: str) -> Dataset:
    prefix = file_header(syntax_uid, "1.2.840.10008.5.1.4.1.1.7", "1.2.3")
    return pydicom.dcmread(io.BytesIO(prefix + data), force=True)


def texts(data: bytes, syntax_uid: str) -> dict[int, str]:
    found = extract(scan(data, lookup(syntax_uid)), data)
    return {**found.study, **found.series, **found.instance}


@pytest.mark.parametrize("change", [CORRECTION, PLAIN], ids=["other-characters", "plain"])
def test_every_other_element_of_every_file_is_what_it_was(sample: Any, change: Change) -> None:
    uid, data = sample.file.transfer_syntax_uid, bytes(sample.data)
    after = corrected(data, uid, change)
    old, new = texts(data, uid), texts(after, uid)
    for tag, text in change.values.items():
        assert new.get(tag, "") == (text or "")
    for tag in old.keys() - change.values.keys() - {0x00080005}:
        assert new[tag] == old[tag]
    # Read by others: every element that a change does not name is equal, pixels included.
    named = {*change.values, ORIGINAL_ATTRIBUTES, 0x00080005}
    try:
        theirs = read(data, uid)
        before = {one.tag: one for one in theirs if one.tag.element and one.tag not in named}
    except Exception:
        return
    ours = read(after, uid)
    assert before.keys() == {one.tag for one in ours if one.tag.element and one.tag not in named}
    for tag, one in before.items():
        assert ours[tag].VR == one.VR
        assert ours[tag].value == one.value or repr(ours[tag].value) == repr(one.value), tag
    if ORIGINAL_ATTRIBUTES in ours:
        (modified,) = ours[ORIGINAL_ATTRIBUTES].value[-1].ModifiedAttributesSequence
        assert modified.PatientID == theirs.get("PatientID", "")
