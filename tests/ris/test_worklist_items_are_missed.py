"""Danger: a modality is not shown what it has to do, is shown another patient, or what it cannot read."""

from __future__ import annotations

import re
import unicodedata
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.plugins import Answer, DimseRefusedError
from hounsfield.ris_plugin.catalog import put_resource
from hounsfield.ris_plugin.modalities.worklist.attributes import ATTRIBUTES
from hounsfield.ris_plugin.modalities.worklist.service import BATCH, REMEMBERED_MAX, Worklist
from hounsfield.ris_plugin.patients import merge, unmerge
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.catalog import Resource
from hounsfield.ris_plugin.records.orders import ORDER, Order, Protocol, Question
from hounsfield.ris_plugin.records.patients import PATIENT, Allergy, Identifier, Patient, Visit
from hounsfield.ris_plugin.records.schedule import STEP, Step
from hounsfield.ris_plugin.schedule.scheduling import book
from hounsfield.ris_plugin.schedule.steps import act, withdraw
from hounsfield.ris_plugin.settings import RisSettings
from ris.conftest import ADMINISTRATOR, CLERK, MODALITY, NOON_NS, Desk
from ris.modality import EXPLICIT, FIND, IMPLICIT, decoded, request, ris_at, take_in

DAY_NS = 86_400 * NS


async def answers(worklist: Worklist, query: Dataset, **more: Any) -> list[Dataset]:
    """What a query is answered, all of it with FF00."""
    syntax = more.get("syntax", EXPLICIT)
    found = [one async for one in worklist.find(request(query, **more))]
    assert all(isinstance(one, bytes) for one in found)
    return [decoded(one, syntax) for one in found if isinstance(one, bytes)]


def query(scheduled: dict[str, Any] | None = None, **keys: Any) -> Dataset:
    """Keys, those of the step's sequence first; an accession number is asked for in any case."""
    asked = Dataset()
    asked.AccessionNumber = ""
    for keyword, value in keys.items():
        setattr(asked, keyword, value)
    if scheduled is not None:
        item = Dataset()
        for keyword, value in scheduled.items():
            setattr(item, keyword, value)
        asked.ScheduledProcedureStepSequence = [item]
    return asked


def numbers(found: list[Dataset]) -> list[str]:
    return [one.AccessionNumber for one in found]


def scheduled(desk: Desk, number: str, **more: Any) -> str:
    """A step of a patient of its own."""
    item = query(
        {
            "Modality": "CT",
            "ScheduledStationAETitle": "CT1",
            "ScheduledProcedureStepStartDate": "20261122",
            "ScheduledProcedureStepStartTime": "120000",
            "ScheduledProcedureStepID": f"S{number}",
            **more.pop("step", {}),
        },
        AccessionNumber=number,
        PatientID=f"P{number}",
        PatientName=f"DOE^{number}",
        StudyInstanceUID=f"1.2.{number}",
        **more,
    )
    return desk.commit(partial(take_in, item=item))


# ---------------------------------------------------------------- who sees what


async def test_without_a_day_the_days_around_today_are_shown(desk: Desk) -> None:
    for number, day in (("1", "20261119"), ("2", "20261120"), ("3", "20261129"), ("4", "20261130")):
        scheduled(desk, number, step={"ScheduledProcedureStepStartDate": day})
    worklist = Worklist(ris_at(desk))
    assert numbers(await answers(worklist, query({"Modality": "CT"}))) == ["2", "3"]
    assert numbers(await answers(worklist, query({"ScheduledProcedureStepStartDate": "*"}))) == ["2", "3"]
    far = query({"ScheduledProcedureStepStartDate": "20261130-"})
    assert numbers(await answers(worklist, far)) == ["4"]
    # Who has the patient's wristband or the order's number is looking for that, whenever it was for.
    assert numbers(await answers(worklist, query(PatientID="P1"))) == ["1"]
    assert numbers(await answers(worklist, query(AccessionNumber="4"))) == ["4"]
    assert numbers(await answers(worklist, query({"ScheduledProcedureStepID": "S1"}))) == ["1"]


async def test_days_are_those_of_the_department(desk: Desk) -> None:
    """Half past midnight in Greenwich is the evening before in New York."""
    scheduled(desk, "1", step={"ScheduledProcedureStepStartTime": "003000"})
    worklist = Worklist(ris_at(desk, time_zone="America/New_York"))
    (found,) = await answers(worklist, query({"ScheduledProcedureStepStartDate": "20261121"}))
    assert numbers([found]) == ["1"]
    item = query({"ScheduledProcedureStepStartDate": "", "ScheduledProcedureStepStartTime": ""})
    (found,) = await answers(worklist, item)
    step = found.ScheduledProcedureStepSequence[0]
    assert (step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime) == (
        "20261121",
        "193000",
    )


async def test_a_modality_sees_its_own_when_the_settings_say_so(desk: Desk) -> None:
    scheduled(desk, "1")
    scheduled(desk, "2", step={"ScheduledStationAETitle": ["CT2", "CT3"]})
    worklist = Worklist(ris_at(desk, worklist_own_only=True))
    assert numbers(await answers(worklist, query({}), calling="CT1")) == ["1"]
    assert numbers(await answers(worklist, query({}), calling="CT3")) == ["2"]
    for sly in (query({"ScheduledStationAETitle": "CT1"}), query(PatientID="P1"), query(AccessionNumber="1")):
        assert await answers(worklist, sly, calling="CT3") == []
    assert sorted(numbers(await answers(Worklist(ris_at(desk)), query({}), calling="CT3"))) == ["1", "2"]


@pytest.mark.parametrize("own_only", [False, True])
async def test_what_is_booked_into_a_room_is_on_the_list_of_each_device_that_may_do_it(
    desk: Desk, own_only: bool
) -> None:
    for code, place in (("US1", "Room 1"), ("US2", "Room 1"), ("US3", "Room 3")):
        device = Resource(code=code, kind="device", modality="US", ae_title=code, location=place)
        desk.do(put_resource, ADMINISTRATOR, device)
    desk.do(put_resource, ADMINISTRATOR, Resource(code="CT1", kind="device", modality="CT", ae_title="CT1"))
    for code, place in (("R1", "Room 1"), ("R9", "Room 9")):
        desk.do(put_resource, ADMINISTRATOR, Resource(code=code, kind="room", location=place))
        desk.procedure(f"US{code}", "US", resources=((code,),))
        order = desk.order(desk.patient(f"P{code}"), f"US{code}")
        desk.do(book, CLERK, ZoneInfo("UTC"), orders=[order], from_ns=NOON_NS)
    worklist = Worklist(ris_at(desk, worklist_own_only=own_only))
    shown = {}
    for title in ("US1", "US2", "US3", "CT1"):
        found = await answers(
            worklist, query({"ScheduledStationAETitle": title}, PatientID=""), calling=title
        )
        shown[title] = sorted(one.PatientID for one in found)
    assert shown == {"US1": ["PR1", "PR9"], "US2": ["PR1", "PR9"], "US3": ["PR9"], "CT1": []}


async def test_what_is_withdrawn_or_done_is_not_shown_and_what_is_under_way_is(desk: Desk) -> None:
    step = scheduled(desk, "1")
    worklist = Worklist(ris_at(desk))
    asked = query({"ScheduledProcedureStepStatus": ""}, AccessionNumber="1")
    seen = []
    for who, action in ((CLERK, "arrive"), (MODALITY, "start"), (MODALITY, "complete")):
        desk.do(act, who, step, action)
        found = await answers(worklist, asked)
        seen += [one.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStatus for one in found]
    assert seen == ["ARRIVED", "STARTED"]
    other = scheduled(desk, "2")
    order = desk.look(lambda view: view.get(STEP, other)).order
    desk.do(withdraw, CLERK, order)
    assert await answers(worklist, query(AccessionNumber="2")) == []


async def test_changes_are_seen_at_once_and_merged_patients_as_who_they_are(desk: Desk) -> None:
    scheduled(desk, "1")
    scheduled(desk, "2")
    worklist = Worklist(ris_at(desk))
    asked = query(PatientName="", PatientID="")
    before = await answers(worklist, asked)
    survivor, merged = (desk.look(lambda view, n=n: view.ids(PATIENT, "number", n))[0] for n in ("P1", "P2"))
    number = desk.do(merge, CLERK, survivor=survivor, merged=merged, reason="one person")
    found = await answers(worklist, asked)
    assert sorted((one.AccessionNumber, one.PatientID) for one in found) == [("1", "P1"), ("2", "P1")]
    assert sorted(numbers(await answers(worklist, query(PatientID="P1")))) == ["1", "2"]
    assert await answers(worklist, query(PatientID="P2")) == []
    desk.do(unmerge, CLERK, number, "it was not")
    assert await answers(worklist, asked) == before


async def test_more_than_are_shown_end_with_a_warning_that_is_seen(desk: Desk) -> None:
    for number in range(5):
        scheduled(desk, str(number))
    seen = 0
    with pytest.raises(DimseRefusedError) as refused:
        async for _ in Worklist(ris_at(desk, worklist_answers_max=3)).find(request(query())):
            seen += 1
    assert (seen, refused.value.answer.status) == (3, 0xA700)
    assert len(await answers(Worklist(ris_at(desk, worklist_answers_max=5)), query())) == 5


async def test_a_cancel_ends_the_answers(desk: Desk) -> None:
    for number in range(BATCH * 2):
        scheduled(desk, str(number))
    seen = 0
    asked = request(query())
    asked = type(asked)(asked.caller, FIND, "", EXPLICIT, asked.dataset, lambda: seen >= 3)
    async for _ in Worklist(ris_at(desk)).find(asked):
        seen += 1
    assert seen <= BATCH


async def test_what_is_remembered_has_an_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hounsfield.ris_plugin.modalities.worklist.service.REMEMBERED_MAX", 4)
    assert REMEMBERED_MAX > 4
    for number in range(9):
        scheduled(desk, str(number))
    worklist = Worklist(ris_at(desk))
    for _ in range(2):
        assert len(await answers(worklist, query())) == 9
    assert len(worklist._remembered) == 4


# ---------------------------------------------------------------- what modalities send


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(
    "asked",
    [
        query({}),
        query({"Modality": "CT", "ScheduledStationAETitle": "CT1",
               "ScheduledProcedureStepStartDate": "20261122"}),
        query({"Modality": "*", "ScheduledStationAETitle": "*", "ScheduledProcedureStepStartDate": "-"}),
        query({"ScheduledProcedureStepStartDate": "20261122-20261122"}, PatientName="*", PatientID="*"),
        query({"ScheduledProtocolCodeSequence": []}, ReferencedStudySequence=[], PatientName="^^^^"),
        query({"ScheduledProtocolCodeSequence": [Dataset()]}, RequestedProcedureCodeSequence=[Dataset()]),
        query({"Modality": "CT\\MR"}),
        query({"SpecificCharacterSet": "ISO_IR 192", "Modality": "CT"}, SpecificCharacterSet="ISO_IR 192"),
        query(ScheduledProcedureStepSequence=[]),
    ],
)  # fmt: skip
async def test_what_modalities_send_finds_the_step(desk: Desk, asked: Dataset, syntax: str) -> None:
    scheduled(desk, "1")
    assert numbers(await answers(Worklist(ris_at(desk)), asked, syntax=syntax)) == ["1"]


async def test_keys_that_are_not_known_are_left_out_and_warned_of(desk: Desk) -> None:
    scheduled(desk, "1")
    for asked in (
        query(SmokingStatus="NO"),
        query({"ScheduledSpecimenSequence": []}),
        query(QueryRetrieveLevel="STUDY"),
    ):
        (found,) = [one async for one in Worklist(ris_at(desk)).find(request(asked))]
        assert isinstance(found, Answer)
        assert found.status == 0xFF01
        assert set(decoded(found.dataset).dir()) <= {"AccessionNumber", "ScheduledProcedureStepSequence"}


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (query(PatientBirthDate="1. May"), 0xC000),
        (query({"ScheduledProcedureStepStartDate": "20261122--"}), 0xC000),
        (query({"ScheduledProcedureStepStartTime": "8 o'clock"}), 0xC000),
        (query(StudyInstanceUID="1.2.*"), 0xC000),
        (query(PatientName="*" * 300 + "x"), 0xC000),
        (query(PatientID="\\".join("x" * 1001)), 0xC000),
    ],
)
async def test_keys_that_cannot_be_meant_are_refused(desk: Desk, asked: Dataset, status: int) -> None:
    with pytest.raises(DimseRefusedError) as refused:
        await answers(Worklist(ris_at(desk)), asked)
    assert refused.value.answer.status == status
    assert len(refused.value.answer.attributes) == 1


async def test_everything_that_is_known_is_given(desk: Desk) -> None:
    patient = Patient(
        identifiers=(Identifier(value="P1", issuer="HOSP"), Identifier(value="SSN9", issuer="STATE")),
        name="DOE^JANE", birth_day="19700101", sex="F", weight_kg=61.5, size_m=1.7, pregnancy=3,
        language="de-AT", alerts=("PACEMAKER",), confidential=True, address="1 High Street",
        phones=("555 1234",), visit=Visit(number="V7", issuer="ADT", location="Ward 3"),
        allergies=(Allergy(substance="IODINE", reaction="HIVES"), Allergy(substance="LATEX")),
    )  # fmt: skip
    long = "Low dose protocol with a very long text that no description of sixty-four characters holds"
    order = Order(
        patient="", accession="A1", study_uid="1.2.3", state="scheduled",
        procedure=Code(value="CTH", scheme="99H", meaning="CT head"),
        requested_procedure_id="RP1", placer_number="PL1", placer_issuer="HIS",
        filler_number="FI1", priority="STAT", reason="Headache", clinical_information="Fell\r\nfrom a horse",
        reason_codes=(Code(value="R51", scheme="I10", meaning="Headache"),), requester="REF^ERRER",
        referring="REF^ERRER", requester_location="Emergency", requester_phone="555 9", transport="WALK",
        copies_to=("GP^ONE", "GP^TWO"), placed_ns=NOON_NS - DAY_NS,
        questions=(Question(name="implants", answer="yes, a stent", blocks=True), Question(name="pregnancy")),
        protocol=Protocol(text=long, by="RAD1", at_ns=NOON_NS),
    )  # fmt: skip
    step = Step(
        number="SPS1", order="", patient="", state="ready", modality="CT", from_ns=NOON_NS,
        to_ns=NOON_NS + 1800 * NS, ae_titles=("CT1", "CT2"), station_name="CT ONE", location="Room 5",
        performer="TECH^ONE", description=long, preparation="Fast for 6 hours", contrast="Iopamidol",
        codes=(Code(value="P1", scheme="99H", meaning="Head plain"),),
    )  # fmt: skip

    def plan(change: Any) -> None:
        who, what = change.new_id(), change.new_id()
        change.put(PATIENT, who, patient)
        change.put(ORDER, what, type(order)(**{**_fields(order), "patient": who}))
        change.put(STEP, change.new_id(), type(step)(**{**_fields(step), "patient": who, "order": what}))

    desk.commit(plan)
    everything = Dataset()
    for tag, attribute in ATTRIBUTES.items():
        everything.add_new(tag, attribute.vr, [] if attribute.vr == "SQ" else "")
    house = {"institution": "General", "department": "Radiology", "address": "1 Hill"}
    (found,) = await answers(Worklist(ris_at(desk, **house)), everything)
    expected = {
        "PatientName": "DOE^JANE", "PatientID": "P1", "IssuerOfPatientID": "HOSP", "OtherPatientIDs": "SSN9",
        "PatientBirthDate": "19700101", "PatientSex": "F", "PatientWeight": 61.5, "PatientSize": 1.7,
        "PregnancyStatus": 3, "MedicalAlerts": ["PACEMAKER", "implants: yes, a stent"],
        "Allergies": ["IODINE (HIVES)", "LATEX"], "PatientAddress": "1 High Street",
        "ConfidentialityConstraintOnPatientDataDescription": "CONFIDENTIAL",
        "PatientTelephoneNumbers": "555 1234",
        "AdmissionID": "V7", "CurrentPatientLocation": "Ward 3", "InstitutionName": "General",
        "AccessionNumber": "A1", "StudyInstanceUID": "1.2.3", "RequestedProcedureID": "RP1",
        "RequestedProcedureDescription": "CT head", "RequestedProcedurePriority": "STAT",
        "PlacerOrderNumberImagingServiceRequest": "PL1", "FillerOrderNumberImagingServiceRequest": "FI1",
        "ReasonForTheRequestedProcedure": "Headache", "RequestedProcedureComments": "Fell\r\nfrom a horse",
        "RequestingPhysician": "REF^ERRER", "PatientTransportArrangements": "WALK",
        "NamesOfIntendedRecipientsOfResults": ["GP^ONE", "GP^TWO"], "PatientState": "", "SpecialNeeds": "",
        "IssueDateOfImagingServiceRequest": "20261121",
    }  # fmt: skip
    assert {keyword: found[keyword].value for keyword in expected} == {
        keyword: value if value != "" else found[keyword].value for keyword, value in expected.items()
    }
    assert not found.PatientState
    assert found.PatientPrimaryLanguageCodeSequence[0].CodeValue == "de-AT"
    assert found.RequestedProcedureCodeSequence[0].CodeValue == "CTH"
    assert found.ReasonForRequestedProcedureCodeSequence[0].CodeValue == "R51"
    assert found.OtherPatientIDsSequence[0].IssuerOfPatientID == "STATE"
    assert found.OrderPlacerIdentifierSequence[0].LocalNamespaceEntityID == "HIS"
    assert len(found.ReferencedStudySequence) == 0
    shown = found.ScheduledProcedureStepSequence[0]
    assert shown.ScheduledStationAETitle == ["CT1", "CT2"]
    assert shown.ScheduledProcedureStepDescription == long[:64].rstrip()
    assert shown.CommentsOnTheScheduledProcedureStep == f"{long}\nFast for 6 hours"
    assert shown.ScheduledProtocolCodeSequence[0].CodeMeaning == "Head plain"
    assert (shown.ScheduledProcedureStepStatus, shown.RequestedContrastAgent) == ("READY", "Iopamidol")
    assert (shown.ScheduledProcedureStepEndTime, shown.ScheduledProcedureStepID) == ("123000", "SPS1")


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__struct_fields__}


# ---------------------------------------------------------------- character sets


@pytest.mark.parametrize(
    ("asked", "setting", "name", "declared"),
    [
        ("", "ISO_IR 100", "DOE^JANE", None),
        ("", "ISO_IR 100", "MÜLLER^JÖRG", "ISO_IR 100"),
        ("", "ISO_IR 100", "Иванов^Пётр", "ISO_IR 192"),
        ("", "ISO_IR 144", "Иванов^Пётр", "ISO_IR 144"),
        ("ISO_IR 100", "", "MÜLLER^JÖRG", "ISO_IR 100"),
        ("ISO_IR 144", "", "MÜLLER^JÖRG", "ISO_IR 192"),
        ("\\ISO 2022 IR 87", "", "YAMADA^TARO=山田^太郎", ["", "ISO 2022 IR 87"]),
        ("GB18030", "", "WANG=王^小东", "GB18030"),
    ],
)
async def test_text_comes_in_a_character_set_that_the_modality_knows(
    desk: Desk, asked: str, setting: str, name: str, declared: str | list[str] | None
) -> None:
    scheduled(desk, "1")
    desk.commit(partial(_rename, name=name))
    keys = query(PatientName="")
    if asked:
        keys.SpecificCharacterSet = asked.split("\\")
    (found,) = await answers(Worklist(ris_at(desk, worklist_character_set=setting)), keys)
    assert str(found.PatientName) == name
    assert found.get("SpecificCharacterSet") == declared


def _rename(change: Any, name: str) -> None:
    (patient_id,) = change.ids(PATIENT, "number", "P1")
    patient = change.get(PATIENT, patient_id)
    change.put(PATIENT, patient_id, type(patient)(**{**_fields(patient), "name": name}))


# ---------------------------------------------------------------- against a naive model

CHARACTER_SETS = ("", "ISO_IR 100", "ISO_IR 144", "ISO_IR 192", "\\ISO 2022 IR 87", "GB18030")
CODECS = dict(
    zip(CHARACTER_SETS, ("ascii", "latin-1", "iso8859-5", "utf-8", "iso2022_jp", "gb18030"), strict=True)
)
NAMES = (
    "DOE^JANE",
    "Doe^John^X",
    "MÜLLER^JÖRG",
    "Muller^Jorg",
    "Иванов^Пётр",
    "YAMADA^TARO=山田^太郎",
    "O'NEIL^A-B",
)
WORDS = ("HEAD", "Head", "HEAD AND NECK", "Schädel", "череп", "頭部", "C-SPINE")
DAYS = ("19991231", "20261121", "20261122", "20261123", "20261201")
TIMES = ("000000", "073000", "100000", "105959", "235959")

#: Keyword and its values, for the item and for the step within it.
TOP = {
    "PatientName": NAMES, "PatientID": ("P1", "P2", "p1", "P11"),
    "PatientBirthDate": ("19700101", "20000229", ""),
    "PatientSex": ("M", "F", ""), "RequestedProcedureDescription": WORDS, "RequestingPhysician": (*NAMES, ""),
    "RequestedProcedureID": ("R1", "R2", "R*"), "RequestedProcedurePriority": ("STAT", "LOW", ""),
    "StudyInstanceUID": ("1.2.1", "1.2.2", "1.2.11"), "MedicalAlerts": (*WORDS, ("HEAD", "C-SPINE"), ""),
}  # fmt: skip
INNER = {
    "Modality": ("CT", "MR", "US"), "ScheduledStationAETitle": ("CT1", "CT2", ("CT1", "MR1"), ""),
    "ScheduledPerformingPhysicianName": (*NAMES, ""), "ScheduledProcedureStepDescription": WORDS,
    "ScheduledStationName": ("ONE", "TWO", ""), "ScheduledProcedureStepLocation": ("R1", "R2", ""),
    "RequestedContrastAgent": (*WORDS, ""), "ScheduledProcedureStepStartDate": DAYS,
    "ScheduledProcedureStepStartTime": TIMES,
}  # fmt: skip


@st.composite
def items_of(draw: st.DrawFn) -> list[Dataset]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        item, step = Dataset(), Dataset()
        for of, table in ((item, TOP), (step, INNER)):
            for keyword, values in table.items():
                value = draw(st.sampled_from(values))
                setattr(of, keyword, list(value) if isinstance(value, tuple) else value)
        item.AccessionNumber = f"A{number}"
        item.StudyInstanceUID += f".{number}"
        step.ScheduledProcedureStepID = f"S{number}"
        item.ScheduledProcedureStepSequence = [step]
        found.append(item)
    return found


@st.composite
def keys_of(draw: st.DrawFn, table: dict[str, Any], codec: str) -> dict[str, str]:
    asked = {}
    chosen = draw(st.lists(st.sampled_from(sorted(table)), max_size=4, unique=True))
    start = ["ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime"]
    together = table is INNER and draw(st.integers(0, 3)) == 0  # of which both are one range
    if together:
        chosen = start
    for keyword in chosen:
        values = [one[0] if isinstance(one, tuple) else one for one in table[keyword]]
        value = draw(st.sampled_from([one for one in values if fits(one, codec)] or [""]))
        vr = dictionary_VR(keyword)
        if vr in ("DA", "TM") and value:
            other = draw(st.sampled_from([one for one in values if one]))
            low, high = sorted((value, other))
            value = draw(
                st.sampled_from([value, f"{low}-{high}", f"{low}-", f"-{high}", f"{value}\\{other}"])
            )
        elif vr == "UI":
            value = draw(st.sampled_from([f"{value}.0", f"{value}.1\\{value}.0", ""]))
        elif value and vr != "CS":
            cut = draw(st.integers(1, len(value)))
            choices = [
                value,
                value[:cut] + "*",
                "*" + value[cut - 1 :],
                value[: cut - 1] + "?" + value[cut:],
                "*",
            ]
            value = draw(st.sampled_from(choices))
            if vr == "PN":
                value = draw(st.sampled_from([value, value.lower(), value.partition("=")[0]]))
            if "*" not in value and "?" not in value and vr != "PN":
                other = draw(st.sampled_from([one for one in values if fits(one, codec)]))
                value = draw(st.sampled_from([value, f"{value}\\{other}", f"NONE\\{value}"]))
        asked[keyword] = value if fits(value, codec) else ""
    return asked


def fits(text: str, codec: str) -> bool:
    try:
        return text.encode(codec).decode(codec) == text
    except UnicodeError:
        return False


def naive(asked: Dataset, item: Dataset) -> bool:
    """PS3.4 C.2.2.2 and K.6.1.2.2, read aloud."""
    start = "ScheduledProcedureStepStart"
    ranges = [asked.get(f"{start}{part}") for part in ("Date", "Time")]
    together = all(isinstance(one, str) and "-" in one for one in ranges)
    if together:
        day, time = (one.split("-") for one in ranges)
        low = (day[0] + (time[0] or "000000")) if day[0] else ""
        high = (day[1] + (time[1] or "235959")) if day[1] else "9"
        if not low <= item[f"{start}Date"].value + item[f"{start}Time"].value <= high:
            return False
    for element in asked:
        keyword, wanted = element.keyword, element.value
        if keyword == "SpecificCharacterSet" or (together and keyword.startswith(start)):
            continue
        if element.VR == "SQ":
            if not all(naive(inner, item[keyword].value[0]) for inner in wanted):
                return False
            continue
        keys = [str(one) for one in wanted] if isinstance(wanted, MultiValue) else [str(wanted)]
        if not any(keys) or set("".join(keys)) <= {"*"}:
            continue
        have = item[keyword].value if keyword in item else ""
        values = [str(one) for one in have] if isinstance(have, MultiValue) else [str(have)]
        if not any(same(element.VR, key, value) for key in keys for value in values if value):
            return False
    return True


def same(vr: str, key: str, value: str) -> bool:
    if vr in ("DA", "TM") and "-" in key:
        low, high = key.split("-")
        return low <= value <= (high or "9")
    if vr in ("DA", "TM", "UI"):
        return key == value
    if vr != "PN":
        return wild(key, value)
    key, value = plain(key), plain(value)
    groups = value.split("=")
    if "=" not in key:
        return any(wild(key, group) for group in groups if group)
    pairs = zip(key.split("="), [*groups, "", ""], strict=False)
    return all(not wanted.strip("*") or (group and wild(wanted, group)) for wanted, group in pairs)


def wild(key: str, value: str) -> bool:
    pattern = "".join({"*": ".*", "?": "."}.get(one, re.escape(one)) for one in key)
    return re.fullmatch(pattern, value, re.DOTALL) is not None


def plain(name: str) -> str:
    bare = "".join(one for one in unicodedata.normalize("NFKD", name) if not "\u0300" <= one <= "\u036f")
    return unicodedata.normalize("NFKC", bare).casefold()


@settings(max_examples=200)
@given(st.data())
def test_any_keys_find_what_the_standard_says(shared_stores: Stores, data: st.DataObject) -> None:
    desk = Desk(shared_stores, RisSettings())
    items = data.draw(items_of())
    declared = data.draw(st.sampled_from(CHARACTER_SETS))
    top = data.draw(keys_of(TOP, CODECS[declared]))
    inner = data.draw(keys_of(INNER, CODECS[declared]))

    def plan(change: Any) -> None:
        for kind in (STEP, ORDER, PATIENT):
            for record_id, _ in list(change.every(kind)):
                change.delete(kind, record_id)
        for number, item in enumerate(items):
            take_in(change, item, f"issuer {number}")

    desk.commit(plan)
    asked = query(inner, **top)
    if declared:
        asked.SpecificCharacterSet = declared.split("\\")
    worklist = Worklist(ris_at(desk, worklist_days_before=1_000_000, worklist_days_after=1_000_000))
    syntax = data.draw(st.sampled_from([EXPLICIT, IMPLICIT]))
    for _ in range(2):  # the second time from what is remembered
        found = trio.run(partial(answers, worklist, asked, syntax=syntax))
        expected = {item.AccessionNumber: item for item in items if naive(asked, item)}
        assert sorted(numbers(found)) == sorted(expected)
        for answer in found:
            item = expected[answer.AccessionNumber]
            assert {one.keyword for one in answer} - {"SpecificCharacterSet"} == {
                one.keyword for one in asked
            } - {"SpecificCharacterSet"}
            for keyword in top:
                assert answer[keyword].value == (item[keyword].value or answer[keyword].value)
            step = answer.ScheduledProcedureStepSequence[0]
            for keyword in inner:
                of_item = item.ScheduledProcedureStepSequence[0][keyword].value
                assert step[keyword].value == (of_item or step[keyword].value)
