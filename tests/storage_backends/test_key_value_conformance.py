"""Every key-value store passes the same suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hounsfield.storage_backends.api import KeyValueStore
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore
from hounsfield.storage_backends.memory_store import MemoryStore
from hounsfield.storage_backends.testing import CONFORMANCE_TABLES, KEY_VALUE_CHECKS


@pytest.fixture(params=["lmdb", "memory"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], KeyValueStore]:
    if request.param == "lmdb":
        return lambda: LmdbStore(tmp_path / "index", CONFORMANCE_TABLES, limits=LmdbLimits(reserve_bytes=0))
    store = MemoryStore(CONFORMANCE_TABLES)
    return lambda: store


@pytest.mark.parametrize("check", KEY_VALUE_CHECKS, ids=lambda check: check.__name__)
def test_conformance(
    check: Callable[[Callable[[], KeyValueStore]], None], open_store: Callable[[], KeyValueStore]
) -> None:
    check(open_store)
