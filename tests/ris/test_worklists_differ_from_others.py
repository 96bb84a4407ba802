"""Danger: a modality sees another worklist from us than from a server that it was made with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE

from ris.conftest import Desk
from ris.modality import (
    FIND,
    findscu,
    sample_items,
    sample_queries,
    take_in,
    wlmscpfs,
)
from support.archives import open_stores
from support.server import ArchiveServer, archive_server

pytestmark = pytest.mark.peer("wlmscpfs", "findscu", "dump2dcm")

STEP = "ScheduledProcedureStepSequence[0]"


@dataclass
class Beside:
    """Our server and DCMTK's, with the same ten items."""

    ours: ArchiveServer
    theirs: int
    queries: list[Path]
    folder: Path

    def ask(self, query: Path | None, *keys: str) -> tuple[list[Dataset], list[Dataset]]:
        ours = findscu(self.ours.dicom_port, "HOUNSFIELD", query, self.folder / "ours", keys)
        theirs = findscu(self.theirs, "OFFIS", query, self.folder / "theirs", keys)
        return ours, theirs


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    folder = tmp_path_factory.mktemp("worklist")
    items = sample_items(folder / "items")
    settings = ("plugins.ris.worklist_days_before=1000000",)  # the samples are of 1993 to 1996
    with (
        archive_server(folder / "archive", *settings, workers=1) as server,
        wlmscpfs(folder / "items") as port,
    ):
        key = f"file:{server.directory}/state/hounsfield/development-master.key"
        stores = open_stores(server.data, key)
        try:
            desk = Desk(stores)
            for path in items:
                item = pydicom.dcmread(path, force=True)
                # Each sample has its own idea of what its patient is allergic to.
                desk.commit(partial(take_in, item=item, issuer=path.stem))
        finally:
            stores.close()
        yield Beside(server, port, sample_queries(folder / "queries"), folder)
        assert '"error"' not in server.log_text()


def alike(answers: list[Dataset]) -> list[str]:
    """What is said, without the character set, which wlmscpfs copies from its files."""
    said = []
    for answer in answers:
        bare = Dataset(answer)
        bare.pop("SpecificCharacterSet", None)
        said.append(bare.to_json())
    return sorted(said)


def test_dcmtks_sample_queries_have_the_same_answers(beside: Beside) -> None:
    found = 0
    for query in beside.queries:
        ours, theirs = beside.ask(query)
        assert alike(ours) == alike(theirs), query.name
        found += len(ours)
    assert found > 50


@pytest.mark.parametrize(
    "keys",
    [
        ("PatientName=VIV*",),
        ("PatientName=?IVALDI^ANT*", "PatientID"),
        ("PatientName=VIVALDI",),
        ("PatientName=*", "AccessionNumber"),
        ("PatientSex=F",),
        ("PatientSex=M", "PatientName"),
        ("PatientID=AV35674", "PatientName", "PatientBirthDate"),
        ("PatientBirthDate=16780304", "PatientName"),
        ("AccessionNumber=00004", "PatientName"),
        ("RequestedProcedureID=RP454G234", "AccessionNumber"),
        ("RequestedProcedurePriority=LOW", "AccessionNumber"),
        ("RequestingPhysician=MILLER", "AccessionNumber"),
        (f"{STEP}.Modality=MR", "AccessionNumber"),
        (f"{STEP}.ScheduledStationAETitle=AA32", "AccessionNumber"),
        (f"{STEP}.ScheduledPerformingPhysicianName=R*", "AccessionNumber"),
        (f"{STEP}.ScheduledProcedureStepStartDate=19960101-", "AccessionNumber"),
        (f"{STEP}.ScheduledProcedureStepStartDate=-19951231", "AccessionNumber"),
        (f"{STEP}.ScheduledProcedureStepStartDate=19960103", "AccessionNumber"),
        (f"{STEP}.ScheduledProcedureStepStartTime=090000-120000", "AccessionNumber"),
        (
            f"{STEP}.ScheduledProcedureStepStartDate=19951015-19960123",
            f"{STEP}.ScheduledProcedureStepStartTime=120000-140000",
            "AccessionNumber",
        ),
        (
            f"{STEP}.ScheduledProcedureStepStartDate=19960103",
            f"{STEP}.ScheduledProcedureStepStartTime=120000-",
            "AccessionNumber",
        ),
        (
            f"{STEP}.ScheduledProcedureStepStartDate=19951015-",
            f"{STEP}.ScheduledProcedureStepStartTime=090000-",
            "AccessionNumber",
        ),
        ("ScheduledProcedureStepSequence", "AccessionNumber"),
    ],
)
def test_what_modalities_ask_has_the_same_answers(beside: Beside, keys: tuple[str, ...]) -> None:
    ours, theirs = beside.ask(None, *keys)
    assert alike(ours) == alike(theirs)


@pytest.mark.parametrize(
    ("key", "ours", "theirs"),
    [
        # C.2.2.2.1 leaves case to the SCP, with a note that it need not count in names.
        ("PatientName=vivaldi^antonio", 3, 0),
        # Single value matching alone is required of these; we know wild cards and lists everywhere.
        ("PatientID=AV*", 3, 0),
        (f"{STEP}.Modality=M*", 2, 0),
        # Optional matching keys of Table K.6-1 that wlmscpfs does not have: it ignores them.
        ("StudyInstanceUID=1.2.276.0.7230010.3.2.101", 1, 10),
        (f"{STEP}.ScheduledProcedureStepID=SPD3445", 1, 10),
        (f"{STEP}.ScheduledProcedureStepDescription=EXAM74", 1, 10),
    ],
)
def test_where_wlmscpfs_matches_less_we_do_as_the_standard_says(
    beside: Beside, key: str, ours: int, theirs: int
) -> None:
    answers = beside.ask(None, key, "AccessionNumber")
    assert tuple(map(len, answers)) == (ours, theirs)


# ---------------------------------------------------------------- pynetdicom


def associated(server: ArchiveServer, calling: str = "AA32") -> Any:
    entity = AE(ae_title=calling)
    entity.add_requested_context(FIND)
    association = entity.associate("127.0.0.1", server.dicom_port, ae_title="HOUNSFIELD")
    assert association.is_established
    return association


def test_pynetdicom_is_answered_warned_and_refused(beside: Beside) -> None:
    association = associated(beside.ours)
    query = Dataset()
    query.PatientName = "MOZART*"
    query.ScheduledProcedureStepSequence = [Dataset()]
    found = list(association.send_c_find(query, FIND))
    assert [status.Status for status, _ in found] == [0xFF00, 0xFF00, 0]
    assert all(item.PatientName == "MOZART^WOLFGANG^AMADEUS" for _, item in found[:-1])

    query.SmokingStatus = "YES"  # an optional key that we do not have
    found = list(association.send_c_find(query, FIND))
    assert [status.Status for status, _ in found] == [0xFF01, 0xFF01, 0]
    assert not any("SmokingStatus" in item for _, item in found[:-1])

    query = Dataset()
    query.AccessionNumber = ""
    query.PatientBirthDate = "17-91"
    ((status, _),) = association.send_c_find(query, FIND)
    assert status.Status == 0xC000
    assert status.OffendingElement == 0x00100030

    query = Dataset()
    query.SmokingStatus = ""
    assert [status.Status for status, _ in association.send_c_find(query, FIND)] == [0xA900]
    association.release()
