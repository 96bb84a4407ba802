"""A group of received objects becomes durable, indexed and visible: one write, one sync, one transaction.

Blocking; runs on a thread. For each group:

1. those already held are compared byte for byte and, when equal, need nothing more; when not, they are given
   back undecided: whether they say the same in other bytes is found out elsewhere, so that no group waits;
2. the rest are sealed and appended to this worker's segment in one gather write and one sync;
3. one index transaction adds them, study by study, each with its journal event.

Only when this returns may anything be acknowledged. An object that failed between 2 and 3 was not
acknowledged; recovery will find its record and index it, which is harmless: the sender sends again and
is told "held already".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hounsfield.archive.engine.errors import EngineError, OutOfResourcesError, StorageFailedError
from hounsfield.archive.engine.types import COERCED, Outcome, StoreResult
from hounsfield.archive.index.catalog import Stored
from hounsfield.archive.index.indexing import IndexContentionError, Indexer, progress_batch
from hounsfield.archive.index.rows import RECORD_KIND_OBJECT, InstanceRow, Location, ObjectRow, encode
from hounsfield.archive.index.stored_objects import VANISHED
from hounsfield.archive.index.versions import FLAG_CONFLICT
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import StorageError, StoreFullError
from hounsfield.storage_backends.segment_appending import RecordIn


@dataclass(slots=True)
class Received:
    """An object received whole and scanned. ``slices``: header, frames…, trailer, in order, to be stored.

    ``as_received``: the slices before frames were compressed, when they were. ``unlike``: records known to be
    something else, after so many ``rounds`` of comparing; ``settled``: stored without comparing once more.
    """

    row: ObjectRow
    slices: Sequence[Buffer]
    as_received: Sequence[Buffer] | None = None
    unlike: frozenset[bytes] = frozenset()
    rounds: int = 0
    settled: bool = False

    @property
    def original(self) -> Sequence[Buffer]:
        """The slices as received."""
        return self.slices if self.as_received is None else self.as_received

    @property
    def key(self) -> tuple[str, str, str]:
        return self.row.study_uid, self.row.series_uid, self.row.sop_uid


@dataclass(frozen=True, slots=True)
class Undecided:
    """Nothing was stored: other bytes are held under the object's UIDs, and may be the same content."""

    held: tuple[InstanceRow, ...]


Fate = StoreResult | EngineError | Undecided


class GroupCommit:
    """Stores groups of objects in one worker's segment. One thread at a time."""

    def __init__(self, indexer: Indexer) -> None:
        self.indexer = self._indexer = indexer
        self._log = indexer.log
        self._indexed_to: dict[bytes, int] = {}  # by the last group; written along with the next one

    def store(self, objects: Sequence[Received]) -> list[Fate]:
        """Store ``objects``, no two of which share all their UIDs; one fate for each, in order."""
        fates: list[Fate | None] = [None] * len(objects)
        try:
            self._store(objects, fates)
            failure: EngineError = StorageFailedError("storing was not completed; send again")
        except StoreFullError as error:
            failure = OutOfResourcesError(
                "the disk is full up to its reserve: free space or add a tier, then send again"
            )
            failure.__cause__ = error
        except (StorageError, OSError, ValueError, IndexContentionError) as error:
            failure = StorageFailedError(
                f"storing failed ({type(error).__name__}); not acknowledged, send again"
            )
            failure.__cause__ = error
        return [failure if fate is None else fate for fate in fates]

    def _store(self, objects: Sequence[Received], fates: list[Fate | None]) -> None:
        self._indexer.prepare(len(objects))
        try:
            held = self._held(objects)
        except VANISHED:
            held = self._held(objects)  # compaction was first: the rows say now where everything is
        for i, fate in held.items():
            fates[i] = fate
        todo = [i for i, fate in enumerate(fates) if fate is None]
        if not todo:
            return
        refs = self._log.append(
            [RecordIn(RECORD_KIND_OBJECT, (encode(objects[i].row), *objects[i].slices)) for i in todo]
        )
        stored = [
            Stored(objects[i].row, Location.of(ref, None), objects[i].unlike)
            for i, ref in zip(todo, refs, strict=True)
        ]
        progress = progress_batch(self._indexed_to) if self._indexed_to else None
        try:
            outcomes = self._indexer.add(stored, progress)
        except BaseException:
            # Durable, not indexed, not acknowledged: left for who catches up, which no later group may hide.
            self._log.start_anew()
            raise
        self._indexed_to = {ref.segment: ref.offset for ref in refs}
        for i, outcome in zip(todo, outcomes, strict=True):
            fates[i] = result_of(objects[i].row, outcome)

    def _held(self, objects: Sequence[Received]) -> dict[int, Fate]:
        """Those under whose UIDs something is held: the same bytes (served or kept beside), or undecided."""
        indexer = self._indexer
        known: list[tuple[int, list[InstanceRow]]] = []
        with indexer.store.snapshot() as snapshot:
            for i, received in enumerate(objects):
                held = indexer.held(snapshot, received.row)
                if held:
                    known.append((i, held))
        fates: dict[int, Fate] = {}
        for i, instances in known:
            received = objects[i]
            new = tuple(one for one in instances if one.location.record_id not in received.unlike)
            lengths = [len(piece) for piece in received.slices]
            # What lies in another tier is compared elsewhere: nobody in this group waits for a bucket.
            near = [one for one in new if self._log.is_near(one.location.segment)]
            if any(indexer.objects.holds(one, received.row, lengths, received.slices) for one in near):
                fates[i] = result_of(received.row, Outcome.DUPLICATE)
            elif new and not received.settled:
                fates[i] = Undecided(new)
        return fates


def result_of(row: ObjectRow, outcome: Outcome) -> StoreResult:
    """What the sender is told."""
    warnings = row.problems
    if outcome is Outcome.CONFLICT:
        warnings = (*warnings, FLAG_CONFLICT)
    elif outcome is Outcome.QUARANTINED:
        warnings = (*warnings, row.quarantine)
    if row.coerced is not None:
        warnings = (*warnings, COERCED)
    return StoreResult(outcome, row.sop_class_uid, row.sop_uid, row.study_uid, row.series_uid, warnings)
