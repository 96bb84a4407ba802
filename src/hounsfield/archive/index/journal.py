"""The journal: an ordered, durable log of what happened, and the ledger of what only it knows.

Every change appends its events in the commit that makes the change. Consumers read with a cursor of
their own, at least once, in commit order. An event that carries a *fact* (what no stored object can
reproduce: a registered AE, later a correction, a deletion, a report) is also written to a sealed
ledger file and synced inside the commit, before it becomes visible; ``reindex`` replays those.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hounsfield.archive.index.rows import RECORD_KIND_FACT, RECORD_KIND_FACT_FAILED, Event, decode, encode
from hounsfield.archive.index.sealed import KeyedHash, RowSealer
from hounsfield.archive.index.tables import JOURNAL, META, STATE
from hounsfield.storage_backends.api import Batch, CommitResult, KeyValueStore, Snapshot
from hounsfield.storage_backends.errors import PreconditionError
from hounsfield.storage_backends.segments import Damage, RecordIn, RecordRef, SegmentLog

STATE_KEY_BYTES = 12
COMMIT_ATTEMPTS_MAX = 1000  # bounded only so that a bug cannot spin for ever; contention resolves in a few

_SEQUENCE = struct.Struct(">Q")
_CURSOR = b"cursor/"
_FACTS = b"facts"


class Journal:
    """Appends, reads and cursors; and facts, with the state they leave."""

    def __init__(
        self, store: KeyValueStore, sealer: RowSealer, hashes: KeyedHash, ledger: SegmentLog
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._hashes = hashes
        self._ledger = ledger

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

    def facts(self, snapshot: Snapshot) -> int:
        """The number of the last fact; facts are numbered by themselves, so a reindex keeps their order."""
        held = snapshot.get(META, _FACTS)
        return 0 if held is None else int(_SEQUENCE.unpack(held)[0])

    def commit_fact(self, kind: str, name: str, body: dict[str, Any] | None, at_ns: int) -> int:
        """Make ``body`` the state of (kind, name), or with None remove it; return the fact's number.

        Durable in the ledger before it is visible.
        """
        self._sealer.prepare(8)
        event = Event(kind, at_ns, {"name": name, "body": body}, fact=True)
        for _ in range(COMMIT_ATTEMPTS_MAX):
            with self._store.snapshot() as snapshot:
                number = self.facts(snapshot) + 1
            entry = _SEQUENCE.pack(number) + encode(event)
            written: list[RecordRef] = []

            def write_ledger(
                _: CommitResult, entry: bytes = entry, written: list[RecordRef] = written
            ) -> None:
                written += self._ledger.append([RecordIn(RECORD_KIND_FACT, (entry,))])

            batch = self._fact_batch(number, event)
            batch.before_commit.append(write_ledger)
            try:
                self._store.commit(batch)
            except PreconditionError:
                continue
            except Exception:
                # The caller is told that it did not happen: no replay may make it happen.
                for ref in written:
                    self._ledger.append([RecordIn(RECORD_KIND_FACT_FAILED, (ref.record_id,))])
                raise
            return number
        raise RuntimeError("a fact found no place between other commits; this is a defect")

    def replay(self, damaged: Callable[[Damage], None]) -> int:
        """Apply the facts that the ledger has and the index has not, in their order; return how many."""
        with self._store.snapshot() as snapshot:
            known = self.facts(snapshot)
        applied = 0
        for number, event in self.ledger(damaged):
            if number > known:
                self._sealer.prepare(8)
                self._store.commit(self._fact_batch(number, event, replayed=True))
                applied += 1
        return applied

    def _fact_batch(self, number: int, event: Event, *, replayed: bool = False) -> Batch:
        batch = Batch()
        if not replayed:
            batch.require(META, _FACTS, _SEQUENCE.pack(number - 1) if number > 1 else None)
        batch.put(META, _FACTS, _SEQUENCE.pack(number))
        self.apply_fact(batch, event)
        self.append(batch, event)
        return batch

    def apply_fact(self, batch: Batch, event: Event) -> None:
        """The change of state that a fact stands for; used when it happens and when it is replayed."""
        name, body = event.body["name"], event.body["body"]
        key = self.state_key(event.kind, name)
        if body is None:
            batch.delete(STATE, key)
        else:
            row = encode(Event(event.kind, event.at_ns, body))
            batch.put(STATE, key, self._sealer.seal(STATE, key, row))

    def ledger(self, damaged: Callable[[Damage], None]) -> list[tuple[int, Event]]:
        """Every fact in the ledger, in the order they were committed."""
        facts: list[tuple[int, Event, bytes]] = []
        failed: set[bytes] = set()
        for segment in self._ledger.segment_ids():
            for record in self._ledger.scan(segment):
                if isinstance(record, Damage):
                    damaged(record)
                    continue
                if record.kind == RECORD_KIND_FACT_FAILED:
                    failed.add(record.row)
                    continue
                sequence = int(_SEQUENCE.unpack_from(record.row)[0])
                event = decode(Event, record.row[_SEQUENCE.size :])
                facts.append((sequence, event, record.ref.record_id))
        # Two of one number: the first was written by a process that died before its commit.
        facts.sort(key=lambda fact: (fact[0], fact[1].at_ns))
        return [(number, event) for number, event, record_id in facts if record_id not in failed]
