"""No name, id, accession number or UID of what is stored can be read from a file, a log line or a metric."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
import zstandard

from support.disk_search import Finder, written
from support.server import ArchiveServer, Sample, archive_server

KEYWORDS = (
    "PatientName", "PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
    "ReferringPhysicianName", "StudyDescription", "InstitutionName", "OtherPatientIDs", "StudyID",
    "PatientBirthDate", "SeriesDescription", "FrameOfReferenceUID", "OperatorsName", "StationName",
)  # fmt: skip


def identifiers(sent: list[Sample]) -> set[bytes]:
    """Every identifying value, and each part of a name, in every way that it could be written down."""
    words = set()
    for sample in sent:
        for keyword in KEYWORDS:
            for value in _values(sample.dataset, keyword):
                words |= {value, value.casefold(), *value.replace("=", "^").split("^")}
    return {form for word in words for form in written(word)}


def _values(data: pydicom.Dataset, keyword: str) -> list[str]:
    value = data.get(keyword)
    if value is None:
        return []
    values = value if isinstance(value, pydicom.multival.MultiValue) else [value]
    return [str(each) for each in values if str(each)]


def check_nothing_readable(archive: ArchiveServer, secrets: Finder) -> None:
    seen = set()
    for path in archive.data.rglob("*"):
        name = str(path.relative_to(archive.data))
        assert not secrets.found(name.encode()), "a file's name"
        if path.is_file() and not path.is_socket():
            seen.add(path.relative_to(archive.data).parts[0])
            found = secrets.found_in(path)
            assert not found, f"{path.relative_to(archive.data).parts[0]}: {len(found)} identifiers"
    assert {"segments", "index", "keys"} <= seen


def test_files_logs_and_metrics_name_nobody(tmp_path: Path, every_kind: list[Sample]) -> None:
    forms = identifiers(every_kind)
    assert len(forms) > 1000
    secrets = Finder(forms)
    with archive_server(tmp_path / "server", "logs.level=debug") as archive:
        folder = every_kind[0].path.parent
        for _ in range(2):  # duplicates too
            archive.run("send", archive.dicom_target, str(folder))
        # Ask, and ask wrongly: error paths like to repeat what they were given.
        for sample in every_kind:
            study, series, sop = sample.ids
            patient = str(sample.dataset.get("PatientName", ""))
            for name, value in (
                ("PatientName", patient),
                ("PatientName", f"*{patient[1:]}*"),
                ("StudyDate", study),
            ):
                archive.client.get("/dicom-web/studies", params={name: value})
            archive.client.get(f"{sample.url}/metadata")
            archive.client.get(f"{sample.url}/frames/99999")
            archive.client.get(f"/dicom-web/studies/{study}/series/{sop}/instances/{series}")
            archive.client.get(f"/dicom-web/studies/{study}/nothing/{sop}")
        archive.client.post("/dicom-web/studies", content=every_kind[1].data)
        check_nothing_readable(archive, secrets)
        metrics = archive.client.get("/metrics").content
        assert archive.terminate() == 0
        check_nothing_readable(archive, secrets)
        log = archive.log_text().encode()
    for place, text in (("metrics", metrics), ("log", log)):
        assert not secrets.found(text), place


def test_an_object_without_uids_is_kept_as_secretly(
    tmp_path: Path, sample_files: Callable[..., list[Sample]]
) -> None:
    """Quarantine, and what the log says of it."""
    (sample,) = sample_files("CT_small.dcm")
    data = sample.dataset
    secrets = Finder(identifiers([sample]))
    del data.StudyInstanceUID
    data.save_as(sample.path)
    with archive_server(tmp_path / "server", "logs.level=debug") as archive:
        archive.run("send", archive.dicom_target, str(sample.path))
        assert archive.listed() == []
        assert archive.terminate() == 0
        check_nothing_readable(archive, secrets)
        assert not secrets.found(archive.log_text().encode())


@pytest.mark.parametrize("wrapped", [
    lambda raw: raw, zlib.compress, gzip.compress, lzma.compress, zstandard.ZstdCompressor().compress,
    lambda raw: gzip.compress(zlib.compress(raw)),
])  # fmt: skip
def test_the_search_itself_finds_what_is_there(tmp_path: Path, wrapped: Callable[[bytes], bytes]) -> None:
    for text in ("Sørensen^Åse", "1.2.826.0.1.4711", "山田^太郎 様"):
        secrets = Finder(written(text))
        for form in sorted(written(text))[::6]:
            path = tmp_path / "file"
            path.write_bytes(bytes(range(256)) * 9 + wrapped(b"head" + form + b"tail" * 40) + bytes(1 << 17))
            assert form in secrets.found_in(path)
