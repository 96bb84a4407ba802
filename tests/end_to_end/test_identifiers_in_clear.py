"""No name, id, accession number or UID of what is stored can be read from a file, a log line or a metric."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from pathlib import Path

import pydicom
import zstandard

from support.server import ArchiveServer, Sample, archive_server

ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be")
KEYWORDS = (
    "PatientName", "PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
    "ReferringPhysicianName", "StudyDescription", "InstitutionName", "OtherPatientIDs", "StudyID",
)  # fmt: skip
# Shorter values stand in random bytes by chance.
_BYTES_MIN = 6


def identifiers(sent: list[Sample]) -> set[bytes]:
    """Every identifying value in each encoding, hexadecimal and byte order that it could stand in."""
    found: set[bytes] = set()
    for sample in sent:
        for keyword in KEYWORDS:
            for value in _values(sample.dataset, keyword):
                for word in {value, *value.replace("=", "^").split("^")}:
                    for encoding in ENCODINGS:
                        with contextlib.suppress(UnicodeEncodeError):
                            raw = word.encode(encoding)
                            found |= {raw, raw.hex().encode()} if len(raw) >= _BYTES_MIN else set()
    return found


def _values(data: pydicom.Dataset, keyword: str) -> list[str]:
    value = data.get(keyword)
    if value is None:
        return []
    values = value if isinstance(value, pydicom.multival.MultiValue) else [value]
    return [str(each) for each in values if str(each)]


def readings(raw: bytes) -> list[bytes]:
    """A file's bytes, and what compressed streams in it inflate to."""
    found = [raw]
    for magic, inflate in (
        (b"\x28\xb5\x2f\xfd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
        (b"\x1f\x8b\x08", lambda data: zlib.decompressobj(31).decompress(data)),
        (b"\x78\x9c", lambda data: zlib.decompressobj().decompress(data)),
    ):
        at = raw.find(magic)
        while at >= 0:
            with contextlib.suppress(zlib.error, zstandard.ZstdError):
                found.append(inflate(raw[at:]))
            at = raw.find(magic, at + 1)
    return found


def written_bytes(path: Path) -> bytes:
    """A file without its holes: the index is a huge, mostly empty one."""
    out = bytearray()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            if block.count(0) != len(block):
                out += block
    return bytes(out)


def check_nothing_readable(archive: ArchiveServer, secrets: set[bytes]) -> None:
    seen = set()
    for path in archive.data.rglob("*"):
        names = str(path.relative_to(archive.data)).encode()
        assert not any(secret in names for secret in secrets)
        if path.is_file() and not path.is_socket():
            seen.add(path.relative_to(archive.data).parts[0])
            for reading in readings(written_bytes(path)):
                found = [secret for secret in secrets if secret in reading]
                assert not found, f"{path.name}: {len(found)} identifiers"
    assert {"segments", "index", "keys"} <= seen


def test_files_logs_and_metrics_name_nobody(tmp_path: Path, every_kind: list[Sample]) -> None:
    secrets = identifiers(every_kind)
    assert len(secrets) > 100
    with archive_server(tmp_path / "server", "logs.level=debug") as archive:
        folder = every_kind[0].path.parent
        for _ in range(2):  # duplicates too
            archive.run("send", archive.dicom_target, str(folder))
        # Ask, and ask wrongly: error paths like to repeat what they were given.
        for sample in every_kind:
            study, series, sop = sample.ids
            for name, value in (
                ("PatientName", str(sample.dataset.get("PatientName", ""))),
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
        assert not [secret for secret in secrets if secret in text], place


def test_an_object_without_uids_is_kept_as_secretly(
    tmp_path: Path, sample_files: Callable[..., list[Sample]]
) -> None:
    """Quarantine, and what the log says of it."""
    (sample,) = sample_files("CT_small.dcm")
    data = sample.dataset
    secrets = identifiers([sample])
    del data.StudyInstanceUID
    data.save_as(sample.path)
    with archive_server(tmp_path / "server", "logs.level=debug") as archive:
        archive.run("send", archive.dicom_target, str(sample.path))
        assert archive.listed() == []
        assert archive.terminate() == 0
        check_nothing_readable(archive, secrets)
        assert not [secret for secret in secrets if secret in archive.log_text().encode()]
