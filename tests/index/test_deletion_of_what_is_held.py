"""A legal hold and a deletion of the same thing: one of them is first, and never both happen."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.correction_requests import Request
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.holds import Hold, HoldError, Holds, OnHoldError, add_hold, release_hold
from hounsfield.archive.index.journal import Journal
from hounsfield.storage_backends.api import Batch, Snapshot
from support.archives import ct_slice, store, stores_in

WHY = {"reason": "test", "actor": "tester"}
NOW = 1_000


def fill(stores: Stores, *studies: str, **named: str) -> None:
    async def run() -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for study in studies:
                for number in range(2):
                    data = ct_slice(study_uid=study, series_uid=f"{study}.1", number=number, **named)
                    await store(engine, data, ExplicitVRLittleEndian)

    trio.run(run)


def hold(stores: Stores, **on: str | int) -> Hold:
    fields = {"study_uid": "", "patient_id": "", "issuer": "", "by": "judge", "why": "case", "since_ns": NOW}
    return add_hold(stores.journal, Hold(hold_id="", **{**fields, **on}))  # type: ignore[arg-type]


def is_there(stores: Stores, study: str) -> bool:
    with stores.store.snapshot() as snapshot:
        return stores.catalog.study(snapshot, study) is not None


@pytest.mark.parametrize("on", [{"study_uid": "2.25.1"}, {"patient_id": "P-0001"}], ids=["study", "patient"])
def test_nothing_of_what_is_held_can_be_deleted(tmp_path: Path, on: dict[str, str]) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        fill(stores, "2.25.1")
        fill(stores, "2.25.2", patient_id="OTHER")
        one = hold(stores, **on)
        with stores.store.snapshot() as snapshot:
            row = stores.catalog.study(snapshot, "2.25.1")
            key = stores.catalog.series_key("2.25.1", "2.25.1.1")
            instance = next(stores.catalog.instances_of(snapshot, key))
        assert row is not None
        for target in (
            Target("2.25.1"),
            Target("2.25.1", "2.25.1.1"),
            Target("2.25.1", "2.25.1.1", (instance.sop_uid,)),
            Target("2.25.1", "2.25.1.1", (instance.sop_uid,), version=instance.location.record_id),
        ):
            with pytest.raises(OnHoldError, match=one.hold_id):
                stores.deletions.delete(target, now_ns=NOW + 1, **WHY)
            assert stores.deletions.look(target, now_ns=NOW + 1).holds == (one.hold_id,)
        stores.deletions.delete(Target("2.25.2"), now_ns=NOW + 1, **WHY)
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _total: None)
        with pytest.raises(OnHoldError, match=one.hold_id):
            stores.deletions.delete(Target("2.25.1"), now_ns=NOW + 2, **WHY)
        assert is_there(stores, "2.25.1")
        release_hold(stores.journal, one.hold_id, by="judge", why="over", now_ns=NOW + 3)
        stores.deletions.delete(Target("2.25.1"), now_ns=NOW + 4, **WHY)
        assert not is_there(stores, "2.25.1")


def test_a_hold_ends_on_its_day(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        fill(stores, "2.25.1")
        hold(stores, study_uid="2.25.1", until_ns=NOW + 10)
        with pytest.raises(OnHoldError):
            stores.deletions.delete(Target("2.25.1"), now_ns=NOW + 9, **WHY)
        stores.deletions.delete(Target("2.25.1"), now_ns=NOW + 10, **WHY)


def test_a_hold_needs_something_to_hold_and_a_reason(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        for wrong in (
            {},
            {"study_uid": "1", "patient_id": "2"},
            {"study_uid": "1", "why": " "},
            {"study_uid": "1", "until_ns": NOW},
        ):
            with pytest.raises(HoldError):
                hold(stores, **wrong)  # type: ignore[arg-type]
        with pytest.raises(HoldError):
            release_hold(stores.journal, "00000000", by="judge", why="over", now_ns=NOW)


@pytest.mark.parametrize("first", ["hold", "deletion"])
def test_of_a_hold_and_a_deletion_at_the_same_moment_one_is_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The deletion looked for holds, and before it is committed one is set."""
    with stores_in(tmp_path / "data") as stores:
        fill(stores, "2.25.1")
        planned = Journal._planned
        came = False

        def between(self: Journal, snapshot: Snapshot, *arguments: Any) -> Batch:
            nonlocal came
            made = planned(self, snapshot, *arguments)
            if not came:
                came = True
                hold(stores, study_uid="2.25.1")
            return made

        if first == "hold":
            monkeypatch.setattr(Journal, "_planned", between)
            with pytest.raises(OnHoldError):
                stores.deletions.delete(Target("2.25.1"), now_ns=NOW + 1, **WHY)
            assert is_there(stores, "2.25.1")
        else:
            stores.deletions.delete(Target("2.25.1"), now_ns=NOW + 1, **WHY)
            hold(stores, study_uid="2.25.1")
            assert not is_there(stores, "2.25.1")


def test_holds_and_deletions_race(tmp_path: Path) -> None:
    """From threads: a study that is held before it is deleted is there, and facts say the same."""
    with stores_in(tmp_path / "data") as stores:
        studies = [f"2.25.{number}" for number in range(1, 11)]
        fill(stores, *studies)
        start = threading.Barrier(2)
        refused: set[str] = set()

        def delete() -> None:
            for study in studies:
                start.wait()
                try:
                    stores.deletions.delete(Target(study), now_ns=NOW + 1, **WHY)
                except OnHoldError:
                    refused.add(study)

        thread = threading.Thread(target=delete)
        thread.start()
        for study in studies:
            start.wait()
            hold(stores, study_uid=study)
        thread.join()
        order: list[tuple[str, str]] = []
        with stores.store.snapshot() as snapshot:
            for _, event in stores.journal.read(snapshot, 0, 1000):
                if event.fact:
                    body = event.body["body"]
                    order.append((event.kind, body.get("study_uid") or body.get("study")))
        for study in studies:
            assert is_there(stores, study) == (study in refused)
            kinds = [kind for kind, of in order if of == study]
            assert kinds == (["hold"] if study in refused else ["deletion", "hold"])


def test_a_patient_is_held_through_a_merge(tmp_path: Path) -> None:
    """A study that is another patient's now is still held by what it was received as, and by both."""
    from hounsfield.archive.index.catalog import Catalog
    from hounsfield.archive.index.rows import ReceivedRow, StudyRow

    with stores_in(tmp_path / "data") as stores:
        catalog: Catalog = stores.catalog
        received = {0x00100020: "OLD"}
        row = StudyRow(
            "2.25.9", {0x00100020: "NEW"}, 1, 1, (), (),
            catalog.patient_key({0x00100020: "NEW"}, ""), 1, 1, 1,
            received=(ReceivedRow("2.25.8", (1,), received),),
        )  # fmt: skip
        keys = [catalog.patient_key(one.attributes, one.study_uid) for one in row.received]
        for on in (
            {"patient_id": "OLD"},
            {"patient_id": "NEW"},
            {"study_uid": "2.25.9"},
            {"study_uid": "2.25.8"},
        ):
            one = hold(stores, **on)
            with stores.store.snapshot() as snapshot:
                holds = Holds.load(snapshot, stores.journal, catalog, NOW)
            assert one.hold_id in holds.on(row, keys), on


@pytest.mark.parametrize("on", [{"study_uid": "2.25.1"}, {"patient_id": "P-0001"}], ids=["study", "patient"])
def test_what_is_in_quarantine_is_held_too(tmp_path: Path, on: dict[str, str]) -> None:
    """It is in no study, but says itself of which study and patient it is."""

    def without_uid(data: Dataset) -> None:
        data.SOPInstanceUID = ""

    async def quarantined(stores: Stores) -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await store(engine, ct_slice(study_uid="2.25.1", change=without_uid), ExplicitVRLittleEndian)

    with stores_in(tmp_path / "data") as stores:
        trio.run(quarantined, stores)
        with stores.store.snapshot() as snapshot:
            (row,) = stores.catalog.quarantined(snapshot)
        target = Target(quarantined=row.location.record_id)
        one = hold(stores, **on)
        with pytest.raises(OnHoldError, match=one.hold_id):
            stores.deletions.delete(target, now_ns=NOW + 1, **WHY)
        assert stores.deletions.look(target, now_ns=NOW + 1).holds == (one.hold_id,)
        release_hold(stores.journal, one.hold_id, by="judge", why="over", now_ns=NOW + 2)
        assert stores.deletions.delete(target, now_ns=NOW + 3, **WHY).quarantined == 1


@pytest.mark.parametrize("merged", [False, True], ids=["held by its own id", "held by what it became"])
@pytest.mark.parametrize("same_object", [False, True], ids=["beside", "as a version"])
def test_an_object_of_a_held_patient_in_the_study_of_another(
    tmp_path: Path, same_object: bool, merged: bool
) -> None:
    """The first received says whose study it is; what came later is no less evidence."""

    async def both(stores: Stores) -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for number, patient in enumerate(("FIRST", "CAME AS" if merged else "HELD")):
                data = ct_slice(
                    study_uid="2.25.1", series_uid="2.25.2", patient_id=patient,
                    sop_uid="2.25.3" if same_object else f"2.25.3{number}",
                )  # fmt: skip
                await store(engine, data, ExplicitVRLittleEndian)
            if merged:
                await engine.correcting.make(Request(
                    kind="merge", actor="t", reason="w", patient=("CAME AS", ""), to_patient=("HELD", ""),
                    even_if_unknown=True,
                ))  # fmt: skip

    with stores_in(tmp_path / "data") as stores:
        trio.run(both, stores)
        one = hold(stores, patient_id="HELD")
        with pytest.raises(OnHoldError, match=one.hold_id):
            stores.deletions.delete(Target("2.25.1"), now_ns=NOW + 1, **WHY)
        assert stores.deletions.look(Target("2.25.1"), now_ns=NOW + 1).holds == (one.hold_id,)
        release_hold(stores.journal, one.hold_id, by="judge", why="over", now_ns=NOW + 2)
        hold(stores, patient_id="NOBODY")
        assert stores.deletions.delete(Target("2.25.1"), now_ns=NOW + 3, **WHY).studies == 1


def test_a_blank_copied_along_holds_all_the_same(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        fill(stores, "2.25.1")
        for on in ({"study_uid": "2.25.1 "}, {"patient_id": " P-0001\n"}):
            one = hold(stores, **on)
            with pytest.raises(OnHoldError, match=one.hold_id):
                stores.deletions.delete(Target("2.25.1"), now_ns=NOW + 1, **WHY)
            release_hold(stores.journal, one.hold_id, by="judge", why="over", now_ns=NOW + 2)
