"""What is to be read, by whom, in which order; and which priors of a study matter.

Points say what comes first: a minute of waiting is one point, urgency and where the patient lies are some
hours' worth, a reader's own subspecialty a few. So nothing waits for ever behind what came later; only STAT
always comes first. Reports wait in queues of one urgency and class each, in the order in which they became
readable, and the list is merged of them: only those that are shown are opened.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin import patients
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.reading.reporting import get, is_locked
from hounsfield.ris_plugin.records.base import NS, folded, seconds
from hounsfield.ris_plugin.records.patients import PATIENT
from hounsfield.ris_plugin.records.reports import CLASSES, PRIORITIES, REPORT, Report, queue

__all__ = ["Entry", "Prior", "Wanted", "priors", "ranked", "waiting"]

PRIORITY_POINTS: Final = {"STAT": 1_000_000, "HIGH": 480, "MEDIUM": 120, "ROUTINE": 0, "LOW": -480}
CLASS_POINTS: Final = {"E": 360, "I": 120, "": 0}
SUBSPECIALTY_POINTS: Final = 240
"""A reader of the subspecialty has it as early as if it had waited four hours longer."""
SHOWN_MAX: Final = 20_000
"""Of a list from its beginning, page by page: more than a department has unread in weeks. What lies behind
would be overlooked."""
PRIORS_MAX: Final = 100
_DAYS_OF_YEAR: Final = 365


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which reports a list shows; "" and empty: any."""

    modality: str = ""
    body_part: str = ""
    subspecialty: str = ""
    priority: str = ""
    states: Collection[str] = ()
    locked: bool = True
    """Also those that somebody else has now."""
    assigned_to: str = ""

    def has(self, report: Report, person: str, now_ns: int) -> bool:
        """Whether a report is one of them."""
        return (
            self.modality in ("", report.modality)
            and (not self.body_part or folded(self.body_part) == folded(report.body_part))
            and self.subspecialty in ("", report.subspecialty)
            and self.priority in ("", report.priority)
            and (not self.states or report.state in self.states)
            and self.assigned_to in ("", report.assigned_to)
            and (self.locked or not is_locked(report, now_ns) or report.assigned_to == person)
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A report that waits. ``locked_by``: who has it now; ``waited_ns``: since it could be read."""

    report_id: str
    report: Report
    points: int
    waited_ns: int
    locked_by: str
    matches: bool
    """It is of the reader's subspecialty."""


def waiting(
    view: View,
    now_ns: int,
    *,
    person: str = "",
    subspecialties: Collection[str] = (),
    wanted: Wanted | None = None,
    limit: int = 100,
) -> list[Entry]:
    """What is to be read, the first first; for a reader of ``subspecialties``."""
    limit = max(0, min(limit, SHOWN_MAX))
    wanted = wanted or Wanted()
    bonus = SUBSPECIALTY_POINTS if subspecialties else 0
    queues = [
        _queue(view, now_ns, priority, patient_class)
        for priority in PRIORITIES
        if wanted.priority in ("", priority) or priority == "ROUTINE"  # with what is no priority
        for patient_class in CLASSES
    ]
    best: list[tuple[int, int, str]] = []  # a heap, the last of the list first
    found: dict[str, Entry] = {}
    # Each next one has at most the points of the one before it, and the bonus.
    for base, report_id, report in heapq.merge(*queues, key=lambda one: -one[0]):
        if len(best) == limit and (not best or base + bonus < best[0][0]):
            break
        if not wanted.has(report, person, now_ns):
            continue
        matches = bool(report.subspecialty) and report.subspecialty in subspecialties
        points = base + (SUBSPECIALTY_POINTS if matches else 0)
        entry = Entry(
            report_id,
            report,
            points,
            max(0, now_ns - report.ready_ns),
            report.assigned_to if is_locked(report, now_ns) else "",
            matches,
        )
        found[report_id] = entry
        heapq.heappush(best, (points, -report.ready_ns, report_id))
        if len(best) > limit:
            del found[heapq.heappop(best)[2]]
    return [found[report_id] for _, _, report_id in sorted(best, reverse=True)]


def _queue(view: View, now_ns: int, priority: str, patient_class: str) -> Iterator[tuple[int, str, Report]]:
    """A queue with the points that each has before any bonus, falling."""
    base = PRIORITY_POINTS[priority] + CLASS_POINTS[patient_class]
    for report_id, report in view.find(REPORT, "queue", queue(priority, patient_class)):
        yield base + (seconds(now_ns) - seconds(report.ready_ns)) // 60, report_id, report


# ---------------------------------------------------------------- priors


REGIONS: Final = (
    frozenset({"HEAD", "BRAIN", "SKULL", "NEURO", "CRANIUM", "FACE", "SINUS", "ORBIT", "IAC", "PITUITARY"}),
    frozenset({"NECK", "CSPINE", "THYROID", "LARYNX", "CAROTID"}),
    frozenset({"CHEST", "THORAX", "LUNG", "HEART", "CARDIAC", "RIB", "TSPINE", "MEDIASTINUM", "CORONARY"}),
    frozenset({"BREAST", "MAMMO", "MAMMOGRAPHY"}),
    frozenset({"ABDOMEN", "LIVER", "KIDNEY", "PANCREAS", "SPLEEN", "BOWEL", "COLON", "LSPINE", "ABDPELVIS"}),
    frozenset({"PELVIS", "HIP", "PROSTATE", "UTERUS", "BLADDER", "SACRUM", "RECTUM", "ABDPELVIS"}),
    frozenset({"SHOULDER", "ARM", "ELBOW", "FOREARM", "WRIST", "HAND", "HUMERUS", "FINGER"}),
    frozenset({"LEG", "KNEE", "ANKLE", "FOOT", "FEMUR", "TIBIA", "TOE"}),
)  # fmt: skip
"""Words of body parts and descriptions (PS3.16 L) that speak of one region."""
_ALL: Final = {word: number for number, words in enumerate(REGIONS) for word in words}


@dataclass(frozen=True, slots=True)
class Prior:
    """An earlier study of a patient. ``score``: more for more relevant; ``because`` says why."""

    study_uid: str
    score: int
    because: tuple[str, ...]
    date: str
    modalities: tuple[str, ...]
    description: str
    report_id: str = ""
    here: bool = True
    """Its images are in the archive."""


def ranked(
    report: Report,
    description: str,
    studies: Sequence[Mapping[str, str]],
    reports: Mapping[str, tuple[str, Report]],
    today: str,
) -> list[Prior]:
    """The priors of a report's study, the most relevant first. ``studies``: as the archive's search shows
    them; ``reports``: those of the patient by study; ``today``: ``YYYYMMDD``."""
    region = _region(f"{report.body_part} {description}")
    found: dict[str, Prior] = {}
    for study in studies:
        uid = study.get("StudyInstanceUID", "")
        if uid and uid != report.study_uid:
            modalities = tuple(one for one in study.get("ModalitiesInStudy", "").split("\\") if one)
            words, day = study.get("StudyDescription", ""), study.get("StudyDate", "")
            found[uid] = _prior(
                report, region, uid, modalities, words, day, reports.get(uid), today, here=True
            )
    for uid, (report_id, other) in reports.items():
        if uid not in found and uid != report.study_uid:
            held = (report_id, other)
            found[uid] = _prior(report, region, uid, (other.modality,), "", "", held, today, here=False)
    return sorted(found.values(), key=lambda one: (-one.score, _reversed(one.date), one.study_uid))[
        :PRIORS_MAX
    ]


async def priors(ris: Ris, report_id: str) -> list[Prior]:
    """The priors of a report's study, of the patient under all numbers that are his. UnknownError."""
    with ris.reading() as view:
        report = get(view, report_id)
        who, _ = patients.resolve(view, report.patient)
        numbers = dict.fromkeys(
            (one.value, one.issuer)
            for each in patients.family(view, who)
            if (held := view.get(PATIENT, each)) is not None
            for one in held.identifiers
        )
        reports = {one.study_uid: (key, one) for key, one in patients.of_patient(view, REPORT, who)}
    studies: dict[str, Mapping[str, str]] = {}
    for value, issuer in numbers:
        matches = {"PatientID": _literal(value)} | ({"IssuerOfPatientID": _literal(issuer)} if issuer else {})
        for study in await ris.archive.search("study", matches, limit=PRIORS_MAX * 5):
            if study.get("PatientID", value) == value:
                studies.setdefault(study.get("StudyInstanceUID", ""), study)
    own = studies.get(report.study_uid, {})
    today = f"{ris.local(ris.now_ns()):%Y%m%d}"
    return ranked(report, own.get("StudyDescription", ""), list(studies.values()), reports, today)


def _prior(  # noqa: PLR0917  what is known of one study
    report: Report,
    region: frozenset[int],
    uid: str,
    modalities: tuple[str, ...],
    description: str,
    day: str,
    held: tuple[str, Report] | None,
    today: str,
    *,
    here: bool,
) -> Prior:
    other = held[1] if held is not None else None
    score, because = 0, []
    part = other.body_part if other is not None else ""
    if part and report.body_part and folded(part) == folded(report.body_part):
        score, because = 50, ["body part"]
    elif region & _region(f"{part} {description}"):
        score, because = 40, ["region"]
    if report.modality in modalities:
        score += 25
        because.append("modality")
    if held is not None and other is not None and any(one.signed_ns for one in other.versions):
        score += 10
        because.append("report")
    age = _days(day or (_day_of(other) if other is not None else ""), today)
    if age is not None and age >= 0:
        recency = round(20 * _DAYS_OF_YEAR / (_DAYS_OF_YEAR + age))
        score += recency
        if age <= _DAYS_OF_YEAR:
            because.append("recent")
    return Prior(
        uid, score, tuple(because), day, modalities, description, held[0] if held is not None else "", here
    )


def _region(words: str) -> frozenset[int]:
    upper = re.findall(r"[A-Z]+", folded(words).upper())
    return frozenset(
        number
        for word in upper
        for known, number in _ALL.items()
        if word == known or word.removesuffix("S") == known
    )


def _days(day: str, today: str) -> int | None:
    try:
        return (date.fromisoformat(today) - date.fromisoformat(day)).days
    except ValueError:
        return None


def _day_of(report: Report) -> str:
    return f"{datetime.fromtimestamp(report.ready_ns / NS, UTC):%Y%m%d}" if report.ready_ns else ""


def _reversed(day: str) -> int:
    return -int(day) if day.isdecimal() else 0


def _literal(value: str) -> str:
    """A value that matches itself: ``*`` and ``?`` of it match any, and are compared afterwards."""
    return value.replace("\\", "?")
