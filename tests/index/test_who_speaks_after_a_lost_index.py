"""Objects of one study that disagree: the first received speaks, whatever order a new index met them in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import recovery
from hounsfield.storage_backends.segments import SegmentLog
from support.archives import ct_slice, open_stores, store, write_master_key

ROUNDS = 6


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, str]:
    """A study of six objects, each in a segment of its own, with another name in each."""
    key = write_master_key(tmp_path / "master.key")
    for number in range(ROUNDS):
        stores = open_stores(tmp_path / "data", key, EngineOptions())
        trio.run(_store, stores, f"N{number}")
        stores.close()
    return tmp_path / "data", key


async def _store(stores: Stores, name: str) -> None:
    async with open_engine(stores, EngineOptions(), owner="test") as engine:
        data = ct_slice(study_uid="2.25.1", series_uid="2.25.2", patient_name=name, patient_id=name)
        await store(engine, data, ExplicitVRLittleEndian)


def _shown(data: Path, key: str) -> tuple[str, str]:
    stores = open_stores(data, key, EngineOptions())
    try:
        stores.catch_up(at_start=True)
        with stores.store.snapshot() as snapshot:
            row = stores.catalog.study(snapshot, "2.25.1")
    finally:
        stores.close()
    assert row is not None
    assert row.instances == ROUNDS
    return row.attributes[0x00100010], row.attributes[0x00100020]


@pytest.fixture
def last_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments have random names; here the worst order of all: the last received is met first."""
    names = SegmentLog.segment_ids

    def by_age(self: SegmentLog) -> list[bytes]:
        folder = Path(getattr(self._blobs, "local", self._blobs)._root) / self._prefix
        return sorted(names(self), key=lambda one: -(folder / one.hex()).stat().st_mtime_ns)

    monkeypatch.setattr(SegmentLog, "segment_ids", by_age)


@pytest.mark.usefixtures("last_first")
def test_the_index_was_lost(archive: tuple[Path, str]) -> None:
    shutil.rmtree(archive[0] / "index")
    assert _shown(*archive) == ("N0", "N0")


@pytest.mark.usefixtures("last_first")
def test_a_reindex_was_killed_and_the_next_start_goes_on(
    archive: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(archive[0] / "index")
    stores = open_stores(*archive, EngineOptions())
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(recovery, "settle_order", killed)
        with pytest.raises(KeyboardInterrupt):
            stores.reindex(lambda *_: None)
    stores.close()
    assert _shown(*archive) == ("N0", "N0")
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "settle_order", killed)  # every study is looked at: at no ordinary start
        assert _shown(*archive) == ("N0", "N0")
