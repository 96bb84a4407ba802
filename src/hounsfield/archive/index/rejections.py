"""Rejections: objects that a rejection note names are taken out of sight, and can be brought back.

A rejection is a fact (kind ``rejection``): durable in the ledger before it is visible, numbered, replayed by
a reindex. What it does is a part of the overlay (:mod:`~hounsfield.archive.index.corrections`): the objects
are filed in a hidden study, where nothing that searches or retrieves finds them, while everything that cares
for stored bytes (duplicates, holds, compaction, scrubbing, backups, checks) sees them as any other. What
comes later takes the same way. The note is hidden with what it rejects.

IHE RAD TF RAD-66: a later occurrence of what was rejected for patient safety or a wrong worklist entry is not
to be shown; the same holds here for quality. The end of a retention period is not in force for what is sent
again.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import structs

from hounsfield.archive.dicom.rejection import (
    EXPIRED,
    KEY_OBJECT_SELECTION,
    REASONS,
    NoteError,
    NoteLimits,
    NoteTooLargeError,
    RejectionNote,
    rejection_note,
)
from hounsfield.archive.index import corrections as overlay
from hounsfield.archive.index.catalog import Catalog, Place
from hounsfield.archive.index.corrections import (
    CORRECTIONS,
    REJECT,
    View,
    is_hidden,
    number_key,
)
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.journal import FACT_SEALS, Journal
from hounsfield.archive.index.refiling import Refiling
from hounsfield.archive.index.refused_notes import (
    RefusedNote,
    all_refused,
    defect,
    note_refused,
    refused_key,
)
from hounsfield.archive.index.rejected_names import RejectedNames
from hounsfield.archive.index.rejections_in_force import (
    FACT_REJECTION,
    plan_rows,
    rejection_of,
    rows_with,
)
from hounsfield.archive.index.remaining import Carried
from hounsfield.archive.index.rows import (
    CorrectionRow,
    Event,
    InstanceRow,
    Location,
    SourceRow,
)
from hounsfield.archive.index.sealed import RowSealer
from hounsfield.archive.index.stored_objects import VANISHED
from hounsfield.archive.index.tables import CORRECTED, INSTANCE, META, STUDY_ID_BYTES
from hounsfield.archive.index.waiting_notes import FOLLOWED, WaitingRow, all_waiting, waiting_key
from hounsfield.codecs.errors import CodecError
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot
from hounsfield.storage_backends.errors import StorageError

EVENT_REJECTED = "instances-rejected"
EVENT_RESTORED = "instances-restored"
MOVES_MAX = 8  # of one record while it is read; it is one, or the disk is what fails
TOKEN_BYTES = 16  # of a hidden study's name: nobody guesses it

_log = logging.getLogger(__name__)


class RejectionError(Exception):
    """A rejection that cannot be made or undone; the text says why and what to do, and names nobody."""

    retry = False


class _DealtWithError(Exception):
    """Another process was first, or the note was followed before."""


class _GoneError(Exception):
    """The object is not here any more."""


#: What may go well another time: disk, memory, keys, or a store that others are busy with.
_LATER = (StorageError, CodecError, OSError, MemoryError)


@dataclass(frozen=True, slots=True)
class _Note:
    """A rejection note that is stored here."""

    content: RejectionNote
    sender: str
    record_id: bytes
    row: WaitingRow
    digest: str  # of its bytes as received


class Rejections:
    """Follows rejection notes, and undoes that. Blocking; any number of threads and processes at once."""

    def __init__(
        self,
        *,
        store: KeyValueStore,
        sealer: RowSealer,
        catalog: Catalog,
        journal: Journal,
        indexer: Indexer,
        followed: frozenset[str] = frozenset(REASONS),
        limits: NoteLimits | None = None,
        newest_current: bool = False,
    ) -> None:
        """``followed``: codes of the reasons for which notes are followed; others are ordinary objects."""
        self._limits = limits or NoteLimits()
        self._store = store
        self._sealer = sealer
        self._catalog = catalog
        self._journal = journal
        self._indexer = indexer
        self._names = RejectedNames(catalog, journal)
        self._followed = followed
        self._newest_current = newest_current
        journal.on_fact(FACT_REJECTION, self._apply)

    # ------------------------------------------------------------ reading

    def all(self, snapshot: Snapshot) -> list[CorrectionRow]:
        """Every rejection that was ever made, oldest first."""
        rows = [rejection_of(body) for body in self._journal.state(snapshot, FACT_REJECTION)]
        return sorted(rows, key=lambda row: row.number)

    def get(self, snapshot: Snapshot, number: int) -> CorrectionRow:
        """One rejection; RejectionError when there is none of that number."""
        body = self._journal.state_of(snapshot, FACT_REJECTION, str(number))
        if body is None:
            raise RejectionError(f"there is no rejection {number}; `hounsfield reject list` shows them")
        return rejection_of(body)

    def refused(self, snapshot: Snapshot) -> list[RefusedNote]:
        """The notes that are here and were put aside, with why; oldest first."""
        found: list[RefusedNote] = []
        for record_id, one in all_refused(snapshot, self._sealer):
            with suppress(_GoneError):
                self._stored_in(snapshot, record_id, one.note)
                found.append(one)
        return found

    def hidden(self, snapshot: Snapshot, row: CorrectionRow) -> dict[str, int]:
        """How many objects of each study a rejection keeps out of sight now, by the hidden study's UID."""
        found: dict[str, int] = {}
        for study_id in snapshot.postings(CORRECTED, number_key(row.number)):
            study = self._catalog.study_by_id(snapshot, study_id)
            if study is not None and is_hidden(study.uid) and study.uid.startswith(f"{row.to_study}/"):
                found[study.uid] = study.instances
        return found

    # ------------------------------------------------------------ following notes

    def resume(self) -> int:
        """Look at every key object selection that nobody has looked at; how many rejected something.

        One that cannot be read now waits for the next time; one that cannot be followed is put aside with the
        reason. No note stands in the way of others.
        """
        with self._store.snapshot() as snapshot:
            waiting = all_waiting(snapshot, self._sealer)
        made = 0
        for record_id, row in waiting:
            with suppress(*_LATER):
                made += self._look_at(record_id, row)
        return made

    def _look_at(self, record_id: bytes, row: WaitingRow) -> bool:
        """Follow a note, or say why not; whether it was. Raises only what another time may not."""
        note: _Note | None = None
        batch = Batch(uses_reserve=True)
        try:
            note = self._read(record_id, row)
            if note is not None and note.content.code in self._followed:
                self._make(note, actor=note.sender, waits=True)
                return True
        except NoteTooLargeError as error:
            if not error.code or error.code in self._followed:
                self._put_aside(batch, record_id, row, error.code, str(error))
        except (NoteError, _GoneError, _DealtWithError):
            pass  # an object as any other, or gone, or followed
        except _LATER:
            raise
        except Exception as error:  # noqa: BLE001 - a defect: no other note, and no start, may wait for one
            self._put_aside(batch, record_id, row, note.content.code if note else "", defect(error))
        batch.delete(META, waiting_key(record_id))
        self._store.commit(batch)
        return False

    def _put_aside(self, batch: Batch, record_id: bytes, row: WaitingRow, code: str, why: str) -> None:
        self._sealer.prepare(1)
        note_refused(batch, self._sealer, record_id, RefusedNote(row, code, why, time.time_ns()))
        text = "a rejection note is kept and not followed: %s (`hounsfield reject list` shows which)"
        _log.warning(text, why)

    def _read(self, record_id: bytes, row: WaitingRow) -> _Note | None:
        """What a stored object says, None when it is no rejection note. _GoneError when it is gone."""
        for _ in range(MOVES_MAX):
            found = self._stored(record_id, row)
            try:
                length = self._indexer.objects.data_set_bytes(found.location, found.stored_as)
                if length > self._limits.bytes_max:
                    raise NoteTooLargeError(f"it is {length} bytes long, more than {self._limits.bytes_max}")
                data = b"".join(self._indexer.objects.data_set(found.location, found.stored_as))
            except VANISHED:
                continue  # compaction moved it
            content = rejection_note(data, found.transfer_syntax_uid, self._limits)
            if content is None:
                return None
            said = Carried(self._indexer).row(found.location)
            source = SourceRow() if said is None else said.source
            sender = source.calling_ae or source.address or source.protocol
            return _Note(content, sender, record_id, row, hashlib.sha256(data).hexdigest())
        raise _GoneError("the record was moved again and again while it was read")

    def _stored(self, record_id: bytes, row: WaitingRow) -> InstanceRow:
        with self._store.snapshot() as snapshot:
            return self._stored_in(snapshot, record_id, row)

    def _stored_in(self, snapshot: Snapshot, record_id: bytes, row: WaitingRow) -> InstanceRow:
        catalog = self._catalog
        route = View(catalog, snapshot).route(row.study_uid, row.series_uid, row.sop_uid, row.received_ns)
        place = Place(route.study_uid, route.series_uid, row.sop_uid)
        served = catalog.instance(snapshot, *place)
        if served is not None:
            for one in (served, *catalog.versions(snapshot, catalog.instance_key(*place))):
                if one.location.record_id == record_id:
                    return one
        raise _GoneError("the object is gone")

    def follow(self, sop_uid: str, *, actor: str) -> CorrectionRow:
        """Follow a note that is shown here, whatever its reason; for one that was undone, or came before.

        RejectionError when it is no rejection note, or is not shown: then it is in force already.
        """
        shown = self._shown(sop_uid)
        try:
            note = self._read(*shown)
            if note is None:
                raise RejectionError("this object is no rejection note: its title is not one of CID 7011's")
            return self._make(note, actor=actor, waits=False)
        except (NoteError, _GoneError) as error:
            raise RejectionError(f"this rejection note cannot be followed: {error}") from error
        except (*_LATER, RejectionError):
            raise
        except Exception as error:
            raise RejectionError(f"this rejection note cannot be followed: {defect(error)}") from error

    def _shown(self, sop_uid: str) -> tuple[bytes, WaitingRow]:
        catalog = self._catalog
        with self._store.snapshot() as snapshot:
            for key in catalog.places(snapshot, "instance", sop_uid):
                study = catalog.study_by_id(snapshot, key[:STUDY_ID_BYTES])
                series = catalog.series_by_key(snapshot, key)
                if study is None or series is None:
                    continue
                row = catalog.instance(snapshot, study.uid, series.uid, sop_uid)
                if row is not None and row.sop_class_uid == KEY_OBJECT_SELECTION:
                    received = row.received or (study.uid, series.uid)
                    return row.location.record_id, WaitingRow(*received, sop_uid, row.received_ns)
            for one in self.all(snapshot):
                if one.note == sop_uid and not one.reverted_ns:
                    raise RejectionError(f"this note is followed already: it is rejection {one.number}")
        raise RejectionError("no rejection note of that UID is here")

    # ------------------------------------------------------------ making and undoing

    def _make(self, note: _Note, *, actor: str, waits: bool) -> CorrectionRow:
        key = waiting_key(note.record_id)
        at_ns = time.time_ns()
        token = secrets.token_hex(TOKEN_BYTES)

        def plan(snapshot: Snapshot, batch: Batch | None) -> CorrectionRow:
            held = snapshot.get(META, key)
            if waits and (held is None or self._was_followed(snapshot, note)):
                raise _DealtWithError
            if not waits:
                self._require_shown(snapshot, note.row)
            if batch is not None:
                batch.require(META, key, held)
            return CorrectionRow(
                number=self._journal.facts(snapshot) + 1,
                kind=REJECT,
                at_ns=at_ns,
                actor=actor,
                reason=REASONS[note.content.code],
                to_study=f"{overlay.HIDDEN}{token}",
                rejected=self._names.meant(snapshot, note.content, note.row),
                code=note.content.code,
                note=note.row.sop_uid,
                note_record=note.record_id.hex(),
                note_digest=note.digest,
                before_ns=note.row.received_ns + 1 if note.content.code == EXPIRED else 0,
            )

        return self._commit(plan)

    def undo(self, number: int, *, actor: str, reason: str, at_ns: int) -> CorrectionRow:
        """Bring back what a rejection hides, and its note. RejectionError when it is not in force."""
        if not reason.strip():
            raise RejectionError("say why: undoing a rejection needs a reason")

        def plan(snapshot: Snapshot, _: Batch | None) -> CorrectionRow:
            row = self.get(snapshot, number)
            if row.reverted_ns:
                raise RejectionError(f"rejection {number} is not in force: it was undone already")
            return structs.replace(row, reverted_ns=at_ns, reverted_by=actor, reverted_because=reason)

        return self._commit(plan)

    def _commit(self, plan: Any) -> CorrectionRow:
        refiling = self._refiling()
        with self._store.snapshot() as snapshot:
            row = plan(snapshot, None)
            rows, locations = self._look(refiling, snapshot, row)
        refiling.read(locations)  # beside everybody: planning then has it at hand
        seals = rows + FACT_SEALS
        made: list[CorrectionRow] = []

        def planned(snapshot: Snapshot, batch: Batch) -> Event:
            row = plan(snapshot, batch)
            body = {"name": str(row.number), "body": msgspec.to_builtins(row), "seals": seals}
            event = Event(FACT_REJECTION, row.reverted_ns or row.at_ns, body, fact=True)
            self._change(refiling, snapshot, batch, event)
            made.append(row)
            return event

        self._journal.commit_planned_fact(planned, seals=seals)
        return made[-1]

    def _require_shown(self, snapshot: Snapshot, row: WaitingRow) -> None:
        """RejectionError when a note is hidden: somebody else followed it, or rejected it, meanwhile."""
        view = View(self._catalog, snapshot)
        route = view.route(row.study_uid, row.series_uid, row.sop_uid, row.received_ns)
        if not is_hidden(route.study_uid):
            return
        number = route.path[-1]
        if self.get(snapshot, number).note == row.sop_uid:
            raise RejectionError(f"this note is followed already: it is rejection {number}")
        raise RejectionError(f"this note is not shown any more: rejection {number} hides it")

    def _was_followed(self, snapshot: Snapshot, note: _Note) -> bool:
        """Whether a rejection speaks of this note, whatever became of it.

        The answer is the same when the note comes and in a recovery, which knows all facts by then. A further
        note of one UID that says nothing new is spoken of, unless it came after the rejection was undone.
        """
        _, numbers = self._followed_by(snapshot, note.row.sop_uid)
        for number in numbers:
            body = self._journal.state_of(snapshot, FACT_REJECTION, str(number))
            if body is None:
                continue  # damage must not keep an archive from starting
            row = rejection_of(body)
            if row.note_record == note.record_id.hex() or row.note_digest == note.digest:
                return True
            if row.reverted_ns and row.reverted_ns <= note.row.received_ns:
                continue
            if row.code == note.content.code and not row.before_ns and _names_all(row, note):
                return True
        return False

    def _followed_by(self, snapshot: Snapshot, sop_uid: str) -> tuple[bytes, list[int]]:
        """The key in META, and the numbers that it has: of the rejections by notes of one UID."""
        key = FOLLOWED + self._journal.state_key(FACT_REJECTION, sop_uid)
        held = snapshot.get(META, key) or b""
        size = len(number_key(0))
        return key, [int.from_bytes(held[at : at + size], "big") for at in range(0, len(held), size)]

    def _refiling(self) -> Refiling:
        return Refiling(self._catalog, self._indexer, newest_current=self._newest_current)

    def _look(self, refiling: Refiling, snapshot: Snapshot, row: CorrectionRow) -> tuple[int, list[Location]]:
        """How many rows the commit may seal, and the records that planning it reads."""
        rows, locations = refiling.look(snapshot, self._view_with(snapshot, row), self._filed(snapshot, row))
        return rows + len(row.rejected), locations

    # ------------------------------------------------------------ what a fact changes

    def _apply(self, snapshot: Snapshot, batch: Batch, event: Event) -> None:
        """Have ``batch`` do what a rejection's fact stands for, when it is replayed."""
        self._change(self._refiling(), snapshot, batch, event)

    def _change(self, refiling: Refiling, snapshot: Snapshot, batch: Batch, event: Event) -> None:
        row = rejection_of(event.body["body"])
        self._journal.put_state(batch, event)
        plan_rows(self._catalog, snapshot, batch, row)
        batch.require(META, CORRECTIONS, overlay.generation(snapshot))
        batch.put(META, CORRECTIONS, number_key(self._journal.facts(snapshot) + 1))
        record_id = bytes.fromhex(row.note_record)
        batch.delete(META, waiting_key(record_id))
        batch.delete(META, refused_key(record_id))
        key, numbers = self._followed_by(snapshot, row.note)
        batch.put(META, key, b"".join(map(number_key, sorted({*numbers, row.number}))))
        changes = refiling.plan(
            snapshot, batch, self._view_with(snapshot, row), self._filed(snapshot, row), event.at_ns
        )
        kind = EVENT_RESTORED if row.reverted_ns else EVENT_REJECTED
        for change in changes:
            if not is_hidden(change.uid):
                body = {"study": change.uid, "rejection": row.number}
                self._journal.append(batch, Event(kind, event.at_ns, body))

    def _view_with(self, snapshot: Snapshot, row: CorrectionRow) -> View:
        return View(self._catalog, snapshot, rows_with(self._catalog, snapshot, row))

    def _filed(self, snapshot: Snapshot, row: CorrectionRow) -> list[bytes]:
        """The ids of the studies in which the objects are that a rejection hides, or hid."""
        if row.reverted_ns:
            return snapshot.postings(CORRECTED, number_key(row.number))
        view = View(self._catalog, snapshot)  # in a recovery it may know the rejection already
        uids: set[str] = set()
        for study_uid, by_series in row.rejected.items():
            for series_uid, sop_uids in by_series.items():
                for sop_uid in sop_uids:
                    for place in view.met(study_uid, series_uid, sop_uid):
                        key = self._catalog.instance_key(*place, sop_uid)
                        if place[0] not in uids and snapshot.get(INSTANCE, key) is not None:
                            uids.add(place[0])
        return [self._catalog.study_id(uid) for uid in sorted(uids)]


def _names_all(row: CorrectionRow, note: _Note) -> bool:
    """Whether a rejection names the note and all that it names."""
    own = {note.row.study_uid: {note.row.series_uid: (note.row.sop_uid,)}}
    return all(
        set(sop_uids) <= set(row.rejected.get(study_uid, {}).get(series_uid, ()))
        for named in (own, note.content.rejected)
        for study_uid, by_series in named.items()
        for series_uid, sop_uids in by_series.items()
    )
