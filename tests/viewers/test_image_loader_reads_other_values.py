"""Cornerstone3D's image loader, on a page without a viewer, reads what pydicom reads: by both of its ways."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser
from pydicom.uid import (
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from hounsfield.codecs.registry import lookup
from support.server import ArchiveServer
from viewers.desk import Desk
from viewers.pictures import assert_values
from viewers.site import Site
from viewers.studies import CODINGS, LABELS, Studies, Study, some_frames

pytestmark = pytest.mark.peer("chromium", "@cornerstonejs/dicom-image-loader", "daikon")

JPEG_XL = "1.2.840.10008.1.2.4.110"  # pydicom has no name for it
# Lossless, written by the archive, and read by a decoder that the loader brings along.
SYNTAXES = (
    RLELossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
)
ON_DEMAND = (
    *((label, uid) for uid in SYNTAXES for label in ("CT", "US, RGB")),
    ("CR, JPEG 2000 lossless", JPEG_XL),  # which has no signed samples, and the CT has
    ("US, RGB", JPEG_XL),
)
# By WADO-RS the loader leaves palettes to viewers: of metadata it takes numbers alone, and these are bytes.
PALETTE = "US, palette colour"
# Of a whole file it has dcmjs read the data set, which inflates nothing, and grumbles over implicit VRs.
AS_EXPLICIT = ("MR, implicit", "OT, deflated")


@pytest.fixture(scope="module")
def page(
    browser: Browser, archive: ArchiveServer, loader_site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    desk = Desk(browser, loader_site.origin, archive.url, tmp_path_factory.mktemp("screenshots"))
    desk.page.goto(f"{loader_site.origin}/")
    desk.until(lambda: desk.page.evaluate("typeof window.describe === 'function'"), "the loader")
    yield desk
    desk.page.close()


@pytest.mark.parametrize("label", [label for label in LABELS + CODINGS if label != PALETTE])
def test_every_kind_of_image_by_wado_rs(
    page: Desk, archive: ArchiveServer, studies: Studies, label: str
) -> None:
    study = (studies.others | studies.codings)[label]
    for number in some_frames(study):
        _reads_by_wado_rs(page, archive, study, number)


@pytest.mark.parametrize("label", LABELS + CODINGS)
def test_every_kind_of_image_by_wado_uri(
    page: Desk, archive: ArchiveServer, studies: Studies, label: str
) -> None:
    study = (studies.others | studies.codings)[label]
    syntax = f"&transferSyntax={ExplicitVRLittleEndian}" if label in AS_EXPLICIT else ""
    for number in some_frames(study):
        _reads_by_wado_uri(page, archive, study, number, syntax)


@pytest.mark.parametrize(("label", "uid"), ON_DEMAND)
def test_what_the_archive_codes_on_demand(
    page: Desk, archive: ArchiveServer, studies: Studies, label: str, uid: str
) -> None:
    study = (studies.others | studies.codings)[label]
    wanted = f'multipart/related; type="{lookup(uid).media_type}"; transfer-syntax={uid}'
    with page.page.expect_response(lambda answer: "/frames/" in answer.url) as answer:
        _reads_by_wado_rs(page, archive, study, 1, f"?accept={quote(wanted)}")
    assert f"transfer-syntax={uid}".encode() in answer.value.body()[:500]
    _reads_by_wado_uri(page, archive, study, 1, f"&transferSyntax={uid}")


def _reads_by_wado_rs(page: Desk, archive: ArchiveServer, study: Study, number: int, query: str = "") -> None:
    (dataset,) = study.datasets
    instance = (
        f"{archive.url}/studies/{study.uid}/series/{study.series_uid}/instances/{dataset.SOPInstanceUID}"
    )
    image_id = f"wadors:{instance}/frames/{number}{query}"
    page.page.evaluate("([image, url]) => describe(image, url)", [image_id, f"{instance}/metadata"])
    assert_values(page.image(image_id), dataset, number, study.exact)
    assert page.complaints() == []


def _reads_by_wado_uri(
    page: Desk, archive: ArchiveServer, study: Study, number: int, query: str = ""
) -> None:
    (dataset,) = study.datasets
    where = f"studyUID={study.uid}&seriesUID={study.series_uid}&objectUID={dataset.SOPInstanceUID}"
    root = archive.url.removesuffix("/dicom-web")
    asked = f"{root}/wado?requestType=WADO&{where}&contentType=application/dicom{query}"
    assert_values(page.image(f"wadouri:{asked}&frame={number}"), dataset, number, study.exact)
    assert page.complaints() == []
