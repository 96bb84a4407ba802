"""The server as it is started, DCMTK's programs around it: what is moved and got is what was stored."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest

from hounsfield.archive.dicom.part10 import split
from support.server import ArchiveServer, Sample, until

from .conftest import EVERY_KIND

IMPLICIT = "1.2.840.10008.1.2"
# What decoders agree on to the bit.
LOSSLESS = (
    "CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm", "image_dfl.dcm",
    "rtdose.dcm", "rtplan.dcm", "test-SR.dcm",
)  # fmt: skip


@contextmanager
def storescp(directory: Path, *options: str) -> Iterator[int]:
    """DCMTK's storescp: its port. As it is shipped, with Nagle's algorithm on."""
    directory.mkdir()
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = int(reserved.getsockname()[1])
    words = ["storescp", *options, "--bit-preserving", "-od", str(directory), str(port)]
    environment = {name: text for name, text in os.environ.items() if name != "TCP_NODELAY"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listens, "storescp listens")
        yield port
    finally:
        process.kill()
        process.wait()


def kept_in(directory: Path) -> dict[str, Path]:
    """Files by their SOP Instance UID."""
    return {str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID): path
            for path in directory.iterdir()}  # fmt: skip


def data_set(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[split(raw).offset :]


def ask(program: str, archive: ArchiveServer, sample: Sample, *options: str) -> None:
    study, *_ = sample.ids
    words = [program, "-S", *options, "-aec", "HOUNSFIELD", "-k", "QueryRetrieveLevel=STUDY"]
    words += ["-k", f"StudyInstanceUID={study}", "127.0.0.1", str(archive.dicom_port)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def filled(archive: ArchiveServer, sample_files: Callable[..., list[Sample]]) -> list[Sample]:
    files = sample_files(*EVERY_KIND)
    sent = archive.run("send", archive.dicom_target, *(str(one.path) for one in files), data=False)
    assert sent.returncode == 0, sent.stderr
    return files


@pytest.mark.peer("storescp", "movescu")
def test_what_storescp_takes_as_it_is_stored_is_not_touched(
    archive: ArchiveServer, filled: list[Sample], tmp_path: Path
) -> None:
    with storescp(tmp_path / "kept", "+xa") as port:
        assert archive.run("ae", "add", "STORESCP_ALL", f"127.0.0.1:{port}").returncode == 0
        for sample in filled:
            ask("movescu", archive, sample, "-aem", "STORESCP_ALL")
    kept = kept_in(tmp_path / "kept")
    assert kept.keys() == {sample.ids[2] for sample in filled}
    for sample in filled:
        path = kept[sample.ids[2]]
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == sample.transfer_syntax_uid, sample.path
        assert data_set(path) == sample.data, sample.path


@pytest.mark.peer("storescp", "movescu")
def test_what_takes_implicit_vr_alone_gets_the_same_pixels(
    archive: ArchiveServer, filled: list[Sample], tmp_path: Path
) -> None:
    with storescp(tmp_path / "kept", "+xi") as port:
        assert archive.run("ae", "add", "STORESCP_PLAIN", f"127.0.0.1:{port}").returncode == 0
        for sample in filled:
            ask("movescu", archive, sample, "-aem", "STORESCP_PLAIN")
    kept = kept_in(tmp_path / "kept")
    assert kept.keys() == {sample.ids[2] for sample in filled}
    compared = 0
    for sample in filled:
        after = pydicom.dcmread(kept[sample.ids[2]])
        assert after.file_meta.TransferSyntaxUID == IMPLICIT
        before = sample.dataset
        assert after.PatientID == before.PatientID
        if any(sample.path.name.endswith(name) for name in LOSSLESS) and "PixelData" in before:
            assert np.array_equal(after.pixel_array, before.pixel_array), sample.path
            compared += 1
    assert compared >= 8


@pytest.mark.peer("getscu")
def test_getscu_gets_each_of_them(archive: ArchiveServer, filled: list[Sample], tmp_path: Path) -> None:
    directory = tmp_path / "got"
    directory.mkdir()
    for sample in filled:
        ask("getscu", archive, sample, "-od", str(directory))
    got = kept_in(directory)
    # getscu proposes the storage classes that DCMTK has chosen, uncompressed
    assert len(got) >= len(filled) - 2
    for sample in filled:
        if sample.ids[2] in got and any(sample.path.name.endswith(name) for name in LOSSLESS):
            after = pydicom.dcmread(got[sample.ids[2]])
            if "PixelData" in after:
                assert np.array_equal(after.pixel_array, sample.dataset.pixel_array), sample.path
