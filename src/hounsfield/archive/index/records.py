"""Records of plugins: typed, sealed, found by keys that say nothing, changed in transactions, never lost.

A plugin declares *kinds* of records (:class:`Kind`): a struct, and the *keys* it is found by, which are a
pure function of it. Everything is changed in a transaction: a *plan*, a plain function of a :class:`Change`,
which reads, decides and puts. Transactions of an archive follow one another, whoever makes them: what a plan
read holds when its changes do, so a rule that is checked in a plan (no double booking) is kept under
contention.

Each transaction is one *fact* (:mod:`hounsfield.archive.index.journal`): in the sealed ledger and synced
before it is visible, replayed by ``reindex`` without the plugin, since it carries the keys as they were made.
What it *says* is told in the journal, in order.

On disk a record is a sealed row under its kind and id, and each key a keyed hash of what is looked for, with
an ordinal (a moment, say) that orders what has the same text and is not hidden: docs/threat-model.md.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import merge
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rows import Event, decode, encode
from hounsfield.archive.index.sealed import KeyedHash, RowSealer
from hounsfield.archive.index.tables import LOOKUP, RECORD
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot

__all__ = [
    "FACT_RECORDS",
    "ORDINAL_MAX",
    "Change",
    "Key",
    "Kind",
    "RecordError",
    "Records",
    "TakenError",
    "View",
]

FACT_RECORDS = "records"
ID_BYTES = 16
HASH_BYTES = 12
ORDINAL_MAX = (1 << 63) - 1
KEYS_MAX = 256
"""Of one record: the beginnings of the words of a few long names are some dozens."""
RECORD_BYTES_MAX = 4 << 20
"""Of one record: a message with an embedded document. More belongs into objects of the archive."""
RECORDS_MAX = 4096
"""Of one transaction, which is made while others wait; a merge of two patients with years of visits has
hundreds."""
SEALS_OF_PLAN = 1 << 12
_STAMP_BYTES = 32
"""Of a sealed row: its key's epoch, its nonce (12 random bytes), and the first bytes of what is sealed."""
_ORDINAL = struct.Struct(">Q")

T = TypeVar("T", bound=msgspec.Struct)
Result = TypeVar("Result")


class RecordError(ValueError):
    """A record or a transaction cannot be as it is: too long, too many, not of its kind."""

    retry = False


class TakenError(RecordError):
    """Another record has a key that only one may have. ``lookup`` names it."""

    def __init__(self, kind: str, lookup: str) -> None:
        super().__init__(f"another {kind} has this {lookup}")
        self.kind = kind
        self.lookup = lookup


class Key(NamedTuple):
    """One way by which a record is found: by ``text`` under ``lookup``, in the order of ``ordinal``.

    ``ordinal`` (0 to ``ORDINAL_MAX``: a moment, say) can be read by who has the disk, ``text`` cannot.
    """

    lookup: str
    text: str
    ordinal: int = 0
    unique: bool = False


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of records. ``type``: a msgspec struct; a later release adds fields with defaults only."""

    name: str
    type: type[T]
    keys: Callable[[T], Iterable[Key]]


class RecordRow(msgspec.Struct, array_like=True, frozen=True):
    """What is kept of a record."""

    body: bytes
    keys: tuple[tuple[str, str, int, bool], ...]
    version: int
    """How often it was put; for who changes what he read a while ago."""


class _Body(msgspec.Struct, array_like=True, frozen=True):
    """The beginning of a RecordRow: who only reads a record needs no keys."""

    body: bytes


class View:
    """The records of one plugin at one moment. Hold it for less than a second, and never across an await."""

    def __init__(self, plugin: str, snapshot: Snapshot, sealer: RowSealer, hashes: KeyedHash) -> None:
        self._plugin = plugin
        self._snapshot = snapshot
        self._sealer = sealer
        self._hashes = hashes

    def get(self, kind: Kind[T], record_id: str) -> T | None:
        """The record, None when there is none."""
        body = self._body(self._key(kind.name, record_id))
        return None if body is None else decode(kind.type, body)

    def version(self, kind: Kind[T], record_id: str) -> int:
        """How often the record was put; 0 when there is none."""
        row = self._row(self._key(kind.name, record_id))
        return 0 if row is None else row.version

    def stamp(self, kind: Kind[T], record_id: str) -> bytes | None:
        """Bytes that are the same only while nobody puts the record; None when there is none.

        For who remembers what a record was made into: a fifth of the time that reading it takes.
        """
        return self._stamp(self._key(kind.name, record_id))

    def ids(
        self,
        kind: Kind[T],
        lookup: str,
        text: str,
        *,
        at_least: int = 0,
        at_most: int = ORDINAL_MAX,
        reverse: bool = False,
        limit: int | None = None,
    ) -> list[str]:
        """Ids of the records that have a key with ``text``, by ordinal within the bounds, then by id."""
        prefix = self._prefix(kind.name, lookup, text)
        tails = self._tails(prefix, _ORDINAL.pack(at_least), _ORDINAL.pack(at_most), reverse)
        return [tail[_ORDINAL.size :].hex() for tail in islice(tails, limit)]

    def find(
        self,
        kind: Kind[T],
        lookup: str,
        text: str,
        *,
        at_least: int = 0,
        at_most: int = ORDINAL_MAX,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[str, T]]:
        """As :meth:`ids`, with the records."""
        for record_id in self.ids(
            kind, lookup, text, at_least=at_least, at_most=at_most, reverse=reverse, limit=limit
        ):
            found = self.get(kind, record_id)
            if found is not None:
                yield record_id, found

    def first(self, kind: Kind[T], lookup: str, text: str) -> tuple[str, T] | None:
        """The first that is found so; for keys that only one record has, the one."""
        return next(self.find(kind, lookup, text, limit=1), None)

    def every(self, kind: Kind[T], *, after: str = "", limit: int | None = None) -> Iterator[tuple[str, T]]:
        """All committed records of a kind by id, those after an id; for exports, not for lists of today."""
        prefix = self._kind(kind.name)
        start = prefix + bytes.fromhex(after) if after else None
        for key, sealed in self._snapshot.scan(RECORD, prefix=prefix, after=start, limit=limit):
            row = decode(RecordRow, self._sealer.open(RECORD, key, sealed))
            yield key[len(prefix) :].hex(), decode(kind.type, row.body)

    # ------------------------------------------------------------ what is kept

    def _kind(self, kind: str) -> bytes:
        return _kind_prefix(self._plugin, kind)

    def _key(self, kind: str, record_id: str) -> bytes:
        try:
            raw = bytes.fromhex(record_id)
        except ValueError:
            raw = b""
        if len(raw) != ID_BYTES:
            return self._kind(kind)  # no record has no id
        return self._kind(kind) + raw

    def _prefix(self, kind: str, lookup: str, text: str) -> bytes:
        return self._hashes.digest("record", f"{self._plugin}.{kind}\0{lookup}\0{text}", HASH_BYTES)

    def _row(self, key: bytes) -> RecordRow | None:
        sealed = self._snapshot.get(RECORD, key)
        return None if sealed is None else decode(RecordRow, self._sealer.open(RECORD, key, sealed))

    def _body(self, key: bytes) -> bytes | None:
        sealed = self._snapshot.get(RECORD, key)
        return None if sealed is None else decode(_Body, self._sealer.open(RECORD, key, sealed)).body

    def _stamp(self, key: bytes) -> bytes | None:
        sealed = self._snapshot.get(RECORD, key)
        return None if sealed is None else sealed[:_STAMP_BYTES]

    def _tails(self, prefix: bytes, low: bytes, high: bytes, reverse: bool) -> Iterator[bytes]:
        """What follows the hash in the lookup's keys, ordinals within the bounds, in order."""
        # A key is longer than its ordinal, so it comes after it.
        after = prefix + high + b"\xff" * (ID_BYTES + 1) if reverse else prefix + low
        for key, _ in self._snapshot.scan(LOOKUP, prefix=prefix, after=after, reverse=reverse):
            tail = key[HASH_BYTES:]
            if not low <= tail[: _ORDINAL.size] <= high:
                return
            yield tail


class _Changes:
    """Changed records, and the keys that they are found by now."""

    def __init__(self, hashes: KeyedHash) -> None:
        self._hashes = hashes
        self.rows: dict[bytes, RecordRow | None] = {}
        self._ids: set[bytes] = set()
        self._tails: dict[bytes, set[bytes]] = {}

    def set(self, key: bytes, row: RecordRow | None) -> None:
        for lookup in self._lookups(key, self.rows.get(key)):
            self._tails[lookup[:HASH_BYTES]].discard(lookup[HASH_BYTES:])
        self.rows[key] = row
        self._ids.add(key[-ID_BYTES:])
        for lookup in self._lookups(key, row):
            self._tails.setdefault(lookup[:HASH_BYTES], set()).add(lookup[HASH_BYTES:])

    def over(
        self, before: Iterator[bytes], prefix: bytes, low: bytes, high: bytes, *, reverse: bool
    ) -> Iterator[bytes]:
        """The keys ``before`` without those of changed records, and theirs among them."""
        if not self._ids:
            return before
        ids, start = self._ids, _ORDINAL.size
        kept = (tail for tail in before if tail[start:] not in ids)
        here = [tail for tail in self._tails.get(prefix, ()) if low <= tail[:start] <= high]
        return merge(kept, sorted(here, reverse=reverse), reverse=reverse) if here else kept

    def _lookups(self, key: bytes, row: RecordRow | None) -> list[bytes]:
        return [] if row is None else lookup_keys(self._hashes, key, row)


class Change(View):
    """What one transaction reads and changes. It reads its own changes, and those of earlier transactions."""

    def __init__(
        self,
        plugin: str,
        snapshot: Snapshot,
        sealer: RowSealer,
        hashes: KeyedHash,
        *,
        under: _Changes,
        now_ns: int,
    ) -> None:
        super().__init__(plugin, snapshot, sealer, hashes)
        self.now_ns = now_ns
        self.said: list[tuple[str, dict[str, Any]]] = []
        self._under = under
        self._own = _Changes(hashes)

    @property
    def rows(self) -> Mapping[bytes, RecordRow | None]:
        """What is changed so far."""
        return self._own.rows

    def new_id(self) -> str:
        """An id that no record has."""
        return os.urandom(ID_BYTES).hex()

    def put(self, kind: Kind[T], record_id: str, record: T) -> None:
        """Make ``record`` what is under an id. ``TakenError`` when another one has a unique key of it."""
        if type(record) is not kind.type:
            raise RecordError(f"a {type(record).__name__} is no {kind.name}")
        key = self._key(kind.name, record_id)
        body = encode(record)
        keys = tuple(dict.fromkeys(kind.keys(record)))
        if len(body) > RECORD_BYTES_MAX or len(keys) > KEYS_MAX:
            raise RecordError(
                f"a {kind.name} of {len(body)} bytes with {len(keys)} keys is more than is kept as a record "
                f"({RECORD_BYTES_MAX} bytes, {KEYS_MAX} keys)"
            )
        for each in keys:
            if each.unique:
                held = self.ids(kind, each.lookup, each.text, limit=2)
                if any(one != record_id for one in held):
                    raise TakenError(kind.name, each.lookup)
        before = self._row(key)
        version = 1 if before is None else before.version + 1
        self._set(key, RecordRow(body, tuple((k.lookup, k.text, k.ordinal, k.unique) for k in keys), version))

    def delete(self, kind: Kind[T], record_id: str) -> None:
        """Remove the record under an id, if there is one."""
        key = self._key(kind.name, record_id)
        if self._row(key) is not None:
            self._set(key, None)

    def say(self, event: str, body: Mapping[str, Any]) -> None:
        """Have the journal tell ``event`` of this plugin when the transaction commits."""
        self.said.append((f"{self._plugin}.{event}", dict(body)))

    def count(self, name: str) -> int:
        """The next number of a sequence without gaps: 1, 2, … in the order of commits."""
        found = self.first(_COUNTER, "name", name)
        record_id, reached = (self.new_id(), 0) if found is None else (found[0], found[1].reached)
        self.put(_COUNTER, record_id, Counter(name, reached + 1))
        return reached + 1

    def _set(self, key: bytes, row: RecordRow | None) -> None:
        if key not in self.rows and len(self.rows) >= RECORDS_MAX:
            raise RecordError(f"one transaction changes at most {RECORDS_MAX} records")
        self._own.set(key, row)

    def _row(self, key: bytes) -> RecordRow | None:
        for changes in (self._own, self._under):
            if key in changes.rows:
                return changes.rows[key]
        return super()._row(key)

    def _body(self, key: bytes) -> bytes | None:
        for changes in (self._own, self._under):
            if key in changes.rows:
                row = changes.rows[key]
                return None if row is None else row.body
        return super()._body(key)

    def _stamp(self, key: bytes) -> bytes | None:
        for changes in (self._own, self._under):
            if key in changes.rows:
                row = changes.rows[key]
                return None if row is None else row.version.to_bytes(8, "big") + row.body
        return super()._stamp(key)

    def _tails(self, prefix: bytes, low: bytes, high: bytes, reverse: bool) -> Iterator[bytes]:
        tails = super()._tails(prefix, low, high, reverse)
        for changes in (self._under, self._own):
            tails = changes.over(tails, prefix, low, high, reverse=reverse)
        return tails


class Counter(msgspec.Struct, frozen=True):
    """How far a sequence of numbers is."""

    name: str
    reached: int


_COUNTER = Kind("counter", Counter, lambda counter: [Key("name", counter.name)])


@lru_cache(maxsize=256)
def _kind_prefix(plugin: str, kind: str) -> bytes:
    return f"{plugin}.{kind}".encode() + b"\0"


def is_record_key(key: bytes) -> bool:
    """Whether a row of RECORD can stand there: ``PLUGIN.KIND``, a zero, an id."""
    return len(key) > ID_BYTES and key[-ID_BYTES - 1] == 0 and b"." in key[: -ID_BYTES - 1]


def lookup_keys(hashes: KeyedHash, key: bytes, row: RecordRow) -> list[bytes]:
    """The rows of LOOKUP that a record has."""
    kind, record_id = key[: -ID_BYTES - 1].decode(), key[-ID_BYTES:]
    return [
        hashes.digest("record", f"{kind}\0{lookup}\0{text}", HASH_BYTES) + _ORDINAL.pack(ordinal) + record_id
        for lookup, text, ordinal, _ in row.keys
    ]


class Planned(NamedTuple, Generic[Result]):
    """A transaction to be made: whose, and what it does. ``plan`` may be called several times."""

    plugin: str
    plan: Callable[[Change], Result]


class Records:
    """All plugins' records. Blocking; any number of threads and processes at once."""

    def __init__(self, store: KeyValueStore, journal: Journal, sealer: RowSealer, hashes: KeyedHash) -> None:
        self._store = store
        self._journal = journal
        self._sealer = sealer
        self._hashes = hashes
        journal.on_fact(FACT_RECORDS, self._apply, _told)

    def view(self, plugin: str, snapshot: Snapshot) -> View:
        """A plugin's records as of a snapshot."""
        return View(plugin, snapshot, self._sealer, self._hashes)

    def commit(self, planned: Sequence[Planned[Any]], now_ns: int) -> list[Any]:
        """Make transactions, in order, with one sync; for each what its plan returned, or the error raised.

        One that raises has changed nothing. Raises what the storage raises: then none has happened.
        """
        results: list[Any] = []

        def plan(snapshot: Snapshot, batch: Batch) -> list[Event]:
            results.clear()
            group = _Changes(self._hashes)
            facts: list[Event] = []
            for one in planned:
                change = Change(one.plugin, snapshot, self._sealer, self._hashes, under=group, now_ns=now_ns)
                try:
                    results.append(one.plan(change))
                except Exception as error:  # noqa: BLE001 - whoever asked is told; others go on
                    results.append(error)
                    continue
                if change.rows or change.said:
                    for key, row in change.rows.items():
                        group.set(key, row)
                    facts.append(_fact(change, now_ns))
            self._put(snapshot, batch, group.rows)
            return facts

        self._journal.commit_planned_facts(plan, seals=SEALS_OF_PLAN * len(planned), alone=True)
        return results

    def _put(self, snapshot: Snapshot, batch: Batch, rows: Mapping[bytes, RecordRow | None]) -> None:
        for key, row in rows.items():
            sealed = snapshot.get(RECORD, key)
            old: set[bytes] = set()
            if sealed is not None:
                old = set(
                    lookup_keys(self._hashes, key, decode(RecordRow, self._sealer.open(RECORD, key, sealed)))
                )
            new: set[bytes] = set()
            if row is None:
                batch.delete(RECORD, key)
            else:
                new = set(lookup_keys(self._hashes, key, row))
                batch.put(RECORD, key, self._sealer.seal(RECORD, key, encode(row)))
            for gone in old - new:
                batch.delete(LOOKUP, gone)
            for added in new - old:
                batch.put(LOOKUP, added, b"")

    def _apply(self, snapshot: Snapshot, batch: Batch, event: Event) -> None:
        """Replay a transaction."""
        rows = {
            bytes(key): None if row is None else msgspec.convert(row, RecordRow)
            for key, row in event.body["rows"]
        }
        self._put(snapshot, batch, rows)


def _fact(change: Change, now_ns: int) -> Event:
    rows = list(change.rows.items())
    seals = len(change.rows) + len(change.said)
    return Event(FACT_RECORDS, now_ns, {"rows": rows, "said": change.said, "seals": seals}, fact=True)


def _told(fact: Event) -> list[Event]:
    return [Event(kind, fact.at_ns, dict(body), fact=True) for kind, body in fact.body["said"]]
