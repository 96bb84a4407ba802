"""A backup whose index another release wrote: what is said of it is true, and what is advised works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.index import layout
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch
from support.archives import ct_slice, open_stores, store

EXPLICIT = "1.2.840.10008.1.2.1"


def test_it_is_told_when_it_is_made_checked_and_restored(cli: Any, tmp_path: Path) -> None:
    assert cli("init", "--data", tmp_path / "a").code == 0

    async def fill() -> None:
        stores = open_stores(tmp_path / "a", f"file:{tmp_path}/state/hounsfield/development-master.key")
        async with open_engine(stores, EngineOptions(), owner="a test") as engine:
            await store(engine, ct_slice(), EXPLICIT)
        batch = Batch()
        batch.put(META, layout._KEY, b"1")
        stores.store.commit(batch)
        stores.close()

    trio.run(fill)
    made = cli("backup", tmp_path / "b", "--segments", "--data", tmp_path / "a")
    assert made.code == 0
    assert "written by another release" in made.err
    checked = cli("restore", tmp_path / "b", "--check")
    assert checked.code == 0
    assert "makes it anew from the segments" in checked.err
    assert cli("restore", tmp_path / "b", "--check", "--json").json()["index_made_anew"] is True
    restored = cli("restore", tmp_path / "b", "--data", tmp_path / "new")
    assert restored.code == 0
    assert "made anew" in restored.err
    assert len(cli("ls", "--json", "--data", tmp_path / "new").json()["rows"]) == 1
    assert cli("fsck", "--data", tmp_path / "new").code == 0


def test_an_index_that_is_damaged_in_the_snapshot(cli: Any, tmp_path: Path) -> None:
    assert cli("init", "--data", tmp_path / "a").code == 0

    async def fill() -> None:
        stores = open_stores(tmp_path / "a", f"file:{tmp_path}/state/hounsfield/development-master.key")
        async with open_engine(stores, EngineOptions(), owner="a test") as engine:
            await store(engine, ct_slice(), EXPLICIT)
        stores.close()

    trio.run(fill)
    assert cli("backup", tmp_path / "b", "--segments", "--data", tmp_path / "a").code == 0
    (index,) = (tmp_path / "b" / "snapshots").glob("*/index/data.mdb")
    index.write_bytes(b"\0" * index.stat().st_size)
    for refused in (
        cli("restore", tmp_path / "b", "--check"),
        cli("restore", tmp_path / "b", "--data", tmp_path / "new"),
    ):
        assert refused.code == 1
        assert "hounsfield restore --reindex" in refused.err
    assert cli("restore", tmp_path / "b", "--check", "--reindex").code == 0
    restored = cli("restore", tmp_path / "b", "--data", tmp_path / "new", "--reindex", "--json")
    assert (restored.code, restored.json()["index_made_anew"]) == (0, True)
    assert len(cli("ls", "--json", "--data", tmp_path / "new").json()["rows"]) == 1
