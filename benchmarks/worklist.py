"""Worklist queries beside DCMTK's wlmscpfs: `python -m benchmarks.worklist`. Sizes: --size steps=5000

Both hold the same scheduled steps, of ten stations and ten days, and are asked the same in turns over one
association each: what a station has today, what a modality has, one patient, one order. That they answer the
same number is looked at first. A query's time is from its first byte to its last response, measured by a
client that reads every answer. wlmscpfs reads all of its files for each query.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from benchmarks import archives, bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.figures import median
from benchmarks.peers.base import Endpoints, Peer, PeerError, free_port
from benchmarks.peers.ours import Hounsfield
from benchmarks.processes import wait_idle
from benchmarks.query_load import WORKLIST, QueryLoad, Requestor
from hounsfield.archive.index.records import Planned
from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import PATIENT, Identifier, Patient
from hounsfield.ris_plugin.records.schedule import STEP, Step

EXPERIMENT = "worklist"
P50_MS = 5.0
OVER_WLMSCPFS = 3.0
STATIONS = (*(f"CT{n}" for n in range(4)), *(f"MR{n}" for n in range(3)), *(f"CR{n}" for n in range(3)))
DAYS = range(-2, 8)
PUT_AT_ONCE = 500
QUERIES_A_TURN = 20
"""Of ours, for one of wlmscpfs."""

_KEYS = """AccessionNumber PatientName PatientID PatientBirthDate PatientSex PatientWeight MedicalAlerts
    Allergies PregnancyStatus StudyInstanceUID RequestingPhysician RequestedProcedureDescription
    RequestedProcedureID RequestedProcedurePriority ReferringPhysicianName AdmissionID
    CurrentPatientLocation"""
_KEYS_OF_STEP = """Modality ScheduledStationAETitle ScheduledProcedureStepStartDate
    ScheduledProcedureStepStartTime ScheduledPerformingPhysicianName ScheduledProcedureStepDescription
    ScheduledStationName ScheduledProcedureStepLocation ScheduledProcedureStepID RequestedContrastAgent
    PreMedication"""


class Scheduled(NamedTuple):
    """One step, from which the records and wlmscpfs' file are made."""

    number: int
    station: str
    begins: datetime

    @property
    def name(self) -> str:
        return f"SURNAME{self.number % 977}^GIVEN{self.number}"


def run(settings: Settings, say: Say) -> list[Figure]:
    """Ours and theirs in turns."""
    steps = settings.size("steps", 5000, 200)
    today = datetime.now(UTC).replace(hour=8, minute=0, second=0, microsecond=0)
    scheduled = list(_scheduled(steps, today))
    with archives.folder(settings.scratch) as place:
        with archives.stores_in(place) as stores:
            for at in range(0, steps, PUT_AT_ONCE):
                some = scheduled[at : at + PUT_AT_ONCE]
                stores.plugin_records.commit([Planned("ris", partial(_put, some=some))], 1)
        arguments = ("--set", f"keys.master_key=file:{place / 'master.key'}", "--set", "plugins.ris={}")
        ours = cast(
            Hounsfield,
            type("WithSteps", (Hounsfield,), {"_data": place / "data", "arguments": arguments})(
                scratch=settings.scratch
            ),
        )
        area = place / "items" / "OFFIS"
        _write(area, scheduled)
        theirs = Wlmscpfs(area.parent, scratch=settings.scratch)
        with ours, theirs:
            figures = []
            for what, identifier, barred in _questions(scheduled, today):
                figures += _measured(
                    settings, say, f"{what}, among {steps:,} steps", identifier, ours, theirs, barred
                )
            return figures


def _scheduled(steps: int, today: datetime) -> Iterator[Scheduled]:
    for number in range(steps):
        station = STATIONS[number % len(STATIONS)]
        day = DAYS[number // len(STATIONS) % len(DAYS)]
        slot = number // (len(STATIONS) * len(DAYS))
        yield Scheduled(number, station, today + timedelta(days=day, minutes=10 * (slot % 60)))


def _questions(scheduled: Sequence[Scheduled], today: datetime) -> Iterator[tuple[str, bytes, bool]]:
    """What is asked, encoded, and whether bars are held to it."""
    day = f"{today:%Y%m%d}"
    some = scheduled[len(scheduled) // 2]
    yield (
        "a station's day",
        _query({"ScheduledStationAETitle": "CT1", "ScheduledProcedureStepStartDate": day}),
        True,
    )
    yield "a modality's day", _query({"Modality": "MR", "ScheduledProcedureStepStartDate": day}), True
    yield "one patient", _query({}, PatientID=f"P{some.number}"), True
    yield "one order", _query({}, AccessionNumber=f"A{some.number}"), True
    yield (
        "a name's beginning, one station",
        _query({"ScheduledStationAETitle": "CT1"}, PatientName="SURNAME1*"),
        False,
    )


def _query(scheduled: dict[str, str], **keys: str) -> bytes:
    """What modalities ask for: some thirty attributes."""
    asked, step = Dataset(), Dataset()
    asked.SpecificCharacterSet = "ISO_IR 100"
    for keyword in _KEYS.split():
        setattr(asked, keyword, keys.get(keyword, None if keyword == "PregnancyStatus" else ""))
    for keyword in _KEYS_OF_STEP.split():
        setattr(step, keyword, scheduled.get(keyword, ""))
    asked.ScheduledProcedureStepSequence = [step]
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    write_dataset(file, asked)
    data: bytes = file.getvalue()
    return data


def _put(change: Change, some: Sequence[Scheduled]) -> None:
    """The records of some steps, each of a patient and an order of its own."""
    for one in some:
        patient, order, number = change.new_id(), change.new_id(), one.number
        who = Patient(
            identifiers=(Identifier(value=f"P{number}"),), name=one.name, birth_day="19700101", sex="F"
        )
        code = Code(value=f"{one.station[:2]}HEAD", scheme="99H", meaning="Head")
        change.put(PATIENT, patient, who)
        ordered = Order(
            patient=patient, accession=f"A{number}", study_uid=f"1.2.826.{number}", procedure=code,
            state="scheduled", requested_procedure_id=f"R{number}", requester="DOCTOR^A",
        )  # fmt: skip
        change.put(ORDER, order, ordered)
        begins = int(one.begins.timestamp()) * NS
        step = Step(
            number=f"S{number}", order=order, patient=patient, state="scheduled", modality=one.station[:2],
            from_ns=begins, accession=f"A{number}", study_uid=f"1.2.826.{number}", ae_titles=(one.station,),
            station_name=one.station, description="Head plain", performer="TECH^ONE", codes=(code,),
        )  # fmt: skip
        change.put(STEP, change.new_id(), step)


def _write(area: Path, scheduled: Sequence[Scheduled]) -> None:
    """The same steps as files for wlmscpfs."""
    area.mkdir(parents=True)
    (area / "lockfile").touch()
    for one in scheduled:
        item, step = Dataset(), Dataset()
        item.SpecificCharacterSet = "ISO_IR 100"
        item.AccessionNumber, item.PatientID = f"A{one.number}", f"P{one.number}"
        item.PatientName, item.PatientBirthDate, item.PatientSex = one.name, "19700101", "F"
        item.StudyInstanceUID, item.RequestedProcedureID = f"1.2.826.{one.number}", f"R{one.number}"
        item.RequestedProcedureDescription, item.RequestedProcedurePriority = "Head", "ROUTINE"
        item.RequestingPhysician = "DOCTOR^A"
        step.Modality, step.ScheduledStationAETitle = one.station[:2], one.station
        step.ScheduledProcedureStepStartDate = f"{one.begins:%Y%m%d}"
        step.ScheduledProcedureStepStartTime = f"{one.begins:%H%M%S}"
        step.ScheduledPerformingPhysicianName, step.ScheduledStationName = "TECH^ONE", one.station
        step.ScheduledProcedureStepDescription = "Head plain"
        step.ScheduledProcedureStepID = f"S{one.number}"
        item.ScheduledProcedureStepSequence = [step]
        file = io.BytesIO()
        item.save_as(file, implicit_vr=False, little_endian=True)
        (area / f"{one.number}.wl").write_bytes(file.getvalue())


class Wlmscpfs(Peer):
    """DCMTK's worklist server: a folder of files, all read for each query."""

    name = "wlmscpfs"
    label = "DCMTK wlmscpfs"
    durable = "reads files"
    tuning = "a process per association"
    packages = ("dcmtk",)

    def __init__(self, items: Path, *, scratch: Path | None = None) -> None:
        super().__init__(scratch=scratch)
        self._items = items

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("wlmscpfs") else "apt-get install -y --no-install-recommends dcmtk"

    def version(self) -> str:
        return "wlmscpfs"

    def _launch(self) -> Endpoints:
        port = free_port()
        self._start(["wlmscpfs", "-q", "-dhl", "-csk", "-dfp", str(self._items), str(port)])
        self._wait_port(port)
        return Endpoints(dicom_port=port, ae_title="OFFIS")


@contextmanager
def _asking(peer: Peer) -> Iterator[Requestor]:
    load = QueryLoad(WORKLIST, peer.endpoints.dicom_port, peer.endpoints.ae_title)
    requestor = Requestor(load)
    try:
        yield requestor
    finally:
        requestor.release()


def _measured(
    settings: Settings, say: Say, what: str, identifier: bytes, ours: Peer, theirs: Peer, barred: bool
) -> list[Figure]:
    """The times of a query, in turns; p50 of each round, and the ratio of rounds."""
    with _asking(ours) as here, _asking(theirs) as there:
        counts = [_counted(one, identifier) for one in (here, there)]
        if counts[0] != counts[1] or not counts[0]:
            raise PeerError(f"{what}: {counts[0]} answers of ours, {counts[1]} of wlmscpfs")
        mine: list[float] = []
        ratios: list[float] = []
        for _ in range(settings.rounds):
            wait_idle(ours.pid)
            until = time.monotonic() + settings.seconds
            a: list[float] = []
            b: list[float] = []
            while time.monotonic() < until or not b:
                a += [_timed(here, identifier) for _ in range(QUERIES_A_TURN)]
                b.append(_timed(there, identifier))
            mine.append(median(a))
            ratios.append(median(b) / median(a))
            say(f"{what}: {counts[0]} answers, {mine[-1]:.2f} ms, wlmscpfs {median(b):.1f} ms")
    detail = {"answers": counts[0]}
    return [
        Figure(
            EXPERIMENT, f"p50 of {what}", mine, "ms", at_most=P50_MS if barred else None, detail=dict(detail)
        ),
        Figure(
            EXPERIMENT, f"{what}, over wlmscpfs", ratios, "×", at_least=OVER_WLMSCPFS, detail=dict(detail)
        ),
    ]


def _counted(requestor: Requestor, identifier: bytes) -> int:
    before = requestor.answers
    _timed(requestor, identifier)
    return requestor.answers - before


def _timed(requestor: Requestor, identifier: bytes) -> float:
    began = time.perf_counter()
    status = requestor.ask(identifier, 1)
    if status:
        raise PeerError(f"a query ended with {status:04X}")
    return 1000 * (time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """This experiment alone."""
    return bars.main(run, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
