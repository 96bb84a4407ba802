"""Corrections are made twice, lost in a crash, or made for somebody else; nobody is told of what waits."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import generate_uid

from hounsfield.archive.engine.tier_oversight import TierOversight
from hounsfield.archive.index.deletion import Target
from hounsfield.ris_plugin import reacting, tracking
from hounsfield.ris_plugin.acquisition.reconciling import fix, open_mismatches, undo
from hounsfield.ris_plugin.errors import NotNowError, UnknownError
from hounsfield.ris_plugin.following import Consumer, Heeded, asides
from hounsfield.ris_plugin.patients import change_identifier, merge, register, unmerge, update
from hounsfield.ris_plugin.reacting import fixes, timers
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.patients import MERGE, Identifier, Patient
from hounsfield.ris_plugin.records.reports import REPORT, Section
from hounsfield.ris_plugin.records.schedule import APPOINTMENT
from hounsfield.ris_plugin.schedule.scheduling import act, move
from hounsfield.ris_plugin.settings import RisSettings
from ris.conftest import CLERK, INTERFACE, RADIOLOGIST, TECHNOLOGIST
from ris.ward import UTC, Ward, ward


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Ward]:
    async with ward(tmp_path / "data") as found:
        yield found


async def mismatched(here: Ward) -> tuple[str, str, str]:
    """A study of a mistyped patient: its order, its UID, the mismatch."""
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.send(order, PatientID="P11", AccessionNumber="X")
    await here.stable(study)
    return order, study, here.mismatch(study)[0]


async def corrections(here: Ward) -> list[tuple[str, bool]]:
    return [(one["kind"], one["in_force"]) for one in await here.engine.correcting.all()]


async def in_force(here: Ward) -> tuple[int, ...]:
    return tuple(one["id"] for one in await here.engine.correcting.all() if one["in_force"])


class PowerFailsError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_a_fix_goes_on_where_a_crash_left_it(
    here: Ward, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, study, key = await mismatched(here)
    await here.do(fix, CLERK, key, order)
    real = here.ris.archive.correct
    calls = 0

    async def crash(*arguments: Any, **more: Any) -> int:
        nonlocal calls
        if calls == after:
            raise PowerFailsError
        calls += 1
        return await real(*arguments, **more)

    event = await fixing(here)
    monkeypatch.setattr(here.ris.archive, "correct", crash)
    if after < 2:
        with pytest.raises(PowerFailsError):
            await fixes._carry_out(here.ris, event)
    else:  # all were made, and it was not written down
        await fixes._carry_out(here.ris, event)
    monkeypatch.setattr(here.ris.archive, "correct", real)
    await here.settle()
    assert await corrections(here) == [("move-study", True), ("set-study", True)]
    assert here.mismatch(study)[1].state == "fixed"
    assert here.mismatch(study)[1].corrections == await in_force(here)
    await here.do(undo, CLERK, key)
    await here.settle()
    assert await corrections(here) == [("move-study", False), ("set-study", False)]
    assert (await here.shown(study))["PatientID"] == "P11"
    await here.do(fix, CLERK, key, order)
    await here.settle()
    assert (await here.shown(study))["PatientID"] == "P1"


async def fixing(here: Ward) -> Heeded:
    """The event that tells of a fix."""
    (event,) = [one for one in await here.events() if one.kind == "ris.study-fixing"]
    return Heeded(event.cursor, "study-fixing", event.at_ns, event.body)


async def test_a_taking_back_goes_on_where_a_crash_left_it(
    here: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, study, key = await mismatched(here)
    await here.do(fix, CLERK, key, order)
    await here.settle()
    await here.do(undo, CLERK, key)
    last = (await in_force(here))[-1]
    await here.ris.archive.revert(last, actor="clerk", reason="as far as it came")
    await here.settle()
    assert await corrections(here) == [("move-study", False), ("set-study", False)]
    assert here.mismatch(study)[1].state == "open"


async def test_what_the_archive_refuses_is_put_up_again_with_the_reason(here: Ward) -> None:
    patient = await here.patient(name="A^" + "B" * 80)  # longer than a name in DICOM
    order = await here.order(patient)
    study = here.held(order).study_uid
    await here.send(order, PatientID="P11", PatientName="X")
    await here.settle()
    key, _ = here.mismatch(study)
    await here.do(fix, CLERK, key, order)
    await here.settle()
    mismatch = here.mismatch(study)[1]
    assert (mismatch.state, mismatch.order) == ("open", "")
    assert "PatientName" in mismatch.error
    assert await corrections(here) == []


async def test_an_order_that_got_its_own_images_meanwhile_keeps_them(here: Ward) -> None:
    order, study, key = await mismatched(here)
    other = await here.order(await here.patient("P2"))
    await here.do(fix, CLERK, key, other)
    await here.send(other)
    await here.catch_up(*(one for one in reacting.consumers(here.ris) if one.name == "images"))
    await here.settle()
    mismatch = here.mismatch(study)[1]
    assert (mismatch.state, mismatch.order) == ("open", "")
    assert "images of its own" in mismatch.error
    assert {in_force for _, in_force in await corrections(here)} == {False}
    assert here.tracked(here.held(other).study_uid).stored == 2
    assert here.held(order).study_uid == study


async def test_what_was_read_is_not_taken_back_unseen(here: Ward) -> None:
    order, study, key = await mismatched(here)
    await here.do(fix, CLERK, key, order)
    await here.settle()
    with here.ris.reading() as view:
        report = reporting.of_study(view, study)
    assert report is not None
    await here.do(reporting.assign, RADIOLOGIST, here.ris.settings, report[0])
    await here.settle()
    assert here.tracked(study).state == "read"
    sections = [Section(name="findings", text="nothing")]
    await here.do(reporting.draft, RADIOLOGIST, here.ris.settings, report[0], sections)
    await here.do(reporting.sign, RADIOLOGIST, report[0])
    await here.settle()
    assert here.tracked(study).state == "reported"
    with pytest.raises(NotNowError, match="given out"):
        await here.do(undo, CLERK, key)


async def test_what_was_dictated_waits_for_whose_study_it_is(here: Ward) -> None:
    order, study, key = await mismatched(here)
    await here.do(fix, CLERK, key, order)
    await here.settle()
    with here.ris.reading() as view:
        (report_id, before) = reporting.of_study(view, study) or ("", None)
    await here.do(reporting.assign, RADIOLOGIST, here.ris.settings, report_id)
    sections = [Section(name="findings", text="a fracture")]
    await here.do(reporting.draft, RADIOLOGIST, here.ris.settings, report_id, sections)
    await here.do(undo, CLERK, key)
    await here.settle()
    with here.ris.reading() as view:
        assert reporting.of_study(view, study) is None
        assert not list(view.find(REPORT, "order", order))
        with pytest.raises(UnknownError):
            reporting.get(view, report_id)
    await here.do(fix, CLERK, here.mismatch(study)[0], order)
    await here.settle()
    with here.ris.reading() as view:
        (again, after) = reporting.of_study(view, study) or ("", None)
    assert before is not None
    assert after is not None
    assert (again, after.number, after.state, after.assigned_to) == (
        report_id,
        before.number,
        "unassigned",
        "",
    )
    assert (after.draft, after.drafted_by) == (tuple(sections), RADIOLOGIST.person)


# ---------------------------------------------------------------- patients


async def of(here: Ward, number: str, issuer: str = "", name: str = "DOE^JANE") -> str:
    """A study under a number."""
    study = str(generate_uid())
    said = {"PatientID": number, "PatientName": name, "PatientBirthDate": "19700101", "PatientSex": "F"}
    await here.store(StudyInstanceUID=study, **said, **({"IssuerOfPatientID": issuer} if issuer else {}))
    return study


async def named(here: Ward, study: str) -> tuple[str, str]:
    shown = await here.shown(study)
    return shown["PatientID"], shown.get("IssuerOfPatientID", "")


async def test_merges_of_merges_are_shown_and_taken_back_one_by_one(here: Ward) -> None:
    first, second, third = [await here.patient(one, name="DOE^JANE", birth_day="19700101", sex="F")
                            for one in ("P1", "P2", "P3")]  # fmt: skip
    study, other = await of(here, "P1"), await of(here, "P1", "HOSP")
    early = await here.do(merge, CLERK, survivor=second, merged=first)
    await here.settle()
    assert (await named(here, study), await named(here, other)) == (("P2", ""), ("P2", "HOSP"))
    late = await here.do(merge, CLERK, survivor=third, merged=second)
    await here.settle()
    assert (await named(here, study), await named(here, other)) == (("P3", ""), ("P3", "HOSP"))
    assert len(here.look(lambda view: view.get(MERGE, early)).corrections) == 2
    await here.do(unmerge, CLERK, late)
    await here.settle()
    assert await named(here, study) == ("P2", "")
    await here.do(unmerge, CLERK, early)
    await here.settle()
    assert (await named(here, study), await named(here, other)) == (("P1", ""), ("P1", "HOSP"))
    assert not any(in_force for _, in_force in await corrections(here))
    assert here.look(lambda view: view.get(MERGE, early)).corrections == ()


async def test_a_merge_of_an_administrator_stays_as_it_is(here: Ward) -> None:
    first, second = await here.patient("P1"), await here.patient("P2")
    study = await of(here, "P1")
    await here.ris.archive.correct(
        "merge", actor="me", reason="I know", patient=("P1", ""), to_patient=("P9", ""), even_if_unknown=True
    )
    merged = await here.do(merge, CLERK, survivor=second, merged=first)
    await here.settle()
    assert await named(here, study) == ("P9", "")
    await here.do(unmerge, CLERK, merged)
    await here.settle()
    assert await named(here, study) == ("P9", "")


async def test_images_under_a_number_that_was_replaced_are_shown_under_the_new_one(here: Ward) -> None:
    patient = await here.patient("P1")
    order = await here.order(patient)
    study = here.held(order).study_uid
    listed = {"PatientID": "P1"}
    await here.send(order, **listed)
    old, new = Identifier(value="P1", issuer="HOSP"), Identifier(value="N1", issuer="HOSP")
    await here.do(change_identifier, INTERFACE, patient, old=old, new=new)
    await here.settle()
    await here.send(order, **listed)  # the modality has the old list
    await here.settle()
    assert await named(here, study) == ("N1", "")
    assert (await here.shown(study))["NumberOfStudyRelatedInstances"] == "4"
    assert here.look(open_mismatches) == []


async def test_a_number_of_two_patients_without_an_issuer_is_nobodys(here: Ward) -> None:
    """Two hospitals give the same number; images that do not say whose stay where they are."""
    first = await here.patient("P1")
    second = await here.do(
        register, CLERK, Patient(identifiers=(Identifier(value="P1", issuer="ELSE"),), name="MOE^MAX")
    )
    third = await here.patient("P3")
    study = await of(here, "P1")
    await here.do(merge, CLERK, survivor=third, merged=second)
    await here.settle()
    assert await named(here, study) == ("P1", "")
    await here.do(update, CLERK, first, name="DOE-ROE^JANE")
    await here.settle()
    assert (await here.shown(study))["PatientName"] == "DOE^JANE"


async def test_wildcards_in_a_number_find_nobody_else(here: Ward) -> None:
    one, other = await here.patient("P*"), await here.patient("P9")
    study = await of(here, "P12")
    await here.do(merge, CLERK, survivor=other, merged=one)
    await here.settle()
    assert await named(here, study) == ("P12", "")
    assert here.look(asides) == []


# ---------------------------------------------------------------- work that is saved


class Counting:
    """Counts what the archive is asked."""

    def __init__(self, archive: Any) -> None:
        self._search = archive.search
        self.asked: list[tuple[str, int]] = []

    async def search(self, level: str, matches: Mapping[str, str], **more: Any) -> Any:
        found = await self._search(level, matches, **more)
        self.asked.append((level, len(found)))
        return found


async def test_a_study_is_one_question_however_many_objects_came(
    here: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.begin("1.9.1", order)
    images = await here.send(order, 80)
    counting = Counting(here.ris.archive)
    monkeypatch.setattr(here.ris.archive, "search", counting.search)
    commits = here.engine.record_keeping.commits
    await here.settle()
    # what came; what was said of it; and once whose name it shows
    assert len(counting.asked) <= 6
    assert {level for level, _ in counting.asked} == {"study"}
    assert here.engine.record_keeping.commits - commits <= 20
    await here.end("1.9.1", images)
    counting.asked.clear()
    monkeypatch.setattr("hounsfield.ris_plugin.reacting.images.PAGE", 32)
    await here.settle()
    assert here.tracked(study).state == "verified"
    assert [each for each in counting.asked if each[0] == "instance"] == [
        ("instance", 32), ("instance", 32), ("instance", 16),
    ]  # fmt: skip


async def test_what_went_away_is_missed(here: Ward) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.begin("1.9.1", order)
    images = await here.send(order, 3)
    await here.end("1.9.1", images)
    await here.settle()
    assert here.tracked(study).state == "verified"
    (row,) = await here.ris.archive.search("series", {"StudyInstanceUID": study})
    target = Target(study, row["SeriesInstanceUID"], (images[0],))
    await here.engine.delete(target, reason="a phantom", actor="me")
    await here.settle()
    assert (here.tracked(study).state, here.tracked(study).missing) == ("acquired", (images[0],))


# ---------------------------------------------------------------- priors, time


async def prefetches(here: Ward) -> list[Mapping[str, Any]]:
    return await TierOversight(here.engine).prefetches()


async def test_priors_are_asked_for_as_long_as_there_is_an_appointment(here: Ward) -> None:
    here.booked = 3  # in two hours
    patient = await here.patient()
    order = await here.order(patient)
    await here.settle()
    (wanted,) = await prefetches(here)
    assert (wanted["patient"], wanted["issuer"]) == ("P1", "")
    assert (wanted["modality"], wanted["body_part"]) == ("CT", "HEAD")
    assert wanted["name"].startswith("ris/A")
    with here.ris.reading() as view:
        ((appointment, held),) = view.find(APPOINTMENT, "order", order)
    await here.do(move, CLERK, UTC, appointment, from_ns=held.from_ns + 3600 * NS)
    await here.settle()
    (moved,) = await prefetches(here)
    assert moved["at"] == wanted["at"] + 3600
    await here.do(act, CLERK, appointment, "cancel", why="ill")
    await here.settle()
    assert await prefetches(here) == []


async def test_who_waits_too_long_is_told_of_once_and_locks_end(here: Ward) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.begin("1.9.1", order)
    images = await here.send(order, 2)
    await here.end("1.9.1", [*images, "1.2.3.4"])
    await here.settle()
    later = partial(_later, here)

    async def told() -> list[str]:
        kinds = [one.kind for one in await here.events()]
        return [one for one in kinds if one in ("ris.images-missing", "ris.study-unread")]

    await timers.look(here.ris)
    assert await told() == []
    for _ in range(3):
        assert not await timers.look(later(3600))
    assert await told() == ["ris.images-missing"]
    await here.do(tracking.verify, TECHNOLOGIST, study)
    await here.settle()
    await here.stable(study)
    assert here.tracked(study).state == "verified"  # what somebody accepted stays accepted
    with here.ris.reading() as view:
        report = reporting.of_study(view, study)
    assert report is not None
    await here.do(reporting.assign, RADIOLOGIST, here.ris.settings, report[0])
    held = here.report(study)
    assert held is not None
    assert held.locked_until_ns
    await timers.look(here.ris)
    assert here.report(study) == held
    assigned = await here.do(reporting.assign, RADIOLOGIST, RisSettings(lock_seconds=0.001), report[0])
    while time.time_ns() <= assigned.locked_until_ns:  # transactions go by the real clock
        await trio.sleep(0.001)
    await timers.look(later(2))
    left = here.report(study)
    assert left is not None
    assert (left.state, left.assigned_to, left.locked_until_ns) == ("unassigned", "", 0)
    metrics = {one.name: one.samples[0].value for one in reacting.parts(here.ris).metrics()}
    assert metrics["hounsfield_ris_events_aside"] == 0


def _later(here: Ward, seconds: int) -> Any:
    now_ns = here.ris.now_ns
    return replace(here.ris, now_ns=lambda: now_ns() + seconds * NS)


async def test_events_that_cannot_be_acted_on_are_listed_and_dismissed(here: Ward) -> None:
    def fail(*_: object) -> None:
        raise NotNowError("never")

    await here.patient()
    await here.catch_up(Consumer("failing", {"patient-changed"}, fail))
    parts = reacting.parts(here.ris)
    (aside,) = await parts.operations["asides"]()
    assert (aside["consumer"], aside["error"], aside["event"]) == ("failing", "never", b"")
    await parts.operations["aside-dismiss"](aside["id"], "root")
    assert await parts.operations["asides"]() == []
    assert len(parts.leading) == 2  # one for all consumers, and the timers
