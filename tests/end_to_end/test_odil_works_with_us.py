"""odil, which shares no code with DCMTK or pynetdicom, as the user of each service it knows."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from hounsfield.archive.dicom import part10
from support.server import PATIENCE_S, ArchiveServer, Sample

pytestmark = pytest.mark.peer("odil")


def odil(archive: ArchiveServer, service: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
    """Run it; what it prints."""
    target = ["127.0.0.1", str(archive.dicom_port), "ODIL", "HOUNSFIELD"]
    done = subprocess.run(
        ["odil", service, *options, *target, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_echoes_stores_finds_and_gets(
    archive: ArchiveServer, sample_files: Callable[..., list[Sample]], tmp_path: Path
) -> None:
    odil(archive, "echo")
    (sample,) = sample_files("CT_small.dcm")
    odil(archive, "store", str(sample.path))
    header = pydicom.dcmread(sample.path, stop_before_pixels=True)
    study = str(header.StudyInstanceUID)
    keys = ("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={study}", f"PatientID={header.PatientID}")
    found = odil(archive, "find", "study", *keys, "PatientName=")
    assert found.startswith("1 answer")
    assert str(header.PatientName) in found
    got = tmp_path / "got"
    got.mkdir()
    odil(archive, "get", "study", *keys, options=("-d", str(got)))
    (file,) = got.iterdir()
    back, sent = pydicom.dcmread(file), pydicom.dcmread(sample.path)
    assert back.PixelData == sent.PixelData
    assert back.PatientName == sent.PatientName
    assert len(back) == len(sent)


def test_what_it_stores_is_kept_as_it_writes_it(
    archive: ArchiveServer, sample_files: Callable[..., list[Sample]]
) -> None:
    (sample,) = sample_files("MR_small.dcm")
    odil(archive, "store", str(sample.path))
    header = pydicom.dcmread(sample.path, stop_before_pixels=True)
    uids = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID), str(header.SOPInstanceUID))
    raw = archive.part10(*uids)
    kept = raw[part10.split(raw).offset :]
    assert len(kept) > 100
    assert pydicom.dcmread(sample.path).PixelData in kept
