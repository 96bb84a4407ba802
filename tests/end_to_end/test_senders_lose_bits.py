"""What senders that others wrote store over DICOM is what DICOMweb gives back."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from hounsfield.archive.dicom.part10 import split
from support.server import PATIENCE_S, ArchiveServer, Sample, until, value

# Of pydicom, about what its own samples hold.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")


def run(archive: ArchiveServer, *words: object) -> subprocess.CompletedProcess[str]:
    """A program of somebody else's; PORT stands for our DICOM port."""
    command = [str(archive.dicom_port) if word == "PORT" else str(word) for word in words]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=archive.environment,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done


def check_listed_once(archive: ArchiveServer, sent: list[Sample]) -> None:
    for sample in sent:
        study, _, sop = sample.ids
        rows = archive.client.get("/dicom-web/instances", params={"StudyInstanceUID": study}).json()
        assert [value(row, "00080018") for row in rows].count(sop) == 1, sample.path.name


def check_bits(archive: ArchiveServer, sent: list[Sample]) -> None:
    """The very bytes, in the syntax they were sent in."""
    check_listed_once(archive, sent)
    for sample in sent:
        raw = archive.part10(*sample.ids)
        part10 = split(raw)
        assert part10.transfer_syntax_uid == sample.transfer_syntax_uid, sample.path.name
        assert raw[part10.offset :] == sample.data, sample.path.name


def check_content(archive: ArchiveServer, sent: list[Sample]) -> None:
    """The same elements and pixels; for senders that encode what they read anew."""
    check_listed_once(archive, sent)
    for sample in sent:
        got = pydicom.dcmread(io.BytesIO(archive.part10(*sample.ids)))
        assert_same_content(got, sample.dataset, sample.path.name)


def assert_same_content(got: pydicom.Dataset, sent: pydicom.Dataset, name: str) -> None:
    for element in sent:
        if element.tag.element == 0 or element.keyword in {"DataSetTrailingPadding", "PixelData"}:
            continue
        if element.keyword and element.VR not in {"OW", "OB", "UN", "OB or OW"}:
            assert got.get(element.tag) == element, f"{name}: {element.keyword}"
    if "PixelData" not in sent:
        return
    if sent.file_meta.TransferSyntaxUID.is_compressed and got.file_meta.TransferSyntaxUID.is_compressed:
        assert frames(got) == frames(sent), name
    else:
        assert native_pixels(got) == native_pixels(sent), name


def native_pixels(data: pydicom.Dataset) -> bytes:
    """All pixels, least significant byte first. OW is 16-bit words at any pixel size (PS3.5 7.3)."""
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        return bytes(data.pixel_array.astype(data.pixel_array.dtype.newbyteorder("<")).tobytes())
    raw: bytes = data.PixelData
    if not syntax.is_little_endian and data["PixelData"].VR == "OW":
        swapped = bytearray(len(raw))
        swapped[::2], swapped[1::2] = raw[1::2], raw[::2]
        return bytes(swapped)
    return raw


def frames(data: pydicom.Dataset) -> list[bytes]:
    number = int(data.get("NumberOfFrames") or 1)
    return [
        each.rstrip(b"\0") for each in pydicom.encaps.generate_frames(data.PixelData, number_of_frames=number)
    ]


# ---------------------------------------------------------------------- DCMTK


@pytest.mark.peer("echoscu")
def test_echoscu(archive: ArchiveServer) -> None:
    run(archive, "echoscu", "-v", "-aec", "HOUNSFIELD", "127.0.0.1", "PORT")


@pytest.mark.peer("storescu")
@pytest.mark.parametrize("proposal", ["-x=", "-xe", "-xb", "-xi", "-xd"])
def test_storescu_in_every_uncompressed_syntax(
    archive: ArchiveServer, uncompressed: list[Sample], proposal: str
) -> None:
    folder = uncompressed[0].path.parent
    run(archive, "storescu", proposal, "+sd", "-aec", "HOUNSFIELD", "127.0.0.1", "PORT", folder)
    check_content(archive, uncompressed)
    if proposal == "-xi":
        for sample in uncompressed:
            got = split(archive.part10(*sample.ids)).transfer_syntax_uid
            assert got == ImplicitVRLittleEndian


@pytest.mark.peer("storescu")
def test_storescu_of_compressed_files(
    archive: ArchiveServer, sample_files: Callable[..., list[Sample]]
) -> None:
    proposals = {
        "SC_rgb_jpeg_gdcm.dcm": "-xs",
        "SC_rgb_jpeg_dcmtk.dcm": "-xy",
        "JPGExtended.dcm": "-xx",
        "MR_small_jp2klossless.dcm": "-xv",
        "JPEG2000.dcm": "-xw",
        "MR_small_jpeg_ls_lossless.dcm": "-xt",
        "SC_rgb_rle_16bit_2frame.dcm": "-xr",
        "image_dfl.dcm": "-xd",
    }
    sent = sample_files("image_dfl.dcm", *(name for name in proposals if name != "image_dfl.dcm"))
    for sample in sent:
        proposal = proposals[sample.path.name.partition("-")[2]]
        run(archive, "storescu", proposal, "-aec", "HOUNSFIELD", "127.0.0.1", "PORT", sample.path)
        got = split(archive.part10(*sample.ids)).transfer_syntax_uid
        assert got == sample.transfer_syntax_uid
    check_content(archive, sent)


@pytest.mark.peer("dcmsend")
def test_dcmsend_of_a_directory(archive: ArchiveServer, every_kind: list[Sample]) -> None:
    folder = every_kind[0].path.parent
    run(archive, "dcmsend", "+sd", "+r", "-aec", "HOUNSFIELD", "127.0.0.1", "PORT", folder)
    check_content(archive, every_kind)


# ---------------------------------------------------------------------- pynetdicom


@pytest.mark.peer("pynetdicom")
def test_pynetdicom_in_many_syntaxes_on_one_association(
    archive: ArchiveServer, every_kind: list[Sample]
) -> None:
    entity = AE("PYNETDICOM")
    entity.add_requested_context(Verification)
    for pair in {(each.dataset.SOPClassUID, each.transfer_syntax_uid) for each in every_kind}:
        entity.add_requested_context(*pair)
    called = entity.associate("127.0.0.1", archive.dicom_port, ae_title="HOUNSFIELD")
    assert called.is_established
    try:
        assert called.send_c_echo().Status == 0
        for sample in every_kind:
            assert called.send_c_store(sample.path).Status == 0, sample.path.name
        check_bits(archive, every_kind)
        for sample in every_kind:  # and from memory, which encodes them anew: the archive has them already
            if not sample.dataset.file_meta.TransferSyntaxUID.is_deflated:
                assert called.send_c_store(sample.dataset).Status == 0, sample.path.name
        check_bits(archive, every_kind)
    finally:
        called.release()


# ---------------------------------------------------------------------- Orthanc


@contextmanager
def orthanc(directory: Path, archive: ArchiveServer) -> Iterator[httpx.Client]:
    """Orthanc on loopback that knows us as the modality "hounsfield"."""
    directory.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        dicom, http = one.getsockname()[1], other.getsockname()[1]
    settings = {
        "Name": "TEST",
        "StorageDirectory": str(directory / "store"),
        "IndexDirectory": str(directory / "store"),
        "DicomAet": "ORTHANC",
        "DicomPort": dicom,
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomModalities": {"hounsfield": ["HOUNSFIELD", "127.0.0.1", archive.dicom_port]},
        "Plugins": [],
    }
    path = directory / "orthanc.json"
    path.write_text(json.dumps(settings))
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    assert program is not None
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, str(path)], stdout=log, stderr=log, env={**os.environ, "TCP_NODELAY": "1"}
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{http}", timeout=PATIENCE_S) as client:

            def answers() -> bool:
                assert process.poll() is None, (directory / "log").read_text()
                try:
                    return client.get("/system").status_code == 200
                except httpx.TransportError:
                    return False

            until(answers, "Orthanc answers")
            yield client
    finally:
        process.kill()
        process.wait(PATIENCE_S)


@pytest.mark.peer("Orthanc")
def test_orthanc_as_sender(archive: ArchiveServer, every_kind: list[Sample], tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc", archive) as client:
        assert client.post("/modalities/hounsfield/echo", json={}).status_code == 200
        held: list[str] = []
        for sample in every_kind:
            answer = client.post("/instances", content=sample.path.read_bytes())
            assert answer.status_code == 200, f"{sample.path.name}: {answer.text}"
            held.append(answer.json()["ID"])
        done = client.post(
            "/modalities/hounsfield/store", json={"Resources": held, "Synchronous": True, "Permissive": False}
        )
        assert done.status_code == 200, done.text
        assert done.json()["FailedInstancesCount"] == 0
    check_content(archive, every_kind)


# ---------------------------------------------------------------------- our own


def test_our_own_sender_changes_no_bit(archive: ArchiveServer, every_kind: list[Sample]) -> None:
    folder = every_kind[0].path.parent
    summary = archive.run_json("send", archive.dicom_target, str(folder), "--associations", "4")
    assert {each["outcome"] for each in summary["files"]} == {"sent"}
    check_bits(archive, every_kind)
