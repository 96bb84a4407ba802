"""The journal misses nothing, keeps its order, and one worker at a time announces stable studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio
import trio.testing
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.quiet import QuietStudies
from hounsfield.archive.engine.stable import EVENT_STABLE, announcing_stable_studies
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import leases
from hounsfield.archive.index.indexing import EVENT_CONFLICT, EVENT_QUARANTINED, EVENT_STORED
from hounsfield.archive.index.rows import Event
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import StoreFullError
from support.archives import ct_slice, store, stores_in

_S = 1_000_000_000


def events(stores: Stores, after: int = 0) -> list[tuple[int, Event]]:
    with stores.store.snapshot() as snapshot:
        return stores.journal.read(snapshot, after, 10_000)


async def test_every_commit_leaves_its_events_in_order(tmp_path: Path) -> None:
    uids = {"study_uid": "2.25.1", "series_uid": "2.25.2", "sop_uid": "2.25.3"}

    def without_uid(data):  # type: ignore[no-untyped-def]
        del data.SOPInstanceUID

    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for data in (ct_slice(**uids), ct_slice(**uids), ct_slice(change=without_uid)):
                await store(engine, data, ExplicitVRLittleEndian)
            await engine.commit_fact("ae", "A", {"title": "A"}, 5)
        found = events(stores)
        assert [sequence for sequence, _ in found] == [1, 2, 3, 4]
        assert [event.kind for _, event in found] == [EVENT_STORED, EVENT_CONFLICT, EVENT_QUARANTINED, "ae"]
        assert found[0][1].body["instances"][0][:2] == ["2.25.2", "2.25.3"]
        assert [event.fact for _, event in found] == [False, False, False, True]
        assert [sequence for sequence, _ in events(stores, after=2)] == [3, 4]


async def test_a_duplicate_leaves_no_event(tmp_path: Path) -> None:
    data = ct_slice()
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for _ in range(3):
                await store(engine, data, ExplicitVRLittleEndian)
        assert len(events(stores)) == 1


def test_a_cursor_moves_with_what_was_done(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        with stores.store.snapshot() as snapshot:
            assert stores.journal.cursor(snapshot, "someone") == 0
        batch = Batch()
        stores.journal.move_cursor(batch, "someone", 17)
        stores.store.commit(batch)
        with stores.store.snapshot() as snapshot:
            assert stores.journal.cursor(snapshot, "someone") == 17
            assert stores.journal.cursor(snapshot, "another") == 0


def test_a_lease_is_one_owners_until_it_runs_out(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        hold = leases.hold
        assert hold(stores.store, "work", "a", 0, 10 * _S)
        assert not hold(stores.store, "work", "b", 9 * _S, 10 * _S)
        assert hold(stores.store, "work", "a", 9 * _S, 10 * _S)
        assert not hold(stores.store, "work", "b", 18 * _S, 10 * _S)
        assert hold(stores.store, "work", "b", 20 * _S, 10 * _S)
        leases.give_up(stores.store, "work", "a")  # not a's any more: nothing happens
        assert not hold(stores.store, "work", "a", 21 * _S, 10 * _S)
        leases.give_up(stores.store, "work", "b")
        assert hold(stores.store, "work", "a", 21 * _S, 10 * _S)


def stable(stores: Stores, owner: str, store: KeyValueStore | None = None) -> QuietStudies:
    consumer = announcing_stable_studies(60.0)
    return QuietStudies(store or stores.store, stores.journal, stores.sealer, Gate(), consumer, owner=owner)


def announced(stores: Stores) -> list[str]:
    return [event.body["study"] for _, event in events(stores) if event.kind == EVENT_STABLE]


async def test_a_quiet_study_is_announced_once_and_a_busy_one_is_not(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        # The engine's own watcher would hold the lease: only what it stores is wanted here.
        async with open_engine(stores, EngineOptions(study_stable_s=1e6), owner="test") as engine:
            await store(engine, ct_slice(study_uid="2.25.1"), ExplicitVRLittleEndian)
            await store(engine, ct_slice(study_uid="2.25.2"), ExplicitVRLittleEndian)
        watcher = stable(stores, "one")
        await watcher.step(100.0)
        await watcher.step(159.0)
        assert announced(stores) == []
        async with open_engine(stores, EngineOptions(study_stable_s=1e6), owner="one") as engine:
            await store(engine, ct_slice(study_uid="2.25.2"), ExplicitVRLittleEndian)
        watcher = _continued(watcher, stores)
        await watcher.step(160.0)
        assert announced(stores) == ["2.25.1"]
        with stores.store.snapshot() as snapshot:
            # The first event of the study that is still open is yet to come for a successor.
            assert stores.journal.cursor(snapshot, "study-stable") == 1
        await watcher.step(400.0)
        assert announced(stores) == ["2.25.1", "2.25.2"]
        await watcher.step(900.0)
        assert announced(stores) == ["2.25.1", "2.25.2"]


def _continued(watcher: QuietStudies, stores: Stores) -> QuietStudies:
    """The lease may have been given up by the engine that stored: take it again, keep the memory."""
    leases.give_up(stores.store, "study-stable", "one")
    return watcher


async def test_a_successor_takes_over_with_nothing_lost(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(study_stable_s=1e6), owner="test") as engine:
            await store(engine, ct_slice(study_uid="2.25.1"), ExplicitVRLittleEndian)
        first, second = stable(stores, "one"), stable(stores, "two")
        await first.step(0.0)
        await second.step(0.0)
        await second.step(1000.0)
        assert announced(stores) == []  # one holds the lease
        leases.give_up(stores.store, "study-stable", "one")
        await second.step(1001.0)
        await second.step(1100.0)
        assert announced(stores) == ["2.25.1"]


class FullStore:
    """A store with no room: nothing but what uses the reserve is committed."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self.full = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, batch: Batch) -> None:
        if self.full and not batch.uses_reserve:
            raise StoreFullError("no room")
        self._store.commit(batch)


async def test_what_cannot_be_announced_for_want_of_room_is_when_there_is(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(study_stable_s=1e6), owner="test") as engine:
            await store(engine, ct_slice(study_uid="2.25.1"), ExplicitVRLittleEndian)
        full = FullStore(stores.store)
        watcher = stable(stores, "one", full)  # type: ignore[arg-type]
        await watcher.step(0.0)
        await watcher.step(100.0)
        assert announced(stores) == []
        full.full = False
        await watcher.step(101.0)
        await watcher.step(102.0)
        assert announced(stores) == ["2.25.1"]


async def test_the_engine_announces_by_itself(tmp_path: Path) -> None:
    options = EngineOptions(study_stable_s=0.001)
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            await store(engine, ct_slice(study_uid="2.25.1"), ExplicitVRLittleEndian)
            with trio.fail_after(30):
                while not announced(stores):
                    await trio.lowlevel.checkpoint()
