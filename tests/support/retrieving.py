"""Objects to be retrieved, and those who want them: for tests of C-MOVE, C-GET and what sends to others."""

from __future__ import annotations

import io
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pydicom
import trio
from pydicom.data import get_testdata_file
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from hounsfield.archive.dicom import part10
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.types import Instance, Source
from hounsfield.archive.net.errors import NetError
from hounsfield.archive.net.scu import VERIFICATION_CONTEXT, RemoteEntity, ScuLimits, associate

PATIENCE_S = 60
CT = "1.2.840.10008.5.1.4.1.1.2"
_ROOT = "1.2.840.10008.5.1.4.1.2"
PATIENT_MOVE, STUDY_MOVE, PATIENT_STUDY_MOVE = (f"{_ROOT}.{n}.2" for n in (1, 2, 3))
PATIENT_GET, STUDY_GET, PATIENT_STUDY_GET = (f"{_ROOT}.{n}.3" for n in (1, 2, 3))
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"


def sample(name: str) -> bytes:
    """One of pydicom's own files."""
    path = get_testdata_file(name)
    assert path is not None
    return Path(str(path)).read_bytes()


def dataset_of(raw: bytes) -> bytes:
    """A Part 10 file's data set."""
    return raw[part10.split(raw).offset :]


async def stored(engine: Engine, raw: bytes, syntax: str = "") -> Instance:
    """A Part 10 file's object, stored."""
    found = part10.split(raw)
    session = engine.begin(transfer_syntax_uid=syntax or found.transfer_syntax_uid, source=Source("import"))
    await session.write(raw[found.offset :])
    result = await session.commit()
    (instance,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
    return instance


def slices(count: int, *, series: int = 1, patient: str = "1CT1") -> list[bytes]:
    """CT slices as files: of one patient and study, in so many series."""
    dataset = pydicom.dcmread(io.BytesIO(sample("CT_small.dcm")))
    made = []
    for number in range(count):
        dataset.PatientID = patient
        dataset.StudyInstanceUID = "1.2.3.4"
        dataset.SeriesInstanceUID = f"1.2.3.4.{number % series + 1}"
        dataset.SOPInstanceUID = f"1.2.3.4.{number % series + 1}.{number + 1}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = number + 1
        out = io.BytesIO()
        dataset.save_as(out)
        made.append(out.getvalue())
    return made


def identifier(level: str, **keys: str) -> bytes:
    """An encoded identifier, explicit VR little endian."""
    dataset = pydicom.Dataset()
    dataset.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(dataset, keyword, value.split("\\") if "\\" in value else value)
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = False, True
    write_dataset(out, dataset)
    return out.getvalue()


def failed_uids(data: bytes) -> list[str]:
    """Failed SOP Instance UID List of an encoded identifier, explicit VR little endian."""
    if not data:
        return []
    assert data[:6] == struct.pack("<HH", 0x0008, 0x0058) + b"UI"
    return data[8:].decode().strip("\0").split("\\")


class Known:
    """Destinations by title."""

    def __init__(self, **entities: RemoteEntity) -> None:
        self.entities = entities

    def find(self, title: str) -> RemoteEntity | None:
        return self.entities.get(title)


def at(port: int, **more: Any) -> RemoteEntity:
    return RemoteEntity("127.0.0.1", port, **{"called_ae": "HOUNSFIELD", "calling_ae": "ARCHIVE", **more})


def free_port() -> int:
    """A port of which nobody has heard."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        return port


@asynccontextmanager
async def storescp(directory: Path, *options: str) -> AsyncIterator[tuple[int, trio.Process]]:
    """DCMTK's storescp with these options: its port, and its process."""
    port = free_port()
    directory.mkdir(exist_ok=True)
    process = await trio.lowlevel.open_process(
        ["storescp", *options, "-od", str(directory), "--bit-preserving", str(port)]
    )
    try:
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    async with associate(
                        at(port), [VERIFICATION_CONTEXT], ScuLimits(connect_s=1.0)
                    ) as association:
                        assert (await association.echo()).status == 0
                    break
                except NetError:
                    await trio.sleep(0.01)
        yield port, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def by_uid(files: Iterable[bytes | Path]) -> dict[str, bytes]:
    """Data sets of Part 10 files by their SOP Instance UID."""
    found = {}
    for one in files:
        raw = one.read_bytes() if isinstance(one, Path) else one
        found[str(pydicom.dcmread(io.BytesIO(raw), force=True).SOPInstanceUID)] = dataset_of(raw)
    return found
