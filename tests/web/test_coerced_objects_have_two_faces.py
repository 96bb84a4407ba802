"""What was coerced on receipt is told to its sender, and is the same whichever way it is asked for."""

from __future__ import annotations

import io

import pydicom

from hounsfield.archive.app.route_options import coercions_of
from hounsfield.archive.config import Config
from hounsfield.archive.config.sections import CoercionEntry
from hounsfield.archive.dicom.part10 import split

ENTRIES = (
    CoercionEntry(
        name="web",
        match={"protocol": "stow", "Modality": "CT"},
        set={"InstitutionName": "Nord", "StudyDescription": "Coerced"},
        remove=("ReferringPhysicianName",),
    ),
)


def body(raw: bytes) -> tuple[dict[str, str], bytes]:
    head = {"content-type": 'multipart/related; type="application/dicom"; boundary=b0'}
    return head, b"--b0\r\nContent-Type: application/dicom\r\n\r\n" + raw + b"\r\n--b0--\r\n"


async def test_every_way_out_says_the_same(archive, sample) -> None:
    raw = sample["CT_small.dcm"]
    archive.engine.use_coercions(coercions_of(Config(coercions=ENTRIES)))
    async with archive.client() as client:
        headers, content = body(raw)
        answer = await client.post("/dicom-web/studies", headers=headers, content=content)
        assert answer.status_code == 202
        (stored,) = answer.json()["00081199"]["Value"]
        assert stored["00081196"]["Value"] == [0xB000]
        path = stored["00081190"]["Value"][0].removeprefix(archive.origin)
        found = (await client.get("/dicom-web/studies", params={"StudyDescription": "Coerced"})).json()
        assert len(found) == 1
        for _ in range(2):  # prepared, the second time
            (model,) = (await client.get(f"{path}/metadata")).json()
            assert model["00080080"]["Value"] == ["Nord"]
            assert model["00081030"]["Value"] == ["Coerced"]
            assert not model["00080090"].get("Value")
            (item,) = model["04000561"]["Value"]
            assert item["04000565"]["Value"] == ["COERCE"]
        one = await client.get(path, headers={"accept": "application/dicom; transfer-syntax=*"})
        assert int(one.headers["content-length"]) == len(one.content)
        shown = pydicom.dcmread(io.BytesIO(one.content))
        assert (shown.InstitutionName, shown.StudyDescription) == ("Nord", "Coerced")
        assert shown.PixelData == pydicom.dcmread(io.BytesIO(raw)).PixelData
        study, series, instance = path.split("/")[3:8:2]
        (held,) = await archive.engine.instances(study, series, instance)
        received = b"".join([bytes(p) async for p in archive.engine.dataset(held, as_received=True)])
        assert received == raw[split(raw).offset :]
        again = await client.post("/dicom-web/studies", headers=headers, content=content)
        assert again.status_code == 202, "held already, as coerced"


async def test_what_no_rule_names_is_a_plain_success(archive, sample) -> None:
    archive.engine.use_coercions(coercions_of(Config(coercions=ENTRIES)))
    async with archive.client() as client:
        headers, content = body(sample["MR_small.dcm"])
        assert (await client.post("/dicom-web/studies", headers=headers, content=content)).status_code == 200
