"""The scrub: leader work that reads everything stored again, slowly, and says what does not open.

Run in every worker; a lease lets one of them work (:mod:`~hounsfield.archive.engine.leadership`). What it
does is in :mod:`~hounsfield.archive.index.scrubbing`; here is when, and how fast: each segment again after
``interval_s``, no more than ``bytes_per_second``, past the page cache so that viewers keep what they are
reading in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from hounsfield.archive.engine.errors import BusyError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.leadership import RENEW_S, Leadership
from hounsfield.archive.engine.led_work import LedWork
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.carrying import StoppedError
from hounsfield.archive.index.copying import Copying
from hounsfield.archive.index.repairing import SegmentCopies
from hounsfield.archive.index.scrubbing import Scrubber, ScrubFigures
from hounsfield.archive.index.suspects import RequestRow, ScrubRow, SuspectRow
from hounsfield.storage_backends.api import BackgroundReads, BlobStore, Buffer, KeyValueStore
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.local_blobs import LocalBlobs

LEASE = "scrub"
LEASE_S = 10.0
POLL_S = 5.0  # between two looks whether something is due; a request waits so long
DUE_S = 300.0  # between two looks at what is due when nobody asks: all segments are listed for it
STEP_BYTES = 8 << 20  # verified at a time: milliseconds of a thread, and no longer than a lease
WALK_SHARE = 20  # suspects are looked for in the index at once, unless that walk took over 1/20 of the time
_NS = 1_000_000_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ScrubLimits:
    """When the archive reads itself, and how fast."""

    interval_s: float = 30 * 86_400.0
    """Each segment is verified again after so long; 0: only when asked. Disks lose about one sector in 10^15
    bits: a month finds that before a second copy is likely to be gone as well."""

    bytes_per_second: int = 32 << 20
    """A fifth of what one spinning disk reads, 80 TB in a month; 0: as fast as it goes."""

    fresh_s: float = 86_400.0
    """What was just written was just checked by its writer: its first time is a day later."""

    copies: tuple[str, ...] = ()
    """Directories with copies of the segments, as ``backup --segments`` writes them: damaged records are
    written anew from there."""


class Scrub:
    """Watches over what is stored. ``run`` it; the other methods may be called by any task."""

    def __init__(
        self,
        scrubber: Scrubber,
        store: KeyValueStore,
        gate: Gate,
        limits: ScrubLimits,
        *,
        owner: str,
        resting: BlobStore | None = None,
        let_go: Callable[[], object] = lambda: None,
    ) -> None:
        """``let_go``: of files that are other ones now."""
        self._scrubber = scrubber
        self._gate = gate
        self._limits = limits
        self._resting = resting
        self._let_go = let_go
        self._leadership = Leadership(store, gate, LEASE, owner=owner, lease_s=LEASE_S)
        self._looked = -DUE_S
        self._asked = trio.Event()
        self._working = trio.Lock()
        self.moving: LedWork | None = None
        """Whose turn it must be for a pack to be put back from another tier; none: there are no tiers."""

    @classmethod
    def of(cls, stores: Stores, gate: Gate, limits: ScrubLimits, *, owner: str) -> Scrub:
        """The scrub of these stores."""
        blobs = stores.blobs
        aside = blobs.for_background() if isinstance(blobs, BackgroundReads) else None
        reading = stores.log, stores.ledger
        if aside is not None:
            reading = stores.log.over(aside), stores.ledger.over(aside)
        scrubber = Scrubber(
            log=stores.log,
            ledger=stores.ledger,
            reading=reading,
            blobs=blobs,
            store=stores.store,
            keyring=stores.keyring,
            catalog=stores.catalog,
            sealer=stores.sealer,
            journal=stores.journal,
            copies=[DirectoryCopies(Path(path), stores.keyring) for path in limits.copies],
            copying=Copying(stores.store, stores.keyring, stores.tiers.by_name),
        )
        let_go = stores.reading.release_deleted
        return cls(scrubber, stores.store, gate, limits, owner=owner, resting=aside, let_go=let_go)

    @property
    def figures(self) -> ScrubFigures:
        return self._scrubber.figures

    async def run(self) -> None:
        """Work until cancelled."""
        async with self._leadership:
            while True:
                with trio.move_on_after(POLL_S):
                    await self._asked.wait()
                self._asked = trio.Event()
                try:
                    await self.now()
                except (StorageError, OSError) as error:
                    log.warning("the scrub stops for now", error=type(error).__name__)

    async def round(self) -> None:
        """Do all that is due now, or as much of it as this process stays the leader for."""
        scrubber = self._scrubber
        request = await self._gate.read(scrubber.request)
        if request is None and trio.current_time() - self._looked < DUE_S:
            return
        interval = int(self._limits.interval_s * _NS)
        fresh = int(self._limits.fresh_s * _NS)
        rate = 0 if request is not None and request.full_speed else self._limits.bytes_per_second
        due = await self._gate.read(scrubber.due, time.time_ns(), interval, fresh, request)
        for segment in due:
            while True:
                began = trio.current_time()
                step = await self._gate.read(scrubber.verify, segment, STEP_BYTES, time.time_ns())
                if not await self._rest(began, step.bytes, rate):
                    return
                if not step.more:
                    break
            if not await self._look_for_suspects(rate):
                return
        walk = await self._gate.read(scrubber.walk_state)
        asked = request is not None and not request.segments and walk.last_began_ns < request.asked_ns
        old = interval and time.time_ns() - walk.done_ns >= interval and bool(due or walk.done_ns)
        if (asked or old or walk.under_way) and not await self._walk(rate):
            return
        await self._gate.read(scrubber.repair, time.time_ns(), await self._put_packs_back())
        known = await self._gate.read(scrubber.suspects.all)
        self.figures.known_damaged = sum(row.confirmed for _, row in known)
        if request is not None:
            await self._gate.read(scrubber.done_with, request)
        self._looked = trio.current_time()
        if self._resting is not None:
            self._resting.close()  # lets go of the file it read last

    async def _put_packs_back(self) -> set[bytes]:
        """Have damaged packs put here anew from other tiers; those for which that was not tried, or in vain
        for now."""
        packs = self._scrubber.packs
        wanted = await self._gate.read(packs.wanted)
        if not wanted or self.moving is None:
            return wanted
        moving = self.moving

        def put_back() -> tuple[int, set[bytes]]:
            return packs.repair(wanted, time.time_ns(), moving.pace())

        try:
            done, hopeless = await moving.run(put_back)
        except (BusyError, StoppedError):
            return wanted
        self.figures.repaired += done
        await self._gate.read(self._let_go)
        return wanted - hopeless

    async def _look_for_suspects(self, rate: int) -> bool:
        """Find out whom a suspect belongs to, soon, but not by walking the index all the time."""
        if all(row.confirmed for _, row in await self._gate.read(self._scrubber.suspects.all)):
            return True
        walk = await self._gate.read(self._scrubber.walk_state)
        if time.time_ns() - walk.done_ns < WALK_SHARE * walk.took_ns and not walk.under_way:
            return True
        return await self._walk(rate)

    async def _walk(self, rate: int) -> bool:
        while True:
            began = trio.current_time()
            step = await self._gate.read(self._scrubber.look, time.time_ns())
            if not await self._rest(began, step.bytes, rate):
                return False
            if not step.more:
                return True

    async def _rest(self, began: float, count: int, rate: int) -> bool:
        """Wait until ``count`` bytes since ``began`` are within ``rate``; False when no longer leading."""
        until = began + (count / rate if rate else 0.0)
        while True:
            if not await self._lead():
                return False
            left = until - trio.current_time()
            await trio.sleep(min(max(left, 0.0), RENEW_S))
            if left <= RENEW_S:
                return True

    async def _lead(self) -> bool:
        if await self._leadership.lead():
            return True
        self.figures.known_damaged = self.figures.oldest_s = 0  # whoever leads says it
        return False

    # ------------------------------------------------------------ for people

    async def start(self, segments: tuple[bytes, ...] = (), *, full_speed: bool = False) -> None:
        """Have these segments (all, when none is named) verified now, by whichever worker leads."""
        await self._gate.read(self._scrubber.ask, RequestRow(time.time_ns(), segments, full_speed))
        self._asked.set()

    async def now(self) -> None:
        """Do what is asked for and due, if this process is the leader or becomes it."""
        async with self._working:
            if await self._lead():
                await self.round()

    def segments(self) -> list[bytes]:
        """Every segment that can be named to :meth:`start`. Blocking."""
        return list(self._scrubber.segments())

    def suspects(self) -> list[tuple[bytes, SuspectRow]]:
        """What does not open, as far as it is known. Blocking."""
        return self._scrubber.suspects.all()

    async def status(self) -> dict[str, Any]:
        """What is verified, when it was, and what was found: plain values, nothing of a patient."""
        return await self._gate.read(self._status)

    def _status(self) -> dict[str, Any]:
        scrubber = self._scrubber
        segments = scrubber.segments()
        rows = scrubber.rows()
        known = [rows.get(segment, ScrubRow()) for segment in segments]
        done = [row.done_ns for row in known if row.done_ns]
        walk = scrubber.walk_state()
        request = scrubber.request()
        suspects = scrubber.suspects.all()
        asked_ns = 0 if request is None else request.asked_ns
        return {
            "segments": len(segments),
            "verified": len(done),
            "under_way": [segment.hex() for segment in segments if rows.get(segment, ScrubRow()).under_way],
            "oldest": min(done) / _NS if done and len(done) == len(segments) else None,
            "records": sum(row.records for row in known),
            "bytes": sum(row.bytes for row in known),
            "bytes_stored": scrubber.stored_bytes(),
            "pass_bytes": sum(row.bytes for row in known if row.began_ns >= asked_ns),
            "index_looked_at": walk.done_ns / _NS if walk.done_ns else None,
            "index_rows": walk.rows,
            "requested": request is not None,
            "interval_seconds": self._limits.interval_s,
            "bytes_per_second": self._limits.bytes_per_second,
            "damaged": [listed(key, row) for key, row in suspects if row.confirmed],
            "suspects": sum(not row.confirmed for _, row in suspects),
        }


def listed(key: bytes, row: SuspectRow) -> dict[str, Any]:
    """One damaged record, without anything of a patient."""
    return {
        "segment": key[:16].hex(),
        "record": key[16:].hex(),
        "offset": row.offset,
        "reason": row.reason,
        "found": row.found_ns / _NS,
        "ledger": row.ledger,
        "objects": len(row.keys),
    }


class DirectoryCopies:
    """Copies in a directory that may come and go: a disk that is mounted for backups."""

    def __init__(self, path: Path, keyring: Keyring) -> None:
        self.name = str(path)
        self._path = path
        self._keyring = keyring

    def parts(self, segment: bytes, record_id: bytes, offset: int) -> tuple[int, list[Buffer]] | None:
        """As ``CopySource``; None while the directory is not there."""
        if not (self._path / "segments").is_dir():
            return None
        blobs = LocalBlobs(self._path, direct=False)
        try:
            return SegmentCopies(self.name, blobs, self._keyring).parts(segment, record_id, offset)
        finally:
            blobs.close()
