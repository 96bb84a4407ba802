"""Carrying out what a plan wants of one series: it is packed, copied to other tiers, dropped, or deleted.

Each step is safe by itself (:mod:`~hounsfield.archive.index.gathering`,
:mod:`~hounsfield.archive.index.copying`); a task that stopped in the middle is shorter in the next plan.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.tier_planning import SeriesTask
from hounsfield.archive.engine.tier_progress import TieringFigures
from hounsfield.archive.engine.tier_troubles import Troubles
from hounsfield.archive.index.carrying import Pace, counts_once
from hounsfield.archive.index.copying import Copying, NoCopyError
from hounsfield.archive.index.deletion import NothingToDeleteError, Target
from hounsfield.archive.index.gathering import GATHER_PASSES, Gatherer
from hounsfield.archive.index.holds import OnHoldError
from hounsfield.archive.index.packs import HOT, LastCopyError, PackGoneError
from hounsfield.archive.index.rows import Event
from hounsfield.codecs.at_rest import Encoding
from hounsfield.storage_backends.api import Snapshot
from hounsfield.storage_backends.errors import StorageError, StoreFullError

__all__ = ["ACTOR", "EVENT_TIERED", "EXPIRED_BY", "TierMoves"]

EVENT_TIERED = "series-tiered"
ACTOR, EXPIRED_BY = "tiering", "its retention is over: tier rule "
"""Who deletes by a rule, and why: how the history knows such deletions from others."""
COPY_PASSES = 2  # a byte that is copied is sent, and read back
_NS = 1_000_000_000


class _Pack(NamedTuple):
    """What is to be done with a pack."""

    segment: bytes
    copy_to: tuple[str, ...]
    drop_from: tuple[str, ...]
    passes: float
    """How often its bytes are gone over, from the first to the last."""


class TierMoves:
    """Carries out tasks. Blocking; one thread at a time, under a lease."""

    def __init__(
        self,
        stores: Stores,
        copying: Copying,
        figures: TieringFigures,
        *,
        quiet_s: float,
        expires: Callable[[Snapshot, bytes, str], bool],
        on_commit: Callable[[], None],
    ) -> None:
        """``quiet_s``: a series that changed so lately is not packed. ``expires``: whether a series, by its
        key, still goes by a rule, as a snapshot has it."""
        self._stores = stores
        self._copying = copying
        self._figures = figures
        self._quiet_s = quiet_s
        self._expires = expires
        self._on_commit = on_commit
        self.gatherer = Gatherer(stores.indexer, clock=copying.now, room=self._room)
        self.troubles = Troubles()

    def carry_out(self, task: SeriesTask, pace: Pace) -> None:
        """One task, or as much of it as can be done; the rest is in the next plan."""
        needed = task.tiers | task.only_in | {name for pack in task.packs for name in pack.drop_from}
        if away := needed & self._figures.away:
            self.troubles.note(away, "it does not answer")
            return
        try:
            done = self._expire(task) if task.action == "expire" else self._place(task, pace)
        except (NoCopyError, LastCopyError, PackGoneError, StorageError) as error:
            self._figures.failures += 1
            away = needed & self._stores.tiers.troubled()
            self._figures.away |= away  # others of its tasks need not wait
            at = {HOT} if isinstance(error, StoreFullError) else needed - {HOT} or {HOT}
            self.troubles.note(away or at, str(error))
            return
        if done:
            self._figures.series += 1

    def _expire(self, task: SeriesTask) -> bool:
        target = Target(task.study_uid, task.series_uid)
        try:
            self._stores.deletions.delete(
                target,
                reason=f"{EXPIRED_BY}{task.rule}",
                actor=ACTOR,
                now_ns=self._copying.now(),
                only_if=lambda snapshot: self._expires(snapshot, task.series_key, task.rule),
            )
        except NothingToDeleteError:
            return False  # it is gone, or has changed since it was planned: the next plan tells
        except OnHoldError:
            self._figures.held_series += 1
            return False
        self._figures.expired_series += 1
        self._on_commit()
        return True

    def _place(self, task: SeriesTask, pace: Pace) -> bool:
        packs = [
            _Pack(pack.segment, pack.copy_to, pack.drop_from, max(1, COPY_PASSES * len(pack.copy_to)))
            for pack in task.packs
        ]
        moved, freed = self._move(task, packs, pace)
        is_more = task.gather
        while is_more:  # where there is little room, some of it at a time
            gathered, is_more = self._gather(task, pace)
            packs += gathered
            more = self._move(task, gathered, pace)
            moved, freed = moved + more[0], freed + more[1]
        if packs:
            self._announce(task, moved, freed)
        return bool(packs)

    def _move(self, task: SeriesTask, packs: list[_Pack], pace: Pace) -> tuple[int, int]:
        """Copy and drop these packs; bytes that were copied, and that the hot tier has more."""
        moved = freed = 0
        for segment, copy_to, drop_from, passes in packs:
            shared = counts_once(pace, passes)
            for tier in copy_to:
                size = self._copying.copy(segment, tier, pace=shared).size
                moved += size
                self._figures.copied_bytes += size
            for tier in drop_from:
                others = max(1, len(task.tiers))
                size = self._copying.drop(segment, tier, others_min=others, pace=shared).size
                if tier == HOT:
                    freed += size
                    self._figures.freed_bytes += size
                    # Or the disk is not given back before this process looks for what others deleted.
                    self._stores.blobs.release_deleted()
        return moved, freed

    def _room(self) -> int:
        """What packs may take of a full disk: the half of its reserve is for deletions and the index."""
        found = os.statvfs(self._stores.directory)
        return found.f_bavail * found.f_frsize - self._stores.tiers.reserve_bytes // 2

    def _gather(self, task: SeriesTask, pace: Pace) -> tuple[list[_Pack], bool]:
        """Pack what is in no pack, or as much as there is room for: the packs, and whether there is more."""
        tiers = task.tiers or {HOT}
        copy_to = tuple(sorted(tiers - {HOT}))
        drop_from = () if HOT in tiers else (HOT,)
        passes: float = GATHER_PASSES + COPY_PASSES * len(copy_to)  # what is gathered is copied then
        quiet = self._copying.now() - int(self._quiet_s * _NS)
        report = self.gatherer.gather(
            task.series_key,
            quiet_before_ns=quiet,
            recompress=Encoding(task.compress) if task.compress else None,
            renew=task.renew,
            pace=counts_once(pace, passes),
            uses_reserve=True,
        )
        self._figures.gathered_objects += report.objects
        self._figures.gathered_bytes += report.bytes_before
        self._figures.packed_bytes += report.bytes_after
        rows = {segment: self._copying.packs.get(segment) for segment in report.packs}
        size = sum(row.size for row in rows.values() if row is not None)
        passes *= size / max(1, report.bytes_before)  # what shrank counts as what it was
        return [_Pack(segment, copy_to, drop_from, passes) for segment in report.packs], report.is_partial

    def _announce(self, task: SeriesTask, moved: int, freed: int) -> None:
        body = {
            "study": task.study_uid,
            "series": task.series_uid,
            "rule": task.rule,
            "action": task.action,
            "tiers": sorted(task.tiers),
            "moved_bytes": moved,
            "freed_bytes": freed,
        }
        self._stores.journal.commit_events([Event(EVENT_TIERED, self._copying.now(), body)])
        self._on_commit()
