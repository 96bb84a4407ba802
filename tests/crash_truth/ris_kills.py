"""kill -9 at random moments of a department's day, again and again, on one archive that grows.

    python -m crash_truth.ris_kills [--rounds 60] [--seed 1] [--json]        (make ris-kills)

Each round the hospital sends orders and registers, renames and merges patients over several connections,
while orders are booked, begun, imaged and completed by modalities, studies that name no order are put right,
and what can be read is read, signed and corrected (:mod:`crash_truth.ris_people`). At a random moment the
supervisor and every worker are killed, or the supervisor alone, or one worker, which may be the one that
leads; in every tenth round a worker is stopped for longer than a leader may be silent, and goes on. Whoever
sends then says again, under the same id, what was not answered, as senders do. What must hold:

- every order that was acknowledged is there once, and of those that were not none is there twice;
- what was answered to a booking, an N-CREATE or an N-SET is so, and what follows from it: the order's state,
  and that a step is on the worklist once, until a modality has completed it;
- every patient is there once, under the last name that was acknowledged, or as whom it was merged into;
- every version of a report that was signed is there once, and under its study as one PDF and one SR;
- every study that was put right is shown as its order's;
- every booking, completed examination and signed version was told to the receiver, once or more often under
  one id.

``kill -9`` keeps the page cache. The last line of standard output is, with ``--json``, one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pydicom
from benchmarks.day_peers import (
    BIRTH_DAY,
    HOSPITAL,
    ISSUER,
    Api,
    DayError,
    Modality,
    Receiver,
    Sender,
    field_of,
    new_order,
)
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from benchmarks import department
from crash_truth.ris_ends import END, KINDS, STOPPED_S
from crash_truth.ris_people import Admission, Fixer, Over, Reader, Stray
from hounsfield.archive.app.asking import ask
from support.archives import ct_slice
from support.server import archive_server, until

SENDERS, LANES = 2, 3
"""Connections that only send orders, and those whose orders go on to be booked and performed."""
ORDERS_MAX = 60
"""Of one connection in one round."""
KILL_WITHIN_S = 4.0
STOPPED_EVERY = 10
"""Rounds."""
STATES = {
    "order": "accepted", "booking": "scheduled", "begin": "in-progress", "store": "in-progress",
    "end": "completed",
}  # fmt: skip
"""What an order is after each of them."""
STRAY = "stray"
"""An image that names no order was stored: what becomes of its order is done by others, and later."""
TOLD = {"booking": "SIU^S12", "end": "CM"}
"""What the receiver is told of them: a kind of message, or the status in ORC-5 (table 0038)."""
PLACER = re.compile(r"K\d+-\d+-\d+-\d+")
DUPLICATE, FINAL = 0x0111, 0x0110
"""Answers to an N-CREATE and an N-SET that are said again and were done: PS3.7 10.1.5, PS3.4 F.7.2.2."""
FIRST_DAY = datetime(2031, 1, 1, tzinfo=UTC)
GONE = (OSError, httpx.HTTPError, DayError)
"""What anybody sees of a server that was killed."""


@dataclass
class Tally:
    """What happened over all rounds."""

    rounds: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    """How often what was killed."""
    orders: int = 0
    booked: int = 0
    begun: int = 0
    completed: int = 0
    images: int = 0
    strays: int = 0
    patients_said: int = 0
    """Messages of the admission office that were acknowledged."""
    versions: int = 0
    """Of reports, signed."""
    said_again: int = 0
    told: int = 0
    """Different messages that the receiver got."""
    told_again: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def well(self) -> bool:
        return not self.wrong


@dataclass
class Examination:
    """One order, and how far it went: ``doing`` was said and not answered yet, ``done`` was answered."""

    placer: str
    message: str
    done: list[str] = field(default_factory=list)
    doing: str = "order"
    order: dict[str, Any] = field(default_factory=dict)
    when: datetime = FIRST_DAY
    item: Dataset = field(default_factory=Dataset)
    performed: str = field(default_factory=lambda: str(generate_uid(prefix=None)))
    image: bytes = b""
    """As it is stored, so that it is the same when it is said again."""

    def is_done(self) -> None:
        """What was said last was answered."""
        self.done.append(self.doing)
        self.doing = ""


@dataclass
class Round:
    """Everybody who works until the server is gone."""

    api: Api
    modality: Modality
    hl7: tuple[str, int]
    name: str
    slots: int
    admission: Admission
    reader: Reader
    fixer: Fixer
    examinations: list[Examination] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    over: Over = field(default_factory=Over)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> Round:
        works: list[Callable[[], None]] = [
            partial(self._send if number < SENDERS else self._perform, number)
            for number in range(SENDERS + LANES)
        ]
        works += [
            lambda: self.admission.work(self.hl7, self.over),
            lambda: self.reader.work(self.api, self.over),
            lambda: self.fixer.work(self.api, self.over),
        ]
        for work in works:
            thread = threading.Thread(target=self._guarded, args=(work,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def finish(self) -> None:
        """After the kill: who still works ends what was said last, the others have noticed it."""
        self.over.killed.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "somebody waits for ever"

    def has_begun(self) -> bool:
        """Whether anything was answered."""
        return bool(self.failures) or any(one.done for one in self.examinations)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except GONE as error:
            # The kill may be seen before `finish` is called: what is said then is judged there.
            if not self.over.killed.wait(5 + STOPPED_S):
                self.failures.append(f"{type(error).__name__}: {error}"[:300])

    def _next(self, thread: int, number: int) -> Examination:
        placer = f"K{self.name}-{thread}-{number}"
        one = Examination(placer, new_order(f"M{placer}", placer, department.PLAIN))
        with self._lock:
            self.examinations.append(one)
        return one

    def _send(self, thread: int) -> None:
        with Sender(*self.hl7) as his:
            for number in range(ORDERS_MAX):
                self.over()
                self.say(self._next(thread, number), his)

    def _perform(self, thread: int) -> None:
        with Sender(*self.hl7) as his:
            for number in range(ORDERS_MAX):
                self.over()
                one = self._next(thread, number)
                self.say(one, his)
                (one.order,) = self.orders(one.placer)
                with self._lock:
                    slot, self.slots = self.slots, self.slots + 1
                one.when = FIRST_DAY + timedelta(minutes=department.APART_MIN * slot)
                one.doing = "booking"
                self.say(one, his)
                if (number + thread) % 4 == 0:
                    continue  # stays on the worklist
                if (number + thread) % 4 == 1:
                    self._strays(one, his)
                    continue
                (step,) = self.on_worklist(one.when, one.when + timedelta(minutes=1))
                one.item = item_of(one, step)
                one.doing = "begin"
                self.say(one, his)
                if (number + thread) % 4 == 2:
                    continue  # stays under way
                one.image = image_of(one, one.order["study_uid"], one.order["accession"])
                one.doing = "store"
                self.say(one, his)
                one.doing = "end"
                self.say(one, his)

    def _strays(self, one: Examination, his: Sender) -> None:
        """An image as somebody makes it who types the number by hand, and mistypes it."""
        study = str(generate_uid(prefix=None))
        self.fixer.strays[study] = Stray(study, one.order["id"], one.order["accession"])
        one.image = image_of(one, study, f"X{one.order['accession']}"[-16:])
        one.doing = STRAY
        self.say(one, his)

    def say(self, one: Examination, his: Sender, *, again: bool = False) -> None:
        """Do what is to be done next of an examination. ``again``: it may have been done already."""
        if not again:
            self.over()
        if one.doing == "order":
            answer = his.send(one.message)
            if field_of(answer, "MSA", 1) != "AA":
                raise DayError(f"not acknowledged: {answer!r}")
        elif one.doing == "booking":
            if not (again and self.appointments(one)):
                booking = {"orders": [one.order["id"]], "from": one.when.isoformat()}
                self.api.ask("clerk", "POST", "/appointments", booking)
        elif one.doing == "begin":
            self.modality.begin(one.item, one.performed, also=[DUPLICATE] if again else [])
        elif one.doing in ("store", STRAY):
            store(self.modality, one.image)
        elif one.doing == "end":
            self.modality.end(one.performed, [made(one)], also=[FINAL] if again else [])
        one.is_done()

    def say_again(self) -> int:
        """Say all that was not answered, under the ids that it had; how many."""
        waiting = [one for one in self.examinations if one.doing]
        with Sender(*self.hl7) as his:
            for one in waiting:
                self.say(one, his, again=True)
        others = self.admission.say_again(self.hl7) + self.reader.say_again(self.api)
        return len(waiting) + others

    def orders(self, placer: str) -> list[dict[str, Any]]:
        """All orders of a number."""
        found = self.api.ask("clerk", "GET", "/orders", placer=placer, placer_issuer=HOSPITAL)
        return list(found["items"])

    def appointments(self, one: Examination) -> list[dict[str, Any]]:
        """Those of an examination's order, at its time."""
        end = (one.when + timedelta(minutes=1)).isoformat()
        found = self.api.ask("clerk", "GET", "/appointments", since=one.when.isoformat(), until=end)["items"]
        return [each for each in found if one.order["id"] in each["orders"]]

    def on_worklist(self, since: datetime, until_: datetime) -> list[dict[str, Any]]:
        """What is on the worklist for a stretch of time."""
        words = {"since": since.isoformat(), "until": until_.isoformat()}
        return list(self.api.ask("technologist", "GET", "/worklist", limit=500, **words)["items"])

    def check(self) -> list[str]:
        """What is not as it was answered."""
        wrong: list[str] = []
        booked = [one.when for one in self.examinations if "booking" in one.done]
        if booked:
            steps = Counter(
                step["accession"]
                for step in self.on_worklist(min(booked), max(booked) + timedelta(minutes=1))
            )
        for one in self.examinations:
            there = self.orders(one.placer)
            if len(there) != 1:
                wrong.append(f"{one.placer}: {len(there)} orders")
                continue
            last = one.done[-1]
            if last == STRAY:
                continue
            if there[0]["state"] != STATES[last]:
                wrong.append(f"{one.placer}: {there[0]['state']} after {last}")
            if "booking" not in one.done:
                continue
            if len(self.appointments(one)) != 1:
                wrong.append(f"{one.placer}: {len(self.appointments(one))} appointments")
            listed = steps[there[0]["accession"]]
            if listed != int(last != "end"):
                wrong.append(f"{one.placer}: {listed} times on the worklist after {last}")
        return [*wrong, *self.admission.wrong(self.api), *self.reader.wrong(self.api)]


def item_of(one: Examination, step: dict[str, Any]) -> Dataset:
    """As the worklist says it to a modality."""
    item, scheduled = Dataset(), Dataset()
    item.StudyInstanceUID, item.AccessionNumber = one.order["study_uid"], one.order["accession"]
    item.RequestedProcedureID = one.order["requested_procedure_id"]
    item.PatientID, item.PatientName = f"M{one.placer}", "LINDQVIST^TOVE"
    scheduled.ScheduledProcedureStepID, scheduled.Modality = step["number"], "CT"
    item.ScheduledProcedureStepSequence = [scheduled]
    return item


def made(one: Examination) -> Dataset:
    """An image that the modality says it made."""
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.SeriesInstanceUID, image.SOPInstanceUID = f"{one.performed}.1", f"{one.performed}.2"
    return image


def image_of(one: Examination, study: str, accession: str) -> bytes:
    """It, as a modality makes it of this study and number."""

    def change(data: Dataset) -> None:
        data.AccessionNumber, data.IssuerOfPatientID = accession, ISSUER
        data.PatientBirthDate = BIRTH_DAY

    return ct_slice(
        patient_id=f"M{one.placer}", patient_name="LINDQVIST^TOVE", study_uid=study,
        series_uid=f"{one.performed}.1", sop_uid=f"{one.performed}.2", change=change,
    )  # fmt: skip


def store(modality: Modality, data: bytes) -> None:
    """C-STORE. DayError unless it is stored."""
    entity = AE(ae_title=modality.title)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = entity.associate(modality.host, modality.port, ae_title=modality.called)
    if not association.is_established:
        raise DayError("the archive accepts no association for images")
    image = pydicom.dcmread(BytesIO(data), force=True)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    try:
        status = association.send_c_store(image).get("Status")
    finally:
        association.release()
    if status != 0:
        raise DayError(f"C-STORE is answered with {status}")


def performed_once(api: Api, examinations: Sequence[Examination]) -> list[str]:
    """What modalities were answered to is there, in that state."""
    states = {
        each["sop_uid"]: each["state"]
        for state in ("in-progress", "completed")
        for each in api.every("technologist", "/performed", state=state)
    }
    wanted = {
        one.performed: "completed" if "end" in one.done else "in-progress"
        for one in examinations
        if "begin" in one.done
    }
    return [
        f"performed: {states.get(uid)}, not {state}"
        for uid, state in wanted.items()
        if states.get(uid) != state
    ]


def orders_once(api: Api, examinations: Sequence[Examination]) -> list[str]:
    """Of the whole archive: one order of each number, and no other."""
    found = Counter(
        each["placer_number"]
        for state in sorted(set(STATES.values()) | {"placed", "held", "cancelled", "replaced", "rejected"})
        for each in api.every("clerk", "/orders", state=state)
    )
    wrong = [f"{placer}: {count} orders in the end" for placer, count in found.items() if count != 1]
    lost = {one.placer for one in examinations} - found.keys()
    return [*wrong, *(f"{placer}: lost in the end" for placer in sorted(lost))]


def told_once(receiver: Receiver, examinations: Sequence[Examination]) -> list[str]:
    """What happened was told, under one id each. Waits for what is still on its way."""
    wanted = Counter((one.placer, TOLD[done]) for one in examinations for done in one.done if done in TOLD)
    strays = {one.placer for one in examinations if STRAY in one.done}

    def all_told() -> bool:
        return wanted.keys() <= told().keys()

    def told() -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for message in receiver.once().values():
            if field_of(message, "MSH", 9).startswith("ORU"):
                continue  # of reports: the reader knows of those
            placer = PLACER.search(message)
            what = field_of(message, "MSH", 9)[:7] if "\rSCH|" in message else field_of(message, "ORC", 5)
            if placer and what in TOLD.values() and not (what == TOLD["end"] and placer[0] in strays):
                found[placer[0], what] += 1
        return found

    with contextlib.suppress(AssertionError):
        until(all_told, "all messages")
    found = told()
    return [
        f"{placer}: {what} told {found[placer, what]} times, not {wanted[placer, what]}"
        for placer, what in sorted(found.keys() | wanted.keys())
        if found[placer, what] != wanted[placer, what]
    ]


def run(
    directory: Path,
    rounds: int,
    seed: int,
    *,
    within_s: float = KILL_WITHIN_S,
    progress: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """So many rounds on a new archive below ``directory``, each of which ends so soon after an answer."""
    rng = random.Random(seed)
    tally, began = Tally(), time.monotonic()
    every: list[Examination] = []
    directory.mkdir(parents=True, exist_ok=True)
    tokens = department.tokens_file(directory / "tokens")
    admission, reader, fixer = Admission(str(seed)), Reader(), Fixer()
    slots = 0
    with (
        Receiver() as receiver,
        archive_server(
            directory,
            *department.settings(directory / "tokens", receiver.port),
            "archive.drain_seconds=1",
            "plugins.ris.prior_days=0",  # its images are of one day, long ago
        ) as server,
    ):
        department.furnish(partial(ask, server.data / "control.sock"))

        def begin(name: str, of: Sequence[Examination] = ()) -> Round:
            """A round with the server as it runs now."""
            host, port = server.address("http")
            return Round(
                api=Api(f"http://{host}:{port}", tokens),
                modality=Modality("CT1", *server.address("dicom"), server.directory),
                hl7=server.address("ris.his"),
                name=name,
                slots=slots,
                admission=admission,
                reader=reader,
                fixer=fixer,
                examinations=list(of),
            )

        for number in range(1, rounds + 1):
            work = begin(f"{seed}-{number}").start()
            until(work.has_begun, "an answer")
            time.sleep(rng.random() * within_s)
            what = "stopped" if number % STOPPED_EVERY == 0 else rng.choice(KINDS)
            tally.ends[what] = tally.ends.get(what, 0) + 1
            END[what](server, rng)
            work.finish()
            if what in {"all", "supervisor"}:
                server.start()
            slots = work.slots
            again = begin(work.name, work.examinations)
            tally.said_again += again.say_again()
            every += work.examinations
            tally.wrong += [*work.failures, *again.check()]
            tally.wrong += performed_once(again.api, every)
            counted = Counter(done for one in every for done in one.done)
            tally.orders, tally.booked = counted["order"], counted["booking"]
            tally.begun, tally.completed = counted["begin"], counted["end"]
            tally.images, tally.strays = counted["store"], counted[STRAY]
            tally.patients_said, tally.versions = admission.acknowledged, reader.signed
            tally.rounds, tally.seconds = number, time.monotonic() - began
            progress(tally)
            if not tally.well:
                break
        tally.wrong += in_the_end(again, receiver, every)
        tally.versions = reader.signed
        tally.told = len(receiver.once())
        tally.told_again = len(receiver.messages) - tally.told
        if server.terminate():
            tally.wrong.append("the last end was not an orderly one")
        if "Traceback" in server.log_text():
            tally.wrong.append("a traceback in the log")
    tally.seconds = time.monotonic() - began
    return tally


def in_the_end(now: Round, receiver: Receiver, every: Sequence[Examination]) -> list[str]:
    """Of the whole archive, once all that follows by itself has: what is not as it was answered."""
    api, reader, fixer = now.api, now.reader, now.fixer

    def is_put_right() -> bool:
        fixer.fix(api)
        return not fixer.open(api)

    wrong = orders_once(api, every)
    with contextlib.suppress(AssertionError):
        until(is_put_right, "all studies are put right")
    wrong += fixer.open(api)
    wrong += told_once(receiver, every)

    def is_distributed() -> bool:
        return not reader.not_stored(api) and not reader.not_told(list(receiver.once().values()))

    with contextlib.suppress(AssertionError):
        until(is_distributed, "all reports are stored and told")
    wrong += [*reader.not_stored(api), *reader.not_told(list(receiver.once().values()))]
    if asides := api.ask("administrator", "GET", "/asides")["items"]:
        wrong.append(f"{len(asides)} events were set aside")
    return [*wrong, *now.admission.wrong(api, len(now.admission.people))]


def table(tally: Tally) -> str:
    """The tally for people."""
    lines = [
        ("rounds", tally.rounds),
        ("orders acknowledged", tally.orders),
        ("booked", tally.booked),
        ("begun by a modality", tally.begun),
        ("completed", tally.completed),
        ("images of them", tally.images),
        ("images of nobody", tally.strays),
        ("patients said", tally.patients_said),
        ("versions of reports", tally.versions),
        ("said again after a kill", tally.said_again),
        ("messages the receiver got", tally.told),
        ("  of them again", tally.told_again),
        ("wrong", len(tally.wrong)),
        ("seconds", f"{tally.seconds:.0f}"),
    ]
    return "\n".join([*(f"{name:26}{number:>10}" for name, number in lines), *tally.wrong[:20]])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    def progress(tally: Tally) -> None:
        words = f"{tally.rounds} rounds, {tally.orders} orders, {tally.seconds:.0f} s"
        print(words, file=sys.stderr, flush=True)  # noqa: T201

    with tempfile.TemporaryDirectory(prefix="hounsfield-ris-kills-") as directory:
        tally = run(Path(directory) / "server", options.rounds, options.seed, progress=progress)
    print(json.dumps(asdict(tally)) if options.json else table(tally))  # noqa: T201
    return 0 if tally.well else 1


if __name__ == "__main__":
    sys.exit(main())
