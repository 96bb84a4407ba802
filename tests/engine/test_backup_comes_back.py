"""A backup made while the archive is used gives back everything acknowledged, and nothing deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from hounsfield.archive.engine.backup import Backup, BackupError, read_manifest, snapshots_in
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.restore import Restore, RestoreReport
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import StoreResult
from hounsfield.archive.index import locations
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.gathering import Gatherer
from hounsfield.archive.index.rewriting import Rewriter
from hounsfield.archive.index.rows import Location, StudyRow
from hounsfield.archive.index.smaller_frames import SmallerLimits
from hounsfield.archive.index.tables import STUDY
from hounsfield.codecs.at_rest import Encoding
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import MasterKey, load_master_key
from hounsfield.storage_backends.segment_appending import RecordIn, SegmentLimits
from hounsfield.storage_backends.segment_scan import ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog
from support.archives import ct_slice, open_stores, store, stored_bytes, write_master_key

EXPLICIT = "1.2.840.10008.1.2.1"
SMALL = EngineOptions(segments=SegmentLimits(segment_bytes=64 << 10))


class Killed(BaseException):
    """The process ended here."""


class Archive:
    """A data directory, its key, and what was acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.backups = folder / "backups"
        self.key = write_master_key(folder / "key")
        self.acknowledged: dict[str, tuple[StoreResult, bytes]] = {}
        self.stores = open_stores(self.data, self.key, SMALL)

    @property
    def master(self) -> MasterKey:
        return load_master_key(self.key)

    def backup(self, **options: bool | int) -> str:
        made = Backup(self.data, self.stores.store, self.stores.keyring, self.backups)
        return made.make(segments=bool(options.get("segments")), keep=int(options.get("keep", 0))).snapshot

    async def fill(self, engine: Engine, count: int, **given: str) -> None:
        for number in range(count):
            data = ct_slice(number=number + 1, **given)
            result = await store(engine, data, EXPLICIT)
            self.acknowledged[result.sop_instance_uid] = (result, data)

    async def check(self, data: Path, without: frozenset[str] = frozenset()) -> None:
        """Every acknowledged object is served from ``data`` as it was sent, and nothing of ``without``."""
        stores = open_stores(data, self.key, SMALL)
        try:
            async with open_engine(stores, SMALL, owner="a check") as engine:
                for uid, (result, sent) in self.acknowledged.items():
                    if uid not in without:
                        assert await stored_bytes(engine, result) == sent
        finally:
            stores.close()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def _restore(archive: Archive, to: Path, segments_from: Path | None = None, **options: str) -> RestoreReport:
    opened = Restore.open(
        archive.backups, archive.master, snapshot=options.get("snapshot", ""), segments_from=segments_from
    )
    opened.check(lambda *_: None)
    return opened.run(to, SMALL)


async def test_everything_in_the_backup_comes_back(archive: Archive, tmp_path: Path) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 6)
        await engine.commit_fact("note", "one", {"text": "kept"}, 1)
        archive.backup(segments=True)
    archive.stores.close()
    shutil.rmtree(archive.data)
    report = _restore(archive, tmp_path / "new")
    assert (report.lost, report.absent, report.moved) == (0, [], 0)
    await archive.check(tmp_path / "new")
    stores = open_stores(tmp_path / "new", archive.key, SMALL)
    with stores.store.snapshot() as snapshot:
        assert list(stores.journal.state(snapshot, "note")) == [{"text": "kept"}]
    stores.close()
    kept = {p.relative_to(archive.backups) for p in archive.backups.rglob("*") if p.is_file()}
    assert not any(str(path).endswith((".part", ".new")) for path in kept)
    for path in archive.backups.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


async def test_what_came_after_the_backup_comes_back_with_the_segments(
    archive: Archive, tmp_path: Path
) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 3)
        archive.backup()
        await archive.fill(engine, 20)  # some of them in segments, and under keys, that the backup has not
        await engine.commit_fact("note", "later", {"text": "kept"}, 1)
    report = _restore(archive, tmp_path / "new", archive.data)
    archive.stores.close()
    assert report.later_keys > 0
    assert report.recovery.facts == 1
    assert report.lost == 0
    await archive.check(tmp_path / "new")


async def test_a_backup_under_load_misses_nothing(archive: Archive, tmp_path: Path) -> None:
    """Four senders go on while backups are made; then the machine dies, and only segments are left."""
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await engine.commit_fact("note", "before", {"text": "kept"}, 1)

        async def send(sender: int) -> None:
            for number in range(12):
                await archive.fill(engine, 1, series_uid=f"1.2.3.{sender}", study_uid=f"1.2.{sender % 2}")
                await trio.lowlevel.checkpoint()
                assert number >= 0

        async with trio.open_nursery() as nursery:
            for sender in range(4):
                nursery.start_soon(send, sender)
            for _ in range(2):
                await trio.to_thread.run_sync(lambda: archive.backup(segments=True))
                first = snapshots_in(archive.backups)[0]
                for name in snapshots_in(archive.backups)[1:]:
                    assert name > first
        survivors = tmp_path / "survivors"  # as the disk is now: nothing is flushed for us
        for folder in ("segments", "ledger", "keys"):
            shutil.copytree(archive.data / folder, survivors / folder)
    archive.stores.close()
    shutil.rmtree(archive.data)
    for number, name in enumerate(snapshots_in(archive.backups)):
        report = _restore(archive, tmp_path / f"new{number}", survivors, snapshot=name)
        assert report.lost == 0
        await archive.check(tmp_path / f"new{number}")
    # And each backup by itself is whole: what it has in its index can be read.
    alone = tmp_path / "alone"
    report = _restore(archive, alone, snapshot=snapshots_in(archive.backups)[0])
    assert report.lost == 0
    stores = open_stores(alone, archive.key, SMALL)
    for _, rows in locations.walk(stores.store, stores.catalog):
        for row in rows:
            assert row.location is not None
            stores.log.verify(row.location.ref())
    stores.close()


def _compact(stores: Stores) -> set[bytes]:
    """Move every record of closed segments as compaction does: same ids, new segment, old key destroyed."""
    log = SegmentLog(stores.blobs, stores.keyring)
    held: dict[bytes, locations.Located] = {}
    for _, rows in locations.walk(stores.store, stores.catalog):
        held |= {row.location.record_id: row for row in rows if row.location is not None}
    gone = {s for s in stores.log.segment_ids() if not stores.log.is_being_written(s)}
    for segment in gone:
        for record in stores.log.scan(segment):
            assert isinstance(record, ScannedRecord)
            parts = [bytes(stores.log.open_part(part)) for part in record.ref.parts()]
            (ref,) = log.append([RecordIn(record.kind, parts, record.ref.record_id)])
            stores.sealer.prepare(1)
            batch = Batch()
            locations.point_elsewhere(batch, stores.sealer, held[ref.record_id], Location.of(ref, None))
            stores.store.commit(batch)
        stores.store.sync()
        stores.keyring.destroy_key("segment", segment.hex())
        stores.blobs.delete(f"segments/{segment.hex()}")
    log.close()
    return gone


async def test_an_index_older_than_a_compaction_finds_what_was_moved(
    archive: Archive, tmp_path: Path
) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 40, study_uid="1.2.5")
        archive.backup()
        gone = _compact(archive.stores)
        assert gone
        await archive.fill(engine, 3, study_uid="1.2.5")
    report = _restore(archive, tmp_path / "new", archive.data)
    archive.stores.close()
    assert report.moved > 0
    assert report.lost == 0
    assert sorted(report.absent) == sorted(f"segments/{segment.hex()}" for segment in gone)
    await archive.check(tmp_path / "new")


@pytest.mark.parametrize("reindex", [False, True])
async def test_what_only_a_former_snapshot_can_open_is_left_there(
    archive: Archive, tmp_path: Path, reindex: bool
) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 40, study_uid="1.2.5")
        archive.backup(segments=True)
        gone = _compact(archive.stores)
        archive.backup(segments=True)
    archive.stores.close()
    report = Restore.open(archive.backups, archive.master).run(tmp_path / "new", SMALL, reindex=reindex)
    assert gone
    assert not {segment.hex() for segment in gone} & {
        path.name for path in (tmp_path / "new/segments").iterdir()
    }
    assert report.recovery.unreadable_segments == 0
    await archive.check(tmp_path / "new")


@pytest.mark.parametrize("encoding", [None, Encoding.ZSTD, Encoding.HTJ2K])
async def test_an_index_older_than_a_gathering_finds_what_is_in_packs(
    archive: Archive, tmp_path: Path, encoding: Encoding | None
) -> None:
    """Frames are compressed in the pack: the row must say so as soon as it points there."""
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        for number in range(10):
            data = ct_slice(study_uid="1.2.5", series_uid="1.2.5.1", pixels=bytes([number, 1]) * 256)
            result = await store(engine, data, EXPLICIT)
            archive.acknowledged[result.sop_instance_uid] = (result, data)
    archive.stores.log.start_anew()
    archive.backup()
    gatherer = Gatherer(archive.stores.indexer, compression=SmallerLimits(1, 9.0))
    key = archive.stores.catalog.series_key("1.2.5", "1.2.5.1")
    gathered = gatherer.gather(key, quiet_before_ns=1 << 62, recompress=encoding)
    assert gathered.recompressed == (10 if encoding else 0)
    for segment in archive.stores.log.segment_ids():
        assert segment in gathered.packs or Rewriter(archive.stores.indexer).rewrite_segment(segment).removed
    report = _restore(archive, tmp_path / "new", archive.data)
    archive.stores.close()
    assert (report.moved, report.lost) == (10, 0)
    await archive.check(tmp_path / "new")


@pytest.mark.parametrize("same", [True, False])
async def test_what_was_deleted_and_compacted_and_sent_again_comes_back(
    archive: Archive, tmp_path: Path, same: bool
) -> None:
    """The older index says that it is in a segment that is gone: there is nothing to compare it with."""
    named = {"study_uid": "1.2.5", "series_uid": "1.2.5.1", "sop_uid": "1.2.5.1.1"}
    first = ct_slice(number=1, **named)
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await store(engine, first, EXPLICIT)
    archive.backup()
    archive.stores.close()
    archive.stores = open_stores(archive.data, archive.key, SMALL)
    archive.stores.catch_up(at_start=True)  # nobody writes to its segment any more
    archive.stores.deletions.delete(Target("1.2.5"), reason="a test", actor="a test", now_ns=1)
    for segment in archive.stores.log.segment_ids():
        assert Rewriter(archive.stores.indexer).rewrite_segment(segment).removed
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        sent = first if same else ct_slice(number=1, **named)
        result = await store(engine, sent, EXPLICIT)
        archive.acknowledged[result.sop_instance_uid] = (result, sent)
    _restore(archive, tmp_path / "new", archive.data)
    archive.stores.close()
    await archive.check(tmp_path / "new")
    stores = open_stores(tmp_path / "new", archive.key, SMALL)
    with stores.store.snapshot() as snapshot:
        assert not list(stores.catalog.versions(snapshot, stores.catalog.instance_key(*named.values())))
    stores.close()


async def test_what_was_deleted_after_the_backup_stays_deleted(archive: Archive, tmp_path: Path) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 4, study_uid="1.2.5")
        await archive.fill(engine, 4, study_uid="1.2.6")
        archive.backup(segments=True)
        await archive.fill(engine, 2, study_uid="1.2.6")
        archive.stores.deletions.delete(Target("1.2.6"), reason="a test", actor="a test", now_ns=1)
    archive.stores.close()
    gone = {uid for uid, (result, _) in archive.acknowledged.items() if result.study_uid == "1.2.6"}
    _restore(archive, tmp_path / "new", archive.data)
    await archive.check(tmp_path / "new", without=frozenset(gone))
    assert _studies(archive, tmp_path / "new") == {"1.2.5"}
    # A reindex of what was restored gives the same.
    shutil.rmtree(tmp_path / "new" / "index")
    stores = open_stores(tmp_path / "new", archive.key, SMALL)
    stores.reindex(lambda *_: None)
    stores.close()
    assert _studies(archive, tmp_path / "new") == {"1.2.5"}
    _restore(archive, tmp_path / "alone")  # the backup by itself: as of its moment
    assert _studies(archive, tmp_path / "alone") == {"1.2.5", "1.2.6"}


def _studies(archive: Archive, data: Path) -> set[str]:
    stores = open_stores(data, archive.key, SMALL)
    with stores.store.snapshot() as snapshot:
        found = {
            stores.catalog.open_row(STUDY, key, sealed, StudyRow).uid for key, sealed in snapshot.scan(STUDY)
        }
    stores.close()
    return found


async def test_a_compaction_while_segments_are_copied_is_survived(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: between the copy of the index and that of the segments that came since."""
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 20)
        real = archive.stores.store.copy_to  # type: ignore[attr-defined]
        calls = 0

        def copy_to(directory: Path) -> None:
            nonlocal calls
            calls += 1
            real(directory)
            if calls == 1:
                _compact(archive.stores)

        monkeypatch.setattr(archive.stores.store, "copy_to", copy_to)
        archive.backup(segments=True)
    archive.stores.close()
    report = _restore(archive, tmp_path / "new")
    assert report.lost == 0
    await archive.check(tmp_path / "new")


async def test_lost_segments_are_counted_and_the_rest_is_served(archive: Archive, tmp_path: Path) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 40)
        archive.backup(segments=True)
    archive.stores.close()
    lost = min((archive.backups / "segments").iterdir())
    lost.unlink()
    report = _restore(archive, tmp_path / "new")
    assert report.absent == [f"segments/{lost.name}"]
    assert report.lost > 0
    stores = open_stores(tmp_path / "new", archive.key, SMALL)
    found = {
        row.row.sop_uid  # type: ignore[union-attr]
        for _, rows in locations.walk(stores.store, stores.catalog)
        for row in rows
        if row.location is not None and row.location.segment.hex() == lost.name
    }
    stores.close()
    assert len(found) == report.lost
    await archive.check(tmp_path / "new", without=frozenset(found))


async def test_segments_are_copied_once_and_old_snapshots_removed(archive: Archive) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 40)
        closed = {
            s.hex() for s in archive.stores.log.segment_ids() if not archive.stores.log.is_being_written(s)
        }
        archive.backup(segments=True)
        before = {p.name: p.stat().st_ino for p in (archive.backups / "segments").iterdir()}
        assert closed < set(before)
        await archive.fill(engine, 1)
        archive.backup(segments=True)
        after = {p.name: p.stat().st_ino for p in (archive.backups / "segments").iterdir()}
        assert all(after[name] == before[name] for name in closed)
        _compact(archive.stores)
        archive.backup(segments=True, keep=1)
    assert len(snapshots_in(archive.backups)) == 1
    assert not closed & {path.name for path in (archive.backups / "segments").iterdir()}
    archive.stores.close()


def _each_kill(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch, step: int) -> bool:
    left = step

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def instead(*arguments: object, **options: object) -> object:
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            return real(*arguments, **options)

        return instead

    with monkeypatch.context() as patch:
        for name in ("fsync", "rename", "replace", "link", "mkdir", "write"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            call()
        except Killed:
            return False
    return True


async def test_a_backup_killed_anywhere_leaves_the_one_before(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 3)
        first = archive.backup(segments=True)
        await archive.fill(engine, 3)
        for step in range(0, 400, 7):
            if _each_kill(lambda: archive.backup(segments=True), monkeypatch, step):
                break
            assert snapshots_in(archive.backups) == [first]
            keyring = archive.stores.keyring
            assert read_manifest(archive.backups / "snapshots" / first, keyring).with_segments
        else:
            raise AssertionError("it never finished")
    archive.stores.close()
    assert len(snapshots_in(archive.backups)) == 2
    report = _restore(archive, tmp_path / "new")
    assert report.lost == 0
    await archive.check(tmp_path / "new")


async def test_a_restore_killed_anywhere_goes_on(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 4)
        archive.backup()
        await archive.fill(engine, 4)
    for step in range(0, 400, 11):
        if _each_kill(lambda: _restore(archive, tmp_path / "new", archive.data), monkeypatch, step):
            break
    else:
        raise AssertionError("it never finished")
    archive.stores.close()
    await archive.check(tmp_path / "new")


async def test_what_is_not_ours_whole_or_empty_is_refused(archive: Archive, tmp_path: Path) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 1)
        name = archive.backup()
    snapshot = archive.backups / "snapshots" / name
    with pytest.raises(BackupError, match="without --segments"):
        Restore.open(archive.backups, archive.master)
    used = tmp_path / "used"
    used.mkdir()
    (used / "something").write_text("mine")
    with pytest.raises(BackupError, match="never overwrites"):
        _restore(archive, used, archive.data)
    with pytest.raises(BackupError, match="no snapshot"):
        _restore(archive, tmp_path / "new", archive.data, snapshot="20000101T000000Z")
    with pytest.raises(BackupError, match="no directory of backups"):
        Restore.open(tmp_path / "used", archive.master)
    stranger = Keyring.create(tmp_path / "stranger", MasterKey.generate())
    with pytest.raises(BackupError, match="another archive"):
        Backup(tmp_path / "x", archive.stores.store, stranger, archive.backups).make(segments=False)
    with pytest.raises(BackupError, match="inside the data directory"):
        Backup(archive.data, archive.stores.store, archive.stores.keyring, archive.data / "b").make(
            segments=False
        )
    with pytest.raises(BackupError, match="not empty"):
        Backup(archive.data, archive.stores.store, archive.stores.keyring, used).make(segments=False)
    for path in (snapshot / "manifest.json", snapshot / "index" / "data.mdb", snapshot / "keys" / "root"):
        good = path.read_bytes()
        at = len(good) // 2
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(Exception, match=r"manifest|damaged|does not open|key"):
            _restore(archive, tmp_path / "new", archive.data)
        path.write_bytes(good)
    assert not (tmp_path / "new").exists()
    archive.stores.close()


async def test_after_a_restore_no_old_key_seals_rows(archive: Archive, tmp_path: Path) -> None:
    async with open_engine(archive.stores, SMALL, owner="a test") as engine:
        await archive.fill(engine, 1)
        archive.backup()
    epochs = archive.stores.keyring.key_ids("index")
    _restore(archive, tmp_path / "new", archive.data)
    archive.stores.close()
    stores = open_stores(tmp_path / "new", archive.key, SMALL)
    stores.sealer.prepare()
    assert stores.keyring.key_ids("index") == [*epochs, str(len(epochs) + 1)]
    stores.close()


def test_who_came_first_speaks_for_a_study_also_after_a_restore(archive: Archive, tmp_path: Path) -> None:
    """Objects of one study that disagree, received after the backup: their segments are read in any order."""

    async def one(stores: Stores, name: str) -> None:
        async with open_engine(stores, SMALL, owner="test") as engine:
            data = ct_slice(study_uid="2.25.1", series_uid="2.25.2", patient_name=name, patient_id=name)
            await store(engine, data, EXPLICIT)

    def shown(data: Path) -> tuple[str, str]:
        stores = open_stores(data, archive.key, SMALL)
        try:
            with stores.store.snapshot() as snapshot:
                row = stores.catalog.study(snapshot, "2.25.1")
        finally:
            stores.close()
        assert row is not None
        return row.attributes[0x00100010], row.attributes[0x00100020]

    archive.backup(segments=True)
    archive.stores.close()
    for number in range(8):  # a segment each, with random names
        stores = open_stores(archive.data, archive.key, SMALL)
        trio.run(one, stores, f"N{number}")
        stores.close()
    assert shown(archive.data) == ("N0", "N0")
    _restore(archive, tmp_path / "new", segments_from=archive.data)
    assert shown(tmp_path / "new") == ("N0", "N0")


def test_a_backup_into_something_that_is_no_directory_is_refused(archive: Archive) -> None:
    archive.backups.write_text("a file")
    with pytest.raises(BackupError, match="no directory"):
        archive.backup()
