"""What the storage tests share. Nothing here waits, and nothing leaves the temporary directory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import MasterKey

_HERE = Path(__file__).resolve().parent
for _folder in (str(_HERE), str(_HERE.parent)):  # for reference_segment, and for support.crash_disk
    if _folder not in sys.path:
        sys.path.insert(0, _folder)


@pytest.fixture(scope="session")
def session_keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """One keyring for tests that only need keys to exist."""
    return Keyring.create(tmp_path_factory.mktemp("keys") / "keys", MasterKey.generate())


@pytest.fixture
def master() -> MasterKey:
    return MasterKey.generate()


@pytest.fixture
def keyring(tmp_path: Path, master: MasterKey) -> Keyring:
    return Keyring.create(tmp_path / "keys", master)
