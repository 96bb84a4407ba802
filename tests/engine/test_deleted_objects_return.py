"""What was deleted stays away: through restarts, reindexes, old backups and crashes at any point.

And only that: what is sent again after its deletion is there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.index.deletion import NothingToDeleteError, Target
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.tables import SPARE, TOMBSTONE
from hounsfield.storage_backends.lmdb_store import LmdbLimits
from hounsfield.storage_backends.local_blobs import LocalBlobLimits
from support.archives import ct_slice, store, stored_bytes, stores_in
from support.contents import contents

WHY = {"reason": "test", "actor": "tester"}


def delete(stores: Stores, target: Target, now_ns: int = 1) -> int:
    """Delete; how many records went."""
    return stores.deletions.delete(target, now_ns=now_ns, **WHY).records


def reindexed(directory: Path, options: EngineOptions | None = None) -> dict[str, object]:
    """The contents of a new index made from what is stored."""
    shutil.rmtree(directory / "index")
    with stores_in(directory, options) as stores:
        assert stores.reindex(lambda _done, _total: None).damaged == 0
        return contents(stores)


async def studies(engine: Engine) -> set[str]:
    page = await engine.search(parse_qido(Level.STUDY, [("limit", "1000")]))
    return {row.study[0x0020000D] for row in page.rows}


async def send(engine: Engine, data: bytes) -> StoreResult:
    return await store(engine, data, ExplicitVRLittleEndian)


@pytest.mark.parametrize("level", ["study", "series", "instances"])
async def test_deleted_objects_stay_away_and_the_others_stay(tmp_path: Path, level: str) -> None:
    directory = tmp_path / "data"
    study, series = generate_uid(), [generate_uid(), generate_uid()]
    sops = {uid: [generate_uid() for _ in range(3)] for uid in series}
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for uid in series:
                for sop in sops[uid]:
                    await send(engine, ct_slice(study_uid=study, series_uid=uid, sop_uid=sop))
            other = await send(engine, ct_slice())
            target = {
                "study": Target(study),
                "series": Target(study, series[0]),
                "instances": Target(study, series[0], tuple(sops[series[0]][:2])),
            }[level]
            gone = {"study": 6, "series": 3, "instances": 2}[level]
            look = stores.deletions.look(target, now_ns=1)
            report = stores.deletions.delete(target, now_ns=1, **WHY)
            assert (report.instances, report.records, report.studies) == (gone, gone, level == "study")
            assert report.series == {"study": 2, "series": 1, "instances": 0}[level]
            assert report.stored_bytes == look.stored_bytes > gone * 512
            assert await studies(engine) == ({other.study_uid} | ({study} if level != "study" else set()))
            assert await stored_bytes(engine, other)
            left = [
                row.instance[0x00080018]  # type: ignore[index]
                for row in (await engine.search(parse_qido(Level.INSTANCE, []))).rows
            ]
            assert len(left) == 7 - gone
            with pytest.raises(NothingToDeleteError):
                delete(stores, target)
        before = contents(stores)
        assert sum(dead for dead, _ in before["use"].values()) == report.stored_bytes
        with stores.store.snapshot() as snapshot:
            kinds = [event.kind for _, event in stores.journal.read(snapshot, 0, 100)]
        assert kinds.count("instances-deleted") == 1
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
        assert contents(stores) == before
    assert reindexed(directory) == before


async def test_an_object_that_is_sent_again_is_there_again(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    data = ct_slice()
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for _ in range(3):
                result = await send(engine, data)
                assert result.outcome is Outcome.STORED
                assert (await send(engine, data)).outcome is Outcome.DUPLICATE
                assert await stored_bytes(engine, result) == data
                delete(stores, Target(result.study_uid))
                with pytest.raises(EngineError):
                    await engine.instances(result.study_uid)
            result = await send(engine, data)
        before = contents(stores)
    assert reindexed(directory) == before
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert await stored_bytes(engine, result) == data
            assert await studies(engine) == {result.study_uid}


@pytest.mark.parametrize("policy", ["keep-first", "newest-current"])
async def test_of_several_versions_one_can_be_deleted_and_the_rest_is_served_as_if_it_never_came(
    tmp_path: Path, policy: str
) -> None:
    directory, options = tmp_path / "data", EngineOptions(duplicates=policy)
    study, series, sop = generate_uid(), generate_uid(), generate_uid()
    with stores_in(directory, options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            sent = [
                ct_slice(study_uid=study, series_uid=series, sop_uid=sop, patient_name=f"Name^{i}")
                for i in range(3)
            ]
            for data in sent:
                result = await send(engine, data)
            with stores.store.snapshot() as snapshot:
                served = stores.catalog.instance(snapshot, study, series, sop)
            assert served is not None
            delete(stores, Target(study, series, (sop,), version=served.location.record_id))
            left = sent[1:] if policy == "keep-first" else sent[:2]
            assert await stored_bytes(engine, result) == (left[0] if policy == "keep-first" else left[-1])
            before = contents(stores)
            (row,) = before["instance"].values()
            assert row["flags"] == ("conflicting-version-kept",)
            (study_row,) = before["study"].values()
            assert study_row["attributes"][0x00100010] == ("Name^1" if policy == "keep-first" else "Name^0")
        assert len(before["version"]) == 1
    assert reindexed(directory, options) == before
    with stores_in(directory, options) as stores:
        (version,) = (key[32:] for key in before["version"])
        delete(stores, Target(study, series, (sop,), version=version))
        before = contents(stores)
        assert not before["version"]
        (row,) = before["instance"].values()
        assert row["flags"] == ()
    assert reindexed(directory, options) == before
    with stores_in(directory, options) as stores:
        delete(stores, Target(study))
        before = contents(stores)
        assert not (before["study"] or before["instance"] or before["patient"] or before["token"])
        assert not (before["place"] or before["series"] or before["version"])
    assert reindexed(directory, options) == before


async def test_kept_versions_go_with_their_instance(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    study, series, sop = generate_uid(), generate_uid(), generate_uid()
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, ct_slice(study_uid=study, series_uid=series))
            for _ in range(3):
                await send(engine, ct_slice(study_uid=study, series_uid=series, sop_uid=sop))
        report = stores.deletions.delete(Target(study, series, (sop,)), now_ns=1, **WHY)
        assert (report.instances, report.versions, report.records) == (1, 2, 3)
        before = contents(stores)
        assert len(before["instance"]) == 1
        assert not before["version"]
    assert reindexed(directory) == before


async def test_what_only_a_deleted_instance_said_goes_with_it(tmp_path: Path) -> None:
    """Study and series say what the objects that stay say, in the order in which these were received."""
    directory = tmp_path / "data"
    study, series, sops = generate_uid(), generate_uid(), [generate_uid() for _ in range(4)]
    names = ["First^One", "Second^One", "Second^One", "Third^One"]
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for i, sop in enumerate(sops):

                def change(data, i: int = i) -> None:  # type: ignore[no-untyped-def]
                    if i != 1:
                        del data.PatientSex
                    if i == 2:
                        data.SeriesDescription = "described"

                await send(
                    engine,
                    ct_slice(
                        study_uid=study, series_uid=series, sop_uid=sop, patient_name=names[i], change=change
                    ),
                )

        def says() -> tuple[str, str, str, bool]:
            found = contents(stores)
            (row,), (its,) = found["study"].values(), found["series"].values()
            disagree = any(flag.startswith("attributes-disagree") for flag in row["flags"])
            return (
                row["attributes"][0x00100010], row["attributes"].get(0x00100040, ""),
                its["attributes"].get(0x0008103E, ""), disagree,
            )  # fmt: skip

        assert says() == ("First^One", "F", "described", True)
        delete(stores, Target(study, series, (sops[0],)))
        assert says() == ("Second^One", "F", "described", True)
        delete(stores, Target(study, series, (sops[3],)))
        assert says() == ("Second^One", "F", "described", False)
        delete(stores, Target(study, series, (sops[1],)))
        assert says() == ("Second^One", "", "described", False)
        before = contents(stores)
    assert reindexed(directory) == before


async def test_demographics_that_disagree_are_the_first_ones_whatever_order_segments_are_read_in(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "data"
    study, series = generate_uid(), generate_uid()
    for i in range(6):  # one segment each, and their names are random
        with stores_in(directory) as stores:
            async with open_engine(stores, EngineOptions(), owner="test") as engine:
                await send(engine, ct_slice(study_uid=study, series_uid=series, patient_name=f"Name^{i}"))
                before = contents(stores)
    assert reindexed(directory) == before
    assert reindexed(directory) == before


async def test_a_second_record_of_the_same_object_does_not_bring_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies between writing and indexing, the sender sends again: one object, two records."""
    directory, data = tmp_path / "data", ct_slice()
    add = Indexer.add

    def die(*_: object, **__: object) -> None:
        raise OSError("killed here")

    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            monkeypatch.setattr(Indexer, "add", die)
            with pytest.raises(EngineError):
                await send(engine, data)
            monkeypatch.setattr(Indexer, "add", add)
            result = await send(engine, data)
            assert result.outcome is Outcome.STORED
            # Its segment is not appended to any more, and whoever deletes catches up with it first.
            assert (await engine.delete(Target(result.study_uid), **WHY)).records == 2
        before = contents(stores)
        assert len(before["tombstone"]) == 2
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
        assert contents(stores) == before
    assert reindexed(directory) == before


async def test_two_records_of_one_object_are_known_and_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, data = tmp_path / "data", ct_slice()
    add = Indexer.add

    def die(*_: object, **__: object) -> None:
        raise OSError("killed here")

    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            monkeypatch.setattr(Indexer, "add", die)
            with pytest.raises(EngineError):
                await send(engine, data)
            monkeypatch.setattr(Indexer, "add", add)
            await send(engine, data)
    with stores_in(directory) as stores:
        assert stores.catch_up(at_start=True).outcomes[Outcome.DUPLICATE] >= 1
        before = contents(stores)
        assert len(before["spare"]) == 1
        assert sum(records for _, records in before["use"].values()) == 1
        stores.catch_up(at_start=True)
        assert contents(stores) == before


async def test_an_old_index_with_a_newer_ledger_deletes_again(tmp_path: Path) -> None:
    """An index restored from a backup: what was deleted since goes, what was sent again since stays."""
    directory = tmp_path / "data"
    study, series, sop = generate_uid(), generate_uid(), generate_uid()
    first = ct_slice(study_uid=study, series_uid=series, sop_uid=sop)
    again = ct_slice(study_uid=study, series_uid=series, sop_uid=sop)
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, first)
            gone = await send(engine, ct_slice(study_uid=study, series_uid=series))
            whole = await send(engine, ct_slice())
    shutil.copytree(directory / "index", tmp_path / "backup")
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            late = await send(engine, ct_slice())
            delete(stores, Target(study, series, (sop,)), 2)
            result = await send(engine, again)
            delete(stores, Target(study, series, (gone.sop_instance_uid,)), 3)
            delete(stores, Target(whole.study_uid), 4)
            delete(stores, Target(late.study_uid), 5)
            assert await stored_bytes(engine, result) == again
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
        before = contents(stores)
    shutil.rmtree(directory / "index")
    shutil.copytree(tmp_path / "backup", directory / "index")
    with stores_in(directory) as stores:
        assert stores.catch_up(at_start=True).facts == 4
        assert contents(stores) == before
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert await stored_bytes(engine, result) == again
            assert await studies(engine) == {study}
    assert reindexed(directory) == before


async def test_a_deletion_that_is_in_the_ledger_only_happens_at_the_next_start(tmp_path: Path) -> None:
    """Killed between ledger and commit. Not acknowledged, so it may have happened; but not by half."""
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            study = generate_uid()
            for _ in range(5):
                await send(engine, ct_slice(study_uid=study))
            kept = await send(engine, ct_slice())
        index = tmp_path / "before"
        shutil.copytree(directory / "index", index)
        delete(stores, Target(study))
        before = contents(stores)
    shutil.rmtree(directory / "index")
    shutil.copytree(index, directory / "index")
    with stores_in(directory) as stores:
        assert stores.catch_up(at_start=True).facts == 1
        assert contents(stores) == before
        with stores.store.snapshot() as snapshot:
            assert stores.catalog.study(snapshot, kept.study_uid) is not None


async def test_a_quarantined_object_is_deleted_by_its_record(tmp_path: Path) -> None:
    directory = tmp_path / "data"

    def spoil(data) -> None:  # type: ignore[no-untyped-def]
        del data.StudyInstanceUID

    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for _ in range(2):
                assert (await send(engine, ct_slice(change=spoil))).outcome is Outcome.QUARANTINED
        record_id = next(iter(contents(stores)["quarantine"]))
        report = stores.deletions.delete(Target(quarantined=record_id), now_ns=1, **WHY)
        assert (report.quarantined, report.records) == (1, 1)
        before = contents(stores)
        assert len(before["quarantine"]) == 1
    assert reindexed(directory) == before


async def test_deleting_works_on_a_full_disk(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            result = await send(engine, ct_slice())
    full = EngineOptions(
        index=LmdbLimits(reserve_bytes=1 << 39), blobs=LocalBlobLimits(reserve_bytes=1 << 50)
    )
    with stores_in(directory, full) as stores:
        async with open_engine(stores, full, owner="test") as engine:
            with pytest.raises(EngineError):
                await send(engine, ct_slice())
            assert (await engine.delete(Target(result.study_uid), **WHY)).instances == 1
            assert await studies(engine) == set()


async def test_a_record_deleted_while_it_is_caught_up_with_does_not_come_in_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catching up has read a record when it is deleted: the plan that would take it in must fail."""
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            result = await send(engine, ct_slice())
    with stores_in(directory) as stores:
        plan, times = Indexer._plan, 0

        def planned(self, snapshot, objects, outcomes, deleted):  # type: ignore[no-untyped-def]
            nonlocal times
            times += 1
            found = plan(self, snapshot, objects, outcomes, deleted)
            if times == 1:
                delete(stores, Target(result.study_uid))
            return found

        # As if the index had not heard of it: planned as new, and deleted before the plan is committed.
        monkeypatch.setattr(Indexer, "held", lambda *_: [])
        monkeypatch.setattr(Indexer, "_plan", planned)
        stores.catch_up(at_start=False)
        assert times >= 2
        found = contents(stores)
        assert not found["study"]
        assert not found["instance"]
        with stores.store.snapshot() as snapshot:
            assert len(list(snapshot.scan(TOMBSTONE))) == 1
            assert not list(snapshot.scan(SPARE))
