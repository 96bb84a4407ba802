"""Tiering: leader work that has every series lie where the rules want it, and brings back what is wanted.

Run in every worker; a lease lets one of them work at a time. In its order: series that somebody waits for are
brought back; what nothing needs is removed; then, every ``plan_s`` or when asked, a plan is made
(:mod:`~hounsfield.archive.engine.tier_planning`) and carried out, series by series, each of its steps safe by
itself (:mod:`~hounsfield.archive.index.gathering`, :mod:`~hounsfield.archive.index.copying`). A tier that is
away costs its own tasks only; they are found again by the next plan.

Every worker notes which series were opened.
"""

from __future__ import annotations

import datetime
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import structlog
import trio

from hounsfield.archive.engine.errors import BusyError
from hounsfield.archive.engine.led_work import LedWork
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.tier_fill import dead_bytes, draining_now, note_draining
from hounsfield.archive.engine.tier_moves import TierMoves
from hounsfield.archive.engine.tier_order import in_order
from hounsfield.archive.engine.tier_planning import PlanPage, SeriesTask, TierPlanning
from hounsfield.archive.engine.tier_progress import TieringFigures, TierProgress
from hounsfield.archive.engine.tier_returns import TierReturns
from hounsfield.archive.engine.tier_rules import Surroundings, TierRule, draining
from hounsfield.archive.engine.tier_standing import TierStanding
from hounsfield.archive.engine.tiers import SEGMENTS, TieringOptions
from hounsfield.archive.index.carrying import Pace, StoppedError, counts_once
from hounsfield.archive.index.copying import Copying, NoCopyError
from hounsfield.archive.index.demand import (
    day_of,
    last_opened,
    note_opened,
)
from hounsfield.archive.index.gathering import GATHER_PASSES
from hounsfield.archive.index.packs import HOT, LastCopyError, PackGoneError
from hounsfield.archive.index.prefetching import Prefetching
from hounsfield.archive.index.remains import Remains
from hounsfield.archive.index.rows import InstanceRow, SourceRow
from hounsfield.archive.index.tables import META, PACK
from hounsfield.archive.index.verifying import Copy, Due, Found, Verifying
from hounsfield.storage_backends.api import Batch, Snapshot
from hounsfield.storage_backends.errors import StorageError

LEASE = "tiering"
TOGETHER_S = 0.5  # between two notes of what was opened: a viewer opens a study's series together
NOTED_S = 600.0  # after so long a series that is opened again is news again
VERIFIED_AT_ONCE = 16  # copies: then it is looked again which are due
_ASKED = b"tiering/asked"
_PLANNED = b"tiering/planned"
_NS = 1_000_000_000

log = structlog.get_logger(__name__)


class Tiering:
    """Tiers within one engine. ``run`` it; the other methods may be called by any task."""

    def __init__(
        self,
        stores: Stores,
        options: TieringOptions,
        *,
        source: Callable[[InstanceRow], SourceRow],
        owner: str,
        on_commit: Callable[[], None] = lambda: None,
        clock: Callable[[], int] = time.time_ns,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._stores = stores
        self._store = stores.store
        self._options = options
        self._limits = options.limits
        self._clock = clock
        self._doubted: deque[bytes] = deque()  # from whatever thread reads
        self.copying = Copying(stores.store, stores.keyring, stores.tiers.by_name, clock=self.now)
        self.verifying = Verifying(stores.store, stores.journal, self.copying)
        self.planning = TierPlanning(
            stores.catalog,
            stores.journal,
            options.rules,
            source,
            options.plan,
            tiers=self.copying.tiers,
            damaged=self.verifying.damaged,
        )
        stores.log.damaged = self._doubted.append
        self.prefetching = Prefetching(
            stores.store, stores.journal, stores.catalog, stores.planner, options.prefetch
        )
        self._intervals = {one.name: int(one.verify_s * _NS) for one in options.tiers}
        self._remains = Remains(stores.indexer, stores.keyring, self.copying, stores.reading, prefix=SEGMENTS)
        self.leading = LedWork(
            stores.store,
            LEASE,
            owner=owner,
            bytes_per_second=options.limits.bytes_per_second,
            busy="another process moves packs at the moment: try again in a minute",
            clock=self.now,
            wait=wait,
        )
        self._asked = trio.Event()
        self._opened: deque[bytes] = deque()
        self._noted: set[bytes] = set()  # not told again for a while
        self._swept_ns = 0
        self._tidied_ns = 0
        self.figures = TieringFigures()
        self.progress = TierProgress(stores.store, self.figures, clock=self.now)
        self.standing = TierStanding(
            stores.store, stores.tiers, stores.keyring.root_id, self.verifying.damages, clock=self.now
        )
        self._moves = TierMoves(
            stores,
            self.copying,
            self.figures,
            quiet_s=options.plan.quiet_s,
            expires=self._expires,
            on_commit=on_commit,
        )
        self._returns = TierReturns(
            stores,
            self.copying,
            self.figures,
            progress=self.progress,
            leading=self.leading,
            prefetching=self.prefetching,
            verifying=self.verifying,
            on_commit=on_commit,
        )

    def now(self) -> int:
        """Nanoseconds since 1970."""
        return self._clock()

    # ------------------------------------------------------------ what every worker does

    def note_opened(self, series_key: bytes) -> None:
        """Something of a series is being read for somebody. Of any thread; to say it again costs nothing."""
        if series_key not in self._noted:
            self._noted.add(series_key)
            self._opened.append(series_key)

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._note)
            while True:
                with trio.move_on_after(self._limits.check_s):
                    await self._asked.wait()
                self._asked = trio.Event()
                try:
                    if self._is_anything_due():
                        await self.leading.run(self.step)
                except (BusyError, StoppedError):
                    continue
                except (StorageError, OSError) as error:
                    self.figures.failures += 1
                    log.warning("moving packs is put off", error=str(error))

    async def _note(self) -> None:
        forget = trio.current_time() + NOTED_S
        while True:
            await trio.sleep(TOGETHER_S)
            if trio.current_time() >= forget:
                self._noted.clear()
                forget = trio.current_time() + NOTED_S
            opened = {self._opened.popleft() for _ in range(len(self._opened))}
            doubted = {self._doubted.popleft() for _ in range(len(self._doubted))}
            try:
                if opened:
                    await trio.to_thread.run_sync(self._note_opened, opened)
                if doubted:
                    await trio.to_thread.run_sync(self.verifying.doubt, doubted)
            except (StorageError, OSError) as error:
                log.warning("which series were opened, or did not open, is not noted", error=str(error))

    def _note_opened(self, opened: set[bytes]) -> None:
        note_opened(self._store, opened, self._today())
        if self._limits.recall_when_opened:
            self._returns.ask(opened, "opened")

    def _today(self) -> datetime.date:
        return day_of(self.now())

    # ------------------------------------------------------------ what the leader does

    def step(self) -> None:
        """All that is due now. On a thread, with the lease."""
        self._returns.bring_back()
        is_tidied = self._is_tidying_due()
        if is_tidied:
            self._tidied_ns = self.now()
            self._returns.prefetch()
            self._remove_what_is_dead()
            self._verify()
        is_planned = self._is_plan_due()
        if is_planned:
            self._carry_out_plan()
            self._make_room()
        if not 0 <= self.now() - self._swept_ns < self._limits.sweep_s * _NS:
            self._swept_ns = self.now()
            self._sweep()
        self.progress.save()
        self.standing.tell(again=is_tidied or is_planned)
        if is_tidied or is_planned:
            self._keep_notes()

    def _keep_notes(self) -> None:
        """Have every tier that is used hold the root key as it is wrapped now, once it is not away."""
        tiers = self.standing.told().tiers
        used = [name for name, held in tiers.items() if held.packs and held.configured and name != HOT]
        for name in used:
            try:
                if not tiers[name].trouble:
                    self.copying.notes.keep(name, used)
            except StorageError as error:
                log.warning("a tier has not the root key as it is wrapped now", tier=name, error=str(error))

    def _is_anything_due(self) -> bool:
        return self._returns.is_anything_due() or self._is_tidying_due() or self._is_plan_due()

    def _is_tidying_due(self) -> bool:
        if self.verifying.asked_ns() > self._tidied_ns:
            return True
        if 0 <= self.now() - self._tidied_ns < self._limits.tidy_s * _NS:
            return False
        if self._options.tiers:
            return True
        with self._store.snapshot() as snapshot:
            return next(snapshot.scan(PACK, limit=1), None) is not None

    def _is_plan_due(self) -> bool:
        asked, planned = self.planned_ns()
        if asked > planned:
            return True
        now = self.now()  # a plan of tomorrow was made before the clock was put back
        return bool(self._options.rules) and not 0 <= now - planned < self._limits.plan_s * _NS

    def _carry_out_plan(self) -> None:
        began = self.now()
        asked, _ = self.planned_ns()
        self.figures.away.clear()
        with self.progress.of("plan", self.leading.pace()) as (pace, looked):
            dead = dead_bytes(self._store)

            def between() -> None:  # who waits for a series waits for a page of a plan or a task at most
                pace(0)
                self._returns.bring_back()

            around = partial(self._around, dead, is_led=True)
            plan = in_order(self.planning, self._store, around, self.now, between=between, progress=looked)
            try:
                for task in plan:
                    self._moves.carry_out(task, pace)
                    between()
            finally:
                self._moves.troubles.say("series stay where they are for now")
        batch = Batch(uses_reserve=True)
        batch.put(META, _PLANNED, began.to_bytes(8, "big"))
        if asked > began and self.planned_ns()[0] == asked:  # before the clock was put back
            batch.put(META, _ASKED, began.to_bytes(8, "big"))
        self._store.commit(batch)

    def planned(self, now_ns: int, progress: Callable[[int], None] = lambda _: None) -> Iterator[SeriesTask]:
        """What the rules want done, as it is at each moment. Changes nothing."""
        return self.planning.tasks(self._store, self._around(), now_ns, progress)

    def _expires(self, snapshot: Snapshot, series_key: bytes, rule: str) -> bool:
        return self.planning.expires(snapshot, self._around(), self.now(), series_key, rule)

    def plan_page(self, after: bytes | None, rules: Sequence[TierRule] | None = None) -> PlanPage:
        """A page of a plan, from where another one ended, by ``rules`` or those in force. Changes nothing."""
        if rules is None:
            return self.planning.page(self._store, self._around(), self.now(), after)
        fill = self.hot_fill()
        around = Surroundings(self._today(), fill, draining(rules, fill, frozenset()))
        return self.planning.with_rules(rules).page(self._store, around, self.now(), after)

    def _around(self, dead_before: int | None = None, *, is_led: bool = False) -> Surroundings:
        """``dead_before``: what has become dead since will be free when it is compacted, and counts so."""
        fill = self.hot_fill(0 if dead_before is None else max(0, dead_bytes(self._store) - dead_before))
        begun = draining_now(self._store, self._options.rules, fill)
        if is_led:
            note_draining(self._store, begun)
        return Surroundings(self._today(), fill, begun)

    def hot_fill(self, free: int = 0) -> float:
        """How much of the disk of the data directory is used, 0 to 1, had it so many ``free`` bytes more."""
        found = os.statvfs(self._stores.directory)
        return 1 - (found.f_bavail + free / max(1, found.f_frsize)) / max(1, found.f_blocks)

    # ------------------------------------------------------------ what is wanted, and what is not

    def _remove_what_is_dead(self) -> None:
        before_ns = self.now() - int(self._limits.remove_after_s * _NS)
        for segment in self._remains.dead(before_ns):
            try:
                self.figures.removed_packs += self._remains.remove(segment)
            except StorageError as error:  # a tier is away, or its disk full: the next look tries again
                self.figures.failures += 1
                log.warning("a pack of which nothing is needed stays for now", error=str(error))
        erase_ns = self.now() - int(self._limits.erase_s * _NS)
        for segment, row in self._remains.partly_dead(erase_ns):
            try:
                pace = counts_once(self.leading.pace(), GATHER_PASSES)
                self._moves.gatherer.renew(segment, row, pace=pace)
            except StorageError as error:
                self.figures.failures += 1
                log.warning("what was deleted from a pack is not erased yet", error=str(error))

    def _verify(self) -> None:
        """Read again what is due, a few copies at a time, so that nobody waits for it."""
        due = self.verifying.due(self.now(), self._intervals, VERIFIED_AT_ONCE)
        if not due:
            return
        self.copying.notes.look_again()
        with self.progress.of("verify", self.leading.pace()) as (pace, _):
            looked: dict[Copy, Found] = {}
            intervals = dict(self._intervals)
            while due:
                self._look_at(due, looked, pace)
                for one in due:  # a tier that is away costs its own copies only; the next look goes on
                    if looked[one.segment, one.tier] is Found.AWAY:
                        intervals.pop(one.tier, None)
                due = self.verifying.due(self.now(), intervals, VERIFIED_AT_ONCE, but=looked)
            self.verifying.settle(looked)

    def _look_at(self, due: list[Due], looked: dict[Copy, Found], pace: Pace) -> None:
        for one in due:
            found = looked[one.segment, one.tier] = self.verifying.verify(one, pace=pace)
            self.figures.verified_copies += found is Found.RIGHT
            self.figures.repaired_packs += found is Found.REPAIRED
            if found in {Found.REPAIRED, Found.DAMAGED}:
                log.warning("a copy was wrong", segment=one.segment.hex(), tier=one.tier, result=found.value)
            self._returns.bring_back()

    def _make_room(self) -> None:
        """Drop what was brought back and not opened for longest, past the budget for it.

        What a rule or a pin has stay is no part of that.
        """
        if not self._limits.recalled_bytes_max:
            return
        found = sorted(self._brought_back())
        left = sum(size for _, _, size in found)
        for _, segment, size in found:
            if left <= self._limits.recalled_bytes_max:
                return
            try:
                self.copying.drop(segment, HOT)
            except (NoCopyError, LastCopyError, PackGoneError, StorageError) as error:
                self.figures.failures += 1
                log.warning("a pack that was brought back stays for now", error=str(error))
                continue
            self.figures.freed_bytes += size
            left -= size

    def _brought_back(self) -> Iterator[tuple[datetime.date, bytes, int]]:
        """Packs that are here for a while only: when each was opened last, and its bytes."""
        around = self._around()
        for page in self.copying.packs.pages():
            for segment, row in page:
                copy = row.copies.get(HOT)
                if copy is None or copy.since_ns <= row.made_ns or len(row.copies) < 2:
                    continue
                if self.planning.is_wanted_hot(self._store, around, self.now(), row.series_key):
                    continue
                with self._store.snapshot() as snapshot:
                    opened = last_opened(snapshot, row.series_key)
                brought = day_of(copy.since_ns)
                yield max(opened or brought, brought), segment, row.size

    def _sweep(self) -> None:
        for segment in self._stores.log.segment_ids():
            self.copying.sweep_one(HOT, segment)
        for name in self.copying.tiers:
            if name == HOT:
                continue
            try:
                removed, strangers = self.copying.sweep(name, pace=self.leading.pace(throttled=False))
            except StorageError as error:
                log.warning("a tier is not swept", tier=name, error=str(error))
                continue
            if removed or strangers:
                log.info("a tier was swept", tier=name, removed=removed, unknown=strangers)

    # ------------------------------------------------------------ asked for

    async def apply(self) -> None:
        """Have the rules carried out soon, by whichever worker leads."""

        def ask() -> None:
            batch = Batch(uses_reserve=True)
            batch.put(META, _ASKED, self.now().to_bytes(8, "big"))
            self._store.commit(batch)

        await trio.to_thread.run_sync(ask)
        self._asked.set()

    async def verify(self) -> None:
        """Have every copy in a tier read again soon, by whichever worker leads."""
        await trio.to_thread.run_sync(self.verifying.ask, self.now())
        self._asked.set()

    def planned_ns(self) -> tuple[int, int]:
        """When somebody asked last for the rules to be carried out, and when the last plan that was began."""
        with self._store.snapshot() as snapshot:
            asked = int.from_bytes(snapshot.get(META, _ASKED) or b"", "big")
            return asked, int.from_bytes(snapshot.get(META, _PLANNED) or b"", "big")

    async def recall(self, study_uid: str, series_uid: str = "", *, why: str = "asked") -> int:
        """Have a study, or one of its series, be hot soon; how many series are not. ``NotFoundError``."""
        asked = await trio.to_thread.run_sync(self._returns.ask_for_study, study_uid, series_uid, why)
        self._asked.set()
        return asked
