"""Orthanc as a department would set it up beside this archive: it stores here, asks here, moves both ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from benchmarks.peers.base import free_port

from support.foreign_servers import Server, orthanc
from support.pki import Authority
from support.server import PATIENCE_S, ArchiveServer, Sample, archive_server

pytestmark = pytest.mark.peer("Orthanc")

#: Uncompressed both ways, JPEG, JPEG 2000, RLE, a structured report.
NAMES = (
    "CT_small.dcm",
    "MR_small_implicit.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_RLE.dcm",
    "test-SR.dcm",
)


@dataclass
class Orthanc:
    """A running Orthanc that knows us as OURS, and its REST interface."""

    server: Server
    client: httpx.Client

    def post(self, path: str, body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def upload(self, file: Path) -> str:
        answer = self.client.post("/instances", content=file.read_bytes())
        assert answer.status_code == 200, answer.text
        return str(answer.json()["ID"])

    def instances(self) -> set[str]:
        return {str(one["MainDicomTags"]["SOPInstanceUID"]) for one in self.get("/instances?expand")}


@contextmanager
def running(directory: Path, ours: int, **settings: Any) -> Iterator[Orthanc]:
    http = free_port()
    settings = {
        "HttpServerEnabled": True,
        "HttpPort": http,
        "AuthenticationEnabled": False,
        "DicomModalities": {
            "OURS": {"AET": "HOUNSFIELD", "Host": "127.0.0.1", "Port": ours, **settings.pop("modality", {})}
        },
        **settings,
    }
    url = f"http://127.0.0.1:{http}"
    with orthanc(directory, **settings) as server, httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        yield Orthanc(server, client)


def add(archive: ArchiveServer, title: str, port: int, *options: str) -> None:
    done = archive.run("ae", "add", title, f"127.0.0.1:{port}", *options)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ArchiveServer, Orthanc]]:
    """Both, each known to the other."""
    directory = tmp_path_factory.mktemp("pair")
    with archive_server(directory / "ours") as archive, running(directory, archive.dicom_port) as other:
        add(archive, "ORTHANC", other.server.port)
        yield archive, other


def uid(sample: Sample) -> str:
    return str(pydicom.dcmread(sample.path, stop_before_pixels=True).SOPInstanceUID)


def test_it_echoes_and_stores_here(pair: Any, sample_files: Callable[..., list[Sample]]) -> None:
    archive, other = pair
    assert other.client.post("/modalities/OURS/echo", content="").status_code == 200
    samples = sample_files(*NAMES)
    ids = [other.upload(sample.path) for sample in samples]
    sent = other.post("/modalities/OURS/store", {"Resources": ids, "Synchronous": True})
    assert sent["FailedInstancesCount"] == 0
    assert sent["InstancesCount"] == len(samples)
    assert {uid(sample) for sample in samples} <= set(archive.listed())
    for id_ in ids:
        other.client.delete(f"/instances/{id_}")
    assert other.instances() == set()


def test_it_asks_here_and_has_the_answers_moved_to_itself(
    pair: Any, sample_files: Callable[..., list[Sample]]
) -> None:
    archive, other = pair
    samples = sample_files(*NAMES)
    assert (
        archive.run("send", archive.dicom_target, *(str(one.path) for one in samples), data=False).returncode
        == 0
    )
    for sample in samples:
        header = pydicom.dcmread(sample.path, stop_before_pixels=True)
        query = {"StudyInstanceUID": str(header.StudyInstanceUID), "PatientName": "", "StudyDate": ""}
        asked = other.post("/modalities/OURS/query", {"Level": "Study", "Query": query})
        answers = other.get(f"/queries/{asked['ID']}/answers?expand&simplify")
        assert [one["StudyInstanceUID"] for one in answers] == [str(header.StudyInstanceUID)]
        moved = other.post(f"/queries/{asked['ID']}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
        assert moved["Description"] == "REST API"
    assert {uid(sample) for sample in samples} <= other.instances()


def test_we_ask_it_and_move_and_get_from_it(
    pair: Any, tmp_path: Path, sample_files: Callable[..., list[Sample]]
) -> None:
    archive, other = pair
    (sample,) = sample_files("examples_ybr_color.dcm")
    other.upload(sample.path)
    header = pydicom.dcmread(sample.path, stop_before_pixels=True)
    study = str(header.StudyInstanceUID)
    rows = [
        line
        for line in archive.run("find", "ORTHANC", f"StudyInstanceUID={study}", "--json").stdout.splitlines()
        if line
    ]
    assert any(study in row for row in rows)
    got = archive.run("get", "ORTHANC", study, "--to", str(tmp_path / "got"))
    assert got.returncode == 0, got.stderr
    (file,) = (tmp_path / "got").rglob("*.dcm")
    assert pydicom.dcmread(file).SOPInstanceUID == header.SOPInstanceUID


def test_it_has_its_studies_committed_here(pair: Any, sample_files: Callable[..., list[Sample]]) -> None:
    """N-ACTION from it, our report on an association of ours: it takes no other."""
    archive, other = pair
    samples = sample_files("CT_small.dcm", "rtplan.dcm")
    assert archive.run("send", archive.dicom_target, str(samples[0].path), data=False).returncode == 0
    headers = [pydicom.dcmread(one.path, stop_before_pixels=True) for one in samples]
    pairs = [
        {"SOPClassUID": str(one.SOPClassUID), "SOPInstanceUID": str(one.SOPInstanceUID)} for one in headers
    ]
    asked = other.post("/modalities/OURS/storage-commitment", {"DicomInstances": pairs, "Timeout": 30})
    deadline = time.monotonic() + PATIENCE_S
    while (report := other.get(f"/storage-commitment/{asked['ID']}"))["Status"] == "Pending":
        assert time.monotonic() < deadline, archive.log_text()[-3000:]
        time.sleep(0.2)
    assert report["Status"] == "Failure"
    assert [one["SOPInstanceUID"] for one in report["Success"]] == [pairs[0]["SOPInstanceUID"]]
    (failed,) = report["Failures"]
    assert failed["SOPInstanceUID"] == pairs[1]["SOPInstanceUID"]
    assert failed["FailureReason"] == 0x0112, failed


def test_everything_over_tls_with_certificates_both_ways(
    tmp_path: Path, sample_files: Callable[..., list[Sample]]
) -> None:
    authority = Authority(tmp_path / "pki")
    ours, theirs = authority.sign("Ours"), authority.sign("Theirs")
    shown = f'tls_certificate="{ours.pem}", tls_key="{ours.key}", tls_client_ca="{authority.pem}"'
    settings = (
        f'dicom.listeners=[{{host="127.0.0.1", port=0, {shown}}}]',
        f'dicom.tls_client_certificate="{ours.pem}"',
        f'dicom.tls_client_key="{ours.key}"',
        f'dicom.tls_client_ca="{authority.pem}"',
    )
    http = ("--http", "127.0.0.1:0")
    with archive_server(tmp_path / "server", *settings, listens=http) as archive:
        tls = {
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(theirs.pem),
            "DicomTlsPrivateKey": str(theirs.key),
            "DicomTlsTrustedCertificates": str(authority.pem),
            "DicomTlsRemoteCertificateRequired": True,
            "modality": {"UseDicomTls": True},
        }
        with running(tmp_path, archive.dicom_port, **tls) as other:
            add(archive, "ORTHANC", other.server.port, "--tls")
            (sample,) = sample_files("CT_small.dcm")
            id_ = other.upload(sample.path)
            sent = other.post("/modalities/OURS/store", {"Resources": [id_], "Synchronous": True})
            assert sent["FailedInstancesCount"] == 0
            other.client.delete(f"/instances/{id_}")
            study = str(pydicom.dcmread(sample.path, stop_before_pixels=True).StudyInstanceUID)
            asked = other.post(
                "/modalities/OURS/query", {"Level": "Study", "Query": {"StudyInstanceUID": study}}
            )
            other.post(f"/queries/{asked['ID']}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
            assert other.instances() == {uid(sample)}
