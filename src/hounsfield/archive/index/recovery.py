"""The logs are the archive, the index is a view of them: catching up after a crash, and building it anew.

*Catching up* replays the tail of every segment that was not closed in order: records that are durable
but, because their worker died, not indexed. *Reindexing* fills an empty index from all segments and the
ledger. Both go the way of every other record (:class:`~hounsfield.archive.index.indexing.Indexer`),
so doing either twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from hounsfield.archive.index.catalog import Stored
from hounsfield.archive.index.indexing import Indexer, Outcome, progress_batch
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rows import (
    RECORD_KIND_OBJECT,
    Location,
    ObjectRow,
    SegmentRow,
    decode,
)
from hounsfield.archive.index.tables import SEGMENT
from hounsfield.storage_backends.errors import KeyringError, SealError
from hounsfield.storage_backends.segments import Damage, DamageReason

TORN = DamageReason.TORN_TAIL.value
GROUP_RECORDS = (
    256  # indexed in one transaction: large enough to share its sync, small enough to hold no lock long
)


@dataclass(slots=True)
class RecoveryReport:
    """What a recovery found. ``damage`` counts stretches by reason; a torn tail was never acknowledged."""

    segments: int = 0
    records: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    facts: int = 0
    damage: dict[str, int] = field(default_factory=dict)
    unreadable_segments: int = 0

    def saw(self, damage: Damage) -> None:
        self.damage[damage.reason.value] = self.damage.get(damage.reason.value, 0) + 1

    @property
    def damaged(self) -> int:
        """Stretches that are damage, not just an append that a crash cut short."""
        return sum(n for reason, n in self.damage.items() if reason != TORN)


def catch_up(
    indexer: Indexer, journal: Journal, is_being_written: Callable[[bytes], bool], *, at_start: bool
) -> RecoveryReport:
    """Index what dead workers made durable and did not index; then mark their segments closed.

    Segments that a live worker writes to (``is_being_written``) are left alone. The ledger is replayed only
    ``at_start``, while nobody else commits: a fact in it may be in the middle of its commit.
    """
    report = RecoveryReport()
    with indexer.store.snapshot() as snapshot:
        known = {key: decode(SegmentRow, value) for key, value in snapshot.scan(SEGMENT)}
    for segment in indexer.log.segment_ids():
        row = known.get(segment)
        if (row is not None and row.closed) or is_being_written(segment):
            continue
        if not at_start and not indexer.log.size(segment):
            continue  # just created, and its writer may be about to lock it
        report.segments += 1
        try:
            end = _index_segment(indexer, segment, row.indexed_to if row else None, report, verify=True)
        except KeyringError:
            report.unreadable_segments += 1  # stays open: it is looked at again when its key is back
            continue
        indexer.store.commit(progress_batch({segment: end}, closed=True))
    if at_start:
        report.facts = journal.replay(report.saw)
    return report


def reindex(indexer: Indexer, journal: Journal, progress: Callable[[int, int], None]) -> RecoveryReport:
    """Fill an empty index from every segment, then every fact. ``progress(done, segments)``."""
    report = RecoveryReport()
    segments = indexer.log.segment_ids()
    for done, segment in enumerate(segments):
        progress(done, len(segments))
        report.segments += 1
        try:
            end = _index_segment(indexer, segment, None, report, verify=False)
        except KeyringError:
            report.unreadable_segments += 1
            continue
        indexer.store.commit(progress_batch({segment: end}, closed=True))
    report.facts = journal.replay(report.saw)
    progress(len(segments), len(segments))
    return report


def _index_segment(
    indexer: Indexer, segment: bytes, start: int | None, report: RecoveryReport, *, verify: bool
) -> int:
    """Index the records of one segment from ``start``; return how far it was read.

    ``verify`` opens every part first: after a power cut a record's row can be whole and its frames holes.
    """
    end = indexer.log.size(segment)
    for group in _groups(_stored(indexer, segment, start, report, verify=verify)):
        for outcome in indexer.add(group, uses_reserve=True):
            report.outcomes[outcome] += 1
    return end


def _stored(
    indexer: Indexer, segment: bytes, start: int | None, report: RecoveryReport, *, verify: bool
) -> Iterator[Stored]:
    for record in indexer.log.scan(segment, start=start):
        if isinstance(record, Damage):
            report.saw(record)
        elif record.kind == RECORD_KIND_OBJECT:
            report.records += 1
            try:
                if verify:
                    indexer.log.verify(record.ref)
                row = decode(ObjectRow, record.row)
            except SealError:
                report.damage[TORN] = report.damage.get(TORN, 0) + 1
                continue
            except msgspec.MsgspecError:
                report.damage["row is not ours"] = report.damage.get("row is not ours", 0) + 1
                continue
            yield Stored(row, Location.of(record.ref, row.stream))


def _groups(stored: Iterator[Stored]) -> Iterator[list[Stored]]:
    """Groups in which no two objects share all their UIDs: the second must see the first."""
    group: list[Stored] = []
    keys: set[tuple[str, str, str]] = set()
    for one in stored:
        key = (one.row.study_uid, one.row.series_uid, one.row.sop_uid)
        if len(group) == GROUP_RECORDS or (key in keys and not one.row.quarantine):
            yield group
            group, keys = [], set()
        group.append(one)
        keys.add(key)
    if group:
        yield group
