"""A performed step is changed after its end or forgotten; images that a modality made are not missed."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from pydicom.dataset import Dataset

from hounsfield.ris_plugin import orders, tracking
from hounsfield.ris_plugin.acquisition.performed import MppsError, create, dataset, get, update
from hounsfield.ris_plugin.catalog import put_resource
from hounsfield.ris_plugin.errors import ForbiddenError, NotNowError
from hounsfield.ris_plugin.reading.reporting import of_study
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import Resource
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.performed import Tracked
from hounsfield.ris_plugin.schedule import steps
from hounsfield.ris_plugin.schedule.scheduling import book
from hounsfield.ris_plugin.schedule.scheduling import get as appointment
from ris.conftest import ADMINISTRATOR, CLERK, MODALITY, NOON_NS, TECHNOLOGIST, Desk

ZONE = ZoneInfo("UTC")
DUPLICATE, NO_SUCH, INVALID, MISSING, FAILURE = 0x0111, 0x0112, 0x0106, 0x0120, 0x0110


@pytest.fixture
def order(desk: Desk) -> str:
    desk.do(put_resource, ADMINISTRATOR, Resource(code="CT1", kind="device", modality="CT", ae_title="CT1"))
    desk.procedure(resources=(("CT1",),))
    return desk.order(desk.patient())


@pytest.fixture
def booked(desk: Desk, order: str) -> str:
    desk.do(book, CLERK, ZONE, orders=[order], from_ns=NOON_NS)
    return order


def held(desk: Desk, order: str) -> Order:
    return desk.look(orders.get, order)


def begun(*steps_of: tuple[str, str, str], **more: object) -> Dataset:
    """An N-CREATE for (step number, accession, study) each."""
    said = Dataset()
    said.PerformedProcedureStepStatus = "IN PROGRESS"
    said.PerformedProcedureStepID = "P1"
    said.PerformedStationAETitle = "CT1"
    said.PerformedProcedureStepStartDate = "20261122"
    said.PerformedProcedureStepStartTime = "120500"
    said.Modality = "CT"
    said.PatientID, said.PatientName = "P1", "DOE^JANE"
    said.IssuerOfPatientID = "HOSP"
    said.ScheduledStepAttributesSequence = []
    for number, accession, study in steps_of:
        item = Dataset()
        item.ScheduledProcedureStepID, item.AccessionNumber, item.StudyInstanceUID = number, accession, study
        said.ScheduledStepAttributesSequence.append(item)
    for name, value in more.items():
        setattr(said, name, value)
    return said


def ended(status: str, *instances: str, series: str = "1.2.3.1") -> Dataset:
    said = Dataset()
    said.PerformedProcedureStepStatus = status
    said.PerformedProcedureStepEndDate, said.PerformedProcedureStepEndTime = "20261122", "121500"
    item = Dataset()
    item.SeriesInstanceUID = series
    item.ReferencedImageSequence = []
    for uid in instances:
        one = Dataset()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uid
        item.ReferencedImageSequence.append(one)
    said.PerformedSeriesSequence = [item]
    return said


def named(desk: Desk, order: str) -> tuple[str, str, str]:
    (step,) = [one for _, one in desk.look(steps.of_order, order)]
    return step.number, step.accession, step.study_uid


def state(desk: Desk, order: str) -> Tracked:
    found = desk.look(tracking.of_study, held(desk, order).study_uid)
    assert found is not None
    return found[1]


def test_a_step_goes_its_way_and_takes_order_and_appointment_along(desk: Desk, booked: str) -> None:
    desk.do(create, MODALITY, ZONE, "1.9.1", begun(named(desk, booked)))
    assert held(desk, booked).state == "in-progress"
    assert [one.state for _, one in desk.look(steps.of_order, booked)] == ["started"]
    desk.do(update, MODALITY, ZONE, "1.9.1", ended("COMPLETED", "1.2.3.1.1", "1.2.3.1.2"))
    assert held(desk, booked).state == "completed"
    assert [one.state for _, one in desk.look(steps.of_order, booked)] == ["completed"]
    (step,) = [one for _, one in desk.look(steps.of_order, booked)]
    assert desk.look(appointment, step.appointment).state == "fulfilled"
    assert (state(desk, booked).state, state(desk, booked).missing_count) == ("acquired", 2)
    assert dataset(desk.look(get, "1.9.1")[1]).PatientName == "DOE^JANE"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (begun(("", "", "1.2"), PerformedProcedureStepStatus="COMPLETED"), INVALID),
        (Dataset(), MISSING),
        (begun(Modality=""), 0x0121),
    ],
)
def test_what_the_standard_refuses_is_refused(desk: Desk, said: Dataset, code: int) -> None:
    with pytest.raises(MppsError) as refused:
        desk.do(create, MODALITY, ZONE, "1.9.1", said)
    assert refused.value.code == code
    with pytest.raises(MppsError) as refused:
        desk.do(update, MODALITY, ZONE, "1.9.1", ended("COMPLETED"))
    assert refused.value.code == NO_SUCH


def test_an_ended_step_is_final(desk: Desk, booked: str) -> None:
    desk.do(create, MODALITY, ZONE, "1.9.1", begun(named(desk, booked)))
    with pytest.raises(MppsError) as refused:
        desk.do(create, MODALITY, ZONE, "1.9.1", begun(named(desk, booked)))
    assert refused.value.code == DUPLICATE
    wrong = Dataset()
    wrong.PerformedStationAETitle = "CT2"
    with pytest.raises(MppsError) as refused:
        desk.do(update, MODALITY, ZONE, "1.9.1", wrong)
    assert refused.value.code == INVALID
    desk.do(update, MODALITY, ZONE, "1.9.1", ended("DISCONTINUED"))
    assert held(desk, booked).state == "accepted"  # nothing was done: it can be scheduled again
    for again in ("COMPLETED", "DISCONTINUED", "IN PROGRESS"):
        with pytest.raises(MppsError) as refused:
            desk.do(update, MODALITY, ZONE, "1.9.1", ended(again))
        assert (refused.value.code, refused.value.error_id) == (FAILURE, 0xA710)


def test_images_are_verified_when_all_that_were_made_are_here(desk: Desk, booked: str) -> None:
    study = held(desk, booked).study_uid
    assert state(desk, booked).state == "expected"
    desk.commit(lambda change: tracking.stored(change, study, {"1.1"}, quiet=False))  # before its MPPS
    assert state(desk, booked).state == "stored"
    desk.do(create, MODALITY, ZONE, "1.9.1", begun(named(desk, booked)))
    desk.commit(lambda change: tracking.stored(change, study, {"1.1"}, quiet=True))
    assert state(desk, booked).state == "stored"  # quiet, and the modality has not said that it is all
    desk.do(update, MODALITY, ZONE, "1.9.1", ended("COMPLETED", "1.1", "1.2"))
    desk.commit(lambda change: tracking.stored(change, study, {"1.1"}, quiet=True))
    assert (state(desk, booked).state, state(desk, booked).missing) == ("acquired", ("1.2",))
    assert desk.look(of_study, study) is None
    desk.commit(lambda change: tracking.stored(change, study, {"1.1", "1.2"}, quiet=False))
    assert state(desk, booked).state == "verified"
    assert desk.look(of_study, study) is not None  # it can be read


def test_images_that_stay_away_are_told_of_once(desk: Desk, booked: str) -> None:
    study = held(desk, booked).study_uid
    desk.do(create, MODALITY, ZONE, "1.9.1", begun(named(desk, booked)))
    desk.do(update, MODALITY, ZONE, "1.9.1", ended("COMPLETED", "1.1"))
    soon = desk.now_ns + int(desk.settings.images_late_seconds * NS) - 1
    assert list(desk.look(lambda view: list(tracking.late(view, desk.settings, soon)))) == []
    desk.now_ns = soon + 1
    ((tracked, _, why),) = desk.look(lambda view: list(tracking.late(view, desk.settings, desk.now_ns)))
    assert why == "images-missing"
    for _ in range(2):
        desk.commit(lambda change: tracking.alert(change, tracked, why))
    assert [event.kind for event in desk.said()].count("ris.images-missing") == 1
    desk.commit(lambda change: tracking.stored(change, study, {"1.1"}, quiet=False))
    assert (state(desk, booked).state, state(desk, booked).alert) == ("verified", "")


def test_a_study_that_nobody_reads_is_told_of(desk: Desk, booked: str) -> None:
    study = held(desk, booked).study_uid
    desk.commit(lambda change: tracking.stored(change, study, {"1.1"}, quiet=True))
    desk.now_ns += int(desk.settings.unread_late_seconds * NS)
    assert [
        why for *_, why in desk.look(lambda view: list(tracking.late(view, desk.settings, desk.now_ns)))
    ] == ["unread"]


def test_images_of_no_modality_that_speaks_are_verified_by_a_person_or_by_quiet(
    desk: Desk, booked: str
) -> None:
    study = held(desk, booked).study_uid
    with pytest.raises(NotNowError):
        desk.do(tracking.verify, TECHNOLOGIST, study)
    desk.commit(lambda change: tracking.stored(change, study, {"1.1"}, quiet=False))
    with pytest.raises(ForbiddenError):
        desk.do(tracking.verify, CLERK, study)
    assert desk.do(tracking.verify, TECHNOLOGIST, study).state == "verified"


def test_an_appended_step_opens_a_verified_study_again(desk: Desk, booked: str) -> None:
    study = held(desk, booked).study_uid
    name = named(desk, booked)
    for number in (1, 2):
        desk.do(create, MODALITY, ZONE, f"1.9.{number}", begun(name))
        assert held(desk, booked).state == "in-progress"
        desk.do(
            update, MODALITY, ZONE, f"1.9.{number}", ended("COMPLETED", f"1.{number}", series=f"1.2.{number}")
        )
        assert state(desk, booked).state == "acquired"
        uids = {f"1.{one}" for one in range(1, number + 1)}
        desk.commit(lambda change, uids=uids: tracking.stored(change, study, uids, quiet=False))
        assert state(desk, booked).state == "verified"


def test_an_unscheduled_step_is_kept_and_tracked(desk: Desk) -> None:
    patient = desk.patient()
    desk.do(create, MODALITY, ZONE, "1.9.1", begun(("", "", "1.2.77")))
    desk.do(update, MODALITY, ZONE, "1.9.1", ended("COMPLETED", "1.1"))
    _, performed = desk.look(get, "1.9.1")
    assert (performed.patient, performed.orders, performed.state) == (patient, (), "completed")
    found = desk.look(tracking.of_study, "1.2.77")
    assert found is not None
    assert found[1].state == "acquired"


def test_grouped_steps_of_two_orders_go_along_together(desk: Desk, order: str) -> None:
    (patient,) = {held(desk, order).patient}
    other = desk.order(patient)
    desk.do(book, CLERK, ZONE, orders=[order, other], from_ns=NOON_NS)
    desk.do(create, MODALITY, ZONE, "1.9.1", begun(named(desk, order), named(desk, other)))
    desk.do(update, MODALITY, ZONE, "1.9.1", ended("COMPLETED", "1.1"))
    assert {held(desk, one).state for one in (order, other)} == {"completed"}
