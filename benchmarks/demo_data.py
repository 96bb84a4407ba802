"""Real DICOM files from packages on PyPI: what the demo sends, and what it expects of the archive.

pydicom carries some 160 files of many modalities and transfer syntaxes, ``pydicom-data`` 67 larger ones, and
nibabel's source distribution a 112-frame MR. Nothing of it is committed here: it is read where
``pip`` put it, or fetched by ``pip download``.

Several of these files are encodings of one object and share its SOP Instance UID. An archive holds one
object per UID, so every file but the first gets a UID of its own (of the same length, in place: nothing
else of the data set changes), and files with identical data sets are sent once.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pydicom.data

from hounsfield.archive.dicom.part10 import Part10Error, split
from hounsfield.archive.dicom.scan import scan
from hounsfield.codecs.registry import lookup

NIBABEL = "nibabel==5.3.2"
NIBABEL_FILE = "nibabel-5.3.2/nibabel/nicom/tests/data/4d_multiframe_test.dcm"
SOP_INSTANCE_UID, SOP_CLASS_UID = 0x00080018, 0x00080016
_NOT_DICOM = {".txt", ".md", ".py", ".json", ".xml", ".zip", ".gz", ".pyc"}
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class DemoFile:
    """A file. ``expect``: "served", "quarantined" (no usable study or series UID) or "unsendable"."""

    path: Path
    origin: str
    expect: str
    modality: str
    transfer_syntax_uid: str
    study_uid: str
    series_uid: str
    sop_uid: str
    data: bytes
    frames: int


def prepare(folder: Path, cache: Path) -> list[DemoFile]:
    """Copy the files into ``folder``, each UID once; describe them. ``cache`` keeps what was fetched."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found: list[DemoFile] = []
    digests: set[bytes] = set()
    uids: set[str] = set()
    for origin, path in _sources(cache):
        raw = path.read_bytes()
        try:
            part10 = split(raw)
        except Part10Error:
            continue
        digest = hashlib.sha256(raw[part10.offset :]).digest()
        if digest in digests or len(raw) == part10.offset:
            continue
        digests.add(digest)
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        sop_uid = _text(header, "SOPInstanceUID")
        if sop_uid and sop_uid in uids:
            raw, sop_uid = _with_new_uid(raw, part10.offset, part10.transfer_syntax_uid, sop_uid, len(found))
        uids.add(sop_uid)
        target = folder / f"{len(found):03d}-{path.stem}.dcm"
        target.write_bytes(raw)
        found.append(
            DemoFile(
                path=target,
                origin=origin,
                expect=_expectation(header),
                modality=_text(header, "Modality") or "-",
                transfer_syntax_uid=part10.transfer_syntax_uid,
                study_uid=_text(header, "StudyInstanceUID"),
                series_uid=_text(header, "SeriesInstanceUID"),
                sop_uid=sop_uid,
                data=raw[part10.offset :],
                frames=_frames(header),
            )
        )
    return found


def _sources(cache: Path) -> Iterator[tuple[str, Path]]:
    root = Path(pydicom.data.__file__).parent
    for folder in ("test_files", "charset_files"):
        yield from (("pydicom", path) for path in _files(root / folder))
    try:
        import data_store
    except ImportError:
        raise SystemExit("pydicom-data is not installed: run `make setup`") from None
    for place in data_store.__path__:
        yield from (("pydicom-data", path) for path in _files(Path(place) / "data"))
    yield "nibabel", _nibabel_multiframe(cache)


def _files(root: Path) -> list[Path]:
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix not in _NOT_DICOM and path.name != "DICOMDIR"
    ]


def _nibabel_multiframe(cache: Path) -> Path:
    """The 112-frame MR of nibabel's source distribution, fetched once."""
    target = cache / Path(NIBABEL_FILE).name
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip"]
        if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode:
            pip = [shutil.which("python3", path="/usr/local/bin:/usr/bin") or "python3", "-m", "pip"]
        subprocess.run(
            [*pip, "download", "-q", "--no-deps", "--no-binary", "nibabel", "-d", str(cache), NIBABEL],
            check=True,
        )
        with tarfile.open(next(cache.glob("nibabel-*.tar.gz"))) as archive:
            member = archive.extractfile(NIBABEL_FILE)
            assert member is not None
            target.write_bytes(member.read())
    return target


def _frames(header: pydicom.Dataset) -> int:
    if "Rows" not in header:
        return 0
    number = str(header.get("NumberOfFrames") or 1)
    return int(number) if number.isdigit() else 1


def _text(header: pydicom.Dataset, keyword: str) -> str:
    return str(header.get(keyword) or "").strip(" \0")


def _expectation(header: pydicom.Dataset) -> str:
    meta = getattr(header, "file_meta", pydicom.Dataset())
    for own, announced in (
        ("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
        ("SOPClassUID", "MediaStorageSOPClassUID"),
    ):
        if not _text(header, own) and not _text(meta, announced):
            return "unsendable"
    usable = all(
        _UID.fullmatch(_text(header, keyword))
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    return "served" if usable else "quarantined"


def _with_new_uid(raw: bytes, offset: int, syntax: str, old: str, number: int) -> tuple[bytes, str]:
    """The file with another SOP Instance UID of the same length, in data set and file meta information."""
    new = old[:-6] + f"1{number:05d}"
    scanned = scan(memoryview(raw)[offset:], lookup(syntax))
    if scanned.inflated is not None:
        raise SystemExit(f"a deflated file shares its UID with another ({number}); leave one of them out")
    _, start, length = scanned.elements[SOP_INSTANCE_UID]
    out = bytearray(raw)
    out[offset + start : offset + start + length] = new.encode().ljust(length, b"\0")
    meta = raw[:offset].replace(old.encode(), new.encode())
    out[:offset] = meta
    return bytes(out), new
