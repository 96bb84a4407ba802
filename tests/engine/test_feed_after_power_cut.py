"""Numbers of the journal are given again after a power cut, and another journal is made by a reindex.

Whoever follows the change feed hears of everything even so, some of it twice.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from hounsfield.archive.engine import changes
from hounsfield.archive.engine.changes import Cursor
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.errors import GoneError
from hounsfield.archive.engine.stores import INDEX, Stores
from hounsfield.archive.index import epochs
from hounsfield.archive.index.epochs import UnknownEpochError, begin_epoch, current_epoch, go_on_from
from support.archives import ct_slice, store, stores_in

EXPLICIT = "1.2.840.10008.1.2.1"


async def put(stores: Stores, *numbers: int) -> None:
    async with open_engine(stores, EngineOptions(), owner="test") as engine:
        for number in numbers:
            data = ct_slice(
                study_uid=f"2.25.{number}", series_uid=f"2.25.1.{number}", sop_uid=f"2.25.2.{number}"
            )
            await store(engine, data, EXPLICIT)


async def follow(stores: Stores, cursor: Cursor | None) -> tuple[list[int], Cursor, bool]:
    """The objects that are told after ``cursor``; where it ends, and whether some were told again."""
    heard: list[int] = []
    again = False
    async with open_engine(stores, EngineOptions(), owner="test") as engine:
        place = await engine.changes.start() if cursor is None else cursor
        while True:
            page = await engine.changes.read(place, 2)
            again |= page.again
            for change in page.changes:
                assert Cursor.parse(str(change.cursor)) == change.cursor
                heard += [int(part.split('"')[0]) for part in change.body.decode().split('"2.25.2.')[1:]]
            place = page.next
            if not page.more:
                return heard, place, again


def start(directory: Path) -> Stores:
    """As the first worker does."""
    stores = stores_in(directory)
    opened = stores.__enter__()
    opened.catch_up(at_start=True)
    opened.leave = stores  # type: ignore[attr-defined]
    return opened


def stop(stores: Stores) -> None:
    stores.leave.__exit__(None, None, None)  # type: ignore[attr-defined]


def test_a_cursor_of_numbers_that_were_taken_back(tmp_path: Path) -> None:
    directory, saved = tmp_path / "data", tmp_path / "saved"
    stores = start(directory)
    trio.run(put, stores, 1, 2, 3)
    stores.store.sync()
    shutil.copytree(directory / INDEX, saved)  # what a power cut leaves: the index of the last checkpoint
    trio.run(put, stores, 4, 5, 6, 7)
    heard, cursor, again = trio.run(follow, stores, None)
    assert (heard, again) == ([1, 2, 3, 4, 5, 6, 7], False)
    stop(stores)
    shutil.rmtree(directory / INDEX)
    shutil.copytree(saved, directory / INDEX)
    stores = start(directory)
    trio.run(put, stores, 8)
    heard, cursor, again = trio.run(follow, stores, cursor)
    assert again
    assert set(heard) >= {8}
    assert sorted(heard) == [4, 5, 6, 7, 8]  # not missed, although the old number is past some of them
    stop(stores)
    stores = start(directory)  # a start after which nothing is another than before
    trio.run(put, stores, 9)
    heard, cursor, again = trio.run(follow, stores, cursor)
    assert (heard, again) == ([9], False)
    heard, _, again = trio.run(follow, stores, cursor)
    assert (heard, again) == ([], False)
    stop(stores)


def test_a_cursor_of_a_journal_that_was_made_anew(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    stores = start(directory)
    trio.run(put, stores, 1, 2, 3)
    _, cursor, _ = trio.run(follow, stores, None)
    stop(stores)
    shutil.rmtree(directory / INDEX)
    with stores_in(directory) as anew:
        anew.reindex(lambda done, total: None)
    stores = start(directory)
    with pytest.raises(GoneError):
        try:
            trio.run(follow, stores, cursor)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
    heard, _, _ = trio.run(follow, stores, None)
    assert sorted(heard) == [1, 2, 3]
    stop(stores)


def test_a_start_is_remembered_before_it_tells_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is synced: else a power cut could give its name to another, with other numbers."""
    synced: list[int] = []
    with stores_in(tmp_path / "data") as stores:
        original = stores.store.sync

        def sync() -> None:
            with stores.store.snapshot() as snapshot:
                synced.append(len(epochs._epochs(snapshot)))
            original()

        monkeypatch.setattr(stores.store, "sync", sync)
        stores.catch_up(at_start=True)
        assert synced[0] == 1
        stores.catch_up(at_start=False)  # another worker: the epoch goes on
        with stores.store.snapshot() as snapshot:
            assert len(epochs._epochs(snapshot)) == 1


def test_epochs_are_bounded_and_old_ones_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "EPOCHS_MAX", 3)
    with stores_in(tmp_path / "data") as stores:
        with stores.store.snapshot() as snapshot:
            assert go_on_from(snapshot, current_epoch(snapshot).epoch_id, 5) == 0
        begun = [begin_epoch(stores.store) for _ in range(5)]
        with stores.store.snapshot() as snapshot:
            for one in begun[:2]:
                with pytest.raises(UnknownEpochError):
                    go_on_from(snapshot, one.epoch_id, 0)
            for one in begun[2:]:
                assert go_on_from(snapshot, one.epoch_id, 7) == 0
            assert current_epoch(snapshot) == begun[-1]


def test_another_workers_commits_wake_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "LOOK_S", 86_400.0)  # nothing but the ring wakes

    async def run(stores: Stores) -> None:
        rung = trio.Event()

        async def ring(_: int | None) -> int:
            await rung.wait()
            await trio.lowlevel.checkpoint()
            return 1

        with trio.fail_after(30):
            async with (
                open_engine(stores, EngineOptions(), owner="one") as one,
                open_engine(stores, EngineOptions(), owner="other", on_commit=rung.set) as other,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(one.changes.hear, ring)
                end = await one.changes.end()
                assert not await one.changes.wait(end, 0.01)

                async def commit() -> None:
                    while not one.changes.waiting:
                        await trio.lowlevel.checkpoint()
                    await store(other, ct_slice(), EXPLICIT)

                nursery.start_soon(commit)
                assert await one.changes.wait(end, 20)
                nursery.cancel_scope.cancel()

    with stores_in(tmp_path / "data") as stores:
        trio.run(run, stores)
