"""What is recorded: a server from its first start on, over everything that writes. One line a step.

A client notes what it is about to ask for (``sent``, ``wants``) and what it was told (``acked``, ``done``) in
the recorder's own log, so that a cut at any place knows what had been acknowledged by then.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cstore_load import Association, Load
from benchmarks.upper_layer import RefusedError
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from crash_truth.library import Do, On, Recorder
from hounsfield.archive.app.asking import ask
from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.errors import ControlError, HounsfieldError
from support.archives import ct_slice
from support.load import framed
from support.server import ArchiveServer, until, value

SETTINGS = (
    "storage.segment_bytes_max=1048576",  # the least that may be set: segments roll every few objects
    "storage.disk_reserve_bytes=1048576",
    "storage.study_stable_seconds=0.2",  # so that it is announced, and written, while recorded
    "storage.metadata_quiet_seconds=0.2",
    "ingest.stream_bytes_min=1048576",  # what is longer is stored while it comes in
    "compaction.bytes_per_second=0",
    'plugins.ris.time_zone="UTC"',
)
LARGE_BYTES = 1_600_000
PATIENT, ISSUER = "patient ", "HOSP"
"""Before the number of a patient of the RIS in notes, and whose number it is."""
SUCCESS, WARNING_CLASS = 0x0000, 0xB000


@dataclass
class RecordedServer(ArchiveServer):
    """A server all of whose files lie below ``directory/disk``, its logs beside it."""

    recorder: Recorder | None = None
    around: tuple[str, ...] = ()
    """A program that starts it, as ``strace``."""

    def command(self, ready_fd: int) -> list[str]:
        return [*self.around, *super().command(ready_fd)]

    @property
    def disk(self) -> Path:
        return self.directory / "disk"

    @property
    def data(self) -> Path:
        return self.disk / "archive"

    @property
    def environment(self) -> dict[str, str]:
        made = {**super().environment, "XDG_STATE_HOME": str(self.disk / "state")}
        return made if self.recorder is None else {**made, **self.recorder.environment}


def recorded_server(directory: Path, *settings: str, workers: int = 2) -> RecordedServer:
    """One on a new directory; not started."""
    (directory / "disk").mkdir(parents=True)
    recorder = Recorder(directory / "log", directory / "disk")
    return RecordedServer(directory, workers, (*SETTINGS, *settings), recorder=recorder)


@dataclass(frozen=True)
class Object:
    """An object to store."""

    study: str
    series: str
    sop: str
    data: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass
class Client:
    """Talks to the server and notes what it hears."""

    server: RecordedServer
    rng: random.Random
    sent: list[Object] = field(default_factory=list)
    acked: list[Object] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    cut_off: int = 0

    # ------------------------------------------------------------------ objects

    def uid(self) -> str:
        return f"2.25.{self.rng.randrange(10**37, 10**38)}"

    def objects(self, count: int, sizes: Sequence[int] = (512, 9_000, 70_000, 300_000)) -> list[Object]:
        """New objects: two to a series, two series to a study."""
        found: list[Object] = []
        while len(found) < count:
            study = self.uid()
            for _ in range(2):
                series = self.uid()
                for number in range(2):
                    size = self.rng.choice(tuple(sizes))
                    found.append(self.object(study, series, self.uid(), size, number))
        return found[:count]

    def object(self, study: str, series: str, sop: str, size: int, number: int = 1) -> Object:
        data = ct_slice(
            patient_id=study[-8:], study_uid=study, series_uid=series, sop_uid=sop, number=number,
            pixels=self.rng.randbytes(size & ~1),
        )  # fmt: skip
        return Object(study, series, sop, data)

    def _note_sent(self, one: Object) -> None:
        self.note(sent=one.sop, study=one.study, series=one.series, digest=one.digest)
        self.sent.append(one)

    def _note_acked(self, one: Object) -> None:
        self.note(acked=one.sop, digest=one.digest)
        self.acked.append(one)

    def note(self, **what: object) -> None:
        assert self.server.recorder is not None
        self.server.recorder.note(**what)

    def store(self, objects: Sequence[Object], associations: int = 4) -> None:
        """C-STORE them over several associations at once; an association that is cut off ends."""
        threads = [
            threading.Thread(target=self._associate, args=(objects[number::associations],))
            for number in range(min(associations, len(objects)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a sender waits for ever"

    def _associate(self, objects: Sequence[Object]) -> None:
        try:
            association = Association(Load("127.0.0.1", self.server.dicom_port, "HOUNSFIELD"), CTImageStorage)
            for one in objects:
                self._note_sent(one)
                message = memoryview(framed(one.data, one.sop, association.max_pdu))
                status = association.store(message, 1)
                if status == SUCCESS or status & 0xF000 == WARNING_CLASS:
                    self._note_acked(one)
                else:
                    self.refused.append(f"{status:04X}")
            association.release()
        except (OSError, RefusedError):
            self.cut_off += 1

    def stow(self, objects: Sequence[Object]) -> None:
        """Store them in one HTTP request."""
        boundary = "=crash-truth="
        body = bytearray()
        for one in objects:
            self._note_sent(one)
            body += f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            body += file_header(ExplicitVRLittleEndian, CTImageStorage, one.sop) + one.data + b"\r\n"
        body += f"--{boundary}--\r\n".encode()
        answer = self.server.client.post(
            "/dicom-web/studies",
            content=bytes(body),
            headers={"Content-Type": f'multipart/related; type="application/dicom"; boundary="{boundary}"'},
        )
        stored = {value(item, "00081155") for item in answer.json().get("00081199", {}).get("Value", [])}
        for one in objects:
            if one.sop in stored:
                self._note_acked(one)
            else:
                self.refused.append(str(answer.status_code))

    # ------------------------------------------------------------------ deletions

    def delete(self, **target: object) -> None:
        """Delete what ``target`` names; the notes list the objects."""
        control = self.server.data / "control.sock"
        gone = [
            one.sop
            for one in self.acked
            if one.study == target["study"] and target.get("series") in {None, one.series}
        ]
        self.note(deletes=gone)
        ask(control, "delete", reason="a test", actor="a test", **target)
        self.note(deleted=gone)
        self.acked = [one for one in self.acked if one.sop not in gone]

    def compact(self) -> int:
        """Rewrite every segment in which something is dead; how many."""
        control = self.server.data / "control.sock"
        due = ask(control, "compact-due", everything=True)
        for segment in due:
            ask(control, "compact-segment", segment=segment, throttled=False)
        ask(control, "compact-finish")
        return len(due)

    # ------------------------------------------------------------------ facts

    def add_ae(self, title: str) -> None:
        self.note(wants=title, there=True)
        ask(self.server.data / "control.sock", "ae-add", title=title, host="192.0.2.7", port=104)
        self.note(done=title, there=True)

    def remove_ae(self, title: str) -> None:
        self.note(wants=title, there=False)
        ask(self.server.data / "control.sock", "ae-remove", title=title)
        self.note(done=title, there=False)

    # ------------------------------------------------------------------ records

    def register(self, number: str) -> None:
        """A patient of the RIS; noted as a fact is."""
        self.note(wants=f"{PATIENT}{number}", there=True)
        body = {"identifiers": [{"value": number, "issuer": ISSUER}], "name": "DOE^JANE"}
        control = self.server.data / "control.sock"
        ask(control, "ris.do", user="a test", endpoint="RegisterPatient", path={}, query={}, body=body)
        self.note(done=f"{PATIENT}{number}", there=True)


# ---------------------------------------------------------------------- steps

Step = Callable[[Client], None]


def start(client: Client) -> None:
    client.server.start()


def store_in_parallel(client: Client) -> None:
    client.store(client.objects(12), associations=4)


def upload(client: Client) -> None:
    client.stow(client.objects(3))


def send_again(client: Client) -> None:
    client.store(client.acked[:3], associations=2)


def send_other_content(client: Client) -> None:
    known = client.acked[1]
    client.store([client.object(known.study, known.series, known.sop, 4_000)], associations=1)


def add_to_known_studies(client: Client) -> None:
    known = client.acked[:4]
    more = [client.object(one.study, one.series, client.uid(), 9_000) for one in known]
    client.store(more, associations=2)


def change_facts(client: Client) -> None:
    client.add_ae("CT1")
    client.add_ae("MR1")
    client.remove_ae("CT1")
    client.add_ae("CT2")


def register_patients(client: Client) -> None:
    """Records of a plugin: several at once share a commit."""
    threads = [threading.Thread(target=client.register, args=(f"R{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    client.register("R6")


def kill_all_before_a_sync(client: Client) -> None:
    """Bytes are written and not synced when every process dies; the next start finds them."""
    recorder = client.server.recorder
    assert recorder is not None
    recorder.arm(On.SYNC, "/segments/", skip=1, times=1_000, do=Do.DIE)
    objects = client.objects(4)
    client.store(objects, associations=4)
    client.server.kill_all()
    recorder.disarm()
    client.server.start()
    client.store(objects, associations=2)  # their senders try again


def kill_a_worker_before_a_sync(client: Client) -> None:
    """One worker dies between write and sync; another takes over what it left."""
    recorder = client.server.recorder
    assert recorder is not None
    before = set(client.server.worker_pids())
    recorder.arm(On.SYNC, "/segments/", times=1, do=Do.DIE)
    objects = client.objects(4)
    client.store(objects, associations=2)
    recorder.disarm()

    def replaced() -> bool:
        workers = client.server.status()["workers"]
        return all(one["ready"] for one in workers) and {one["pid"] for one in workers} != before

    until(replaced, "another worker")
    client.store(objects, associations=2)


def store_large(client: Client) -> None:
    """Objects that are stored while they come in, over both doors."""
    client.store(client.objects(2, sizes=(LARGE_BYTES,)), associations=2)
    client.stow(client.objects(1, sizes=(LARGE_BYTES,)))


def kill_all_in_a_large_object(client: Client) -> None:
    recorder = client.server.recorder
    assert recorder is not None
    recorder.arm(On.SYNC, "/segments/", skip=2, times=1_000, do=Do.DIE)
    objects = client.objects(2, sizes=(LARGE_BYTES,))
    client.store(objects, associations=2)
    client.server.kill_all()
    recorder.disarm()
    client.server.start()
    client.store(objects, associations=2)


def delete_and_compact(client: Client) -> None:
    """A study, a series of another; what they lay in is rewritten, twice, with objects coming in beside."""
    studies = list(dict.fromkeys(one.study for one in client.acked))
    client.delete(study=studies[0])
    series = next(one.series for one in client.acked if one.study == studies[1])
    client.delete(study=studies[1], series=series)
    loading = threading.Thread(target=client.store, args=(client.objects(8),))
    loading.start()
    assert client.compact() > 0
    loading.join(60)
    client.delete(study=studies[2])
    client.compact()


def kill_all_in_a_compaction(client: Client) -> None:
    recorder = client.server.recorder
    assert recorder is not None
    client.delete(study=client.acked[-1].study)
    recorder.arm(On.SYNC, "/segments/", skip=1, do=Do.DIE)

    def compact() -> None:
        with suppress(HounsfieldError, OSError):
            client.compact()

    compacting = threading.Thread(target=compact)
    compacting.start()
    until(lambda: recorder.fired() or not compacting.is_alive(), "a death")
    client.server.kill_all()
    compacting.join(60)
    recorder.disarm()
    client.server.start()  # the lease of the dead runs for a minute yet: nobody compacts before


def syncs_fail(client: Client) -> None:
    """Syncs of segments, ledger and index fail now and then; what is refused for it is sent again."""
    recorder = client.server.recorder
    assert recorder is not None
    for number, path in enumerate(("/segments/", "/index/", "/index/", "/ledger/", "/index/")):
        recorder.arm(On.SYNC, path, skip=number % 2, times=1)
        objects = client.objects(4, sizes=(9_000,))
        client.store(objects, associations=2)
        with suppress(ControlError):
            client.add_ae(f"FAILED{number}")
        recorder.disarm()
        for _ in range(3):  # a failed sync is told to each process that has the file open
            client.refused.clear()
            client.store(objects, associations=2)


def kill_all_in_a_load(client: Client) -> None:
    loading = threading.Thread(target=client.store, args=(client.objects(40), 8))
    loading.start()
    wanted = len(client.acked) + 9
    until(lambda: len(client.acked) >= wanted or not loading.is_alive(), "a load")
    client.server.kill_all()
    loading.join(60)
    client.server.start()


def restart(client: Client) -> None:
    stop(client)
    client.server.start()


def stop(client: Client) -> None:
    assert client.server.terminate() == 0


STEPS: tuple[Step, ...] = (
    start,
    store_in_parallel,
    upload,
    change_facts,
    register_patients,
    send_again,
    send_other_content,
    kill_all_before_a_sync,
    kill_a_worker_before_a_sync,
    add_to_known_studies,
    syncs_fail,
    send_again,
    restart,
    store_in_parallel,
    store_large,
    kill_all_in_a_large_object,
    delete_and_compact,
    kill_all_in_a_compaction,
    kill_all_in_a_load,
    store_in_parallel,
    stop,
)
"""What the long run records. Whatever else comes to write something is a line here."""

SHORT_STEPS: tuple[Step, ...] = (
    start,
    store_in_parallel,
    change_facts,
    register_patients,
    kill_all_before_a_sync,
    send_other_content,
    upload,
    syncs_fail,
    stop,
)
"""What the tests record: one recovery, so one start fewer."""


def record(directory: Path, steps: Sequence[Step] = STEPS, seed: int = 1) -> Client:
    """Run ``steps`` against a new server below ``directory``; the log is ``directory/log``."""
    server = recorded_server(directory)
    client = Client(server, random.Random(seed))
    try:
        for step in steps:
            client.note(step=step.__name__)
            step(client)
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill_all()
    assert not client.refused, client.refused
    return client
