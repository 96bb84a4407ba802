"""A duplicate never destroys the original (the same object twice, other content under the same UIDs)."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.index.rows import PatientRow
from hounsfield.archive.index.tables import PATIENT
from support.archives import ct_slice, store, stored_bytes, stores_in

UIDS = {"study_uid": generate_uid(), "series_uid": generate_uid(), "sop_uid": generate_uid()}


def versions(stores: Stores, result: StoreResult) -> list[bytes]:
    key = stores.catalog.instance_key(result.study_uid, result.series_uid, result.sop_instance_uid)
    with stores.store.snapshot() as snapshot:
        return [row.location.record_id for row in stores.catalog.versions(snapshot, key)]


async def counted(engine: Engine) -> tuple[str, str]:
    (found,) = (await engine.search(parse_qido(Level.STUDY, []))).rows
    return found.study[0x00201206], found.study[0x00201208]


async def test_the_same_object_again_is_success_and_stored_once(tmp_path: Path) -> None:
    data = ct_slice(**UIDS)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            first = await store(engine, data, ExplicitVRLittleEndian)
            size = stores.log.size(stores.log.segment_ids()[0])
            again = await store(engine, data, ExplicitVRLittleEndian)
            assert (first.outcome, again.outcome) == (Outcome.STORED, Outcome.DUPLICATE)
            assert stores.log.size(stores.log.segment_ids()[0]) == size
            assert await counted(engine) == ("1", "1")


async def test_the_same_object_from_two_senders_at_once(tmp_path: Path) -> None:
    data = ct_slice(**UIDS)
    outcomes = []
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:

            async def send() -> None:
                outcomes.append((await store(engine, data, ExplicitVRLittleEndian)).outcome)

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(send)
            assert await counted(engine) == ("1", "1")
    assert sorted(outcome.value for outcome in outcomes) == ["duplicate"] * 7 + ["stored"]


@pytest.mark.parametrize(("policy", "served"), [("keep-first", 0), ("newest-current", 1)])
async def test_other_content_under_the_same_uids_is_kept_beside(
    tmp_path: Path, policy: str, served: int
) -> None:
    sent = [ct_slice(**UIDS), ct_slice(**UIDS)]
    options = EngineOptions(duplicates=policy)
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            first = await store(engine, sent[0], ExplicitVRLittleEndian)
            second = await store(engine, sent[1], ExplicitVRLittleEndian)
            assert (first.outcome, second.outcome) == (Outcome.STORED, Outcome.CONFLICT)
            assert second.warnings
            assert await stored_bytes(engine, first) == sent[served]
            assert len(versions(stores, first)) == 1
            # Either of the two again is a duplicate, not a third version.
            for data in sent:
                assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE
            assert len(versions(stores, first)) == 1
            assert await counted(engine) == ("1", "1")


async def test_a_comparison_that_fails_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:

            def broken(received: object, held: object) -> bool:
                raise RuntimeError

            monkeypatch.setattr(engine.comparing, "is_held", broken)
            first = await store(engine, ct_slice(**UIDS), ExplicitVRLittleEndian)
            second = await store(engine, ct_slice(**UIDS), ExplicitVRLittleEndian)
            assert (first.outcome, second.outcome) == (Outcome.STORED, Outcome.CONFLICT)
            assert len(versions(stores, first)) == 1


async def test_the_same_sop_instance_uid_in_another_study_is_another_instance(tmp_path: Path) -> None:
    sop_uid = generate_uid()
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            results = [
                await store(engine, ct_slice(sop_uid=sop_uid), ExplicitVRLittleEndian) for _ in range(2)
            ]
            assert [result.outcome for result in results] == [Outcome.STORED, Outcome.STORED]
            found = await engine.search(parse_qido(Level.INSTANCE, [("SOPInstanceUID", sop_uid)]))
            assert len(found.rows) == 2


async def test_demographics_that_disagree_are_flagged_and_the_first_win(tmp_path: Path) -> None:
    study_uid = generate_uid()
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await store(
                engine, ct_slice(study_uid=study_uid, patient_name="First^Ada"), ExplicitVRLittleEndian
            )
            await store(
                engine, ct_slice(study_uid=study_uid, patient_name="Second^Bo"), ExplicitVRLittleEndian
            )
            (found,) = (await engine.search(parse_qido(Level.STUDY, []))).rows
            assert found.study[0x00100010] == "First^Ada"
        with stores.store.snapshot() as snapshot:
            row = stores.catalog.study(snapshot, study_uid)
            assert row is not None
            assert row.flags == ("attributes-disagree:00100010",)


async def test_many_new_studies_of_one_patient_are_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share its row: each used to fail all that followed, at a cost that grew with the square."""
    with stores_in(tmp_path / "data") as stores:
        plans = []
        plan_study = stores.catalog.plan_study
        monkeypatch.setattr(
            stores.catalog, "plan_study", lambda *arguments: plans.append(1) or plan_study(*arguments)
        )
        async with (
            open_engine(stores, EngineOptions(), owner="test") as engine,
            trio.open_nursery() as nursery,
        ):
            for _ in range(40):
                nursery.start_soon(store, engine, ct_slice(), ExplicitVRLittleEndian)
        with stores.store.snapshot() as snapshot:
            ((key, sealed),) = snapshot.scan(PATIENT)
            assert stores.catalog.open_row(PATIENT, key, sealed, PatientRow).studies == 40
    assert len(plans) == 40
