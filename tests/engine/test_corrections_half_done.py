"""Killed, overtaken or beside others: a correction holds for everything, or for nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.correction_requests import CorrectionPlanner, Request
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import correcting, tables
from hounsfield.archive.index.rows import CorrectionRow, StudyRow
from hounsfield.storage_backends.api import Batch
from support.archives import ct_slice, store, stores_in
from support.killed_commits import KilledError, kill_after

NAME, ID = 0x00100010, 0x00100020
STUDIES = [f"1.2.3.{n}" for n in range(9)]


async def fill(stores: Stores, sent: list[bytes]) -> None:
    async with open_engine(stores, EngineOptions(), owner="test") as engine:
        for data in sent:
            await store(engine, data, ExplicitVRLittleEndian)


def slices(count: int = 9, patient: str = "A", series: int = 2) -> list[bytes]:
    return [
        ct_slice(
            study_uid=STUDIES[n], series_uid=f"{STUDIES[n]}.{s}", patient_id=patient, patient_name="Alt^Anna"
        )
        for n in range(count)
        for s in range(series)
    ]


def make(stores: Stores, kind: str, **what: Any) -> CorrectionRow:
    request = Request(kind=kind, actor="tester", reason="it was wrong", **what)
    planner = CorrectionPlanner(stores.catalog, stores.corrections)
    at_ns = time.time_ns()
    return stores.corrections.make(lambda snapshot, number: planner.plan(snapshot, number, request, at_ns))


def studies(stores: Stores) -> dict[str, StudyRow]:
    """Every study row, checked against what lies below it."""
    catalog = stores.catalog
    found: dict[str, StudyRow] = {}
    with stores.store.snapshot() as snapshot:
        patients: dict[bytes, int] = {}
        for key, sealed in snapshot.scan(tables.STUDY):
            row = catalog.open_row(tables.STUDY, key, sealed, StudyRow)
            found[row.uid] = row
            patients[row.patient_key] = patients.get(row.patient_key, 0) + 1
            below = dict(catalog.series_of(snapshot, key))
            counts = [len(list(catalog.instances_of(snapshot, one))) for one in below]
            assert (row.series, row.instances) == (len(below), sum(counts))
            assert [one.instances for one in below.values()] == counts
            assert len({(group.study_uid, group.path) for group in row.received}) == len(row.received)
        assert {key for key, _ in snapshot.scan(tables.PATIENT)} == patients.keys()
    return found


@pytest.mark.parametrize("kind", ["set-patient", "merge", "move-series"])
def test_killed_at_any_commit_it_holds_for_all_studies_or_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(correcting, "STUDIES_PER_COMMIT", 1)
    what: dict[str, Any] = {
        "set-patient": {"patient": ("A", ""), "values": {NAME: "Neu^Nora"}},
        "merge": {"patient": ("A", ""), "to_patient": ("B", ""), "values": {NAME: "Neu^Nora"}},
        "move-series": {"study": STUDIES[0], "series": (f"{STUDIES[0]}.1",), "to_study": STUDIES[1]},
    }[kind]
    ended = False
    for commits in range(40):
        directory = tmp_path / str(commits)
        with stores_in(directory) as stores:
            trio.run(fill, stores, slices(3))
            before = studies(stores)
            with monkeypatch.context() as patch:
                kill_after(stores, patch, commits)
                try:
                    make(stores, kind, **what)
                    ended = True
                except KilledError:
                    pass
            studies(stores)  # nothing is half-visible at this moment either
        with stores_in(directory) as stores:
            stores.catch_up(at_start=True)
            after = studies(stores)
            with stores.store.snapshot() as snapshot:
                made = stores.corrections.all(snapshot)
                assert not list(snapshot.scan(tables.META, prefix=b"correcting/"))
        if not made:
            assert after == before
        elif kind == "move-series":
            assert [after[STUDIES[n]].instances for n in (0, 1)] == [1, 3]
        else:
            assert {row.attributes[NAME] for row in after.values()} == {"Neu^Nora"}
            assert all(row.corrections == (made[0].number,) for row in after.values())
        if ended:
            break
    assert ended
    assert commits >= 2


@pytest.mark.parametrize("kind", ["merge", "merge of one unknown", "move-series"])
def test_what_is_being_stored_while_a_correction_is_made_is_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The object's plan is older than the correction, its commit younger."""
    with stores_in(tmp_path / "data") as stores:
        patient = "Z" if kind == "merge of one unknown" else "A"
        other = ct_slice(study_uid=STUDIES[1], patient_id="B", patient_name="Berg^Bo")
        trio.run(fill, stores, [*slices(1), other])
        commit_many = stores.store.commit_many
        pending = [1]

        def overtaken(batches: list[Batch], **more: Any) -> Any:
            stores_study = any(table is tables.STUDY for batch in batches for table, _, _ in batch.puts)
            if pending and stores_study:
                pending.clear()
                if kind != "move-series":
                    make(stores, "merge", patient=(patient, ""), to_patient=("B", ""), even_if_unknown=True)
                else:
                    series = (f"{STUDIES[0]}.0",)
                    make(stores, "move-series", study=STUDIES[0], series=series, to_study=STUDIES[1])
            return commit_many(batches, **more)

        monkeypatch.setattr(stores.store, "commit_many", overtaken)
        new = [STUDIES[2], STUDIES[0]][kind == "move-series"]
        late = ct_slice(study_uid=new, series_uid=f"{new}.0", patient_id=patient, patient_name="Alt^Anna")
        trio.run(fill, stores, [late])
        assert not pending
        found = studies(stores)
        if kind != "move-series":
            assert found[new].attributes[ID] == "B"
        else:
            assert [found[STUDIES[n]].instances for n in (0, 1)] == [1, 3]


def test_a_patient_of_many_studies_is_corrected_in_short_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correcting, "STUDIES_PER_COMMIT", 8)
    with stores_in(tmp_path / "data") as stores:
        sent = [ct_slice(study_uid=f"1.2.9.{n}", patient_id="A", patient_name="Alt^Anna") for n in range(100)]
        trio.run(fill, stores, sent)
        sizes: list[int] = []
        commit_many = stores.store.commit_many

        def counted(batches: list[Batch], **more: Any) -> Any:
            sizes.append(len(batches))
            return commit_many(batches, **more)

        monkeypatch.setattr(stores.store, "commit_many", counted)
        steps: list[tuple[int, int]] = []
        request = Request(
            kind="set-patient", actor="t", reason="r", patient=("A", ""), values={NAME: "Neu^Nora"}
        )
        planner = CorrectionPlanner(stores.catalog, stores.corrections)
        row = stores.corrections.make(
            lambda snapshot, number: planner.plan(snapshot, number, request, 1),
            lambda *step: steps.append(step),
        )
        assert max(sizes) <= 8
        assert sum(sizes) >= 100
        assert steps[0] == (0, 100)
        assert steps[-1] == (100, 100)
        assert {one.attributes[NAME] for one in studies(stores).values()} == {"Neu^Nora"}
        with stores.store.snapshot() as snapshot:
            assert len(snapshot.postings(tables.CORRECTED, row.number.to_bytes(8, "big"))) == 100


def test_without_corrections_an_object_pays_one_look_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stores_in(tmp_path / "data") as stores:
        trio.run(fill, stores, slices(1))
        looks: list[bytes] = []
        with stores.store.snapshot() as snapshot:
            kind = type(snapshot)
        get = kind.get

        def counted(self: Any, table: Any, key: bytes) -> Any:
            if table in {tables.CORRECTION, tables.CORRECTED} or key == b"corrections":
                looks.append(key)
            return get(self, table, key)

        monkeypatch.setattr(kind, "get", counted)
        trio.run(fill, stores, slices(1)[:1])
        # Looking for duplicates and planning are a snapshot each; the study's batch asks once more.
        assert looks.count(b"corrections") <= 3
        assert set(looks) <= {b"corrections"}
