"""The Modality Worklist SCP (PS3.4 K): scheduled steps in answer to C-FIND, as they are at that moment.

Candidates come from the records' lookups (a station's, a modality's, a patient's steps of some days), are
tested one by one, some dozens at a time, and go out as they are found: a record takes microseconds, and
between two batches the worker does other things. What an item was, and what was answered, is remembered while
its records have the stamps that they had; those are looked at, so an answer is never older than its question.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Final, NamedTuple

import trio

from hounsfield.archive.dicom.find_identifier import IdentifierError, MismatchError
from hounsfield.archive.plugins import (
    ORDINAL_MAX,
    Answer,
    DimseRefusedError,
    DimseService,
    Parts,
    Request,
    View,
    lookup,
)
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import RisError
from hounsfield.ris_plugin.modalities.worklist.answers import AnswerForm, answer_form
from hounsfield.ris_plugin.modalities.worklist.items import Item, worklist_item
from hounsfield.ris_plugin.modalities.worklist.query import Lookups, WorklistQuery, worklist_query
from hounsfield.ris_plugin.patients import family, resolve
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.patients import PATIENT
from hounsfield.ris_plugin.records.schedule import ON_WORKLIST, STEP, Step

__all__ = ["MODALITY_WORKLIST_FIND", "Worklist", "parts"]

MODALITY_WORKLIST_FIND: Final = "1.2.840.10008.5.1.4.31"

BATCH: Final = 64
"""Candidates looked at without a pause: one or two milliseconds."""
REMEMBERED_MAX: Final = 4096
"""Items, each with its answers: some kilobytes, so that a worker has at most some dozens of megabytes."""
QUERIES_OF_ITEM_MAX: Final = 4
"""An item is asked for by its station's own query, the same all day, and by a few others."""
_PENDING, _UNSUPPORTED = 0xFF00, 0xFF01
_OUT_OF_RESOURCES, _MISMATCH, _CANNOT_UNDERSTAND = 0xA700, 0xA900, 0xC000


class _Bounds(NamedTuple):
    """Ordinals of the first and last moment at which a step may begin."""

    first: int
    last: int


_ALWAYS: Final = _Bounds(0, ORDINAL_MAX)


_Stamps = tuple[bytes | None, bytes | None, bytes | None]


class _Remembered(NamedTuple):
    """An item as it was when these were the stamps of its step, order and patient."""

    step: Step
    stamps: _Stamps
    item: Item
    answers: dict[WorklistQuery, bytes | None]
    """To a query; None where it does not match."""


class Worklist:
    """One worker's worklist."""

    def __init__(self, ris: Ris) -> None:
        self._ris = ris
        self._remembered: dict[str, _Remembered] = {}
        self._otherwise = ris.settings.worklist_character_set.encode("ascii")

    def service(self) -> DimseService:
        """What the archive is given."""
        return DimseService("worklist", frozenset({MODALITY_WORKLIST_FIND}), find=self.find)

    async def find(self, request: Request) -> AsyncIterator[bytes | Answer]:
        """Answer a C-FIND (PS3.4 K.4.1)."""
        syntax = lookup(request.transfer_syntax_uid)
        try:
            query = worklist_query(request.dataset, syntax)
        except IdentifierError as error:
            raise _refused(error) from None
        form = answer_form(query.wishes, syntax, query.character_set, self._otherwise)
        own = request.caller.calling_ae if self._ris.settings.worklist_own_only else ""
        with self._ris.reading() as view:
            found = iter(self._candidates(view, query.lookups, own))
        left = self._ris.settings.worklist_answers_max
        while batch := list(islice(found, BATCH)):
            with self._ris.reading() as view:
                answers = [answer for one in batch if (answer := self._answer(view, one, query, form, own))]
            for answer in answers[:left]:
                yield Answer(_UNSUPPORTED, answer) if query.unsupported else answer
            left -= len(answers)
            if left < 0:
                raise DimseRefusedError(_OUT_OF_RESOURCES, "there is more: ask for a day, or a station")
            if request.cancelled():
                return
            await trio.lowlevel.checkpoint()

    # ------------------------------------------------------------ one item

    def _answer(
        self, view: View, step_id: str, query: WorklistQuery, form: AnswerForm, own: str
    ) -> bytes | None:
        """The answer for a step, None when it does not match."""
        known = self._remembered.get(step_id)
        if known is None or known.stamps != _stamps(view, step_id, known.step):
            known = self._remember(view, step_id)
            if known is None:
                return None
        if own and own not in known.step.ae_titles:
            return None
        answers = known.answers
        if query not in answers:
            if len(answers) >= QUERIES_OF_ITEM_MAX:
                answers.clear()
            answers[query] = form.encode(known.item) if query.matches(known.item) else None
        return answers[query]

    def _remember(self, view: View, step_id: str) -> _Remembered | None:
        """The item of a step; None when the step is on no worklist."""
        self._remembered.pop(step_id, None)
        step = view.get(STEP, step_id)
        if step is None or step.state not in ON_WORKLIST:
            return None
        order = view.get(ORDER, step.order)
        try:
            who, patient = resolve(view, step.patient)
        except RisError:
            return None
        if order is None:
            return None
        item = worklist_item(step, order, patient, self._ris.settings, self._ris.zone)
        known = _Remembered(step, _stamps(view, step_id, step), item, {})
        if who == step.patient:  # else what a patient was merged into may change too
            if len(self._remembered) >= REMEMBERED_MAX:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[step_id] = known
        return known

    # ------------------------------------------------------------ candidates

    def _candidates(self, view: View, lookups: Lookups, own: str) -> Iterable[str]:
        """Ids of the steps that may match, the earliest first."""
        bounds = self._bounds(lookups)
        if lookups.steps is not None:
            return self._merged(view, "number", lookups.steps, _ALWAYS)
        for name, texts in (("accession", lookups.accessions), ("study", lookups.studies)):
            if texts is not None:
                orders = [order for text in texts for order in view.ids(ORDER, name, text)]
                return self._merged(view, "order", orders, bounds)
        if lookups.patients is not None:
            return self._merged(view, "worklist-patient", self._patients(view, lookups.patients), bounds)
        if own:
            return self._merged(view, "worklist", (own,), bounds)
        if lookups.stations is not None:
            return self._merged(view, "worklist", lookups.stations, bounds)
        if lookups.modalities is not None:
            return self._merged(view, "worklist-modality", lookups.modalities, bounds)
        return view.ids(STEP, "worklist", "", at_least=bounds.first, at_most=bounds.last)

    @staticmethod
    def _merged(view: View, name: str, texts: Iterable[str], bounds: _Bounds) -> list[str]:
        """What several lookups find, each once, by time."""
        found = [view.ids(STEP, name, text, at_least=bounds.first, at_most=bounds.last) for text in texts]
        if len(found) == 1:
            return found[0]
        steps = {one: view.get(STEP, one) for ids in found for one in ids}
        return sorted(steps, key=lambda one: (step.from_ns if (step := steps[one]) else 0, one))

    @staticmethod
    def _patients(view: View, numbers: Iterable[str]) -> Iterator[str]:
        """All records of the patients who have a number: steps name the one that they were made for."""
        who: set[str] = set()
        for number in numbers:
            for found in view.ids(PATIENT, "number", number):
                try:
                    who |= set(family(view, resolve(view, found)[0]))
                except RisError:
                    continue
        yield from sorted(who)

    def _bounds(self, lookups: Lookups) -> _Bounds:
        """Between which moments steps begin, as ordinals."""
        if lookups.days is not None:
            first, last = lookups.days
            low, high = self._midnight(first, 0), self._midnight(last, 1)
        elif lookups.is_broad:
            today = self._ris.local(self._ris.now_ns()).strftime("%Y%m%d")
            settings = self._ris.settings
            low = self._midnight(today, -settings.worklist_days_before)
            high = self._midnight(today, settings.worklist_days_after + 1)
        else:
            low = high = None
        return _Bounds(max(0, low or 0), ORDINAL_MAX if high is None else max(0, high - 1))

    def _midnight(self, day: str, later: int) -> int | None:
        """When a day begins, in seconds since 1970, or one so many days later; None for what is no day."""
        try:
            begins = datetime.strptime(day, "%Y%m%d").replace(tzinfo=self._ris.zone)
            return int((begins + timedelta(days=later)).timestamp())
        except (ValueError, OverflowError):
            return None


def _stamps(view: View, step_id: str, step: Step) -> _Stamps:
    return view.stamp(STEP, step_id), view.stamp(ORDER, step.order), view.stamp(PATIENT, step.patient)


def _refused(error: IdentifierError) -> DimseRefusedError:
    status = _MISMATCH if isinstance(error, MismatchError) else _CANNOT_UNDERSTAND
    refused = DimseRefusedError(status, str(error))
    refused.answer = Answer(status, comment=str(error), attributes=error.tags)
    return refused


def parts(ris: Ris) -> Parts:
    """The worklist of one worker."""
    return Parts(services=[Worklist(ris).service()])
