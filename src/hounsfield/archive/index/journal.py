"""The journal: an ordered, durable log of what happened, and the ledger of what only it knows.

Every change appends its events in the commit that makes the change. Consumers read with a cursor of
their own, at least once, in commit order. An event that carries a *fact* (what no stored object can
reproduce: a registered AE, later a correction, a deletion, a report) is also written to a sealed
ledger file and synced inside the commit, before it becomes visible; ``reindex`` replays those.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from msgspec import structs

from hounsfield.archive.index.rows import RECORD_KIND_FACT, RECORD_KIND_FACT_FAILED, Event, decode, encode
from hounsfield.archive.index.sealed import KeyedHash, RowSealer
from hounsfield.archive.index.tables import JOURNAL, META, STATE
from hounsfield.storage_backends.api import Batch, CommitResult, KeyValueStore, Snapshot
from hounsfield.storage_backends.errors import PreconditionError, SealError
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_format import RecordRef
from hounsfield.storage_backends.segment_scan import Damage, DamageReason, ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog

STATE_KEY_BYTES = 12
COMMIT_ATTEMPTS_MAX = 1000  # bounded only so that a bug cannot spin for ever; contention resolves in a few
ATTEMPTS_BESIDE_OTHERS = 3  # then a plan is made under the store's lock: a busy study would change for ever
FACT_SEALS = 64  # rows that a small fact may touch: states, a study's rows, the event
FACT_PART_BYTES = 1 << 20  # of a fact in one part of its record; a deletion names 65,000 records in one
RECORD_ID_BYTES = 16

_SEQUENCE = struct.Struct(">Q")
_CURSOR = b"cursor/"
_FACTS = b"facts"
_REPLAYED = b"ledger/"  # and a segment's id: what it holds is in the index

Apply: TypeAlias = Callable[[Snapshot, Batch, Event], None]
Change: TypeAlias = Callable[[Snapshot, Batch], None]
PlanFact: TypeAlias = Callable[[Snapshot, Batch], Event]
PlanFacts: TypeAlias = Callable[[Snapshot, Batch], Sequence[Event]]
Told: TypeAlias = Callable[[Event], Iterable[Event]]


class Pending(NamedTuple):
    """What is to be replayed: facts with their numbers and records, and the ledger's segments they are in."""

    facts: list[tuple[int, Event, bytes]]
    segments: list[bytes]


class Journal:
    """Appends, reads and cursors; and facts, with the state they leave."""

    def __init__(
        self, store: KeyValueStore, sealer: RowSealer, hashes: KeyedHash, ledger: SegmentLog
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._hashes = hashes
        self._ledger = ledger
        self._appliers: dict[str, Apply] = {}
        self._told: dict[str, Told] = {}

    # ------------------------------------------------------------ events

    def append(self, batch: Batch, event: Event) -> None:
        """Have ``batch`` append ``event`` when it commits."""

        def sealed(sequence: int) -> bytes:
            return self._sealer.seal(JOURNAL, _SEQUENCE.pack(sequence), encode(event))

        batch.append(JOURNAL, sealed)

    def read(self, snapshot: Snapshot, after: int, limit: int) -> list[tuple[int, Event]]:
        """At most ``limit`` events that follow sequence ``after``, oldest first."""
        events = []
        for key, sealed in snapshot.scan(JOURNAL, after=_SEQUENCE.pack(after), limit=limit):
            events.append((_SEQUENCE.unpack(key)[0], decode(Event, self._sealer.open(JOURNAL, key, sealed))))
        return events

    def read_back(self, snapshot: Snapshot, before: int | None, limit: int) -> list[tuple[int, Event]]:
        """At most ``limit`` events that come before a sequence (None: the last ones), newest first."""
        after = None if before is None else _SEQUENCE.pack(before)
        return [
            (_SEQUENCE.unpack(key)[0], decode(Event, self._sealer.open(JOURNAL, key, sealed)))
            for key, sealed in snapshot.scan(JOURNAL, after=after, reverse=True, limit=limit)
        ]

    def commit_events(self, events: Iterable[Event]) -> None:
        """Append events that nothing else is committed with. They are no facts: a reindex forgets them."""
        batch = Batch()
        for event in events:
            self.append(batch, event)
        self._sealer.prepare(len(batch.appends))
        self._store.commit(batch)

    def cursor(self, snapshot: Snapshot, consumer: str) -> int:
        """The last sequence a consumer is done with; 0 before its first."""
        held = snapshot.get(META, _CURSOR + consumer.encode())
        return 0 if held is None else int(_SEQUENCE.unpack(held)[0])

    def move_cursor(self, batch: Batch, consumer: str, sequence: int) -> None:
        """Have ``batch`` move a consumer's cursor, together with whatever the consumer did."""
        batch.put(META, _CURSOR + consumer.encode(), _SEQUENCE.pack(sequence))

    # ------------------------------------------------------------ facts

    def state_key(self, kind: str, name: str) -> bytes:
        return kind.encode() + b"\0" + self._hashes.digest(f"state-{kind}", name, STATE_KEY_BYTES)

    def state(self, snapshot: Snapshot, kind: str) -> Iterator[Mapping[str, Any]]:
        """What the facts of one kind amount to now."""
        for key, sealed in snapshot.scan(STATE, prefix=kind.encode() + b"\0"):
            yield decode(Event, self._sealer.open(STATE, key, sealed)).body

    def state_of(self, snapshot: Snapshot, kind: str, name: str) -> Mapping[str, Any] | None:
        """What the facts of one kind and name amount to now, None when that is nothing."""
        key = self.state_key(kind, name)
        sealed = snapshot.get(STATE, key)
        return None if sealed is None else decode(Event, self._sealer.open(STATE, key, sealed)).body

    def facts(self, snapshot: Snapshot) -> int:
        """The number of the last fact; facts are numbered by themselves, so a reindex keeps their order."""
        held = snapshot.get(META, _FACTS)
        return _last_fact(held)[0]

    def on_fact(self, kind: str, apply: Apply, told: Told | None = None) -> None:
        """Let ``apply`` do what facts of ``kind`` change, in place of keeping a state of (kind, name).

        Called when such a fact is committed (unless its caller plans the change) and when it is replayed,
        with the index as the facts before it left it. ``told``: what the journal says of such a fact, where
        that is not the fact itself.
        """
        self._appliers[kind] = apply
        if told is not None:
            self._told[kind] = told

    def commit_fact(
        self,
        kind: str,
        name: str,
        body: dict[str, Any] | None,
        at_ns: int,
        *,
        change: Change | None = None,
        seals: int = 0,
    ) -> int:
        """Make ``body`` the state of (kind, name), or with None remove it; return the fact's number.

        Durable in the ledger before it is visible. ``change``: what the same commit changes in place of that;
        see :meth:`commit_planned_fact`.
        """
        event = Event(kind, at_ns, {"name": name, "body": body}, fact=True)

        def plan(snapshot: Snapshot, batch: Batch) -> Event:
            if change is None:
                self.apply_fact(snapshot, batch, event)
            else:
                change(snapshot, batch)
            batch.uses_reserve |= body is None  # what is done with: on a full disk it would be done again
            return event

        return self.commit_planned_fact(plan, seals=seals)[0]

    def commit_planned_fact(self, plan: PlanFact, *, seals: int = 0) -> tuple[int, Event]:
        """Commit a fact together with what it changes: all of it, or nothing; its number, and the fact.

        See :meth:`commit_planned_facts`, of which this is the one for a single fact.
        """
        (made,) = self.commit_planned_facts(lambda snapshot, batch: [plan(snapshot, batch)], seals=seals)
        return made

    def commit_planned_facts(
        self, plan: PlanFacts, *, seals: int = 0, alone: bool = False
    ) -> list[tuple[int, Event]]:
        """Commit facts together with what they change: all of it, or nothing; their numbers, and the facts.

        ``plan(snapshot, batch)`` puts the change into the batch, with preconditions on the rows that it
        rests on, and returns the facts, none where there is nothing to commit; or it raises, and nothing has
        happened. Facts follow one another: none comes between what a plan reads of their states and its
        commit, so a check made in it (is this on hold?) holds when the fact does. It may be called several
        times, at last (``alone``: at once) under the store's lock: it must be quick and commit nothing.
        ``seals``: how many rows it may seal beyond a few thousand.
        """
        self._sealer.prepare(FACT_SEALS + seals)
        for attempt in range(COMMIT_ATTEMPTS_MAX):
            written: list[RecordRef] = []
            made: list[tuple[int, Event]] = []

            def planned(
                snapshot: Snapshot,
                written: list[RecordRef] = written,
                made: list[tuple[int, Event]] = made,
            ) -> list[Batch]:
                made[:] = []
                batch = self._planned(snapshot, plan, written, made)
                return [batch] if made else []

            try:
                if attempt < ATTEMPTS_BESIDE_OTHERS and not alone:
                    with self._store.snapshot() as snapshot:
                        batches = planned(snapshot)
                    for batch in batches:
                        self._store.commit(batch)
                else:
                    for result in self._store.commit_planned(planned):
                        if isinstance(result, Exception):
                            raise result
            except Exception as error:
                # Whoever asked is told that it did not happen, or tries again: no replay may make it happen.
                failed = [RecordIn(RECORD_KIND_FACT_FAILED, (ref.record_id,)) for ref in written]
                if failed:
                    self._ledger.append(failed, uses_reserve=True)
                if isinstance(error, PreconditionError):
                    continue
                raise
            return made
        raise RuntimeError("a fact found no place between other commits; this is a defect")

    def _planned(
        self, snapshot: Snapshot, plan: PlanFacts, written: list[RecordRef], made: list[tuple[int, Event]]
    ) -> Batch:
        held = snapshot.get(META, _FACTS)
        number, previous = _last_fact(held)
        batch = Batch()
        records: list[RecordIn] = []
        for event in plan(snapshot, batch):
            number += 1
            record_id = os.urandom(RECORD_ID_BYTES)
            entry = _SEQUENCE.pack(number) + encode(structs.replace(event, follows=previous))
            records.append(RecordIn(RECORD_KIND_FACT, _parts(entry), record_id))
            made.append((number, event))
            self._tell(batch, event)
            previous = record_id

        def write_ledger(_: CommitResult) -> None:
            written.extend(self._ledger.append(records, uses_reserve=batch.uses_reserve))

        batch.require(META, _FACTS, held)
        batch.put(META, _FACTS, _SEQUENCE.pack(number) + previous)
        batch.before_commit.append(write_ledger)
        return batch

    def _tell(self, batch: Batch, event: Event) -> None:
        told = self._told.get(event.kind)
        for one in (event,) if told is None else told(event):
            self.append(batch, one)

    def pending(self, damaged: Callable[[Damage], None]) -> Pending:
        """The facts that the ledger has and the index has not.

        While nobody else commits: a fact in the ledger may be in the middle of its commit.
        """
        with self._store.snapshot() as snapshot:
            known = self.facts(snapshot)
            done = {key[len(_REPLAYED) :] for key, _ in snapshot.scan(META, prefix=_REPLAYED)}
        segments = [segment for segment in self._ledger.segment_ids() if segment not in done]
        facts = [fact for fact in self.ledger(damaged, segments) if fact[0] > known]
        return Pending(facts, segments)

    def replay(self, pending: Pending) -> int:
        """Apply pending facts, in their order; return how many. Nobody else may commit.

        Afterwards their segments are done with: nobody appends to them any more, and the next start leaves
        them out.
        """
        for number, event, record_id in pending.facts:
            self._sealer.prepare(FACT_SEALS + int(event.body.get("seals", 0)))
            batch = Batch(uses_reserve=True)  # without it an archive on a full disk could not start
            batch.put(META, _FACTS, _SEQUENCE.pack(number) + record_id)
            with self._store.snapshot() as snapshot:
                self.apply_fact(snapshot, batch, event)
            self._tell(batch, event)
            self._store.commit(batch)
        if pending.segments:
            batch = Batch(uses_reserve=True)
            for segment in pending.segments:
                batch.put(META, _REPLAYED + segment, b"")
            self._store.commit(batch)
        return len(pending.facts)

    def apply_fact(self, snapshot: Snapshot, batch: Batch, event: Event) -> None:
        """Have ``batch`` change what a fact stands for; used when it happens and when it is replayed."""
        apply = self._appliers.get(event.kind)
        if apply is None:
            self.put_state(batch, event)
        else:
            apply(snapshot, batch, event)

    def put_state(self, batch: Batch, event: Event) -> None:
        """Have ``batch`` make the fact's body the state of its kind and name; None: there is none."""
        name, body = event.body["name"], event.body["body"]
        key = self.state_key(event.kind, name)
        if body is None:
            batch.delete(STATE, key)
        else:
            row = encode(Event(event.kind, event.at_ns, body))
            batch.put(STATE, key, self._sealer.seal(STATE, key, row))

    def ledger(
        self, damaged: Callable[[Damage], None], segments: Iterable[bytes] | None = None
    ) -> list[tuple[int, Event, bytes]]:
        """Every committed fact in the ledger (or in some segments of it, no later fact being in others) with
        its number and record, in the order they were committed."""
        facts: list[tuple[int, Event, bytes]] = []
        failed: set[bytes] = set()
        for segment in self._ledger.segment_ids() if segments is None else segments:
            self._ledger.make_durable(segment)  # its writer may have died before its sync
            for record in self._ledger.scan(segment):
                if isinstance(record, Damage):
                    damaged(record)
                    continue
                if record.kind == RECORD_KIND_FACT_FAILED:
                    failed.add(record.row)
                    continue
                sequence = int(_SEQUENCE.unpack_from(record.row)[0])
                try:
                    event = decode(Event, self._whole(record)[_SEQUENCE.size :])
                except SealError:
                    damaged(Damage(record.ref.offset, record.ref.length, DamageReason.ROW))
                    continue
                facts.append((sequence, event, record.ref.record_id))
        facts.sort(key=lambda fact: (fact[0], fact[1].at_ns))
        return _committed([fact for fact in facts if fact[2] not in failed])

    def _whole(self, record: ScannedRecord) -> bytes:
        rest = (self._ledger.open_part(part) for part in islice(record.ref.parts(), 1, None))
        return b"".join((record.row, *rest))


def _last_fact(held: bytes | None) -> tuple[int, bytes]:
    """Number and ledger record of the last fact; no record where an earlier release wrote it."""
    if held is None:
        return 0, b""
    return int(_SEQUENCE.unpack_from(held)[0]), held[_SEQUENCE.size :]


def _parts(entry: bytes) -> tuple[bytes, ...]:
    return tuple(entry[start : start + FACT_PART_BYTES] for start in range(0, len(entry), FACT_PART_BYTES))


def _committed(facts: list[tuple[int, Event, bytes]]) -> list[tuple[int, Event, bytes]]:
    """``facts``, in order, without those that share their number with another that was committed.

    A process that dies between ledger and commit leaves a fact whose number another process then
    uses. The next fact names the one it follows; of the last number it is the newest: the dead came first.
    """
    last = facts[-1] if facts else None
    followed = {number - 1: event.follows for number, event, _ in facts if event.follows}
    known = {record_id for _, _, record_id in facts}
    kept: list[tuple[int, Event, bytes]] = []
    for fact in facts:
        number, _, record_id = fact
        expected = last[2] if last is not None and number == last[0] else followed.get(number)
        if expected is None or expected not in known or record_id == expected:
            kept.append(fact)
    return kept
