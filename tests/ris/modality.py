"""Modalities and their peers in tests: DCMTK's sample worklist as records of the RIS, wlmscpfs, findscu."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.multival import MultiValue

from hounsfield.archive.plugins import Caller, Change, Request
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import PATIENT, Allergy, Identifier, Patient
from hounsfield.ris_plugin.records.schedule import STEP, Step
from hounsfield.ris_plugin.settings import RisSettings
from ris.conftest import Desk
from support.server import PATIENCE_S, until

EXAMPLES = Path("/usr/share/doc/dcmtk/examples")
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
FIND = "1.2.840.10008.5.1.4.31"
MPPS = "1.2.840.10008.3.1.2.3.3"


# ---------------------------------------------------------------- a RIS over a desk


@dataclass
class DeskRecords:
    """A desk's records as a plugin has them."""

    desk: Desk

    def reading(self) -> Any:
        return self.desk.view()

    async def commit(self, plan: Any) -> Any:
        return self.desk.commit(plan)


@dataclass
class DeskArchive:
    """As much of an archive as is needed without a server."""

    desk: Desk
    ae_title: str = "HOUNSFIELD"
    records: DeskRecords = field(init=False)

    def __post_init__(self) -> None:
        self.records = DeskRecords(self.desk)


def ris_at(desk: Desk, **settings: Any) -> Ris:
    """A worker's RIS whose records are a desk's, at the desk's moment."""
    return Ris(DeskArchive(desk), RisSettings(**settings), lambda: desk.now_ns)  # type: ignore[arg-type]


def encoded(dataset: Dataset, syntax: str = EXPLICIT) -> bytes:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, syntax == IMPLICIT
    write_dataset(file, dataset)
    data: bytes = file.getvalue()
    return data


def decoded(data: bytes, syntax: str = EXPLICIT) -> Dataset:
    return read_dataset(io.BytesIO(data), syntax == IMPLICIT, True)


def request(
    dataset: Dataset, *, syntax: str = EXPLICIT, calling: str = "CT1", sop_class: str = FIND, uid: str = ""
) -> Request:
    return Request(
        Caller(calling, "HOUNSFIELD", "127.0.0.1"), sop_class, uid, syntax, encoded(dataset, syntax)
    )


# ---------------------------------------------------------------- worklist items as records


def take_in(change: Change, item: Dataset, issuer: str = "", zone: tzinfo = UTC) -> str:
    """A worklist item as the records that it would come from; the step's id.

    ``issuer``: of the patient's number; who has been taken in under it is that patient.
    """
    scheduled = item.ScheduledProcedureStepSequence[0]

    def text(of: Dataset, keyword: str) -> str:
        value = of.get(keyword)
        if isinstance(value, MultiValue):
            return "\\".join(map(str, value))
        return "" if value is None else str(value)

    number = text(item, "PatientID")
    found = change.first(PATIENT, "identifier", f"{issuer}\0{number}")
    patient_id = change.new_id() if found is None else found[0]
    patient = Patient(
        identifiers=(Identifier(value=number, issuer=issuer),),
        name=text(item, "PatientName"),
        birth_day=text(item, "PatientBirthDate"),
        sex=text(item, "PatientSex"),
        alerts=tuple(filter(None, text(item, "MedicalAlerts").split("\\"))),
        allergies=tuple(Allergy(substance=one) for one in text(item, "Allergies").split("\\") if one),
    )
    change.put(PATIENT, patient_id, patient)
    order_id = change.new_id()
    order = Order(
        patient=patient_id,
        accession=text(item, "AccessionNumber"),
        study_uid=text(item, "StudyInstanceUID"),
        procedure=Code(value="", meaning=text(item, "RequestedProcedureDescription")),
        state="scheduled",
        requested_procedure_id=text(item, "RequestedProcedureID"),
        priority=text(item, "RequestedProcedurePriority"),
        requester=text(item, "RequestingPhysician"),
    )
    change.put(ORDER, order_id, order)
    step_id = change.new_id()
    start = "ScheduledProcedureStepStart"
    moment = text(scheduled, f"{start}Date") + text(scheduled, f"{start}Time")
    begins = datetime.strptime(moment, "%Y%m%d%H%M%S").replace(tzinfo=zone)
    step = Step(
        number=text(scheduled, "ScheduledProcedureStepID"),
        order=order_id,
        patient=patient_id,
        state="scheduled",
        modality=text(scheduled, "Modality"),
        from_ns=int(begins.timestamp()) * NS,
        accession=order.accession,
        study_uid=order.study_uid,
        requested_procedure_id=order.requested_procedure_id,
        ae_titles=tuple(filter(None, text(scheduled, "ScheduledStationAETitle").split("\\"))),
        station_name=text(scheduled, "ScheduledStationName"),
        location=text(scheduled, "ScheduledProcedureStepLocation"),
        performer=text(scheduled, "ScheduledPerformingPhysicianName"),
        description=text(scheduled, "ScheduledProcedureStepDescription"),
        contrast=text(scheduled, "RequestedContrastAgent"),
    )
    change.put(STEP, step_id, step)
    return step_id


# ---------------------------------------------------------------- DCMTK


def from_dump(dump: Path, target: Path) -> Path:
    """A DICOM file from one of DCMTK's dumps."""
    subprocess.run(
        ["dump2dcm", "-q", str(dump), str(target)], check=True, timeout=PATIENCE_S, capture_output=True
    )
    return target


def sample_items(folder: Path) -> list[Path]:
    """DCMTK's sample worklist as ``folder/OFFIS/*.wl``, for wlmscpfs; each with the status that ours have."""
    area = folder / "OFFIS"
    area.mkdir(parents=True)
    (area / "lockfile").touch()
    dumps = sorted((EXAMPLES / "wlistdb" / "OFFIS").glob("*.dump"))
    items = [from_dump(dump, area / f"{dump.stem}.wl") for dump in dumps]
    for path in items:
        item = pydicom.dcmread(path, force=True)
        item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStatus = "SCHEDULED"
        item.save_as(path)
    return items


def sample_queries(folder: Path) -> list[Path]:
    """DCMTK's sample queries as files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        from_dump(dump, folder / f"{dump.stem}.dcm")
        for dump in sorted((EXAMPLES / "wlistqry").glob("*.dump"))
    ]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


@contextlib.contextmanager
def wlmscpfs(folder: Path, *options: str) -> Iterator[int]:
    """DCMTK's worklist server over the items below a folder; its port."""
    port = free_port()
    command = ["wlmscpfs", "-q", "-s", "-dhl", "-csk", *options, "-dfp", str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listening() -> bool:
        assert process.poll() is None, "wlmscpfs ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listening, "wlmscpfs listens")
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def findscu(
    port: int, called: str, query: Path | None, folder: Path, keys: Iterable[str] = (), calling: str = "AA32"
) -> list[Dataset]:
    """What ``findscu -W`` is answered."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = ["findscu", "-q", "-W", "-X", "-od", str(folder), "-aet", calling, "-aec", called]
    for key in keys:
        words += ["-k", key]
    words += ["127.0.0.1", str(port), *([str(query)] if query is not None else [])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return [pydicom.dcmread(path, force=True) for path in sorted(folder.glob("rsp*.dcm"))]
