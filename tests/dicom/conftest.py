"""Every DICOM file that pydicom and pydicom-data carry, as (file name, data set bytes, transfer syntax)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from hounsfield.archive.dicom import part10
from hounsfield.codecs.registry import TransferSyntax, lookup

NOT_DICOM = {".py", ".pyc", ".json", ".zip", ".txt", ".md", ".dump", ".gz", ".icc", ".sha256", ".pyi"}


@cache
def real_files() -> dict[str, Path]:
    roots = []
    pydicom = find_spec("pydicom")
    assert pydicom is not None and pydicom.origin is not None
    roots.append(Path(pydicom.origin).parent / "data")
    data_store = find_spec("data_store")
    if data_store is not None and data_store.submodule_search_locations:
        roots.append(Path(next(iter(data_store.submodule_search_locations))) / "data")
    found: dict[str, Path] = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix not in NOT_DICOM and path.name not in ("README", "no_meta.dcm"):
                found["/".join((root.parent.name, *path.relative_to(root).parts))] = path
    return found


@dataclass(frozen=True)
class Sample:
    name: str
    path: Path
    file: part10.Part10
    data: memoryview
    syntax: TransferSyntax


@cache
def _sample(name: str) -> Sample:
    path = real_files()[name]
    raw = path.read_bytes()
    file = part10.split(raw)
    return Sample(name, path, file, memoryview(raw)[file.offset :], lookup(file.transfer_syntax_uid))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "sample_name" in metafunc.fixturenames:
        names = list(real_files())
        assert len(names) > 200
        metafunc.parametrize("sample_name", names)


@pytest.fixture
def sample(sample_name: str) -> Sample:
    return _sample(sample_name)


@pytest.fixture
def ct() -> Sample:
    """An ordinary CT slice, explicit VR little endian."""
    return _sample("pydicom/test_files/CT_small.dcm")


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    return [_sample(name) for name in real_files()]
