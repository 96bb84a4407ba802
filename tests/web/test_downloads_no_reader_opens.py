"""Archives of studies: opened by zipfile, their directory followed by pydicom and DCMTK, byte for byte."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pydicom
import pytest
from pydicom.fileset import FileSet

from hounsfield.archive.dicom import dicomdir, dicomdir_writing, part10
from hounsfield.archive.dicom.dicomdir_writing import KEYS, record, record_type
from hounsfield.archive.dicom.part10 import Part10Error
from hounsfield.archive.web import archive_zip
from support.archives import ct_slice, store

ZIP = {"accept": "application/zip"}
EXPLICIT = "1.2.840.10008.1.2.1"


async def unpacked(client, path: str, where: Path) -> list[str]:
    answer = await client.get(path, headers=ZIP)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(where)
        return archive.namelist()


async def test_every_study_that_pydicom_carries(archive, sample, tmp_path):
    """Its objects are in the directory, under the UIDs and at the places where they are."""
    sent: dict[tuple[str, str], bytes] = {}
    for raw in sample.values():
        try:
            result = await archive.put(raw)
        except Part10Error:
            continue
        if result.outcome.value == "stored":
            sent[result.study_uid, result.sop_instance_uid] = raw
    kinds: set[str] = set()
    async with archive.client() as client:
        for number, study in enumerate(sorted({study for study, _ in sent})):
            where = tmp_path / str(number)
            names = await unpacked(client, f"/dicom-web/studies/{study}", where)
            of_study = {sop: raw for (one, sop), raw in sent.items() if one == study}
            assert len(names) == len(of_study) + 1
            listing = pydicom.dcmread(where / "DICOMDIR")
            found = {str(one.SOPInstanceUID): Path(one.path) for one in FileSet(listing)}
            assert set(found) == set(of_study)
            for sop, path in found.items():
                raw, got = of_study[sop], path.read_bytes()
                assert got[part10.split(got).offset :] == raw[part10.split(raw).offset :]
            listed = {".".join(one) for one in dicomdir.file_ids((where / "DICOMDIR").read_bytes())}
            assert listed == {name.replace("/", ".") for name in names} - {"DICOMDIR"}
            for one in listing.DirectoryRecordSequence:
                kinds.add(one.DirectoryRecordType)
                for tag, need in KEYS[one.DirectoryRecordType]:
                    assert need == 3 or tag in one
                    assert need != 1 or one[tag].value not in ("", None) or one[tag].VR in ("SQ", "UI")
    assert {"PATIENT", "STUDY", "SERIES", "IMAGE", "SR DOCUMENT", "RT PLAN", "RT DOSE"} <= kinds


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="DCMTK is not installed")
async def test_dcmtk_reads_the_directory_and_makes_the_same(archive, tmp_path):
    for number in range(1, 4):
        for series in ("1.2.3.1", "1.2.3.2"):
            raw = ct_slice(
                study_uid="1.2.3", series_uid=series, sop_uid=f"{series}.{number}", number=number,
                patient_name="Müller^Jürgen",
            )  # fmt: skip
            await store(archive.engine, raw, EXPLICIT)
    async with archive.client() as client:
        names = await unpacked(client, "/dicom-web/studies/1.2.3", tmp_path / "ours")
    ours = tmp_path / "ours" / "DICOMDIR"
    dump = subprocess.run(["dcmdump", "-v", str(ours)], capture_output=True, text=True, check=True)
    assert "W:" not in dump.stderr
    assert "E:" not in dump.stderr
    made = subprocess.run(
        ["dcmmkdir", "-q", "-W", "+r", "+id", str(ours.parent / "DICOM"), "+D", str(tmp_path / "theirs")],
        capture_output=True, text=True, check=False, cwd=tmp_path / "ours" / "DICOM",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    tags = ("DirectoryRecordType", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber")
    tags += ("ReferencedSOPInstanceUIDInFile", "ReferencedTransferSyntaxUIDInFile", "Modality", "StudyDate")

    def says(path: Path) -> list[tuple[object, ...]]:
        records = pydicom.dcmread(path).DirectoryRecordSequence
        return sorted(tuple(str(one.get(tag)) for tag in tags) for one in records)

    assert says(ours) == says(tmp_path / "theirs")
    # dcmmkdir takes what is there up again: it follows every offset of ours.
    extra = ct_slice(study_uid="1.2.9", series_uid="1.2.9.1", sop_uid="1.2.9.1.1")
    other = tmp_path / "ours" / "DICOM" / "OTHER"
    other.write_bytes(part10.file_header(EXPLICIT, "1.2.840.10008.5.1.4.1.1.2", "1.2.9.1.1") + extra)
    appended = subprocess.run(
        ["dcmmkdir", "-q", "-W", "+A", "+D", str(ours), "DICOM/OTHER"],
        capture_output=True, text=True, check=False, cwd=tmp_path / "ours",
    )  # fmt: skip
    assert appended.returncode == 0, appended.stderr
    assert len(FileSet(pydicom.dcmread(ours))) == len(names)


async def test_of_a_series_and_of_an_instance(archive, tmp_path):
    for series in ("1.2.3.1", "1.2.3.2"):
        raw = ct_slice(study_uid="1.2.3", series_uid=series, sop_uid=f"{series}.1")
        await store(archive.engine, raw, EXPLICIT)
    async with archive.client() as client:
        for path, files in (("", 2), ("/series/1.2.3.2", 1), ("/series/1.2.3.2/instances/1.2.3.2.1", 1)):
            url = f"/dicom-web/studies/1.2.3{path}"
            assert len(await unpacked(client, url, tmp_path / f"of{len(path)}")) == files + 1
            answer = await client.get(url, headers=ZIP)
            again = await client.get(url, headers=ZIP)
            assert answer.content == again.content
            same = await client.get(url, headers=ZIP | {"if-none-match": answer.headers["etag"]})
            assert same.status_code == 304
            assert (await client.head(url, headers=ZIP)).content == b""


async def test_what_is_given_up_in_the_middle_leaves_nothing_behind(archive, recwarn):
    for number in range(20):
        raw = ct_slice(study_uid="1.2.3", series_uid="1.2.3.1", pixels=bytes(512), number=number)
        await store(archive.engine, raw, EXPLICIT)
    found = await archive.engine.instances("1.2.3")
    pieces = archive_zip.Zips(archive.engine, archive_zip.Files(archive.engine)).pieces(found, "1.2")
    assert await anext(pieces)
    await pieces.aclose()
    assert not [one for one in recwarn if "zip" in str(one.message).lower()]


def test_an_entry_past_four_gibibytes_is_announced_as_such():
    """Its header is written before its bytes: what is known of its length decides the format."""
    out = archive_zip._Outlet()
    with zipfile.ZipFile(out, "w") as archive:
        archive.open(archive_zip._entry(("A",), 5 << 30, 0), "w").close()
    head = b"".join(map(bytes, out.take()))
    assert int.from_bytes(head[4:6], "little") == 45
    assert head[6] & 8
    with zipfile.ZipFile(io.BytesIO(head)) as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("uid", "kind"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", "IMAGE"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "IMAGE"),
        ("1.2.840.10008.5.1.4.1.1.88.33", "SR DOCUMENT"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "KEY OBJECT DOC"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "PRESENTATION"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "WAVEFORM"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "ENCAP DOC"),
        ("1.3.12.2.1107.5.9.1", "PRIVATE"),
    ],
)
def test_record_types(uid, kind):
    assert record_type(uid) == kind


def test_what_an_object_lacks_is_made_up():
    """A directory without what is mandatory is refused by readers."""
    study = record("STUDY", {})
    data = dicomdir_writing.dicomdir([study], "1.2")
    (one,) = pydicom.dcmread(io.BytesIO(data)).DirectoryRecordSequence
    assert (one.StudyDate, one.StudyTime, one.StudyID) == ("19000101", "000000", "UNKNOWN")
    assert one.AccessionNumber == ""
    assert set(dicomdir_writing._TYPES.values()) <= set(KEYS)
