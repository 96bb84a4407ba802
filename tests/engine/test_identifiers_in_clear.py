"""No patient name, id, accession number or UID stands in clear in any file below the data directory."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from pathlib import Path

import zstandard
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from support.archives import ct_slice, store, stores_in

UIDS = {"study_uid": generate_uid(), "series_uid": generate_uid(), "sop_uid": generate_uid()}
IDENTIFIERS = ("P-4711-ÄÖ", "Sørensen^Åse", "Müller^Jürgen", "ACC-77", "Thorax nativ", *UIDS.values())
ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be")
PIXELS = b"0123456789abcdef" * 32


def readings(raw: bytes) -> list[bytes]:
    """A file's bytes, and what its compressed streams would inflate to."""
    found = [raw]
    for magic, inflate in (
        (b"\x28\xb5\x2f\xfd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
        (b"\x1f\x8b\x08", lambda data: zlib.decompressobj(31).decompress(data)),
        (b"\x78\x9c", lambda data: zlib.decompressobj().decompress(data)),
        (b"\x78\x01", lambda data: zlib.decompressobj().decompress(data)),
    ):
        at = raw.find(magic)
        while at >= 0:
            with contextlib.suppress(zlib.error, zstandard.ZstdError, OSError, EOFError):
                found.append(inflate(raw[at:]))
            at = raw.find(magic, at + 1)
    return found


async def test_nothing_that_names_a_patient_is_readable_on_disk(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for name in ("Sørensen^Åse", "Müller^Jürgen"):
                data = ct_slice(patient_id="P-4711-ÄÖ", patient_name=name, **UIDS, pixels=PIXELS)
                await store(engine, data, ExplicitVRLittleEndian)
            await store(
                engine, ct_slice(change=lambda d: d.__delattr__("StudyInstanceUID")), ExplicitVRLittleEndian
            )
            await engine.commit_fact("ae", "ACC-77", {"title": "ACC-77", "comment": "Müller^Jürgen"}, 1)
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} >= {"segments", "index", "ledger"}
    wanted = {
        text.encode(encoding) for text in IDENTIFIERS for encoding in ENCODINGS if _encodes(text, encoding)
    }
    for path in files:
        names = str(path.relative_to(directory)).encode()
        for reading in (*readings(path.read_bytes()), names):
            for identifier in wanted:
                assert identifier not in reading, path.parent.name
            assert PIXELS[:64] not in reading, path.parent.name


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def test_the_search_itself_finds_what_is_there() -> None:
    secret = b"Sorensen^Ase" * 4
    for packed in (zlib.compress(secret), gzip.compress(secret), zstandard.ZstdCompressor().compress(secret)):
        assert any(secret in reading for reading in readings(b"head" + packed + b"tail"))
