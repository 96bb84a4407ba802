"""What is urgent stands below what is not, something waits for ever, or a prior that matters is far down."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin import patients
from hounsfield.ris_plugin.orders import NewOrder, get, place
from hounsfield.ris_plugin.reading import reading_list, reporting
from hounsfield.ris_plugin.reading.reading_list import CLASS_POINTS, PRIORITY_POINTS, Wanted, ranked, waiting
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.catalog import PROCEDURE, Procedure
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from hounsfield.ris_plugin.records.reports import REPORT, Report, Version
from hounsfield.ris_plugin.settings import RisSettings
from ris.conftest import CLERK, INTERFACE, NOON_NS, RADIOLOGIST, REFERRER, Desk
from ris.following import department

HOUR = 3600 * NS


def put(change: Change, name: str, hours: float, **fields: object) -> str:
    given = {"state": "unassigned", "modality": "CT", **fields}
    key = change.new_id()
    report = Report(
        number=f"{name}-{key}", patient="0" * 32, orders=(), study_uid=key, accession=name,
        ready_ns=NOON_NS - int(hours * HOUR), **given,  # type: ignore[arg-type]
    )  # fmt: skip
    change.put(REPORT, key, report)
    return key


def names(desk: Desk, **more: object) -> list[str]:
    return [one.report.accession for one in desk.look(waiting, desk.now_ns, **more)]


def test_what_is_urgent_comes_first_and_nothing_waits_for_ever(desk: Desk) -> None:
    def plan(change: Change) -> None:
        put(change, "routine", 1)
        put(change, "odd", 0.9, priority="?")
        put(change, "old", 9)
        put(change, "ancient", 400 * 24, priority="LOW")
        put(change, "stat", 0, priority="STAT")
        put(change, "stat-emergency", 0, priority="STAT", patient_class="E")
        put(change, "high", 0.5, priority="HIGH")
        put(change, "emergency", 0.25, patient_class="E")
        put(change, "inpatient", 0.25, patient_class="I")
        put(change, "neuro", 0.1, subspecialty="neuro")
        put(change, "done", 99, state="final")

    desk.commit(plan)
    order = [
        "stat-emergency",
        "stat",
        "ancient",
        "old",
        "high",
        "emergency",
        "inpatient",
        "routine",
        "odd",
        "neuro",
    ]
    assert names(desk) == order
    mine = names(desk, subspecialties=["neuro"])
    assert mine.index("neuro") < mine.index("inpatient")
    assert [one for one in mine if one != "neuro"] == order[:-1]
    for limit in range(12):
        assert names(desk, limit=limit, subspecialties=["neuro"]) == mine[:limit]
    assert names(desk, wanted=Wanted(priority="STAT")) == ["stat-emergency", "stat"]


def test_lists_are_of_what_is_asked_for_and_say_who_has_what(desk: Desk) -> None:
    desk.commit(lambda change: put(change, "MR", 1, modality="MR", body_part="Knee"))
    key = desk.commit(lambda change: put(change, "CT", 1))
    desk.do(reporting.assign, RADIOLOGIST, desk.settings, key)
    assert names(desk, wanted=Wanted(modality="MR")) == names(desk, wanted=Wanted(body_part="KNEE")) == ["MR"]
    assert names(desk, wanted=Wanted(states={"assigned"})) == ["CT"]
    assert names(desk, wanted=Wanted(locked=False), person="other") == ["MR"]
    assert names(desk, wanted=Wanted(locked=False), person="radiologist") == names(desk)
    assert {one.locked_by for one in desk.look(waiting, desk.now_ns)} == {"", "radiologist"}
    desk.now_ns += int(desk.settings.lock_seconds * NS)
    assert {one.locked_by for one in desk.look(waiting, desk.now_ns)} == {""}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(PRIORITY_POINTS)),
            st.sampled_from(["E", "I", "O", ""]),
            st.integers(0, 3000),
            st.sampled_from(["", "neuro", "chest"]),
        ),
        max_size=30,
    ),
    st.integers(0, 12),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_list_merged_of_queues_is_the_sorted_list(
    shared_stores: Stores, given: list[tuple[str, str, int, str]], limit: int
) -> None:
    desk = Desk(shared_stores)

    def plan(change: Change) -> None:
        for key in change.ids(REPORT, "unread", ""):
            change.delete(REPORT, key)
        for priority, patient_class, minutes, special in given:
            put(
                change,
                "x",
                minutes / 60,
                priority=priority,
                patient_class=patient_class,
                subspecialty=special,
            )

    desk.commit(plan)
    expected = sorted(
        (
            PRIORITY_POINTS[priority] + CLASS_POINTS.get(where, 0) + minutes + 240 * (special == "neuro")
            for priority, where, minutes, special in given
        ),
        reverse=True,
    )
    found = desk.look(waiting, NOON_NS, subspecialties=["neuro"], limit=limit)
    assert [one.points for one in found] == expected[:limit]


# ---------------------------------------------------------------- priors


def test_the_prior_that_matters_comes_first() -> None:
    report = Report(
        number="1", patient="p", orders=(), study_uid="now", state="assigned", modality="CT", body_part="HEAD"
    )
    signed = Version(number=1, kind="final", sections=(), author="r", at_ns=1, signed_ns=1)

    def study(uid: str, modality: str, description: str, day: str) -> dict[str, str]:
        return {
            "StudyInstanceUID": uid, "ModalitiesInStudy": modality, "StudyDescription": description,
            "StudyDate": day,
        }  # fmt: skip

    studies = [
        study("now", "CT", "CT head", "20261122"),
        study("knee", "MR", "MR of the knee", "20261120"),
        study("old head", "CT\\SR", "CT brain", "20100101"),
        study("head", "CT", "Skull", "20260101"),
        study("mr head", "MR", "brain", "20260101"),
        study("chest", "CT", "Chest", "20260101"),
        study("odd", "", "", "?"),
    ]
    held = Report(
        number="2", patient="p", orders=(), study_uid="elsewhere", state="final", modality="CT",
        body_part="Head", versions=(signed,), ready_ns=NOON_NS,
    )  # fmt: skip
    found = ranked(report, "", studies, {"elsewhere": ("r", held)}, "20261122")
    assert [one.study_uid for one in found] == [
        "elsewhere", "head", "old head", "mr head", "chest", "knee", "odd",
    ]  # fmt: skip
    assert (found[0].here, found[0].report_id) == (False, "r")
    assert found[1].because == ("region", "modality", "recent")


async def test_priors_are_found_under_all_numbers_of_a_patient(tmp_path: Path) -> None:
    async with department(tmp_path / "data") as room:
        head = Procedure(
            code=Code(value="H", scheme="99H"), modality="CT", body_part="HEAD", needs_protocol=False
        )
        await room.commit(lambda change: change.put(PROCEDURE, change.new_id(), head))

        async def registered(number: str) -> str:
            jane = Patient(identifiers=(Identifier(value=number, issuer=""),), name="DOE^JANE")
            return await room.do(patients.register, CLERK, jane)

        one, other = await registered("P*"), await registered("P2")
        order = await room.do(place, REFERRER, RisSettings(), NewOrder(patient=one, procedure="H"))
        report = await room.do(reporting.ready, INTERFACE, [order])
        await room.store(StudyInstanceUID=room.look(get, order).study_uid, PatientID="P*")
        await room.store(StudyInstanceUID="1.2.1", SOPInstanceUID="1.2.1.1", PatientID="P*")
        await room.store(StudyInstanceUID="1.2.2", SOPInstanceUID="1.2.2.1", PatientID="P2")
        assert [one.study_uid for one in await reading_list.priors(room.ris, report)] == ["1.2.1"]
        await room.do(
            patients.merge, CLERK, survivor=other, merged=one, reason="the same", sender="desk", event_ns=1
        )
        assert {one.study_uid for one in await reading_list.priors(room.ris, report)} == {"1.2.1", "1.2.2"}


def test_a_list_goes_on_to_its_end(desk: Desk) -> None:
    desk.commit(lambda change: [put(change, "x", n / 60) for n in range(1200)])
    assert len({one.report_id for one in desk.look(waiting, NOON_NS, limit=1501)}) == 1200


def test_five_thousand_reports_are_listed_by_opening_few(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in range(5):
        desk.commit(
            lambda change, part=part: [
                put(change, "x", n / 60, priority="HIGH" if n % 9 else "LOW", subspecialty="neuro" * (n % 2))
                for n in range(part * 1000, part * 1000 + 1000)
            ]
        )  # fmt: skip
    with desk.view() as view:
        opened = 0
        row = type(view)._row

        def counted(self: object, key: bytes) -> object:
            nonlocal opened
            opened += 1
            return row(self, key)  # type: ignore[arg-type]

        monkeypatch.setattr(type(view), "_row", counted)
        found = waiting(view, NOON_NS, subspecialties=["neuro"], limit=100)
        assert len(found) == 100
        assert opened < 1000
