"""Storage commitment's data sets, beside pydicom's reading and writing of them."""

from __future__ import annotations

import io
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence

from hounsfield.archive.dicom.commitment import (
    CommitmentError,
    CommitmentRequest,
    FailureReason,
    Reference,
    parse_report,
    parse_request,
    report,
    request,
)
from hounsfield.codecs.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax,
)

LITTLE = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
CT = "1.2.840.10008.5.1.4.1.1.2"
A, B = Reference(CT, "1.2.3.4"), Reference("1.2.840.10008.5.1.4.1.1.4", "1.2.3.55")


def of_pydicom(data: Dataset, syntax: TransferSyntax) -> bytes:
    out = io.BytesIO()
    dcmwrite(
        out,
        data,
        implicit_vr=syntax.implicit_vr,
        little_endian=syntax.little_endian,
        force_encoding=True,
    )
    return out.getvalue()


def to_pydicom(data: bytes, syntax: TransferSyntax) -> Dataset:
    return read_dataset(io.BytesIO(data), syntax.implicit_vr, syntax.little_endian)


def items(*references: Reference) -> Sequence:
    made = []
    for one in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one
        made.append(item)
    return Sequence(made)


@pytest.mark.parametrize("syntax", [*LITTLE, EXPLICIT_VR_BIG_ENDIAN])
def test_a_request_of_pydicom_is_read(syntax: TransferSyntax) -> None:
    data = Dataset()
    data.TransactionUID = "2.25.7"
    data.StorageMediaFileSetID = "X"
    data.ReferencedSOPSequence = items(A, B, A)
    data.ReferencedSOPSequence[0].RetrieveAETitle = "ELSEWHERE"
    asked = parse_request(of_pydicom(data, syntax), syntax)
    assert asked == CommitmentRequest("2.25.7", (A, B))


@pytest.mark.parametrize("syntax", LITTLE)
def test_a_request_of_ours_is_read_by_pydicom(syntax: TransferSyntax) -> None:
    found = to_pydicom(request(CommitmentRequest("2.25.7", (A, B)), syntax), syntax)
    assert found.TransactionUID == "2.25.7"
    assert found.ReferencedSOPSequence == items(A, B)
    assert parse_request(request(CommitmentRequest("2.25.7", (A, B)), syntax), syntax).references == (A, B)


@pytest.mark.parametrize("syntax", LITTLE)
def test_a_report_is_read_by_pydicom(syntax: TransferSyntax) -> None:
    failed = [(B, FailureReason.NO_SUCH_OBJECT_INSTANCE)]
    found = to_pydicom(report("2.25.7", [A], failed, syntax, retrieve_ae="ARCHIVE"), syntax)
    assert [element.tag for element in found] == sorted(element.tag for element in found)
    assert found.TransactionUID == "2.25.7"
    assert found.RetrieveAETitle == "ARCHIVE"
    assert found.ReferencedSOPSequence == items(A)
    (item,) = found.FailedSOPSequence
    assert (item.ReferencedSOPInstanceUID, item.FailureReason) == (B.sop_instance_uid, 0x0112)
    assert parse_report(report("2.25.7", [A], failed, syntax), syntax) == ("2.25.7", (A,), ((B, 0x0112),))


@pytest.mark.parametrize("committed", [[], [A]])
def test_no_sequence_is_empty(committed: list[Reference]) -> None:
    failed = [] if committed else [(B, FailureReason.PROCESSING_FAILURE)]
    syntax = EXPLICIT_VR_LITTLE_ENDIAN
    found = to_pydicom(report("2.25.7", committed, failed, syntax), syntax)
    assert ("ReferencedSOPSequence" in found) == bool(committed)
    assert ("FailedSOPSequence" in found) == bool(failed)


@pytest.mark.parametrize(
    ("transaction", "references", "says"),
    [
        ("", [A], "Transaction UID"),
        ("not a uid", [A], "Transaction UID"),
        ("2.25.7", [], "Referenced SOP Sequence"),
        ("2.25.7", [A, Reference(CT, "")], "a Referenced SOP"),
        ("2.25.7", [Reference("", "1.2.3")], "a Referenced SOP"),
        ("2.25.7", [Reference(CT, "1.2." + "3" * 70)], "a Referenced SOP"),
    ],
)
def test_what_is_no_request_is_said_to_be_none(
    transaction: str, references: list[Reference], says: str
) -> None:
    syntax = EXPLICIT_VR_LITTLE_ENDIAN
    with pytest.raises(CommitmentError, match=says) as raised:
        parse_request(request(CommitmentRequest(transaction, tuple(references)), syntax), syntax)
    assert "1.2.3" not in str(raised.value)


@given(st.binary(max_size=400), st.sampled_from([*LITTLE, EXPLICIT_VR_BIG_ENDIAN]))
def test_any_bytes_are_a_request_or_an_error(data: bytes, syntax: TransferSyntax) -> None:
    for parse in (parse_request, parse_report):
        with suppress(CommitmentError):
            parse(data, syntax)
