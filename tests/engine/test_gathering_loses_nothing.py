"""A series in a pack is what was received, to the bit; what is deleted or moved at any moment stays so."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from benchmarks.studies import Kind, studies
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.engine.correction_requests import CorrectionPlanner, Request
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.large_storing import LargeLimits
from hounsfield.archive.engine.scrub import Scrub, ScrubLimits
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.index import gathering, locations, recovery
from hounsfield.archive.index.carrying import StoppedError
from hounsfield.archive.index.checking import Archive, Severity, check_all
from hounsfield.archive.index.checking_logs import CHECKS
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.gathering import Gatherer, GatherLimits, GatherReport
from hounsfield.archive.index.packs import HOT, CopyRow, PackRow, Packs
from hounsfield.archive.index.rewriting import Rewriter
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.archive.index.smaller_frames import SmallerLimits
from hounsfield.archive.index.tables import SEGMENT, USE
from hounsfield.archive.index.use import use_of
from hounsfield.codecs.at_rest import Encoding
from hounsfield.storage_backends import packs
from hounsfield.storage_backends.api import Batch
from support.archives import ct_slice, sample_files, store, stored_bytes, stores_in
from support.contents import contents

WHY = {"reason": "test", "actor": "tester", "now_ns": 1}
SMALL = GatherLimits(group_bytes=1 << 14, group_records=3)
NOW = 1 << 62
STUDY, SERIES = "2.25.1", "2.25.1.1"


def slice_of(number: int, **named: Any) -> bytes:
    uids = {"study_uid": STUDY, "series_uid": SERIES, "sop_uid": f"2.25.1.1.{number}"}
    return ct_slice(**{"pixels": secrets.token_bytes(4) * 128, **uids, "number": number, **named})


async def send(engine: Engine, data: bytes) -> StoreResult:
    return await store(engine, data, ExplicitVRLittleEndian)


def gather(stores: Stores, **named: Any) -> GatherReport:
    key = stores.catalog.series_key(named.pop("study", STUDY), named.pop("series", SERIES))
    named = {"quiet_before_ns": NOW, **named}
    compression = SmallerLimits(frame_bytes_min=1)
    gatherer = Gatherer(stores.indexer, named.pop("limits", SMALL), compression=compression)
    return gatherer.gather(key, **named)


def series_rows(stores: Stores) -> dict[str, InstanceRow]:
    with stores.store.snapshot() as snapshot:
        key = stores.catalog.series_key(STUDY, SERIES)
        return {row.sop_uid: row for row in stores.catalog.instances_of(snapshot, key)}


def received(stores: Stores, row: InstanceRow) -> bytes:
    return b"".join(map(bytes, stores.indexer.objects.data_set(row.location, row.stored_as)))


def check_pack(stores: Stores, segment: bytes) -> PackRow:
    """What the index says of a pack is what its bytes say."""
    row = Packs(stores.store).get(segment)
    assert row is not None
    name, key = f"segments/{segment.hex()}", stores.keyring.key("segment", segment.hex())
    size = stores.blobs.size(name)
    assert row.size == size
    end = packs.checked([stores.blobs.read(name, 0, size)], segment, key)
    assert (row.digest, row.objects) == (end.digest, end.objects)
    assert packs.end_of(stores.log, segment) == end == packs.read_end(stores.blobs, name, segment, key)
    contents = packs.read_contents(stores.blobs, name, segment, key, end)
    assert contents.row == packs.contents_row(stores.log, segment, end)
    listed = list(contents.entries)
    scanned = [one.ref for one in stores.log.scan(segment)][:-2]  # type: ignore[union-attr]
    assert [one.ref for one in listed] == scanned
    assert sum(one.ref.kind == 1 for one in listed) == row.objects
    return row


async def test_a_series_comes_into_one_pack_in_the_order_of_its_slices(tmp_path: Path) -> None:
    sent = {number: slice_of(number) for number in (7, 3, 10, 1, 2, 5)}
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            results = {number: await send(engine, data) for number, data in sent.items()}
            other = await send(engine, ct_slice())
            report = gather(stores)
            (segment,) = report.packs
            assert (report.objects, report.recompressed, report.skipped) == (6, 0, {})
            assert report.bytes_after == report.bytes_before
            row = check_pack(stores, segment)
            assert row.copies.keys() == {HOT}
            assert Packs(stores.store).of_series(row.series_key) == [(segment, row)]
            rows = series_rows(stores)
            assert {one.location.segment for one in rows.values()} == {segment}
            by_place = sorted(rows.values(), key=lambda one: one.location.offset)
            assert [int(one.sop_uid.split(".")[-1]) for one in by_place] == sorted(sent)
            for number, data in sent.items():
                assert await stored_bytes(engine, results[number]) == data
            assert await stored_bytes(engine, other)
            again = gather(stores)
            assert (again.packs, again.kept_because) == ((), "all of it is in packs")
            stores.log.start_anew()
            assert await engine.compaction.due(everything=True) == [
                one for one in stores.log.segment_ids() if one != segment
            ]


async def test_a_series_that_still_comes_is_left_alone(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, slice_of(1))
            with stores.store.snapshot() as snapshot:
                row = stores.catalog.series_by_key(snapshot, stores.catalog.series_key(STUDY, SERIES))
            assert row is not None
            report = gather(stores, quiet_before_ns=row.changed_ns)
            assert (report.packs, report.objects) == ((), 0)
            assert "still receives" in report.kept_because
            assert gather(stores, series="2.25.9").kept_because == "there is no such series"
            await send(engine, slice_of(1))  # a further version: the series is not changed by it
            (version,) = stores_versions(stores)
            assert "still receives" in gather(stores, quiet_before_ns=version.received_ns).kept_because
            assert gather(stores, quiet_before_ns=version.received_ns + 1).objects == 2


def stores_versions(stores: Stores) -> list[InstanceRow]:
    with stores.store.snapshot() as snapshot:
        return stores.catalog.versions(snapshot, stores.catalog.instance_key(STUDY, SERIES, "2.25.1.1.1"))


async def test_what_comes_later_makes_another_pack_with_its_versions(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            first = slice_of(1)
            result = await send(engine, first)
            (old,) = gather(stores).packs
            assert (await send(engine, first)).outcome is Outcome.DUPLICATE
            assert gather(stores).kept_because
            assert (await send(engine, slice_of(1))).outcome is Outcome.CONFLICT
            await send(engine, slice_of(2))
            report = gather(stores)
            (new,) = report.packs
            assert (report.objects, check_pack(stores, new).objects) == (2, 2)
            assert check_pack(stores, old).objects == 1
            key = stores.catalog.series_key(STUDY, SERIES)
            assert [segment for segment, _ in Packs(stores.store).of_series(key)] == [old, new]
            assert await stored_bytes(engine, result) == first


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_recompressed_frames_come_back_as_received(tmp_path: Path, encoding: Encoding) -> None:
    """Real objects in every transfer syntax, of many series: each is gathered, then compressed otherwise."""
    directory = tmp_path / "data"
    sent: list[tuple[StoreResult, bytes]] = []
    smaller = 0
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            (native,) = studies(Kind.CT, run=3, instances_per_series=1)
            found = [(file.data, file.transfer_syntax_uid) for file in sample_files()]
            for data, syntax in [(bytes(native.data), native.transfer_syntax_uid), *found]:
                result = await store(engine, data, syntax)
                if result.outcome is Outcome.STORED:
                    sent.append((result, data))
            for wanted in (encoding, Encoding.ZSTD, encoding):
                for study, series in {(one.study_uid, one.series_uid) for one, _ in sent}:
                    known = [segment for segment, _ in packs_of(stores, study, series)]
                    report = gather(stores, study=study, series=series, recompress=wanted, renew=known)
                    assert report.objects
                    assert not report.skipped
                    left = sum(report.not_recompressed.values())
                    assert report.recompressed + left == report.objects
                    if report.recompressed:
                        assert report.bytes_after < report.bytes_before
                        smaller += 1
                for result, data in sent:
                    assert await stored_bytes(engine, result) == data
    assert smaller >= 10
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        assert stores.reindex(lambda _done, _total: None).damaged == 0
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for result, data in sent:
                assert await stored_bytes(engine, result) == data


def packs_of(stores: Stores, study: str, series: str) -> list[tuple[bytes, PackRow]]:
    return Packs(stores.store).of_series(stores.catalog.series_key(study, series))


def changed_before_the_switch(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object], **named: Any
) -> GatherReport:
    """Gather, and have something happen between the copy and the switch of rows."""
    switch = Gatherer._switch

    def late(self: Gatherer, *args: Any) -> None:
        change()
        switch(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Gatherer, "_switch", late)
        return gather(stores, **named)


def dead_in(stores: Stores, segment: bytes) -> int:
    with stores.store.snapshot() as snapshot:
        return use_of(snapshot, Batch(), segment).dead_records


async def fill(stores: Stores, count: int = 5) -> dict[str, bytes]:
    """A series, by its SOP Instance UIDs."""
    sent = {}
    async with open_engine(stores, EngineOptions(), owner="test") as engine:
        for number in range(count):
            data = slice_of(number)
            result = await send(engine, data)
            sent[result.sop_instance_uid] = data
    stores.log.start_anew()
    return sent


async def test_what_is_deleted_meanwhile_stays_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        sent = await fill(stores)
        target = Target(STUDY, SERIES, ("2.25.1.1.2",))
        report = changed_before_the_switch(
            stores, monkeypatch, lambda: stores.deletions.delete(target, **WHY), recompress=Encoding.ZSTD
        )
        (segment,) = report.packs
        assert report.recompressed == 5
        assert dead_in(stores, segment) == 1
        (old,) = [one for one in stores.log.segment_ids() if one != segment]
        assert dead_in(stores, old) == 5
        assert sorted(series_rows(stores)) == sorted(set(sent) - {"2.25.1.1.2"})
        before = contents(stores)
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _total: None)
        after = contents(stores)
        assert after == before
        assert {sop: received(stores, row) for sop, row in series_rows(stores).items()} == {
            sop: data for sop, data in sent.items() if sop != "2.25.1.1.2"
        }


async def test_what_compaction_moves_meanwhile_is_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stores_in(tmp_path / "data") as stores:
        sent = await fill(stores)
        (old,) = stores.log.segment_ids()

        def compacted() -> None:
            assert Rewriter(stores.indexer).rewrite_segment(old).removed

        (segment,) = changed_before_the_switch(stores, monkeypatch, compacted).packs
        assert {row.location.segment for row in series_rows(stores).values()} == {segment}
        assert {sop: received(stores, row) for sop, row in series_rows(stores).items()} == sent
        (moved,) = set(stores.log.segment_ids()) - {segment}
        assert dead_in(stores, moved) == 5
        assert Rewriter(stores.indexer).rewrite_segment(moved).removed
        assert stores.log.segment_ids() == [segment]
        with stores.store.snapshot() as snapshot:
            assert not list(snapshot.scan(USE))


async def test_a_record_that_vanishes_while_it_is_read_is_found_at_its_new_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stores_in(tmp_path / "data") as stores:
        sent = await fill(stores)
        (old,) = stores.log.segment_ids()
        opened, times = Gatherer._open, 0

        def late(self: Gatherer, *args: Any) -> Any:
            nonlocal times
            times += 1
            if times == 3:
                assert Rewriter(stores.indexer).rewrite_segment(old).removed
                stores.keyring.forget_destroyed("segment")
                stores.blobs.release_deleted()  # type: ignore[attr-defined]
            return opened(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Gatherer, "_open", late)
            report = gather(stores)
        assert (report.objects, report.skipped) == (5, {})
        assert {sop: received(stores, row) for sop, row in series_rows(stores).items()} == sent


async def test_what_is_gone_while_it_is_read_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stores_in(tmp_path / "data") as stores:
        await fill(stores)
        (old,) = stores.log.segment_ids()
        opened, times = Gatherer._open, 0

        def late(self: Gatherer, *args: Any) -> Any:
            nonlocal times
            times += 1
            if times == 1:
                stores.deletions.delete(Target(STUDY, SERIES, ("2.25.1.1.0",)), **WHY)
                assert Rewriter(stores.indexer).rewrite_segment(old).removed
                stores.keyring.forget_destroyed("segment")
                stores.blobs.release_deleted()  # type: ignore[attr-defined]
            return opened(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Gatherer, "_open", late)
            report = gather(stores)
        assert report.objects == 4
        assert report.skipped == {gathering.CHANGED: 1}


async def test_what_is_moved_meanwhile_is_gathered_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        sent = await fill(stores)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, ct_slice(study_uid="2.25.2", series_uid="2.25.2.1", patient_id="B"))

        def moved() -> None:
            make(stores, "move-series", study=STUDY, series=(SERIES,), to_study="2.25.2")

        report = changed_before_the_switch(stores, monkeypatch, moved, recompress=Encoding.ZSTD)
        assert report.objects == 5
        assert not series_rows(stores)
        (segment,) = report.packs

        def there() -> dict[str, InstanceRow]:
            with stores.store.snapshot() as snapshot:
                key = stores.catalog.series_key("2.25.2", SERIES)
                return {row.sop_uid: row for row in stores.catalog.instances_of(snapshot, key)}

        assert {row.location.segment for row in there().values()} == {segment}
        assert {sop: received(stores, row) for sop, row in there().items()} == sent
        again = gather(stores, study="2.25.2")
        (own,) = again.packs
        assert again.objects == 5
        assert {row.location.segment for row in there().values()} == {own}
        assert dead_in(stores, segment) == 5
        assert {sop: received(stores, row) for sop, row in there().items()} == sent
        before = contents(stores)
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _total: None)
        after = contents(stores)
        for name in ("use", "tombstone"):
            del before[name], after[name]
        assert after == before


def make(stores: Stores, kind: str, **what: Any) -> None:
    request = Request(kind=kind, actor="tester", reason="it was wrong", **what)
    planner = CorrectionPlanner(stores.catalog, stores.corrections)
    stores.corrections.make(lambda snapshot, number: planner.plan(snapshot, number, request, NOW - 1))


async def test_a_pack_of_which_something_was_deleted_is_gathered_anew_and_erased(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        sent = await fill(stores)
        (old,) = gather(stores).packs
        gone = "2.25.1.1.3"
        stores.deletions.delete(Target(STUDY, SERIES, (gone,)), **WHY)
        rewriter = Rewriter(stores.indexer)
        assert "it is a pack" in rewriter.rewrite_segment(old).kept_because
        report = gather(stores, renew={old})
        (new,) = report.packs
        assert report.objects == 4
        Packs(stores.store).name_copy(old, "cold", CopyRow(1))
        kept = rewriter.rewrite_segment(old)
        assert "other tiers" in kept.kept_because
        assert not kept.removed
        assert rewriter.remove_emptied() == 0
        Packs(stores.store).unname_copy(old, "cold")
        assert rewriter.remove_emptied() == 1
        assert old not in stores.log.segment_ids()
        assert old.hex() not in stores.keyring.key_ids("segment")
        assert [segment for segment, _ in packs_of(stores, STUDY, SERIES)] == [new]
        with stores.store.snapshot() as snapshot:
            assert snapshot.get(SEGMENT, old) is None
            assert snapshot.get(USE, old) is None
        expected = {sop: data for sop, data in sent.items() if sop != gone}
        assert {sop: received(stores, row) for sop, row in series_rows(stores).items()} == expected
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _total: None)
        assert {sop: received(stores, row) for sop, row in series_rows(stores).items()} == expected
        assert {row.location.segment for row in series_rows(stores).values()} == {new}


async def test_a_pack_of_which_nothing_is_needed_is_compacted(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        await fill(stores)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            (segment,) = gather(stores).packs
            await engine.delete(Target(STUDY), reason="test", actor="tester")
            for one in await engine.compaction.due(everything=True):
                report = await engine.compaction.rewrite(one, throttled=False)
                assert not report.kept_because
            await engine.compaction.finish()
            assert segment not in stores.log.segment_ids()
            assert stores.log.segment_ids() == []
            assert Packs(stores.store).get(segment) is None


async def test_what_remains_of_a_pack_is_gathered_anew_by_compaction(tmp_path: Path) -> None:
    """Deleted from it, moved away in it, and late for it: only what it still has of its series is a pack."""
    with stores_in(tmp_path / "data") as stores:
        sent = await fill(stores)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, ct_slice(study_uid="2.25.2", series_uid="2.25.2.1"))
            (old,) = gather(stores).packs
            Packs(stores.store).name_copy(old, "cold", CopyRow(1))
            sent["2.25.1.1.9"] = slice_of(9)
            await send(engine, sent["2.25.1.1.9"])
            await engine.delete(Target(STUDY, SERIES, ("2.25.1.1.3",)), reason="test", actor="tester")
            del sent["2.25.1.1.3"]
            make(stores, "split", study=STUDY, instances=("2.25.1.1.0", "2.25.1.1.1"), to_study="2.25.2")
            assert old in await engine.compaction.due(everything=True)
            report = await engine.compaction.rewrite(old, throttled=False)
            assert not report.kept_because
            await engine.compaction.finish()
            assert old in stores.log.segment_ids()
            with stores.store.snapshot() as snapshot:
                use = use_of(snapshot, Batch(), old)
            assert (use.emptied, use.dead_records) == (True, 5), "who has a copy is told that nobody needs it"
            Packs(stores.store).unname_copy(old, "cold")
            await engine.compaction.finish()
            assert old not in stores.log.segment_ids()
            ((new, row),) = packs_of(stores, STUDY, SERIES)
            assert row.objects == 2
            check_pack(stores, new)
            places = {sop: one.location.segment for sop, one in series_rows(stores).items()}
            assert {sop for sop, segment in places.items() if segment == new} == {"2.25.1.1.2", "2.25.1.1.4"}
            for _, rows in locations.walk(stores.store, stores.catalog):
                for one in rows:
                    assert isinstance(one.row, InstanceRow)
                    if one.row.sop_uid in sent:
                        assert received(stores, one.row) == sent.pop(one.row.sop_uid)
            assert not sent


async def test_what_does_not_open_stays_where_it_is_and_the_rest_is_gathered(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        sent = await fill(stores)
        place = series_rows(stores)["2.25.1.1.2"].location
        part = place.frame_part(1)
    path = directory / "segments" / place.segment.hex()
    raw = bytearray(path.read_bytes())
    raw[part.offset + 3] ^= 1
    path.write_bytes(raw)
    with stores_in(directory) as stores:
        report = gather(stores, recompress=Encoding.HTJ2K)
        assert (report.objects, report.skipped) == (4, {gathering.DAMAGED: 1})
        check_pack(stores, report.packs[0])
        rows = series_rows(stores)
        assert rows.pop("2.25.1.1.2").location == place
        assert {sop: received(stores, row) for sop, row in rows.items()} == {sop: sent[sop] for sop in rows}
        assert gather(stores).kept_because == "nothing of it can be gathered"


async def test_who_is_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        sent = await fill(stores)
        segments = stores.log.segment_ids()
        asked = 0
        for stop in range(1, 100):
            asked = 0

            def pace(_: int, stop: int = stop) -> None:
                nonlocal asked
                asked += 1
                if asked == stop:
                    raise StoppedError

            try:
                report = gather(stores, pace=pace)
            except StoppedError:
                assert stores.log.segment_ids() == segments
                assert set(stores.keyring.key_ids("segment")) == {
                    one.hex() for one in (*segments, *stores.ledger.segment_ids())
                }
                continue
            break
        assert stop > 5
        assert report.objects == 5
        assert {sop: received(stores, row) for sop, row in series_rows(stores).items()} == sent


async def test_large_objects_are_packs_by_themselves(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    options = EngineOptions(ingest=IngestLimits(stream_bytes_min=20_000, large=LargeLimits(piece_bytes=4096)))
    with stores_in(directory, options) as stores:
        async with open_engine(stores, options, owner="test") as engine:

            def large(data) -> None:  # type: ignore[no-untyped-def]
                data.Rows = data.Columns = 64
                data.NumberOfFrames = 3
                data.PixelData = bytes(range(256)) * 96

            sent = {}
            for number in range(3):
                data = slice_of(number, change=large if number else None)
                sent[(await send(engine, data)).sop_instance_uid] = data
            assert [row.location.stream is None for _, row in sorted(series_rows(stores).items())] == [
                True, False, False,
            ]  # fmt: skip
            before = stores.log.segment_ids()
            report = gather(stores, recompress=Encoding.ZSTD)
            assert (len(report.packs), report.objects) == (3, 3)
            assert report.not_recompressed[gathering.IN_PIECES] == 2
            for segment in report.packs:
                assert check_pack(stores, segment).objects == 1
            rows = series_rows(stores)
            assert {row.location.segment for row in rows.values()} == set(report.packs)
            assert {sop: received(stores, row) for sop, row in rows.items()} == sent
            stores.log.start_anew()
            for segment in before:
                assert Rewriter(stores.indexer).rewrite_segment(segment).removed
            assert {sop: received(stores, row) for sop, row in rows.items()} == sent
        found = contents(stores)
    shutil.rmtree(directory / "index")
    with stores_in(directory, options) as stores:
        stores.reindex(lambda _done, _total: None)
        assert contents(stores) == found
        with stores.store.snapshot() as snapshot:
            rows = {segment: row for page in Packs(stores.store).pages() for segment, row in page}
            assert set(rows) == set(report.packs)
            assert {row.digest for row in rows.values()} == {
                check_pack(stores, segment).digest for segment in report.packs
            }
            assert snapshot.get(USE, report.packs[0]) is None


@pytest.mark.parametrize("killed", [False, True], ids=["lost", "killed in a reindex"])
async def test_packs_are_found_again_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """The index is gone, and nobody asks for a reindex; or a reindex was killed before its first segment."""
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        sent = await fill(stores)
        packs_made = gather(stores, recompress=Encoding.ZSTD).packs
        gather(stores, renew=packs_made[:1])
        before = contents(stores)
        known = packs_of(stores, STUDY, SERIES)
        assert len(known) == 2
    shutil.rmtree(directory / "index")
    if killed:
        with stores_in(directory) as stores, monkeypatch.context() as patch:
            patch.setattr(recovery, "given_up_bytes", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                stores.reindex(lambda _done, _total: None)
    with stores_in(directory) as stores:
        assert stores.catch_up(at_start=True).damaged == 0
        assert contents(stores) == before
        found = packs_of(stores, STUDY, SERIES)
        assert [(segment, row.digest, row.size, row.made_ns) for segment, row in found] == [
            (segment, row.digest, row.size, row.made_ns) for segment, row in known
        ]
        assert {sop: received(stores, row) for sop, row in series_rows(stores).items()} == sent


async def test_a_long_series_makes_several_packs(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        sent = await fill(stores, 10)
        length = stores.indexer.objects.stored_bytes(series_rows(stores)["2.25.1.1.0"].location)
        limits = GatherLimits(group_bytes=1 << 14, group_records=3, pack_bytes=4 * length + 100)
        calls = 0

        def pace(_: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 9:
                raise StoppedError

        with pytest.raises(StoppedError):
            gather(stores, limits=limits, pace=pace)
        ((first, row),) = packs_of(stores, STUDY, SERIES)
        assert row.objects == 4, "a pack that is whole stays"
        report = gather(stores, limits=limits)
        assert (len(report.packs), report.objects) == (2, 6)
        assert [check_pack(stores, segment).objects for segment in (first, *report.packs)] == [4, 4, 2]
        assert {sop: received(stores, row) for sop, row in series_rows(stores).items()} == sent
        tiny = GatherLimits(pack_bytes=1)
        assert len(gather(stores, limits=tiny, renew={first, *report.packs}).packs) == 10


async def test_readers_beside_a_gather_get_the_same_bytes(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        sent = {}
        async with open_engine(stores, EngineOptions(), owner="test") as engine:

            def larger(data) -> None:  # type: ignore[no-untyped-def]
                data.Rows = data.Columns = 64
                data.PixelData = bytes(range(256)) * 32

            for number in range(4):
                data = slice_of(number, change=larger)
                sent[(await send(engine, data)).sop_instance_uid] = data
            done = threading.Event()

            def work() -> None:
                try:
                    for encoding in (None, Encoding.ZSTD, Encoding.HTJ2K, Encoding.JPEG_XL, Encoding.ZSTD):
                        known = {segment for segment, _ in packs_of(stores, STUDY, SERIES)}
                        assert gather(stores, recompress=encoding, renew=known).objects == 4
                        for segment in known:
                            assert Rewriter(stores.indexer).rewrite_segment(segment).removed
                        stores.keyring.forget_destroyed("segment")
                        stores.blobs.release_deleted()  # type: ignore[attr-defined]
                finally:
                    done.set()

            async def read(turn: int) -> None:
                while not done.is_set():
                    sop, data = list(sent.items())[turn % 4]
                    turn += 1
                    frame = await engine.frame(STUDY, SERIES, sop, 1)
                    assert bytes(frame.data) == data[-8192:]
                    (instance,) = await engine.instances(STUDY, SERIES, sop)
                    assert b"".join([bytes(piece) async for piece in engine.dataset(instance)]) == data

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, 0)
                nursery.start_soon(read, 1)
                await trio.to_thread.run_sync(work)
            assert series_rows(stores)["2.25.1.1.0"].stored_as == "zstd:8192"
            (native,) = {Layout(row.layout) for row in series_rows(stores).values()}
            assert native is Layout.NATIVE


async def test_packs_are_neither_damage_nor_unknown_to_checks_and_scrub(tmp_path: Path) -> None:
    options = EngineOptions(ingest=IngestLimits(stream_bytes_min=20_000, large=LargeLimits(piece_bytes=4096)))

    def large(data) -> None:  # type: ignore[no-untyped-def]
        data.Rows = data.Columns = 128
        data.PixelData = bytes(range(256)) * 128

    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            for number in range(6):
                await send(engine, slice_of(number, change=large if number == 5 else None))
            await send(engine, slice_of(1))
            assert len(gather(stores, recompress=Encoding.ZSTD).packs) == 2
            stores.deletions.delete(Target(STUDY, SERIES, ("2.25.1.1.2",)), **WHY)
        stores.log.start_anew()
        for _ in range(2):
            stores.catch_up(at_start=False)
            archive = Archive(
                store=stores.store, keyring=stores.keyring, catalog=stores.catalog, sealer=stores.sealer,
                hashes=stores.hashes, journal=stores.journal, log=stores.log, ledger=stores.ledger,
                quick=False, progress=lambda _what, _done, _total: None,
            )  # fmt: skip
            wrong = [one for one in check_all(archive, CHECKS) if one.severity is not Severity.NOTE]
            assert not wrong
            scrub = Scrub.of(stores, Gate(), ScrubLimits(bytes_per_second=0, fresh_s=0.0), owner="test")
            await scrub.start()
            await scrub.now()
            status = await scrub.status()
            assert (status["damaged"], status["suspects"]) == ([], 0)
            for segment in stores.log.segment_ids():
                Rewriter(stores.indexer).rewrite_segment(segment)
        assert len(series_rows(stores)) == 5
