"""Objects of one UID that two workers receive at once: which is served does not hang on who indexes first."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.group_commit import GroupCommit
from support.archives import ct_slice, store, stores_in

EXPLICIT = "1.2.840.10008.1.2.1"
STUDY, SERIES = "1.2.3", "1.2.3.4"


def slices() -> dict[str, bytes]:
    first = ct_slice(number=1, study_uid=STUDY, series_uid=SERIES)
    return {"A": first, "B": first[:-2] + b"\x7f\x7f", "C": first[:-2] + b"\x11\x11"}


async def served(engine: Engine) -> list[bytes]:
    """What is served, then the versions beside it, as their bytes."""
    (found,) = await engine.instances(STUDY)
    stores = engine.stores
    with stores.store.snapshot() as snapshot:
        key = stores.catalog.instance_key(STUDY, SERIES, found.row.sop_uid)
        rows = [found.row, *sorted(stores.catalog.versions(snapshot, key), key=lambda row: row.received_ns)]
    return [b"".join(bytes(part) for piece in engine.records.pieces(row) for part in piece) for row in rows]


@pytest.mark.parametrize("policy", ["keep-first", "newest-current"])
@pytest.mark.parametrize("order", sorted(permutations([("A", 5), ("A", 20), ("B", 10), ("C", 15)])))
async def test_the_order_of_reception_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Any, policy: str
) -> None:
    """Each worker has written its record before it sees the other's: so nothing is left out here."""
    monkeypatch.setattr(GroupCommit, "_held", lambda *_: {})
    options = EngineOptions(duplicates=policy, direct_writes=False)
    data = slices()
    now = [0]
    monkeypatch.setattr("hounsfield.archive.engine.receiving.time.time_ns", lambda: now[0])
    with stores_in(tmp_path / "archive", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            for name, at_ns in order:
                now[0] = at_ns
                await store(engine, data[name], EXPLICIT)
            live = await served(engine)
    monkeypatch.undo()
    first = {"keep-first": "A", "newest-current": "C"}[policy]
    assert live[0] == data[first]
    assert len(live) == 3
    with stores_in(tmp_path / "archive", options) as stores:
        stores.reindex(lambda _done, _all: None)
        async with open_engine(stores, options, owner="test") as engine:
            assert await served(engine) == live
