"""A day of a radiology department, from the order to the report, as people and systems there do it.

Each step is done by a program that is none of ours where there is one (DCMTK, pynetdicom, an HL7 sender and a
receiver of a few lines), else over the API as the person whose work it is, and looks at what became of it.
``make demo`` prints the steps; tests play them in other circumstances, and count what there is in the end.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from benchmarks.day_peers import (
    HOSPITAL,
    ISSUER,
    Api,
    DayError,
    Modality,
    Receiver,
    Sender,
    field_of,
    images_of,
    new_order,
    pictures,
    until,
)

TODAY: Final = ("693_UNCR.dcm", "693_J2KR.dcm")
"""Slices of a CT of the head, of pydicom-data."""
PRIOR: Final = ("693_UNCI.dcm",)
ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
FINDINGS: Final = "No haemorrhage. No fracture of the skull. Ventricles and sulci are normal for the age."
IMPRESSION: Final = "No traumatic lesion."


@dataclass
class Day:
    """A department whose RIS runs, and one patient's way through it."""

    api: Api
    dicom: tuple[str, int]
    hl7: tuple[str, int]
    receiver: Receiver
    folder: Path
    procedure: str
    """Code of what is ordered: a CT."""
    number: str = field(default_factory=lambda: secrets.token_hex(4).upper())
    """Of the patient's, of which the order's and the messages' are made."""
    order: dict[str, Any] = field(default_factory=dict)
    item: Dataset = field(default_factory=Dataset)
    performed: str = ""
    images: list[Dataset] = field(default_factory=list)
    prior: str = ""
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        return Modality("CT1", *self.dicom, self.folder)

    @property
    def placer(self) -> str:
        """The order's number at the hospital."""
        return f"P{self.number}"

    @property
    def study(self) -> str:
        return str(self.order["study_uid"])

    def now(self) -> dict[str, Any]:
        """The order as it is."""
        found = self.api.ask("clerk", "GET", f"/orders/{self.order['id']}")
        self.order = found
        return dict(found)

    def received(self) -> dict[str, str]:
        """By their ids, the messages with results of the order that reached the receiver."""
        return {
            number: text
            for number, text in self.receiver.once("ORU").items()
            if self.order["accession"] in text
        }

    def documents(self) -> list[tuple[str, str]]:
        """Series and instance of every PDF under the study."""
        answer = self.api.fetch(
            f"/studies/{self.study}/instances", "application/dicom+json", SOPClassUID=ENCAPSULATED_PDF
        )
        rows = answer.json() if answer.content else []
        return [(row["0020000E"]["Value"][0], row["00080018"]["Value"][0]) for row in rows]


# ---------------------------------------------------------------- the steps


def a_prior_is_there(day: Day) -> str:
    """An examination of last year, stored as archives were before anybody ordered in the RIS."""
    says = Dataset()
    says.StudyInstanceUID = day.prior = generate_uid(prefix=None)
    says.PatientID, says.IssuerOfPatientID = day.number, ISSUER
    says.PatientName, says.PatientBirthDate, says.PatientSex = "LINDQVIST^TOVE", "19610412", "F"
    says.StudyDescription, says.AccessionNumber = "CT of the head", f"OLD{day.number}"
    files = pictures(says, PRIOR, day.folder / "prior", datetime.now(UTC) - timedelta(days=400))
    day.modality.send(files)
    return f"a CT of {datetime.now(UTC) - timedelta(days=400):%Y-%m-%d}, {len(files)} image"


def an_order_comes(day: Day) -> str:
    """ORM^O01 over MLLP; acknowledged, it is in the RIS."""
    with Sender(*day.hl7) as his:
        answer = his.send(new_order(day.number, day.placer, day.procedure))
    if field_of(answer, "MSA", 1) != "AA":
        raise DayError(f"the order is not accepted: {answer!r}")
    found = day.api.ask("clerk", "GET", "/orders", placer=day.placer, placer_issuer=HOSPITAL)["items"]
    if len(found) != 1:
        raise DayError(f"the RIS has {len(found)} orders of the number that was acknowledged")
    (day.order,) = found
    return f"acknowledged AA; accession number {day.order['accession']}"


def it_is_accepted(day: Day) -> str:
    """The safety questions are answered, a radiologist says how it is to be done."""
    open_questions = [one["name"] for one in day.now()["questions"] if not one["answer"]]
    for name in open_questions:
        answer = {"name": name, "answer": "no", "note": "asked on the ward"}
        day.api.ask("technologist", "POST", f"/orders/{day.order['id']}/answers", answer)
    if day.now()["state"] == "placed":
        protocol = {"text": "Plain, 5 mm axial; bone window too"}
        day.api.ask("radiologist", "POST", f"/orders/{day.order['id']}/accept", protocol)
    if day.now()["state"] != "accepted":
        raise DayError(f"the order is {day.order['state']} and not accepted")
    return f"protocolled; {len(open_questions)} safety questions answered"


def it_is_scheduled(day: Day) -> str:
    """The first free time is booked, and the patient comes."""
    slots = day.api.ask("clerk", "GET", "/slots", orders=day.order["id"], limit=1)["items"]
    if not slots:
        raise DayError("there is no free time within a month")
    booking = {"orders": [day.order["id"]], "from": slots[0]["from"]}
    appointment = day.api.ask("clerk", "POST", "/appointments", booking)
    day.api.ask("clerk", "POST", f"/appointments/{appointment['id']}/arrive", {})
    if day.now()["state"] != "scheduled":
        raise DayError(f"the order is {day.order['state']} and not scheduled")
    return f"{slots[0]['from'][:16]}, {', '.join(slots[0]['resources'])}; the patient is here"


def the_worklist_shows_it(day: Day) -> str:
    """DCMTK's findscu asks for what is scheduled for CT."""
    found = day.modality.worklist(
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyInstanceUID",
        "RequestedProcedureID", "RequestedProcedureDescription", "ReferringPhysicianName",
        "ScheduledProcedureStepSequence[0].Modality=CT",
        "ScheduledProcedureStepSequence[0].ScheduledProcedureStepID",
        "ScheduledProcedureStepSequence[0].ScheduledProcedureStepDescription",
        "ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate",
        "ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartTime",
        "ScheduledProcedureStepSequence[0].ScheduledStationAETitle",
    )  # fmt: skip
    items = [one for one in found if one.AccessionNumber == day.order["accession"]]
    if len(items) != 1:
        raise DayError(f"findscu sees {len(found)} items, {len(items)} of the order")
    (day.item,) = items
    if day.item.StudyInstanceUID != day.study or day.item.PatientID != day.number:
        raise DayError("the item on the worklist is of another study or patient")
    return f"findscu -W: {day.item.PatientName}, {day.item.RequestedProcedureDescription}"


def it_is_begun(day: Day) -> str:
    """MPPS: in progress."""
    day.performed = day.modality.begin(day.item)
    if day.now()["state"] != "in-progress":
        raise DayError(f"the modality has begun, and the order is {day.order['state']}")
    return "N-CREATE IN PROGRESS; the order is in progress"


def images_are_sent(day: Day) -> str:
    """C-STORE, with the worklist's UIDs."""
    files = images_of(day.item, TODAY, day.folder / "today")
    day.images = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    day.modality.send(files)
    return f"dcmsend: {len(files)} images, 512 × 512"


def it_is_ended(day: Day) -> str:
    """MPPS: completed."""
    day.modality.end(day.performed, day.images)
    if day.now()["state"] != "completed":
        raise DayError(f"the modality has completed it, and the order is {day.order['state']}")
    return "N-SET COMPLETED; the order is completed"


def all_images_are_there(day: Day) -> str:
    """What the modality said it made is what the archive has."""

    def found() -> Any:
        for state in ("verified", "read", "reported"):
            for one in day.api.ask("technologist", "GET", "/tracking", state=state, limit=500)["items"]:
                if one["study_uid"] == day.study:
                    return one
        return None

    tracked = until(found, "the study is tracked as complete")
    if (tracked["stored"], tracked["expected"]) != (len(day.images), len(day.images)):
        raise DayError(
            f"{tracked['stored']} images are tracked of {tracked['expected']}: {len(day.images)} were made"
        )
    return f"{tracked['stored']} of {tracked['expected']} images, {tracked['state']}"


def it_is_read(day: Day) -> str:
    """A radiologist takes it from the reading list, and has its prior beside it."""

    def waiting() -> Any:
        unread = day.api.ask("radiologist", "GET", "/reading-list", limit=500)["items"]
        return next((one for one in unread if one["study_uid"] == day.study), None)

    day.report = until(waiting, "the study is on the reading list")
    day.report = day.api.ask("radiologist", "POST", f"/reports/{day.report['id']}/take", {})
    priors = day.api.ask("radiologist", "GET", f"/reports/{day.report['id']}/priors")["items"]
    if [one["study_uid"] for one in priors] != [day.prior]:
        raise DayError(f"{len(priors)} priors are listed: not the one that there is")
    return f"taken by {day.report['assigned_to']}; its prior is listed: {', '.join(priors[0]['because'])}"


def it_is_signed(day: Day) -> str:
    """Written and signed by the radiologist who has it."""
    path = f"/reports/{day.report['id']}"
    sections = [
        {"name": "technique", "text": "Plain CT of the head."},
        {"name": "comparison", "text": "CT of last year."},
        {"name": "findings", "text": FINDINGS},
        {"name": "impression", "text": IMPRESSION},
    ]
    day.report = day.api.ask(
        "radiologist", "PUT", f"{path}/draft", {"sections": sections}, version=day.report["version"]
    )
    day.report = day.api.ask(
        "radiologist", "POST", f"{path}/sign", {"priors": [day.prior]}, version=day.report["version"]
    )
    if day.report["state"] != "final":
        raise DayError(f"the report is signed, and {day.report['state']}")
    (version,) = day.report["versions"]
    return f"{day.report['number']}, version {version['number']}, by {version['signer']}"


def the_report_is_received(day: Day) -> str:
    """ORU^R01 over MLLP reaches whoever has to know."""

    def final() -> Any:
        return day.received()

    found = until(final, "an ORU with the report reaches the receiver")
    if len(found) != 1:
        raise DayError(f"{len(found)} messages of the report reached the receiver")
    ((number, text),) = found.items()
    if IMPRESSION not in text or day.placer not in text:
        raise DayError("the message of the report has not what was written, or not the order's number")
    return f"{field_of(text, 'MSH', 9)} {number}"


def the_pdf_is_there(day: Day) -> str:
    """The report as a document under the study, over DICOMweb."""
    (made,) = until(day.documents, "a PDF is under the study")
    answer = day.api.fetch(
        f"/studies/{day.study}/series/{made[0]}/instances/{made[1]}", "application/dicom; transfer-syntax=*"
    )
    dataset = pydicom.dcmread(io.BytesIO(answer.content))
    document = bytes(dataset.EncapsulatedDocument)
    if not document.startswith(b"%PDF-") or b"%%EOF" not in document[-64:]:
        raise DayError("what is under the study is no PDF")
    if dataset.PatientID != day.number or dataset.AccessionNumber != day.order["accession"]:
        raise DayError("the PDF is another patient's, or of another order")
    return f"{len(document):,} bytes, {dataset.DocumentTitle}"


class Step(NamedTuple):
    """``title``: what people call it. ``play``: do it; what to say of it. DayError."""

    title: str
    play: Callable[[Day], str]


STEPS: Final = (
    Step("a prior examination is in the archive", a_prior_is_there),
    Step("the hospital sends an order", an_order_comes),
    Step("the order is accepted", it_is_accepted),
    Step("a time is booked", it_is_scheduled),
    Step("the CT sees it on its worklist", the_worklist_shows_it),
    Step("the CT begins", it_is_begun),
    Step("the CT sends its images", images_are_sent),
    Step("the CT has done it", it_is_ended),
    Step("all images are there", all_images_are_there),
    Step("a radiologist reads it", it_is_read),
    Step("the report is signed", it_is_signed),
    Step("the hospital receives the report", the_report_is_received),
    Step("the report is under the study, as a PDF", the_pdf_is_there),
)


def play(day: Day, say: Callable[[str, str], None], steps: Sequence[Step] = STEPS) -> None:
    """Do the steps, one after another. DayError of the first that fails, with its title."""
    for step in steps:
        try:
            told = step.play(day)
        except (DayError, httpx.HTTPError, OSError) as error:
            raise DayError(f"{step.title}: {error}") from error
        say(step.title, told)
