"""Rendered resources and thumbnails over HTTP: every real file is shown, or refused with a reason."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
import trio
from PIL import Image as PilImage
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from hounsfield.archive.dicom.part10 import Part10Error, split
from hounsfield.archive.engine.budget import ByteBudget
from hounsfield.archive.engine.types import Outcome
from hounsfield.archive.rendering.pipeline import picture_of
from hounsfield.archive.rendering.request import Rendering
from hounsfield.archive.rendering.voi import Window
from support.archives import encode, store
from support.rendering import cells_of, image_of, paths
from support.states import parametric_map, presentation_state

JPEG, PNG, GIF = "image/jpeg", "image/png", "image/gif"


async def put(archive, path: Path) -> str:
    """Store a file; its path below the root."""
    result = await archive.put(path.read_bytes())
    assert result.outcome is Outcome.STORED
    url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    return f"{url}/instances/{result.sop_instance_uid}"


def picture(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    image = PilImage.open(io.BytesIO(answer.content))
    assert PilImage.MIME[image.format] == answer.headers["content-type"]
    return np.asarray(image)


def parts(answer) -> list[tuple[dict[str, str], bytes]]:
    assert answer.status_code == 200, answer.text
    boundary = answer.headers["content-type"].partition("boundary=")[2].strip('"').encode()
    first, *found, last = (b"\r\n" + answer.content).split(b"\r\n--" + boundary)
    assert (first, last.strip()) == (b"", b"--")
    out = []
    for part in found:
        head, _, body = part.partition(b"\r\n\r\n")
        lines = (line.partition(": ") for line in head.decode().strip().splitlines())
        out.append(({name.lower(): value for name, _, value in lines}, body))
    return out


async def test_a_window_is_not_the_one_asked_for(archive) -> None:
    path, image = image_of("CT_small.dcm")
    url = await put(archive, path)
    async with archive.client() as client:
        ours = picture(await client.get(f"{url}/rendered?window=40,400,linear", headers={"Accept": PNG}))
        default = picture(await client.get(f"{url}/rendered", headers={"Accept": PNG}))
        lossy = picture(await client.get(f"{url}/rendered?window=40,400,linear&accept=image/jpeg"))
        bad = await client.get(f"{url}/rendered?window=40,0,linear")
    cells = cells_of(path, image)
    assert np.array_equal(ours, picture_of(image, 1, cells, Rendering(window=Window(40, 400))))
    assert np.array_equal(default, picture_of(image, 1, cells, Rendering()))
    assert np.abs(lossy.astype(int) - ours).mean() < 3
    assert (bad.status_code, bad.headers["content-type"]) == (400, "application/problem+json")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, JPEG), ("*/*", JPEG), ("image/*", JPEG), ("image/png", PNG),
        ("image/png;q=0.5, image/jpeg;q=0.4", PNG),
        ("image/avif,image/webp,image/apng,*/*;q=0.8", JPEG), ("image/gif", GIF), ("image/jpg", JPEG),
        ('multipart/related; type="image/png"', "multipart/related"), ("application/dicom", None),
        ("image/jp2", None), ("video/mpeg", None),
        pytest.param("video/mp4", "video/mp4", marks=pytest.mark.peer("av")),
        pytest.param("video/*", "video/mp4", marks=pytest.mark.peer("av")),
    ],
)  # fmt: skip
async def test_accept_is_misread(archive, accept: str | None, kind: str | None) -> None:
    url = await put(archive, paths()["CT_small.dcm"])
    async with archive.client() as client:
        answer = await client.get(f"{url}/rendered", headers={} if accept is None else {"Accept": accept})
    if kind is None:
        assert answer.status_code == 406
        return
    assert answer.headers["content-type"].startswith(kind)
    if kind == "multipart/related":
        ((head, body),) = parts(answer)
        assert head["content-type"] == PNG
        assert head["content-location"].endswith(f"{url}/frames/1/rendered")
        assert PilImage.open(io.BytesIO(body)).format == "PNG"


async def test_frames_are_mixed_up(archive) -> None:
    path, image = image_of("emri_small.dcm")
    url = await put(archive, path)
    async with archive.client() as client:
        one = picture(await client.get(f"{url}/frames/3/rendered", headers={"Accept": PNG}))
        several = await client.get(
            f"{url}/frames/2,5/rendered", headers={"Accept": 'multipart/related; type="image/png"'}
        )
        all_of_them = await client.get(
            f"{url}/rendered", headers={"Accept": "multipart/related; type=image/png"}
        )
        representative = picture(await client.get(f"{url}/rendered", headers={"Accept": PNG}))
        alone = await client.get(f"{url}/frames/2,5/rendered", headers={"Accept": PNG})
        film = await client.get(f"{url}/rendered", headers={"Accept": GIF})
        missing = await client.get(f"{url}/frames/11/rendered")
        nonsense = await client.get(f"{url}/frames/0/rendered")
    expected = [picture_of(image, n, cells_of(path, image, n - 1), Rendering()) for n in range(1, 11)]
    assert np.array_equal(one, expected[2])
    assert np.array_equal(representative, expected[image.representative_frame - 1])
    found = [np.asarray(PilImage.open(io.BytesIO(body))) for _, body in parts(several)]
    assert np.array_equal(found[0], expected[1])
    assert np.array_equal(found[1], expected[4])
    assert len(parts(all_of_them)) == 10
    assert PilImage.open(io.BytesIO(film.content)).n_frames == 10
    assert (alone.status_code, missing.status_code, nonsense.status_code) == (406, 404, 400)


async def test_a_film_is_refused_for_good_when_others_are_made(archive) -> None:
    """The memory for films is taken: 503 and when to come back; pictures come all the same."""
    url = await put(archive, image_of("emri_small.dcm")[0])
    films = archive.engine.rendered.films = ByteBudget(100_000, 0.0, "other films are being made")
    assert films.take_nowait(100_000)
    async with archive.client() as client:
        refused = await client.get(f"{url}/rendered", headers={"Accept": GIF})
        assert (refused.status_code, refused.json()["detail"]) == (503, "other films are being made")
        assert int(refused.headers["retry-after"]) > 0
        picture(await client.get(f"{url}/rendered", headers={"Accept": PNG}))
        films.give_back(100_000)
        made = await client.get(f"{url}/rendered?viewport=16,16", headers={"Accept": GIF})
    assert PilImage.open(io.BytesIO(made.content)).n_frames == 10
    assert films.in_flight == len(made.content)  # kept for who asks again, until others want the room


async def test_a_series_comes_incomplete_or_a_broken_object_stops_it(archive) -> None:
    study, series = generate_uid(), generate_uid()
    for n, change in enumerate((None, None, _broken, None)):
        dataset = pydicom.dcmread(paths()["CT_small.dcm"])
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), n + 1
        if change is not None:
            change(dataset)
        await store(archive.engine, encode(dataset, "1.2.840.10008.1.2.1"), "1.2.840.10008.1.2.1")
    url = f"/dicom-web/studies/{study}"
    async with archive.client() as client:
        for path in (url, f"{url}/series/{series}"):
            assert len(parts(await client.get(f"{path}/rendered"))) == 3
            assert (await client.get(f"{path}/rendered", headers={"Accept": JPEG})).status_code == 406
            small = picture(await client.get(f"{path}/thumbnail"))
            assert max(small.shape) == 200
        assert (await client.get("/dicom-web/studies/1.2.3/rendered")).status_code == 404


def _broken(dataset: Dataset) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 4, "CMYK"


async def test_a_thumbnail_is_of_a_localizer_or_shows_a_name(archive) -> None:
    study = generate_uid()
    wanted = None
    for series, count in ((generate_uid(), 5), (generate_uid(), 3)):
        for n in range(count):
            dataset = pydicom.dcmread(paths()["CT_small.dcm"])
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
            dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), n + 1
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER" if count == 5 else "AXIAL"]
            dataset.WindowCenter, dataset.WindowWidth = 40 + 100 * n, 400
            if (count, n) == (3, 1):
                wanted = dataset.SOPInstanceUID, series
            await store(archive.engine, encode(dataset, "1.2.840.10008.1.2.1"), "1.2.840.10008.1.2.1")
    url = f"/dicom-web/studies/{study}"
    async with archive.client() as client:
        mine = await client.get(f"{url}/thumbnail?annotation=patient,technique&viewport=64,64")
        direct = await client.get(f"{url}/series/{wanted[1]}/instances/{wanted[0]}/thumbnail?viewport=64,64")
        frame = await client.get(
            f"{url}/series/{wanted[1]}/instances/{wanted[0]}/frames/1/thumbnail?viewport=64,64"
        )
    assert picture(mine).shape == (64, 64)
    assert mine.content == direct.content == frame.content


async def test_what_did_not_change_is_drawn_again(archive) -> None:
    url = await put(archive, paths()["CT_small.dcm"])
    made = archive.engine.rendered.figures
    async with archive.client() as client:
        first = await client.get(f"{url}/rendered")
        again = await client.get(f"{url}/rendered", headers={"If-None-Match": first.headers["etag"]})
        other = await client.get(f"{url}/rendered?quality=10")
        assert (again.status_code, again.content) == (304, b"")
        assert first.headers["etag"] != other.headers["etag"]
        assert made.made == 2
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(client.get, f"{url}/rendered?quality=50")
    assert made.made == 3


async def test_objects_without_pixels_crash(archive) -> None:
    url = await put(archive, paths()["test-SR.dcm"])
    async with archive.client() as client:
        for what in ("rendered", "thumbnail"):
            for path in (url, url.partition("/series")[0]):
                answer = await client.get(f"{path}/{what}")
                assert answer.status_code == 404
                assert "image" in answer.json()["detail"] or "pixels" in answer.json()["detail"]


async def test_a_presentation_state_is_not_followed(archive) -> None:
    path, _ = image_of("CT_small.dcm")
    url = await put(archive, path)
    of = pydicom.dcmread(path)
    state = presentation_of(of)
    result = await store(archive.engine, encode(state, "1.2.840.10008.1.2.1"), "1.2.840.10008.1.2.1")
    mine = f"{url.partition('/series')[0]}/series/{result.series_uid}/instances/{result.sop_instance_uid}"
    async with archive.client() as client:
        shown = picture(await client.get(f"{mine}/rendered", headers={"Accept": PNG}))
        plain = picture(
            await client.get(
                f"{url}/rendered?window=100,50,linear&viewport=64,64,64,32,64,64", headers={"Accept": PNG}
            )
        )
    expected = 255 - plain
    # Turned right by a quarter, then flipped: the image's rows are the picture's columns.
    assert np.array_equal(shown, expected.T)


def presentation_of(of: Dataset) -> Dataset:
    """A grayscale softcopy presentation state: a window, inverted, turned, flipped, a part shown."""
    state = presentation_state(of)
    voi = Dataset()
    voi.WindowCenter, voi.WindowWidth = 100, 50
    state.SoftcopyVOILUTSequence = [voi]
    state.PresentationLUTShape = "INVERSE"
    state.ImageRotation, state.ImageHorizontalFlip = 90, "Y"
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner = [65, 96], [128, 33]
    area.PresentationSizeMode, area.PresentationPixelSpacing = "SCALE TO FIT", [1, 1]
    state.DisplayedAreaSelectionSequence = [area]
    return state


async def test_a_real_file_is_answered_with_an_error_of_ours(archive) -> None:
    """Every file of the packages, at one go: a picture of the right size, or 404 or 406 that says why."""
    shown, refused = 0, []
    async with archive.client() as client:
        for path in paths().values():
            raw = path.read_bytes()
            try:
                split(raw)
            except Part10Error:
                continue
            result = await archive.put(raw)
            if result.outcome is Outcome.QUARANTINED:
                continue
            url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
            answer = await client.get(f"{url}/instances/{result.sop_instance_uid}/rendered")
            if answer.status_code == 200:
                assert picture(answer).size
                shown += 1
                continue
            assert answer.status_code in (404, 406), (path.name, answer.text)
            refused.append((path.name, answer.json()["detail"]))
    assert shown > 130, (shown, refused)
    with_pixels = [(name, why) for name, why in refused if "no pixels" not in why]
    assert len(with_pixels) <= 8, with_pixels


async def test_a_map_of_numbers_is_not_shown(archive) -> None:
    """Frames of a parametric map, numbers of both lengths, in every way they may be stored."""
    frames = [np.linspace(-1, 1 + n, 40 * 30).reshape(40, 30) for n in range(3)]
    for kind in ("f4", "f8"):
        for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"):
            dataset = parametric_map(*(frame.astype(kind) for frame in frames))
            result = await store(archive.engine, encode(dataset, syntax), syntax)
            url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
            url = f"{url}/instances/{result.sop_instance_uid}"
            async with archive.client() as client:
                third = picture(await client.get(f"{url}/frames/3/rendered", headers={"Accept": PNG}))
                asked = f"{url}/frames/2/rendered?window=0,1,linear-exact"
                second = picture(await client.get(asked, headers={"Accept": PNG}))
                film = await client.get(f"{url}/rendered", headers={"Accept": GIF})
                small = picture(await client.get(f"{url}/thumbnail"))
            assert np.abs(third - (frames[2] + 1) / 4 * 255).max() <= 1
            assert np.abs(second - np.clip(frames[1] + 0.5, 0, 1) * 255).max() <= 1
            assert small.shape == (200, 150)
            # The range of all frames: the first does not reach white.
            moving = PilImage.open(io.BytesIO(film.content))
            assert moving.n_frames == 3
            assert abs(np.asarray(moving.convert("L")).max() - 127.5) <= 1
