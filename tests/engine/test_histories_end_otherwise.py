"""Whatever was done to objects, in any order: what is shown is what a plain list of them says.

Sent, moved, split, rejected, expired, undone, deleted, compacted; and the same after a restart and a reindex.
"""

from __future__ import annotations

import random
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.correction_requests import CorrectionPlanner, Request
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import checking, tables
from hounsfield.archive.index.correcting import CorrectionError
from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.rewriting import Rewriter
from hounsfield.archive.index.rows import CorrectionRow, StudyRow
from hounsfield.archive.index.use import uses
from support.archives import ct_slice, store, stores_in
from support.contents import contents
from support.rejection import EXPIRED, QUALITY, SAFETY, note

Uids = tuple[str, str, str]
STUDIES = ("2.25.1", "2.25.2", "2.25.3", "2.25.4")
SERIES = ("2.25.7", "2.25.8")
#: The same SOP Instance UIDs everywhere: what is moved meets others of its name.
ALL: tuple[Uids, ...] = tuple(
    (study, series, f"2.25.9.{n}") for study in STUDIES[:3] for series in SERIES for n in (1, 2)
)
CHECKS = [(name, getattr(checking, f"check_{name}")) for name in ("rows", "counts", "places", "tokens")]
STEPS, PHASES = 36, 3
DESCRIPTION, NAME = 0x00081030, 0x00100010


@dataclass
class Record:
    uids: Uids
    at: int
    version: int
    deleted: bool = False


@dataclass
class Model:
    """What is here, and what is in force."""

    records: list[Record] = field(default_factory=list)
    moves: dict[int, CorrectionRow] = field(default_factory=dict)
    rejections: dict[int, tuple[set[Uids], int]] = field(default_factory=dict)
    """What each names, and before when it must have been received; 0: whenever."""
    clock: int = 0

    def way(self, uids: Uids) -> list[Uids]:
        study, series, sop = uids
        way = [uids]
        for number in sorted(self.moves):
            row = self.moves[number]
            if row.study == study and series in row.series and (not row.instances or sop in row.instances):
                study, series = row.to_study, row.series[series]
                way.append((study, series, sop))
        return way

    def is_hidden(self, uids: Uids, at: int) -> bool:
        way = set(self.way(uids))
        return any(way & named and (not before or at < before) for named, before in self.rejections.values())

    def visible(self) -> set[Uids]:
        seen = (one for one in self.records if not one.deleted and not self.is_hidden(one.uids, one.at))
        return {self.way(one.uids)[-1] for one in seen}

    def send(self, uids: Uids, version: int) -> None:
        self.clock += 1
        hidden = self.is_hidden(uids, self.clock)
        if not any(
            one.uids == uids and one.version == version and self.is_hidden(uids, one.at) == hidden
            for one in self.records
            if not one.deleted
        ):
            self.records.append(Record(uids, self.clock, version))

    def reject(self, number: int, named: list[Uids], code: str) -> None:
        self.clock += 1
        meant = set(named)
        for one in self.records:  # those that are shown so, by the UIDs that they were received with
            if not one.deleted and not self.is_hidden(one.uids, one.at) and self.way(one.uids)[-1] in named:
                meant.add(one.uids)
        for series in {*SERIES, *(uid for row in self.moves.values() for uid in row.series.values())}:
            for study in STUDIES:  # and what comes by later
                for sop in {uids[2] for uids in named}:
                    if set(self.way((study, series, sop))) & set(named):
                        meant.add((study, series, sop))
        self.rejections[number] = meant, self.clock if code == EXPIRED else 0


class History:
    """One archive, and what should have become of it."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.model = Model()
        self.notes: list[bytes] = []
        self.sent: dict[tuple[Uids, int], bytes] = {}

    def step(self, stores: Stores) -> None:
        source, model = self.source, self.model
        shown = sorted(model.visible())
        match source.choice(
            ["send"] * 4 + ["move"] * 3 + ["undo", "revert", "reject"] * 2
            + ["split", "delete", "compact", "note again", "patient", "study"]
        ):  # fmt: skip
            case "send":
                uids, version = source.choice(ALL), int(source.random() < 0.2)
                self._send(stores, self._object(uids, version))
                model.send(uids, version)
            case "move" | "split" as kind if shown:
                study, series, sop = source.choice(shown)
                what: dict[str, Any] = {"series": (series,)}
                if kind == "split" and source.random() < 0.5:
                    what = {"instances": (sop,)}
                way = "split" if "instances" in what else "move-series"
                to_study = source.choice([uid for uid in STUDIES if uid != study])
                row = correct(stores, kind=way, study=study, to_study=to_study, **what)
                model.moves[row.number] = row
            case "reject":
                pool = [*shown, *ALL] if source.random() < 0.3 else shown or list(ALL)
                named = [source.choice(pool) for _ in range(source.randrange(1, 3))]
                code = source.choice([SAFETY, EXPIRED, QUALITY])
                references: dict[str, dict[str, list[str]]] = {}
                for study, series, sop in named:
                    references.setdefault(study, {}).setdefault(series, []).append(sop)
                self.notes.append(note(references, code))
                self._send(stores, self.notes[-1])
                (number,) = rejections(stores) - model.rejections.keys()
                model.reject(number, named, code)
            case "note again" if self.notes:
                self._send(stores, source.choice(self.notes))
            case "undo" if model.rejections:
                number = source.choice(sorted(model.rejections))
                stores.rejections.undo(number, actor="t", reason="mistaken", at_ns=time.time_ns())
                del model.rejections[number]
            case "revert":
                with stores.store.snapshot() as snapshot:
                    made = [row.number for row in stores.corrections.all(snapshot) if not row.reverted_ns]
                if made:
                    number = source.choice(made)
                    stores.corrections.revert(number, actor="t", reason="right", at_ns=time.time_ns())
                    model.moves.pop(number, None)
            case "delete" if shown:
                study, series, sop = source.choice(shown)
                depth = source.randrange(1, 4)
                target = [Target(study), Target(study, series), Target(study, series, (sop,))][depth - 1]
                stores.deletions.delete(target, reason="t", actor="t", now_ns=time.time_ns())
                for one in model.records:
                    there = model.way(one.uids)[-1][:depth] == (study, series, sop)[:depth]
                    one.deleted |= there and not model.is_hidden(one.uids, one.at)
            case "compact":
                with stores.store.snapshot() as snapshot:
                    segments = [segment for segment, _ in uses(snapshot)]
                for segment in segments:
                    Rewriter(stores.indexer).rewrite_segment(segment)
            case "patient":
                patient = (f"P{source.randrange(1, 4)}", "")
                with suppress(CorrectionError):
                    correct(stores, kind="set-patient", patient=patient, values={NAME: f"N{model.clock}"})
            case "study" if shown:
                study = source.choice(shown)[0]
                correct(stores, kind="set-study", study=study, values={DESCRIPTION: f"D{model.clock}"})

    def _object(self, uids: Uids, version: int) -> bytes:
        if (uids, version) not in self.sent:
            study, series, sop = uids
            self.sent[uids, version] = ct_slice(
                study_uid=study, series_uid=series, sop_uid=sop, patient_id=f"P{study[-1]}",
                pixels=self.source.randbytes(512),
            )  # fmt: skip
        return self.sent[uids, version]

    def _send(self, stores: Stores, data: bytes) -> None:
        async def run() -> None:
            async with open_engine(stores, EngineOptions(), owner="test") as engine:
                await store(engine, data, ExplicitVRLittleEndian)

        trio.run(run)


def correct(stores: Stores, **what: Any) -> CorrectionRow:
    request = Request(actor="t", reason="wrong", **what)
    planner, at_ns = CorrectionPlanner(stores.catalog, stores.corrections), time.time_ns()
    return stores.corrections.make(lambda snapshot, number: planner.plan(snapshot, number, request, at_ns))


def rejections(stores: Stores) -> set[int]:
    with stores.store.snapshot() as snapshot:
        return {row.number for row in stores.rejections.all(snapshot) if not row.reverted_ns}


def shown(stores: Stores) -> set[Uids]:
    """What a reader finds, notes left out; the index must be sound."""
    archive = checking.Archive(
        stores.store, stores.keyring, stores.catalog, stores.sealer, stores.hashes, stores.journal,
        stores.log, stores.ledger,
    )  # fmt: skip
    assert checking.check_all(archive, CHECKS) == []
    found: set[Uids] = set()
    with stores.store.snapshot() as snapshot:
        for key, sealed in snapshot.scan(tables.STUDY):
            study = stores.catalog.open_row(tables.STUDY, key, sealed, StudyRow)
            if not is_hidden(study.uid):
                for series_key, series in stores.catalog.series_of(snapshot, key):
                    rows = stores.catalog.instances_of(snapshot, series_key)
                    found |= {(study.uid, series.uid, row.sop_uid) for row in rows}
    return {uids for uids in found if uids[2].startswith("2.25.9.")}


def compared(stores: Stores) -> dict[str, Any]:
    """The contents, without what only a living index knows, and without where records lie."""
    found = contents(stores)
    for table in ("instance", "version", "quarantine"):
        for row in found[table].values():
            row["record"] = row.pop("location").record_id
    for table in ("study", "series"):
        for row in found[table].values():
            row["flags"] = tuple(one for one in row["flags"] if not one.startswith("attributes-disagree"))
    return {name: rows for name, rows in found.items() if name not in {"use", "spare", "tombstone"}}


@pytest.mark.parametrize("seed", [*range(6), 16, 32])  # the last two found something
def test_what_is_shown_is_what_the_corrections_in_force_make_of_what_was_received(
    tmp_path: Path, seed: int
) -> None:
    history = History(seed)
    directory = tmp_path / "data"
    for _ in range(PHASES):
        with stores_in(directory) as stores:
            stores.catch_up(at_start=True)
            for _ in range(STEPS // PHASES):
                history.step(stores)
                assert shown(stores) == history.model.visible()
            before = compared(stores)
        with stores_in(directory) as stores:
            stores.catch_up(at_start=True)
            assert compared(stores) == before
        shutil.rmtree(directory / "index")
        with stores_in(directory) as stores:
            stores.reindex(lambda _done, _all: None)
            assert shown(stores) == history.model.visible()
            assert compared(stores) == before
