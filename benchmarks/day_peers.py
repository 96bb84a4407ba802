"""Who a department deals with, as programs of others: the hospital's system, a CT, a receiver of reports.

The hospital's system and the receiver speak HL7 v2 over MLLP by the few lines here, not by what the RIS has;
the CT asks for its worklist with DCMTK's ``findscu``, sends with its ``dcmsend`` and reports what it does
with pynetdicom.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
import pydicom
import pydicom.data
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE

START, END = b"\x0b", b"\x1c\r"
PATIENCE_S = 60.0
"""Longer than anything of the day takes, so that a fault ends it."""
PROGRAMS = ("findscu", "dcmsend")
"""Of DCMTK, which the CT is made of."""
MPPS = "1.2.840.10008.3.1.2.3.3"


HOSPITAL, ISSUER = "HIS", "HOSPITAL"
"""The hospital's system as a sender, and whose its patients' numbers are."""
NAME, BIRTH_DAY = "LINDQVIST^TOVE^^^^^L", "19610412"
CLINICAL, REASON = "Fell from a ladder, vomits.", "^Exclude bleeding"


class DayError(Exception):
    """Something of the day did not go as it has to; the text says what."""


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """What ``condition`` gives once that is true. DayError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise DayError(f"not after {seconds:.0f} s: {what}")
        time.sleep(0.05)
    return found


# ---------------------------------------------------------------- HL7


def stamp(when: datetime | None = None) -> str:
    """A moment as HL7 has it, to the second, with its offset from UTC."""
    return (when or datetime.now(UTC)).astimezone(UTC).strftime("%Y%m%d%H%M%S%z")


def segment(name: str, fields: Mapping[int, str]) -> str:
    """A segment with these fields, the others empty."""
    return "|".join((name, *(fields.get(number, "") for number in range(1, max(fields) + 1))))


def field_of(message: str, segment: str, number: int) -> str:
    """A field as it stands in the first segment of a name, "" when there is none."""
    for line in message.split("\r"):
        fields = line.split("|")
        if fields[0] == segment:
            at = number - 1 if segment == "MSH" else number
            return fields[at] if at < len(fields) else ""
    return ""


def message(kind: str, patient: str, *segments: str, control_id: str = "") -> str:
    """A message of the hospital's system about a patient: ``kind`` as MSH-9 has it, ``patient`` the number
    there, ``control_id`` MSH-10 where it is said again."""
    number, event = control_id or secrets.token_hex(8), kind.split("^")[1]
    head = {2: HOSPITAL, 3: ISSUER, 4: "HOUNSFIELD", 5: "RADIOLOGY", 6: stamp(), 8: kind, 9: number, 10: "P",
            11: "2.5.1", 17: "UNICODE UTF-8"}  # fmt: skip
    lines = [
        segment("MSH", {1: "^~\\&", **head}),
        *([segment("EVN", {1: event, 2: stamp()})] if kind.startswith("ADT") else []),
        segment("PID", {1: "1", 3: f"{patient}^^^{ISSUER}^MR", 5: NAME, 7: BIRTH_DAY, 8: "F"}),
        segment("PV1", {1: "1", 2: "O", 3: "AMB^^^HOSPITAL"}),
        *segments,
    ]
    return "\r".join((*lines, ""))


def new_order(patient: str, placer: str, procedure: str, control_id: str = "") -> str:
    """ORM^O01: an order, of the number ``placer``, for a procedure of the catalog (CODE^MEANING^SCHEME)."""
    requester, number = "4711^KELLER^IDA^^^DR.", f"{placer}^{HOSPITAL}"
    return message(
        "ORM^O01^ORM_O01",
        patient,
        segment("ORC", {1: "NW", 2: number, 9: stamp(), 12: requester}),
        segment("OBR", {1: "1", 2: number, 4: procedure, 13: CLINICAL, 16: requester, 31: REASON}),
        control_id=control_id,
    )


class Sender:
    """A connection on which a system sends, one message after another, each answered before the next."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=PATIENCE_S)
        self._rest = b""

    def send(self, message: str) -> str:
        """The answer. OSError when the connection ends before there is one."""
        self._socket.sendall(START + message.encode() + END)
        while END not in self._rest:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the connection ended without an answer")
            self._rest += data
        answer, _, self._rest = self._rest.partition(END)
        return answer.lstrip(START).decode()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Receiver:
    """A system that reports go to: acknowledges each message once it has it, and keeps them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: list[str] = []
        outer = self

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                rest = b""
                with contextlib.suppress(OSError):  # whoever sends may be killed at any time
                    while data := self.request.recv(1 << 16):
                        rest += data
                        while END in rest:
                            message, _, rest = rest.partition(END)
                            self.wfile.write(outer._taken(message.lstrip(START).decode()))

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Connection)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def messages(self) -> list[str]:
        """All that came, in that order, those that came again too."""
        with self._lock:
            return list(self._messages)

    def once(self, kind: str = "") -> dict[str, str]:
        """By id (MSH-10) what came, those of a kind (``ORU``) alone if asked. DayError when two messages
        share an id."""
        found: dict[str, str] = {}
        for message in self.messages:
            if field_of(message, "MSH", 9).startswith(kind):
                before = found.setdefault(field_of(message, "MSH", 10), message)
                if before != message:
                    raise DayError("the receiver got two different messages of one id")
        return found

    def _taken(self, message: str) -> bytes:
        with self._lock:
            self._messages.append(message)
        number = field_of(message, "MSH", 10)
        answer = f"MSH|^~\\&|EPR|WARDS|||{stamp()}||ACK|{number}|P|2.5.1\rMSA|AA|{number}\r"
        return START + answer.encode() + END

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


# ---------------------------------------------------------------- people


@dataclass(frozen=True)
class Api:
    """The RIS and the archive over HTTP, for people: ``url`` is http://HOST:PORT, ``tokens`` are by role."""

    url: str
    tokens: dict[str, str]

    def ask(self, role: str, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """What the RIS answers somebody. ``version``: of the record as it was read. DayError for anything but
        success."""
        headers = {"authorization": f"Bearer {self.tokens[role]}"}
        if version := query.pop("version", None):
            headers["if-match"] = f'"{version}"'
        answer = httpx.request(
            method, f"{self.url}/ris/api{path}", json=body, params=query, headers=headers, timeout=PATIENCE_S
        )
        if not answer.is_success:
            raise DayError(f"{method} {path} as {role}: {answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content else None

    def every(self, role: str, path: str, **query: Any) -> list[dict[str, Any]]:
        """All of a list, page by page."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            page = self.ask(role, "GET", path, limit=500, **({"after": after} if after else {}), **query)
            found += page["items"]
            after = page.get("next", "")
            if not after:
                return found

    def fetch(self, path: str, accept: str, **query: Any) -> httpx.Response:
        """What DICOMweb answers. httpx.HTTPError for anything but success."""
        headers = {"authorization": f"Bearer {self.tokens['radiologist']}", "accept": accept}
        return httpx.get(
            f"{self.url}/dicom-web{path}", params=query, headers=headers, timeout=PATIENCE_S
        ).raise_for_status()


# ---------------------------------------------------------------- the modality


@dataclass
class Modality:
    """A CT: ``title`` is its AE title, ``folder`` where its files lie."""

    title: str
    host: str
    port: int
    folder: Path
    called: str = "HOUNSFIELD"

    def worklist(self, *keys: str) -> list[Dataset]:
        """What DCMTK's findscu sees of the worklist with these keys."""
        answers = Path(tempfile.mkdtemp(prefix="worklist-", dir=self.folder))
        words = ["-W", "-X", "-od", str(answers)]
        for key in keys:
            words += ["-k", key]
        self._dcmtk("findscu", *words)
        found = [pydicom.dcmread(path, force=True) for path in sorted(answers.iterdir())]
        shutil.rmtree(answers)
        return list(found)

    def send(self, files: Sequence[Path]) -> None:
        """C-STORE with DCMTK's dcmsend. DayError unless each was stored."""
        report = self.folder / "sent.txt"
        self._dcmtk("dcmsend", "+crf", str(report), files=files)
        text = report.read_text()
        stored = text.count("DIMSE Status  : 0x0000")
        if stored != len(files):
            raise DayError(f"dcmsend stored {stored} of {len(files)} images:\n{text}")

    def begin(self, item: Dataset, uid: str = "", *, also: Sequence[int] = ()) -> str:
        """MPPS, N-CREATE: in progress, for an item of the worklist; the SOP Instance UID. DayError unless the
        status is success, or one of ``also``."""
        scheduled = item.ScheduledProcedureStepSequence[0]
        says, of = Dataset(), Dataset()
        for keyword in ("StudyInstanceUID", "AccessionNumber", "RequestedProcedureID"):
            setattr(of, keyword, item.get(keyword, ""))
        of.ReferencedStudySequence = []
        of.RequestedProcedureDescription = item.get("RequestedProcedureDescription", "")
        of.ScheduledProcedureStepID = scheduled.ScheduledProcedureStepID
        of.ScheduledProcedureStepDescription = scheduled.get("ScheduledProcedureStepDescription", "")
        of.ScheduledProtocolCodeSequence = scheduled.get("ScheduledProtocolCodeSequence", [])
        says.ScheduledStepAttributesSequence = [of]
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
            setattr(says, keyword, item.get(keyword, ""))
        says.SpecificCharacterSet = item.get("SpecificCharacterSet", "")
        says.ReferencedPatientSequence = []
        now = datetime.now(UTC)
        says.PerformedProcedureStepID = "PPS" + scheduled.ScheduledProcedureStepID[-10:]
        says.PerformedStationAETitle = self.title
        says.PerformedStationName = says.PerformedLocation = ""
        says.PerformedProcedureStepStartDate = now.strftime("%Y%m%d")
        says.PerformedProcedureStepStartTime = now.strftime("%H%M%S")
        says.PerformedProcedureStepStatus = "IN PROGRESS"
        says.PerformedProcedureStepDescription = says.PerformedProcedureTypeDescription = ""
        says.ProcedureCodeSequence = says.PerformedProtocolCodeSequence = says.PerformedSeriesSequence = []
        says.PerformedProcedureStepEndDate = says.PerformedProcedureStepEndTime = ""
        says.Modality = scheduled.Modality
        says.StudyID = ""
        uid = uid or str(generate_uid(prefix=None))
        with self._association() as association:
            self._done("N-CREATE", association.send_n_create(says, MPPS, uid)[0], also)
        return uid

    def end(self, uid: str, images: Sequence[Dataset], *, also: Sequence[int] = ()) -> None:
        """MPPS, N-SET: completed, and what was made. DayError as :meth:`begin`."""
        says, now = Dataset(), datetime.now(UTC)
        says.PerformedProcedureStepStatus = "COMPLETED"
        says.PerformedProcedureStepEndDate = now.strftime("%Y%m%d")
        says.PerformedProcedureStepEndTime = now.strftime("%H%M%S")
        series: dict[str, Dataset] = {}
        for image in images:
            one = series.setdefault(image.SeriesInstanceUID, Dataset())
            one.SeriesInstanceUID = image.SeriesInstanceUID
            one.SeriesDescription = image.get("SeriesDescription", "")
            one.ProtocolName = image.get("ProtocolName") or "HEAD"
            one.OperatorsName = one.PerformingPhysicianName = one.RetrieveAETitle = ""
            one.ReferencedNonImageCompositeSOPInstanceSequence = []
            made = Dataset()
            made.ReferencedSOPClassUID = image.SOPClassUID
            made.ReferencedSOPInstanceUID = image.SOPInstanceUID
            one.ReferencedImageSequence = [*one.get("ReferencedImageSequence", []), made]
        says.PerformedSeriesSequence = list(series.values())
        with self._association() as association:
            self._done("N-SET", association.send_n_set(says, MPPS, uid)[0], also)

    @contextlib.contextmanager
    def _association(self) -> Iterator[Any]:
        entity = AE(ae_title=self.title)
        entity.add_requested_context(MPPS)
        association = entity.associate(self.host, self.port, ae_title=self.called)
        if not association.is_established:
            raise DayError("the archive accepts no association for MPPS")
        try:
            yield association
        finally:
            association.release()

    def _done(self, what: str, status: Dataset, also: Sequence[int]) -> None:
        if status.get("Status") not in (0, *also):
            code = f"{status.Status:04X}" if "Status" in status else "no answer"
            raise DayError(f"{what} is refused: {code} {status.get('ErrorComment', '')}".rstrip())

    def _dcmtk(self, program: str, *words: str, files: Sequence[Path] = ()) -> None:
        command = [program, "-aet", self.title, "-aec", self.called, *words, self.host, str(self.port)]
        try:
            done = subprocess.run(
                [*command, *map(str, files)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
        except FileNotFoundError:
            raise DayError(f"{program} of DCMTK is not installed: run `make peers`") from None
        if done.returncode:
            raise DayError(f"{program} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def images_of(item: Dataset, names: Sequence[str], folder: Path) -> list[Path]:
    """Real images, made as a modality makes them for an item of the worklist: its UIDs, its patient."""
    scheduled = item.ScheduledProcedureStepSequence[0]
    says = Dataset()
    for keyword in ("StudyInstanceUID", "AccessionNumber", "PatientName", "PatientID", "PatientBirthDate",
                    "PatientSex", "SpecificCharacterSet", "ReferringPhysicianName"):  # fmt: skip
        if keyword in item:
            setattr(says, keyword, item[keyword].value)
    says.StudyDescription = item.get("RequestedProcedureDescription", "")
    request = Dataset()
    request.RequestedProcedureID = item.get("RequestedProcedureID", "")
    request.ScheduledProcedureStepID = scheduled.ScheduledProcedureStepID
    says.RequestAttributesSequence = [request]
    return pictures(says, names, folder, datetime.now(UTC))


def pictures(says: Dataset, names: Sequence[str], folder: Path, when: datetime) -> list[Path]:
    """Real images of pydicom's, as one series of the study, patient and moment that are given."""
    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid(prefix=None)
    made = []
    for number, name in enumerate(names, 1):
        source = pydicom.data.get_testdata_file(name)
        if source is None:
            raise DayError(f"pydicom-data has no {name}: run `make setup`")
        image = pydicom.dcmread(str(source))
        for element in says:
            image[element.tag] = element
        image.SeriesInstanceUID, image.InstanceNumber, image.SeriesNumber = series, number, 1
        image.SOPInstanceUID = generate_uid(prefix=None)
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        for what in ("Study", "Series", "Acquisition", "Content"):
            setattr(image, f"{what}Date", when.strftime("%Y%m%d"))
            setattr(image, f"{what}Time", when.strftime("%H%M%S"))
        path = folder / f"{secrets.token_hex(4)}-{number}.dcm"
        image.save_as(path)
        made.append(path)
    return made
