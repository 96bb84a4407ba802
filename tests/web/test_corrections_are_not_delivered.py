"""Every way out over HTTP gives the corrected object, with the length that was announced."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest

from hounsfield.archive.dicom.part10 import Part10Error
from hounsfield.archive.engine.corrections import Request

NAME, ID, COMMENTS, ACCESSION = 0x00100010, 0x00100020, 0x00104000, 0x00080050
ONE = {"accept": "application/dicom; transfer-syntax=*"}
ALL = {"accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
VALUES = {NAME: "Übel^Örs=山田^太郎", ID: "K-4711", ACCESSION: "A77", COMMENTS: ""}


def request(study: str, **what: object) -> Request:
    return Request(kind="set-study", actor="tester", reason="it was wrong", study=study, **what)  # type: ignore[arg-type]


async def test_every_object_that_others_made_comes_corrected(archive, sample, tmp_path: Path) -> None:
    """Into every study the same corrections, then everything else must be what it was."""
    dumped = 0
    async with archive.client() as client:
        for name, raw in sample.items():
            try:
                result = await archive.put(raw)
            except Part10Error:
                continue
            if result.outcome.value == "quarantined":
                continue
            path = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
            path += f"/instances/{result.sop_instance_uid}"
            (one,) = await archive.engine.instances(
                result.study_uid, result.series_uid, result.sop_instance_uid
            )
            was = await client.get(path, headers=ONE)
            frames = [
                bytes(
                    (await archive.engine.frame(one.study_uid, one.series_uid, one.row.sop_uid, n + 1)).data
                )
                for n in range(min(one.row.location.frames, 3) if one.row.layout in (1, 2) else 0)
            ]
            etag = (await client.get(f"{path}/metadata")).headers["etag"]
            made = await archive.engine.correcting.make(request(result.study_uid, values=VALUES))
            answer = await client.get(path, headers=ONE)
            assert int(answer.headers["content-length"]) == len(answer.content), name
            for number, frame in enumerate(frames):
                got = await archive.engine.frame(one.study_uid, one.series_uid, one.row.sop_uid, number + 1)
                assert bytes(got.data) == frame, name
            metadata = await client.get(f"{path}/metadata")
            assert metadata.headers["etag"] != etag
            (model,) = metadata.json()
            assert model["00100010"]["Value"] == [{"Alphabetic": "Übel^Örs", "Ideographic": "山田^太郎"}]
            assert model["00100020"]["Value"] == ["K-4711"]
            assert model["04000561"]["Value"][-1]["04000563"]["Value"] == ["Hounsfield"]
            try:
                before = pydicom.dcmread(io.BytesIO(was.content), force=True)
                there = {e.tag: e.value for e in before if e.tag.element and e.tag not in VALUES}
            except Exception:
                continue
            after = pydicom.dcmread(io.BytesIO(answer.content), force=True)
            assert after.PatientName == VALUES[NAME]
            assert (after.PatientID, after.AccessionNumber) == ("K-4711", "A77")
            assert not after.get("PatientComments")
            for tag, value in there.items():
                if tag not in (0x00080005, 0x04000561):
                    assert after[tag].value == value or repr(after[tag].value) == repr(value), (name, tag)
            if dumped < 12 and shutil.which("dcmdump"):
                (tmp_path / "one.dcm").write_bytes(answer.content)
                done = subprocess.run(
                    ["dcmdump", "-q", tmp_path / "one.dcm"], capture_output=True, check=False
                )
                assert b"K-4711" in done.stdout, name
                dumped += 1
            await archive.engine.correcting.revert(made["id"], "tester", "it was right")
            assert (await client.get(path, headers=ONE)).content == was.content, name


@pytest.mark.parametrize("level", ["study", "series"])
async def test_several_objects_come_corrected_with_their_lengths(archive, sample, level: str) -> None:
    result = await archive.put(sample["CT_small.dcm"])
    await archive.engine.correcting.make(request(result.study_uid, values=VALUES))
    path = f"/dicom-web/studies/{result.study_uid}"
    if level == "series":
        path += f"/series/{result.series_uid}"
    async with archive.client() as client:
        answer = await client.get(path, headers=ALL)
        assert answer.status_code == 200
        head, _, body = answer.content.partition(b"\r\n\r\n")
        announced = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        got = pydicom.dcmread(io.BytesIO(body[:announced]))
        assert body[announced:].startswith(b"\r\n--")
        assert (got.PatientID, got.PatientName) == ("K-4711", VALUES[NAME])
        found = (await client.get(f"/dicom-web/studies?StudyInstanceUID={result.study_uid}")).json()
        assert found[0]["00100020"]["Value"] == ["K-4711"]
