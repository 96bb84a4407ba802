"""An index that is lost, or older than the tiers are, comes back without what lies there, or with more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.test_checks_overlook_tiers import said
from engine.test_tiers_lose_what_they_move import Place, applied, rule
from hounsfield.archive.engine.backup import Backup, BackupError, BackupReport
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.rescue import restore_from_tier
from hounsfield.archive.engine.restore import Restore, RestoreReport, finish
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import locations
from hounsfield.archive.index.checking import Severity
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.far_packs import TierAwayError
from hounsfield.archive.index.packs import Packs
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.storage_backends.errors import MasterKeyError
from hounsfield.storage_backends.master_key import RecoveryKey, load_master_key
from hounsfield.storage_backends.object_store import TierMarkerMissingError
from support.archives import stores_in, write_master_key
from support.contents import contents


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.limits = replace(place.limits, recall_when_opened=False)
    return place


async def filled(place: Place) -> None:
    """Series in both tiers, in cold and here, and only here; one object of the first is deleted."""
    place.rules = (rule("move", "cold", "second"),)
    async with place.open() as engine:
        await place.send(engine, 3)
        await place.send(engine, 1, pixels=bytes(range(256)) * 4096 * 2)
        await applied(engine)
        await place.send(engine, 2)
        await also_in_cold(engine)
        await place.send(engine, 2)
        await deleted(place, engine)


async def also_in_cold(engine: Engine) -> None:
    """What is in no pack comes into one, of which cold has a copy, too."""
    tiering = engine.tiering
    for task in list(tiering.planned(tiering.now())):
        for segment in tiering._moves.gatherer.gather(task.series_key, quiet_before_ns=1 << 62).packs:
            tiering.copying.copy(segment, "cold")


async def deleted(place: Place, engine: Engine) -> None:
    """The first object that was sent is deleted."""
    sop, (_, result) = next(iter(place.sent.items()))
    target = Target(result.study_uid, result.series_uid, (sop,))
    await engine.delete(target, reason="test", actor="tester")
    del place.sent[sop]


def lose_index(place: Place) -> None:
    shutil.rmtree(place.root / "data" / "index")


async def check(place: Place) -> None:
    async with place.open() as engine:
        assert engine.stores is not None
        await place.require_all(engine)
        listed = {row.sop_uid for row in rows(engine.stores)}
        assert listed == set(place.sent)


def rows(stores: Stores) -> Iterator[InstanceRow]:
    for _, page in locations.walk(stores.store, stores.catalog):
        yield from (one.row for one in page if isinstance(one.row, InstanceRow))


@pytest.mark.parametrize("how", ["reindex", "start", "rescan"])
async def test_a_lost_index_is_made_from_what_the_tiers_list(place: Place, how: str) -> None:
    await filled(place)
    async with place.open() as engine:
        named = place.named(engine.stores)
        before = contents(engine.stores)
    assert {frozenset(tiers) for tiers in named.values()} >= {frozenset({"cold", "second"})}
    lose_index(place)
    if how != "start":
        with stores_in(place.root / "data", place.options) as stores:
            stores.reindex(lambda *_: None, rescan=how == "rescan", far=stores.far_packs())
    await check(place)
    with place.stores() as stores:
        assert place.named(stores) == named
        assert contents(stores) == before
    assert said(place) == {}


async def test_a_tier_that_is_away_or_unmarked_stops_it_unless_told(place: Place) -> None:
    await filled(place)
    async with place.open() as engine:
        away = [name for name, tiers in place.named(engine.stores).items() if "hot" not in tiers]
        for name in away:
            engine.tiering.copying.drop(bytes.fromhex(name), "second")
    lose_index(place)
    (place.root / "cold").rename(place.root / "gone")
    for _ in range(2):  # away, then an empty mount point
        with stores_in(place.root / "data", place.options) as stores:
            with pytest.raises(TierAwayError, match="--without-tier cold"):
                stores.reindex(lambda *_: None, far=stores.far_packs())
            with pytest.raises(TierAwayError):
                stores.catch_up(at_start=True)
        (place.root / "cold").mkdir(exist_ok=True)
    assert not list((place.root / "cold").iterdir())
    with stores_in(place.root / "data", place.options) as stores:
        stores.reindex(lambda *_: None, far=stores.far_packs(without=["cold"]))
    await check(place)  # by what it was gathered from, which is not compacted yet


async def test_a_tier_that_is_not_needed_stops_nothing(place: Place) -> None:
    """Everything is in the other tier, or here; or nothing was ever moved."""
    await filled(place)
    lose_index(place)
    (place.root / "cold").rename(place.root / "gone")
    await check(place)


async def test_a_first_start_that_was_killed_needs_no_tier(place: Place) -> None:
    place.rules = ()
    async with place.open() as engine:
        await place.send(engine)
        shutil.copytree(place.root / "data", place.root / "killed")
    shutil.rmtree(place.root / "data")
    (place.root / "killed").rename(place.root / "data")
    await check(place)


# ---------------------------------------------------------------- backups


def backed_up(place: Place, stores: Stores) -> BackupReport:
    return Backup(place.root / "data", stores.store, stores.keyring, place.root / "backups").make(
        segments=True
    )


def restored(place: Place, *, survived: bool = False, reindex: bool = False) -> RestoreReport:
    """Lose the data directory, and restore it; with the segments of the lost one, when they survived."""
    old = place.root / "old"
    (place.root / "data").rename(old)
    opened = Restore.open(
        place.root / "backups",
        load_master_key(f"file:{place.root / 'data.key'}"),
        segments_from=old if survived else None,
    )
    opened.check(lambda *_: None)
    return opened.run(place.root / "data", place.options, reindex=reindex)


async def test_what_lies_elsewhere_is_not_copied_and_comes_back(place: Place) -> None:
    await filled(place)
    with place.stores() as stores:
        named = place.named(stores)
        sizes = {segment.hex(): row.size for page in Packs(stores.store).pages() for segment, row in page}
        report = backed_up(place, stores)
        before = contents(stores)
    away = [segment for segment, tiers in named.items() if "hot" not in tiers]
    assert {name: (one.packs, one.bytes) for name, one in report.elsewhere.items()} == dict.fromkeys(
        ("cold", "second"), (len(away), sum(sizes[segment] for segment in away))
    )
    assert not {path.name for path in (place.root / "backups" / "segments").iterdir()} & set(away)
    done = restored(place)
    assert (done.lost, done.absent, done.packs_corrected, done.far_keys) == (0, [], 0, 0)
    await check(place)
    with place.stores() as stores:
        assert place.named(stores) == named
        assert contents(stores) == before
    assert said(place) == {}


@pytest.mark.parametrize("reindex", [False, True])
@pytest.mark.parametrize("survived", [True, False])
async def test_what_packs_did_after_the_backup_is_found(place: Place, survived: bool, reindex: bool) -> None:
    """Copied, dropped, recalled, gathered, gathered anew, removed, deleted: whatever, all of it is there."""
    await filled(place)
    with place.stores() as stores:
        backed_up(place, stores)
        named = place.named(stores)
    place.rules = (rule("move", "cold"),)
    place.limits = replace(place.limits, tidy_s=0.0, remove_after_s=0.0, erase_s=0.0)
    async with place.open() as engine:
        both = [bytes.fromhex(name) for name, tiers in named.items() if tiers == {"cold", "second"}]
        engine.tiering.copying.copy(both[0], "hot")
        engine.tiering.copying.drop(both[0], "second")
        engine.tiering.copying.drop(both[1], "cold")
        await place.send(engine, 3)
        await applied(engine)  # what was here goes, what was not gathered is
        await deleted(place, engine)
        for _ in range(3):
            await applied(engine)
        now = place.named(engine.stores)
        assert all(tiers for tiers in now.values())
    report = restored(place, survived=survived, reindex=reindex)
    # With the ledger since the backup the deletion is lost: an older index misses what was erased by it.
    erased = 0 if survived or reindex else 1
    assert report.lost == erased
    async with place.open() as engine:
        await place.require_all(engine)
        if survived:
            assert {row.sop_uid for row in rows(engine.stores)} == set(place.sent)
    kinds = said(place)
    assert list(kinds.values()).count(Severity.LOSS) == erased, kinds
    assert Severity.INDEX not in kinds.values(), kinds


async def test_a_tier_that_is_away_stops_a_restore_unless_told(place: Place) -> None:
    await filled(place)
    with place.stores() as stores:
        backed_up(place, stores)
    (place.root / "cold").rename(place.root / "gone")
    with pytest.raises(TierAwayError):
        restored(place)
    (place.root / "gone").rename(place.root / "cold")
    shutil.rmtree(place.root / "data")
    (place.root / "old").rename(place.root / "data")
    assert restored(place).lost == 0  # it goes on where it was
    await check(place)


# ---------------------------------------------------------------- nothing but a tier


async def test_a_tier_and_the_key_are_enough(place: Place) -> None:
    place.rules = (rule("move", "cold"),)
    async with place.open() as engine:
        await place.send(engine, 3)
        await place.send(engine, 1, pixels=bytes(range(256)) * 4096 * 2)
        await applied(engine)
        before = contents(engine.stores)
    shutil.rmtree(place.root / "data")
    key = load_master_key(f"file:{place.root / 'data.key'}")
    data = place.root / "data"
    with pytest.raises(BackupError, match="no tier"):
        restore_from_tier(data, "nowhere", key, place.options, without_tiers=["second"])
    with pytest.raises(TierMarkerMissingError):
        restore_from_tier(data, "second", key, place.options)
    other = place.root / "other.key"
    write_master_key(other)
    with pytest.raises(MasterKeyError):
        restore_from_tier(data, "cold", load_master_key(f"file:{other}"), place.options)
    note = place.root / "cold" / "keys" / "tiers"
    said_used = note.read_bytes()
    for other in (None, json.dumps(["cold", "second"]).encode()):  # nobody says that it was never used
        note.unlink()
        if other is not None:
            note.write_bytes(other)
        with pytest.raises(TierAwayError, match="second"):
            restore_from_tier(data, "cold", key, place.options)
        note.touch()
    note.write_bytes(said_used)
    report = restore_from_tier(data, "cold", key, place.options)
    assert (report.recovery.far_packs, report.far_keys) == (2, 2)
    assert report.unused_tiers == ["second"]
    await check(place)
    with place.stores() as stores:
        after = contents(stores)
    for row in (*before["study"].values(), *after["study"].values()):
        row.pop("patient_key")  # a hash, under a key that is another one now
    for name in ("study", "series"):
        assert sorted(map(repr, after[name].values())) == sorted(map(repr, before[name].values()))
    with pytest.raises(BackupError, match="not empty"):
        finish(data)
        restore_from_tier(data, "cold", key, place.options, without_tiers=["second"])
    (data / "hounsfield.json").touch()
    assert said(place) == {}
    async with place.open() as engine:  # and it goes on
        await place.send(engine, 2)
        await applied(engine)
        await place.require_all(engine)


async def test_every_tier_says_which_are_used_and_what_opens_them(place: Place) -> None:
    """Also one that had its packs before another was used, or before the master key was another."""
    place.rules = (rule("move", "cold"),)
    async with place.open() as engine:
        await place.send(engine, 1)
        await applied(engine)
        assert used(place, "cold") == ["cold"]
        assert not (place.root / "second" / "keys").exists()
    place.rules = (rule("move", "cold", "second"),)
    async with place.open() as engine:
        await place.send(engine, 1)
        await applied(engine)
        assert used(place, "cold") == used(place, "second") == ["cold", "second"]
        keyring = engine.stores.keyring  # of the process that serves, while another changes it
        keyring.rewrap(RecoveryKey.generate())
        (place.root / "cold").rename(place.root / "gone")
        await applied(engine)
        assert (place.root / "second" / "keys" / "root").read_bytes() == keyring.wrapped_root()
        (place.root / "gone").rename(place.root / "cold")
        await applied(engine)  # it was away, and is told when it is back
        assert (place.root / "cold" / "keys" / "root").read_bytes() == keyring.wrapped_root()


def used(place: Place, tier: str) -> list[str]:
    found: list[str] = json.loads((place.root / tier / "keys" / "tiers").read_bytes())
    return found
