"""One archive full of real studies, OHIF on another origin, one browser, and no errors in its console."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from support.server import ArchiveServer, archive_server
from viewers.desk import Desk, chromium
from viewers.npm_packages import IMAGE_LOADER
from viewers.site import Site, configuration, viewer_site
from viewers.studies import Studies, prepare

_HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests come first: then one worker of pytest-xdist gets them all, and starts one browser."""
    items.sort(key=lambda item: _HERE not in item.path.parents)


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    with viewer_site() as running:
        yield running


@pytest.fixture(scope="package")
def loader_site() -> Iterator[Site]:
    """Cornerstone3D's image loader, without a viewer around it."""
    with viewer_site(IMAGE_LOADER.directory) as running:
        yield running


@pytest.fixture(scope="package")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    return prepare(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="package")
def archive(
    tmp_path_factory: pytest.TempPathFactory, site: Site, loader_site: Site, studies: Studies
) -> Iterator[ArchiveServer]:
    """Holds the studies, and lets the viewers' origins read them."""
    setting = f'http.cors_origins=["{site.origin}", "{loader_site.origin}"]'
    with archive_server(tmp_path_factory.mktemp("archive"), setting) as server:
        sent = server.run_json("send", server.dicom_target, str(studies.folder))
        assert all(each["status"] == "0000" for each in sent["files"]), sent
        site.configuration = configuration(server.url)
        yield server
        assert "Traceback" not in server.log_text()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="package")
def desk(
    browser: Browser, archive: ArchiveServer, site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Desk:
    """A page for all tests of this package."""
    return Desk(browser, site.origin, archive.url, tmp_path_factory.mktemp("screenshots"))


@pytest.fixture(autouse=True)
def clean_console(desk: Desk) -> Iterator[None]:
    """No test may leave an error in the browser's console, or a request that failed."""
    yield
    assert desk.complaints() == []
