"""What was performed turns out to be another's, is done together, comes late, or is rejected (RAD-TF 1:3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from pydicom.uid import generate_uid

from hounsfield.ris_plugin import tracking
from hounsfield.ris_plugin.acquisition.reconciling import doubt, fix, open_mismatches, undo
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.performed import TRACKED
from ris.conftest import CLERK, RADIOLOGIST, TECHNOLOGIST
from ris.ward import Ward, ward
from support import rejection
from support.server import PATIENCE_S


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Ward]:
    async with ward(tmp_path / "data") as found:
        yield found


async def test_what_turns_out_to_be_another_orders_leaves_the_first_to_be_done(here: Ward) -> None:
    """Done, and then somebody sees that another patient lay there."""
    wrong, right = await here.order(await here.patient("P1")), await here.order(await here.patient("P2"))
    study = here.held(wrong).study_uid
    await here.begin("1.9.1", wrong)
    await here.end("1.9.1", await here.send(wrong))
    await here.settle()
    assert (here.held(wrong).state, here.step_states(wrong)) == ("completed", ["completed"])
    await here.do(doubt, TECHNOLOGIST, study)
    await here.settle()
    for decided in (fix, undo, fix):
        key, _ = here.mismatch(study)
        await here.do(decided, TECHNOLOGIST, key, *([right] if decided is fix else []))
        await here.settle()
        done = ("completed", ["completed"]) if decided is fix else ("scheduled", ["scheduled"])
        assert (here.held(right).state, here.step_states(right)) == done
        assert (here.held(wrong).state, here.step_states(wrong)) == ("scheduled", ["scheduled"])
    # And then the first one comes to the table.
    await here.begin("1.9.2", wrong)
    await here.end("1.9.2", await here.send(wrong))
    await here.settle()
    assert {here.held(one).state for one in (wrong, right)} == {"completed"}
    reports = [here.report(here.held(one).study_uid) for one in (wrong, right)]
    assert [report.orders for report in reports if report is not None] == [(wrong,), (right,)]


HIS = {"PatientID": "P2", "PatientName": "ROE^RICHARD", "PatientBirthDate": "19551231", "PatientSex": "M"}


async def test_another_patients_images_in_a_study_are_not_read_as_the_first_ones(here: Ward) -> None:
    """The entry of the patient before was still open: what came then has the same Study Instance UID."""
    order = await here.order(await here.patient("P1"))
    await here.patient("P2")
    study = here.held(order).study_uid
    await here.send(order)
    await here.stable(study)
    assert here.report(study) is not None
    await here.send(order, SeriesInstanceUID="1.2.9", **HIS)
    await here.stable(study)
    assert here.report(study) is None
    key, mismatch = here.mismatch(study)
    assert (mismatch.state, mismatch.why) == ("open", "two-patients")
    assert {one.patient_id for one in mismatch.others} == {"P1", "P2"}
    # All of it is hers, somebody says, and takes it back.
    await here.do(fix, TECHNOLOGIST, key, order)
    await here.settle()
    (made,) = await here.ris.archive.corrections(study=study)
    assert (made["kind"], made["values"]["PatientName"]) == ("move-study", "DOE^JANE")
    assert here.report(study) is not None
    await here.do(undo, TECHNOLOGIST, key)
    await here.settle()
    assert (here.mismatch(study)[1].state, here.report(study)) == ("open", None)
    # His are taken out: hers are hers again, and his stand in the list.
    out = {"study": study, "series": ("1.2.9",), "to_study": "1.2.8"}
    await here.ris.archive.correct("move-series", actor="root", reason="two patients", **out)
    await here.settle()
    assert (here.mismatch(study)[1].state, here.held(order).state) == ("gone", "completed")
    assert here.tracked(study).stored == 2
    assert here.report(study) is not None
    assert (here.mismatch("1.2.8")[1].state, here.mismatch("1.2.8")[1].patient_id) == ("open", "P2")


async def test_another_patients_images_do_not_interrupt_who_reads(here: Ward) -> None:
    order = await here.order(await here.patient("P1"))
    study = here.held(order).study_uid
    await here.send(order)
    await here.stable(study)
    found = here.look(reporting.of_study, study)
    assert found is not None
    await here.do(reporting.assign, RADIOLOGIST, here.ris.settings, found[0])
    await here.send(order, **HIS)
    await here.settle()
    assert here.mismatch(study)[1].why == "two-patients"
    report = here.report(study)
    assert report is not None
    assert report.state == "assigned"


async def test_a_step_of_another_patient_is_not_the_orders_whatever_number_was_typed(here: Ward) -> None:
    """The accession number is one off, and is a waiting patient's."""
    hers, his = await here.order(await here.patient("P1")), await here.order(await here.patient("P2"))
    study, typed = str(generate_uid()), here.held(hers).accession
    await here.begin("1.9.1", study=study, accession=typed, number="P2")
    images = await here.send(his, StudyInstanceUID=study, AccessionNumber=typed)
    await here.end("1.9.1", images)
    await here.settle()
    assert (here.held(hers).state, here.step_states(hers)) == ("scheduled", ["scheduled"])
    key, mismatch = here.mismatch(study)
    assert (mismatch.state, mismatch.why) == ("open", "other-patient")
    assert here.report(study) is None
    await here.do(fix, CLERK, key, his)
    await here.settle()
    assert (here.held(his).state, here.step_states(his)) == ("completed", ["completed"])
    assert (here.held(hers).state, here.tracked(here.held(hers).study_uid).state) == ("scheduled", "expected")


async def test_a_step_is_of_the_order_to_which_its_images_were_given_before(here: Ward) -> None:
    """They came first, under a number that fits nothing, and the modality reports without any number."""
    order = await here.order(await here.patient())
    study = str(generate_uid())
    images = await here.send(order, StudyInstanceUID=study, AccessionNumber="TYPO")
    await here.settle()
    await here.do(fix, CLERK, here.mismatch(study)[0], order)
    await here.settle()
    await here.begin("1.9.1", study=study)
    await here.end("1.9.1", images)
    await here.settle()
    assert (here.held(order).state, here.step_states(order)) == ("completed", ["completed"])
    assert here.tracked(study).state == "verified"


@pytest.mark.parametrize("own_uid", [False, True])
@pytest.mark.parametrize("images_first", [False, True])
async def test_orders_that_are_done_together_are_read_together(
    here: Ward, own_uid: bool, images_first: bool
) -> None:
    """Head and neck in one go: one performed step, one study, without an accession number (group case)."""
    patient = await here.patient()
    head, neck = await here.order(patient), await here.order(patient)
    study = str(generate_uid()) if own_uid else here.held(head).study_uid
    listed = {"StudyInstanceUID": study, "AccessionNumber": ""}
    images = []
    if images_first:
        images += await here.send(head, 1, **listed)
        await here.settle()
    await here.begin("1.9.1", head, neck, study=study, number="P1")
    images += await here.send(head, **listed)
    await here.settle()
    await here.end("1.9.1", images)
    await here.settle()
    assert {here.held(one).state for one in (head, neck)} == {"completed"}
    assert [*here.step_states(head), *here.step_states(neck)] == ["completed", "completed"]
    report = here.report(study)
    assert report is not None
    assert set(report.orders) == {head, neck}
    assert here.tracked(study).state == "verified"
    assert here.look(lambda view: view.ids(TRACKED, "state", "expected")) == []  # nobody waits for more
    assert here.look(open_mismatches) == []


async def test_what_comes_after_the_reading_is_told_of(here: Ward) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.begin("1.9.1", order)
    await here.end("1.9.1", await here.send(order))
    await here.settle()
    for final in (False, True):
        await here.commit(lambda change, final=final: tracking.reported(change, study, final=final))
        # What readers make of it is nothing to be told of.
        note = {"Modality": "PR", "SeriesInstanceUID": f"1.2.7.{final:d}"}
        await here.send(order, 1, **note)
        await here.stable(study)
        assert here.tracked(study).alert == ""
        await here.send(order, 1)
        await here.settle()
        assert here.tracked(study).alert == "images-added"
        if not final:  # whoever signs has them before him now
            continue
        assert [one.kind for one in await here.events()].count("ris.images-added") == 2
        await here.do(tracking.verify, TECHNOLOGIST, study)
        await here.settle()
        assert (here.tracked(study).state, here.tracked(study).alert) == ("reported", "")


async def test_images_that_stay_away_after_the_reading_are_told_of(here: Ward) -> None:
    """The scanner goes on after the study was read, and what it says that it made does not come."""
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.begin("1.9.1", order)
    await here.end("1.9.1", await here.send(order))
    await here.settle()
    await here.commit(lambda change: tracking.reported(change, study, final=True))
    await here.begin("1.9.2", order)
    late = str(generate_uid())
    await here.end("1.9.2", [late])
    await here.settle()

    def due(seconds: float) -> list[str]:
        at_ns = here.ris.now_ns() + int(seconds * NS)
        return here.look(lambda view: [why for *_, why in tracking.late(view, here.ris.settings, at_ns)])

    wait = here.ris.settings.images_late_seconds
    assert due(wait - 60) == []
    assert due(wait + 60) == ["images-missing"]
    await here.send(order, uids=[late])
    await here.stable(study)
    assert due(wait + 60) == []
    assert here.tracked(study).alert == "images-added"


async def test_what_was_rejected_is_not_missing(here: Ward) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.begin("1.9.1", order)
    images = await here.send(order, 3)
    await here.end("1.9.1", images)
    await here.settle()
    note = rejection.note_data_set({study: {f"{study[:60]}.1": images[:1]}}, rejection.QUALITY)
    await here.store(**{one.keyword: one.value for one in note})
    until_shown = {"StudyInstanceUID": study, "SOPInstanceUID": images[0]}
    with trio.fail_after(PATIENCE_S):
        while await here.ris.archive.search("instance", until_shown):
            await trio.sleep(0.01)
    await here.settle()
    assert (here.tracked(study).state, here.tracked(study).missing) == ("verified", ())


async def test_a_step_is_found_by_its_study_when_the_number_was_typed_wrong(here: Ward) -> None:
    order = await here.order(await here.patient())
    study = here.held(order).study_uid
    await here.begin("1.9.1", study=study, accession="TYPO", number="P1")
    await here.end("1.9.1", await here.send(order, AccessionNumber="TYPO"))
    await here.settle()
    assert (here.held(order).state, here.step_states(order)) == ("completed", ["completed"])
