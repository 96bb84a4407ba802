"""A running archive for each test, and files to send to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.server import ArchiveServer, Sample, archive_server, samples

# Uncompressed in every byte order, deflated, JPEG, JPEG-LS, JPEG 2000, RLE; several modalities.
EVERY_KIND = (
    "image_dfl.dcm", "CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm",
    "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG2000.dcm",
    "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_16bit_2frame.dcm", "examples_ybr_color.dcm",
    "JPGExtended.dcm", "rtdose.dcm", "rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm",
)  # fmt: skip
UNCOMPRESSED = (
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "rtdose.dcm",
    "test-SR.dcm",
)


@pytest.fixture(scope="session")
def _shared_archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchiveServer]:
    with archive_server(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture
def archive(_shared_archive: ArchiveServer) -> ArchiveServer:
    """Supervisor and two workers, shared by the tests that store studies of their own and stop nothing."""
    assert _shared_archive.process is not None
    assert _shared_archive.process.poll() is None, _shared_archive.log_text()
    return _shared_archive


@pytest.fixture
def own_archive(tmp_path: Path) -> Iterator[ArchiveServer]:
    """Supervisor and two workers on a new data directory, for tests that stop or count them."""
    with archive_server(tmp_path / "server") as server:
        yield server
        assert "Traceback" not in server.log_text()


@pytest.fixture
def sample_files(tmp_path: Path) -> Callable[..., list[Sample]]:
    """``sample_files("CT_small.dcm", …)``: copies in a folder of the test's own."""

    def made(*names: str) -> list[Sample]:
        return samples(tmp_path / "files", *names)

    return made


@pytest.fixture
def every_kind(sample_files: Callable[..., list[Sample]]) -> list[Sample]:
    return sample_files(*EVERY_KIND)


@pytest.fixture
def uncompressed(sample_files: Callable[..., list[Sample]]) -> list[Sample]:
    return sample_files(*UNCOMPRESSED)
