"""A C-FIND being answered: encoded answers, some at a time, as the index finds them. Blocking.

The index finds candidates; what only stored headers have is looked up and matched there, candidate by
candidate, with the corrections that are in force, as searches over HTTP do it. Nothing is held but the
answers of one turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from hounsfield.archive.dicom.find_answers import AnswerEncoder
from hounsfield.archive.dicom.find_identifier import QUERY_RETRIEVE_LEVEL
from hounsfield.archive.dicom.find_request import (
    INSTANCE_AVAILABILITY,
    PATIENT_INSTANCES,
    PATIENT_SERIES,
    PATIENT_STUDIES,
    RETRIEVE_AE_TITLE,
    FindRequest,
    Origin,
)
from hounsfield.archive.dicom.header_matching import blocks_to_look_in, header_matches, in_their_blocks
from hounsfield.archive.dicom.json_model import Model
from hounsfield.archive.engine.errors import DamagedError
from hounsfield.archive.engine.headers import HeaderAttributes
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import FoundRow, Header, Instance
from hounsfield.archive.index.planner import Turn
from hounsfield.codecs.registry import TransferSyntax

#: The first answers go out at once, later ones in longer turns.
ANSWERS_FIRST: Final = 32
ANSWERS_PER_TURN: Final = 512
BYTES_PER_TURN: Final = 1 << 20
#: A turn ends after this long, so that a cancel, or the end of the association, is heeded soon.
TURN_S: Final = 0.1
#: Patients whose counts are remembered within one request: the studies of one often follow each other.
PATIENTS_REMEMBERED: Final = 256

_PATIENT_ID, _ISSUER = 0x00100020, 0x00100021
_STUDY_SERIES, _STUDY_INSTANCES = 0x00201206, 0x00201208


@dataclass(frozen=True, slots=True, kw_only=True)
class FindLimits:
    """What one request may cost."""

    answers_max: int = 100_000
    """Answers to one request. Nobody reads so many; at some thousands a second they take half a minute.
    Who wants a list of everything asks by ranges of dates."""

    headers_max: int = 20_000
    """Stored headers that one request may have read, for keys that the index does not hold: each is a read
    from the disk, so that is some seconds to a minute of one."""


class End(Enum):
    """Why there are no more answers."""

    COMPLETE = "all that match"
    TOO_MANY_ANSWERS = "more answers than one request may have"
    TOO_MANY_HEADERS = "more stored headers to read than one request may"


@dataclass(frozen=True, slots=True)
class Answers:
    """Encoded identifiers in order; ``end`` is None while there may be more."""

    encoded: list[bytes]
    end: End | None


class _TooManyHeadersError(Exception):
    """The request's share of header reads is spent."""

    retry = False


class Finding:
    """One request being answered. By one thread at a time."""

    def __init__(
        self,
        stores: Stores,
        header: Callable[[Instance], Header],
        request: FindRequest,
        syntax: TransferSyntax,
        *,
        retrieve_ae: str,
        limits: FindLimits,
    ) -> None:
        self._stores = stores
        self._request = request
        self._encoder = AnswerEncoder(request, syntax)
        self._turns: Iterator[Turn] = stores.planner.turns(request.query, ANSWERS_FIRST)
        self._found: deque[FoundRow] = deque()
        self._last = False
        self._answers_left = limits.answers_max
        self._headers_left = limits.headers_max
        self._extra = {
            QUERY_RETRIEVE_LEVEL: request.query.level.value,
            RETRIEVE_AE_TITLE: retrieve_ae,
            INSTANCE_AVAILABILITY: "ONLINE",
        }
        self._counts_patients = request.counts_patients
        self._patients: dict[tuple[str, str], dict[int, str]] = {}
        self._stored = HeaderAttributes(stores.store, stores.catalog, header)
        keys = [*request.verified, *(key for key, origin in request.returned if origin is Origin.HEADER)]
        self._private = [key for key in keys if key.is_private]
        self._paths = request.paths | blocks_to_look_in(keys)
        self.headers_unread = 0

    @property
    def is_quick(self) -> bool:
        """Whether all answers are found sooner than a thread is asked for them."""
        quick = not self._paths and not self._counts_patients
        return quick and self._stores.planner.is_quick(self._request.query)

    def more(self) -> Answers:
        """The next answers; none, without an end, when a turn's time found none."""
        encoded: list[bytes] = []
        size = 0
        until = time.monotonic() + TURN_S
        while True:
            while self._found:
                if not self._answers_left:
                    return Answers(encoded, End.TOO_MANY_ANSWERS)
                row = self._found.popleft()
                try:
                    answer = self._answer(row)
                except _TooManyHeadersError:
                    return Answers(encoded, End.TOO_MANY_HEADERS)
                if answer is not None:
                    self._answers_left -= 1
                    encoded.append(answer)
                    size += len(answer)
                if len(encoded) >= ANSWERS_PER_TURN or size >= BYTES_PER_TURN or time.monotonic() > until:
                    return Answers(encoded, End.COMPLETE if self._last and not self._found else None)
            if self._last:
                return Answers(encoded, End.COMPLETE)
            if encoded or time.monotonic() > until:
                return Answers(encoded, None)
            turn = next(self._turns, Turn([], True))
            self._found.extend(turn.found)
            self._last = turn.last

    def _answer(self, row: FoundRow) -> bytes | None:
        """One answer, None when its stored header does not match."""
        header = None
        if self._paths:
            header = self._header(row)
            if not header_matches(self._request.verified, header, fuzzy=self._request.query.fuzzy):
                return None
        extra = self._extra
        if self._counts_patients:
            extra = extra | self._patient_counts(row)
        return self._encoder.encode(row.study, row.series, row.instance, extra, header)

    def _header(self, row: FoundRow) -> Model:
        """What the request asks of a stored header, under the request's tags."""
        if not self._headers_left:
            raise _TooManyHeadersError
        self._headers_left -= 1
        try:
            found, _ = self._stored.of(row, self._paths, "")
            places = in_their_blocks(self._private, found)
            moved = {asked: at for asked, at in places.items() if at != asked}
            there: Model = {}
            if moved:
                paths = {(moved[path[0]], *path[1:]) for path in self._paths if path[0] in moved}
                there, _ = self._stored.of(row, paths, "")
        except DamagedError:
            self.headers_unread += 1
            return {}
        for key in self._private:
            at = places.get(key.tag)
            if at == key.tag:
                continue
            found.pop(f"{key.tag:08X}", None)  # of another creator
            if at is not None and f"{at:08X}" in there:
                found[f"{key.tag:08X}"] = there[f"{at:08X}"]
        return found

    def _patient_counts(self, row: FoundRow) -> dict[int, str]:
        """What the archive has of an answer's patient (PS3.4 Table C.6-1)."""
        patient = row.study.get(_PATIENT_ID, ""), row.study.get(_ISSUER, "")
        if not patient[0]:  # each study without one is a patient's of its own
            return _counts(1, int(row.study[_STUDY_SERIES]), int(row.study[_STUDY_INSTANCES]))
        known = self._patients.get(patient)
        if known is None:
            studies = series = instances = 0
            catalog, corrections = self._stores.catalog, self._stores.corrections
            with self._stores.store.snapshot() as snapshot:
                for study_id in corrections.studies_of(snapshot, patient):
                    study = catalog.study_by_id(snapshot, study_id)
                    if study is not None:
                        studies += 1
                        series += study.series
                        instances += study.instances
            known = _counts(studies, series, instances)
            if len(self._patients) >= PATIENTS_REMEMBERED:
                self._patients.clear()
            self._patients[patient] = known
        return known


def _counts(studies: int, series: int, instances: int) -> dict[int, str]:
    return {
        PATIENT_STUDIES: str(studies),
        PATIENT_SERIES: str(series),
        PATIENT_INSTANCES: str(instances),
    }
