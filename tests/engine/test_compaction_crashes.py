"""Compaction stopped at any step, or killed at any moment: nothing is lost, or comes back, or leaks."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.rewriting import RewriteLimits, Rewriter
from hounsfield.archive.index.use import uses
from hounsfield.storage_backends.local_writer import LocalBlobWriter
from support.archives import ct_slice, store, stores_in
from support.contents import contents
from support.killed_steps import STEPS, Killed, compact_everything, killed_at
from support.leader_child import killed_after

EVERY = int(os.environ.get("HOUNSFIELD_KILL_EVERY") or 2)  # so-manieth step
LIMITS = RewriteLimits(group_bytes=4096, group_records=2)


def fill(directory: Path) -> None:
    """Three studies of four instances in one segment, of which the middle one is deleted, and a version."""

    async def run(stores: Stores) -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for number in range(12):
                data = ct_slice(
                    study_uid=f"2.25.{1 + number // 4}", series_uid=f"2.25.{1 + number // 4}.1",
                    sop_uid=f"2.25.{1 + number // 4}.1.{number}", pixels=bytes([number]) * 512,
                )  # fmt: skip
                await store(engine, data, ExplicitVRLittleEndian)
            again = ct_slice(study_uid="2.25.1", series_uid="2.25.1.1", sop_uid="2.25.1.1.0")
            await store(engine, again, ExplicitVRLittleEndian)
            stores.deletions.delete(Target("2.25.2"), reason="test", actor="test", now_ns=1)

    with stores_in(directory) as stores:
        trio.run(run, stores)
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)


def located(stores: Stores) -> dict[str, Any]:
    """The contents with the bytes of every record, and not where they are."""
    found = contents(stores)
    for table in ("instance", "version", "quarantine"):
        for row in found[table].values():
            location = row.pop("location")
            parts = stores.indexer.objects.ref_of(location).parts()
            row["bytes"] = b"".join(bytes(stores.log.open_part(part)) for part in parts)
    return {name: rows for name, rows in found.items() if name not in {"use", "spare", "tombstone"}}


def check_nothing_leaks(stores: Stores, before: dict[str, Any]) -> None:
    assert located(stores) == before
    with stores.store.snapshot() as snapshot:
        assert not list(uses(snapshot))
    segments = {one.hex() for one in stores.log.segment_ids()}
    found = contents(stores)
    rows = [*found["instance"].values(), *found["version"].values()]
    needed = {row["location"].segment.hex() for row in rows}
    assert segments == needed
    ledger = {one.hex() for one in stores.ledger.segment_ids()}
    # A key can be left of a segment that never came to be; it opens nothing.
    unused = set(stores.keyring.key_ids("segment")) - segments - ledger
    assert len(unused) <= 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_stopped_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    fill(tmp_path / "data")
    with stores_in(tmp_path / "data") as stores:
        before = located(stores)
    met: set[str] = set()
    for step in range(1, 200, EVERY * (4 if after else 1)):
        directory = tmp_path / str(step)
        shutil.copytree(tmp_path / "data", directory)
        (tmp_path / f"{step}.key").write_text((tmp_path / "data.key").read_text())
        (tmp_path / f"{step}.key").chmod(0o600)
        with stores_in(directory) as stores:
            (segment,) = stores.log.segment_ids()
            stores.sealer.prepare(100)
            done = True
            with killed_at(step, monkeypatch, after=after) as seen:
                try:
                    Rewriter(stores.indexer, LIMITS).rewrite_segment(segment)
                except Killed:
                    done = False
            met.update(seen)
        with stores_in(directory) as stores:
            assert stores.catch_up(at_start=True).damaged == 0
            assert located(stores) == before
            compact_everything(stores)
            check_nothing_leaks(stores, before)
        shutil.rmtree(directory)
        if done:
            break
    assert step > 15
    assert after or met == {f"{cls.__name__}.{name}" for cls, name in STEPS}


def test_killed_in_the_middle(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    fill(directory)
    with stores_in(directory) as stores:
        before = located(stores)
    source = random.Random(4)
    for _ in range(3):
        killed_after(source.randrange(1, 30), "compact", directory)
        with stores_in(directory) as stores:
            assert stores.catch_up(at_start=True).damaged == 0
            assert located(stores) == before
    with stores_in(directory) as stores:
        compact_everything(stores)
        assert located(stores) == before
        with stores.store.snapshot() as snapshot:
            assert not list(uses(snapshot))


def test_an_error_leaves_no_half_written_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails in the middle, in a process that goes on."""
    fill(tmp_path / "data")
    with stores_in(tmp_path / "data") as stores:
        before, segments = located(stores), stores.log.segment_ids()
        sync, times = LocalBlobWriter.sync, 0

        def fail(self: LocalBlobWriter) -> None:
            nonlocal times
            times += 1
            if times == 3:
                raise OSError("no more")
            sync(self)

        with monkeypatch.context() as patch:
            patch.setattr(LocalBlobWriter, "sync", fail)
            with pytest.raises(OSError, match="no more"):
                Rewriter(stores.indexer, LIMITS).rewrite_segment(segments[0])
        assert stores.log.segment_ids() == segments
        assert located(stores) == before
        compact_everything(stores)
        check_nothing_leaks(stores, before)


def test_what_changes_while_it_is_copied_is_not_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted, and sent with other bytes, between the copy and the switch."""
    fill(tmp_path / "data")
    with stores_in(tmp_path / "data") as stores:
        (segment,) = stores.log.segment_ids()
        switch = Rewriter._switch

        def changed(self: Rewriter, *args: Any, **named: Any) -> None:
            stores.deletions.delete(Target("2.25.3"), reason="test", actor="test", now_ns=2)
            target = Target("2.25.1", "2.25.1.1", ("2.25.1.1.1",))
            stores.deletions.delete(target, reason="test", actor="test", now_ns=2)
            switch(self, *args, **named)

        monkeypatch.setattr(Rewriter, "_switch", changed)
        report = Rewriter(stores.indexer, LIMITS).rewrite_segment(segment)
        monkeypatch.setattr(Rewriter, "_switch", switch)
        assert report.removed
        found = contents(stores)
        assert {row["uid"] for row in found["study"].values()} == {"2.25.1"}
        assert len(found["instance"]) == 3
        ((dead, records),) = found["use"].values()
        assert records == 5
        assert dead > 5 * 512
        before = located(stores)
        compact_everything(stores)
        check_nothing_leaks(stores, before)
    shutil.rmtree(tmp_path / "data" / "index")
    with stores_in(tmp_path / "data") as stores:
        stores.reindex(lambda _done, _total: None)
        assert located(stores) == before


def test_a_damaged_segment_keeps_its_place_and_what_opens_moves(tmp_path: Path) -> None:
    fill(tmp_path / "data")
    (path,) = (tmp_path / "data" / "segments").iterdir()
    with stores_in(tmp_path / "data") as stores:
        found = contents(stores)
        row = next(row for row in found["instance"].values() if row["sop_uid"] == "2.25.3.1.8")
        part = stores.indexer.objects.ref_of(row["location"]).part(2)
    raw = bytearray(path.read_bytes())
    raw[part.offset + 3] ^= 1
    path.write_bytes(raw)
    with stores_in(tmp_path / "data") as stores:
        stores.catch_up(at_start=True)
        (segment,) = stores.log.segment_ids()
        report = Rewriter(stores.indexer, LIMITS).rewrite_segment(segment)
        assert (report.removed, report.damaged, report.moved) == (False, 1, 8)
        assert report.kept_because == "something of it is damaged"
        for row in contents(stores)["instance"].values():
            assert (row["location"].segment == segment) == (row["sop_uid"] == "2.25.3.1.8")
        again = Rewriter(stores.indexer, LIMITS).rewrite_segment(segment)
        assert (again.moved, again.damaged, again.new_segments) == (0, 1, ())
