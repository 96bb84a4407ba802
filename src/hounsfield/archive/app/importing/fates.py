"""What became of what an import met: counted, and written down where it was not simply taken."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TextIO

from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.errors import HounsfieldError

_REPORT_BEGINS = b'{"place": '
SHOWN_MAX = 200
"""Of what was not simply taken, so many are kept in memory to be shown; the report file has all."""


class Fate(Enum):
    """What became of one object, or of something that is none."""

    IMPORTED = "imported"
    ALREADY_THERE = "already there"
    CONFLICT = "other content"
    """An object of the same UIDs and other content is there: both are kept."""
    QUARANTINED = "quarantined"
    REJECTED = "rejected"
    """The archive did not take it."""
    NOT_DICOM = "not DICOM"
    """It is no object: nothing is missing without it."""
    UNREADABLE = "unreadable"
    """It could not be had, or not whole: it is tried again by the next import."""

    @property
    def key(self) -> str:
        """Its name in JSON."""
        return self.value.lower().replace(" ", "_")

    @property
    def settled(self) -> bool:
        """Whether another import need not look at it again."""
        return self not in {Fate.REJECTED, Fate.UNREADABLE}


_OF_OUTCOME = {
    Outcome.STORED: Fate.IMPORTED,
    Outcome.DUPLICATE: Fate.ALREADY_THERE,
    Outcome.CONFLICT: Fate.CONFLICT,
    Outcome.QUARANTINED: Fate.QUARANTINED,
}
_UNTOLD = frozenset({"coerced"})  # what a rule of ours did is nothing to look at


def fate_of(result: StoreResult) -> tuple[Fate, str]:
    """The fate of an object that is durable, and what is to be said of it: names of flags, never values."""
    return _OF_OUTCOME[result.outcome], ", ".join(sorted(set(result.warnings) - _UNTOLD))


class ReportError(HounsfieldError):
    """The report cannot be written."""


@dataclass(frozen=True, slots=True)
class Noted:
    """Something that was not simply taken: where it is (a path, or a URL without its server) and why."""

    place: str
    fate: Fate
    reason: str

    def body(self) -> dict[str, str]:
        """For JSON."""
        return {"place": as_text(self.place), "fate": self.fate.key, "reason": self.reason}


def as_text(path: str) -> str:
    """A path that can be written, also when its bytes are no UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


@dataclass
class Tally:
    """The figures of one import. ``report``: where what is worth a look is written as it happens."""

    report: TextIO | None = None
    fates: Counter[Fate] = field(default_factory=Counter)
    before: int = 0
    """Files, series and studies that an earlier run had done with: they were not read."""
    bytes: int = 0
    """Of data sets that were stored, or are here already."""
    flagged: int = 0
    """Of those imported, how many have something worth a look, such as being cut short."""
    noted: list[Noted] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """Of sources as a whole, what is good to know."""
    complaints: list[str] = field(default_factory=list)
    """Of sources as a whole: one that does not answer, a query that failed."""
    unreachable: int = 0
    """How many of the complaints are that nobody answered."""

    def object(self, place: str, fate: Fate, reason: str = "", *, size: int = 0) -> None:
        """One more. ``reason`` is worth a look when it is not empty."""
        self.fates[fate] += 1
        self.bytes += size
        if fate is Fate.IMPORTED and reason:
            self.flagged += 1
        if reason or fate not in {Fate.IMPORTED, Fate.ALREADY_THERE}:
            self._note(Noted(place, fate, reason))

    def complain(self, text: str, *, unreachable: bool = False) -> None:
        """A source cannot be used, or not all of it."""
        self.complaints.append(text)
        self.unreachable += unreachable

    def _note(self, noted: Noted) -> None:
        if noted.fate is not Fate.NOT_DICOM and len(self.noted) < SHOWN_MAX:
            self.noted.append(noted)
        if self.report is not None:
            self.report.write(json.dumps(noted.body(), ensure_ascii=False) + "\n")

    @property
    def here(self) -> int:
        """Objects that are in the archive now."""
        return sum(
            self.fates[fate] for fate in (Fate.IMPORTED, Fate.ALREADY_THERE, Fate.CONFLICT, Fate.QUARANTINED)
        )

    @property
    def failed(self) -> int:
        """What should be here and is not."""
        return self.fates[Fate.REJECTED] + self.fates[Fate.UNREADABLE]


def open_report(path: Path) -> TextIO:
    """A file for a report, readable by its owner only: paths may say who somebody is. ReportError.

    One that is there goes on: what an import that was killed had said, the next one does not say again.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        file = os.fdopen(fd, "w", encoding="utf-8", buffering=1)
        if path.is_file() and path.stat().st_size and not _is_report(path):
            file.close()
            raise ReportError(f"{path} is there and is no report of an import: name another file")
    except OSError as error:
        raise ReportError(f"cannot write the report {path}: {error.strerror}") from error
    return file


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_REPORT_BEGINS)) == _REPORT_BEGINS
