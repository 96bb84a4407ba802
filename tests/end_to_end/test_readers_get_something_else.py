"""What dicomweb-client and curl read is what pydicom reads in the files."""

from __future__ import annotations

import gzip
import io
import json
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.encaps import generate_frames

from support.server import PATIENCE_S, ArchiveServer, Sample, until

# Of pydicom, about what its own samples hold.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")

FRAMES = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_jpeg_dcmtk.dcm",
          "SC_rgb_rle_16bit_2frame.dcm", "examples_ybr_color.dcm", "rtdose.dcm")  # fmt: skip
# The media type of each syntax, as PS3.18 8.7.3.3 has it.
MEDIA = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
ANY_SYNTAX = "*"


def frames_in(sample: Sample) -> list[bytes]:
    data = sample.dataset
    number = int(data.get("NumberOfFrames") or 1)
    if data.file_meta.TransferSyntaxUID.is_compressed:
        return list(generate_frames(data.PixelData, number_of_frames=number))
    size = data.Rows * data.Columns * data.SamplesPerPixel * data.BitsAllocated // 8
    return [data.PixelData[start : start + size] for start in range(0, number * size, size)]


def send(archive: ArchiveServer, sent: list[Sample]) -> None:
    archive.run_json("send", archive.dicom_target, str(sent[0].path.parent))


@pytest.fixture
def client(archive: ArchiveServer) -> DICOMwebClient:
    return DICOMwebClient(url=archive.url)


@pytest.mark.peer("dicomweb_client")
def test_searches(
    archive: ArchiveServer, client: DICOMwebClient, sample_files: Callable[..., list[Sample]]
) -> None:
    ct, dose, sr = sent = sample_files("CT_small.dcm", "rtdose.dcm", "test-SR.dcm")
    send(archive, sent)
    for sample in sent:
        study, series, sop = sample.ids
        (found,) = client.search_for_studies(search_filters={"StudyInstanceUID": study})
        row = pydicom.Dataset.from_json(found)
        assert str(row.PatientID) == str(sample.dataset.PatientID)
        assert row.ModalitiesInStudy == sample.dataset.Modality
        assert row.NumberOfStudyRelatedInstances == 1
        (found,) = client.search_for_series(study, search_filters={"Modality": sample.dataset.Modality})
        assert pydicom.Dataset.from_json(found).SeriesInstanceUID == series
        (found,) = client.search_for_instances(study, series)
        assert pydicom.Dataset.from_json(found).SOPInstanceUID == sop
        assert client.search_for_instances(study, search_filters={"SOPInstanceUID": f"{sop}.1"}) == []
    name = str(ct.dataset.PatientName)
    filters = {"PatientName": f"{name[:5]}*", "StudyDate": f"{ct.dataset.StudyDate}-{ct.dataset.StudyDate}"}
    by_name = client.search_for_studies(search_filters=filters, fields=["StudyDescription"])
    assert ct.ids[0] in {pydicom.Dataset.from_json(row).StudyInstanceUID for row in by_name}
    both = {"StudyInstanceUID": f"{dose.ids[0]}\\{sr.ids[0]}"}
    pages = [client.search_for_studies(search_filters=both, limit=1, offset=n) for n in range(3)]
    assert [len(page) for page in pages] == [1, 1, 0]
    assert pages[0] != pages[1]


@pytest.mark.peer("dicomweb_client")
def test_instances_and_metadata(
    archive: ArchiveServer, client: DICOMwebClient, every_kind: list[Sample]
) -> None:
    send(archive, every_kind)
    for sample in every_kind:
        back = client.retrieve_instance(*sample.ids, media_types=(("application/dicom", ANY_SYNTAX),))
        assert back.file_meta.TransferSyntaxUID == sample.transfer_syntax_uid, sample.path.name
        assert back == sample.dataset, sample.path.name
        listed = client.retrieve_study_metadata(sample.ids[0])
        (metadata,) = [each for each in listed if each["00080018"]["Value"] == [sample.ids[2]]]
        described = pydicom.Dataset.from_json(metadata, bulk_data_uri_handler=lambda *_: b"")
        for element in sample.dataset:
            if element.keyword == "SpecificCharacterSet":  # JSON is UTF-8, and says so (PS3.18 F.2.1)
                assert described.SpecificCharacterSet == "ISO_IR 192"
            elif (
                element.VR in {"CS", "DA", "TM", "UI", "LO", "PN", "IS", "US", "SH"} and not element.is_empty
            ):
                assert described[element.tag].value == element.value, f"{sample.path.name}: {element.tag}"


@pytest.mark.peer("dicomweb_client")
def test_frames(
    archive: ArchiveServer, client: DICOMwebClient, sample_files: Callable[..., list[Sample]]
) -> None:
    sent = sample_files(*FRAMES)
    send(archive, sent)
    for sample in sent:
        wanted = frames_in(sample)
        media = MEDIA.get(sample.transfer_syntax_uid)
        kind = (media, sample.transfer_syntax_uid) if media else ("application/octet-stream", ANY_SYNTAX)
        numbers = list(range(1, len(wanted) + 1))
        assert client.retrieve_instance_frames(*sample.ids, numbers, media_types=(kind,)) == wanted
        last = client.retrieve_instance_frames(*sample.ids, numbers[-1:], media_types=(kind,))
        assert last == wanted[-1:]


@pytest.mark.peer("dicomweb_client")
def test_storing_over_http(archive: ArchiveServer, client: DICOMwebClient, every_kind: list[Sample]) -> None:
    answer = client.store_instances(datasets=[sample.dataset for sample in every_kind])
    assert len(answer.ReferencedSOPSequence) == len(every_kind)
    assert "FailedSOPSequence" not in answer
    for sample in every_kind:
        back = pydicom.dcmread(io.BytesIO(archive.part10(*sample.ids)))
        assert back == sample.dataset, sample.path.name


# ---------------------------------------------------------------------- curl


def curl(archive: ArchiveServer, *words: str) -> bytes:
    host, port = archive.address("http")
    command = ["curl", "-sS", "--fail-with-body", "--max-time", "30"]
    command += [f"http://{host}:{port}{word}" if word.startswith("/") else word for word in words]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, (done.stdout[:300], done.stderr)
    return done.stdout


@pytest.mark.peer("curl")
@pytest.mark.parametrize(
    ("accept", "multipart"),
    [
        ('multipart/related; type="application/octet-stream"; transfer-syntax="*"', True),
        ('multipart/related; type="application/octet-stream"; transfer-syntax=*', True),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", True),
        ("multipart/related;type=application/octet-stream, multipart/related;type=image/jphc", True),
        ("*/*", True),
        ("application/octet-stream", False),
    ],
)
def test_frames_as_viewers_ask_for_them(
    archive: ArchiveServer, sample_files: Callable[..., list[Sample]], accept: str, multipart: bool
) -> None:
    sent = sample_files("CT_small.dcm")
    send(archive, sent)
    (frame,) = frames_in(sent[0])
    raw = curl(archive, "-i", "-H", f"Accept: {accept}", f"{sent[0].url}/frames/1")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0]
    kind = re.search(rb"(?i)^content-type: (.*?)\r?$", head, re.MULTILINE)
    assert kind is not None
    if not multipart:
        assert body == frame
        return
    boundary = re.search(rb'boundary="?([^";]+)', kind[1])
    assert boundary is not None
    part_head, _, rest = body.partition(b"\r\n\r\n")
    assert b"Content-Type: application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1" in part_head
    assert (
        rest == frame + b"\r\n--" + boundary[1] + b"--\r\n" or rest == frame + b"\r\n--" + boundary[1] + b"--"
    )


@pytest.mark.peer("curl")
def test_an_accept_parameter_stands_for_the_header(
    archive: ArchiveServer, sample_files: Callable[..., list[Sample]]
) -> None:
    sent = sample_files("SC_rgb_jpeg_dcmtk.dcm")
    send(archive, sent)
    assert curl(archive, f"{sent[0].url}/frames/1?accept=image/jpeg") == frames_in(sent[0])[0]


@pytest.mark.peer("curl")
def test_metadata_is_compressed_for_who_can_take_it(
    archive: ArchiveServer, sample_files: Callable[..., list[Sample]]
) -> None:
    sent = sample_files("CT_small.dcm")
    send(archive, sent)
    plain = curl(archive, f"{sent[0].url}/metadata")
    packed = curl(archive, "-H", "Accept-Encoding: gzip", f"{sent[0].url}/metadata")
    assert gzip.decompress(packed) == plain
    assert json.loads(plain)[0]["00080018"]["Value"] == [sent[0].ids[2]]


@pytest.mark.peer("curl")
def test_one_connection_serves_many_requests(
    archive: ArchiveServer, sample_files: Callable[..., list[Sample]]
) -> None:
    sent = sample_files("CT_small.dcm")
    send(archive, sent)
    host, port = archive.address("http")
    urls = [f"http://{host}:{port}{sent[0].url}/frames/1"] * 5
    figures = "%{stderr}%{num_connects} %{http_code}\n"
    done = subprocess.run(
        ["curl", "-sS", "-w", figures, *urls], capture_output=True, timeout=PATIENCE_S, check=True
    )
    assert done.stderr.split() == [b"1", b"200", *[b"0", b"200"] * 4]


def test_pipelined_requests_are_answered_in_order(
    archive: ArchiveServer, sample_files: Callable[..., list[Sample]]
) -> None:
    sent = sample_files("examples_ybr_color.dcm")
    send(archive, sent)
    wanted = frames_in(sent[0])
    requests = b"".join(
        f"GET {sent[0].url}/frames/{number} HTTP/1.1\r\nHost: x\r\nAccept: image/jpeg\r\n"
        f"{'Connection: close' if number == len(wanted) else 'X-Nothing: 1'}\r\n\r\n".encode()
        for number in range(1, len(wanted) + 1)
    )
    with socket.create_connection(archive.address("http"), timeout=PATIENCE_S) as connection:
        connection.sendall(requests)
        with connection.makefile("rb") as answers:
            raw = answers.read()
    got = []
    while raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None, head
        got.append(raw[: int(length[1])])
        raw = raw[int(length[1]) :]
    assert got == wanted


@pytest.mark.peer("curl")
def test_health_description_and_metrics_of_all_workers(
    own_archive: ArchiveServer, every_kind: list[Sample]
) -> None:
    assert json.loads(curl(own_archive, "/healthz"))["status"] == "ok"
    assert json.loads(curl(own_archive, "/healthz/ready"))["status"] == "ready"
    described = json.loads(curl(own_archive, "/openapi.json"))
    assert described["openapi"].startswith("3.")
    assert "/dicom-web/studies" in described["paths"]
    folder = every_kind[0].path.parent
    own_archive.run_json("send", own_archive.dicom_target, str(folder), "--associations", "8")

    def stored() -> float:
        text = curl(own_archive, "/metrics").decode()
        line = re.search(r'^hounsfield_objects_total\{outcome="stored"\} (\S+)$', text, re.MULTILINE)
        assert line is not None
        return float(line[1])

    # Every new connection may meet the other worker: each one knows the whole.
    for _ in range(6):
        until(lambda: stored() == len(every_kind), "every worker's totals")
    answer = httpx.get(f"{own_archive.url}/studies", params={"limit": 1})
    assert answer.status_code == 200


def test_the_landing_page_and_unknown_paths(archive: ArchiveServer, tmp_path: Path) -> None:
    assert archive.client.get("/").status_code == 200
    unknown = archive.client.get("/dicom-web/studies/1.2.3/metadata")
    assert unknown.status_code == 404
    assert archive.client.get("/nowhere").status_code == 404
