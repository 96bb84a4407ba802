"""Compaction: leader work that gives back the disk that deleted objects take, and makes them unreadable.

Run in every worker; a lease lets one of them work at a time. It looks every ``check_s`` at how much of each
segment is dead, and rewrites those of which it is enough (:mod:`hounsfield.archive.index.rewriting`): what is
needed moves to a new segment with a new key, the old blob is deleted and its key destroyed. Slowly, so that
those who store and read do not notice.

Every worker also closes the segment that it writes to when something in it is due, and lets go of what
others deleted: descriptors (or the disk would not come back) and keys in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from hounsfield.archive.engine.errors import BusyError, StorageFailedError
from hounsfield.archive.engine.led_work import LedWork
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.carrying import Pace, StoppedError
from hounsfield.archive.index.gathering import Gatherer
from hounsfield.archive.index.packs import HOT, pack_of
from hounsfield.archive.index.rewriting import Rewriter, RewriteReport
from hounsfield.archive.index.rows import SegmentRow, UseRow, decode
from hounsfield.archive.index.tables import META, SEGMENT, USE
from hounsfield.archive.index.use import uses
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.errors import BlobNotFoundError, StorageError, StoreFullError
from hounsfield.storage_backends.local_blobs import LocalBlobs
from hounsfield.storage_backends.segment_format import HEADER_BYTES

LEASE = "compaction"
HOUSE_S = 5.0  # between two looks at what others deleted: so long its disk is not free yet
_ASKED = b"compaction/asked"
_NS = 1_000_000_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CompactionLimits:
    """When segments are rewritten, and how fast."""

    dead_fraction: float = 0.25
    """At a quarter dead, three bytes are moved for each that is freed, and no more than a third of the disk
    that live objects take is wasted; at a half it would be one byte, and as much again wasted."""

    erase_s: float = 30 * 86_400.0
    """However little of a segment is dead: what was deleted is erased after so long. Until then its key is
    there. Data protection law asks for "without undue delay"; a month is what backups mostly are kept."""

    quiet_s: float = 600.0
    """Nothing was deleted in the segment for so long: a study that is deleted series by series, or a night's
    expiry, should rewrite a segment once."""

    remove_after_s: float = 30.0
    """An emptied segment stays so long: readers that looked before finish there and need not look again."""

    bytes_per_second: int = 64 << 20
    """Read and written together; 0: as fast as it goes. Half of what one spinning disk does."""

    check_s: float = 60.0
    """Between two looks; the counts of all segments are read, a few microseconds each."""


@dataclass(slots=True)
class CompactionFigures:
    """What this worker's compaction did since its start, and what it saw last."""

    segments: int = 0
    moved_bytes: int = 0
    reclaimed_bytes: int = 0
    dead_bytes: int = 0
    failures: int = 0


class Compaction:
    """Compacts within one engine. ``run`` it; the other methods may be called by any task."""

    def __init__(
        self,
        stores: Stores,
        limits: CompactionLimits,
        *,
        owner: str,
        clock: Callable[[], int] = time.time_ns,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._stores = stores
        self._store = stores.store
        self._log = stores.log
        self._limits = limits
        self._clock = clock
        self._rewriter = Rewriter(stores.indexer, clock=self._now, leaves_packs=len(stores.tiers.by_name) > 1)
        self._gatherer = Gatherer(stores.indexer, clock=self._now)
        self.leading = LedWork(
            stores.store,
            LEASE,
            owner=owner,
            bytes_per_second=limits.bytes_per_second,
            busy="another process is compacting at the moment: try again in a minute",
            clock=self._now,
            wait=wait,
        )
        self._house = trio.CapacityLimiter(1)
        self._asked_ns = 0  # the last request to give up segments that was heard
        self._looked_for_empty = False
        self.figures = CompactionFigures()

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_house)
            while True:
                await trio.sleep(self._limits.check_s)
                try:
                    await self.leading.run(self._step)
                except (BusyError, StoppedError):
                    self.figures.dead_bytes = 0  # whoever works says how much
                except (StorageError, OSError) as error:
                    self.figures.failures += 1
                    log.warning("compaction is put off", error=str(error))

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(HOUSE_S)
            try:
                await trio.to_thread.run_sync(self.keep_house, limiter=self._house)
            except (StorageError, OSError) as error:
                log.warning("what was deleted is not let go of yet", error=str(error))

    def _now(self) -> int:
        return self._clock()

    # ------------------------------------------------------------ what every worker does

    def keep_house(self) -> None:
        """Let go of what others deleted, and of the own segment when something in it is to be erased."""
        blobs = self._stores.blobs
        if isinstance(blobs, LocalBlobs):
            blobs.release_deleted()
        self._stores.keyring.forget_destroyed("segment")
        own = self._log.own_segments[-1:]
        if not own:
            return
        with self._store.snapshot() as snapshot:
            held = snapshot.get(USE, own[0])
            asked = int.from_bytes(snapshot.get(META, _ASKED) or b"", "big")
        heard, self._asked_ns = asked > self._asked_ns, max(asked, self._asked_ns)
        if held is not None:
            use = decode(UseRow, held)
            if heard or self._is_due(use, self._log.size(own[0]), self._clock()):
                self._log.start_anew(own[0])

    def _is_due(self, use: UseRow, size: int, now_ns: int) -> bool:
        limits = self._limits
        if use.damaged or not use.dead_records or now_ns - use.changed_ns < limits.quiet_s * _NS:
            return False
        return use.dead_bytes >= limits.dead_fraction * size or now_ns - use.since_ns >= limits.erase_s * _NS

    # ------------------------------------------------------------ what the leader does

    def _step(self) -> None:
        grace = self._clock() - int(self._limits.remove_after_s * _NS)
        self._rewriter.remove_emptied(before_ns=grace)
        for segment in self._due(everything=False):
            self._rewrite(segment, self.leading.pace(throttled=True))
        self.figures.dead_bytes = sum(self._dead().values())

    def _rewrite(self, segment: bytes, pace: Pace) -> RewriteReport:
        try:
            self._require_room(segment)
            gathered = self._gather_anew(segment, pace)
            if (elsewhere := self._report_elsewhere(segment, gathered)) is not None:
                return elsewhere
            report = self._rewriter.rewrite_segment(segment, pace=pace, remove=False, packs=True)
            report.moved_bytes += gathered
        except StoreFullError as error:
            log.warning("a segment cannot be compacted now, the disk is full", error=str(error))
            return RewriteReport(segment, kept_because="the disk is full")
        except StorageError:
            with self._store.snapshot() as snapshot:
                use = snapshot.get(USE, segment)
                is_gone = snapshot.get(SEGMENT, segment) is None
            if not is_gone and (use is None or not decode(UseRow, use).emptied):
                raise
            return RewriteReport(segment)  # emptied and removed since it was found to be due
        if report.kept_because:
            log.info("a segment stays in its place", reason=report.kept_because)
        else:
            self.figures.segments += 1
            self.figures.moved_bytes += report.moved_bytes
            self.figures.reclaimed_bytes += report.size - report.moved_bytes
        return report

    def _require_room(self, segment: bytes) -> None:
        """``StoreFullError`` when what is needed of a segment does not fit beside it.

        To find that out by writing would take the last byte from whoever stores.
        """
        with self._store.snapshot() as snapshot:
            held = snapshot.get(USE, segment)
        needed = self._log.size(segment) - (0 if held is None else decode(UseRow, held).dead_bytes)
        found = os.statvfs(self._stores.directory)
        free = found.f_bavail * found.f_frsize
        if needed > free - free // 4:
            raise StoreFullError(
                f"{needed >> 20} MiB of a segment are needed still, and {free >> 20} MiB are free: "
                "free some space"
            )

    def _gather_anew(self, segment: bytes, pace: Pace) -> int:
        """Of a pack: what is needed of it goes to a new one, and not among other series; bytes of that."""
        with self._store.snapshot() as snapshot:
            pack = pack_of(snapshot, segment)
        if pack is None:
            return 0
        report = self._gatherer.renew(segment, pack, pace=pace)
        return sum(map(self._log.size, report.packs))

    def _report_elsewhere(self, segment: bytes, gathered: int) -> RewriteReport | None:
        """Of a pack that is not here, which goes from where it lies when nothing of it is needed any more."""
        with self._store.snapshot() as snapshot:
            pack, held = pack_of(snapshot, segment), snapshot.get(USE, segment)
        if pack is None or HOT in pack.copies:
            return None
        dead = 0 if held is None else decode(UseRow, held).dead_records
        report = RewriteReport(segment, size=pack.size, moved_bytes=gathered)
        if dead < pack.objects:
            report.kept_because = "something of it could not be gathered anew"
        return report

    def _dead(self) -> dict[bytes, int]:
        with self._store.snapshot() as snapshot:
            return {segment: use.dead_bytes for segment, use in uses(snapshot)}

    def _due(self, *, everything: bool) -> list[bytes]:
        """The segments to rewrite, those first that cost least and so need the least space."""
        now_ns = self._clock()
        found: list[tuple[int, bytes]] = []
        with self._store.snapshot() as snapshot:
            known = list(uses(snapshot))
        for segment, use in known:
            try:
                size = self._log.size(segment)
                if use.emptied or self._log.is_being_written(segment):
                    continue
            except BlobNotFoundError:
                self._forget(segment)
                continue
            if (everything and use.dead_records and not use.damaged) or self._is_due(use, size, now_ns):
                found.append((size - use.dead_bytes, segment))
        if everything or not self._looked_for_empty:
            self._looked_for_empty = True
            found += [(0, segment) for segment in self._empty()]
        return [segment for _, segment in sorted(found)]

    def _empty(self) -> list[bytes]:
        """Segments whose writer died before its first record was in them."""
        with self._store.snapshot() as snapshot:
            closed = {key for key, held in snapshot.scan(SEGMENT) if decode(SegmentRow, held).closed}
        return [
            segment
            for segment in self._log.segment_ids()
            if segment in closed
            and self._log.size(segment) <= HEADER_BYTES
            and not self._log.is_being_written(segment)
        ]

    def _forget(self, segment: bytes) -> None:
        """Forget what was counted of a segment that was removed already, and only of such a one."""
        with self._store.snapshot() as snapshot:
            if snapshot.get(SEGMENT, segment) is not None:
                return  # it should be there: that is for scrub and fsck to say
        batch = Batch(uses_reserve=True)
        batch.require(SEGMENT, segment, None)
        batch.delete(USE, segment)
        self._store.commit(batch)

    # ------------------------------------------------------------ asked for

    async def due(self, *, everything: bool) -> list[bytes]:
        """The segments that a run would rewrite: those that are due, or all of which anything is dead.

        With ``everything`` every worker also gives up the segment that it writes to, within seconds, when
        something in it is dead.
        """

        def look() -> list[bytes]:
            if everything:
                batch = Batch(uses_reserve=True)
                batch.put(META, _ASKED, self._clock().to_bytes(8, "big"))
                self._store.commit(batch)
                self.keep_house()
            return self._due(everything=everything)

        return await trio.to_thread.run_sync(look, limiter=self._house)

    async def rewrite(self, segment: bytes, *, throttled: bool) -> RewriteReport:
        """Rewrite one segment now; it is emptied, and removed by :meth:`finish` or a little later.

        Raises ``BusyError`` when another process compacts, ``StorageFailedError``.
        """
        try:
            pace = self.leading.pace
            return await self.leading.run(lambda: self._rewrite(segment, pace(throttled=throttled)))
        except StoppedError as error:
            raise BusyError("another process has taken over compaction: look at its status") from error
        except (StorageError, OSError) as error:
            raise StorageFailedError(f"the segment was not compacted ({error}); nothing is lost") from error

    async def finish(self) -> int:
        """Remove the emptied segments now, with their keys; how many."""
        try:
            return await self.leading.run(self._rewriter.remove_emptied)
        except (StorageError, OSError) as error:
            raise StorageFailedError(f"emptied segments were not removed ({error}); try again") from error

    async def status(self) -> dict[str, Any]:
        """How much is dead, segment by segment, as plain values."""
        return await trio.to_thread.run_sync(self._status, limiter=self._house)

    def _status(self) -> dict[str, Any]:
        now_ns = self._clock()
        segments = []
        with self._store.snapshot() as snapshot:
            known = list(uses(snapshot))
        for segment, use in known:
            try:
                size, is_open = self._log.size(segment), self._log.is_being_written(segment)
            except BlobNotFoundError:
                continue
            state = "due" if self._is_due(use, size, now_ns) else "waits"
            if use.emptied:
                state = "emptied"
            elif use.damaged:
                state = "damaged"
            elif is_open:
                state = "being written"
            segments.append({
                "segment": segment.hex(),
                "bytes": size,
                "dead_bytes": use.dead_bytes,
                "dead_records": use.dead_records,
                "dead_seconds": max(0, now_ns - use.since_ns) / _NS,
                "state": state,
            })  # fmt: skip
        return {
            "dead_bytes": sum(one["dead_bytes"] for one in segments),
            "dead_records": sum(one["dead_records"] for one in segments),
            "segments": sorted(segments, key=lambda one: -one["dead_bytes"]),
        }
