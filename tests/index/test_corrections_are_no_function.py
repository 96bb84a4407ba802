"""What is shown depends on what was received and on the corrections in force, and on nothing else."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.correction_requests import CorrectionPlanner, Request
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import tables
from hounsfield.archive.index.correcting import CorrectionError
from hounsfield.archive.index.deletion import NothingToDeleteError, Target
from hounsfield.archive.index.remaining import settle_order
from hounsfield.archive.index.rows import (
    CorrectionsRow,
    InstanceRow,
    PatientRow,
    SeriesRow,
    StudyRow,
)
from support.archives import ct_slice, store, stores_in

NAME, ID, BIRTH, ACCESSION = 0x00100010, 0x00100020, 0x00100030, 0x00080050
STUDIES = [f"1.2.3.{n}" for n in range(3)]
SERIES = [f"1.2.4.{n}" for n in range(2)]
SOPS = [f"1.2.5.{n}" for n in range(3)]
PATIENTS = [("A", ""), ("B", ""), ("A", "X")]
NAMES = ["Alt^Anna", "Berg^Bo", ""]


def shown(stores: Stores, *, bare: bool = False) -> dict[str, Any]:
    """Every row that is about what is stored, without moments; ``bare``: without what is kept for later."""
    catalog = stores.catalog
    out: dict[str, Any] = {}
    kinds = {
        tables.STUDY: StudyRow, tables.SERIES: SeriesRow, tables.INSTANCE: InstanceRow,
        tables.VERSION: InstanceRow, tables.PATIENT: PatientRow, tables.CORRECTION: CorrectionsRow,
    }  # fmt: skip
    with stores.store.snapshot() as snapshot:
        for table, kind in kinds.items():
            rows = {key: catalog.open_row(table, key, sealed, kind) for key, sealed in snapshot.scan(table)}
            for key, row in rows.items():
                if isinstance(row, StudyRow):
                    own = (row.attributes, row.series, row.instances, row.modalities, row.sop_classes,
                           row.patient_key, row.flags)  # fmt: skip
                    said: Any = own if bare else (*own, row.received, row.corrections)
                elif isinstance(row, SeriesRow):
                    said = (
                        row.uid,
                        row.attributes,
                        row.instances,
                        row.sop_classes,
                        row.transfer_syntaxes,
                        row.flags,
                    )
                elif isinstance(row, InstanceRow):
                    said = (row.sop_uid, row.location.record_id, row.attributes, row.flags, row.received)
                elif isinstance(row, PatientRow):
                    said = row.studies
                else:
                    said = row
                out[f"{table.name} {key.hex()}"] = said
        for table in (tables.PLACE, tables.TOKEN, tables.CORRECTED):
            out[table.name] = sorted(snapshot.entries(table))
    return out


class Archive:
    """An archive with a history."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.made: list[int] = []

    async def store(self, engine: Any, numbers: list[int]) -> None:
        study, series, sop, patient, name, pixels = numbers
        patient_id, issuer = PATIENTS[patient % 3]

        def change(data: Any) -> None:
            data.IssuerOfPatientID = issuer
            data.StudyID = f"{study % 3}"

        data = ct_slice(
            study_uid=STUDIES[study % 3], series_uid=SERIES[series % 2], sop_uid=SOPS[sop % 3],
            patient_id=patient_id, patient_name=NAMES[name % 3], number=sop % 3,
            pixels=bytes([pixels % 2]) * 512, change=change,
        )  # fmt: skip
        await store(engine, data, ExplicitVRLittleEndian)

    def correct(self, numbers: list[int]) -> None:
        kind, a, b, c, d, e = numbers
        places = self._places()
        studies = sorted({place[0] for place in places}) or [STUDIES[0]]
        study = studies[a % len(studies)]
        inside = [place for place in places if place[0] == study] or [("", SERIES[0], SOPS[0])]
        source, target = PATIENTS[a % 3], PATIENTS[b % 3]
        values = [{NAME: "Neu^Nora"}, {BIRTH: ""}, {NAME: "Neu^Nils", BIRTH: "19990101"}, {ID: f"N{d % 2}"}][
            c % 4
        ]
        other = [*STUDIES, "1.2.9.1"][b % 4]
        what: dict[str, Any] = [
            {"kind": "set-patient", "patient": source, "values": values},
            {"kind": "set-study", "study": study, "values": {**values, ACCESSION: f"ACC-{d % 3}"}},
            {"kind": "merge", "patient": source, "to_patient": target},
            {"kind": "move-study", "study": study, "to_patient": target},
            {
                "kind": "move-series",
                "study": study,
                "series": (inside[d % len(inside)][1],),
                "to_study": other,
            },
            {"kind": "split", "study": study, "instances": (inside[e % len(inside)][2],), "to_study": other},
        ][kind % 6 if kind < 10 else 4 + kind % 2]
        request = Request(actor="tester", reason="it was wrong", even_if_unknown=True, **what)
        planner = CorrectionPlanner(self.stores.catalog, self.stores.corrections)
        at_ns = time.time_ns()
        try:
            made = self.stores.corrections.make(lambda snapshot, n: planner.plan(snapshot, n, request, at_ns))
        except CorrectionError:
            return
        self.made.append(made.number)

    def revert(self, which: int) -> None:
        if self.made:
            number = self.made.pop(which % len(self.made))
            self.stores.corrections.revert(
                number, actor="tester", reason="it was right", at_ns=time.time_ns()
            )

    def delete(self, numbers: list[int]) -> None:
        places = self._places()
        if not places:
            return
        study, series, sop = places[numbers[0] % len(places)]
        target = [Target(study), Target(study, series), Target(study, series, (sop,))][numbers[1] % 3]
        try:
            self.stores.deletions.delete(target, reason="gone", actor="tester", now_ns=time.time_ns())
        except NothingToDeleteError:
            return

    def _places(self) -> list[tuple[str, str, str]]:
        catalog = self.stores.catalog
        found = []
        with self.stores.store.snapshot() as snapshot:
            for key, sealed in snapshot.scan(tables.STUDY):
                study = catalog.open_row(tables.STUDY, key, sealed, StudyRow)
                for series_key, series in catalog.series_of(snapshot, key):
                    found += [
                        (study.uid, series.uid, one.sop_uid)
                        for one in catalog.instances_of(snapshot, series_key)
                    ]
        return sorted(found)


numbers = st.lists(st.integers(0, 11), min_size=6, max_size=6)
steps = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "store", "correct", "correct", "revert", "delete"]), numbers
    ),
    min_size=4,
    max_size=24,
)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(history=steps, newest=st.booleans())
def test_any_history_gives_what_a_reindex_gives(history: list[tuple[str, list[int]]], newest: bool) -> None:
    options = EngineOptions(duplicates="newest-current" if newest else "keep-first")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "data"

        async def live() -> None:
            async with open_engine(stores, options, owner="test") as engine:
                for number in range(6):  # something to correct
                    await archive.store(engine, [number // 2, number % 2, 0, number // 2, 0, 0])
                for what, how in history:
                    if what == "store":
                        await archive.store(engine, how)
                    elif what == "correct":
                        archive.correct(how)
                    elif what == "revert":
                        archive.revert(how[0])
                    else:
                        archive.delete(how)

        with stores_in(directory, options) as stores:
            archive = Archive(stores)
            trio.run(live)
            before = shown(stores)
        shutil.rmtree(directory / "index")
        with stores_in(directory, options) as stores:
            stores.reindex(lambda _done, _total: None)
            assert shown(stores) == before
        # The same when all corrections are known before the first object comes.
        shutil.rmtree(directory / "index")
        with stores_in(directory, options) as stores:
            stores.sealer.prepare(10_000)
            stores.journal.replay(stores.journal.pending(lambda _: None))
            stores.reindex(lambda _done, _total: None)
            settle_order(stores.indexer)
            stores.corrections.resume()
            assert shown(stores) == before
        # And taken back, in any order, they leave nothing.
        with stores_in(directory, options) as stores:
            archive.stores = stores
            while archive.made:
                archive.revert(len(history))
            nothing = shown(stores, bare=True)
            assert not any(key.startswith("correction ") for key in nothing)
            assert nothing["corrected"] == []
            with stores.store.snapshot() as snapshot:
                catalog = stores.catalog
                for table in (tables.INSTANCE, tables.VERSION):
                    for key, sealed in snapshot.scan(table):
                        assert catalog.open_row(table, key, sealed, InstanceRow).received is None
                for key, sealed in snapshot.scan(tables.STUDY):
                    study = catalog.open_row(tables.STUDY, key, sealed, StudyRow)
                    assert (study.received, study.corrections) == ((), ())


def test_a_series_that_stays_where_it_is_came_there_on_another_way(tmp_path: Path) -> None:
    """There, back, there again, the first two taken back: what was said in between was said of others."""
    description, elsewhere = 0x00081030, "1.2.9.1"
    there = {"kind": "move-series", "series": (SERIES[0],)}
    with stores_in(tmp_path / "data") as stores:

        def correct(**what: Any) -> int:
            planner, at_ns = CorrectionPlanner(stores.catalog, stores.corrections), time.time_ns()
            request = Request(actor="t", reason="wrong", **what)
            return stores.corrections.make(
                lambda snapshot, n: planner.plan(snapshot, n, request, at_ns)
            ).number

        def revert(number: int) -> None:
            stores.corrections.revert(number, actor="t", reason="right", at_ns=time.time_ns())

        async def fill() -> None:
            async with open_engine(stores, EngineOptions(), owner="test") as engine:
                await Archive(stores).store(engine, [0, 0, 0, 0, 0, 0])

        trio.run(fill)
        first = correct(**there, study=STUDIES[0], to_study=elsewhere)
        correct(kind="set-study", study=elsewhere, values={description: "of another"})
        back = correct(**there, study=elsewhere, to_study=STUDIES[0])
        last = correct(**there, study=STUDIES[0], to_study=elsewhere)
        revert(back)
        revert(first)
        with stores.store.snapshot() as snapshot:
            study = stores.catalog.study(snapshot, elsewhere)
        assert study is not None
        assert [one.path for one in study.received] == [(last,)]
        assert study.corrections == (last,)
        assert study.attributes[description] == "Thorax nativ"
        before = shown(stores)
    shutil.rmtree(tmp_path / "data" / "index")
    with stores_in(tmp_path / "data") as stores:
        stores.reindex(lambda _done, _total: None)
        assert shown(stores) == before
