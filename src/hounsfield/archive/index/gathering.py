"""Gathering: the objects of one series come into a pack, in the data directory, smaller if a rule says so.

A pack is a segment that says what is in it and proves itself (:mod:`hounsfield.storage_backends.packs`): what
tiers copy. In this order, each step durable before the next:

1. records of the series that lie in no pack of it are opened; native frames are recompressed, each decoded
   again and compared with what was received; all is sealed with a new key, written, synced, read back. An
   object in pieces becomes a pack by itself;
2. contents and end are written, after the whole blob was read back for the digest;
3. rows are switched, each only if it still needs its record; with the last ones, in one commit, the pack
   is listed.

Records keep their ids. What stays behind at the old places is dead, and compaction frees it. Killed before
the last commit of 3, the new segment is a stranger: the next start meets its records as further copies of
what is there, some of which rows point at already, and gathering again takes them into a new pack. What is
received for the series later makes another pack.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import msgspec
from msgspec import structs

from hounsfield.archive.index.carrying import Carried, Carrier, Pace, RewriteLimits, counts_once
from hounsfield.archive.index.catalog import Stored
from hounsfield.archive.index.indexing import Indexer, progress_batch
from hounsfield.archive.index.packs import (
    HOT,
    SERIES_KEY_BYTES,
    ContentsRow,
    CopyRow,
    PackRow,
    packs_of,
    plan_pack,
)
from hounsfield.archive.index.rows import (
    RECORD_KIND_OBJECT,
    InstanceRow,
    Location,
    ObjectRow,
    UseRow,
    decode,
    encode,
)
from hounsfield.archive.index.smaller_frames import SmallerLimits, is_native, is_worth_it, smaller
from hounsfield.archive.index.stored_objects import VANISHED, as_received, lengths_as_received
from hounsfield.archive.index.switching import Switching
from hounsfield.archive.index.tables import INSTANCE, QUARANTINE, STUDY_ID_BYTES, USE, VERSION
from hounsfield.codecs.at_rest import Encoding, name_of
from hounsfield.codecs.errors import CodecError
from hounsfield.storage_backends.api import Batch, Buffer, Snapshot, Table
from hounsfield.storage_backends.errors import SealError, ShortReadError, StoreFullError
from hounsfield.storage_backends.packs import PackWriter
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_format import RecordRef
from hounsfield.storage_backends.segment_scan import ScannedRecord

GATHER_PASSES: Final = 3
"""How often a pace is told of each byte, as it lay before: it is read, written, and read again."""
PAGE_ROWS: Final = 1000  # some 10 ms of opening rows: a snapshot is held no longer
LOOKS_MAX: Final = 3  # at one record that compaction moves meanwhile
INSTANCE_NUMBER: Final = 0x00200013
_ALWAYS: Final = 1 << 63  # later than anything

DAMAGED: Final = "it does not open: it is damaged"
CHANGED: Final = "it was deleted or replaced meanwhile"
NOT_NATIVE: Final = "its pixels are not native"
IN_PIECES: Final = "it lies in pieces"
ENOUGH: Final = "its frames are as wanted already"
UNKNOWN: Final = "its frames are stored in a way that this release does not know"
NO_GAIN: Final = "its frames do not shrink, or not more than they did"


@dataclass(frozen=True, slots=True)
class GatherLimits(RewriteLimits):
    """How much is done at a time, and how large a pack gets."""

    pack_bytes: int = 1 << 30
    """Of what is gathered, as it is stored before; more makes another pack. As large as a segment: a copy
    that breaks off costs seconds, and a bucket does not charge for many small objects."""


@dataclass(slots=True)
class GatherReport:
    """What became of one series. Bytes are stored bytes of records, before and after."""

    series_key: bytes
    packs: tuple[bytes, ...] = ()
    objects: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    recompressed: int = 0
    not_recompressed: Counter[str] = field(default_factory=Counter)
    """Objects whose frames stayed as they are although an encoding was asked for: why, and how many."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Objects that stay where they are: why, and how many."""
    kept_because: str = ""
    """Why nothing was gathered."""
    is_partial: bool = False
    """The disk had no room for more packs: calling it again goes on, once those made are elsewhere."""


class _Wanted(NamedTuple):
    """A row whose record is to come into a pack."""

    order: tuple[int, int]
    table: Table
    key: bytes
    location: Location


class _Opened(NamedTuple):
    """A record, read."""

    ref: RecordRef
    row: ObjectRow
    parts: list[Buffer]


class Gatherer:
    """Makes packs. Blocking; one thread at a time, under a lease."""

    def __init__(
        self,
        indexer: Indexer,
        limits: GatherLimits | None = None,
        *,
        compression: SmallerLimits | None = None,
        clock: Callable[[], int] = time.time_ns,
        room: Callable[[], int] = lambda: 1 << 62,
    ) -> None:
        """``room``: bytes that packs may take of the disk at the moment: where that is little, they are
        smaller, and fewer at a time."""
        self._indexer = indexer
        self._log = indexer.log
        self._limits = limits or GatherLimits()
        self._compression = compression or SmallerLimits()
        self._clock = clock
        self._room = room
        self._rows = Switching(indexer, clock)

    def gather(
        self,
        series_key: bytes,
        *,
        quiet_before_ns: int,
        recompress: Encoding | None = None,
        renew: Collection[bytes] = (),
        pace: Pace = lambda _: None,
        uses_reserve: bool = False,
    ) -> GatherReport:
        """Bring all objects of a series that lie in no pack of it, versions included, into a new one.

        Nothing happens while objects still come: unless the series was last changed before
        ``quiet_before_ns``. ``recompress``: have native frames stored so where that is smaller; None: all
        stay as they are stored. ``renew``: packs of the series whose objects are gathered anew, too, so that
        what was deleted from them can go. ``pace`` is told of each byte :data:`GATHER_PASSES` times.
        ``uses_reserve``: as of rewriting, for whoever gathers to free space.

        Every object of the report is in its pack, durable and read back, when this returns, and its row
        points there; who looked before finds the record where it was, until compaction. May be stopped and
        killed anywhere; calling it again goes on. Raises what a failing disk raises, and what ``pace`` does.
        """
        report = GatherReport(series_key)
        wanted, contents = self._wanted(series_key, quiet_before_ns, renew, report)
        if contents is not None:
            contents = structs.replace(contents, compress="" if recompress is None else recompress.value)
            self._make(
                wanted,
                contents,
                report,
                series_key=series_key,
                recompress=recompress,
                pace=pace,
                uses_reserve=uses_reserve,
            )
        return report

    def renew(self, segment: bytes, pack: PackRow, *, pace: Pace = lambda _: None) -> GatherReport:
        """Bring what rows still need of a pack into new ones, so that the old one can go.

        For what was deleted to be erased, and for another key. What was filed elsewhere since the pack was
        made comes into a pack of the series that it is of now. What is in no pack yet is left alone; frames
        stay as they are stored. Else as :meth:`gather`.
        """
        report = GatherReport(pack.series_key)
        self._renew(pack.series_key, segment, pack, report, pace)
        if self._live(segment, pack) > 0:
            for series_key in sorted(self._series_in(segment) - {pack.series_key}):
                self._renew(series_key, segment, pack, report, pace)
        return report

    def _renew(
        self, series_key: bytes, segment: bytes, pack: PackRow, report: GatherReport, pace: Pace
    ) -> None:
        """The same for one series."""
        wanted, contents = self._wanted(series_key, _ALWAYS, {segment}, report)
        wanted = [one for one in wanted if one.location.segment == segment]
        if contents is not None and wanted:
            contents = structs.replace(contents, compress=pack.compress)
            self._make(
                wanted, contents, report, series_key=series_key, recompress=None, pace=pace, uses_reserve=True
            )

    def _live(self, segment: bytes, pack: PackRow) -> int:
        with self._indexer.store.snapshot() as snapshot:
            held = snapshot.get(USE, segment)
        return pack.objects - (0 if held is None else decode(UseRow, held).dead_records)

    def _series_in(self, segment: bytes) -> set[bytes]:
        """The series, as they are filed now, of which something lies in a segment."""
        found: set[bytes] = set()
        for one in self._log.scan(segment):
            if not isinstance(one, ScannedRecord) or one.kind != RECORD_KIND_OBJECT:
                continue
            row = decode(ObjectRow, one.row)
            with self._indexer.store.snapshot() as snapshot:
                live = self._rows.find(snapshot, row, one.ref.record_id)
            if live is not None and live.table is not QUARANTINE and live.row.location.segment == segment:
                found.add(live.key[:SERIES_KEY_BYTES])
        return found

    def _make(
        self,
        wanted: list[_Wanted],
        contents: ContentsRow,
        report: GatherReport,
        *,
        series_key: bytes,
        recompress: Encoding | None,
        pace: Pace,
        uses_reserve: bool,
    ) -> None:
        for some, needed in self._divided(wanted):
            if needed > (room := self._room()):
                if report.packs:
                    report.is_partial = True
                    return
                raise StoreFullError(
                    f"a pack of {-(-needed >> 20)} MiB is to be made, and the disk of the data directory has "
                    f"{max(0, room) >> 20} MiB for packs beside its reserve: free some space"
                )
            carrier = Carrier(
                self._log,
                self._limits,
                open_segment=lambda arena_bytes: PackWriter(self._log, arena_bytes=arena_bytes),
                uses_reserve=uses_reserve,
            )
            is_switching = False
            try:
                carried: list[Carried] = []
                for one in some:
                    carried += self._take(one, recompress, carrier, report, pace)
                carried += carrier.flush(pace)
                packs = self._finish(carrier, carried, series_key, contents, pace, uses_reserve=uses_reserve)
                is_switching = True
                self._switch(carried, packs)
            except BaseException:
                carrier.give_up(remove=not is_switching)
                raise
            carrier.close()
            report.packs += tuple(packs)
            report.objects += len(carried)
            report.bytes_before += sum(one.left for one in carried)
            report.bytes_after += sum(one.length for one in carried)
        if not report.objects:
            report.kept_because = "nothing of it can be gathered"

    def _divided(self, wanted: list[_Wanted]) -> Iterator[tuple[list[_Wanted], int]]:
        """What comes into one pack each, and its bytes; objects in pieces beside, which become packs by
        themselves. Where there is little room, a pack takes half of it, so that the next finds some, too."""
        some: list[_Wanted] = []
        packed = needed = 0
        for one in wanted:
            length = self._indexer.objects.stored_bytes(one.location)
            own = length if one.location.stream is None else 0
            is_enough = packed + own > self._limits.pack_bytes or needed + length > self._room() // 2
            if some and is_enough:
                yield some, needed
                some, packed, needed = [], 0, 0
            some.append(one)
            packed += own
            needed += length
        yield some, needed

    # ------------------------------------------------------------ what there is

    def _wanted(
        self, series_key: bytes, quiet_before_ns: int, renew: Collection[bytes], report: GatherReport
    ) -> tuple[list[_Wanted], ContentsRow | None]:
        """What is to be gathered, in the order in which it is looked at; and what the pack says of itself."""
        catalog = self._indexer.catalog
        with self._indexer.store.snapshot() as snapshot:
            series = catalog.series_by_key(snapshot, series_key)
            study = catalog.study_by_id(snapshot, series_key[:STUDY_ID_BYTES])
            there = {segment for segment, _ in packs_of(snapshot, series_key)} - set(renew)
        if series is None or study is None:
            report.kept_because = "there is no such series"
            return [], None
        newest_ns = series.changed_ns
        found: list[_Wanted] = []
        for table, key, row in self._rows_of(series_key):
            newest_ns = max(newest_ns, row.received_ns)
            if row.location.segment not in there:
                order = _number(row.attributes.get(INSTANCE_NUMBER, "")), row.received_ns
                found.append(_Wanted(order, table, key, row.location))
        if newest_ns >= quiet_before_ns:
            report.kept_because = "it still receives objects, or did so a moment ago"
            return [], None
        if not found:
            report.kept_because = "all of it is in packs"
            return [], None
        return sorted(found, key=lambda one: one.order), ContentsRow(study.uid, series.uid, self._clock())

    def _rows_of(self, series_key: bytes) -> Iterator[tuple[Table, bytes, InstanceRow]]:
        for table in (INSTANCE, VERSION):
            after: bytes | None = None
            while True:
                with self._indexer.store.snapshot() as snapshot:
                    held = list(snapshot.scan(table, prefix=series_key, after=after, limit=PAGE_ROWS))
                for key, sealed in held:
                    yield table, key, self._indexer.catalog.open_row(table, key, sealed, InstanceRow)
                if len(held) < PAGE_ROWS:
                    break
                after = held[-1][0]

    # ------------------------------------------------------------ copying

    def _take(
        self, one: _Wanted, encoding: Encoding | None, carrier: Carrier, report: GatherReport, pace: Pace
    ) -> list[Carried]:
        """Take one object along; what is durable in the pack now."""
        location: Location | None = one.location
        for _ in range(LOOKS_MAX):
            if location is None:
                break
            try:
                if location.stream is not None:
                    return [self._carry_stream(location, encoding, carrier, report, pace)]
                opened = self._open(location, pace)
            except (SealError, ShortReadError, msgspec.MsgspecError):
                report.skipped[DAMAGED] += 1
                return []
            except VANISHED:
                before, location = location, self._again(one)
                if location == before:
                    report.skipped[DAMAGED] += 1
                    return []
                continue
            if encoding is not None:
                opened = self._recompressed(opened, encoding, report)
            ref, row, parts = opened
            return carrier.add(RecordIn(ref.kind, parts, ref.record_id), row, ref.length, pace)
        report.skipped[CHANGED] += 1
        return []

    def _again(self, one: _Wanted) -> Location | None:
        """Where the record is now; None when the row is of another one, or gone."""
        with self._indexer.store.snapshot() as snapshot:
            held = snapshot.get(one.table, one.key)
        if held is None:
            return None
        row = self._indexer.catalog.open_row(one.table, one.key, held, InstanceRow)
        return row.location if row.location.record_id == one.location.record_id else None

    def _carry_stream(
        self,
        location: Location,
        encoding: Encoding | None,
        carrier: Carrier,
        report: GatherReport,
        pace: Pace,
    ) -> Carried:
        ref = self._indexer.objects.ref_of(location)
        row = decode(ObjectRow, self._log.open_part(ref.part(0)))
        two_of_three = counts_once(pace, 3 / 2)  # the last one is made at the end
        carried = carrier.add_stream(ref, Stored(row, location), two_of_three)
        if encoding is not None:
            report.not_recompressed[IN_PIECES] += 1
        return carried

    def _open(self, location: Location, pace: Pace) -> _Opened:
        """The record, all of it in memory: while it waits to be written its segment may be compacted."""
        ref = self._indexer.objects.ref_of(location)
        pace(ref.length)
        whole = memoryview(bytearray(sum(ref.part_lengths)))
        self._log.open_parts(list(ref.parts()), whole, wait=True)
        parts: list[Buffer] = []
        at = 0
        for length in ref.part_lengths:
            parts.append(whole[at : at + length])
            at += length
        return _Opened(ref, decode(ObjectRow, bytes(parts[0])), parts)

    def _recompressed(self, opened: _Opened, encoding: Encoding, report: GatherReport) -> _Opened:
        """The record with smaller frames; as it is when they cannot be had."""
        ref, row, parts = opened
        stored = self._smaller(opened, encoding, report)
        if stored is None:
            return opened
        report.recompressed += 1
        frame_bytes = lengths_as_received(ref, row.stored_as)[1]
        new = structs.replace(row, stored_as=name_of(encoding, frame_bytes))
        return _Opened(ref, new, [encode(new), parts[1], *stored, parts[-1]])

    def _smaller(self, opened: _Opened, encoding: Encoding, report: GatherReport) -> list[Buffer] | None:
        row, held = opened.row, opened.parts[2:-1]
        if not is_native(row):
            report.not_recompressed[NOT_NATIVE] += 1
            return None
        if row.stored_as.partition(":")[0] == encoding:
            report.not_recompressed[ENOUGH] += 1
            return None
        try:
            frames = [
                as_received(row.stored_as, opened.ref.part(number), memoryview(opened.parts[number]))
                for number in range(2, len(opened.parts) - 1)
            ]
        except CodecError:
            report.not_recompressed[UNKNOWN] += 1
            return None
        stored = None
        if is_worth_it(row, frames, self._compression):
            stored = smaller(row, frames, encoding, self._compression)
        if stored is None or sum(map(len, stored)) >= sum(map(len, held)):
            report.not_recompressed[NO_GAIN] += 1
            return None
        return stored

    # ------------------------------------------------------------ the end, and the rows

    def _finish(
        self,
        carrier: Carrier,
        carried: list[Carried],
        series_key: bytes,
        contents: ContentsRow,
        pace: Pace,
        *,
        uses_reserve: bool,
    ) -> dict[bytes, PackRow]:
        """Write contents and end of each new segment: now it is a pack."""
        objects = Counter(one.location.segment for one in carried)
        packs = {}
        for writer in carrier.writers:
            assert isinstance(writer, PackWriter)
            (segment,) = writer.own_segments
            left = sum(one.left for one in carried if one.location.segment == segment)
            over = counts_once(pace, self._log.size(segment) / max(1, left))  # it counts as what it was
            end = writer.finish(encode(contents), objects[segment], uses_reserve=uses_reserve, pace=over)
            made_ns = contents.made_ns
            copies = {HOT: CopyRow(made_ns, made_ns)}
            size = self._log.size(segment)
            packs[segment] = PackRow(
                series_key, size, end.objects, made_ns, end.digest, copies, contents.compress
            )
        return packs

    def _switch(self, carried: list[Carried], packs: dict[bytes, PackRow]) -> None:
        size = self._limits.group_records
        groups = [carried[start : start + size] for start in range(0, len(carried), size)] or [[]]

        def switched(snapshot: Snapshot, group: list[Carried]) -> Batch:
            batch = Batch(uses_reserve=True)
            self._rows.plan(snapshot, batch, group, leaving=None)
            return batch

        for group in groups[:-1]:
            self._rows.commit(partial(switched, group=group), size)

        def last(snapshot: Snapshot) -> Batch:
            batch = switched(snapshot, groups[-1])
            for segment, row in packs.items():
                batch.puts += progress_batch({segment: row.size}, closed=True).puts
                plan_pack(batch, segment, row)
            return batch

        if packs:
            self._rows.commit(last, size)


def _number(text: str) -> int:
    """An instance's number, for the order; those without one come last."""
    try:
        return int(text.strip())
    except ValueError:
        return 1 << 62


__all__ = ["GatherReport", "Gatherer"]
