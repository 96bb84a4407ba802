"""A snapshot whose index this release would misread, or that is damaged, comes back all the same."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.backup import Backup, BackupError, BackupReport
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.restore import Restore
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import layout
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.lmdb_copy import reading_copy
from hounsfield.storage_backends.master_key import load_master_key
from support.archives import ct_slice, store, stores_in
from support.contents import contents
from support.rejection import SAFETY, note

SOPS = [f"1.2.3.1.{number}" for number in range(6)]


def fill(stores: Stores) -> None:
    """Objects, one of them deleted, one rejected."""

    async def run() -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for sop in SOPS:
                data = ct_slice(study_uid=f"{sop}.1", series_uid=f"{sop}.2", sop_uid=sop)
                await store(engine, data, ExplicitVRLittleEndian)
            named = {f"{SOPS[0]}.1": {f"{SOPS[0]}.2": [SOPS[0]]}}
            await store(engine, note(named, SAFETY), ExplicitVRLittleEndian)

    trio.run(run)
    stores.deletions.delete(Target(f"{SOPS[1]}.1"), reason="r", actor="t", now_ns=time.time_ns())


def shown(stores: Stores) -> list[str]:
    with stores.store.snapshot() as snapshot:
        return [sop for sop in SOPS if stores.catalog.places(snapshot, "instance", sop)]


def mark(stores: Stores, says: bytes | None) -> None:
    batch = Batch()
    if says is None:
        batch.delete(META, layout._KEY)
    else:
        batch.put(META, layout._KEY, says)
    stores.store.commit(batch)


def backed_up(tmp_path: Path, says: bytes | None, *, segments: bool) -> BackupReport:
    """An archive whose index says of itself that it is of another layout, and a backup of it."""
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        fill(stores)
        mark(stores, says)
        made = Backup(directory, stores.store, stores.keyring, tmp_path / "backups")
        return made.make(segments=segments)


def opened(tmp_path: Path, segments_from: Path | None = None) -> Restore:
    key = load_master_key(f"file:{tmp_path / 'data.key'}")
    return Restore.open(tmp_path / "backups", key, segments_from=segments_from)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("segments", [True, False], ids=["with segments", "segments from the old disk"])
@pytest.mark.parametrize("says", [None, b"1", b"3"], ids=["nothing", "an older one", "a newer one"])
def test_its_index_is_made_anew(tmp_path: Path, says: bytes | None, segments: bool) -> None:
    assert backed_up(tmp_path, says, segments=segments).index_of_another_release
    before = files(tmp_path / "backups")
    restore = opened(tmp_path, None if segments else tmp_path / "data")
    restore.check(lambda *_: None)
    assert restore.index_of_another_release
    assert files(tmp_path / "backups") == before  # looking at it left nothing there
    shutil.copy(tmp_path / "data.key", tmp_path / "new.key")
    for _ in range(2):  # as again after a kill at the end
        report = restore.run(tmp_path / "new", EngineOptions())
        assert (report.index_made_anew, report.lost, report.absent) == (True, 0, [])
        assert (report.recovery.records, report.recovery.damaged) == (len(SOPS) + 1, 0)
    with stores_in(tmp_path / "new") as stores:
        stores.catch_up(at_start=True)
        assert shown(stores) == SOPS[2:]
        with stores.store.snapshot() as snapshot:
            (rejection,) = stores.rejections.all(snapshot)
        stores.rejections.undo(rejection.number, actor="t", reason="r", at_ns=time.time_ns())
        assert shown(stores) == [SOPS[0], *SOPS[2:]]


def test_one_of_this_release_is_taken_as_it_is(tmp_path: Path) -> None:
    assert not backed_up(tmp_path, layout.LAYOUT, segments=True).index_of_another_release
    restore = opened(tmp_path)
    assert not restore.index_of_another_release
    report = restore.run(tmp_path / "new", EngineOptions())
    assert not report.index_made_anew and report.index_bytes
    shutil.copy(tmp_path / "data.key", tmp_path / "new.key")
    with stores_in(tmp_path / "data") as stores:
        before = contents(stores)
    with stores_in(tmp_path / "new") as stores:
        assert contents(stores)["instance"].keys() == before["instance"].keys()
        assert contents(stores)["study"] == before["study"]


def test_an_archive_in_which_nothing_was_stored_yet(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        mark(stores, None)
        made = Backup(tmp_path / "data", stores.store, stores.keyring, tmp_path / "backups")
        assert not made.make(segments=True).index_of_another_release
    assert not opened(tmp_path).run(tmp_path / "new", EngineOptions()).index_made_anew


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_index_is_not_needed(tmp_path: Path, damage: str) -> None:
    name = backed_up(tmp_path, layout.LAYOUT, segments=True).snapshot
    index = tmp_path / "backups" / "snapshots" / name / "index" / "data.mdb"
    if damage == "gone":
        index.unlink()
    else:
        index.write_bytes(os.urandom(index.stat().st_size))
    restore = opened(tmp_path)
    with pytest.raises(BackupError, match="restore --reindex"):
        restore.check(lambda *_: None)
    restore.check(lambda *_: None, index=False)
    assert restore.run(tmp_path / "new", EngineOptions(), reindex=True).index_made_anew
    shutil.copy(tmp_path / "data.key", tmp_path / "new.key")
    with stores_in(tmp_path / "new") as stores:
        stores.catch_up(at_start=True)
        assert shown(stores) == SOPS[2:]
    with pytest.raises(StorageError), reading_copy(index.parent):
        pass


def test_a_damaged_key_is_needed(tmp_path: Path) -> None:
    name = backed_up(tmp_path, layout.LAYOUT, segments=True).snapshot
    key = next((tmp_path / "backups" / "snapshots" / name / "keys").glob("*/*.key"))
    key.write_bytes(b"nothing")
    with pytest.raises(BackupError, match="use another snapshot") as raised:
        opened(tmp_path).check(lambda *_: None, index=False)
    assert "reindex" not in str(raised.value)


def test_segments_that_are_gone_are_told(tmp_path: Path) -> None:
    """Without an index nobody knows what was in them."""
    backed_up(tmp_path, b"1", segments=True)
    for segment in (tmp_path / "backups" / "segments").iterdir():
        segment.unlink()
    report = opened(tmp_path).run(tmp_path / "new", EngineOptions())
    assert report.index_made_anew
    assert [name.partition("/")[0] for name in report.absent] == ["segments"]
