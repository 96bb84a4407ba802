"""WADO-URI: the object, frame and form that the parameters name, or an error that says what is wrong."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from support.archives import ct_slice, encode, store
from support.states import presentation_state

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
        ({"presentationUID": "1.2"}, 400, "presentationSeriesUID"),
        ({"presentationSeriesUID": "1.2", "presentationUID": ""}, 400, "presentationUID"),
        ({"presentationSeriesUID": "1.2", "presentationUID": "1.9"}, 404, "instance"),
        ({"presentationSeriesUID": "1.2.3.4", "presentationUID": "1.2.3.4.5"}, 400, "presentation state"),
        (
            {"presentationSeriesUID": "1", "presentationUID": "1", "windowCenter": "4", "windowWidth": "2"},
            400,
            "windowCenter",
        ),
        ({"contentType": "application/dicom", "presentationUID": "1.2"}, 400, "presentationUID"),
    ],
)
async def test_errors_say_what_is_wrong(archive, change, status, word):
    await image(archive)
    async with archive.client() as client:
        answer = await client.get("/wado", params=WHERE | change)
        assert answer.status_code == status, answer.text
        assert word in answer.json()["detail"]
        assert "1.2.3" not in answer.text


async def state_of(archive, raw: bytes, *, frames: list[int] | None = None) -> dict[str, str]:
    """A presentation state of that image: inverted, its window, the right half turned; its parameters."""
    of = pydicom.dcmread(io.BytesIO(raw), force=True)
    state = presentation_state(of)
    if frames:
        state.ReferencedSeriesSequence[0].ReferencedImageSequence[0].ReferencedFrameNumber = frames
    voi, area = Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth = 1000, 4000
    state.SoftcopyVOILUTSequence, state.PresentationLUTShape = [voi], "INVERSE"
    area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner = [5, 1], [16, 16]
    area.PresentationSizeMode, area.PresentationPixelAspectRatio = "SCALE TO FIT", [1, 1]
    state.DisplayedAreaSelectionSequence = [area]
    await store(archive.engine, encode(state, EXPLICIT), EXPLICIT)
    return {"presentationSeriesUID": state.SeriesInstanceUID, "presentationUID": state.SOPInstanceUID}


async def test_a_presentation_state_is_not_followed(archive):
    """Its own rendered resource says how the image looks under it; region and size come after it."""
    raw = await image(archive)
    state = await state_of(archive, raw)
    png = WHERE | {"contentType": "image/png"} | state
    own = f"/dicom-web/studies/1.2.3/series/{state['presentationSeriesUID']}"
    own = f"{own}/instances/{state['presentationUID']}/rendered"
    async with archive.client() as client:
        shown = picture(await client.get("/wado", params=png))
        expected = picture(await client.get(own, headers={"accept": "image/png"}))
        plain = picture(await client.get("/wado", params=WHERE | {"contentType": "image/png"}))
        assert shown.shape == (16, 12)
        assert np.array_equal(shown, expected)
        assert not np.array_equal(shown, plain[:, 4:])
        # The last eight of its twelve columns, which are the image's last eight.
        right = picture(await client.get("/wado", params=png | {"region": "0.33333334,0,1,1"}))
        assert np.array_equal(right, shown[:, 4:])
        small = picture(await client.get("/wado", params=png | {"rows": "8", "columns": "8"}))
        assert small.shape == (8, 6)
        first = await client.get("/wado", params=png)
        other = await client.get("/wado", params=WHERE | {"contentType": "image/png"})
        assert first.headers["etag"] != other.headers["etag"]


async def test_a_presentation_state_of_another_image_or_frame_is_applied(archive):
    raw = await image(archive, frames=3)
    state = await state_of(archive, raw, frames=[2])
    other = ct_slice(study_uid="1.2.3", series_uid="1.2.3.4", sop_uid="1.2.3.4.7")
    await store(archive.engine, other, EXPLICIT)
    png = WHERE | {"contentType": "image/png"} | state
    async with archive.client() as client:
        default = picture(await client.get("/wado", params=png))
        assert np.array_equal(default, picture(await client.get("/wado", params=png | {"frameNumber": "2"})))
        for change in ({"frameNumber": "3"}, {"objectUID": "1.2.3.4.7"}):
            answer = await client.get("/wado", params=png | change)
            assert (answer.status_code, "not for this" in answer.json()["detail"]) == (400, True)
