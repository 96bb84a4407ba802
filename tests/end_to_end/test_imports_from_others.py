"""Danger: what another archive has does not come over, or not as it is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from benchmarks.peers.base import free_port
from benchmarks.peers.servers import ORTHANC_PLUGIN

from hounsfield.archive.app.asking import ask
from support.foreign_servers import Server, dcmqrscp, orthanc
from support.server import ArchiveServer, Sample, archive_server, samples

# Several studies; uncompressed both ways, JPEG, JPEG 2000, RLE, a structured report.
NAMES = (
    "CT_small.dcm",
    "MR_small_implicit.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_RLE.dcm",
    "test-SR.dcm",
    "rtplan.dcm",
    "examples_ybr_color.dcm",
)
DESTINATION = "IMPORTER"


@dataclass
class Filled:
    """An archive of others that holds ``files``."""

    server: Server
    files: list[Sample]
    url: str = ""
    listen: int = 0
    """Where it moves to."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return samples(tmp_path_factory.mktemp("files"), *NAMES)


@contextmanager
def filled_orthanc(directory: Path, files: list[Sample], **settings: Any) -> Iterator[Filled]:
    http, listen = free_port(), free_port()
    with orthanc(
        directory,
        {DESTINATION: listen},
        HttpServerEnabled=True,
        HttpPort=http,
        AuthenticationEnabled=False,
        Plugins=[str(ORTHANC_PLUGIN)],
        DicomWeb={"Enable": True},
        **settings,
    ) as server:
        for file in files:
            answer = httpx.post(f"http://127.0.0.1:{http}/instances", content=file.path.read_bytes())
            assert answer.status_code == 200, answer.text
        yield Filled(server, files, f"http://127.0.0.1:{http}/dicom-web", listen)


@pytest.fixture(scope="module")
def their_orthanc(tmp_path_factory: pytest.TempPathFactory, files: list[Sample]) -> Iterator[Filled]:
    with filled_orthanc(tmp_path_factory.mktemp("orthanc"), files, StorageCompression=True) as filled:
        yield filled


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchiveServer]:
    with archive_server(tmp_path_factory.mktemp("ours")) as server:
        yield server


@pytest.fixture
def ours(running: ArchiveServer) -> Iterator[ArchiveServer]:
    """Empty."""
    yield running
    for study in {row["0020000D"]["Value"][0] for row in running.instances()}:
        ask(running.data / "control.sock", "delete", study=study, reason="test", actor="test")
    assert running.listed() == []


def bring(server: ArchiveServer, *words: str, code: int = 0) -> dict[str, int]:
    done = server.run("import", *words, "--json")
    assert done.returncode == code, done.stderr + done.stdout
    found = json.loads(done.stdout)
    counts = {name: number for name, number in found["counts"].items() if number}
    return counts | ({"before": found["before"]} if found["before"] else {})


def assert_all_here(server: ArchiveServer, files: list[Sample], *, as_they_are: bool = True) -> None:
    assert sorted(server.listed()) == sorted(file.ids[2] for file in files)
    for file in files if as_they_are else ():
        assert server.dataset_bytes(*file.ids) == file.data, file.path.name


# ---------------------------------------------------------------- Orthanc


@pytest.mark.peer("Orthanc")
def test_from_orthanc_over_dicomweb(ours: ArchiveServer, their_orthanc: Filled) -> None:
    files = their_orthanc.files
    assert bring(ours, their_orthanc.url) == {"imported": len(files)}
    assert_all_here(ours, files)
    assert bring(ours, their_orthanc.url) == {"before": len({file.ids[0] for file in files})}
    assert bring(ours, their_orthanc.url, "--again") == {"already_there": len(files)}


@pytest.mark.peer("Orthanc")
def test_of_a_dicomweb_server_only_what_is_asked_for(ours: ArchiveServer, their_orthanc: Filled) -> None:
    file = their_orthanc.files[0]
    wanted = ("--match", f"StudyInstanceUID={file.ids[0]}")
    listed = ours.run("import", their_orthanc.url, *wanted, "--dry-run", "--again")
    assert listed.stdout.split() == [f"{their_orthanc.url}/studies/{file.ids[0]}"]
    assert ours.listed() == []
    bring(ours, their_orthanc.url, *wanted, "--again")
    assert file.ids[2] in ours.listed()
    assert all(row["0020000D"]["Value"] == [file.ids[0]] for row in ours.instances())


@pytest.mark.peer("Orthanc")
def test_from_orthancs_own_folder(ours: ArchiveServer, their_orthanc: Filled, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(their_orthanc.server.directory, folder)
    counts = bring(ours, str(folder))
    assert counts.pop("not_dicom") > 0
    assert counts == {"imported": len(their_orthanc.files)}
    assert_all_here(ours, their_orthanc.files)


@pytest.mark.peer("Orthanc")
def test_from_orthanc_with_c_get(ours: ArchiveServer, their_orthanc: Filled) -> None:
    files = their_orthanc.files
    target = f"ae:{their_orthanc.server.target}"
    assert bring(ours, target, "--jobs", "2") == {"imported": len(files)}
    assert_all_here(ours, files, as_they_are=False)
    assert bring(ours, target) == {"before": len({file.ids[0] for file in files})}


@pytest.mark.peer("Orthanc")
def test_from_orthanc_with_c_move_to_us(ours: ArchiveServer, their_orthanc: Filled) -> None:
    files = their_orthanc.files
    words = (f"ae:{their_orthanc.server.target}", "--listen", f"127.0.0.1:{their_orthanc.listen}", "--again")
    assert bring(ours, *words, "--calling", DESTINATION) == {"imported": len(files)}
    assert_all_here(ours, files, as_they_are=False)
    # a title that it does not know
    code = ours.run("import", *words, "--calling", "NOBODY", "--json")
    assert code.returncode == 1
    assert json.loads(code.stdout)["counts"]["unreadable"] == len({file.ids[0] for file in files})


# ---------------------------------------------------------------- DCMTK


@pytest.mark.peer("dcmqrscp")
def test_from_dcmqrscp_with_get_and_move(ours: ArchiveServer, files: list[Sample], tmp_path: Path) -> None:
    listen = free_port()
    files = [file for file in files if not file.dataset.file_meta.TransferSyntaxUID.is_compressed]
    with dcmqrscp(tmp_path, {DESTINATION: listen}) as server:
        sent = ours.run("send", server.target, *(str(file.path) for file in files), data=False)
        assert sent.returncode == 0, sent.stderr
        target = f"ae:{server.target}"
        assert bring(ours, target, "--jobs", "2") == {"imported": len(files)}
        assert sorted(ours.listed()) == sorted(file.ids[2] for file in files)
        words = (target, "--listen", f"127.0.0.1:{listen}", "--calling", DESTINATION, "--again")
        assert bring(ours, *words) == {"already_there": len(files)}


# ---------------------------------------------------------------- us


def test_from_another_of_ours(ours: ArchiveServer, files: list[Sample], tmp_path: Path) -> None:
    with archive_server(tmp_path / "theirs", workers=1) as theirs:
        assert bring(theirs, str(files[0].path.parent)) == {"imported": len(files)}
        assert bring(ours, theirs.url) == {"imported": len(files)}
        assert_all_here(ours, files)
        target = f"ae:{theirs.dicom_target}"
        assert bring(ours, target, "--jobs", "2") == {"already_there": len(files)}
