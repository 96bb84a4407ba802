"""WADO-URI: the object, frame and form that the parameters name, or an error that says what is wrong."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from support.archives import ct_slice, store

EXPLICIT, JLS = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.80"
WHERE = {"requestType": "WADO", "studyUID": "1.2.3", "seriesUID": "1.2.3.4", "objectUID": "1.2.3.4.5"}


async def image(archive, frames: int = 1) -> bytes:
    """16×16, each frame brighter than the one before, the left half dark."""
    pixels = b"".join(
        np.where(np.arange(16) < 8, 0, 1000 + 500 * n).astype("<u2").tobytes() * 16 for n in range(frames)
    )

    def change(data: Dataset) -> None:
        if frames > 1:
            data.NumberOfFrames = frames
        data.WindowCenter, data.WindowWidth = 1500, 3000

    raw = ct_slice(study_uid="1.2.3", series_uid="1.2.3.4", sop_uid="1.2.3.4.5", pixels=pixels, change=change)
    await store(archive.engine, raw, EXPLICIT)
    return raw


def picture(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as opened:
        return np.asarray(opened.convert("L"))


async def test_files(archive):
    raw = await image(archive)
    async with archive.client() as client:
        answer = await client.get("/wado", params=WHERE | {"contentType": "application/dicom"})
        assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={EXPLICIT}"
        assert answer.content.endswith(raw)
        part = await client.get(
            "/wado", params=WHERE | {"contentType": "application/dicom"}, headers={"range": "bytes=128-131"}
        )
        assert (part.status_code, part.content) == (206, b"DICM")
        other = await client.get(
            "/wado", params=WHERE | {"contentType": "application/dicom", "transferSyntax": JLS}
        )
        got = pydicom.dcmread(io.BytesIO(other.content))
        assert got.file_meta.TransferSyntaxUID == JLS


async def test_pictures(archive):
    await image(archive, frames=3)
    png = WHERE | {"contentType": "image/png"}
    async with archive.client() as client:
        first = picture(await client.get("/wado", params=png | {"frameNumber": 1}))
        third = picture(await client.get("/wado", params=png | {"frameNumber": 3}))
        assert first.shape == (16, 16)
        assert third[0, 15] > first[0, 15] > first[0, 0]
        window = {"windowCenter": 500, "windowWidth": 10, "frameNumber": 1}
        assert picture(await client.get("/wado", params=png | window))[0, 15] == 255
        small = picture(await client.get("/wado", params=png | {"rows": 8, "columns": 8, "frameNumber": 1}))
        assert small.shape == (8, 8)
        assert picture(await client.get("/wado", params=png | {"columns": 4, "frameNumber": 1})).shape == (
            4,
            4,
        )
        right = png | {"region": "0.5,0,1,0.5", "frameNumber": 1}
        cut = picture(await client.get("/wado", params=right))
        assert cut.shape == (8, 8)
        assert cut.min() == first[0, 15]


async def test_what_comes_when_nothing_is_said(archive):
    """A picture of an image of one frame, the file of everything else (PS3.18 9.1)."""
    await image(archive)
    raw = ct_slice(study_uid="1.2.3", series_uid="1.2.3.4", sop_uid="1.2.3.4.6", change=_without_pixels)
    await store(archive.engine, raw, EXPLICIT)
    async with archive.client() as client:
        browsers = {"accept": "image/avif,image/webp,*/*;q=0.8"}
        answer = await client.get("/wado", params=WHERE, headers=browsers)
        assert answer.headers["content-type"] == "image/jpeg"
        answer = await client.get("/wado", params=WHERE | {"objectUID": "1.2.3.4.6"})
        assert answer.headers["content-type"].startswith("application/dicom")
        answer = await client.get("/wado", params=WHERE | {"contentType": "text/html, image/*;q=0.5"})
        assert answer.headers["content-type"] == "image/jpeg"


def _without_pixels(data: Dataset) -> None:
    del data.PixelData


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"requestType": "RETRIEVE"}, 400, "requestType"),
        ({"seriesUID": ""}, 400, "seriesUID"),
        ({"objectUID": "1.2"}, 404, "instance"),
        ({"studyUID": "1.9"}, 404, "instance"),
        ({"anonymize": "yes"}, 400, "anonymize"),
        ({"contentType": "text/html"}, 406, "contentType"),
        ({"contentType": "application/dicom", "rows": "4"}, 400, "rows"),
        ({"contentType": "application/dicom", "transferSyntax": "jpeg"}, 400, "transferSyntax"),
        ({"transferSyntax": JLS}, 400, "transferSyntax"),
        ({"windowCenter": "40"}, 400, "windowWidth"),
        ({"windowCenter": "x", "windowWidth": "1"}, 400, "window"),
        ({"region": "0,0,2,2"}, 400, "region"),
        ({"region": "0,0,nan,1"}, 400, "region"),
        ({"region": "0.5"}, 400, "region"),
        ({"frameNumber": "2"}, 404, "frame"),
        ({"frameNumber": "1,1"}, 400, "frameNumber"),
        ({"presentationUID": "1.2"}, 400, "presentation"),
    ],
)
async def test_errors_say_what_is_wrong(archive, change, status, word):
    await image(archive)
    async with archive.client() as client:
        answer = await client.get("/wado", params=WHERE | change)
        assert answer.status_code == status, answer.text
        assert word in answer.json()["detail"]
        assert "1.2.3" not in answer.text
