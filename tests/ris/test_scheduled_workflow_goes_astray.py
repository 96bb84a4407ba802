"""IHE Scheduled Workflow and Patient Information Reconciliation (RAD-TF 1:3, 1:4), not as planned.

Each test asserts where everything ends: orders, steps, tracked images, reports, and what the archive shows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from pydicom.uid import generate_uid

from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin import orders, tracking
from hounsfield.ris_plugin.acquisition.reconciling import dismiss, doubt, fix, open_mismatches, undo
from hounsfield.ris_plugin.errors import NotNowError
from hounsfield.ris_plugin.following import asides
from hounsfield.ris_plugin.orders import NewOrder, place
from hounsfield.ris_plugin.patients import merge, register_provisional, unmerge, update
from hounsfield.ris_plugin.records.messages import CURSOR
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.patients import MERGE, PATIENT
from hounsfield.ris_plugin.records.performed import MISMATCH, TRACKED
from hounsfield.ris_plugin.records.reports import REPORT
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, STEP
from ris.conftest import CLERK, INTERFACE, REFERRER, TECHNOLOGIST
from ris.ward import Ward, ward


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Ward]:
    async with ward(tmp_path / "data") as found:
        yield found


async def test_as_planned(here: Ward) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.begin("1.9.1", order)
    images = await here.send(order, 3)
    await here.settle()
    assert (here.tracked(study).state, here.tracked(study).stored) == ("stored", 3)
    await here.end("1.9.1", images)
    await here.settle()  # nothing more comes, and what came is all: the archive is asked which
    assert here.tracked(study).state == "verified"
    assert (here.held(order).state, here.step_states(order)) == ("completed", ["completed"])
    report = here.report(study)
    assert report is not None
    assert report.orders == (order,)
    assert here.look(open_mismatches) == []


async def test_images_come_before_the_mpps_that_says_what_was_made(here: Ward) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    images = await here.send(order, 2)
    await here.settle()
    assert here.held(order).state == "in-progress"  # the images say so
    await here.begin("1.9.1", order)
    await here.end("1.9.1", [*images, "1.2.3.4"])
    await here.settle()
    assert (here.tracked(study).state, here.tracked(study).missing) == ("acquired", ("1.2.3.4",))
    assert here.report(study) is None
    await here.send(order, uids=["1.2.3.4"])
    await here.settle()
    assert here.tracked(study).state == "verified"
    assert here.step_states(order) == ["completed"]


async def test_a_modality_without_mpps(here: Ward) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.send(order)
    await here.settle()
    assert here.step_states(order) == ["started"]
    assert here.report(study) is None
    await here.stable(study)
    assert (here.tracked(study).state, here.held(order).state) == ("verified", "completed")
    assert here.step_states(order) == ["completed"]
    ((_, appointment),) = here.look(lambda view: list(view.find(APPOINTMENT, "order", order)))
    assert appointment.state == "fulfilled"
    assert here.report(study) is not None


async def test_duplicates_change_nothing(here: Ward) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.begin("1.9.1", order)
    images = await here.send(order, uids=["1.2.3.4.1", "1.2.3.4.2"])
    await here.end("1.9.1", images)
    await here.settle()
    before, told = here.tracked(study), len([one for one in await here.events() if "ris." in one.kind])
    await here.send(order, uids=images)
    await here.settle()
    await here.stable(study)
    assert structs.replace(here.tracked(study), quiet=False) == before
    assert len([one for one in await here.events() if "ris." in one.kind]) == told


async def test_an_unscheduled_study_gets_an_order_afterwards(here: Ward) -> None:
    patient = await here.patient()
    study, planned = str(generate_uid()), await here.order(patient, booked=False)
    await here.begin("1.9.1", study=study)
    images = await here.send(planned, StudyInstanceUID=study, AccessionNumber="EMERG1")
    await here.end("1.9.1", images)
    await here.settle()
    key, mismatch = here.mismatch(study)
    assert (mismatch.state, mismatch.why) == ("open", "unknown-accession")
    assert here.report(study) is None
    # The order is placed for what was done, with the number that the modality was told.
    new = NewOrder(patient=patient, procedure="CTHEAD", accession="EMERG1")
    order = await here.do(place, REFERRER, here.ris.settings, new)
    await here.settle()
    assert here.mismatch(study)[1].state == "gone"
    assert (here.held(order).study_uid, here.held(order).state) == (study, "completed")
    assert here.tracked(study).order == order
    report = here.report(study)
    assert report is not None
    assert report.orders == (order,)
    with pytest.raises(NotNowError):
        await here.do(fix, CLERK, key, planned)


async def test_orders_of_one_patient_that_come_together_after_their_images_all_get_them(here: Ward) -> None:
    patient = await here.patient()
    planned = await here.order(patient, booked=False)
    studies = {f"EMERG{number}": str(generate_uid()) for number in range(3)}
    for accession, study in studies.items():
        await here.send(planned, 1, StudyInstanceUID=study, AccessionNumber=accession)
    await here.settle()
    assert [here.mismatch(study)[1].state for study in studies.values()] == ["open"] * 3

    def come(change: Change) -> None:  # their events are acted on together
        for accession in studies:
            new = NewOrder(patient=patient, procedure="CTHEAD", accession=accession)
            place(change, REFERRER, here.ris.settings, new)
        update(change, CLERK, patient, phones=("555",))

    await here.commit(come)
    await here.settle()
    assert [here.mismatch(study)[1].state for study in studies.values()] == ["gone"] * 3


async def test_an_unidentified_patient_turns_out_to_be_somebody(here: Ward) -> None:
    unknown = await here.do(register_provisional, CLERK, issuer="HOSP", sex="F")
    order = await here.order(unknown)
    study = here.held(order).study_uid
    await here.send(order)
    await here.stable(study)
    assert (await here.shown(study))["PatientID"].startswith("TMP")
    known = await here.patient("P1")
    merged = await here.do(merge, CLERK, survivor=known, merged=unknown, reason="her sister came")
    await here.settle()
    shown = await here.shown(study)
    assert (shown["PatientID"], shown["PatientName"], shown["PatientBirthDate"]) == (
        "P1",
        "DOE^JANE",
        "19700101",
    )
    await here.send(order)  # the scanner has not heard of it
    await here.settle()
    assert (await here.shown(study))["NumberOfStudyRelatedInstances"] == "4"
    assert len(await here.ris.archive.search("study", {})) == 1
    assert here.look(open_mismatches) == []
    await here.do(unmerge, CLERK, merged, reason="it was not")
    await here.settle()
    assert (await here.shown(study))["PatientName"].startswith("UNKNOWN")
    assert await here.ris.archive.corrections(patient=(shown["PatientID"], "")) == []


@pytest.mark.parametrize("when", ["before", "while", "after"])
async def test_a_merge_before_while_and_after_images_come_ends_alike(here: Ward, when: str) -> None:
    old, new = await here.patient("P1"), await here.patient("P9", name="DOE^JANE A", birth_day="19700101")
    order = await here.order(old)
    study = here.held(order).study_uid
    listed = {"PatientID": "P1", "PatientName": "DOE^JANE"}
    if when == "before":
        await here.do(merge, INTERFACE, survivor=new, merged=old, sender="HIS", event_ns=1)
        await here.settle()
    await here.begin("1.9.1", order)
    images = await here.send(order, **listed)
    if when == "while":
        await here.settle()
        await here.do(merge, INTERFACE, survivor=new, merged=old, sender="HIS", event_ns=1)
        await here.settle()
    images += await here.send(order, **listed)
    await here.end("1.9.1", images)
    await here.settle()
    if when == "after":
        await here.do(merge, INTERFACE, survivor=new, merged=old, sender="HIS", event_ns=1)
        await here.settle()
    shown = await here.shown(study)
    assert (shown["PatientID"], shown["PatientName"]) == ("P9", "DOE^JANE A")
    assert (here.tracked(study).state, here.tracked(study).stored) == ("verified", 4)
    assert here.held(order).state == "completed"
    assert here.look(open_mismatches) == []
    assert here.report(study) is not None


async def test_the_wrong_entry_of_the_worklist_is_chosen(here: Ward) -> None:
    wrong, right = await here.order(await here.patient("P1")), await here.order(await here.patient("P2"))
    study = here.held(wrong).study_uid
    await here.begin("1.9.1", wrong)
    images = await here.send(wrong)
    await here.end("1.9.1", images, status="DISCONTINUED", reason="110514")
    await here.settle()
    key, mismatch = here.mismatch(study)
    assert (mismatch.state, mismatch.why) == ("open", "wrong-worklist-entry")
    # It is still to be done, and on the worklist.
    assert (here.held(wrong).state, here.step_states(wrong)) == ("scheduled", ["scheduled"])
    assert here.held(wrong).study_uid != study
    assert here.tracked(here.held(wrong).study_uid).state == "expected"
    assert here.report(study) is None
    await here.do(fix, TECHNOLOGIST, key, right, reason="Mr Roe lay there")
    await here.settle()
    assert here.mismatch(study)[1].state == "fixed"
    shown = await here.shown(study)
    assert (shown["PatientID"], shown["PatientName"]) == ("P2", "ROE^RICHARD")
    assert shown["AccessionNumber"] == here.held(right).accession
    assert here.held(right).study_uid == study
    assert here.tracked(study).order == right
    assert (here.held(right).state, here.step_states(right)) == ("completed", ["completed"])
    await here.do(undo, TECHNOLOGIST, key)
    await here.settle()
    assert (await here.shown(study))["PatientID"] == "P1"
    assert (here.mismatch(study)[1].state, here.tracked(study).order) == ("open", "")
    for order in (wrong, right):
        assert (here.held(order).state, here.step_states(order)) == ("scheduled", ["scheduled"])


async def test_a_matched_study_is_doubted_by_a_person(here: Ward) -> None:
    wrong, right = await here.order(await here.patient("P1")), await here.order(await here.patient("P2"))
    study = here.held(wrong).study_uid
    await here.send(wrong)
    await here.stable(study)
    assert here.report(study) is not None
    await here.do(doubt, TECHNOLOGIST, study)
    await here.settle()
    assert here.report(study) is None
    key, mismatch = here.mismatch(study)
    assert (mismatch.why, mismatch.patient_id, mismatch.name) == ("doubted", "P1", "DOE^JANE")
    await here.stable(study)
    assert here.mismatch(study)[1].state == "open"  # it fits, and is doubted all the same
    await here.do(fix, TECHNOLOGIST, key, right)
    await here.settle()
    report = here.report(study)
    assert report is not None
    assert report.orders == (right,)


async def test_an_order_is_cancelled_before_and_while_it_is_scanned(here: Ward) -> None:
    patient = await here.patient()
    early, late = await here.order(patient), await here.order(patient)
    await here.do(orders.act, REFERRER, early, "cancel", why="recovered")
    await here.settle()
    assert here.step_states(early) == []
    ((_, appointment),) = here.look(lambda view: list(view.find(APPOINTMENT, "order", early)))
    assert appointment.state == "cancelled"
    assert here.look(tracking.of_study, here.held(early).study_uid) is None  # nobody waits for its images
    await here.begin("1.9.1", late)
    with pytest.raises(NotNowError):
        await here.do(orders.act, REFERRER, late, "cancel", why="recovered")
    # The scanner had loaded the worklist before, and images of the cancelled one come all the same.
    study = here.held(early).study_uid
    await here.send(early)
    await here.stable(study)
    assert (here.held(early).state, here.tracked(study).state) == ("completed", "verified")
    assert here.report(study) is not None


async def test_a_mistyped_patient_is_put_up_fixed_and_delivered_as_the_orders(here: Ward) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.send(order, PatientID="P11", PatientName="DOE^JANE", AccessionNumber="X")
    await here.stable(study)
    key, mismatch = here.mismatch(study)
    assert (mismatch.why, mismatch.suggestions[0].order) == ("other-patient", order)
    assert here.report(study) is None  # nobody reads it as hers before somebody has looked
    await here.do(fix, CLERK, key, order)
    await here.settle()
    shown = await here.shown(study)
    assert (shown["PatientID"], shown["AccessionNumber"]) == ("P1", here.held(order).accession)
    assert here.tracked(study).state == "verified"
    assert here.report(study) is not None
    await here.send(order, PatientID="P11", AccessionNumber="X")  # more of it
    await here.settle()
    assert (await here.shown(study))["NumberOfStudyRelatedInstances"] == "4"
    assert here.look(open_mismatches) == []


async def test_a_corrected_name_is_shown_on_images_of_before_and_after(here: Ward) -> None:
    patient = await here.patient()
    order = await here.order(patient)
    study = here.held(order).study_uid
    listed = {"PatientName": "DOE^JANE", "PatientBirthDate": "19700101"}
    await here.send(order, **listed)
    await here.settle()
    await here.do(update, CLERK, patient, name="DOE-ROE^JANE", birth_day="19710101")
    await here.settle()
    await here.send(order, **listed)
    await here.settle()
    shown = await here.shown(study)
    assert (shown["PatientName"], shown["PatientBirthDate"]) == ("DOE-ROE^JANE", "19710101")
    assert here.look(open_mismatches) == []


async def test_the_order_comes_after_its_images(here: Ward) -> None:
    """HL7 was down; the modality had the number from paper."""
    study = str(generate_uid())
    for _ in range(2):
        named = {"PatientID": "P1", "PatientName": "DOE^JANE", "PatientBirthDate": "19700101"}
        await here.store(StudyInstanceUID=study, AccessionNumber="PAPER1", **named)
    await here.stable(study)
    assert here.mismatch(study)[1].why == "unknown-patient"
    patient = await here.patient()
    await here.settle()
    new = NewOrder(patient=patient, procedure="CTHEAD", accession="PAPER1")
    order = await here.do(place, REFERRER, here.ris.settings, new)
    await here.settle()
    assert here.mismatch(study)[1].state == "gone"
    assert (here.held(order).study_uid, here.held(order).state) == (study, "completed")
    assert here.report(study) is not None


async def test_a_film_brought_along_is_dismissed_and_stays_so(here: Ward) -> None:
    study = str(generate_uid())
    await here.store(StudyInstanceUID=study, PatientID="ELSEWHERE", AccessionNumber="")
    await here.settle()
    key, _ = here.mismatch(study)
    await here.do(dismiss, CLERK, key)
    await here.store(StudyInstanceUID=study, PatientID="ELSEWHERE", AccessionNumber="")
    await here.stable(study)
    assert here.look(open_mismatches) == []
    assert here.report(study) is None


def interleavings(*sequences: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every order of all of them that keeps the order of each."""
    if not any(sequences):
        yield ()
    for at, sequence in enumerate(sequences):
        if sequence:
            rest = (*sequences[:at], sequence[1:], *sequences[at + 1 :])
            for more in interleavings(*rest):
                yield (sequence[0], *more)


async def test_whatever_overtakes_what_all_ends_alike(here: Ward) -> None:
    """What a modality reports, what it sends and what the hospital says of the patient come in any order."""
    ends, made = set(), []
    for number, steps_of in enumerate(interleavings(("begin", "end"), ("first", "second"), ("merge",))):
        name, birth_day = f"FAMILY{number}^ANN", "19600101"
        old = await here.patient(f"OLD{number}", name=name, birth_day=birth_day)
        new = await here.patient(f"NEW{number}", name=f"{name}A", birth_day=birth_day)
        order = await here.order(old)
        study, mpps = here.held(order).study_uid, f"1.9.{number}"
        uids = [f"1.2.{number}.1", f"1.2.{number}.2"]
        listed = {"PatientID": f"OLD{number}", "PatientName": name}
        for step in steps_of:
            match step:
                case "begin":
                    await here.begin(mpps, order)
                case "end":
                    await here.end(mpps, uids)
                case "first" | "second":
                    await here.send(order, uids=[uids[step == "second"]], **listed)
                case "merge":
                    await here.do(merge, INTERFACE, survivor=new, merged=old, sender="HIS", event_ns=1)
            if number % 6 == 0:
                await here.settle()
        made.append((order, study))
    await here.settle()
    for order, study in made:
        shown = await here.shown(study)
        report = here.report(study)
        ends.add((
            here.held(order).state,
            tuple(here.step_states(order)),
            here.tracked(study).state,
            here.tracked(study).stored,
            here.tracked(study).missing_count,
            shown["PatientID"].rstrip("0123456789"),
            shown["PatientName"].endswith("^ANNA"),
            report is not None and report.state,
        ))  # fmt: skip
    assert ends == {("completed", ("completed",), "verified", 2, 0, "NEW", True, "unassigned")}
    assert here.look(open_mismatches) == []


async def test_all_that_was_told_is_told_again_and_nothing_changes(here: Ward) -> None:
    """As after a reindex."""
    await here.patient("P2")
    unknown = await here.do(register_provisional, CLERK, issuer="HOSP")
    orders_of = [await here.order(unknown), await here.order(await here.patient("P1"))]
    for number, order in enumerate(orders_of):
        await here.begin(f"1.9.{number}", order)
        images = await here.send(order, **({"PatientID": "P2"} if number else {}))
        await here.end(f"1.9.{number}", images)
    await here.settle()
    survivor = await here.patient("P3")
    await here.do(merge, CLERK, survivor=survivor, merged=unknown)
    study = here.held(orders_of[1]).study_uid
    await here.do(fix, CLERK, here.mismatch(study)[0], orders_of[1])
    await here.stable(study)

    def everything() -> Any:
        with here.ris.reading() as view:
            return {
                kind.name: list(view.every(kind))
                for kind in (ORDER, STEP, APPOINTMENT, TRACKED, MISMATCH, MERGE, PATIENT, REPORT)
            }

    before = everything()
    corrections = await here.engine.correcting.all()
    assert len(corrections) == 2
    assert before["merge"][0][1].corrections

    def forget(change: Change) -> None:
        for key, one in list(change.every(CURSOR)):
            change.put(CURSOR, key, structs.replace(one, cursor=""))

    await here.commit(forget)
    await here.settle()
    assert everything() == before
    assert await here.engine.correcting.all() == corrections
    assert here.look(asides) == []
