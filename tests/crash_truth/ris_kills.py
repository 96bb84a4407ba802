"""kill -9 at random moments of a department's day, again and again, on one archive that grows.

    python -m crash_truth.ris_kills [--rounds 60] [--seed 1] [--json]        (make ris-kills)

Each round the hospital sends orders over several connections, while others are booked, begun and completed
by modalities; at a random moment the supervisor and every worker are killed, and the server starts again.
Whoever sends then says again, under the same id, what was not answered, as senders do. What must hold:

- every order that was acknowledged is there once, and of those that were not none is there twice;
- what was answered to a booking, an N-CREATE or an N-SET is so, and what follows from it: the order's state,
  and that a step is on the worklist once, until a modality has completed it;
- every booking and every completed examination was told to the receiver, once or more often under one id.

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
from pathlib import Path
from typing import Any

import httpx
from benchmarks.day_peers import (
    HOSPITAL,
    Api,
    DayError,
    Modality,
    Receiver,
    Sender,
    field_of,
    new_order,
)
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from benchmarks import department
from hounsfield.archive.app.asking import ask
from support.server import ArchiveServer, archive_server, until

SENDERS, LANES = 2, 3
"""Connections that only send orders, and those whose orders go on to be booked and performed."""
ORDERS_MAX = 60
"""Of one connection in one round."""
KILL_WITHIN_S = 2.0
STATES = {"order": "accepted", "booking": "scheduled", "begin": "in-progress", "end": "completed"}
"""What an order is after each of them."""
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
    orders: int = 0
    booked: int = 0
    begun: int = 0
    completed: int = 0
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
    examinations: list[Examination] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _killed: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> Round:
        for number in range(SENDERS + LANES):
            work = self._send if number < SENDERS else self._perform
            thread = threading.Thread(target=self._guarded, args=(work, number), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def finish(self) -> None:
        """After the end of the server: everybody has noticed it then."""
        self._killed.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "somebody waits for ever"

    def has_begun(self) -> bool:
        """Whether anything was answered."""
        return bool(self.failures) or any(one.done for one in self.examinations)

    def _guarded(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except GONE as error:
            # The kill may be seen before `finish` is called: what is said then is judged there.
            if not self._killed.wait(5):
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
                self.say(self._next(thread, number), his)

    def _perform(self, thread: int) -> None:
        with Sender(*self.hl7) as his:
            for number in range(ORDERS_MAX):
                one = self._next(thread, number)
                self.say(one, his)
                (one.order,) = self.orders(one.placer)
                with self._lock:
                    slot, self.slots = self.slots, self.slots + 1
                one.when = FIRST_DAY + timedelta(minutes=department.APART_MIN * slot)
                one.doing = "booking"
                self.say(one, his)
                if number % 3 == 0:
                    continue  # stays on the worklist
                (step,) = self.on_worklist(one.when, one.when + timedelta(minutes=1))
                one.item = item_of(one, step)
                one.doing = "begin"
                self.say(one, his)
                if number % 3 == 1:
                    continue  # stays under way
                one.doing = "end"
                self.say(one, his)

    def say(self, one: Examination, his: Sender, *, again: bool = False) -> None:
        """Do what is to be done next of an examination. ``again``: it may have been done already."""
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
        elif one.doing == "end":
            self.modality.end(one.performed, [made(one)], also=[FINAL] if again else [])
        one.is_done()

    def say_again(self) -> int:
        """Say all that was not answered, under the ids that it had; how many."""
        waiting = [one for one in self.examinations if one.doing]
        with Sender(*self.hl7) as his:
            for one in waiting:
                self.say(one, his, again=True)
        return len(waiting)

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
            if there[0]["state"] != STATES[last]:
                wrong.append(f"{one.placer}: {there[0]['state']} after {last}")
            if "booking" not in one.done:
                continue
            if len(self.appointments(one)) != 1:
                wrong.append(f"{one.placer}: {len(self.appointments(one))} appointments")
            listed = steps[there[0]["accession"]]
            if listed != int(last != "end"):
                wrong.append(f"{one.placer}: {listed} times on the worklist after {last}")
        return wrong


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
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    image.SeriesInstanceUID, image.SOPInstanceUID = f"{one.performed}.1"[-64:], f"{one.performed}.2"[-64:]
    return image


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

    def all_told() -> bool:
        return wanted.keys() <= told().keys()

    def told() -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for message in receiver.once().values():
            placer = PLACER.search(message)
            what = field_of(message, "MSH", 9)[:7] if "\rSCH|" in message else field_of(message, "ORC", 5)
            if placer and what in TOLD.values():
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
    directory: Path, rounds: int, seed: int, *, progress: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """So many rounds on a new archive below ``directory``."""
    rng = random.Random(seed)
    tally, began = Tally(), time.monotonic()
    every: list[Examination] = []
    directory.mkdir(parents=True, exist_ok=True)
    tokens = department.tokens_file(directory / "tokens")
    slots = 0
    with (
        Receiver() as receiver,
        archive_server(directory, *department.settings(directory / "tokens", receiver.port)) as server,
    ):
        department.furnish(partial(ask, server.data / "control.sock"))
        for number in range(1, rounds + 1):
            work = round_at(server, tokens, f"{seed}-{number}", slots).start()
            until(work.has_begun, "an answer")
            time.sleep(rng.random() * KILL_WITHIN_S)
            server.kill_all()
            work.finish()
            server.start()
            again = round_at(server, tokens, work.name, work.slots, work.examinations)
            tally.said_again += again.say_again()
            every += work.examinations
            slots = work.slots
            tally.wrong += [*work.failures, *again.check()]
            tally.wrong += performed_once(again.api, every)
            counted = Counter(done for one in every for done in one.done)
            tally.orders, tally.booked = counted["order"], counted["booking"]
            tally.begun, tally.completed = counted["begin"], counted["end"]
            tally.rounds, tally.seconds = number, time.monotonic() - began
            progress(tally)
            if not tally.well:
                break
        tally.wrong += orders_once(again.api, every)
        tally.wrong += told_once(receiver, every)
        tally.told = len(receiver.once())
        tally.told_again = len(receiver.messages) - tally.told
        if server.terminate():
            tally.wrong.append("the last end was not an orderly one")
        if "Traceback" in server.log_text():
            tally.wrong.append("a traceback in the log")
    tally.seconds = time.monotonic() - began
    return tally


def round_at(
    server: ArchiveServer, tokens: dict[str, str], name: str, slots: int, of: Sequence[Examination] = ()
) -> Round:
    """A round with a server as it runs now."""
    host, port = server.address("http")
    return Round(
        api=Api(f"http://{host}:{port}", tokens),
        modality=Modality("CT1", *server.address("dicom"), server.directory),
        hl7=server.address("ris.his"),
        name=name,
        slots=slots,
        examinations=list(of),
    )


def table(tally: Tally) -> str:
    """The tally for people."""
    lines = [
        ("rounds", tally.rounds),
        ("orders acknowledged", tally.orders),
        ("booked", tally.booked),
        ("begun by a modality", tally.begun),
        ("completed", tally.completed),
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
