"""What comes back into the data directory: series that somebody opened or asked for, and priors.

Whoever waits for a series goes before what will be wanted tomorrow. One that cannot be brought back is put
off for a while, so that others are not kept waiting by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import structlog

from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.led_work import LedWork
from hounsfield.archive.engine.tier_progress import TieringFigures, TierProgress
from hounsfield.archive.index.carrying import Pace
from hounsfield.archive.index.copying import Copying, NoCopyError
from hounsfield.archive.index.demand import RecallRow, ask_for, recalls, satisfied
from hounsfield.archive.index.packs import HOT, PackGoneError
from hounsfield.archive.index.prefetching import Prefetching
from hounsfield.archive.index.rows import Event
from hounsfield.archive.index.tables import STUDY_ID_BYTES
from hounsfield.storage_backends.errors import StorageError

if TYPE_CHECKING:
    from hounsfield.archive.engine.engine import Stores

__all__ = ["EVENT_RECALLED", "TierReturns"]

EVENT_RECALLED = "series-recalled"
RECALLS_AT_ONCE = 16  # looked up together; whoever is urgent waits for no more than these
RECALL_AGAIN_S = 15.0  # what could not be brought back is tried again then: others are waiting, too

log = structlog.get_logger(__name__)


class TierReturns:
    """Brings series back. Blocking; asking is for any thread, bringing for one at a time, under a lease."""

    def __init__(
        self,
        stores: Stores,
        copying: Copying,
        figures: TieringFigures,
        *,
        progress: TierProgress,
        leading: LedWork,
        prefetching: Prefetching,
        on_commit: Callable[[], None],
    ) -> None:
        self._stores = stores
        self._store = stores.store
        self._copying = copying
        self._figures = figures
        self._progress = progress
        self._leading = leading
        self._prefetching = prefetching
        self._on_commit = on_commit
        self.put_off: dict[bytes, float] = {}  # series, and until when by the monotonic clock

    # ------------------------------------------------------------ asked for

    def ask(self, series_keys: Iterable[bytes], why: str) -> int:
        """Have those of these series that are elsewhere brought back soon; how many they are."""
        away = [key for key in series_keys if self._is_away(key)]
        if away:
            ask_for(self._store, away, RecallRow(self._copying.now(), why))
        return len(away)

    def ask_for_study(self, study_uid: str, series_uid: str, why: str) -> int:
        """The same for a study, or one of its series. ``NotFoundError``."""
        catalog = self._stores.catalog
        with self._store.snapshot() as snapshot:
            series = [
                key
                for key, row in catalog.series_of(snapshot, catalog.study_id(study_uid))
                if series_uid in {"", row.uid}
            ]
        if not series:
            raise NotFoundError("no such study or series in this archive")
        return self.ask(series, why)

    def _is_away(self, series_key: bytes) -> bool:
        return any(HOT not in row.copies for _, row in self._copying.packs.of_series(series_key))

    # ------------------------------------------------------------ brought back

    def is_anything_due(self) -> bool:
        """Whether somebody waits for a series that was not just tried in vain."""
        return bool(self._recalls(1))

    def _recalls(self, limit: int) -> list[tuple[bytes, RecallRow]]:
        now = time.monotonic()
        self.put_off = {key: until for key, until in self.put_off.items() if now < until}
        return recalls(self._store, limit, without=self.put_off)

    def bring_back(self) -> None:
        while found := self._recalls(RECALLS_AT_ONCE):
            with self._progress.of("recall", self._leading.pace(throttled=False)) as (pace, _):
                for series_key, row in found:
                    if self._recalled(series_key, row.why, pace):
                        satisfied(self._store, series_key, row)
                    else:  # it stays asked for
                        self.put_off[series_key] = time.monotonic() + RECALL_AGAIN_S

    def _recalled(self, series_key: bytes, why: str, pace: Pace) -> bool:
        """Bring a series back; whether there is nothing left to do, or nothing that could be."""
        brought = 0
        for segment, row in self._copying.packs.of_series(series_key):
            if HOT in row.copies:
                continue
            try:
                brought += self._copying.copy(segment, HOT, pace=pace).size
            except PackGoneError:
                continue
            except (NoCopyError, StorageError) as error:
                self._figures.failures += 1
                log.warning("a series could not be brought back yet", error=str(error))
                return False
        if brought:
            self._figures.recalled_series += 1
            self._figures.recalled_bytes += brought
            self._announce_recalled(series_key, why, brought)
        return True

    def _announce_recalled(self, series_key: bytes, why: str, brought: int) -> None:
        catalog = self._stores.catalog
        with self._store.snapshot() as snapshot:
            study = catalog.study_by_id(snapshot, series_key[:STUDY_ID_BYTES])
            series = catalog.series_by_key(snapshot, series_key)
        if study is not None and series is not None:
            body = {"study": study.uid, "series": series.uid, "why": why, "bytes": brought}
            self._stores.journal.commit_events([Event(EVENT_RECALLED, self._copying.now(), body)])
            self._on_commit()

    def prefetch(self) -> None:
        """Ask for the priors of those who come soon."""
        for wanted in self._prefetching.due(self._copying.now()):
            self._figures.prefetched_series += self.ask(self._prefetching.series_for(wanted), "prefetch")
            self._prefetching.forget(wanted.name, self._copying.now())
        self.bring_back()
