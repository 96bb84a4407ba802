"""Deletions and corrections in any order: what is left is what a reindex makes of the same facts."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.correction_requests import CorrectionPlanner, Request
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.deletion import NothingToDeleteError, Target
from hounsfield.archive.index.gathering import Gatherer
from hounsfield.archive.index.holds import Hold, OnHoldError, add_hold
from hounsfield.archive.index.packs import packs_of
from hounsfield.archive.index.rewriting import Rewriter
from hounsfield.archive.index.smaller_frames import SmallerLimits
from hounsfield.archive.index.tables import SERIES
from hounsfield.archive.index.use import uses
from hounsfield.codecs.at_rest import Encoding
from support.archives import ct_slice, store, stores_in
from support.contents import contents

WHY = {"reason": "test", "actor": "tester", "now_ns": 1}
NAME = 0x00100010
STEPS = ["store", "store", "delete", "correct", "correct", "revert", "compact", "gather"]


def fill(stores: Stores, sent: list[bytes]) -> None:
    async def run() -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for data in sent:
                await store(engine, data, ExplicitVRLittleEndian)

    trio.run(run)


def make(stores: Stores, kind: str, **what: Any) -> None:
    request = Request(kind=kind, actor="tester", reason="it was wrong", **what)
    planner = CorrectionPlanner(stores.catalog, stores.corrections)
    at_ns = time.time_ns()
    stores.corrections.make(lambda snapshot, number: planner.plan(snapshot, number, request, at_ns))


def compared(stores: Stores) -> dict[str, Any]:
    """The contents without what only a living index can know."""
    found = contents(stores)
    for name in ("tombstone", "use"):
        del found[name]
    for row in found["study"].values():
        row["flags"] = tuple(flag for flag in row["flags"] if not flag.startswith("attributes-disagree"))
    return found


def reindexed(directory: Path) -> dict[str, Any]:
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        assert stores.reindex(lambda _done, _total: None).damaged == 0
        return compared(stores)


def test_a_series_that_was_moved_is_deleted_where_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        fill(stores, [ct_slice(study_uid="2.25.1", series_uid=f"2.25.1.{n % 2}") for n in range(4)])
        fill(stores, [ct_slice(study_uid="2.25.2", series_uid="2.25.2.1", patient_id="B")])
        make(stores, "move-series", study="2.25.1", series=("2.25.1.0",), to_study="2.25.2")
        with pytest.raises(NothingToDeleteError):
            stores.deletions.delete(Target("2.25.1", "2.25.1.0"), **WHY)
        with stores.store.snapshot() as snapshot:
            key = stores.catalog.study_id("2.25.2")
            moved = [row.uid for _, row in stores.catalog.series_of(snapshot, key) if row.uid != "2.25.2.1"]
        report = stores.deletions.delete(Target("2.25.2", moved[0]), **WHY)
        assert (report.instances, report.series, report.studies) == (2, 1, 0)
        before = compared(stores)
        assert sorted(row["instances"] for row in before["study"].values()) == [1, 2]
    assert reindexed(directory) == before


def test_a_hold_follows_a_study_to_another_patient(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        fill(stores, [ct_slice(study_uid="2.25.1", patient_id="OLD")])
        fill(stores, [ct_slice(study_uid="2.25.2", patient_id="NEW")])
        add_hold(stores.journal, Hold("", "", "OLD", "", "judge", "case", 1))
        make(stores, "merge", patient=("OLD", ""), to_patient=("NEW", ""))
        with pytest.raises(OnHoldError):
            stores.deletions.delete(Target("2.25.1"), reason="test", actor="test", now_ns=2)
        stores.deletions.delete(Target("2.25.2"), reason="test", actor="test", now_ns=2)


@pytest.mark.parametrize("seed", range(6))
def test_any_history_with_corrections(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    directory = tmp_path / "data"
    made = 0

    def act(stores: Stores) -> None:
        nonlocal made
        with stores.store.snapshot() as snapshot:
            known = {
                row["uid"]: [one.uid for _, one in stores.catalog.series_of(snapshot, key)]
                for key, row in contents(stores)["study"].items()
            }
        match source.choice(STEPS):
            case "store":
                number = source.randrange(3)
                study, series = f"2.25.{number}", f"2.25.{number}.{source.randrange(2)}"
                fill(
                    stores,
                    [
                        ct_slice(
                            study_uid=study,
                            series_uid=series,
                            patient_id=f"P{number}",
                            pixels=source.randbytes(4) * 128,
                        )
                        for _ in "ab"
                    ],
                )
            case "delete" if known:
                study = source.choice(sorted(known))
                series = source.choice(["", *sorted(known[study])])
                stores.deletions.delete(Target(study, series), **WHY)
            case "correct" if known:
                study, other = source.choice(sorted(known)), f"2.25.{source.randrange(4)}"
                series = source.choice(sorted(known[study]))
                what: dict[str, Any] = source.choice([
                    {"kind": "set-study", "study": study, "values": {NAME: f"Set^{made}"}},
                    {"kind": "set-patient", "patient": ("P1", ""), "values": {NAME: f"By^Id{made}"}},
                    {"kind": "move-series", "study": study, "series": (series,), "to_study": other},
                    {"kind": "merge", "patient": ("P0", ""), "to_patient": ("P1", "")},
                    {"kind": "move-study", "study": study, "to_patient": ("P2", "")},
                ])  # fmt: skip
                try:
                    make(stores, **what)
                except Exception as error:
                    if isinstance(getattr(error, "retry", None), bool):
                        return  # there is no such patient, or it is there already
                    raise
                made += 1
            case "revert" if made:
                with stores.store.snapshot() as snapshot:
                    rows = [row for row in stores.corrections.all(snapshot) if not row.reverted_ns]
                if rows:
                    row = source.choice(rows)
                    stores.corrections.revert(row.number, actor="test", reason="test", at_ns=time.time_ns())
            case "compact":
                with stores.store.snapshot() as snapshot:
                    todo = [segment for segment, _ in uses(snapshot)]
                for segment in todo:
                    Rewriter(stores.indexer).rewrite_segment(segment)
            case "gather":
                gatherer = Gatherer(stores.indexer, compression=SmallerLimits(1, 9.0))
                with stores.store.snapshot() as snapshot:
                    found = [(key, dict(packs_of(snapshot, key))) for key, _ in snapshot.scan(SERIES)]
                for key, packs in found:
                    encoding = source.choice([None, Encoding.ZSTD])
                    renew = source.choice([(), packs])
                    gatherer.gather(key, quiet_before_ns=1 << 62, recompress=encoding, renew=renew)

    for _ in range(4):
        with stores_in(directory) as stores:
            stores.catch_up(at_start=True)
            for _ in range(6):
                act(stores)
            before = compared(stores)
        assert reindexed(directory) == before
