"""Objects put into an archive, and taken out of it in another transfer syntax."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from hounsfield.archive.dicom.part10 import split
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.types import Instance, Outcome
from support.archives import store, stores_in
from support.frames import test_files


def part10(data_set: bytes, transfer_syntax_uid: str) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID("1.2.3"), UID("1.2.4")
    out = io.BytesIO()
    out.write(bytes(128) + b"DICM")
    write_file_meta_info(out, meta, enforce_standard=True)
    return out.getvalue() + data_set


def file_named(name: str) -> Path:
    return next(path for path in test_files() if path.name == name)


@asynccontextmanager
async def archive(directory: Path, options: EngineOptions | None = None) -> AsyncIterator[Engine]:
    with stores_in(directory / "data", options) as stores:
        async with open_engine(stores, options or EngineOptions(), owner="test") as engine:
            yield engine


async def stored(engine: Engine, data: bytes, transfer_syntax_uid: str) -> Instance:
    result = await store(engine, data, transfer_syntax_uid)
    assert result.outcome in (Outcome.STORED, Outcome.CONFLICT)
    (instance,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
    return instance


async def stored_file(engine: Engine, path: Path) -> Instance:
    raw = path.read_bytes()
    cut = split(raw)
    return await stored(engine, raw[cut.offset :], cut.transfer_syntax_uid)


async def given(engine: Engine, instance: Instance, uid: str) -> tuple[bytes, Dataset]:
    """The object in ``uid``: as a file, and as pydicom reads it."""
    pieces = [bytes(piece) async for piece in engine.transcoded(instance, uid)]
    file = part10(b"".join(pieces), uid)
    return file, pydicom.dcmread(io.BytesIO(file))
