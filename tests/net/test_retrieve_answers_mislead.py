"""What a C-MOVE or C-GET answers fits its elements, and says no more and no less than what happened."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pydicom
import pytest

from hounsfield.archive.dicom.find_identifier import IdentifierError, MismatchError
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.engine.listing import Named
from hounsfield.archive.net import selection
from hounsfield.archive.net.outgoing import Sent
from hounsfield.archive.net.retrieving import GET_CLASSES, LEVELS, MOVE_CLASSES, relational
from hounsfield.archive.net.selection import TooManyError, keys_of, select
from hounsfield.archive.net.suboperations import (
    COUNT_MAX,
    Patience,
    RetrieveLimits,
    Suboperations,
    failed_list,
)
from hounsfield.archive.wire import Category, Status
from support.retrieving import EXPLICIT, IMPLICIT, identifier, slices, stored

BIG = "1.2.840.10008.1.2.2"
SUCCESS, WARNING, FAILURE = (Sent(one) for one in (Category.SUCCESS, Category.WARNING, Category.FAILURE))


def operations(count: int, cancelled: Callable[[], bool] = lambda: False) -> Suboperations:
    return Suboperations((Named("1.1", "1.2", f"1.3.{n}", "1.4", EXPLICIT) for n in range(count)), cancelled)


@pytest.mark.parametrize(
    ("results", "status"),
    [
        ([], Status.SUCCESS),
        ([SUCCESS], Status.SUCCESS),
        ([SUCCESS, WARNING], 0xB000),
        ([WARNING], 0xB000),
        ([SUCCESS, FAILURE], 0xB000),
        ([WARNING, FAILURE], 0xB000),
        ([FAILURE], Status.OUT_OF_RESOURCES_SUBOPERATIONS),
        ([FAILURE, FAILURE], Status.OUT_OF_RESOURCES_SUBOPERATIONS),
    ],
)
def test_the_final_status_is_what_became_of_all(results: list[Sent], status: int) -> None:
    found = operations(len(results))
    for result in results:
        work = found.take()
        assert work is not None
        found.done(work, result)
    assert found.status() == status
    assert found.counts()[0] == 0


def test_what_is_left_was_cancelled() -> None:
    found = operations(3, lambda: True)
    assert found.take() is None
    assert (found.status(), found.counts()) == (Status.CANCEL, (3, 0, 0, 0))


def test_counts_fit_their_elements() -> None:
    found = operations(COUNT_MAX + 10)
    assert found.counts()[0] == COUNT_MAX
    found.fail_chosen("no")
    assert found.counts() == (0, 0, COUNT_MAX, 0)
    assert len(found.failed_uids) == COUNT_MAX + 10


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize("count", [1, 2, 3000])
def test_the_failed_list_is_read_by_others(syntax: str, count: int) -> None:
    uids = [f"1.2.840.99999.{10**40 + n}" for n in range(count)]
    data = failed_list(uids, syntax)
    file_meta = pydicom.dataset.FileMetaDataset()
    file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    whole = pydicom.dataset.FileDataset("x", {}, file_meta=file_meta, preamble=bytes(128))
    pydicom.dcmwrite(out, whole, enforce_file_format=False)
    read = pydicom.dcmread(io.BytesIO(out.getvalue() + data), force=True)
    element = read[0x0008, 0x0058]
    found = [str(uid) for uid in (element.value if element.VM > 1 else [element.value])]
    assert element.VR == "UI"
    assert found == uids[: len(found)]
    assert len(found) == count or len(data) > 65_000


def test_every_retrieve_class_has_levels() -> None:
    assert LEVELS.keys() == MOVE_CLASSES | GET_CLASSES
    assert LEVELS["1.2.840.10008.5.1.4.1.2.2.2"][0] is Level.STUDY
    assert Level.SERIES not in LEVELS["1.2.840.10008.5.1.4.1.2.3.3"]


@pytest.mark.parametrize(
    ("asked", "agreed"), [(b"\1", b"\1"), (b"\0", b"\0"), (b"\1\1", b"\1\0"), (b"", b"")]
)
def test_relational_retrieval_is_agreed_to_and_nothing_else(asked: bytes, agreed: bytes) -> None:
    assert relational("1.2.840.10008.5.1.4.1.2.2.2", asked) == agreed


def test_who_gets_nothing_through_is_given_up_and_who_does_is_not() -> None:
    limits = RetrieveLimits(retries=2, pause_s=1.0, pause_s_max=1.5)
    patience = Patience(limits)
    assert [patience.pause(progressed=False) for _ in range(3)] == [1.0, 1.5, None]
    patience = Patience(limits)
    assert [patience.pause(progressed=True) for _ in range(5)] == [1.0] * 5


async def test_more_than_can_be_counted_is_said_before_anything_is_sent(
    open_archive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_archive() as archive:
        for raw in slices(3):
            await stored(archive.engine, raw)
        monkeypatch.setattr(selection, "INSTANCES_MAX", 2)
        keys = keys_of(identifier("STUDY", StudyInstanceUID="1.2.3.4"), EXPLICIT, tuple(Level))
        with pytest.raises(TooManyError):
            await select(archive.engine, keys)


async def test_a_patient_of_another_issuer_is_another(open_archive: Any) -> None:
    async with open_archive() as archive:
        for issuer, study in (("HERE", "1.2.3.1"), ("THERE", "1.2.3.2"), ("", "1.2.3.3")):
            dataset = pydicom.dcmread(io.BytesIO(slices(1, patient="P1")[0]))
            dataset.IssuerOfPatientID = issuer
            dataset.StudyInstanceUID, dataset.SOPInstanceUID = study, f"{study}.1.1"
            out = io.BytesIO()
            dataset.save_as(out)
            await stored(archive.engine, out.getvalue())

        async def found(**more: str) -> list[str]:
            keys = keys_of(identifier("PATIENT", PatientID="P1", **more), EXPLICIT, tuple(Level))
            return sorted(one.study_uid for one in await select(archive.engine, keys))

        assert await found() == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
        assert await found(IssuerOfPatientID="HERE") == ["1.2.3.1", "1.2.3.3"]


def test_keys_of_lower_levels_and_others_do_not_matter() -> None:
    data = identifier(
        "STUDY", StudyInstanceUID="1.2", SeriesInstanceUID="1.3", PatientName="A^B", ModalitiesInStudy="CT"
    )
    keys = keys_of(data, EXPLICIT, tuple(Level))
    assert (keys.level, keys.study_uids, keys.series_uids) == (Level.STUDY, ("1.2",), ("1.3",))


@pytest.mark.parametrize("data", [b"", b"\x08\x00", b"nonsense that is no data set at all"])
def test_nonsense_names_nothing(data: bytes) -> None:
    with pytest.raises((IdentifierError, MismatchError)):
        keys_of(data, EXPLICIT, tuple(Level))
