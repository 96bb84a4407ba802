"""An appointment brings nothing back, or what it should not: other patients, everything, the wrong day."""

from __future__ import annotations

import datetime
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.index.prefetching import Prefetch, PrefetchError, Prefetching, PrefetchRule
from support.archives import ct_slice, store, stores_in

HOUR = 3600 * 1_000_000_000
NOW = int(datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC).timestamp()) * 1_000_000_000
TOMORROW = Prefetch("ORDER-1", "P-0001", NOW + 20 * HOUR, modality="CT", body_part="CHEST")


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as opened:
            yield opened


async def receive(engine: Engine, date: str, modality: str = "CT", part: str = "CHEST", **more: str) -> str:
    study = generate_uid()
    issuer, description = more.pop("issuer", ""), more.pop("description", "")

    def say(data: Dataset) -> None:
        data.StudyDate, data.Modality, data.BodyPartExamined = date, modality, part
        data.StudyDescription = description
        if issuer:
            data.IssuerOfPatientID = issuer

    await store(engine, ct_slice(study_uid=study, change=say, **more), ExplicitVRLittleEndian)
    return str(study)


def prefetching(engine: Engine, **rule: object) -> Prefetching:
    stores = engine.stores
    wanted = PrefetchRule(**rule)  # type: ignore[arg-type]
    return Prefetching(stores.store, stores.journal, stores.catalog, stores.planner, wanted)


def studies(engine: Engine, wanted: Prefetch, **rule: object) -> list[str]:
    """The studies whose series are wanted, in order."""
    catalog = engine.stores.catalog
    found: dict[str, None] = {}
    with engine.stores.store.snapshot() as snapshot:
        for key in prefetching(engine, **rule).series_for(wanted):
            study = catalog.study_by_id(snapshot, key[:12])
            assert study is not None
            found[study.uid] = None
    return list(found)


async def test_the_priors_that_share_most_come_first_then_the_newest(engine: Engine) -> None:
    knee = await receive(engine, "20260901", "MR", "KNEE")
    old_chest = await receive(engine, "20200101")
    chest = await receive(engine, "20240101")
    chest_x_ray = await receive(engine, "20260801", "CR")
    head = await receive(engine, "20260701", "CT", "HEAD")
    assert studies(engine, TOMORROW, priors_max=9) == [chest, old_chest, chest_x_ray, head, knee]
    assert studies(engine, TOMORROW) == [chest, old_chest, chest_x_ray]
    assert studies(engine, TOMORROW, only="modality", priors_max=9) == [chest, old_chest, head]
    assert studies(engine, TOMORROW, only="body-part", priors_max=9) == [chest, old_chest, chest_x_ray]
    assert studies(engine, TOMORROW, only="both", priors_max=9) == [chest, old_chest]
    assert studies(engine, TOMORROW, priors_max=0) == []
    assert studies(engine, TOMORROW, years_max=5, priors_max=9) == [chest, chest_x_ray, head, knee]


async def test_a_body_part_may_stand_in_the_description_only(engine: Engine) -> None:
    other = await receive(engine, "20260901", "MR", "")
    said = await receive(engine, "20200101", "MR", "", description="Thorax, chest a.p.")
    assert studies(engine, TOMORROW, priors_max=9) == [said, other]


async def test_reports_are_no_modality_of_a_study(engine: Engine) -> None:
    report = await receive(engine, "20260901", "SR", "")
    assert studies(engine, replace(TOMORROW, modality="SR"), only="modality") == []
    assert studies(engine, TOMORROW) == [report]


async def test_nobody_elses_studies_come(engine: Engine) -> None:
    await receive(engine, "20260901", patient_id="P-0002")
    own = await receive(engine, "20260901")
    elsewhere = await receive(engine, "20260801", issuer="OTHER")
    assert studies(engine, TOMORROW, priors_max=9) == [own, elsewhere]
    assert studies(engine, replace(TOMORROW, issuer="HERE"), priors_max=9) == [own]
    for patient_id in ("P-000*", "P-000?", "P-0001\\P-0002", "*"):
        assert studies(engine, replace(TOMORROW, patient_id=patient_id)) == []


async def test_it_is_time_when_it_is_time_and_once(engine: Engine) -> None:
    here = prefetching(engine, hours_before=12.0)
    here.announce(TOMORROW, NOW)
    here.announce(TOMORROW, NOW)
    later = replace(TOMORROW, name="ORDER-2", at_ns=NOW + 100 * HOUR)
    here.announce(later, NOW)
    assert here.waiting() == [TOMORROW, later]
    assert here.due(NOW) == []
    assert here.due(NOW + 7 * HOUR) == []
    assert here.due(NOW + 8 * HOUR) == [TOMORROW]
    here.announce(replace(TOMORROW, at_ns=NOW + 50 * HOUR), NOW)  # it was put off
    assert here.due(NOW + 8 * HOUR) == []
    here.forget(TOMORROW.name, NOW)
    here.forget(TOMORROW.name, NOW)
    assert here.waiting() == [later]


@pytest.mark.parametrize("wrong", [{"patient_id": " "}, {"name": ""}, {"name": "x" * 129}])
async def test_an_appointment_that_says_too_little_is_refused(engine: Engine, wrong: dict[str, str]) -> None:
    with pytest.raises(PrefetchError):
        prefetching(engine).announce(replace(TOMORROW, **wrong), NOW)  # type: ignore[arg-type]


async def test_an_appointment_survives_a_reindex(tmp_path: Path) -> None:
    import shutil

    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            prefetching(engine).announce(TOMORROW, time.time_ns())
    shutil.rmtree(tmp_path / "data" / "index")
    with stores_in(tmp_path / "data") as stores:
        stores.reindex(lambda _done, _total: None)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert prefetching(engine).waiting() == [TOMORROW]
