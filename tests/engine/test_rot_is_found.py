"""The scrub finds what rotted, says whose it is, forgets what nobody was promised, repairs from a copy."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.errors import DamagedError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.scrub import Scrub, ScrubLimits
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import StoreResult
from hounsfield.archive.index import locations, suspects
from hounsfield.archive.index.rows import InstanceRow, Location
from hounsfield.storage_backends.segment_appending import RecordIn, SegmentLimits
from hounsfield.storage_backends.segment_format import HEADER_BYTES
from support.archives import ct_slice, open_stores, store, stored_bytes, write_master_key

EXPLICIT = "1.2.840.10008.1.2.1"
DAY = 86_400 * 1_000_000_000
FAST = ScrubLimits(bytes_per_second=0, fresh_s=0.0)
SMALL = EngineOptions(segments=SegmentLimits(segment_bytes=16 << 10), direct_writes=False)


class Archive:
    """A filled data directory; opened again, so that its segments are closed."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.key = write_master_key(folder / "key")
        self.sent: dict[str, tuple[StoreResult, bytes]] = {}

    async def fill(self, count: int) -> None:
        stores = open_stores(self.data, self.key, SMALL)
        async with open_engine(stores, SMALL, owner="a test") as engine:
            for number in range(count):
                data = ct_slice(number=number, series_uid="1.2.3.4", study_uid="1.2.3")
                result = await store(engine, data, EXPLICIT)
                self.sent[result.sop_instance_uid] = (result, data)
            await engine.commit_fact("note", "one", {"text": "kept"}, 1)
        stores.close()

    def open(self) -> Stores:
        stores = open_stores(self.data, self.key, SMALL)
        stores.catch_up(at_start=True)
        return stores


@pytest.fixture
async def archive(tmp_path: Path) -> Archive:
    made = Archive(tmp_path)
    await made.fill(12)
    return made


def _scrub(stores: Stores, limits: ScrubLimits = FAST) -> Scrub:
    return Scrub.of(stores, Gate(), limits, owner="a test")


def _places(stores: Stores) -> dict[str, Location]:
    found = {}
    for _, rows in locations.walk(stores.store, stores.catalog):
        for one in rows:
            assert isinstance(one.row, InstanceRow)
            found[one.row.sop_uid] = one.row.location
    return found


def _flip(archive: Archive, location: Location, at: int) -> None:
    path = archive.data / "segments" / location.segment.hex()
    with path.open("r+b") as file:
        file.seek(location.offset + at)
        byte = file.read(1)
        file.seek(location.offset + at)
        file.write(bytes([byte[0] ^ 0x40]))


async def test_a_whole_archive_has_no_damage(archive: Archive) -> None:
    stores = archive.open()
    scrub = _scrub(stores)
    await scrub.start()
    await scrub.now()
    status = await scrub.status()
    assert status["verified"] == status["segments"] > 2
    assert (status["damaged"], status["suspects"], status["requested"]) == ([], 0, False)
    assert status["records"] == scrub.figures.records >= 13
    assert scrub.figures.places == 12
    assert status["under_way"] == []
    stores.close()


#: Where a record is hurt, from its beginning: framing, its id, its part table, its row, its pixels.
HURT = {"marker": 0, "id": 10, "table": 50, "pixels": -40}
ROW = 100


@pytest.mark.parametrize("where", HURT)
async def test_damage_is_found_flagged_listed_and_announced(archive: Archive, where: str) -> None:
    stores = archive.open()
    places = _places(stores)
    victim = sorted(places)[5]
    at = HURT[where] if HURT[where] >= 0 else places[victim].ref().length + HURT[where]
    _flip(archive, places[victim], at)
    scrub = _scrub(stores)
    await scrub.start()
    await scrub.now()
    assert scrub.figures.damaged == 1
    if where == "pixels":
        (damaged,) = (await scrub.status())["damaged"]
        assert damaged["segment"] == places[victim].segment.hex()
        assert damaged["objects"] == 1
    else:  # the index knows where the parts lie, and they open: written anew from themselves
        assert (await scrub.status())["damaged"] == []
        assert scrub.figures.repaired == 1
        assert _places(stores)[victim].segment != places[victim].segment
    with stores.store.snapshot() as snapshot:
        flags = {
            one.row.sop_uid: one.row.flags
            for _, rows in locations.walk(stores.store, stores.catalog)
            for one in rows
            if isinstance(one.row, InstanceRow)
        }
        events = [event for _, event in stores.journal.read(snapshot, 0, 1000)]
    flagged = [uid for uid, flag in flags.items() if suspects.FLAG_DAMAGED in flag]
    assert flagged == ([victim] if where == "pixels" else [])
    announced = [event for event in events if event.kind == suspects.EVENT_DAMAGED]
    assert len(announced) == 1
    assert announced[0].body["segment"] == places[victim].segment
    # Again: the same damage is not found a second time.
    await scrub.start()
    await scrub.now()
    assert scrub.figures.damaged == 1
    async with open_engine(stores, SMALL, owner="reader") as engine:
        for uid, (result, data) in archive.sent.items():
            if uid == victim and where == "pixels":
                with pytest.raises(DamagedError):
                    await stored_bytes(engine, result)
            else:
                assert await stored_bytes(engine, result) == data
    stores.close()


async def test_a_row_that_rots_is_the_objects_damage(archive: Archive) -> None:
    """The object is still served, since the index has its row too; a reindex would not find it."""
    stores = archive.open()
    places = _places(stores)
    victim = sorted(places)[5]
    _flip(archive, places[victim], ROW)
    scrub = _scrub(stores)
    await scrub.start()
    await scrub.now()
    (damaged,) = (await scrub.status())["damaged"]
    assert damaged["reason"] == "row does not open"
    async with open_engine(stores, SMALL, owner="reader") as engine:
        for result, data in archive.sent.values():
            assert await stored_bytes(engine, result) == data
    stores.close()


async def test_a_missing_segment_is_damage_of_each_object_in_it(archive: Archive) -> None:
    stores = archive.open()
    places = _places(stores)
    lost = places[min(places)].segment
    stores.close()
    (archive.data / "segments" / lost.hex()).unlink()
    stores = archive.open()
    scrub = _scrub(stores)
    await scrub.start()
    await scrub.now()
    status = await scrub.status()
    expected = sum(place.segment == lost for place in places.values())
    assert sum(one["objects"] for one in status["damaged"]) == expected > 0
    assert {one["reason"] for one in status["damaged"]} == {"the segment is missing"}
    stores.close()


async def test_what_was_never_acknowledged_is_no_damage(archive: Archive) -> None:
    """A record that no row points to and that does not open: the rest of an append that a crash cut."""
    stores = archive.open()
    places = _places(stores)
    with stores.store.snapshot():
        pass
    (ref,) = stores.log.append([RecordIn(1, [b"row", b"header", bytes(5000), b""])])
    stores.log.close()
    path = archive.data / "segments" / ref.segment.hex()
    raw = bytearray(path.read_bytes())
    raw[ref.offset + 3000] ^= 1
    path.write_bytes(raw[: ref.offset + ref.length])
    scrub = _scrub(stores)
    await scrub.start()
    await scrub.now()
    first = await scrub.status()
    assert first["damaged"] == []
    await trio.sleep(0)
    await scrub.start()
    await scrub.now()
    assert (await scrub.status())["suspects"] in {0, 1}
    assert len(places) == 12
    stores.close()


async def test_the_ledger_is_verified_too(archive: Archive) -> None:
    stores = archive.open()
    (segment,) = stores.ledger.segment_ids()
    path = archive.data / "ledger" / segment.hex()
    raw = bytearray(path.read_bytes())
    raw[8192 + 70] ^= 1
    path.write_bytes(raw)
    scrub = _scrub(stores)
    await scrub.start()
    await scrub.now()
    (damaged,) = (await scrub.status())["damaged"]
    assert damaged["ledger"]
    stores.close()


async def test_it_goes_on_where_the_leader_before_stopped(archive: Archive) -> None:
    stores = archive.open()
    first, second = _scrub(stores)._scrubber, _scrub(stores)._scrubber
    segment = stores.log.segment_ids()[0]
    now = time.time_ns()
    step = first.verify(segment, 1, now - 1000)
    assert step.more
    first._persist(first._under)  # type: ignore[arg-type]
    assert second.rows()[segment].records == 1
    records = 1
    while second.verify(segment, 1, now).more:
        records += 1
    row = second.rows()[segment]
    assert not row.under_way
    assert row.done_ns == now
    assert row.records >= records
    assert segment not in second.due(now + DAY, 30 * DAY, 0, None)
    assert segment in second.due(now + 30 * DAY, 30 * DAY, 0, None)
    stores.close()


async def test_only_what_is_due_is_read(archive: Archive) -> None:
    stores = archive.open()
    off = _scrub(stores, ScrubLimits(interval_s=0.0, bytes_per_second=0))
    await off.now()
    assert off.figures.records == 0
    fresh = _scrub(stores, ScrubLimits(bytes_per_second=0))
    await fresh.now()
    assert fresh.figures.records == 0  # written a moment ago
    one = stores.log.segment_ids()[0]
    await off.start((one,))
    await off.now()
    assert [segment for segment, row in off._scrubber.rows().items() if row.done_ns] == [one]
    stores.close()


async def test_it_reads_no_faster_than_it_may(archive: Archive, autojump_clock: Any) -> None:
    stores = archive.open()
    total = sum(stores.log.size(segment) - HEADER_BYTES for segment in stores.log.segment_ids())
    scrub = _scrub(stores, ScrubLimits(bytes_per_second=1000, fresh_s=0.0))
    began = trio.current_time()
    await scrub.now()
    assert trio.current_time() - began >= scrub.figures.bytes / 1000
    assert scrub.figures.bytes >= total
    stores.close()


async def test_one_of_two_scrubs(archive: Archive) -> None:
    stores = archive.open()
    one = Scrub.of(stores, Gate(), FAST, owner="one")
    other = Scrub.of(stores, Gate(), FAST, owner="other")
    await one.now()
    await other.start()
    await other.now()
    assert other.figures.records == 0
    await one.now()
    assert one.figures.records > 13
    stores.close()


async def test_segments_that_vanish_meanwhile_are_forgotten(archive: Archive) -> None:
    stores = archive.open()
    scrub = _scrub(stores)
    await scrub.start()
    await scrub.now()
    gone = stores.ledger.segment_ids()[0]
    stores.keyring.destroy_key("segment", gone.hex())
    stores.blobs.delete(f"ledger/{gone.hex()}")
    assert not scrub._scrubber.verify(gone, 1, 1).more
    await scrub.start()
    await scrub.now()
    assert gone not in scrub._scrubber.rows()
    assert (await scrub.status())["damaged"] == []
    stores.close()


@pytest.mark.parametrize("where", HURT)
async def test_damage_is_repaired_from_a_copy(archive: Archive, tmp_path: Path, where: str) -> None:
    copy = tmp_path / "copy"
    for folder in ("segments", "ledger"):
        shutil.copytree(archive.data / folder, copy / folder)
    stores = archive.open()
    places = _places(stores)
    victim = sorted(places)[5]
    at = HURT[where] if HURT[where] >= 0 else places[victim].ref().length + HURT[where]
    _flip(archive, places[victim], at)
    (segment,) = stores.ledger.segment_ids()
    path = archive.data / "ledger" / segment.hex()
    raw = bytearray(path.read_bytes())
    raw[8192 + 70] ^= 1
    path.write_bytes(raw)
    limits = ScrubLimits(bytes_per_second=0, fresh_s=0.0, copies=(str(tmp_path / "absent"), str(copy)))
    scrub = _scrub(stores, limits)
    await scrub.start()
    await scrub.now()
    assert scrub.figures.repaired == 2
    status = await scrub.status()
    assert status["damaged"] == []
    moved = _places(stores)[victim]
    assert moved.record_id == places[victim].record_id
    assert moved.segment != places[victim].segment
    assert all(_places(stores)[uid] == place for uid, place in places.items() if uid != victim)
    async with open_engine(stores, SMALL, owner="reader") as engine:
        for result, data in archive.sent.values():
            assert await stored_bytes(engine, result) == data
    stores.close()
    # And a reindex, which meets the damaged record and the repaired one, gives the same.
    shutil.rmtree(archive.data / "index")
    stores = open_stores(archive.data, archive.key, SMALL)
    stores.reindex(lambda *_: None)
    async with open_engine(stores, SMALL, owner="reader") as engine:
        for result, data in archive.sent.values():
            assert await stored_bytes(engine, result) == data
    with stores.store.snapshot() as snapshot:
        assert list(stores.journal.state(snapshot, "note")) == [{"text": "kept"}]
    stores.close()


async def test_a_segment_that_was_put_back_is_no_damage(archive: Archive) -> None:
    stores = archive.open()
    places = _places(stores)
    victim = sorted(places)[5]
    at = places[victim].ref().length - 40
    _flip(archive, places[victim], at)
    scrub = _scrub(stores)
    await scrub.start()
    await scrub.now()
    assert len((await scrub.status())["damaged"]) == 1
    _flip(archive, places[victim], at)
    await scrub.start()
    await scrub.now()
    assert (await scrub.status())["damaged"] == []
    _, rows = next(locations.walk(stores.store, stores.catalog))
    assert not [one for one in rows if one.row is not None and suspects.FLAG_DAMAGED in one.row.flags]  # type: ignore[union-attr]
    stores.close()


async def test_without_a_good_copy_nothing_is_changed(archive: Archive, tmp_path: Path) -> None:
    stores = archive.open()
    places = _places(stores)
    victim = sorted(places)[5]
    _flip(archive, places[victim], places[victim].ref().length - 40)
    shutil.copytree(archive.data / "segments", tmp_path / "copy" / "segments")  # as damaged as the original
    scrub = _scrub(stores, ScrubLimits(bytes_per_second=0, fresh_s=0.0, copies=(str(tmp_path / "copy"),)))
    await scrub.start()
    await scrub.now()
    assert scrub.figures.repaired == 0
    assert len((await scrub.status())["damaged"]) == 1
    assert _places(stores)[victim] == places[victim]
    stores.close()


async def test_it_runs_in_the_engine_beside_everything_else(archive: Archive, autojump_clock: Any) -> None:
    stores = archive.open()
    options = EngineOptions(segments=SMALL.segments, direct_writes=False, scrub=FAST)
    async with open_engine(stores, options, owner="worker 0") as engine:
        await engine.scrub.start()
        while (await engine.scrub.status())["requested"]:
            await trio.sleep(1)
        assert engine.scrub.figures.records >= 13
        result = await store(engine, ct_slice(), EXPLICIT)
        assert await stored_bytes(engine, result)
    stores.close()
