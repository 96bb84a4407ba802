"""A study is matched to an order that is not its own, or stands nowhere for somebody to look at."""

from __future__ import annotations

from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest

from hounsfield.ris_plugin import orders, tracking
from hounsfield.ris_plugin.acquisition.matching import Arrived, who_has
from hounsfield.ris_plugin.acquisition.reconciling import (
    arrived,
    dismiss,
    doubt,
    fix,
    fixed,
    look_again,
    mismatch_of,
    open_mismatches,
    undo,
    undone,
)
from hounsfield.ris_plugin.catalog import put_resource
from hounsfield.ris_plugin.errors import ForbiddenError, NotNowError, UnknownError
from hounsfield.ris_plugin.patients import merge, register
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import Resource
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from hounsfield.ris_plugin.records.performed import PERFORMED, Mismatch, Performed
from hounsfield.ris_plugin.schedule.scheduling import book
from ris.conftest import ADMINISTRATOR, CLERK, NOON_NS, REFERRER, Desk

UTC = ZoneInfo("UTC")
HOUR = 3600 * NS


@pytest.fixture
def order(desk: Desk) -> str:
    desk.do(put_resource, ADMINISTRATOR, Resource(code="CT1", kind="device", modality="CT", ae_title="CT1"))
    desk.procedure(resources=(("CT1",),))
    order = desk.order(desk.patient("P0001"))
    desk.do(book, CLERK, UTC, orders=[order], from_ns=NOON_NS)
    return order


def of(desk: Desk, order: str, **more: object) -> Arrived:
    """The study as it should come, but for what is said otherwise."""
    held = desk.look(orders.get, order)
    study = Arrived(
        study_uid=held.study_uid,
        patient_id="P0001",
        issuer="HOSP",
        name="DOE^JANE",
        birth_day="19700101",
        sex="F",
        accession=held.accession,
        modality="CT",
        study_ns=NOON_NS + HOUR,
    )
    return replace(study, **more)  # type: ignore[arg-type]


def comes(desk: Desk, study: Arrived) -> str:
    return desk.commit(lambda change: arrived(change, study))


def held(desk: Desk, order: str) -> Order:
    return desk.look(orders.get, order)


def mismatch(desk: Desk, study: Arrived) -> tuple[str, Mismatch]:
    found = desk.look(mismatch_of, study.study_uid)
    assert found is not None
    return found


def test_a_study_is_matched_by_its_uid_its_number_or_its_patient_and_time(desk: Desk, order: str) -> None:
    assert comes(desk, of(desk, order)) == order
    assert desk.look(open_mismatches) == []
    other = desk.order(desk.patient("P0002", "ROE^RICHARD"))
    named = of(desk, other, patient_id="P0002", study_uid="1.2.3")
    assert comes(desk, named) == other
    assert held(desk, other).study_uid == "1.2.3"  # what the modality chose is the order's
    third = desk.order(desk.patient("P0003", "MOE^MAX"))
    unnamed = of(desk, third, patient_id="P0003", study_uid="1.2.4", accession="")
    assert comes(desk, unnamed) == third
    assert desk.look(tracking.of_study, "1.2.4")[1].order == third


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"patient_id": "P0009"}, "other-patient"),
        ({"patient_id": "P0002"}, "other-patient"),
        ({"patient_id": "P0009", "study_uid": "1.2.3", "accession": ""}, "unknown-patient"),
        ({"study_uid": "1.2.3", "accession": "2025999999"}, "unknown-accession"),
        ({"study_uid": "1.2.3", "accession": "", "study_ns": NOON_NS + 48 * HOUR}, "no-order"),
        ({"study_uid": "1.2.3", "accession": "", "modality": "MR"}, "no-order"),
        ({"patient_id": "", "name": "DOE^JOHN"}, "other-patient"),
    ],
)
def test_what_does_not_fit_is_put_up_with_the_likeliest_order_first(
    desk: Desk, order: str, more: dict[str, object], why: str
) -> None:
    far = desk.order(desk.patient("P0002", "ROE^RICHARD"))
    study = of(desk, order, **more)
    assert comes(desk, study) == ""
    found = mismatch(desk, study)[1]
    assert (found.state, found.why) == ("open", why)
    assert found.suggestions
    best = far if study.patient_id == "P0002" and study.study_uid == "1.2.3" else order
    assert found.suggestions[0].order == best


def test_two_orders_that_fit_are_nobodys_guess(desk: Desk, order: str) -> None:
    desk.order(held(desk, order).patient)
    study = of(desk, order, study_uid="1.2.3", accession="")
    assert comes(desk, study) == ""
    assert mismatch(desk, study)[1].why == "several-orders"
    assert len(mismatch(desk, study)[1].suggestions) == 2


def test_images_of_a_merged_patient_are_the_survivors(desk: Desk, order: str) -> None:
    survivor = desk.patient("P0002", "DOE^JANE A")
    desk.do(merge, CLERK, survivor=survivor, merged=held(desk, order).patient)
    assert comes(desk, of(desk, order)) == order
    assert comes(desk, of(desk, order, patient_id="P0002")) == order


def test_what_did_not_fit_is_gone_when_it_does(desk: Desk, order: str) -> None:
    study = of(desk, order, patient_id="P0009")
    comes(desk, study)
    assert comes(desk, of(desk, order)) == order
    assert desk.look(open_mismatches) == []


def test_a_fix_becomes_corrections_and_can_be_taken_back(desk: Desk, order: str) -> None:
    study = of(desk, order, patient_id="WRONG", accession="X", study_uid="1.2.3")
    comes(desk, study)
    key, _ = mismatch(desk, study)
    with pytest.raises(ForbiddenError):
        desk.do(fix, REFERRER, key, order)
    wanted = desk.do(fix, CLERK, key, order)
    assert [one["kind"] for one in wanted.corrections] == ["move-study", "set-study"]
    assert wanted.corrections[0]["to_patient"] == ("P0001", "HOSP")
    assert mismatch(desk, study)[1].state == "fixing"
    again = desk.do(fix, CLERK, key, order)  # after a crash
    assert again.corrections == wanted.corrections
    desk.commit(lambda change: fixed(change, key, (7, 8)))
    assert (mismatch(desk, study)[1].state, held(desk, order).study_uid) == ("fixed", "1.2.3")
    assert comes(desk, study) == order  # more of it
    assert desk.do(undo, CLERK, key) == (8, 7)
    desk.commit(lambda change: undone(change, key))
    assert mismatch(desk, study)[1].state == "open"
    assert held(desk, order).study_uid != "1.2.3"
    tracked = desk.look(tracking.of_study, "1.2.3")
    assert tracked is not None
    assert tracked[1].order == ""


def test_a_dismissed_study_does_not_come_up_again(desk: Desk, order: str) -> None:
    study = of(desk, order, patient_id="PHANTOM", study_uid="1.2.3", accession="", name="PHANTOM")
    comes(desk, study)
    key, _ = mismatch(desk, study)
    desk.do(dismiss, CLERK, key)
    comes(desk, study)
    assert desk.look(open_mismatches) == []
    with pytest.raises(NotNowError):
        desk.do(dismiss, CLERK, key)


def test_a_number_without_an_issuer_is_that_of_the_one_who_has_it(desk: Desk, order: str) -> None:
    bare = of(desk, order, issuer="")
    assert comes(desk, bare) == order
    other = Patient(identifiers=(Identifier(value="P0001", issuer="ELSE"),), name="MOE^MAX")
    desk.do(register, CLERK, other)
    assert desk.look(who_has, "P0001", "") is None  # of two nobody knows whose
    found = desk.look(who_has, "P0001", "", "HOSP")  # but for ours
    assert found is not None
    assert found[1].name == "DOE^JANE"


def test_a_number_alone_is_not_a_person(desk: Desk, order: str) -> None:
    """The number was mistyped, and happens to be a patient's: nothing else is."""
    study = of(desk, order, name="ROE^RICHARD", birth_day="19551231", sex="M")
    assert comes(desk, study) == ""
    assert mismatch(desk, study)[1].why == "other-patient"
    for still_hers in ({"name": "DOE-ROE^JANE"}, {"name": "ROE^RICHARD"}, {"birth_day": "19701231"}):
        assert comes(desk, of(desk, order, **still_hers)) == order


@pytest.mark.parametrize(
    ("said", "hers"),
    [
        ({"name": "DOE^JANE"}, True),
        ({"name": "Doe^J.", "sex": ""}, True),
        ({"name": "ROE^JANE", "birth_day": ""}, True),  # married
        ({"name": "JANE^DOE"}, True),
        ({"name": "DOE JANE", "birth_day": "", "sex": ""}, True),
        ({"name": "DOE^PETRA"}, True),  # she calls herself so
        ({"name": "ドウ^ジェーン"}, True),  # the birthday is hers
        ({"name": "", "birth_day": "", "sex": ""}, True),
        ({"name": "DOE^JOHN", "sex": "M"}, False),  # her twin
        ({"name": "DOE^ANNA", "birth_day": "19980102"}, False),  # her daughter
        ({"name": "ROE^RICHARD", "birth_day": ""}, False),
        ({"name": "ROE^RICHARD", "birth_day": "19551231"}, False),
    ],
)
def test_whose_number_was_mistyped_is_not_taken_for_her(
    desk: Desk, order: str, said: dict[str, str], hers: bool
) -> None:
    assert comes(desk, of(desk, order, **said)) == (order if hers else "")


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ({}, "prior"),
        ({"patient_id": "P0009"}, "prior"),
        ({"accession": "ELSEWHERE"}, "prior"),
        ({"study_ns": NOON_NS - 29 * 24 * HOUR}, "open"),
        ({"study_ns": 0, "accession": "ELSEWHERE"}, "open"),
        ({"patient_id": "P0009", "accession": "OURS"}, "open"),  # it names an order of ours
    ],
)
def test_what_is_old_and_fits_nothing_is_a_prior_until_it_fits(
    desk: Desk, order: str, more: dict[str, object], state: str
) -> None:
    desk.order(held(desk, order).patient, accession="OURS")
    old = {"study_uid": "1.2.3", "accession": "", "study_ns": NOON_NS - 31 * 24 * HOUR}
    study = of(desk, order, **{**old, **more})
    desk.commit(lambda change: arrived(change, study, prior_days=30))
    key, found = mismatch(desk, study)
    assert found.state == state
    assert len(desk.look(open_mismatches)) == (state == "open")
    assert desk.look(tracking.in_doubt, "1.2.3") == (state == "open")
    comes(desk, study)
    assert mismatch(desk, study)[1].state == "open"  # where there is no such rule
    desk.commit(lambda change: arrived(change, study, prior_days=30))
    assert mismatch(desk, study)[1].state == state
    # Somebody brought it to be read again.
    other = desk.order(held(desk, order).patient)
    assert desk.do(fix, CLERK, key, other).order == other


def test_what_a_modality_told_of_is_no_prior_whatever_its_clock_says(desk: Desk, order: str) -> None:
    study = of(desk, order, study_uid="1.2.3", accession="X", study_ns=NOON_NS - 9000 * 24 * HOUR)
    one = Performed(sop_uid="1.9", state="in-progress", dataset=b"", study_uid="1.2.3")
    desk.commit(lambda change: change.put(PERFORMED, change.new_id(), one))
    desk.commit(lambda change: arrived(change, study, prior_days=30))
    assert mismatch(desk, study)[1].state == "open"


def test_a_prior_becomes_the_orders_that_comes(desk: Desk, order: str) -> None:
    study = of(desk, order, study_uid="1.2.3", accession="LATER", study_ns=NOON_NS - 31 * 24 * HOUR)
    desk.commit(lambda change: arrived(change, study, prior_days=30))
    late = desk.order(held(desk, order).patient, accession="LATER")
    desk.commit(lambda change: look_again(change, accession="LATER", prior_days=30))
    assert mismatch(desk, study)[1].state == "gone"
    assert held(desk, late).study_uid == "1.2.3"


def test_who_may_doubt_and_what_may_be_doubted(desk: Desk, order: str) -> None:
    study = of(desk, order)
    comes(desk, study)
    with pytest.raises(ForbiddenError):
        desk.do(doubt, REFERRER, study.study_uid)
    with pytest.raises(UnknownError):
        desk.do(doubt, CLERK, "1.2.3.4.5")
    key = desk.do(doubt, CLERK, study.study_uid)
    assert desk.do(doubt, CLERK, study.study_uid) == key
    assert comes(desk, study) == ""  # it fits, and somebody doubts it
    desk.do(dismiss, CLERK, key)
    again = desk.do(doubt, CLERK, study.study_uid)
    desk.do(fix, CLERK, again, order)
    with pytest.raises(NotNowError):
        desk.do(doubt, CLERK, study.study_uid)


def test_nobody_reads_what_is_in_doubt(desk: Desk, order: str) -> None:
    study = of(desk, order, patient_id="P0009")
    comes(desk, study)
    desk.commit(lambda change: tracking.stored(change, study.study_uid, {"1.1"}, quiet=True))
    found = desk.look(tracking.of_study, study.study_uid)
    assert found is not None
    assert found[1].state == "verified"
    assert desk.look(reporting.of_study, study.study_uid) is None
    key, _ = mismatch(desk, study)
    desk.do(fix, CLERK, key, order)
    assert desk.look(reporting.of_study, study.study_uid) is None
    desk.commit(lambda change: fixed(change, key, (7,)))
    assert desk.look(reporting.of_study, study.study_uid) is not None
    desk.do(undo, CLERK, key)
    desk.commit(lambda change: undone(change, key))
    assert desk.look(reporting.of_study, study.study_uid) is None
