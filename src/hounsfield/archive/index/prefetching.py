"""Prefetching: an appointment tomorrow brings the patient's priors back tonight.

Whoever knows of an appointment (the RIS, an interface, an administrator) says so as a fact of the journal
(kind ``prefetch``): this patient, this modality and body part, then. Some hours before, the studies that a
radiologist will want beside the new one are chosen, and asked for as by anybody else
(:mod:`~hounsfield.archive.index.demand`). The fact is taken back then, or when the appointment is cancelled.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.demand import day_of
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.planner import FoundRow, Planner
from hounsfield.archive.index.rows import SeriesRow
from hounsfield.storage_backends.api import KeyValueStore, Snapshot

__all__ = ["FACT_PREFETCH", "Prefetch", "PrefetchError", "PrefetchRule", "Prefetching"]

FACT_PREFETCH = "prefetch"
NAME_CHARACTERS_MAX = 128
_NS = 1_000_000_000
_STUDY_DATE, _STUDY_UID, _ISSUER, _DESCRIPTION = 0x00080020, 0x0020000D, 0x00100021, 0x00081030
_MODALITY, _BODY_PART = 0x00080060, 0x00180015
_NO_PICTURES = frozenset({"SR", "KO", "PR", "AU", "DOC", "PLAN"})
"""Modalities (PS3.3 C.7.3.1.1.1) of series that describe others, and say nothing of how a study was made."""


class PrefetchError(ValueError):
    """Nothing can be prefetched for that; the text says what is missing."""

    retry = False


@dataclass(frozen=True, slots=True)
class PrefetchRule:
    """Which priors are brought back, how many, and when."""

    hours_before: float = 24.0
    """Overnight, whenever the appointment is on the next day."""

    priors_max: int = 3
    """Studies. The last two are compared with; a third is for where one of them was not good."""

    years_max: float = 10.0
    """Older ones are asked for when they are wanted."""

    only: str = "any"
    """``any``, ``modality``, ``body-part`` or ``both``: what a prior must share. Those that share more come
    first, then the newest."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """An appointment: ``name`` is its own (an accession or order number), so that saying it twice is once."""

    name: str
    patient_id: str
    at_ns: int
    issuer: str = ""
    modality: str = ""
    body_part: str = ""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Prefetch:
        """From a fact's body; what a later release added is left out."""
        return cls(**{name: body[name] for name in cls.__slots__ if name in body})


class Prefetching:
    """Takes appointments, and says what is wanted for them. Blocking; any number of threads at once."""

    def __init__(
        self, store: KeyValueStore, journal: Journal, catalog: Catalog, planner: Planner, rule: PrefetchRule
    ) -> None:
        self._store = store
        self._journal = journal
        self._catalog = catalog
        self._planner = planner
        self._rule = rule

    def announce(self, wanted: Prefetch, now_ns: int) -> None:
        """Take an appointment, or a change of it, durably. ``PrefetchError``."""
        if not wanted.patient_id.strip():
            raise PrefetchError("an appointment without a patient's id brings nothing back")
        if not 0 < len(wanted.name) <= NAME_CHARACTERS_MAX:
            raise PrefetchError(f"an appointment has a name of 1 to {NAME_CHARACTERS_MAX} characters")
        body = {name: getattr(wanted, name) for name in Prefetch.__slots__}
        self._journal.commit_fact(FACT_PREFETCH, wanted.name, body, now_ns)

    def forget(self, name: str, now_ns: int) -> None:
        """An appointment is cancelled, or its priors are asked for."""
        with self._store.snapshot() as snapshot:
            known = self._journal.state_of(snapshot, FACT_PREFETCH, name) is not None
        if known:
            self._journal.commit_fact(FACT_PREFETCH, name, None, now_ns)

    def waiting(self) -> list[Prefetch]:
        """The appointments whose time has not come, the first ones first."""
        with self._store.snapshot() as snapshot:
            found = [Prefetch.of(body) for body in self._journal.state(snapshot, FACT_PREFETCH)]
        return sorted(found, key=lambda one: (one.at_ns, one.name))

    def due(self, now_ns: int) -> list[Prefetch]:
        """Those for which priors are to be brought back now."""
        ahead_ns = int(self._rule.hours_before * 3600 * _NS)
        return [one for one in self.waiting() if one.at_ns - ahead_ns <= now_ns]

    def series_for(self, wanted: Prefetch) -> list[bytes]:
        """The keys of the series to bring back for an appointment, the best prior's first."""
        ranked: list[tuple[tuple[int, str], list[bytes]]] = []
        oldest = _years_before(wanted.at_ns, self._rule.years_max)
        with self._store.snapshot() as snapshot:
            for study in self._studies_of(wanted):
                date = study.study.get(_STUDY_DATE, "")
                if date and date < oldest:
                    continue
                series = dict(self._series_of(snapshot, study))
                rank = self._rank(wanted, study, series.values())
                if rank:
                    ranked.append(((rank, date), list(series)))
        ranked.sort(key=lambda one: one[0], reverse=True)
        return [key for _, keys in ranked[: self._rule.priors_max] for key in keys]

    def _studies_of(self, wanted: Prefetch) -> Iterator[FoundRow]:
        # A wildcard in an id would bring back other patients: it stands for itself.
        if any(sign in wanted.patient_id for sign in "*?\\"):
            return
        query = parse_qido(Level.STUDY, [("PatientID", wanted.patient_id.strip())])
        for found in self._planner.find(query):
            issuer = found.study.get(_ISSUER, "")
            if not wanted.issuer or not issuer or issuer == wanted.issuer:
                yield found

    def _series_of(self, snapshot: Snapshot, study: FoundRow) -> Iterator[tuple[bytes, SeriesRow]]:
        return self._catalog.series_of(snapshot, self._catalog.study_id(study.study.get(_STUDY_UID, "")))

    def _rank(self, wanted: Prefetch, study: FoundRow, series: Iterable[SeriesRow]) -> int:
        """How much a study shares with what is planned: 0 not wanted, then more for more."""
        rows = list(series)
        modalities = {row.attributes.get(_MODALITY, "") for row in rows} - _NO_PICTURES
        parts = {row.attributes.get(_BODY_PART, "").casefold() for row in rows} - {""}
        description = study.study.get(_DESCRIPTION, "").casefold()
        part = wanted.body_part.strip().casefold()
        same_modality = bool(wanted.modality) and wanted.modality in modalities
        same_part = bool(part) and (part in parts or part in description)
        holds = {
            "any": True,
            "modality": same_modality or not wanted.modality,
            "body-part": same_part or not part,
            "both": (same_modality or not wanted.modality) and (same_part or not part),
        }[self._rule.only]
        return 1 + same_modality + 2 * same_part if holds else 0


def _years_before(at_ns: int, years: float) -> str:
    """The day so many years before a moment, as DICOM writes it."""
    day = day_of(at_ns)
    try:
        day -= datetime.timedelta(days=years * 365.2425)
    except OverflowError:
        return ""
    return f"{day.year:04}{day.month:02}{day.day:02}"
