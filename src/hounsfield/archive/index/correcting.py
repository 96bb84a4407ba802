"""Corrections are made, taken back and carried through: facts first, then the index follows.

A correction is a fact: it is durable, and every object that comes from then on is filed and shown as it
says. What is in the index already follows

* in the fact's own commit when objects are filed elsewhere (:mod:`~hounsfield.archive.index.refiling`), so
  that nobody ever sees a study in two halves;
* else study by study, each in a commit of its own, as there may be thousands. The fact leaves a note in
  META that this is to be done; whoever finds the note finishes it, after a crash too. Doing it twice
  changes nothing, as each study is compared with what it should be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import structs

from hounsfield.archive.index import corrections as overlay
from hounsfield.archive.index import tokens
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.corrections import (
    CORRECTIONS,
    MOVES_OBJECTS,
    OF_PATIENT,
    PATIENT_ID,
    PatientRef,
    View,
    number_key,
    target_key,
)
from hounsfield.archive.index.draft import StudyDraft
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.journal import FACT_SEALS, Journal
from hounsfield.archive.index.patients import Patients
from hounsfield.archive.index.refiling import Refiling, StudyChange
from hounsfield.archive.index.rows import CorrectionRow, CorrectionsRow, Event, Location
from hounsfield.archive.index.sealed import RowSealer
from hounsfield.archive.index.tables import CORRECTED, CORRECTION, DAY_BYTES, META, TOKEN
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot
from hounsfield.storage_backends.errors import PreconditionError

FACT_KIND = "correction"
EVENT_CORRECTED = "corrected"
STUDIES_PER_COMMIT = 32  # of a patient's: some hundred rows, a few milliseconds
CANDIDATES_PER_READ = 256
RESUMES_MAX = 100  # bounded only so that a bug cannot spin: others' corrections end sooner
SEALS_OF_PREVIEW = 1 << 14  # rows that are sealed and thrown away: studies of a patient, with their series
NOT_YET = 1 << 62  # the number of a correction that is only looked at: it comes after all others
SEALS_PER_STUDY = 8  # study, patients, event; and its series, of which a few thousand are always reserved

_TO_DO = b"correcting/"
_ANYTHING = "*?\\="  # in an id: no token leads to it

Progress = Callable[[int, int], None]
Plan = Callable[[Snapshot, int], CorrectionRow]


class CorrectionError(Exception):
    """A correction that cannot be; the text says why and what to do, and names nobody."""

    retry = False


@dataclass(slots=True)
class Outcome:
    """What a correction changes: studies, before and after. ``row`` as it is then."""

    row: CorrectionRow
    changes: list[StudyChange] = field(default_factory=list)


class Corrections:
    """Makes corrections and takes them back. Blocking; any number of processes at once."""

    def __init__(
        self,
        *,
        store: KeyValueStore,
        sealer: RowSealer,
        catalog: Catalog,
        journal: Journal,
        indexer: Indexer,
        newest_current: bool = False,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._catalog = catalog
        self._journal = journal
        self._refiling = Refiling(catalog, indexer, newest_current=newest_current)
        journal.on_fact(FACT_KIND, self._apply)

    # ------------------------------------------------------------ reading

    def all(self, snapshot: Snapshot) -> list[CorrectionRow]:
        """Every correction that was ever made, oldest first."""
        rows = [row_of(body) for body in self._journal.state(snapshot, FACT_KIND)]
        return sorted(rows, key=lambda row: row.number)

    def get(self, snapshot: Snapshot, number: int) -> CorrectionRow:
        """One correction; CorrectionError when there is none of that number."""
        body = self._journal.state_of(snapshot, FACT_KIND, str(number))
        if body is None:
            raise CorrectionError(f"there is no correction {number}; `hounsfield fix list` shows them")
        return row_of(body)

    def studies_of(self, snapshot: Snapshot, patient: PatientRef) -> Iterator[bytes]:
        """The ids of the studies that are shown as a patient's."""
        key = self._catalog.patient_key({PATIENT_ID: patient[0], overlay.ISSUER: patient[1]}, "")
        odd = any(character in patient[0] for character in _ANYTHING)
        token = (
            tokens.token(self._catalog.hashes, tokens.ANY, "")
            if odd
            else tokens.token(self._catalog.hashes, tokens.EXACT_FIELDS[PATIENT_ID], patient[0])
        )
        after: bytes | None = None
        while True:
            values = snapshot.postings(TOKEN, token, after=after, limit=CANDIDATES_PER_READ)
            for value in values:
                row = self._catalog.study_by_id(snapshot, value[DAY_BYTES:])
                if row is not None and self._catalog.patient_key(row.attributes, row.uid) == key:
                    yield value[DAY_BYTES:]
            if len(values) < CANDIDATES_PER_READ:
                return
            after = values[-1]

    # ------------------------------------------------------------ making

    def make(self, plan: Plan, progress: Progress = lambda _done, _all: None) -> CorrectionRow:
        """Make the correction that ``plan(snapshot, number)`` returns, and carry it through.

        ``plan`` may be called several times, and raises CorrectionError when it cannot be made.
        """
        return self._commit(plan, progress)

    def revert(
        self,
        number: int,
        *,
        actor: str,
        reason: str,
        at_ns: int,
        progress: Progress = lambda _done, _all: None,
    ) -> CorrectionRow:
        """Take a correction back: everything is as if it had never been made."""

        def plan(snapshot: Snapshot, _: int) -> CorrectionRow:
            return self.reverted(snapshot, number, actor=actor, reason=reason, at_ns=at_ns)

        return self._commit(plan, progress)

    def reverted(
        self, snapshot: Snapshot, number: int, *, actor: str, reason: str, at_ns: int
    ) -> CorrectionRow:
        """A correction as it will be when it is taken back. CorrectionError when it is already."""
        row = self.get(snapshot, number)
        if row.reverted_ns:
            raise CorrectionError(f"correction {number} is not in force: it was taken back already")
        return structs.replace(
            row,
            reverted_ns=at_ns,
            reverted_by=actor,
            reverted_because=reason,
            reverted_number=self._journal.facts(snapshot) + 1,
        )

    def preview(self, plan: Plan) -> Outcome:
        """What making (or taking back) the correction that ``plan`` returns would change. Changes nothing."""
        with self._store.snapshot() as snapshot:
            rows, locations = self._look(snapshot, plan(snapshot, NOT_YET))
        self._sealer.prepare(SEALS_OF_PREVIEW + rows)
        self._refiling.read(locations)
        try:
            with self._store.snapshot() as snapshot:
                row = plan(snapshot, NOT_YET)
                return Outcome(row, self._changes(snapshot, row))
        finally:
            self._refiling.forget()

    def _changes(self, snapshot: Snapshot, row: CorrectionRow) -> list[StudyChange]:
        view = self._view_with(snapshot, row)
        if row.kind in MOVES_OBJECTS:
            return self._refiling.plan(snapshot, Batch(), view, self._filed(snapshot, row), 0)
        changes: list[StudyChange] = []
        for study_id in self._followers(snapshot, row):
            held = self._catalog.study_by_id(snapshot, study_id)
            if held is not None:
                draft = StudyDraft(self._catalog, snapshot, held.uid, view=view)
                if draft.restate(0) is not None:
                    changes.append(StudyChange(held.uid, held, draft.new))
        return changes

    def _commit(self, plan: Plan, progress: Progress) -> CorrectionRow:
        self.resume()
        with self._store.snapshot() as snapshot:
            seals, locations = self._look(snapshot, plan(snapshot, self._journal.facts(snapshot) + 1))
        self._refiling.read(locations)
        made: list[CorrectionRow] = []

        def planned(snapshot: Snapshot, batch: Batch) -> Event:
            row = plan(snapshot, self._journal.facts(snapshot) + 1)
            at_ns = row.reverted_ns or row.at_ns
            event = Event(
                FACT_KIND,
                at_ns,
                {"name": str(row.number), "body": msgspec.to_builtins(row), "seals": seals},
                fact=True,
            )
            self._apply(snapshot, batch, event)
            made.append(row)
            return event

        self._journal.commit_planned_fact(planned, seals=seals)
        self.resume(progress)
        return made[-1]

    def _look(self, snapshot: Snapshot, row: CorrectionRow) -> tuple[int, list[Location]]:
        """How many rows the commit of a correction may seal, and the records that planning it reads."""
        if row.kind not in MOVES_OBJECTS:
            return 0, []
        view = self._view_with(snapshot, row)
        rows, locations = self._refiling.look(snapshot, view, self._filed(snapshot, row))
        return rows + FACT_SEALS, locations

    # ------------------------------------------------------------ what a fact changes

    def _apply(self, snapshot: Snapshot, batch: Batch, event: Event) -> None:
        """Have ``batch`` do what a correction's fact stands for, made or replayed."""
        row = row_of(event.body["body"])
        key = target_key(self._catalog, row)
        held = snapshot.get(CORRECTION, key)
        now = self._with(snapshot, row)
        self._journal.put_state(batch, event)
        batch.require(CORRECTION, key, held)
        if now:
            self._catalog.put_row(batch, CORRECTION, key, CorrectionsRow(now))
        else:
            batch.delete(CORRECTION, key)
        generation = overlay.generation(snapshot)
        batch.require(META, CORRECTIONS, generation)
        batch.put(META, CORRECTIONS, number_key(self._journal.facts(snapshot) + 1))
        if row.kind not in MOVES_OBJECTS:
            batch.put(META, _TO_DO + number_key(row.number), b"")
            return
        view = self._view_with(snapshot, row)
        changes = self._refiling.plan(snapshot, batch, view, self._filed(snapshot, row), event.at_ns)
        for change in changes:
            self._journal.append(batch, _corrected(change.uid, row.number, event.at_ns))

    def _with(self, snapshot: Snapshot, row: CorrectionRow) -> tuple[CorrectionRow, ...]:
        others = [
            one
            for one in View(self._catalog, snapshot).of(target_key(self._catalog, row))
            if one.number != row.number
        ]
        return tuple(sorted([*others, *([] if row.reverted_ns else [row])], key=lambda one: one.number))

    def _view_with(self, snapshot: Snapshot, row: CorrectionRow) -> View:
        return View(self._catalog, snapshot, {target_key(self._catalog, row): self._with(snapshot, row)})

    def _filed(self, snapshot: Snapshot, row: CorrectionRow) -> list[bytes]:
        """The ids of the studies in which the objects are that a correction files elsewhere, or did."""
        if row.reverted_ns:
            return snapshot.postings(CORRECTED, number_key(row.number))
        return [self._catalog.study_id(row.study)]

    # ------------------------------------------------------------ the studies that follow

    def resume(self, progress: Progress = lambda _done, _all: None) -> int:
        """Carry through every correction of which something is left to do; how many studies changed."""
        self._refiling.forget()
        changed = 0
        for _ in range(RESUMES_MAX):
            with self._store.snapshot() as snapshot:
                to_do = [key for key, _ in snapshot.scan(META, prefix=_TO_DO)]
            if not to_do:
                break
            changed += sum(self._carry_through(key, progress) for key in to_do)
        return changed

    def _carry_through(self, key: bytes, progress: Progress) -> int:
        """Restate what one note asks for, and take the note away if no correction was made meanwhile."""
        with self._store.snapshot() as snapshot:
            number = int.from_bytes(key[len(_TO_DO) :], "big")
            body = self._journal.state_of(snapshot, FACT_KIND, str(number))
            generation = overlay.generation(snapshot)
            row = None if body is None else row_of(body)
            followers = [] if row is None else list(self._followers(snapshot, row))
        # A note without its correction: the index is damaged, and a start must not fail for it.
        changed = 0 if row is None else self._restate(followers, row, progress)
        done = Batch()
        done.require(META, CORRECTIONS, generation)
        done.delete(META, key)
        with contextlib.suppress(PreconditionError):
            self._store.commit(done)
        return changed

    def _followers(self, snapshot: Snapshot, row: CorrectionRow) -> Iterable[bytes]:
        """The ids of the studies whose rows a correction changes."""
        part = snapshot.postings(CORRECTED, number_key(row.number))
        if row.reverted_ns:
            return part
        if row.kind in OF_PATIENT:
            return self.studies_of(snapshot, row.patient)
        return [self._catalog.study_id(row.study)]

    def _restate(self, study_ids: Sequence[bytes], row: CorrectionRow, progress: Progress) -> int:
        changed = 0
        for start in range(0, len(study_ids), STUDIES_PER_COMMIT):
            progress(start, len(study_ids))
            left = list(study_ids[start : start + STUDIES_PER_COMMIT])
            attempt = 0
            while left:
                plans: list[tuple[bytes, Batch]] = []

                def planned(
                    snapshot: Snapshot,
                    left: list[bytes] = left,
                    plans: list[tuple[bytes, Batch]] = plans,
                ) -> list[Batch]:
                    plans[:] = self._restatements(snapshot, left, row)
                    return [batch for _, batch in plans]

                self._sealer.prepare(SEALS_PER_STUDY * len(left))
                if attempt:
                    results = self._store.commit_planned(planned)
                else:
                    with self._store.snapshot() as snapshot:
                        batches = planned(snapshot)
                    results = self._store.commit_many(batches) if batches else []
                attempt += 1
                left = []
                for (study_id, _), result in zip(plans, results, strict=True):
                    if isinstance(result, PreconditionError):
                        left.append(study_id)
                    elif isinstance(result, Exception):
                        raise result
                    else:
                        changed += 1
        progress(len(study_ids), len(study_ids))
        return changed

    def _restatements(
        self, snapshot: Snapshot, study_ids: Iterable[bytes], row: CorrectionRow
    ) -> list[tuple[bytes, Batch]]:
        patients: Patients = {}
        plans: list[tuple[bytes, Batch]] = []
        at_ns = row.reverted_ns or row.at_ns
        for study_id in study_ids:
            held = self._catalog.study_by_id(snapshot, study_id)
            if held is None:
                continue
            now_ns = max(at_ns, held.changed_ns + 1)
            batch = StudyDraft(self._catalog, snapshot, held.uid, patients).restate(now_ns)
            if batch is not None:
                self._journal.append(batch, _corrected(held.uid, row.number, at_ns))
                plans.append((study_id, batch))
        return plans


def row_of(body: Any) -> CorrectionRow:
    """A correction out of its fact's body."""
    return msgspec.convert(body, CorrectionRow)


def _corrected(study_uid: str, number: int, at_ns: int) -> Event:
    return Event(EVENT_CORRECTED, at_ns, {"study": study_uid, "correction": number})
