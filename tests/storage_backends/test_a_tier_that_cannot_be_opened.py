"""A tier whose keys cannot be read stops the archive, or has to be asked for twice once they can."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.tiers import TieringOptions, TierOptions
from hounsfield.storage_backends.late_store import LateStore
from hounsfield.storage_backends.object_store import ObjectStore, StoreRefusedError
from hounsfield.storage_backends.s3_store import S3Options
from support.archives import ct_slice, store, stored_bytes, stores_in
from support.buckets import Bucket


def test_it_is_opened_once_by_whoever_comes_first() -> None:
    opened: list[ObjectStore] = []

    def opening() -> ObjectStore:
        opened.append(Bucket())
        return opened[-1]

    late = LateStore(opening, "<cold>")
    assert repr(late) == "<cold>"
    late.close()
    assert not opened
    threads = [threading.Thread(target=late.put, args=(f"k{n}", [b"x"], 1)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(opened) == 1
    assert sorted(late.names()) == [f"k{n}" for n in range(8)]
    assert late.create("new", b"once")
    assert late.read("new", 1, 2) == b"nc"


def test_what_opening_raises_is_raised_until_it_is_mended() -> None:
    broken = True

    def opening() -> ObjectStore:
        if broken:
            raise StoreRefusedError("the keys cannot be read")
        return Bucket()

    late = LateStore(opening, "<cold>")
    for _ in range(2):
        with pytest.raises(StoreRefusedError):
            late.size("k")
    broken = False
    late.put("k", [b"abc"], 3)
    assert late.size("k") == 3


async def test_an_archive_starts_with_a_bucket_whose_keys_are_not_there(tmp_path: Path) -> None:
    bucket = S3Options("b", "https://127.0.0.1:9", credentials=f"file:{tmp_path / 'nowhere'}")
    options = EngineOptions(tiering=TieringOptions((TierOptions("cold", bucket),)))
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            data = ct_slice()
            result = await store(engine, data, "1.2.840.10008.1.2.1")
            assert await stored_bytes(engine, result) == data
            with pytest.raises(StoreRefusedError):
                stores.tiers.by_name["cold"].store.size("packs/x")
