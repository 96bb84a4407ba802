"""Real archives on real directories, and objects to put into them."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pydicom
import pydicom.data
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.dicom.part10 import Part10Error, split
from hounsfield.archive.engine.engine import Engine, EngineOptions
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Source, StoreResult
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import load_master_key

TEST_SOURCE = Source("import")


def write_master_key(path: Path) -> str:
    """A key file outside the data directory; returns the specification that names it."""
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    return f"file:{path}"


def open_stores(directory: Path, key: str, options: EngineOptions | None = None) -> Stores:
    """The stores of a data directory, made when it is new."""
    master = load_master_key(key)
    keys = directory / "keys"
    keyring = Keyring.open(keys, master) if Keyring.exists(keys) else Keyring.create(keys, master)
    return Stores.open(directory, keyring, options or EngineOptions())


@contextmanager
def stores_in(directory: Path, options: EngineOptions | None = None) -> Iterator[Stores]:
    """Stores with a key of their own beside ``directory``."""
    key_path = directory.parent / f"{directory.name}.key"
    key = f"file:{key_path}" if key_path.exists() else write_master_key(key_path)
    stores = open_stores(directory, key, options)
    try:
        yield stores
    finally:
        stores.close()


async def store(engine: Engine, data: bytes, transfer_syntax_uid: str, *, piece: int = 65536) -> StoreResult:
    """Send one encoded data set through an ingest session."""
    session = engine.begin(transfer_syntax_uid=transfer_syntax_uid, source=TEST_SOURCE)
    try:
        for start in range(0, len(data), piece):
            await session.write(data[start : start + piece])
        return await session.commit()
    finally:
        session.abandon()


async def stored_bytes(engine: Engine, result: StoreResult) -> bytes:
    """The data set that the archive serves for a stored object."""
    (instance,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
    return b"".join([bytes(piece) async for piece in engine.dataset(instance)])


@dataclass(frozen=True)
class SampleFile:
    """A real file: its encoded data set and transfer syntax."""

    path: Path
    data: bytes
    transfer_syntax_uid: str


@cache
def sample_files() -> tuple[SampleFile, ...]:
    """Every Part 10 file that pydicom carries and that has a data set."""
    found = []
    root = Path(pydicom.data.__file__).parent / "test_files"
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.suffix in {".txt", ".md", ".py", ".json", ".xml"}:
            continue
        raw = path.read_bytes()
        try:
            part10 = split(raw)
        except Part10Error:
            continue
        if len(raw) > part10.offset:
            found.append(SampleFile(path, raw[part10.offset :], part10.transfer_syntax_uid))
    return tuple(found)


def ct_slice(
    *,
    patient_id: str = "P-0001",
    patient_name: str = "Muster^Erika",
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_uid: str | None = None,
    number: int = 1,
    change: Callable[[Dataset], None] | None = None,
    pixels: bytes | None = None,
    syntax: str = ExplicitVRLittleEndian,
) -> bytes:
    """A small, valid CT slice, 16×16."""
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = sop_uid or generate_uid()
    data.StudyDate, data.StudyTime = "20250314", "101112"
    data.AccessionNumber = "ACC-77"
    data.Modality = "CT"
    data.StudyDescription = "Thorax nativ"
    data.PatientName, data.PatientID = patient_name, patient_id
    data.PatientBirthDate, data.PatientSex = "19640812", "F"
    data.StudyInstanceUID = study_uid or generate_uid()
    data.SeriesInstanceUID = series_uid or generate_uid()
    data.StudyID, data.SeriesNumber, data.InstanceNumber = "S1", 1, number
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows = data.Columns = 16
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels if pixels is not None else secrets.token_bytes(512)
    if change is not None:
        change(data)
    return encode(data, syntax)


def encode(data: Dataset, transfer_syntax_uid: str = ExplicitVRLittleEndian) -> bytes:
    """A data set's bytes, without preamble and file meta information."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = transfer_syntax_uid
    out = io.BytesIO()
    pydicom.dcmwrite(out, data, enforce_file_format=False)
    raw = out.getvalue()
    return raw[split(raw).offset :]
