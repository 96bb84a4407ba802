"""What was in a study when that was put on hold stays on hold, wherever corrections take it."""

from __future__ import annotations

import random
import shutil
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.correction_requests import CorrectionPlanner, Request
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.errors import HeldError
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import tables
from hounsfield.archive.index.correcting import CorrectionError
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.holds import Hold, OnHoldError, add_hold, release_hold
from hounsfield.archive.index.rows import InstanceRow, StudyRow
from support.archives import ct_slice, store, stores_in
from support.rejection import SAFETY, note

S, T, U = "2.25.1", "2.25.2", "2.25.3"
SERIES, SOP = "2.25.1.1", "2.25.1.1.1"


def send(stores: Stores, *sent: bytes) -> None:
    async def run() -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for data in sent:
                await store(engine, data, ExplicitVRLittleEndian)

    trio.run(run)


def one(study: str = S, series: str = SERIES, sop: str = SOP, **more: Any) -> bytes:
    return ct_slice(study_uid=study, series_uid=series, sop_uid=sop, **more)


def fix(stores: Stores, kind: str, **what: Any) -> int:
    request = Request(kind=kind, actor="t", reason="it was wrong", **what)
    planner = CorrectionPlanner(stores.catalog, stores.corrections)
    at_ns = time.time_ns()
    return stores.corrections.make(lambda snapshot, n: planner.plan(snapshot, n, request, at_ns)).number


def move(stores: Stores, study: str, to_study: str, series: str = SERIES) -> int:
    return fix(stores, "move-series", study=study, series=(series,), to_study=to_study)


def revert(stores: Stores, number: int) -> None:
    stores.corrections.revert(number, actor="t", reason="right", at_ns=time.time_ns())


def hold(stores: Stores, study: str = "", patient: str = "") -> str:
    made = Hold("", study, patient, "", "judge", "case", time.time_ns())
    return add_hold(stores.journal, made).hold_id


def delete(stores: Stores, study: str, series: str = "", *sops: str) -> None:
    stores.deletions.delete(Target(study, series, sops), reason="r", actor="t", now_ns=time.time_ns())


def assert_held(stores: Stores, held: str, study: str, series: str = SERIES, sop: str = SOP) -> None:
    for target in ((study,), (study, series), (study, series, sop)):
        with pytest.raises(OnHoldError, match=held):
            delete(stores, *target)


def assert_released(stores: Stores, held: str, study: str) -> None:
    release_hold(stores.journal, held, by="judge", why="over", now_ns=time.time_ns())
    delete(stores, study)


@pytest.fixture(params=["numbered", "by time"])
def numbered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts of earlier releases do not say which number they have."""
    if request.param == "by time":
        body = Hold.body
        monkeypatch.setattr(Hold, "body", lambda self: {**body(self), "number": 0})


@pytest.mark.usefixtures("numbered")
def test_moved_on_out_of_a_held_study(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        send(stores, one())
        move(stores, S, T)
        held = hold(stores, T)
        move(stores, T, U)
        assert_held(stores, held, U)
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _all: None)
        assert_held(stores, held, U)
        assert_released(stores, held, U)


def test_a_guest_moved_out_of_a_held_study(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        send(stores, one(), one(T, "2.25.2.1", "2.25.2.1.1", patient_id="HOST"))
        move(stores, S, T)
        by_study, by_patient = hold(stores, T), hold(stores, patient="HOST")
        move(stores, T, U)
        assert_held(stores, by_study, U)
        assert_held(stores, by_patient, U)
        release_hold(stores.journal, by_study, by="judge", why="over", now_ns=time.time_ns())
        assert_released(stores, by_patient, U)


def test_a_held_part_of_a_study_moved_on(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        send(stores, one(), one(sop=f"{SOP}.2"))
        fix(stores, "split", study=S, instances=(SOP,), to_study=T)
        held = hold(stores, T)
        with stores.store.snapshot() as snapshot:
            ((_, series),) = stores.catalog.series_of(snapshot, stores.catalog.study_id(T))
        move(stores, T, U, series.uid)
        assert_held(stores, held, U, series.uid)
        delete(stores, S)  # the rest was never in it


@pytest.mark.parametrize("taken_back", [False, True], ids=["moved on", "move taken back"])
def test_hidden_by_a_rejection_after_that(tmp_path: Path, taken_back: bool) -> None:
    with stores_in(tmp_path / "data") as stores:
        send(stores, one())
        number = move(stores, S, T)
        held = hold(stores, T)
        if taken_back:
            revert(stores, number)
        else:
            move(stores, T, U)
        send(stores, note({S if taken_back else U: {SERIES: [SOP]}}, SAFETY))
        with stores.store.snapshot() as snapshot:
            (rejection,) = stores.rejections.all(snapshot)

        async def run() -> None:
            async with open_engine(stores, EngineOptions(), owner="test") as engine:
                with pytest.raises(HeldError, match=held):
                    await engine.rejecting.delete(rejection.number, actor="t", reason="r")
                release_hold(stores.journal, held, by="judge", why="over", now_ns=time.time_ns())
                assert await engine.rejecting.delete(rejection.number, actor="t", reason="r")

        trio.run(run)


@pytest.mark.usefixtures("numbered")
def test_the_move_is_taken_back(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        send(stores, one())
        number = move(stores, S, T)
        held = hold(stores, T)
        revert(stores, number)
        assert_held(stores, held, S)
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _all: None)
        assert_held(stores, held, S)
        assert_released(stores, held, S)


@pytest.mark.usefixtures("numbered")
def test_what_was_not_there_when_the_hold_was_set_is_not_held(tmp_path: Path) -> None:
    """The hold is from after a move was taken back, and from before another that is taken back."""
    with stores_in(tmp_path / "data") as stores:
        send(stores, one(), one(T, "2.25.2.1", "2.25.2.1.1"))
        revert(stores, move(stores, S, T))
        held = hold(stores, T)
        number = move(stores, S, T)
        assert_held(stores, held, T)  # in a held study nothing is deleted
        revert(stores, number)
        delete(stores, S)
        assert_held(stores, held, T, "2.25.2.1", "2.25.2.1.1")


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0,), (1,)])
def test_moved_on_and_taken_back_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    with stores_in(tmp_path / "data") as stores:
        send(stores, one())
        first = move(stores, S, T)
        held = hold(stores, T)
        moves = (first, move(stores, T, U))
        for each in order:
            revert(stores, moves[each])
        assert_held(stores, held, S if 0 in order else T)


@pytest.mark.parametrize("how", ["moved on", "taken back", "merged on", "merge taken back"])
@pytest.mark.usefixtures("numbered")
def test_a_patient_between(tmp_path: Path, how: str) -> None:
    with stores_in(tmp_path / "data") as stores:
        send(stores, one(patient_id="P0"))
        for number, patient in enumerate(("P1", "P2")):
            send(stores, one(f"2.25.7{number}", f"2.25.7{number}.1", f"2.25.7{number}.2", patient_id=patient))
        if "merge" in how:
            number = fix(stores, "merge", patient=("P0", ""), to_patient=("P1", ""))
        else:
            number = fix(stores, "move-study", study=S, to_patient=("P1", ""))
        held = hold(stores, patient="P1")
        assert_held(stores, held, S)
        if "back" in how:
            revert(stores, number)
        elif how == "merged on":
            fix(stores, "merge", patient=("P1", ""), to_patient=("P2", ""))
        else:
            fix(stores, "move-study", study=S, to_patient=("P2", ""))
        assert_held(stores, held, S)
        assert_released(stores, held, S)


def test_a_version_that_was_in_a_held_study(tmp_path: Path) -> None:
    """It met another object under the same UIDs where it was moved to, and goes on as its version."""
    with stores_in(tmp_path / "data") as stores:
        send(stores, one(U), one(S, pixels=bytes(range(256)) * 2))
        move(stores, S, T)
        held = hold(stores, T)
        move(stores, T, U)
        assert_held(stores, held, U)
        send(stores, note({U: {SERIES: [SOP]}}, SAFETY))
        with stores.store.snapshot() as snapshot:
            hidden = [
                stores.catalog.open_row(tables.STUDY, key, sealed, StudyRow).uid
                for key, sealed in snapshot.scan(tables.STUDY)
            ]
        found = stores.deletions.holds([Target(uid) for uid in hidden], now_ns=time.time_ns())
        assert found == [held]


def test_a_version_whose_move_into_a_held_study_was_taken_back(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        send(stores, one(U), one(S, pixels=bytes(range(256)) * 2))
        number = move(stores, S, T)
        held = hold(stores, T)
        revert(stores, number)
        move(stores, S, U)
        assert_held(stores, held, U)


def filed(stores: Stores) -> dict[str, set[bytes]]:
    """The records of each study, hidden ones included."""
    found: dict[str, set[bytes]] = {}
    with stores.store.snapshot() as snapshot:
        for key, sealed in snapshot.scan(tables.STUDY):
            study = stores.catalog.open_row(tables.STUDY, key, sealed, StudyRow)
            records = found.setdefault(study.uid, set())
            for table in (tables.INSTANCE, tables.VERSION):
                for place, row in snapshot.scan(table, prefix=key):
                    opened = stores.catalog.open_row(table, place, row, InstanceRow)
                    records.add(opened.location.record_id)
    return found


def patient_of(stores: Stores, study: str) -> str:
    with stores.store.snapshot() as snapshot:
        row = stores.catalog.study(snapshot, study)
        return "" if row is None else row.attributes.get(0x00100020, "")


@pytest.mark.parametrize("seed", range(16))
def test_any_history(tmp_path: Path, seed: int) -> None:
    """Whatever was of a study or a patient when that was put on hold cannot be deleted, wherever it is."""
    source = random.Random(seed)
    held: dict[str, set[bytes]] = {}
    with stores_in(tmp_path / "data") as stores:
        for study, patient in ((S, "P1"), (T, "P2")):
            for uid, number in product((f"{study}.1", f"{study}.2"), (1, 2)):
                send(stores, one(study, uid, f"{uid}.{number}", patient_id=patient))
        for _ in range(14):
            studies = filed(stores)
            shown = sorted(uid for uid in studies if not uid.startswith("!"))
            study = source.choice(shown)
            with stores.store.snapshot() as snapshot:
                rows = stores.catalog.series_of(snapshot, stores.catalog.study_id(study))
                series = {
                    row.uid: [i.sop_uid for i in stores.catalog.instances_of(snapshot, key)]
                    for key, row in rows
                }
                corrections = [row for row in stores.corrections.all(snapshot) if not row.reverted_ns]
            uid = source.choice(sorted(series))
            kinds = [
                "move",
                "move",
                "split",
                "revert",
                "revert",
                "hold",
                "reject",
                "patient",
                "patients hold",
            ]
            match source.choice(kinds):
                case "move":
                    to = source.choice([other for other in (S, T, U, "2.25.4") if other != study])
                    fix(stores, "move-series", study=study, series=(uid,), to_study=to)
                case "split":
                    to = source.choice([other for other in (S, T, U, "2.25.4") if other != study])
                    fix(stores, "split", study=study, instances=(series[uid][0],), to_study=to)
                case "revert" if corrections:
                    revert(stores, source.choice(corrections).number)
                case "hold" if len(held) < 3:
                    held[hold(stores, study)] = studies[study]
                case "patient":
                    to_patient = (source.choice(["P1", "P2", "P3"]), "")
                    what: dict[str, Any] = {"kind": "move-study", "study": study}
                    if source.random() < 0.5:
                        what = {"kind": "merge", "patient": (patient_of(stores, study), "")}
                    with suppress(CorrectionError):
                        fix(stores, **what, to_patient=to_patient, even_if_unknown=True)
                case "patients hold" if len(held) < 3:
                    patient = patient_of(stores, study)
                    of = [uid for uid in shown if patient_of(stores, uid) == patient]
                    held[hold(stores, patient=patient)] = set().union(*(studies[uid] for uid in of))
                case "reject":
                    send(stores, note({study: {uid: series[uid][:1]}}, SAFETY))
            for where, records in filed(stores).items():
                found = stores.deletions.holds([Target(where)], now_ns=time.time_ns())
                assert {each for each, of in held.items() if of & records} <= set(found)
