"""``hounsfield fix`` says what it would change, changes just that, and takes it back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pydicom
import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.app.offline import open_stores
from hounsfield.archive.config import load_config
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from support.archives import ct_slice, store

STUDY, OTHER = "1.2.840.99.1", "1.2.840.99.2"
WHY = ("--reason", "it was wrong")


@pytest.fixture
def filled(archive: Path) -> Path:
    """Two studies of two patients, two series of two instances each."""

    async def fill(stores: Any) -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for study, patient in ((STUDY, "4711"), (OTHER, "4712")):
                for series in (1, 2):
                    for number in (1, 2):
                        data = ct_slice(
                            study_uid=study, series_uid=f"{study}.{series}",
                            sop_uid=f"{study}.{series}.{number}",
                            patient_id=patient, patient_name=f"Name^{patient}", number=number,
                        )  # fmt: skip
                        await store(engine, data, ExplicitVRLittleEndian)

    with open_stores(load_config(None, [f'archive.data="{archive}"'])) as stores:
        trio.run(fill, stores)
    return archive


def studies(cli: Any, data: Path, *keys: str) -> list[Any]:
    return [row["study"] for row in cli("ls", *keys, "--data", data, "--json").json()["rows"]]


def test_a_dry_run_shows_what_would_change_and_changes_nothing(cli: Any, filled: Path) -> None:
    before = studies(cli, filled)
    result = cli(
        "fix",
        "patient",
        "4711",
        "PatientName=Muster^Erika",
        "PatientSex=",
        *WHY,
        "--dry-run",
        "--data",
        filled,
    )
    assert result.code == 0
    for word in ("PatientName", "Name^4711", "Muster^Erika", "PatientSex", "(empty)", STUDY):
        assert word in result.out
    assert "1 studies with 2 series and 4 instances; nothing was changed" in result.err
    assert studies(cli, filled) == before
    assert cli("fix", "list", "--data", filled, "--json").json() == []


def test_everything_can_be_corrected_exported_and_taken_back(cli: Any, filled: Path, tmp_path: Path) -> None:
    before = studies(cli, filled)
    data = ("--yes", "--data", filled, "--json", *WHY)
    made = cli("fix", "patient", "4711", "PatientName=Muster^Erika", *data).json()
    assert (made["studies"], made["instances"]) == (1, 4)
    assert [row["0020000D"] for row in studies(cli, filled, "PatientName=Muster*")] == [STUDY]
    cli("fix", "study", STUDY, "AccessionNumber=A77", *data)
    merged = cli("fix", "merge", "4711", "--into", "4712", *data).json()
    assert {row["00100020"] for row in studies(cli, filled)} == {"4712"}
    moved = cli("fix", "move", f"{STUDY}/{STUDY}.1", "--to-study", OTHER, *data).json()
    split = cli("fix", "split", OTHER, "--instance", f"{OTHER}.2.1", "AccessionNumber=A78", *data).json()
    assert len(studies(cli, filled)) == 3
    assert cli("export", split["to_study"], "--to", tmp_path / "out", "--data", filled).code == 0
    (file,) = (tmp_path / "out").rglob("*.dcm")
    got = pydicom.dcmread(io.BytesIO(file.read_bytes()))
    assert (got.StudyInstanceUID, got.AccessionNumber, got.PatientID) == (split["to_study"], "A78", "4712")
    assert got.file_meta.MediaStorageSOPInstanceUID == got.SOPInstanceUID == f"{OTHER}.2.1"
    listed = cli("fix", "list", "--data", filled)
    assert all(
        word in listed.out for word in ("set-patient", "merge", "move-series", "split", "it was wrong")
    )
    assert f"{OTHER}.2.1" in cli("fix", "show", split["id"], "--data", filled).out
    checked = cli("fsck", "--data", filled)
    assert checked.code == 0, checked.out + checked.err
    assert cli("fix", "unmerge", "4711", *data).json()["id"] == merged["id"]
    for number in (moved["id"], made["id"], split["id"]):
        assert cli("fix", "revert", number, *data).code == 0
    (left,) = cli("fix", "list", "--data", filled, "--json").json()
    assert cli("fix", "revert", left["id"], *data).code == 0
    assert studies(cli, filled) == before
    assert len(cli("fix", "list", "--all", "--data", filled, "--json").json()) == 5


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("patient", "4711", "PatientName"), 2, "write KEYWORD=VALUE"),
        (("patient", "9999", "PatientName=X"), 1, "nothing of this patient is here"),
        (("patient", "4711", "PatientBirthDate=1.1.1970"), 1, "no value of VR DA"),
        (("patient", "4711", "PatientID=4712"), 1, "fix merge"),
        (("patient", "4711", "StudyDate=20200101"), 1, "of a patient these can be set"),
        (("study", "1.2.3", "StudyDate=20200101"), 1, "no such study"),
        (("merge", "4711", "--into", "4711"), 1, "into itself"),
        (("move", STUDY, "--to-study", OTHER), 2, "STUDY/SERIES"),
        (("move", f"{STUDY}/1.2", "--to-study", OTHER), 1, "no such series"),
        (("split", STUDY), 1, "say which series go"),
        (("revert", "77"), 1, "no correction 77"),
        (("unmerge", "4711"), 1, "merged into no other"),
    ],
)
def test_what_cannot_be_corrected_is_said_and_names_nobody(
    cli: Any, filled: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    result = cli("fix", *words, *WHY, "--yes", "--data", filled)
    assert result.code == code
    assert says in result.err.replace("\n", " ")
    assert "4711" not in result.err
    assert "Name^" not in result.err


def test_without_a_terminal_nothing_is_changed_unasked(cli: Any, filled: Path) -> None:
    result = cli("fix", "patient", "4711", "PatientName=X", *WHY, "--data", filled)
    assert result.code == 2
    assert "--yes" in result.err
    assert cli("fix", "list", "--data", filled, "--json").json() == []
