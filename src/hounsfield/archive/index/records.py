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
TAILS_KNOWN_MAX = 8
"""Records that are found by one key, for a commit to remember them: a number has one, a day hundreds."""
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


_Lookups = Sequence[tuple[bytes, bytes]]
"""The rows of LOOKUP that a record has: the hash of what is looked for, and what follows it."""


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
        return [one.hex() for one in self._ids(prefix, at_least, at_most, reverse=reverse, limit=limit)]

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
        if len(raw) != ID_BYTES or raw.hex() != record_id:  # what names a record is kept: in one spelling
            return self._kind(kind)  # no record has no id
        return self._kind(kind) + raw

    def _prefix(self, kind: str, lookup: str, text: str) -> bytes:
        return self._hashes.digest_once("record", f"{self._plugin}.{kind}\0{lookup}\0{text}", HASH_BYTES)

    def _ids(
        self,
        prefix: bytes,
        at_least: int = 0,
        at_most: int = ORDINAL_MAX,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Sequence[bytes]:
        tails = self._tails(prefix, _ORDINAL.pack(at_least), _ORDINAL.pack(at_most), reverse)
        return [tail[_ORDINAL.size :] for tail in islice(tails, limit)]

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

    def __init__(self) -> None:
        self.rows: dict[bytes, RecordRow | None] = {}
        self.lookups: dict[bytes, _Lookups] = {}
        """Of each of ``rows``."""
        self._ids: set[bytes] = set()
        self._tails: dict[bytes, list[bytes]] = {}

    def set(self, key: bytes, row: RecordRow | None, lookups: _Lookups) -> None:
        tails = self._tails
        for prefix, tail in self.lookups.get(key, ()):
            tails[prefix].remove(tail)
        self.rows[key] = row
        self.lookups[key] = lookups
        self._ids.add(key[-ID_BYTES:])
        for prefix, tail in lookups:
            tails.setdefault(prefix, []).append(tail)

    def add(self, later: _Changes) -> None:
        """Take over what was changed after this."""
        for key, row in later.rows.items():
            self.set(key, row, later.lookups[key])

    def has(self, prefix: bytes) -> bool:
        """Whether a changed record is found so."""
        return bool(self._tails.get(prefix))

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


class _Known:
    """What one commit has read of what is committed, which stays as it is meanwhile: read once."""

    def __init__(self, snapshot: Snapshot, sealer: RowSealer) -> None:
        self._snapshot = snapshot
        self._sealer = sealer
        self._rows: dict[bytes, RecordRow | None] = {}
        self._tails: dict[bytes, list[bytes] | None] = {}

    def row(self, key: bytes) -> RecordRow | None:
        """A record, None when there is none."""
        try:
            return self._rows[key]
        except KeyError:
            sealed = self._snapshot.get(RECORD, key)
            row = None if sealed is None else decode(RecordRow, self._sealer.open(RECORD, key, sealed))
            if len(self._rows) < RECORDS_MAX:
                self._rows[key] = row
            return row

    def tails(self, prefix: bytes) -> list[bytes] | None:
        """All that follows a hash in the lookup's keys, in order; None when that is long."""
        try:
            return self._tails[prefix]
        except KeyError:
            scanned = self._snapshot.scan(LOOKUP, prefix=prefix, limit=TAILS_KNOWN_MAX + 1)
            tails = [key[HASH_BYTES:] for key, _ in scanned]
            known = self._tails[prefix] = tails if len(tails) <= TAILS_KNOWN_MAX else None
            return known


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
        known: _Known,
        now_ns: int,
    ) -> None:
        super().__init__(plugin, snapshot, sealer, hashes)
        self.now_ns = now_ns
        self.said: list[tuple[str, dict[str, Any]]] = []
        self._under = under
        self._known = known
        self.own = _Changes()

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
        before = self._row(key)
        row = RecordRow(body, keys, 1 if before is None else before.version + 1)
        lookups = _lookups(self._hashes, key, row)
        for each, (prefix, _) in zip(keys, lookups, strict=True):
            if each.unique and any(one != key[-ID_BYTES:] for one in self._ids(prefix, limit=2)):
                raise TakenError(kind.name, each.lookup)
        self._set(key, row, lookups)

    def delete(self, kind: Kind[T], record_id: str) -> None:
        """Remove the record under an id, if there is one."""
        key = self._key(kind.name, record_id)
        if self._row(key) is not None:
            self._set(key, None, ())

    def say(self, event: str, body: Mapping[str, Any]) -> None:
        """Have the journal tell ``event`` of this plugin when the transaction commits."""
        self.said.append((f"{self._plugin}.{event}", dict(body)))

    def count(self, name: str, by: int = 1) -> int:
        """The next number of a sequence without gaps: 1, 2, … in the order of commits. ``by``: so many are
        taken, of which it is the last."""
        found = self.first(_COUNTER, "name", name)
        record_id, reached = (self.new_id(), 0) if found is None else (found[0], found[1].reached)
        self.put(_COUNTER, record_id, Counter(name, reached + by))
        return reached + by

    def _set(self, key: bytes, row: RecordRow | None, lookups: _Lookups) -> None:
        rows = self.own.rows
        if key not in rows and len(rows) >= RECORDS_MAX:
            raise RecordError(f"one transaction changes at most {RECORDS_MAX} records")
        self.own.set(key, row, lookups)

    def _row(self, key: bytes) -> RecordRow | None:
        for changes in (self.own, self._under):
            if key in changes.rows:
                return changes.rows[key]
        return self._known.row(key)

    def _body(self, key: bytes) -> bytes | None:
        row = self._row(key)
        return None if row is None else row.body

    def _stamp(self, key: bytes) -> bytes | None:
        for changes in (self.own, self._under):
            if key in changes.rows:
                row = changes.rows[key]
                return None if row is None else row.version.to_bytes(8, "big") + row.body
        return super()._stamp(key)

    def _ids(
        self,
        prefix: bytes,
        at_least: int = 0,
        at_most: int = ORDINAL_MAX,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Sequence[bytes]:
        # Most of what a transaction looks for is not there: is it new?
        if self._known.tails(prefix) == [] and not self._under.has(prefix) and not self.own.has(prefix):
            return ()
        return super()._ids(prefix, at_least, at_most, reverse=reverse, limit=limit)

    def _tails(self, prefix: bytes, low: bytes, high: bytes, reverse: bool) -> Iterator[bytes]:
        known = self._known.tails(prefix)
        if known is None:
            tails = super()._tails(prefix, low, high, reverse)
        else:
            within = [tail for tail in known if low <= tail[: _ORDINAL.size] <= high]
            tails = reversed(within) if reverse else iter(within)
        for changes in (self._under, self.own):
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
    return [prefix + tail for prefix, tail in _lookups(hashes, key, row)]


def _lookups(hashes: KeyedHash, key: bytes, row: RecordRow) -> _Lookups:
    kind, record_id = key[: -ID_BYTES - 1].decode(), key[-ID_BYTES:]
    digest, ordinal_of = hashes.digest_once, _ORDINAL.pack
    return [
        (digest("record", f"{kind}\0{lookup}\0{text}", HASH_BYTES), ordinal_of(ordinal) + record_id)
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
        return self.commit_gathered(lambda: planned, lambda: now_ns, most=len(planned))

    def commit_gathered(
        self, gather: Callable[[], Sequence[Planned[Any]]], now_ns: Callable[[], int], *, most: int
    ) -> list[Any]:
        """As :meth:`commit`, of what ``gather`` returns once nobody else can commit.

        What is asked for while another process commits is so made together. ``gather`` may be called several
        times, each time for the same and perhaps more, at most ``most``; ``now_ns``, too.
        """
        results: list[Any] = []

        def plan(snapshot: Snapshot, batch: Batch) -> list[Event]:
            results.clear()
            group, known = _Changes(), _Known(snapshot, self._sealer)
            facts: list[Event] = []
            at_ns = now_ns()
            for one in gather():
                change = Change(
                    one.plugin, snapshot, self._sealer, self._hashes, under=group, known=known, now_ns=at_ns
                )
                try:
                    results.append(one.plan(change))
                except Exception as error:  # noqa: BLE001 - whoever asked is told; others go on
                    results.append(error)
                    continue
                if change.own.rows or change.said:
                    group.add(change.own)
                    facts.append(_fact(change, at_ns))
            self._put(batch, group, known)
            return facts

        self._journal.commit_planned_facts(plan, seals=SEALS_OF_PLAN * most, alone=True)
        return results

    def _put(self, batch: Batch, changes: _Changes, known: _Known) -> None:
        for key, row in changes.rows.items():
            before = known.row(key)
            old = set() if before is None else set(lookup_keys(self._hashes, key, before))
            if row is None:
                batch.delete(RECORD, key)
            else:
                batch.put(RECORD, key, self._sealer.seal(RECORD, key, encode(row)))
            new = {prefix + tail for prefix, tail in changes.lookups[key]}
            for gone in old - new:
                batch.delete(LOOKUP, gone)
            for added in new - old:
                batch.put(LOOKUP, added, b"")

    def _apply(self, snapshot: Snapshot, batch: Batch, event: Event) -> None:
        """Replay a transaction."""
        changes = _Changes()
        for key, held in event.body["rows"]:
            row = None if held is None else msgspec.convert(held, RecordRow)
            changes.set(bytes(key), row, () if row is None else _lookups(self._hashes, bytes(key), row))
        self._put(batch, changes, _Known(snapshot, self._sealer))


def _fact(change: Change, now_ns: int) -> Event:
    rows = list(change.own.rows.items())
    seals = len(rows) + len(change.said)
    return Event(FACT_RECORDS, now_ns, {"rows": rows, "said": change.said, "seals": seals}, fact=True)


def _told(fact: Event) -> list[Event]:
    return [Event(kind, fact.at_ns, dict(body), fact=True) for kind, body in fact.body["said"]]
