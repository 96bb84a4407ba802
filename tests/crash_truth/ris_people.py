"""Others who work while everything is killed: the admission office, a radiologist, who puts images right.

Each goes on in every round where the last one left it. What is said and not answered is said again after the
kill, as whoever said it would: a message under its id, an action after a look whether it was done. ``wrong``
has what is not as it was answered.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.day_peers import ISSUER, Api, DayError, Sender, field_of, message, segment

from support.server import value

ENCAPSULATED_PDF, TEXT_SR = "1.2.840.10008.5.1.4.1.1.104.1", "1.2.840.10008.5.1.4.1.1.88.11"
PEOPLE_MAX = 40
"""Who is registered in one round."""


@dataclass
class Over:
    """Whether a round is over. Who asks when it is has nothing to do any more."""

    killed: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        if self.killed.is_set():
            raise ConnectionAbortedError("the round is over")


# ---------------------------------------------------------------- the admission office


@dataclass
class Person:
    """Somebody of a number: the last name that was acknowledged, and into whose number it was merged."""

    number: str
    name: str = ""
    merged_into: str = ""


@dataclass
class Admission:
    """Registers people (A04), changes what they are called (A08), and joins two numbers to one (A40)."""

    seed: str
    people: dict[str, Person] = field(default_factory=dict)
    acknowledged: int = 0
    _doing: tuple[str, Callable[[], None]] | None = None

    def work(self, hl7: tuple[str, int], over: Over) -> None:
        with Sender(*hl7) as his:
            for _ in range(PEOPLE_MAX):
                at = len(self.people)
                one, other = (
                    self.people.setdefault(number, Person(number))
                    for number in (f"A{self.seed}-{at}", f"B{self.seed}-{at}")
                )
                for who in (one, other):
                    over()
                    self._names(his, "ADT^A04^ADT_A01", who, f"HOLM^{who.number[0]}{at}")
                over()
                self._names(his, "ADT^A08^ADT_A01", one, f"LUND^ANNA{at}")
                if at % 4 == 0:
                    over()
                    self._joins(his, one, other)
                    over()
                    self._names(his, "ADT^A08^ADT_A01", one, f"LUND^AGNES{at}")

    def say_again(self, hl7: tuple[str, int]) -> int:
        """What was said and not answered, in the same bytes; how much."""
        if self._doing is None:
            return 0
        with Sender(*hl7) as his:
            self._send(his, *self._doing)
        return 1

    def _names(self, his: Sender, kind: str, who: Person, name: str) -> None:
        text = message(kind, who.number).replace("LINDQVIST^TOVE^^^^^L", name)

        def is_done() -> None:
            who.name = name

        self._send(his, text, is_done)

    def _joins(self, his: Sender, survivor: Person, merged: Person) -> None:
        text = message(
            "ADT^A40^ADT_A39", survivor.number, segment("MRG", {1: f"{merged.number}^^^{ISSUER}^MR"})
        )
        # ADT_A39 has no visit of its own there, and the name is as it was last said.
        lines = [line for line in text.split("\r") if not line.startswith("PV1")]
        text = "\r".join(lines).replace("LINDQVIST^TOVE^^^^^L", survivor.name)

        def is_done() -> None:
            merged.merged_into = survivor.number

        self._send(his, text, is_done)

    def _send(self, his: Sender, text: str, is_done: Callable[[], None]) -> None:
        self._doing = (text, is_done)
        answer = his.send(text)
        if field_of(answer, "MSA", 1) != "AA":
            raise DayError(f"not acknowledged: {answer!r}")
        is_done()
        self._doing = None
        self.acknowledged += 1

    def wrong(self, api: Api, last: int = PEOPLE_MAX) -> list[str]:
        """Of who came last: each number is there once, with its name, or leads to whom it was merged into."""
        found: list[str] = []
        for who in list(self.people.values())[-2 * last :]:
            if not who.name:
                continue  # never said: the round was over
            there = api.ask("clerk", "GET", "/patients", number=who.number)["items"]
            is_whom = self.people[who.merged_into or who.number]
            numbers = {each["value"] for one in there for each in one["identifiers"]}
            if len(there) != 1 or is_whom.number not in numbers:
                found.append(f"{who.number}: {len(there)} patients, of {sorted(numbers)}")
            elif not there[0]["name"].startswith(is_whom.name):
                found.append(f"{who.number}: {there[0]['name']} and not {is_whom.name}")
        return found


# ---------------------------------------------------------------- reading


@dataclass
class Read:
    """A report: ``texts`` of the versions that were acknowledged; ``doing``: of the one that was not."""

    study: str
    accession: str
    number: str
    texts: list[str] = field(default_factory=list)
    doing: str = ""


@dataclass
class Reader:
    """Takes what can be read, writes and signs it, and corrects every second one."""

    reports: dict[str, Read] = field(default_factory=dict)

    @property
    def signed(self) -> int:
        return sum(len(one.texts) for one in self.reports.values())

    def work(self, api: Api, over: Over) -> None:
        """Until the round is over."""
        while not over.killed.wait(0.05):
            for line in api.ask("radiologist", "GET", "/reading-list", limit=20)["items"]:
                over()
                self._read(api, line, over)

    def say_again(self, api: Api) -> int:
        """What was said and not answered, unless it was done; how much."""
        waiting = [key for key, one in self.reports.items() if one.doing]
        for key in waiting:
            one = self.reports[key]
            there = [_impression(each) for each in self._now(api, key)["versions"]]
            if there[len(one.texts) :] != [one.doing]:
                self._write(api, key, one.doing)
            one.texts.append(one.doing)
            one.doing = ""
        return len(waiting)

    def _read(self, api: Api, line: dict[str, Any], over: Over) -> None:
        key = line["id"]
        one = self.reports.setdefault(key, Read(line["study_uid"], line["accession"], line["number"]))
        if one.texts:
            return  # a list that was read before it was signed
        self._say(api, key, f"No lesion in {one.number}.")
        if int(one.number[-1], 36) % 2 == 0:
            over()
            self._say(api, key, f"Small lesion in {one.number}.")

    def _say(self, api: Api, key: str, text: str) -> None:
        one = self.reports[key]
        one.doing = text
        self._write(api, key, text)
        one.texts.append(text)
        one.doing = ""

    def _write(self, api: Api, key: str, text: str) -> None:
        sections = [{"name": "impression", "text": text}]
        if self.reports[key].texts:
            self._sign(api, key, "correct", {"sections": sections, "reason": "seen"})
            return
        api.ask("radiologist", "POST", f"/reports/{key}/take", {})
        version = self._now(api, key)["version"]
        api.ask("radiologist", "PUT", f"/reports/{key}/draft", {"sections": sections}, version=version)
        self._sign(api, key, "sign", {})

    def _sign(self, api: Api, key: str, action: str, body: dict[str, Any]) -> None:
        """As it was read, and again when something else was noted of it meanwhile: that it became a PDF."""
        while True:
            version = self._now(api, key)["version"]
            try:
                api.ask("radiologist", "POST", f"/reports/{key}/{action}", body, version=version)
            except DayError as error:
                if ": 412 " not in str(error):
                    raise
            else:
                return

    @staticmethod
    def _now(api: Api, key: str) -> dict[str, Any]:
        return dict(api.ask("radiologist", "GET", f"/reports/{key}"))

    def wrong(self, api: Api) -> list[str]:
        """Each version that was signed is there once, in that order, and no other."""
        found = []
        for key, one in self.reports.items():
            there = [_impression(each) for each in self._now(api, key)["versions"]]
            if there != one.texts:
                found.append(f"{one.number}: versions {there}, not {one.texts}")
        return found

    def not_told(self, messages: Sequence[str]) -> list[str]:
        """What of it is not told (``messages``: those of different ids), or told under two ids."""
        told = Counter(
            text
            for sent in messages
            if field_of(sent, "MSH", 9).startswith("ORU")
            for one in self.reports.values()
            for text in one.texts
            if text in sent
        )
        wanted = Counter(text for one in self.reports.values() for text in one.texts)
        return [
            f"{text} told {told[text]} times"
            for text in told.keys() | wanted.keys()
            if told[text] != wanted[text]
        ]

    def not_stored(self, api: Api) -> list[str]:
        """Versions that are not under their study as one PDF and one SR."""
        found = []
        for one in self.reports.values():
            answer = api.fetch(f"/studies/{one.study}/instances", "application/dicom+json", limit="1000")
            classes = Counter(value(row, "00080016") for row in (answer.json() if answer.content else []))
            found += [
                f"{one.number}: {classes[uid]} of {uid}, {len(one.texts)} versions"
                for uid in (ENCAPSULATED_PDF, TEXT_SR)
                if classes[uid] != len(one.texts)
            ]
        return found


def _impression(version: dict[str, Any]) -> str:
    return next((each["text"] for each in version["sections"] if each["name"] == "impression"), "")


# ---------------------------------------------------------------- images of nobody


@dataclass
class Stray:
    """A study that names no order: ``order`` is whose it is, ``fixed`` whether that was said and answered."""

    study: str
    order: str
    accession: str
    fixed: bool = False


@dataclass
class Fixer:
    """Says of studies that name no order whose they are."""

    strays: dict[str, Stray] = field(default_factory=dict)

    def work(self, api: Api, over: Over) -> None:
        """Until the round is over."""
        while not over.killed.wait(0.1):
            self.fix(api, over)

    def fix(self, api: Api, over: Callable[[], None] = lambda: None) -> None:
        """All that are put up now: one whose fix was not answered too, unless it was done."""
        for each in api.ask("technologist", "GET", "/mismatches", state="open", limit=100)["items"]:
            stray = self.strays.get(each["study_uid"])
            if stray is not None:
                over()
                words = {"order": stray.order, "reason": "typed by hand"}
                api.ask("technologist", "POST", f"/mismatches/{each['id']}/fix", words)
                stray.fixed = True

    def open(self, api: Api) -> list[str]:
        """Those that are not shown as their order's yet."""
        found = []
        for stray in self.strays.values():
            answer = api.fetch("/studies", "application/dicom+json", StudyInstanceUID=stray.study)
            shown = [value(row, "00080050") for row in (answer.json() if answer.content else [])]
            if shown != [stray.accession]:
                found.append(f"{stray.study}: shown under {shown}, not {stray.accession}")
        return found
