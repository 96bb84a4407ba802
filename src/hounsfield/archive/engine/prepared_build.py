"""Making the pieces of prepared metadata: what is taken over, what is encoded. Blocking.

A plan lists a series' instances in order and says, piece by piece, where each text comes from: a piece
that holds exactly these records is taken over as it is; a text that an older piece has is cut out of it;
the rest is encoded from header parts, read in the order of the disk. Instances are listed as little more
than record ids, so a series of 100,000 takes some 30 MB while it is planned, whatever its objects hold; the
rows of the first two thousand are held, and so opened once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from hounsfield.archive.dicom.json import JsonWriter
from hounsfield.archive.engine.delivery import Overlays
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.gzip_pieces import pack, unpack
from hounsfield.archive.engine.prepared_store import (
    HeadRow,
    MadePiece,
    MemberRow,
    PieceRow,
    PreparedLimits,
    PreparedStore,
    new_piece,
)
from hounsfield.archive.engine.records import number_of
from hounsfield.archive.engine.types import Header, Instance
from hounsfield.archive.index import corrections
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.rows import InstanceRow, SeriesRow
from hounsfield.archive.index.tables import INSTANCE, SERIES
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import KeyValueStore, Snapshot

__all__ = ["Blocking", "Plan", "PlannedPiece", "Series", "instance_json"]

ENCODING = 1
"""What every text depends on: a release that encodes differently takes another one."""
SERIES_NUMBER = 0x00200011
INSTANCE_NUMBER = 0x00200013
SCAN_ROWS = 5_000
"""Instance rows read from one snapshot, which takes a tenth of a second: none is held for longer."""
ROWS_HELD_MAX = 2_000
"""Rows of a series that are held from the listing until their pieces are made, some 5 MB: a series of images.
Those of longer ones are opened a second time."""
SCANS_MAX = 3
"""How often a series of more rows than that is read again because it changed meanwhile."""


def instance_json(
    header: Callable[[Instance], Header], writer: JsonWriter, links: str, instance: Instance
) -> bytes:
    """One instance's metadata, as every answer and every prepared series has it.

    ``header`` gives the data set as it is delivered, corrections included. ``links`` stands before the
    ``/studies/…`` of each BulkDataURI.
    """
    found = header(instance)
    url = (
        f"{links}/studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.row.sop_uid}/"
    )
    return writer.write(found.head, found.trailer, lookup(found.transfer_syntax_uid), base_uri=url)


@dataclass(frozen=True, slots=True)
class Series:
    """A series as the index had it when it was looked at."""

    study_uid: str
    uid: str
    key: bytes
    stamp: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An instance in its place: enough to find its row again; of the first ones the row as it was listed."""

    number: int
    sop_uid: str
    record_id: bytes
    header_bytes: int
    row: InstanceRow | None = None


@dataclass(slots=True)
class PlannedPiece:
    """What one piece is to hold; ``kept`` when an older one holds just that."""

    entries: Sequence[Entry]
    kept: PieceRow | None = None
    encoded: int = 0


@dataclass(slots=True)
class Plan:
    """How a series is built. ``stamp``: of what it lists, None when it changed while it was listed."""

    series: Series
    stamp: bytes | None
    links: str
    corrections: bytes
    pieces: list[PlannedPiece]
    older: _Older
    writer: JsonWriter = field(default_factory=JsonWriter)
    whole: bool = True  # until an instance turns out to be gone


class Blocking:
    """The half of prepared metadata that waits for disks. Any number of threads."""

    def __init__(
        self,
        *,
        index: KeyValueStore,
        catalog: Catalog,
        cache: PreparedStore,
        header: Callable[[Instance], Header],
        read_ahead: Callable[[Iterable[InstanceRow]], None],
        limits: PreparedLimits,
    ) -> None:
        self._index = index
        self._catalog = catalog
        self._cache = cache
        self._header = header
        self._read_ahead = read_ahead
        self._limits = limits
        self.study_id = catalog.study_id

    # ------------------------------------------------------------ what is

    def series(self, study_uid: str, series_uid: str | None) -> list[Series]:
        """The series of a study, or the one named, by number."""
        catalog = self._catalog
        key = catalog.study_id(study_uid) if series_uid is None else catalog.series_key(study_uid, series_uid)
        found = []
        with self._index.snapshot() as snapshot:
            for series_key, sealed in snapshot.scan(SERIES, prefix=key):
                row = catalog.open_row(SERIES, series_key, sealed, SeriesRow)
                number = number_of(row.attributes.get(SERIES_NUMBER, ""))
                found.append(Series(study_uid, row.uid, series_key, _stamp(sealed), number))
        found.sort(key=lambda one: (one.number, one.uid))
        return found

    @staticmethod
    def holds(head: HeadRow, series: Series, links: str | None) -> bool:
        """Whether what was prepared is what the series is (with these links, if any are given)."""
        return (
            head.stamp == series.stamp
            and head.encoding == ENCODING
            and (links is None or head.links == links)
        )

    def instance(self, study_uid: str, series_uid: str, sop_uid: str) -> tuple[bytes, InstanceRow]:
        """One instance, and the stamp of its series."""
        with self._index.snapshot() as snapshot:
            row = self._catalog.instance(snapshot, study_uid, series_uid, sop_uid)
            sealed = snapshot.get(SERIES, self._catalog.series_key(study_uid, series_uid))
        if row is None or sealed is None:
            raise NotFoundError("no such instance in this archive")
        return _stamp(sealed), row

    @staticmethod
    def etag(links: str, parts: Iterable[bytes]) -> str:
        """A weak entity tag (RFC 9110 8.8.3): one for every coding and media type."""
        digest = hashlib.blake2b(f"{ENCODING}\0{links}\0".encode(), digest_size=16)
        for part in parts:
            digest.update(part)
        return f'W/"{digest.hexdigest()}"'

    def text(self, instance: Instance, links: str, writer: JsonWriter) -> bytes:
        """One instance's metadata."""
        return instance_json(self._header, writer, links, instance)

    # ------------------------------------------------------------ planning

    def plan(self, series: Series, links: str, head: HeadRow | None) -> Plan:
        """How to build a series as it is now, out of ``head`` as far as that goes."""
        stamp, generation, entries = self._entries(series)
        older = _Older(self._cache, (), b"", b"")
        kept: dict[bytes, tuple[PieceRow, tuple[MemberRow, ...]]] = {}
        if head is not None and head.encoding == ENCODING and head.corrections == generation:
            # What does not open any more is as good as never made.
            opens = [piece for piece in head.pieces if self._cache.bodies([piece]) is not None]
            members = [(piece, self._cache.members(piece)) for piece in opens]
            whole = [(piece, found) for piece, found in members if found]
            if head.links == links:
                kept = {found[0].record_id: (piece, found) for piece, found in whole if self._is_full(piece)}
            older = _Older(self._cache, whole, _link_start(head.links), _link_start(links))
        pieces: list[PlannedPiece] = []
        at = 0
        while at < len(entries):
            piece, found = kept.get(entries[at].record_id, (None, ()))
            there = entries[at : at + len(found)]
            if piece is not None and [e.record_id for e in there] == [m.record_id for m in found]:
                pieces.append(PlannedPiece(there, piece))
                at += len(there)
                continue
            end = self._end_of_piece(entries, at, kept)
            pieces.append(PlannedPiece(entries[at:end]))
            at = end
        # All headers that are known are asked for at once, and come while the first ones are encoded.
        self._read_ahead(
            entry.row
            for piece in pieces
            if piece.kept is None
            for entry in piece.entries
            if entry.row is not None and entry.record_id not in older
        )
        return Plan(series, stamp, links, generation, pieces, older)

    def _is_full(self, piece: PieceRow) -> bool:
        """Half-full pieces are joined with what comes beside them: else many additions made many pieces."""
        return (
            2 * piece.instances >= self._limits.piece_instances_max
            or piece.length >= self._limits.piece_header_bytes_max
        )

    def _end_of_piece(self, entries: Sequence[Entry], at: int, kept: Container[bytes]) -> int:
        size = 0
        end = at
        while end < len(entries) and end - at < self._limits.piece_instances_max:
            size += entries[end].header_bytes
            if end > at and (size > self._limits.piece_header_bytes_max or entries[end].record_id in kept):
                break
            end += 1
        return end

    def _entries(self, series: Series) -> tuple[bytes | None, bytes, list[Entry]]:
        """Stamp, generation of corrections, instances in order: of one moment, unless the stamp is None."""
        for _ in range(SCANS_MAX):
            entries, before, after, generation = self._scan(series.key)
            if before == after:
                break
        if not entries:
            raise NotFoundError("no such study or series in this archive")
        entries.sort(key=lambda entry: (entry.number, entry.sop_uid))
        return (before if before == after else None), generation, entries

    def _scan(self, key: bytes) -> tuple[list[Entry], bytes | None, bytes | None, bytes]:
        entries: list[Entry] = []
        before: bytes | None = None
        generation = b""
        last: bytes | None = None
        while True:
            with self._index.snapshot() as snapshot:
                sealed = snapshot.get(SERIES, key)
                now = None if sealed is None else _stamp(sealed)
                if last is None:
                    before, generation = now, corrections.generation(snapshot) or b""
                read = 0
                for found, row in self._rows(snapshot, key, last):
                    read += 1
                    last = found
                    number = number_of(row.attributes.get(INSTANCE_NUMBER, ""))
                    location = row.location
                    size = location.header_bytes + location.trailer_bytes
                    held = row if len(entries) < ROWS_HELD_MAX else None
                    entries.append(Entry(number, row.sop_uid, location.record_id, size, held))
            if read < SCAN_ROWS:
                return entries, before, now, generation

    def _rows(
        self, snapshot: Snapshot, key: bytes, after: bytes | None
    ) -> Iterable[tuple[bytes, InstanceRow]]:
        for found, sealed in snapshot.scan(INSTANCE, prefix=key, after=after, limit=SCAN_ROWS):
            yield found, self._catalog.open_row(INSTANCE, found, sealed, InstanceRow)

    # ------------------------------------------------------------ making

    def is_heavy(self, piece: PlannedPiece) -> bool:
        """Whether making a piece may take long, or much memory."""
        return sum(entry.header_bytes for entry in piece.entries) > self._limits.heavy_header_bytes

    def make(self, plan: Plan, piece: PlannedPiece) -> MadePiece | None:
        """One piece; None when all its instances are gone by now."""
        texts: list[bytes | None] = [plan.older.text(entry.record_id) for entry in piece.entries]
        records = [entry.record_id for entry in piece.entries]
        wanted = [number for number, text in enumerate(texts) if text is None]
        found = self._current(plan, [piece.entries[number] for number in wanted])
        todo = [(number, one) for number, one in zip(wanted, found, strict=True) if one is not None]
        todo.sort(key=lambda pair: (pair[1].row.location.segment, pair[1].row.location.offset))
        self._read_ahead(one.row for number, one in todo if one.row is not piece.entries[number].row)
        for number, one in todo:
            texts[number] = self.text(one, plan.links, plan.writer)
            record_id = one.row.location.record_id
            if record_id != records[number]:
                records[number] = record_id
                plan.whole = False
        plan.whole = plan.whole and len(todo) == len(wanted)
        piece.encoded = len(todo)
        present = [(record, text) for record, text in zip(records, texts, strict=True) if text is not None]
        if not present:
            return None
        members = [MemberRow(record, len(text)) for record, text in present]
        return new_piece(pack(b",".join([text for _, text in present]), self._limits.level), members)

    def _current(self, plan: Plan, entries: Sequence[Entry]) -> list[Instance | None]:
        """Listed instances as they are by now, with what corrections change in them; None where one is gone.

        As long as the series is what it was when it was listed, so are its rows (but for where compaction
        moves a record, which reading finds out).
        """
        catalog, series = self._catalog, plan.series
        found: list[Instance | None] = []
        with self._index.snapshot() as snapshot:
            sealed = snapshot.get(SERIES, series.key)
            is_same = plan.stamp is not None and sealed is not None and _stamp(sealed) == plan.stamp
            overlays = Overlays.of(catalog, snapshot, series.study_uid)
            for entry in entries:
                row = entry.row if is_same else None
                if row is None:
                    row = catalog.instance(snapshot, series.study_uid, series.uid, entry.sop_uid)
                if row is None:
                    found.append(None)
                    continue
                overlay = overlays.overlay(series.uid, row)
                found.append(Instance(series.study_uid, series.uid, row, overlay))
        return found


class _Older:
    """Texts in pieces made before, by record. Unpacks one piece at a time: texts are asked for in order."""

    def __init__(
        self,
        cache: PreparedStore,
        pieces: Iterable[tuple[PieceRow, tuple[MemberRow, ...]]],
        links_then: bytes,
        links_now: bytes,
    ) -> None:
        self._cache = cache
        self._links = (links_then, links_now) if links_then != links_now else None
        self._of: dict[bytes, tuple[PieceRow, tuple[MemberRow, ...]]] = {
            member.record_id: (piece, members) for piece, members in pieces for member in members
        }
        self._piece_id = b""
        self._texts: dict[bytes, bytes] = {}

    def __contains__(self, record_id: bytes) -> bool:
        return record_id in self._of

    def text(self, record_id: bytes) -> bytes | None:
        """The text of one record's instance, or None."""
        found = self._of.get(record_id)
        if found is None:
            return None
        piece, members = found
        if piece.piece_id != self._piece_id:
            self._piece_id = piece.piece_id
            self._texts = self._unpacked(piece, members)
        text = self._texts.get(record_id)
        return text if text is None or self._links is None else text.replace(*self._links)

    def _unpacked(self, piece: PieceRow, members: Sequence[MemberRow]) -> dict[bytes, bytes]:
        bodies = self._cache.bodies([piece])
        if bodies is None or sum(member.length + 1 for member in members) - 1 != piece.length:
            return {}
        whole = unpack(bodies[0], piece.length)
        texts = {}
        at = 0
        for member in members:
            texts[member.record_id] = whole[at : at + member.length]
            at += member.length + 1
        return texts


def _link_start(links: str) -> bytes:
    """How every link begins. Nothing else is like it: quotes inside of a text are escaped (RFC 8259 7)."""
    return b'"BulkDataURI":' + msgspec.json.encode(links)[:-1] + b"/studies/"


def _stamp(sealed: bytes) -> bytes:
    return hashlib.blake2b(sealed, digest_size=16).digest()
