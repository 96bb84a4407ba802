"""What the index says of packs: the last copy is never un-named, whoever changes a row at the same moment."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hounsfield.archive.index.packs import (
    HOT,
    CopyRow,
    LastCopyError,
    PackGoneError,
    PackRow,
    Packs,
    Total,
    packs_of,
    plan_forget,
    plan_pack,
)
from hounsfield.archive.index.rows import encode
from hounsfield.archive.index.tables import ALL_TABLES, PACK, PACKED
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.errors import PreconditionError
from hounsfield.storage_backends.lmdb_store import LmdbStore

SERIES, OTHER = b"s" * 20, b"t" * 20


def segment(number: int) -> bytes:
    return number.to_bytes(16, "big")


def row(series: bytes = SERIES, *, made_ns: int = 5, size: int = 100, objects: int = 2) -> PackRow:
    return PackRow(series, size, objects, made_ns, bytes(32), {HOT: CopyRow(made_ns, made_ns)})


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    opened = LmdbStore(tmp_path / "index", ALL_TABLES)
    yield opened
    opened.close()


def add(store: LmdbStore, number: int, pack: PackRow) -> None:
    batch = Batch()
    plan_pack(batch, segment(number), pack)
    store.commit(batch)


def test_packs_are_found_by_series_by_segment_and_page_by_page(store: LmdbStore) -> None:
    packs = Packs(store)
    add(store, 1, row(made_ns=9))
    add(store, 2, row(made_ns=4))
    for number in range(3, 8):
        add(store, number, row(OTHER))
    assert [key for key, _ in packs.of_series(SERIES)] == [segment(2), segment(1)]
    assert packs.get(segment(1)) == row(made_ns=9)
    assert packs.get(segment(99)) is None
    assert packs.of_series(b"u" * 20) == []
    pages = list(packs.pages(page=3))
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [key for page in pages for key, _ in page] == [segment(number) for number in range(1, 8)]
    packs.name_copy(segment(1), "cold", CopyRow(3))
    assert packs.totals() == {HOT: Total(7, 700, 14), "cold": Total(1, 100, 2)}
    with pytest.raises(PreconditionError):
        add(store, 1, row())


def test_a_pack_that_is_forgotten_is_nowhere(store: LmdbStore) -> None:
    add(store, 1, row())
    for number in (1, 2):
        with store.snapshot() as snapshot:
            batch = Batch()
            plan_forget(snapshot, batch, segment(number))
        store.commit(batch)
    with store.snapshot() as snapshot:
        assert not list(snapshot.scan(PACK))
        assert not list(snapshot.scan(PACKED))
        assert not list(packs_of(snapshot, SERIES))
    for change in (
        lambda: Packs(store).name_copy(segment(1), "cold", CopyRow(1)),
        lambda: Packs(store).unname_copy(segment(1), HOT),
    ):
        with pytest.raises(PackGoneError):
            change()


def test_the_last_copy_stays_named(store: LmdbStore) -> None:
    packs = Packs(store)
    add(store, 1, row())
    with pytest.raises(LastCopyError):
        packs.unname_copy(segment(1), HOT)
    packs.name_copy(segment(1), "cold", CopyRow(3, 4))
    with pytest.raises(LastCopyError, match="keep 2 copies"):
        packs.unname_copy(segment(1), HOT, others_min=2)
    assert packs.unname_copy(segment(1), HOT).copies == {"cold": CopyRow(3, 4)}
    assert packs.unname_copy(segment(1), "elsewhere").copies == {"cold": CopyRow(3, 4)}
    with pytest.raises(LastCopyError):
        packs.unname_copy(segment(1), "cold")
    with pytest.raises(ValueError, match="one copy"):
        packs.unname_copy(segment(1), "cold", others_min=0)


def test_two_who_take_away_a_copy_each_leave_one(store: LmdbStore) -> None:
    for number in range(20):
        add(store, number, row())
        Packs(store).name_copy(segment(number), "cold", CopyRow(1))
    refused: list[str] = []
    both = threading.Barrier(2)

    def take(tier: str) -> None:
        packs = Packs(store)
        for number in range(20):
            both.wait()
            try:
                packs.unname_copy(segment(number), tier)
            except LastCopyError:
                refused.append(tier)

    threads = [threading.Thread(target=take, args=(tier,)) for tier in (HOT, "cold")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 20
    assert all(len(one.copies) == 1 for page in Packs(store).pages() for _, one in page)


def test_who_is_always_too_late_gets_through_in_the_end(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, 1, row())
    commit, times = store.commit, 0

    def late(batch: Batch):  # type: ignore[no-untyped-def]
        nonlocal times
        times += 1
        other = Batch()
        other.put(PACK, segment(1), store_row(times))
        commit(other)
        return commit(batch)

    def store_row(times: int) -> bytes:
        return encode(row(made_ns=times))

    monkeypatch.setattr(store, "commit", late)
    named = Packs(store).name_copy(segment(1), "cold", CopyRow(1))
    assert times == 3
    assert named.made_ns == 3
    assert Packs(store).get(segment(1)) == named
