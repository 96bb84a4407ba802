"""Where prepared metadata is kept: a sealed cache of its own beside the index, dropped without loss.

::

    head      series key (20)                    HeadRow: what it was made of, and its pieces in order
    members   piece id (12)                      which records a piece describes, and how long each text is
    body      piece id (12) | part (4)           a piece's compressed text, in rows of PART_BYTES
    built     made at, ns (8) | series key (20)  bytes (8): what is dropped first when there is too much
    dropped   due, ns (8) | piece id (12)        pieces that no head names, until nobody reads them
    meta      epochs of the sealing keys, bytes in use, where clients last said that this archive is

Values are sealed like index rows, with keys of their own; keys are the index's keyed hashes, and random.
Blocking; any number of threads and processes. Whatever does not open counts as not there.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from hounsfield.archive.engine.gzip_pieces import PackedPiece
from hounsfield.archive.index.sealed import Keys, RowSealer
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot, Table
from hounsfield.storage_backends.errors import KeyringError, SealError, StorageError
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore

__all__ = [
    "TABLES",
    "HeadRow",
    "MadePiece",
    "MemberRow",
    "PieceRow",
    "PreparedLimits",
    "PreparedStore",
    "new_piece",
    "open_cache",
]

HEAD = Table("head")
MEMBERS = Table("members")
BODY = Table("body")
BUILT = Table("built")
DROPPED = Table("dropped")
TABLES = (HEAD, MEMBERS, BODY, BUILT, DROPPED, META)

PURPOSE = "derived"  # of the sealing keys
PART_BYTES = 256 << 10
"""One row of a body: larger values need as many free pages in a row, which an old file no longer has."""
DROPS_PER_COMMIT = 256
"""Dropped pieces that one commit removes: bounds how long it holds the write lock."""
EVICTIONS_PER_COMMIT = 256
MAP_BYTES_SPARE = 64 << 20  # for the tree itself
_BYTES_USED = b"bytes"
_LINKS = b"links"
_NS = 1_000_000_000
_AHEAD_NS = 3600 * _NS
_TIME = struct.Struct(">Q")
_PART = struct.Struct(">L")
_ROW_OVERHEAD = 64  # key, seal and page slack of one row, about


@dataclass(frozen=True, slots=True)
class PreparedLimits:
    """What prepared metadata may use, and how it is cut."""

    bytes_max: int = 4 << 30
    """Of the whole cache; the oldest goes first. A CT slice takes a few hundred bytes, so 4 GiB hold ten
    million of them."""

    quiet_s: float = 10.0
    """A study to which nothing was added for so long is prepared: longer than a scanner pauses between
    slices, shorter than it takes a radiologist to open what was just scanned."""

    piece_instances_max: int = 128
    """Instances in one piece: what is compressed again when one of them changes; 15 ms of a thread."""

    piece_header_bytes_max: int = 2 << 20
    """Header bytes that one piece is made of, unless one instance has more."""

    whole_bytes_max: int = 8 << 20
    """Answers up to this are read in one go and sent with their length: forty thousand CT slices. Longer
    ones are read as they are sent."""

    held_bytes_max: int = 8 << 20
    """Compressed pieces of one series that is being built held in memory; from there on they are stored at
    once and read back."""

    unstored_bytes_max: int = 64 << 20
    """The same when there is no room to store them. A series that is larger then cannot be described until
    there is: 503."""

    grace_s: float = 120.0
    """Pieces that were replaced stay so long for those who are still reading them."""

    builds_max: int = 2
    """Series built at the same time in one worker: one that waits for the disk, one that computes."""

    heavy_header_bytes: int = 4 << 20
    """An object with a longer header is described in the heavy lane, one at a time."""

    level: int = 4
    """Of compression: half the bytes of level 1 for a twentieth of the time that encoding takes."""


class PieceRow(msgspec.Struct, array_like=True, frozen=True):
    """One piece of a head: where its body is, and what gzip must know of it."""

    piece_id: bytes
    instances: int
    length: int
    crc_first: int
    crc_between: int
    body_bytes: int


class HeadRow(msgspec.Struct, array_like=True, frozen=True):
    """One series as prepared.

    ``stamp`` is what the series was, ``encoding`` the release's way of encoding, ``links`` what stands before
    the ``/studies/…`` of each link. ``corrections``: the generation of corrections; in another one no text
    is taken over.
    """

    stamp: bytes
    encoding: int
    links: str
    corrections: bytes
    built_ns: int
    pieces: tuple[PieceRow, ...]

    @property
    def body_bytes(self) -> int:
        return sum(piece.body_bytes for piece in self.pieces)

    @property
    def cost(self) -> int:
        """Bytes it takes up in the store, about."""
        return sum(piece.body_bytes + 24 * piece.instances + 3 * _ROW_OVERHEAD for piece in self.pieces)


class MemberRow(msgspec.Struct, array_like=True, frozen=True):
    """One instance of a piece: its record, and the length of its text."""

    record_id: bytes
    length: int


@dataclass(frozen=True, slots=True)
class MadePiece:
    """A piece that was just made, or kept. ``packed`` is None when only the store has its body."""

    row: PieceRow
    members: tuple[MemberRow, ...]
    packed: PackedPiece | None


def new_piece(packed: PackedPiece, members: Sequence[MemberRow]) -> MadePiece:
    """A piece with an id of its own."""
    row = PieceRow(
        os.urandom(12), len(members), packed.length, packed.crc_first, packed.crc_between, len(packed.body)
    )
    return MadePiece(row, tuple(members), packed)


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(HeadRow).decode
_decode_members = msgspec.msgpack.Decoder(tuple[MemberRow, ...]).decode


class PreparedStore:
    """The cache. ``store`` must have been opened with :data:`TABLES`; it stays the caller's to close."""

    def __init__(self, store: KeyValueStore, keys: Keys, limits: PreparedLimits) -> None:
        self._store = store
        self._sealer = RowSealer(store, keys, purpose=PURPOSE)
        self._limits = limits

    # ------------------------------------------------------------ reading

    def heads(self, keys: Sequence[bytes]) -> list[HeadRow | None]:
        """What is kept for each series."""
        with self._store.snapshot() as snapshot:
            return [self._head(snapshot, key) for key in keys]

    def _head(self, snapshot: Snapshot, key: bytes) -> HeadRow | None:
        opened = self._open(snapshot, HEAD, key)
        if opened is None:
            return None
        try:
            return _decode_head(opened)
        except msgspec.MsgspecError:
            return None

    def keys_of(self, prefix: bytes) -> list[bytes]:
        """Keys of the series that are kept and begin with ``prefix`` (a study's id)."""
        with self._store.snapshot() as snapshot:
            return [key for key, _ in snapshot.scan(HEAD, prefix=prefix)]

    def bodies(self, pieces: Sequence[PieceRow]) -> list[bytes] | None:
        """The bodies of pieces, all of one moment; None when one of them is gone."""
        found = []
        with self._store.snapshot() as snapshot:
            for piece in pieces:
                parts = []
                for number in range(-(-piece.body_bytes // PART_BYTES)):
                    part = self._open(snapshot, BODY, piece.piece_id + _PART.pack(number))
                    if part is None:
                        return None
                    parts.append(part)
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                if len(body) != piece.body_bytes:
                    return None
                found.append(body)
        return found

    def members(self, piece: PieceRow) -> tuple[MemberRow, ...] | None:
        """Which instances a piece describes; None when that is gone."""
        with self._store.snapshot() as snapshot:
            opened = self._open(snapshot, MEMBERS, piece.piece_id)
        try:
            found = None if opened is None else _decode_members(opened)
        except msgspec.MsgspecError:
            return None
        return found if found is not None and len(found) == piece.instances else None

    def _open(self, snapshot: Snapshot, table: Table, key: bytes) -> bytes | None:
        sealed = snapshot.get(table, key)
        if sealed is None:
            return None
        try:
            return self._sealer.open(table, key, sealed)
        except (SealError, KeyringError):
            return None

    # ------------------------------------------------------------ writing

    def put_ahead(self, pieces: Sequence[MadePiece]) -> list[bytes]:
        """Keep pieces before their head is published; if it never is, they go after an hour.

        Returns what :meth:`publish` is to be told.
        """
        batch = self._piece_batch(pieces)
        due = _TIME.pack(time.time_ns() + _AHEAD_NS)
        ahead = [due + piece.row.piece_id for piece in pieces]
        for key in ahead:
            batch.put(DROPPED, key, b"\0")
        self._store.commit(batch)
        return ahead

    def publish(
        self, key: bytes, head: HeadRow, new: Sequence[MadePiece], ahead: Sequence[bytes] = ()
    ) -> None:
        """Make ``head`` what is kept for a series; ``new``: those of its pieces that are not stored yet.

        What it replaces, and what is oldest when there is too much, stays readable for ``grace_s``.
        ``StoreFullError`` when there is no room.
        """
        pieces = self._piece_batch(new)
        self._sealer.prepare(1)
        sealed = self._sealer.seal(HEAD, key, _encode(head))
        kept = {piece.piece_id for piece in head.pieces}

        def plan(snapshot: Snapshot) -> Sequence[Batch]:
            batch = Batch(puts=list(pieces.puts), deletes=[(DROPPED, entry) for entry in ahead])
            used = self._used(snapshot)
            old = self._head(snapshot, key)
            if old is not None:
                used -= self._drop(batch, key, old, kept)
            used += head.cost
            if used > self._limits.bytes_max:
                used -= self._evict(snapshot, batch, used - self._limits.bytes_max, key)
            batch.put(HEAD, key, sealed)
            batch.put(BUILT, _TIME.pack(head.built_ns) + key, _TIME.pack(head.cost))
            batch.put(META, _BYTES_USED, _TIME.pack(max(0, used)))
            self._remove_due(snapshot, batch)
            return [batch]

        _raise_failures(self._store.commit_planned(plan))

    def drop(self, key: bytes) -> None:
        """Forget a series, if it is kept."""

        def plan(snapshot: Snapshot) -> Sequence[Batch]:
            old = self._head(snapshot, key)
            batch = Batch()
            if old is None:
                batch.delete(HEAD, key)
                return [batch]
            used = self._used(snapshot) - self._drop(batch, key, old, set())
            batch.put(META, _BYTES_USED, _TIME.pack(max(0, used)))
            self._remove_due(snapshot, batch)
            batch.uses_reserve = True  # it frees what it takes, later
            return [batch]

        _raise_failures(self._store.commit_planned(plan))

    def remove_due(self) -> None:
        """Remove dropped pieces whose time is over."""

        def plan(snapshot: Snapshot) -> Sequence[Batch]:
            batch = Batch()
            self._remove_due(snapshot, batch)
            return [batch] if batch.deletes else []

        _raise_failures(self._store.commit_planned(plan))

    def remember_links(self, links: str) -> None:
        """Have series that are prepared before they are asked for be prepared with ``links``."""
        batch = Batch()
        batch.put(META, _LINKS, links.encode())
        self._store.commit(batch)

    def remembered_links(self) -> str | None:
        """What :meth:`remember_links` was told last, in any process."""
        with self._store.snapshot() as snapshot:
            held = snapshot.get(META, _LINKS)
        return None if held is None else held.decode("utf-8", "replace")

    def bytes_used(self) -> int:
        """What the published heads cost."""
        with self._store.snapshot() as snapshot:
            return self._used(snapshot)

    @staticmethod
    def _used(snapshot: Snapshot) -> int:
        held = snapshot.get(META, _BYTES_USED)
        return 0 if held is None else int(_TIME.unpack(held)[0])

    def _piece_batch(self, pieces: Sequence[MadePiece]) -> Batch:
        batch = Batch()
        self._sealer.prepare(sum(2 + piece.row.body_bytes // PART_BYTES for piece in pieces))
        seal = self._sealer.seal
        for piece in pieces:
            if piece.packed is None:
                continue
            piece_id, body = piece.row.piece_id, piece.packed.body
            for number, start in enumerate(range(0, len(body), PART_BYTES)):
                key = piece_id + _PART.pack(number)
                batch.put(BODY, key, seal(BODY, key, body[start : start + PART_BYTES]))
            batch.put(MEMBERS, piece_id, seal(MEMBERS, piece_id, _encode(piece.members)))
        return batch

    def _drop(self, batch: Batch, key: bytes, head: HeadRow, kept: set[bytes]) -> int:
        """Have ``batch`` drop a head but for the pieces that another keeps; the bytes it cost."""
        due = _TIME.pack(time.time_ns() + int(self._limits.grace_s * _NS))
        for piece in head.pieces:
            if piece.piece_id not in kept:
                batch.put(DROPPED, due + piece.piece_id, b"\0")
        batch.delete(BUILT, _TIME.pack(head.built_ns) + key)
        batch.delete(HEAD, key)
        return head.cost

    def _evict(self, snapshot: Snapshot, batch: Batch, excess: int, but: bytes) -> int:
        freed = 0
        for built, cost in snapshot.scan(BUILT, limit=EVICTIONS_PER_COMMIT):
            if freed >= excess:
                break
            key = built[_TIME.size :]
            if key == but:
                continue
            head = self._head(snapshot, key)
            if head is None or _TIME.pack(head.built_ns) + key != built:
                batch.delete(BUILT, built)
                freed += int(_TIME.unpack(cost)[0])
            else:
                freed += self._drop(batch, key, head, set())
        return freed

    def _remove_due(self, snapshot: Snapshot, batch: Batch) -> None:
        now = _TIME.pack(time.time_ns())
        for key, _ in snapshot.scan(DROPPED, limit=DROPS_PER_COMMIT):
            if key >= now:
                return
            piece_id = key[_TIME.size :]
            batch.delete(DROPPED, key)
            batch.delete(MEMBERS, piece_id)
            for part, _ in snapshot.scan(BODY, prefix=piece_id):
                batch.delete(BODY, part)


def _raise_failures(results: Sequence[object]) -> None:
    for result in results:
        if isinstance(result, Exception):
            raise result


def open_cache(directory: Path, limits: PreparedLimits, like: LmdbLimits) -> LmdbStore:
    """The cache's store in ``directory``, made when it is missing and made anew when it cannot be opened.

    ``like``: the index's limits, of which the reserve and readers hold here too.
    """
    # Twice the bytes: pages of what was replaced, and of what waits to be removed.
    own = replace(like, map_bytes=2 * limits.bytes_max + like.reserve_bytes + MAP_BYTES_SPARE)
    try:
        return LmdbStore(directory, TABLES, limits=own)
    except StorageError:
        for name in ("data.mdb", "lock.mdb"):
            (directory / name).unlink(missing_ok=True)
        return LmdbStore(directory, TABLES, limits=own)
