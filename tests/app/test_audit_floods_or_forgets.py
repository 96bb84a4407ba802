"""Associations reach the journal in order and once; whoever floods us fills neither memory nor disk."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.app.auditing import FLUSH_S, STRANGERS_MAX, WAITING_MAX, AssociationAudit, AuditError
from hounsfield.archive.engine import associations
from hounsfield.archive.engine.associations import EVENT_ASSOCIATIONS, RECORDS_MAX, Record
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.net.records import CallRecord, EndRecord
from hounsfield.storage_backends.errors import StoreFullError
from support.archives import ct_slice, store, stores_in

NS = 10**9


def call(
    title: str = "CT1", outcome: str = "accepted", reason: str = "", at: float | None = None
) -> CallRecord:
    return CallRecord(time.time() if at is None else at, "192.0.2.1", title, "HOUNSFIELD", outcome, reason)


def end(of: CallRecord, **more: Any) -> EndRecord:
    words = {
        "reason": "released",
        "seconds": 1.5,
        "objects": 3,
        "objects_failed": 0,
        "bytes_in": 9,
        "bytes_out": 0,
    }
    return EndRecord(of, of.time + 1.5, **{**words, **more})


class Kept:
    """Keeps records, or fails."""

    def __init__(self) -> None:
        self.batches: list[list[Record]] = []
        self.full = False

    @property
    def records(self) -> list[Record]:
        return [record for batch in self.batches for record in batch]

    async def append(self, records: Sequence[Record]) -> None:
        await trio.lowlevel.checkpoint()
        if self.full:
            raise StoreFullError("the disk is full")
        self.batches.append([dict(record) for record in records])

    async def newest(self, **_: Any) -> tuple[list[Record], bool]:
        return [], False


@asynccontextmanager
async def running(audit: AssociationAudit) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audit.run)
        yield
        nursery.cancel_scope.cancel()


async def test_records_are_kept_in_batches_and_in_order(autojump_clock: trio.testing.MockClock) -> None:
    kept = Kept()
    audit = AssociationAudit(kept)
    async with running(audit):
        for number in range(10):
            audit.called(call(f"AE{number}"))
        assert kept.batches == []
        await trio.sleep(FLUSH_S + 0.1)
        assert [record["calling_ae"] for record in kept.records] == [f"AE{number}" for number in range(10)]
        assert len(kept.batches) == 1
        audit.ended(end(call("CT1")))
        assert len(kept.batches) == 1
    assert kept.records[-1]["what"] == "ended", "what was there at the end is kept"
    assert (kept.records[-1]["objects"], kept.records[-1]["seconds"]) == (3, 1.5)


async def test_many_are_kept_at_once(autojump_clock: trio.testing.MockClock) -> None:
    kept = Kept()
    audit = AssociationAudit(kept)
    async with running(audit):
        for number in range(RECORDS_MAX + 5):
            audit.called(call(f"AE{number}"))
        began = trio.current_time()
        await trio.sleep(FLUSH_S / 2)
        assert [len(batch) for batch in kept.batches] == [RECORDS_MAX, 5]
        assert trio.current_time() < began + FLUSH_S


async def test_a_full_queue_drops_and_counts() -> None:
    dropped = 0

    def count(number: int) -> None:
        nonlocal dropped
        dropped += number

    kept = Kept()
    audit = AssociationAudit(kept, dropped=count)
    for number in range(WAITING_MAX + 100):
        audit.called(call(f"AE{number}"))
    assert dropped == 100
    kept.full = True
    await audit.list()
    assert dropped == WAITING_MAX + 100, "a full disk loses them, and nobody waits"
    kept.full = False
    audit.called(call("LATER"))
    await audit.list()
    assert [record["calling_ae"] for record in kept.records] == ["LATER"]


async def test_refusals_without_end_are_a_few_records() -> None:
    kept = Kept()
    audit = AssociationAudit(kept)
    for number in range(10_000):
        audit.called(call("SCANNER", "refused", "calling AE title not recognized"))
        audit.called(call(f"X{number}", "refused", "calling AE title not recognized"))
        if number % 1000 == 0:
            audit.called(call(f"GOOD{number}"))
    await audit.list()
    refused = [record for record in kept.records if record["what"] == "refused"]
    assert len(refused) == STRANGERS_MAX + 1
    assert sum(record.get("count", 1) for record in refused) == 20_000
    assert refused[0]["count"] == 10_000
    assert len(kept.records) - len(refused) == 10, "and nobody else's are lost"
    kept.batches.clear()
    audit.called(call("SCANNER", "refused", "calling AE title not recognized"))
    await audit.list()
    assert [record.get("count", 1) for record in kept.records] == [1]


async def test_nothing_is_kept_when_it_is_switched_off() -> None:
    kept = Kept()
    audit = AssociationAudit(kept, enabled=False)
    audit.called(call())
    audit.called(call(outcome="refused"))
    audit.ended(end(call()))
    await audit.list()
    assert kept.records == []


# ---------------------------------------------------------------- in a real journal


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Engine]:
    data = directory / "data"
    data.mkdir(exist_ok=True)
    with stores_in(data) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            yield engine


async def test_records_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(associations, "_EVENTS_PER_READ", 3)
    now = time.time()
    async with opened(tmp_path) as engine:
        audit = AssociationAudit(engine.associations)
        for number in range(20):
            audit.called(call(f"AE{number}", at=now - 10_000 + 100 * number))
            if number % 4 == 0:
                await audit.list()  # a batch
                await store(engine, ct_slice(), ExplicitVRLittleEndian)
        audit.called(call("BAD", "refused", "not known", at=now - 7000))

        async def titles(**wanted: Any) -> list[str]:
            return [record["calling_ae"] for record in (await audit.list(**wanted))["records"]]

        everyone = ["BAD", *(f"AE{number}" for number in reversed(range(20)))]
        assert await titles() == everyone
        assert await titles(limit=3) == everyone[:3]
        assert (await audit.list(limit=3))["more"] is True
        assert (await audit.list(limit=21))["more"] is False
        assert await titles(what="refused") == ["BAD"]
        assert await titles(title="AE7") == ["AE7"]
        assert await titles(title="HOUNSFIELD") == everyone
        assert await titles(address="192.0.2.2") == []
        assert await titles(since="8450s") == ["BAD", "AE19", "AE18", "AE17", "AE16"]
        assert await titles(since="3h") == everyone
        assert await titles(since="1min") == []
        for wrong in ("yesterday", "", "7", "1y"):
            with pytest.raises(AuditError, match="is no time"):
                await audit.list(since=wrong)
    async with opened(tmp_path) as engine:
        assert len((await AssociationAudit(engine.associations).list())["records"]) == 21, "after a restart"


async def test_a_thousand_associations_are_a_few_events(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        audit = AssociationAudit(engine.associations)
        for number in range(1000):
            audit.called(call(f"AE{number}"))
            audit.ended(end(call(f"AE{number}")))
        await audit.list()
        with engine.stores.store.snapshot() as snapshot:
            events = [event for _, event in engine.stores.journal.read(snapshot, 0, 10_000)]
        assert [event.kind for event in events].count(EVENT_ASSOCIATIONS) == 4
        page = await engine.changes.read(await engine.changes.start(), 100)
        assert page.changes == (), "no change feed tells them"
        assert not any(event.fact for event in events)
